"""Credit with a virtual best sample in every group."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys.llm.trainers.credit.groups import GroupRelative
from recsys.llm.trainers.credit.ngrpo import NGRPO
from tests.llm.trainers.sampled import first, sampled


def test_ngrpo_1_a_hit_among_eight() -> None:
    found = first(NGRPO()(sampled([0, 0, 1, 0, 0, 0, 0, 0])))
    expected = torch.full((8,), -0.5040).index_fill(0, torch.tensor([2]), 1.7638)
    torch.testing.assert_close(found, expected, atol=1e-3, rtol=0)


def test_ngrpo_2_groups_of_misses_teach_ngrpo_6_of_any_sizes() -> None:
    sizes = (8, 4, 2, 1)
    group = [name for name, size in enumerate(sizes) for _ in range(size)]
    found = first(NGRPO()(sampled([0] * len(group), group)))
    expected = [-1 / math.sqrt(sizes[name] + 1) for name in group]
    torch.testing.assert_close(found, torch.tensor(expected), atol=1e-5, rtol=0)
    assert [round(float(found[at]), 5) for at in (0, 8, 12)] == [-0.33333, -0.44721, -0.57735]


def test_ngrpo_3_groups_of_hits_teach_nothing() -> None:
    assert not NGRPO()(sampled([1] * 5, [0, 0, 0, 0, 1])).any()
    assert not NGRPO(virtual=3, most=0.3)(sampled([0.3] * 5)).any()


def test_ngrpo_4_credit_goes_with_the_sample() -> None:
    batch = sampled([0.2, 1, 0, 0.5, 0, 1], [4, 4, 9, 4, 9, 4])
    order = torch.tensor([3, 5, 0, 2, 1, 4])
    torch.testing.assert_close(NGRPO()(batch[order]), NGRPO()(batch)[order])


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.sampled_from([0.0, 0.5, 1.0])), min_size=1, max_size=12))
def test_ngrpo_5_without_virtual_samples_it_is_grpo(drawn: list[tuple[int, float]]) -> None:
    group, reward = zip(*drawn, strict=True)
    batch = sampled(reward, group)
    torch.testing.assert_close(NGRPO(virtual=0)(batch), GroupRelative(eps=1e-6)(batch))
    one_by_one = NGRPO(virtual=2)(batch)
    for name in set(group):
        own = batch.group == name
        values = torch.cat([batch[own].reward, torch.ones(2)])
        expected = (batch[own].reward - values.mean()) / (values.std() + 1e-6)
        expected = expected if values.min() < values.max() else torch.zeros_like(expected)
        torch.testing.assert_close(first(one_by_one[own]), expected)


def test_ngrpo_c4_the_scale_does_not_matter_with_that_of_the_best_reward() -> None:
    batch = sampled([0.2, 0.9, 0, 0.5], [0, 0, 1, 1])
    assert batch.reward is not None
    scaled = replace(batch, reward=10 * batch.reward)
    torch.testing.assert_close(NGRPO(most=10.0)(scaled), NGRPO()(batch), atol=1e-4, rtol=1e-4)


def test_rewards_above_the_best_are_an_error() -> None:
    with pytest.raises(ValueError, match="found 2"):
        NGRPO()(sampled([0, 2]))
    with pytest.raises(ValueError, match="virtual"):
        NGRPO(virtual=-1)
