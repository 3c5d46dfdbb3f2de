"""SASRec on MovieLens-100K, leave-last, against four baselines: the quickstart.

Run: ``recsys fit configs/sasrec_ml100k.py``. Several windows per long history, not only the last one, because half of
the histories are longer than 50: test NDCG@10 .1040 against .0976 with the last window only, means over three seeds
(``python benchmarks/quality/run.py sasrec_ml100k --seeds 0 1 2``, and the same with ``-- --windows last``).
"""

from __future__ import annotations

from typing import Literal

from _knobs import Knobs

import recsys as rs

KNOBS = Knobs(dropout=0.2, max_length=50, batch_size=128, learning_rate=2e-3)


def run(
    num_layers: int = 2,
    num_heads: int = 1,
    layout: Literal["original", "pre", "post", "ligr"] = "original",
    windows: Literal["last", "sliding"] = "sliding",
    baselines: bool = True,
    knobs: Knobs = KNOBS,
) -> rs.Run:
    """SASRec with the full softmax, beside its baselines.

    Args:
        num_layers: number of Transformer blocks.
        num_heads: attention heads per block.
        layout: Transformer block: the authors' (original), LayerNorm before (pre) or after (post) sub-layers, or gated.
        windows: of histories longer than max_length: the last window only, or sliding ones that cover them.
        baselines: evaluate the baselines as well.
    """
    model = rs.Recommender(
        items=rs.IdItems(knobs.dim),
        encoder=rs.SASRec(knobs.dim, num_layers, num_heads, knobs.dropout, knobs.max_length, layout=layout),
        objective=rs.FullSoftmax(),
    )
    # The baselines' knobs were chosen like the model's, on validation NDCG@10 (benchmarks/quality/baselines.py).
    ranked = (
        [rs.Popularity(), rs.ItemKNN(), rs.ItemKNN(shrink=0.0, decay=0.5), rs.EASE(l2=100.0), rs.Markov()]
        if baselines
        else []
    )
    split = rs.load("ml-100k").split(rs.LeaveLast())
    return rs.Run(model, split, knobs.training(windows=windows), baselines=ranked, evaluate=knobs.evaluation())
