"""Titles, filters and search over a small item table, against the conditions written out."""

from __future__ import annotations

import numpy as np
import pytest

from recsys.serve.columns import Columns

TABLE = {
    "title": ["", "Heat", "The Heat", "Fargo", "Wheat (1990)", "", "Star Wars: [Heat] *"],
    "genres": ["", "Crime|Drama", "Comedy", "Crime Thriller", "Documentary", "Science Fiction, Drama", "Sci-Fi"],
    "year": ["", "1995", "2013", "1996", "1990", "", "unknown"],
}
POPULARITY = np.array([0, 5, 50, 7, 1, 2, 3])


@pytest.fixture
def table() -> Columns:
    return Columns(TABLE, POPULARITY)


@pytest.mark.parametrize(
    ("filters", "rows"),
    [
        ({"genres": {"has": ["crime"]}}, [1, 3]),
        ({"genres": {"has": ["drama", "comedy"]}}, [1, 2, 5]),
        ({"genres": {"has": ["science fiction"]}}, [5]),
        ({"genres": {"has": ["sci"]}}, [6]),
        ({"genres": {"has": ["cri"]}}, []),
        ({"genres": {"has_not": ["crime", "comedy"]}}, [4, 5, 6]),
        ({"genres": {"is": ["Comedy", "Documentary"]}}, [2, 4]),
        ({"year": {"min": 1995}}, [1, 2, 3]),
        ({"year": {"min": 1991, "max": 1995.5}}, [1]),
        ({"year": {"is": [1995, 1990]}}, [1, 4]),
        ({"year": {"is": ["1995", "unknown"]}}, [1, 6]),
        ({"year": {"is_not": [1995]}}, [2, 3, 4, 5, 6]),
        ({"year": {"max": 2000}, "genres": {"has": ["drama", "crime"]}}, [1, 3]),
        ({"title": {"has": ["[heat]"]}}, [6]),
    ],
)
def test_filters_leave_the_rows_that_meet_all_conditions(table: Columns, filters, rows: list[int]) -> None:
    assert table.rows(filters).tolist() == rows
    assert table.rows(filters).tolist() == rows  # from memory


@pytest.mark.parametrize(
    ("filters", "told"),
    [
        ({"genre": {"has": ["x"]}}, "genres"),
        ({"genres": {"min": 3}}, "genres"),
        ({"genres": {}}, "is"),
        ({"genres": {"contains": ["x"]}}, "contains"),
    ],
)
def test_impossible_filters_are_refused_with_what_there_is(table: Columns, filters, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        table.rows(filters)


def test_search_prefers_beginnings_then_words_then_popular_ones(table: Columns) -> None:
    assert table.search("heat", 10).tolist() == [1, 2, 6, 4]  # begins; words by popularity; inside a word
    assert table.search("  HEAT the ", 10).tolist() == [2]
    assert table.search("[heat] *", 10).tolist() == [6]  # nothing is a pattern
    assert table.search("heat", 2).tolist() == [1, 2]
    assert table.search("", 5).tolist() == [] and table.search("nowhere", 5).tolist() == []


def test_items_that_come_later_are_found_and_have_empty_entries(table: Columns) -> None:
    grown = table.extended({"title": ["Heat Wave", None]}, 2)
    assert grown.titles(np.array([7, 8, 5])) == ["Heat Wave", None, None]
    assert 7 in grown.search("heat wave", 5) and grown.rows({"year": {"is_not": [1995]}}).tolist()[-2:] == [7, 8]
    with pytest.raises(ValueError, match="title"):
        table.extended({"titel": ["x"]}, 1)


def test_a_million_titles_are_searched_without_a_loop_over_them() -> None:
    names = np.char.add("Item ", np.arange(200_000).astype(str)).astype(object)
    big = Columns({"title": ["", *names]})
    assert big.titles(big.search("item 19999", 3)) == ["Item 19999", "Item 199990", "Item 199991"]
