"""Recformer (Li et al. 2023, arXiv 2305.13731): one text encoder for users and items, no item ids.

Run: ``recsys fit configs/recformer.py`` (others: ``--data ml-1m``, ``--data amazon-beauty``, which need
``RECSYS_MIRROR``). By default everything is made here: a tokenizer trained on the item texts and a small Longformer of
random weights, first pre-trained on the training histories (masked words, item-item contrast; ``--pretrain-epochs 0``
leaves it out), then fine-tuned in the two stages of the paper. With weights: ``--pretrained
allenai/longformer-base-4096``, or the folder of a downloaded model; then sizes and tokenizer are the checkpoint's, and
the learning rate should be 5e-5.

Deviations: the published model is pre-trained on seven Amazon categories, which nothing here replaces; a constant
learning rate (``--decay linear`` as the authors, where a stage is not meant to end early); validation after every epoch
instead of every third; a target has at least one item before it, where theirs may have none; a history is ranked
without its own items (``--exclude none`` as the authors); 256 tokens of a history are read, not 1024; and without
pretrained weights the mean over the tokens stands for a document (``--pooling first`` as the authors): with random ones
the first token learned nothing in an epoch of Amazon Beauty.
"""

from __future__ import annotations

from typing import Any, Literal

from text_items import USERS

import recsys as rs
from recsys.auxiliaries.pretraining import RecformerPretraining
from recsys.encoders.recformer import Recformer
from recsys.items.recformer import RecformerItems
from recsys.llm.tokens import ItemTokens
from recsys.targets.one_target import OneTarget


def run(
    data: Literal["ml-100k", "ml-1m", "amazon-beauty"] = "ml-100k",
    pretrained: str | None = None,
    train: Literal["one", "last"] = "one",
    dim: int = 64,
    num_layers: int = 2,
    num_heads: int = 2,
    window: int = 32,
    vocab_size: int = 2000,
    max_length: int = 50,
    max_tokens: int = 256,
    dropout: float = 0.1,
    pooling: Literal["first", "mean"] | None = None,
    temperature: float = 0.05,
    mlm: float = 0.1,
    pretrain_epochs: int = 10,
    epochs: int = 60,
    second_epochs: int = 30,
    patience: int = 5,
    second_patience: int = 3,
    batch_size: int = 64,
    learning_rate: float = 1e-3,
    decay: Literal["none", "linear", "cosine"] = "none",
    exclude: Literal["history", "none"] = "history",
    cold: bool = False,
    share: float = 0.05,
    users: float | None = None,
    cold_seed: int = 0,
    seed: int = 0,
) -> rs.Run:
    """A small model, or one of the size of ``pretrained``.

    ``train="one"`` takes one target per row and epoch, as the authors; "last" every prefix, which costs as many rows as
    there are events. ``cold`` takes ``share`` of the items out of training and ranks unseen items only, the same ones
    as in ``text_items``.
    """
    pooling = pooling or ("mean" if pretrained is None else "first")
    sizes: dict[str, Any] = {"max_length": max_length, "max_tokens": max_tokens, "dropout": dropout, "pooling": pooling}
    if pretrained is None:
        tokens = ItemTokens(vocab_size=vocab_size)
        encoder = Recformer(tokens, dim, num_layers, num_heads, window=window, **sizes)
    else:
        tokens = ItemTokens(tokenizer=pretrained)
        encoder = Recformer.from_pretrained(pretrained, tokens, **sizes)
    width = encoder.dim
    head = RecformerPretraining(width, tokens.vocab_size, mlm, temperature=temperature, pretrained=pretrained)
    model = rs.Recommender(
        items=RecformerItems(width),
        encoder=encoder,
        objective=rs.FullSoftmax(temperature=temperature),
        targets=OneTarget() if train == "one" else rs.LastItem(),
        auxiliaries=[head],
    )
    stages = [
        rs.Stage(pretrain_epochs, losses=["RecformerPretraining0"], name="pretrain", validate=False),
        rs.Stage(epochs, losses=["loss"], name="first", start="last"),
        rs.Stage(second_epochs, losses=["loss"], name="second", patience=second_patience),
    ]
    settings = {
        "patience": patience, "batch_size": batch_size, "learning_rate": learning_rate, "decay": decay,
        "clip_norm": 1.0, "exclude": exclude, "seed": seed,
    }  # fmt: skip
    split = rs.load(data).split(rs.LeaveLast(), audit=not cold)
    if cold:
        split = rs.cold_items(split, share, seed=cold_seed, users=USERS[data] if users is None else users)
        print(split.audit)
    evaluate = {"exclude": exclude, **({"candidates": "cold"} if cold else {})}
    return rs.Run(model, split, settings, evaluate=evaluate, stages=stages if pretrain_epochs else stages[1:])
