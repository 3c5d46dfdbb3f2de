"""SASRec with the full softmax on MovieLens-100K, MovieLens-1M or Amazon Beauty: the backbone of the methods beside it.

Run: ``recsys fit configs/sasrec.py`` (others: ``--data ml-1m``, ``--data amazon-beauty``, which need
``RECSYS_MIRROR``). Methods that add a loss (CL4SRec, CoSeRec, DuoRec, LACLRec, SRA-CL) import :func:`backbone` and
change nothing else, so that what a table shows is the method and not its recipe. Knobs as in ``sasrec_ml100k``,
``sasrec_ml1m`` and ``sasrec_beauty``, but Beauty reads the last 20 items, as the papers of these methods do.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import recsys as rs

KNOBS: dict[str, dict[str, Any]] = {
    "ml-100k": {"dropout": 0.2, "max_length": 50, "batch_size": 128, "learning_rate": 2e-3, "windows": "sliding"},
    "ml-1m": {"dropout": 0.2, "max_length": 200, "batch_size": 128, "learning_rate": 2e-3, "windows": "last"},
    "amazon-beauty": {"dropout": 0.5, "max_length": 20, "batch_size": 256, "learning_rate": 2e-3, "windows": "last"},
}


def run(
    data: Literal["ml-100k", "ml-1m", "amazon-beauty"] = "ml-100k",
    train: Literal["all", "last"] = "all",
    dim: int = 64,
    dropout: float | None = None,
    max_length: int | None = None,
    exclude: Literal["history", "none"] = "history",
    epochs: int = 60,
    patience: int = 8,
    batch_size: int | None = None,
    learning_rate: float | None = None,
    seed: int = 0,
) -> rs.Run:
    """Two blocks of one head; a knob that is None takes the data set's value (``KNOBS``)."""
    return backbone(
        data, train=train, dim=dim, dropout=dropout, max_length=max_length, exclude=exclude, epochs=epochs,
        patience=patience, batch_size=batch_size, learning_rate=learning_rate, seed=seed,
    )  # fmt: skip


def backbone(
    data: str,
    auxiliaries: Sequence[Any] = (),
    *,
    weightings: Sequence[Any] = (),
    stages: Sequence[rs.Stage] | None = None,
    extra: int = 0,
    split: rs.Split | None = None,
    train: str = "all",
    dim: int = 64,
    exclude: str = "history",
    epochs: int = 60,
    patience: int = 8,
    seed: int = 0,
    **knobs: Any,
) -> rs.Run:
    """The run of the backbone with ``auxiliaries`` added to its loss.

    Args:
        weightings: what the targets count, beside the weights of the data.
        stages: phases of training instead of ``epochs``.
        extra: input-only rows of the item table (1: a mask, 2: a mask and an end token).
        split: the data, if the caller has them already.
        train: "all" positions of a history at once, or the "last" of each prefix, as in the methods' papers.
        knobs: ``dropout``, ``max_length``, ``batch_size``, ``learning_rate``; None is the data set's value.
    """
    chosen = {**KNOBS[data], **{name: value for name, value in knobs.items() if value is not None}}
    model = rs.Recommender(
        items=rs.IdItems(dim, extra=extra),
        encoder=rs.SASRec(dim, num_layers=2, num_heads=1, dropout=chosen["dropout"], max_length=chosen["max_length"]),
        objective=rs.FullSoftmax(),
        targets=rs.NextItem() if train == "all" else rs.LastItem(),
        auxiliaries=auxiliaries,
        weightings=weightings,
    )
    settings = {name: chosen[name] for name in ("batch_size", "learning_rate")}
    settings |= {"epochs": epochs, "patience": patience, "exclude": exclude, "seed": seed}
    settings |= {"windows": chosen["windows"]} if train == "all" else {}
    split = rs.load(data).split(rs.LeaveLast()) if split is None else split
    return rs.Run(model, split, settings, evaluate={"exclude": exclude}, stages=stages)
