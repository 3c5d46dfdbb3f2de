"""Layers of T5 on their own: distances, attention by hand, sharing over beams. Parity is in tests/generative."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from recsys.data.batch import Batch
from recsys.nn.dropout import Dropout
from recsys.nn.t5 import RelativePositions, T5Stack, attention, buckets, grouped, mixing


@pytest.mark.parametrize(
    ("distance", "both", "back"),
    [(0, 0, 0), (-1, 1, 1), (-7, 7, 7), (-8, 8, 8), (-15, 9, 15), (-16, 10, 16), (-127, 15, 31), (-1000, 15, 31),
     (1, 17, 0), (7, 23, 0), (8, 24, 0), (1000, 31, 0)],
)  # fmt: skip
def test_buckets_by_hand(distance: int, both: int, back: int) -> None:
    """8 + int(ln(15 / 8) / ln(128 / 8) x 8) = 9; in one direction 16 + int(ln(127 / 16) / ln(128 / 16) x 16) = 31."""
    assert int(buckets(torch.tensor(distance), True)) == both
    assert int(buckets(torch.tensor(distance), False)) == back


@given(st.integers(1, 5000), st.booleans())
def test_farther_keys_have_no_lower_bucket(distance: int, bidirectional: bool) -> None:
    near, far = buckets(torch.tensor([-distance, -distance - 1]), bidirectional).tolist()
    assert near <= far <= (15 if bidirectional else 31)


def test_attention_is_not_divided_by_the_width_and_adds_the_bias() -> None:
    queries = torch.tensor([[[[2.0, 0.0]]]])
    keys = torch.tensor([[[[1.0, 0.0], [0.0, 1.0]]]])
    values = torch.tensor([[[[1.0, 0.0], [0.0, 1.0]]]])
    bias = torch.tensor([[[[0.0, 1.0]]]])
    found = attention(queries, keys, values, bias, Dropout(0.0))
    first = math.exp(2) / (math.exp(2) + math.exp(1))
    torch.testing.assert_close(found[0, 0, 0], torch.tensor([first, 1 - first]))


def test_the_plain_form_of_training_equals_the_fused_one() -> None:
    torch.manual_seed(0)
    queries, keys, values = torch.randn(3, 2, 4, 5, 8)
    bias = torch.randn(1, 4, 5, 5)
    drop = Dropout(1e-5)  # rounded to 2^-16: next to nothing, yet not switched off
    torch.testing.assert_close(
        attention(queries, keys, values, bias, drop.train()), attention(queries, keys, values, bias, drop.eval()),
        atol=1e-3, rtol=1e-3,
    )  # fmt: skip


def test_groups_of_rows_give_what_one_view_gives() -> None:
    torch.manual_seed(0)
    lengths = torch.tensor([1, 2, 3, 5])
    stack = T5Stack(8, 2, 2, 4, 16, 0.0, bidirectional=False, looks=False).eval()
    stack.reset()
    x = torch.randn(11, 8)
    place = torch.arange(5)
    bias = stack.positions(place, place).masked_fill(place > place[:, None], -torch.inf)
    found = []
    for sizes in ([4], [2, 2], [1, 1, 1, 1]):
        groups = grouped(lengths, sizes)
        found.append(stack(x, mixing(groups, [bias[:, :, : g.width, : g.width] for g in groups], stack.drop)))
    torch.testing.assert_close(found[0], found[1])
    torch.testing.assert_close(found[0], found[2])


def test_groups_are_those_of_a_batch() -> None:
    lengths = torch.arange(1, 41)
    ids = torch.ones(40, 40, dtype=torch.int64) * (torch.arange(40) < lengths[:, None])
    batch = Batch(torch.arange(40), torch.arange(40), ids, lengths)
    sizes = [group.size for group in batch.groups]
    assert len(sizes) > 1
    for ours, theirs in zip(grouped(lengths, sizes), batch.groups, strict=True):
        assert (ours.size, ours.width) == (theirs.size, theirs.width)
        assert torch.equal(ours.index, theirs.index)


def test_a_number_below_one_is_refused() -> None:
    with pytest.raises(ValueError, match="num_heads"):
        T5Stack(8, 1, 0, 4, 16, 0.0, bidirectional=True, looks=False)


def test_fresh_weights_have_the_deviations_of_t5() -> None:
    torch.manual_seed(0)
    stack = T5Stack(64, 1, 4, 32, 256, 0.0, bidirectional=True, looks=True)
    stack.reset()
    block = stack.blocks[0]
    inner = 4 * 32
    wanted = {
        block.own.enter.weight[:inner]: (64 * 32) ** -0.5,
        block.own.enter.weight[inner:]: 64**-0.5,
        block.look.enter.weight: (64 * 32) ** -0.5,
        block.look.memory.weight: 64**-0.5,
        block.look.leave.weight: inner**-0.5,
        block.inner.weight: 64**-0.5,
        block.outer.weight: 256**-0.5,
    }
    for weight, deviation in wanted.items():
        assert float(weight.detach().std()) == pytest.approx(deviation, rel=0.05)
    assert isinstance(stack.positions, RelativePositions)
