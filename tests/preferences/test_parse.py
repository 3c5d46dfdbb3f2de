"""What is read out of answers, and what is taken for negative."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from recsys.preferences.parse import LONGEST, MOST, parse, useless
from recsys.preferences.sentiment import by_leading_word, check_sentiment, differs_from_released, inverted

TWO = ["Find a red lipstick", "Avoid strong scents"]


@pytest.mark.parametrize(
    "answer",
    [
        '{"preferences": ["Find a red lipstick", "Avoid strong scents"]}',
        'Sure!\n```json\n{"wishes": ["Find a red lipstick", "Avoid strong scents"]}\n```',
        '["Find a red lipstick", "Avoid strong scents"]',
        "Here they are: ['Find a red lipstick', 'Avoid strong scents'] as asked.",
        "1. Find a red lipstick\n2) Avoid strong scents",
        '- "Find a red lipstick"\n* **Avoid strong scents**',
        "Here you go.\nFind a red lipstick\nAvoid strong scents\nThat is all.",
        "\x1b[1m1. Find a red\u202e lipstick\n2. Avoid strong scents",
    ],
)
def test_lists_of_many_forms_are_read(answer: str) -> None:
    found = parse(answer.replace("\x1b[1m", ""))
    assert found.found == TWO and found.rejected == 0 and useless(answer) == ""


def test_entries_that_are_no_preference_are_rejected_and_counted() -> None:
    entries = ["Find a red lipstick", "Makeup", "x " * LONGEST, 7, "<item>a b</item>", "", "Find a red lipstick"]
    found = parse(str(entries).replace("'", '"'))
    assert found.found == ["Find a red lipstick"] and found.rejected == 5


def test_what_is_copied_from_the_question_is_rejected() -> None:
    asked = "Write lines such as\n1. Find a thin jacket"
    found = parse("1. Find a thin jacket\n2. Find a red hat", asked=asked)
    assert found.found == ["Find a red hat"] and found.rejected == 1
    assert useless("1. find a thin jacket", asked) and not useless("1. find a thin jacket")


def test_at_most_five_are_kept() -> None:
    assert len(parse("\n".join(f"{at}. Find thing {at}" for at in range(1, 9))).found) == MOST


@pytest.mark.parametrize("answer", ["", "I cannot help with that.", "{}", "[]", "[[[[", "1.\n2.\n", "null", '{"a": 3}'])
def test_nonsense_is_useless(answer: str) -> None:
    assert not parse(answer).found and useless(answer)


@given(st.text(max_size=200))
def test_any_text_can_be_read(answer: str) -> None:
    found = parse(answer)
    assert len(found.found) <= MOST and bool(found.found) == (useless(answer) == "")
    assert all(text.isprintable() and len(text.split()) >= 2 and len(text) <= LONGEST for text in found.found)


def test_words_are_whole_words() -> None:
    texts = ["avoid glitter", "No scents", "Exclude oils", "Find avoidable things", "Notable brands", "  'Avoid' x"]
    assert by_leading_word(texts).tolist() == [True, True, True, False, False, True]
    assert inverted("No piano covers, no lids") == "Search for piano covers, no lids"
    assert inverted("exclude oils") == "Search for oils" and inverted("Find oils") == "Find oils"
    assert differs_from_released("No piano covers") and not differs_from_released("Avoid oils")


def test_a_sentiment_of_another_shape_is_refused() -> None:
    import numpy as np

    assert check_sentiment(lambda texts: np.array([1, 0]), ["a b", "c d"]).tolist() == [True, False]
    for wrong in (lambda texts: np.array([0.3, 0.9]), lambda texts: np.array([True])):
        with pytest.raises(ValueError, match="truth value"):
            check_sentiment(wrong, ["a b", "c d"])
