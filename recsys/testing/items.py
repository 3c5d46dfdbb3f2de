"""Conformance check of item tables: every verb against what it says, written out over ``output(ids)``.

Legend: T targets, D width, N items, K cut-off.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from recsys.items.local import check_table
from recsys.protocols import Context, ItemTable
from recsys.ranking.ties import best
from recsys.testing.assertions import close, evaluated, gradients, parameters, round_trip, same
from recsys.testing.conformance import NUM_ITEMS, toy_context


def check_items(items: ItemTable, context: Context | None = None) -> None:
    """An item table: shapes, verbs that all mean the vectors of ``output``, equal scores in order, gradients.

    Args:
        context: of ``NUM_ITEMS`` items, with what the table reads of them (default: that of ``toy_split()``).
    """
    check_table(items)
    items = bound(items, context)
    same(items.num_items, NUM_ITEMS, "num_items after bind(context)")
    rows = torch.arange(1, NUM_ITEMS + 1)
    same(tuple(items.embed(rows.view(-1, 2)).shape), (NUM_ITEMS // 2, 2, items.dim), "shape of embed(ids)")
    same(tuple(items.output(rows.view(-1, 2)).shape), (NUM_ITEMS // 2, 2, items.dim), "shape of output(ids)")
    generator = torch.Generator().manual_seed(5)
    users = torch.randn(9, items.dim, generator=generator)
    vectors = evaluated(items, lambda: items.output(rows))
    scores = evaluated(items, lambda: items.scores(users))
    close(scores, users @ vectors.T, "scores(users) and products with output(ids)")
    cosines = evaluated(items, lambda: items.scores(users, "cosine"))
    close(cosines, F.normalize(users, dim=1) @ F.normalize(vectors, dim=1).T, 'scores(users, "cosine")')
    into = torch.empty_like(scores)
    evaluated(items, lambda: items.scores(users, out=into))
    close(into, scores, "scores(users, out=...) and scores(users)")
    for k in (1, 4, NUM_ITEMS + 5):
        values, found = evaluated(items, partial(items.topk, users, k))
        expected, columns = best(scores, k)
        close(values, expected, f"values of topk(users, {k})")
        same(found.tolist(), (columns + 1).tolist(), f"item rows of topk(users, {k}), equal scores by row")
    _check_sums(items, generator)
    if list(parameters(items)):
        read = torch.arange(1, NUM_ITEMS + 1 + items.extra)
        gradients(items, lambda: items.embed(read).square().sum() + items.output(rows).square().sum())
    round_trip(items, lambda part: part.output(rows), bind=partial(bound, context=context))


def _check_sums(items: ItemTable, generator: torch.Generator) -> None:
    """The sums over all items, and their gradients, against those of the plain softmax over ``output``."""
    rows, count = torch.arange(1, NUM_ITEMS + 1), 11
    hidden = torch.randn(count, items.dim, generator=generator, requires_grad=True)
    targets = torch.randint(1, NUM_ITEMS + 1, (count,), generator=generator)
    weights = torch.rand(count, generator=generator)
    more = torch.randn(2, items.dim, generator=generator, requires_grad=True)
    classes = targets.clone()
    classes[0] = NUM_ITEMS + 2
    own = [value for _, value in parameters(items)]

    def compare(verb: str, found: Callable[[], Tensor], plain: Callable[[Tensor], Tensor], *asked: Tensor) -> None:
        results = []
        for sums in (found, lambda: plain(items.output(rows))):
            value = sums()
            given = torch.autograd.grad(value, [hidden, *asked, *own], allow_unused=True)
            results.append((value, [torch.zeros(()) if one is None or not one.any() else one for one in given]))
        (ours, slopes), (theirs, expected) = results
        close(ours, theirs, f"{verb} and that of the plain softmax")
        for one, other in zip(slopes, expected, strict=True):
            close(one, other, f"gradients of {verb} and of the plain softmax")

    compare(
        "log_sum_exp(hidden)",
        lambda: (items.log_sum_exp(hidden) * weights).sum(),
        lambda vectors: ((hidden @ vectors.T).logsumexp(1) * weights).sum(),
    )
    compare(
        "cross_entropy(hidden, targets)",
        lambda: items.cross_entropy(hidden, targets),
        lambda vectors: F.cross_entropy(hidden @ vectors.T, targets - 1, reduction="sum"),
    )
    compare(
        "cross_entropy(hidden, targets, weights, more)",
        lambda: items.cross_entropy(hidden, classes, weights, more, chunk=4),
        lambda vectors: (
            F.cross_entropy(hidden @ torch.cat([vectors, more]).T, classes - 1, reduction="none") * weights
        ).sum(),
        more,
    )
    pairs = torch.rand(2, 2, generator=generator)
    states = hidden[:10].view(5, 2, items.dim)

    def divergence(vectors: Tensor) -> Tensor:
        logs = (states @ vectors.T).log_softmax(2)
        each = (logs.exp().unsqueeze(2) * (logs.unsqueeze(2) - logs.unsqueeze(1))).sum(3)  # (T, j, i)
        return (each * pairs).sum()

    compare("divergence(hidden, pairs)", lambda: items.divergence(states, pairs, stop_gradient=False), divergence)


def bound(part: Any, context: Context | None = None) -> Any:
    """The table, bound as a recommender would bind it."""
    torch.manual_seed(0)
    part.bind(toy_context() if context is None else context)
    return part
