"""What a server answers, without the web: bundles by name that are exchanged while they are asked.

A :class:`Served` is one bundle as it was loaded, with its item table, its fallbacks and what was withdrawn. An answer
is made by the one that was there when the request came, and names it. :class:`Service` holds the current one of each
name; a new one takes its place when it is whole, and a broken one never does.

Legend: B histories, K length of a list, N items.
"""

from __future__ import annotations

import hashlib
import threading
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from recsys.errors import DataError, DataWarning, UnknownItemError, closest, printable
from recsys.ids.vocabulary import Vocabulary
from recsys.ranking.filters import Limits
from recsys.recommenders.history import History
from recsys.serve.asking import Asking
from recsys.serve.bundle import Bundle
from recsys.serve.columns import Columns
from recsys.serve.fallbacks import POPULAR, Fallbacks
from recsys.serve.files import UNREADABLE
from recsys.storage.folders import MANIFEST

MODEL = "model"  # the source of what the model recommends
LONG = 100  # denied items, beyond which an ask is ranked alone: lists are looked up once, not for each history
STEPS = (10, 100)  # lists up to these lengths are made together, cut to what each asked for


@dataclass
class Ask:
    """One request: histories that share all the rest."""

    served: Served
    histories: list[History]
    k: int = 10
    exclude: bool = True  # what the history holds
    allow: list[Any] | None = None
    deny: list[Any] | None = None
    rows: np.ndarray | None = None  # of which alone something may be shown
    exact: bool = False  # without a graph
    given: list[list[Any]] | None = None  # the ids of the histories as they were sent, to be told if they are unknown

    def __len__(self) -> int:
        return len(self.histories)

    @property
    def group(self) -> tuple[Any, ...]:
        """Asks of one group are ranked together."""
        step = next((step for step in STEPS if self.k <= step), self.k)
        alone = id(self) if self.allow is not None or len(self.deny or ()) > LONG else None
        return id(self.served), step, self.exact, id(self.rows) if self.rows is not None else None, alone


@dataclass
class Answer:
    """Lists for the histories of an ask, in their order."""

    served: Served
    items: list[list[Any]]  # raw ids, best first
    scores: list[list[float]]
    titles: list[list[str | None]]
    unknown: list[list[Any]]  # raw ids of the history that the catalogue does not hold
    sources: list[str]  # "model", or the name of a fallback
    notes: list[str] = field(default_factory=list)


class Served:
    """A bundle that is asked.

    Args:
        name: what the service calls it.
        chain, lists: as :class:`recsys.serve.fallbacks.Fallbacks` takes them.
        withdrawn: raw ids that are not recommended; those that it does not hold are left out.
    """

    def __init__(
        self,
        bundle: Bundle,
        name: str = "",
        chain: Sequence[str] = (POPULAR,),
        lists: Mapping[str, Sequence[Any]] | None = None,
        withdrawn: Iterable[Any] = (),
    ) -> None:
        self.bundle, self.name = bundle, name
        self.hash = hashlib.sha256((bundle.folder / MANIFEST).read_bytes()).hexdigest()[:16]
        typed = {key: self._typed(ids, bundle.vocabulary.kind) for key, ids in (lists or {}).items()}
        self.fallbacks = Fallbacks(bundle.vocabulary, chain, typed)
        ids = np.array(["", *map(str, bundle.vocabulary.ids)], object)  # what has no texts is found by its id
        self.columns = Columns(bundle.item_text or {"id": ids}, self._popularity())
        self.withdrawn = np.zeros(0, np.int64)  # rows
        self.asking = Asking(self)
        self.withdraw(withdrawn, strict=False)

    @property
    def vocabulary(self) -> Vocabulary:
        """Raw ids of the items, and their rows."""
        return self.bundle.vocabulary

    def ids(self, raw: Sequence[Any]) -> list[Any]:
        """Raw ids in the type of the catalogue: JSON has numbers where people mean texts, and the other way round.

        What cannot be one of its ids becomes an id that it does not hold.
        """
        return self._typed(raw, self.vocabulary.kind)

    @staticmethod
    def _typed(raw: Sequence[Any], kind: str) -> list[Any]:
        if kind == "str":
            return [one if isinstance(one, str) else str(one) for one in raw]
        return [one if isinstance(one, int) else _number(one) for one in raw]

    def find(self, raw: Sequence[Any]) -> np.ndarray:
        """(n,) rows of raw ids of either type, 0 for unknown ones."""
        return np.maximum(self.vocabulary.rows(self.ids(raw)), 0) if len(raw) else np.zeros(0, np.int64)

    def answer(self, asks: Sequence[Ask]) -> list[Answer | Exception]:
        """The answers to asks of this bundle that are of one group; an exception for an ask that cannot be answered."""
        try:
            return list(self._answer(asks))
        except Exception as error:
            if len(asks) == 1:
                return [error]
        return [one for ask in asks for one in self.answer([ask])]  # so that one does not spoil it for the others

    def similar(self, items: Sequence[Any], k: int, metric: str) -> list[list[tuple[Any, float]]]:
        """The ``k`` nearest items of each raw item, without those withdrawn, as (raw id, similarity)."""
        gone = set(self.vocabulary.raw(self.withdrawn).tolist())
        found = self.bundle.similar(self.ids(items), min(k + len(gone), max(len(self.vocabulary) - 1, 1)), metric)
        return [[pair for pair in near if pair[0] not in gone][:k] for near in found]

    def popular(self, count: int) -> np.ndarray:
        """(n,) rows of the items that were most popular in training."""
        counts = self._popularity()[1:]
        return np.lexsort((np.arange(len(counts)), -counts))[:count] + 1

    def withdraw(self, raw: Iterable[Any], strict: bool = True) -> None:
        """Recommend these items no more.

        Raises:
            UnknownItemError: one is not in the catalogue, unless not ``strict``.
        """
        self.withdrawn = np.union1d(self.withdrawn, self._there(list(raw), strict))

    def restore(self, raw: Iterable[Any]) -> None:
        """Recommend these items again.

        Raises:
            UnknownItemError: one is not in the catalogue.
        """
        self.withdrawn = np.setdiff1d(self.withdrawn, self._there(list(raw), True))

    def add(
        self, raw: Sequence[Any], vectors: Any = None, features: Any = None, text: Mapping[str, Any] | None = None
    ) -> None:
        """Take in items that came after training: ``Bundle.add_items``; the folder stays as it is.

        Raises:
            ValueError: the model has nothing for new items, or the item table no such column.
            DataError: an id is there already, or a vector is missing.
        """
        ids = self.ids(raw)
        if "" in ids or UNREADABLE in ids:
            sample = next(one for one, typed in zip(raw, ids, strict=True) if typed in ("", UNREADABLE))
            raise DataError(
                f"{printable(repr(sample), 60)} cannot be an id: the catalogue has {self.vocabulary.kind} ids"
            )
        if len(self.vocabulary) > self.bundle.model.num_items:
            raise ValueError(
                "the index of this bundle holds items that the model lacks: add all of them and export again"
            )
        own = {"id": [str(one) for one in ids]} if not self.bundle.item_text else {}
        columns = self.columns.extended({**own, **(text or {})}, len(raw))
        self.bundle.add_items(ids, vectors, features)
        self.columns = columns

    def _there(self, raw: list[Any], strict: bool) -> np.ndarray:
        rows = self.find(raw)
        if strict and (rows == 0).any():
            unknown = [one for one, row in zip(raw, rows, strict=True) if row == 0]
            raise UnknownItemError(f"{len(unknown):,} items are not in the catalogue, such as {unknown[:3]}")
        return rows[rows > 0]

    def _popularity(self) -> np.ndarray:
        known = self.bundle.model.popularity.cpu().numpy()
        return np.append(known, np.zeros(max(0, len(self.vocabulary) + 1 - len(known)), known.dtype))

    def _answer(self, asks: Sequence[Ask]) -> Iterable[Answer]:
        first, k = asks[0], max(ask.k for ask in asks)
        histories = [one for ask in asks for one in ask.histories]
        exclude, allow, deny = "none", first.allow, first.deny  # an ask with lists of its own is alone
        if len(asks) == 1:
            exclude = "history" if first.exclude else "none"
        else:
            deny = [[*(one.items if ask.exclude else ()), *(ask.deny or ())] for ask in asks for one in ask.histories]
        limits = Limits(first.rows, self.withdrawn if len(self.withdrawn) else None)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DataWarning)  # the answer itself says what was not known
            top, _ = self.bundle._rank(histories, k, exclude, allow, deny, limits, first.exact)
        rows, scores, sources = top.rows, top.scores, np.where(top.fallback, POPULAR, MODEL).tolist()
        if not self.fallbacks.only_popular:
            owners = [ask for ask in asks for _ in ask.histories]
            for at in np.flatnonzero(top.fallback).tolist():
                hidden = np.append(self.withdrawn, self.find(owners[at].deny or []))
                only = first.rows if allow is None else self.find(allow)
                only = np.intersect1d(only, first.rows) if only is not None and first.rows is not None else only
                rows[at], scores[at], sources[at] = self.fallbacks.answer(rows[at], scores[at], hidden, only)
        yield from self._told(asks, rows, scores, sources, np.asarray(top.unknown))

    def _told(
        self, asks: Sequence[Ask], rows: np.ndarray, scores: np.ndarray, sources: list[str], unknown: np.ndarray
    ) -> Iterable[Answer]:
        """The lists of each ask, cut to what it asked for."""
        lengths, missing = (rows > 0).sum(1).tolist(), unknown.tolist()
        ids, titles = self.vocabulary.ids[rows - 1].tolist(), self.columns.titles(rows)
        lists = list(zip(ids, scores.tolist(), titles, lengths, strict=True))
        begin = 0
        for ask in asks:
            part = slice(begin, begin + len(ask))
            cut = [(one[: min(n, ask.k)], values[: min(n, ask.k)], names[: min(n, ask.k)])
                   for one, values, names, n in lists[part]]  # fmt: skip
            sent = ask.given or [list(one.items) for one in ask.histories]
            told = [self._unknown(one.items, ids) if some else []
                    for one, ids, some in zip(ask.histories, sent, missing[part], strict=True)]  # fmt: skip
            items, values, names = (list(column) for column in zip(*cut, strict=True)) if cut else ([], [], [])
            yield Answer(self, items, values, names, told, sources[part])
            begin += len(ask)

    def _unknown(self, items: Sequence[Any], sent: Sequence[Any]) -> list[Any]:
        rows = self.bundle.vocabulary_of_model.rows(list(items))
        return [one for one, row in zip(sent, rows.tolist(), strict=True) if row < 1]


class Service:
    """Bundles by name, the first of which answers where none is named.

    Args:
        folders: name -> folder of a bundle.
        trust: as :meth:`recsys.Bundle.load` takes it.
        chain, lists: as :class:`Served` takes them.

    Nothing is read before :meth:`load`.
    """

    def __init__(
        self,
        folders: Mapping[str, Path],
        trust: Sequence[str] = (),
        chain: Sequence[str] = (POPULAR,),
        lists: Mapping[str, Sequence[Any]] | None = None,
    ) -> None:
        if not folders:
            raise ValueError("a service has at least one bundle")
        self.folders, self._trust, self._chain, self._lists = dict(folders), tuple(trust), chain, lists
        self._current: dict[str, Served] = {}
        self._loading = threading.Lock()
        self._swapping = threading.Lock()  # held while what is withdrawn changes or goes over to another bundle

    @property
    def ready(self) -> bool:
        """Whether every bundle was loaded."""
        return self._current.keys() == self.folders.keys()

    @property
    def loaded(self) -> list[str]:
        """Names of the bundles that are asked."""
        return list(self._current)

    def current(self, name: str | None = None) -> Served:
        """The bundle of a name, as it is now.

        Raises:
            ValueError: there is none of this name.
            LookupError: it is not loaded yet.
        """
        name = next(iter(self.folders)) if name is None else name
        if name not in self.folders:
            raise ValueError(f"there is no bundle {printable(repr(name), 60)}; {closest(name, self.folders)}")
        if name not in self._current:
            raise LookupError(f"the bundle {name!r} is being loaded")
        return self._current[name]

    def load(self, name: str | None = None) -> Served:
        """Read the folder of a bundle and ask that from now on; what was withdrawn stays so.

        Raises:
            FileNotFoundError: there is no bundle.
            DataError: it is damaged; the one before goes on.
            PermissionError: a part is of a module that is not trusted.
        """
        name = next(iter(self.folders)) if name is None else name
        with self._loading:
            bundle = Bundle.load(self.folders[name], self._trust)
            served = Served(bundle, name, self._chain, self._lists)
            list(served.answer([Ask(served, [History(bundle.vocabulary.ids[:1].tolist())])]))  # first use is slow
            with self._swapping:
                before = self._current.get(name)
                if before is not None:
                    served.withdraw(before.vocabulary.raw(before.withdrawn).tolist(), strict=False)
                self._current[name] = served
        return served

    def withdraw(self, name: str | None, raw: Sequence[Any]) -> Served:
        """Recommend items no more, by this bundle and those that come under its name; the bundle.

        Raises:
            UnknownItemError: one is not in the catalogue.
        """
        with self._swapping:
            served = self.current(name)
            served.withdraw(raw)
        return served

    def restore(self, name: str | None, raw: Sequence[Any]) -> Served:
        """Recommend items again; the bundle.

        Raises:
            UnknownItemError: one is not in the catalogue.
        """
        with self._swapping:
            served = self.current(name)
            served.restore(raw)
        return served

    def answer(self, asks: Sequence[Ask]) -> list[Answer | Exception]:
        """The answers to asks of any bundles, in their order; those of one group are ranked together."""
        groups: dict[Any, list[int]] = {}
        for at, ask in enumerate(asks):
            groups.setdefault(ask.group, []).append(at)
        found: list[Any] = [None] * len(asks)
        for members in groups.values():
            answers = asks[members[0]].served.answer([asks[at] for at in members])
            for at, one in zip(members, answers, strict=True):
                found[at] = one
        return found


def _number(raw: Any) -> int:
    """An id of an int catalogue."""
    text = str(raw)
    try:
        return int(text) if str(int(text)) == text and abs(int(text)) < 2**63 else UNREADABLE
    except ValueError:
        return UNREADABLE
