"""TIGER's decoder (Rajput et al. 2023): the codes of the next item, one after the other, by layers of T5.

    p(item | history) = prod_m p(c_m | c_1 .. c_{m-1}, states of the history)

It reads a start token and the codes so far, looks at the states of the history, and its state at each place is compared
with the output vectors of codes. Several targets of one history are trained at once: the target behind position t sees
what belongs to positions up to t, and all share the keys and values of the history, which are made once and never
copied (nor are they for the beams of a search).

Measured on amazon-beauty (4 + 4 layers, width 128, two threads): a constrained beam of 20 takes 5.3 ms per history, the
same lists by ``generate`` of transformers 25 (``python benchmarks/speed/generate.py --part beam --threads 2``).

Legend: B histories, R of a group, S states of a history, T' targets, M levels, P places (M, or M + 1 with an end),
V tokens, D width, W beams, H heads, d their width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recsys.data.batch import PAD, Batch, Group
from recsys.encoders.tokens import TokenMemory, check_codes
from recsys.nn.dropout import Dropout
from recsys.nn.t5 import T5Stack, attention, grouped
from recsys.objectives.weighted import weighted_sum
from recsys.protocols import Context, Encoded

SOFTMAX = ("level", "vocabulary")
MEMORY = ("past", "newest", "both")


@dataclass(frozen=True)
class Sources:
    """The states that a decoder looks at, the real ones alone and right-padded."""

    flat: Tensor  # (n, D)
    item: Tensor  # (B, S) int64: the position that each belongs to, -1 for padding
    lengths: Tensor  # (B,)


@dataclass(frozen=True)
class Beams:
    """What is known of B histories and of what was generated for each."""

    read: list[Tensor]  # of each layer keys and values of the history (2, B, H, S, d); empty where it looks at none
    seen: Tensor | None  # (B, 1, 1, S) bool, which of them are real; None: all
    prefix: Tensor | None  # (B, D) what is added to the start token
    made: list[list[Tensor]]  # of each layer and each place so far keys and values (B, W, 2, H, d), W = 1 of the start


class CodeDecoder(nn.Module):
    """Codes of the next item by a T5 decoder: the loss of its targets, and step by step what a search asks for.

    The loss of a target is the mean of the cross-entropies of its tokens. Reads :class:`TokenMemory` where the encoder
    gives it (``TokenEncoder``), or else the states of the items, of any encoder.

    Args:
        dim: width D, the same as the item table's.
        num_layers, num_heads, head_dim, ff, dropout: as of :class:`recsys.encoders.tokens.TokenEncoder`.
        softmax: over the codes of the "level" that comes next, or over the whole "vocabulary", as in a language model:
            codes of other levels, the start and the end token then cost probability, in training as in a search, which
            never chooses them. The probabilities of all items sum to less than 1 either way, as not every tuple of
            codes is an item.
        end: an end token is predicted behind the last code in training. A search leaves it out, as all items have M
            codes.
        memory: "past", all states of the history up to the position whose target is predicted, as in the paper;
            "newest", only the state at that position: it is projected and added to the start token, and no layer looks
            at anything else, which is cheaper; or "both". Attention to the past does not know where a state stands:
            what an encoder reads in both directions can tell (it is next to the end), a causal one can not, so behind
            a causal encoder "both" learns in fewer steps.

    Raises:
        ValueError: a number or name that makes no sense, or ``end`` where the softmax knows no end.
    """

    ordered = True

    def __init__(
        self,
        dim: int = 128,
        num_layers: int = 4,
        num_heads: int = 6,
        head_dim: int = 64,
        ff: int = 1024,
        dropout: float = 0.1,
        softmax: str = "level",
        end: bool = False,
        memory: str = "past",
    ) -> None:
        super().__init__()
        if softmax not in SOFTMAX or memory not in MEMORY:
            raise ValueError(
                f"softmax must be one of {', '.join(SOFTMAX)} and memory one of {', '.join(MEMORY)}, found {softmax!r} "
                f"and {memory!r}"
            )
        if end and softmax == "level":
            raise ValueError(
                'a softmax over the codes of a level has no end token: use softmax="vocabulary", or no end'
            )
        self.dim, self.num_layers, self.num_heads, self.head_dim = dim, num_layers, num_heads, head_dim
        self.ff, self.dropout, self.softmax, self.end, self.memory = ff, dropout, softmax, end, memory
        self.whole = memory != "newest"  # whether it reads the states of all positions
        self.stack = T5Stack(dim, num_layers, num_heads, head_dim, ff, dropout, bidirectional=False, looks=self.whole)
        self.project = None if memory == "past" else nn.Linear(dim, dim, bias=False)

    def bind(self, context: Context) -> None:
        """Initialise all weights (from torch's generator, which the caller seeds)."""
        self.stack.reset()
        if self.project is not None:
            nn.init.normal_(self.project.weight, std=self.dim**-0.5)

    def forward(self, encoded: Encoded, batch: Batch, items: Any, generator: torch.Generator) -> Tensor:
        """The sum over the targets of weight times loss; ``generator`` is not used.

        Raises:
            TypeError: the items have no codes.
            ValueError: the item table has another width, or the batch has no targets.
        """
        states, targets, weights = encoded.at_targets(batch)
        numbers = items.token_table[targets]
        if self.end:
            numbers = F.pad(numbers, (0, 1), value=items.tokens.shape[0] - 1)
        hidden = self.teach(encoded, batch, items, states, numbers)
        losses = []
        for place in range(numbers.shape[1]):
            first = items.span(place).start if place < items.levels else items.tokens.shape[0] - 1
            log_probs = self._log_probs(hidden[:, place], items, place)
            losses.append(-log_probs.gather(1, (numbers[:, place] - first)[:, None]))
        return weighted_sum(torch.cat(losses, 1).mean(1), weights)

    def teach(self, encoded: Encoded, batch: Batch, items: Any, states: Tensor, numbers: Tensor) -> Tensor:
        """States (T', P, D), each of the start token and the tokens before it, of the targets ``numbers`` (T', P).

        Args:
            states: (T', D) the encoder's states at the targets.
        """
        check_codes(items, self.dim, type(self).__name__)
        x = F.embedding(F.pad(numbers[:, :-1], (1, 0), value=PAD), items.tokens)
        if self.project is not None:
            x = torch.cat([x[:, :1] + self.project(states)[:, None], x[:, 1:]], 1)
        places = x.shape[1]
        place = torch.arange(places, device=x.device)
        bias = self.stack.positions(place, place).masked_fill(place > place[:, None], -torch.inf)

        def mix(layer: int, made: Tensor) -> Tensor:
            queries, keys, values = made.unflatten(0, (-1, places)).permute(2, 0, 3, 1, 4)  # each (T', H, P, d)
            return attention(queries, keys, values, bias, self.stack.drop).transpose(1, 2).flatten(0, 1)

        look = self._looking(encoded, batch, places) if self.whole else None
        return self.stack(x.flatten(0, 1), mix, look).unflatten(0, (-1, places))

    def begin(self, encoded: Encoded, items: Any) -> Beams:
        """What steps need of B histories: keys and values of their states, and nothing generated yet."""
        check_codes(items, self.dim, type(self).__name__)
        made: list[list[Tensor]] = [[] for _ in range(self.num_layers)]
        prefix = None if self.project is None else self.project(encoded.user)
        if not self.whole:
            return Beams([], None, prefix, made)
        sources = _sources(encoded)
        real = sources.item >= 0
        view = Group(len(real), real.shape[1], real.flatten().nonzero().squeeze(1))
        read = [view.pad(pair).permute(2, 0, 3, 1, 4).contiguous() for pair in self.stack.memories(sources.flat)]
        seen = None if len(view.index) == real.numel() else _some(real)[:, None, None]
        return Beams(read, seen, prefix, made)

    def step(self, memory: Beams, items: Any, tokens: Tensor | None, parents: Tensor | None) -> tuple[Tensor, Beams]:
        """Log-probabilities (B, W, K) of the codes that come next, and the memory with ``tokens`` (B, W) in it.

        Args:
            tokens: numbers of the tokens chosen last; None: nothing is chosen yet, W = 1.
            parents: (B, W) int64, the earlier beam that each continues.
        """
        level = len(memory.made[0])
        if tokens is None or parents is None:
            x = items.tokens[PAD].expand(self._size(memory), 1, self.dim)
            x = x if memory.prefix is None else x + memory.prefix[:, None]
        else:
            x = F.embedding(tokens, items.tokens)
            memory = replace(memory, made=[[_of(parents, pair) for pair in pairs] for pairs in memory.made])
        rows, beams = x.shape[:2]
        place = torch.arange(level + 1, device=x.device)
        bias = self.stack.positions(place[-1:], place)[0, :, 0]  # (H, places)
        made: list[list[Tensor]] = []

        def mix(layer: int, own: Tensor) -> Tensor:
            own = own.unflatten(0, (rows, beams))  # (B, W, 3, H, d)
            made.append([*memory.made[layer], own[:, :, 1:]])
            return _over_places(own[:, :, 0], made[-1], bias, self.stack.drop).flatten(0, 1)

        def look(layer: int, asked: Tensor) -> Tensor:
            keys, values = memory.read[layer]
            queries = asked.unflatten(0, (rows, beams)).transpose(1, 2)  # (B, H, W, d): the beams share what they read
            seen = attention(queries, keys, values, _hidden(memory.seen, queries), self.stack.drop)
            return seen.transpose(1, 2).flatten(0, 1)

        hidden = self.stack(x.flatten(0, 1), mix, look)
        return self._log_probs(hidden, items, level).unflatten(0, (rows, beams)), replace(memory, made=made)

    def _size(self, memory: Beams) -> int:
        return memory.read[0].shape[1] if memory.prefix is None else len(memory.prefix)

    def _log_probs(self, hidden: Tensor, items: Any, level: int) -> Tensor:
        """(n, K) of the codes of a level from states (n, D), or (n, 1) of the end token behind the last level."""
        if items.prototypes is items.tokens:
            hidden = hidden * self.dim**-0.5
        if self.softmax == "level":
            return items.code_logits(hidden, level).float().log_softmax(-1)
        logits = (hidden @ items.prototypes.T).float()
        asked = items.span(level) if level < items.levels else slice(-1, None)
        return logits[:, asked] - logits.logsumexp(-1, keepdim=True)

    def _looking(self, encoded: Encoded, batch: Batch, places: int) -> Any:
        """The attention of all targets of a batch to the states of their histories (``Look``)."""
        sources = _sources(encoded)
        assert batch.targets is not None
        chosen = batch.flatten(batch.targets) > PAD
        owners = (batch.flat // batch.ids.shape[1])[chosen]
        counts = torch.bincount(owners, minlength=len(batch))
        sizes = [group.size for group in batch.groups]
        asked, read = grouped(counts, sizes), grouped(sources.lengths, sizes)
        masks = _masks(sources, batch.positions[chosen], asked, read, places)
        memories = self.stack.memories(sources.flat)
        many, each = [len(group.index) for group in read], [len(group.index) for group in asked]

        def look(layer: int, queries: Tensor) -> Tensor:
            parts = zip(queries.unflatten(0, (-1, places)).split(each), memories[layer].split(many), strict=True)
            mixed = []
            for (own, pair), group, other, mask in zip(parts, asked, read, masks, strict=True):
                keys, values = other.pad(pair).permute(2, 0, 3, 1, 4)  # each (R, H, S, d)
                wide = group.pad(own).flatten(1, 2).transpose(1, 2)  # (R, H, targets x P, d)
                seen = attention(wide, keys, values, mask, self.stack.drop).transpose(1, 2)
                mixed.append(group.flatten(seen.unflatten(1, (-1, places))))
            return torch.cat(mixed).flatten(0, 1)

        return look


def _sources(encoded: Encoded) -> Sources:
    """The token states that the encoder gives, or else those of the items."""
    given = encoded.get(TokenMemory)
    if given is None:
        batch = encoded.batch
        place = torch.arange(batch.ids.shape[1], device=batch.ids.device).expand(batch.ids.shape)
        return Sources(encoded.tokens, place.masked_fill(~batch.mask, -1), batch.lengths)
    real = given.item >= 0
    return Sources(given.states[real], given.item, real.sum(1))


def _masks(
    sources: Sources, positions: Tensor, asked: Sequence[Group], read: Sequence[Group], places: int
) -> list[Tensor]:
    """Of each group what is added to scores (R, 1, targets x P, S): -inf at states behind a target's position."""
    masks, row, first = [], 0, 0
    for group, other in zip(asked, read, strict=True):
        item = sources.item[row : row + group.size, : other.width]
        at = group.pad(positions[first : first + len(group.index)])  # padding asks at position 0
        visible = _some((item[:, None] <= at[:, :, None]) & (item >= 0)[:, None])
        hidden = torch.zeros(visible.shape, device=item.device).masked_fill(~visible, -torch.inf)
        masks.append(hidden.repeat_interleave(places, 1)[:, None])
        row, first = row + group.size, first + len(group.index)
    return masks


def _some(visible: Tensor) -> Tensor:
    """(..., S) with the first state visible: it is at position 0, or the zeros of an empty history."""
    return visible | (torch.arange(visible.shape[-1], device=visible.device) == 0)


def _hidden(seen: Tensor | None, like: Tensor) -> Tensor | None:
    """The mask as what is added to scores."""
    return None if seen is None else like.new_zeros(seen.shape).masked_fill(~seen, -torch.inf)


def _of(parents: Tensor, pair: Tensor) -> Tensor:
    """Keys and values (B, W, ...) of the beams that ``parents`` (B, W') continue; those of the start are everyone's."""
    rows, beams = pair.shape[:2]
    if beams == 1:
        return pair
    first = torch.arange(0, rows * beams, beams, device=parents.device)[:, None]
    return pair.flatten(0, 1).index_select(0, (parents + first).flatten()).unflatten(0, (rows, -1))


def _over_places(queries: Tensor, made: Sequence[Tensor], bias: Tensor, drop: Dropout) -> Tensor:
    """(B, W, H, d) of queries (B, W, H, d) over the keys and values (B, W or 1, 2, H, d) of a few places.

    One query a beam is too little for a product of matrices: place by place this is what :func:`attention` gives.
    """
    scores = torch.stack([(queries * pair[:, :, 0]).sum(-1) for pair in made], -1)
    weights = drop((scores + bias).softmax(-1)).unsqueeze(-1).unbind(-2)  # of each place (B, W, H, 1)
    mixed = weights[0] * made[0][:, :, 1]
    for weight, pair in zip(weights[1:], made[1:], strict=True):
        mixed = torch.addcmul(mixed, weight, pair[:, :, 1])
    return mixed
