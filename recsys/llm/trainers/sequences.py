"""A flat batch of sequences, as objectives and credit see it: how probable each token is, and what it is for.

Position t holds the log-probability of completion token t given the prompt and the tokens before it. Where decoding is
restricted to what exists (codes of items), sampling and log-probabilities alike use the softmax over the allowed tokens
alone, or ratios would compare different distributions. Legend: N sequences, T tokens of the longest completion.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields
from enum import IntEnum
from typing import Any

import torch
from torch import Tensor


class Role(IntEnum):
    """What a sequence is for. An objective says which roles it needs."""

    TARGET = 0  # to be imitated, or sampled and rewarded
    POSITIVE = 1
    NEGATIVE = 2
    SELF = 3  # sampled from the reference
    FORGET = 4
    RETAIN = 5


@dataclass(frozen=True, eq=False)
class Sequences:
    """N sequences and what is known of them; optional fields are there if the objective names them in ``reads``.

    Raises:
        ValueError: shapes differ, a reward or weight is not finite, a weight is negative, or a sequence has no token.
    """

    log_probs: Tensor  # (N, T) float32 under the policy, with gradient
    mask: Tensor  # (N, T) bool: the completion's tokens, its end token among them
    group: Tensor  # (N,) int64: sequences of one prompt have the same
    role: Tensor  # (N,) int64 of Role
    reference: Tensor | None = None  # (N, T) under the frozen reference; no gradient
    old: Tensor | None = None  # (N, T) under who sampled them; None: the policy as it is
    entropy: Tensor | None = None  # (N, T) of the policy at each position, over what is allowed; gradient only if asked
    divergence: Tensor | None = None  # (N, T) KL(reference || policy) at each position, with gradient
    tokens: Tensor | None = None  # (N, T) int64 the completion itself
    reward: Tensor | None = None  # (N,) float32
    rewards: Tensor | None = None  # (N, K) float32, further rewards, a column for each kind
    weight: Tensor | None = None  # (N,) float32, None for 1

    def __post_init__(self) -> None:
        shape = self.log_probs.shape
        if self.log_probs.dim() != 2:
            raise ValueError(f"log_probs has a row per sequence and a column per token (N, T), found {tuple(shape)}")
        for name in (field.name for field in fields(self)):
            value = getattr(self, name)
            wanted = shape[:1] if name in ("group", "role", "reward", "weight") else shape
            if value is not None and name != "rewards" and value.shape != wanted:
                raise ValueError(f"{name} must be {tuple(wanted)} like log_probs, found {tuple(value.shape)}")
        if self.rewards is not None and (self.rewards.dim() != 2 or len(self.rewards) != len(self)):
            raise ValueError(
                f"rewards must be ({len(self)}, K), a column for each kind; found {tuple(self.rewards.shape)}"
            )
        if bool((~self.mask.any(1)).any()):
            raise ValueError(f"{int((~self.mask.any(1)).sum())} of {len(self)} sequences have no token that counts")
        for name in ("reward", "rewards", "weight"):
            value = getattr(self, name)
            if value is not None and not bool(value.isfinite().all()):
                wrong = int((~value.isfinite()).sum())
                raise ValueError(f"{wrong} of {value.numel()} {name.removesuffix('s')}s are not finite")
        if self.weight is not None and bool((self.weight < 0).any()):
            raise ValueError("weights must not be negative")

    def __len__(self) -> int:
        return len(self.log_probs)

    def __getitem__(self, chosen: Tensor) -> Sequences:
        """The sequences that ``chosen`` (N,) bool or (K,) int64 names."""
        found: dict[str, Any] = {}
        for name in (field.name for field in fields(self)):
            value = getattr(self, name)
            found[name] = None if value is None else value[chosen]
        return Sequences(**found)

    @property
    def weights(self) -> Tensor:
        """(N,) weights, 1 where none are given."""
        return self.log_probs.new_ones(len(self)) if self.weight is None else self.weight.to(self.log_probs.dtype)

    @property
    def totals(self) -> Tensor:
        """(N,) log-probability of each sequence, the sum over its tokens."""
        return summed(self.log_probs, self.mask)

    @property
    def means(self) -> Tensor:
        """(N,) log-probability of each sequence per token."""
        return self.totals / self.mask.sum(1)

    @property
    def gains(self) -> Tensor:
        """(N,) log-probability of each sequence less that under the reference.

        Raises:
            ValueError: there is no reference.
        """
        if self.reference is None:
            raise ValueError("this objective compares with a reference, and the batch has none: give the policy one")
        return self.totals - summed(self.reference.detach(), self.mask)

    def of(self, *roles: Role, asked: str = "this objective") -> Tensor:
        """(N,) bool: the sequences of these roles that count.

        Raises:
            ValueError: there is none of one of them.
        """
        for role in roles:
            if not bool((self.role == role).any()):
                raise ValueError(f"{asked} needs sequences of the role {role.name}, and the batch has none")
        return self.has(roles)

    def has(self, roles: Iterable[Role]) -> Tensor:
        """(N,) bool: the sequences of these roles, if there are any."""
        wanted = torch.tensor(sorted(roles), dtype=self.role.dtype, device=self.role.device)
        return torch.isin(self.role, wanted)


def summed(values: Tensor, mask: Tensor) -> Tensor:
    """(N,) sums of ``values`` (N, T) where ``mask``; what stands elsewhere, even if it is not finite, has no part."""
    return values.masked_fill(~mask, 0).sum(1)


def weighted_mean(values: Tensor, weights: Tensor) -> Tensor:
    """The mean of ``values`` (N,) by ``weights`` (N,), which need not sum to 1; 0 if all weights are."""
    return (values * weights).sum() / weights.sum().clamp(min=torch.finfo(weights.dtype).tiny)
