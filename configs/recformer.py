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

from _knobs import Public
from text_items import USERS

import recsys as rs
from recsys.auxiliaries.pretraining import RecformerPretraining
from recsys.encoders.recformer import Recformer
from recsys.items.recformer import RecformerItems
from recsys.llm.tokens import ItemTokens
from recsys.targets.one_target import OneTarget


def run(
    pretrained: str | None = None,
    train: Literal["one", "last"] = "one",
    num_layers: int = 2,
    num_heads: int = 2,
    window: int = 32,
    vocab_size: int = 2000,
    max_tokens: int = 256,
    pooling: Literal["first", "mean"] | None = None,
    temperature: float = 0.05,
    mlm: float = 0.1,
    pretrain_epochs: int = 10,
    second_epochs: int = 30,
    second_patience: int = 3,
    decay: Literal["none", "linear", "cosine"] = "none",
    cold: bool = False,
    share: float = 0.05,
    users: float | None = None,
    cold_seed: int = 0,
    knobs: Public = Public(dropout=0.1, max_length=50, patience=5, batch_size=64, learning_rate=1e-3),
) -> rs.Run:
    """Recformer: a small model, or one of the size of ``pretrained``.

    Args:
        pretrained: a Longformer to begin with, a folder or a name on the hub; sizes and tokenizer are its own.
        train: one target per history and epoch, as the authors, or the last of each prefix (as many rows as events).
        num_layers: number of Longformer blocks.
        num_heads: attention heads per block.
        window: tokens that a token attends to.
        vocab_size: words of the tokenizer that is made from the item texts.
        max_tokens: maximum number of tokens of a history.
        pooling: a document as one vector: its first token, or the mean (default: mean, or first with pretrained).
        temperature: temperature of all losses, which divides the cosine similarities.
        mlm: weight of the masked-word loss in pre-training.
        pretrain_epochs: epochs of pre-training on the training histories; 0 leaves it out.
        epochs: maximum number of epochs of the first stage of fine-tuning.
        second_epochs: maximum number of epochs of the second stage, with fixed item vectors.
        second_patience: patience in the second stage.
        decay: how the learning rate falls to 0 within each stage.
        cold: take items out of training and evaluate on unseen items only.
        share: share of the items that are taken out, with --cold.
        users: share of the users tested on those items, with --cold (default: depends on the data set).
        cold_seed: random seed of the draw of those items, the same as in text_items.
    """
    dim, exclude = knobs.dim, knobs.exclude
    pooling = pooling or ("mean" if pretrained is None else "first")
    sizes: dict[str, Any] = {
        "max_length": knobs.max_length, "max_tokens": max_tokens, "dropout": knobs.dropout, "pooling": pooling
    }  # fmt: skip
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
        rs.Stage(knobs.epochs, losses=["loss"], name="first", start="last"),
        rs.Stage(second_epochs, losses=["loss"], name="second", patience=second_patience),
    ]
    split = rs.load(knobs.data).split(rs.LeaveLast(), audit=not cold)
    if cold:
        tested = USERS[knobs.data] if users is None else users
        split = rs.cold_items(split, share, seed=cold_seed, users=tested)
        print(split.audit)
    evaluate = {"exclude": exclude, **({"candidates": "cold"} if cold else {})}
    training = knobs.training(decay=decay, clip_norm=1.0, stages=stages if pretrain_epochs else stages[1:])
    del training["epochs"]  # the stages have them
    return rs.Run(model, split, training, evaluate=evaluate)
