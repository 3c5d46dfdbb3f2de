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

from _knobs import Contrast
from sasrec import BackboneKnobs, backbone

import recsys as rs
from recsys.augmentations.crop import Crop
from recsys.augmentations.mask import Mask
from recsys.augmentations.reorder import Reorder
from recsys.auxiliaries.cl4srec import CL4SRec

WEIGHTS = {"ml-100k": 0.001, "ml-1m": 0.001, "amazon-beauty": 0.001}


def run(
    weight: float | None = None,
    crop: float = 0.6,
    mask: float = 0.3,
    reorder: float = 0.6,
    pool: Literal["last", "mean", "flat"] = "last",
    contrast: Contrast = Contrast(),
    knobs: BackboneKnobs = BackboneKnobs(),
) -> rs.Run:
    """SASRec with CL4SRec's contrast of two augmented views of each history.

    Args:
        weight: weight of the contrastive loss (default: tuned per data set).
        crop: share of the items that a cropped view keeps.
        mask: share of the items that a masked view masks.
        reorder: share of the items that a reordered view shuffles.
        pool: pooling of a view into one vector: its last state, the mean, or all states side by side (flat).
    """
    weight = WEIGHTS[knobs.data] if weight is None else weight
    views = [Crop(crop), Mask(mask), Reorder(reorder)]
    loss = CL4SRec(weight, views, contrast.temperature, pool, contrast.cosine, contrast.hide, contrast.keep)
    return backbone(knobs, [loss])
