"""Training rows with preferences: what they hold, in which order, and what a negative one does."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from recsys.preferences.axes import recommendation, sentiment, steering
from recsys.preferences.source import PreferenceBatches
from recsys.testing import check_source
from tests.preferences.shop import shop
from tests.preferences.test_matching import matching


class Reader:
    """Reads how long texts are."""

    max_length = 3

    def read(self, said: Any) -> np.ndarray:
        return np.array([[sum(map(len, texts))] for texts in said], np.int64)


def test_rows_are_the_samples() -> None:
    split = shop()
    one = matching(split)
    samples = [recommendation(one, "train"), steering(one, "train"), sentiment(one, "train")[0]]
    source = PreferenceBatches(samples, Reader(), batch_size=16)
    found = []
    for batch in source.epoch(0):
        assert batch.ids.shape[1] <= 3 and bool((batch.targets > 0).sum(1).eq(1).all())
        for row in range(len(batch)):
            at = int(batch.lengths[row])
            found.append(
                (
                    batch.ids[row, :at].tolist(),
                    int(batch.targets[row, at - 1]),
                    int(batch.user_features["preference"][row]),
                )
            )
    wanted = []
    for part in samples:
        for start, stop, target, texts in zip(part.start, part.stop, part.target, part.lists(), strict=True):
            items = split.prepared.items[max(start, stop - 3) : stop].tolist()
            wanted.append((items or [0], int(target), sum(map(len, texts))))
    assert sorted(found) == sorted(wanted) and source.num_rows == source.num_targets == len(found)
    assert source.num_batches() == len(list(source.epoch(1))) and source.identity() == source.identity()
    other = [replace(one, said=np.roll(one.said, 1, 0)) for one in samples]
    assert PreferenceBatches(other, Reader(), batch_size=16).identity() != source.identity()


def test_the_source_keeps_the_rules_of_sources() -> None:
    check_source(PreferenceBatches([recommendation(matching(shop()), "train")], Reader(), batch_size=16))


def test_held_out_samples_are_refused() -> None:
    one = matching(shop())
    for part in ("valid", "test"):
        with pytest.raises(ValueError, match="held-out"):
            PreferenceBatches([recommendation(one, part)], Reader())
    with pytest.raises(ValueError, match="samples"):
        PreferenceBatches([], Reader())
    with pytest.raises(ValueError, match="negative_weight"):
        PreferenceBatches([recommendation(one, "train")], Reader(), negative_weight=-1)


def test_mender_13_9_negative_samples_are_pushed_down_and_without_them_it_is_plain_loss() -> None:
    one = matching(shop())
    wanted = recommendation(one, "train").drawn(6, 0)
    unwanted = replace(recommendation(one, "train").drawn(2, 1), negative=np.ones(2, bool))
    (plain,) = PreferenceBatches([wanted], Reader(), batch_size=8).epoch(0)
    assert plain.importance is None, "the loss of the targets as they are"
    (mixed,) = PreferenceBatches([wanted, unwanted], Reader(), batch_size=8).epoch(0)
    at = mixed.targets > 0
    assert mixed.importance is not None and sorted(mixed.importance[at].tolist()) == [-1.0] * 2 + [1.0] * 6
    # L = share of the wanted * their mean - share of the others * theirs, of any losses per target
    losses = torch.rand(8, requires_grad=True)
    own = mixed.importance[at]
    total = (losses * own).sum() / 8
    split_form = losses[own > 0].mean() * 6 / 8 - losses[own < 0].mean() * 2 / 8
    assert torch.allclose(total, split_form)
    total.backward()
    assert bool((losses.grad[own < 0] < 0).all()), "a step down the gradient raises their loss"
