from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare

from recsys.data.batch import Batch
from recsys.negatives.in_batch import InBatchNegatives
from recsys.negatives.uniform import UniformNegatives
from recsys.storage.parts import build, describe
from recsys.targets.next_item import NextItem


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def batch_of(rows):
    """Training rows of n + 1 items as a batch with targets."""
    width = max(len(row) for row in rows)
    count = torch.arange(len(rows))
    ids = torch.tensor([[*row, *[0] * (width - len(row))] for row in rows])
    return NextItem().train(Batch(rows=count, users=count, ids=ids, lengths=torch.tensor([len(row) for row in rows])))


def draw(negatives, rows, num_items, seed=0):
    batch = batch_of(rows)
    targets = batch.flatten(batch.targets)
    drawn = negatives.sample(batch, targets, num_items, generator(seed))
    ids, mask = drawn.for_targets()
    assert mask.shape == (len(targets), ids.shape[-1])
    return targets, ids, mask, [row for row in rows for _ in row[1:]]


histories = st.lists(st.lists(st.integers(1, 12), min_size=2, max_size=9), min_size=1, max_size=6)
kinds = st.tuples(st.sampled_from(["position", "row", "batch"]), st.booleans(), st.booleans())


@settings(max_examples=150, deadline=None)
@given(histories, kinds, st.integers(1, 11), st.integers(0, 10**6))
def test_check_09_negatives_are_items_and_never_the_target_nor_seen(rows, kind, count, seed):
    per, exclude, distinct = kind
    targets, ids, mask, owners = draw(UniformNegatives(count, per, exclude, distinct), rows, 12, seed)
    assert int(ids.min()) >= 1
    assert int(ids.max()) <= 12
    for t, (target, history) in enumerate(zip(targets.tolist(), owners, strict=True)):
        of_target = ids if ids.dim() == 1 else ids[t]
        counted = of_target[~mask[t]].tolist()
        assert target not in counted
        if exclude:
            assert not set(counted) & set(history)
        if distinct:
            assert len(set(counted)) == len(counted)
        if per == "position":  # nothing is wasted: as many as were asked for, or as there are
            left = 12 - len(set(history)) if exclude else 11
            assert len(counted) == (min(count, left) if distinct else count if left else 0)
        masked = set(of_target[mask[t]].tolist())
        if per == "batch" or (per == "row" and not exclude):  # masked only for a reason
            assert masked <= {target, *(history if exclude else ())}


@pytest.mark.parametrize("distinct", [False, True])
@pytest.mark.parametrize("exclude", [False, True])
@pytest.mark.parametrize("per", ["position", "row", "batch"])
@pytest.mark.parametrize("count", [3, 9])
def test_check_09_negatives_stay_uniform(per, exclude, distinct, count):
    rows = [[2, 5, 5, 9, 14], [1, 2], [20, 19, 18, 17, 16, 15]]
    counts = torch.zeros(3, 21)
    for seed in range(400):
        _, ids, mask, owners = draw(UniformNegatives(count, per, exclude, distinct), rows, 20, seed)
        for row, history in enumerate(rows):
            t = owners.index(history)
            chosen = ids if ids.dim() == 1 else ids[t]
            counts[row] += torch.bincount(chosen[~mask[t]], minlength=21)
    for row, history in enumerate(rows):
        forbidden = {0, history[1]} | (set(history) if exclude else set())
        allowed = [item for item in range(21) if item not in forbidden]
        assert counts[row].sum() == counts[row][allowed].sum()
        assert chisquare(counts[row][allowed].numpy()).pvalue > 1e-4


def test_shapes_are_shared_where_they_can_be():
    batch = batch_of([[1, 2, 3], [4, 5]])
    targets = batch.flatten(batch.targets)
    shapes = {
        per: UniformNegatives(7, per).sample(batch, targets, 50, generator()) for per in ("position", "row", "batch")
    }
    assert {per: tuple(drawn.ids.shape) for per, drawn in shapes.items()} == {
        "position": (3, 7),
        "row": (2, 7),
        "batch": (7,),
    }
    ids, _ = shapes["row"].for_targets()
    assert ids[0].tolist() == ids[1].tolist() == shapes["row"].ids[0].tolist()
    assert shapes["batch"].for_targets()[0] is shapes["batch"].ids


def test_all_other_items_can_be_asked_for_once():
    targets, ids, mask, _ = draw(UniformNegatives(11, "position", distinct=True), [[1, 2, 3], [4, 5]], 12)
    for target, row in zip(targets.tolist(), ids.tolist(), strict=True):
        assert sorted(row) == [item for item in range(1, 13) if item != target]
    assert not mask.any()
    targets, ids, mask, _ = draw(UniformNegatives(12, "batch", distinct=True), [[1, 2, 3], [4, 5]], 12)
    assert sorted(ids.tolist()) == list(range(1, 13))
    assert torch.equal(mask, ids == targets[:, None])


@pytest.mark.parametrize(("per", "count"), [("position", 12), ("row", 13), ("batch", 13)])
def test_more_distinct_items_than_there_are(per, count):
    with pytest.raises(ValueError, match="distinct"):
        draw(UniformNegatives(count, per, distinct=True), [[1, 2]], 12)


def test_nothing_left_to_draw_is_masked():
    for per in ("position", "row", "batch"):
        _, ids, mask, _ = draw(UniformNegatives(4, per, exclude_history=True), [[1, 2, 3], [1, 2]], 3)
        assert mask[:2].all()
        assert set(ids.flatten().tolist()) <= {1, 2, 3}
    assert draw(UniformNegatives(2), [[1, 1]], 1)[2].all()


def test_only_targets_of_the_batch_count_as_positions():
    batch = batch_of([[1, 2, 3, 4], [5, 6]])
    some = batch.replace(targets=batch.targets * torch.tensor([[0, 1, 0], [1, 0, 0]]))
    targets = torch.tensor([3, 6])
    drawn = UniformNegatives(30, "row", exclude_history=True).sample(some, targets, 9, generator())
    assert drawn.owner.tolist() == [0, 1]
    assert not set(drawn.ids[0].tolist()) & {1, 2, 3}  # 4 is neither input nor target any more
    with pytest.raises(ValueError, match="2 targets"):
        UniformNegatives(3, "row").sample(some, torch.tensor([3]), 9, generator())
    with pytest.raises(ValueError, match="targets"):
        UniformNegatives(3, "row").sample(some.replace(targets=None), targets, 9, generator())


def test_in_batch_takes_the_other_targets():
    rows = [[1, 2, 3], [4, 3, 5]]
    targets, ids, mask, _ = draw(InBatchNegatives(), rows, 9)
    assert ids.tolist() == [2, 3, 5]
    assert torch.equal(mask, ids == targets[:, None])
    assert sorted(draw(InBatchNegatives(distinct=False), rows, 9)[1].tolist()) == [2, 3, 3, 5]
    _, few, mask, _ = draw(InBatchNegatives(count=2, exclude_history=True), rows, 9, seed=3)
    assert len(few) == 2
    for t, history in enumerate([rows[0], rows[0], rows[1], rows[1]]):
        assert mask[t].tolist() == [item in history for item in few.tolist()]


@pytest.mark.parametrize(
    "negatives", [UniformNegatives(3, per) for per in ("position", "row", "batch")] + [InBatchNegatives()]
)
def test_a_batch_without_rows(negatives):
    empty = torch.zeros(0, dtype=torch.long)
    batch = NextItem().train(Batch(rows=empty, users=empty, ids=torch.zeros(0, 1, dtype=torch.long), lengths=empty))
    for kind in (negatives, type(negatives)(**{**vars(negatives), "exclude_history": True})):
        ids, mask = kind.sample(batch, empty, 9, generator()).for_targets()
        assert mask.shape == (0, ids.shape[-1])


def test_the_generator_decides():
    rows = [[1, 2, 3], [4, 5]]
    for negatives in (UniformNegatives(5), UniformNegatives(5, "row", True, True), UniformNegatives(5, "batch")):
        torch.manual_seed(1)
        first = draw(negatives, rows, 30, seed=7)[1]
        torch.manual_seed(2)
        assert torch.equal(first, draw(negatives, rows, 30, seed=7)[1])
        assert not torch.equal(first, draw(negatives, rows, 30, seed=8)[1])


def test_bad_arguments_and_saving():
    for arguments, word in (((0,), "count"), ((5, "user"), "per")):
        with pytest.raises(ValueError, match=word):
            UniformNegatives(*arguments)
    with pytest.raises(ValueError, match="count"):
        InBatchNegatives(0)
    for part in (UniformNegatives(5, "row", True, True), InBatchNegatives(9, False, True)):
        assert vars(build(describe(part))) == vars(part)
