"""What follows training: the final report, the baselines beside it, the paired comparison, one page of all of it."""

from __future__ import annotations

import json
import re
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from recsys.errors import DataWarning
from recsys.eval.compare import Comparison, compare
from recsys.eval.evaluate import evaluate
from recsys.eval.report import Report, align, number
from recsys.eval.scoring import require_same_items
from recsys.hooks import having
from recsys.pages.data import data_section
from recsys.pages.examples import examples, examples_section
from recsys.pages.run import write_html
from recsys.recommenders.parts import Composed
from recsys.runs.read import read_config
from recsys.runs.write import BASELINES, METRICS, clear_baselines
from recsys.storage.files import write_text
from recsys.storage.layout import MANIFEST
from recsys.storage.parts import title
from recsys.storage.reading import read_json
from recsys.train.fit import Fitted, fit
from recsys.train.settings import Training

if TYPE_CHECKING:
    from recsys.data.split import Split
    from recsys.train.run import Run


SECTIONS, METRIC = "sections.json", "ndcg@10"


@dataclass(frozen=True)
class Results:
    """The test report of a run's model first, then those of its baselines, and how they differ."""

    reports: tuple[Report, ...]
    comparison: Comparison | None

    def __str__(self) -> str:
        first = self.reports[0]
        if self.comparison is None:
            return str(first)
        names = first.primary()
        rows = [["", *(f"{name} [95%]" for name in names), f"p ({self.comparison.overall[0].metric}, Holm)"]]
        for report in self.reports:
            cells = [f"{number(report.mean(name))} [{', '.join(map(number, report.interval(name)))}]" for name in names]
            found = [row.p_holm for row in self.comparison.overall if row.other == report.name]
            rows.append([report.name, *cells, f"{found[0]:.4f}" if found else ""])
        lines = [first.header(), "", align(rows), "", f"paired differences from {first.name}:"]
        return "\n".join([*lines, align(self.comparison.table())])


def curves(history: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What of the training log is worth a chart: the losses and the validation metric, not times and counters."""
    return [{key: row[key] for key in row if key in ("epoch", "loss") or "@" in key} for row in history]


def sections(model: Any, split: Split) -> tuple[dict[str, Any], list[str]]:
    """What the parts of a trained model have to show in the report: its sections by heading, and what went wrong.

    A part that has a hook ``sections(model, split)`` returns contents by heading, as ``extras`` of
    :func:`recsys.pages.run.write_html`. It is called once, however often the part stands in the model, in evaluation
    mode and without gradients. A hook that fails costs its own section, not the run: the section holds the error.

    Raises:
        DataError: the item rows of the model are not those of the split.
    """
    require_same_items(model, split)
    found: dict[str, Any] = {}
    failures = []
    model.eval()
    for _, part in having(model, "sections", used=True):
        try:
            with torch.no_grad():
                shown = {str(heading): content for heading, content in dict(part.sections(model, split)).items()}
        except Exception as error:
            failures.append(f"{type(part).__name__}.sections failed: {type(error).__name__}: {error}")
            shown = {type(part).__name__: failures[-1]}
        for heading, content in shown.items():
            while heading in found:
                heading += " (again)"
            found[heading] = content
    return found, failures


def finish(run: Run, fitted: Fitted) -> Results:
    """Rank the test part with a fitted run's model and with its baselines, compare, and write what was found.

    The run folder, if there is one, gets ``per_user.parquet``, ``report.json``, ``baselines/`` and ``report.html``,
    which has the sections that parts of the model show (see :func:`sections`); ``sections.json`` holds them too. The
    baselines are fitted on training events only, like the model, or compared as they are if they were trained before;
    none is chosen by its test result. One that cannot be had is left out, with a warning.
    """
    name = run.name or type(getattr(run.model, "encoder", run.model)).__name__
    reports = [evaluate(fitted.model, run.split.test, name=name, users=run.split.users, **run.evaluate)]
    if fitted.folder is not None:
        reports[0].save(fitted.folder)
    failures = []
    for baseline in run.baselines:
        try:
            reports.append(_baseline(run, baseline))
        except Exception as error:  # the run itself is whole
            failures.append(f"the baseline {title(baseline)} is left out: {type(error).__name__}: {error}")
    comparison = compare(*reports, metrics=_asked(reports, _chosen_by(run, fitted))) if len(reports) > 1 else None
    if fitted.folder is not None:
        keep_baselines(fitted.folder, reports[1:])
        extras, failed = sections(fitted.model, run.split)
        failures += [f"{failure}; the report says so instead" for failure in failed]
        if extras:
            text = json.dumps(_plain(extras), indent=1, default=str, ensure_ascii=False)
            write_text(fitted.folder / SECTIONS, text.encode("utf-8", "replace").decode())
        page = _Page(fitted.folder, name, reports[0], reports[1:], comparison)
        failures += page.write(fitted.model, run.split, fitted.history, extras)
    for failure in failures:  # last, since a warning may be an error
        warnings.warn(failure, DataWarning, stacklevel=2)
    return Results(tuple(reports), comparison)


def renew(folder: Path, model: Any, split: Split, report: Report) -> Comparison | None:
    """Put a new report into a run folder, and on its page beside what training left there, see :func:`write_page`."""
    report.save(folder)
    return write_page(folder, report, model, split)


def write_page(
    folder: Path, report: Report, model: Any = None, split: Split | None = None, notes: Sequence[str] = ()
) -> Comparison | None:
    """Write ``report.html`` of a run folder anew, from ``report`` and from what training left there.

    The page keeps its curves, the sections of parts and, where ``report`` is over what the run's baselines were ranked
    on, the comparison with them; where it is not, it says why there is none.

    Args:
        model, split: for the examples, the data and the audit, which a page without them lacks.
        notes: what the page lacks, and why.
    """
    extras, kept, comparison = dict[str, Any](), list[Report](), None
    try:
        kept = kept_baselines(folder)
        if kept:
            comparison = compare(report, *kept, metrics=_asked([report, *kept], _metric(folder)))
    except (OSError, ValueError) as error:
        extras["No comparison with the baselines"] = f"They were ranked otherwise, or cannot be read: {error}"
        kept = []
    try:
        made = model is not None and split is not None
        extras |= _kept_sections(folder) or (sections(model, split)[0] if made and split is not None else {})
        history = _history(folder)
    except (OSError, ValueError, TypeError, AttributeError, RecursionError) as error:
        warnings.warn(f"{folder} is damaged, and its page lacks sections or curves: {error}", DataWarning, stacklevel=2)
        history = []
    page = _Page(folder, folder.resolve().name, report, kept, comparison)
    for failure in page.write(model, split, history, extras, notes):
        warnings.warn(failure, DataWarning, stacklevel=2)
    return comparison


@dataclass(frozen=True)
class _Page:
    """``report.html`` of a run folder; what cannot be shown costs its own section, not the page."""

    folder: Path
    name: str
    report: Report
    baselines: Sequence[Report]
    comparison: Comparison | None

    def write(
        self, model: Any, split: Split | None, history: list[dict[str, Any]], extras: Any, notes: Sequence[str] = ()
    ) -> list[str]:
        """Write the page, and say what could not be shown."""
        failures: list[str] = []
        data = None if split is None else _shown(lambda: data_section(split), "the data", failures)
        part = None if split is None else {"valid": split.valid, "test": split.test}.get(self.report.meta["part"])
        people = None
        if model is not None and part is not None:
            people = _shown(lambda: examples_section(examples(model, part, self.report)), "the examples", failures)
        repeat = _shown(lambda: _repeat(self.folder), "how to repeat it", failures)
        write_html(
            self.folder / "report.html", self.name, self.report, self.comparison, curves(history), _audit(split),
            extras, baselines=self.baselines, data=data, examples=people, repeat=repeat, notes=[*notes, *failures],
        )  # fmt: skip
        return failures


def _shown(make: Callable[[], Any], what: str, failures: list[str]) -> Any:
    """What ``make`` gives, or None and a line in ``failures``."""
    try:
        return make()
    except Exception as error:  # as with sections of parts: the run is whole
        failures.append(f"report.html lacks {what}: {type(error).__name__}: {error}")
        return None


def _repeat(folder: Path) -> dict[str, Any]:
    """Of the manifest of a run: the command, and what it ran on."""
    manifest = read_json(folder / MANIFEST, "copy the run folder again")
    data = manifest.get("data") or {}
    found = {key: manifest.get(key) for key in ("command", "seed", "started", "commit", "versions", "machine")}
    return found | {"data": {key: data.get(key) for key in ("name", "hash")}}


def _baseline(run: Run, baseline: Any) -> Report:
    began, asked = time.monotonic(), run.training
    alike = Training(exclude=asked.exclude, seed=asked.seed, validate_every=0, progress=False, init="fresh")
    trained = isinstance(baseline, Composed) and baseline.learned
    if not trained:
        fit(baseline, run.split, alike)
    name = type(baseline.encoder).__name__ if trained else title(baseline)
    report = evaluate(baseline, run.split.test, name=name, users=run.split.users, **run.evaluate)
    what = "evaluated as it is" if trained else "fitted and evaluated"
    print(f"{report.name}: {what} in {time.monotonic() - began:.1f} s", file=sys.stderr)
    return report


def _asked(reports: list[Report], metric: str) -> str | None:
    """What to compare in: the metric the run was chosen by, where all reports have it, else the usual ones."""
    shared = [name for name in reports[0].metrics if all(name in other.metrics for other in reports)]
    if metric in shared:
        return metric
    return None if set(reports[0].primary()) & set(shared) or not shared else shared[0]


def _chosen_by(run: Run, fitted: Fitted) -> str:
    return str(run.training.metric or fitted.best.get("metric") or METRIC)


def _metric(folder: Path) -> str:
    settings = read_config(folder).get("settings")
    found = settings.get("metric") if isinstance(settings, dict) else None
    return found if isinstance(found, str) else METRIC


def _audit(split: Split | None) -> dict[str, str] | None:
    if split is None or split.audit is None:
        return None
    signs = {"ok": "ok", "note": "worth knowing", "leak": "leak"}
    return {one.name: f"{signs.get(one.level, one.level)}: {one.text}" for one in split.audit.findings}


def _kept_sections(folder: Path) -> dict[str, Any] | None:
    path = folder / SECTIONS
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else None


def _history(folder: Path) -> list[dict[str, Any]]:
    path = folder / METRICS
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    return [dict(json.loads(line)) for line in lines]


def _plain(content: Any) -> Any:
    """Contents of a section as JSON has them: every key a string, numpy's numbers numbers."""
    if isinstance(content, Mapping):
        return {str(key): _plain(value) for key, value in content.items()}
    if isinstance(content, (list, tuple)):
        return [_plain(value) for value in content]
    return content.item() if isinstance(content, np.generic) else content


def keep_baselines(run: Path, reports: Iterable[Report]) -> None:
    """Write reports into ``baselines/`` of a run folder, in place of those of before."""
    clear_baselines(run)
    for at, report in enumerate(reports):
        plain = re.sub(r"[^\w.=-]+", "-", report.name, flags=re.ASCII).strip("-.")[:60]
        report.save(run / BASELINES / f"{at}-{plain}")


def kept_baselines(run: Path) -> list[Report]:
    """The reports that :func:`keep_baselines` wrote, in the same order.

    Raises:
        DataError: one of them is damaged.
    """
    folders = (path for path in (run / BASELINES).glob("*-*") if path.is_dir())
    return [Report.load(path) for path in sorted(folders, key=lambda path: (len(path.name.split("-")[0]), path.name))]
