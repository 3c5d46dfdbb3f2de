"""TIGER (Rajput et al., NeurIPS 2023, arXiv 2305.05065): the codes of the next item, generated one after another.

Run: ``recsys fit tiger`` (others: ``--data amazon-beauty``, ``--data amazon-sports``, which need ``RECSYS_MIRROR``).
Items are three codes of residual k-means over text vectors, and a fourth that tells items with the same three apart.

``--reads`` says what the history is to the decoder. "tokens" is the paper's: a T5 encoder over the code tokens of the
history. "items" is any causal encoder over items whose vectors are sums over their codes: a quarter of the tokens.
``--rows`` says what a training row is: a "window" trains every position of a history in one pass, which the causal form
of either encoder allows; "prefixes" is the paper's, a row for each target (with "tokens" the encoder then sees all of
its history in both directions).

Deviations by default: windows, items, sizes for a CPU, codes by k-means, a softmax per level, the newest state beside
the past ones. ``--reads tokens --rows prefixes --memory past --softmax vocabulary --dim 128 --layers 4 --heads 6
--head-dim 64 --ff 1024`` is the published layout.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

from _codes import Codes, Cold, Decoding, folder_of
from _knobs import Generative

import recsys as rs
from recsys.encoders.tokens import TokenEncoder

CODES: dict[str, dict[str, Any]] = {
    "ml-100k": {"tokens": "residual", "levels": 3, "size": 32},
    "amazon-beauty": {"tokens": "residual", "levels": 3, "size": 256},
    "amazon-sports": {"tokens": "residual", "levels": 3, "size": 256},
}
AMAZON: dict[str, Any] = {
    "dropout": 0.1, "max_length": 20, "batch_size": 256, "learning_rate": 2e-3, "windows": "last",
    "dim": 128, "ff": 512,
}  # fmt: skip
KNOBS: dict[str, dict[str, Any]] = {
    "ml-100k": {
        "dropout": 0.1, "max_length": 50, "batch_size": 128, "learning_rate": 2e-3, "windows": "sliding",
        "dim": 64, "ff": 256,
    },
    "amazon-beauty": AMAZON,
    "amazon-sports": AMAZON,
}  # fmt: skip


def run(
    reads: Literal["items", "tokens"] = "items",
    rows: Literal["windows", "prefixes"] = "windows",
    memory: Literal["both", "past", "newest"] = "both",
    softmax: Literal["level", "vocabulary"] = "level",
    decoding: Decoding = Decoding(),
    codes: Codes = Codes(),
    cold: Cold = Cold(),
    knobs: Generative = Generative(),
) -> rs.Run:
    """A decoder of code tokens behind an encoder of histories.

    Args:
        reads: what the encoder reads: items, as sums over their codes, or code tokens.
        rows: training rows: windows of histories, all positions at once, or a row per prefix.
        memory: what the decoder is given: all past states to look at, the newest one to begin with, or both.
        softmax: over the codes of a level, or over all tokens.
    """
    values = KNOBS[knobs.data]
    knobs, decoding = knobs.filled(values), replace(decoding, ff=decoding.ff or values["ff"])
    split = cold.split(knobs.data)
    folder = folder_of(split, codes, CODES[knobs.data])
    model = rs.Generator(
        items=rs.CodeItems(knobs.dim, folder),
        encoder=encoder(reads, rows, decoding, knobs),
        decoder=decoder(decoding, knobs, softmax, memory),
        search=rs.Beam(decoding.beam),
        targets=rs.NextItem() if rows == "windows" else rs.LastItem(),
    )
    windows = values["windows"] if rows == "windows" else "last"
    training = knobs.training(windows=windows, valid_users=decoding.valid_users)
    return rs.Run(model, split, training, evaluate=cold.evaluation(knobs), name="TIGER")


def encoder(reads: str, rows: str, decoding: Decoding, knobs: Generative) -> Any:
    """What reads the histories; ``liger`` has the same."""
    dropout, max_length = knobs.dropout or 0.0, knobs.max_length or 20
    if reads == "tokens":
        sizes = decoding.layers, decoding.heads, decoding.head_dim, decoding.ff
        return TokenEncoder(knobs.dim, *sizes, dropout, max_length, causal=rows == "windows")
    return rs.SASRec(knobs.dim, decoding.layers, 1, dropout, max_length)


def decoder(decoding: Decoding, knobs: Generative, softmax: str = "level", memory: str = "both") -> rs.CodeDecoder:
    """What generates the codes; ``liger`` has the same."""
    sizes = decoding.layers, decoding.heads, decoding.head_dim, decoding.ff
    return rs.CodeDecoder(knobs.dim, *sizes, knobs.dropout or 0.0, softmax, memory=memory)
