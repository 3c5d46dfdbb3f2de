"""All events grouped by user, oldest first, as flat arrays that can stay on disk.

Legend: E events, U users, N items (rows 1..N, 0 is padding).
A prepared folder holds one ``.npy`` file per array and a ``manifest.json`` with its sizes and checksums. It is loaded
by memory-mapping: opening 50 million events costs no more memory than opening fifty.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from recsys.errors import DataError
from recsys.features.features import Features
from recsys.readers.times import moments
from recsys.storage.arrays import read_array, write_array
from recsys.storage.folders import read_manifest, write_folder
from recsys.storage.reading import reading

KIND = "recsys.prepared"
FORMAT = 1
ORDERS = ("time", "day", "file", "none")
EVENT_COLUMNS = "columns"  # begins the names of the files of further columns
_ARRAYS = {
    "items": "int32",
    "offsets": "int64",
    "times": "int64",
    "weights": "float32",
    "parts": "int8",
    "nanoseconds": "int32",
}
_OPTIONAL = ("times", "weights", "parts", "nanoseconds")
_HASHED = 1 << 22  # entries hashed at a time


@dataclass(frozen=True)
class Prepared:
    """Interactions ready to be cut into batches: ``items[offsets[u]:offsets[u + 1]]`` is the history of user row u.

    Raises:
        DataError: the arrays do not fit together.
    """

    items: np.ndarray  # (E,) int32 item rows 1..N
    offsets: np.ndarray  # (U+1,) int64
    num_items: int
    times: np.ndarray | None = None  # (E,) int64 milliseconds since the epoch
    weights: np.ndarray | None = None  # (E,) float32
    parts: np.ndarray | None = None  # (E,) int8, 0 train, 1 valid, 2 test, for data that come split
    order: str = "time"  # what "oldest first" rests on: "time", "day" (ties within a day), "file" or "none"
    folder: Path | None = field(default=None, compare=False, repr=False)  # where the arrays lie, if on disk
    nanoseconds: np.ndarray | None = None  # (E,) int32 within the millisecond of ``times``, where times are finer
    features: Features | None = None  # further columns, a row per event

    def __post_init__(self) -> None:
        if self.order not in ORDERS:
            raise DataError(f"order must be one of {', '.join(ORDERS)}, found {self.order!r}")
        for name, dtype in _ARRAYS.items():
            array = getattr(self, name)
            if array is None and name in _OPTIONAL:
                continue
            if array.ndim != 1 or array.dtype != dtype:
                raise DataError(f"{name} must be a one-dimensional {dtype} array, found {array.dtype} {array.shape}")
            if name != "offsets" and len(array) != len(self.items):
                raise DataError(f"{name} has {len(array):,} entries for {len(self.items):,} events")
        if self.features is not None and self.features.rows != len(self.items):
            raise DataError(f"the columns have {self.features.rows:,} rows for {len(self.items):,} events")
        if len(self.offsets) == 0 or self.offsets[0] != 0 or self.offsets[-1] != len(self.items):
            raise DataError(f"offsets must run from 0 to the number of events, {len(self.items):,}")

    def __reduce__(self) -> tuple[Any, ...]:
        # A memory-mapped array pickles as a full copy; a worker process opens the folder instead.
        if self.folder is not None:
            return Prepared.load, (self.folder,)
        values = (self.items, self.offsets, self.num_items, self.times, self.weights, self.parts)
        return Prepared, (*values, self.order, None, self.nanoseconds, self.features)

    @property
    def num_users(self) -> int:
        """Number of user rows, users without events included."""
        return len(self.offsets) - 1

    @property
    def num_events(self) -> int:
        """Number of events of all users."""
        return len(self.items)

    @cached_property
    def fingerprint(self) -> str:
        """Hash of all events as they lie here: user, item, time, weight. Reads everything once, about 1 GB a second."""
        found = hashlib.blake2b(digest_size=16)
        for name in ("items", "offsets", "times", "weights"):
            array = getattr(self, name)
            found.update(f"{name} {self.num_items} {None if array is None else len(array)} ".encode())
            for start in range(0, 0 if array is None else len(array), _HASHED):
                found.update(np.ascontiguousarray(array[start : start + _HASHED]).data)
        return found.hexdigest()

    def check(self, times: bool = True) -> None:
        """Read every event once and raise DataError if a row is out of range or a user's events run backwards.

        Args:
            times: also look at the times, which takes longer than all the rest.
        """
        if np.any(np.diff(self.offsets) < 0):
            raise DataError("offsets decrease: a user would own a negative number of events")
        if len(self.items) and not (self.items.min() >= 1 and self.items.max() <= self.num_items):
            raise DataError(f"item rows must lie in 1..{self.num_items}, found {self.items.min()}..{self.items.max()}")
        if times and self.times is not None and self.order in ("time", "day") and self.parts is None:
            backwards = (np.diff(moments(self.times, self.nanoseconds)[0]) < 0) & ~self.user_boundaries()
            if backwards.any():
                at = int(np.flatnonzero(backwards)[0])
                raise DataError(f"events {at} and {at + 1} of one user run backwards in time: sort by user and time")

    def moments(self) -> np.ndarray | None:
        """(E,) int64 numbers that compare as the times do at full precision; None without times. Where times are finer
        than milliseconds they are made at each call."""
        return None if self.times is None else moments(self.times, self.nanoseconds)[0]

    def user_boundaries(self) -> np.ndarray:
        """(E-1,) bool: True where event i and event i + 1 belong to different users."""
        edges = np.zeros(max(len(self.items) - 1, 0), dtype=bool)
        inner = self.offsets[(self.offsets > 0) & (self.offsets < len(self.items))]
        edges[inner - 1] = True
        return edges

    def save(self, folder: str | Path) -> None:
        """Write the arrays and their manifest to ``folder``, replacing it whole or, on any failure, not at all."""

        def fill(partial: Path) -> dict[str, Any]:
            for name in _ARRAYS:
                array = getattr(self, name)
                if array is not None:
                    write_array(partial / f"{name}.npy", array)
            if self.features is not None:
                self.features.save(partial, EVENT_COLUMNS)
            sizes = {"num_events": self.num_events, "num_users": self.num_users, "num_items": int(self.num_items)}
            return {**sizes, "order": self.order}

        write_folder(folder, KIND, FORMAT, fill)

    @classmethod
    def load(cls, folder: str | Path, verify: bool = False) -> Prepared:
        """Open a prepared folder by memory-mapping it; ``verify`` also reads every byte and compares checksums.

        Whether the arrays fit together, and the item rows are those of the catalogue, is always looked at.

        Raises:
            FileNotFoundError: there is no such folder.
            DataError: it is of another version, truncated or (``verify``) changed.
        """
        folder = Path(folder).absolute()
        manifest = read_manifest(folder, KIND, FORMAT, verify)
        remedy = "delete the folder and prepare the data again"
        held = [name for name in _ARRAYS if f"{name}.npy" in manifest["files"]]
        arrays = {name: read_array(folder / f"{name}.npy", remedy, mapped=name != "offsets") for name in held}
        with reading(folder, remedy):
            num_items = manifest["num_items"]
            if type(num_items) is not int or num_items < 0:
                raise ValueError(f"num_items is {num_items!r}")
            prepared = cls(
                items=arrays["items"],
                offsets=arrays["offsets"],
                num_items=num_items,
                times=arrays.get("times"),
                weights=arrays.get("weights"),
                parts=arrays.get("parts"),
                order=manifest["order"],
                folder=folder,
                nanoseconds=arrays.get("nanoseconds"),
                features=Features.load(folder, EVENT_COLUMNS, remedy),
            )
            if (prepared.num_events, prepared.num_users) != (manifest["num_events"], manifest["num_users"]):
                raise ValueError("the manifest counts other events or users than the arrays hold")
            prepared.check(times=verify)
        return prepared
