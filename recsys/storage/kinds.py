"""What the kinds of folders are called in messages, and what to do where one is passed instead of another."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from recsys.errors import printable

NAMES = {
    "recsys.run": "a run folder", "recsys.bundle": "a bundle", "recsys.split": "a split", "recsys.index": "an index",
    "recsys.vectors": "a folder of vectors", "recsys.profiles": "a folder of profiles",
    "recsys.neighbours": "a table of neighbours", "recsys.teacher-states": "a folder of teacher states",
    "recsys.preferences": "a folder of preferences",
    "recsys.dataset": "a prepared data set", "recsys.prepared": "a folder of prepared events",
    "recsys.semantic-ids": "a folder of semantic ids",
}  # fmt: skip
_WRITERS = {
    "recsys.run": "pass a folder that recsys fit or rs.fit(..., folder=...) wrote",
    "recsys.bundle": "pass a folder that recsys export or rs.export wrote",
    "recsys.split": "pass a folder that recsys audit --save or Split.save wrote",
    "recsys.vectors": "pass a folder that recsys embed, rs.embed or Vectors.save wrote",
    "recsys.semantic-ids": "pass a folder that recsys semantic-ids, rs.make_semantic_ids or SemanticIds.save wrote",
    "recsys.index": "pass a folder that Index.save wrote",
    "recsys.profiles": "pass a folder that recsys profiles or rs.profiles wrote",
    "recsys.preferences": "pass a folder that rs.write_preferences wrote",
}
# (found, expected): what else leads from the one to the other.
_WAYS = {
    ("recsys.run", "recsys.bundle"): "export it first, recsys export {folder} BUNDLE",
    ("recsys.bundle", "recsys.run"): "pass the run folder that was exported to it, or open it with rs.Bundle.load",
    ("recsys.bundle", "recsys.index"): "its index is in {folder}/index, or open it with rs.Bundle.load",
    ("recsys.run", "recsys.index"): "export it first, recsys export {folder} BUNDLE, and pass BUNDLE/index",
    ("recsys.profiles", "recsys.vectors"): "embed the profiles first, recsys embed DATA --profiles {folder}",
}


def kind_name(kind: Any) -> str:
    """What to call a folder of ``kind``, with its article.

    >>> kind_name("recsys.run"), kind_name("mine")
    ('a run folder', "a folder of kind 'mine'")
    """
    known = NAMES.get(kind) if isinstance(kind, str) else None
    return known or f"a folder of kind {printable(repr(kind))}"


def mistaken(folder: Path, found: Any, expected: str) -> str:
    """The message for a folder of kind ``found`` where ``expected`` was asked for, with what to do."""
    shown = printable(folder, None)
    way = _WAYS.get((found, expected)) if isinstance(found, str) else None
    advice = way.format(folder=shown) if way else _WRITERS.get(expected, "name another folder")
    return f"{shown} is {kind_name(found)}, and {kind_name(expected)} was expected: {advice}"


def missing(folder: Path, expected: str) -> str:
    """The message for a folder that is not there, or holds nothing of recsys, where ``expected`` was asked for."""
    shown, advice = printable(folder, None), _WRITERS.get(expected, "name another folder")
    if folder.is_dir():
        return f"{shown} is not {kind_name(expected)}, it has no manifest.json: {advice}"
    found = "is a file" if folder.exists() else "does not exist"
    return f"{shown} {found}, {kind_name(expected)} was expected: {advice}"
