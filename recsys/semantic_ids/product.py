"""Product quantisation: the vector is cut into M pieces, each with its own codebook; codes have no order.

Jégou et al., "Product quantization for nearest neighbor search", TPAMI 2011; rotated: Ge et al., "Optimized product
quantization", CVPR 2013 (the non-parametric solution). RPG (Hou et al., KDD 2025) names items by 16 to 64 such codes.
FAISS does the k-means of a piece; its own OPQ takes sizes that are powers of two only, so the alternation of codes and
rotation is here. A code is the nearest centroid of its piece in L2, and nothing renames codes afterwards.

Before the cut, vectors are turned to their principal components and (``whiten``) scaled to variance 1 each: else the
first pieces would carry all of the variance and the last ones noise of no weight. A rotation evens that out as well.

Legend: n vectors, F width, W width after the components, M levels (pieces), d = W / M, K codes per level.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from recsys.errors import DataError
from recsys.index.clusters import MOST_POINTS, kmeans, nearest_centroid
from recsys.progress import saying
from recsys.randomness import derive_seed, numpy_generator
from recsys.semantic_ids.tokenizer import check_distinct, check_fitted, check_shape, sampled

COMPONENTS = 128  # that are kept by default, or a multiple of M near it
_SMALLEST = 1e-6  # variance of a component, relative to the largest, that counts
_CHUNK = 1 << 14


class ProductQuantiser:
    """Unordered codes: each describes the item by itself.

    Use when: all codes are predicted at once (RPG), or read as features.
    Prefer instead: :class:`~recsys.semantic_ids.residual.ResidualKMeans` where codes are generated one after another.

    Args:
        levels: M.
        size: K.
        rotate: learn a rotation with the codebooks (OPQ); better codes, and ``rounds`` times the work.
        iterations: of k-means, per piece.
        rounds: alternations of rotation and codebooks, if rotated.
        whiten: scale the principal components to variance 1.
        width: W, the principal components that are kept, a multiple of ``levels``; None: the largest one up to 128 (or
            ``levels``, if that is more) that the vectors have.
        fields: parts of equal width that the vectors are made of, such as one of the title and one of the categories:
            each has components and ``levels / fields`` codes of its own, so that a code is about one of them (as
            CCFRec has it).

    Raises:
        ValueError: a number out of range, or ``levels`` is no multiple of ``fields``, or these are to be rotated.
    """

    ordered = False

    def __init__(
        self,
        levels: int = 32,
        size: int = 256,
        rotate: bool = False,
        iterations: int = 25,
        rounds: int = 10,
        whiten: bool = True,
        width: int | None = None,
        fields: int = 1,
    ) -> None:
        check_shape(levels, size)
        if iterations < 1 or rounds < 1:
            raise ValueError(f"iterations and rounds must be at least 1, found {iterations} and {rounds}")
        if width is not None and (width < levels or width % levels):
            raise ValueError(
                f"width must be a multiple of levels={levels}, so that the pieces are equal; found {width}"
            )
        if fields < 1 or levels % fields:
            raise ValueError(f"levels must be a multiple of fields, at least 1; found {levels} and {fields}")
        if fields > 1 and rotate:
            raise ValueError("a rotation mixes the fields: leave out rotate, or fields")
        self.levels, self.size, self.rotate, self.iterations, self.rounds = levels, size, rotate, iterations, rounds
        self.whiten, self.width, self.fields = whiten, width, fields
        self._mean = self._into = self._back = np.zeros(0, np.float32)  # (F,), (F, W), (W, F)
        self._centroids = np.zeros((0, 0, 0), np.float32)  # (M, K, d)

    @property
    def sizes(self) -> tuple[int, ...]:
        """(M,): codes per level."""
        return (self.size,) * self.levels

    @property
    def codewords(self) -> list[np.ndarray] | None:
        """(K, d) centroids of each piece."""
        return list(self._centroids) or None

    def fit(self, vectors: np.ndarray, seed: int) -> None:
        """Learn components, rotation and centroids of ``vectors`` (n, F).

        Raises:
            DataError: fewer components than levels or ``width``, or fewer different pieces than codes.
        """
        points = sampled(vectors, self.size * MOST_POINTS, seed)
        self._components(points)
        rotation = self._rotation(points, seed) if self.rotate else None
        if rotation is not None:
            self._into, self._back = self._into @ rotation, rotation.T @ self._back
        pieces = self._pieces(points)
        for level, piece in enumerate(pieces):
            check_distinct(piece, self.size, f"piece {level + 1} of the vectors")
        with saying(f"k-means of {self.levels} pieces of the vectors"):
            self._centroids = self._books(pieces, self.iterations, seed)

    def encode(self, vectors: np.ndarray) -> np.ndarray:
        """(N, M) int32 codes of ``vectors`` (N, F)."""
        check_fitted(len(self._centroids) > 0)
        codes = np.empty((len(vectors), self.levels), np.int32)
        for first in range(0, len(vectors), _CHUNK):
            pieces = self._pieces(np.asarray(vectors[first : first + _CHUNK], np.float32))
            codes[first : first + _CHUNK] = _codes(pieces, self._centroids)
        return codes

    def decode(self, codes: np.ndarray) -> np.ndarray:
        """(N, F) float32: the centroids put together and turned back."""
        return _joined(codes, self._centroids) @ self._back + self._mean

    def _components(self, points: np.ndarray) -> None:
        """Learn mean and principal components of ``points`` (n, F), of each field by itself."""
        if points.shape[1] % self.fields:
            raise DataError(
                f"vectors of {self.fields} fields of equal width are needed, found {points.shape[1]} numbers"
            )
        self._mean = points.mean(0)
        found = [self._axes(part) for part in np.split(points - self._mean, self.fields, axis=1)]
        width = min(len(scale) for _, scale in found)  # fields may vary in fewer directions than others
        self._into = _diagonal([(basis / scale)[:, :width] for basis, scale in found])
        self._back = _diagonal([(basis * scale)[:, :width].T for basis, scale in found])

    def _axes(self, centred: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Principal axes (F', W') of a field, ``centred`` (n, F'), and what each is divided by (W',)."""
        centred = centred.astype(np.float64)
        values, basis = np.linalg.eigh(centred.T @ centred / len(centred))
        values, basis = values[::-1], basis[:, ::-1]
        levels, wanted = self.levels // self.fields, None if self.width is None else self.width // self.fields
        found = int((values > _SMALLEST * max(values[0], 1e-30)).sum())
        if not found:
            raise DataError(
                "all vectors are alike, so codes cannot tell the items apart: give items texts of their own"
            )
        width = min(found, max(COMPONENTS, levels)) // levels * levels if wanted is None else wanted
        if width < levels or width > found:
            raise DataError(
                f"the vectors have {found:,} components that vary, {max(width, levels):,} are asked for: ask for "
                f"at most {found:,} levels, and a width that is not larger"
            )
        signs = np.sign(basis[np.abs(basis).argmax(0), np.arange(len(basis))])  # known up to its sign
        return (basis * signs)[:, :width], np.sqrt(values[:width]) if self.whiten else np.ones(width)

    def _rotation(self, points: np.ndarray, seed: int) -> np.ndarray:
        """(W, W) orthogonal: what makes the error of the codes small, by turns with the codebooks."""
        turned = (points - self._mean) @ self._into
        width = turned.shape[1]
        rotation = np.linalg.qr(numpy_generator(seed, "rotation").standard_normal((width, width)))[0]
        books: np.ndarray | None = None
        with saying(f"rotation and codebooks by turns, {self.rounds} times"):
            for _ in range(self.rounds):
                pieces = _cut(turned @ rotation.astype(np.float32), self.levels)
                books = self._books(pieces, 4, seed, books)
                nearest = _joined(_codes(pieces, books), books)
                left, _, right = np.linalg.svd(turned.T.astype(np.float64) @ nearest)
                rotation = left @ right
        return rotation.astype(np.float32)

    def _books(self, pieces: np.ndarray, iterations: int, seed: int, start: np.ndarray | None = None) -> np.ndarray:
        """(M, K, d) centroids of ``pieces`` (M, n, d)."""
        return np.stack(
            [
                kmeans(
                    piece,
                    self.size,
                    iterations,
                    derive_seed(seed, "piece", level),
                    None if start is None else start[level],
                )
                for level, piece in enumerate(pieces)
            ]
        )

    def _pieces(self, vectors: np.ndarray) -> np.ndarray:
        """(M, n, d) of ``vectors`` (n, F)."""
        return _cut((vectors - self._mean) @ self._into, self.levels)


def _diagonal(blocks: Sequence[np.ndarray]) -> np.ndarray:
    """float32: the blocks along the diagonal, zeros elsewhere."""
    rows, columns = np.cumsum([[0, 0], *(one.shape for one in blocks)], axis=0).T
    found = np.zeros((rows[-1], columns[-1]), np.float32)
    for block, row, column in zip(blocks, rows, columns, strict=False):
        found[row : row + block.shape[0], column : column + block.shape[1]] = block
    return found


def _cut(turned: np.ndarray, levels: int) -> np.ndarray:
    """(M, n, d) of (n, W)."""
    return np.ascontiguousarray(turned.reshape(len(turned), levels, -1).transpose(1, 0, 2))


def _codes(pieces: np.ndarray, books: np.ndarray) -> np.ndarray:
    """(n, M) int32: of each of ``pieces`` (M, n, d) the nearest of ``books`` (M, K, d)."""
    return np.stack([nearest_centroid(piece, book) for piece, book in zip(pieces, books, strict=True)], axis=1)


def _joined(codes: np.ndarray, books: np.ndarray) -> np.ndarray:
    """(n, W): the centroids of ``codes`` (n, M) side by side."""
    return np.concatenate([book[codes[:, level]] for level, book in enumerate(books)], axis=1)
