"""RPG (Hou et al., KDD 2025, arXiv 2506.05781): items as many unordered codes, all predicted at once.

Run: ``recsys fit rpg`` (others: ``--data amazon-beauty``, ``--data amazon-sports``, which need ``RECSYS_MIRROR``). The
codes are those of product quantisation of text vectors, or with ``--vectors RUN`` of text vectors beside the item
vectors of a trained run; training sums a softmax per level, and an item's score is the sum of its codes' logits, exact
over the catalogue. ``--loss items`` takes the full softmax over items instead (codes as features), and ``--ids`` adds a
learned vector per item.

Deviations: text vectors of a small sentence transformer; by default no head per level and no normalisation
(``--heads residual`` has both, as the paper), Adam at a constant rate, all positions of a history at once.
"""

from __future__ import annotations

from typing import Any, Literal

from _codes import Codes, Cold, folder_of
from _knobs import Generative

import recsys as rs
from recsys.encoders.parallel import ParallelHeads
from recsys.items.parallel import ParallelItems

CODES: dict[str, dict[str, Any]] = {
    "ml-100k": {"tokens": "opq", "levels": 16, "size": 64},
    "amazon-beauty": {"tokens": "opq", "levels": 32, "size": 256},
    "amazon-sports": {"tokens": "opq", "levels": 32, "size": 256},
}
AMAZON: dict[str, Any] = {
    "dropout": 0.2, "max_length": 20, "batch_size": 256, "learning_rate": 4e-3, "windows": "last", "dim": 64,
}  # fmt: skip
KNOBS: dict[str, dict[str, Any]] = {
    "ml-100k": {
        "dropout": 0.3, "max_length": 50, "batch_size": 128, "learning_rate": 2e-3, "windows": "sliding", "dim": 64,
    },
    "amazon-beauty": AMAZON,
    "amazon-sports": AMAZON,
}  # fmt: skip


def run(
    heads: Literal["none", "residual"] = "none",
    loss: Literal["codes", "items"] = "codes",
    ids: bool = False,
    tied: bool = False,
    temperature: float = 0.07,
    num_layers: int = 2,
    num_heads: int = 1,
    codes: Codes = Codes(),
    cold: Cold = Cold(),
    knobs: Generative = Generative(),
) -> rs.Run:
    """Items by unordered codes under a causal encoder.

    Args:
        heads: a head per level (residual), normalised, as in the paper, or the encoder's state for all levels.
        loss: a softmax per level (codes), or one over the items.
        ids: a learned vector per item beside those of its codes, with --loss items.
        tied: the same vectors of codes at the input and the output.
        temperature: divides the cosines of heads, with --heads residual.
        num_layers: number of Transformer blocks.
        num_heads: attention heads per block.
    """
    values = KNOBS[knobs.data]
    knobs = knobs.filled(values)
    split = cold.split(knobs.data)
    folder, dim = folder_of(split, codes, CODES[knobs.data]), knobs.dim
    encoder: Any = rs.SASRec(dim, num_layers, num_heads, knobs.dropout, knobs.max_length)
    items: Any = rs.CodeItems(dim, folder, tied)
    if ids and (loss == "codes" or heads == "residual"):
        raise ValueError("ids have no codes to predict: --ids goes with --loss items and --heads none")
    if heads == "residual":
        levels = codes.levels or len(rs.SemanticIds.load(folder).sizes)
        items, encoder = ParallelItems(dim, levels, folder, temperature), ParallelHeads(encoder, levels)
    if ids:
        items = rs.SumItems([rs.IdItems(dim), items])
    objective = rs.CodeSoftmax() if loss == "codes" else rs.FullSoftmax()
    training = knobs.training(windows=values["windows"])
    return rs.Run(
        rs.Recommender(items, encoder, objective), split, training, evaluate=cold.evaluation(knobs), name="RPG"
    )
