"""LACLRec (arXiv 2503.20232) on MovieLens-100K, MovieLens-1M or Amazon Beauty: views by a learned editor of histories.

Run: ``recsys fit configs/laclrec.py`` (others: ``--data ml-1m``, ``--data amazon-beauty``, which need
``RECSYS_MIRROR``). First the editor learns, with the encoder and the item table, to undo random corruption; then it is
frozen, and the backbone of ``configs/sasrec.py`` is trained with the contrast of a random and an edited view and with
the triplet loss. Without the editor: ``--augmenter off``; without the triplet loss: ``--triplet 0``.

The factors of the released code of TCLARec, its successor, are .1 for the contrast and .001 for the triplet (the paper
does not say its own per data set). The contrast is of states whose length is the root of the width and the triplet is
summed over rows, so their gradients are large against that of our softmax: MovieLens-100K and Amazon Beauty both have
what was best on validation with their ratio kept (``benchmarks/quality/weights.py``), the smallest factor of the grid,
and MovieLens-1M the same. ``--contrast 0 --triplet 0`` leaves what the first stage alone brings: on MovieLens-100K most
of what gain there is, on Amazon Beauty harm, which the two losses make good in part (``benchmarks/quality/README.md``).

Deviations: all positions of a history are trained at once (``--train last`` trains one row per prefix, as the code
does); the backbone, its dropout and its optimizer are those of our table, with a fresh optimizer in the second stage;
the editor learns for 20 epochs, not 50 (``--pretrain-epochs``); views hold ``max_length`` items, not ten more;
decisions are not noisy, duplicates are removed in order; and the recommender reads the states that the editor reads
unless ``--rec-layers 1`` puts a layer between.
"""

from __future__ import annotations

from typing import Any, Literal

from sasrec import KNOBS, BackboneKnobs, backbone

import recsys as rs
from recsys.auxiliaries.editor import Editor
from recsys.auxiliaries.triplet import Topped, TripletContrast
from recsys.train.settings import Stage


def run(
    augmenter: Literal["learned", "off"] = "learned",
    contrast: float = 0.0003,
    triplet: float = 0.000003,
    pretrain_epochs: int = 20,
    editor_encoder: Literal["shared", "bidirectional"] = "shared",
    rec_layers: int = 0,
    max_inserted: int = 5,
    keep: float = 0.4,
    delete: float = 0.45,
    insert: float = 0.15,
    decision: Literal["argmax", "gumbel"] = "argmax",
    dedup: Literal["none", "first"] = "first",
    reduction: Literal["sum", "mean"] = "sum",
    temperature: float = 1.0,
    keep_learning: float = 0.0,
    knobs: BackboneKnobs = BackboneKnobs(),
) -> rs.Run:
    """SASRec with LACLRec's losses; with both weights 0 and no editor to learn, SASRec alone.

    Args:
        augmenter: second view of a history: by the learned editor, or another random one (off; no triplet loss).
        contrast: weight of the contrast of the two views.
        triplet: weight of the triplet loss.
        pretrain_epochs: epochs in which the editor learns before the recommender is trained.
        editor_encoder: what the editor reads with: the recommender's encoder, or a BERT4Rec of its own.
        rec_layers: Transformer blocks of the recommender on top of the states that the editor reads.
        max_inserted: maximum number of items that the editor inserts before an item.
        keep: probability that the random corruption keeps an item.
        delete: probability that it deletes an item.
        insert: probability that it inserts an item before one.
        decision: edits by the highest score (argmax), or drawn by the scores (gumbel).
        dedup: items that an edited view repeats: all stay (none), or the first stays.
        reduction: how the triplet loss is reduced over the rows of a batch.
        temperature: temperature of the contrastive loss, which divides the similarities.
        keep_learning: weight of the editor's losses while the recommender is trained; 0 freezes the editor.
    """
    if augmenter == "off":
        triplet, pretrain_epochs, keep_learning = 0.0, 0, 0.0
    knobs = knobs.filled(KNOBS[knobs.data])
    sizes: dict[str, Any] = {"dropout": knobs.dropout, "max_length": knobs.max_length}
    editor = None
    if augmenter == "learned":
        own = rs.BERT4Rec(knobs.dim, head=False, **sizes) if editor_encoder == "bidirectional" else None
        editor = Editor(knobs.dim, max_inserted=max_inserted, decision=decision, dedup=dedup, encoder=own, **sizes)
    loss = TripletContrast(
        weight=float(any((contrast, triplet, keep_learning, pretrain_epochs))),
        editor=editor, contrast=contrast, triplet=triplet, reduction=reduction, temperature=temperature,
        second="edited" if augmenter == "learned" else "random", keep_learning=keep_learning,
        keep=keep, delete=delete, insert=insert,
    )  # fmt: skip
    stages = [
        Stage(pretrain_epochs, losses=["TripletContrast0"], name="pretrain", validate=False),
        Stage(knobs.epochs, freeze=[] if keep_learning else ["auxiliaries.0.editor"], start="last"),
    ]
    made = backbone(knobs, [loss], extra=2, stages=stages if pretrain_epochs else None)
    if rec_layers:
        model: Any = made.model
        model.encoder = Topped(model.encoder, rec_layers, num_heads=1, dropout=knobs.dropout)
    return made
