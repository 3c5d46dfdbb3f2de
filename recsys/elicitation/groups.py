"""Taste groups: a mixture of answers, the group that a conversation points to, and what a question would tell of it.

    P[a, g, i]  = (sum_u z_ug [A_ui = a] + 10 b_ai) / (sum_u z_ug + 10)     b_a = .98 x overall share + .02 / 3
    z_ug        ~ pi_g exp(fit_temper x sum_i log P[A_ui, g, i])
    post_g      ~ pi_g exp(temper x sum over asked i of log P[a_i, g, i])
    gain_i      = H(sum_g post_g P[., g, i]) - sum_g post_g H(P[., g, i])   >= 0, in nats

Expected information gain about the group is the classical choice of the next question (Lindley 1956); the mixture is
that of latent classes, fitted by EM. Tempering keeps memberships soft: over hundreds of items the product of
probabilities makes each user one-hot, later posteriors with them, and every gain near 0.

Legend: U users, I items, G groups, Q items of the pool, B conversations; answers a: unknown, like, dislike.
"""

from __future__ import annotations

import numpy as np
from scipy.special import softmax, xlogy

from recsys.elicitation.opinions import DISLIKE, LIKE, UNKNOWN, Opinions
from recsys.progress import Progress
from recsys.randomness import numpy_generator

PSEUDO = 10.0  # users that each group is given of the average one
TINY = 1e-12
MANY = 1000  # items beyond which the evidence of a user is tempered more


class Groups:
    """G tables of answers.

    Args:
        pi: (G,) share of users.
        tables: (3, G, I) probability of unknown, like and dislike.
        temper: of the evidence of a conversation.

    Raises:
        ValueError: these are not distributions.
    """

    def __init__(self, pi: np.ndarray, tables: np.ndarray, temper: float = 0.5) -> None:
        sums = tables.sum(0)
        if tables.ndim != 3 or len(tables) != 3 or tables.shape[1] != len(pi) or not np.allclose(sums, 1.0, atol=1e-3):
            raise ValueError(f"expected (G,) shares and (3, G, I) distributions; found {pi.shape} and {tables.shape}")
        self.pi, self.tables, self.temper = np.asarray(pi, np.float32), np.asarray(tables, np.float32), temper
        self._log = np.log(np.maximum(self.tables, TINY))

    @classmethod
    def fit(
        cls,
        opinions: Opinions,
        items: np.ndarray | None = None,
        groups: int = 64,
        iterations: int = 30,
        temper: float = 0.5,
        seed: int = 0,
        progress: bool = True,
    ) -> Groups:
        """EM over the answers of all users about ``items`` (columns; None: all of them).

        Raises:
            ValueError: no group, or no iteration.
        """
        if groups < 1 or iterations < 1:
            raise ValueError(f"expected at least one group and one iteration, found {groups} and {iterations}")
        likes, dislikes = opinions.likes, opinions.dislikes
        if items is not None:
            likes, dislikes = likes[:, items], dislikes[:, items]
        users, size = likes.shape
        shares = np.stack([np.zeros(size), np.asarray(likes.sum(0)).ravel(), np.asarray(dislikes.sum(0)).ravel()])
        shares /= users
        shares[UNKNOWN] = 1.0 - shares.sum(0)
        floor = (0.98 * shares + 0.02 / 3)[:, None, :]
        fit_temper = 0.3 if size <= MANY else 0.1
        z = numpy_generator(seed, "groups").dirichlet(np.full(groups, 0.3), users).astype(np.float32)
        with Progress(iterations, f"groups of {users:,} users", "iterations", enabled=progress) as bar:
            for _ in range(iterations):
                mass = z.sum(0)
                tables = np.empty((3, groups, size), np.float32)
                tables[LIKE], tables[DISLIKE] = (likes.T @ z).T, (dislikes.T @ z).T
                tables[UNKNOWN] = mass[:, None] - tables[LIKE] - tables[DISLIKE]
                tables = (np.maximum(tables, 0.0) + PSEUDO * floor) / (mass[:, None] + PSEUDO)
                log = np.log(tables)
                evidence = likes @ (log[LIKE] - log[UNKNOWN]).T + dislikes @ (log[DISLIKE] - log[UNKNOWN]).T
                evidence = np.asarray(evidence) + log[UNKNOWN].sum(1)
                pi = (mass + 1e-3) / (mass + 1e-3).sum()
                z = softmax(np.log(pi) + fit_temper * evidence, 1).astype(np.float32)
                bar.advance(1)
        tables = tables / tables.sum(0)
        return cls(pi, tables, temper)

    def of(self, items: np.ndarray) -> Groups:
        """The same groups over some of the items."""
        return Groups(self.pi, self.tables[:, :, items], self.temper)

    def posterior(self, answers: np.ndarray) -> np.ndarray:
        """(B, G) float: the group after ``answers`` (B, I); "unknown" counts as evidence."""
        evidence = np.zeros((len(answers), len(self.pi)), np.float32)
        for kind in (UNKNOWN, LIKE, DISLIKE):
            evidence += (answers == kind).astype(np.float32) @ self._log[kind].T
        return np.asarray(softmax(np.log(np.maximum(self.pi, TINY)) + self.temper * evidence, 1))

    def predicted(self, answers: np.ndarray) -> np.ndarray:
        """(3, B, I): the probability of each answer to a question about each item."""
        return np.asarray(np.einsum("bg,agi->abi", self.posterior(answers), self.tables, optimize=True))

    def tensors(self) -> dict[str, np.ndarray]:
        """Shares and tables."""
        return {"pi": self.pi, "tables": self.tables, "temper": np.array([self.temper], np.float32)}


class GroupGain:
    """The question whose answer tells most about the group.

    Args:
        groups: over the items of the pool.
    """

    adaptive = True

    def __init__(self, groups: Groups) -> None:
        self.groups = groups
        self._within = -xlogy(groups.tables, groups.tables).sum(0)  # (G, Q)

    def gains(self, answers: np.ndarray) -> np.ndarray:
        """(B, Q) mutual information of answer and group, in nats."""
        post = self.groups.posterior(answers)
        mixed = np.einsum("bg,agi->abi", post, self.groups.tables, optimize=True)
        return np.maximum(-xlogy(mixed, mixed).sum(0) - post @ self._within, 0.0)

    def tensors(self) -> dict[str, np.ndarray]:
        """Those of its groups."""
        return self.groups.tensors()


class Probable:
    """The item that is most probably liked, given the answers: exploits, and hardly explores.

    Args:
        groups: over the items of the pool.
    """

    adaptive = True

    def __init__(self, groups: Groups) -> None:
        self.groups = groups

    def gains(self, answers: np.ndarray) -> np.ndarray:
        """(B, Q) probability of a like."""
        return np.asarray(self.groups.posterior(answers) @ self.groups.tables[LIKE])

    def tensors(self) -> dict[str, np.ndarray]:
        """Those of its groups."""
        return self.groups.tensors()
