"""A batch of histories: right-padded item rows with lengths, and a flat view of the real tokens.

Legend: B histories, L longest history of the batch, T real tokens (sum of lengths).
Item row 0 is padding, here and nowhere else; items are rows 1..num_items.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

PAD = 0
FEATURES = "features."  # before the name of a column of events among the ``needs`` of a part
USER_FEATURES = "user_features."  # before that of a column of users


@dataclass(frozen=True)
class Group:
    """Consecutive rows of a batch on a padded view of their own; ``index`` says where their tokens sit in it."""

    size: int
    width: int
    index: Tensor  # (t,) int64 into size * width

    def pad(self, tokens: Tensor) -> Tensor:
        """(t, ...) tokens of the group to (size, width, ...), zeros at padding; a view of them where all are full."""
        if len(self.index) == self.size * self.width:
            return tokens.reshape(self.size, self.width, *tokens.shape[1:])
        padded = tokens.new_zeros((self.size * self.width, *tokens.shape[1:])).index_copy(0, self.index, tokens)
        return padded.view(self.size, self.width, *tokens.shape[1:])

    def flatten(self, padded: Tensor) -> Tensor:
        """(size, width, ...) back to the real tokens (t, ...); a view where all are full."""
        if len(self.index) == self.size * self.width:
            return padded.flatten(0, 1)
        return padded.flatten(0, 1)[self.index]


@dataclass(frozen=True)
class Batch:
    """Histories of B users, oldest item first, right-padded with ``PAD``. Parts never change it in place.

    ``targets`` holds at each position the item row to predict there, 0 where nothing is predicted. The loss of that
    target is multiplied by its ``weights`` and its ``importance`` (1 where None), and divided by the sum of the weights
    alone. A part that reads an optional field declares it in ``needs``.
    """

    rows: Tensor  # (B,) int64, index of the training row or held-out user
    users: Tensor  # (B,) int64, user row, -1 for a user the vocabulary does not know
    ids: Tensor  # (B, L) int64
    lengths: Tensor  # (B,) int64
    targets: Tensor | None = None  # (B, L) int64
    weights: Tensor | None = None  # (B, L) float32
    importance: Tensor | None = None  # (B, L) float32
    times: Tensor | None = None  # (B, L) int64, milliseconds since the epoch
    query_time: Tensor | None = None  # (B,) int64, milliseconds since the epoch
    target_times: Tensor | None = None  # (B, L) int64, when the targets happened, set by Targets where there are times
    target_index: Tensor | None = None  # (B,) int64, which event of the row is to be predicted, where that was drawn
    events: Tensor | None = None  # (B,) int64, the training event that the newest target is, -1 for none
    words: Tensor | None = None  # (B, S) int64, tokens that a text encoder reads in place of the histories' own
    wanted: Tensor | None = None  # (Q,) int64 ascending, flat tokens whose states are asked for; see wanted_tokens
    features: dict[str, Tensor] = field(default_factory=dict)  # (B, L) int64 codes or float32, (B, L, K) of lists
    user_features: dict[str, Tensor] = field(default_factory=dict)  # (B,) or of lists (B, K)

    def __len__(self) -> int:
        return self.ids.shape[0]

    @cached_property
    def mask(self) -> Tensor:
        """(B, L) bool, True at real tokens."""
        return torch.arange(self.ids.shape[1], device=self.ids.device) < self.lengths[:, None]

    @cached_property
    def flat(self) -> Tensor:
        """(T,) int64: where the real tokens sit in the padded view flattened to B * L, user by user."""
        return self.mask.flatten().nonzero().squeeze(1)

    @cached_property
    def flat_ids(self) -> Tensor:
        """(T,) int64: the item rows of the real tokens."""
        return self.ids.flatten()[self.flat]

    @cached_property
    def positions(self) -> Tensor:
        """(T,) int64: absolute position of each real token, oldest = 0."""
        return self.flat % self.ids.shape[1]

    @cached_property
    def ages(self) -> Tensor:
        """(T,) int64: recency-aligned position of each real token, newest = 0."""
        return (self.lengths - 1).repeat_interleave(self.lengths) - self.positions

    @cached_property
    def last(self) -> Tensor:
        """(B,) int64: index among the T flat tokens of each history's newest one (-1 before any, if empty)."""
        return self.lengths.cumsum(0) - 1

    @cached_property
    def wanted_tokens(self) -> Tensor:
        """(Q,) int64: flat tokens whose states are asked for: ``wanted``, or where that is None the tokens with a
        target, or where there are no targets each history's newest token.

        An encoder may spare itself the states of other tokens and leave zeros there; see :meth:`ask_all`.
        """
        if self.wanted is not None:
            return self.wanted
        if self.targets is None:
            return self.last[self.lengths > 0]
        return (self.flatten(self.targets) > PAD).nonzero().squeeze(1)

    @cached_property
    def groups(self) -> list[Group]:
        """Consecutive rows padded to a width of their own: sparing when rows are sorted by length, exact in any case.

        Attention costs the square of the width, so a batch whose lengths differ much is worked on in four groups.
        """
        size, width = self.ids.shape
        cuts = [size * part // 4 for part in range(5)] if size >= 32 and not self.ids.is_cuda else [0, size]
        widths = [max(int(self.lengths[a:b].max()), 1) if b > a else 1 for a, b in pairwise(cuts)]
        if sum(w * w for w in widths) > 3 * width * width:
            cuts, widths = [0, size], [width]
        groups = []
        for (start, stop), wide in zip(pairwise(cuts), widths, strict=True):
            inside = torch.arange(wide, device=self.ids.device) < self.lengths[start:stop, None]
            groups.append(Group(stop - start, wide, inside.flatten().nonzero().squeeze(1)))
        return groups

    @cached_property
    def newest_groups(self) -> list[Group]:
        """The rows of ``groups`` one token wide: the newest of each row that has one."""
        filled = (self.lengths > 0).split([group.size for group in self.groups])
        return [Group(len(rows), 1, rows.nonzero().squeeze(1)) for rows in filled]

    def flatten(self, padded: Tensor) -> Tensor:
        """Select the real tokens of a (B, L, ...) tensor: (T, ...)."""
        return padded.flatten(0, 1)[self.flat]

    def pad(self, tokens: Tensor) -> Tensor:
        """Lay (T, ...) token values out on the (B, L, ...) view, zeros at padding."""
        return Group(self.ids.shape[0], self.ids.shape[1], self.flat).pad(tokens)

    def replace(self, **changes: Any) -> Batch:
        """A copy with some fields exchanged; cached views are computed anew.

        Other ``lengths`` number the tokens otherwise, so that ``wanted`` is None again unless it is among the changes.
        """
        if self.wanted is not None and "lengths" in changes:
            changes = {"wanted": None, **changes}
        return replace(self, **changes)

    def histories(self) -> Batch:
        """The histories alone: no targets, nothing that belongs to them, nothing wanted but the newest states."""
        return self.replace(**dict.fromkeys(_OF_TARGETS))

    def _values(self) -> list[tuple[str, Any]]:
        return [(entry.name, getattr(self, entry.name)) for entry in fields(self)]

    def ask_all(self) -> Batch:
        """The same batch, the states of all its tokens wanted."""
        return self.replace(wanted=torch.arange(len(self.flat), device=self.ids.device))

    def select(self, index: Tensor) -> Batch:
        """The batch of the histories at ``index`` (n,)."""

        def pick(value: Any) -> Any:
            if isinstance(value, Tensor):
                return value[index]
            return {key: pick(inner) for key, inner in value.items()} if isinstance(value, dict) else value

        picked = self.replace(**{name: pick(value) for name, value in self._values() if name != "wanted"})
        if self.wanted is None:
            return picked
        asked = torch.zeros(len(self.flat), dtype=torch.bool, device=index.device).index_fill(0, self.wanted, True)
        return picked.replace(wanted=picked.flatten(self.pad(asked)[index]).nonzero().squeeze(1))

    def trim(self, width: int) -> Batch:
        """The batch padded to ``width`` only, which no history may exceed."""
        names = ("ids", "targets", "weights", "importance", "times", "target_times")
        cut = {name: getattr(self, name)[:, :width] for name in names if getattr(self, name) is not None}
        return self.replace(**cut, features={name: value[:, :width] for name, value in self.features.items()})

    def newest(self, length: int | None) -> Batch:
        """The histories alone, cut to their newest ``length`` items; None for all of them."""
        if length is None or self.ids.shape[1] <= length:
            return self.histories()
        kept = self.lengths.clamp(max=length)
        column = torch.arange(length, device=self.ids.device)
        inside = column < kept[:, None]
        index = ((self.lengths - kept)[:, None] + column).clamp(max=self.ids.shape[1] - 1)
        return self.histories().replace(
            ids=events_at(self.ids, index, inside),
            lengths=kept,
            times=None if self.times is None else events_at(self.times, index, inside),
            features={name: events_at(value, index, inside) for name, value in self.features.items()},
        )

    @classmethod
    def join(cls, batches: Sequence[Batch]) -> Batch:
        """The histories of several batches under each other, so that one pass of an encoder reads them all.

        Padded to the widest. Times and features come along where all batches have them; all else does not.
        """
        width = max(batch.ids.shape[1] for batch in batches)

        def lay(values: list[Tensor]) -> Tensor:
            return _under([_widened(value, (width, *value.shape[2:])) for value in values])

        times = [batch.times for batch in batches if batch.times is not None]
        asked = [batch.query_time for batch in batches if batch.query_time is not None]
        return cls(
            rows=torch.cat([batch.rows for batch in batches]),
            users=torch.cat([batch.users for batch in batches]),
            ids=lay([batch.ids for batch in batches]),
            lengths=torch.cat([batch.lengths for batch in batches]),
            times=lay(times) if len(times) == len(batches) else None,
            query_time=torch.cat(asked) if len(asked) == len(batches) else None,
            features=_shared([batch.features for batch in batches], lay),
            user_features=_shared([batch.user_features for batch in batches], _under),
        )

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Batch:
        """The batch with every tensor on ``device``."""

        def move(value: Any) -> Any:
            if isinstance(value, Tensor):
                return value.to(device, non_blocking=non_blocking)
            return {key: move(inner) for key, inner in value.items()} if isinstance(value, dict) else value

        return self.replace(**{name: move(value) for name, value in self._values()})

    def pin_memory(self) -> Batch:
        """The batch in page-locked memory (used by data loading when a GPU is there)."""

        def pin(value: Any) -> Any:
            if isinstance(value, Tensor):
                return value.pin_memory()
            return {key: pin(inner) for key, inner in value.items()} if isinstance(value, dict) else value

        return self.replace(**{name: pin(value) for name, value in self._values()})


def events_at(values: Tensor, index: Tensor, inside: Tensor) -> Tensor:
    """Values (B, L, ...) of the events at ``index`` (B, W), 0 where not ``inside`` (B, W): (B, W, ...)."""
    row = torch.arange(len(values), device=values.device)[:, None]
    return only(values[row, index], inside)


def blanked(values: Tensor, where: Tensor) -> Tensor:
    """Values (B, L, ...) of a feature with those missing at ``where`` (B, L)."""
    missing = float("nan") if values.is_floating_point() else 0
    return values.masked_fill(where.view(*where.shape, *[1] * (values.dim() - 2)), missing)


def only(values: Tensor, inside: Tensor) -> Tensor:
    """Values (B, L, ...), 0 where not ``inside`` (B, L), be they numbers or not."""
    return values.masked_fill(~inside.view(*inside.shape, *[1] * (values.dim() - 2)), 0)


def _shared(features: Sequence[dict[str, Tensor]], join: Callable[[list[Tensor]], Tensor]) -> dict[str, Tensor]:
    """What all of them have, joined."""
    names = [name for name in features[0] if all(name in one for one in features)]
    return {name: join([one[name] for one in features]) for name in names}


def _under(values: list[Tensor]) -> Tensor:
    sizes = [max(size) for size in zip(*(value.shape[1:] for value in values), strict=True)]
    return torch.cat([_widened(value, sizes) for value in values])


def _widened(values: Tensor, sizes: Sequence[int]) -> Tensor:
    """Values (B, L, ...) with zeros behind them, so that they are (B, *sizes)."""
    edges = [edge for have, size in zip(values.shape[:0:-1], sizes[::-1], strict=True) for edge in (0, size - have)]
    return torch.nn.functional.pad(values, edges)


_OF_TARGETS = ("targets", "weights", "importance", "target_times", "target_index", "events", "words", "wanted")
