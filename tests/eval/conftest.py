from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from recsys.data.prepared import Prepared
from recsys.data.split import HeldOut


class Scripted(nn.Module):
    """Scores that a test wrote down: row u of ``table`` for user row u."""

    max_length: int | None = None
    needs: frozenset[str] = frozenset()

    def __init__(self, table: Any, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.as_tensor(np.asarray(table)).to(dtype), requires_grad=False)
        self.num_items = self.table.shape[1]
        self.batch_sizes: list[int] = []

    def score_safely(self, batch: Any) -> torch.Tensor:
        assert not self.training and torch.is_inference_mode_enabled()
        self.batch_sizes.append(len(batch))
        return self.table[batch.users]


def make_part(
    histories: Sequence[Sequence[int]],
    targets: Sequence[Sequence[int]],
    num_items: int,
    item_counts: Sequence[int] | None = None,
    **others: Any,
) -> HeldOut:
    """A held-out part: user row u has ``histories[u]`` and ``targets[u]``."""
    events = [list(h) + list(t) for h, t in zip(histories, targets, strict=True)]
    offsets = np.concatenate([[0], np.cumsum([len(e) for e in events])]).astype(np.int64)
    flat = [item for user in events for item in user]
    prepared = Prepared(np.array(flat, dtype=np.int32), offsets, num_items, order="file")
    counts = np.arange(num_items + 1) if item_counts is None else np.array([0, *item_counts])
    if item_counts is not None:
        assert len(item_counts) == num_items
    defaults: dict[str, Any] = {"name": "test", "protocol": {"name": "leave-last", "valid": 1, "test": 1}}
    return HeldOut(
        users=np.arange(len(events)),
        history_start=offsets[:-1],
        target_start=offsets[:-1] + np.array([len(h) for h in histories], dtype=np.int64),
        target_stop=offsets[1:],
        prepared=prepared,
        item_counts=counts.astype(np.int64),
        **{**defaults, **others},
    )


@pytest.fixture(scope="session")
def scripted() -> type[Scripted]:
    return Scripted


@pytest.fixture(scope="session")
def part_of() -> Callable[..., HeldOut]:
    return make_part


@pytest.fixture(scope="session")
def random_case() -> Callable[..., tuple[Scripted, HeldOut]]:
    def build(users: int = 60, items: int = 30, seed: int = 0, levels: int | None = 5, multi: bool = True) -> Any:
        rng = np.random.default_rng(seed)
        histories = [rng.integers(1, items + 1, size=rng.integers(0, 9)).tolist() for _ in range(users)]
        targets = [rng.choice(items, size=rng.integers(1, 5 if multi else 2), replace=False) + 1 for _ in range(users)]
        scores = rng.normal(size=(users, items)) if levels is None else rng.integers(0, levels, size=(users, items))
        return Scripted(scores), make_part(histories, [t.tolist() for t in targets], items)

    return build
