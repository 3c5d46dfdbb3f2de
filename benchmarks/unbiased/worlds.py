"""Worlds whose relevance and exposure are known: from MovieLens-100K as in the Rel-MF paper, or made up in no time.

Legend: U users, I items.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

SHIFT = 5.0  # epsilon: subtracted from a rating before the sigmoid
WIDTH, STEPS, BATCH, RATE = 20, 300, 256, 0.01  # of the two factorisations the world is made of


@dataclass(frozen=True)
class World:
    """The chance that a user finds an item relevant, and that it is shown before any power is taken."""

    gamma: Tensor  # (U, I)
    shown: Tensor  # (U, I)

    def theta(self, power: float) -> Tensor:
        """(U, I) exposure propensities; the higher the power, the more skewed."""
        return self.shown**power


@dataclass(frozen=True)
class Clicks:
    """One draw: what is relevant, and what of it was shown and therefore clicked."""

    relevant: Tensor  # (U, I) float32 0/1
    clicked: Tensor  # (U, I) float32 0/1


def draw(world: World, power: float, seed: int) -> Clicks:
    """Relevance and exposure drawn independently: Rl ~ Bern(gamma), O ~ Bern(theta), Y = O Rl."""
    generator = torch.Generator().manual_seed(seed)
    relevant = torch.bernoulli(world.gamma, generator=generator)
    return Clicks(relevant, relevant * torch.bernoulli(world.theta(power), generator=generator))


def made_up(users: int = 500, items: int = 300, rank: int = 4, seed: int = 0) -> World:
    """Low-rank relevance, and exposure by the rank of an item's popularity, the same for all users."""
    rng = np.random.default_rng(seed)
    tastes, kinds = rng.normal(size=(users, rank)), rng.normal(size=(items, rank))
    gamma = 1 / (1 + np.exp(1.0 - 0.7 * tastes @ kinds.T))
    shown = ((1 + rng.permutation(items)) / items).clip(0.02, 1.0)
    return World(torch.tensor(gamma, dtype=torch.float32), torch.tensor(shown, dtype=torch.float32).repeat(users, 1))


def bent(scores: Tensor, labels: Tensor) -> Tensor:
    """Mean of -y log sigmoid(s) - (1 - y) log(1 - s): what the authors' first code trains exposure with.

    Its second term lacks the sigmoid. Scores therefore fall much lower than those of a logistic factorisation; later
    commits put the sigmoid in, but the figures are those of the first.
    """
    return -(labels * F.logsigmoid(scores) + (1 - labels) * (1 - scores).clamp(min=1e-6).log()).mean()


EXPOSURES = {"published": bent, "logistic": F.binary_cross_entropy_with_logits}


def from_ratings(
    users: np.ndarray, items: np.ndarray, ratings: np.ndarray, exposure: str = "published", seed: int = 12345
) -> World:
    """The paper's generation: gamma = sigmoid(predicted rating - 5), and exposure by a factorisation of who rated what.

    Ids (E,) count from 0. ``exposure`` names the loss of the second factorisation: ``published`` (``bent``) gives the
    paper's figures, ``logistic`` what its text describes.
    """
    shape = (int(users.max()) + 1, int(items.max()) + 1)
    generator = torch.Generator().manual_seed(seed)
    pairs = torch.tensor(users * shape[1] + items)
    stars = torch.zeros(shape).view(-1).index_put_((pairs,), torch.tensor(ratings, dtype=torch.float32))
    predicted = _factorise(shape, pairs, stars, nn.functional.mse_loss, generator)
    rated = torch.zeros(shape).view(-1).index_fill_(0, pairs, 1.0)
    everything = torch.arange(len(rated))
    exposed = _factorise(shape, everything, rated, EXPOSURES[exposure], generator)
    return World(torch.sigmoid(predicted.clamp(1, 5) - SHIFT), torch.sigmoid(exposed))


def _factorise(shape, pairs, labels, loss, generator) -> Tensor:  # type: ignore[no-untyped-def]
    """(U, I) dot products of factors trained by Adam on mini-batches of ``pairs``, drawn with replacement."""
    factors = []
    for rows in shape:
        bound = (6.0 / (rows + WIDTH)) ** 0.5
        factors.append((torch.rand(rows, WIDTH, generator=generator) * 2 - 1).mul_(bound).requires_grad_())
    optimizer = torch.optim.Adam(factors, lr=RATE)
    for _ in range(STEPS):
        batch = pairs[torch.randint(len(pairs), (BATCH,), generator=generator)]
        scores = (factors[0][batch // shape[1]] * factors[1][batch % shape[1]]).sum(1)
        optimizer.zero_grad()
        loss(scores, labels[batch]).backward()
        optimizer.step()
    return (factors[0] @ factors[1].T).detach()
