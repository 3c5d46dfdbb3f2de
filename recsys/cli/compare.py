"""``recsys compare``: runs against each other, user by user."""

from __future__ import annotations

from pathlib import Path


def compare(runs: tuple[Path, ...], /, metrics: tuple[str, ...] = (), html: Path | None = None) -> None:
    """Compare runs on the same users: differences, confidence intervals, corrected p-values.

    Args:
        runs: two or more run folders, evaluated alike; the first is the reference. Baselines of a run are folders in
            RUN/baselines.
        metrics: metrics to compare, such as ndcg@10 (default: NDCG, recall and MRR at 10, or at the longest list).
        html: write a page of it to this file: differences, segments, and who wins for which users, of whom it names
            some by their raw ids (default: none).
    """
    from recsys.eval.compare import compare as contrast
    from recsys.eval.report import Report

    if len(set(runs)) < 2:
        raise ValueError(
            f"compare needs two different run folders or more, found {', '.join(map(str, runs)) or 'none'}"
        )
    reports = [Report.load(run) for run in runs]
    found = contrast(*reports, names=[str(run) for run in runs], metrics=metrics or None)
    if html is not None:
        from recsys.pages.comparison import write_comparison

        write_comparison(html, reports, found)
    print(found)
    if html is not None:
        print(f"\n{html}")
