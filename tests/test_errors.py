"""Ids and titles from outside, shown without what a terminal would obey."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from recsys.errors import printable


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("Toy Story (1995)", "Toy Story (1995)"),
        ("Amélie 愛 🎬", "Amélie 愛 🎬"),
        ("\x1b[31mred\x1b[0m", "\\x1b[31mred\\x1b[0m"),
        ("over\rwritten", "over\\rwritten"),
        ("two\nlines", "two\\nlines"),
        ("c1 \x9b31m", "c1 \\x9b31m"),
        ("abc\u202egnp.exe", "abc\\u202egnp.exe"),
        ("\u2066isolated\u2069", "\\u2066isolated\\u2069"),
        ("half \ud800 a pair", "half \\ud800 a pair"),
    ],
)
def test_hostile_15_what_a_terminal_would_obey_is_escaped(text: str, shown: str) -> None:
    assert printable(text) == shown


@given(st.text(), st.one_of(st.none(), st.integers(5, 40)), st.booleans())
def test_hostile_15_nothing_that_controls_a_terminal_is_left(text: str, limit: int | None, lines: bool) -> None:
    shown = printable(text, limit, lines)
    left = {letter for letter in shown if unicodedata.category(letter) in ("Cc", "Cs")}
    assert left <= ({"\n", "\t"} if lines else set())
    assert not set(shown) & set(map(chr, (*range(0x202A, 0x202F), *range(0x2066, 0x206A))))
    shown.encode("utf-8")


def test_hostile_15_long_ids_are_cut() -> None:
    assert len(printable("x" * 10_000)) == 80
