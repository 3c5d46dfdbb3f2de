"""``tune``: trials of a recipe on validation, one after another, kept so that a killed search goes on.

The recipe's own values are tried first. Then optuna proposes others (TPE by default); a trial whose best value so far
is below the median of the others' at the same epoch is pruned. The test part is never ranked. What a folder holds:

    study.log       optuna's journal of all trials: it only grows, and a killed process loses none that is over
    tune.json       what is searched: a folder is not gone on with for something else
    own, trials/*   run folders; those of worse trials are removed as a better one is there
    best.py         a recipe: ``recsys fit DIR/best.py`` trains the best values, on other seeds as well
    tune.txt        the table of trials, and what the search cost
    report.html     the same as a page

Legend: n trials.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import math
import shutil
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recsys.errors import DataError
from recsys.runs.checkpoint import differences
from recsys.runs.recipe import find_recipe, imported, load_recipe
from recsys.storage.files import hold, remove, write_text
from recsys.storage.shipped import folder as shipped
from recsys.train.callbacks import Epoch, StopTraining
from recsys.tune.space import Space, space_of

SAMPLERS = ("tpe", "random")
RETRIES = 2  # of a trial whose process was killed
STARTUP = 5  # trials before any is pruned, and epochs of a trial before it is


@dataclass(frozen=True)
class Trial:
    """One trial: number (-1: the recipe's own values), what it took, and how it ended."""

    number: int
    values: Mapping[str, Any]
    state: str  # "complete", "pruned", "failed"
    value: float | None  # of validation, its best epoch's
    epochs: int
    seconds: float
    why: str = ""  # of one that failed


@dataclass(frozen=True)
class Tuned:
    """What a search found."""

    best: Trial
    trials: list[Trial]  # the own values first
    metric: str
    space: Space
    folder: Path

    @property
    def budget(self) -> str:
        """What the search cost, in a sentence."""
        states = [one.state for one in self.trials[1:]]
        minutes = sum(one.seconds for one in self.trials) / 60
        space = "; ".join(f"{name} {one}" for name, one in self.space.items())
        return (
            f"Budget: {len(states)} trials besides the recipe's own values ({states.count('pruned')} pruned, "
            f"{states.count('failed')} failed), {minutes:,.1f} minutes, over {space}."
        )

    @property
    def promise(self) -> str:
        """What was reached on validation, and how that is to be read."""
        own = self.trials[0].value
        gain = "" if own is None or self.best.value is None else f" (own values {own:.4f})"
        best = "failed" if self.best.value is None else f"{self.best.value:.4f}"
        return (
            f"Best on validation: {best}{gain}, of the best of {len(self.trials)}, so it promises more than test will "
            "show. Test was not looked at."
        )

    def __str__(self) -> str:
        lines = [f"{'trial':>5}  {self.metric:>8}  epochs  minutes  values"]
        for one in sorted(self.trials, key=lambda one: -math.inf if one.value is None else one.value, reverse=True):
            value = one.state if one.value is None else f"{one.value:.4f}"
            values = ", ".join(f"{name} {_short(given)}" for name, given in one.values.items())
            shown = (
                "its own values" if one.number < 0 else values + (f"; {one.state}" if one.state != "complete" else "")
            )
            name = "own" if one.number < 0 else str(one.number)
            lines.append(f"{name:>5}  {value:>8}  {one.epochs:>6}  {one.seconds / 60:>7.1f}  {shown}"
                         + (f" ({one.why})" if one.why else ""))  # fmt: skip
        return "\n".join([*lines, "", self.budget, self.promise, f"recsys fit {self.folder / 'best.py'} trains it"])


def tune(
    recipe: str | Path,
    trials: int = 20,
    *,
    folder: str | Path,
    ranges: Mapping[str, Any] | None = None,
    only: bool = False,
    fixed: Mapping[str, Any] | None = None,
    sampler: str = "tpe",
    prune: bool = True,
    minutes: float | None = None,
    seed: int = 0,
    progress: bool = True,
    keep: bool = False,
    **machine: Any,
) -> Tuned:
    """Search the knobs of a recipe for the best validation metric; a search that was stopped goes on.

    Args:
        recipe: a recipe by its name or file.
        trials: how many besides the recipe's own values, in all calls together.
        folder: where everything is kept.
        ranges, only: what is tried, see :func:`recsys.tune.space.space_of`.
        fixed: arguments of the recipe that stay.
        sampler: "tpe" or "random".
        prune: stop trials early that are below the median.
        minutes: begin no trial after so many minutes of this call.
        seed: of the sampler.
        keep: leave the run folders of all trials.
        machine: settings of training that change no result of the search, such as ``devices``.

    Raises:
        ImportError: optuna is not installed.
        ValueError: an argument out of range, a range of a name that the recipe lacks, one that is fixed as well, or
            nothing that succeeded.
        DataError: ``folder`` holds another search.
        BlockingIOError: another process is at it.
    """
    if trials < 0 or sampler not in SAMPLERS:
        raise ValueError(
            f"trials must be at least 0 and sampler one of {', '.join(SAMPLERS)}, found {trials}, {sampler!r}"
        )
    optuna = _optuna()
    path = find_recipe(str(recipe))
    function = load_recipe(path)
    space, fixed = space_of(function, ranges, only), dict(fixed or {})
    if both := sorted(space.keys() & (ranges or {}).keys() & fixed.keys()):
        raise ValueError(f"{both[0]} is to be tried and is fixed as well: leave one of the two out")
    space = {name: one for name, one in space.items() if name not in fixed}
    home = Path(folder).absolute()
    home.mkdir(parents=True, exist_ok=True)
    lock = hold(home / ".lock", home)
    try:
        facts = {"recipe": path.stem, "source": hashlib.sha256(path.read_bytes()).hexdigest(), "sampler": sampler,
                 "space": {name: str(one) for name, one in space.items()}, "fixed": fixed, "seed": seed}  # fmt: skip
        _same_search(home, facts)
        work = _Search(function, space, fixed, home, machine, progress)
        own = work.own()
        study = _study(optuna, home, sampler, seed, prune)
        _revive(optuna, study)
        began = time.monotonic()
        while len(_over(optuna, study)) < trials:
            if minutes is not None and time.monotonic() - began > 60 * minutes:
                break
            work.one(optuna, study, own, prune)
            if not keep:
                _tidy(home, own, _trials(optuna, study))
        found = [own, *_trials(optuna, study)]
    finally:
        lock.release()
    whole = [one for one in found if one.state == "complete" and one.value is not None]
    if not whole:
        raise ValueError(f"no trial succeeded, the first one failed with: {found[0].why or 'nothing was validated'}")
    best = max(whole, key=lambda one: (one.value, -one.number))
    tuned = Tuned(best, found, work.metric, space, Path(folder))
    _write_best(home, path, function, fixed, tuned)
    write_text(home / "tune.txt", f"{tuned}\n")
    _write_page(home, path.stem, tuned)
    return tuned


class _Search:
    """Trains one configuration after another."""

    def __init__(
        self, function: Callable[..., Any], space: Space, fixed: dict[str, Any], home: Path, machine: dict[str, Any],
        progress: bool,
    ) -> None:  # fmt: skip
        self.function, self.space, self.fixed, self.home = function, space, fixed, home
        self.machine, self.progress, self.metric = machine, progress, ""

    def own(self) -> Trial:
        """The recipe's own values, from what is kept of them if they were tried before."""
        kept = self.home / "own.json"
        if kept.is_file():
            told = json.loads(kept.read_text(encoding="utf-8"))
            self.metric = told.pop("metric")
            return Trial(-1, {}, **told)
        found = self._tried(-1, {}, None)
        told = {"state": found.state, "value": found.value, "epochs": found.epochs, "seconds": found.seconds}
        write_text(kept, json.dumps({**told, "why": found.why, "metric": self.metric}, indent=1))
        return found

    def one(self, optuna: Any, study: Any, own: Trial, prune: bool) -> None:
        """Ask for a trial, and tell how it ended."""
        asked = study.ask()
        values = {name: one.draw(asked, name) for name, one in self.space.items()}
        found = self._tried(asked.number, values, asked if prune else None)
        asked.set_user_attr("epochs", found.epochs)
        asked.set_user_attr("seconds", found.seconds)
        asked.set_user_attr("why", found.why)
        asked.set_user_attr("value", found.value)
        states = {"complete": "COMPLETE", "pruned": "PRUNED", "failed": "FAIL"}
        study.tell(
            asked.number, found.value if found.state == "complete" else None,
            state=getattr(optuna.trial.TrialState, states[found.state]),
        )  # fmt: skip

    def _tried(self, number: int, values: dict[str, Any], asked: Any) -> Trial:
        """Train the recipe with these values; an error is that of the trial alone."""
        name = "own" if number < 0 else _place(values)
        if self.progress:
            shown = ", ".join(f"{key} {_short(value)}" for key, value in values.items())
            print(f"tune: {name} {shown or 'with its own values'}", file=sys.stderr, flush=True)
        began, watch = time.monotonic(), _Watch(asked)
        try:
            run = self.function(**{**self.fixed, **values})
            callbacks = [*run.training.callbacks, watch]
            fitted = run.fit(self.home / name, callbacks=callbacks, progress=self.progress, **self.machine)
            self.metric = fitted.best.get("metric") or self.metric
            value, epochs = fitted.best.get("value"), len(fitted.history)
            state = "pruned" if watch.pruned else "complete"
            why = ""
            if value is None or not math.isfinite(value):
                state, value, why = "failed", None, "nothing was validated"
        except Exception as error:
            state, value, epochs, why = "failed", None, watch.epochs, f"{type(error).__name__}: {error}"[:200]
            if self.progress:
                print(f"tune: {name} failed, and the search goes on: {why}", file=sys.stderr, flush=True)
        return Trial(number, values, state, value, epochs, round(time.monotonic() - began, 1), why)


def _place(values: Mapping[str, Any]) -> str:
    """Where the run of these values lies: a trial that was killed goes on there."""
    return f"trials/{hashlib.sha256(json.dumps(dict(values), sort_keys=True).encode()).hexdigest()[:12]}"


class _Watch:
    """A callback that tells optuna of each epoch, and stops what it prunes."""

    def __init__(self, asked: Any) -> None:
        self.asked, self.pruned, self.epochs = asked, False, 0

    def __call__(self, epoch: Epoch) -> bool:
        self.epochs = epoch.epoch
        best = None if epoch.best is None else epoch.best.get("value")
        if self.asked is None or best is None:
            return False
        self.asked.report(float(best), epoch.epoch)
        if self.asked.should_prune():
            self.pruned = True
            raise StopTraining("below the median of the other trials")
        return False


def _optuna() -> Any:
    try:
        import optuna
    except ImportError as error:
        raise ImportError("tune needs optuna: pip install 'recsys[tune]'") from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


def _study(optuna: Any, home: Path, sampler: str, seed: int, prune: bool) -> Any:
    """The study of a folder, made or gone on with."""
    from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock

    file = str(home / "study.log")
    for left in home.glob("study.log.lock*"):  # of a process that was killed; nobody else is at work here
        left.unlink()
    storage = optuna.storages.JournalStorage(JournalFileBackend(file, lock_obj=JournalFileOpenLock(file)))
    made = {"tpe": optuna.samplers.TPESampler, "random": optuna.samplers.RandomSampler}[sampler]
    median = optuna.pruners.MedianPruner(n_startup_trials=STARTUP, n_warmup_steps=STARTUP)
    return optuna.create_study(
        study_name="recsys", storage=storage, direction="maximize", load_if_exists=True, sampler=made(seed=seed),
        pruner=median if prune else optuna.pruners.NopPruner(),
    )  # fmt: skip


def _revive(optuna: Any, study: Any) -> None:
    """Trials whose process was killed are asked for again, with the same values; their runs go on where they were."""
    running = optuna.trial.TrialState.RUNNING
    for one in study.get_trials(deepcopy=False, states=(running,)):
        study.tell(one.number, state=optuna.trial.TrialState.FAIL)
        again = one.user_attrs.get("again", 0)
        if one.params and again < RETRIES:
            study.enqueue_trial(one.params, user_attrs={"again": again + 1})


def _over(optuna: Any, study: Any) -> list[Any]:
    """The trials that are over, and not because their process was killed."""
    return [one for one in study.get_trials(deepcopy=False) if one.state.is_finished() and "seconds" in one.user_attrs]


def _trials(optuna: Any, study: Any) -> list[Trial]:
    names = {"COMPLETE": "complete", "PRUNED": "pruned", "FAIL": "failed"}
    return [
        Trial(
            one.number, dict(one.params), names[one.state.name], one.user_attrs["value"], one.user_attrs["epochs"],
            one.user_attrs["seconds"], one.user_attrs["why"],
        )
        for one in _over(optuna, study)
    ]  # fmt: skip


def _tidy(home: Path, own: Trial, trials: list[Trial]) -> None:
    """Remove the run folders of all trials that are over but the best."""
    whole = [one for one in (own, *trials) if one.state == "complete" and one.value is not None]
    best = max(whole, key=lambda one: (one.value, -one.number), default=None)
    for one in trials:
        if best is None or _place(one.values) != _place(best.values):
            remove(home / _place(one.values))


def _same_search(home: Path, facts: dict[str, Any]) -> None:
    """Raise DataError if the folder holds another search; else note this one."""
    file = home / "tune.json"
    now = json.loads(json.dumps(facts, default=str))
    if file.is_file():
        before = json.loads(file.read_text(encoding="utf-8"))
        if differing := list(differences(before, now)):
            shown = "\n  ".join(differing[:5])
            raise DataError(f"{home} holds another search: name another folder, or delete it; it differs in\n  {shown}")
        return
    others = [one.name for one in home.iterdir() if one.name != ".lock"]
    if others:
        raise DataError(f"{home} holds {others[0]} and no search: name another folder")
    write_text(file, json.dumps(now, indent=1))


def _write_best(home: Path, path: Path, function: Callable[..., Any], fixed: dict[str, Any], tuned: Tuned) -> None:
    """A recipe of the best values, with the recipe that it calls beside it."""
    module = f"tuned_{path.stem}"
    ours = shipped("configs").resolve()
    for name, source in imported(path).items():
        if source.resolve().parent != ours:
            (home / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, home / name)
    shutil.copyfile(path, home / f"{module}.py")
    values = {name: given for name, given in {**fixed, **tuned.best.values}.items() if name != "seed"}
    seeded = "seed" in inspect.signature(function).parameters
    told = [f"{name}={given!r}" for name, given in values.items()] + (["seed=seed"] if seeded else [])
    own = tuned.trials[0].value
    signature = f"seed: int = {fixed.get('seed', 0)}" if seeded else ""
    than = "" if own is None else f" (its own values: {own:.4f})"
    what = f"The best of {len(tuned.trials)} trials of {path.stem}"
    lines = [
        f'"""{what} by validation {tuned.metric}, {tuned.best.value:.4f}{than}.',
        "",
        "Test was not looked at.",
        '"""',
        "",
        f"import {module}",
        "",
        "from recsys.runs.knobs import flat",
        "",
        "",
        f"def run({signature}):",
        '    """The recipe with these values.',
        *(["", "    Args:", "        seed: random seed."] if seeded else []),
        '    """',
        f"    return flat({module}.run)({', '.join(told)})",
        "",
    ]
    write_text(home / "best.py", "\n".join(lines))


def _write_page(home: Path, recipe: str, tuned: Tuned) -> None:
    """``report.html``: the budget, what it brought, and every trial."""
    from recsys.pages.run import write_html

    ended = [one for one in tuned.trials if one.value is not None]
    ended.sort(key=lambda one: one.value or 0.0, reverse=True)
    rows = [
        {"trial": "own" if one.number < 0 else one.number, tuned.metric: one.value, "state": one.state,
         "epochs": one.epochs, "minutes": round(one.seconds / 60, 2),
         **{name: one.values.get(name) for name in tuned.space}, "why": one.why}
        for one in [*ended, *(one for one in tuned.trials if one.value is None)]
    ]  # fmt: skip
    names = {"own" if one.number < 0 else f"trial {one.number}": one.value for one in ended}
    extras: dict[str, Any] = {
        "Budget": [tuned.budget, tuned.promise],
        "Best values": {**tuned.best.values} or "the recipe's own",
        f"Validation {tuned.metric}": {"bars": names},
        "Trials": rows,
    }
    write_html(
        home / "report.html", f"Tuning of {recipe}", extras=extras,
        repeat={"command": f"recsys fit {tuned.folder / 'best.py'}"},
    )  # fmt: skip


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
