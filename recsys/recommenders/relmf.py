"""Rel-MF: matrix factorisation for relevance instead of clicks (Saito et al. 2020, arXiv 1909.03601).

A click of an item with exposure propensity theta has the label w = 1 / max(theta, M), all other pairs 0, and the loss
is over all pairs of user and item, exact, with s = <p_u, q_i>:

- "squared" (default): w (1 - s)^2 + (1 - w) s^2 = s^2 - 2 w s + w on the raw score, so only the right-hand side of
  least squares is weighted: p_u = (Q'Q + l2 I)^-1 sum_clicks w_i q_i, one K x K factor for all users. Alternating.
- "logistic" and "squared-sigmoid": w d1 + (1 - w) d0 with cross entropy, softplus(s) - w s, or the paper's squares of
  x = sigmoid(s), x^2 - 2 w x + w; Adam on the gradient over all pairs, in chunks of users.

All add l2 (|P|^2 + |Q|^2). ``clip=1`` weighs every click 1: plain (naive) matrix factorisation.

What we do differently from the paper's real-data code: no sampler and so none of its bias, raw scores by default, and
an unknown user is folded in from the history: as every user here, known or not, is scored by the minimiser for the
history with the item factors fixed. Legend: U users, N items, K width, B histories.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from recsys.data.batch import Batch
from recsys.progress import Progress
from recsys.protocols import Context
from recsys.randomness import torch_generator
from recsys.recommenders.base import Ranker
from recsys.statistics.cooccurrence import distinct, interactions, require_memory
from recsys.weighting.propensity import PopularityPropensity

# l2 by loss. Those of the bounded ones are the best of 1, 2, 5, 10, 20, 50 on the validation part of MovieLens-100K
# (dim 64, power .5): 50 would leave squares of the sigmoid a single direction.
L2 = {"squared": 50.0, "logistic": 20.0, "squared-sigmoid": 5.0}
LOSSES = tuple(L2)
SCORES = 2**24  # scores held at a time (three copies of them under "squared-sigmoid")
BETAS, EPSILON = (0.9, 0.999), 1e-8  # of Adam


class RelMF(Ranker):
    """Matrix factorisation with inverse-propensity labels.

    Args:
        dim: K.
        l2: regularisation, of a loss that is summed over all pairs (None: ``L2`` of the loss).
        propensity: theta by item (default: ``PopularityPropensity(power=0.5)``).
        clip: M, the least theta; 1 weighs nothing.
        loss: "squared", "logistic" or "squared-sigmoid".
        steps: iterations: of alternating least squares under "squared" (default 30), else optimizer steps of Adam
            (default 300).
        learning_rate: of Adam.
        fold_steps: gradient iterations that fold a new history in, under a sigmoid loss.
        seed: of the factors at the start, besides that of the fit.

    Raises:
        ValueError: an argument out of range, or propensities that are not one per item.
    """

    factors: Tensor  # (N, K) item factors
    labels: Tensor  # (N,) w of each item
    inverse: Tensor  # (K, K) of the matrix that folds a history in

    def __init__(
        self,
        dim: int = 64,
        l2: float | None = None,
        propensity: Any = None,
        clip: float = 0.01,
        loss: str = "squared",
        steps: int | None = None,
        learning_rate: float = 0.005,
        fold_steps: int = 100,
        seed: int = 0,
    ) -> None:
        super().__init__()
        l2 = L2.get(loss, 1.0) if l2 is None else l2
        if dim < 1 or not l2 > 0 or not 0 <= clip <= 1 or not learning_rate > 0 or fold_steps < 1:
            raise ValueError(
                "dim >= 1, l2 > 0, 0 <= clip <= 1, learning_rate > 0 and fold_steps >= 1 are needed; found "
                f"{dim}, {l2}, {clip}, {learning_rate} and {fold_steps}"
            )
        if loss not in LOSSES or (steps is not None and steps < 1):
            raise ValueError(f"loss is one of {', '.join(LOSSES)} and steps >= 1 or None; found {loss!r}, {steps}")
        self.dim, self.l2, self.clip, self.loss = dim, l2, clip, loss
        self.propensity = PopularityPropensity() if propensity is None else propensity
        self.steps, self.learning_rate, self.fold_steps, self.seed = steps, learning_rate, fold_steps, seed
        for name in ("factors", "labels", "inverse"):
            self.register_buffer(name, torch.zeros(0))

    def learn(self, context: Context) -> None:
        """Fit the factors to the training events."""
        training = context.training
        if training is None:
            raise ValueError("Rel-MF is fitted to training events, and the context has none")
        copies = 3 if self.loss == "squared" else 4
        needed = 4.0 * copies * self.dim * (training.num_users + context.num_items)
        needed += 8.0 * self.dim * max(training.num_users, context.num_items)  # a double of one side at a time
        needed += 0.0 if self.loss == "squared" else 12.0 * _chunk(context.num_items) * context.num_items
        require_memory(needed, f"Rel-MF with dim={self.dim}", "lower dim")
        super().bind(context)
        self.propensity.bind(context)
        theta = self.propensity.theta
        if theta.shape != (context.num_items + 1,):
            raise ValueError(f"Rel-MF needs one propensity per item, found a table of shape {tuple(theta.shape)}")
        self.labels = 1 / theta[1:].clamp(min=self.clip)
        clicks = interactions(training)
        generator = torch_generator(context.seed, "RelMF", self.seed)
        users, items = (self._start(rows, generator) for rows in clicks.shape)
        fit = self._alternate if self.loss == "squared" else self._descend
        self.factors = fit(clicks, users, items)[1]
        self.inverse = self._inverse(self.factors)

    def score(self, batch: Batch) -> Tensor:
        """(B, N) scores of every item for the users folded in from their histories."""
        return self.fold(batch) @ self.factors.T

    def fold(self, batch: Batch) -> Tensor:
        """(B, K) user factors: the minimiser for each history as a set, items fixed."""
        owner, items, _ = distinct(batch, self.num_items)
        counts = torch.bincount(owner, minlength=len(batch))
        weighted = self.factors * self.labels[:, None]
        start = counts.cumsum(0) - counts
        target = F.embedding_bag(items - 1, weighted, start, mode="sum")  # (B, K) sum over clicks of w q
        if self.loss == "squared":
            return target @ self.inverse
        users = ahead = torch.zeros_like(target)
        momentum = target.new_ones(len(target), 1)
        for _ in range(self.fold_steps):  # Nesterov, restarted where it goes uphill (O'Donoghue & Candes 2015)
            slope = self._gradient(ahead, owner, items - 1)
            before, users = users, ahead - slope @ self.inverse
            uphill = (slope * (users - before)).sum(1, keepdim=True) > 0
            momentum = momentum.masked_fill(uphill, 1.0)
            after = (1 + (1 + 4 * momentum.square()).sqrt()) / 2
            ahead = users + ((momentum - 1) / after).masked_fill(uphill, 0.0) * (users - before)
            momentum = after
        return users

    def _start(self, rows: int, generator: torch.Generator) -> Tensor:
        bound = (6.0 / (rows + self.dim)) ** 0.5  # Xavier
        return (torch.rand(rows, self.dim, generator=generator) * 2 - 1) * bound

    def _inverse(self, items: Tensor) -> Tensor:
        """(Q'Q + l2 I)^-1, or that of a bound on the Hessian of a sigmoid loss, so that no iteration overshoots."""
        gram = items.double().T @ items.double()
        eye = torch.eye(self.dim, dtype=torch.float64)
        if self.loss == "squared":
            matrix = gram + self.l2 * eye
        else:
            bound = 0.25 if self.loss == "logistic" else 0.25 + 0.2 * float(self.labels.max())
            matrix = bound * gram + 2 * self.l2 * eye
        return torch.cholesky_inverse(torch.linalg.cholesky(matrix)).float()

    def _gradient(self, users: Tensor, owner: Tensor, columns: Tensor) -> Tensor:
        """(B, K) gradient of the loss of users (B, K) whose clicks are (owner, column)."""
        slopes = _slopes(users @ self.factors.T, owner, columns, self.labels, self.loss)
        return slopes @ self.factors + 2 * self.l2 * users

    def _alternate(self, clicks: Any, users: Tensor, items: Tensor) -> tuple[Tensor, Tensor]:
        """Solve for users and items in turns, each exactly."""
        weighted = clicks.multiply(self.labels.numpy()[None, :]).tocsr().astype(np.float32)
        transposed = weighted.T.tocsr()
        with Progress(self.steps or 30, "Rel-MF", "iterations") as progress:
            for _ in range(self.steps or 30):
                users = torch.from_numpy(weighted @ items.numpy()) @ self._inverse(items)
                items = torch.from_numpy(transposed @ users.numpy()) @ self._inverse(users)
                progress.advance(1)
        return users, items

    def _descend(self, clicks: Any, users: Tensor, items: Tensor) -> tuple[Tensor, Tensor]:
        """Adam on the exact gradient."""
        factors = (users, items)
        moments = [(torch.zeros_like(one), torch.zeros_like(one)) for one in factors]
        with Progress(self.steps or 300, "Rel-MF", "steps") as progress:
            for step in range(1, (self.steps or 300) + 1):
                for value, (mean, square), gradient in zip(
                    factors, moments, gradients(clicks, *factors, self.labels, self.loss, self.l2), strict=True
                ):
                    mean.lerp_(gradient, 1 - BETAS[0])
                    square.mul_(BETAS[1]).addcmul_(gradient, gradient, value=1 - BETAS[1])
                    scale = (square / (1 - BETAS[1] ** step)).sqrt_().add_(EPSILON)
                    value.addcdiv_(mean, scale, value=-self.learning_rate / (1 - BETAS[0] ** step))
                progress.advance(1)
        return factors


def gradients(
    clicks: Any, users: Tensor, items: Tensor, labels: Tensor, loss: str, l2: float, chunk: int | None = None
) -> tuple[Tensor, Tensor]:
    """Gradients (U, K) and (N, K) of the loss over all pairs plus l2 (|P|^2 + |Q|^2), ``chunk`` users at a time."""
    chunk = _chunk(len(items)) if chunk is None else chunk
    to_users, to_items = 2 * l2 * users, 2 * l2 * items
    for first in range(0, len(users), chunk):
        part = slice(first, min(first + chunk, len(users)))
        rows = clicks[part]
        owner = torch.from_numpy(np.repeat(np.arange(rows.shape[0]), np.diff(rows.indptr)))
        columns = torch.from_numpy(rows.indices.astype(np.int64))
        slopes = _slopes(users[part] @ items.T, owner, columns, labels, loss)
        to_users[part] += slopes @ items
        to_items += slopes.T @ users[part]
    return to_users, to_items


def _chunk(num_items: int) -> int:
    return max(min(1024, SCORES // max(num_items, 1)), 1)


def _slopes(scores: Tensor, owner: Tensor, columns: Tensor, labels: Tensor, loss: str) -> Tensor:
    """(b, N) derivative of the loss by each score; ``scores`` are overwritten."""
    weights = labels[columns]
    if loss == "squared":
        return scores.mul_(2.0).index_put_((owner, columns), -2 * weights, accumulate=True)
    share = scores.sigmoid_()
    if loss == "logistic":
        return share.index_put_((owner, columns), -weights, accumulate=True)
    clicked = share[owner, columns]
    slopes = share.square().mul_(1 - share).mul_(2.0)  # of x^2: 2 x times x (1 - x)
    return slopes.index_put_((owner, columns), -2 * weights * clicked * (1 - clicked), accumulate=True)
