"""Item-kNN as a row of a table, which is trained like any recipe."""

from __future__ import annotations

from typing import Literal

import recsys as rs


def run(data: Literal["ml-100k", "amazon-beauty"] = "ml-100k", seed: int = 0) -> rs.Run:
    """Item-kNN in which recent items count more, with the knobs of the quickstart.

    Args:
        data: data set; all but ml-100k are copied from RECSYS_MIRROR.
        seed: draws nothing.
    """
    model = rs.ItemKNN(shrink=0.0, decay=0.5)
    return rs.Run(model, rs.load(data).split(rs.LeaveLast()), {"seed": seed}, "ItemKNN")
