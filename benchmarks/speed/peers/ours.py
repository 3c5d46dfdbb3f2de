"""This library: SASRec through ``recsys.fit``, and ``recsys.evaluate``, both as a user calls them.

Variants, joined by "+": ``attention-dropout`` drops attention weights too, as the other libraries do (the default
leaves them, which fused attention needs); ``bf16`` trains in mixed precision; ``length`` batches histories of like
length together.
"""

from __future__ import annotations

import warnings
from contextlib import suppress
from typing import Any

import numpy as np
import torch
from peers.meter import Meter, read_task, set_threads

import recsys as rs
from recsys.data.batch import Batch
from recsys.data.prepared import Prepared
from recsys.data.split import HeldOut, Split
from recsys.ids.vocabulary import Vocabulary
from recsys.recommenders.base import Ranker


class Enough(Exception):
    """Raised inside training when enough was measured."""


class Stopwatch:
    """An augmentation that changes nothing: it is called before each step, so the step before it is over."""

    def __init__(self, meter: Meter) -> None:
        self.meter = meter
        self.previous: int | None = None

    def __call__(self, batch: Batch, generator: torch.Generator) -> Batch:
        if self.previous is not None and self.meter.step(self.previous):
            raise Enough
        self.previous = int((batch.lengths - 1).clamp(min=0).sum())
        return batch


def train(task: dict[str, Any]) -> None:
    """Fit SASRec for the time of the task."""
    wanted = set(filter(None, task["variant"].split("+")))
    meter = Meter(task)
    data = np.load(task["sequences"])
    prepared = Prepared(data["items"], data["offsets"], int(data["num_items"]), order="file")
    stop = prepared.offsets[1:]
    split = Split(
        prepared, stop, stop, Vocabulary(np.arange(1, prepared.num_items + 1), first=1),
        Vocabulary(np.arange(prepared.num_users), first=0), {"name": "everything is training"},
    )  # fmt: skip
    model = rs.Recommender(
        items=rs.IdItems(dim=task["dim"]),
        encoder=rs.SASRec(
            dim=task["dim"],
            num_layers=task["blocks"],
            num_heads=task["heads"],
            dropout=task["dropout"],
            max_length=task["max_length"],
            attention_dropout=task["dropout"] if "attention-dropout" in wanted else 0.0,
        ),
        objective=rs.FullSoftmax(),
        augmentations=[Stopwatch(meter)],
    )
    with suppress(Enough):
        rs.fit(
            model, split, epochs=100_000, batch_size=task["batch_size"], learning_rate=task["learning_rate"],
            windows="last", order="length" if "length" in wanted else "random", validate_every=0, seed=task["seed"],
            precision="bf16-mixed" if "bf16" in wanted else "32-true", accelerator="cpu", progress=False,
        )  # fmt: skip
    parameters = sum(parameter.numel() for parameter in model.parameters())
    meter.write(["torch", "lightning", "numpy"], rs.__version__, catalogue=prepared.num_items, parameters=parameters)


class Vectors(Ranker):
    """Scores by dot product of vectors that are given, one per user row."""

    max_length = 1

    def __init__(self, users: torch.Tensor, items: torch.Tensor) -> None:
        super().__init__()
        self.users, self.items, self.num_items = users, items, len(items)

    def score(self, batch: Batch) -> torch.Tensor:
        """(B, N) dot products."""
        return self.users[batch.users] @ self.items.T


def evaluate(task: dict[str, Any]) -> None:
    """Rank with ``recsys.evaluate``: exact ranks, ties by expectation, a number per user, memory bounded by default."""
    data = dict(np.load(task["vectors"]))
    model = Vectors(torch.from_numpy(data["users"]), torch.from_numpy(data["items"]))
    ends = data["offsets"][1:]
    events = np.insert(data["history"], ends, data["targets"]).astype(np.int32)
    offsets = data["offsets"] + np.arange(len(data["offsets"]))
    prepared = Prepared(events, offsets, model.num_items, order="file")
    part = HeldOut(
        "test", np.arange(prepared.num_users), offsets[:-1], offsets[1:] - 1, offsets[1:], prepared,
        {"name": "given"}, np.bincount(data["history"], minlength=model.num_items + 1),
    )  # fmt: skip
    wanted = ["hr@10", "ndcg@10"]
    meter = Meter(task)
    metrics: dict[str, float] = {}
    while not meter.done:
        report = rs.evaluate(model, part, metrics=wanted, progress=False)
        metrics = {name: report.mean(name) for name in wanted}
        meter.step(len(part))
    meter.write(["torch", "numpy"], rs.__version__, metrics=metrics)


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    task = read_task()
    set_threads(task)
    {"train": train, "evaluate": evaluate}[task["kind"]](task)
