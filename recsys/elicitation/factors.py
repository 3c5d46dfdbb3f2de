"""Linear experimental design: the question that narrows the vector of a user most, times the chance of an answer.

    gain_i = k_i x 1/2 log(1 + v_i' S v_i / s2)

with k_i the share of users who know item i, v_i its vector from the singular value decomposition of the centred
answers (+1 like, -1 dislike, 0 unknown), scaled by singular value / sqrt(U), prior N(0, I) of the user's vector, S its
posterior covariance and s2 the residual variance, at least .05. "Unknown" tells nothing here.

Legend: Q items of the pool, B conversations, D width.
"""

from __future__ import annotations

import numpy as np

from recsys.elicitation.opinions import DISLIKE, LIKE, Opinions

FLOOR = 0.05


class FactorGain:
    """Expected information about a user's vector.

    Args:
        vectors: (Q, D). known: (Q,) share of users who know each item. variance: of an answer around its mean.
    """

    adaptive = True

    def __init__(self, vectors: np.ndarray, known: np.ndarray, variance: float) -> None:
        self.vectors, self.known = np.asarray(vectors, np.float64), np.asarray(known, np.float64)
        self.variance = float(variance)
        self._outer = np.einsum("qd,qe->qde", self.vectors, self.vectors)

    @classmethod
    def fit(cls, opinions: Opinions, pool: np.ndarray, dim: int = 16) -> FactorGain:
        """From the answers of training users about the columns of ``pool``."""
        users = opinions.num_users
        likes, dislikes = opinions.likes[:, pool], opinions.dislikes[:, pool]
        signs = (likes - dislikes).astype(np.float64)
        mean = np.asarray(signs.sum(0)).ravel() / users
        gram = np.asarray((signs.T @ signs).todense()) / users - np.outer(mean, mean)
        values, vectors = np.linalg.eigh(gram)
        kept = slice(max(len(values) - dim, 0), None)
        scaled = vectors[:, kept] * np.sqrt(np.maximum(values[kept], 0.0))
        left = max(float(np.trace(gram) - values[kept].sum()) / len(pool), FLOOR)
        known = np.asarray((likes + dislikes).sum(0)).ravel() / users
        return cls(scaled, known, left)

    def covariance(self, answers: np.ndarray) -> np.ndarray:
        """(B, D, D): the posterior covariance of each user's vector, (I + V'V / s2)^-1 over what was known."""
        told = ((answers == LIKE) | (answers == DISLIKE)).astype(np.float64)
        dim = self.vectors.shape[1]
        precision = (told @ self._outer.reshape(len(self.vectors), -1)).reshape(-1, dim, dim) / self.variance
        return np.asarray(np.linalg.inv(np.eye(dim) + precision))

    def gains(self, answers: np.ndarray) -> np.ndarray:
        """(B, Q) nats."""
        spread = np.einsum("qd,bde,qe->bq", self.vectors, self.covariance(answers), self.vectors, optimize=True)
        return np.asarray(self.known * 0.5 * np.log1p(np.maximum(spread, 0.0) / self.variance))

    def tensors(self) -> dict[str, np.ndarray]:
        """Vectors, shares and variance."""
        return {"vectors": self.vectors, "known": self.known, "variance": np.array([self.variance])}
