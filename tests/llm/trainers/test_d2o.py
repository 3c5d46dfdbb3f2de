"""Distributional dispreference optimization: the checks of its specification, by number."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from recsys.llm.trainers.objectives.d2o import D2O
from recsys.llm.trainers.objectives.preference import DPO
from recsys.llm.trainers.protocols import SequenceObjective
from recsys.llm.trainers.sequences import Role, Sequences
from recsys.storage.parts import describe
from tests.llm.trainers.tiny import (
    fitted,
    g_checks,
    loss_and_gradient,
    of_model,
    scored,
    sequences,
    texts,
    tiny_llama,
    with_gains,
)

N, S = Role.NEGATIVE, Role.SELF


@g_checks
@pytest.mark.parametrize("roles", [(N, S), (N, S, S), (S, N, N, S)])
def test_d2o(check: Callable[[Any, Sequences], None], roles: tuple[Role, ...]) -> None:
    check(D2O(0.2, 0.1), sequences(12, 5, roles=roles))


def test_d2o_1_loss_at_the_reference() -> None:
    batch = with_gains(sequences(12, 5, roles=(N, S, S)), 0.0)
    assert D2O()(batch).item() == pytest.approx(math.log(2), abs=1e-6)


def test_d2o_2_one_sample_is_dpo_with_it_as_the_better_one() -> None:
    batch = sequences(12, 5, roles=(N, S), size=2)
    pairs = replace(batch, role=batch.role.masked_fill(batch.role == S, int(Role.POSITIVE)))
    ours, theirs = loss_and_gradient(D2O(0.3, 0.3), batch), loss_and_gradient(DPO(0.3), pairs)
    torch.testing.assert_close(ours[0], theirs[0])
    torch.testing.assert_close(ours[1], theirs[1])


def test_d2o_3_slopes() -> None:
    batch = scored(torch.tensor([-1.0, 2.0, 0.5, 4.0]), [N, S, S, S], [0] * 4)
    _, gradient = loss_and_gradient(D2O(alpha=0.3, beta=0.2), batch)
    bracket = 0.2 * (2.0 + 0.5 + 4.0) / 3 - 0.3 * -1.0
    s = 1 / (1 + math.exp(bracket))
    torch.testing.assert_close(gradient.flatten(), torch.tensor([0.3 * s, *[-0.2 / 3 * s] * 3]))


def test_d2o_4_duplicated_samples_change_nothing() -> None:
    batch = sequences(12, 5, roles=(N, S, S))
    twice = batch[torch.cat([torch.arange(12), (batch.role == S).nonzero().squeeze(1)])]
    torch.testing.assert_close(D2O()(twice), D2O()(batch))


def test_d2o_5_the_rejected_falls_and_samples_do_not_follow() -> None:
    model, (ids, completion) = tiny_llama(seed=4), texts(24, seed=5)
    prompts = torch.arange(24) // 6  # one rejected and five of its own
    ids[:, :4] = ids[::6, :4].repeat_interleave(6, 0)
    role = torch.tensor([int(N), *[int(S)] * 5] * 4)
    reference = of_model(model, ids, completion).log_probs.detach()

    def make() -> Sequences:
        return of_model(model, ids, completion, group=prompts, role=role, reference=reference)

    losses = fitted(model, D2O(), make, 20, 1e-3)
    assert losses[-1] < losses[0]
    gains = make().gains.detach()
    fallen = -gains[role == N].mean()
    assert fallen > 0
    assert gains[role == S].mean() > -fallen / 4


def test_d2o_averages_several_rejected_by_weight_and_groups_by_theirs() -> None:
    scores = torch.tensor([-1.0, -3.0, 2.0, 1.0, 5.0])
    weight = torch.tensor([1.0, 3.0, 9.0, 2.0, 0.5])
    batch = scored(scores, [N, N, S, N, S], [7, 7, 7, 3, 3], weight=weight)
    first = math.log1p(math.exp(-(0.2 * 2 - 0.1 * (-1 - 9) / 4)))
    second = math.log1p(math.exp(-(0.2 * 5 - 0.1 * 1)))
    wanted = (2 * first + 2 * second) / 4  # mean weights of the rejected: (1 + 3) / 2, and 2
    assert D2O(alpha=0.1, beta=0.2)(batch).item() == pytest.approx(wanted, rel=1e-6)


def test_d2o_leaves_out_samples_that_were_rejected_and_counts_them() -> None:
    scores = torch.tensor([-1.0, 3.0, 9.0, 0.0, 4.0, 1.0])
    batch = scored(scores, [N, S, S, S, N, S], [0, 0, 0, 1, 1, 2])
    tokens = torch.tensor([[5], [6], [5], [8], [8], [5]])
    batch = replace(batch, tokens=tokens)  # row 2 repeats row 0; row 3 repeats row 4; row 5 is alone in its group
    assert D2O()(batch).item() == pytest.approx(D2O()(batch[torch.tensor([0, 1])]).item(), rel=1e-6)
    assert D2O().figures(batch) == {"samples that were rejected": 2.0, "samples that were rejected of": 3.0}
    only = batch[torch.tensor([3, 4])].log_probs.clone().requires_grad_()
    loss = D2O()(replace(batch[torch.tensor([3, 4])], log_probs=only))
    loss.backward()
    assert loss.item() == 0.0
    assert not only.grad.any()


def test_d2o_a_longer_sample_with_the_same_beginning_stays() -> None:
    mask = torch.tensor([[True, False], [True, True]])
    batch = Sequences(
        torch.zeros(2, 2), mask, torch.zeros(2).long(), torch.tensor([int(N), int(S)]), torch.zeros(2, 2),
        tokens=torch.tensor([[5, 0], [5, 0]]),
    )  # fmt: skip
    assert D2O().figures(batch)["samples that were rejected"] == 0


def test_d2o_is_a_part_and_refuses_what_it_cannot_do() -> None:
    assert isinstance(D2O(), SequenceObjective)
    assert describe(D2O(0.3))["arguments"] == {"alpha": 0.3, "beta": 0.1}
    batch = sequences(8, 3, roles=(N, S))
    for missing in ("reference", "tokens"):
        with pytest.raises(ValueError, match=missing):
            D2O()(replace(batch, **{missing: None}))
    for wrong in ({"alpha": 0.0}, {"beta": -1.0}):
        with pytest.raises(ValueError, match="found"):
            D2O(**wrong)
