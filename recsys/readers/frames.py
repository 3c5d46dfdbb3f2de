"""Tables in memory as sources: Polars and pandas frames, and whatever speaks the Arrow interface.

pandas is read by its columns as numpy holds them, so that neither it nor pyarrow need be there.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from recsys.errors import DataError
from recsys.readers.columns import find_column, plain_names

_CHUNK = 1 << 20  # rows hashed at a time


@dataclass(frozen=True, eq=False)
class Frame:
    """A table in memory, where a file could be: ``name`` stands for the file's."""

    table: pl.LazyFrame
    name: str = "frame"

    @classmethod
    def of(cls, table: Any, name: str = "frame") -> Frame:
        """The frame, copied if its owner could change it.

        Raises:
            TypeError: it is none of these tables.
            DataError: a column holds values of several types.
        """
        if isinstance(table, Frame):
            return table
        if isinstance(table, pl.LazyFrame):
            return cls(table, name)
        if isinstance(table, pl.DataFrame):
            return cls(table.clone().lazy(), name)
        if _is_pandas(table):
            return cls(_from_pandas(table).lazy(), name)
        if is_frame(table):
            return cls(pl.DataFrame(table).lazy(), name)
        raise TypeError(f"expected a Polars or pandas frame or an Arrow table, found {type(table).__name__}")

    def digest(self, columns: Sequence[str] | None = None) -> dict[str, Any]:
        """Rows and SHA-256 of the values of some columns, or of all, whatever chunks they lie in."""
        table = self.table if columns is None else self.table.select(columns)
        frame = table.collect()
        found = hashlib.sha256()
        for column in frame:
            found.update(f"{column.name} {column.dtype} {len(column)} ".encode())
            for start in range(0, len(column), _CHUNK):
                _hash(column[start : start + _CHUNK], found)
        return {"rows": len(frame), "sha256": found.hexdigest()}


def is_frame(table: Any) -> bool:
    """Whether it is a table in memory rather than a path or a list of paths."""
    arrow = hasattr(table, "__arrow_c_stream__") or hasattr(table, "__arrow_c_array__")
    return isinstance(table, (Frame, pl.DataFrame, pl.LazyFrame)) or _is_pandas(table) or arrow


def vectors_of(table: Any, ids: Any, columns: str | Sequence[str] | None) -> tuple[np.ndarray, np.ndarray]:
    """Raw ids (M,) and vectors (M, D) in a frame; see :meth:`recsys.ids.vectors.Vectors.of`.

    Raises:
        TypeError: it is not a frame. DataError: a column is missing or holds neither ids nor numbers.
    """
    if not is_frame(table):
        raise TypeError(
            f"expected ids and an array, or a frame with ids='<column>', found {type(table).__name__} alone"
        )
    frame = plain_names(Frame.of(table).table).collect()
    if not isinstance(ids, str):
        raise TypeError(f"name the column of ids, ids=<one of {', '.join(frame.columns[:20])}>, found {ids!r}")
    key = find_column(ids, frame.columns, "ids", "the frame")
    if columns is None:
        wanted = [name for name in frame.columns if name != key]
    else:
        named = [columns] if isinstance(columns, str) else list(columns)
        wanted = [find_column(name, frame.columns, "columns", "the frame") for name in named]
    names = frame[key]
    if names.null_count():
        raise DataError(f"{names.null_count():,} of {len(names):,} rows have no id in column {key!r}: drop them first")
    raw = names.to_numpy() if names.dtype.is_integer() else np.array(names.to_list(), dtype=object)
    lists = [name for name in wanted if isinstance(frame.schema[name], (pl.List, pl.Array, pl.Object))]
    if lists and len(wanted) > 1:
        raise DataError(
            f"column {lists[0]!r} holds a list per row and there are others ({', '.join(wanted[:20])}): name it, "
            f"columns={lists[0]!r}"
        )
    if lists:
        return raw, _from_lists(frame[lists[0]])
    other = [name for name in wanted if not frame.schema[name].is_numeric()]
    if other or not wanted:
        shown = f"{other[0]!r} ({frame.schema[other[0]]})" if other else "none"
        raise DataError(
            f"vectors come from columns of numbers or one of lists, found {shown}: name them, columns=[...]"
        )
    gaps = [name for name in wanted if frame[name].null_count()]
    if gaps:
        raise DataError(f"column {gaps[0]!r} misses {frame[gaps[0]].null_count():,} numbers: drop those rows first")
    return raw, frame.select(wanted).to_numpy()


def _from_lists(values: pl.Series) -> np.ndarray:
    """Lists of one length as a matrix."""
    rows = values.to_list()
    sizes = {None if row is None else len(row) for row in rows}
    if len(sizes) != 1 or None in sizes:
        found = ", ".join(sorted("none" if size is None else str(size) for size in sizes)) or "no rows"
        raise DataError(f"the lists of column {values.name!r} must be equally long, found lengths {found}")
    if isinstance(values.dtype, (pl.List, pl.Array)) and not values.null_count():
        flat = values.explode(empty_as_null=False)
        if flat.null_count():
            raise DataError(
                f"the lists of column {values.name!r} miss {flat.null_count():,} numbers: drop those rows first"
            )
        return flat.to_numpy().reshape(len(rows), -1)
    return np.asarray([np.asarray(row) for row in rows])


def _is_pandas(table: Any) -> bool:
    return all(hasattr(table, name) for name in ("columns", "dtypes", "iloc", "isna"))


def _from_pandas(table: Any) -> pl.DataFrame:
    names = [str(name) for name in table.columns]
    if len(set(names)) < len(names):
        raise DataError(f"two columns of the frame have the same name: {', '.join(names[:20])}")
    return pl.DataFrame([_from_series(name, table.iloc[:, at]) for at, name in enumerate(names)])


def _from_series(name: str, column: Any) -> pl.Series:
    if getattr(column.dtype, "tz", None) is not None:
        column = column.dt.tz_convert("UTC").dt.tz_localize(None)
    if isinstance(column.dtype, np.dtype) and column.dtype.kind in "iufbM":
        values = np.array(column.to_numpy())
        if values.dtype.kind == "M" and np.datetime_data(values.dtype)[0] not in ("ms", "us", "ns"):
            values = values.astype("datetime64[us]")  # Polars knows no seconds
        return pl.Series(name, values)
    values, gaps = column.to_numpy(dtype=object), column.isna().to_numpy()
    try:
        return pl.Series(name, [None if gap else value for value, gap in zip(values.tolist(), gaps.tolist())])
    except (TypeError, pl.exceptions.PolarsError) as error:
        kinds = sorted({type(value).__name__ for value in values[~gaps]})
        raise DataError(f"column {name!r} of the frame holds values of several types, {', '.join(kinds)}") from error


def _hash(values: pl.Series, found: Any) -> None:
    """Add the values to a hash, nulls apart, by their own bytes."""
    if values.null_count():
        found.update(np.packbits(values.is_null().to_numpy()).tobytes())
    if isinstance(values.dtype, (pl.Categorical, pl.Enum, pl.Decimal)):
        values = values.cast(pl.String)
    if isinstance(values.dtype, pl.String):
        text = values.fill_null("")
        found.update(text.str.len_bytes().to_numpy().tobytes())
        found.update(text.str.join("").item().encode())
    elif values.dtype.is_nested() or isinstance(values.dtype, (pl.Object, pl.Binary)):
        found.update(repr(values.to_list()).encode())
    elif isinstance(values.dtype, pl.Null):
        return
    else:
        plain = values.to_physical().cast(pl.UInt8) if isinstance(values.dtype, pl.Boolean) else values.to_physical()
        found.update(np.ascontiguousarray(plain.fill_null(0).to_numpy()).tobytes())
