"""Items that share all codes: counted, and told apart by one more level.

The appended level numbers the items of a bucket from 0, in the order in which they are given;
:func:`~recsys.semantic_ids.make.make_semantic_ids` gives them by ascending raw id, so that the same items have the
same codes in whatever order the data name them. The level means nothing: it tells items apart.

Legend: N items, M levels.
"""

from __future__ import annotations

import numpy as np

from recsys.errors import DataError


def buckets(codes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of ``codes`` (N, M): which bucket each item is in, (N,) int64, and how many items each bucket has."""
    order = np.lexsort(codes.T[::-1])
    ordered = codes[order]
    new = np.ones(len(codes), bool)
    new[1:] = (ordered[1:] != ordered[:-1]).any(axis=1)
    owner = np.empty(len(codes), np.int64)
    owner[order] = np.cumsum(new) - 1
    return owner, np.bincount(owner)


def appended(codes: np.ndarray, largest: int) -> tuple[np.ndarray, int]:
    """``codes`` (N, M) with one more level, (N, M + 1), and how many codes that has: as many as the largest bucket.

    Raises:
        DataError: a bucket has more than ``largest`` items.
    """
    owner, counts = buckets(codes)
    if counts.max() > largest:
        wide = int((counts > largest).sum())
        shared = codes[owner == counts.argmax()][0].tolist()
        raise DataError(
            f"{counts.max():,} items share the codes {shared} ({wide:,} such buckets), and one more level tells at "
            f"most {largest:,} apart: ask for more levels or a larger size, look for items without a text of their "
            'own, or keep them alike with collisions="keep"'
        )
    order = np.argsort(owner, kind="stable")
    starts = np.cumsum(counts) - counts
    number = np.empty(len(codes), np.int64)
    number[order] = np.arange(len(codes)) - np.repeat(starts, counts)
    return np.concatenate([codes, number[:, None].astype(codes.dtype)], axis=1), int(counts.max())
