from __future__ import annotations

import re
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from recsys.eval.compare import compare
from recsys.pages.run import write_html

VOID = {"meta", "br", "input"}


class Checker(HTMLParser):
    """Every tag is closed in order; collects text and tags."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        assert not any(name.startswith("on") for name, _ in attrs)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def read(path: Path) -> Checker:
    checker = Checker()
    checker.feed(path.read_text(encoding="utf-8"))
    checker.close()
    assert checker.open == []
    return checker


@pytest.fixture
def page(reports, tmp_path) -> Path:
    report, other = reports
    curves = [{"epoch": epoch, "loss": 5 / (epoch + 1), "note": "text"} for epoch in range(5)]
    curves += [{"epoch": 5, "ndcg@10": 0.1, "loss": float("nan")}, {"epoch": 6, "ndcg@10": 0.1}]
    path = tmp_path / "report.html"
    write_html(
        path, "Run <7>", report, compare(report, other), curves, {"tied events": 0.125, "notes": ["a", "b"]},
        {"Best": [{"title": "A & B", "score": 1.5}, {"title": "<i>C</i>"}], "Log": "one\n<two>", "Files": ["x"]},
        baselines=[other], repeat={"command": ["/x/recsys/__main__.py", "fit", "<b>"], "seed": 7},
    )  # fmt: skip
    return path


def test_a_full_page_parses_and_stands_alone(page):
    checker = read(page)
    text = " ".join(checker.text)
    for word in ("Run <7>", "Metrics", "Segments", "Compared", "Training", "Audit", "tied events", "A & B", "<two>"):
        assert word in text
    assert "ndcg" in text and "leave-last" in text and "Zero & Co" in text
    assert {"script", "link", "img"}.isdisjoint(checker.tags)
    assert not re.search("https?:", page.read_text(encoding="utf-8"))


def test_names_are_escaped(page):
    source = page.read_text(encoding="utf-8")
    assert "<script" not in source and "&lt;script&gt;" in source and "<i>" not in source


def test_one_chart_per_number_that_was_logged(page):
    checker = read(page)
    training = page.read_text(encoding="utf-8").partition('<section id="training">')[2].partition("</section>")[0]
    assert training.count("<figcaption>") == 2
    assert "loss" in checker.text and "note" not in checker.text
    assert "nan" not in page.read_text(encoding="utf-8")


def test_a_page_with_next_to_nothing(tmp_path):
    write_html(tmp_path / "empty.html", "Empty")
    assert "Empty" in " ".join(read(tmp_path / "empty.html").text)
    assert [file.name for file in tmp_path.iterdir()] == ["empty.html"]


def test_a_full_disk_keeps_the_old_page(tmp_path, monkeypatch):
    write_html(tmp_path / "report.html", "Old")
    before = (tmp_path / "report.html").read_bytes()

    def full(path: Path, text: str, **_options: str) -> None:
        path.write_bytes(text.encode()[:100])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(OSError, match="space"):
        write_html(tmp_path / "report.html", "New")
    assert (tmp_path / "report.html").read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["report.html"]


def bars(tmp_path, content) -> tuple[Checker, list[tuple[float, float]]]:
    """The page with one section, and (left, width) of its bars."""
    write_html(tmp_path / "bars.html", "Bars", extras={"Edits": content})
    source = (tmp_path / "bars.html").read_text(encoding="utf-8")
    found = re.findall(r'class="bar" style="margin-left:([^"]*)%;width:([^"]*)%"', source)
    return read(tmp_path / "bars.html"), [(float(left), float(width)) for left, width in found]


def test_bars_are_as_long_as_their_numbers(tmp_path):
    checker, found = bars(tmp_path, {"bars": {"keep": 0.5, "delete": 0.25, "insert <b>": 0, "swap": np.int64(1)}})
    (zero, longest), widths = found[3], [width for _, width in found]
    assert widths == [longest / 2, longest / 4, 0, longest] and all(left == zero for left, _ in found)
    assert "insert <b>" in checker.text and "0.25" in checker.text
    assert "b" not in checker.tags and "script" not in checker.tags


def test_every_user_is_in_the_distribution_whatever_the_metric(reports, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)  # charts as tables
    first = reports[0]
    values = np.random.default_rng(0).normal(0, 5, first.users)
    odd = replace(first, meta={**first.meta, "metrics": ["gain"]}, columns={**first.columns, "gain": values})
    write_html(tmp_path / "page.html", "Own", odd)
    own = (tmp_path / "page.html").read_text(encoding="utf-8").partition("<figcaption>gain of each user")[2]
    shares = re.findall(r"<tr><td>[^<]*</td><td>([^<]*)</td></tr>", own.partition("</figure>")[0])
    assert sum(map(float, shares)) == pytest.approx(1, abs=1e-3)


def test_more_curves_than_a_page_shows_are_counted(tmp_path):
    write_html(tmp_path / "page.html", "Many", curves=[{f"number {at}": 1.0 for at in range(100)}])
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert page.count("<figcaption>") == 60 and "40 more" in page


def test_half_a_surrogate_pair_costs_no_page(tmp_path):
    assert "a ? b" in bars(tmp_path, ["a \ud800 b"])[0].text


@pytest.mark.parametrize(
    "value", [0, 0.0, float("nan"), float("inf"), None, "many", True, 10**400], ids=lambda value: str(value)[:9]
)
def test_a_bar_without_a_length_is_safe(tmp_path, value):
    checker, found = bars(tmp_path, {"bars": {"only": value}})
    assert {"only", "0" if value == 0 else str(value)} <= set(checker.text)
    assert all(width == 0 for _, width in found)


def test_bars_below_zero_start_at_the_same_place(tmp_path):
    _, found = bars(tmp_path, {"bars": {"up": 3.0, "down": -1.0, "huge": 0.0}})
    (up_left, up), (down_left, down), _ = found
    assert up == pytest.approx(3 * down) and down_left + down == pytest.approx(up_left)


def test_no_bars_and_several_with_text_and_tables(tmp_path):
    assert bars(tmp_path, {"bars": {}})[1] == []
    mixed = ["by operation", {"bars": {"keep": 1}}, [{"title": "A & B"}], {"bars": {"x" * 300: 2}}, {"share": 0.5}]
    checker, found = bars(tmp_path, mixed)
    assert len(found) == 2 and checker.tags.count("table") == 4  # two of them are bars
    assert "by operation" in checker.text and "A & B" in checker.text and "x" * 300 in checker.text


def test_a_mapping_that_only_mentions_bars_stays_a_table(tmp_path):
    assert bars(tmp_path, {"bars": 3})[1] == [] and bars(tmp_path, {"bars": {"a": 1}, "more": 2})[1] == []


def test_hostile_15_control_characters_are_shown_not_obeyed(tmp_path):
    raw = "\x1b[2Jred\x00\r\x9b1m \u202egnp"
    write_html(
        tmp_path / "page.html", raw, curves=[{raw: 1.0, "epoch": 1}], audit={raw: raw}, extras={raw: [raw, "a\tb"]}
    )
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert not set(page) & {*map(chr, (*range(9), *range(11, 32), *range(127, 160), 0x202E))}
    assert "\\x1b[2Jred" in page and "a\tb" in page
    read(tmp_path / "page.html")


@pytest.mark.parametrize(
    "content",
    [
        "x" * 3_000_000,
        [{"title": "x" * 5_000} for _ in range(3_000)],
        {f"key {at}": at for at in range(30_000)},
        [f"line {at}" for at in range(30_000)],
        {"bars": {f"bar {at}": at for at in range(30_000)}},
    ],
    ids=["text", "table", "mapping", "list", "bars"],
)
def test_hostile_15_a_page_stays_readable_in_size(tmp_path, content):
    curves = [{"epoch": at, "loss": 1 / (at + 1)} for at in range(50_000)]
    write_html(tmp_path / "page.html", "Large", curves=curves, extras={"Section": content})
    checker = read(tmp_path / "page.html")
    assert (tmp_path / "page.html").stat().st_size < 2_500_000 and "..." in " ".join(checker.text)
