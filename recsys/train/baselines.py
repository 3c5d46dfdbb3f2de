"""The reports of a run's baselines, kept in its folder, so that a later evaluation is compared with them again."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from recsys.eval.report import Report
from recsys.storage.files import is_folder, refuse_links

BASELINES = "baselines"
_FILES = ("per_user.parquet", "per_user.npz", "report.json")


def keep_baselines(run: Path, reports: Iterable[Report]) -> None:
    """Write reports into ``baselines/`` of a run folder, in place of those of before."""
    clear_baselines(run)
    for number, report in enumerate(reports):
        plain = re.sub(r"[^\w.=-]+", "-", report.name, flags=re.ASCII).strip("-.")[:60]
        report.save(run / BASELINES / f"{number}-{plain}")


def kept_baselines(run: Path) -> list[Report]:
    """The reports that :func:`keep_baselines` wrote, in the same order.

    Raises:
        DataError: one of them is damaged.
    """
    folders = (path for path in (run / BASELINES).glob("*-*") if path.is_dir())
    return [Report.load(path) for path in sorted(folders, key=lambda path: (len(path.name.split("-")[0]), path.name))]


def clear_baselines(run: Path) -> None:
    """Remove what :func:`keep_baselines` wrote, and nothing else.

    Raises:
        FileExistsError: ``baselines`` or a folder in it is a link; what is written there would land elsewhere.
    """
    home = run / BASELINES
    refuse_links(run, (BASELINES,))
    if not home.is_dir():
        return
    refuse_links(home, tuple(path.name for path in home.iterdir() if path.is_symlink()))
    for place in (*filter(is_folder, home.iterdir()), home):
        for name in _FILES:
            (place / name).unlink(missing_ok=True)
        if not any(place.iterdir()):
            place.rmdir()
