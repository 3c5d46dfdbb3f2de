"""The knobs of :func:`recsys.fit`, checked before anything else happens, and the stages of a run."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from recsys.errors import closest
from recsys.eval.choice import choose
from recsys.eval.report import EXCLUDE

INITS = ("keep", "fresh")
DECAYS = ("none", "linear", "cosine")
PRECISIONS = ("auto", "32-true", "bf16-mixed", "16-mixed")
# What may change between a run and its resumption without changing what is computed.
_FREE = {"epochs", "stages", "patience", "workers", "resume", "checkpoint_every", "checkpoint_seconds", "loggers"}
_FREE |= {"init", "progress", "devices", "accelerator", "strategy", "num_nodes", "compile", "precision"}


@dataclass(frozen=True)
class Stage:
    """A phase of training: some epochs over some losses and parts, with an optimizer of its own.

    Args:
        epochs: most epochs of this stage; early stopping may end it sooner.
        losses: names of the loss terms that count (keys of ``model.loss``, or an auxiliary's name for all of its
            terms); the others are not computed. None for all of them.
        train: the only parts to train, by attribute path ("items", "encoder.blocks.0"); None for all of them.
        freeze: parts that keep their weights, by attribute path.
        select: the validation metric of this stage; None for that of the run. Where it differs from the stage before,
            the best weights are chosen anew.
        start: "best" starts from the best weights so far, "last" from where the stage before ended. Behind a stage
            without validation both are its last weights.
        learning_rate: None for that of the run.
        patience: None for that of the run.
        name: what parts see as ``step.stage``.
        validate: False for a stage whose weights do not rank yet: nothing is validated, it does not end early, and
            its last weights are kept: the next stage goes on from them and chooses the best ones anew, or they are
            the result of the run if there is none.
    """

    epochs: int
    losses: Sequence[str] | None = None
    train: Sequence[str] | None = None
    freeze: Sequence[str] = ()
    select: str | None = None
    start: str = "best"
    learning_rate: float | None = None
    patience: int | None = None
    name: str = "train"
    validate: bool = True

    def __post_init__(self) -> None:
        _whole("epochs", self.epochs, 0)
        if self.start not in ("best", "last"):
            raise ValueError(f'start must be "best" or "last", found {self.start!r}')
        for name in ("losses", "train", "freeze"):
            if isinstance(getattr(self, name), str):
                raise TypeError(f"{name} is a list of names, found {getattr(self, name)!r}: put it in []")

    def describe(self) -> dict[str, Any]:
        """The stage as plain data."""
        plain = {entry.name: getattr(self, entry.name) for entry in fields(self)}
        return {name: list(value) if isinstance(value, (tuple, list)) else value for name, value in plain.items()}


@dataclass(frozen=True)
class Settings:
    """Every knob of :func:`recsys.fit` (documented there).

    Raises:
        ValueError, TypeError: a knob has a value that cannot mean anything.
    """

    epochs: int
    batch_size: int
    tokens: int | None
    learning_rate: float
    betas: tuple[float, float]
    weight_decay: float
    optimizer: Callable[[Iterable[nn.Parameter]], Optimizer] | None
    warmup_steps: int
    decay: str
    clip_norm: float | None
    accumulate: int
    precision: str
    compile: bool
    order: str
    windows: str
    stride: int | None
    workers: int
    patience: int
    metric: str
    max_steps: int | None
    init: str
    validate_every: int
    exclude: str
    valid_users: int | None
    seed: int
    resume: str | bool
    checkpoint_every: int | None
    checkpoint_seconds: float
    devices: int | str | Sequence[int]
    accelerator: str
    strategy: str | Any
    num_nodes: int
    loggers: Sequence[Any]
    progress: bool
    stages: Sequence[Stage] | None

    def __post_init__(self) -> None:
        if self.metric is None:
            object.__setattr__(self, "metric", default_metric(10))
        for name, least in (("epochs", 0), ("batch_size", 1), ("warmup_steps", 0), ("accumulate", 1), ("workers", 0)):
            _whole(name, getattr(self, name), least)
        for name, least in (("patience", 1), ("validate_every", 0), ("num_nodes", 1)):
            _whole(name, getattr(self, name), least)
        for name in ("tokens", "stride", "valid_users", "checkpoint_every", "max_steps"):
            if getattr(self, name) is not None:
                _whole(name, getattr(self, name), 1)
        _number("learning_rate", self.learning_rate, above=0)
        _number("weight_decay", self.weight_decay, least=0)
        _number("checkpoint_seconds", self.checkpoint_seconds, least=0)
        if self.clip_norm is not None:
            _number("clip_norm", self.clip_norm, above=0)
        if len(self.betas) != 2 or not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas are two numbers from 0 up to but not including 1, found {self.betas!r}")
        one_of("decay", self.decay, DECAYS)
        one_of("precision", self.precision, PRECISIONS)
        one_of("order", self.order, ("random", "length"))
        one_of("windows", self.windows, ("last", "sliding"))
        one_of("init", self.init, INITS)
        one_of("exclude", self.exclude, tuple(EXCLUDE))
        if self.resume not in ("auto", True, False):
            raise ValueError(f'resume is "auto", True or False, found {self.resume!r}')
        for stage in self.plan:
            check_metric(stage.select or self.metric)
            if self.optimizer is not None and stage.learning_rate is not None:
                raise ValueError(
                    f"the optimizer sets its own learning rate, so that of the stage {stage.name!r} has no effect: "
                    "leave one of the two out"
                )

    @property
    def plan(self) -> tuple[Stage, ...]:
        """The stages of the run: those given, or one of ``epochs`` epochs."""
        return tuple(self.stages) if self.stages else (Stage(self.epochs),)

    def describe(self) -> dict[str, Any]:
        """Every knob as plain data, for ``config.json``."""
        plain: dict[str, Any] = {}
        for entry in fields(self):
            value = getattr(self, entry.name)
            if entry.name == "stages":
                value = [stage.describe() for stage in value] if value else None
            elif isinstance(value, (tuple, list)) and entry.name != "loggers":
                value = list(value)
            elif entry.name == "loggers":
                value = [type(logger).__name__ for logger in value]
            elif not isinstance(value, (str, int, float, bool, type(None))):
                value = getattr(value, "__qualname__", type(value).__qualname__)
            plain[entry.name] = value
        return plain

    def identity(self) -> dict[str, Any]:
        """The knobs that decide which numbers come out: a run resumes only where they are equal."""
        plain = {name: value for name, value in self.describe().items() if name not in _FREE}
        plain["optimizer"] = _describe_optimizer(self.optimizer)
        free = {"patience"} if self.decay != "none" else {"epochs", "patience"}  # epochs decide how fast it decays
        plain["stages"] = [{k: v for k, v in stage.describe().items() if k not in free} for stage in self.plan]
        return plain


def default_metric(num_items: int) -> str:
    """What a run is validated by unless it says otherwise: the first ten ranks, or all there are.

    >>> default_metric(8)
    'ndcg@8'
    """
    return f"ndcg@{min(10, num_items)}"


def check_metric(name: str) -> None:
    """Raise ValueError if ``name`` is not one metric with its cut-off, such as "ndcg@10"."""
    choice = choose([name], 10, num_items=2**31)
    if len(choice.metrics) != 1 or choice.metrics[0][0] != name:
        raise ValueError(f"metric is one number per user with its cut-off, such as 'ndcg@10', found {name!r}")


def one_of(name: str, value: Any, known: Sequence[str]) -> None:
    """Raise ValueError if ``value`` is not among ``known``."""
    if value not in known:
        raise ValueError(f"{name}={value!r} is not one of {', '.join(known)}; {closest(str(value), known)}")


def _describe_optimizer(make: Callable[[Iterable[nn.Parameter]], Optimizer] | None) -> Any:
    """Class and defaults of the caller's optimizer, as far as a trial on a small parameter shows them."""
    if make is None:
        return None
    try:
        made = make([nn.Parameter(torch.zeros(2, 2))])
        defaults = {name: value for name, value in made.defaults.items() if isinstance(value, (int, float, str, tuple))}
        return {"class": type(made).__qualname__, **defaults}
    except Exception:  # it may need the real parameters; then its name has to do
        return getattr(make, "__qualname__", type(make).__qualname__)


def _whole(name: str, value: Any, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} is a whole number, found {value!r}")
    if value < least:
        raise ValueError(f"{name} must be at least {least}, found {value}")


def _number(name: str, value: Any, least: float | None = None, above: float | None = None) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} is a number, found {value!r}")
    enough = value > above if above is not None else value >= (least or 0)
    if not enough:
        raise ValueError(f"{name} must be {f'at least {least}' if above is None else f'above {above}'}, found {value}")
