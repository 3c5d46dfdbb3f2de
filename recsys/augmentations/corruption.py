"""Random corruption of histories with the edits that undo it: what a sequence editor is taught on.

A walk from the oldest item to the newest keeps an item, deletes a run of items, or puts noise before one (STEAM, WWW
2023; the same code trains LACLRec, arXiv 2503.20232, and TCLARec, SIGIR 2025). Each token of the result carries the
operation that undoes what happened there, and the first item behind a deleted run carries that run, nearest item first:
an editor writes backwards from its anchor. The newest item is never deleted and never followed by noise.

What we do differently: the whole batch walks at once, one position at a time; the number of noise items before an item
is one geometric draw (the same distribution as the draws one by one).

Legend: B histories, L longest of the batch, L' longest corrupted one, M most items inserted before one token, N items.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from recsys.augmentations.edits import DELETE, INSERT, KEEP, end_token
from recsys.data.batch import PAD, Batch


@dataclass(frozen=True)
class Corrupted:
    """A corrupted view of a batch, and at each token how to undo it."""

    batch: Batch  # B histories of up to L' tokens, without targets
    operations: Tensor  # (B, L') int64: KEEP, DELETE or INSERT; KEEP at padding
    inserted: Tensor  # (B, L', M) int64: rows to insert before an INSERT, nearest first, then N + 2, then 0


def corrupt(
    batch: Batch,
    num_items: int,
    generator: torch.Generator,
    keep: float = 0.4,
    delete: float = 0.45,
    insert: float = 0.15,
    max_inserted: int = 5,
    max_length: int = 60,
) -> Corrupted:
    """Corrupt every history of ``batch``, which stays as it is (STEAM's process; section 3 of our method note).

    Args:
        keep, delete, insert: probabilities of each draw, which add up to 1. The last item cannot be deleted, a run ends
            after ``max_inserted`` items, and nothing is inserted where the history is at ``max_length`` or has used up
            the catalogue; a draw that is not allowed is drawn again.
        max_length: most tokens of a corrupted history, noise included; a longer history only gets shorter.

    A noise item is uniform over the items that are not in the history, and no two of a history are equal. It has the
    time of the item it was put before, be that one kept or removed.

    Raises:
        ValueError: the probabilities do not add up to 1, ``keep`` is 0, or ``max_inserted`` is below 1.
    """
    check_probabilities(keep, delete, insert)
    if max_inserted < 1:
        raise ValueError(f"max_inserted must be at least 1, found {max_inserted}")
    absent = num_items - _distinct(batch)  # (B,): items that noise can still be drawn from
    noise, removed, run = _walk(batch, absent, generator, keep, delete, insert, max_inserted, max_length)
    emitted = batch.mask & ~removed
    ends = (noise + emitted).cumsum(1)  # (B, L): tokens up to and with each item
    lengths = ends[:, -1]
    position = torch.arange(max(int(lengths.max()), 1) if len(batch) else 1, device=ends.device).expand(len(batch), -1)
    owner = torch.searchsorted(ends, position.contiguous(), right=True).clamp(
        max=ends.shape[1] - 1
    )  # item of each token
    mask = position < lengths[:, None]
    original = mask & emitted.gather(1, owner) & (position == ends.gather(1, owner) - 1)
    ids = batch.ids.gather(1, owner) * original
    ids = ids + _noise(batch.ids, mask & ~original, num_items, generator)
    run = run.gather(1, owner) * original
    view = Batch(
        rows=batch.rows,
        users=batch.users,
        ids=ids,
        lengths=lengths,
        times=None if batch.times is None else batch.times.gather(1, owner) * mask,
        query_time=batch.query_time,
    )
    operations = torch.where(original, torch.where(run > 0, INSERT, KEEP), torch.where(mask, DELETE, KEEP))
    return Corrupted(view, operations, _labels(batch.ids, owner, run, max_inserted, end_token(num_items)))


def check_probabilities(keep: float, delete: float, insert: float) -> None:
    """Raise ValueError unless the three are probabilities that add up to 1, with some chance to keep."""
    if min(keep, delete, insert) < 0 or keep == 0 or abs(keep + delete + insert - 1) > 1e-6:
        raise ValueError(
            "keep, delete and insert are probabilities that add up to 1, with keep above 0; "
            f"found {keep}, {delete} and {insert}"
        )


def _walk(
    batch: Batch,
    absent: Tensor,
    generator: torch.Generator,
    keep: float,
    delete: float,
    insert: float,
    max_inserted: int,
    max_length: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Noise items before each item, whether it is removed, and the run removed just before it: (B, L) each."""
    last = torch.arange(batch.ids.shape[1], device=batch.ids.device) == batch.lengths[:, None] - 1
    draws, chances = torch.rand((2, *batch.ids.shape), generator=generator, device=batch.ids.device)
    wanted = torch.where(last, _geometric(draws, insert / (keep + insert)), _geometric(draws, insert))
    may = batch.mask & ~last
    starts = may & (chances < delete / (keep + delete))  # the first draw that is not an insertion
    goes_on = may & (chances < delete)  # the next draw of a run
    run = torch.zeros_like(batch.lengths)
    length, noise, removed, runs = batch.lengths, [], [], []
    for at in range(batch.ids.shape[1]):
        free = (run == 0) & batch.mask[:, at]
        added = torch.minimum(wanted[:, at], torch.minimum(max_length - length, absent)).clamp(min=0) * free
        gone = torch.where(run == 0, starts[:, at], goes_on[:, at] & (run < max_inserted))
        noise.append(added)
        removed.append(gone)
        runs.append(run * ~gone)
        run = (run + 1) * gone
        length, absent = length + added - gone.long(), absent - added
    return torch.stack(noise, 1), torch.stack(removed, 1), torch.stack(runs, 1) * batch.mask


def _geometric(draws: Tensor, chance: float) -> Tensor:
    """Successes before the first failure, each with ``chance`` below 1, from uniform ``draws`` in [0, 1)."""
    if chance == 0:
        return torch.zeros_like(draws, dtype=torch.int64)
    successes = torch.log1p(-draws) / torch.log(draws.new_tensor(chance))
    return successes.floor().long()


def _distinct(batch: Batch) -> Tensor:
    """(B,): different items in each history."""
    ordered = batch.ids.sort(1).values
    new = torch.ones_like(ordered, dtype=torch.bool)
    new[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
    return (new & (ordered > PAD)).sum(1)


def _noise(ids: Tensor, wanted: Tensor, num_items: int, generator: torch.Generator) -> Tensor:
    """(B, L') different items, none of them in the rows ``ids`` (B, L), where ``wanted``, else 0."""
    noise = torch.zeros(wanted.shape, dtype=torch.int64, device=ids.device)
    missing = wanted
    while bool(missing.any()):  # a draw collides with some L / N; the few that do are drawn again
        drawn = torch.randint(1, num_items + 1, noise.shape, generator=generator, device=ids.device)
        noise = torch.where(missing, drawn, noise)
        known = torch.cat([ids, noise], 1)
        order = known.sort(dim=1, stable=True)
        again = torch.zeros_like(known, dtype=torch.bool)
        again[:, 1:] = order.values[:, 1:] == order.values[:, :-1]
        again = torch.zeros_like(again).scatter(1, order.indices, again)
        missing = wanted & again[:, ids.shape[1] :]
    return noise


def _labels(ids: Tensor, owner: Tensor, run: Tensor, max_inserted: int, end: int) -> Tensor:
    """(B, L', M): the ``run`` (B, L') items before each token's item ``owner``, backwards, and the end token."""
    back = torch.arange(max_inserted, device=ids.device)
    source = (owner[:, :, None] - 1 - back).clamp(min=0)
    items = ids.gather(1, source.flatten(1)).view(source.shape)
    run = run[:, :, None]
    return torch.where(back < run, items, torch.where((back == run) & (run > 0), end, PAD))
