"""What item tables share that have all their vectors at hand: the verbs that need all items, and input-only rows.

Legend: N items (rows 1..N, 0 is padding), B users, T targets, D width, K cut-off.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from recsys.nn.divergence import divergence
from recsys.nn.softmax import cross_entropy, log_sum_exp
from recsys.protocols import Context, ItemTable
from recsys.ranking.products import inverse_norms, products
from recsys.ranking.ties import best

VERBS = (
    "dim", "num_items", "extra", "reserve", "embed", "output", "scores", "topk", "log_sum_exp", "cross_entropy",
    "divergence",
)  # fmt: skip
PRODUCTS = 2**21  # held at a time where only the best are kept: 8 MB in fp32


class LocalItems(nn.Module):
    """An item table that has all its output vectors in this process, and makes of them the verbs that need all items.

    Who inherits it sets ``dim`` in the constructor and ``num_items`` in ``bind``, and writes ``embed(ids)`` and
    ``output(ids)``; :meth:`_vectors` as well, where consecutive rows can be had without looking each up. That is a
    whole item table:

    >>> class OneHot(LocalItems):
    ...     def __init__(self, dim: int) -> None:
    ...         super().__init__()
    ...         self.dim = dim
    ...     def embed(self, ids):
    ...         return self.output(ids)
    ...     def output(self, ids):
    ...         return torch.nn.functional.one_hot(ids % self.dim, self.dim).float()
    >>> items = OneHot(4)
    >>> items.bind(Context(num_items=5))
    >>> items.topk(torch.eye(4)[:1], k=3)
    (tensor([[1., 0., 0.]]), tensor([[4, 1, 2]]))
    """

    dim: int
    num_items: int = 0
    extra: int = 0  # input-only rows behind the items
    _learns_rows = False  # whether it can have such rows

    def bind(self, context: Context) -> None:
        """Take the number of items; a table with something to learn, or to look up, does more."""
        self.num_items = context.num_items

    def reserve(self, rows: int) -> None:
        """Have room for ``rows`` input-only rows from the next ``bind`` on; a recommender asks for those of its parts.

        Raises:
            ValueError: this kind of table has none.
        """
        if rows > self.extra and not self._learns_rows:
            raise ValueError(
                f"{type(self).__name__} has room for {self.extra} such rows: use IdItems, or leave the part out"
            )
        self.extra = max(self.extra, rows)

    def embed(self, ids: Tensor) -> Tensor:
        """Input vectors (..., D) of item rows (...)."""
        raise NotImplementedError(f"{type(self).__name__} has to say what the input vectors of item rows are: embed")

    def output(self, ids: Tensor) -> Tensor:
        """Output vectors (..., D) of item rows (...)."""
        raise NotImplementedError(f"{type(self).__name__} has to say what the output vectors of item rows are: output")

    def _vectors(self, rows: slice) -> Tensor:
        """(n, D) output vectors of consecutive item rows: the same numbers that :meth:`output` gives for them."""
        return looked_up(self, rows)

    def _all(self, more: Tensor | None = None) -> tuple[Tensor, ...]:
        """Output vectors of all items, (N, D), and what stands behind them, (M, D)."""
        vectors = self._vectors(slice(1, self.num_items + 1))
        return (vectors,) if more is None else (vectors, more)

    def scores(self, users: Tensor, metric: str = "dot", out: Tensor | None = None) -> Tensor:
        """(B, N) scores of ``users`` (B, D) with all items, column j for item row j + 1, in the precision of ``users``.

        Args:
            metric: "dot", the inner product, or "cosine".
            out: (B, N) to write them to, where no gradient is needed.
        """
        vectors = self._vectors(slice(1, self.num_items + 1)).to(users.dtype)
        found = products(users, vectors, out=out)
        if metric == "cosine" and found.requires_grad:
            return found * inverse_norms(vectors) * inverse_norms(users)[:, None]
        return found.mul_(inverse_norms(vectors)).mul_(inverse_norms(users)[:, None]) if metric == "cosine" else found

    @torch.no_grad()
    def topk(self, users: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """The K = min(k, N) items with the largest inner products: (B, K) products and (B, K) item rows, best first.

        Equal ones by ascending row. No gradient; about ``PRODUCTS`` products at a time, of eight users at least.
        """
        found = []
        with torch.autocast(users.device.type, enabled=False):
            vectors = self._vectors(slice(1, self.num_items + 1)).to(users.dtype)
            for some in users.split(max(8, PRODUCTS // max(self.num_items, 1) // 8 * 8)):
                found.append(best(products(some, vectors), k))
        return torch.cat([values for values, _ in found]), torch.cat([columns + 1 for _, columns in found])

    def log_sum_exp(self, hidden: Tensor) -> Tensor:
        """(T,) log of the sum over all items of exp(score), of states ``hidden`` (T, D); exact, in chunks."""
        return log_sum_exp(hidden, self._all())

    def cross_entropy(
        self,
        hidden: Tensor,
        targets: Tensor,
        weights: Tensor | None = None,
        more: Tensor | None = None,
        chunk: int | None = None,
    ) -> Tensor:
        """Scalar: sum over the targets of weight times (log sum over all items of exp(score) - score of the target).

        What ``log_sum_exp`` and ``output`` would give together; as the sum is known to be what is wanted, its gradient
        is made in the same pass, which saves the second one.

        Args:
            hidden: (T, D) states.
            targets: (T,) item rows.
            weights: (T,) of the targets, 1 where None.
            more: (M, D) output vectors of classes that are no items (an end token): rows N + 1 .. N + M.
            chunk: targets worked on at a time; None takes as many as keep their scores near 8 MB.
        """
        return cross_entropy(hidden, targets, weights, self._all(more), chunk)

    def divergence(self, hidden: Tensor, pairs: Tensor, stop_gradient: bool = True) -> Tensor:
        """Scalar: sum over targets and pairs of their states of pairs[j, i] KL(p_j || p_i), p = softmax over all items.

        Args:
            hidden: (T, S, D): S states of each target.
            pairs: (S, S) weights; the diagonal does not matter.
            stop_gradient: no gradient through the second argument.
        """
        return divergence(hidden, self._all(), pairs, stop_gradient)


def check_table(table: Any) -> None:
    """Raise TypeError unless ``table`` has all that an item table has."""
    missing = [name for name in VERBS if not hasattr(table, name)]
    if missing:
        raise TypeError(
            f"an item table with {', '.join(VERBS)} is expected, and {type(table).__name__} has no "
            f"{', '.join(missing)}: let it inherit recsys.items.local.LocalItems, which makes of embed(ids) and "
            "output(ids) what needs all items"
        )


def vectors_of(table: ItemTable, rows: slice) -> Tensor:
    """(n, D) output vectors of consecutive item rows of any table."""
    return table._vectors(rows) if isinstance(table, LocalItems) else looked_up(table, rows)


def looked_up(table: Any, rows: slice) -> Tensor:
    """(n, D) output vectors of consecutive item rows, asked for by id."""
    held = (*table.parameters(), *table.buffers()) if isinstance(table, nn.Module) else ()
    device = held[0].device if held else None
    vectors: Tensor = table.output(torch.arange(rows.start, rows.stop, device=device))
    return vectors
