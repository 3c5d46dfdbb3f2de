"""UniRec (Liu, Wang & Feng, CIKM 2024, arXiv 2406.18470) on data with times, leave-last, full ranking.

Run: ``recsys fit configs/unirec.py``. By default its encoder and enhancements are trained with the full softmax, like
the other encoders of our table; ``--loss bce`` trains each branch with one negative per position and the profile
term, as the authors do. ``--no-enhanced`` leaves both enhancements out, ``--first-times own`` gives each branch its own
times in the first block as well. Our copies of ml-1m and amazon-beauty have no times, so there it ends with an error
that says so; foursquare-nyc has them. Deviations: see :mod:`recsys.encoders.unirec` and
:mod:`recsys.auxiliaries.unirec`; batches of 128 instead of 512, windows that do not overlap, early stopping after
``patience`` epochs instead of 40.
"""

from __future__ import annotations

from typing import Any, Literal

from _knobs import Knobs

import recsys as rs
from recsys.auxiliaries.unirec import ItemEnhancement, ProfileTerm, SequenceEnhancement, UniRecLoss

KNOBS: dict[str, dict[str, Any]] = {
    "ml-100k": {"dropout": 0.3, "learning_rate": 2e-3, "windows": "sliding"},
    "ml-1m": {"dropout": 0.3, "learning_rate": 1e-3, "windows": "sliding"},
    "amazon-beauty": {"dropout": 0.5, "learning_rate": 1e-3, "windows": "last"},
    "foursquare-nyc": {"dropout": 0.3, "learning_rate": 1e-3, "windows": "sliding"},
}


def run(
    data: Literal["ml-100k", "ml-1m", "amazon-beauty", "foursquare-nyc"] = "ml-100k",
    loss: Literal["softmax", "bce"] = "softmax",
    enhanced: bool = True,
    num_layers: int = 2,
    num_heads: int = 2,
    share_norms: bool = True,
    noise: float = 0.1,
    first_times: Literal["calendar", "own"] = "calendar",
    windows: Literal["last", "sliding"] | None = None,
    knobs: Knobs = Knobs(max_length=50, batch_size=128),
) -> rs.Run:
    """UniRec: two branches, calendar and interval.

    Args:
        data: data set with times; all but ml-100k are copied from RECSYS_MIRROR.
        loss: softmax over all items, or binary cross-entropy with one negative and the profile term (the authors').
        enhanced: add the enhancements of sequences and items, whose schedules are laid out for all epochs.
        num_layers: number of Transformer blocks.
        num_heads: attention heads per block.
        share_norms: share LayerNorms and the mixing of scores between the branches.
        noise: initial scale (learned) of the noise on attention scores; 0 for none.
        first_times: time scores of the first block: the calendar in both branches, or each branch's own times.
        windows: of histories longer than max_length: the last window, or sliding ones (default: per data set).
    """
    knobs = knobs.filled(KNOBS[data])
    dim, epochs, longest = knobs.dim, knobs.epochs, knobs.max_length
    auxiliaries: list[Any] = [ProfileTerm()] if loss == "bce" else []
    if enhanced:
        auxiliaries.append(SequenceEnhancement(dim, epochs=epochs, length=longest))
        auxiliaries.append(ItemEnhancement(dim, epochs=epochs))
    encoder = rs.UniRec(
        dim, num_layers, num_heads, knobs.dropout, longest, share_norms=share_norms, noise=noise,
        first_times=first_times,
    )  # fmt: skip
    model = rs.Recommender(
        items=rs.IdItems(dim),
        encoder=encoder,
        objective=UniRecLoss() if loss == "bce" else rs.FullSoftmax(),
        auxiliaries=auxiliaries,
    )
    training = knobs.training(betas=(0.9, 0.98), windows=windows or KNOBS[data]["windows"])
    return rs.Run(model, rs.load(data).split(rs.LeaveLast()), training, evaluate=knobs.evaluation())
