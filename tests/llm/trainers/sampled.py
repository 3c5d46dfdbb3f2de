"""Samples of a policy with rewards, as the tests of credit need them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from recsys.llm.trainers.sequences import Role, Sequences


def sampled(
    reward: Sequence[float], group: Sequence[int] | None = None, tokens: Sequence[Sequence[int]] = (), **known: Any
) -> Sequences:
    """Samples with ``reward`` (N,), of one ``group`` if none are given; without ``tokens`` each has one of its own.

    Rows of ``tokens`` may differ in length. Log-probabilities are -1 where none are given, with gradient.
    """
    n = len(reward)
    rows = list(tokens) or [[number + 2] for number in range(n)]
    width = max(map(len, rows))
    ids = torch.tensor([[*row, *[0] * (width - len(row))] for row in rows])
    mask = torch.tensor([[at < len(row) for at in range(width)] for row in rows])
    told: dict[str, Any] = {
        "log_probs": torch.full((n, width), -1.0).requires_grad_(),
        "entropy": torch.zeros(n, width),
    }
    told |= {"tokens": ids, "reward": torch.tensor(reward, dtype=torch.float32)}
    own = torch.zeros(n, dtype=torch.int64) if group is None else torch.tensor(group)
    return Sequences(**(told | {"mask": mask, "group": own, "role": torch.full((n,), int(Role.TARGET))} | known))


def first(credit: Tensor) -> Tensor:
    """(N,) the credit of each sequence's first token."""
    return credit[:, 0]


def drawn_from(logits: Tensor, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """(N,) arms drawn by ``logits`` (A,) and (N, 1) their log-probabilities, with gradient."""
    probable = logits.log_softmax(0)
    arms = torch.multinomial(probable.detach().exp(), count, replacement=True, generator=generator)
    return arms, probable[arms][:, None]
