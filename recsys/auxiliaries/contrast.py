"""Contrast of vectors in pairs: NT-Xent and InfoNCE, with false negatives hidden or softened; and views to vectors.

Legend: b pairs of this process, B pairs of all processes together (B = b unless several train together), F width of
their vectors; of a view: L longest history, T tokens, D width of a state.

Across processes every one computes the loss over all B pairs, so the negatives of a row are those of the whole batch.
A process sends its vectors and gets the gradient of its own back, times the number of processes, because what trains
them averages gradients (DDP): the average is the gradient of the one loss. Processes may bring different numbers of
pairs, also none, but all must call. The products cost each of them B^2 F, which is little beside an encoder's pass.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from recsys.data.batch import PAD, Batch, events_at
from recsys.nn.processes import from_all
from recsys.protocols import Encoded, Step

LABELS = ("target", "user")
POOLS = ("last", "mean", "flat")
NO_EVENTS = 'gather it with needs={"events"}; augmentations of a recommender drop it, as they change what is predicted'


def nt_xent(
    first: Tensor,
    second: Tensor,
    temperature: float = 1.0,
    cosine: bool = False,
    hide: Tensor | None = None,
    keep: float = 0.0,
) -> Tensor:
    """Tell each vector's positive from the vectors of all other pairs: a scalar, the mean over 2B rows.

    With z = [first; second] and S = z z^T / temperature, row i is asked for its positive (i + B) mod 2B by a
    cross-entropy over all j != i (Chen et al. 2020, arXiv 2002.05709, eq. 1). Computed in float32, also under autocast.
    One pair alone has nothing to be told from: the loss is 0.

    Use when: two views of one thing should be nearer to each other than to the views of other things.
    Prefer instead: :func:`info_nce` where the anchors are not to be told from each other.

    Args:
        first, second: (b, F); rows of a number belong together.
        temperature: divides the products.
        cosine: of vectors of length 1, instead of dot products as in the sequential recommenders' code. The two want
            other temperatures: 1 is usual for products, .05 to .2 for cosines.
        hide: (B, B) bool, from :func:`false_negatives` or :func:`alike`: pairs whose vectors are not told apart, in
            all four combinations of first and second; a row's own positive always counts.
        keep: what a hidden pair still counts: 0 nothing, 1 everything; adds log(keep) to its logit.

    Raises:
        ValueError: shapes that do not fit, a temperature that is not positive, or ``keep`` outside of 0..1.
    """
    pairs = _pairs(first, second, temperature, cosine)
    if len(pairs) == 0:
        return pairs.sum()
    count = len(pairs)
    with torch.autocast(pairs.device.type, enabled=False):
        vectors = pairs.transpose(0, 1).flatten(0, 1)  # (2B, F)
        logits = vectors @ vectors.T / temperature
    positive = torch.arange(2 * count, device=pairs.device).roll(count)
    if hide is not None:
        logits = _softened(logits, _checked(hide, count).repeat(2, 2), positive, keep)
    return F.cross_entropy(logits.masked_fill(_identity(2 * count, pairs), -torch.inf), positive)


def info_nce(
    anchors: Tensor,
    positives: Tensor,
    temperature: float = 1.0,
    cosine: bool = False,
    hide: Tensor | None = None,
    keep: float = 0.0,
) -> Tensor:
    """Tell each anchor's positive from the other positives: a scalar, the mean over B rows.

    -log exp(a_i . p_i / t) / sum_j exp(a_i . p_j / t), one direction only (SRA-CL, arXiv 2503.04162, eq. 9).
    Arguments and errors as in :func:`nt_xent`; ``hide[i, j]`` takes positive j out of what anchor i is asked.
    """
    pairs = _pairs(anchors, positives, temperature, cosine)
    if len(pairs) == 0:
        return pairs.sum()
    with torch.autocast(pairs.device.type, enabled=False):
        logits = pairs[:, 0] @ pairs[:, 1].T / temperature
    own = torch.arange(len(pairs), device=pairs.device)
    if hide is not None:
        logits = _softened(logits, _checked(hide, len(pairs)), own, keep)
    return F.cross_entropy(logits, own)


def false_negatives(batch: Batch, by: str | Sequence[str] = LABELS) -> Tensor:
    """(B, B) bool: histories of a prepared batch that should not be told apart.

    Args:
        by: "target", the histories have the same target at their newest position; "user", they are of the same user;
            several: any of them.

    Raises:
        ValueError: an unknown name, or "target" of a batch without targets.
    """
    names = [by] if isinstance(by, str) else list(by)
    check_labels(names)
    if not names:
        raise ValueError(f"by must name at least one of {', '.join(LABELS)}")
    labels = {"target": newest_target, "user": lambda batch: batch.users}
    found = alike(labels[names[0]](batch))
    for name in names[1:]:
        found = found | alike(labels[name](batch))
    return found


def alike(labels: Tensor) -> Tensor:
    """(B, B) bool: equal ``labels`` (b,) int64, such as clusters; a negative label is equal to none."""
    everyone = from_all(labels)
    return (everyone[:, None] == everyone) & (everyone >= 0)


def newest_target(batch: Batch) -> Tensor:
    """(b,) int64: the target at each history's newest position, -1 where there is none.

    Raises:
        ValueError: the batch has no targets.
    """
    if batch.targets is None:
        raise ValueError("the batch has no targets: give the prepared batch of the step, not a view of it")
    targets = batch.targets.gather(1, (batch.lengths - 1).clamp(min=0)[:, None]).squeeze(1)
    return torch.where((batch.lengths > 0) & (targets != PAD), targets, -1)


def check_labels(names: Sequence[str]) -> None:
    """Raise ValueError for a name that :func:`false_negatives` does not know."""
    unknown = [name for name in names if name not in LABELS]
    if unknown:
        raise ValueError(f"false negatives are found by {', '.join(LABELS)}; found {unknown}")


def check_contrast(temperature: float, keep: float) -> None:
    """Raise ValueError for a temperature that is not positive, or ``keep`` outside of 0..1."""
    if not temperature > 0:
        raise ValueError(f"temperature must be positive, found {temperature}")
    if not 0.0 <= keep <= 1.0:
        raise ValueError(f"keep must lie in 0..1 (0 hides a false negative altogether), found {keep}")


def inputs(batch: Batch) -> Batch:
    """The inputs of a prepared batch alone: what views are made from, and as such a view that changes nothing."""
    return batch.histories()


def newest(view: Batch, width: int) -> Batch:
    """The last ``width`` items of each history of a view."""
    if view.ids.shape[1] <= width:
        return view
    skipped = (view.lengths - width).clamp(min=0)[:, None]
    index = skipped + torch.arange(width, device=skipped.device)
    times = None if view.times is None else view.times.gather(1, index)
    lengths = view.lengths.clamp(max=width)
    inside = torch.arange(width, device=index.device) < lengths[:, None]
    features = {name: events_at(values, index, inside) for name, values in view.features.items()}
    return view.replace(ids=view.ids.gather(1, index), times=times, lengths=lengths, features=features)


def together(step: Step, views: Sequence[Batch], every: bool = False) -> Encoded:
    """All ``views`` through the encoder in one pass, rows of the first view first.

    Args:
        every: ask for the states of all tokens, where an encoder leaves out those without a target.
    """
    joined = Batch.join(views)
    assert step.encode is not None
    return step.encode(joined.ask_all() if every else joined)


def pooled(encoded: Encoded, pool: str) -> Tensor:
    """(B, F) one vector per history, F = D, or L D for "flat"; zero for an empty history."""
    batch = encoded.batch
    if pool == "last":
        return encoded.user
    if pool == "mean":
        return encoded.states.sum(1) / batch.lengths.clamp(min=1)[:, None]
    size, width = batch.ids.shape
    # newest first: equal positions are equally far from the newest item
    positions = batch.flat - batch.positions + batch.ages
    laid = encoded.tokens.new_zeros(size * width, encoded.tokens.shape[1]).index_copy(0, positions, encoded.tokens)
    return laid.view(size, -1)


def halves(encoded: Encoded | None, pool: str, step: Step) -> tuple[Tensor, Tensor]:
    """(B, F) vectors of the first and of the second view that were read together; none if nothing was read.

    Vectors of nothing are the step's own, so that a loss of them has a gradient: 0.
    """
    if encoded is None:
        none = step.encoded.user[:0]
        return none, none
    first, second = pooled(encoded, pool).chunk(2)
    return first, second


def check_pool(pool: str, pools: Sequence[str] = POOLS) -> None:
    """Raise ValueError for an unknown way to pool."""
    if pool not in pools:
        raise ValueError(f"pool must be one of {', '.join(pools)}, found {pool!r}")


def _pairs(first: Tensor, second: Tensor, temperature: float, cosine: bool) -> Tensor:
    """(B, 2, F) in float32 at least."""
    check_contrast(temperature, 0.0)
    if first.shape != second.shape or first.dim() != 2:
        raise ValueError(f"two (B, F) tensors are contrasted, found {tuple(first.shape)} and {tuple(second.shape)}")
    wide = torch.promote_types(torch.promote_types(first.dtype, second.dtype), torch.float32)
    pairs = torch.stack([first.to(wide), second.to(wide)], 1)
    return from_all(F.normalize(pairs, dim=2) if cosine else pairs)


def _checked(hide: Tensor, count: int) -> Tensor:
    if hide.shape != (count, count):
        raise ValueError(
            f"hide must be ({count}, {count}), one row per pair of all processes; found {tuple(hide.shape)}"
        )
    return hide


def _softened(logits: Tensor, hidden: Tensor, positive: Tensor, keep: float) -> Tensor:
    """The logits (n, n) with log(keep) added where ``hidden``, but not at each row's ``positive`` (n,)."""
    check_contrast(1.0, keep)
    hidden = hidden.scatter(1, positive[:, None], False)
    if keep == 0.0:
        return logits.masked_fill(hidden, -torch.inf)
    return logits + hidden * torch.log(logits.new_tensor(keep))


def _identity(size: int, like: Tensor) -> Tensor:
    return torch.eye(size, dtype=torch.bool, device=like.device)
