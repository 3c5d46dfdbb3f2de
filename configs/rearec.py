"""ReaRec (arXiv 2503.22675): latent reasoning around an encoder, on MovieLens-100K, MovieLens-1M or Amazon Beauty.

Run: ``recsys fit configs/rearec.py --encoder sasrec --method erl`` (``prl``, or ``base`` for the encoder alone under
the same knobs; ``--encoder gru4rec`` or ``sigma``; other data sets need ``RECSYS_MIRROR``). Deviations from the
authors: leave-last instead of one split in time; their temperatures, alphas and weights were searched per data set and
not published, so ours are one choice for all; the histories keep the encoder's own recipe (no input norm, widths of
64); and an encoder of the past trains all positions at once (``--train last`` for one target per prefix). SIGMA has no
cache, so each of its steps reads the history again, in training and at inference.
"""

from __future__ import annotations

from typing import Any, Literal

import recsys as rs
from recsys.objectives.reasoning import ProgressiveSoftmax, StepContrast, StepDiversity

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
DROPOUT = {  # of each encoder's own recipe
    "sasrec": {"ml-100k": 0.2, "ml-1m": 0.2, "amazon-beauty": 0.5},
    "gru4rec": {"ml-100k": 0.3, "ml-1m": 0.3, "amazon-beauty": 0.3},
    "sigma": {"ml-100k": 0.2, "ml-1m": 0.2, "amazon-beauty": 0.4},
}


def run(
    data: Literal["ml-100k", "ml-1m", "amazon-beauty"] = "ml-100k",
    encoder: Literal["sasrec", "gru4rec", "sigma"] = "sasrec",
    method: Literal["erl", "prl", "base"] = "erl",
    steps: int = 2,
    temperature: float = 1.0,
    alpha: float = 1.5,
    kl_weight: float = 0.05,
    contrast_weight: float = 0.1,
    noise: float = 0.01,
    train: Literal["all", "last"] | None = None,
    dim: int = 64,
    dropout: float | None = None,
    max_length: int | None = None,
    windows: Literal["last", "sliding"] | None = None,
    epochs: int = 60,
    patience: int = 8,
    batch_size: int | None = None,
    learning_rate: float | None = None,
    seed: int = 0,
) -> rs.Run:
    """Cross-entropy over all items, of the mean of the steps (``erl``), of each step (``prl``), or without steps."""
    knobs = KNOBS[data]
    train = train or ("last" if encoder == "sigma" else "all")
    dropout = DROPOUT[encoder][data] if dropout is None else dropout
    length = max_length or knobs["max_length"]
    if encoder == "sigma" and method != "base":
        length += steps  # it reads the latents with the history, so that it reads as many items as without
    inner = {
        "sasrec": lambda: rs.SASRec(dim, 2, 1, dropout, length),
        "gru4rec": lambda: rs.GRU4Rec(dim, 2 * dim, dropout=dropout, max_length=length),
        "sigma": lambda: rs.SIGMA(dim, dropout=dropout, max_length=length),
    }[encoder]()
    wrapped: Any = {
        "erl": lambda: rs.ReaRec(inner, steps, "mean"),
        "prl": lambda: rs.ReaRec(inner, steps, "last", noise),
        "base": lambda: inner,
    }[method]()
    auxiliaries: dict[str, list[Any]] = {
        "erl": [StepDiversity(kl_weight, temperature)],
        "prl": [StepContrast(contrast_weight, temperature)],
        "base": [],
    }
    model = rs.Recommender(
        items=rs.IdItems(dim) if encoder == "sasrec" else rs.IdItems(dim, scale=False),
        encoder=wrapped,
        objective=ProgressiveSoftmax(temperature, alpha) if method == "prl" else rs.FullSoftmax(temperature),
        targets=rs.NextItem() if train == "all" else rs.LastItem(),
        auxiliaries=auxiliaries[method],
    )
    settings = {
        "epochs": epochs,
        "patience": patience,
        "batch_size": batch_size or knobs["batch_size"][train],
        "learning_rate": learning_rate or knobs["learning_rate"],
        "windows": (windows or knobs["windows"]) if train == "all" else "last",
        "seed": seed,
    }
    return rs.Run(model, rs.load(data).split(rs.LeaveLast()), settings)
