"""What else holds the data of users beside the weights: kept splits, artifacts, reports by user, texts, bundles, runs.

The cache holds whole splits and what was made of them by user or event, which can be made again from the source: theirs
is removed whole. What was learned there of everybody's events together, such as semantic ids, is named. A report of a
run has a row per user: the report is removed, ``recsys evaluate`` writes it anew. Texts about users lose those of the
forgotten. Other runs and bundles of the same data are named, as their owner decides on them.

A folder of ours says in its manifest what it was made of. One that was made of the same training data is known by their
hashes, which tells nothing of copies that were renamed by hand, archives, or other machines.
"""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recsys.data.split import Split
from recsys.runs.split import splits_folder
from recsys.storage.artifacts import artifacts_root
from recsys.storage.cache import cache_folder
from recsys.storage.files import is_folder, remove
from recsys.storage.folders import MANIFEST
from recsys.storage.kinds import kind_name

REPORTS = ("per_user.parquet", "per_user.npz", "report.json", "report.html", "sections.json")
PROFILES = "recsys.profiles"
DEPTH = 4  # folders below a place that are looked into
_OF_ALL = ("recsys.semantic-ids", "recsys.vectors")  # made of everybody's events together, and other runs read them
_PARTS = ("checkpoints", "index", "vocabulary")  # of a run or bundle, of which the whole is told


@dataclass(frozen=True)
class Holder:
    """A folder that holds something of what is to be forgotten."""

    folder: Path
    kind: Any  # of its manifest
    texts: int = 0  # about the forgotten, of profiles

    def __str__(self) -> str:
        made = f"{self.texts:,} texts about them" if self.texts else "made from the same training data"
        return f"{self.folder}: {kind_name(self.kind)}, {made}"


def purge(
    run: Path, split: Split, ids: Collection[Any] = (), kind: str = "users", places: Sequence[Path] | None = None
) -> list[str]:
    """Remove what can be removed without loss of anybody's work, and say what.

    That is the kept copies of ``split`` in the cache and what was made of them there, the reports by user of ``run``,
    and texts about the forgotten in profiles below ``places``, with all answers of the language model kept beside them
    (of which nobody can tell whose they are; the next call asks anew).

    Args:
        ids: raw ids of who is forgotten.
        kind: "users" or "items".
        places: folders that are looked into (default: the one that ``run`` lies in).
    """
    done = []
    for folder in _kept(split):
        remove(folder)
        done.append(f"the split kept in {folder}")
    for one in holders(split, ids, kind, [artifacts_root(cache_folder())]):
        if one.kind in _OF_ALL:
            continue
        remove(one.folder)
        done.append(f"{kind_name(one.kind)} in the cache ({one.folder})")
    files = [run / name for name in REPORTS if (run / name).is_file() and not (run / name).is_symlink()]
    for file in files:
        file.unlink()
    if files:
        done.append(f"{', '.join(file.name for file in files)} in {run}")
    for one in holders(split, ids, kind, _places(run, places)):
        if one.texts:
            done.append(_without_texts(one, ids))
    return done


def remains(
    run: Path,
    split: Split,
    ids: Collection[Any] = (),
    kind: str = "users",
    places: Sequence[Path] | None = None,
    but: Path | None = None,
) -> list[str]:
    """What on this machine still holds what was forgotten, in words, as far as it is known.

    Args:
        ids, kind, places: as of :func:`purge`.
        but: a folder that is left out: the new run.
    """
    found = [f"the split kept in {folder}" for folder in _kept(split)]
    found.append(f"{run}: the weights of before" + (", with checkpoints" if (run / "checkpoints").is_dir() else ""))
    if any((run / name).is_file() for name in REPORTS):
        found.append(f"{run}: reports with a row per user")
    without = {path.resolve() for path in (run, but) if path is not None}
    places = [artifacts_root(cache_folder()), *_places(run, places)]
    found += [str(one) for one in holders(split, ids, kind, places) if one.folder.resolve() not in without]
    return found


def holders(split: Split, ids: Collection[Any], kind: str, places: Sequence[Path]) -> list[Holder]:
    """The folders of ours below ``places`` that were made from these training data, or hold texts about ``ids``."""
    found: dict[Path, Holder] = {}
    hashes = [one for one in (split.cut.digest, split.data_hash) if one]
    for folder in (folder for place in places for folder in _folders(place)):
        if folder.resolve() in found:
            continue
        try:
            text = (folder / MANIFEST).read_text(encoding="utf-8")
            manifest = json.loads(text)
            texts = _texts(folder, manifest, ids, kind)
        except (OSError, ValueError, KeyError, AttributeError, TypeError):
            continue  # damaged, or somebody else's
        own = manifest.get("kind")
        if texts or (own != PROFILES and any(one in text for one in hashes)):
            found[folder.resolve()] = Holder(folder, own, texts)
    return list(found.values())


def _places(run: Path, places: Sequence[Path] | None) -> list[Path]:
    return [run.absolute().parent] if places is None else list(places)


def _folders(place: Path) -> Iterator[Path]:
    """Folders with a manifest below ``place``, itself included; links are not followed."""
    top = len(place.parts)
    for folder, inner, files in os.walk(place):
        deep = len(Path(folder).parts) - top >= DEPTH
        inner[:] = [] if deep else sorted(name for name in inner if name not in _PARTS)
        if MANIFEST in files:
            yield Path(folder)


def _texts(folder: Path, manifest: dict[str, Any], ids: Collection[Any], kind: str) -> int:
    """How many texts about ``ids`` a folder of profiles holds; 0 of any other folder."""
    if manifest.get("kind") != PROFILES or manifest["report"].get("of") != kind.removesuffix("s"):
        return 0
    asked = set(ids)
    with (folder / "profiles.jsonl").open(encoding="utf-8") as stream:
        return sum(json.loads(line)["id"] in asked for line in stream)


def _without_texts(one: Holder, ids: Collection[Any]) -> str:
    """Write profiles anew without the texts about ``ids``, and drop the answers that they were made of."""
    from recsys.llm.profiles import Profiles

    asked, old = set(ids), Profiles.load(one.folder)
    rows = [row for row in zip(old.ids, old.texts, old.sources, strict=True) if row[0] not in asked]
    ids_left, texts, sources = ([row[column] for row in rows] for column in range(3))
    Profiles(ids_left, texts, sources, old.report).save(one.folder)
    answers = one.folder.with_name(one.folder.name + ".answers.jsonl")
    told = f"{one.texts:,} texts in {one.folder}"
    if answers.is_file() and not answers.is_symlink():
        answers.unlink()
        told += f" and the answers in {answers.name}"
    return told


def _kept(split: Split) -> list[Path]:
    """Folders in the cache that hold this split."""
    home = splits_folder()
    if not home.is_dir():
        return []
    named = [folder for folder in home.iterdir() if is_folder(folder) and (folder / MANIFEST).is_file()]
    return sorted(folder for folder in named if _is(folder, split))


def _is(folder: Path, split: Split) -> bool:
    try:
        return Split.load(folder, verify=False).cut.digest == split.cut.digest
    except (OSError, ValueError):
        return False
