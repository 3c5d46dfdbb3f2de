"""The per-user table on disk: Parquet with the report's facts in its metadata, so that the one file says everything.

Where Polars is not installed (a machine that only trains) the same table is written as ``.npz``, and a warning says so.
"""

from __future__ import annotations

import importlib.util
import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from recsys.errors import DataWarning
from recsys.storage.files import replace, write_parquet
from recsys.storage.files import write_text as write_whole
from recsys.storage.reading import reading

NAME = "per_user.parquet"
_KEY = "recsys.report"


def write_table(folder: Path, columns: dict[str, np.ndarray], facts: dict[str, Any]) -> Path:
    """Write the table into ``folder``; the old file stays in place until the new one is complete."""
    text = json.dumps(facts, ensure_ascii=False)
    folder.mkdir(parents=True, exist_ok=True)
    if importlib.util.find_spec("polars") is None:
        warnings.warn("polars is not installed: per-user numbers go to per_user.npz", DataWarning, stacklevel=3)
        path = folder / "per_user.npz"
        plain = {name: values.astype(str) if values.dtype == object else values for name, values in columns.items()}
        replace(path, lambda partial: _write_npz(partial, plain, text))
    else:
        path = folder / NAME
        replace(path, lambda partial: _write_parquet(partial, columns, text))
    return path


def read_table(path: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The columns and facts of a table file, or of the one in a run folder.

    Raises:
        FileNotFoundError: there is none. DataError: the file is damaged or was not written by :func:`write_table`.
    """
    if path.is_dir():
        path = next((path / name for name in (NAME, "per_user.npz") if (path / name).exists()), path / NAME)
    if not path.exists():
        run = path.parent if path.suffix in (".parquet", ".npz") else path
        raise FileNotFoundError(
            f"{path} does not exist: evaluate the run first (recsys evaluate {run}), or pass a folder that holds {NAME}"
        )
    with reading(path, "delete it and evaluate again"):
        columns, text = _read_npz(path) if path.suffix == ".npz" else _read_parquet(path)
        facts = json.loads(text)
        if not isinstance(facts, dict):
            raise TypeError(f"it says of itself {facts!r}")
        return columns, facts


def write_text(path: Path, text: str) -> None:
    """Write a text file at once: either the old content or all of the new one is there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, text)


def _write_parquet(path: Path, columns: dict[str, np.ndarray], text: str) -> None:
    import polars

    plain = {name: values.tolist() if values.dtype == object else values for name, values in columns.items()}
    write_parquet(path, polars.DataFrame(plain), metadata={_KEY: text})


def _read_parquet(path: Path) -> tuple[dict[str, np.ndarray], str]:
    import polars

    text = polars.read_parquet_metadata(path)[_KEY]
    table = polars.read_parquet(path, glob=False)
    return {name: table[name].to_numpy() for name in table.columns}, text


def _write_npz(path: Path, columns: dict[str, np.ndarray], text: str) -> None:
    with path.open("wb") as file:
        named: dict[str, Any] = {f"column:{name}": values for name, values in columns.items()}
        np.savez_compressed(file, facts=np.array(text), **named)


def _read_npz(path: Path) -> tuple[dict[str, np.ndarray], str]:
    with np.load(path, allow_pickle=False) as file:
        names = [name for name in file.files if name.startswith("column:")]
        return {name.removeprefix("column:"): file[name] for name in names}, str(file["facts"])
