"""SLMRec's encoder: frozen item vectors read by a causal language model (Xu et al., ICLR 2025, arXiv 2405.17890).

The model reads [prefix tokens; W_in e_1 .. W_in e_n; suffix tokens], and the user vector is W_out of its normalised
state at the last suffix token; it is scored against the same item vectors. Teacher and student are this encoder at two
depths (the student learns from the teacher by :class:`recsys.auxiliaries.distillation.Distillation`); with
cross-entropy alone it is E4SRec. The items are ``recsys.items.frozen.FrozenItems`` of a trained SASRec.

What we do differently from the released code:

- Histories are not padded on the left up to the longest: the suffix follows the newest item at once, and what pads a
  batch stands behind everything that is read. So no position is spent on padding, no mask is needed, and a history
  has the same state alone as in any company.
- Row 0 is padding and no item.
- The prefix is read once per batch and its keys and values are shared, which gives the same numbers. In training, its
  adapters' dropout is then drawn once per batch, not once per history.

Train with ``LastItem`` (a row per prefix of each history), or with :class:`recsys.targets.last_item.LastOfUser`, the
authors' one row per user.

Legend: B histories, T real tokens, D width of items, H hidden size, P and S tokens of prefix and suffix, b blocks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from recsys.data.batch import Batch
from recsys.nn.backbone import Backbone, check_blocks
from recsys.protocols import Context, Encoded, ItemTable

PREFIX = "What this user took, oldest first:"
SUFFIX = "Taken next:"


@dataclass(frozen=True)
class BlockEnds:
    """States at the last token at the ends of b equal blocks of layers, for distillation."""

    given_by = "SLMRec(..., blocks=b)"

    states: Tensor  # (B, b, H)


class SLMRec(nn.Module):
    """A causal language model between item vectors and a user vector.

    Of the token states only the newest of each history is not zero: it is the user vector. It gives
    :class:`BlockEnds` if there are ``blocks``.

    Args:
        backbone: the language model.
        dim: D, the width of the item vectors.
        max_length: longest history.
        prefix: what stands before the items, as text or as token ids of the backbone.
        suffix: what stands behind them.
        blocks: b; 0 for no block ends.
        share_prefix: read the prefix once per batch.

    Raises:
        ValueError: a number out of range, or layers that do not divide into the blocks.
    """

    sees = "all"
    newest_only = True

    def __init__(
        self,
        backbone: Backbone,
        dim: int = 64,
        max_length: int = 30,
        prefix: str | Sequence[int] = PREFIX,
        suffix: str | Sequence[int] = SUFFIX,
        blocks: int = 0,
        share_prefix: bool = True,
    ) -> None:
        super().__init__()
        if dim < 1 or max_length < 1:
            raise ValueError(f"dim and max_length must be at least 1, found {dim} and {max_length}")
        check_blocks(backbone.depth, blocks)
        self.backbone, self.dim, self.max_length, self.blocks = backbone, dim, max_length, blocks
        self.prefix = prefix if isinstance(prefix, str) else list(prefix)
        self.suffix = suffix if isinstance(suffix, str) else list(suffix)
        self.share_prefix = share_prefix
        self.project_in: nn.Linear | None = None
        self.project_out: nn.Linear | None = None
        self.prefix_ids: Tensor
        self.suffix_ids: Tensor
        self.register_buffer("prefix_ids", torch.zeros(0, dtype=torch.int64))
        self.register_buffer("suffix_ids", torch.zeros(0, dtype=torch.int64))

    def bind(self, context: Context) -> None:
        """Load the backbone, tokenize the prompt, initialise the projections as torch does.

        Raises:
            ValueError: depth and blocks do not fit, a token is not the backbone's, or all does not fit into its window.
            OSError: the backbone cannot be had.
        """
        self.backbone.bind(context)
        check_blocks(self.backbone.depth, self.blocks)
        for name, prompt in (("prefix", self.prefix), ("suffix", self.suffix)):
            setattr(self, f"{name}_ids", self._tokens(name, prompt, context))
        self._check_window()
        self.project_in = nn.Linear(self.dim, self.backbone.hidden)
        self.project_out = nn.Linear(self.backbone.hidden, self.dim, bias=False)

    def forward(self, batch: Batch, items: ItemTable) -> Encoded:
        """The user vector of each history, as the state of its newest token."""
        if self.project_in is None or self.project_out is None:
            raise ValueError(
                "SLMRec has no language model yet: train it with rs.fit or load a run (or call bind(context) yourself)"
            )
        inputs, last = self._inputs(batch, self.project_in(items.embed(batch.flat_ids)))
        prefix = self.backbone.embed(self.prefix_ids)
        final, blocks = self.backbone(inputs, last, prefix, self.blocks, self.share_prefix)
        known = batch.lengths > 0
        user = self.project_out(final) * known[:, None]
        tokens = user.new_zeros(len(batch.flat), self.dim).index_copy(0, batch.last[known], user[known])
        return Encoded(batch, tokens, (BlockEnds(blocks),) if self.blocks else (), user)

    @property
    def gives(self) -> frozenset[type]:
        """Block ends, where there are blocks."""
        return frozenset({BlockEnds} if self.blocks else ())

    def set_blocks(self, blocks: int) -> None:
        """Give the ends of this many blocks from now on, on a trained model too.

        Raises:
            ValueError: the layers do not divide into the blocks.
        """
        check_blocks(self.backbone.depth, blocks)
        self.blocks = blocks

    def merge(self) -> None:
        """Fold the adapters into the language model, for serving; it then saves all its weights and needs no hub."""
        self.prefix, self.suffix = self.prefix_ids.tolist(), self.suffix_ids.tolist()
        self.backbone.merge()

    def _inputs(self, batch: Batch, vectors: Tensor) -> tuple[Tensor, Tensor]:
        """(B, W, H) items (T, H) and suffix of each history, and where its last token is, (B,)."""
        size, width, count = len(batch), batch.ids.shape[1] + len(self.suffix_ids), len(self.suffix_ids)
        row = torch.arange(size, device=vectors.device)
        starts = row.repeat_interleave(batch.lengths) * width
        suffix = self.backbone.embed(self.suffix_ids).to(vectors.dtype)
        behind = (row * width + batch.lengths)[:, None] + torch.arange(count, device=vectors.device)
        laid = vectors.new_zeros(size * width, vectors.shape[1])
        laid = laid.index_copy(0, starts + batch.positions, vectors)
        laid = laid.index_copy(0, behind.flatten(), suffix.repeat(size, 1))
        return laid.view(size, width, -1), (batch.lengths + count - 1).clamp(min=0)

    def _tokens(self, name: str, prompt: str | Sequence[int], context: Context) -> Tensor:
        if isinstance(prompt, str) and isinstance(self.backbone.model, str) and context.training is None:
            return torch.zeros(0, dtype=torch.int64)  # a loaded model has saved its tokens
        ids = self.backbone.tokens(prompt) if isinstance(prompt, str) else prompt
        size = int(self.backbone.body.config.vocab_size)
        if any(not 0 <= token < size for token in ids):
            raise ValueError(f"{name} has the token {max(ids)}, and the language model knows 0..{size - 1}")
        return torch.tensor(list(ids), dtype=torch.int64)

    def _check_window(self) -> None:
        window = getattr(self.backbone.body.config, "max_position_embeddings", None)
        needed = len(self.prefix_ids) + self.max_length + len(self.suffix_ids)
        if window is not None and needed > window:
            raise ValueError(
                f"prefix, {self.max_length} items and suffix are {needed} tokens, and the language model reads "
                f"{window}: lower max_length or shorten the prompt"
            )
