"""The one rule for equal scores: higher first, equal ones by ascending column, so a short list begins the longer one.

Legend: B rows, N columns, K cut-off.
"""

from __future__ import annotations

import torch
from torch import Tensor

GROUP = 128  # neighbouring columns that are looked through at once in wide rows
WIDE = 4096  # columns from which that is quicker


def best(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The ``k`` largest of each row of ``scores`` (B, N): values (B, K) and columns (B, K), K = min(k, N).

    Best first, equal scores by ascending column, also where the list ends among equal ones. Nothing may be NaN.

    >>> best(torch.tensor([[1.0, 3.0, 3.0, 2.0]]), 2)[1].tolist()
    [[1, 2]]
    """
    width = scores.shape[1]
    k = min(k, width)
    if width >= WIDE and 4 * k * GROUP <= width:
        return _best_of_groups(scores, k)
    values, columns = torch.topk(scores, min(k + 1, width), dim=1)
    if k and values.shape[1] > k:
        cut = (values[:, k] == values[:, k - 1]).nonzero().squeeze(1)
        values, columns = values[:, :k], columns[:, :k].clone()
        if len(cut):
            columns[cut] = _first_of_tied(scores[cut], values[cut], columns[cut])
    columns, order = columns[:, :k].sort(dim=1)
    values, order = values[:, :k].gather(1, order).sort(dim=1, descending=True, stable=True)
    return values, columns.gather(1, order)


def _best_of_groups(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The same: what is among the ``k`` best lies in the ``k`` groups of neighbours with the best maxima, found by the
    same rule, or in the columns behind the last whole group."""
    rows, width = scores.shape
    whole = width // GROUP * GROUP
    maxima = scores[:, :whole].unflatten(1, (-1, GROUP)).amax(2)
    groups = best(maxima, k)[1].sort(dim=1).values
    columns = (groups[:, :, None] * GROUP + torch.arange(GROUP, device=scores.device)).flatten(1)
    rest = torch.arange(whole, width, device=scores.device).expand(rows, -1)
    columns = torch.cat([columns, rest], 1)
    values, within = best(scores.gather(1, columns), k)
    return values, columns.gather(1, within)


def _first_of_tied(scores: Tensor, values: Tensor, columns: Tensor) -> Tensor:
    """Columns of lists whose last score goes on behind their end: its ranks with that score get its lowest columns."""
    length, width = values.shape[1], scores.shape[1]
    last = values[:, -1:]
    age = torch.arange(width, 0, -1, dtype=torch.int32, device=scores.device)
    tied = torch.topk(torch.where(scores == last, age, 0), length, dim=1).indices  # ascending: lower column, higher key
    better = (values > last).sum(1, keepdim=True)
    rank = torch.arange(length, device=scores.device)
    return torch.where(rank < better, columns, tied.gather(1, (rank - better).clamp(min=0)))
