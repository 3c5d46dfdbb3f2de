"""A model that learned from the events it is ranked on: refused where that is known, warned of where it is not."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

from recsys.data.cut import Cut
from recsys.errors import DataWarning, LeakageError

if TYPE_CHECKING:
    from recsys.data.split import HeldOut

LEAKAGE = ("raise", "warn", "allow")


def check_leakage(model: Any, part: HeldOut, leakage: str, stacklevel: int = 3) -> None:
    """Compare what ``model`` learned from, if it knows, with the targets of ``part``.

    Raises:
        LeakageError: training saw some of them, and ``leakage`` is "raise".
    """
    if leakage not in LEAKAGE:
        raise ValueError(f"leakage is one of {', '.join(map(repr, LEAKAGE))}; found {leakage!r}")
    cut: Cut | None = getattr(model, "cut", None)
    if cut is None or leakage == "allow":
        return
    seen = part.seen_by(cut)
    if seen is None:
        warnings.warn(
            f"it is not known whether the model was trained on targets of {part.name!r}, for it learned from another "
            "split than this part is of: compare the two yourself, or evaluate on the split it was trained on "
            "(leakage='allow' if it is known to be right)",
            DataWarning,
            stacklevel=stacklevel,
        )
    elif seen:
        total = int((part.target_stop - part.target_start).sum())
        message = (
            f"the model was trained on {seen:,} of the {total:,} target events of {part.name!r}: fit it on the split "
            "that this part is of, or evaluate on the split it was trained on"
        )
        if leakage == "raise":
            raise LeakageError(f"{message}; leakage='warn' evaluates it all the same")
        warnings.warn(message, DataWarning, stacklevel=stacklevel)
