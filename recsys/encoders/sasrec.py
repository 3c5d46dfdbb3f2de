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

from recsys.nn.blocks import Block
from recsys.nn.features import FeatureInputs
from recsys.nn.transformer import Transformer


class SASRec(Transformer):
    """Histories to states by causal self-attention; it can read on behind every position (``Stepwise``).

    Args:
        dim: width D, the same as the item table's.
        dropout: on the embeddings and behind each sub-layer.
        max_length: longest history read; of longer ones the newest items.
        layout: block layout, see :mod:`recsys.nn.blocks`.
        hidden: width inside the feed-forward part (default: D; 4 D for ``ligr``).
        activation: of the feed-forward part (default: relu; silu, the SwiGLU gate, for ``ligr``).
        positions: "recency" (newest item = 0), "absolute" (oldest item of the window = 0) or "none".
        input_norm: LayerNorm on the embeddings, as RecBole has it.
        final_norm: LayerNorm on the states, as everybody but RecBole has it.
        norm_eps: of every LayerNorm (default: 1e-8 as the authors have it; 1e-5 for ``ligr``).
        features: columns of events and users, see :class:`recsys.nn.features.FeatureInputs`.
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
        features: FeatureInputs | None = None,
    ) -> None:
        if num_layers < 0:
            raise ValueError(f"num_layers must be at least 0, found {num_layers}")
        gated = layout == "ligr"
        eps = norm_eps or (1e-5 if gated else 1e-8)
        blocks = [
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
        ]
        super().__init__(
            blocks,
            dim,
            max_length,
            longest=max_length,
            positions=positions,
            dropout=dropout,
            before=nn.LayerNorm(dim, eps) if input_norm else nn.Identity(),
            after=nn.LayerNorm(dim, eps) if final_norm else nn.Identity(),
            init=init,
            features=features,
        )
        self.num_layers, self.num_heads, self.layout, self.hidden = num_layers, num_heads, layout, hidden
        self.activation, self.attention_dropout = activation, attention_dropout
        self.output_projection, self.inner_dropout = output_projection, inner_dropout
        self.input_norm, self.final_norm, self.norm_eps = input_norm, final_norm, norm_eps
