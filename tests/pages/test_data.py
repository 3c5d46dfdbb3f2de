"""What is counted of the data of a split, against counting by hand, and that large data make small pages."""

from __future__ import annotations

import re
import sys
from dataclasses import replace

import numpy as np
import pytest

import recsys as rs
from recsys.data.prepared import Prepared
from recsys.data.split import Split
from recsys.ids.vocabulary import Vocabulary
from recsys.pages import data
from recsys.pages.data import data_section


@pytest.fixture(autouse=True)
def tables(monkeypatch: pytest.MonkeyPatch) -> None:
    """Charts as tables, whose numbers can be read."""
    monkeypatch.setitem(sys.modules, "matplotlib", None)


def told(page: str) -> str:
    return re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", page))


def column(page: str, title: str) -> list[list[str]]:
    """The cells of the table of a chart."""
    own = page.partition(f"<figcaption>{title}")[2].partition("</figure>")[0]
    rows = re.findall(r"<tr>(.*?)</tr>", own)[1:]
    return [re.findall(r"<td>(.*?)</td>", row) for row in rows]


def test_sizes_are_those_of_the_split(films: Split) -> None:
    page, counts = told(data_section(films)), films.train.item_counts()[1:]
    assert f"users {films.num_users}" in page and f"items {films.num_items}" in page
    assert f"training events {counts.sum()}" in page
    most = np.sort(counts)[::-1][: round(0.1 * len(counts))].sum() / counts.sum()
    assert f"most popular 10% of items {most:.1%}" in page


def test_the_gini_coefficient_is_half_the_mean_difference() -> None:
    counts = np.array([1, 1, 4, 10])
    pairs = np.abs(counts[:, None] - counts).mean() / (2 * counts.mean())
    assert data._gini(counts) == pytest.approx(pairs) and data._gini(np.full(5, 3)) == pytest.approx(0)


def test_every_user_is_in_one_bin_of_lengths_and_every_event_in_one_of_time(films: Split) -> None:
    page = data_section(films)
    assert sum(int(row[1]) for row in column(page, "Length of histories")) == films.num_users
    assert sum(int(row[1]) for row in column(page, "Events over time")) == films.prepared.num_events


def test_the_curve_of_popularity_begins_at_the_most_popular_item(films: Split) -> None:
    rows, counts = column(data_section(films), "Popularity of items"), films.train.item_counts()
    assert [rows[0][1], rows[-1][1]] == [str(counts.max()), str(counts[counts > 0].min())]


def test_blocks_change_nothing(films: Split, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = data_section(films)
    monkeypatch.setattr(data, "BLOCK", 7)
    assert data_section(films) == whole


def test_a_placeholder_time_far_from_all_others_is_counted_not_drawn(films: Split) -> None:
    times = np.array(films.prepared.times)
    times[0] = 0
    odd = replace(films, prepared=replace(films.prepared, times=times))
    shown = sum(int(row[1]) for row in column(data_section(odd), "Events over time"))
    assert 0.98 * len(times) < shown < len(times) and "far outside" in data_section(odd)


def test_data_without_times_or_with_one_time_have_no_chart_of_them(films: Split, split: Split) -> None:
    assert "Events over time" not in data_section(split)
    still = replace(films.prepared, times=np.full(films.prepared.num_events, 5, np.int64))
    assert "Events over time" not in data_section(replace(films, prepared=still))


def test_many_events_and_items_make_a_small_page() -> None:
    random = np.random.default_rng(0)
    users, items, each = 50_000, 300_000, 40
    rows = np.minimum(random.zipf(1.3, users * each), items).astype(np.int32)
    times = np.tile(1_600_000_000_000 + np.arange(each, dtype=np.int64) * 86_400_000, users)
    prepared = Prepared(rows, np.arange(users + 1, dtype=np.int64) * each, items, times=times)
    names = Vocabulary(np.arange(items), first=1), Vocabulary(np.arange(users), first=0)
    assert len(data_section(Split.of(prepared, rs.LeaveLast(), *names))) < 30_000
