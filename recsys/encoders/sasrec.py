"""SASRec: a causal Transformer over item embeddings (Kang & McAuley 2018, arXiv 1808.09781).

One pass gives a state at every position, so a history of n items trains n - 1 targets. What we do differently from
the authors' code, each an option: positions count back from the newest item (equal to their left padding), a W_O
follows the attention (as in every port but one), attention weights are not dropped (fused kernels cannot; set
``attention_dropout`` to have it), and sequences are padded on the right so that no mask is needed.

Measured on ML-1M (leave-last, full ranking, history excluded), one seed: test NDCG@10 .1783 with the full softmax,
published .1821 (``python benchmarks/quality/run.py sasrec_ml1m --seeds 0``).

Legend: B histories, L longest of the batch, T real tokens, D width.
"""

from __future__ import annotations

from torch import nn

from recsys.data.batch import Batch
from recsys.nn.blocks import Block
from recsys.nn.dropout import Dropout
from recsys.nn.initialise import check_scheme, initialise
from recsys.seams import Context, Encoded, ItemTable

POSITIONS = ("recency", "absolute", "none")


class SASRec(nn.Module):
    """Histories to states by causal self-attention.

    Args:
        dim: width D, the same as the item table's.
        dropout: on the embeddings and behind each sub-layer.
        max_length: longest history read; older items are cut by the batch, and counted there.
        layout: block layout, see :mod:`recsys.nn.blocks`.
        hidden: width inside the feed-forward part (default: D; 4 D for ``ligr``).
        activation: of the feed-forward part (default: relu; silu, the SwiGLU gate, for ``ligr``).
        positions: "recency" (newest item = 0), "absolute" (oldest item of the window = 0) or "none".
        input_norm: LayerNorm on the embeddings, as RecBole has it.
        final_norm: LayerNorm on the states, as everybody but RecBole has it.
        norm_eps: of every LayerNorm (default: 1e-8 as the authors have it; 1e-5 for ``ligr``).
        init: see :mod:`recsys.nn.initialise`; the default is that of the SASRec+ code.

    Raises:
        ValueError: ``dim`` not divisible by ``num_heads``, or an unknown name for a choice.
    """

    sees = "past"

    def __init__(
        self,
        dim: int = 64,
        num_layers: int = 2,
        num_heads: int = 1,
        dropout: float = 0.2,
        max_length: int = 50,
        layout: str = "original",
        hidden: int | None = None,
        activation: str | None = None,
        attention_dropout: float = 0.0,
        output_projection: bool = True,
        inner_dropout: bool = True,
        positions: str = "recency",
        input_norm: bool = False,
        final_norm: bool = True,
        norm_eps: float | None = None,
        init: str = "mixed",
    ) -> None:
        super().__init__()
        if positions not in POSITIONS:
            raise ValueError(f"positions must be one of {', '.join(POSITIONS)}, found {positions!r}")
        if max_length < 1 or num_layers < 0:
            raise ValueError(f"max_length must be >= 1 and num_layers >= 0, found {max_length} and {num_layers}")
        self.dim, self.num_layers, self.num_heads, self.dropout = dim, num_layers, num_heads, dropout
        self.max_length, self.layout, self.hidden, self.activation = max_length, layout, hidden, activation
        self.attention_dropout, self.output_projection = attention_dropout, output_projection
        self.inner_dropout, self.positions, self.input_norm = inner_dropout, positions, input_norm
        self.final_norm, self.norm_eps, self.init = final_norm, norm_eps, check_scheme(init)
        gated = layout == "ligr"
        eps = norm_eps or (1e-5 if gated else 1e-8)
        self.position_table = None if positions == "none" else nn.Embedding(max_length, dim)
        self.before = nn.LayerNorm(dim, eps) if input_norm else nn.Identity()
        self.drop = Dropout(dropout)
        self.blocks = nn.ModuleList(
            Block(
                layout,
                dim,
                num_heads,
                hidden or (4 * dim if gated else dim),
                dropout,
                attention_dropout,
                output_projection,
                activation or ("silu" if gated else "relu"),
                inner_dropout,
                eps,
            )
            for _ in range(num_layers)
        )
        self.after = nn.LayerNorm(dim, eps) if final_norm else nn.Identity()

    def bind(self, context: Context) -> None:
        """Initialise all weights (from torch's generator, which the caller seeds)."""
        initialise(self, self.init)

    def forward(self, batch: Batch, items: ItemTable) -> Encoded:
        """States of all real tokens.

        Raises:
            ValueError: a history is longer than ``max_length``, or the item table has another width.
        """
        if items.dim != self.dim:
            raise ValueError(f"the item table has width {items.dim}, the encoder {self.dim}: give both the same dim")
        x = items.embed(batch.flat_ids)  # (T, D)
        if self.position_table is not None:
            if batch.ids.shape[1] > self.max_length:
                raise ValueError(
                    f"a history of {batch.ids.shape[1]} items came to an encoder with max_length={self.max_length}: "
                    "cut it to its newest items, or raise max_length"
                )
            x = x + self.position_table(batch.ages if self.positions == "recency" else batch.positions)
        x = self.drop(self.before(x))
        for block in self.blocks:
            x = block(x, batch)
        return Encoded(batch, self.after(x))
