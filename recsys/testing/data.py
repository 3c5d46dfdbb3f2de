"""Conformance checks of what decides what is trained: splits, negatives, weights of targets.

Legend: U users, B histories, L longest history, T targets, K negatives, N items.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from recsys.data.audit import audit
from recsys.data.batch import PAD, Batch
from recsys.data.prepared import Prepared
from recsys.data.split import Split
from recsys.data.splitters import Splitter
from recsys.ids.vocabulary import Vocabulary
from recsys.protocols import Weighting
from recsys.testing.assertions import require, round_trip, same, unchanged
from recsys.testing.conformance import NUM_ITEMS, toy_batch, toy_context, toy_split


def check_splitter(splitter: Splitter, split: Split | None = None) -> None:
    """A splitter: stops within each user's events and in order, described in JSON, the same for users in another
    order, no leak by the audit, saved and loaded.

    Args:
        split: data to cut, if the made-up ones (40 users, 4 to 12 events each, times) are not what it is for.
    """
    prepared = (toy_split() if split is None else split).prepared
    before = [None if one is None else one.copy() for one in (prepared.items, prepared.offsets, prepared.times)]
    stops = splitter.apply(prepared)
    require(isinstance(stops, tuple) and len(stops) == 2, "apply(prepared) must give (train_stop, valid_stop)")
    start, end = prepared.offsets[:-1], prepared.offsets[1:]
    for name, stop in zip(("train_stop", "valid_stop"), stops, strict=True):
        same((stop.shape, stop.dtype.kind), (start.shape, "i"), f"shape and kind of {name} (U,)")
    inside = (start <= stops[0]) & (stops[0] <= stops[1]) & (stops[1] <= end)
    wrong = np.flatnonzero(~inside)[:3].tolist()
    require(not wrong, f"of users {wrong} the stops leave their events, or validation ends before training does")
    require(bool((stops[1] < end).any()), "no user has test events")
    protocol = splitter.protocol(prepared)
    require(isinstance(protocol.get("name"), str), f"protocol(prepared) must have a name, found {protocol}")
    same(json.loads(json.dumps(protocol)), protocol, "protocol after a round through JSON")
    after = (prepared.items, prepared.offsets, prepared.times)
    kept = all(a is None or b is None or np.array_equal(a, b) for a, b in zip(before, after, strict=True))
    require(kept, "the data were changed in place")
    order = np.random.default_rng(3).permutation(len(start))
    moved = splitter.apply(_reordered(prepared, order))
    lengths = np.concatenate([[0], np.cumsum((end - start)[order])])[:-1]
    for name, stop, other in zip(("train_stop", "valid_stop"), stops, moved, strict=True):
        same((other - lengths).tolist(), (stop - start)[order].tolist(), f"{name} of users in another order")
    items, users = Vocabulary(np.arange(prepared.num_items), 1), Vocabulary(np.arange(len(start)), 0)
    made = Split.of(prepared, splitter, items, users)
    audit(made)
    with tempfile.TemporaryDirectory() as folder:
        made.save(Path(folder) / "split")
        loaded = Split.load(Path(folder) / "split")
        same(loaded.cut.digest, made.cut.digest, "the cut after saving and loading")


def check_negatives(negatives: Any) -> None:
    """A source of negatives: rows 1..N, a target never its own negative, chance from the generator alone, no input
    changed, arguments that are kept."""
    batch = _targeted(toy_batch())
    assert batch.targets is not None
    targets = batch.flatten(batch.targets)
    targets = targets[targets > PAD]

    def draw(seed: int) -> Any:
        return negatives.sample(batch, targets, NUM_ITEMS, torch.Generator().manual_seed(seed))

    torch.manual_seed(0)
    found = unchanged(batch, lambda: draw(0))
    ids, mask = found.for_targets()
    same(mask.shape[0], len(targets), "rows of mask (T, K)")
    same(ids.shape[-1], mask.shape[1], "negatives of a target, by ids and by mask")
    require(bool(((ids >= 1) & (ids <= NUM_ITEMS)).all()), f"negatives must be item rows 1..{NUM_ITEMS}")
    own = (ids.expand(mask.shape) == targets[:, None]) & ~mask
    require(not bool(own.any()), "a target is its own negative: mask it")
    require(bool((~mask).any()), "every negative is masked")
    torch.manual_seed(1)
    again = draw(0)
    same(again.ids.tolist(), found.ids.tolist(), "negatives drawn again from an equal generator")
    if found.weights is not None:
        same(tuple(found.weights.shape), tuple(mask.shape), "shape of weights (T, K)")
        require(bool((found.weights >= 0).all()), "weights of negatives must not be negative")
    round_trip(negatives)


def check_weighting(weighting: Weighting) -> None:
    """A weighting: (B, L) float32 weights, finite and not negative at targets, by nothing but the batch, no input
    changed, saved and loaded."""
    require(isinstance(weighting.normalised, bool), f"normalised must be True or False, found {weighting.normalised!r}")
    bind = getattr(weighting, "bind", None)
    if bind is not None:
        bind(toy_context())
    batch = _targeted(toy_batch())
    assert batch.targets is not None

    def weights(part: Any = weighting) -> Tensor:
        with torch.no_grad():
            return part(batch)

    found = unchanged(batch, weights)
    same((tuple(found.shape), found.dtype), (tuple(batch.ids.shape), torch.float32), "shape and type of weights (B, L)")
    at_targets = found[batch.targets > PAD]
    require(bool(at_targets.isfinite().all() and (at_targets >= 0).all()), "weights must be finite and not negative")
    require(bool(at_targets.any()), "every target has the weight 0")
    require(torch.equal(weights(), found), "weights of one batch differ in a second call")
    round_trip(weighting, weights, bind=_bound)


def _bound(part: Any) -> Any:
    if hasattr(part, "bind"):
        part.bind(toy_context())
    return part


def _targeted(batch: Batch) -> Batch:
    """Each position predicts the item row behind its own, at the time of its own event."""
    targets = (batch.ids % NUM_ITEMS + 1) * batch.mask
    return batch.replace(targets=targets, target_times=batch.times, weights=None)


def _reordered(prepared: Prepared, order: np.ndarray) -> Prepared:
    """The same users in another order."""
    lengths = np.diff(prepared.offsets)[order]
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    index = np.concatenate([np.arange(prepared.offsets[u], prepared.offsets[u + 1]) for u in order])
    names = ("times", "weights", "parts")
    fields = {name: values[index] for name in names if (values := getattr(prepared, name)) is not None}
    return Prepared(prepared.items[index], offsets, prepared.num_items, order=prepared.order, **fields)
