"""Histories of items as documents of tokens: slices of ragged arrays joined, a whole batch at once.

Legend: B documents, S tokens of the longest, A items of a history, n tokens of all items.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from recsys.data.batch import Batch

PADDING_TYPE = 3


@dataclass(frozen=True)
class Documents:
    """Token rows of B documents, right-padded to S; the first token of each is the global one."""

    words: Tensor  # (B, S) int64
    types: Tensor  # (B, S) int64
    places: Tensor  # (B, S) int64 item positions
    starts: Tensor  # (B, S) bool, True where a word begins
    real: Tensor  # (B, S) bool, False at padding


class TokenRows(Protocol):
    """Ragged tokens: row j has ``offsets[j]:offsets[j + 1]`` of the others."""

    ids: Tensor  # (n,) int32
    types: Tensor  # (n,) int32
    starts: Tensor  # (n,) int32
    offsets: Tensor  # (rows + 1,) int64


class _Special(Protocol):
    start: int
    pad: int


def newest_first(batch: Batch, max_length: int) -> Tensor:
    """(B, A) item rows of the newest ``max_length`` items of each history, the newest first, 0 behind them."""
    ages = torch.arange(max(min(batch.ids.shape[1], max_length), 1), device=batch.ids.device)
    position = batch.lengths[:, None] - 1 - ages
    return batch.ids.gather(1, position.clamp(min=0)) * (position >= 0)


def documents(
    table: TokenRows, items: Tensor, max_tokens: int, special: _Special, last_position: int = 50
) -> Documents:
    """The token rows of items (B, A), 0 for none, joined behind ``<s>``: item 0 of a row is at item position 1.

    What is beyond ``max_tokens`` is cut from the end. Slices of the ragged arrays are gathered all at once. Padding has
    item position ``last_position`` and token type 3.
    """
    offsets, device = table.offsets, items.device
    ends = (offsets[items + 1] - offsets[items]).cumsum(1)  # (B, A)
    total = ends[:, -1].clamp(max=max_tokens - 1)
    token = torch.arange(int(total.max()) if len(total) else 0, device=device)
    real = token < total[:, None]
    age = torch.searchsorted(ends, token.expand(len(items), -1).contiguous(), right=True)
    age = age.clamp(max=items.shape[1] - 1)
    before = F.pad(ends, (1, 0)).gather(1, age)
    index = (offsets[items.gather(1, age)] + token - before) * real

    def laid(values: Tensor, first: int, padding: int) -> Tensor:
        values = values[index].long() if len(values) else torch.zeros_like(index)
        return F.pad(values.masked_fill(~real, padding), (1, 0), value=first)

    return Documents(
        words=laid(table.ids, special.start, special.pad),
        types=laid(table.types, 0, PADDING_TYPE),
        places=F.pad((age + 1).masked_fill(~real, last_position), (1, 0)),
        starts=laid(table.starts, 1, 0).bool(),
        real=F.pad(real, (1, 0), value=True),
    )


def distinct_rows(table: TokenRows, count: int) -> tuple[Tensor, Tensor]:
    """One row of each distinct sentence, and for each of rows 1..count which of them is its own: equal texts tie."""
    both, offsets = torch.stack([table.ids, table.types], 1).cpu().numpy(), table.offsets.tolist()
    seen: dict[bytes, int] = {}
    index = [seen.setdefault(both[offsets[row] : offsets[row + 1]].tobytes(), len(seen)) for row in range(1, count + 1)]
    first = {number: row for row, number in reversed(list(enumerate(index, 1)))}
    rows = torch.tensor([first[number] for number in range(len(seen))], dtype=torch.int64, device=table.offsets.device)
    return rows, torch.tensor(index, dtype=torch.int64, device=table.offsets.device)
