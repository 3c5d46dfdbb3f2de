"""Objectives side by side, and what is to stay: by hand, and as parts."""

from __future__ import annotations

import pytest
import torch

from recsys.llm.trainers.objectives.combined import Combined
from recsys.llm.trainers.objectives.d2o import D2O
from recsys.llm.trainers.objectives.npo import NPO
from recsys.llm.trainers.objectives.retain import Retain
from recsys.llm.trainers.objectives.supervised import Supervised
from recsys.llm.trainers.sequences import Role, Sequences
from recsys.testing import check_sequence_objective
from recsys.testing.sequences import toy_sequences

ROLES = (Role.NEGATIVE, Role.SELF, Role.RETAIN)


@pytest.mark.parametrize("form", [{"likelihood": 1.0, "divergence": 0.0}, {"likelihood": 0.3}])
def test_retain_is_an_objective(form: dict[str, float]) -> None:
    check_sequence_objective(Retain(**form), roles=(Role.RETAIN,))


def test_retain_is_what_npo_retains() -> None:
    batch = toy_sequences((Role.FORGET, Role.RETAIN))
    both = NPO(0.1, retain=0.5, kl=2.0)(batch)
    alone = Retain(0.5, 2.0)(batch)
    assert torch.equal(both["retain"], alone["retain"]) and torch.equal(both["kl"], alone["kl"])
    chosen = batch.mask & (batch.role == Role.RETAIN)[:, None]
    weights = batch.weights[:, None].expand_as(batch.mask)[chosen]
    assert torch.allclose(alone["kl"], 2 * (batch.divergence[chosen] * weights).sum() / weights.sum(), rtol=1e-5)


def test_combined_is_the_weighted_sum_and_an_objective() -> None:
    combined = Combined([D2O(), Retain(1.0, 0.0)], [2.0, 0.5])
    check_sequence_objective(combined, roles=ROLES)
    batch = toy_sequences(ROLES)
    terms = combined(batch)
    assert set(terms) == {"D2O", "Retain.retain"}
    assert torch.allclose(terms["D2O"], 2 * D2O()(batch))
    assert torch.allclose(terms["Retain.retain"], 0.5 * Retain(1.0, 0.0)(batch)["retain"])
    assert combined.reads == D2O().reads
    assert "samples that were rejected" in combined.figures(batch)


def test_terms_of_two_of_a_kind_are_added() -> None:
    batch: Sequences = toy_sequences((Role.TARGET,))
    twice = Combined([Supervised(), Supervised()])(batch)
    assert torch.allclose(twice["Supervised"], 2 * Supervised()(batch))


def test_what_makes_no_sense_is_refused() -> None:
    with pytest.raises(ValueError, match="at least two"):
        Combined([D2O()])
    with pytest.raises(ValueError, match="a positive weight each"):
        Combined([D2O(), Supervised()], [1.0])
    with pytest.raises(ValueError, match="one of them more"):
        Retain(0.0, 0.0)
