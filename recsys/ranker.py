"""What every recommender answers, learned or counted: ``scores``, ``recommend``; raw ids in, raw ids out.

Legend: B histories, N items (rows 1..N), K cut-off.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from recsys.data.batch import PAD, Batch
from recsys.data.cut import Cut
from recsys.data.prepared import padded_blocks
from recsys.data.vocabulary import Vocabulary
from recsys.errors import DataWarning
from recsys.plain import printable
from recsys.seams import Context
from recsys.storage.tensors import once_each, shared

SCORE_BUDGET = 256 * 2**20  # bytes of one block of scores and padded histories in recommend and scores
SHOWN = 10  # histories whose recommendations are printed
TOKEN_BYTES = 64  # of one place of the padded view, while a batch is made of it


@dataclass(frozen=True)
class History:
    """One user's raw item ids, oldest first, with what else a model may ask for (times in milliseconds)."""

    items: Sequence[Any]
    times: Sequence[int] | None = None
    user: Any = None
    query_time: int | None = None


@dataclass(frozen=True)
class TopK:
    """Recommendations for B histories. Rows are 0, scores -inf, where fewer than K items were left."""

    rows: np.ndarray  # (B, K) int64
    scores: np.ndarray  # (B, K) float32
    unknown: np.ndarray  # (B,) int64: history items the catalogue does not hold, skipped
    fallback: np.ndarray  # (B,) bool: nothing known in the history, ranked by popularity
    vocabulary: Vocabulary

    def __len__(self) -> int:
        return self.rows.shape[0]

    @property
    def items(self) -> list[list[Any]]:
        """Raw item ids, best first, one list per history."""
        found = self.rows != PAD
        raw = iter(self.vocabulary.raw(self.rows[found]).tolist())
        return [[next(raw) for _ in range(count)] for count in found.sum(1).tolist()]

    def __str__(self) -> str:
        lines = []
        for at, items in enumerate(replace(self, rows=self.rows[:SHOWN]).items):
            best = ", ".join(
                f"{printable(item)} {score:.4g}" for item, score in zip(items, self.scores[at], strict=False)
            )
            notes = ["by popularity"] if self.fallback[at] else []
            notes += [f"{self.unknown[at]:,} unknown in the history"] if self.unknown[at] else []
            told = f" ({'; '.join(notes)})" if notes else ""
            lines.append(f"{at}: {best or 'nothing is left to recommend'}{told}")
        if len(self) > SHOWN:
            lines.append(f"... and {len(self) - SHOWN:,} more histories")
        return "\n".join(lines)


class Ranker(nn.Module):
    """Shared by all recommenders: raw histories to batches, exclusion, top-k, fallback, saved tensors.

    A subclass implements :meth:`score`. ``max_length`` is the longest history it reads (None: all of it), ``needs``
    the optional batch fields, ``saved`` whether class, arguments and tensors are all of it, so that it can be loaded.
    """

    popularity: Tensor
    max_length: int | None = None
    needs: frozenset[str] = frozenset()
    saved: bool = True
    learned: bool = False  # whether fit or load_tensors gave it what it knows, and bind alone did not
    cut: Cut | None = None  # which events it learned from, as far as that is known
    users: Vocabulary | None = None  # raw user ids of the training; not saved

    def __init__(self) -> None:
        super().__init__()
        self.num_items = 0
        self.vocabulary: Vocabulary | None = None
        self.register_buffer("popularity", torch.zeros(1))

    def bind(self, context: Context) -> None:
        """Learn the catalogue: sizes, vocabulary, training popularity (the fallback for empty histories)."""
        self.learned, self.cut = False, None
        self.num_items, self.users = context.num_items, context.users
        self.vocabulary = context.vocabulary
        counts = np.zeros(context.num_items + 1) if context.training is None else context.training.item_counts()
        self.popularity = torch.from_numpy(np.array(counts, dtype=np.float32))

    def score(self, batch: Batch) -> Tensor:
        """(B, N) scores of all items, column j for item row j + 1, in a tensor the caller may write to.

        Histories in ``batch`` are not empty.
        """
        raise NotImplementedError(f"{type(self).__name__} does not score all items; use recommend")

    def score_safely(self, batch: Batch) -> Tensor:
        """:meth:`score` in float32, with training popularity where a history is empty."""
        known = (batch.lengths > 0).nonzero().squeeze(1)
        if len(known) == len(batch):
            return self.score(batch).float()
        scores = self.popularity[1:].to(batch.ids.device).repeat(len(batch), 1)
        if len(known):
            scores[known] = self.score(batch.select(known)).float()
        return scores

    @torch.inference_mode()
    def scores(self, histories: Sequence[Any]) -> np.ndarray:
        """(B, N) float32 scores of the whole catalogue for raw histories; column j is item row j + 1."""
        blocks = [self.score_safely(batch).cpu().numpy() for batch, _ in self._batches(histories)]
        return np.concatenate(blocks) if blocks else np.zeros((0, self.num_items), np.float32)

    @torch.inference_mode()
    def recommend(
        self, histories: Sequence[Any], k: int = 10, exclude: str = "history", allow: Sequence[Any] | None = None
    ) -> TopK:
        """The ``k`` best items for each raw history: a list of raw ids, or a :class:`History`.

        Args:
            exclude: "history" leaves out what the history holds, "none" lets it be recommended again.
            allow: raw ids; if given, nothing else is recommended.

        Unknown ids are skipped and counted; a history without a known item is ranked by popularity (``fallback``).

        Raises:
            ValueError: ``k`` is not in 1..N, or ``exclude`` is neither of the two.
            TypeError: a history is one id, not a list of them.
        """
        self._check(k, exclude)
        histories = as_histories(histories)
        allowed = None if allow is None else self._allowed(allow)
        found: list[tuple[np.ndarray, ...]] = []
        unknown: list[int] = []
        for batch, skipped in self._batches(histories):
            scores = self.score_safely(batch)
            if exclude == "history":
                scores[self._pairs(batch, histories, len(unknown))] = -torch.inf
            if allowed is not None:
                scores[:, ~allowed.to(scores.device)] = -torch.inf
            best = scores.topk(k, dim=1)
            found.append(
                (best.values.cpu().numpy(), best.indices.cpu().numpy() + 1, (batch.lengths == 0).cpu().numpy())
            )
            unknown.extend(skipped.tolist())
        return self._top(found, np.asarray(unknown, np.int64), k)

    def tensors(self) -> dict[str, Tensor]:
        """Everything learned, by name, ready for safetensors; what goes by several names is one tensor."""
        return once_each(self.state_dict(), lambda value: value.detach().cpu().contiguous())

    def load_tensors(self, tensors: dict[str, Tensor]) -> None:
        """Take over what :meth:`tensors` gave; buffers may have any shape, parameters must fit.

        Parameters that were one when they were saved are one afterwards.

        Raises:
            ValueError: names are missing or left over, or a parameter has another shape.
        """
        own = self.state_dict()
        missing, left = own.keys() - tensors.keys(), tensors.keys() - own.keys()
        if missing or left:
            raise ValueError(f"saved tensors do not fit this model: missing {sorted(missing)}, unknown {sorted(left)}")
        if tensors["popularity"].shape != own["popularity"].shape:
            raise ValueError(f"popularity is {tuple(tensors['popularity'].shape)} for {self.num_items:,} items")
        parameters = dict(self.named_parameters(remove_duplicate=False))
        copies = once_each({name: tensors[name] for name in own if name not in parameters}, Tensor.clone)
        for name, value in tensors.items():
            path, _, leaf = name.rpartition(".")
            if name not in parameters:
                setattr(self.get_submodule(path), leaf, copies[name].to(own[name].device))
            elif parameters[name].shape != value.shape:
                raise ValueError(
                    f"{name} is {tuple(value.shape)} in the file and {tuple(own[name].shape)} in the model"
                )
            else:
                with torch.no_grad():
                    parameters[name].copy_(value)
        for first, *others in shared(tensors):
            for name in others if first in parameters else ():
                path, _, leaf = name.rpartition(".")
                if parameters.get(name) is not parameters[first]:
                    setattr(self.get_submodule(path), leaf, parameters[first])
        self.learned = True

    def _check(self, k: int, exclude: str) -> None:
        if self.vocabulary is None:
            raise ValueError(f"{type(self).__name__} does not know a catalogue yet: fit it first, or load a run")
        if not 1 <= k <= self.num_items:
            raise ValueError(f"k must be between 1 and the {self.num_items} items of the catalogue, found {k}")
        if exclude not in ("history", "none"):
            raise ValueError(f'exclude must be "history" or "none", found {exclude!r}')

    def _allowed(self, allow: Sequence[Any]) -> Tensor:
        assert self.vocabulary is not None
        rows = self.vocabulary.rows(allow)
        if (rows < 0).any():
            warnings.warn(
                f"{int((rows < 0).sum())} of {len(rows)} allowed items are not in the catalogue", DataWarning, 4
            )  # 4: seen from the caller of recommend, which torch.inference_mode wraps
        mask = torch.zeros(self.num_items, dtype=torch.bool)
        mask[torch.as_tensor(rows[rows > 0] - 1)] = True
        return mask

    def _batches(self, histories: Sequence[Any]) -> Iterator[tuple[Batch, np.ndarray]]:
        self._check(1, "none")
        assert self.vocabulary is not None
        self.eval()
        histories = as_histories(histories)
        lengths = np.asarray([len(one.items) for one in histories], np.int64)
        lengths = lengths if self.max_length is None else np.minimum(lengths, self.max_length)
        for rows in padded_blocks(lengths, SCORE_BUDGET, 4 * max(self.num_items, 1), TOKEN_BYTES):
            yield collate(histories[rows], self.vocabulary, self.max_length, self.needs, self.popularity.device)

    def _pairs(self, batch: Batch, histories: Sequence[History], first: int) -> tuple[Tensor, Tensor]:
        """Row and column of every history item, beyond ``max_length`` too."""
        assert self.vocabulary is not None
        raw = [one.items for one in histories[first : first + len(batch)]]
        user = np.repeat(np.arange(len(raw)), [len(one) for one in raw])
        rows = self.vocabulary.rows(list(chain.from_iterable(raw)))
        known, device = rows > 0, batch.ids.device
        return torch.as_tensor(user[known], device=device), torch.as_tensor(rows[known] - 1, device=device)

    def _top(self, found: list[tuple[np.ndarray, ...]], unknown: np.ndarray, k: int) -> TopK:
        assert self.vocabulary is not None
        if not found:
            found = [(np.zeros((0, k), np.float32), np.zeros((0, k), np.int64), np.zeros(0, bool))]
        scores, rows, fallback = (np.concatenate(column) for column in zip(*found, strict=True))
        if fallback.any():
            note = f"{int(fallback.sum())} of {len(fallback)} histories hold no known item and are ranked by popularity"
            warnings.warn(note, DataWarning, stacklevel=4)
        return TopK(np.where(np.isneginf(scores), PAD, rows), scores, unknown, fallback, self.vocabulary)


def as_histories(histories: Sequence[Any]) -> list[History]:
    """Each as a :class:`History`.

    Raises:
        TypeError: one is an id or nothing, where a list of ids is expected.
    """
    found = [one if isinstance(one, History) else History(one) for one in histories]
    for one in found:
        if isinstance(one.items, (str, bytes)) or not hasattr(one.items, "__len__"):
            raise TypeError(
                f"a history is a list of raw ids, oldest first, and {one.items!r} is none: pass a list of histories, "
                'such as [["50", "172"]] for one user'
            )
    return found


def collate(
    histories: Sequence[History],
    vocabulary: Vocabulary,
    max_length: int | None,
    needs: frozenset[str] = frozenset(),
    device: torch.device | str = "cpu",
) -> tuple[Batch, np.ndarray]:
    """A batch of raw histories (their last ``max_length`` known items) and the number of unknown items of each.

    Raises:
        ValueError: ``times`` are needed and a history does not have one per item.
    """
    counts = np.asarray([len(one.items) for one in histories], np.int64)
    rows = vocabulary.rows(list(chain.from_iterable(one.items for one in histories)))
    user = np.repeat(np.arange(len(histories)), counts)
    known = rows > 0
    lengths = np.bincount(user[known], minlength=len(histories))
    batch = Batch(
        rows=torch.arange(len(histories), device=device),
        users=torch.full((len(histories),), -1, device=device),
        ids=_padded(rows[known], lengths, max_length, device),
        lengths=torch.as_tensor(np.minimum(lengths, max_length or lengths.max(initial=0)), device=device),
    )
    if "times" in needs:
        times = _times(histories, counts)[known]
        batch = batch.replace(times=_padded(times, lengths, max_length, device))
    if "query_time" in needs:
        if any(one.query_time is None for one in histories):
            raise ValueError("this model reads query_time: pass History(items, times, query_time=...) for every user")
        batch = batch.replace(query_time=torch.tensor([one.query_time for one in histories], device=device))
    return batch, counts - lengths


def _times(histories: Sequence[History], counts: np.ndarray) -> np.ndarray:
    for one, count in zip(histories, counts, strict=True):
        if len(_own_times(one)) != count:
            raise ValueError(
                f"this model reads times: pass History(items, times) with one time (milliseconds) per item; "
                f"found {None if one.times is None else len(one.times)} times for {count} items"
            )
    times = np.asarray(list(chain.from_iterable(_own_times(one) for one in histories)))
    if times.dtype.kind not in "iuf" or not np.isfinite(times).all():
        wrong = next(one for one in times.tolist() if not (isinstance(one, (int, float)) and np.isfinite(one)))
        raise ValueError(f"times are whole numbers, milliseconds since 1970, and one is {wrong!r}")
    return times.astype(np.int64)


def _own_times(history: History) -> Sequence[int]:
    return () if history.times is None else history.times


def _padded(values: np.ndarray, lengths: np.ndarray, max_length: int | None, device: torch.device | str) -> Tensor:
    """Ragged values to (B, L), the last ``max_length`` of each row."""
    kept = np.minimum(lengths, max_length or lengths.max(initial=0))
    ends = np.cumsum(lengths)
    width = max(int(kept.max(initial=0)), 1)
    column = np.arange(width)
    index = (ends - kept)[:, None] + column
    inside = column < kept[:, None]
    padded = np.zeros(index.shape, np.int64)
    padded[inside] = values[index[inside]]
    return torch.as_tensor(padded, device=device)
