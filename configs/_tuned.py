"""What recipes share that train a trained recommender further, over sequences (experimental)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from _knobs import TrainingKnobs

import recsys as rs
from recsys.data.split import Split
from recsys.generative.policies import policy_of
from recsys.ids.ranges import spread
from recsys.llm.trainers.tuning import Tuning


@dataclass(frozen=True, kw_only=True)
class Tuned(TrainingKnobs):
    """What is trained further, and on what. The last epoch is kept, whatever validation says of it.

    Args:
        base: folder of the run that is trained further, of a model and data set as below.
        data: data set; all but ml-100k are copied from RECSYS_MIRROR.
        epochs: training epochs.
        frozen_items: leave the item table as it is, and train what reads histories (and generates codes) alone.
    """

    base: str = ""
    data: Literal["ml-100k", "amazon-beauty"] = "ml-100k"
    epochs: int = 5
    frozen_items: bool = False

    def model(self) -> Any:
        """The trained model.

        Raises:
            ValueError: none is named.
        """
        if not self.base:
            raise ValueError("--base names the folder of a trained run, as that of recsys fit sasrec --out runs/sasrec")
        return rs.load_run(self.base)

    def split(self) -> Split:
        """The data set, leave-last."""
        return rs.load(self.data).split(rs.LeaveLast())

    def tuned(
        self, model: Any, split: Split, examples: Any, objective: Any, data: Any = None, name: str = ""
    ) -> rs.Run:
        """The run: one stage of the objective alone, on ``data`` (None: the batches of training)."""
        model.auxiliaries.append(Tuning(policy_of(model, not self.frozen_items), examples, objective))
        loss = f"Tuning{len(model.auxiliaries) - 1}"
        parts = [name for name in ("encoder", "decoder") if hasattr(model, name)]
        stages = [rs.Stage(self.epochs, losses=[loss], data=data, train=parts if self.frozen_items else None)]
        training = self.training(stages=stages, validate_every=0)
        return rs.Run(model, split, training, evaluate=self.evaluation(), name=name)


def offered(model: Any, split: Split, users: np.ndarray, stops: np.ndarray, k: int, batch: int = 512) -> np.ndarray:
    """(E, k) item rows that ``model`` recommends behind the training events of ``users`` (E,) before ``stops`` (E,); 0
    where a list is shorter."""
    found = np.zeros((len(users), k), np.int64)
    limit = model.max_length or 200
    for first in range(0, len(users), batch):
        some = slice(first, first + batch)
        ids = split.train.gather(users[some], limit, stop=stops[some]).ids.numpy()
        lists = model.recommend([split.items.raw(row[row > 0]).tolist() for row in ids], k).items
        for place, items in enumerate(lists, first):
            found[place, : len(items)] = split.items.rows(items)
    return found


def recent_events(split: Split, most: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Users, events and item rows (E,) each: the last ``most`` training events of every user that have one before."""
    training = split.train
    users = np.flatnonzero(training.lengths > 1)
    start, stop = training.start[users], training.stop[users]
    owner, event = spread(np.maximum(start + 1, stop - most), stop)
    _, items, _ = training.events(users)
    base = np.append(0, np.cumsum(stop - start))[:-1]
    return users[owner], event, items[base[owner] + event - start[owner]]
