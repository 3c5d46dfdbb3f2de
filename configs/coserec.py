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

from dataclasses import asdict
from typing import Any, Literal

from _knobs import Contrast
from sasrec import KNOBS as BACKBONE
from sasrec import BackboneKnobs, backbone

import recsys as rs
from recsys.auxiliaries.coserec import OPERATIONS, CoSeRec
from recsys.statistics.similarity import EmbeddingSimilar, Hybrid, ItemCF

SPORTS: dict[str, Any] = {"substitute": 0.1, "insert": 0.4, "threshold": 4, "short": ("substitute", "insert", "mask")}
BEAUTY: dict[str, Any] = {"substitute": 0.05, "insert": 0.5, "threshold": 12, "short": OPERATIONS}
KNOBS: dict[str, dict[str, Any]] = {"ml-100k": SPORTS, "ml-1m": SPORTS, "amazon-beauty": BEAUTY}
WEIGHTS = {"ml-100k": 0.001, "ml-1m": 0.001, "amazon-beauty": 0.01}


def run(
    weight: float | None = None,
    crop: float = 0.2,
    mask: float = 0.7,
    reorder: float = 0.7,
    substitute: float | None = None,
    insert: float | None = None,
    threshold: int | None = None,
    warm_up: int | None = None,
    pool: Literal["last", "mean", "flat"] = "flat",
    contrast: Contrast = Contrast(),
    knobs: BackboneKnobs = BackboneKnobs(),
) -> rs.Run:
    """SASRec with CoSeRec's contrast of two views, some of them made with similar items.

    Args:
        weight: weight of the contrastive loss (default: tuned per data set).
        crop: share of the items that a cropped view keeps.
        mask: share of the items that a masked view leaves out.
        reorder: share of the items that a reordered view shuffles.
        substitute: share of the items that are exchanged for similar ones (default: depends on the data set).
        insert: share of the items before which a similar one is inserted (default: depends on the data set).
        threshold: longest history that counts as short, with views of its own kind (default: depends on the data set).
        warm_up: epoch from which the model's own item vectors also say what is similar (default: never).
        pool: pooling of a view into one vector: its last state, the mean, or all states side by side (flat).
    """
    given = {"substitute": substitute, "insert": insert, "threshold": threshold}
    values = KNOBS[knobs.data] | {name: value for name, value in given.items() if value is not None}
    loss = CoSeRec(
        WEIGHTS[knobs.data] if weight is None else weight, crop, mask, reorder, pool=pool, **asdict(contrast),
        similar=ItemCF() if warm_up is None else Hybrid(ItemCF(), EmbeddingSimilar(), warm_up),
        max_length=knobs.filled(BACKBONE[knobs.data]).max_length, **values,
    )  # fmt: skip
    return backbone(knobs, [loss])
