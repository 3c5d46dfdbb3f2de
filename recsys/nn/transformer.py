"""The Transformer encoders' common trunk: item and position vectors through blocks, and on from there token by token.

Legend: B histories, L longest of the batch, T real tokens, Q wanted tokens, D width.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from recsys.data.batch import Batch
from recsys.nn.blocks import Block
from recsys.nn.continuation import Memory, Past, places_of
from recsys.nn.dropout import Dropout
from recsys.nn.features import FeatureInputs
from recsys.nn.initialise import check_scheme, initialise
from recsys.protocols import Context, Encoded, ItemTable

POSITIONS = ("recency", "absolute", "none")


class Transformer(nn.Module):
    """Histories to states by blocks of self-attention; an encoder adds its choices, ``sees`` and its arguments.

    Args:
        longest: tokens that the position table has room for: ``max_length``, and one more where a token is appended.
        positions: "recency" (newest item = 0), "absolute" (oldest item of the window = 0) or "none".
        before: on the sum of item and position vectors.
        after: on the states.
        features: columns of events and users, added to the item vectors.
    """

    sees: str

    def __init__(
        self,
        blocks: Iterable[Block],
        dim: int,
        max_length: int,
        longest: int,
        positions: str,
        dropout: float,
        before: nn.Module,
        after: nn.Module,
        init: str,
        features: FeatureInputs | None = None,
    ) -> None:
        super().__init__()
        if positions not in POSITIONS:
            raise ValueError(f"positions must be one of {', '.join(POSITIONS)}, found {positions!r}")
        if max_length < 1:
            raise ValueError(f"max_length must be at least 1, found {max_length}")
        self.dim, self.max_length, self.longest, self.positions = dim, max_length, longest, positions
        self.dropout, self.init = dropout, check_scheme(init)
        self.position_table = None if positions == "none" else nn.Embedding(longest, dim)
        self.before = before
        self.drop = Dropout(dropout)
        self.blocks = nn.ModuleList(blocks)
        self.after = after
        if features is not None and features.dim != dim:
            raise ValueError(f"the features have dim={features.dim}, the encoder dim={dim}: give both the same")
        self.features = features  # behind all others, so that their weights are drawn as without it

    def bind(self, context: Context) -> None:
        """Initialise all weights (from torch's generator, which the caller seeds)."""
        initialise(self, self.init)
        if self.features is not None:
            self.features.bind(context)

    def forward(self, batch: Batch, items: ItemTable) -> Encoded:
        """States of all real tokens; where the newest ones alone are asked for, the others are zero and cost less.

        Raises:
            ValueError: a history is longer than the encoder reads, or the item table has another width.
        """
        return self._read(batch, items, None)

    def begin(self, batch: Batch, items: ItemTable) -> tuple[Encoded, Memory]:
        """The same, and what is needed to read on behind ``batch.wanted_tokens``."""
        layers: list[Past] = []
        return self._read(batch, items, layers), Memory(places_of(batch, causal=self.sees == "past"), layers)

    def extend(self, latents: Tensor, memory: Memory) -> tuple[Tensor, Memory]:
        """States (Q, D) of one more token behind each wanted one, and the memory with it (``protocols.Stepwise``)."""
        x, layers = self.drop(self.before(latents)), []
        for block, past in zip(self.blocks, memory.layers, strict=True):
            x, longer = block.extend(x, past, memory.places)  # type: ignore[operator]
            layers.append(longer)
        return self.after(x), Memory(memory.places, layers)

    def _read(self, batch: Batch, items: ItemTable, layers: list[Past] | None) -> Encoded:
        """The states; what each block has read goes into ``layers``, if it is to be kept."""
        x, few = self._enter(batch, items), _newest_alone(batch)
        whole, top = x.shape, self.blocks[-1] if self.blocks and few else None
        for block in self.blocks:
            x, past = (block.newest if block is top else block.begin)(x, batch)  # type: ignore[operator]
            if layers is not None:
                layers.append(past)
            del past  # or it stays in memory for the next block
        states = self.after(x)
        if top is not None:
            states = states.new_zeros(whole).index_copy(0, batch.wanted_tokens, states)
        return Encoded(batch, states)

    def _enter(self, batch: Batch, items: ItemTable) -> Tensor:
        """(T, D): what the first block reads."""
        if items.dim != self.dim:
            raise ValueError(f"the item table has width {items.dim}, the encoder {self.dim}: give both the same dim")
        x = items.embed(batch.flat_ids)
        if self.position_table is not None:
            if batch.ids.shape[1] > self.longest:
                raise ValueError(
                    f"a history of {batch.ids.shape[1]} items came to an encoder with max_length={self.max_length}: "
                    "cut it to its newest items, or raise max_length"
                )
            x = x + self.position_table(batch.ages if self.positions == "recency" else batch.positions)
        if self.features is not None:
            x = x + self.features(batch)
        return self.drop(self.before(x))


def _newest_alone(batch: Batch) -> bool:
    """Whether the states of each history's newest token are asked for and no others, and sparing these is worth it."""
    wanted = batch.wanted_tokens
    return 0 < 2 * len(wanted) <= len(batch.flat) and torch.equal(wanted, batch.last[batch.lengths > 0])
