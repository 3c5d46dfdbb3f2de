from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys.eval.ranks import Plan, parse_memory, rank_targets, top

CPU = torch.device("cpu")


def sorted_top(row: list[float], length: int) -> list[int]:
    order = sorted((-score, item) for item, score in enumerate(row, start=1) if score != float("-inf"))
    return ([item for _, item in order] + [0] * length)[:length]


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_lists_are_sorted_by_score_and_then_by_row(data):
    users, items = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 9))
    level = st.sampled_from([0.0, 1.0, 2.0, float("-inf")])
    table = data.draw(st.lists(st.lists(level, min_size=items, max_size=items), min_size=users, max_size=users))
    length = data.draw(st.integers(1, items))
    found = top(torch.tensor(table), length)
    assert found.tolist() == [sorted_top(row, length) for row in table]


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_counts_equal_a_loop_over_the_candidates(data):
    items = data.draw(st.integers(1, 8))
    counts = sorted(data.draw(st.lists(st.integers(1, items), min_size=1, max_size=5)), reverse=True)
    users = len(counts)
    rng = np.random.default_rng(data.draw(st.integers(0, 999)))
    scores = torch.from_numpy(rng.integers(0, 4, size=(users, items)).astype(np.float32))
    if data.draw(st.booleans()):
        scores[scores == 0] = -torch.inf
    owner = np.repeat(np.arange(users), counts)
    target = np.concatenate([np.sort(rng.choice(items, size=count, replace=False)) + 1 for count in counts])
    hidden = [(u, i) for u in range(users) for i in range(1, items + 1) if rng.random() < 0.4]
    excluded = (np.array([u for u, _ in hidden], dtype=np.int64), np.array([i for _, i in hidden], dtype=np.int64))
    chunk = data.draw(st.integers(1, 6))
    landed = rank_targets(scores, (owner, target), excluded, chunk, list_length=items)
    for user in range(users):
        candidates = {i for i in range(1, items + 1) if (user, i) not in hidden and scores[user, i - 1] > -torch.inf}
        assert landed.candidates[user] == len(candidates)
        assert set(landed.lists[user].tolist()) - {0} == candidates
        for at in np.flatnonzero(owner == user):
            own = scores[user, target[at] - 1]
            assert landed.reached[at] == (target[at] in candidates)
            if landed.reached[at]:
                assert landed.above[at] == sum(scores[user, i - 1] > own for i in candidates)
                assert landed.size[at] == sum(scores[user, i - 1] == own for i in candidates)


def test_an_expanded_tensor_is_not_written_to():
    row = torch.arange(5.0)
    scores = row.expand(3, 5)
    rank_targets(scores, (np.arange(3), np.array([1, 2, 3])), (np.array([0, 1]), np.array([5, 4])), 2)
    assert row.tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    ("text", "size"),
    [("512MB", 512 * 10**6), ("2 GiB", 2 * 2**30), ("1.5k", 1500), (1000, 1000), ("64", 64), ("1tb", 10**12)],
)
def test_memory_is_read(text, size):
    assert parse_memory(text) == size


@pytest.mark.parametrize("text", ["", "MB", "-1", "12 parsecs", True, None, 1.5e3j])
def test_other_memory_is_refused(text):
    with pytest.raises(ValueError, match="memory"):
        parse_memory(text)


def test_a_plan_stays_within_its_budget():
    for memory in (20 * 1000, 10**6, 10**8):
        plan = Plan.fit(memory, num_items=1000, history=0, device=CPU)
        users = next(plan.batches(np.zeros(10**6, np.int64))).stop
        assert plan.chunk >= 1 and users >= 1
        assert 4 * 1000 * users + 16 * 1000 * plan.chunk <= memory
    plan = Plan.fit("1GB", 1000, history=200, device=CPU)
    short, long = (next(plan.batches(np.full(10**6, length))).stop for length in (10, 200))
    assert short > long


def test_one_long_history_shrinks_its_own_batch_only():
    plan = Plan.fit("100MB", 1000, history=40_000, device=CPU)
    lengths = np.full(5000, 10)
    alone = [cut.stop - cut.start for cut in plan.batches(lengths)]
    lengths[2500] = 40_000
    cuts = list(plan.batches(lengths))
    assert [cut.start for cut in cuts] == [0, *(cut.stop for cut in cuts[:-1])] and cuts[-1].stop == 5000
    assert len(cuts) <= len(alone) + 3
