"""Charts as SVG, and as tables where there is no library to draw them."""

from __future__ import annotations

import sys
import warnings
from html.parser import HTMLParser
from importlib.util import find_spec

import pytest

from recsys.pages.charts import Chart, Series, can_draw, figure, thinned

drawn = pytest.mark.skipif(find_spec("matplotlib") is None, reason="matplotlib is not installed")
HOSTILE = "漢 </text><script>alert(1)</script> $\\frac{1$ #000020"
CHARTS = {
    "lines": Chart("A", "lines", (Series("a", [1, 2, 3], [0.1, 0.2, 0.3]), Series("b", [1, 2], [5, 6])), x="x", y="y"),
    "log": Chart("B", "lines", (Series("", [1, 10, 100], [50, 5, 1]),), x="rank", y="count", log=True),
    "histogram": Chart("C", "histogram", (Series("", [0, 1, 2], [3, 4]),), x="v", y="n"),
    "dates": Chart("D", "histogram", (Series("", [0, 86_400_000, 2 * 86_400_000], [3, 4]),), x="t", dates=True),
    "bars": Chart("E", "bars", (Series("", ["one", "two"], [3, 4]),), x="v", y="n"),
    "intervals": Chart("F", "intervals", (Series("", ["m", "n"], [0.2, 0.3], [0.1, 0.2], [0.3, 0.4]),), x="ndcg"),
    "points": Chart("G", "points", (Series("m", [0.1], [0.3]), Series("n", [0.2], [0.4])), x="coverage", y="ndcg"),
}


class Parsed(HTMLParser):
    """Tags, attributes and text; every tag is closed in order."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.text = ""
        self.open: list[str] = []
        self.feed(source)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.handle_startendtag(tag, attrs)
        self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


@drawn
@pytest.mark.parametrize("name", CHARTS)
def test_a_chart_is_one_drawing_with_its_axes(name: str) -> None:
    chart, found = CHARTS[name], Parsed(figure(CHARTS[name]))
    assert found.tags.count("svg") == 1 and chart.title in found.text and chart.x in found.text
    assert not any(key == "id" and value.startswith(("figure", "axes")) for key, value in found.attributes if value)


@drawn
@pytest.mark.parametrize("name", CHARTS)
def test_a_chart_is_the_same_each_time_and_has_the_colours_of_the_page(name: str) -> None:
    first, again = figure(CHARTS[name]), figure(CHARTS[name])
    assert first == again and "var(--s0)" in first and "#0000" not in first and "http" not in first


@drawn
def test_names_are_drawn_as_they_are() -> None:
    series = tuple(Series(f"{at} {HOSTILE}", [HOSTILE, "b"], [1, 2], [0, 1], [2, 3]) for at in range(2))
    warnings.simplefilter("error")
    for kind in ("intervals", "bars"):
        found = Parsed(figure(Chart(HOSTILE, kind, series, x=HOSTILE, y=HOSTILE)))
        assert "script" not in found.tags and "$\\frac{1$" in found.text and "#000020" in found.text


@pytest.mark.parametrize("name", CHARTS)
def test_without_the_library_the_numbers_stand_there(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    chart = CHARTS[name]
    found = Parsed(figure(chart))
    assert not can_draw() and "svg" not in found.tags and "table" in found.tags
    assert all(str(value) in found.text for series in chart.series for value in series.y)


@drawn
def test_the_settings_of_the_user_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    import matplotlib

    before = figure(CHARTS["intervals"])
    monkeypatch.setitem(matplotlib.rcParams, "text.usetex", True)
    monkeypatch.setitem(matplotlib.rcParams, "axes.facecolor", "red")
    assert figure(CHARTS["intervals"]) == before and matplotlib.rcParams["text.usetex"]


@drawn
def test_a_chart_that_cannot_be_drawn_is_a_table_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(chart: Chart) -> str:
        raise ImportError("DLL <load> failed")

    monkeypatch.setattr("recsys.pages.charts.svg", broken)
    found = Parsed(figure(CHARTS["bars"]))
    assert "svg" not in found.tags and "table" in found.tags and "DLL <load> failed" in found.text


@drawn
def test_a_long_line_is_thinned_and_keeps_its_ends() -> None:
    few = thinned(range(1_000_000), 100)
    assert few[0] == 0 and few[-1] == 999_999 and len(few) <= 101
    many = Series("", list(range(200_000)), [value**0.5 for value in range(200_000)])
    assert len(figure(Chart("Long", "lines", (many,)))) < 40_000


@drawn
def test_one_point_equal_points_and_extreme_ones_are_drawn() -> None:
    for values in ([0.0], [2.0, 2.0], [1e-300, 1e300], [-1e12, 1e12]):
        places = list(range(len(values)))
        assert "<svg" in figure(Chart("odd", "lines", (Series("", places, values),)))
