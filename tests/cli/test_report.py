"""``recsys report`` and ``recsys compare --html``: pages made anew from folders."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest

import recsys as rs
from recsys.cli import main
from recsys.runs.split import remember_split


@pytest.fixture
def runs(split: rs.Split, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """Folders of two runs, each with its report."""
    monkeypatch.setenv("RECSYS_CACHE", str(tmp_path / "cache"))
    made = []
    for name, model in (("first", rs.Popularity()), ("second", rs.Markov())):
        folder = tmp_path / name
        rs.fit(model, split, folder=folder, progress=False)
        remember_split(split, folder)
        rs.evaluate(model, split.test, k=(1, 5, 10), progress=False).save(folder)
        made.append(folder)
    return made[0], made[1]


def page(folder: Path) -> str:
    return (folder / "report.html").read_text(encoding="utf-8")


def test_the_page_of_a_run_is_made_from_its_folder(runs: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(runs[1])]) == 0
    shown = page(runs[1])
    for heading in ("Headline", "Protocol", "Data", "Metrics", "Segments", "Users", "Examples", "How to repeat it"):
        assert f"<h2>{heading}</h2>" in shown
    assert "item-1" in shown and "report.html" in capsys.readouterr().out
    first = (runs[1] / "report.html").read_bytes()
    assert main(["report", str(runs[1])]) == 0
    assert (runs[1] / "report.html").read_bytes() == first


def test_a_run_whose_split_is_gone_still_has_a_page(
    runs: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree(tmp_path / "cache")
    assert main(["report", str(runs[0])]) == 0
    assert "Without data" in capsys.readouterr().out and "Without data" in page(runs[0])
    assert "<h2>Metrics</h2>" in page(runs[0]) and "<h2>Data</h2>" not in page(runs[0])
    assert main(["report", str(runs[0]), "--split", str(tmp_path / "nowhere")]) == 1


def test_without_the_extra_the_page_has_tables_and_says_so(
    runs: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert main(["report", str(runs[0])]) == 0
    assert "recsys[report]" in page(runs[0]) and "<svg" not in page(runs[0])


def test_a_comparison_is_written_as_a_page(
    runs: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "pages" / "compared.html"
    assert main(["compare", *map(str, runs), "--html", str(target)]) == 0
    shown = target.read_text(encoding="utf-8")
    assert "<h1>second against first</h1>" in shown and str(target) in capsys.readouterr().out


def test_results_become_a_leaderboard_and_what_is_damaged_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    row = {"name": "mine", "metrics": {"ndcg@10": {"mean": 0.25}}, "runs": [{"seed": 0}], "data": "own"}
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "mine.json").write_text(json.dumps(row))
    (tmp_path / "results" / "bad.json").write_text("{")
    assert main(["report", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert "1 results" in shown and "results/bad.json" in shown
    assert ".2500" in (tmp_path / "leaderboard.html").read_text(encoding="utf-8")


def test_what_is_neither_a_run_nor_results_is_refused(
    runs: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    for words in ([str(tmp_path / "empty")], [str(tmp_path / "nowhere")], [str(runs[0]), "--html", "x.html"]):
        assert main(["report", *words]) == 1
        assert words[0] in capsys.readouterr().err
