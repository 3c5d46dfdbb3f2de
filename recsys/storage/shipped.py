"""Where the files that travel with the package are: data cards and recipes."""

from __future__ import annotations

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parents[1]


def folder(name: str) -> Path:
    """The folder ``"datasets"`` or ``"configs"``: inside the installed package, or beside it in a checkout.

    Raises:
        FileNotFoundError: neither has it, so the installation is incomplete.
    """
    candidates = (_PACKAGE / "_shipped" / name, _PACKAGE.parent / name)
    for candidate in candidates:
        if candidate.is_dir():
            return candidate
    raise FileNotFoundError(
        f"the folder {name!r} that ships with recsys is neither at {candidates[0]} nor at {candidates[1]}: "
        "the installation is incomplete, install recsys again"
    )
