"""Sequences by what they are for and which prompt they belong to: rows of a role, pairs within a group, sums of groups.

A sequence of weight 0 makes no pair and has no part in a mean, whatever its log-probability. Legend: N sequences, T
tokens of the longest, P pairs, G groups.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from recsys.llm.trainers.sequences import Role, Sequences


def rows_of(batch: Sequences, role: Role, asked: str) -> Tensor:
    """(K,) int64 rows of the sequences of this role that weigh something.

    Raises:
        ValueError: there is none of this role, of whatever weight; the message names it.
    """
    return (batch.of(role, asked=asked) & (batch.weights > 0)).nonzero().squeeze(1)


def rows_of_any(batch: Sequences, roles: tuple[Role, ...], asked: str) -> Tensor:
    """(K,) int64 rows of the sequences of one of these roles that weigh something.

    Raises:
        ValueError: there is none of any of them, of whatever weight; the message names them.
    """
    found = batch.has(roles)
    if not bool(found.any()):
        names = " or ".join(role.name for role in roles)
        raise ValueError(f"{asked} needs sequences of the role {names}, and the batch has none")
    return (found & (batch.weights > 0)).nonzero().squeeze(1)


@dataclass(frozen=True, eq=False)
class Pairs:
    """P pairs of rows of one batch, each of two sequences of the same group."""

    better: Tensor  # (P,) int64
    worse: Tensor  # (P,) int64
    weights: Tensor  # (P,) product of the weights of both
    group: Tensor  # (P,) int64, 0..G-1
    count: int  # G, groups of the batch, also those without a pair


def pairs(batch: Sequences, better: Role, worse: Role, asked: str, some: bool = True) -> Pairs:
    """Each sequence of role ``better`` with each of role ``worse`` in its group, where both weigh something.

    Memory and time are those of the pairs and of one sorting: groups are never compared with each other.

    Args:
        asked: what needs them, for messages.
        some: no group that has both is an error, as it mostly comes of sequences that were not grouped by prompt.

    Raises:
        ValueError: one of the roles is missing, or, with ``some``, no group has both.
    """
    above, below = (rows_of(batch, role, asked) for role in (better, worse))
    own, count = numbered(batch.group)
    below = below[own[below].argsort(stable=True)]
    sizes = torch.bincount(own[below], minlength=count)  # (G,)
    starts = sizes.cumsum(0) - sizes
    times = sizes[own[above]]  # how many pairs each better one is in
    left = above.repeat_interleave(times)  # (P,)
    if some and not len(left):
        _refuse_without_groups(batch, better, worse, asked)
    firsts = (times.cumsum(0) - times).repeat_interleave(times)
    right = below[starts[own[left]] + torch.arange(len(left), device=left.device) - firsts]
    return Pairs(left, right, batch.weights[left] * batch.weights[right], own[left], count)


def _refuse_without_groups(batch: Sequences, better: Role, worse: Role, asked: str) -> None:
    """An error unless some group has both roles, of whatever weight."""
    above, below = (batch.group[batch.role == role] for role in (better, worse))
    if not bool(torch.isin(above, below).any()):
        raise ValueError(
            f"{asked} compares {better.name} with {worse.name} sequences of one group, and no group has both: give "
            f"sequences of one prompt the same number; found {better.name} in groups {above[:5].tolist()} and "
            f"{worse.name} in groups {below[:5].tolist()}"
        )


def numbered(group: Tensor) -> tuple[Tensor, int]:
    """(N,) the groups as numbers from 0 on, and how many there are."""
    names, own = group.unique(return_inverse=True)
    return own, len(names)


def group_sums(values: Tensor, own: Tensor, count: int) -> Tensor:
    """(G,) sums of ``values`` (K,) of the groups ``own`` (K,); 0 for a group without any."""
    return values.new_zeros(count).index_add(0, own, values)


def group_means(values: Tensor, weights: Tensor, own: Tensor, count: int) -> Tensor:
    """(G,) means of ``values`` (K,) by ``weights`` (K,), none of them 0; 0 for a group without any."""
    tiny = torch.finfo(weights.dtype).tiny
    return group_sums(values * weights, own, count) / group_sums(weights, own, count).clamp(min=tiny)


def log_one_plus(values: Tensor, own: Tensor, count: int) -> Tensor:
    """(G,) log(1 + sum of exp(values (K,))) of each group, at any size of the values."""
    most = values.new_zeros(count).scatter_reduce(0, own, values.detach(), "amax")  # at least 0, which stands for the 1
    rest = group_sums((values - most[own]).exp(), own, count)
    return most + torch.log1p(rest + torch.expm1(-most))
