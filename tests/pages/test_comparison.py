"""The page of a comparison: its numbers are those of the comparison and of counting users by hand."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from recsys.eval.compare import compare
from recsys.eval.report import Report, number
from recsys.pages.comparison import write_comparison
from recsys.pages.differences import winners


@pytest.fixture
def page(reports: tuple[Report, Report], tmp_path: Path) -> str:
    write_comparison(tmp_path / "page.html", reports, compare(*reports))
    return (tmp_path / "page.html").read_text(encoding="utf-8")


def test_every_difference_of_all_users_and_segments_is_there(reports: tuple[Report, Report], page: str) -> None:
    found = compare(*reports)
    for heading in (
        "Headline",
        "Differences",
        "Segments",
        "Who wins for which users",
        "Differences of users",
        "Protocol",
    ):
        assert f"<h2>{heading}</h2>" in page
    for row in (*found.overall, *found.segments):
        assert number(abs(row.difference)) in page and row.segment in page


def test_names_are_escaped_and_nothing_is_fetched(page: str) -> None:
    assert "<script" not in page and "&lt;script&gt;" in page and not re.search("https?:", page)


def test_shares_of_users_are_those_counted_by_hand(reports: tuple[Report, Report]) -> None:
    first, other = (one.per_user("ndcg@10")[np.argsort(one.columns["user"])] for one in reports)
    row = re.findall(r"<tr>(.*?)</tr>", winners(reports, ("a", "b"), "ndcg@10"))[1]
    shares = [(other > first).mean(), (other == first).mean(), (other < first).mean()]
    assert re.findall(r"<td>([\d.]+%)</td>", row) == [f"{share:.1%}" for share in shares]


def test_a_model_against_itself_has_no_winner(reports: tuple[Report, Report], tmp_path: Path) -> None:
    twice = (reports[1], reports[1])
    write_comparison(tmp_path / "same.html", twice, compare(*twice))
    assert "No user differs" in (tmp_path / "same.html").read_text(encoding="utf-8")
