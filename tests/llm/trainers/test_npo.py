"""Negative preference optimization: the checks of its specification, by number."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from recsys.llm.trainers.objectives.npo import NPO
from recsys.llm.trainers.objectives.supervised import Supervised
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
    total,
    with_gains,
)

BOTH = (Role.FORGET, Role.RETAIN)
FORMS = {
    "retain": NPO(), "kl": NPO(retain=0.0, kl=0.5), "all": NPO(0.5, 2.0, 0.3, 0.7), "per_token": NPO(normalise=True),
}  # fmt: skip


@g_checks
@pytest.mark.parametrize("form", FORMS)
def test_npo(check: Callable[[Any, Sequences], None], form: str) -> None:
    check(FORMS[form], sequences(12, 5, roles=BOTH))


@g_checks
def test_npo_alone(check: Callable[[Any, Sequences], None]) -> None:
    check(NPO(retain=0.0), sequences(12, 5, roles=(Role.FORGET,)))


def open_unlearning(log_probs: Tensor, reference: Tensor, beta: float) -> Tensor:
    """The loss that open-unlearning publishes: DPO's without a preferred completion, times 2 / beta."""
    lose_log_ratio = log_probs.sum(1) - reference.sum(1)
    return -2 / beta * F.logsigmoid(beta * (0.0 - lose_log_ratio)).mean()


def test_npo_1_loss_at_the_reference() -> None:
    batch = with_gains(sequences(8, 5, roles=(Role.FORGET,)), 0.0)
    assert NPO(beta=0.1, retain=0.0)(batch)["forget"].item() == pytest.approx(13.862944, abs=1e-5)
    ones = with_gains(sequences(8, 1, roles=(Role.FORGET,)), 0.0)
    assert open_unlearning(ones.log_probs, ones.reference, 0.1).item() == pytest.approx(13.862944, abs=1e-5)
    figures = NPO(beta=0.1).figures(batch)
    assert figures["forget weight"] / figures["forget weight of"] == pytest.approx(1.0)


@pytest.mark.parametrize(("gain", "weight"), [(0.0, 1.0), (-5.0, 0.755081), (-20.0, 0.238406), (-100.0, 9.1e-5)])
def test_npo_2_weight_of_the_gradient(gain: float, weight: float) -> None:
    batch = scored(torch.tensor([gain], requires_grad=True), [Role.FORGET], [0])
    objective = NPO(beta=0.1, retain=0.0)
    loss, gradient = loss_and_gradient(objective, batch)
    assert gradient.item() == pytest.approx(weight, abs=1e-6)
    assert objective.figures(batch)["forget weight"] == pytest.approx(weight, abs=1e-6)
    theirs = open_unlearning(batch.log_probs, torch.zeros(1, 1), 0.1)
    assert loss.item() == pytest.approx(theirs.item(), rel=1e-6)
    assert torch.autograd.grad(theirs, batch.log_probs)[0].item() == pytest.approx(weight, abs=1e-6)


def test_npo_3_a_tiny_beta_is_gradient_ascent() -> None:
    batch = with_gains(sequences(8, 5, roles=(Role.FORGET,)), torch.linspace(-30, 30, 8))
    _, ours = loss_and_gradient(NPO(beta=1e-4, retain=0.0), batch)
    _, ascent = loss_and_gradient(lambda batch: batch.totals.mean(), batch)
    assert F.cosine_similarity(ours.flatten(), ascent.flatten(), dim=0) > 0.9999
    _, strong = loss_and_gradient(NPO(beta=1.0, retain=0.0), batch)
    assert F.cosine_similarity(strong.flatten(), ascent.flatten(), dim=0) < 0.9


def test_npo_per_token_means_the_same_at_any_length() -> None:
    batch = replace(sequences(6, 5, roles=(Role.FORGET,)))
    gains = -4.0 * batch.mask.sum(1)
    objective = NPO(beta=0.1, retain=0.0, normalise=True)
    found = objective(with_gains(batch, gains))["forget"].item()
    assert found == pytest.approx(20 * math.log1p(math.exp(-0.4)), rel=1e-5)


def test_npo_terms_by_hand() -> None:
    log_probs = torch.tensor([[-1.0, -2.0], [-3.0, 5.0], [-4.0, -6.0]])
    mask = torch.tensor([[True, True], [True, False], [True, True]])
    role = torch.tensor([int(Role.FORGET), int(Role.RETAIN), int(Role.RETAIN)])
    divergence = torch.tensor([[9.0, 9.0], [1.0, 9.0], [2.0, 6.0]])
    batch = Sequences(log_probs, mask, torch.arange(3), role, torch.zeros(3, 2), divergence=divergence)
    found = NPO(0.5, forget=2.0, retain=3.0, kl=4.0)(batch)
    assert found["forget"].item() == pytest.approx(2 * 4 * math.log1p(math.exp(-1.5)), rel=1e-6)
    assert found["retain"].item() == pytest.approx(3 * (3 + 4 + 6) / 3)
    assert found["kl"].item() == pytest.approx(4 * (1 + 2 + 6) / 3)


@cache
def learned() -> tuple[Any, Callable[[Any], Sequences]]:
    """A model that knows 4 sequences to forget and 16 to retain by heart, and the batch of them under a model."""
    model, (ids, completion) = tiny_llama(seed=2), texts(20, seed=3)
    fitted(model, Supervised(), lambda: of_model(model, ids, completion), 60, 3e-3)
    reference = of_model(model, ids, completion).log_probs.detach()
    role = torch.tensor([int(Role.FORGET)] * 4 + [int(Role.RETAIN)] * 16)
    return model, lambda model: of_model(model, ids, completion, role=role, reference=reference)


@cache
def unlearned(retain: float) -> tuple[list[float], list[float], float, float]:
    """Losses of forgetting and means of W during 30 updates; what forgetting and retaining then have lost, in nats."""
    known, make = learned()
    model, objective = copy.deepcopy(known), NPO(retain=retain)
    weights, losses = [], []

    def told(batch: Sequences) -> dict[str, Tensor]:
        figures, terms = objective.figures(batch), objective(batch)
        weights.append(figures["forget weight"] / figures["forget weight of"])
        losses.append(terms["forget"].item())
        return terms

    fitted(model, told, lambda: make(model), 30, 1e-3)
    before, after = make(known), make(model)
    forget, retain_rows = before.role == Role.FORGET, before.role == Role.RETAIN
    lost = (before.totals - after.totals).detach()
    tokens = before.mask[retain_rows].sum()
    return losses, weights, lost[forget].mean().item(), (lost[retain_rows].sum() / tokens).item()


def test_npo_4_forgets_and_retains() -> None:
    (_, _, forgotten, kept), (_, _, _, lost) = unlearned(1.0), unlearned(0.0)
    assert forgotten > 2
    assert lost > 0
    assert kept < lost / 2


def test_npo_5_losses_are_not_negative_and_the_push_weakens() -> None:
    losses, weights, _, _ = unlearned(0.0)
    assert min(losses) >= 0
    moving = np.convolve(weights, np.ones(5) / 5, "valid")
    assert (np.diff(moving) < 0).all()


def test_npo_is_a_part() -> None:
    assert isinstance(NPO(), SequenceObjective)
    assert NPO().reads == {"reference"}
    assert NPO(kl=1.0).reads == {"reference", "divergence"}
    wanted = {"beta": 0.1, "forget": 1.0, "retain": 0.0, "kl": 1.0, "normalise": False}
    assert describe(NPO(retain=0.0, kl=1.0))["arguments"] == wanted


def test_npo_refuses_what_it_cannot_do() -> None:
    batch = sequences(8, 3, roles=BOTH)
    with pytest.raises(ValueError, match="reference"):
        NPO()(replace(batch, reference=None))
    with pytest.raises(ValueError, match="divergence"):
        NPO(kl=1.0)(replace(batch, divergence=None))
    for wrong in ({"beta": 0.0}, {"beta": math.nan}, {"forget": 0.0}, {"retain": -1.0}, {"kl": -1.0}):
        with pytest.raises(ValueError, match="found"):
            NPO(**wrong)
    assert total(NPO(retain=0.0)(batch)).isfinite()
