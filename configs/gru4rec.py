"""GRU4Rec (Hidasi et al. 2016, arXiv 1511.06939) on MovieLens-100K, MovieLens-1M or Amazon Beauty, leave-last.

Run: ``recsys fit configs/gru4rec.py`` (others: ``--data ml-1m``, ``--data amazon-beauty``, which need
``RECSYS_MIRROR``). One layer of 128 units between vectors of width 64 and dropout .3, as RecBole has it, with the full
softmax. Deviations: all positions of a history are trained at once instead of one target per prefix (``--train last``),
batches are smaller than RecBole's 2,048 rows, and the padding row is neither learned nor scored.
"""

from __future__ import annotations

from typing import Any, Literal

from _knobs import Public

import recsys as rs

KNOBS: dict[str, dict[str, Any]] = {
    "ml-100k": {
        "dropout": 0.3,
        "max_length": 50,
        "batch_size": {"all": 128, "last": 256},
        "learning_rate": 2e-3,
        "windows": "sliding",
    },
    "ml-1m": {
        "dropout": 0.3,
        "max_length": 200,
        "batch_size": {"all": 128, "last": 1024},
        "learning_rate": 2e-3,
        "windows": "last",
    },
    "amazon-beauty": {
        "dropout": 0.3,
        "max_length": 50,
        "batch_size": {"all": 256, "last": 512},
        "learning_rate": 2e-3,
        "windows": "last",
    },
}


def run(
    train: Literal["all", "last"] = "all",
    hidden: int = 128,
    num_layers: int = 1,
    windows: Literal["last", "sliding"] | None = None,
    knobs: Public = Public(),
) -> rs.Run:
    """GRU4Rec with the full softmax.

    Args:
        train: targets of a history: all positions at once, or the last of each prefix, as the authors train.
        hidden: units of a GRU layer.
        num_layers: number of GRU layers.
        windows: of histories longer than max_length: the last window, or sliding ones (default: per data set);
            matters for --train all only, as prefixes cover all of a history anyway.
    """
    values = KNOBS[knobs.data]
    knobs = knobs.filled(values | {"batch_size": values["batch_size"][train]})
    model = rs.Recommender(
        items=rs.IdItems(knobs.dim, scale=False, init="xavier_normal"),
        encoder=rs.GRU4Rec(knobs.dim, hidden, num_layers, knobs.dropout, knobs.max_length),
        objective=rs.FullSoftmax(),
        targets=rs.NextItem() if train == "all" else rs.LastItem(),
    )
    training = knobs.training(windows=(windows or values["windows"]) if train == "all" else "last")
    return rs.Run(model, rs.load(knobs.data).split(rs.LeaveLast()), training, evaluate=knobs.evaluation())
