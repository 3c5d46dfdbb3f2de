"""What every recommender answers, learned or counted: ``recommend``, and mostly ``scores``; raw ids in, raw ids out.

Legend: B histories, N items (rows 1..N), K cut-off.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor, nn

from recsys.data.batch import FEATURES, PAD, USER_FEATURES, Batch
from recsys.data.cut import Cut
from recsys.errors import DataWarning, not_fitted
from recsys.hooks import having
from recsys.ids.ranges import padded_blocks
from recsys.ids.vocabulary import Vocabulary
from recsys.protocols import Context
from recsys.ranking.filters import EVERYTHING, EXCLUDE, Limits, Shown, checked_k
from recsys.ranking.products import refuse_nonfinite
from recsys.ranking.ties import best
from recsys.recommenders.features import coded, request_columns
from recsys.recommenders.history import History, as_histories, collate, in_milliseconds, is_ready
from recsys.recommenders.modes import evaluating
from recsys.recommenders.times import warn_of_far_times
from recsys.recommenders.top import TopK, top_of, warn_of
from recsys.storage.tensors import once_each, shared

SCORE_BUDGET = 256 * 2**20  # bytes of one chunk of scores and padded histories in recommend and scores
TOKEN_BYTES = 64  # of one position of the padded view, while a batch is made of it


@runtime_checkable
class Recommends(Protocol):
    """Lists for raw histories: all that serving and evaluation need. See :meth:`Ranker.recommend` for the arguments.

    An own class may answer with one list of raw ids per history instead of a :class:`TopK`. A history is a
    :class:`History`, which reads as the list of its items.
    """

    def recommend(
        self, histories: Sequence[Any], k: int = 10, exclude: str = "history", allow: Any = None, deny: Any = None
    ) -> TopK: ...


@runtime_checkable
class Scores(Protocol):
    """Scores of all items: ranks are then exact, to any depth. What evaluation asks for is :meth:`score_safely`."""

    max_length: int | None
    needs: frozenset[str]

    def score(self, batch: Batch) -> Tensor:
        """(B, N) scores of all items, column j for item row j + 1; histories in ``batch`` are not empty."""

    def score_safely(self, batch: Batch) -> Tensor:
        """(B, N) float32: the same for any history, in the rows of the model."""

    def scores(self, histories: Sequence[Any]) -> np.ndarray:
        """(B, N) float32: the same for raw histories."""


class Ranker(nn.Module):
    """Shared by all recommenders: raw histories to batches, exclusion, top-k, fallback, saved tensors.

    A subclass that can score all items has ``score(batch)``: (B, N) scores, column j for item row j + 1, in a tensor
    that the caller may write to, for histories that are not empty. It is then one that :class:`Scores`, and
    :meth:`recommend` gives its best items. One that only makes lists (it generates them) has a ``recommend`` of its own
    instead.

    ``max_length`` is the longest history it reads (None: all of it), ``needs`` the optional batch fields, ``saved``
    whether class, arguments and tensors are all of it, so that it can be loaded.
    """

    if TYPE_CHECKING:

        def score(self, batch: Batch) -> Tensor: ...

    popularity: Tensor
    max_length: int | None = None
    needs: frozenset[str] = frozenset()
    saved: bool = True
    scale: str = "softmax"  # what its scores are: logits of a "softmax", or a "share" of the largest (counted ones)
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

    def score_safely(self, batch: Batch) -> Tensor:
        """``score`` in float32, with training popularity where a history is empty.

        Raises:
            NotImplementedError: this class has no ``score``.
        """
        if not isinstance(self, Scores):
            raise NotImplementedError(
                f"{type(self).__name__} has no score(batch), so it cannot give scores of all items: ask it to "
                "recommend, or give the class a score, or a recommend of its own"
            )
        known = (batch.lengths > 0).nonzero().squeeze(1)
        if len(known) == len(batch):
            return self.score(batch).float()
        scores = self.popularity[1:].to(batch.ids.device).repeat(len(batch), 1)
        if len(known):
            scores[known] = self.score(batch.select(known)).float()
        return scores

    def scores(self, histories: Sequence[Any]) -> np.ndarray:
        """(B, N) float32 scores of the whole catalogue for raw histories; column j is item row j + 1."""
        histories = self._ready(histories)
        with evaluating(self), torch.inference_mode():
            chunks = [self.score_safely(batch).cpu().numpy() for batch, _ in self._batches(histories)]
        return np.concatenate(chunks) if chunks else np.zeros((0, self.num_items), np.float32)

    def recommend(
        self, histories: Sequence[Any], k: int = 10, exclude: str = "history", allow: Any = None, deny: Any = None
    ) -> TopK:
        """The ``k`` best items for each raw history: a list of raw ids, or a :class:`History`.

        Best first, equal scores in the order of the catalogue, so that a short list begins the long one; items that a
        model gives -inf are never shown. Where fewer than ``k`` items are left, the list is shorter.

        Args:
            exclude: "history" leaves out what the history holds, "none" lets it be recommended again.
            allow, deny: raw ids for all histories, or one list of them per history: nothing else, or none of these, is
                recommended. Unknown ones are counted in a warning.

        Unknown ids are skipped and counted; a history without a known item is ranked by popularity (``fallback``), of
        which a warning tells, with both types where no id is known and the catalogue has ids of another type.

        Raises:
            ValueError: ``k`` is below 1, ``exclude`` is neither, nothing is allowed, or scores are not finite.
            TypeError: a history is one id, not a list of them, or ``k`` is not a whole number.
        """
        histories = as_histories(histories)
        top, shown = self._rank(histories, k, exclude, allow, deny)
        warn_of(shown, top, histories, 3)
        return top

    def tensors(self) -> dict[str, Tensor]:
        """Everything learned, by name, ready for safetensors; what goes by several names is one tensor."""
        return once_each(self.state_dict(), lambda value: value.detach().cpu().contiguous())

    def load_tensors(self, tensors: dict[str, Tensor]) -> None:
        """Take over what :meth:`tensors` gave; buffers may have any shape, parameters must fit.

        Parameters that were one when they were saved are one afterwards.

        Raises:
            ValueError: names are missing or left over, or a parameter has another shape.
        """
        for path, part in having(self, "make_room"):
            part.make_room(
                {name.removeprefix(f"{path}."): one for name, one in tensors.items() if name.startswith(path)}
            )
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

    def _check(self, k: Any, exclude: str) -> int:
        if self.vocabulary is None:
            raise not_fitted(self)
        k = checked_k(k)
        if exclude not in EXCLUDE:
            raise ValueError(f'exclude must be "history" or "none", found {exclude!r}')
        return k

    def _rank(
        self,
        histories: Sequence[Any],
        k: int,
        exclude: str,
        allow: Any = None,
        deny: Any = None,
        limits: Limits = EVERYTHING,
    ) -> tuple[TopK, Shown]:
        """:meth:`recommend` without warnings, within rows besides, and what might be shown."""
        k = self._check(k, exclude)
        histories = self._ready(histories, 4)
        shown = self._shown(histories, exclude, allow, deny, limits)
        found: list[tuple[np.ndarray, ...]] = []
        first = 0
        with evaluating(self), torch.inference_mode():
            for batch, skipped in self._batches(histories):
                scores = self.score_safely(batch)
                refuse_nonfinite(scores, first)
                shown.part(first, first + len(batch)).hide(scores)
                values, columns = best(scores, k)
                rows = torch.where(values == -torch.inf, PAD, columns + 1).cpu().numpy()
                found.append((values.cpu().numpy(), rows, skipped, (batch.lengths == 0).cpu().numpy()))
                first += len(batch)
        return top_of(found, min(k, self.num_items), self.vocabulary, histories), shown

    def _shown(self, histories: Sequence[History], exclude: str, allow: Any, deny: Any, limits: Limits) -> Shown:
        """What may be shown, in columns."""
        shown = Shown.of(self._find, [one.items for one in histories], exclude, allow, deny)
        return shown.limited(*(None if rows is None else rows - 1 for rows in limits))

    def _find(self, ids: list[Any]) -> np.ndarray:
        """Columns of raw ids, -1 for unknown ones."""
        assert self.vocabulary is not None
        rows = self.vocabulary.rows(ids)
        return np.where(rows > PAD, rows - 1, -1)

    def _ready(self, histories: Sequence[Any], stacklevel: int = 3) -> list[History]:
        """Each as a :class:`History`, with times in milliseconds if the model reads them."""
        self._check(1, "none")
        found = as_histories(histories)
        if any(need.startswith((FEATURES, USER_FEATURES)) for need in self.needs):
            found = self._with_features(found, stacklevel + 1)
        if not self.needs & {"times", "query_time"} or all(is_ready(one) for one in found):
            return found
        found = in_milliseconds(found)
        cut = getattr(self, "cut", None)
        warn_of_far_times(
            [np.asarray(one.times) for one in found if one.times is not None], cut and cut.newest, stacklevel
        )
        return found

    def _with_features(self, histories: list[History], stacklevel: int) -> list[History]:
        """The features of each history as its parts read them; a warning counts what is missing or unknown."""
        found, notes = coded(histories, *request_columns(self))
        for note in notes:
            warnings.warn(note, DataWarning, stacklevel=stacklevel)
        return found

    def _batches(self, histories: Sequence[Any]) -> Iterator[tuple[Batch, np.ndarray]]:
        histories = self._ready(histories)
        assert self.vocabulary is not None
        lengths = np.asarray([len(one.items) for one in histories], np.int64)
        lengths = lengths if self.max_length is None else np.minimum(lengths, self.max_length)
        for rows in padded_blocks(lengths, SCORE_BUDGET, 4 * max(self.num_items, 1), TOKEN_BYTES):
            yield collate(histories[rows], self.vocabulary, self.max_length, self.needs, self.popularity.device)
