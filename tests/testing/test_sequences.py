"""The check of objectives over sequences accepts what is right and says what is wrong."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from recsys.llm.trainers.objectives.npo import NPO
from recsys.llm.trainers.objectives.supervised import Supervised
from recsys.llm.trainers.sequences import Role, Sequences, weighted_mean
from recsys.testing import check_sequence_objective


class Imitate:
    reads: frozenset[str] = frozenset()

    def __call__(self, batch: Sequences) -> Tensor:
        chosen = batch.of(Role.POSITIVE, asked="Imitate")
        return -weighted_mean(batch.means[chosen], batch.weights[chosen])


class Padded(Imitate):
    def __call__(self, batch: Sequences) -> Tensor:
        chosen = batch.of(Role.POSITIVE, asked="Padded")
        return -weighted_mean(batch.log_probs.sum(1)[chosen], batch.weights[chosen])


class Summed(Imitate):
    def __call__(self, batch: Sequences) -> Tensor:
        chosen = batch.of(Role.POSITIVE, asked="Summed")
        return -(batch.means * batch.weights)[chosen].sum()


class Careless(Imitate):
    def __call__(self, batch: Sequences) -> Tensor:
        chosen = batch.role == Role.POSITIVE
        return -weighted_mean(batch.means[chosen], batch.weights[chosen])


class Explodes(Imitate):
    def __call__(self, batch: Sequences) -> Tensor:
        chosen = batch.of(Role.POSITIVE, asked="Explodes")
        return weighted_mean((1 + torch.exp(batch.gains))[chosen].log(), batch.weights[chosen])


def test_good_ones_pass() -> None:
    check_sequence_objective(Imitate(), (Role.POSITIVE,))
    check_sequence_objective(NPO(0.1), (Role.FORGET, Role.RETAIN))
    check_sequence_objective(Supervised(), (Role.TARGET,))


@pytest.mark.parametrize(
    ("wrong", "says"),
    [(Padded(), "mask"), (Summed(), "twice as much"), (Careless(), "refused"), (Explodes(), "finite")],
)
def test_wrong_ones_are_told_why(wrong: Any, says: str) -> None:
    with pytest.raises(AssertionError, match=says):
        check_sequence_objective(wrong, (Role.POSITIVE,))
