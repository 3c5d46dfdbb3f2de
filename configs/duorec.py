"""DuoRec (Qiu et al. 2022, arXiv 2110.05730) on SASRec: MovieLens-100K, MovieLens-1M or Amazon Beauty.

Run: ``recsys fit configs/duorec.py`` (others: ``--data ml-1m``, ``--data amazon-beauty``, which need
``RECSYS_MIRROR``). One term is added to the loss of ``configs/sasrec.py``: NT-Xent between a history read under another
dropout and another training history with the same target (``--mode us_x``; "un" and "su" contrast the state that ranks
with one of them, "us" with both). ``--weight 0`` is that backbone, bit for bit.

Temperature and mode are the authors'. Deviations: batch size, learning rate, width of the window and early
stopping are the backbone's, the history is taken out when items are ranked, and by default all positions of a history
are trained at once, so that a row is a window of a user and its target the newest (``--train last`` is the authors'
row per prefix). ``--hide target`` spares the false negatives, which they do not.

The published weight is .1. Products of states whose length is the root of the width are large, so is their gradient
against that of our softmax, and early stopping may end the run before it has settled. So the modes "us_x" and "un" have
the weights that were best on validation on MovieLens-100K and on Amazon Beauty (``benchmarks/quality/weights.py``);
MovieLens-1M has those of MovieLens-100K, the other modes the published one.
"""

from __future__ import annotations

from typing import Literal

from _knobs import Contrast
from sasrec import KNOBS, BackboneKnobs, backbone

import recsys as rs
from recsys.auxiliaries.duorec import DuoRec

PUBLISHED = 0.1
WEIGHTS = {  # what was searched and is not the published one
    ("us_x", "ml-100k"): 0.0003,
    ("us_x", "ml-1m"): 0.0003,
    ("us_x", "amazon-beauty"): 0.001,
    ("un", "amazon-beauty"): 0.01,
}


def run(
    weight: float | None = None,
    mode: Literal["us_x", "un", "su", "us"] = "us_x",
    contrast: Contrast = Contrast(),
    knobs: BackboneKnobs = BackboneKnobs(),
) -> rs.Run:
    """SASRec with DuoRec's contrast of histories that lead to the same item.

    Args:
        weight: weight of the contrastive loss (default: tuned per mode and data set).
        mode: what is contrasted: another dropout with another history of the same target (us_x), the history with
            another dropout of it (un), with another history of the same target (su), or with both (us).
    """
    weight = WEIGHTS.get((mode, knobs.data), PUBLISHED) if weight is None else weight
    longest = knobs.filled(KNOBS[knobs.data]).max_length
    loss = DuoRec(weight, mode, contrast.temperature, contrast.cosine, contrast.hide, contrast.keep, longest)
    return backbone(knobs, [loss])
