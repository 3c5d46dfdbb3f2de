"""The weights of a blend, chosen on validation by the evaluator of the final report.

A line search over 0 and powers of two for each member in turn, the first one's weight being 1: the grid goes on as long
as the best weight lies at its edge, and the steps around the best one are halved twice. With more than two members
turns are repeated until none helps. What members say of the users is kept where it fits into memory, so a weight costs
a ranking and no encoder.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from recsys.data.batch import Batch
from recsys.recommenders.blend import Blend
from recsys.recommenders.modes import evaluating

GRID = (0.0, 0.25, 0.5, 1.0, 2.0, 4.0)
HALVED = (2**0.5, 2**0.25)  # steps around the best weight, after those of the grid
MOST = 2.0**10  # beyond it the first member counts for nothing, and is better left out
LEAST = 2.0**-5  # below it a member other than the first counts for nothing
TURNS = 3
MEMORY = 2**29  # bytes of what members said


def choose_weights(blend: Blend, validate: Callable[[Any], float], users: int) -> float:
    """Choose the weights of ``blend``, in place, and give the best value of ``validate(model)``, larger being better.

    Args:
        users: how many ``validate`` ranks.
    """
    kept = _Kept(blend, users)
    tried: dict[tuple[float, ...], float] = {}

    def value(weights: tuple[float, ...]) -> float:
        if weights not in tried:
            blend.chosen = torch.tensor(weights, dtype=torch.float64, device=blend.chosen.device)
            tried[weights] = validate(kept)
        return tried[weights]

    best = (1.0,) * len(blend.members)
    blend._choosing = True
    try:
        with evaluating(blend):
            for _ in range(TURNS if len(best) > 2 else 1):
                before = best
                for place in range(1, len(best)):
                    best = _line(best, place, value)
                if best == before:
                    break
            found = value(best)
    finally:
        blend._choosing = False
    blend.chosen = torch.tensor(best, dtype=torch.float64, device=blend.chosen.device)
    blend.curve = [{"weights": ", ".join(f"{one:.3g}" for one in key), "value": tried[key]} for key in sorted(tried)]
    return found


def _line(weights: tuple[float, ...], place: int, value: Callable[[tuple[float, ...]], float]) -> tuple[float, ...]:
    """The best weights where only the one at ``place`` changes; of equally good ones the smallest."""

    def at(weight: float) -> tuple[float, ...]:
        return (*weights[:place], weight, *weights[place + 1 :])

    def best_of(asked: list[float]) -> float:
        return max(sorted(asked), key=lambda weight: value(at(weight)))

    asked = sorted({*GRID, weights[place]})
    best = best_of(asked)
    while best == asked[-1] and best < MOST:
        asked.append(2 * best)
        best = best_of(asked)
    while best <= asked[1] and asked[1] > LEAST:
        asked.insert(1, asked[1] / 2)
        best = best_of(asked)
    for step in HALVED if best else ():
        asked += [best / step, best * step]
        best = best_of(asked)
    return at(best)


class _Kept:
    """A blend for the evaluator, whose members are asked once for each user, if what they say can be kept."""

    def __init__(self, blend: Blend, users: int) -> None:
        self.blend = blend
        self.vocabulary, self.num_items, self.users = blend.vocabulary, blend.num_items, blend.users
        self.max_length, self.needs, self.cut = blend.max_length, blend.needs, blend.cut
        size = 4 * users * blend.num_items * len(blend.members)
        self._parts: list[dict[int, Tensor]] | None = None if size > MEMORY else [{} for _ in blend.members]

    def score_safely(self, batch: Batch) -> Tensor:
        """(B, N) as of the blend; ``batch.rows`` says which users of the part these are."""
        if self._parts is None:
            return self.blend.score_safely(batch)
        known = (batch.lengths > 0).nonzero().squeeze(1)
        scores = self.blend.popularity[1:].repeat(len(batch), 1)
        rows = batch.rows[known].tolist()
        new = [at for at, row in enumerate(rows) if row not in self._parts[0]]
        if new:
            with torch.inference_mode():
                for held, part in zip(self._parts, self.blend.parts(batch.select(known[new])), strict=True):
                    assert part is not None
                    held.update((rows[at], one.cpu()) for at, one in zip(new, part.unbind(), strict=True))
        if rows:
            parts = [torch.stack([held[row] for row in rows]) for held in self._parts]
            scores[known] = self.blend.combined(parts).to(scores.device)
        return scores
