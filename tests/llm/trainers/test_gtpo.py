"""Credit that spares shared beginnings: conflicts of tokens, the entropy filter, its penalty."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys.llm.trainers.credit.groups import GroupRelative
from recsys.llm.trainers.credit.gtpo import GTPO
from recsys.llm.trainers.objectives.policy import PolicyGradient
from recsys.llm.trainers.sequences import Sequences
from tests.llm.trainers.sampled import sampled


def factors(tokens: list[list[int]], reward: list[float], group: list[int] | None = None, **knobs: Any) -> list[Any]:
    return GTPO(**knobs).factors(sampled(reward, group, tokens)).tolist()


def test_gtpo_1_a_shared_first_token_is_raised_for_hits_and_spared_for_misses() -> None:
    assert factors([[5, 6, 7], [5, 9, 8]], [1, 0]) == [[2, 1, 1], [0, 1, 1]]
    assert factors([[5, 6, 7], [5, 6, 8]], [1, 0]) == [[2, 2, 1], [0, 0, 1]]
    assert factors([[5, 6, 7], [5, 9, 8]], [1, 0], [0, 1]) == [[1, 1, 1]] * 2  # other prompts share nothing


def test_gtpo_2_a_run_begins_at_the_first_token() -> None:
    assert factors([[5, 6, 7], [4, 6, 8]], [1, 0]) == [[1, 1, 1]] * 2
    assert factors([[5, 6, 7], [5, 9, 7]], [1, 0]) == [[2, 1, 1], [0, 1, 1]]
    assert factors([[5, 6, 7], [4, 6, 7]], [1, 0], backward=True) == [[1, 2, 2], [1, 0, 0]]
    assert factors([[5, 6], [3, 5, 6]], [1, 0], backward=True) == [[2, 2, 1], [1, 0, 0]]
    assert factors([[5], [5]], [1, 0], backward=True) == [[4], [0]]


def test_gtpo_3_equal_rewards_have_no_conflicts_and_no_credit() -> None:
    batch = sampled([1, 1, 1], tokens=[[5, 6], [5, 6], [4, 6]])
    assert GTPO().factors(batch).tolist() == [[1, 1]] * 3
    assert not GTPO(penalty=0)(batch).any()
    # A sample at the mean of its group takes no part either.
    assert factors([[5], [5], [5]], [1, 0.5, 0]) == [[2], [1], [0]]
    assert factors([[5], [4], [5]], [1, 0, 0.5]) == [[1], [1], [1]]


def test_gtpo_4_uncertain_samples_count_nothing_if_the_policy_began_certain() -> None:
    batch = sampled([1, 0], tokens=[[5, 6], [7, 8]], entropy=torch.tensor([[0.7, 0.9], [0.1, 0.3]]))
    assert GTPO(initial=5.0).kept(batch).tolist() == [True, True]
    assert GTPO(initial=0.3).kept(batch).tolist() == [False, True]
    assert GTPO(initial=5.0, always=True).kept(batch).tolist() == [False, True]
    assert GTPO(initial=0.3, threshold=None).kept(batch).tolist() == [True, True]
    credit = GTPO(initial=0.3, penalty=0.1)(batch)
    assert credit[0].tolist() == [0, 0]
    torch.testing.assert_close(credit[1], torch.full((2,), -0.5 - 0.1 * 0.2))


def test_gtpo_4_the_beginning_is_the_first_batch_of_training_and_is_kept_with_the_weights() -> None:
    def of(entropy: float) -> Sequences:
        return sampled([1, 0], entropy=torch.full((2, 1), entropy))

    objective = PolicyGradient(GTPO())
    objective.eval()(of(5.0))  # validation begins nothing
    objective.train()(of(0.3))
    objective(of(0.8))
    assert float(objective.credit.began) == pytest.approx(0.3)
    again = PolicyGradient(GTPO())
    again.load_state_dict(objective.state_dict())
    assert again.credit.kept(of(0.8)).tolist() == [False, False]
    assert again.figures(of(0.8))["filtered samples"] == 2
    again.credit.bind(None)
    assert again.credit.kept(of(0.8)).tolist() == [True, True]  # a policy that begins there


def test_gtpo_5_a_copy_of_a_hit_changes_nothing() -> None:
    tokens, reward = [[5, 6, 7], [5, 9, 8], [5, 6, 8]], [1.0, 0.0, 0.0]
    assert factors([*tokens, tokens[0]], [*reward, 1.0])[:3] == factors(tokens, reward)


def test_gtpo_6_padding_is_no_conflict() -> None:
    assert factors([[5], [5, 6, 7], [5, 0, 0]], [1, 0, 0]) == [[2, 1, 1], [0, 1, 1], [0, 1, 1]]
    credit = GTPO(penalty=0)(sampled([1, 0], tokens=[[5], [5, 6, 7]]))
    assert credit.tolist() == [[1, 0, 0], [0, -0.5, -0.5]]


SAMPLE = st.tuples(st.integers(0, 1), st.sampled_from([0.0, 1.0]), st.lists(st.integers(2, 4), min_size=1, max_size=4))


@settings(max_examples=80, deadline=None)
@given(st.lists(SAMPLE, min_size=1, max_size=8), st.booleans())
def test_conflicts_are_those_of_loops(drawn: list[tuple[int, float, list[int]]], backward: bool) -> None:
    group, reward, tokens = [list(one) for one in zip(*drawn, strict=True)]
    found = factors(tokens, reward, group, backward=backward)
    means = {
        name: sum(r for g, r in zip(group, reward, strict=True) if g == name) / group.count(name) for name in group
    }
    base = [r - means[g] for g, r in zip(group, reward, strict=True)]
    for n, row in enumerate(tokens):
        expected = [1.0] * len(row)
        for turned in (False, True)[: 1 + backward]:
            sides = [one[::-1] if turned else one for one in tokens]
            for t, token in enumerate(sides[n]):
                same = [base[k] for k, one in enumerate(sides) if group[k] == group[n] and one[t : t + 1] == [token]]
                if not base[n] or max(same) <= 0 or min(same) >= 0:
                    break
                expected[-1 - t if turned else t] *= 2 if base[n] > 0 else 0
        assert found[n][: len(row)] == expected


def test_the_published_loss_is_a_mean_over_samples_of_their_means() -> None:
    log_probs = torch.tensor([[-1.0, -2.0, -0.5], [-0.3, 0.0, 0.0]]).requires_grad_()
    entropy = torch.tensor([[0.2, 0.4, 0.6], [0.5, 9.0, 9.0]])
    batch = sampled([1, 0], tokens=[[5, 6, 7], [5]], log_probs=log_probs, entropy=entropy)
    loss = PolicyGradient(GTPO(initial=1.0), normalise="sequences")(batch)
    hit, miss = 0.5 - 0.1 * 0.4, -0.5 - 0.1 * 0.5
    assert float(loss.detach()) == pytest.approx(-(hit / 3 * (2 + 1 + 1) + miss / 1 * 0) / 2)
    (gradient,) = torch.autograd.grad(loss, log_probs)
    torch.testing.assert_close(gradient[0], -hit / 6 * torch.tensor([2.0, 1.0, 1.0]))
    figures = PolicyGradient(GTPO()).figures(batch)
    assert figures["conflict tokens"] / figures["conflict tokens of"] == 0.5


def test_what_is_missing_is_told() -> None:
    batch = sampled([1, 0])
    for field in ("reward", "tokens", "entropy"):
        parts = {
            name: getattr(batch, name) for name in ("log_probs", "mask", "group", "role", "reward", "tokens", "entropy")
        }
        with pytest.raises(ValueError, match=field):
            GTPO()(Sequences(**(parts | {field: None})))
    with pytest.raises(ValueError, match="at least 0"):
        GTPO(factor=-1)
    assert GTPO().threshold == math.log(2)
    assert not torch.equal(GTPO()(batch), GroupRelative()(batch))
