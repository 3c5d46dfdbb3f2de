"""BERT4Rec: a bidirectional Transformer over item embeddings (Sun et al. 2019, arXiv 1904.06690).

Trained to fill in masked items (``MaskedItems`` targets); at inference a mask token stands
behind the history and its state is scored. What we do differently from the authors' code (FeiSun/BERT4Rec): positions
count back from the newest token instead of from the oldest, so that the token to predict is always number 0 (an
option); the scores have no bias per item, since a state and an item vector are all that an index holds; attention
weights are not dropped unless ``attention_dropout`` is set; and weights are drawn from a normal distribution that is
not truncated.

With ``LastItem`` targets instead of masks it is the backbone that ReaRec wraps (arXiv 2503.22675, section 4.1.4): items
attend to each other in both directions, thought steps to all items and to earlier ones.

Legend: B histories, L longest of the batch, T real tokens, D width.
"""

from __future__ import annotations

from torch import nn

from recsys.nn.blocks import Block
from recsys.nn.features import FeatureInputs
from recsys.nn.transformer import Transformer


class BERT4Rec(Transformer):
    """Histories to states by self-attention in both directions; it can read on behind a history (``Stepwise``).

    Args:
        dim: width D, the same as the item table's.
        dropout: on the embeddings and behind each sub-layer.
        max_length: longest history read; the mask token comes on top.
        hidden: width inside the feed-forward part (default: 4 D).
        positions: "recency" (newest token = 0), "absolute" (oldest token of the window = 0) or "none".
        head: a dense layer, GELU and LayerNorm between the last block and the scores (section 3.5; the LayerNorm is in
            the authors' code only); RecBole has none and scores the last block's states.
        norm_eps: of every LayerNorm.
        features: columns of events and users, see :class:`recsys.nn.features.FeatureInputs`.
        init: see :mod:`recsys.nn.initialise`.

    Raises:
        ValueError: ``dim`` not divisible by ``num_heads``, or an unknown name for a choice.
    """

    sees = "all"

    def __init__(
        self,
        dim: int = 64,
        num_layers: int = 2,
        num_heads: int = 2,
        dropout: float = 0.2,
        max_length: int = 50,
        hidden: int | None = None,
        activation: str = "gelu",
        attention_dropout: float = 0.0,
        positions: str = "recency",
        head: bool = True,
        norm_eps: float = 1e-12,
        init: str = "normal",
        features: FeatureInputs | None = None,
    ) -> None:
        if num_layers < 0:
            raise ValueError(f"num_layers must be at least 0, found {num_layers}")
        blocks = [
            Block(
                "post",
                dim,
                num_heads,
                hidden or 4 * dim,
                dropout,
                attention_dropout,
                activation=activation,
                inner_dropout=False,
                norm_eps=norm_eps,
                causal=False,
            )
            for _ in range(num_layers)
        ]
        super().__init__(
            blocks,
            dim,
            max_length,
            longest=max_length + 1,
            positions=positions,
            dropout=dropout,
            before=nn.LayerNorm(dim, norm_eps),
            after=nn.Sequential(nn.Linear(dim, dim), nn.GELU(), nn.LayerNorm(dim, norm_eps)) if head else nn.Identity(),
            init=init,
            features=features,
        )
        self.num_layers, self.num_heads, self.hidden, self.activation = num_layers, num_heads, hidden, activation
        self.attention_dropout, self.head, self.norm_eps = attention_dropout, head, norm_eps
