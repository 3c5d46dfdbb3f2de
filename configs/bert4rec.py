"""BERT4Rec (Sun et al. 2019, arXiv 1904.06690) on MovieLens-100K, MovieLens-1M or Amazon Beauty, leave-last.

Run: ``recsys fit configs/bert4rec.py`` (others: ``--data ml-1m``, ``--data amazon-beauty``, which need
``RECSYS_MIRROR``). Every masked item is a target of the full softmax; masks are new in every epoch, so patience is
longer than a causal model's. Deviations from the authors: two layers of width 64 as theirs, but a learning rate ten to
twenty times higher and far fewer steps; windows of a long history that overlap by one item; no bias per item; attention
weights not dropped; positions counted from the newest token. On Beauty they mask .6 of the items (``--mask 0.6``), on a
version of it that has twice as many users.
"""

from __future__ import annotations

from typing import Any, Literal

from _knobs import Public

import recsys as rs

KNOBS: dict[str, dict[str, Any]] = {
    "ml-100k": {"dropout": 0.2, "max_length": 50, "batch_size": 128, "learning_rate": 2e-3, "windows": "sliding"},
    "ml-1m": {"dropout": 0.2, "max_length": 200, "batch_size": 128, "learning_rate": 1e-3, "windows": "last"},
    "amazon-beauty": {"dropout": 0.4, "max_length": 50, "batch_size": 256, "learning_rate": 2e-3, "windows": "last"},
}


def run(
    num_layers: int = 2,
    num_heads: int = 2,
    mask: float = 0.2,
    last: float = 0.1,
    head: bool = True,
    windows: Literal["last", "sliding"] | None = None,
    knobs: Public = Public(epochs=200, patience=20),
) -> rs.Run:
    """BERT4Rec with the full softmax.

    Args:
        num_layers: number of Transformer blocks.
        num_heads: attention heads per block.
        mask: share of a history's items that are masked and predicted.
        last: share of the rows in which the newest item alone is masked, as when recommending.
        head: the authors' layer between the last block and the item scores.
        windows: of histories longer than max_length: the last window, or sliding ones (default: per data set).
    """
    values = KNOBS[knobs.data]
    knobs = knobs.filled(values)
    model = rs.Recommender(
        items=rs.IdItems(knobs.dim, scale=False),
        encoder=rs.BERT4Rec(
            knobs.dim, num_layers, num_heads, dropout=knobs.dropout, max_length=knobs.max_length, head=head
        ),
        objective=rs.FullSoftmax(),
        targets=rs.MaskedItems(mask, last),
    )
    training = knobs.training(windows=windows or values["windows"])
    return rs.Run(model, rs.load(knobs.data).split(rs.LeaveLast()), training, evaluate=knobs.evaluation())
