"""The policy gradient over sequences: its equation, clipping, normalisers, weights, ceiling and figures."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from recsys.llm.trainers.credit.constrained import Constrained
from recsys.llm.trainers.credit.groups import GroupRelative
from recsys.llm.trainers.credit.gtpo import GTPO
from recsys.llm.trainers.credit.ngrpo import NGRPO
from recsys.llm.trainers.credit.reinforce import nsr, psr, w_reinforce
from recsys.llm.trainers.objectives.policy import PolicyGradient
from recsys.llm.trainers.protocols import Credit, SequenceObjective
from recsys.llm.trainers.sequences import Role, Sequences
from recsys.storage.parts import build, describe
from tests.llm.trainers.sampled import sampled
from tests.llm.trainers.tiny import g_checks, sequences


def credits() -> list[Any]:
    return [
        GroupRelative(), GroupRelative("batch"), GroupRelative("none"), psr(), nsr(), w_reinforce(), NGRPO(),
        GTPO(backward=True), Constrained(GroupRelative(), ["varied", "new"], [0.5, 0.2]),
    ]  # fmt: skip


def value(objective: PolicyGradient, batch: Sequences) -> float:
    return float(objective(batch).detach())


def named(credit: Any) -> str:
    return type(credit).__name__


class Fixed:
    """Credit that is given."""

    reads: frozenset[str] = frozenset()

    def __init__(self, values: Tensor) -> None:
        self.values = values

    def __call__(self, batch: Sequences) -> Tensor:
        return self.values * batch.mask


def spoken(n: int = 6, t: int = 3, v: int = 5, **known: Any) -> tuple[Tensor, Sequences]:
    """Logits (N, T, V) with gradient, and the batch of tokens drawn by them: two groups, lengths of 1 to T."""
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(n, t, v, generator=generator).requires_grad_()
    probable = logits.log_softmax(-1)
    tokens = torch.randint(v, (n, t), generator=generator)
    lengths = torch.tensor([t, 1, 2] * (n // 3))[:, None]
    entropy = -(probable.exp() * probable).sum(-1)
    told: dict[str, Any] = {"entropy": entropy, "tokens": tokens, "reward": torch.tensor([1.0, 0, 0, 1, 1, 0])}
    batch = Sequences(
        probable.gather(-1, tokens[..., None]).squeeze(-1), torch.arange(t) < lengths, torch.arange(n) % 2,
        torch.full((n,), int(Role.TARGET)), **(told | known),
    )  # fmt: skip
    return logits, batch


@g_checks
@pytest.mark.parametrize("credit", credits(), ids=named)
@pytest.mark.parametrize("normalise", ["tokens", "sequences", "longest"])
def test_policy_g(check: Callable[[Any, Sequences], None], credit: Any, normalise: str) -> None:
    batch = sequences(12, 5)
    batch = replace(batch, rewards=torch.rand(12, 2, generator=torch.Generator().manual_seed(8)))
    check(PolicyGradient(credit, kl=0.1, normalise=normalise).eval(), batch)


@pytest.mark.parametrize("credit", credits(), ids=named)
def test_parts_are_what_the_seams_ask_for_and_are_saved_by_their_arguments(credit: Credit) -> None:
    objective = PolicyGradient(credit, low=0.16, high=0.24)
    assert isinstance(credit, Credit)
    assert isinstance(objective, SequenceObjective)
    again = build(describe(objective), trust=["recsys.llm.trainers"])
    again.load_state_dict(objective.state_dict())
    batch = replace(sequences(12, 5), rewards=torch.rand(12, 2))
    assert torch.equal(again.eval()(batch), objective.eval()(batch))


@pytest.mark.parametrize("normalise", ["tokens", "sequences", "longest"])
def test_policy_c1_on_the_policy_itself_the_gradient_is_that_of_reinforce(normalise: str) -> None:
    credit = torch.randn(6, 3, generator=torch.Generator().manual_seed(1))
    logits, batch = spoken()
    loss = PolicyGradient(Fixed(credit), normalise=normalise)(batch)
    (found,) = torch.autograd.grad(loss, logits)
    logits, batch = spoken()
    total = torch.zeros(())
    for n in range(6):
        length = int(batch.mask[n].sum())
        share = {"tokens": 1 / 12, "sequences": 1 / (6 * length), "longest": 1 / (6 * 3)}[normalise]
        total = total - share * sum(credit[n, t] * batch.log_probs[n, t] for t in range(length))
    (expected,) = torch.autograd.grad(total, logits)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("credit", [GroupRelative(), GroupRelative("batch"), NGRPO(), GTPO(penalty=0)], ids=named)
def test_policy_c2_without_credit_there_is_no_gradient(credit: Any) -> None:
    logits, batch = spoken(reward=torch.ones(6))
    loss = PolicyGradient(credit)(batch)
    (gradient,) = torch.autograd.grad(loss, logits)
    assert float(loss.detach()) == 0
    assert not gradient.any()


@pytest.mark.parametrize(
    ("advantage", "ratio", "learns"),
    [
        (1.0, 1.25, False),
        (1.0, 1.23, True),
        (1.0, 0.1, True),
        (-1.0, 0.83, False),
        (-1.0, 0.85, True),
        (-1.0, 9.0, True),
    ],
)
def test_policy_c3_clipping_acts_where_a_token_would_go_further(advantage: float, ratio: float, learns: bool) -> None:
    log_probs = torch.tensor([[ratio]]).log().requires_grad_()
    batch = sampled([1.0], log_probs=log_probs, old=torch.zeros(1, 1))
    objective = PolicyGradient(Fixed(torch.tensor([[advantage]])), low=0.16, high=0.24)
    (gradient,) = torch.autograd.grad(objective(batch), log_probs)
    assert float(gradient) == pytest.approx(-advantage * ratio if learns else 0)
    assert objective.figures(batch)["clipped tokens"] == (not learns)


def test_normalisers_by_hand() -> None:
    credit = torch.tensor([[1.0, 2.0, 3.0], [10.0, 0, 0]])
    batch = sampled([1, 0], tokens=[[2, 3, 4], [5]])
    found = {name: -value(PolicyGradient(Fixed(credit), normalise=name), batch) for name in ("tokens", "sequences")}
    assert found == pytest.approx({"tokens": 16 / 4, "sequences": (2 + 10) / 2})
    longest = PolicyGradient(Fixed(credit), normalise="longest")
    assert -value(longest, batch) == pytest.approx(16 / 6)
    weighed = replace(batch, weight=torch.tensor([1.0, 3.0]))
    assert -value(PolicyGradient(Fixed(credit)), weighed) == pytest.approx((6 + 3 * 10) / (3 + 3))
    assert -value(longest, weighed) == pytest.approx((6 + 3 * 10) / (4 * 3))


def test_the_divergence_is_estimated_at_what_was_sampled() -> None:
    batch = sampled([1, 0], tokens=[[2, 3], [4]], reference=torch.tensor([[-1.0, -2.0], [0.0, 99.0]]))
    apart = torch.tensor([0.0, -1.0, 1.0])  # log pi_ref - log pi, log pi is -1
    expected = float((apart.exp() - apart - 1).mean())
    objective = PolicyGradient(Fixed(torch.zeros(2, 2)), kl=0.5)
    assert value(objective, batch) == pytest.approx(0.5 * expected)
    figures = objective.figures(batch)
    assert figures["divergence"] / figures["divergence of"] == pytest.approx(expected)
    with pytest.raises(ValueError, match="reference"):
        objective(replace(batch, reference=None))


def test_the_entropy_is_raised_by_its_gradient() -> None:
    logits, batch = spoken()
    assert batch.entropy is not None
    objective = PolicyGradient(Fixed(torch.zeros(6, 3)), entropy=0.3)
    (found,) = torch.autograd.grad(objective(batch), logits, retain_graph=True)
    (expected,) = torch.autograd.grad(-0.3 * batch.entropy[batch.mask].mean(), logits)
    torch.testing.assert_close(found, expected)
    with pytest.raises(ValueError, match="gradient"):
        objective(replace(batch, entropy=batch.entropy.detach()))


def test_a_ceiling_stops_training_and_not_validation() -> None:
    _, batch = spoken()
    assert batch.entropy is not None
    mean = float(batch.entropy.detach()[batch.mask].mean())
    PolicyGradient(nsr(), ceiling=mean + 0.01)(batch)
    below = PolicyGradient(nsr(), ceiling=mean - 0.01)
    with pytest.raises(ValueError, match="ceiling"):
        below(batch)
    below.eval()(batch)
    with pytest.raises(ValueError, match="entropy"):
        below(replace(batch, entropy=None))


def test_samples_of_no_weight_are_in_no_mean_and_other_roles_in_no_loss() -> None:
    batch = sampled([1, 0, 0, 1, 1], [0, 0, 0, 0, 1], weight=torch.tensor([1.0, 1.0, 0.0, 2.0, 0.0]))
    objective = PolicyGradient(GroupRelative())
    kept = torch.tensor([0, 1, 3])
    assert torch.equal(objective(batch), objective(batch[kept]))
    roles = torch.full((5,), int(Role.TARGET))
    roles[torch.tensor([2, 4])] = int(Role.RETAIN)
    assert torch.equal(objective(replace(batch, role=roles)), objective(batch))
    empty = replace(batch, weight=torch.zeros(5))
    (gradient,) = torch.autograd.grad(objective(empty), empty.log_probs)
    assert not gradient.any()
    assert objective.figures(empty)["groups without signal of"] == 0


def test_figures_count_groups_that_teach_nothing() -> None:
    reward, group = [1, 0, 0, 0, 1, 1, 0.0], [0, 0, 1, 1, 2, 2, 3]  # mixed, misses, hits, a single miss
    batch = sampled(reward, group, entropy=torch.full((7, 1), 0.5))
    expected = {"GroupRelative": 3, "NGRPO": 1, "psr": 2, "nsr": 1}
    found = {}
    for name, credit in {"GroupRelative": GroupRelative(), "NGRPO": NGRPO(), "psr": psr(), "nsr": nsr()}.items():
        figures = PolicyGradient(credit).figures(batch)
        found[name] = figures["groups without signal"]
        assert figures["groups of equal rewards"] == 3
        assert figures["groups of equal rewards of"] == figures["groups without signal of"] == 4
        assert figures["entropy"] / figures["entropy of"] == 0.5
    assert found == expected


def test_the_loop_is_asked_for_what_the_knobs_read() -> None:
    assert PolicyGradient(GroupRelative()).reads == {"reward"}
    assert PolicyGradient(GroupRelative(), kl=0.1, ceiling=3.0).reads == {"reward", "reference", "entropy"}
    assert "entropy gradient" in PolicyGradient(GroupRelative(), entropy=0.1).reads
    assert PolicyGradient(GTPO()).reads == {"reward", "entropy", "tokens"}
    assert "rewards" in PolicyGradient(Constrained(GTPO(), ["varied"], [0.5])).reads


@pytest.mark.parametrize(
    "wrong",
    [{"low": 1.5}, {"low": -0.1}, {"high": -1}, {"kl": -1}, {"entropy": -1}, {"ceiling": 0}, {"normalise": "token"}],
)
def test_numbers_out_of_range_are_errors(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=str(next(iter(wrong)))):
        PolicyGradient(GroupRelative(), **wrong)
