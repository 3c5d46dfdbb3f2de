"""The check of a source of batches of your own, for ``Stage(data=...)``."""

from __future__ import annotations

import json
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor

from recsys.data.batch import Batch
from recsys.testing.assertions import require, same
from recsys.train.source import BatchSource, check_members, is_varying


def check_source(source: BatchSource) -> None:
    """A source of batches: the same twice, from any position on, and shared out over processes without loss.

    It must have ``bind`` called already, if it has one, and whatever the batches of its first two epochs depend on.
    Where its epochs are ``varying``, ``num_rows`` is an expectation and is compared with no epoch.
    """
    check_members(source)
    try:
        text = json.dumps(source.identity())
    except TypeError as error:
        raise AssertionError(f"identity() is plain data, which JSON can hold: {error}") from error
    for epoch in (0, 1):
        whole = list(source.epoch(epoch))
        same(len(whole), source.num_batches(epoch), f"batches of epoch {epoch} beside num_batches({epoch})")
        for batch in whole:
            require(isinstance(batch, Batch), f"batches are recsys.data.batch.Batch, found {type(batch).__name__}")
        rows = sum(map(len, whole))
        if is_varying(source):
            require(
                (rows > 0) == (source.num_rows > 0), f"num_rows is {source.num_rows}, epoch {epoch} has {rows} rows"
            )
        else:
            same(rows, source.num_rows, f"rows of the batches of epoch {epoch} beside num_rows")
        _equal(whole, list(source.epoch(epoch)), f"epoch({epoch}), called twice")
        half = len(whole) // 2
        _equal(whole[half:], list(source.epoch(epoch, half)), f"epoch({epoch}, start={half})")
        shares = [list(source.epoch(epoch, 0, rank, 2)) for rank in (0, 1)]
        same([len(share) for share in shares], [len(whole)] * 2, f"batches of epoch {epoch} on each of two processes")
        for number, parts in enumerate(zip(whole, *shares, strict=True)):
            held = [sorted(part.rows.tolist()) for part in parts]
            same(sorted(held[1] + held[2]), held[0], f"rows of batch {number}, over two processes")
    same(json.dumps(source.identity()), text, "identity(), after two epochs")


def _equal(expected: list[Batch], found: list[Batch], what: str) -> None:
    same(len(found), len(expected), f"batches of {what}")
    for number, (one, other) in enumerate(zip(expected, found, strict=True)):
        for entry in fields(one):
            require(
                _alike(getattr(one, entry.name), getattr(other, entry.name)),
                f"{what}, gives another {entry.name} in batch {number}: batches are a function of epoch and position",
            )


def _alike(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor):
        return isinstance(other, Tensor) and torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(_alike(value, other[key]) for key, value in one.items())
    return bool(one == other)
