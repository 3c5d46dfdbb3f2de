from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys.errors import DataError
from recsys.ids.catalogue import row_map
from recsys.ids.vocabulary import Vocabulary

NAMES = ("the model", "the part")


def catalogue(ids) -> Vocabulary:
    array = np.empty(len(ids), object)
    array[:] = ids
    return Vocabulary(array if isinstance(ids[0], str) else np.array(ids), 1)


@settings(max_examples=50, deadline=None)
@given(st.sets(st.text(max_size=3), min_size=1, max_size=8).map(sorted), st.randoms())
def test_b1_rows_are_translated_by_id(ids, random):
    other = list(ids)
    random.shuffle(other)
    rows = row_map(catalogue(ids), catalogue(other), NAMES, "")
    rows = np.arange(len(ids) + 1) if rows is None else rows
    assert rows[0] == 0
    assert catalogue(ids).raw(rows[1:]).tolist() == other


def test_b1_the_same_rows_need_no_translation():
    assert row_map(catalogue(["a", "b"]), catalogue(["a", "b"]), NAMES, "") is None
    assert row_map(catalogue([7, 5]), catalogue([7, 5]), NAMES, "") is None
    assert row_map(catalogue([7, 5]), catalogue([5, 7]), NAMES, "").tolist() == [0, 2, 1]


@pytest.mark.parametrize(
    ("known", "given", "shown"),
    [
        (["a", "b"], ["a", "zz"], ["'b'", "'zz'", "1 of them alone"]),
        (["a", "b", "c"], ["b", "a"], ["'c'", "3 items", "2 items"]),
        (["a"], ["a", "q"], ["'q'"]),
        (["1", "2"], [1, 2], ["'1'", "2 items"]),
    ],
)
def test_k1_d_other_items_are_refused_with_counts_and_a_sample(known, given, shown):
    with pytest.raises(DataError, match="fit") as caught:
        row_map(catalogue(known), catalogue(given), NAMES, "fit it on these")
    assert all(word in str(caught.value) for word in shown)
