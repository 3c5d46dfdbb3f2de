"""Blend: one list from several fitted recommenders, by a weighted sum of their scores on one scale.

    score_u(i) = sum over members m of w_m n_m(s_m,u(i))

with n what makes scores of a member comparable from user to user, by what its ``scale`` says:

- "softmax", of whatever is trained by a softmax or a likelihood: the log-softmax over the catalogue. Members of this
  kind average as a geometric mean of probabilities.
- "share", of what is counted (kNN, Markov, EASE, popularity): the score over the largest one of the items that the
  history does not hold; 0 where that is not above 0.
- of a member that only makes lists: 1 / (60 + rank), reciprocal rank fusion (Cormack et al. 2009), to ``depth``.

``fit`` of a blend trains nothing: it counts members that are counted and not fitted yet, and chooses the weights on
validation (:mod:`recsys.train.blending`). A blend costs what its members cost together. Normalisations and the choice
of weights are this library's own; weighted sums of scores are folklore.

Legend: M members, B histories, N items, K length of a list.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from recsys.data.batch import FEATURES, USER_FEATURES, Batch
from recsys.errors import not_fitted
from recsys.hooks import PartList
from recsys.protocols import Context
from recsys.recommenders.base import Ranker, Scores
from recsys.recommenders.history import History

SMOOTHING = 60  # of reciprocal ranks, as published
SCALES = ("softmax", "share")


class Blend(Ranker):
    """Several recommenders that know the same items, as one.

    Members keep what they have learned; weights are relative, and a member of weight 0 is not asked.

    With members that all compare vectors (:class:`recsys.recommenders.composed.Recommender`), the blend has vectors as
    well, so it can have a FAISS index. Its scores are then weighted sums of theirs as they are, which is the same but
    for a constant of each user.

    Args:
        members: fitted recommenders; those that are counted may be fitted by ``fit`` of the blend.
        weights: of the members, at least 0; None: ``fit`` chooses them, the first one's being 1, and before that all
            are 1.
        depth: how many items a member gives that only makes lists.

    Raises:
        TypeError: a member is no recommender, or can give nothing for the rows of a batch.
        ValueError: no members, weights that are not as many or of which none is positive, or members that know other
            items.
    """

    chosen: Tensor  # (M,) float64: the weights

    def __init__(self, members: Sequence[Ranker], weights: Sequence[float] | None = None, depth: int = 100) -> None:
        super().__init__()
        if not len(members) or depth < 1:
            raise ValueError(f"a blend needs members and a depth of at least 1, found {len(members)} and {depth}")
        for member in members:
            if not isinstance(member, Ranker):
                raise TypeError(f"members are recommenders, such as rs.ItemKNN(); found {type(member).__name__}")
            if member.scale not in SCALES:
                raise TypeError(
                    f"{type(member).__name__}.scale says what its scores are, one of {', '.join(SCALES)}; found "
                    f"{member.scale!r}: if it means something else there, call that otherwise"
                )
            if not isinstance(member, Scores) and any(_of_features(need) for need in member.needs):
                raise TypeError(f"{type(member).__name__} makes lists from features, which a blend cannot hand to it")
        if weights is not None and (
            len(weights) != len(members) or not all(0 <= one < float("inf") for one in weights) or not any(weights)
        ):
            raise ValueError(f"{len(members)} weights of at least 0 are needed, one of them positive; found {weights}")
        self.members = PartList(members)
        self.weights, self.depth = None if weights is None else [float(one) for one in weights], depth
        lengths = [member.max_length for member in members]
        self.max_length = None if None in lengths else max(one for one in lengths if one is not None)
        self.needs = frozenset().union(*(member.needs for member in members))
        self.saved = all(member.saved for member in members)
        self.curve: list[dict[str, Any]] = []  # what was tried of weights, and what validation said
        self.register_buffer("chosen", torch.tensor(self.weights or [1.0] * len(members), dtype=torch.float64))
        if all(member.learned for member in members):
            self._agree()

    def bind(self, context: Context) -> None:
        """Size the members too, for tensors that are loaded then."""
        super().bind(context)
        for member in self.members:
            member.bind(context)

    def learn(self, context: Context) -> None:
        """Count the members that are counted and not fitted yet; the others stay as they are.

        Raises:
            ValueError: a member that is trained is not fitted, or members know other items than these.
        """
        for member in self.members:
            if not member.learned and hasattr(member, "learn"):
                member.learn(context)
                member.learned = True
            elif not member.learned:
                raise ValueError(f"{type(member).__name__} is not fitted, and a blend trains no member: fit it first")
        self._agree(context)

    def load_tensors(self, tensors: dict[str, Tensor]) -> None:
        """Take over what :meth:`tensors` gave, for all members."""
        super().load_tensors(tensors)
        for member in self.members:
            member.learned = True

    def score(self, batch: Batch) -> Tensor:
        """(B, N) weighted sums."""
        return self.combined(self.parts(batch))

    def parts(self, batch: Batch) -> list[Tensor | None]:
        """What each member says, (B, N) on its scale; None of a member whose weight is 0 and is not to be chosen."""
        if self._vectored and not self._choosing:
            return [one.score(batch.newest(one.max_length)).float() if w else None for one, w in self._weighted()]
        asked = ((one, weight > 0 or self._choosing) for one, weight in self._weighted())
        return [_scaled(one, batch, self.depth) if ask else None for one, ask in asked]

    def combined(self, parts: Sequence[Tensor | None]) -> Tensor:
        """(B, N) the sum of ``parts`` by the weights as they are; -inf where a member never shows an item."""
        total: Tensor | None = None
        for part, (_, weight) in zip(parts, self._weighted(), strict=True):
            if weight and part is not None:
                total = part * weight if total is None else total.add_(part, alpha=weight)
        assert total is not None
        return total

    @property
    def item_vectors(self) -> Callable[[], np.ndarray]:
        """() -> (N, sum of D) float32, the members' vectors side by side, where all of them have some."""
        members = self._with_vectors("item_vectors")
        return lambda: np.concatenate([one.item_vectors() for one, _ in members], axis=1)

    @property
    def vectors(self) -> Callable[[Batch], Tensor]:
        """A batch -> (B, sum of D) float32, each member's user vectors times its weight."""
        members = self._with_vectors("vectors")
        return lambda batch: torch.cat([w * one.vectors(batch.newest(one.max_length)) for one, w in members], 1)

    def sections(self, model: Any, split: Any) -> dict[str, Any]:
        """The weights, and what was tried of them, for the run's report."""
        shares = enumerate(self._weighted())
        found: dict[str, Any] = {"Weights": {f"{at}: {type(one).__name__}": weight for at, (one, weight) in shares}}
        return found | ({"Weights tried on validation": self.curve} if self.curve else {})

    _choosing = False  # whether members of weight 0 are asked too

    def _weighted(self) -> list[tuple[Any, float]]:
        return list(zip(self.members, self.chosen.tolist(), strict=True))

    @property
    def _vectored(self) -> bool:
        """Whether all members that count compare vectors."""
        return all(
            one.scale == "softmax" and hasattr(one, "item_vectors") for one, weight in self._weighted() if weight
        )

    def _with_vectors(self, name: str) -> list[tuple[Any, float]]:
        if not self._vectored:
            raise AttributeError(f"not all members of this blend have {name}")
        return [(one, weight) for one, weight in self._weighted() if weight]

    def _agree(self, context: Context | None = None) -> None:
        """Take over what all members know.

        Raises:
            ValueError: they know other items.
        """
        first = self.members[0]
        wanted = first.vocabulary if context is None else context.vocabulary
        if first.vocabulary is None:
            raise not_fitted(first)
        for member in self.members:
            own = member.vocabulary
            if own is None or wanted is None or own.digest != wanted.digest:
                raise ValueError(
                    f"members of a blend know the same items in the same rows, and {type(member).__name__} was fitted "
                    "on others: fit all of them on one split"
                )
        self.vocabulary, self.num_items, self.users = wanted, first.num_items, first.users
        self.popularity = first.popularity.clone()
        cuts = {None if member.cut is None else member.cut.digest for member in self.members}
        self.cut, self.learned = (first.cut if len(cuts) == 1 else None), True


def _of_features(need: str) -> bool:
    return need.startswith((FEATURES, USER_FEATURES))


def _scaled(member: Any, batch: Batch, depth: int) -> Tensor:
    """(B, N) what a member says of a batch, on the scale of its kind."""
    batch = batch.newest(member.max_length)
    if not isinstance(member, Scores):
        return _by_rank(member, batch, depth)
    scale, scores = member.scale, member.score(batch).float()  # type: ignore[attr-defined]
    if scale == "softmax":
        silent = (scores == -torch.inf).all(1, keepdim=True)
        return scores.masked_fill(silent, 0.0).log_softmax(1)
    held = torch.zeros(len(batch), scores.shape[1] + 1, dtype=torch.bool, device=scores.device)
    held.scatter_(1, batch.ids, True)
    top = scores.masked_fill(held[:, 1:], -torch.inf).amax(1, keepdim=True)
    return torch.where(top > 0, scores / top, torch.where(scores > -torch.inf, 0.0, scores))


def _by_rank(member: Any, batch: Batch, depth: int) -> Tensor:
    """(B, N) reciprocal ranks in the lists of a member, 0 behind them."""
    raw, times = member.vocabulary.raw(batch.flat_ids.cpu().numpy()), batch.times
    ends = batch.lengths.cumsum(0).tolist()
    when = None if times is None else batch.flatten(times).cpu().numpy()
    asked = None if batch.query_time is None else batch.query_time.tolist()
    histories = [
        History(
            raw[first:last].tolist(),
            None if when is None else when[first:last],
            query_time=None if asked is None else asked[at],
            time_unit="ms",
        )
        for at, (first, last) in enumerate(zip([0, *ends], ends, strict=False))
    ]
    rows = torch.from_numpy(member.recommend(histories, min(depth, member.num_items), "none").rows).to(batch.ids.device)
    found = torch.zeros(len(batch), member.num_items + 1, device=batch.ids.device)
    ranks = torch.arange(1, rows.shape[1] + 1, device=rows.device, dtype=found.dtype)
    found.scatter_(1, rows, (1 / (SMOOTHING + ranks)).expand(rows.shape).contiguous())
    return found[:, 1:]
