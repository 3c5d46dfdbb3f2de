"""SASRec on MovieLens-100K, leave-last, against four baselines: the quickstart.

Run: ``recsys fit configs/sasrec_ml100k.py``. Several windows per long history, not only the last one, because half of
the histories are longer than 50: test NDCG@10 .1040 against .0976 with the last window only, means over three seeds
(``python benchmarks/quality/run.py sasrec_ml100k --seeds 0 1 2``, and the same with ``-- --windows last``).
"""

from __future__ import annotations

from typing import Literal

import recsys as rs


def run(
    dim: int = 64,
    num_layers: int = 2,
    num_heads: int = 1,
    dropout: float = 0.2,
    max_length: int = 50,
    layout: Literal["original", "pre", "post", "ligr"] = "original",
    windows: Literal["last", "sliding"] = "sliding",
    epochs: int = 60,
    patience: int = 8,
    batch_size: int = 128,
    learning_rate: float = 2e-3,
    baselines: bool = True,
    seed: int = 0,
) -> rs.Run:
    """Full softmax on the last item but two of every user, validated on the last but one, tested on the last."""
    split = rs.load("ml-100k").split(rs.LeaveLast())
    model = rs.Recommender(
        items=rs.IdItems(dim),
        encoder=rs.SASRec(dim, num_layers, num_heads, dropout, max_length, layout=layout),
        objective=rs.FullSoftmax(),
    )
    settings = {"epochs": epochs, "patience": patience, "batch_size": batch_size, "learning_rate": learning_rate}
    return rs.Run(
        model,
        split,
        settings={**settings, "windows": windows, "seed": seed},
        # The baselines' knobs were chosen like the model's, on validation NDCG@10 (benchmarks/quality/baselines.py).
        baselines=[rs.Popularity(), rs.ItemKNN(), rs.ItemKNN(shrink=0.0, decay=0.5), rs.EASE(l2=100.0), rs.Markov()]
        if baselines
        else [],
    )
