from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from recsys.readers.events import Events, compress

rows = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3), st.integers(0, 4), st.integers(0, 2)), max_size=30)


def log(values, parts=False):
    columns = np.array(values, dtype=np.int64).reshape(-1, 4)
    return Events(
        user=columns[:, 0].astype(np.int32),
        item=columns[:, 1].astype(np.int32),
        user_ids=np.arange(4),
        item_ids=np.arange(4),
        time=columns[:, 2],
        weight=np.arange(len(columns), dtype=np.float32),  # remembers the row
        part=columns[:, 3].astype(np.int8) if parts else None,
    )


@given(values=rows, parts=st.booleans(), by_time=st.booleans())
def test_sorting_is_stable(values, parts, by_time):
    found = log(values, parts).sorted(by_time).weight.tolist()
    key = lambda row: (values[row][0], values[row][3] * parts, values[row][2] * by_time)
    assert found == sorted(range(len(values)), key=key)


@given(values=rows)
def test_hashed_ties_do_not_depend_on_the_order_of_rows(values):
    found = [log(order).sorted(True, ties="hash") for order in (values, values[::-1])]
    assert found[0].item.tolist() == found[1].item.tolist()
    assert found[0].time.tolist() == found[1].time.tolist()


def test_hashed_ties_are_not_by_item():
    users = 200
    values = [(user % 4, item, 0, 0) for user in range(users) for item in (0, 1)]
    columns = log(values)
    found = Events(
        np.repeat(np.arange(users), 2).astype(np.int32), columns.item, np.arange(users), np.arange(4), columns.time
    )
    first = found.sorted(True, ties="hash").item[::2]
    assert 0.3 < first.mean() < 0.7


def test_compress():
    codes, ranks = compress(np.array([5, 2, 5]), 8)
    assert codes.tolist() == [2, 5] and ranks.tolist() == [1, 0, 1]
