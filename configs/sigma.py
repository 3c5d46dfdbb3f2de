"""SIGMA (Liu et al., AAAI 2025, arXiv 2408.11451) on MovieLens-100K, MovieLens-1M or Amazon Beauty, leave-last.

Run: ``recsys fit configs/sigma.py`` (others: ``--data ml-1m``, ``--data amazon-beauty``, which need ``RECSYS_MIRROR``).
The authors' protocol ranks with the history left in (``--exclude none``), and their reversed pass works on padded
positions; by default the history is taken out, as everywhere in our tables, and real items are
reversed. One target per prefix, because the encoder reads the whole input. Deviations: batches are smaller than their
2,048 rows, the padding row is neither scored nor part of the item table, and at 200 items (ml-1m) all but the newest 5
are reversed, where their file reverses the first 45 whatever the length (``--keep 155``).
"""

from __future__ import annotations

from typing import Any, Literal

from _knobs import Public

import recsys as rs

KNOBS: dict[str, dict[str, Any]] = {
    "ml-100k": {"dropout": 0.2, "max_length": 50, "batch_size": 256, "learning_rate": 1e-3},
    "ml-1m": {"dropout": 0.2, "max_length": 200, "batch_size": 1024, "learning_rate": 1e-3},
    "amazon-beauty": {"dropout": 0.4, "max_length": 50, "batch_size": 512, "learning_rate": 1e-3},
}


def run(
    num_layers: int = 1,
    keep: int = 5,
    gate_cross: Literal["repo", "clean"] = "repo",
    ssm_init: Literal["recbole", "mamba"] = "recbole",
    knobs: Public = Public(),
) -> rs.Run:
    """SIGMA with the full softmax on the item after every prefix.

    Args:
        num_layers: number of SIGMA blocks.
        keep: newest items that the reversed pass leaves in order.
        gate_cross: input of the second gate: the first gate (repo, the authors' code), or its own input (clean).
        ssm_init: initial weights of the state space model: recbole as in the published numbers, or mamba's own.
    """
    knobs = knobs.filled(KNOBS[knobs.data])
    model = rs.Recommender(
        items=rs.IdItems(knobs.dim, scale=False),
        encoder=rs.SIGMA(
            knobs.dim, num_layers, dropout=knobs.dropout, max_length=knobs.max_length, keep=keep,
            gate_cross=gate_cross, ssm_init=ssm_init,
        ),
        objective=rs.FullSoftmax(),
        targets=rs.LastItem(),
    )  # fmt: skip
    split = rs.load(knobs.data).split(rs.LeaveLast())
    return rs.Run(model, split, knobs.training(), evaluate=knobs.evaluation())
