"""Where the files that travel with the package are: data cards and recipes."""

from __future__ import annotations

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parents[1]


def folder(name: str) -> Path:
    """The folder ``"datasets"`` or ``"configs"``: inside the installed package, or beside it in a checkout.

    Raises:
        FileNotFoundError: neither place has it, so the installation is incomplete.
    """
    places = (_PACKAGE / "_shipped" / name, _PACKAGE.parent / name)
    for place in places:
        if place.is_dir():
            return place
    raise FileNotFoundError(
        f"the folder {name!r} that comes with recsys is neither at {places[0]} nor at {places[1]}: "
        "the installation is incomplete, install recsys again"
    )
