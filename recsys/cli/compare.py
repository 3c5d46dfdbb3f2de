"""``recsys compare``: runs against each other, user by user."""

from __future__ import annotations

from pathlib import Path


def compare(runs: tuple[Path, ...], /, metrics: tuple[str, ...] = ()) -> None:
    """Compare runs on the same users: differences, confidence intervals, corrected p-values.

    Args:
        runs: two or more run folders, evaluated alike; the first is the reference. Baselines of a run are folders in
            RUN/baselines.
        metrics: metrics to compare, such as ndcg@10 (default: NDCG, recall and MRR at 10, or at the longest list).
    """
    from recsys.eval.compare import compare as contrast
    from recsys.eval.report import Report

    if len(set(runs)) < 2:
        raise ValueError(
            f"compare needs two different run folders or more, found {', '.join(map(str, runs)) or 'none'}"
        )
    reports = [Report.load(run) for run in runs]
    print(contrast(*reports, names=[str(run) for run in runs], metrics=metrics or None))
