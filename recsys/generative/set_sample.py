"""Paths sampled from a decoder of sets: items there are, each path at most once.

Sampling without replacement is a search over perturbed log-probabilities ("Stochastic Beams and Where to Find Them",
Kool et al. 2019): a beam carries the maximum of the Gumbel noise of all items below it, so that the best of the search
are a sample without replacement from the distribution over items. At each step a code is drawn among those that items
have which are still possible, so that probabilities are normalised over these.

Legend: B histories, G paths, M codebooks, K codes of the largest, C codes of all.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from recsys.generative.set_beam import SetBeam, codes_of, levels_of
from recsys.generative.set_layers import of_parents
from recsys.generative.set_walk import Lists, Reach, index_of
from recsys.protocols import Encoded
from recsys.ranking.filters import Shown


@dataclass(frozen=True)
class SampledPaths:
    """What was sampled for B histories; of each path the codebooks in order, and what was chosen of them."""

    order: Tensor  # (B, G, M) int64 codebooks
    tokens: Tensor  # (B, G, M) int64 token numbers
    log_probs: Tensor  # (B, G, M) of each choice among what was possible
    allowed: Tensor  # (B, G, M, K) bool, the codes of its codebook that were possible
    rows: Tensor  # (B, G) the first item that has all the codes; 0 where there are fewer items than paths
    shares: Tensor  # (B, G) one by the number of items that have all the codes

    @property
    def real(self) -> Tensor:
        """(B, G) bool: which are paths."""
        return self.rows > 0


@torch.no_grad()
def sample_paths(
    decoder: Any,
    encoded: Encoded,
    items: Any,
    count: int,
    generator: torch.Generator,
    search: SetBeam | None = None,
    shown: Shown | None = None,
) -> SampledPaths:
    """``count`` paths of each history, none twice, in falling order of their perturbed log-probabilities.

    Args:
        search: chooses the codebook of each step (default: by confidence); its width does not matter.
        shown: what may be sampled.
    """
    search = SetBeam() if search is None else search
    index = index_of(items)
    reach, levels_left = Reach(index, shown, len(encoded.batch)), len(index.sizes)
    expected, memory = decoder.step(decoder.begin(encoded, items), items, None, None)
    histories, fixed = len(encoded.batch), search.drawn(encoded, levels_left)
    filled = torch.full((histories, 1, levels_left), -1, dtype=torch.int64, device=expected.device)
    total, noisy = expected.new_zeros(histories, 1), expected.new_zeros(histories, 1)
    lists: Lists | None = None
    made: list[Tensor] = []  # (B, W, s) of order, tokens, log-probabilities; (B, W, s, K) of what was allowed
    for step in range(levels_left):
        levels = search.levels(expected, filled, fixed, index)[:, :, :1]
        allowed = codes_of(reach, levels) if lists is None else lists.allowed(levels)
        chances = levels_of(expected, levels, index).masked_fill(~allowed, -torch.inf).squeeze(2)
        chances = chances - chances.logsumexp(2, keepdim=True).clamp(min=-1e30)  # of a path that is none
        noise = _conditioned(total[:, :, None] + chances, noisy, generator)
        noisy, at = noise.flatten(1).topk(min(count, noise[0].numel()), dim=1)
        size = noise.shape[2]
        parents, level = at // size, levels.squeeze(2).gather(1, at // size)
        code = torch.minimum(at % size, index.size[level] - 1)
        alive = noisy > -torch.inf
        chance = chances.flatten(1).gather(1, at)
        column = index.first[level] + code
        new = [level, 1 + column, chance, of_parents(parents, allowed.squeeze(2))]
        earlier = [of_parents(parents, one) for one in made]
        made = [
            one.unsqueeze(2) if not earlier else torch.cat([earlier[n], one.unsqueeze(2)], 2)
            for n, one in enumerate(new)
        ]
        total = total.gather(1, parents) + chance
        filled = of_parents(parents, filled).scatter(2, level[:, :, None], code[:, :, None])
        lists = (
            Lists.first(index, reach, column, alive) if lists is None else lists.filtered(parents, level, code, alive)
        )
        if step + 1 < levels_left:
            expected, memory = decoder.step(memory, items, 1 + column, parents)
    assert lists is not None
    rows, shares = _ends(lists)
    return SampledPaths(made[0], made[1], made[2], made[3], rows, shares)


def _conditioned(chances: Tensor, noisy: Tensor, generator: torch.Generator) -> Tensor:
    """(B, W, K) Gumbel noise around log-probabilities ``chances``, whose maximum over K is ``noisy`` (B, W)."""
    draws = torch.rand(chances.shape, generator=generator, device=chances.device, dtype=torch.float64)
    own = chances.double() - (-draws.clamp(min=1e-300).log()).clamp(min=1e-300).log()
    most = own.amax(2, keepdim=True)
    bound = noisy.double()[:, :, None]
    v = bound - own + (own - most).exp().neg().clamp(min=-1).log1p()
    moved = bound - v.clamp(min=0) - (-v.abs()).exp().log1p()
    return moved.where(torch.isfinite(own), -torch.inf).where(torch.isfinite(bound), -torch.inf)


def _ends(lists: Lists) -> tuple[Tensor, Tensor]:
    """(B, W) the first item of each list and one by how many there are, 0 where there is none."""
    shape = lists.begins.shape
    first = torch.full((shape.numel(),), torch.iinfo(torch.int64).max, device=lists.begins.device)
    counts = torch.zeros_like(first)
    for owner, item in lists.blocks(torch.arange(len(first), device=first.device)):
        first = first.scatter_reduce(0, owner, item, "amin")
        counts += torch.bincount(owner, minlength=len(first))
    rows = torch.where(counts > 0, first + 1, 0).view(shape)
    return rows, torch.where(counts > 0, 1 / counts.clamp(min=1), 0.0).view(shape)
