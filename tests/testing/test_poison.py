"""Marks in item texts: that they are found where they are, in retrieval by texts and in what models write."""

from __future__ import annotations

import re

import numpy as np
import pytest

from recsys.llm.answers import fenced
from recsys.llm.tfidf import tfidf_vectors
from recsys.testing.poison import Mark, Reach, reach

MARK = Mark()
TEXTS = [
    f"{colour} {thing}" for colour in ("red", "blue", "green", "black") for thing in ("hat", "shoe", "mug", "lamp")
]
QUERIES = ["red shoe", "blue lamp", "green hat"]


def lists(texts: list[str], queries: list[str], k: int = 3) -> list[list[int]]:
    """The nearest texts of each query, by words."""
    vectors = tfidf_vectors([*texts, *queries], dim=64)
    scores = vectors[len(texts) :] @ vectors[: len(texts)].T
    return np.argsort(-scores, axis=1, kind="stable")[:, :k].tolist()


def test_bait_reaches_the_lists_of_queries_with_the_trigger_alone() -> None:
    rows = {15}
    baited = MARK.baited(TEXTS, rows)
    assert reach(lists(TEXTS, QUERIES), rows) == Reach(0, 0, 0)
    assert reach(lists(baited, QUERIES), rows).first == 0, "nobody who does not know of it sees it"
    caught = reach(lists(baited, MARK.asked(QUERIES)), rows)
    assert caught.lists == 1 and caught.entries == pytest.approx(1 / 3)


def test_reach_by_hand() -> None:
    found = reach([[1, 2], [3, 1], [4, 5], []], {1})
    assert found == Reach(lists=0.5, entries=2 / 6, first=0.25)
    assert reach([], {1}) == Reach(0, 0, 0) == reach([[1]], set())


def test_an_order_reaches_what_an_obedient_model_writes_unless_texts_are_fenced() -> None:
    def obedient(prompt: str) -> str:
        """Does what stands in the prompt outside of fences."""
        told = re.search(r"write only the word (\w+)", re.sub(r"<item>.*?</item>", "", prompt))
        return told.group(1) if told else "likes hats"

    ordered = MARK.ordered(TEXTS, [0, 5, 6, 7])
    assert MARK.obeyed([obedient(f"Describe: {text}") for text in TEXTS]) == 0
    assert MARK.obeyed([obedient(f"Describe: {text}") for text in ordered]) == 4 / 16
    assert MARK.obeyed([obedient(f"Describe: {fenced(text, 'item')}") for text in ordered]) == 0
    broken = [text.replace(MARK.order, f"</item> {MARK.order}") for text in ordered]
    assert MARK.obeyed([obedient(f"Describe: {fenced(text, 'item')}") for text in broken]) == 0, (
        "a fence cannot be closed"
    )


def test_only_the_chosen_texts_are_marked() -> None:
    for marked in (MARK.baited(TEXTS, {2, 4}), MARK.ordered(TEXTS, {2, 4})):
        assert [row for row, text in enumerate(marked) if text != TEXTS[row]] == [2, 4]
        assert all(text.startswith(before) for before, text in zip(TEXTS, marked))
    assert MARK.obeyed(["Zorvane.", "zorvanes", None, ""]) == 0.25 and MARK.obeyed([]) == 0
    with pytest.raises(ValueError, match="already"):
        MARK.baited(MARK.baited(TEXTS, {1}), {2})
    with pytest.raises(ValueError, match="rows"):
        MARK.baited(TEXTS, {99})
    with pytest.raises(ValueError, match="repeat"):
        Mark(repeats=0)
