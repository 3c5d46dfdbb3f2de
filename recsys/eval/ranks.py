"""Exact ranks over the whole catalogue: candidates are counted, never sorted, chunk by chunk of the scores.

Legend: b users of a batch, N items (column j is item row j + 1), P (user, target) pairs, K list length.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from recsys.ids.ranges import padded_blocks
from recsys.ranking.ties import best

CHUNK = 1 << 20  # scores ranked at once on a CPU: a chunk stays near the cache
GPU_CHUNK = 1 << 27
TOKEN_BYTES = 2048  # what one history token costs an encoder in flight, a rough guess at width 64
BYTES_PER_RANKED = 16  # of one score while it is ranked: a masked copy, a comparison, the keys of tied lists
_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12, "ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}


@dataclass(frozen=True)
class Plan:
    """How a memory budget is spent: on users scored at once, and of these ``chunk`` ranked at once."""

    chunk: int
    scoring: int  # bytes
    num_items: int

    @classmethod
    def fit(cls, memory: str | int, num_items: int, history: int, device: torch.device) -> Plan:
        """A plan for histories of up to ``history`` tokens.

        Raises:
            ValueError: the budget does not hold the scores of a single user.
        """
        budget = parse_memory(memory)
        per_user = 4 * num_items + TOKEN_BYTES * history
        needed = per_user + BYTES_PER_RANKED * num_items
        if budget < needed:
            raise ValueError(
                f"memory={memory!r} is {budget:,} bytes, but scoring and ranking one user against {num_items:,} items "
                f"takes {needed:,}: pass at least memory='{-(-needed // 10**6)}MB'"
            )
        largest = CHUNK if device.type == "cpu" else GPU_CHUNK
        chunk = max(1, min(largest, budget // 4 // BYTES_PER_RANKED) // num_items)
        return cls(int(chunk), int(budget - chunk * BYTES_PER_RANKED * num_items), num_items)

    def batches(self, lengths: np.ndarray) -> Iterator[slice]:
        """Consecutive users, with histories of ``lengths`` (n,) tokens, as many at once as the budget holds."""
        return padded_blocks(lengths, self.scoring, 4 * self.num_items, TOKEN_BYTES)


def parse_memory(memory: str | int) -> int:
    """Bytes of "512MB", "2 GiB" or a plain number of bytes."""
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kmgt]?i?)b?\s*", str(memory).lower())
    if isinstance(memory, bool) or not found or found[2] not in _UNITS:
        raise ValueError(f"memory is a number of bytes or text such as '512MB' or '2GiB'; found {memory!r}")
    return int(float(found[1]) * _UNITS[found[2]])


@dataclass(frozen=True)
class Asked:
    """A batch of users with targets, in item rows of the part. Pairs are sorted by position; users with more targets
    come first."""

    index: np.ndarray  # (b,) positions in the part
    owner: np.ndarray  # (P,) position in the batch of each target
    target: np.ndarray  # (P,) item row
    hidden: tuple[np.ndarray, np.ndarray] | None  # (position in the batch, item row) of what is not recommended


@dataclass(frozen=True)
class Landed:
    """Where the targets of a batch landed. Pairs keep the order in which they were passed."""

    above: np.ndarray  # (P,) candidates scored strictly higher
    size: np.ndarray  # (P,) candidates with the same score, the target included
    reached: np.ndarray  # (P,) bool: False for a target that no list can show, hidden or scored -inf
    candidates: np.ndarray  # (b,) what a list can show
    lists: np.ndarray | None  # (b, K) int32 item rows, 0 behind the end
    unlisted: np.ndarray | None = None  # (P,) bool, of lists only: not in its list, and nothing forbids it
    tied: np.ndarray | None = None  # (P,) bool, of lists only: has the score of a neighbour in its list


def rank_targets(
    scores: Tensor,
    targets: tuple[np.ndarray, np.ndarray],
    hidden: tuple[np.ndarray, np.ndarray] | None,
    chunk: int,
    list_length: int = 0,
    users: np.ndarray | None = None,
    never: Tensor | None = None,
) -> Landed:
    """Counts for each target how many candidates are scored higher and how many the same.

    A score of -inf says that an item is never shown: it is no candidate, and a target of that score is not reached.

    Args:
        scores: (b, N), left unchanged. Half precision is compared as float32.
        targets: (user position, item row), each (P,), sorted by position; users with more targets come first.
        hidden: (user position, item row) of what cannot be recommended, targets too, sorted by position, no pair twice.
        chunk: users ranked at once.
        list_length: K, 0 for no lists.
        users: (b,) user rows, to name them in an error.
        never: (N,) or (b, N) bool: what cannot be recommended either.

    Raises:
        ValueError: a score is NaN or +inf.
    """
    device, (users_in_batch, width) = scores.device, scores.shape
    target_user = targets[0]
    nth = np.arange(len(target_user)) - np.searchsorted(target_user, target_user)  # 0, 1, ... within each user
    above = np.zeros(len(target_user), dtype=np.int64)
    size = np.zeros(len(target_user), dtype=np.int64)
    reached = np.ones(len(target_user), dtype=bool)
    candidates = np.full(users_in_batch, width, dtype=np.int64)
    if hidden is not None:
        candidates -= np.bincount(hidden[0], minlength=users_in_batch)
    lists = np.zeros((users_in_batch, list_length), dtype=np.int32) if list_length else None
    wide = scores.dtype in (torch.float32, torch.float64)  # half precision is widened before anything is compared
    size_of_chunk = (min(chunk, users_in_batch), width)
    copy = torch.empty(size_of_chunk, dtype=scores.dtype if wide else torch.float32, device=device)
    mask = torch.empty_like(copy)
    for start in range(0, users_in_batch, chunk):
        stop = min(start + chunk, users_in_batch)
        block = copy[: stop - start].copy_(scores[start:stop])
        finite = _check(block, users[start:stop] if users is not None else np.arange(start, stop))
        if never is not None:
            block.masked_fill_(never if never.ndim == 1 else never[start:stop], -torch.inf)
        if hidden is not None:
            block[_indices(hidden, slice(*np.searchsorted(hidden[0], [start, stop])), start, device)] = -torch.inf
        pairs = slice(*np.searchsorted(target_user, [start, stop]))
        wanted = block[_indices(targets, pairs, start, device)]
        reached[pairs] = (wanted > -torch.inf).cpu().numpy()
        if not finite or never is not None:
            candidates[start:stop] = (block > -torch.inf).sum(1).cpu().numpy()
        above[pairs], size[pairs] = _count(block, wanted, nth[pairs], mask)
        if lists is not None:
            lists[start:stop] = top(block, list_length).cpu().numpy()
    return Landed(above, size, reached, candidates, lists)


def top(block: Tensor, length: int) -> Tensor:
    """(b, length) item rows with the highest scores, best first; equal scores by ascending row, -inf left out as 0."""
    values, columns = best(block, length)
    rows = torch.where(values == -torch.inf, 0, columns + 1)
    return torch.nn.functional.pad(rows, (0, length - rows.shape[1]))


def _check(block: Tensor, users: np.ndarray) -> bool:
    """Whether all scores are finite. -inf, which is "never", may be among them, NaN and +inf may not."""
    if bool(torch.isfinite(block.sum(dim=1)).all()):  # one fast pass; a sum may overflow, so look again before raising
        return True
    bad = ~(block < torch.inf)
    per_user = bad.sum(dim=1).cpu().numpy()
    if per_user.any():
        worst = int(np.flatnonzero(per_user)[0])
        raise ValueError(
            f"{int(per_user.sum()):,} scores are NaN or infinite, first for user row {int(users[worst])} "
            f"({int(per_user[worst]):,} of {block.shape[1]:,} items): ranks among them mean nothing; "
            "look for a diverged model (learning rate, overflow in half precision); -inf alone is allowed, for never"
        )
    return bool((block > -torch.inf).all())


def _indices(
    pairs: tuple[np.ndarray, np.ndarray], chosen: slice, start: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """(row, column) of the chosen (user position, item row) pairs in a block that begins at user ``start``."""
    row = torch.from_numpy(np.asarray(pairs[0][chosen], dtype=np.int64) - start)
    column = torch.from_numpy(np.asarray(pairs[1][chosen], dtype=np.int64) - 1)
    return row.to(device), column.to(device)


def _count(block: Tensor, wanted: Tensor, nth: np.ndarray, mask: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """(P,) candidates above and equal. Users with a j-th target are a prefix of the block, so nothing is gathered.

    ``mask`` is written to: memory in the shape of the largest block.
    """
    above = torch.zeros(len(wanted), dtype=torch.int64, device=block.device)
    upto = torch.zeros_like(above)
    exact = torch.float64 if block.shape[1] > 1 << 24 else torch.float32  # whole numbers that the sum can hold
    for j in range(int(nth.max(initial=-1)) + 1):
        pairs = torch.from_numpy(np.flatnonzero(nth == j)).to(block.device)
        level, prefix = wanted[pairs][:, None], block[: len(pairs)]
        out = mask[: len(pairs)]  # 0 and 1 as floats: summing them is much faster than counting booleans
        above[pairs] = torch.gt(prefix, level, out=out).sum(1, dtype=exact).long()
        upto[pairs] = torch.ge(prefix, level, out=out).sum(1, dtype=exact).long()
    return above.cpu().numpy(), (upto - above).cpu().numpy()
