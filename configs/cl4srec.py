"""CL4SRec (Xie et al. 2022, arXiv 2010.14395) on SASRec: MovieLens-100K, MovieLens-1M or Amazon Beauty.

Run: ``recsys fit configs/cl4srec.py`` (others: ``--data ml-1m``, ``--data amazon-beauty``, which need
``RECSYS_MIRROR``). One term is added to the loss of ``configs/sasrec.py``: NT-Xent between two random views of each
history, made by two different ones of crop, mask and reorder. ``--weight 0`` is that backbone, bit for bit.

The authors published no code: shares and temperature are those of the re-implementation in RuihongQiu/DuoRec,
without its fault of changing the histories themselves. Deviations from it: batch size, learning rate, width of the
window and early stopping are the backbone's, the history is taken out when items are ranked, and by default all
positions of a history are trained at once (``--train last`` is their row per prefix). ``--hide target`` spares the
false negatives, which they do not.

The published weight is .1. Products of states whose length is the root of the width are large, so is their gradient
against that of our softmax, and early stopping may end the run before it has settled. So MovieLens-100K and Amazon
Beauty have the weight that was best on validation (``benchmarks/quality/weights.py``), and MovieLens-1M has that of
MovieLens-100K.
"""

from __future__ import annotations

from typing import Literal

from sasrec import backbone

import recsys as rs
from recsys.augmentations.crop import Crop
from recsys.augmentations.mask import Mask
from recsys.augmentations.reorder import Reorder
from recsys.auxiliaries.cl4srec import CL4SRec

WEIGHTS = {"ml-100k": 0.001, "ml-1m": 0.001, "amazon-beauty": 0.001}


def run(
    data: Literal["ml-100k", "ml-1m", "amazon-beauty"] = "ml-100k",
    weight: float | None = None,
    crop: float = 0.6,
    mask: float = 0.3,
    reorder: float = 0.6,
    temperature: float = 1.0,
    pool: Literal["last", "mean", "flat"] = "last",
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
    """``crop``, ``mask`` and ``reorder`` are shares of the items; a knob that is None takes the data set's value."""
    weight = WEIGHTS[data] if weight is None else weight
    contrast = CL4SRec(weight, [Crop(crop), Mask(mask), Reorder(reorder)], temperature, pool, cosine, hide, keep)
    return backbone(
        data, [contrast], extra=1 if weight else 0, train=train, dim=dim, dropout=dropout, max_length=max_length,
        exclude=exclude, epochs=epochs, patience=patience, batch_size=batch_size, learning_rate=learning_rate,
        seed=seed,
    )  # fmt: skip
