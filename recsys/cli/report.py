"""``recsys report``: the page of a run, or of all recorded results, made anew."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from recsys.cli.arguments import importable

if TYPE_CHECKING:
    from recsys.data.split import Split


def report(folder: Path, /, html: Path | None = None, split: Path | None = None, trust: tuple[str, ...] = ()) -> None:
    """Write the page of a run, or the leaderboard of a folder of recorded results.

    Nothing is trained or ranked: a run's page is made from its folder, from its split (data and audit) and, for the
    examples, from its model.

    Args:
        folder: a run folder, or a folder of recorded results such as benchmarks.
        html: where a leaderboard goes (default: leaderboard.html in the folder). A run has its page in report.html.
        split: folder of the run's split (default: the one it was trained on).
        trust: modules outside recsys whose classes the model may use; their code is run (default: none).
    """
    from recsys.storage.folders import MANIFEST
    from recsys.storage.kinds import missing
    from recsys.storage.layout import KIND

    if not folder.is_dir():
        raise FileNotFoundError(missing(folder, KIND))
    if (folder / MANIFEST).is_file():
        if html is not None:
            raise ValueError(
                f"--html is for a leaderboard; the page of a run is {folder / 'report.html'}: leave it away"
            )
        _of_run(folder, split, importable(trust))
        print(folder / "report.html")
        return
    from recsys.pages.leaderboard import write_leaderboard
    from recsys.pages.recorded import read_recorded

    found, path = read_recorded(folder), html or folder / "leaderboard.html"
    write_leaderboard(path, found)
    print(f"{path}: {len(found.results):,} results, {len(found.tables):,} tables of {found.files:,} files")
    for name, reason in found.others:
        print(f"not shown: {name}: {reason}")


def _of_run(folder: Path, given: Path | None, trust: tuple[str, ...]) -> None:
    from recsys.eval.report import Report
    from recsys.runs.read import load_run, read_config
    from recsys.runs.split import split_of
    from recsys.train.results import write_page

    read_config(folder)  # refuses folders of other kinds
    found = Report.load(folder)
    model: Any = None
    split: Split | None = None
    notes = []
    try:
        model = load_run(folder, trust)
        split = split_of(folder, model, given)
    except (OSError, ValueError, ImportError) as error:
        if given is not None:
            raise
        notes.append(f"Without data, audit and examples: {error}")
        print(f"{folder}: {notes[0]}")
    write_page(folder, found, model, split, notes)
