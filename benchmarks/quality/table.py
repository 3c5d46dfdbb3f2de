"""The quality tables from the results, and paired tests between run folders.

python benchmarks/quality/table.py                          writes benchmarks/quality/README.md's table to stdout
python benchmarks/quality/table.py --compare RUN RUN ...    paired differences against the first
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

RESULTS = Path(__file__).parent / "results"


def main() -> None:
    """Print the tables that the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--compare", nargs="+", metavar="RUN")
    runs = parser.parse_args().compare
    if runs:
        from recsys.eval.compare import compare
        from recsys.eval.report import Report

        print(compare(*(Report.load(run) for run in runs), names=runs, metrics=("ndcg@10",), segments=False))
        return
    print("| result | NDCG@10 | HR@10 | seeds | epochs | seconds | peak GiB | date | command |")
    print("|---|---|---|---|---|---|---|---|---|")
    for path in sorted(RESULTS.glob("*.json")):
        print(row(json.loads(path.read_text())))


def row(result: dict) -> str:
    """One line of the table."""
    cells = []
    for metric in ("ndcg@10", "hr@10"):
        found = result["metrics"][metric]
        cells.append(f"{found['mean']:.4f} [{found['low']:.4f}, {found['high']:.4f}] ({found['over']})")
    runs = result["runs"]
    mean = {key: sum(run[key] for run in runs) / len(runs) for key in ("epochs", "seconds", "peak_gib")}
    return (
        f"| {result['name']} | {' | '.join(cells)} | {len(runs)} | {mean['epochs']:.0f} | {mean['seconds']:.0f} "
        f"| {mean['peak_gib']:.2f} | {result['date']} | `{result['command']}` |"
    )


if __name__ == "__main__":
    main()
