"""Columns of events and users as a further input of an encoder: vectors that are added to those of the items.

A category has a learned vector, several are averaged, a number (standardised over the training events) moves along a
learned vector, and what is missing has a vector of its own. All vectors begin at zero: a model with features starts as
the one without, and a category that training never met adds nothing. The features of an event stand at its own item;
those of the event to be predicted are not seen. Users' columns are added at every item of their history.

The categories are saved with the model, so that raw values can be given in a request.

Legend: B histories, L longest of the batch, T real tokens, C categories, K longest list, D width.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor, nn

from recsys.data.batch import FEATURES, USER_FEATURES, Batch
from recsys.errors import DataError, printable
from recsys.features.column import Column
from recsys.ids.ranges import blocks
from recsys.ids.vocabulary import Vocabulary
from recsys.protocols import Change, Context

KINDS = ("category", "number", "list")


class FeatureInputs(nn.Module):
    """Vectors (T, D) of the event and user columns of a batch, for an encoder to add: ``SASRec(features=...)``.

    Args:
        events: column of the events -> its kind, "category", "number" or "list", as in
            ``Dataset.scan(event_columns=)``.
        users: column of the users -> its kind, as in ``read_users(kinds=)``.
        dim: width D, the same as the encoder's.

    Raises:
        ValueError: no column, or a kind that is none of the three.

    Example: ``FeatureInputs({"device": "category"}, users={"age": "number"}, dim=64)``.
    """

    def __init__(
        self, events: Mapping[str, str] | None = None, users: Mapping[str, str] | None = None, dim: int = 64
    ) -> None:
        super().__init__()
        self.events, self.users, self.dim = dict(events or {}), dict(users or {}), dim
        for name, kind in (*self.events.items(), *self.users.items()):
            if kind not in KINDS:
                raise ValueError(f"the kind of the column {name!r} must be one of {', '.join(KINDS)}, found {kind!r}")
        if not self.events and not self.users:
            raise ValueError('name at least one column, such as FeatureInputs({"device": "category"})')
        self.needs = frozenset([f"{FEATURES}{name}" for name in self.events] + [
            f"{USER_FEATURES}{name}" for name in self.users
        ])  # fmt: skip
        self._known: dict[str, tuple[Tensor, Vocabulary]] = {}  # categories that were decoded
        for key, _, kind in self._columns():
            self._lay(key, kind, None)

    def bind(self, context: Context) -> None:
        """Learn the categories and the scale of numbers from the training data; without any, make room for none.

        Raises:
            DataError: the data lack a column, or it is of another kind.
        """
        for key, name, kind in self._columns():
            column = None
            if context.training is not None:
                column = self._of_events(context, name) if key.startswith("event") else self._of_users(context, name)
                if column.kind != kind:
                    raise DataError(
                        f"the column {name!r} is a {column.kind} in these data, and FeatureInputs reads a {kind}: name "
                        "the same kind in both"
                    )
            self._lay(key, kind, column)
            if column is not None and kind == "number":
                scale = _scale(context, name) if key.startswith("event") else scale_of([column.values])
                setattr(self, f"{key}_scale", torch.tensor(scale, dtype=torch.float32))

    def make_room(self, tensors: Mapping[str, Tensor]) -> None:
        """Take the number of categories from saved tensors, before these are loaded.

        Raises:
            ValueError: the tensors do not fit together.
        """
        for key, name, kind in self._columns():
            table = tensors.get(key)
            if kind == "number" or table is None:
                continue
            ends = tensors.get(f"{key}_ends")
            if table.dim() != 2 or table.shape[1] != self.dim or ends is None or len(ends) != len(table):
                raise ValueError(f"the saved categories of {name!r} do not fit its vectors {tuple(table.shape)}")
            setattr(self, key, nn.Parameter(table.new_zeros(table.shape, device=getattr(self, key).device)))

    def carry(self, before: Mapping[str, Tensor], change: Change) -> None:
        """Go on with the vectors of the categories that were there before, by name, and with the scale of numbers."""
        if change.same:
            return
        with torch.no_grad():
            for key, _, kind in self._columns():
                table, former = getattr(self, key), before[key].to(getattr(self, key).device)
                if kind == "number":
                    table.copy_(former)
                    setattr(self, f"{key}_scale", before[f"{key}_scale"].to(table.device))
                    continue
                known = read_names(before[f"{key}_names"], before[f"{key}_ends"])
                rows = np.concatenate([[0], np.maximum(known.rows(self._categories(key).ids), 0)])
                table.copy_(former[torch.from_numpy(rows).to(table.device)])
                table[1:][torch.from_numpy(rows[1:] == 0).to(table.device)] = 0

    @property
    def carried(self) -> frozenset[str]:
        """The parameters that :meth:`carry` puts right itself: their rows are neither items nor users."""
        return frozenset(key for key, _, _ in self._columns())

    def request_columns(self) -> tuple[dict[str, Column], dict[str, Column]]:
        """The columns of events and of users, without rows, by which the raw values of a request are read."""
        found: tuple[dict[str, Column], dict[str, Column]] = ({}, {})
        for key, name, kind in self._columns():
            if kind == "number":
                column = Column(kind, np.zeros(0, np.float32))
            else:
                offsets = np.zeros(1, np.int64) if kind == "list" else None
                column = Column(kind, np.zeros(0, np.int32), offsets, self._categories(key))
            found[key.startswith("user")][name] = column
        return found

    def forward(self, batch: Batch) -> Tensor:
        """(T, D): what is added to the item vectors of the real tokens of ``batch``.

        Raises:
            ValueError: the batch lacks a column.
        """
        found: Tensor | None = None
        for key, name, kind in self._columns():
            of_events = key.startswith("event")
            values = (batch.features if of_events else batch.user_features).get(name)
            if values is None:
                raise ValueError(
                    f"the encoder reads the column {name!r} of {'events' if of_events else 'users'}, and this batch "
                    "has none: it was made by hand, or by a part that writes items of its own and knows no features of "
                    "them; leave that part out, or the column"
                )
            vectors = self._embed(key, kind, batch.flatten(values) if of_events else values)
            vectors = vectors if of_events else vectors.repeat_interleave(batch.lengths, 0)
            found = vectors if found is None else found + vectors
        assert found is not None
        return found

    def _columns(self) -> list[tuple[str, str, str]]:
        """Key of the tensors, name and kind of each column."""
        both = (("event", self.events), ("user", self.users))
        return [(f"{owner}{at}", name, kind) for owner, own in both for at, (name, kind) in enumerate(own.items())]

    def _embed(self, key: str, kind: str, values: Tensor) -> Tensor:
        """(n, D) vectors of values (n,) or (n, K)."""
        table: Tensor = getattr(self, key)
        if kind == "category":
            return nn.functional.embedding(values, table)
        if kind == "number":
            mean, deviation = getattr(self, f"{key}_scale")
            missing = values.isnan()
            scaled = ((values - mean) / deviation).masked_fill(missing, 0).to(table.dtype)
            return torch.where(missing[:, None], table[0], scaled[:, None] * table[1])
        given = (values > 0).to(table.dtype)
        count = given.sum(1, keepdim=True)
        total = (nn.functional.embedding(values, table) * given[:, :, None]).sum(1)
        return torch.where(count > 0, total / count.clamp(min=1), table[0])

    def _lay(self, key: str, kind: str, column: Column | None) -> None:
        """Empty vectors and the names of the categories; those of a number are the missing one and its slope."""
        rows = 2 if kind == "number" else 1 + (0 if column is None else column.num_categories)
        setattr(self, key, nn.Parameter(torch.zeros(rows, self.dim)))
        if kind == "number":
            self.register_buffer(f"{key}_scale", torch.tensor([0.0, 1.0]))
            return
        names = [] if column is None or column.categories is None else column.categories.ids.tolist()
        blob, ends = write_names(names)
        self.register_buffer(f"{key}_names", blob)
        self.register_buffer(f"{key}_ends", ends)

    def _of_events(self, context: Context, name: str) -> Column:
        assert context.training is not None
        known = context.training.kinds
        if name not in known:
            raise DataError(
                f"FeatureInputs reads the event column {name!r}, and these data keep {', '.join(known) or 'none'}: "
                f"name it when you scan the data, event_columns={{{name!r}: {self.events[name]!r}}}"
            )
        return context.training.column(name, np.zeros(0, np.int64))

    def _of_users(self, context: Context, name: str) -> Column:
        if context.user_features is None:
            raise DataError(
                f"FeatureInputs reads the column {name!r} of users, and these data have none: give their table when "
                "you scan the data, users=read_users(...)"
            )
        return context.user_features[name]

    def _categories(self, key: str) -> Vocabulary:
        blob: Tensor = getattr(self, f"{key}_names")
        if key not in self._known or self._known[key][0] is not blob:
            self._known[key] = blob, read_names(blob, getattr(self, f"{key}_ends"))
        return self._known[key][1]


def write_names(names: list[str]) -> tuple[Tensor, Tensor]:
    """Names of categories for a saved model: UTF-8 bytes (n,) uint8, a byte behind them, and edges (C + 1,) int64."""
    encoded = [name.encode("utf-8", "surrogatepass") for name in names]
    ends = np.concatenate([[0], np.cumsum([len(one) for one in encoded], dtype=np.int64)]).astype(np.int64)
    blob = np.frombuffer(b"".join(encoded) + b"\0", np.uint8)
    return torch.from_numpy(blob.copy()), torch.from_numpy(ends)


def read_names(blob: Tensor, ends: Tensor) -> Vocabulary:
    """What :func:`write_names` wrote, name c for code c.

    Raises:
        ValueError: the tensors do not fit each other.
    """
    data, edges = blob.cpu().numpy().tobytes(), ends.cpu().tolist()
    if edges[0] != 0 or edges[-1] != len(data) - 1 or any(b < a for a, b in pairwise(edges)):
        raise ValueError(f"the saved categories are damaged: edges {printable(edges[:3])} of {len(data):,} bytes")
    names = np.empty(len(edges) - 1, dtype=object)
    names[:] = [data[a:b].decode("utf-8", "surrogatepass") for a, b in pairwise(edges)]
    return Vocabulary(names, first=1)


def _scale(context: Context, name: str) -> list[float]:
    """Mean and deviation of a number over the training events."""
    training = context.training
    assert training is not None
    return scale_of(training.column(name, users).values for users in blocks(training.lengths))


def scale_of(parts: Iterable[np.ndarray]) -> list[float]:
    """Mean and deviation of numbers in several arrays, NaN left out; a deviation of 1 where all are equal."""
    count, total, squares = 0, 0.0, 0.0
    for values in parts:
        known = values[~np.isnan(values)].astype(np.float64)
        count, total, squares = count + len(known), total + known.sum(), squares + np.square(known).sum()
    mean = total / max(count, 1)
    deviation = max(squares / max(count, 1) - mean * mean, 0.0) ** 0.5
    return [float(mean), float(deviation) if deviation > 1e-6 * abs(mean) + 1e-12 else 1.0]
