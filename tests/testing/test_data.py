"""The checks of splits, negatives and weights pass what is right, and name what is wrong."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import recsys as rs
from recsys.data.batch import Batch
from recsys.negatives.negatives import Negatives
from recsys.testing import check_negatives, check_splitter, check_weighting


class Recency:
    """A target counts half for every 30 days that it lies before the newest of its history."""

    normalised, needs = True, frozenset({"times"})

    def __call__(self, batch: Batch) -> Tensor:
        assert batch.target_times is not None and batch.targets is not None
        at = batch.target_times.masked_fill(batch.targets == 0, 0)
        return torch.exp2((at - at.amax(1, keepdim=True)).float() / 86_400_000 / 30) * (batch.targets > 0)


@pytest.mark.parametrize("splitter", [rs.LeaveLast(), rs.LeaveLast(2, 1), rs.GlobalTime(0.1, 0.2), rs.GlobalTime(0)])
def test_splits_pass(splitter: Any) -> None:
    check_splitter(splitter)


@pytest.mark.parametrize(
    "negatives",
    [
        rs.UniformNegatives(5), rs.UniformNegatives(3, per="position", exclude_history=True),
        rs.UniformNegatives(4, per="row", distinct=True), rs.InBatchNegatives(), rs.InBatchNegatives(3),
    ],
)  # fmt: skip
def test_negatives_pass(negatives: Any) -> None:
    check_negatives(negatives)


@pytest.mark.parametrize("power", [0.0, 0.5])
def test_weightings_pass(power: float) -> None:
    check_weighting(rs.InversePropensity(rs.PopularityPropensity(power)))


def test_a_weighting_by_recency_finds_the_times_of_the_targets() -> None:
    check_weighting(Recency())


class Overlapping(rs.LeaveLast):
    def apply(self, prepared):
        _, valid = super().apply(prepared)
        return valid + 1, valid


class Beyond(rs.LeaveLast):
    def apply(self, prepared):
        train, valid = super().apply(prepared)
        return train, valid + 5


class Nothing(rs.LeaveLast):
    def apply(self, prepared):
        return prepared.offsets[1:], prepared.offsets[1:]


class ByRow(rs.LeaveLast):
    def apply(self, prepared):
        train, valid = super().apply(prepared)
        return np.where(np.arange(len(train)) % 2, train, train - 1), valid


class Nameless(rs.LeaveLast):
    def protocol(self, prepared):
        return {"test": 1}


@pytest.mark.parametrize(
    ("splitter", "message"),
    [
        (Overlapping, "before training"),
        (Beyond, "leave"),
        (Nothing, "test events"),
        (ByRow, "order"),
        (Nameless, "name"),
    ],
)
def test_wrong_splits_are_named(splitter: type, message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        check_splitter(splitter())


class Draws:
    def __init__(self, wrong: str = "") -> None:
        self.wrong = wrong

    def sample(self, batch, targets, num_items, generator):
        ids = torch.randint(
            1, num_items + 1, (len(targets), 8), generator=None if self.wrong == "global" else generator
        )
        if self.wrong == "padding":
            ids = ids - 1
        mask = ids == targets[:, None]
        if self.wrong == "own":
            ids, mask = ids.index_copy(1, torch.tensor([0]), targets[:, None]), torch.zeros_like(mask)
        if self.wrong == "masked":
            mask = torch.ones_like(mask)
        return Negatives(ids, mask)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [("", ""), ("global", "equal generator"), ("padding", "1\\.\\.30"), ("own", "its own"), ("masked", "masked")],
)
def test_wrong_negatives_are_named(wrong: str, message: str) -> None:
    if not wrong:
        check_negatives(Draws())
        return
    with pytest.raises(AssertionError, match=message):
        check_negatives(Draws(wrong))


class Weights:
    normalised = True

    def __init__(self, wrong: str = "") -> None:
        self.wrong = wrong

    def __call__(self, batch):
        if self.wrong == "shape":
            return torch.ones(len(batch))
        if self.wrong == "negative":
            return torch.full(batch.ids.shape, -1.0)
        if self.wrong == "second call":
            return torch.rand(batch.ids.shape)
        return torch.zeros(batch.ids.shape) if self.wrong == "0" else torch.ones(batch.ids.shape)


@pytest.mark.parametrize("wrong", ["", "shape", "negative", "second call", "0"])
def test_wrong_weights_are_named(wrong: str) -> None:
    if not wrong:
        check_weighting(Weights())
        return
    with pytest.raises(AssertionError, match=wrong):
        check_weighting(Weights(wrong))
