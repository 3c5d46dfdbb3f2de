"""Where training stands: what a checkpoint keeps besides tensors, and what is said about it."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields
from typing import Any

TIMES = ("seconds", "targets_per_second", "validation_seconds")  # what differs between two equal runs


@dataclass
class State:
    """Where training stands between two updates; with the tensors, all that a resumed run needs."""

    stage: int = 0
    stage_epoch: int = 0  # epochs of this stage that are over
    epoch: int = 0  # epochs of the run that are over
    phase: str = "train"  # or "validate": the updates of the epoch are done
    consumed: int = 0  # batches of this epoch that went into updates (not those drawn ahead)
    step: int = 0  # updates of the run
    stage_step: int = 0  # updates of this stage
    rate: float = 0.0  # learning rate of the latest update
    stale: int = 0  # validations since the best one
    best: dict[str, Any] | None = None
    sums: dict[str, float] = field(default_factory=dict)  # of this epoch: loss term x weight of its targets
    weight: float = 0.0  # of this epoch's targets
    seconds: float = 0.0  # of this epoch's training
    history: list[dict[str, Any]] = field(default_factory=list)

    @classmethod
    def of(cls, record: Any, stages: int | None = None) -> State:
        """The state that a checkpoint keeps as ``record``, of a run with so many stages, if that is known.

        Raises:
            ValueError, TypeError: it cannot be one.
        """
        lacking = [entry.name for entry in fields(cls) if entry.name not in record]
        if lacking:
            raise ValueError(f"the state of training lacks {', '.join(lacking)}")
        state = cls(**record)
        counts = {name: getattr(state, name) for name in ("stage", "stage_epoch", "epoch", "consumed", "step", "stale")}
        wrong = [name for name, value in counts.items() if type(value) is not int or value < 0]
        wrong += ["stage"] if not wrong and stages is not None and state.stage >= stages else []
        wrong += ["phase"] if state.phase not in ("train", "validate") else []
        wrong += [name for name in ("weight", "seconds") if not isinstance(getattr(state, name), (int, float))]
        rows = state.history if isinstance(state.history, list) else [None]
        wrong += ["history"] if any(not isinstance(one, dict) for one in rows) or len(rows) != state.epoch else []
        wrong += ["sums"] if not isinstance(state.sums, dict) else []
        wrong += ["best"] if not isinstance(state.best, (dict, type(None))) else []
        if wrong:
            raise ValueError(f"the state of training makes no sense: {', '.join(dict.fromkeys(wrong))}")
        return state

    @property
    def fresh(self) -> bool:
        """Nothing of this stage has been trained yet."""
        return self.stage_epoch == 0 and self.consumed == 0 and self.phase == "train"

    def improves(self, value: float | None) -> bool:
        """Whether ``value`` is the best so far; weights that were kept without a value are older than what ranks."""
        return value is not None and (self.best is None or self.best["value"] is None or value > self.best["value"])

    def add(self, terms: dict[str, float], weight: float, batches: int, rate: float = 0.0) -> None:
        """Count an update, made at the learning rate ``rate``."""
        for name, value in terms.items():
            self.sums[name] = self.sums.get(name, 0.0) + value * weight
        self.weight += weight
        self.consumed += batches
        self.step, self.stage_step, self.rate = self.step + 1, self.stage_step + 1, rate

    def record(self, metric: str, value: float | None, took: float) -> dict[str, Any]:
        """The line of metrics.jsonl for the epoch that ends; ``took`` are the seconds of its validation."""
        terms = {name: total / max(self.weight, 1e-12) for name, total in self.sums.items()}
        return {
            "epoch": self.epoch + 1,
            "stage": self.stage,
            "step": self.step,
            "loss": math.fsum(terms.values()),
            "terms": terms,
            **({} if value is None else {metric: value}),
            "learning_rate": self.rate,
            "targets": self.weight,
            "seconds": round(self.seconds, 3),
            "targets_per_second": round(self.weight / max(self.seconds, 1e-9), 1),
            "validation_seconds": round(took, 3),
        }

    def next_stage(self) -> None:
        """Go on to the next stage."""
        self.stage, self.stage_epoch, self.stage_step, self.stale = self.stage + 1, 0, 0, 0

    def end_epoch(self, record: dict[str, Any]) -> None:
        """Go on to the next epoch."""
        self.history.append(record)
        self.epoch, self.stage_epoch, self.phase = self.epoch + 1, self.stage_epoch + 1, "train"
        self.consumed, self.sums, self.weight, self.seconds = 0, {}, 0.0, 0.0

    def loss_so_far(self) -> str:
        """The mean loss of the epoch, for an error message."""
        if self.weight == 0:
            return "it is the first update of the epoch"
        return f"the mean loss of the epoch was {math.fsum(self.sums.values()) / self.weight:.6g} so far"

    def shown(self, terms: dict[str, float]) -> dict[str, float | str]:
        """What the progress bar shows after an update."""
        shown: dict[str, float | str] = {"loss": math.fsum(terms.values())}
        if self.best is not None and self.best["value"] is not None:
            shown[f"best {self.best['metric']}"] = self.best["value"]
        shown["targets/s"] = f"{self.weight / max(self.seconds, 1e-9):,.0f}"
        return shown

    def line(self, epochs: int) -> str:
        """One line about the epoch that just ended, the last of the history, out of at most ``epochs``."""
        record, best = self.history[-1], self.best
        text = f"epoch {record['epoch']}/{epochs}  loss {record['loss']:.4f}"
        if best is not None and best["metric"] in record:
            name = best["metric"]
            text += f"  {name} {record[name]:.4f} (best {best['value']:.4f} in epoch {best['epoch']})"
        text += f"  {record['targets_per_second']:,.0f} targets/s  {record['seconds']:.1f} s"
        took = [entry["seconds"] + entry["validation_seconds"] for entry in self.history]
        left = sum(took) / len(took) * (epochs - record["epoch"])
        return f"{text}  {_span(left)} left" if left else text


def _span(seconds: float) -> str:
    if seconds < 1:
        return "less than 1 s"
    return f"at most {seconds:.0f} s" if seconds < 120 else f"at most {seconds / 60:.0f} min"
