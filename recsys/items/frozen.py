"""Items as another trained recommender has them, for models that are built on it (SLMRec's teacher and student).

Legend: N items (rows 1..N, 0 is padding), D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recsys.errors import DataError
from recsys.ids.saved_vectors import saved_vectors
from recsys.ids.vectors import Vectors
from recsys.items.local import LocalItems
from recsys.items.rows import no_row, rows_for
from recsys.protocols import Context


class FrozenItems(LocalItems):
    """Item vectors that are not trained, the same at the input and the output, found by raw id.

    They are saved with the model, so a loaded one does not need the folder.

    Args:
        run: folder of a run whose table is ``IdItems`` (if untied: its output vectors) or this one, of a bundle with an
            index, or of :class:`recsys.ids.vectors.Vectors` (any other recommender:
            ``Vectors.of(ids, model.item_vectors())``).
        dim: width D; read from the folder if None.
        scale: multiply input vectors by sqrt(D); the vectors of a SASRec were read like that when it was trained.
        extra: input-only rows behind the items (a mask, an end token) at least: learned, never scored. A recommender
            asks for those that its parts need.

    Raises:
        FileNotFoundError: there is no such folder.
        DataError: it holds no item vectors.
    """

    weight: Tensor
    _learns_rows = True

    def __init__(self, run: str = "", dim: int | None = None, scale: bool = False, extra: int = 0) -> None:
        super().__init__()
        if not run:
            raise ValueError("run must name the folder of a trained run, a bundle or vectors")
        dim = saved_vectors(run).width if dim is None else dim
        if dim < 1 or extra < 0:
            raise ValueError(f"dim must be at least 1, extra at least 0; found {dim} and {extra}")
        self.run, self.dim, self.scale, self.extra = str(run), dim, scale, extra
        self.num_items = 0
        self.register_buffer("weight", torch.zeros(0, dim))
        self.rows = nn.Parameter(torch.empty(extra, dim)) if extra else None

    def bind(self, context: Context) -> None:
        """Take the vectors of the catalogue (a loaded model: of the saved tensors).

        Raises:
            DataError: the folder has other items than the data.
            ValueError: its vectors are not ``dim`` wide.
        """
        self.num_items = context.num_items
        self.weight = torch.zeros(1 + self.num_items, self.dim)
        if context.training is not None:
            self.weight = self._aligned(context)
        self.rows = nn.Parameter(torch.empty(self.extra, self.dim)) if self.extra else None
        if self.rows is not None:
            nn.init.normal_(self.rows, std=0.02)

    def sources(self) -> str:
        """Hash of the vectors: after another training of their run this is another run."""
        return saved_vectors(self.run).digest()

    def embed(self, ids: Tensor) -> Tensor:
        """Input vectors (..., D) of item rows (...).

        Raises:
            ValueError: there is no such row (on the CPU; a GPU ends with an error of its own).
        """
        vectors = self.output(ids)
        return vectors * self.dim**0.5 if self.scale else vectors

    def output(self, ids: Tensor) -> Tensor:
        """Output vectors (..., D) of item rows (...), input-only ones too (an end token is scored by its editor).

        Raises:
            ValueError: there is no such row (on the CPU; a GPU ends with an error of its own).
        """
        try:
            if self.rows is None:
                return F.embedding(ids, self.weight)
            behind = ids > self.num_items
            own = F.embedding((ids - self.num_items - 1).clamp(min=0), self.rows)
            return torch.where(behind[..., None], own, F.embedding(ids.masked_fill(behind, 0), self.weight))
        except IndexError as error:
            raise no_row(ids, self.num_items, self.extra) from error

    def _vectors(self, rows: slice) -> Tensor:
        return self.weight[rows]

    def add_items(self, ids: Sequence[Any], vectors: Any = None, features: Any = None) -> None:
        """Rows for further items behind those there are, from ``vectors``, or if that is something else (of another
        table) from the own folder.

        Raises:
            DataError: an item has no vector there.
            ValueError: the vectors are not ``dim`` wide.
        """
        more = rows_for(ids, vectors if isinstance(vectors, Vectors) else saved_vectors(self.run), self.dim)
        self.weight = torch.cat([self.weight, torch.from_numpy(more).to(self.weight.device, self.weight.dtype)])
        self.num_items += len(more)

    def _aligned(self, context: Context) -> Tensor:
        if context.vocabulary is None:
            raise ValueError("vectors are found by raw item id, and these data come without a vocabulary of items")
        found = saved_vectors(self.run)
        if found.width != self.dim:
            raise ValueError(f"dim={self.dim}, but the vectors of {self.run} are {found.width} wide: give that number")
        matrix, known = found.aligned(context.vocabulary)
        missing = context.vocabulary.raw((~known[1:]).nonzero()[0][:3] + 1).tolist()
        if missing or len(found) != self.num_items:
            sample = f", {int((~known[1:]).sum()):,} of these data, such as {missing}, are missing" if missing else ""
            raise DataError(
                f"{self.run} has vectors of {len(found):,} items, the data have {self.num_items:,}{sample}: train "
                "it on the same data"
            )
        return torch.from_numpy(matrix)
