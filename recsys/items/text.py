"""Items by what their texts say: frozen text vectors, projected to the width of the encoder.

    output(i) = P(t_i) + b        P linear, or two layers with a GELU; no biases inside, so P(0) = 0

t_i is the text vector of item i; an item without one has t_i = 0 and a learned row instead of b, which all such
items share. The input vector is the same, times sqrt(D) with ``scale``. An item that training never saw is placed by
its text like any other, which is what these tables are for.

Projected text vectors instead of ids are the idea of UniSRec (Hou et al., KDD 2022, arXiv 2206.05941) and of much
since; here it is the plain form: no mixture of experts, no pre-training, input and output tied.

Legend: N items (rows 1..N, 0 is padding), H width of the text vectors, D width.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recsys.errors import DataError
from recsys.ids.vectors import Vectors
from recsys.items.kept import Kept
from recsys.items.local import LocalItems
from recsys.items.rows import no_row, rows_for
from recsys.protocols import Change, Context

PROJECTIONS = ("linear", "mlp")
PRECISIONS = ("float32", "float16")
STD = 0.02  # of a fresh table: that of IdItems(init="normal")
GELU_RMS = 0.65  # root mean square of GELU(x), x ~ N(0, 1)


class TextItems(LocalItems):
    """A vector per item, projected from its text vector, tied: one table for the input and the output.

    The text vectors are saved with the model, so a loaded model ranks without the folder they came from. In training
    the catalogue is projected where an objective asks for all items, once per call, and the items of the input beside
    it, each once per batch. Without gradients in eval mode the projected table is kept for as long as the
    weights stay as they are.

    Args:
        dim: width D.
        vectors: folder of :class:`recsys.ids.vectors.Vectors` by raw item id, such as ``str(embed(split).path)``.
        project: "linear", or "mlp" with a hidden layer of 2 D.
        trainable: train the text vectors too; an item without one then learns its own.
        scale: multiply input vectors by sqrt(D), as ``IdItems`` does.
        normalize: subtract the mean of the catalogue's text vectors and scale each to length 1; else as they are.
        extra: input-only rows behind the items (a mask, an end token) at least: learned, never scored. A recommender
            asks for those that its parts need.
        text_dim: width H; read from the folder if None.
        precision: "float32" or "float16", of the text vectors in memory and in the saved model.

    Raises:
        ValueError: an argument is out of range.
        FileNotFoundError: there is no such folder.
    """

    text: Tensor
    known: Tensor
    _learns_rows = True

    def __init__(
        self,
        dim: int = 64,
        vectors: str = "",
        project: Literal["linear", "mlp"] = "linear",
        trainable: bool = False,
        scale: bool = True,
        normalize: bool = True,
        extra: int = 0,
        text_dim: int | None = None,
        precision: Literal["float32", "float16"] = "float32",
    ) -> None:
        super().__init__()
        if not vectors:
            raise ValueError("vectors must name a folder of text vectors: make one with recsys.llm.embed.embed(split)")
        if project not in PROJECTIONS or precision not in PRECISIONS:
            raise ValueError(
                f"project is one of {PROJECTIONS}, precision of {PRECISIONS}; found {project}, {precision}"
            )
        if trainable and precision != "float32":
            raise ValueError("text vectors that are trained need precision='float32': leave one of the two out")
        text_dim = Vectors.load(vectors).width if text_dim is None else text_dim
        if min(dim, text_dim) < 1 or extra < 0:
            raise ValueError(f"dim and text_dim must be at least 1, extra at least 0; found {dim}, {text_dim}, {extra}")
        self.dim, self.vectors, self.project, self.trainable = dim, str(vectors), project, trainable
        self.scale, self.normalize, self.extra = scale, normalize, extra
        self.text_dim, self.precision = text_dim, precision
        self.num_items = 0
        self.hidden = nn.Linear(text_dim, 2 * dim, bias=False) if project == "mlp" else None
        self.last = nn.Linear(2 * dim if project == "mlp" else text_dim, dim, bias=False)
        self.rows = nn.Parameter(torch.empty(2 + extra, dim))  # b, the row of items without text, the input-only rows
        self.register_buffer("known", torch.zeros(0, dtype=torch.bool))  # (N+1,)
        self._hold(torch.zeros(0, text_dim))
        self._kept: Kept | None = None

    def bind(self, context: Context) -> None:
        """Take the text vectors of the catalogue (a loaded model: of the saved tensors) and initialise the rest.

        Raises:
            DataError: no item has a vector.
            ValueError: the vectors are not ``text_dim`` wide.
        """
        self.num_items, self._kept = context.num_items, None
        self.known = torch.zeros(1 + self.num_items, dtype=torch.bool)
        text = torch.zeros(1 + self.num_items, self.text_dim)
        if context.training is not None:
            text, self.known = self._aligned(context)
            self._tell_missing()
        self._hold(text)
        if self.hidden is not None:
            nn.init.normal_(self.hidden.weight, std=1.0)
        nn.init.normal_(self.last.weight, std=STD if self.hidden is None else STD / GELU_RMS / (2 * self.dim) ** 0.5)
        self.rows = nn.Parameter(torch.empty(2 + self.extra, self.dim))
        nn.init.normal_(self.rows, std=STD)
        nn.init.zeros_(self.rows.data[0])

    def carry(self, before: dict[str, Tensor], change: Change) -> None:
        """Keep the text vectors of the items of before; those of new items are centred by the same mean."""
        if change.same or change.context.training is None:
            return
        text, known = self._aligned(change.context, before["text"][0].float().numpy())
        former = torch.from_numpy(change.items)
        kept = former > 0
        text[kept], known[kept] = before["text"][former[kept]].float(), before["known"][former[kept]]
        with torch.no_grad():
            self.text.copy_(text)
        self.known.copy_(known)

    def sources(self) -> str:
        """Hash of the text vectors: with others this is another run."""
        return Vectors.load(self.vectors).digest()

    def embed(self, ids: Tensor) -> Tensor:
        """Input vectors (..., D) of item rows (...), zero for padding.

        Raises:
            ValueError: there is no such row.
        """
        vectors = self._of(ids)
        return vectors * self.dim**0.5 if self.scale else vectors

    def output(self, ids: Tensor) -> Tensor:
        """Output vectors (..., D) of item rows (...)."""
        return self._of(ids)

    def _vectors(self, rows: slice) -> Tensor:
        table = self._table()
        return self._block(rows) if table is None else table[rows]

    def add_items(self, ids: Sequence[Any], vectors: Any = None, features: Any = None) -> None:
        """Rows for further items behind those there are; their text vectors are in ``vectors``, or if that is something
        else (of another table) in the own folder.

        Raises:
            DataError: an item has no text vector there, or the model was saved by a version that cannot.
            ValueError: the vectors are not ``text_dim`` wide.
        """
        text = rows_for(ids, vectors if isinstance(vectors, Vectors) else Vectors.load(self.vectors), self.text_dim)
        if self.normalize:
            mean = self.text.detach()[0].float().cpu().numpy()
            if not mean.any():
                raise DataError(
                    "this model was saved without the mean of its text vectors, so no further ones can be put beside "
                    "them: train it again"
                )
            text -= mean
            text /= np.maximum(np.linalg.norm(text, axis=1, keepdims=True), 1e-12)
        more = torch.from_numpy(text).to(self.text.device, self.text.dtype)
        self._hold(torch.cat([self.text.detach(), more]))
        self.known = torch.cat([self.known, self.known.new_ones(len(more))])
        self.num_items, self._kept = self.num_items + len(more), None

    def _hold(self, text: Tensor) -> None:
        if self.trainable:
            self.text = nn.Parameter(text)
        else:
            self.register_buffer("text", text.to(getattr(torch, self.precision)))

    def _aligned(self, context: Context, mean: np.ndarray | None = None) -> tuple[Tensor, Tensor]:
        """Text vectors (N+1, H) and which items have one (N+1,), as the folder has them.

        Row 0, which is never read as a text, holds the mean that was subtracted: ``mean`` (H,), unless it is None or
        was not kept (all zero), else that of these items.
        """
        if context.vocabulary is None:
            raise ValueError("text vectors are found by raw item id, and these data come without a vocabulary of items")
        vectors = Vectors.load(self.vectors)
        if vectors.width != self.text_dim:
            raise ValueError(f"text_dim={self.text_dim}, but {self.vectors} is {vectors.width} wide: give that number")
        matrix, known = vectors.aligned(context.vocabulary)
        if self.normalize:
            mean = matrix[known].mean(0) if mean is None or not mean.any() else mean
            matrix[known] -= mean
            matrix /= np.maximum(np.linalg.norm(matrix, axis=1, keepdims=True), 1e-12)
            matrix[0] = mean
        if self.precision == "float16" and (largest := float(np.abs(matrix).max())) > float(np.finfo(np.float16).max):
            raise ValueError(f"float16 does not hold {largest:.4g}: use precision='float32', or normalize=True")
        return torch.from_numpy(matrix), torch.from_numpy(known)

    def _tell_missing(self) -> None:
        there, missing = Vectors.load(self.vectors), self.num_items - int(self.known.sum())
        unused = len(there) - int(self.known.sum())
        if unused:
            print(
                f"text items: {unused:,} of {len(there):,} vectors in {self.vectors} are of no item of these data: "
                "add_items takes such items in later",
                file=sys.stderr,
            )
        if missing:
            line = f"text items: {missing:,} of {self.num_items:,} items have no vector in {self.vectors}"
            doubt = "; are they of other data?" if 2 * missing > self.num_items else ""
            print(f"{line} and share one learned row{doubt}", file=sys.stderr)

    def _project(self, text: Tensor) -> Tensor:
        """(n, D) of text vectors (n, H)."""
        text = text.to(self.last.weight.dtype)
        projected: Tensor = self.last(text if self.hidden is None else F.gelu(self.hidden(text)))
        return projected

    def _block(self, rows: slice) -> Tensor:
        """(n, D) output vectors of consecutive item rows."""
        return self._project(self.text[rows]) + torch.where(self.known[rows, None], self.rows[0], self.rows[1])

    def _of(self, ids: Tensor) -> Tensor:
        """(..., D) of any rows, each row that occurs projected once."""
        table, index = self._table(), ids
        if table is None:
            distinct, index = ids.unique(return_inverse=True)
            if len(distinct) and int(distinct[-1]) > self.num_items + self.extra:
                raise self._no_row(ids)
            table = self._some(distinct)
        try:
            return F.embedding(index, table)
        except IndexError as error:
            raise self._no_row(ids) from error

    def _some(self, ids: Tensor) -> Tensor:
        """(n, D) of rows (n,), padding and the rows behind the items included."""
        item = (ids > 0) & (ids <= self.num_items)
        inner = ids * item  # what is no item has the text vector of padding, zero
        row = torch.where(item, 2 - self.known[inner].long(), (ids - self.num_items + 2).clamp(min=0) * (ids > 0))
        own = torch.cat([self.rows.new_zeros(1, self.dim), self.rows])
        return self._project(F.embedding(inner, self.text)) * item[:, None] + F.embedding(row, own)

    def _table(self) -> Tensor | None:
        """(1 + N + extra, D), where it may be kept: without gradients, in eval mode; None elsewhere."""
        if self.training or torch.is_grad_enabled():
            self._kept = None
            return None
        weights = [value for name, value in self.named_parameters() if name != "text"]
        if self._kept is None or not self._kept.holds(weights, [self.text, self.known]):
            with torch.inference_mode(False), torch.no_grad():
                extra = self.rows[2:]
                whole = [self.rows.new_zeros(1, self.dim), self._block(slice(1, self.num_items + 1)), extra]
                table = torch.cat([part.to(extra.dtype) for part in whole])
                self._kept = Kept(table, weights, [self.text, self.known])
        return self._kept.table

    def _no_row(self, ids: Tensor) -> ValueError:
        return no_row(ids, self.num_items, self.extra)
