"""The training loop: stages of epochs, validation, best weights, checkpoints. Where it stands is a :class:`State`."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from dataclasses import asdict
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from recsys.data.batch import Batch
from recsys.hooks import call, having
from recsys.progress import Progress
from recsys.runs.checkpoint import REMEDY, Checkpoint, pack, random_state, restore_random_state, unpack
from recsys.runs.read import read_weights
from recsys.runs.state import State
from recsys.runs.write import RunFolder
from recsys.storage.reading import reading
from recsys.train.advice import Adviser
from recsys.train.callbacks import Epoch, consult, frozen, name_of
from recsys.train.interrupt import Interrupt
from recsys.train.loader import TrainBatches
from recsys.train.optimizer import load_named_state, named_state
from recsys.train.settings import Stage, Training
from recsys.train.source import BatchSource, first_batch
from recsys.train.update import Update, Updater
from recsys.train.validation import Validation

if TYPE_CHECKING:
    from lightning.fabric import Fabric


class Loop:
    """Trains a bound model; ``state`` tells what happened.

    Args:
        resumed: the checkpoint to go on from.
        identity: stored in every checkpoint, so that another run does not resume from it.
    """

    def __init__(
        self,
        model: Any,
        batches: TrainBatches,
        validation: Validation,
        settings: Training,
        fabric: Fabric,
        folder: RunFolder | None = None,
        resumed: Checkpoint | None = None,
        identity: dict[str, Any] | None = None,
    ) -> None:
        self.model, self.batches, self.validation = model, batches, validation
        self.settings, self.fabric, self.folder = settings, fabric, folder
        self.identity = identity or {}
        self.state = State()
        self.updater: Updater | None = None
        self._resumed = resumed
        self._best: dict[str, Tensor] | None = None  # only without a folder
        self._updating = self._finished = self._due = False
        self._advise = Adviser(model, self._talks)
        self._saved = time.monotonic()
        self._saved_step = 0
        if resumed is not None:
            with reading("the checkpoint of this run", REMEDY):
                self.state = State.of(resumed.state["loop"], len(settings.plan))
                model.load_tensors(resumed.tensors["model"])
            self._saved_step = self.state.step

    def run(self) -> None:
        """Train to the end, and leave the best weights in the model.

        Raises:
            KeyboardInterrupt: after a checkpoint was written.
            FloatingPointError: a loss or a weight is not finite; the last checkpoint is the one of before.
        """
        with Interrupt() as self.interrupt:
            try:
                while not self._finished:
                    self._run_stage(self.settings.plan[self.state.stage])
            except KeyboardInterrupt:
                self._stop()
                raise
        if self.folder is not None and self._leads:
            self.folder.write_metrics(self.state.history)
        if self.state.best is None:
            self._keep_weights()
        self._restore_best()

    def _run_stage(self, stage: Stage) -> None:
        state = self.state
        fresh = state.fresh
        if fresh and state.stage and not self._spent:
            self._start_stage(stage, self.settings.plan[state.stage - 1])
        if not self._over(stage):
            call(self.model, "on_stage", stage.name)
            self.updater = None  # the hooks of an earlier wrapper go with it
            self.updater = Updater(self.model, self.fabric, self.settings, stage, self._spare)
            if not fresh:
                self._restore_optimizer()
            self._resumed = None
        while not self._over(stage):
            if state.phase == "train":
                self._train_epoch(stage)
            self._end_epoch(stage)
        if state.stage + 1 == len(self.settings.plan) or self._stopped:
            self._finished = True
        else:
            state.next_stage()

    def _start_stage(self, stage: Stage, previous: Stage) -> None:
        """The weights a later stage starts from; all of it happens again, to the same effect, when it is resumed.

        Behind a stage without validation the best weights are its last ones: :meth:`_end_epoch` keeps these.
        """
        if stage.start == "best" and self.state.best is not None:
            self._restore_best()
        if self.settings.metric_of(stage) != self.settings.metric_of(previous):
            self.state.best = None

    def _over(self, stage: Stage) -> bool:
        patience = stage.patience or self.settings.patience
        done = self.state.stage_epoch >= stage.epochs or self.state.stale >= patience
        return self.state.phase == "train" and (done or self._spent or self._stopped)

    @property
    def _spent(self) -> bool:
        """Whether the updates that ``max_steps`` allows are done."""
        return self.settings.max_steps is not None and self.state.step >= self.settings.max_steps

    @property
    def _stopped(self) -> bool:
        """Whether one of the callbacks has stopped the run."""
        last = self.state.history[-1] if self.state.history else {}
        return "stopped" in last and last["stopped"]["by"] in map(name_of, self.settings.callbacks)

    def _source(self, stage: Stage) -> BatchSource:
        return self.batches if stage.data is None else stage.data

    def _train_epoch(self, stage: Stage) -> None:
        state, size, source = self.state, self.settings.accumulate, self._source(stage)
        call(self.model, "on_epoch", state.epoch)
        self.model.train()
        updates = -(-(source.num_batches(state.epoch) - state.consumed) // size)
        if self.settings.max_steps is not None:
            updates = min(updates, self.settings.max_steps - state.step)
        label = f"epoch {state.epoch + 1}/{self._epochs(stage)}"
        with Progress(updates, label, "updates", enabled=self._talks) as bar:
            since = began = time.monotonic()
            share = self.fabric.global_rank, self.fabric.world_size
            for batches in islice(_groups(source.epoch(state.epoch, state.consumed, *share), size), updates):
                waited = time.monotonic() - since
                if self._due:
                    self._save()
                since = time.monotonic()
                update = self._update(batches)
                state.seconds += waited + time.monotonic() - since
                since = time.monotonic()
                bar.advance(1, **state.shown(update.terms))
                self._advise(since - began, bar.done, updates - bar.done)
        state.phase = "validate"

    def _update(self, batches: list[Batch]) -> Update:
        assert self.updater is not None
        state = self.state
        steps, weight = self.updater.prepare(batches, state.epoch, state.step)
        weight, stop, self._due = self._agree(weight, self.interrupt.requested, self._is_due())
        if stop:
            raise KeyboardInterrupt
        self._updating = True
        try:
            update = self.updater(steps, weight, self._progress(), state.stage_step)
        except FloatingPointError as error:
            raise self._not_finite(f"{error}; {state.loss_so_far()}") from None
        state.add(update.terms, update.weight, len(batches), self.updater.learning_rate)
        self.model.learned = True
        self._updating = False
        return update

    def _progress(self) -> float:
        """How much of the stage's epochs is over, from 0 up to but not including 1."""
        state = self.state
        stage = self.settings.plan[state.stage]
        done = state.consumed / self._source(stage).num_batches(state.epoch)
        return (state.stage_epoch + done) / stage.epochs

    def _end_epoch(self, stage: Stage) -> None:
        """Validate, keep the weights if they are the best, write the record of the epoch and a checkpoint."""
        state, metric = self.state, self.settings.metric_of(stage)
        self._save()
        last = state.stage_epoch + 1 >= stage.epochs or self._spent
        enabled = self.validation.enabled and stage.validate
        due = enabled and (last or (state.stage_epoch + 1) % self.settings.validate_every == 0)
        began = time.monotonic()
        self.interrupt.immediate = self.fabric.world_size == 1
        value = self.validation(self.model, metric) if due else None
        record = state.record(metric, value, time.monotonic() - began)
        if tallies := _tallies(self.model):
            record["tallies"] = tallies
        unranked = last and not stage.validate and self.validation.enabled  # what this stage trained is kept unseen
        if state.improves(value) or not self.validation.enabled or unranked:
            state.best = {"metric": metric, "value": value, "epoch": state.epoch + 1, "stage": state.stage}
            self._keep_weights()
            state.stale = 0
        elif due:
            state.stale += 1
        self._consult(stage, record)
        self.interrupt.immediate = False
        state.end_epoch(record)
        if self._leads and self.folder is not None:
            self.folder.write_metrics(state.history)
        self._save()
        self._tell(stage, record)
        if unranked and self._talks and (self._spent or state.stage + 1 == len(self.settings.plan)):
            note = "is the last one and is not validated: its last weights are those of the run"
            print(f"stage {stage.name!r} {note}", file=sys.stderr, flush=True)

    def _consult(self, stage: Stage, record: dict[str, Any]) -> None:
        """Let the callbacks see the epoch; the record says who stops the run."""
        state = self.state
        best = None if state.best is None else frozen(state.best)
        seen = Epoch(state.epoch + 1, state.stage, stage.name, frozen(record), self.model, best)
        stopped = consult(self.settings.callbacks, seen, self.fabric)
        if stopped is not None:
            record["stopped"] = stopped

    def _spare(self) -> Batch:
        own = self.settings.plan[self.state.stage].data
        if own is not None:
            return first_batch(own)
        training = self.batches.training
        user = np.flatnonzero(training.lengths > 1)[:1]
        return training.gather(user, self.batches.max_length + 1, needs=self.batches.needs)

    def _agree(self, weight: float, stop: bool, due: bool) -> tuple[float, bool, bool]:
        """Sum of target weights over the processes, whether any is asked to stop, whether the first one is to save.

        The first process decides when to save: wall-clock times differ between processes, and all must
        meet in what a decision leads to.
        """
        if self.fabric.world_size == 1:
            return weight, stop, due
        asked = [weight, float(stop), float(due and self._leads)]
        values = torch.tensor(asked, dtype=torch.float64, device=self.fabric.device)
        total, stops, saves = self.fabric.all_reduce(values, reduce_op="sum")
        return float(total), bool(stops > 0), bool(saves > 0)

    # Weights and checkpoints.

    def _keep_weights(self) -> None:
        """The weights as they are become those of the run."""
        self._check_finite()
        if self.folder is None:
            self._best = {name: value.clone() for name, value in self.model.tensors().items()}
        elif self._leads:
            self.folder.write_weights(self.model.tensors())

    def _restore_best(self) -> None:
        self.fabric.barrier()
        kept = self._best if self.folder is None else read_weights(self.folder.path)
        assert kept is not None
        self.model.load_tensors(kept)
        self.model.to(self.fabric.device)

    def _is_due(self) -> bool:
        """Whether a checkpoint is due behind the update that is about to be made."""
        every = self.settings.checkpoint_every
        by_steps = every is not None and self.state.step + 1 - self._saved_step >= every
        return by_steps or time.monotonic() - self._saved >= self.settings.checkpoint_seconds

    def _save(self) -> None:
        self._check_finite()
        self._saved, self._saved_step, self._due = time.monotonic(), self.state.step, False
        if self.folder is None or not self._leads or self.updater is None:
            return
        tensors: dict[str, dict[str, Tensor]] = {"model": self.model.tensors(), "optimizer": {}, "random": {}}
        state = {
            "identity": self.identity,
            "loop": asdict(self.state),
            "optimizer": pack(named_state(self.updater.raw_optimizer, self.model), "optimizer", tensors["optimizer"]),
            "precision": pack(self.fabric.strategy.precision.state_dict(), "precision", tensors["optimizer"]),
            "random": pack(random_state(), "random", tensors["random"]),
        }
        self.folder.checkpoint(f"step-{self.state.step:08d}", Checkpoint(state, tensors))
        self._saved = time.monotonic()

    def _restore_optimizer(self) -> None:
        """Optimizer, loss scaler and global generators as the checkpoint has them."""
        assert self._resumed is not None and self.updater is not None
        state, tensors = self._resumed.state, self._resumed.tensors
        with reading("the checkpoint of this run", REMEDY):
            kept = unpack(state["optimizer"], tensors["optimizer"])
            load_named_state(self.updater.raw_optimizer, self.model, kept)
            self.fabric.strategy.precision.load_state_dict(unpack(state["precision"], tensors["optimizer"]))
            restore_random_state(unpack(state["random"], tensors["random"]))

    def _check_finite(self) -> None:
        for name, parameter in self.model.named_parameters():
            if not bool(torch.isfinite(parameter.detach()).all()):
                raise self._not_finite(f"the weights {name} are not finite, though the loss was")

    def _not_finite(self, what: str) -> FloatingPointError:
        state = self.state
        where = f"epoch {state.epoch + 1}, update {state.step + 1}"
        kept = "nothing is on disk" if self.folder is None else f"the last good checkpoint is in {self.folder.path}"
        return FloatingPointError(
            f"{where}: {what}. Training stopped, {kept}. Try a lower learning_rate, clip_norm=1.0 or warmup_steps, "
            'precision="32-true" if it was lower, and look at these rows for extreme weights'
        )

    def _stop(self) -> None:
        """After Ctrl-C: save what is whole, and say how to go on."""
        if self._updating:  # a second Ctrl-C: the weights are half updated, the checkpoint of before counts
            return
        self._save()
        if self.state.best is None:
            self._keep_weights()
        self._restore_best()
        if self._leads:
            path = None if self.folder is None else self.folder.path
            how = "nothing is on disk (folder=None)" if path is None else f"fit again with folder={path} to resume"
            print(f"stopped in epoch {self.state.epoch + 1}: {how}", file=sys.stderr, flush=True)

    # What the user sees.

    @property
    def _leads(self) -> bool:
        return self.fabric.is_global_zero

    @property
    def _talks(self) -> bool:
        return self._leads and self.settings.progress

    def _epochs(self, stage: Stage) -> int:
        """Epochs of the run at most."""
        later = self.settings.plan[self.state.stage + 1 :]
        return self.state.epoch - self.state.stage_epoch + stage.epochs + sum(after.epochs for after in later)

    def _tell(self, stage: Stage, record: dict[str, Any]) -> None:
        if self.settings.loggers:
            flat = {**record, **{f"loss/{name}": value for name, value in record["terms"].items()}}
            del flat["terms"]
            flat.pop("stopped", None)
            flat |= {f"tally/{name}": value for name, value in flat.pop("tallies", {}).items()}
            self.fabric.log_dict(flat, step=record["epoch"])
        if self._talks:
            print(self.state.line(self._epochs(stage)), file=sys.stderr, flush=True)
            if "tallies" in record:
                told = ", ".join(f"{name} {value:.4g}" for name, value in record["tallies"].items())
                print(f"    {told}", file=sys.stderr, flush=True)
        if self._talks and "stopped" in record:
            why = f": {record['stopped']['why']}" if "why" in record["stopped"] else ""
            print(f"stopped by {record['stopped']['by']}{why}", file=sys.stderr, flush=True)


def _tallies(model: Any) -> dict[str, float]:
    """What the parts of the model count besides losses, by their names where there are several."""
    found = {name: part.tallies() for name, part in having(model, "tallies", used=True)}
    found = {name: values for name, values in found.items() if values}
    alone = len(found) == 1
    return {key if alone else f"{name}.{key}": value for name, values in found.items() for key, value in values.items()}


def _groups(batches: Iterator[Batch], size: int) -> Iterator[list[Batch]]:
    while group := list(islice(batches, size)):
        yield group
