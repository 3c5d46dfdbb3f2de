"""SASRec on interactions of your own: a CSV, Parquet or NDJSON file, a glob, a saved split, or a data set with a card.

Run: ``recsys fit own --data events.parquet --user uid --item sku --time ts``. The data are cut by global time, as
``data.split()`` cuts them, and no parameter was searched for them: the defaults are those of ``configs/sasrec.py`` for
a catalogue whose items can all be scored, and sampled items beyond (``--loss``). Ranked beside popularity, item-kNN and
Markov; a test on your own data says more than our tables.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from _knobs import Knobs

import recsys as rs
from recsys.cards.card import data_set
from recsys.errors import DataError

ALL_ITEMS = 20_000  # up to here the softmax is over all items, unless --loss says otherwise


def run(
    data: str = "ml-100k",
    user: str | None = None,
    item: str | None = None,
    time: str | None = None,
    items: Path | None = None,
    split: Literal["global-time", "leave-last"] = "global-time",
    drop_missing: bool = False,
    min_user: int = 0,
    min_item: int = 0,
    loss: Literal["auto", "full", "sampled"] = "auto",
    num_layers: int = 2,
    baselines: bool = True,
    knobs: Knobs = Knobs(dropout=0.2, max_length=50, batch_size=128, learning_rate=2e-3),
) -> rs.Run:
    """SASRec on your own interactions.

    Args:
        data: a file or glob of interactions, the folder of a saved split, or a data set that has a card.
        user: column of user ids (default: user, or what the format calls it).
        item: column of item ids (default: item, or what the format calls it).
        time: column of times (default: none, except in MovieLens and atomic files).
        items: item table: titles, other texts, features.
        split: how to split; a saved split is taken as it is.
        drop_missing: drop (and count) events with a missing user, item or time, which are an error otherwise.
        min_user: minimum number of events per user; with --min-item an iterative k-core.
        min_item: minimum number of events per item.
        loss: softmax over all items (full), or over 256 sampled ones; auto decides by the size of the catalogue.
        num_layers: number of Transformer blocks.
        baselines: evaluate popularity, item-kNN and Markov as well.
    """
    if Path(data).is_dir():
        if user or item or time or items or drop_missing or min_user or min_item:
            raise DataError(f"{data} is a saved split: it is taken as it is, so leave columns and cleaning away")
        cut = rs.Split.load(data)
    else:
        found = data_set(data, user, item, time, items)
        if drop_missing or min_user or min_item:
            found = found.clean(drop_missing=drop_missing, min_user=min_user, min_item=min_item)
        cut = found.split(rs.LeaveLast() if split == "leave-last" else rs.GlobalTime())
    full = cut.num_items <= ALL_ITEMS if loss == "auto" else loss == "full"
    model = rs.Recommender(
        items=rs.IdItems(knobs.dim),
        encoder=rs.SASRec(
            knobs.dim, num_layers=num_layers, num_heads=1, dropout=knobs.dropout, max_length=knobs.max_length
        ),
        objective=rs.FullSoftmax() if full else rs.SampledSoftmax(),
    )
    ranked = [rs.Popularity(), rs.ItemKNN(), rs.Markov()] if baselines else []
    return rs.Run(model, cut, knobs.training(), name="SASRec", baselines=ranked, evaluate=knobs.evaluation())
