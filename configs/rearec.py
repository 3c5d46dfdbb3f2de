"""ReaRec (arXiv 2503.22675): latent reasoning around an encoder, on MovieLens-100K, MovieLens-1M or Amazon Beauty.

Run: ``recsys fit configs/rearec.py --encoder sasrec --method erl`` (or ``prl``; ``--encoder gru4rec`` or ``sigma``;
other data sets need ``RECSYS_MIRROR``). What is wrapped is the encoder's own recipe with its own knobs, so its run is
the base to compare with. Deviations from the authors: leave-last instead of one split in time; their temperatures,
alphas and weights of the divergence (``erl``) were searched per data set and not published, so ours are one choice for
all; their weight of the contrast (``prl``) is 1, ours .1; one dropout, theirs is .2 at the input; no input norm, widths
of 64; and an encoder of the past trains all positions at once. SIGMA has no cache, so each of its steps reads the
history again, in training and at inference.
"""

from __future__ import annotations

from typing import Any, Literal

import gru4rec
import sasrec_beauty
import sasrec_ml1m
import sasrec_ml100k
import sigma

import recsys as rs
from recsys.auxiliaries.reasoning import ProgressiveSoftmax, StepContrast, StepDiversity

SASREC = {"ml-100k": sasrec_ml100k.run, "ml-1m": sasrec_ml1m.run, "amazon-beauty": sasrec_beauty.run}


def run(
    data: Literal["ml-100k", "ml-1m", "amazon-beauty"] = "ml-100k",
    encoder: Literal["sasrec", "gru4rec", "sigma"] = "sasrec",
    method: Literal["erl", "prl"] = "erl",
    steps: int = 2,
    temperature: float = 1.0,
    alpha: float = 1.5,
    kl_weight: float = 0.05,
    contrast_weight: float = 0.1,
    noise: float = 0.01,
    dim: int = 64,
    max_length: int | None = None,
    epochs: int = 60,
    patience: int = 8,
    seed: int = 0,
) -> rs.Run:
    """Cross-entropy over all items, of the mean of the steps (``erl``) or of each step (``prl``).

    ``max_length`` is the wrapped recipe's if it is None.
    """
    knobs: dict[str, Any] = {"dim": dim, "epochs": epochs, "patience": patience, "seed": seed}
    if max_length is not None:
        knobs["max_length"] = max_length
    if encoder == "sasrec":
        base = SASREC[data](baselines=False, **knobs)
    elif encoder == "gru4rec":
        base = gru4rec.run(data=data, **knobs)
    else:  # it reads the latents with the history, so that it reads as many items as without
        knobs["max_length"] = knobs.get("max_length", sigma.KNOBS[data]["max_length"]) + steps
        base = sigma.run(data=data, **knobs)
    inner: Any = base.model
    model = rs.Recommender(
        items=inner.items,
        encoder=rs.ReaRec(inner.encoder, steps, "mean")
        if method == "erl"
        else rs.ReaRec(inner.encoder, steps, "last", noise),
        objective=rs.FullSoftmax(temperature) if method == "erl" else ProgressiveSoftmax(temperature, alpha),
        targets=inner.targets,
        auxiliaries=[StepDiversity(kl_weight, temperature)]
        if method == "erl"
        else [StepContrast(contrast_weight, temperature)],
    )
    return rs.Run(model, base.split, base.training, evaluate=base.evaluate)
