"""Blend: finished runs and a tuned item-kNN as one recommender, with weights chosen on validation.

Run: ``recsys fit sasrec_ml100k --out runs/sasrec``, then ``recsys fit blend --members runs/sasrec``. Nothing is trained
again; see :class:`recsys.Blend` for the form. The members stand in the table as well, as they are: a blend costs what
its members cost together, so it is to be compared with the best of them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import recsys as rs
from recsys.runs.split import split_of


def run(
    members: tuple[str, ...] = (),
    knn: bool = True,
    baselines: bool = True,
    exclude: Literal["history", "none"] = "history",
    seed: int = 0,
) -> rs.Run:
    """The runs and the kNN, blended.

    Args:
        members: folders of finished runs on one split, the first of which has weight 1.
        knn: blend in an item-kNN in which recent items count more.
        baselines: evaluate the members and the usual baselines as well.
        exclude: seen items when ranking: "history" leaves out the items of the user's history, "none" ranks them too.
        seed: kept for the record: a blend draws nothing.
    """
    if not members:
        raise ValueError("--members names the folders of finished runs, as that of recsys fit sasrec --out runs/sasrec")
    models = [rs.load_run(folder) for folder in members]
    split = split_of(Path(members[0]), models[0])
    near = rs.ItemKNN(shrink=0.0, decay=0.5)
    ranked = [*models, rs.Popularity(), rs.ItemKNN(), near, rs.EASE(l2=100.0), rs.Markov()] if baselines else []
    blend = rs.Blend([*models, *([near] if knn else [])])
    return rs.Run(blend, split, {"exclude": exclude, "seed": seed}, "Blend", ranked, {"exclude": exclude})
