"""Items drawn as the decoder's probabilities say, among those there are: for training by rewards, and for variety.

Without replacement: Gumbel-top-k over the trie (Kool, van Hoof and Welling 2019, Stochastic beams and where to find
them). Each node has the key of its best sample; the keys of a node's children are Gumbel numbers around their
log-probabilities, given that the largest is the node's own; the ``count`` largest keys of a level go on. That draws the
leaves one after another, in proportion to their probability among those that are left, in one pass over the levels.
With replacement: every beam draws a child of its own.

What a node draws from are its children that may be shown, their probabilities (to the power 1 / temperature) normalised
among them. Codes that items share are drawn once; which of their items it is, is then drawn evenly.

Legend: B histories, S samples, M levels, W beams, L children of a beam at most.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from recsys.generative.beam import begun, offsets, refuse_nan
from recsys.generative.children import children
from recsys.generative.reach import Reach
from recsys.generative.trie import trie_of
from recsys.protocols import Decoder, Encoded
from recsys.ranking.filters import Shown


@dataclass(frozen=True)
class Samples:
    """Items drawn for each history; behind the last one rows and tokens are 0, log-probabilities -infinity."""

    rows: Tensor  # (B, S) int64 item rows; without replacement in the order in which they were drawn
    tokens: Tensor  # (B, S, M) int64 their codes as tokens
    log_probs: Tensor  # (B, S, M) float32 of each code given those before it, as the decoder gives them
    drawn: Tensor  # (B, S) float32 log-probability of the codes among what they were drawn from


@torch.no_grad()
def sample(
    decoder: Decoder,
    encoded: Encoded,
    items: Any,
    shown: Shown | None,
    count: int,
    generator: torch.Generator,
    temperature: float = 1.0,
    replace: bool = False,
) -> Samples:
    """``count`` items per history; fewer where there are not as many different codes and ``replace`` is not set.

    Args:
        shown: what may be shown to the histories; None: everything.
        generator: on the device of the decoder.
        temperature: below 1 the probable codes are drawn more often than the decoder says, above 1 less.

    Raises:
        ValueError: ``count`` is below 1, or ``temperature`` not above 0.
    """
    if count < 1 or temperature <= 0:
        raise ValueError(f"count >= 1 and temperature > 0 are needed, found {count} and {temperature}")
    log_probs, memory = begun(decoder, encoded, items)
    trie = trie_of(items, log_probs.device)
    reach = Reach(trie, shown, len(log_probs))
    beams = torch.zeros(len(log_probs), 1, dtype=torch.int64, device=trie.device)
    keys, drawn = beams.float(), beams.float()
    path, steps = beams.new_zeros(*beams.shape, 0), keys.new_zeros(*beams.shape, 0)
    for depth, offset in enumerate(offsets(trie.sizes)):
        found = children(reach, depth, beams, drawn > -torch.inf, log_probs)
        own = (found.scores / temperature).log_softmax(2)
        own = own.masked_fill(found.scores == -torch.inf, -torch.inf)  # NaN where a beam has no child
        total = drawn[:, :, None] + own
        if replace:
            columns = _ancestral(total, count, generator)
            keys = total.flatten(1).gather(1, columns)
        else:
            keys, columns = _without(total, keys, count, generator)
        parents, beams, codes = found.take(columns)
        drawn = total.flatten(1).gather(1, columns).masked_fill(keys == -torch.inf, -torch.inf)
        path = torch.cat([_of(path, parents), (codes + offset)[:, :, None]], 2)
        steps = torch.cat([_of(steps, parents), found.scores.flatten(1).gather(1, columns)[:, :, None]], 2)
        if depth + 1 < trie.levels:
            log_probs, memory = decoder.step(memory, items, codes + offset, parents)
    refuse_nan(drawn)
    rows = _one_each(reach, beams, drawn > -torch.inf, generator)
    none = rows == 0
    return Samples(
        rows,
        path.masked_fill(none[:, :, None], 0),
        steps.masked_fill(none[:, :, None], -torch.inf),
        drawn.masked_fill(none, -torch.inf),
    )


def _ancestral(total: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """(B, count) columns of ``total`` (B, W, L): a child of each beam; of the first one ``count`` children."""
    if total.shape[1] < count:
        total = total.expand(-1, count, -1)
        return (total + _gumbel(total, generator)).argmax(2)
    start = torch.arange(count, device=total.device) * total.shape[2]
    return (total + _gumbel(total, generator)).argmax(2) + start


def _without(total: Tensor, keys: Tensor, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """The largest keys (B, V) of children of beams with ``keys`` (B, W), and their columns of ``total`` (B, W, L)."""
    own = total + _gumbel(total, generator)
    largest = own.amax(2, keepdim=True)
    gap = keys[:, :, None] - own + torch.log1p(-(own - largest).exp())  # -inf where own is the largest
    given = keys[:, :, None] - gap.clamp(min=0) - (-gap.abs()).exp().log1p()
    given = given.masked_fill(total == -torch.inf, -torch.inf).flatten(1)
    return torch.topk(given, min(count, given.shape[1]), dim=1)


def _one_each(reach: Reach, leaves: Tensor, live: Tensor, generator: torch.Generator) -> Tensor:
    """Item rows (B, S): one of the items of each leaf that may be shown, drawn evenly; 0 where there is none."""
    beams, rows = reach.items(leaves, live, None)
    chance = torch.rand(len(rows), generator=generator, device=rows.device)
    order = chance.sort().indices
    order = order[beams[order].sort(stable=True).indices]  # by beam, in random order
    first = torch.ones_like(order, dtype=torch.bool)
    first[1:] = beams[order][1:] != beams[order][:-1]
    found = leaves.new_zeros(leaves.numel())
    found[beams[order[first]]] = rows[order[first]]
    return found.view_as(leaves)


def _gumbel(like: Tensor, generator: torch.Generator) -> Tensor:
    """Gumbel numbers, none infinite."""
    uniform = torch.rand(like.shape, generator=generator, device=like.device, dtype=torch.float64)
    return -torch.log(-torch.log(uniform.clamp(min=1e-12, max=1 - 1e-12))).float()


def _of(values: Tensor, parents: Tensor) -> Tensor:
    return values.gather(1, parents[:, :, None].expand(-1, -1, values.shape[2]))
