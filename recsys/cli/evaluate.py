"""``recsys evaluate``: rank a part of the split a run was trained on."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from recsys.cli.arguments import importable

if TYPE_CHECKING:
    from recsys.data.split import HeldOut


def evaluate(
    run: Path,
    /,
    part: Literal["valid", "test"] = "test",
    k: tuple[int, ...] | None = None,
    exclude: Literal["history", "none", "history-except-targets"] = "history",
    users: int | None = None,
    split: Path | None = None,
    trust: tuple[str, ...] = (),
) -> None:
    """Evaluate a run on its test or validation part, and keep the report.

    The report is written into the run folder, in place of the last one.

    Args:
        run: the run folder.
        part: part of the split that is evaluated.
        k: cut-offs of the metrics (default: 1 5 10 20).
        exclude: seen items to leave out; history-except-targets ranks a target that repeats the history.
        users: evaluate a random sample of this many users; the report says so (default: all).
        split: folder of a saved split with the same items (default: the split the run was trained on).
        trust: modules outside recsys whose classes the model may use; their code is run (default: none).
    """
    from recsys.eval.evaluate import evaluate as rank
    from recsys.runs.read import load_run
    from recsys.runs.split import split_of
    from recsys.train.results import renew

    model = load_run(run, importable(trust))
    found = split_of(run, model, split)
    held_out: HeldOut = found.test if part == "test" else found.valid
    report = rank(model, held_out, k=k, exclude=exclude, sample=users, name=run.resolve().name)
    renew(run, model, found, report)
    print(report)
