"""Intervals and tests over users: percentile bootstrap, paired sign-flip test, Holm's correction.

All are seeded and run over a million users in seconds: small samples are resampled, large ones use the limit of the
same resampling in closed form. Legend: n users, M columns of numbers, R resamples.
"""

from __future__ import annotations

import math
from statistics import NormalDist

import numpy as np

from recsys.randomness import numpy_generator

RESAMPLES = 2000
RESAMPLED_USERS = 20_000  # from here up the bootstrap distribution of a mean is taken in closed form
FLIPS = 9_999
FLIPPED_USERS = 10_000  # from here up the distribution under sign flips is taken as normal
ENUMERATED_USERS = 16  # up to here all 2^n sign patterns are enumerated
_BLOCK = 1 << 21  # random numbers drawn at once


def bootstrap_interval(values: np.ndarray, level: float = 0.95, seed: int = 0, stream: str = "") -> np.ndarray:
    """(M, 2): the percentile bootstrap interval of each column mean of ``values`` (n, M), users drawn with replacement.

    Up to ``RESAMPLED_USERS`` users it is resampled. Beyond, the quantiles of the bootstrap distribution follow from
    its variance, skewness and kurtosis (Cornish and Fisher 1938), which agrees with resampling to less than the
    noise of the resampling. One user gives an interval of no width, none gives NaN.
    """
    users, columns = values.shape
    if users == 0:
        return np.full((columns, 2), np.nan)
    tails = ((1 - level) / 2, (1 + level) / 2)
    if users > RESAMPLED_USERS:
        return np.stack([_cornish_fisher(values, NormalDist().inv_cdf(tail)) for tail in tails], axis=1)
    generator = numpy_generator(seed, "bootstrap", stream)
    means = np.empty((RESAMPLES, columns))
    size = max(1, _BLOCK // users)
    for start in range(0, RESAMPLES, size):
        drawn = min(size, RESAMPLES - start)
        index = generator.integers(0, users, size=(drawn, users)) + np.arange(drawn)[:, None] * users
        weights = np.bincount(index.ravel(), minlength=drawn * users).reshape(drawn, users)
        means[start : start + drawn] = weights.astype(np.float64) @ values / users
    return np.quantile(means, tails, axis=0).T


def sign_flip_test(differences: np.ndarray, seed: int = 0, stream: str = "") -> list[tuple[float, str]]:
    """(p, how) per column of paired ``differences`` (n, M): the two-sided randomisation test of a mean of zero.

    Under the null hypothesis each user's difference could as well have the other sign. Users without a difference
    say nothing and are left out. ``how`` is "exact" (all sign patterns), "sampled" (``FLIPS`` random patterns,
    p = (1 + as extreme) / (1 + patterns)) or "normal" (the limit, for many users).
    """
    results: dict[int, tuple[float, str]] = {}
    sampled = []
    for column in range(differences.shape[1]):
        nonzero = differences[:, column][differences[:, column] != 0]
        if len(nonzero) <= ENUMERATED_USERS:
            results[column] = (_enumerate_flips(nonzero), "exact")
        elif len(nonzero) > FLIPPED_USERS:
            z = abs(nonzero.sum()) / math.sqrt(float((nonzero**2).sum()))
            results[column] = (math.erfc(z / math.sqrt(2)), "normal")
        else:
            sampled.append(column)
    if sampled:
        for column, p in zip(sampled, _sample_flips(differences[:, sampled], seed, stream), strict=True):
            results[column] = (float(p), "sampled")
    return [results[column] for column in range(differences.shape[1])]


def holm(p: np.ndarray) -> np.ndarray:
    """p-values adjusted so that the chance of any false rejection in the family stays at the level (Holm 1979).

    >>> [round(float(value), 3) for value in holm(np.array([0.01, 0.04, 0.03]))]
    [0.03, 0.06, 0.06]
    """
    order = np.argsort(p, kind="stable")
    scaled = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    adjusted = np.empty(len(p))
    adjusted[order] = np.minimum(scaled, 1.0)
    return adjusted


def _cornish_fisher(values: np.ndarray, z: float) -> np.ndarray:
    """(M,) the quantile at normal score ``z`` of the mean of n draws with replacement from each column."""
    users, mean = len(values), values.mean(axis=0)
    result = np.empty(values.shape[1])
    for column in range(values.shape[1]):  # one column at a time: no copy of the whole table
        centred = values[:, column] - mean[column]
        squared = centred**2
        variance = squared.mean()
        if variance == 0:
            result[column] = mean[column]
            continue
        skew = (squared @ centred) / users / variance**1.5 / math.sqrt(users)
        excess = ((squared @ squared) / users / variance**2 - 3) / users
        score = z + skew * (z * z - 1) / 6 + excess * (z**3 - 3 * z) / 24 - skew**2 * (2 * z**3 - 5 * z) / 36
        result[column] = mean[column] + score * math.sqrt(variance / users)
    return result


def _enumerate_flips(nonzero: np.ndarray) -> float:
    sums = np.zeros(1)
    for value in nonzero:
        sums = np.concatenate([sums + value, sums - value])
    return float((np.abs(sums) >= _reached(nonzero)).mean())


def _sample_flips(differences: np.ndarray, seed: int, stream: str) -> np.ndarray:
    rows = np.flatnonzero((differences != 0).any(axis=1))
    differences = differences[rows]
    users, total = len(rows), differences.sum(axis=0)
    reached = np.array([_reached(differences[:, column]) for column in range(differences.shape[1])])
    generator, extreme = numpy_generator(seed, "sign flips", stream), np.zeros(differences.shape[1], dtype=np.int64)
    size = max(1, _BLOCK // users)
    for start in range(0, FLIPS, size):
        drawn = min(size, FLIPS - start)
        drawn_bytes = generator.integers(0, 256, size=(drawn, -(-users // 8)), dtype=np.uint8)
        heads = np.unpackbits(drawn_bytes, axis=1, count=users).astype(np.float64)
        sums = 2 * (heads @ differences) - total
        extreme += (np.abs(sums) >= reached).sum(axis=0)
    return (1 + extreme) / (1 + FLIPS)


def _reached(differences: np.ndarray) -> float:
    """The observed |sum|, less what rounding may take from an equal one."""
    return float(abs(differences.sum()) - 1e-9 * np.abs(differences).sum())
