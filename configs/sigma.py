"""SIGMA (Liu et al., AAAI 2025, arXiv 2408.11451) on MovieLens-100K, MovieLens-1M or Amazon Beauty, leave-last.

Run: ``recsys fit configs/sigma.py`` (others: ``--data ml-1m``, ``--data amazon-beauty``, which need ``RECSYS_MIRROR``).
The authors' protocol ranks with the history left in (``--exclude none``), and their reversed pass works on padded
positions (``--flip repo``); by default the history is taken out, as everywhere in our tables, and real items are
reversed. One target per prefix, because the encoder reads the whole input. Deviations: batches are smaller than their
2,048 rows, the padding row is neither scored nor part of the item table, and at 200 items (ml-1m) all but the newest 5
are reversed, where their file reverses the first 45 whatever the length (``--keep 155``).
"""

from __future__ import annotations

from typing import Any, Literal

import recsys as rs

KNOBS: dict[str, dict[str, Any]] = {
    "ml-100k": {"dropout": 0.2, "max_length": 50, "batch_size": 256, "learning_rate": 1e-3},
    "ml-1m": {"dropout": 0.2, "max_length": 200, "batch_size": 1024, "learning_rate": 1e-3},
    "amazon-beauty": {"dropout": 0.4, "max_length": 50, "batch_size": 512, "learning_rate": 1e-3},
}


def run(
    data: Literal["ml-100k", "ml-1m", "amazon-beauty"] = "ml-100k",
    dim: int = 64,
    num_layers: int = 1,
    dropout: float | None = None,
    max_length: int | None = None,
    keep: int = 5,
    flip: Literal["valid", "repo"] = "valid",
    gate_cross: Literal["repo", "clean"] = "repo",
    ssm_init: Literal["recbole", "mamba"] = "recbole",
    exclude: Literal["history", "none"] = "history",
    epochs: int = 60,
    patience: int = 8,
    batch_size: int | None = None,
    learning_rate: float | None = None,
    seed: int = 0,
) -> rs.Run:
    """Full softmax on the item after every prefix; a knob that is None takes the data set's value (``KNOBS``)."""
    knobs = {"dropout": dropout, "max_length": max_length, "batch_size": batch_size, "learning_rate": learning_rate}
    knobs = {name: KNOBS[data][name] if value is None else value for name, value in knobs.items()}
    model = rs.Recommender(
        items=rs.IdItems(dim, scale=False),
        encoder=rs.SIGMA(
            dim,
            num_layers,
            dropout=knobs["dropout"],
            max_length=knobs["max_length"],
            keep=keep,
            flip=flip,
            gate_cross=gate_cross,
            ssm_init=ssm_init,
        ),
        objective=rs.FullSoftmax(),
        targets=rs.LastItem(),
    )
    settings = {
        "epochs": epochs,
        "patience": patience,
        "batch_size": knobs["batch_size"],
        "learning_rate": knobs["learning_rate"],
        "exclude": exclude,
        "seed": seed,
    }
    return rs.Run(model, rs.load(data).split(rs.LeaveLast()), settings, evaluate={"exclude": exclude})
