"""The settings of :func:`recsys.fit`, written once and checked before anything else happens; stages of a run."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from recsys.errors import closest
from recsys.eval.choice import choose
from recsys.eval.report import EXCLUDE
from recsys.train.callbacks import Callback, name_of
from recsys.train.source import BatchSource, check_members

INITS = ("keep", "fresh")
DECAYS = ("none", "linear", "cosine")
PRECISIONS = ("auto", "32-true", "bf16-mixed", "16-mixed")
ELSEWHERE = {
    "lr": "learning_rate", "n_epochs": "epochs", "num_epochs": "epochs", "max_epochs": "epochs", "bs": "batch_size",
    "train_batch_size": "batch_size", "early_stopping": "patience", "early_stopping_patience": "patience",
    "stopping_step": "patience", "early_stop": "patience", "l2": "weight_decay", "grad_clip": "clip_norm",
    "gradient_clip_val": "clip_norm", "random_state": "seed", "valid_metric": "metric", "monitor": "metric",
}  # fmt: skip
# What may change between a run and its resumption without changing what is computed.
_FREE = {"epochs", "stages", "patience", "workers", "resume", "checkpoint_every", "checkpoint_seconds", "loggers"}
_FREE |= {"callbacks", "init", "progress", "devices", "accelerator", "strategy", "num_nodes", "compile", "precision"}


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
        learning_rate: None for that of the run. A number is the rate of all parameters that have no rate of their own;
            a named group with one keeps it. A mapping sets the rates of groups by name, "default" being the rest.
        patience: None for that of the run.
        name: what parts see as ``step.stage``.
        validate: False for a stage whose weights do not rank yet: nothing is validated, it does not end early, and
            its last weights are kept: the next stage goes on from them and chooses the best ones anew, or they are
            the result of the run if there is none.
        data: where its batches come from, instead of the training rows of the split: see
            :class:`recsys.train.source.BatchSource` (preference pairs, other rows, rollouts).
    """

    epochs: int
    losses: Sequence[str] | None = None
    train: Sequence[str] | None = None
    freeze: Sequence[str] = ()
    select: str | None = None
    start: str = "best"
    learning_rate: float | Mapping[str, float] | None = None
    patience: int | None = None
    name: str = "train"
    validate: bool = True
    data: BatchSource | None = None

    def __post_init__(self) -> None:
        _whole("epochs", self.epochs, 0)
        if self.start not in ("best", "last"):
            raise ValueError(f'start must be "best" or "last", found {self.start!r}')
        for name in ("losses", "train", "freeze"):
            if isinstance(getattr(self, name), str):
                raise TypeError(f"{name} is a list of names, found {getattr(self, name)!r}: put it in []")
        rate = self.learning_rate
        for name, value in rate.items() if isinstance(rate, Mapping) else [("", rate)] * (rate is not None):
            _number(f"learning_rate[{name!r}]" if name else "learning_rate", value, above=0)
        if self.data is not None:
            check_members(self.data)

    def describe(self) -> dict[str, Any]:
        """The stage as plain data; ``data`` is there if the stage brings its own, by what identifies it."""
        plain = {entry.name: getattr(self, entry.name) for entry in fields(self)}
        if plain.pop("data") is not None:
            found = {"class": type(self.data).__qualname__, **(self.data.identity() if self.data is not None else {})}
            plain["data"] = json.loads(json.dumps(found, default=str))
        if isinstance(self.learning_rate, Mapping):
            plain["learning_rate"] = dict(self.learning_rate)
        return {name: list(value) if isinstance(value, (tuple, list)) else value for name, value in plain.items()}


@dataclass(frozen=True, kw_only=True)
class Training:
    """How a model is trained: every setting of :func:`recsys.fit`, each with its default.

    ``fit(model, split, rs.Training(epochs=5))`` and ``fit(model, split, epochs=5)`` are the same.

    Args:
        epochs: most epochs. More may be asked for when a run is resumed, unless the learning rate decays.
        patience: validations in a row without a better ``metric`` that end a stage sooner.
        batch_size: training rows per batch, over all devices.
        tokens: instead of ``batch_size``, the most inputs per batch, over all devices.
        learning_rate: of all parameters, except where a part or a stage sets that of a named group
            (:class:`recsys.protocols.ParamGroup`).
        betas: of Adam: the shares of its means of gradients and of their squares that an update keeps.
        weight_decay: decoupled from the gradient (AdamW); 0 is plain Adam.
        optimizer: parameters -> torch optimizer, instead of Adam; it sets its own learning rates, for each group, and
            may change them (what a schedule counts outside of the optimizer is not in checkpoints). ``warmup_steps``
            and ``decay`` multiply the rates that it has at the time. Where parts ask for named groups it gets these
            instead of parameters, as torch optimizers take them.
        warmup_steps: updates of each stage over which the learning rate rises linearly to its value.
        decay: "none", or how the learning rate falls to 0 over the epochs of each stage: "linear" or "cosine". Where
            ``patience`` ends a stage sooner, its last rates were not reached.
        clip_norm: longest gradient (norm over all parameters) that is applied as it is.
        accumulate: batches per update; losses are weighted as if they were one batch.
        precision: "auto" (bf16-mixed on a GPU that has it, else 32-true), "32-true", "bf16-mixed", "16-mixed".
            Validation is always in float32.
        compile: compile the encoder with torch; where that fails training goes on without, and says so.
        order, windows, stride, workers: see :class:`recsys.train.loader.TrainBatches`.
        metric: one per-user metric with its cut-off; the larger the better (default "ndcg@10", or at the number of
            items where there are fewer).
        max_steps: updates after which training ends, wherever it stands; its last weights are validated as usual.
        init: what a model begins with that was trained or loaded: "keep" goes on from what it has learned, on other
            users and items too (rows are found by raw id, see :class:`recsys.protocols.Change`); "fresh" starts from
            new weights. One that has learned nothing starts from new weights in any case, a resumed run from its
            checkpoint, and what is counted rather than trained is counted anew.
        validate_every: epochs between validations; 0 never validates and keeps the last weights.
        exclude: "history", "none" or "history-except-targets", as in :func:`recsys.evaluate`.
        valid_users: validate on this many users, drawn once by ``seed``; None for all.
        seed: of all that is drawn at random: first weights, order of rows, negatives, dropout, validation users.
        resume: "auto" goes on if ``folder`` holds an unfinished run of exactly this kind, True insists on it, False
            replaces what is there. A resumed run ends with the numbers of one that never stopped. While one process
            trains into a folder, another that is to do the same is refused at once.
        checkpoint_every: updates between checkpoints, besides those by time and two per epoch.
        checkpoint_seconds: seconds between checkpoints.
        devices, accelerator, strategy, num_nodes, loggers: passed to Lightning's Fabric; one copy of the model per
            device ("ddp"). The folder must be visible to all of them.
        progress: say on stderr what is trained, with a bar, and a line behind each epoch.
        stages: phases of training instead of ``epochs``; the best weights of all of them are kept, unless a stage
            selects by another metric.
        callbacks: functions that are called behind each epoch, and may stop the run: see
            :class:`recsys.train.callbacks.Epoch`.

    Raises:
        ValueError, TypeError: a setting has a value that cannot mean anything.
    """

    epochs: int = 100
    batch_size: int = 128
    tokens: int | None = None
    learning_rate: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 0.0
    optimizer: Callable[[Iterable[Any]], Optimizer] | None = None
    warmup_steps: int = 0
    decay: str = "none"
    clip_norm: float | None = None
    accumulate: int = 1
    precision: str = "auto"
    compile: bool = False
    order: str = "random"
    windows: str = "last"
    stride: int | None = None
    workers: int = 0
    patience: int = 10
    metric: str | None = None
    max_steps: int | None = None
    init: str = "keep"
    validate_every: int = 1
    exclude: str = "history"
    valid_users: int | None = None
    seed: int = 0
    resume: str | bool = "auto"
    checkpoint_every: int | None = None
    checkpoint_seconds: float = 60.0
    devices: int | str | Sequence[int] = 1
    accelerator: str = "auto"
    strategy: str | Any = "auto"
    num_nodes: int = 1
    loggers: Sequence[Any] = ()
    progress: bool = True
    stages: Sequence[Stage] | None = None
    callbacks: Sequence[Callback] = ()

    def __post_init__(self) -> None:
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
            check_metric(self.metric_of(stage))
            if self.optimizer is not None and stage.learning_rate is not None:
                raise ValueError(
                    f"the optimizer sets its own learning rate, so that of the stage {stage.name!r} has no effect: "
                    "leave one of the two out"
                )
        for one in self.callbacks:
            if not callable(one):
                raise TypeError(f"callbacks are functions of an Epoch, found {one!r}")

    @classmethod
    def of(cls, given: Training | Mapping[str, Any] | None, what: str = "training", **knobs: Any) -> Training:
        """The training that ``given`` says, or its fields by name, with ``knobs`` in place of some.

        Raises:
            TypeError: a name is not a setting (the message has the nearest), or ``given`` is something else.
        """
        if not isinstance(given, (Training, Mapping, type(None))):
            raise TypeError(f"{what} is a recsys.Training, or its fields by name; found {type(given).__name__}")
        named = {**(given if isinstance(given, Mapping) else {}), **knobs}
        known = [entry.name for entry in fields(cls)]
        for name in named:
            if name not in known:
                raise TypeError(f"{what} takes no {name!r}; {closest(str(name), known, ELSEWHERE)}")
        return replace(given, **named) if isinstance(given, Training) else cls(**named)

    @property
    def plan(self) -> tuple[Stage, ...]:
        """The stages of the run: those given, or one of ``epochs`` epochs."""
        return tuple(self.stages) if self.stages else (Stage(self.epochs),)

    def metric_of(self, stage: Stage) -> str:
        """What the epochs of ``stage`` are compared in."""
        return stage.select or self.metric or default_metric(10)

    def describe(self) -> dict[str, Any]:
        """Every setting as plain data, for ``config.json``."""
        plain: dict[str, Any] = {}
        for entry in fields(self):
            value = getattr(self, entry.name)
            if entry.name == "stages":
                value = [stage.describe() for stage in value] if value else None
            elif entry.name == "loggers":
                value = [type(logger).__name__ for logger in value]
            elif entry.name == "callbacks":
                value = [name_of(one) for one in value]
            elif isinstance(value, (tuple, list)):
                value = list(value)
            elif not isinstance(value, (str, int, float, bool, type(None))):
                value = getattr(value, "__qualname__", type(value).__qualname__)
            plain[entry.name] = value
        return plain

    def identity(self) -> dict[str, Any]:
        """The settings that decide which numbers come out: a run resumes only where they are equal."""
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
        hint = closest(str(value), known)  # all of them, where none is near
        near = f"; {hint}" if hint.startswith("did you mean") else ""
        raise ValueError(f"{name} must be one of {', '.join(known)}, found {value!r}{near}")


def _describe_optimizer(make: Callable[[Iterable[Any]], Optimizer] | None) -> Any:
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
