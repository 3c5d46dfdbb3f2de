"""SASRec on Amazon Beauty (5-core, 22,363 users), leave-last, full ranking, history excluded.

Run: ``RECSYS_MIRROR=... recsys fit configs/sasrec_beauty.py``. Sparse and short: nine items a user, so dropout is high
and the table, not the attention, does the work. Published: NDCG@10 .0318 for the original SASRec, .0531 for a sampled
softmax (eSASRec study, arXiv 2508.06450).
"""

from __future__ import annotations

from typing import Literal

from _knobs import Knobs

import recsys as rs

KNOBS = Knobs(dropout=0.5, max_length=50, batch_size=256, learning_rate=2e-3)


def run(
    num_layers: int = 2,
    num_heads: int = 1,
    layout: Literal["original", "pre", "post", "ligr"] = "original",
    baselines: bool = True,
    knobs: Knobs = KNOBS,
) -> rs.Run:
    """SASRec with the full softmax over 12,101 items.

    Args:
        num_layers: number of Transformer blocks.
        num_heads: attention heads per block.
        layout: Transformer block: the authors' (original), LayerNorm before (pre) or after (post) sub-layers, or gated.
        baselines: evaluate the baselines as well.
    """
    model = rs.Recommender(
        items=rs.IdItems(knobs.dim),
        encoder=rs.SASRec(knobs.dim, num_layers, num_heads, knobs.dropout, knobs.max_length, layout=layout),
        objective=rs.FullSoftmax(),
    )
    ranked = [rs.Popularity(), rs.ItemKNN(), rs.Markov()] if baselines else []
    split = rs.load("amazon-beauty").split(rs.LeaveLast())
    return rs.Run(model, split, knobs.training(), baselines=ranked, evaluate=knobs.evaluation())
