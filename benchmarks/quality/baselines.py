"""Choose the baselines' knobs on validation, then report them on test: no baseline is left untuned.

    python benchmarks/quality/baselines.py ml-100k

Leave-last, full ranking, history excluded. Every setting of the grid is ranked on the validation part; of each
baseline the best one is ranked on the test part, beside its default. Written to
``benchmarks/quality/results/baselines-NAME.md``.
"""

from __future__ import annotations

import argparse
import datetime
import platform
from collections.abc import Iterator
from pathlib import Path

import recsys as rs
from recsys.recommenders.base import Ranker
from recsys.storage.parts import title

RESULTS = Path(__file__).parent / "results"


def main() -> None:
    """Tune and report on one data set."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="?", default="ml-100k")
    data = parser.parse_args().data
    split = rs.load(data).split(rs.LeaveLast())
    lines = ["| baseline | validation NDCG@10 | test NDCG@10 [95%] |", "|---|---|---|"]
    for group in grid():
        ranked = [(measure(model, split, "valid")[0], model) for model in group]
        best = max(ranked, key=lambda pair: pair[0])
        for value, model in {id(pair[1]): pair for pair in (ranked[0], best)}.values():
            mean, (low, high) = measure(model, split, "test")
            lines.append(f"| {title(model)} | {value:.4f} | {mean:.4f} [{low:.4f}, {high:.4f}] |")
            print(lines[-1], flush=True)
    stamp = f"{datetime.date.today().isoformat()}, Python {platform.python_version()}, recsys {rs.__version__}"
    text = f"`python benchmarks/quality/baselines.py {data}`, {stamp}; {len(split.test):,} users.\n\n" + "\n".join(
        lines
    )
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"baselines-{data}.md").write_text(text + "\n")


def grid() -> Iterator[list[Ranker]]:
    """For each baseline its settings, the default first."""
    yield [rs.Popularity()]
    kept = [(decay, shrink) for decay in (1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4) for shrink in (10.0, 0.0)]
    yield [rs.ItemKNN(decay=decay, shrink=shrink) for decay, shrink in kept]
    yield [rs.EASE(l2=l2) for l2 in (500.0, 50.0, 100.0, 200.0, 1000.0)]
    yield [rs.Markov(smoothing=smoothing) for smoothing in (1.0, 0.1, 10.0)]


def measure(model: Ranker, split: rs.data.split.Split, part: str) -> tuple[float, tuple[float, float]]:
    """NDCG@10 of a baseline, with its interval."""
    rs.fit(model, split, validate_every=0, progress=False)
    report = rs.evaluate(model, getattr(split, part), metrics=["ndcg@10"], progress=False)
    return report.mean("ndcg@10"), report.interval("ndcg@10")


if __name__ == "__main__":
    main()
