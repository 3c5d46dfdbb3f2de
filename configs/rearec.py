"""ReaRec (arXiv 2503.22675): thought steps behind an encoder, on MovieLens-100K, MovieLens-1M or Amazon Beauty.

Run: ``recsys fit configs/rearec.py --encoder sasrec --method erl`` (or ``prl``; ``--encoder gru4rec`` or ``sigma``;
other data sets need ``RECSYS_MIRROR``). What is wrapped is the encoder's own recipe with its own knobs, so its run is
the base to compare with. Deviations from the authors: leave-last instead of one split in time; their temperatures,
alphas and weights of the divergence (``erl``) were searched per data set and not published, so ours are one choice for
all; their weight of the contrast (``prl``) is 1, ours .1; one dropout, theirs is .2 at the input; no input norm, widths
of 64; and an encoder of the past trains all positions at once. SIGMA has no cache, so each of its thought steps reads
the history again, in training and at inference.
"""

from __future__ import annotations

from dataclasses import asdict, fields, replace
from typing import Any, Literal

import gru4rec
import sasrec_beauty
import sasrec_ml1m
import sasrec_ml100k
import sigma
from _knobs import Public

import recsys as rs
from recsys.auxiliaries.reasoning import ProgressiveSoftmax, StepContrast, StepDiversity

SASREC: dict[str, Any] = {"ml-100k": sasrec_ml100k, "ml-1m": sasrec_ml1m, "amazon-beauty": sasrec_beauty}


def run(
    encoder: Literal["sasrec", "gru4rec", "sigma"] = "sasrec",
    method: Literal["erl", "prl"] = "erl",
    steps: int = 2,
    temperature: float = 1.0,
    alpha: float = 1.5,
    kl_weight: float = 0.05,
    contrast_weight: float = 0.1,
    noise: float = 0.01,
    knobs: Public = Public(),
) -> rs.Run:
    """ReaRec around an encoder; what is not given is as in the encoder's own recipe.

    Args:
        encoder: what is wrapped, with the settings of its own recipe.
        method: erl scores the mean of the thought steps, prl the last one and trains each.
        steps: thought steps behind a history.
        temperature: temperature of all losses, which divides the scores.
        alpha: factor by which each earlier thought step has a higher temperature (prl).
        kl_weight: weight of the divergence between thought steps (erl).
        contrast_weight: weight of the contrast of noisy and clean states (prl).
        noise: standard deviation of the noise on states (prl).
    """
    base = _base(encoder, steps, knobs)
    inner: Any = base.model
    if method == "erl":
        wrapped, objective = rs.ReaRec(inner.encoder, steps, "mean"), rs.FullSoftmax(temperature)
        auxiliary: Any = StepDiversity(kl_weight, temperature)
    else:
        wrapped = rs.ReaRec(inner.encoder, steps, "last", noise)
        objective = ProgressiveSoftmax(temperature, alpha)
        auxiliary = StepContrast(contrast_weight, temperature)
    model = rs.Recommender(
        items=inner.items, encoder=wrapped, objective=objective, targets=inner.targets, auxiliaries=[auxiliary]
    )
    return rs.Run(model, base.split, base.training, evaluate=base.evaluate)


def _base(encoder: str, steps: int, knobs: Public) -> rs.Run:
    """The run of the encoder's own recipe."""
    if encoder == "gru4rec":
        return gru4rec.run(knobs=knobs)
    if encoder == "sigma":  # it reads the latents with the history, so that it reads as many items as without
        knobs = knobs.filled(sigma.KNOBS[knobs.data])
        return sigma.run(knobs=replace(knobs, max_length=knobs.max_length + steps))
    recipe = SASREC[knobs.data]
    own = {one.name: getattr(knobs, one.name) for one in fields(recipe.KNOBS)}
    return recipe.run(baselines=False, knobs=type(recipe.KNOBS)(**own).filled(asdict(recipe.KNOBS)))
