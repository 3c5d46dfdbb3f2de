"""``fit``: train any recommender on a split, and keep the run in a folder from which it resumes exactly."""

from __future__ import annotations

import json
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from recsys.data.cut import Cut
from recsys.errors import DataWarning, LeakageError, closest
from recsys.hooks import member, sources
from recsys.protocols import Context
from recsys.recommenders.base import Ranker
from recsys.recommenders.blend import Blend
from recsys.recommenders.parts import Composed
from recsys.runs.checkpoint import REMEDY, Checkpoint, random_state, restore_random_state
from recsys.runs.read import cut_of, read_config
from recsys.runs.split import remember_split
from recsys.runs.write import CHECKPOINTS, RunFolder, data_facts, machine_facts
from recsys.storage.parts import describe
from recsys.storage.reading import reading
from recsys.train.blending import choose_weights
from recsys.train.callbacks import Epoch, consult, frozen
from recsys.train.engine import start
from recsys.train.loader import TrainBatches
from recsys.train.loop import Loop
from recsys.train.optimizer import Group, groups_of, told_groups
from recsys.train.settings import Training, default_metric
from recsys.train.signature import takes
from recsys.train.source import begin_source, first_batch, is_prepared, is_varying
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


@dataclass(frozen=True, kw_only=True)
class Asked(Training):
    """What :func:`fit` takes besides the model and the split: the settings of :class:`Training`, and these."""

    training: Training | None = field(default=None, kw_only=False)
    folder: str | Path | None = None
    name: str = ""
    recipe: Path | None = None
    arguments: dict[str, Any] | None = None


@takes(Asked)
def fit(
    model: Ranker,
    split: Split,
    training: Training | None = None,
    *,
    folder: str | Path | None = None,
    name: str = "",
    recipe: Path | None = None,
    arguments: dict[str, Any] | None = None,
    **knobs: Any,
) -> Fitted:
    """Train ``model`` on ``split.train``, choose its best epoch on ``split.valid``; the model is changed in place.

    A model that is counted rather than trained (it has ``learn``) is learned in one go and gets the same run folder.
    ``fit(model, split, rs.Training(epochs=5))`` and ``fit(model, split, epochs=5)`` are the same: the settings are the
    fields of :class:`recsys.Training`; what is given by name goes before what ``training`` says.

    Args:
        training: the settings, made once for several runs.
        folder: the run folder; None keeps nothing on disk. The split is kept in the cache (``RECSYS_CACHE``), so that
            ``recsys evaluate`` and ``export`` find it.
        name, recipe, arguments: what the run folder remembers of where the run came from.

    Raises:
        ValueError, TypeError: a setting makes no sense or does not exist, a GPU is wanted where there is none, or
            ``folder`` holds another run.
        LeakageError: ``init="keep"``, and the model has learned from events that it would be validated on (where that
            is not known, it is a warning).
        FloatingPointError: a loss became NaN or infinite; the last good checkpoint stays.
        KeyboardInterrupt: after Ctrl-C, once a checkpoint and the best weights are written (and loaded into ``model``).
    """
    if not hasattr(split, "train"):
        raise TypeError(f"fit needs a split, such as data.split(rs.LeaveLast()); found {type(split).__name__}")
    if isinstance(model, type) or not (hasattr(model, "learn") or (hasattr(model, "loss") and hasattr(model, "bind"))):
        found = f"the class {model.__name__}" if isinstance(model, type) else type(model).__name__
        raise TypeError(
            "fit trains recommenders, such as rs.Recommender(items, encoder, objective), rs.Popularity() or one of "
            "your own, a recsys.recommenders.base.Ranker with loss(step) or learn(context); found "
            f"{found}: what is trained elsewhere goes to evaluate as it is"
        )
    training = Training.of(training, "fit", **knobs)
    training = replace(training, metric=training.metric or default_metric(split.num_items))
    run = _Request(model, split, training, None if folder is None else RunFolder(folder), name, recipe, arguments or {})
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
    settings: Training
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
        self,
        identity: dict[str, Any],
        device: torch.device,
        processes: int,
        resumed: bool,
        trained: Cut,
        groups: Sequence[Group] = (),
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
            "parameter_groups": {group.name: group.describe() for group in groups},
        }
        self.folder.begin(manifest, config, self.split, self.recipe, trained.stops)
        remember_split(self.split, self.folder.path)


def _train(run: _Request) -> Fitted:
    fabric = start(run.settings)
    if run.folder is not None and fabric.is_global_zero:
        run.folder.lock()
    for stage in run.settings.plan:
        if stage.data is not None:
            begin_source(stage.data, run.context())
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
        _check_stages(run)
        batches = _batches(run, fabric)
        validation = Validation(run.split, run.settings, fabric.global_rank, fabric.world_size)
        if resumed is None:
            try_parts(run.model, batches, run.settings.plan)
        groups, first = groups_of(run.model), run.settings.plan[0]
        fabric.barrier()  # all have read the folder before one changes it
        if fabric.is_global_zero:
            run.begin(identity, fabric.device, fabric.world_size, resumed is not None, trained, groups)
            if run.settings.progress:
                told = [*_told(batches, run.settings), told_groups(groups, run.settings, first), line]
                print("\n".join(filter(None, told)), file=sys.stderr, flush=True)
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
                "it is not known whether the model has learned from events that it is validated on, for it learned "
                "from other data: if these are not newer, its best epoch is chosen on what it knows (validate_every=0 "
                "keeps the last weights)",
                DataWarning,
                stacklevel=4,
            )
        elif seen:
            raise LeakageError(
                f"the model has learned from {seen:,} of the events that it would be validated on: go on with the "
                'split it was trained on, pass validate_every=0 to keep the last weights, or init="fresh" to start anew'
            )
    return trained, begin(model, run.context(), cut, init, learned)


def _check_stages(run: _Request) -> None:
    """Raise ValueError if a stage cannot be trained, before the stages before it are.

    It asks for a loss that the model lacks, or its own batches have no rows, or no targets for the objective.
    """
    for stage in run.settings.plan:
        if stage.data is not None and stage.data.num_rows < 1:
            raise ValueError(
                f"{type(stage.data).__name__}, the data of stage {stage.name!r}, has no rows: there is nothing to train"
            )
    if not isinstance(run.model, Composed) or type(run.model).loss is not Composed.loss:
        return  # it may have further losses, which its first step tells
    known = run.model.loss_names
    for stage in run.settings.plan:
        for name in stage.losses or ():
            if name.partition(".")[0] not in known:
                raise ValueError(
                    f"stage {stage.name!r} asks for the loss {name!r}, which the model lacks; {closest(name, known)}"
                )
        own, whole = stage.data, stage.losses is None or "loss" in stage.losses
        if own is not None and is_prepared(own) and whole and first_batch(own).targets is None:
            raise ValueError(
                f"the batches of {type(own).__name__}, the data of stage {stage.name!r}, have no targets, and the "
                f"objective needs them: name the losses that do not (losses=[...] of {', '.join(known)}), or set "
                "prepared = False in the source to have the model set targets in its batches"
            )


def _batches(run: _Request, fabric: Fabric) -> TrainBatches:
    settings, model = run.settings, run.model
    return TrainBatches(
        run.split.train,
        scheme=member(getattr(model, "targets", None), "scheme"),
        max_length=model.max_length,
        batch_size=settings.batch_size if settings.tokens is None else None,
        tokens=settings.tokens,
        order=settings.order,
        windows=settings.windows,
        stride=settings.stride,
        seed=settings.seed,
        workers=settings.workers,
        needs=getattr(model, "train_needs", model.needs),
        pin=fabric.device.type == "cuda",
        draw=member(getattr(model, "targets", None), "draw"),
    )


def _told(batches: TrainBatches, settings: Training) -> Iterator[str]:
    """What an epoch trains, and what it leaves out."""
    for stage in settings.plan:
        if stage.data is not None:
            about = "about " if is_varying(stage.data) else ""
            rows = f"{about}{stage.data.num_targets:,} targets in {stage.data.num_rows:,} rows"
            yield f"stage {stage.name!r}, each epoch: {rows} of {type(stage.data).__name__}"
    if all(stage.data is not None for stage in settings.plan):
        return
    text = f"each epoch: {batches.num_targets:,} targets in {batches.num_rows:,} rows"
    text += f" (histories of up to {batches.max_length:,} items)"
    if batches.truncated:
        text += f'; {batches.truncated:,} events older than the last window are not read (windows="sliding" reads them)'
    if batches.short_users:
        text += f"; {batches.short_users:,} users with a single event are not trained on"
    yield text


def _learn(run: _Request) -> Fitted:
    """Learn a model that is counted in one go, and validate it once."""
    settings, metric = run.settings, str(run.settings.metric)
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
    blend = isinstance(run.model, Blend)
    if blend and run.model.weights is None and validation.enabled:
        choose_weights(run.model, lambda kept: validation(kept, metric), len(validation.part))
    record: dict[str, Any] = {"epoch": 1, "stage": 0, "seconds": round(time.monotonic() - began, 3)}
    record |= {"weights": run.model.chosen.tolist(), "tried": run.model.curve} if blend else {}
    best: dict[str, Any] = {"metric": metric, "value": None, "epoch": 1, "stage": 0}
    if validation.enabled:
        best["value"] = record[metric] = validation(run.model, metric)
    stopped = consult(settings.callbacks, Epoch(1, 0, "learn", frozen(record), run.model, frozen(best)))
    record |= {} if stopped is None else {"stopped": stopped}
    if run.folder is not None and leads():
        run.begin(identity, torch.device("cpu"), 1, False, run.split.cut)
        run.folder.write_weights(run.model.tensors())
        run.folder.write_metrics([record])
    if settings.progress and leads():
        how = "learned anew" if known else "learned"
        text = f"{run.name or type(run.model).__name__}: {how} in {record['seconds']:.1f} s"
        text += f", weights {', '.join(f'{one:.3g}' for one in record['weights'])}" if blend else ""
        text += f"  {metric} {record[metric]:.4f}" if metric in record else ""
        print(text, file=sys.stderr, flush=True)
    return Fitted(run.model, run.path, [record], best)


def leads() -> bool:
    """Is this the process that writes and prints, of however many train together?"""
    from torch import distributed

    return not (distributed.is_available() and distributed.is_initialized()) or distributed.get_rank() == 0
