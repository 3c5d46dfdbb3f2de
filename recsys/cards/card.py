"""Data cards: what a public data set is, where its files are and how to read them, in one small TOML file.

A card holds ``name, title, homepage, licence, citation, order``, the counts to expect, ``[files]`` with what is known
about each file's bytes and where to look for it, and ``[events]`` and ``[items]``, whose keys are the arguments of
:meth:`recsys.data.dataset.Dataset.scan` and :func:`recsys.features.tables.read_items`. ``[[alternatives]]`` describe
the same data in other files (a publisher's archive), tried when the files above cannot be had: ``note``, and whatever
differs of ``files``, ``expected``, ``order``, ``events`` and ``items``; the item table is not taken over.
"""

from __future__ import annotations

import difflib
import inspect
import re
import tomllib
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recsys.cards.fetch import MIRROR, Fetcher, Got, Wanted, unavailable
from recsys.errors import DataError, DataWarning
from recsys.storage import shipped

if TYPE_CHECKING:
    from recsys.data.dataset import Dataset

ORDERS = ("time", "day", "file", "none")
_TEXTS = ("name", "title", "homepage", "licence", "citation", "order", "note", "folder")
_REQUIRED = ("name", "title", "licence", "citation", "order", "files")
_LAYOUT = ("note", "order", "expected", "files", "events", "items")
_SOURCE = re.compile(r"mirror|https?://\S+|pypi:[\w.-]+==[\w.]+!\S+")


@dataclass(frozen=True)
class Layout:
    """One way in which a data set comes: its files, and the arguments that read them."""

    files: dict[str, Wanted]
    events: dict[str, Any] | None = None
    items: dict[str, Any] | None = None
    order: str = "none"
    expected: dict[str, int] = field(default_factory=dict)  # users, items, events of the raw files
    note: str = ""  # of an alternative: how it differs

    def needed(self) -> list[str]:
        """The files that reading asks for; the others of the card are extras (attributes, ids, maps)."""
        return list(dict.fromkeys([*_paths(self.events or {}), *_paths(self.items or {})]))


@dataclass(frozen=True)
class Card:
    """A data set as its card describes it. ``order`` is ``"time"``, ``"day"``, ``"file"`` or ``"none"``."""

    name: str
    title: str
    licence: str
    citation: str
    order: str
    layouts: tuple[Layout, ...]  # the card's own, then its alternatives
    homepage: str = ""
    note: str = ""
    folder: str | None = None  # its folder in a mirror, where that is not the name

    @classmethod
    def read(cls, path: Path | str) -> Card:
        """The card in a TOML file.

        Raises:
            DataError: the file is not a card; the message names the key and what is allowed there.
        """
        path = Path(path)
        try:
            raw = tomllib.loads(path.read_text(encoding="utf-8"))
        except tomllib.TOMLDecodeError as problem:
            raise DataError(f"{path} is not TOML: {problem}") from None
        return _parse(raw, path)


@dataclass(frozen=True)
class Fetched:
    """The files of a data set, on this machine."""

    card: Card
    layout: Layout
    files: dict[str, Got]

    def __str__(self) -> str:
        lines = [f"{self.card.name}: {self.card.title}"]
        for name, got in self.files.items():
            state = "sha256 as in the card" if got.verified else f"unverified, sha256 {got.sha256[:12]}… recorded"
            lines.append(f"  {name}  {got.path.stat().st_size:,} bytes, {state}, from {got.source}: {got.path}")
        return "\n".join([*lines, f"  licence: {self.card.licence}"])


def names() -> list[str]:
    """The names of the cards that ship with recsys."""
    return sorted(path.stem for path in shipped.folder("datasets").glob("*.toml"))


def card(name: str | Path) -> Card:
    """The card called ``name``, or the one at a path that ends in ``.toml``.

    Raises:
        DataError: there is no such card; the nearest names are offered.
    """
    if str(name).endswith(".toml"):
        if not Path(name).is_file():
            raise DataError(f"there is no card file {name}")
        return Card.read(name)
    known = names()
    if name not in known:
        raise DataError(
            f"no data set is called {name!r}{_nearest(str(name), known)}. Known: {', '.join(known)}. "
            "For data of your own use recsys.Dataset.scan(path, ...), or pass the path of a card (.toml)"
        )
    return Card.read(shipped.folder("datasets") / f"{name}.toml")


def fetch(name: str | Path | Card, extras: bool = False) -> Fetched:
    """Make sure that the files of a data set are here and whole, and say where.

    A layout whose files are all in the mirror or the cache is taken first; otherwise the first that can be downloaded.

    Args:
        name: a card, its name or its path.
        extras: also the files that reading does not need (attributes, semantic ids, other tables).

    Raises:
        DataError: no layout could be had; the message lists what was tried, why it failed and what to do.
        OSError: the disk is full; what had arrived is kept.
    """
    found = name if isinstance(name, Card) else card(name)
    fetcher = Fetcher(found.name, found.folder)
    for get in (fetcher.local, lambda wanted: fetcher.local(wanted) or fetcher.remote(wanted)):
        for layout in found.layouts:
            if files := _all(layout, get, layout.files if extras else layout.needed()):
                if layout.note:
                    warnings.warn(f"{found.name}: {layout.note}", DataWarning, stacklevel=2)
                return Fetched(found, layout, files)
    first = found.layouts[0]
    asked = list(first.files) if extras else first.needed()
    raise unavailable(fetcher, [wanted for wanted in asked if fetcher.local(first.files[wanted]) is None] or asked)


def fetch_file(name: str | Path | Card, file: str) -> Path:
    """The path of one file of a data set, fetched if it is not here: the extras, such as attributes or semantic ids.

    Raises:
        DataError: the card has no such file, or no source gave it.
    """
    found = name if isinstance(name, Card) else card(name)
    fetcher = Fetcher(found.name, found.folder)
    choices = [layout.files[file] for layout in found.layouts if file in layout.files]
    if not choices:
        known = [known for layout in found.layouts for known in layout.files]
        raise DataError(f"{found.name} has no file {file!r}{_nearest(file, known)}. It has: {', '.join(known)}")
    for wanted in choices:
        if got := fetcher.local(wanted) or fetcher.remote(wanted):
            return got.path
    raise unavailable(fetcher, [file])


def load(name: str | Path) -> Dataset:
    """A public data set, ready to clean and split: its card's files, fetched if needed, with its item table.

    Example: ``recsys.load("ml-100k")``.

    Raises:
        DataError: there is no such card, it has no interactions, or its files could not be had.
    """
    from recsys.data.dataset import Dataset
    from recsys.features.tables import read_items

    found = card(name)
    if all(layout.events is None for layout in found.layouts):
        raise DataError(
            f"{found.name} has no interactions to learn from: {found.note or 'its card has no [events]'} "
            f"recsys.cards.card.fetch_file({found.name!r}, FILE) gives its files: {', '.join(found.layouts[0].files)}"
        )
    fetched = fetch(found)

    def paths(value: Any) -> Any:
        if isinstance(value, str):
            return fetched.files[value].path
        return {key: paths(inner) for key, inner in value.items()} if isinstance(value, dict) else [*map(paths, value)]

    items = None
    if fetched.layout.items is not None:
        arguments = dict(fetched.layout.items)
        path, via = paths(arguments.pop("path")), arguments.pop("via", None)
        if via is not None:
            arguments["via"] = (paths(via["path"]), via["from"], via["to"])
        items = read_items(path, **arguments)
    arguments = dict(fetched.layout.events or {})
    for key in ("path", "splits"):
        if key in arguments:
            arguments[key] = paths(arguments[key])
    arguments = {"order": fetched.layout.order, **arguments}
    return Dataset.scan(**arguments, items=items, name=found.name, expected=fetched.layout.expected or None)


def data_set(
    name: str, user: str | None = None, item: str | None = None, time: str | None = None, items: Path | None = None
) -> Dataset:
    """A data set by the name or path of its card, or the interactions in a file or a glob.

    Raises:
        ValueError: columns are named of a data set whose card knows them.
        DataError: there is neither.
    """
    from recsys.data.dataset import Dataset

    if name in names() or name.endswith(".toml"):
        if any(column is not None for column in (user, item, time, items)):
            raise ValueError(
                f"the card of {name} says which columns are meant: leave --user, --item, --time and --items away"
            )
        return load(name)
    if not _is_path(name):
        return load(name)  # which names the nearest
    return Dataset.scan(name, user=user, item=item, time=time, items=items)


def _all(layout: Layout, get: Callable[[Wanted], Got | None], wanted: Iterable[str]) -> dict[str, Got] | None:
    files: dict[str, Got] = {}
    for name in wanted:
        got = get(layout.files[name])
        if got is None:
            return None
        files[name] = got
    return files


def _paths(table: Mapping[str, Any]) -> list[str]:
    """The file names in an [events] or [items] table."""
    found: list[str] = []
    for value in (table.get("path", []), *table.get("splits", {}).values(), table.get("via", {}).get("path", [])):
        found += [value] if isinstance(value, str) else value
    return found


def _parse(raw: dict[str, Any], path: Path) -> Card:
    _check_keys(raw, (*_TEXTS, *_LAYOUT, "alternatives"), str(path))
    for key in _REQUIRED:
        if not raw.get(key):
            raise DataError(f"{path}: the card needs {key!r}, which is missing or empty")
    for key in _TEXTS:
        if not isinstance(raw.get(key, ""), str):
            raise DataError(f"{path}: {key} must be text, found {raw[key]!r}")
    if raw["name"] != path.stem:
        raise DataError(f"{path}: the card is called {raw['name']!r}; name and file name must be the same")
    own = {key: value for key, value in raw.items() if key in _LAYOUT and key != "note"}
    layouts = [_layout(own, str(path))]
    for number, table in enumerate(raw.get("alternatives", []), 1):
        where = f"{path} alternative {number}"
        for file in table.get("files", {}):
            if file in own["files"]:
                raise DataError(f"{where}: {file!r} is already a file of the card; give this one another name")
        taken_over: dict[str, Any] = {key: own[key] for key in ("events", "order", "expected") if key in own}
        layouts.append(_layout({**taken_over, **table, "files": {**own["files"], **table.get("files", {})}}, where))
    texts = {key: _line(raw[key]) for key in _TEXTS if key in raw}
    return Card(**texts, layouts=tuple(layouts))


def _layout(table: dict[str, Any], where: str) -> Layout:
    _check_keys(table, _LAYOUT, where)
    if table["order"] not in ORDERS:
        raise DataError(f"{where}: order is one of {', '.join(ORDERS)}, found {table['order']!r}")
    expected = table.get("expected", {})
    _check_keys(expected, ("users", "items", "events"), f"{where} [expected]")
    files = {name: _wanted(name, entry, f'{where} [files."{name}"]') for name, entry in table["files"].items()}
    events, items = table.get("events"), table.get("items")
    _check_reading(events, items, where)
    layout = Layout(files, events, items, table["order"], expected, _line(table.get("note", "")))
    for name in layout.needed():
        if name not in files:
            raise DataError(f"{where}: {name!r} is to be read but is not in [files]{_nearest(name, files)}")
    return layout


def _check_reading(events: dict[str, Any] | None, items: dict[str, Any] | None, where: str) -> None:
    from recsys.data.dataset import Dataset
    from recsys.features.tables import read_items

    if events is not None:
        ours = ("items", "users", "name", "expected", "order")
        _check_keys(events, [key for key in _arguments(Dataset.scan) if key not in ours], f"{where} [events]")
        if ("path" in events) == ("splits" in events):
            raise DataError(f"{where} [events]: give either path (one file or several) or splits")
    if items is not None:
        _check_keys(items, _arguments(read_items), f"{where} [items]")
        if "path" not in items:
            raise DataError(f"{where} [items]: path is missing")
        if "via" in items and set(items["via"]) != {"path", "from", "to"}:
            raise DataError(f"{where} [items] via: expected path, from and to, found {sorted(items['via'])}")


def _wanted(name: str, entry: dict[str, Any], where: str) -> Wanted:
    _check_keys(entry, ("sha256", "bytes", "sources"), where)
    sha256, size = entry.get("sha256"), entry.get("bytes")
    if sha256 == "unverified":
        if size is not None:
            raise DataError(f"{where}: bytes are stated only together with a sha256")
        sha256 = None
    elif not isinstance(sha256, str) or not re.fullmatch(r"[0-9a-f]{64}", sha256) or not isinstance(size, int):
        raise DataError(
            f'{where}: expected bytes and a sha256 of 64 hex digits, or sha256 = "unverified"; found {entry}'
        )
    sources = tuple(entry.get("sources", (MIRROR,)))
    for source in sources:
        if not _SOURCE.fullmatch(source):
            raise DataError(
                f"{where}: a source is 'mirror', 'https://host/file', 'https://host/archive.zip!member' or "
                f"'pypi:name==version!path', found {source!r}"
            )
    if "/" in name or "\\" in name or name.startswith("."):
        raise DataError(f"{where}: a file name has no folders")
    return Wanted(name, sha256, size, sources)


def _arguments(function: Callable[..., Any]) -> list[str]:
    return [name for name in inspect.signature(function).parameters if name not in ("self", "cls")]


def _check_keys(table: Any, allowed: Iterable[str], where: str) -> None:
    if not isinstance(table, dict):
        raise DataError(f"{where}: expected a table, found {table!r}")
    allowed = list(allowed)
    for key in table:
        if key not in allowed:
            raise DataError(f"{where}: unknown key {key!r}{_nearest(key, allowed)}. Known: {', '.join(allowed)}")


def _line(text: str) -> str:
    return " ".join(text.split())


def _nearest(word: str, choices: Iterable[str]) -> str:
    close = difflib.get_close_matches(word, list(choices), n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""


def _is_path(name: str) -> bool:
    return any(mark in name for mark in ("/", "\\", ".", "*")) or Path(name).is_file()
