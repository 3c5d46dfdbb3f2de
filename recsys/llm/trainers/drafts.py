"""Which items behind which histories a training step is about: the sequences of recommenders, before they are scored.

Legend: B histories, G items of each at most, N sequences (the real ones among B x G).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from recsys.data.batch import PAD, Batch
from recsys.llm.trainers.sequences import Role
from recsys.protocols import Step
from recsys.ranking.filters import NO_PAIRS, Pairs, Shown


@dataclass(frozen=True)
class Draft:
    """Items to be scored behind histories; a row of 0 is none."""

    histories: Batch  # B
    rows: Tensor  # (B, G) int64 item rows
    role: Tensor  # (B, G) int64 of Role
    reward: Tensor | None = None  # (B, G)
    rewards: Tensor | None = None  # (B, G, K) of several kinds
    weight: Tensor | None = None  # (B, G)
    shown: Shown | None = None  # what the histories could have been given; None: every item

    @property
    def real(self) -> Tensor:
        """(B, G) bool: which are items."""
        return self.rows > PAD

    def fields(self, real: Tensor) -> dict[str, Any]:
        """What :class:`recsys.llm.trainers.sequences.Sequences` holds beside probabilities, of the ``real`` ones."""
        group = torch.arange(len(self.rows), device=self.rows.device)[:, None].expand_as(self.rows)[real]
        named = {name: getattr(self, name) for name in ("reward", "rewards", "weight")}
        given = {name: None if value is None else value[real].float() for name, value in named.items()}
        return {"group": group, "role": self.role[real], **given}


@dataclass(frozen=True)
class JudgedBatch(Batch):
    """Histories with items behind each that are known to be something: taken, hidden, to be forgotten."""

    judged: Tensor | None = None  # (B, G) int64 item rows, 0 for none
    roles: Tensor | None = None  # (B, G) int64 of Role
    amounts: Tensor | None = None  # (B, G) float32 weights


class Judged(nn.Module):
    """The items that a :class:`JudgedBatch` names, and samples of the reference behind the same histories, if wanted.

    Samples are drawn from the reference in every step, without replacement, and are not those that the batch names as
    NEGATIVE for the same history. They are what the model offers anyway, popular items most; a ``temperature`` above 1
    draws rarer ones more often.

    Args:
        samples: K, sampled items of each history (role SELF).
        temperature: of the sampling.
    """

    def __init__(self, samples: int = 0, temperature: float = 1.0) -> None:
        if samples < 0 or temperature <= 0:
            raise ValueError(f"samples >= 0 and temperature > 0 are needed, found {samples} and {temperature}")
        super().__init__()
        self.samples, self.temperature = samples, temperature

    def forward(self, step: Step, policy: Any, reference: Any) -> Draft:
        """The draft of a step.

        Raises:
            TypeError: the batch names no items.
        """
        batch = step.batch
        if not isinstance(batch, JudgedBatch) or batch.judged is None or batch.roles is None:
            raise TypeError(
                "Judged reads batches that name items and their roles: give the stage data of "
                f"recsys.llm.trainers.judgements, its batches are {type(batch).__name__}"
            )
        draft = Draft(batch, batch.judged, batch.roles, weight=batch.amounts)
        if not self.samples:
            return draft
        disliked = batch.judged.masked_fill(batch.roles != Role.NEGATIVE, PAD)
        shown = Shown(denied=pairs_of(disliked))
        with reference():
            drawn = policy.sample(step, batch, self.samples, self.temperature, shown)
        own = torch.full_like(drawn, Role.SELF)
        weight = None if batch.amounts is None else torch.cat([batch.amounts, torch.ones_like(drawn).float()], 1)
        return Draft(batch, torch.cat([batch.judged, drawn], 1), torch.cat([batch.roles, own], 1), weight=weight)


REWARDS = ("hit", "prefix")


class Rollouts(nn.Module):
    """Items sampled behind a position of each training row, rewarded by what was taken there.

    One position of each row is drawn, ``samples`` different items are drawn from the policy as it is, and each is
    rewarded: "hit" is 1 for the item that was taken and 0 otherwise; "prefix" the share of its codes, from the first
    on, that are right (models with codes only). An item that was not taken is unlabelled rather than wrong: most groups
    hold no hit, and what is pushed down are plausible items.

    Args:
        samples: G, items of each history.
        temperature: of the sampling.
        reward: "hit" or "prefix".
        exclude: "history" does not sample the items of the history, as they are not recommended either; "none" does.
    """

    def __init__(
        self, samples: int = 16, temperature: float = 1.0, reward: str = "hit", exclude: str = "history"
    ) -> None:
        if samples < 2 or temperature <= 0:
            raise ValueError(
                "samples must be at least 2, as they are compared, and temperature above 0; found "
                f"{samples} and {temperature}"
            )
        if reward not in REWARDS or exclude not in ("history", "none"):
            raise ValueError(
                f"reward must be one of {', '.join(REWARDS)} and exclude history or none, found {reward!r}, {exclude!r}"
            )
        super().__init__()
        self.samples, self.temperature, self.reward, self.exclude = samples, temperature, reward, exclude

    def forward(self, step: Step, policy: Any, reference: Any) -> Draft:
        """The draft of a step."""
        random = step.generator(type(self).__name__)
        rows, positions = drawn_positions(step.batch, random)
        assert step.batch.targets is not None
        wanted = step.batch.targets[rows, positions]
        histories = histories_to(step.batch, rows, positions)
        shown = self._shown(histories, wanted)
        drawn = policy.sample(step, histories, self.samples, self.temperature, shown)
        reward = self._reward(step.items, drawn, wanted)
        return Draft(histories, drawn, torch.full_like(drawn, Role.TARGET), reward=reward, shown=shown)

    def _shown(self, histories: Batch, wanted: Tensor) -> Shown | None:
        """What may be sampled; what was taken may be, though it is in the history."""
        if self.exclude == "none":
            return None
        return Shown(denied=pairs_of(histories.ids.masked_fill(histories.ids == wanted[:, None], PAD)))

    def _reward(self, items: Any, drawn: Tensor, wanted: Tensor) -> Tensor:
        if self.reward == "hit":
            return (drawn == wanted[:, None]).float()
        if not hasattr(items, "codes"):
            raise TypeError(f'reward="prefix" compares codes, and {type(items).__name__} has none: use "hit"')
        same = items.codes[drawn] == items.codes[wanted][:, None]
        return same.float().cumprod(2).mean(2)


def pairs_of(rows: Tensor) -> Pairs:
    """The items of (B, G) rows as pairs of history and column, each once; 0 is none."""
    owners, at = (rows > PAD).nonzero(as_tuple=True)
    if not len(owners):
        return NO_PAIRS
    found = torch.stack([owners, rows[owners, at] - 1], 1).unique(dim=0).cpu().numpy()
    return Pairs(np.ascontiguousarray(found[:, 0]), np.ascontiguousarray(found[:, 1]))


def drawn_positions(batch: Batch, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """A position with a target, drawn for each row that has one: rows and positions (n,) int64 each."""
    if batch.targets is None:
        raise ValueError("the batch has no targets: what is sampled is rewarded by the targets of a prepared batch")
    has = batch.targets > PAD
    draws = torch.rand(has.shape, generator=generator, device=has.device).masked_fill(~has, -1)
    rows = has.any(1).nonzero().squeeze(1)
    return rows, draws[rows].argmax(1)


def histories_to(batch: Batch, rows: Tensor, positions: Tensor) -> Batch:
    """The rows up to their positions (n,), without targets."""
    part, lengths = batch.histories().select(rows), positions + 1
    width = int(lengths.max())
    inside = torch.arange(width, device=lengths.device) < lengths[:, None]

    def cut(values: Tensor) -> Tensor:
        values = values[:, :width]
        return values.masked_fill(~inside.view(*inside.shape, *[1] * (values.dim() - 2)), 0)

    features = {name: cut(values) for name, values in part.features.items()}
    times = None if part.times is None else cut(part.times)
    return part.replace(ids=cut(part.ids), lengths=lengths, times=times, features=features)
