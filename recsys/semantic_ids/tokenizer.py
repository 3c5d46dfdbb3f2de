"""What turns item vectors into tuples of codes.

Legend: n vectors to fit on, N vectors to encode, F their width, M levels, K_m codes of level m, d width of a codeword.
A tokenizer is a plain object that keeps its constructor arguments as attributes of the same names (that is how the
manifest of :class:`~recsys.semantic_ids.table.SemanticIds` names it). Three things are optional: ``decode(codes (N, M))
-> (N, F)`` float32, the vectors that codes stand for, from which the reconstruction error is told; ``facts``, a dict
of plain values, which the manifest keeps; and ``reads_vectors = False``, of one that only wants to know how many there
are.
"""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

import numpy as np

from recsys.errors import DataError
from recsys.randomness import numpy_generator

_FIRST = 1 << 13  # vectors looked at before all are


@runtime_checkable
class Tokenizer(Protocol):
    """A way to make codes of vectors.

    ``ordered`` says whether a code means something only after those before it (residual codes), or each by itself
    (product codes); ``sizes`` and ``codewords`` are known once it is fitted.
    """

    ordered: bool

    @property
    def sizes(self) -> tuple[int, ...]:
        """(M,): codes per level."""
        ...

    @property
    def codewords(self) -> list[np.ndarray] | None:
        """Per level the (K_m, d) vectors that its codes stand for, or None."""
        ...

    def fit(self, vectors: np.ndarray, seed: int) -> None:
        """Learn from ``vectors`` (n, F) float32; the same vectors and seed give the same codes.

        Raises:
            DataError: there are fewer different vectors than codes.
        """
        ...

    def encode(self, vectors: np.ndarray) -> np.ndarray:
        """(N, M) int32 codes of ``vectors`` (N, F) float32."""
        ...


def decoded(tokenizer: Any, codes: np.ndarray) -> np.ndarray | None:
    """(N, F): the vectors that ``codes`` (N, M) stand for, None where the tokenizer cannot tell."""
    decode = getattr(tokenizer, "decode", None)
    return None if decode is None else decode(codes)


def check_shape(levels: int, size: int) -> None:
    """Raise ValueError unless there is at least one level, of at least two codes."""
    if levels < 1 or size < 2:
        raise ValueError(f"levels must be at least 1 and size at least 2, found {levels} and {size}")


def check_fitted(learned: bool) -> None:
    """Raise ValueError unless a tokenizer has ``learned`` its codes."""
    if not learned:
        raise ValueError(
            "this tokenizer has learned no codes yet: call fit(vectors, seed) first (make_semantic_ids does not where "
            "it opens codes that it has made before)"
        )


def check_distinct(vectors: np.ndarray, size: int, what: str) -> None:
    """Raise DataError if ``vectors`` (n, F) are fewer different ones than ``size`` codes; ``what`` names them."""
    if len(np.unique(vectors[:_FIRST], axis=0)) >= size:
        return
    if (different := len(np.unique(vectors, axis=0))) < size:
        raise DataError(
            f"{what}: there are only {different:,} different ones among {len(vectors):,}, for {size:,} codes: ask for "
            f"a size of at most {different:,}, or for fewer levels"
        )


def sampled(vectors: np.ndarray, most: int, seed: int) -> np.ndarray:
    """(min(n, most), F) float32: ``vectors`` (n, F), or so many of them, drawn by ``seed``, in their order."""
    if len(vectors) > most:
        vectors = vectors[np.sort(numpy_generator(seed, "vectors to fit on").choice(len(vectors), most, replace=False))]
    return np.ascontiguousarray(vectors, np.float32)
