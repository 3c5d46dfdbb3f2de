"""Mamba4Rec (Liu et al. 2024, arXiv 2403.03900) on MovieLens-100K, MovieLens-1M or Amazon Beauty, leave-last.

Run: ``recsys fit configs/mamba4rec.py`` (others: ``--data ml-1m``, ``--data amazon-beauty``, which need
``RECSYS_MIRROR``). The authors train one target per prefix and rank with the history left in: ``--train last
--exclude none``; here, by default, all positions of a history are trained at once (the encoder is causal) and the
history is taken out, as everywhere in our tables. The model is theirs: one layer of width 64, 32 states, their weights
at the start. Deviations: batches are smaller than their 2,048 rows, and the padding row is neither learned nor scored.
"""

from __future__ import annotations

from typing import Any, Literal

from _knobs import Public

import recsys as rs

KNOBS: dict[str, dict[str, Any]] = {
    "ml-100k": {
        "dropout": 0.2,
        "max_length": 50,
        "batch_size": {"all": 128, "last": 256},
        "learning_rate": 2e-3,
        "windows": "sliding",
    },
    "ml-1m": {
        "dropout": 0.2,
        "max_length": 200,
        "batch_size": {"all": 128, "last": 1024},
        "learning_rate": 2e-3,
        "windows": "last",
    },
    "amazon-beauty": {
        "dropout": 0.4,
        "max_length": 50,
        "batch_size": {"all": 256, "last": 512},
        "learning_rate": 2e-3,
        "windows": "last",
    },
}


def run(
    train: Literal["all", "last"] = "all",
    num_layers: int = 1,
    ssm_init: Literal["recbole", "mamba"] = "recbole",
    windows: Literal["last", "sliding"] | None = None,
    knobs: Public = Public(),
) -> rs.Run:
    """Mamba4Rec with the full softmax.

    Args:
        train: targets of a history: all positions at once, or the last of each prefix, as the authors train.
        num_layers: number of Mamba blocks.
        ssm_init: initial weights of the state space model: recbole as in the published numbers, or mamba's own.
        windows: of histories longer than max_length: the last window, or sliding ones (default: per data set);
            matters for --train all only, as prefixes cover all of a history anyway.
    """
    values = KNOBS[knobs.data]
    knobs = knobs.filled(values | {"batch_size": values["batch_size"][train]})
    model = rs.Recommender(
        items=rs.IdItems(knobs.dim, scale=False),
        encoder=rs.Mamba4Rec(
            knobs.dim, num_layers, dropout=knobs.dropout, max_length=knobs.max_length, ssm_init=ssm_init
        ),
        objective=rs.FullSoftmax(),
        targets=rs.NextItem() if train == "all" else rs.LastItem(),
    )
    training = knobs.training(windows=(windows or values["windows"]) if train == "all" else "last")
    return rs.Run(model, rs.load(knobs.data).split(rs.LeaveLast()), training, evaluate=knobs.evaluation())
