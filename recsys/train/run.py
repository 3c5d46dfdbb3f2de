"""``Run``: what a recipe returns, a model and how to train it."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recsys.errors import closest
from recsys.recommenders.base import Ranker
from recsys.train.fit import Fitted, fit
from recsys.train.settings import Stage

if TYPE_CHECKING:
    from recsys.data.split import Split


@dataclass
class Run:
    """A model, the data it is trained on and the knobs of :func:`recsys.fit`: what a recipe returns.

    Args:
        settings: arguments for :func:`recsys.fit` by name.
        baselines: recommenders to fit on the same split and compare with.
        evaluate: arguments for :func:`recsys.evaluate` on the test part, by name.
        stages: phases of training, instead of ``settings["epochs"]``.

    Raises:
        TypeError: ``settings`` or ``evaluate`` names an argument that does not exist.
    """

    model: Ranker
    split: Split
    settings: dict[str, Any] = field(default_factory=dict)
    name: str = ""
    baselines: Sequence[Ranker] = ()
    evaluate: dict[str, Any] = field(default_factory=dict)
    stages: Sequence[Stage] | None = None

    def __post_init__(self) -> None:
        from recsys.eval.evaluate import evaluate

        _check("settings", self.settings, fit, ("model", "split", "stages", "name", "recipe", "arguments"))
        _check("evaluate", self.evaluate, evaluate, ("model", "part"))

    def fit(
        self,
        folder: str | Path | None = None,
        recipe: Path | None = None,
        arguments: dict[str, Any] | None = None,
        **changes: Any,
    ) -> Fitted:
        """Train the model; ``changes`` override ``settings``.

        Args:
            folder: the run folder.
            recipe: the file this run came from, copied into the folder.
            arguments: the arguments the recipe was called with, kept in ``config.json``.
        """
        _check("changes", changes, fit, ("model", "split", "stages", "name"))
        chosen: dict[str, Any] = {**self.settings, **changes}
        if folder is not None:
            chosen["folder"] = folder
        more: dict[str, Any] = {"name": self.name, "recipe": recipe, "arguments": arguments, "stages": self.stages}
        return fit(self.model, self.split, **chosen, **more)


def _check(what: str, given: dict[str, Any], function: Any, taken: Sequence[str]) -> None:
    known = set(inspect.signature(function).parameters) - set(taken)
    for name in given:
        if name not in known:
            raise TypeError(f"{what} holds {name!r}, which {function.__name__} does not take; {closest(name, known)}")
