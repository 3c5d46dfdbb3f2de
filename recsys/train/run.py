"""``Run``: what a recipe returns, a model and how to train it."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recsys.errors import closest
from recsys.recommenders.base import Ranker
from recsys.train.fit import Fitted, fit
from recsys.train.settings import Stage, Training

if TYPE_CHECKING:
    from recsys.data.split import Split


class Run:
    """A model, the data it is trained on and how it is trained: what a recipe returns.

    Args:
        training: a :class:`recsys.Training`, or its fields by name.
        baselines: recommenders to fit on the same split and compare with; a trained one is compared as it is.
        evaluate: arguments for :func:`recsys.evaluate` on the test part, by name.
        settings, stages: what recipes of 0.1 call ``training`` and ``training.stages``.

    Raises:
        TypeError: ``training`` names a setting, or ``evaluate`` an argument, that does not exist.
    """

    def __init__(
        self,
        model: Ranker,
        split: Split,
        training: Training | Mapping[str, Any] | None = None,
        name: str = "",
        baselines: Sequence[Ranker] = (),
        evaluate: Mapping[str, Any] | None = None,
        *,
        settings: Mapping[str, Any] | None = None,
        stages: Sequence[Stage] | None = None,
    ) -> None:
        from recsys.eval.evaluate import evaluate as rank

        if training is not None and settings is not None:
            raise TypeError("settings is the former name of training: give one of the two")
        given: dict[str, Any] = {} if stages is None else {"stages": stages}
        self.model, self.split, self.name, self.baselines = model, split, name, baselines
        self.training = Training.of(settings if training is None else training, **given)
        self.evaluate = dict(evaluate or {})
        known = set(inspect.signature(rank).parameters) - {"model", "part"}
        for argument in self.evaluate:
            if argument not in known:
                near = closest(argument, known)
                raise TypeError(f"evaluate holds {argument!r}, which recsys.evaluate does not take; {near}")

    def fit(
        self,
        folder: str | Path | None = None,
        recipe: Path | None = None,
        arguments: dict[str, Any] | None = None,
        **changes: Any,
    ) -> Fitted:
        """Train the model; ``changes`` are settings that go before those of ``training``.

        Args:
            folder: the run folder.
            recipe: the file this run came from, copied into the folder.
            arguments: the arguments the recipe was called with, kept in ``config.json``.
        """
        training = Training.of(self.training, **changes)
        return fit(self.model, self.split, training, folder=folder, name=self.name, recipe=recipe, arguments=arguments)
