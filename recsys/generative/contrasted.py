"""What the history says, against what is generated without one: adaptive contrast for items (AdaCAD, arXiv 2409.07394).

    p(c | history, codes) ~ p_c (p_c / p_0)^alpha        alpha = max(JSD(p_c, p_0), least), for each beam and level

p_c is a decoder's distribution of the next code behind the history, p_0 the same decoder's behind nothing: what it has
learned to be popular. Both are taken over the codes that lead to an item, and so is the result, so the probabilities of
all items sum to 1. Decoding costs twice; searches need not know of it. Training without a history now and then, so
that p_0 is learned, is an addition of ours (as is done for guidance of diffusion models).

Legend: B histories, W beams, C codes of a level, T real tokens, D width, M levels.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from recsys.data.batch import Batch
from recsys.encoders.tokens import TokenMemory
from recsys.generative.trie import Trie, trie_of
from recsys.llm.trainers.decoders.adacad import adaptive_contrast
from recsys.protocols import Encoded


@dataclass(frozen=True)
class Both:
    """The memories behind histories and behind none, and where in the trie each beam stands."""

    context: Any
    bare: Any
    depth: int
    nodes: Tensor  # (B, W) int64 nodes of that depth; -1 where the codes so far lead to no item
    allowed: Tensor  # (B, W, C) bool, the codes that came next


class Contrasted(nn.Module):
    """A decoder around a decoder: what the history changes counts more, what is popular anyway less.

    Args:
        decoder: one that generates level by level (:class:`recsys.generative.code_decoder.CodeDecoder`).
        least: the strength of contrast is at least this, whatever the two say; 0 leaves it to them alone.
        plausible: codes with less than this share of the largest probability behind the history are not generated, as
            contrast makes much of little; lists can then be shorter, which is counted and warned of. None: all.
        drop: the share of training rows whose history is hidden from the decoder, so that it learns what comes without
            one. 0 leaves training as it is: behind nothing it is then asked for what it never saw.

    Raises:
        TypeError: the decoder generates sets.
        ValueError: a number out of range.
    """

    ordered = True

    def __init__(self, decoder: Any, least: float = 0.0, plausible: float | None = None, drop: float = 0.1) -> None:
        super().__init__()
        if not getattr(decoder, "ordered", False):
            raise TypeError(f"Contrasted needs a decoder of codes level by level; {type(decoder).__name__} is none")
        if least < 0 or not 0 <= drop < 1 or not 0 <= (plausible or 0) <= 1:
            raise ValueError(
                "least must be at least 0, plausible a share of 0 to 1 and drop one below 1; found "
                f"{least}, {plausible} and {drop}"
            )
        self.decoder, self.least, self.plausible, self.drop = decoder, least, plausible, drop
        self.whole = bool(getattr(decoder, "whole", False))
        if hasattr(decoder, "dim"):
            self.dim = decoder.dim

    def forward(self, encoded: Encoded, batch: Batch, items: Any, generator: torch.Generator) -> Tensor:
        """The decoder's loss, some of the histories hidden from it in training."""
        if self.training and self.drop:
            kept = torch.rand(len(batch), generator=generator, device=batch.ids.device) >= self.drop
            encoded = hidden(encoded, kept)
        loss: Tensor = self.decoder(encoded, batch, items, generator)
        return loss

    def begin(self, encoded: Encoded, items: Any) -> Both:
        """The memories of B histories, nothing generated yet."""
        rows, device = len(encoded.batch), encoded.batch.ids.device
        nothing = hidden(encoded, torch.zeros(rows, dtype=torch.bool, device=device))
        root = torch.zeros(rows, 1, dtype=torch.int64, device=device)
        allowed = torch.ones(rows, 1, 0, dtype=torch.bool, device=device)
        return Both(self.decoder.begin(encoded, items), self.decoder.begin(nothing, items), 0, root, allowed)

    def step(self, memory: Both, items: Any, tokens: Tensor | None, parents: Tensor | None) -> tuple[Tensor, Both]:
        """Log-probabilities (B, W, C) of the codes that come next, -inf of those that lead to no item.

        Where the codes so far lead to no item, all codes of the level are told.
        """
        trie, depth, nodes = trie_of(items, memory.nodes.device), memory.depth, memory.nodes
        if tokens is not None and parents is not None:
            codes = tokens - 1 - sum(trie.sizes[:depth])
            nodes, depth = _child(trie, depth, nodes, memory.allowed, codes, parents), depth + 1
        with_context, context = self.decoder.step(memory.context, items, tokens, parents)
        without, bare = self.decoder.step(memory.bare, items, tokens, parents)
        allowed = _following(trie, depth, nodes)
        found = adaptive_contrast(with_context, without, allowed, self.least, self.plausible).log_softmax(-1)
        return found, Both(context, bare, depth, nodes, allowed)


def hidden(encoded: Encoded, kept: Tensor) -> Encoded:
    """The states of a batch, zero for the histories that are not ``kept`` (B,) bool: attention then finds nothing.

    Of what else the encoder gives only the states of code tokens are handed on.
    """
    batch = encoded.batch
    owners = batch.flat // batch.ids.shape[1]
    memory = encoded.get(TokenMemory)
    given = () if memory is None else (replace(memory, states=memory.states * kept[:, None, None]),)
    users = None if encoded.users is None else encoded.users * kept[:, None]
    return Encoded(batch, encoded.tokens * kept[owners][:, None], given, users)


def _following(trie: Trie, depth: int, nodes: Tensor) -> Tensor:
    """(B, W, C) bool: the codes by which the children of ``nodes`` (B, W) are reached; all of them for node -1."""
    table = trie.tables[depth]
    if table is not None:
        return (table[nodes.clamp(min=0)] >= 0) | (nodes < 0)[..., None]
    first, at = trie.first[depth], nodes.clamp(min=0)
    start, number = first[at].long(), (first[at + 1] - first[at]).long()
    child = torch.arange(int(number.max()), device=nodes.device)
    inside = child < number[..., None]
    codes = trie.code[depth + 1][(start[..., None] + child).clamp(max=trie.nodes[depth + 1] - 1)].long()
    found = torch.zeros(*nodes.shape, trie.sizes[depth] + 1, dtype=torch.bool, device=nodes.device)
    found.scatter_(2, codes.masked_fill(~inside, trie.sizes[depth]), True)
    return found[..., :-1] | (nodes < 0)[..., None]


def _child(trie: Trie, depth: int, nodes: Tensor, allowed: Tensor, codes: Tensor, parents: Tensor) -> Tensor:
    """(B, W') nodes one level down, of ``codes`` (B, W') behind the beams ``parents``; -1 where there is none."""
    own = nodes.gather(1, parents)
    open_ = allowed.gather(1, parents[..., None].expand(-1, -1, allowed.shape[2]))
    rank = open_.long().cumsum(2).gather(2, codes[..., None]).squeeze(2) - 1  # children come by code
    there = (own >= 0) & open_.gather(2, codes[..., None]).squeeze(2)
    return torch.where(there, trie.first[depth][own.clamp(min=0)].long() + rank, -1)
