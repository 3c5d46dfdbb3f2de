"""SASRec on MovieLens-1M under protocol B: leave-last, full ranking, history excluded.

Run: ``RECSYS_MIRROR=... recsys fit configs/sasrec_ml1m.py`` (variants: ``--loss bce``, ``--loss gbce``). The order of
the events is that of the file behind the SASRec, BERT4Rec and gSASRec papers, so the numbers compare with theirs:
NDCG@10 .1821 for the full softmax and .1341 for BCE with one negative (Klenitskiy & Vasilev 2023, arXiv 2309.07602).
Measured, one seed: .1783 and .1314 (``python benchmarks/quality/run.py sasrec_ml1m --seeds 0``, ``-- --loss bce``).
Deviations from the published recipe: learning rate 2e-3 instead of 1e-3, dropout 0.2 instead of 0.1, attention weights
not dropped, and positions counted from the newest item. gSASRec's authors score an output table of its own:
``--loss gbce --no-tied``; ours is the input's unless --no-tied is given.
"""

from __future__ import annotations

from typing import Literal

from _knobs import Knobs

import recsys as rs

KNOBS = Knobs(epochs=100, patience=10, dropout=0.2, max_length=200, batch_size=128, learning_rate=2e-3)


def run(
    loss: Literal["softmax", "sampled", "bce", "gbce"] = "softmax",
    tied: bool = True,
    num_layers: int = 2,
    num_heads: int = 1,
    layout: Literal["original", "pre", "post", "ligr"] = "original",
    baselines: bool = False,
    knobs: Knobs = KNOBS,
) -> rs.Run:
    """The published recipe of SASRec+ (width 64, two blocks, one head, 200 items), and its losses as variants.

    Args:
        loss: softmax over all items, over sampled ones, or binary cross-entropy with sampled negatives (bce, gbce).
        tied: score items with the vectors that the encoder reads; --no-tied learns a second table.
        num_layers: number of Transformer blocks.
        num_heads: attention heads per block.
        layout: Transformer block: the authors' (original), LayerNorm before (pre) or after (post) sub-layers, or gated.
        baselines: evaluate the baselines as well.
    """
    objective = {"softmax": rs.FullSoftmax, "sampled": rs.SampledSoftmax, "bce": rs.BCE, "gbce": rs.GBCE}[loss]()
    model = rs.Recommender(
        items=rs.IdItems(knobs.dim, tied=tied),
        encoder=rs.SASRec(knobs.dim, num_layers, num_heads, knobs.dropout, knobs.max_length, layout=layout),
        objective=objective,
    )
    ranked = [rs.Popularity(), rs.ItemKNN(), rs.EASE(), rs.Markov()] if baselines else []
    split = rs.load("ml-1m").split(rs.LeaveLast())
    return rs.Run(model, split, knobs.training(), baselines=ranked, evaluate=knobs.evaluation())
