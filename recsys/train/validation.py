"""Validation by the evaluator of the final report: the same numbers, on one process or several."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import numpy as np

from recsys.errors import DataWarning
from recsys.eval.choice import choose
from recsys.eval.evaluate import evaluate
from recsys.eval.report import Report
from recsys.randomness import numpy_generator
from recsys.train.settings import Training

if TYPE_CHECKING:
    from recsys.data.split import Split


class Validation:
    """The validation users of a split, or a seeded sample of them, ranked exactly.

    Raises:
        ValueError: the cut-off of a metric is above the number of items.
    """

    def __init__(self, split: Split, settings: Training, rank: int = 0, world_size: int = 1) -> None:
        self.part, self.settings = split.valid, settings
        self.rank, self.world_size, self._warned = rank, world_size, False
        wanted = settings.valid_users
        if wanted is not None and wanted < len(self.part):
            draw = numpy_generator(settings.seed, "valid_users").choice(len(self.part), wanted, replace=False)
            self.part = self.part.subset(np.sort(draw))
        self.enabled = settings.validate_every > 0 and len(self.part) > 0
        if self.enabled:
            choose({settings.metric_of(stage) for stage in settings.plan}, 10, split.num_items)
        elif settings.validate_every > 0:
            note = "no user has validation events: every epoch is trained, and the weights of the last one are kept"
            warnings.warn(note, DataWarning, stacklevel=3)

    def __call__(self, model: Any, metric: str) -> float:
        """The mean of ``metric`` over the users, computed in full precision, shared out over the processes.

        Raises:
            ValueError: a score is not finite.
        """
        report = evaluate(
            model,
            self.part,
            metrics=[metric],
            exclude=self.settings.exclude,  # type: ignore[arg-type]
            progress=self.settings.progress,
            rank=self.rank,
            world_size=self.world_size,
            leakage="allow",  # the split itself says what trains
            warn=not self._warned,  # the users and targets are the same in every epoch
            transitions=False,
        )
        self._warned = True
        if self.world_size > 1:
            shares: list[Any] = [None] * self.world_size
            from torch.distributed import all_gather_object

            all_gather_object(shares, report)
            report = Report.merge(shares)
        return report.mean(metric)
