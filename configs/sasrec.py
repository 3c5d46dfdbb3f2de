"""SASRec with the full softmax on MovieLens-100K or -1M, Amazon Beauty or Sports: the backbone of methods beside it.

Run: ``recsys fit configs/sasrec.py`` (others: ``--data ml-1m``, ``--data amazon-beauty``, ``--data amazon-sports``,
which need ``RECSYS_MIRROR``). Methods that add a loss (CL4SRec, CoSeRec, DuoRec, LACLRec, SRA-CL) import
:func:`backbone` and change nothing else, so that what a table shows is the method and not its recipe. Knobs as in
``sasrec_ml100k``, ``sasrec_ml1m`` and ``sasrec_beauty``, but Amazon's read the last 20 items, as the papers of these
methods do.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from _knobs import Public

import recsys as rs

KNOBS: dict[str, dict[str, Any]] = {
    "ml-100k": {"dropout": 0.2, "max_length": 50, "batch_size": 128, "learning_rate": 2e-3, "windows": "sliding"},
    "ml-1m": {"dropout": 0.2, "max_length": 200, "batch_size": 128, "learning_rate": 2e-3, "windows": "last"},
    "amazon-beauty": {"dropout": 0.5, "max_length": 20, "batch_size": 256, "learning_rate": 2e-3, "windows": "last"},
    "amazon-sports": {"dropout": 0.5, "max_length": 20, "batch_size": 256, "learning_rate": 2e-3, "windows": "last"},
}


@dataclass(frozen=True, kw_only=True)
class BackboneKnobs(Public):
    """How the backbone is trained as well.

    Args:
        train: targets of a history: all positions at once, or the last of each prefix, as in the methods' papers.
    """

    train: Literal["all", "last"] = "all"


@dataclass(frozen=True, kw_only=True)
class OwnKnobs(BackboneKnobs):
    """The data sets that the backbone alone is measured on.

    Args:
        data: data set; all but ml-100k are copied from RECSYS_MIRROR.
    """

    data: Literal["ml-100k", "ml-1m", "amazon-beauty", "amazon-sports"] = "ml-100k"  # type: ignore[assignment]


def run(knobs: OwnKnobs = OwnKnobs()) -> rs.Run:
    """SASRec with the full softmax: two blocks of one head."""
    return backbone(knobs)


def backbone(
    knobs: BackboneKnobs,
    auxiliaries: Sequence[Any] = (),
    *,
    weightings: Sequence[Any] = (),
    stages: Sequence[rs.Stage] | None = None,
    extra: int = 0,
    split: rs.Split | None = None,
) -> rs.Run:
    """The run of the backbone with ``auxiliaries`` added to its loss.

    Args:
        knobs: where one is None, it is that of ``KNOBS`` for the data set.
        weightings: what the targets count, beside the weights of the data.
        stages: phases of training instead of ``epochs``.
        extra: input-only rows of the item table (1: a mask, 2: a mask and an end token).
        split: the data, if the caller has them already.
    """
    more: dict[str, Any] = {"windows": KNOBS[knobs.data]["windows"]} if knobs.train == "all" else {}
    knobs = knobs.filled(KNOBS[knobs.data])
    model = rs.Recommender(
        items=rs.IdItems(knobs.dim, extra=extra),
        encoder=rs.SASRec(knobs.dim, num_layers=2, num_heads=1, dropout=knobs.dropout, max_length=knobs.max_length),
        objective=rs.FullSoftmax(),
        targets=rs.NextItem() if knobs.train == "all" else rs.LastItem(),
        auxiliaries=auxiliaries,
        weightings=weightings,
    )
    split = rs.load(knobs.data).split(rs.LeaveLast()) if split is None else split
    return rs.Run(model, split, knobs.training(**more, stages=stages), evaluate=knobs.evaluation())
