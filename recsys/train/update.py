"""One optimizer update over one or more batches: weights of targets, seeds, backward, clipping, optimizer step."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from recsys.data.batch import Batch
from recsys.errors import DataWarning, closest
from recsys.hooks import having
from recsys.protocols import Step
from recsys.randomness import derive_seed
from recsys.train.optimizer import left, make_optimizer, scaled, train_only, warmed
from recsys.train.settings import Stage, Training
from recsys.train.source import is_prepared

if TYPE_CHECKING:
    from lightning.fabric import Fabric


@dataclass(frozen=True)
class Update:
    """What one update did: its loss terms (over all batches and processes) and the weight of its targets."""

    terms: dict[str, float]
    weight: float


class Updater:
    """Makes optimizer updates for one stage: the model wrapped for its devices, its optimizer and learning rates.

    Every batch is seeded by where it stands in the run, so a resumed run draws what an uninterrupted one draws.
    ``spare`` gives some training row, for a process that gets none of the rows of a batch.
    """

    def __init__(
        self, model: Any, fabric: Fabric, settings: Training, stage: Stage, spare: Callable[[], Batch]
    ) -> None:
        self.fabric, self.settings, self.stage = fabric, settings, stage
        self.model, self.spare = model, spare
        train_only(model, stage)
        model.to(fabric.device)
        self.raw_optimizer = make_optimizer(model, settings, stage)
        self.base_rates = [group["lr"] for group in self.raw_optimizer.param_groups]
        self.learning_rate = float(self.base_rates[0])  # of the first parameter group, in the latest update
        self.module, self.optimizer = fabric.setup(_Losses(model, stage.losses), self.raw_optimizer)
        for _, part in having(model, "on_optimizer", used=True):
            part.on_optimizer(self.raw_optimizer)
        self._on_gradients = [part.on_gradients for _, part in having(model, "on_gradients", used=True)]
        self._after_update = [part.after_update for _, part in having(model, "after_update", used=True)]
        self._untried = settings.compile
        if settings.compile:
            _compile(model)

    def prepare(self, batches: Sequence[Batch], epoch: int, index: int) -> tuple[list[Step], float]:
        """The steps of one update (augmented, with targets) and the weight of all their targets on this process."""
        steps = [self._prepare(batch, epoch, index, micro, len(batches)) for micro, batch in enumerate(batches)]
        return steps, sum(target_weight(step.batch) for step in steps if step.share)

    def __call__(self, steps: Sequence[Step], weight: float, progress: float = 0.0, done: int = 0) -> Update:
        """Update the model from prepared ``steps``; ``weight`` is that of their targets over all processes.

        Args:
            progress: the share of the stage that is over, which the learning rate decays by.
            done: updates of the stage so far, which it is warmed up by.

        Raises:
            FloatingPointError: a loss is not finite; the weights are those of before the update.
        """
        # Gradients are averaged over processes, so each divides by its share of the weight.
        total = max(weight, 1e-12) / self.fabric.world_size
        steps = [replace(step, total_weight=total, share=_share(step, total)) for step in steps]
        if self._untried:
            self._try_compiled(steps[0])
        self.optimizer.zero_grad(set_to_none=True)
        sums: dict[str, Tensor] = {}
        for micro, step in enumerate(steps):
            last = micro == len(steps) - 1
            with self.fabric.no_backward_sync(self.module, enabled=not last):
                terms = self._forward(step, micro)
                self.fabric.backward(_sum(terms))
            for name, value in terms.items():
                sums[name] = sums.get(name, 0) + value.detach().float()
        found = self._gather(sums)
        if not all(math.isfinite(value) for value in found.values()):
            raise FloatingPointError(_seen(found, steps))
        self._apply(done, progress)
        return Update(found, weight)

    def _prepare(self, batch: Batch, epoch: int, index: int, micro: int, of: int) -> Step:
        # A process without rows at the end of an epoch still takes part, with a row that weighs nothing.
        empty = len(batch) == 0
        batch = (self.spare() if empty else batch).to(self.fabric.device, non_blocking=True)
        seed = self.settings.seed if micro == 0 else derive_seed(self.settings.seed, "batch", micro)
        step = Step(
            batch, seed, epoch, index, self.fabric.global_rank, self.stage.name, self.stage.losses,
            share=0.0 if empty else 1.0 / of,
        )  # fmt: skip
        self._seed("prepare", epoch, index, micro)
        if hasattr(self.model, "prepare") and (self.stage.data is None or not is_prepared(self.stage.data)):
            batch = self.model.prepare(batch, step)
        if empty:
            batch = batch.replace(weights=torch.zeros(batch.ids.shape, device=batch.ids.device))
        return replace(step, batch=batch)

    def _forward(self, step: Step, micro: int) -> dict[str, Tensor]:
        self._seed("dropout", step.epoch, step.index, micro)
        # A function, because Fabric looks into containers and dataclasses to convert their tensors.
        return self.module(lambda: step)

    def _apply(self, done: int, progress: float) -> None:
        factor = warmed(self.settings.warmup_steps, done) * left(self.settings.decay, progress)
        groups = self.raw_optimizer.param_groups
        if self.settings.optimizer is None:
            for group, rate in zip(groups, self.base_rates, strict=True):
                group["lr"] = rate * factor
            factor = 1.0
        self._finish_gradients()
        with scaled(self.raw_optimizer, factor):
            self.learning_rate = float(groups[0]["lr"])
            self.optimizer.step()
        for after_update in self._after_update:
            after_update(done + 1)

    def _finish_gradients(self) -> None:
        """Let the parts see the gradients, without the scale of mixed precision, and clip what they leave."""
        norm = self.settings.clip_norm
        if not self._on_gradients:
            if norm is not None:
                self.fabric.clip_gradients(self.module, self.optimizer, max_norm=norm, error_if_nonfinite=False)
            return
        precision = self.fabric.strategy.precision
        precision.unscale_gradients(self.raw_optimizer)
        for on_gradients in self._on_gradients:
            on_gradients()
        if norm is not None:  # not fabric's, which would take the scale off twice
            clipped = precision.main_params(self.raw_optimizer)
            nn.utils.clip_grad_norm_(clipped, norm, error_if_nonfinite=False)

    def _gather(self, sums: dict[str, Tensor]) -> dict[str, float]:
        values: Any = torch.stack(list(sums.values()))
        if self.fabric.world_size > 1:
            values = self.fabric.all_reduce(values, reduce_op="mean")
        return dict(zip(sums, values.tolist(), strict=True))

    def _seed(self, name: str, epoch: int, index: int, micro: int) -> None:
        torch.manual_seed(derive_seed(self.settings.seed, name, epoch, index, self.fabric.global_rank, micro))

    def _try_compiled(self, step: Step) -> None:
        self._untried = False
        try:
            self.fabric.backward(_sum(self._forward(step, 0)))
        except Exception as error:  # whatever the compiler cannot do, plain torch can
            self.model.encoder._compiled_call_impl = None
            reason = str(error).strip().splitlines() or [""]
            note = f"compile=True fails here, training goes on without: {type(error).__name__}: {reason[0][:200]}"
            warnings.warn(note, DataWarning, stacklevel=2)


class _Losses(nn.Module):
    """``model.loss`` as a forward pass, which is what wrappers for several devices can wrap."""

    def __init__(self, model: Any, losses: Sequence[str] | None) -> None:
        super().__init__()
        self.model, self.losses = model, losses
        kept = set(model.state_dict())
        # What is not saved is made by bind, alike in every process (a frozen language model): nothing to broadcast.
        self._ddp_params_and_buffers_to_ignore = [
            f"model.{name}" for name, _ in model.named_buffers() if name not in kept
        ]

    def forward(self, step: Callable[[], Step]) -> dict[str, Tensor]:
        terms: dict[str, Tensor] = self.model.loss(step())
        if self.losses is None:
            return terms
        chosen: dict[str, Tensor] = {}
        for name in self.losses:
            found = {term: value for term, value in terms.items() if term == name or term.startswith(f"{name}.")}
            if not found:
                known = {*terms, *getattr(self.model, "loss_names", ())}
                raise ValueError(f"the stage asks for the loss {name!r}, which the model lacks; {closest(name, known)}")
            chosen.update(found)
        return chosen


def target_weight(batch: Batch) -> float:
    """The sum of the weights of a prepared batch's targets (their number, if it has no weights)."""
    if batch.targets is None:
        return float(len(batch))
    chosen = batch.targets > 0
    return float(chosen.sum() if batch.weights is None else (batch.weights.double() * chosen).sum())


def _compile(model: Any) -> None:
    if not isinstance(getattr(model, "encoder", None), nn.Module):
        raise ValueError(f"compile=True compiles model.encoder, and {type(model).__name__} has none: use compile=False")
    model.encoder.compile(dynamic=True)


def _share(step: Step, total: float) -> float:
    """The part of an update that a batch is. One without targets counts by its rows, however they are shared out."""
    if step.batch.targets is not None or not step.share:
        return step.share
    return target_weight(step.batch) / total


def _sum(terms: dict[str, Tensor]) -> Tensor:
    if not terms:
        raise ValueError("model.loss gave no terms: there is nothing to minimise")
    return torch.stack([value.float() for value in terms.values()]).sum()


def _seen(found: dict[str, float], steps: Sequence[Step]) -> str:
    rows = torch.cat([step.batch.rows for step in steps]).tolist()
    shown = ", ".join(map(str, rows[:10])) + (f", ... ({len(rows)} in all)" if len(rows) > 10 else "")
    bad = ", ".join(f"{name} = {value}" for name, value in found.items() if not math.isfinite(value))
    fine = ", ".join(f"{name} = {value:.6g}" for name, value in found.items() if math.isfinite(value))
    return f"the loss is not finite: {bad}{f' (while {fine})' if fine else ''}; training rows of the batch: {shown}"
