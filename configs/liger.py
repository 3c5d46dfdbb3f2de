"""LIGER (arXiv 2411.18814): generation and dense retrieval in one model, so that new items are found as well.

Run: ``recsys fit liger`` (others: ``--data amazon-beauty``, ``--data amazon-sports``, which need ``RECSYS_MIRROR``).
TIGER's decoder behind an encoder that reads codes and texts, and a dense head that compares its states with the texts
of items. Lists are what the beam finds and all items without training events, in the order of the dense head
(``--rank-by hybrid``); the report of a run has the other two orders as well. ``--cold`` takes 5% of the items out of
training and ranks them alone, as ``text_items --cold`` does.

Where new items matter most: ``--project linear --dropout 0.3 --decay cosine --epochs 40 --patience 40`` (amazon-beauty,
HR@10 of cold items .2433 instead of .2216, at the cost of known ones: benchmarks/quality/README.md).

Deviations: as of the recipe ``tiger``; the text is added per item, not per code token.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

from _codes import TEXTS, Codes, Cold, Decoding, folder_of
from _knobs import Generative
from tiger import CODES, KNOBS, decoder
from tiger import encoder as reader

import recsys as rs
from recsys.encoders.added import AddedInputs
from recsys.generative.dense import DenseRetrieval
from recsys.generative.liger import Liger


def run(
    rank_by: Literal["hybrid", "dense", "generative"] = "hybrid",
    candidates: int = 20,
    dense: float = 1.0,
    temperature: float = 0.07,
    project: Literal["linear", "mlp"] = "mlp",
    decay: Literal["none", "linear", "cosine"] = "none",
    decoding: Decoding = Decoding(),
    codes: Codes = Codes(),
    cold: Cold = Cold(),
    knobs: Generative = Generative(),
) -> rs.Run:
    """A generator with a dense head.

    Args:
        rank_by: the order of lists: of the dense head among the beam's items and cold ones (hybrid), of the dense head
            among all items, or of the beam (generative).
        candidates: beams that are re-ranked.
        dense: weight of the loss of the dense head.
        temperature: divides the cosines of the dense head.
        project: what makes item vectors of text vectors, at the input and in the dense head.
        decay: how the learning rate falls to 0 over the epochs (cosine in the paper).
    """
    values = KNOBS[knobs.data]
    knobs, decoding = knobs.filled(values), replace(decoding, ff=decoding.ff or values["ff"])
    if codes.text == "none":
        raise ValueError("the dense head compares texts of items: name a model of text vectors, not --text none")
    split = cold.split(knobs.data)
    folder, dim = folder_of(split, codes, CODES[knobs.data]), knobs.dim
    texts = str(rs.embed(split, model=TEXTS.get(codes.text, codes.text)).path)
    encoder: Any = reader("items", "windows", decoding, knobs)
    model = Liger(
        items=rs.CodeItems(dim, folder),
        encoder=AddedInputs(encoder, [rs.TextItems(dim, texts, project)]),
        decoder=decoder(decoding, knobs),
        search=rs.Beam(decoding.beam),
        rank_by=rank_by,
        candidates=candidates,
        auxiliaries=[DenseRetrieval(rs.TextItems(dim, texts, project), dense, temperature)],
    )
    training = knobs.training(windows=values["windows"], valid_users=decoding.valid_users, decay=decay)
    return rs.Run(model, split, training, evaluate=cold.evaluation(knobs), name="LIGER")
