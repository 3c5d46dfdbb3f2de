"""GRU4Rec (Hidasi et al. 2016, arXiv 1511.06939) on MovieLens-100K, MovieLens-1M or Amazon Beauty, leave-last.

Run: ``recsys fit configs/gru4rec.py`` (others: ``--data ml-1m``, ``--data amazon-beauty``, which need
``RECSYS_MIRROR``). One layer of 128 units between vectors of width 64 and dropout .3, as RecBole has it, with the full
softmax. Deviations: all positions of a history are trained at once instead of one target per prefix (``--train last``),
batches are smaller than RecBole's 2,048 rows, and the padding row is neither learned nor scored.
"""

from __future__ import annotations

from typing import Any, Literal

import recsys as rs

KNOBS: dict[str, dict[str, Any]] = {
    "ml-100k": {"max_length": 50, "batch_size": {"all": 128, "last": 256}, "learning_rate": 2e-3, "windows": "sliding"},
    "ml-1m": {"max_length": 200, "batch_size": {"all": 128, "last": 1024}, "learning_rate": 2e-3, "windows": "last"},
    "amazon-beauty": {
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
    hidden: int = 128,
    num_layers: int = 1,
    dropout: float = 0.3,
    max_length: int | None = None,
    windows: Literal["last", "sliding"] | None = None,
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
    knobs.update((name, value) for name, value in given.items() if value is not None)
    model = rs.Recommender(
        items=rs.IdItems(dim, scale=False, init="xavier_normal"),
        encoder=rs.GRU4Rec(dim, hidden, num_layers, dropout, knobs["max_length"]),
        objective=rs.FullSoftmax(),
        targets=rs.NextItem() if train == "all" else rs.LastItem(),
    )
    settings = {
        "epochs": epochs,
        "patience": patience,
        "batch_size": knobs["batch_size"],
        "learning_rate": knobs["learning_rate"],
        "windows": knobs["windows"] if train == "all" else "last",
        "seed": seed,
    }
    return rs.Run(model, rs.load(data).split(rs.LeaveLast()), settings)
