"""Credit by groups, against two loops."""

from __future__ import annotations

import statistics
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys.llm.trainers.credit.groups import GroupRelative
from tests.llm.trainers.sampled import first, sampled

SAMPLE = st.tuples(st.integers(-2, 3), st.sampled_from([0.0, 0.25, 0.3, 1.0]))


@settings(max_examples=80, deadline=None)
@given(st.lists(SAMPLE, min_size=1, max_size=12), st.sampled_from(["group", "batch", "none"]))
def test_credit_is_that_of_two_loops(drawn: list[tuple[int, float]], scale: str) -> None:
    groups, rewards = [list(one) for one in zip(*drawn, strict=True)]
    found = first(GroupRelative(scale)(sampled(rewards, groups))).tolist()
    for n, (group, reward) in enumerate(drawn):
        own = [other for name, other in drawn if name == group]
        compared = {"group": own, "batch": rewards, "none": []}[scale]
        deviation = statistics.stdev(compared) if len(compared) > 1 else 0.0
        expected = 0.0
        if len(set(own)) > 1:
            expected = (reward - statistics.mean(own)) / (1 if scale == "none" else deviation + 1e-4)
        assert found[n] == pytest.approx(expected, abs=1e-5)


def test_grpo_by_hand() -> None:
    found = first(GroupRelative()(sampled([1, *[0] * 7])))
    torch.testing.assert_close(found, torch.tensor([2.4749, *[-0.3536] * 7]), atol=1e-3, rtol=0)


@pytest.mark.parametrize("scale", ["group", "batch"])
def test_grpo_c4_the_scale_of_rewards_does_not_matter(scale: str) -> None:
    batch = sampled([0.1, 0.5, 0.9, 0.2, 0.2, 0.7], [0, 0, 0, 1, 1, 1])
    assert batch.reward is not None
    scaled = replace(batch, reward=100 * batch.reward)
    torch.testing.assert_close(GroupRelative(scale)(scaled), GroupRelative(scale)(batch), atol=2e-3, rtol=1e-3)
    torch.testing.assert_close(GroupRelative(scale, eps=0)(scaled), GroupRelative(scale, eps=0)(batch))


@pytest.mark.parametrize("scale", ["group", "batch", "none"])
def test_groups_of_equal_rewards_and_of_one_have_no_credit_to_the_bit(scale: str) -> None:
    assert not GroupRelative(scale, eps=0)(sampled([0.3] * 7 + [0.1], [0] * 7 + [1])).any()
    mixed = GroupRelative(scale)(sampled([0.3] * 7 + [0.1, 0.4], [0] * 7 + [1, 1]))
    assert not mixed[:7].any()
    assert mixed[7:].all()


def test_credit_is_for_tokens_that_count() -> None:
    found = GroupRelative("none")(sampled([1, 0], tokens=[[2], [3, 4, 5]]))
    assert found.tolist() == [[0.5, 0, 0], [-0.5, -0.5, -0.5]]


def test_wrong_input_is_told() -> None:
    with pytest.raises(ValueError, match="reward"):
        GroupRelative()(replace(sampled([1, 0]), reward=None))
    with pytest.raises(ValueError, match="did you mean 'group'"):
        GroupRelative("groups")
    with pytest.raises(ValueError, match="eps"):
        GroupRelative(eps=-1)
