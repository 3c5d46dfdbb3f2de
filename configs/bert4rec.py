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

import recsys as rs

KNOBS: dict[str, dict[str, Any]] = {
    "ml-100k": {"dropout": 0.2, "max_length": 50, "batch_size": 128, "learning_rate": 2e-3, "windows": "sliding"},
    "ml-1m": {"dropout": 0.2, "max_length": 200, "batch_size": 128, "learning_rate": 1e-3, "windows": "last"},
    "amazon-beauty": {"dropout": 0.4, "max_length": 50, "batch_size": 256, "learning_rate": 2e-3, "windows": "last"},
}


def run(
    data: Literal["ml-100k", "ml-1m", "amazon-beauty"] = "ml-100k",
    dim: int = 64,
    num_layers: int = 2,
    num_heads: int = 2,
    dropout: float | None = None,
    max_length: int | None = None,
    mask: float = 0.2,
    last: float = 0.1,
    head: bool = True,
    windows: Literal["last", "sliding"] | None = None,
    epochs: int = 200,
    patience: int = 20,
    batch_size: int | None = None,
    learning_rate: float | None = None,
    seed: int = 0,
) -> rs.Run:
    """Full softmax on a share ``mask`` of the items, or in a share ``last`` of the rows on the newest one.

    A knob that is None takes the data set's value (``KNOBS``).
    """
    given = {"max_length": max_length, "batch_size": batch_size, "learning_rate": learning_rate, "windows": windows}
    knobs = dict(KNOBS[data])
    knobs.update((name, value) for name, value in {**given, "dropout": dropout}.items() if value is not None)
    model = rs.Recommender(
        items=rs.IdItems(dim, scale=False, extra=1),
        encoder=rs.BERT4Rec(
            dim,
            num_layers,
            num_heads,
            dropout=knobs["dropout"],
            max_length=knobs["max_length"],
            head=head,
        ),
        objective=rs.FullSoftmax(),
        targets=rs.MaskedItems(mask, last),
    )
    settings = {
        "epochs": epochs,
        "patience": patience,
        "batch_size": knobs["batch_size"],
        "learning_rate": knobs["learning_rate"],
        "windows": knobs["windows"],
        "seed": seed,
    }
    return rs.Run(model, rs.load(data).split(rs.LeaveLast()), settings)
