"""CoSeRec (Liu et al. 2021, arXiv 2108.06479) on SASRec: MovieLens-100K, MovieLens-1M or Amazon Beauty.

Run: ``recsys fit configs/coserec.py`` (others: ``--data ml-1m``, ``--data amazon-beauty``, which need
``RECSYS_MIRROR``). One term is added to the loss of ``configs/sasrec.py``: NT-Xent between two views of each history,
in some of which items are exchanged for similar ones, or similar ones put in between. ``--weight 0`` is that backbone,
bit for bit.

Knobs of Beauty are the authors' for it; their paper has no MovieLens, which gets those they have for Sports. A share of
.7 is reordered, as in the authors' code; ``--reorder 0.2`` is that of their paper. Deviations (more in
``recsys.auxiliaries.coserec.CoSeRec``): the loss is the full softmax instead of one negative per target; similarity is
counted from the training rows and never mixed with the model's own, except with ``--warm-up 220``, the epoch from which
the authors do so for Beauty (160 for Sports) and which their 300 epochs reach, ours with early stopping hardly; batch
size, learning rate, width of the window and early stopping are the backbone's.

The published weight is .1. Products of states whose length is the root of the width are large, so is their gradient
against that of our softmax, and early stopping may end the run before it has settled. So MovieLens-100K and Amazon
Beauty have the weight that was best on validation (``benchmarks/quality/weights.py``), and MovieLens-1M has that of
MovieLens-100K.
"""

from __future__ import annotations

from typing import Any, Literal

from sasrec import KNOBS as BACKBONE
from sasrec import backbone

import recsys as rs
from recsys.auxiliaries.coserec import OPERATIONS, CoSeRec
from recsys.statistics.similarity import EmbeddingSimilar, Hybrid, ItemCF

SPORTS: dict[str, Any] = {"substitute": 0.1, "insert": 0.4, "threshold": 4, "short": ("substitute", "insert", "mask")}
BEAUTY: dict[str, Any] = {"substitute": 0.05, "insert": 0.5, "threshold": 12, "short": OPERATIONS}
KNOBS: dict[str, dict[str, Any]] = {"ml-100k": SPORTS, "ml-1m": SPORTS, "amazon-beauty": BEAUTY}


WEIGHTS = {"ml-100k": 0.001, "ml-1m": 0.001, "amazon-beauty": 0.01}


def run(
    data: Literal["ml-100k", "ml-1m", "amazon-beauty"] = "ml-100k",
    weight: float | None = None,
    crop: float = 0.2,
    mask: float = 0.7,
    reorder: float = 0.7,
    substitute: float | None = None,
    insert: float | None = None,
    threshold: int | None = None,
    warm_up: int | None = None,
    temperature: float = 1.0,
    pool: Literal["last", "mean", "flat"] = "flat",
    cosine: bool = False,
    hide: tuple[Literal["target", "user"], ...] = (),
    keep: float = 0.0,
    train: Literal["all", "last"] = "all",
    dim: int = 64,
    dropout: float | None = None,
    max_length: int | None = None,
    exclude: Literal["history", "none"] = "history",
    epochs: int = 60,
    patience: int = 8,
    batch_size: int | None = None,
    learning_rate: float | None = None,
    seed: int = 0,
) -> rs.Run:
    """``crop`` to ``insert`` are shares of the items; a knob that is None takes the data set's value (``KNOBS``)."""
    given = {"substitute": substitute, "insert": insert, "threshold": threshold}
    knobs = KNOBS[data] | {name: value for name, value in given.items() if value is not None}
    weight = WEIGHTS[data] if weight is None else weight
    contrast = CoSeRec(
        weight, crop, mask, reorder, temperature=temperature, pool=pool, cosine=cosine, hide=hide, keep=keep,
        similar=ItemCF() if warm_up is None else Hybrid(ItemCF(), EmbeddingSimilar(), warm_up),
        max_length=BACKBONE[data]["max_length"] if max_length is None else max_length, **knobs,
    )  # fmt: skip
    return backbone(
        data, [contrast], train=train, dim=dim, dropout=dropout, max_length=max_length, exclude=exclude, epochs=epochs,
        patience=patience, batch_size=batch_size, learning_rate=learning_rate, seed=seed,
    )  # fmt: skip
