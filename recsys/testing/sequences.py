"""The conformance check of objectives over sequences (:class:`recsys.llm.trainers.protocols.SequenceObjective`).

Legend: N sequences, T tokens of the longest.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from recsys.llm.trainers.sequences import Role, Sequences
from recsys.testing.assertions import close, require

SIZE, TOKENS, GROUP = 12, 4, 4


def toy_sequences(roles: Sequence[Role] = (Role.TARGET,), seed: int = 0) -> Sequences:
    """12 random sequences of 1 to 4 tokens with every field, in groups of four in which ``roles`` take turns."""
    generator = torch.Generator().manual_seed(seed)

    def values() -> Tensor:
        return -torch.rand(SIZE, TOKENS, generator=generator) * 3

    mask = torch.arange(TOKENS) < torch.randint(1, TOKENS + 1, (SIZE, 1), generator=generator)
    mask[0] = True
    turns = torch.tensor([int(role) for role in roles])[torch.arange(SIZE) % GROUP % len(roles)]
    return Sequences(
        values().requires_grad_(), mask, torch.arange(SIZE) // GROUP, turns, reference=values(), old=None,
        entropy=-values(), divergence=-values(),
        tokens=torch.randint(2, 60, (SIZE, TOKENS), generator=generator).masked_fill(~mask, 0),
        reward=torch.arange(SIZE).remainder(3).eq(0).float(),
    )  # fmt: skip


def check_sequence_objective(objective: Any, roles: Sequence[Role] = (Role.TARGET,)) -> None:
    """An objective over sequences: a finite mean by weight, which padding, order and group numbers do not change.

    Also: its gradient reaches tokens that count and nothing else, and a batch without one of ``roles`` is a ValueError
    that names the role.

    Args:
        roles: what it needs.

    Raises:
        AssertionError: something of this does not hold; the message says what.
    """
    require(isinstance(getattr(objective, "reads", None), (set, frozenset)), "reads must be a set of names of fields")
    batch = toy_sequences(roles)
    loss, gradient = _loss(objective, batch)
    require(bool(loss.isfinite()), f"the loss must be finite, found {loss.item()}")
    require(bool(gradient[batch.mask].any()), "no gradient reaches the log-probabilities")
    require(not bool(gradient[~batch.mask].any()), "what the mask leaves out must have no gradient")
    _padding(objective, batch, loss)
    order = torch.randperm(SIZE, generator=torch.Generator().manual_seed(1))
    moved = batch[order]
    close(_loss(objective, moved)[0], loss, "losses of the sequences in another order")
    close(_loss(objective, replace(moved, group=100 - 7 * moved.group))[0], loss, "losses with other group numbers")
    _weights(objective, batch, loss)
    for gain in (-1e4, -50.0, 50.0, 1e4):
        _far(objective, batch, gain)
    for role in roles:
        _lacking(objective, batch, role)


def _loss(objective: Any, batch: Sequences) -> tuple[Tensor, Tensor]:
    """The scalar loss, the sum of its terms, and its gradient (N, T)."""
    batch = replace(batch, log_probs=batch.log_probs.detach().clone().requires_grad_())
    found = objective(batch)
    loss = torch.stack([value.float() for value in found.values()]).sum() if isinstance(found, dict) else found
    require(
        isinstance(loss, Tensor) and not loss.dim(), f"the loss must be a scalar or scalars by name, found {found!r}"
    )
    (gradient,) = torch.autograd.grad(loss, batch.log_probs, allow_unused=True, materialize_grads=True)
    return loss.detach(), gradient


def _padding(objective: Any, batch: Sequences, loss: Tensor) -> None:
    fills = {"mask": False, "tokens": 7, "log_probs": -9.0, "reference": -9.0, "entropy": 9.0, "divergence": 9.0}
    wider: dict[str, Tensor] = {}
    for name, fill in fills.items():
        value = getattr(batch, name)
        wider[name] = torch.cat([value.detach(), value.new_full((SIZE, 2), fill)], 1)
        if name != "mask":
            wider[name] = wider[name].masked_fill(~torch.cat([batch.mask, batch.mask.new_zeros(SIZE, 2)], 1), fill)
    close(_loss(objective, replace(batch, **wider))[0], loss, "losses with and without more padding")


def _weights(objective: Any, batch: Sequences, loss: Tensor) -> None:
    weight = torch.rand(SIZE, generator=torch.Generator().manual_seed(2)) + 0.2
    close(
        _loss(objective, replace(batch, weight=torch.ones(SIZE)))[0], loss, "losses without weights, and of weights 1"
    )
    uneven = _loss(objective, replace(batch, weight=weight))[0]
    close(_loss(objective, replace(batch, weight=2 * weight))[0], uneven, "losses of weights, and of twice as much")
    require(not torch.allclose(uneven, loss), "weights must count: use weighted_mean of recsys.llm.trainers.sequences")


def _far(objective: Any, batch: Sequences, gain: float) -> None:
    assert batch.reference is not None
    each = gain / batch.mask.sum(1, keepdim=True)
    loss, gradient = _loss(objective, replace(batch, log_probs=batch.reference + each))
    finite = bool(loss.isfinite() and gradient.isfinite().all())
    require(finite, f"loss and gradient must be finite {gain:g} from the reference: use logsigmoid and softplus")


def _lacking(objective: Any, batch: Sequences, role: Role) -> None:
    left = batch.role != role
    without = batch[left] if bool(left.any()) else replace(batch, role=torch.full_like(batch.role, 99))
    try:
        objective(without)
    except ValueError as error:
        require(role.name in str(error), f"the error of a batch without {role.name} must name the role, found: {error}")
        return
    raise AssertionError(f"a batch without the role {role.name} must be refused: use batch.of(Role.{role.name})")
