"""UniRec (Liu, Wang & Feng, CIKM 2024, arXiv 2406.18470) on data with times, leave-last, full ranking.

Run: ``recsys fit configs/unirec.py``. By default its encoder and enhancements are trained with the full softmax, like
the other encoders of our table; ``--loss bce`` trains each branch with one negative per position and the profile
term, as the authors do. ``--no-enhanced`` leaves both enhancements out, ``--mode repo`` takes the authors' code at its
word, ``--first-times own`` gives each branch its own clock in the first block as well. Our copies of ml-1m and
amazon-beauty have no times, so there it ends with an error that says so; foursquare-nyc has them. Deviations: see
:mod:`recsys.encoders.unirec` and :mod:`recsys.auxiliaries.unirec`; batches of 128 instead of 512, windows that do not
overlap, early stopping after ``patience`` epochs instead of 40.
"""

from __future__ import annotations

from typing import Any, Literal

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
    mode: Literal["paper", "repo"] = "paper",
    dim: int = 64,
    num_layers: int = 2,
    num_heads: int = 2,
    dropout: float | None = None,
    max_length: int = 50,
    share_norms: bool = True,
    noise: float = 0.1,
    first_times: Literal["calendar", "own"] = "calendar",
    windows: Literal["last", "sliding"] | None = None,
    epochs: int = 60,
    patience: int = 8,
    batch_size: int = 128,
    learning_rate: float | None = None,
    seed: int = 0,
) -> rs.Run:
    """Two branches, calendar and interval; the schedules of the enhancements are laid out for ``epochs``."""
    knobs = {"dropout": dropout, "learning_rate": learning_rate, "windows": windows}
    knobs = {name: KNOBS[data][name] if value is None else value for name, value in knobs.items()}
    split = rs.load(data).split(rs.LeaveLast())
    auxiliaries: list[Any] = [ProfileTerm()] if loss == "bce" else []
    if enhanced:
        auxiliaries.append(SequenceEnhancement(dim, epochs=epochs, length=max_length, mode=mode))
        auxiliaries.append(ItemEnhancement(dim, epochs=epochs, mode=mode))
    encoder = rs.UniRec(
        dim, num_layers, num_heads, knobs["dropout"], max_length, share_norms=share_norms, noise=noise,
        first_times=first_times,
    )  # fmt: skip
    model = rs.Recommender(
        items=rs.IdItems(dim),
        encoder=encoder,
        objective=UniRecLoss() if loss == "bce" else rs.FullSoftmax(),
        auxiliaries=auxiliaries,
    )
    settings = {"epochs": epochs, "patience": patience, "batch_size": batch_size, "betas": (0.9, 0.98), "seed": seed}
    return rs.Run(
        model, split, settings={**settings, "learning_rate": knobs["learning_rate"], "windows": knobs["windows"]}
    )
