"""``fit``: train any recommender on a split, and keep the run in a folder from which it resumes exactly."""

from __future__ import annotations

import json
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from recsys.data.cut import Cut
from recsys.errors import DataWarning, LeakageError, closest
from recsys.hooks import sources
from recsys.protocols import Context
from recsys.recommenders.base import Ranker
from recsys.recommenders.composed import Recommender
from recsys.runs.checkpoint import REMEDY, Checkpoint, random_state, restore_random_state
from recsys.runs.read import cut_of, read_config
from recsys.runs.split import remember_split
from recsys.runs.write import CHECKPOINTS, RunFolder, data_facts, machine_facts
from recsys.storage.parts import describe
from recsys.storage.reading import reading
from recsys.train.engine import start
from recsys.train.loader import TrainBatches
from recsys.train.loop import Loop
from recsys.train.settings import Settings, Stage, default_metric
from recsys.train.trial import try_parts
from recsys.train.validation import Validation
from recsys.train.warm import begin, merged, unharmed

if TYPE_CHECKING:
    from lightning.fabric import Fabric

    from recsys.data.split import Split


@dataclass(frozen=True)
class Fitted:
    """A finished run. ``model`` is the one given to :func:`fit`, with the best weights in it."""

    model: Ranker
    folder: Path | None
    history: list[dict[str, Any]]  # one record per epoch, as in metrics.jsonl
    best: dict[str, Any]  # metric, value, epoch (from 1) and stage of the weights kept; empty if nothing was trained


def fit(
    model: Ranker,
    split: Split,
    *,
    epochs: int = 100,
    batch_size: int = 128,
    tokens: int | None = None,
    learning_rate: float = 1e-3,
    betas: tuple[float, float] = (0.9, 0.999),
    weight_decay: float = 0.0,
    optimizer: Callable[[Iterable[nn.Parameter]], Optimizer] | None = None,
    warmup_steps: int = 0,
    decay: str = "none",
    clip_norm: float | None = None,
    accumulate: int = 1,
    precision: str = "auto",
    compile: bool = False,
    order: str = "random",
    windows: str = "last",
    stride: int | None = None,
    workers: int = 0,
    patience: int = 10,
    metric: str | None = None,
    max_steps: int | None = None,
    init: str = "keep",
    validate_every: int = 1,
    exclude: str = "history",
    valid_users: int | None = None,
    seed: int = 0,
    resume: str | bool = "auto",
    checkpoint_every: int | None = None,
    checkpoint_seconds: float = 60.0,
    devices: int | str | Sequence[int] = 1,
    accelerator: str = "auto",
    strategy: Any = "auto",
    num_nodes: int = 1,
    loggers: Sequence[Any] = (),
    progress: bool = True,
    stages: Sequence[Stage] | None = None,
    folder: str | Path | None = None,
    name: str = "",
    recipe: Path | None = None,
    arguments: dict[str, Any] | None = None,
) -> Fitted:
    """Train ``model`` on ``split.train``, choose its best epoch on ``split.valid``; the model is changed in place.

    A model that is counted rather than trained (it has ``learn``) is learned in one go and gets the same run folder.

    Args:
        epochs: most epochs; ``patience`` validations without a better ``metric`` end training sooner. More epochs
            may be asked for when a run is resumed, unless the learning rate decays.
        batch_size: training rows per batch, over all devices.
        tokens: instead of ``batch_size``, the most inputs per batch, over all devices.
        weight_decay: decoupled from the gradient (AdamW); 0 is plain Adam.
        optimizer: parameters -> torch optimizer, instead of Adam; it sets its own learning rates, for each group, and
            may change them (what a schedule counts outside of the optimizer is not in checkpoints). ``warmup_steps``
            and ``decay`` multiply the rates that it has at the time.
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
        resume: "auto" goes on if ``folder`` holds an unfinished run of exactly this kind, True insists on it, False
            replaces what is there. A resumed run ends with the numbers of one that never stopped. While one process
            trains into a folder, another that is to do the same is refused at once.
        checkpoint_every: updates between checkpoints, besides one every ``checkpoint_seconds`` and two per epoch.
        devices, accelerator, strategy, num_nodes, loggers: passed to Lightning's Fabric; one copy of the model per
            device ("ddp"). The folder must be visible to all of them.
        stages: phases of training instead of ``epochs``; the best weights of all of them are kept, unless a stage
            selects by another metric.
        folder: the run folder; None keeps nothing on disk. The split is kept in the cache (``RECSYS_CACHE``), so that
            ``recsys evaluate`` and ``export`` find it.
        name, recipe, arguments: what the run folder remembers of where the run came from.

    Raises:
        ValueError, TypeError: a knob makes no sense, a GPU is asked for where there is none, or ``folder`` holds
            another run.
        LeakageError: ``init="keep"``, and the model has learned from events that it would be validated on (where that
            cannot be told, it is a warning).
        FloatingPointError: a loss became NaN or infinite; the last good checkpoint stays.
        KeyboardInterrupt: after Ctrl-C, once a checkpoint and the best weights are written (and loaded into ``model``).
    """
    given = dict(locals())
    if not hasattr(split, "train"):
        raise TypeError(f"fit needs a split, such as data.split(rs.LeaveLast()); found {type(split).__name__}")
    given["metric"] = metric or default_metric(split.num_items)
    settings = Settings(**{entry.name: given[entry.name] for entry in fields(Settings)})
    run = _Request(model, split, settings, None if folder is None else RunFolder(folder), name, recipe, arguments or {})
    before = random_state()
    try:
        return _learn(run) if hasattr(model, "learn") else _train(run)
    finally:
        restore_random_state(before)
        if run.folder is not None:
            run.folder.release()


@dataclass(frozen=True)
class _Request:
    """What fit was asked for."""

    model: Any
    split: Split
    settings: Settings
    folder: RunFolder | None
    name: str
    recipe: Path | None
    arguments: dict[str, Any]

    @property
    def path(self) -> Path | None:
        return None if self.folder is None else self.folder.path

    def context(self) -> Context:
        split = self.split
        return Context(
            split.num_items, split.items, split.train, split.item_text, self.settings.seed, split.users,
            split.item_features, split.user_features,
        )  # fmt: skip

    def identity(self, facts: dict[str, Any]) -> dict[str, Any]:
        """Everything that decides the numbers, as it looks after a round through JSON."""
        if self.folder is None:
            return {}
        found = sources(self.model)
        read = {"sources": found} if found else {}
        whole = {"model": describe(self.model), "data": data_facts(self.split), **read, **facts}
        return dict(json.loads(json.dumps(whole, default=str)))

    def begin(
        self, identity: dict[str, Any], device: torch.device, processes: int, resumed: bool, trained: Cut
    ) -> None:
        """Prepare the run folder, on the one process that writes; ``trained`` is what is learned from."""
        if self.folder is None:
            return
        manifest = machine_facts(self.split, self.settings.seed, device, processes)
        if resumed:
            self.folder.resumed(manifest)
            remember_split(self.split, self.folder.path)
            return
        config = {
            "name": self.name or type(self.model).__name__,
            "model": identity["model"],
            "num_items": self.split.num_items,
            "cut": trained.to_dict(),
            "settings": self.settings.describe(),
            "arguments": self.arguments,
            "identity": identity,
        }
        self.folder.begin(manifest, config, self.split, self.recipe, trained.stops)
        remember_split(self.split, self.folder.path)


def _train(run: _Request) -> Fitted:
    fabric = start(run.settings)
    if run.folder is not None and fabric.is_global_zero:
        run.folder.lock()
    identity = run.identity(
        {
            "settings": run.settings.identity(),
            "precision": str(fabric.strategy.precision.precision),
            "processes": fabric.world_size,
        }
    )
    resumed = None if run.folder is None else run.folder.resumable(identity, run.settings.resume)
    with unharmed(run.model) as before:
        trained, line = _start(run, resumed, before)
        _check_losses(run)
        batches = _batches(run, fabric)
        validation = Validation(run.split, run.settings, fabric.global_rank, fabric.world_size)
        if resumed is None:
            try_parts(run.model, batches, run.settings.plan[0].name)
        fabric.barrier()  # all have read the folder before one changes it
        if fabric.is_global_zero:
            run.begin(identity, fabric.device, fabric.world_size, resumed is not None, trained)
            if run.settings.progress:
                print(f"{_told(batches)}\n{line}", file=sys.stderr, flush=True)
        fabric.barrier()
        loop = Loop(run.model, batches, validation, run.settings, fabric, run.folder, resumed, identity)
    before.clear()
    run.model.cut = run.split.cut  # while validation looks; what was learned before was compared with it above
    try:
        loop.run()
    finally:
        run.model.cut = trained if run.model.learned else None
    return Fitted(run.model, run.path, loop.state.history, loop.state.best or {})


def _start(run: _Request, resumed: Checkpoint | None, learned: dict[str, Tensor]) -> tuple[Cut, str]:
    """Bind the model, with what it has learned if it goes on; the events it will have learned from, and what to say."""
    model, cut, init = run.model, run.split.cut, run.settings.init
    if resumed is not None:
        assert run.folder is not None
        model.bind(run.context())
        before = cut_of(run.folder.path, read_config(run.folder.path))
        with reading(run.folder.path / CHECKPOINTS, REMEDY):
            step = int(resumed.state["loop"]["step"])
        line = f"goes on from update {step:,} of {run.folder.path}"
        return before or cut, line
    goes_on = init == "keep" and model.learned
    trained = merged(model.cut, cut) if goes_on else cut
    if goes_on and model.cut is not None and run.settings.validate_every:
        seen = run.split.valid.seen_by(model.cut)
        if seen is None:
            warnings.warn(
                "whether the model has learned from events that it is validated on cannot be told, for it learned from "
                "other data: if these are not newer, its best epoch is chosen on what it knows (validate_every=0 keeps "
                "the last weights)",
                DataWarning,
                stacklevel=4,
            )
        elif seen:
            raise LeakageError(
                f"the model has learned from {seen:,} of the events that it would be validated on: go on with the "
                'split it was trained on, pass validate_every=0 to keep the last weights, or init="fresh" to start anew'
            )
    return trained, begin(model, run.context(), cut, init, learned)


def _check_losses(run: _Request) -> None:
    """Raise ValueError if a stage asks for a loss that the model lacks, before the stages before it are trained."""
    if not isinstance(run.model, Recommender) or type(run.model).loss is not Recommender.loss:
        return  # it may have further ones, which its first step tells
    known = run.model.loss_names
    for stage in run.settings.plan:
        for name in stage.losses or ():
            if name.partition(".")[0] not in known:
                raise ValueError(
                    f"stage {stage.name!r} asks for the loss {name!r}, which the model lacks; {closest(name, known)}"
                )


def _batches(run: _Request, fabric: Fabric) -> TrainBatches:
    settings, model = run.settings, run.model
    return TrainBatches(
        run.split.train,
        scheme=getattr(getattr(model, "targets", None), "scheme", "windows"),
        max_length=model.max_length,
        batch_size=settings.batch_size if settings.tokens is None else None,
        tokens=settings.tokens,
        order=settings.order,
        windows=settings.windows,
        stride=settings.stride,
        seed=settings.seed,
        rank=fabric.global_rank,
        world_size=fabric.world_size,
        workers=settings.workers,
        needs=getattr(model, "train_needs", model.needs),
        pin=fabric.device.type == "cuda",
        draw=getattr(getattr(model, "targets", None), "draw", None),
    )


def _told(batches: TrainBatches) -> str:
    """What an epoch trains, and what it leaves out."""
    text = f"each epoch: {batches.num_targets:,} positions in {batches.num_rows:,} rows"
    if batches.truncated:
        text += f'; {batches.truncated:,} events older than the last window are not read (windows="sliding" reads them)'
    if batches.short_users:
        text += f"; {batches.short_users:,} users have one event, which gives nothing to predict"
    return text


def _learn(run: _Request) -> Fitted:
    """Learn a model that is counted in one go, and validate it once."""
    settings, metric = run.settings, run.settings.metric
    if run.folder is not None and leads():
        run.folder.lock()
    identity = run.identity({"settings": {name: getattr(settings, name) for name in ("seed", "metric", "exclude")}})
    if run.folder is not None:
        run.folder.resumable(identity, False if settings.resume is False else "auto")
    validation = Validation(run.split, settings)
    began = time.monotonic()
    known = run.model.learned or run.model.vocabulary is not None
    run.model.learn(run.context())
    run.model.learned, run.model.cut = True, run.split.cut
    record: dict[str, Any] = {"epoch": 1, "stage": 0, "seconds": round(time.monotonic() - began, 3)}
    best: dict[str, Any] = {"metric": metric, "value": None, "epoch": 1, "stage": 0}
    if validation.enabled:
        best["value"] = record[metric] = validation(run.model, metric)
    if run.folder is not None and leads():
        run.begin(identity, torch.device("cpu"), 1, False, run.split.cut)
        run.folder.write_weights(run.model.tensors())
        run.folder.write_metrics([record])
    if settings.progress and leads():
        how = "learned anew" if known else "learned"
        text = f"{run.name or type(run.model).__name__}: {how} in {record['seconds']:.1f} s"
        text += f"  {metric} {record[metric]:.4f}" if metric in record else ""
        print(text, file=sys.stderr, flush=True)
    return Fitted(run.model, run.path, [record], best)


def leads() -> bool:
    """Is this the process that writes and prints, of however many train together?"""
    from torch import distributed

    return not (distributed.is_available() and distributed.is_initialized()) or distributed.get_rank() == 0
