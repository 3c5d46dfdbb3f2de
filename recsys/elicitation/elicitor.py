"""``elicit``: which 5 to 20 items to ask a new user about, and what to recommend after the answers.

    asker = rs.elicit(model, split, rating="rating")
    asker.next([("50", "like"), ("172", "unknown")], k=3)      # answers in, questions out; nothing is kept in between
    asker.recommend([("50", "like"), ("172", "unknown")], k=10)

The default asks what most people like, in this order, and blends the model with popularity. On ml-1m no other asker is
ahead of it by more than .005 NDCG@10 (``python benchmarks/quality/elicitation.py``, 2026-12-01, three splits of users:
.3331 after 20 questions; ``probable`` .3378, ``group_gain`` .3328, ``random`` .3019, no question .2880).

Legend: N items, Q items of the pool.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from recsys.elicitation.askers import LISTS, Asker, Fixed, Random
from recsys.elicitation.factors import FactorGain
from recsys.elicitation.groups import GroupGain, Groups, Probable
from recsys.elicitation.opinions import DISLIKE, LIKE, UNASKED, UNKNOWN, Opinions
from recsys.elicitation.readers import Blended, Grouped, Reader
from recsys.errors import DataError, DataWarning, closest, not_fitted, printable
from recsys.ranking.filters import checked_k
from recsys.ranking.ties import best
from recsys.recommenders.history import History
from recsys.recommenders.top import TopK
from recsys.storage.folders import read_manifest, write_folder
from recsys.storage.tensors import read_tensors, write_tensors

if TYPE_CHECKING:
    from recsys.data.split import Split

KIND, FORMAT = "recsys.elicitation", 1
ADAPTIVE = ("group_gain", "probable", "factor_gain")
ASKERS = ("random", *LISTS, *ADAPTIVE)
READERS = ("history", "blend", "groups")
WORDS = {"like": LIKE, "dislike": DISLIKE, "unknown": UNKNOWN}
WEIGHT = 0.3  # of popularity in a blend
LITTLE = 0.01  # nats, below which another question is hardly worth the bother
TENSORS = "elicitation.safetensors"


@dataclass(frozen=True)
class Questions:
    """What to ask next, best first."""

    items: list[Any]  # raw ids
    gains: list[float]  # what the asker goes by; only comparable within one asker
    known: list[float]  # share of training users who know the item
    enough: bool  # whether nothing more is worth asking: the pool is empty, or what is left tells next to nothing


class Elicitor:
    """Questions and lists for one catalogue. Made by :func:`elicit`, or :meth:`load`.

    Args:
        model: fitted, whose scores are read; or anything with ``vocabulary`` for ``reader="groups"``.
        asker, reader: as :func:`elicit` names them.
        pool: (Q,) columns of the items that may be asked about.
        likes, known: (N,) share of training users who like, and who know, each item.
        tables: what asker and reader learned, by name.
        weight: of ``blend``.
    """

    def __init__(
        self,
        model: Any,
        asker: str,
        reader: str,
        pool: np.ndarray,
        likes: np.ndarray,
        known: np.ndarray,
        tables: Mapping[str, np.ndarray],
        weight: float = WEIGHT,
    ) -> None:
        if model.vocabulary is None:
            raise not_fitted(model)
        self.model, self.asker_name, self.reader_name = model, asker, reader
        self.pool, self.likes, self.known, self.weight = pool, likes, known, weight
        self.tables = dict(tables)
        groups = Groups(tables["pi"], tables["tables"], float(tables["temper"][0])) if "pi" in tables else None
        whole = groups is not None and groups.tables.shape[2] != len(pool)
        asked = groups.of(pool) if groups is not None and whole else groups
        self.asker = _asker(asker, asked, self.tables)
        self.reader: Reader
        if reader == "groups":
            assert groups is not None
            self.reader = Grouped(groups, pool)
        else:
            self.reader = Blended(model, likes, weight if reader == "blend" else 0.0)

    def __repr__(self) -> str:
        return f"Elicitor({self.asker_name}, {self.reader_name}, {len(self.pool):,} items may be asked)"

    def next(self, answers: Any = (), k: int = 1, allow: Sequence[Any] | None = None) -> Questions:
        """The ``k`` next questions after ``answers``: fewer, where the pool holds no more.

        Args:
            answers: pairs of raw id and "like", "dislike" or "unknown" ("never seen it"), in the order they were given.
            allow: raw ids that alone may be asked, such as those in stock.

        Raises:
            ValueError: an answer is none of the three, or ``k`` is below 1.
        """
        k = checked_k(k)
        said, columns, _ = self._read(answers)
        gains = np.array(self.asker.gains(said), np.float64)[0]
        may = ~np.isin(self.pool, columns)
        if allow is not None:
            may &= np.isin(self.pool, self._columns(list(allow)))
        order = np.lexsort((np.arange(len(gains)), -gains))
        chosen = order[may[order]][:k]
        items = self.model.vocabulary.raw(self.pool[chosen] + 1).tolist()
        enough = not len(chosen) or (self.asker_name == "group_gain" and float(gains[chosen[0]]) < LITTLE)
        return Questions(items, gains[chosen].tolist(), self.known[self.pool[chosen]].tolist(), enough)

    def recommend(self, answers: Any = (), k: int = 10, allow: Sequence[Any] | None = None) -> TopK:
        """The ``k`` best items after ``answers``, none that was asked about; popular ones as long as nothing is liked.

        Raises:
            ValueError: as for :meth:`next`.
        """
        k = checked_k(k)
        said, columns, liked = self._read(answers)
        scores = torch.from_numpy(np.array(self.reader.scores([liked], said), np.float32))
        scores[:, columns] = -torch.inf
        if allow is not None:
            hidden = np.ones(scores.shape[1], bool)
            hidden[self._columns(list(allow))] = False
            scores[:, hidden] = -torch.inf
        values, found = best(scores, k)
        rows = torch.where(values == -torch.inf, 0, found + 1).numpy()
        unknown = np.array([self._unknown(answers)])
        popular = np.array([not len(liked) and self.reader_name != "groups"])
        return TopK(rows, values.numpy(), unknown, popular, self.model.vocabulary)

    def save(self, folder: str | Path) -> None:
        """Write what it learned, without the model, to ``folder``: whole or not at all."""

        def fill(partial: Path) -> dict[str, Any]:
            own = {"pool": self.pool, "likes": self.likes, "known": self.known}
            tensors = {**own, **{f"tables.{name}": one for name, one in self.tables.items()}}
            write_tensors(
                partial / TENSORS,
                {name: torch.from_numpy(np.ascontiguousarray(one)) for name, one in tensors.items()},
            )
            digest = self.model.vocabulary.digest
            return {"asker": self.asker_name, "reader": self.reader_name, "weight": self.weight, "catalogue": digest}

        write_folder(folder, KIND, FORMAT, fill)

    @classmethod
    def load(cls, folder: str | Path, model: Any) -> Elicitor:
        """What :meth:`save` wrote, with the model, or the bundle that holds it.

        Raises:
            FileNotFoundError: there is no such folder.
            DataError: it is damaged, or of another catalogue.
        """
        folder = Path(folder)
        manifest = read_manifest(folder, KIND, FORMAT)
        model = getattr(model, "model", model)
        if model.vocabulary is None or manifest["catalogue"] != model.vocabulary.digest:
            raise DataError(f"{printable(folder, None)} asks about another catalogue than the model's: make it again")
        found = {name: one.numpy() for name, one in read_tensors(folder / TENSORS).items()}
        tables = {name.removeprefix("tables."): one for name, one in found.items() if name.startswith("tables.")}
        own = (found["pool"], found["likes"], found["known"])
        return cls(model, manifest["asker"], manifest["reader"], *own, tables, manifest["weight"])

    def _read(self, answers: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(1, Q) answers about the pool, and the columns that were answered, and of these those liked, in order."""
        pairs = _pairs(answers)
        columns = self._columns([one for one, _ in pairs], known=False)
        last = {column: word for column, (_, word) in zip(columns.tolist(), pairs, strict=True) if column >= 0}
        said = np.full((1, len(self.pool)), UNASKED, np.int8)
        place = {column: at for at, column in enumerate(self.pool.tolist())}
        for column, word in last.items():
            if column in place:
                said[0, place[column]] = WORDS[word]
        liked = [column for column, word in last.items() if word == "like"]
        return said, np.array(list(last), np.int64), np.array(liked, np.int64)

    def _columns(self, raw: list[Any], known: bool = True) -> np.ndarray:
        rows = self.model.vocabulary.rows(raw) if raw else np.zeros(0, np.int64)
        if missing := int((rows < 1).sum()):
            sample = printable(repr(next(one for one, row in zip(raw, rows, strict=True) if row < 1)), 60)
            warnings.warn(f"{missing:,} of {len(raw):,} items are unknown, such as {sample}", DataWarning, stacklevel=4)
        return np.asarray(rows[rows > 0] - 1 if known else np.maximum(rows, 0) - 1, np.int64)

    def _unknown(self, answers: Any) -> int:
        raw = [one for one, _ in _pairs(answers)]
        return int((self.model.vocabulary.rows(raw) < 1).sum()) if raw else 0


def elicit(
    model: Any,
    split: Split,
    asker: str = "liked",
    pool: int = 500,
    reader: str = "blend",
    rating: str | None = None,
    liked: float = 4.0,
    weight: float = WEIGHT,
    groups: int = 64,
    seed: int = 7,
) -> Elicitor:
    """Learn from the training events of ``split`` what to ask a new user; ``model`` stays as it is.

    Args:
        model: fitted, of the same items; with ``blend`` and ``history`` it scores all items from ids alone.
        asker: "liked" (the default: most liked first), "popular", "random", "entropy0", "logpop_entropy",
            "pop_entropy", "variance", "pop_variance"; or one that goes by the answers: "group_gain", "factor_gain",
            "probable".
        pool: how many of the best known items may be asked about.
        reader: how answers become a list: "blend", "history" or "groups" (:mod:`recsys.elicitation.readers`).
        rating: the column of events with ratings (``Dataset.scan(event_columns={NAME: "number"})``), of which
            ``liked`` and more is a like. None: every event is one.
        weight: of popularity in a blend, in the unit of the model's scores.
        groups: taste groups, where asker or reader has any.
        seed: of draws.

    Raises:
        ValueError: no such asker or reader, or a number out of range.
        DataError: the data lack the ratings.
    """
    for given, choices in ((asker, ASKERS), (reader, READERS)):
        if given not in choices:
            raise ValueError(f"there is no {given!r}; {closest(given, choices)}")
    if pool < 1:
        raise ValueError(f"expected a pool of at least one item, found {pool}")
    if model.vocabulary is None:
        raise not_fitted(model)
    opinions = Opinions.of(split, rating, liked).over(model.vocabulary)
    return learned(model, opinions, asker, pool, reader, weight, groups, seed)


def learned(
    model: Any,
    opinions: Opinions,
    asker: str,
    pool: int,
    reader: str,
    weight: float = WEIGHT,
    groups: int = 64,
    seed: int = 7,
    mixture: Groups | None = None,
) -> Elicitor:
    """An elicitor of the opinions of training users, over the model's catalogue.

    Args:
        mixture: groups over all items, fitted before.
    """
    likes, dislikes = opinions.counts
    known = likes + dislikes
    columns = pool_of(known, pool)
    tables: dict[str, np.ndarray] = {}
    if reader == "groups" or asker in ("group_gain", "probable"):
        items = None if reader == "groups" else columns
        mixture = mixture or Groups.fit(opinions, items, groups, seed=seed)
        tables |= mixture.tensors()
    if asker == "random":
        tables |= {"seed": np.array([seed])}
    elif asker == "factor_gain":
        tables |= FactorGain.fit(opinions, columns).tensors()
    elif asker in LISTS:
        tables |= {"order": LISTS[asker](opinions)[columns]}
    users = max(opinions.num_users, 1)
    shares = (likes / users).astype(np.float32), (known / users).astype(np.float32)
    return Elicitor(model, asker, reader, columns, *shares, tables, weight)


def pool_of(known: np.ndarray, size: int) -> np.ndarray:
    """The columns of the ``size`` best known items, ascending; nobody is asked about what no training user knows."""
    order = np.lexsort((np.arange(len(known)), -known))
    return np.sort(order[known[order] > 0][:size])


def _asker(name: str, groups: Groups | None, tables: Mapping[str, np.ndarray]) -> Asker:
    if name == "random":
        return Random(int(tables["seed"][0]))
    if name == "factor_gain":
        return FactorGain(tables["vectors"], tables["known"], float(tables["variance"][0]))
    if name in LISTS:
        return Fixed(tables["order"])
    assert groups is not None
    return GroupGain(groups) if name == "group_gain" else Probable(groups)


def _pairs(answers: Any) -> list[tuple[Any, str]]:
    """Answers as pairs of raw id and a word."""
    given = list(answers.items()) if isinstance(answers, Mapping) else list(answers)
    found = []
    for one in given:
        if isinstance(one, (str, bytes)) or not hasattr(one, "__len__") or len(one) != 2:
            raise ValueError(f"an answer is a pair such as ('50', 'like'), found {printable(repr(one), 60)}")
        if one[1] not in WORDS:
            raise ValueError(
                f"an answer is 'like', 'dislike' or 'unknown', found {printable(repr(one[1]), 60)} for "
                f"{printable(repr(one[0]), 60)}"
            )
        found.append((one[0], str(one[1])))
    return found


def history_of(answers: Any) -> History:
    """What was liked, in order, as the history of a recommender."""
    return History([one for one, word in _pairs(answers) if word == "like"])
