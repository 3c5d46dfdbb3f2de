"""What every contender of a speed benchmark is measured with: its task, its clock, its memory, its result.

A runner is started as ``python -m peers.NAME TASK.json RESULT.json``, in the virtual environment of its library. Only
the standard library is imported here, so that nothing is added to what a library itself loads.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")


def read_task() -> dict[str, Any]:
    """The settings this process was started with."""
    task: dict[str, Any] = json.loads(Path(sys.argv[1]).read_text())
    task["result"] = sys.argv[2]
    sys.argv[1:] = []  # some libraries read the command line themselves
    return task


class Meter:
    """Counts targets (or users) per second after a warm-up and says when enough was measured.

    The clock starts at the end of the last warm-up step and stops at the end of a step, so a step's time includes
    fetching its batch, and whatever a library does between epochs.
    """

    def __init__(self, task: dict[str, Any]) -> None:
        self.task = task
        self.loaded_mib = memory_mib("VmRSS")  # libraries imported, data not yet read
        self.seconds, self.count, self.steps = 0.0, 0, -int(task["warmup_steps"])
        self._created = self._started = time.perf_counter()
        self._cpu_started = self._cpu = time.process_time()
        self.startup_seconds = 0.0

    def step(self, count: int) -> bool:
        """Count a finished step of ``count`` real targets; True when the measurement is over."""
        now = time.perf_counter()
        self.steps += 1
        if self.steps <= 0:
            self._started, self._cpu_started = now, time.process_time()
            self.startup_seconds = now - self._created
            return False
        self.count += int(count)
        self.seconds, self._cpu = now - self._started, time.process_time()
        return self.done

    def watch(self, batches: Iterable[T], count: Callable[[T], int]) -> Iterator[T]:
        """The batches of a plain loop, each counted when the loop asks for the next one, until enough is measured."""
        previous: T | None = None
        for batch in batches:
            if previous is not None and self.step(count(previous)):
                return
            previous = batch
            yield batch
        if previous is not None:
            self.step(count(previous))

    @property
    def done(self) -> bool:
        """Whether the measurement is over."""
        return self.steps > 0 and (self.seconds >= self.task["seconds"] or self.steps >= self.task["max_steps"])

    def write(self, packages: Iterable[str], version: str | None = None, **more: Any) -> None:
        """Write the result of this process: speed, memory, versions of ``packages``, and ``more`` on what was done.

        ``version`` is that of this library, which is not an installed package here.
        """
        own = {} if version is None else {"recsys": version}
        result = {
            "count": self.count,
            "seconds": self.seconds,
            "steps": self.steps,
            "per_second": self.count / self.seconds if self.seconds else 0.0,
            "cores": (self._cpu - self._cpu_started) / self.seconds if self.seconds else 0.0,
            "peak_mib": memory_mib("VmHWM"),
            "loaded_mib": self.loaded_mib,
            "startup_seconds": self.startup_seconds,
            "versions": {**own, **{name: importlib.metadata.version(name) for name in packages}},
            **more,
        }
        Path(self.task["result"]).write_text(json.dumps(result))


def memory_mib(field: str) -> float:
    """Memory of this process in MiB: ``VmRSS`` now, or ``VmHWM`` at its highest.

    Linux: from ``/proc``, because ``getrusage`` hands a child the peak of the process it was forked from. Elsewhere
    the peak from ``getrusage`` for both.
    """
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith(field))
        return int(line.split()[1]) / 1024
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1024**2 if sys.platform == "darwin" else 1024)


def set_threads(task: dict[str, Any]) -> None:
    """Hold torch to the number of threads of the task."""
    import torch

    os.environ["OMP_NUM_THREADS"] = str(task["threads"])
    torch.set_num_threads(task["threads"])
    torch.manual_seed(task["seed"])
