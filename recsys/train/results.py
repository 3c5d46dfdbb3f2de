"""What follows training: the final report, the baselines beside it, the paired comparison, one page of all of it."""

from __future__ import annotations

import json
import sys
import time
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from recsys.errors import DataWarning
from recsys.eval.compare import Comparison, compare
from recsys.eval.evaluate import evaluate
from recsys.eval.html import write_html
from recsys.eval.report import Report, align, number
from recsys.eval.storage import write_text
from recsys.parts import title
from recsys.train.fit import Fitted, fit

if TYPE_CHECKING:
    from recsys.data.split import Split
    from recsys.train.run import Run


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
    """What of the training log is worth a chart: the losses and the validation metric, not clocks and counters."""
    return [{key: row[key] for key in row if key in ("epoch", "loss") or "@" in key} for row in history]


def sections(model: Any, split: Split) -> tuple[dict[str, Any], list[str]]:
    """What the parts of a trained model have to show in the report: its sections by heading, and what went wrong.

    A part that has a hook ``sections(model, split)`` returns contents by heading, as ``extras`` of
    :func:`recsys.eval.html.write_html`. It is called once, however often the part stands in the model, in evaluation
    mode and without gradients. A hook that fails costs its own section, not the run: the section holds the error.
    """
    parts = [*model.modules(), getattr(model, "targets", None), *getattr(model, "augmentations", ())]
    found: dict[str, Any] = {}
    failures = []
    model.eval()
    for part in {id(part): part for part in parts if hasattr(part, "sections")}.values():
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

    The run folder, if there is one, gets ``per_user.parquet``, ``report.json`` and ``report.html``, the last one with
    the sections that parts of the model have to show (see :func:`sections`), which ``sections.json`` holds as well. The
    baselines are fitted on training events only, like the model; none is chosen by its test result.
    """
    name = run.name or type(getattr(run.model, "encoder", run.model)).__name__
    reports = [evaluate(fitted.model, run.split.test, name=name, users=run.split.users, **run.evaluate)]
    if fitted.folder is not None:
        reports[0].save(fitted.folder)
    for baseline in run.baselines:
        began = time.monotonic()
        fit(baseline, run.split, exclude=run.settings.get("exclude", "history"), seed=run.settings.get("seed", 0),
            validate_every=0, progress=False)  # fmt: skip
        reports.append(evaluate(baseline, run.split.test, name=title(baseline), users=run.split.users, **run.evaluate))
        print(f"{reports[-1].name}: fitted and ranked in {time.monotonic() - began:.1f} s", file=sys.stderr)
    metric = run.settings.get("metric", "ndcg@10")
    comparison = compare(*reports, metrics=metric) if len(reports) > 1 else None
    if fitted.folder is not None:
        audit = None if run.split.audit is None else str(run.split.audit)
        extras, failures = sections(fitted.model, run.split)
        if extras:
            text = json.dumps(_plain(extras), indent=1, default=str, ensure_ascii=False)
            write_text(fitted.folder / "sections.json", text.encode("utf-8", "replace").decode())
        write_html(fitted.folder / "report.html", name, reports[0], comparison, curves(fitted.history), audit, extras)
        for failure in failures:  # last, since a warning may be an error
            warnings.warn(f"{failure}; the report says so in its place", DataWarning, stacklevel=2)
    return Results(tuple(reports), comparison)


def _plain(content: Any) -> Any:
    """Contents of a section as JSON has them: every key a string, numpy's numbers numbers."""
    if isinstance(content, Mapping):
        return {str(key): _plain(value) for key, value in content.items()}
    if isinstance(content, (list, tuple)):
        return [_plain(value) for value in content]
    return content.item() if isinstance(content, np.generic) else content
