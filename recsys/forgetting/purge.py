"""What else holds the data of users beside the weights: kept splits, reports by user, checkpoints, bundles.

The cache holds whole splits, which can be made again from the source, so theirs are removed whole. A report of a run
has a row per user: the report is removed, ``recsys evaluate`` writes it anew.
"""

from __future__ import annotations

import json
from pathlib import Path

from recsys.data.split import Split
from recsys.runs.split import splits_folder
from recsys.storage.files import is_folder, remove

REPORTS = ("per_user.parquet", "per_user.npz", "report.json", "report.html", "sections.json")


def purge(run: Path, split: Split) -> list[str]:
    """Remove the kept copies of ``split`` in the cache and the reports by user of ``run``; and say what."""
    done = []
    for folder in _kept(split):
        remove(folder)
        done.append(f"the split kept in {folder}")
    files = [run / name for name in REPORTS if (run / name).is_file() and not (run / name).is_symlink()]
    for file in files:
        file.unlink()
    if files:
        done.append(f"{', '.join(file.name for file in files)} in {run}")
    return done


def remains(run: Path, split: Split) -> list[str]:
    """What on this machine still holds what was forgotten, in words, as far as it is known."""
    found = [f"the split kept in {folder}" for folder in _kept(split)]
    found.append(f"{run}: the weights of before" + (", with checkpoints" if (run / "checkpoints").is_dir() else ""))
    found += [f"{path.parent}: a bundle of before" for path in sorted(run.glob("*/manifest.json")) if _is_bundle(path)]
    if any((run / name).is_file() for name in REPORTS):
        found.append(f"{run}: reports with a row per user")
    return found


def _kept(split: Split) -> list[Path]:
    """Folders in the cache that hold this split."""
    home = splits_folder()
    if not home.is_dir():
        return []
    named = [folder for folder in home.iterdir() if is_folder(folder) and (folder / "manifest.json").is_file()]
    return sorted(folder for folder in named if _is(folder, split))


def _is_bundle(manifest: Path) -> bool:
    try:
        return bool(json.loads(manifest.read_text(encoding="utf-8")).get("kind") == "recsys.bundle")
    except (OSError, ValueError, AttributeError):
        return False


def _is(folder: Path, split: Split) -> bool:
    try:
        return Split.load(folder, verify=False).cut.digest == split.cut.digest
    except (OSError, ValueError):
        return False
