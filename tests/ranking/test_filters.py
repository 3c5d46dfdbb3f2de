"""Which items may be shown to whom, against a rule in sets."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from recsys.ranking.filters import Shown

NAMES = [f"n{i}" for i in range(7)]
ids = st.lists(st.sampled_from([*NAMES, "unheard of"]), max_size=5)
wishes = st.none() | ids | st.lists(st.none() | ids.map(tuple), min_size=3, max_size=3)


def find(names: list[Any]) -> np.ndarray:
    return np.array([NAMES.index(one) if one in NAMES else -1 for one in names])


def wanted(wish: Any, row: int) -> Any:
    return wish if wish is None or not any(isinstance(one, tuple) for one in wish) else wish[row]


@given(st.lists(ids, min_size=3, max_size=3), st.sampled_from(["history", "none"]), wishes, wishes)
def test_what_is_hidden_is_what_the_lists_say(histories, exclude, allow, deny) -> None:
    allow, deny = (None if one is not None and one and set(one) == {None} else one for one in (allow, deny))
    shown = Shown.of(find, histories, exclude, allow, deny, empty=True)
    scores = torch.zeros(3, 7)
    shown.hide(scores)
    assert scores.isneginf().tolist() == [
        [
            (exclude == "history" and name in histories[row])
            or (wanted(deny, row) is not None and name in wanted(deny, row))
            or (wanted(allow, row) is not None and name not in wanted(allow, row))
            for name in NAMES
        ]
        for row in range(3)
    ]
    owners, columns = np.broadcast_to(np.arange(3)[:, None], (3, 7)), np.broadcast_to(np.arange(7), (3, 7))
    assert shown.hidden(owners, columns, 7).tolist() == scores.isneginf().tolist()
    for rows in ([1, 2], [0], [0, 2]):
        part = torch.zeros(len(rows), 7)
        shown.rows(np.array(rows), 3).hide(part)
        assert torch.equal(part, scores[rows])
    last = torch.zeros(2, 7)
    shown.part(1, 3).hide(last)
    assert torch.equal(last, scores[1:])
    columns = shown.columns(7)
    few = torch.zeros(3, len(columns))
    shown.among(columns).hide(few)
    assert torch.equal(few, scores[:, columns])
    assert (scores[:, np.setdiff1d(np.arange(7), columns)] == -torch.inf).all()
