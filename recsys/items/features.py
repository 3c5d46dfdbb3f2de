"""Items by their features: categories, several categories and numbers of the item table, as vectors that add up.

    output(i) = sum over columns c of e_c(i)

e_c(i) is a learned vector of the item's category; the mean of those of its categories in a list; of a number x the
learned vector of the column times (x - mean) / deviation, both over the items of the training events; and where the
value is missing, or a category that training did not know, a learned vector of its own. A category that occurs in no
training event begins at zero and adds nothing. The input vector is the same, times sqrt(D) with ``scale``.

An item that training never saw gets its vector from its features like any other. Items with equal features have equal
vectors: put ids beside them, ``SumItems([IdItems(64), FeatureItems({"genre": "category"}, 64)])``. Adding the vectors
of features to those of ids is how feature-aware recommenders begin, such as CARCA (Rashed et al., RecSys 2022) and the
side-information variants of SASRec that RecBole ships (SASRecF concatenates them).

Legend: N items (rows 1..N, 0 is padding), C categories of a column, D width.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recsys.errors import DataError, DataWarning, printable
from recsys.features.column import Column
from recsys.features.features import Features
from recsys.ids.vocabulary import Vocabulary
from recsys.items.kept import Kept
from recsys.items.local import LocalItems
from recsys.items.rows import no_row
from recsys.nn.features import KINDS, read_names, scale_of, write_names
from recsys.protocols import Change, Context

STD = 0.02  # of a fresh table: that of IdItems(init="normal")
FAR = 10.0  # deviations from the mean beyond which a number counts no further


class FeatureItems(LocalItems):
    """A vector per item, of its features in the item table, tied: one table for the input and the output.

    Features and categories are saved with the model, so a loaded one needs no item table. Without gradients in eval
    mode the vectors of all items are kept for as long as the weights stay as they are.

    Args:
        columns: column of the item table -> its kind, "category", "number" or "list", as in ``read_items(kinds=)``.
        dim: width D.
        scale: multiply input vectors by sqrt(D), as ``IdItems`` does.
        extra: input-only rows behind the items (a mask, an end token) at least: learned, never scored. A recommender
            asks for those that its parts need.

    Raises:
        ValueError: no column is named, a kind is none of the three, or a number is out of range.

    Example: ``FeatureItems({"genre": "category", "tags": "list", "price": "number"}, dim=64)``.
    """

    column0: Tensor
    _learns_rows = True

    def __init__(self, columns: Mapping[str, str], dim: int = 64, scale: bool = True, extra: int = 0) -> None:
        super().__init__()
        if not isinstance(columns, Mapping) or not columns:
            raise ValueError(
                'name at least one column and its kind, such as FeatureItems({"genre": "category"}); found '
                f"{columns!r}"
            )
        for name, kind in columns.items():
            if kind not in KINDS:
                raise ValueError(
                    f"the kind of the column {name!r} must be one of {', '.join(KINDS)}, found {kind!r}; texts are for "
                    "TextItems"
                )
        if dim < 1 or extra < 0:
            raise ValueError(f"dim must be at least 1, extra at least 0; found {dim} and {extra}")
        self.columns, self.dim, self.scale, self.extra = dict(columns), dim, scale, extra
        self.num_items = 0
        self._known: dict[str, tuple[Tensor, Vocabulary]] = {}  # categories that were decoded
        self._kept: Kept | None = None
        self.rows = nn.Parameter(torch.empty(extra, dim)) if extra else None
        for key, _, kind in self._keyed():
            self._lay(key, kind, Column.of(kind, []))

    def bind(self, context: Context) -> None:
        """Take the features of the catalogue (a loaded model: of the saved tensors) and initialise the vectors.

        Raises:
            DataError: the data have no such column, or it is of another kind.
        """
        self.num_items, self._kept = context.num_items, None
        seen = None if context.training is None else context.training.item_counts() > 0
        for key, name, kind in self._keyed():
            column = Column.of(kind, []) if seen is None else self._column(context.item_features, name, kind)
            self._lay(key, kind, column)
            self._initialise(key, kind, column, seen)
        self.rows = nn.Parameter(torch.empty(self.extra, self.dim)) if self.extra else None
        if self.rows is not None:
            nn.init.normal_(self.rows, std=STD)

    def make_room(self, tensors: Mapping[str, Tensor]) -> None:
        """Take the number of categories from saved tensors, before these are loaded.

        Raises:
            ValueError: the tensors do not fit together.
        """
        for key, name, kind in self._keyed():
            table, ends = tensors.get(key), tensors.get(f"{key}_ends")
            if kind == "number" or table is None:
                continue
            if table.dim() != 2 or table.shape[1] != self.dim or ends is None or len(ends) != len(table):
                raise ValueError(f"the saved categories of {name!r} do not fit its vectors {tuple(table.shape)}")
            setattr(self, key, nn.Parameter(table.new_zeros(table.shape, device=getattr(self, key).device)))

    @property
    def carried(self) -> frozenset[str]:
        """The parameters that :meth:`carry` puts right itself: their rows are no items."""
        return frozenset(key for key, _, _ in self._keyed())

    def carry(self, before: Mapping[str, Tensor], change: Change) -> None:
        """Go on with the vectors of the categories that were there before, by name, and with the scale of numbers."""
        if change.same:
            return
        with torch.no_grad():
            for key, _, kind in self._keyed():
                table: Tensor = getattr(self, key)
                former = before[key].to(table.device)
                if kind == "number":
                    table.copy_(former)
                    setattr(self, f"{key}_scale", before[f"{key}_scale"].to(table.device))
                    continue
                known = read_names(before[f"{key}_names"], before[f"{key}_ends"])
                at = torch.from_numpy(np.maximum(known.rows(self._categories(key).ids), 0)).to(table.device)
                table[0] = former[0]
                table[1:] = torch.where(at[:, None] > 0, former[at], table[1:])

    def check_split(self, split: Any) -> None:
        """Raise DataError unless the items of ``split`` have the columns and categories that were learned."""
        for key, name, kind in self._keyed():
            column = self._column(split.item_features, name, kind)
            if kind != "number" and column.categories.digest != self._categories(key).digest:  # type: ignore[union-attr]
                raise DataError(
                    f"the column {name!r} of the split has other categories than the model learned: split the data of "
                    "the training, or train the model anew"
                )

    def embed(self, ids: Tensor) -> Tensor:
        """Input vectors (..., D) of item rows (...), zero for padding.

        Raises:
            ValueError: there is no such row (on the CPU; a GPU ends with an error of its own).
        """
        vectors = self.output(ids)
        return vectors * self.dim**0.5 if self.scale else vectors

    def output(self, ids: Tensor) -> Tensor:
        """Output vectors (..., D) of item rows (...), zero for padding; of input-only rows their learned ones.

        Raises:
            ValueError: there is no such row (on the CPU; a GPU ends with an error of its own).
        """
        flat = ids.flatten()
        behind = flat > self.num_items
        inner = flat.masked_fill(behind, 0)
        vectors = self._of(inner) * (inner > 0)[:, None]
        try:
            if self.rows is not None:
                own = F.embedding((flat - self.num_items - 1).clamp(min=0), self.rows)
                vectors = torch.where(behind[:, None], own.to(vectors.dtype), vectors)
            elif not flat.is_cuda and bool(behind.any()):
                raise IndexError
        except IndexError as error:
            raise no_row(ids, self.num_items, self.extra) from error
        return vectors.view(*ids.shape, self.dim)

    def _vectors(self, rows: slice) -> Tensor:
        table = self._table()
        return (
            self._of(torch.arange(rows.start, rows.stop, device=self.column0.device)) if table is None else table[rows]
        )

    def add_items(self, ids: Sequence[Any], vectors: Any = None, features: Any = None) -> None:
        """Rows for further items behind those there are, of their ``features``: a Features, or column -> raw values.

        A column that is not given is missing, and so is a category that training did not know; both are warned of.

        Raises:
            DataError: there are no features, not one a row, or they are of another kind.
        """
        if features is None:
            raise DataError(
                "the vectors of further items are made of their features: pass "
                f"features={{{next(iter(self.columns))!r}: [...]}} to add_items"
            )
        notes: list[str] = []
        for key, name, kind in self._keyed():
            values = features.get(name)
            if values is None:
                given = ", ".join(map(str, features)) or "none"
                notes.append(f"they have no column {name!r}, which the model reads (given: {given})")
            if isinstance(values, Column):
                values = [one.split(", ") if kind == "list" and one else one for one in values.strings()]
            values = [None] * len(ids) if values is None else list(values)
            if len(values) != len(ids):
                raise DataError(f"{len(ids):,} items are added, and the column {name!r} has {len(values):,} values")
            categories = None if kind == "number" else self._categories(key)
            empty = Column.of(kind, [])
            column, unknown = Column(kind, empty.values, empty.offsets, categories).encode(values)
            if unknown:
                sample = printable(repr(unknown[0]), 60)
                notes.append(f"{len(unknown):,} values of {name!r} are categories new to the model, such as {sample}")
            self._append(key, kind, column)
        self.num_items, self._kept = self.num_items + len(ids), None
        if notes:
            told = f"{len(ids):,} further items: {'; '.join(notes)}. What is new or not given counts as missing"
            warnings.warn(told, DataWarning, stacklevel=2)

    def _table(self) -> Tensor | None:
        """(1 + N, D), where it may be kept: without gradients, in eval mode; None elsewhere."""
        if self.training or torch.is_grad_enabled():
            self._kept = None
            return None
        weights, large = list(self.parameters()), list(self.buffers())
        if self._kept is None or not self._kept.holds(weights, large):
            with torch.inference_mode(False), torch.no_grad():
                whole = self._of(torch.arange(self.num_items + 1, device=self.column0.device))
                self._kept = Kept(whole, weights, large)
        return self._kept.table

    def _keyed(self) -> list[tuple[str, str, str]]:
        """Key of the tensors, name and kind of each column."""
        return [(f"column{at}", name, kind) for at, (name, kind) in enumerate(self.columns.items())]

    def _column(self, features: Features | None, name: str, kind: str) -> Column:
        if features is None:
            raise DataError(
                f"FeatureItems reads the column {name!r} of items, and these data have no item table: name one when "
                f"you scan the data, items=read_items(path, kinds={{{name!r}: {kind!r}}})"
            )
        column = features[name]
        if column.kind != kind:
            raise DataError(
                f"the column {name!r} of items is a {column.kind} in these data, and FeatureItems reads a {kind}: "
                f"read_items(path, kinds={{{name!r}: {kind!r}}}) reads it as one"
            )
        return column

    def _lay(self, key: str, kind: str, column: Column) -> None:
        """Vectors (those of a number are the missing one and its slope), values by row and names of the categories."""
        rows = 2 if kind == "number" else 1 + column.num_categories
        setattr(self, key, nn.Parameter(torch.zeros(rows, self.dim)))
        self.register_buffer(f"{key}_values", torch.from_numpy(np.nan_to_num(column.values)))  # (N+1,), of lists (n,)
        if kind == "number":
            self.register_buffer(f"{key}_missing", torch.from_numpy(column.missing))  # (N+1,)
            self.register_buffer(f"{key}_scale", torch.tensor([0.0, 1.0]))
            return
        if kind == "list":
            self.register_buffer(f"{key}_offsets", torch.from_numpy(np.array(column.offsets)))  # (N+2,)
        names, ends = write_names([] if column.categories is None else column.categories.ids.tolist())
        self.register_buffer(f"{key}_names", names)
        self.register_buffer(f"{key}_ends", ends)

    def _initialise(self, key: str, kind: str, column: Column, seen: np.ndarray | None) -> None:
        table: nn.Parameter = getattr(self, key)
        nn.init.normal_(table, std=STD)
        if seen is None:
            return
        if kind == "number":
            scale = scale_of([column.values[seen]])
            setattr(self, f"{key}_scale", torch.tensor(scale, dtype=torch.float32))
            return
        owned = seen if column.offsets is None else np.repeat(seen, np.diff(column.offsets))
        trained = np.zeros(len(table), bool)
        trained[column.values[owned]] = True
        trained[0] = True
        table.data[torch.from_numpy(~trained)] = 0.0

    def _append(self, key: str, kind: str, column: Column) -> None:
        more = {"values": np.nan_to_num(column.values)}
        if kind == "number":
            more["missing"] = column.missing
        if kind == "list":
            assert column.offsets is not None
            more["offsets"] = column.offsets[1:] + int(getattr(self, f"{key}_offsets")[-1])
        for name, values in more.items():
            before: Tensor = getattr(self, f"{key}_{name}")
            setattr(self, f"{key}_{name}", torch.cat([before, torch.from_numpy(values).to(before.device)]))

    def _of(self, ids: Tensor) -> Tensor:
        """(n, D) sum over the columns, of item rows (n,) or padding."""
        found: Tensor | None = None
        for key, _, kind in self._keyed():
            table, values = getattr(self, key), getattr(self, f"{key}_values")
            if kind == "list":
                vectors = self._mean(table, values, getattr(self, f"{key}_offsets"), ids)
            elif kind == "category":
                vectors = F.embedding(values[ids].long(), table)
            else:
                mean, deviation = getattr(self, f"{key}_scale")
                missing = getattr(self, f"{key}_missing")[ids]
                number = ((values[ids] - mean) / deviation).clamp(-FAR, FAR).to(table.dtype)
                vectors = torch.where(missing[:, None], table[0], number[:, None] * table[1])
            found = vectors if found is None else found + vectors
        assert found is not None
        return found

    @staticmethod
    def _mean(table: Tensor, values: Tensor, offsets: Tensor, ids: Tensor) -> Tensor:
        """(n, D) means of the vectors of the lists of rows ``ids`` (n,), that of none for empty ones."""
        start = offsets[ids]
        count = offsets[ids + 1] - start
        first = count.cumsum(0) - count  # where each list begins among those that are wanted
        index = torch.arange(int(count.sum()), device=ids.device) + (start - first).repeat_interleave(count)
        vectors = F.embedding_bag(values[index].long(), table, first, mode="mean")
        return torch.where(count[:, None] > 0, vectors, table[0])

    def _categories(self, key: str) -> Vocabulary:
        names: Tensor = getattr(self, f"{key}_names")
        if key not in self._known or self._known[key][0] is not names:
            self._known[key] = names, read_names(names, getattr(self, f"{key}_ends"))
        return self._known[key][1]
