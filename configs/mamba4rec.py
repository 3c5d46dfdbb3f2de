"""Mamba4Rec (Liu et al. 2024, arXiv 2403.03900) on MovieLens-100K, MovieLens-1M or Amazon Beauty, leave-last.

Run: ``recsys fit configs/mamba4rec.py`` (others: ``--data ml-1m``, ``--data amazon-beauty``, which need
``RECSYS_MIRROR``). The authors train one target per prefix and rank with the history left in: ``--train last
--exclude none``; here, by default, all positions of a history are trained at once (the encoder is causal) and the
history is taken out, as everywhere in our tables. The model is theirs: one layer of width 64, 32 states, their weights
at the start. Deviations: batches are smaller than their 2,048 rows, and the padding row is neither learned nor scored.
"""

from __future__ import annotations

from typing import Any, Literal

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
    data: Literal["ml-100k", "ml-1m", "amazon-beauty"] = "ml-100k",
    train: Literal["all", "last"] = "all",
    dim: int = 64,
    num_layers: int = 1,
    dropout: float | None = None,
    max_length: int | None = None,
    ssm_init: Literal["recbole", "mamba"] = "recbole",
    windows: Literal["last", "sliding"] | None = None,
    exclude: Literal["history", "none"] = "history",
    epochs: int = 60,
    patience: int = 8,
    batch_size: int | None = None,
    learning_rate: float | None = None,
    seed: int = 0,
) -> rs.Run:
    """Full softmax; a knob that is None takes the data set's value (``KNOBS``).

    ``windows`` matters for ``train="all"`` only, as a prefix of every target is all of them anyway.
    """
    given = {"max_length": max_length, "batch_size": batch_size, "learning_rate": learning_rate, "windows": windows}
    knobs = {**KNOBS[data], "batch_size": KNOBS[data]["batch_size"][train]}
    knobs.update((name, value) for name, value in {**given, "dropout": dropout}.items() if value is not None)
    model = rs.Recommender(
        items=rs.IdItems(dim, scale=False),
        encoder=rs.Mamba4Rec(
            dim, num_layers, dropout=knobs["dropout"], max_length=knobs["max_length"], ssm_init=ssm_init
        ),
        objective=rs.FullSoftmax(),
        targets=rs.NextItem() if train == "all" else rs.LastItem(),
    )
    settings = {
        "epochs": epochs,
        "patience": patience,
        "batch_size": knobs["batch_size"],
        "learning_rate": knobs["learning_rate"],
        "windows": knobs["windows"] if train == "all" else "last",
        "exclude": exclude,
        "seed": seed,
    }
    return rs.Run(model, rs.load(data).split(rs.LeaveLast()), settings, evaluate={"exclude": exclude})
