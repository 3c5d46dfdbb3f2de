"""The quality tables from the results, and paired tests between run folders.

python benchmarks/quality/table.py                          the tables of single results and of encoders to stdout
python benchmarks/quality/table.py --write                  all tables into benchmarks/quality/README.md and README.md
python benchmarks/quality/table.py --compare RUN RUN ...    paired differences against the first
"""

from __future__ import annotations

import argparse
import datetime
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from plan import DATA, KEPT, PLAN, REAREC, REFERENCE, ROWS, Row, recbole

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results"
SPEED = HERE.parent / "speed" / "results"
RAN = "`python benchmarks/quality/encoders.py"  # stands under a table that has a result
BEGIN, END = "<!-- tables:begin -->", "<!-- tables:end -->"


def main() -> None:
    """Print the tables that the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--compare", nargs="+", metavar="RUN")
    parser.add_argument("--save", metavar="NAME")
    parser.add_argument("--write", action="store_true")
    chosen = parser.parse_args()
    if chosen.compare:
        from recsys.eval.compare import compare
        from recsys.eval.report import Report

        names = [Path(run).name for run in chosen.compare]
        found = str(compare(*map(Report.load, chosen.compare), names=names, metrics=("ndcg@10",)))
        print(found)
        if chosen.save:
            call = f"python benchmarks/quality/table.py --save {chosen.save} --compare {' '.join(chosen.compare)}"
            today = datetime.date.today().isoformat()
            (RESULTS / f"{chosen.save}.md").write_text(f"`{call}`, {today}:\n\n```\n{found}\n```\n")
    elif chosen.write:
        tuned = [path.read_text().strip() for path in sorted(RESULTS.glob("*.md"))]
        speed = [path.read_text().strip().replace("# ", "### ", 1) for path in sorted(SPEED.glob("*.md"))]
        speed = [text.replace("\n## ", "\n#### ") for text in speed]
        put(HERE / "README.md", "\n\n".join([quality(), *encoders(), *tuned]))
        begun = [text for text in encoders() if RAN in text]
        put(HERE.parents[1] / "README.md", "\n\n".join([quality(), *begun, *speed]))
    else:
        print("\n\n".join([quality(), *encoders()]))


def quality() -> str:
    """The table of all single results."""
    head = "| result | NDCG@10 | HR@10 | seeds | epochs | seconds | peak GiB | threads | date | command |"
    rows = [row(json.loads(path.read_text())) for path in sorted(RESULTS.glob("*.json"))]
    return "\n".join([head, "|---" * 10 + "|", *rows])


def put(path: Path, text: str) -> None:
    """Replace what stands between the markers of a file."""
    before, _, rest = path.read_text().partition(BEGIN)
    _, _, after = rest.partition(END)
    path.write_text(f"{before}{BEGIN}\n{text}\n{END}{after}")


def row(result: dict) -> str:
    """One line of the table of single results."""
    cells = [interval(result["metrics"][metric]) for metric in ("ndcg@10", "hr@10")]
    runs = result["runs"]
    mean = {key: sum(run[key] for run in runs) / len(runs) for key in ("epochs", "seconds", "peak_gib")}
    return (
        f"| {result['name']} | {' | '.join(cells)} | {len(runs)} | {mean['epochs']:.0f} | {mean['seconds']:.0f} "
        f"| {mean['peak_gib']:.2f} | {runs[0]['threads']} | {result['date']} | `{result['command']}` |"
    )


def interval(found: dict) -> str:
    """A mean with its interval, and what the interval is over."""
    return f"{found['mean']:.4f} [{found['low']:.4f}, {found['high']:.4f}] ({found['over']})"


def encoders() -> list[str]:
    """The tables of encoders: per data set all of them, ReaRec against its base, and those of the other protocol."""
    kept = "history kept, one target per prefix (the protocol of the Mamba papers)"
    tables = []
    for data in DATA:
        tables.append(table(f"Encoders on {data}", data, PLAN, "reference", f"minus {REFERENCE}"))
        for title, rows in ((f"ReaRec on {data}", REAREC), (f"{data}, {kept}", KEPT)):
            there = [entry for entry in rows if data in entry.data]
            if there:
                tables.append(table(title, data, there, "base", "minus its base"))
    return tables


def table(title: str, data: str, rows: Sequence[Row], against: str, minus: str) -> str:
    """The rows on one data set, further models of RecBole that were run included; what was not run says so.

    ``against`` is the field of a row that names what it is compared with, ``minus`` how the column is headed.
    """
    results = {path.stem: json.loads(path.read_text()) for path in (RESULTS / "encoders" / data).glob("*.json")}
    more = [recbole(name[8:]) for name in sorted(results) if name.startswith("recbole-") and name not in ROWS]
    planned = [entry for entry in rows if data in entry.data] + (more if rows is PLAN else [])
    found = {entry.name: results[entry.name] for entry in planned if entry.name in results}
    differences = {
        entry.name: found[entry.name]["paired"].get(getattr(entry, against)) for entry in planned if entry.name in found
    }
    chances = corrected(differences)
    lines = [
        f"| encoder | NDCG@10 [95%] | HR@10 [95%] | NDCG@10 {minus} [95%] | p (Holm) "
        "| seeds | epochs | minutes | peak GiB | tuning |",
        "|---" * 10 + "|",
    ]
    for entry in planned:
        if entry.name in found:
            lines.append(line(found[entry.name], differences[entry.name], chances.get(entry.name)))
        else:
            reason = entry.unrun.get(data, "")
            lines.append(f"| {entry.name} | not run{': ' if reason else ''}{reason} |" + " |" * 8)
    return "\n".join([f"### {title}", "", *lines, *(["", origin(data, list(found.values()))] if found else [])])


def line(result: dict, paired: dict | None, chance: float | None) -> str:
    """One encoder; ``paired`` is its comparison, if there is one, and ``chance`` its corrected p."""
    runs = result["runs"]
    difference, p = "", ""
    if paired is not None and chance is not None:
        change = paired["metrics"]["ndcg@10"]
        difference = f"{change['difference']:+.4f} [{change['low']:+.4f}, {change['high']:+.4f}]"
        difference += f" ({len(paired['seeds'])} common seeds)" if len(paired["seeds"]) != len(runs) else ""
        p = "<.0001" if chance < 0.0001 else f"{chance:.4f}"
    mean = {key: sum(run[key] for run in runs) / len(runs) for key in ("epochs", "peak_gib")}
    minutes = sum(run["train_seconds"] + run["validation_seconds"] for run in runs) / len(runs) / 60
    graphics = [run["gpu_peak_gib"] for run in runs if run["gpu_peak_gib"] is not None]
    peak = f"{mean['peak_gib']:.2f}" + (f" + GPU {max(graphics):.2f}" if graphics else "")
    seeds = f"{len(runs)} ({result['fewer']})" if result["fewer"] else str(len(runs))
    cells = [result["name"], *(interval(result["metrics"][metric]) for metric in ("ndcg@10", "hr@10")), difference, p]
    return f"| {' | '.join(cells)} | {seeds} | {mean['epochs']:.0f} | {minutes:.1f} | {peak} | {result['tuning']} |"


def corrected(differences: dict[str, dict | None]) -> dict[str, float]:
    """The p of NDCG@10 of each comparison, corrected for all of a table (Holm)."""
    from recsys.eval.statistics import holm

    chances = {name: found["metrics"]["ndcg@10"]["p"] for name, found in differences.items() if found is not None}
    return dict(zip(chances, holm(np.array(list(chances.values()))).tolist(), strict=True))


def origin(data: str, results: Sequence[dict]) -> str:
    """Where a table's numbers come from."""

    def all_of(key: str) -> str:
        values = {run[key] for result in results for run in result["runs"] if key in run}
        return ", ".join(map(str, sorted(values)))

    versions: dict[str, set[str]] = {}
    for run in (run for result in results for run in result["runs"]):
        for library, version in run.get("versions", {}).items():
            versions.setdefault(library, set()).add(version)
    told = ", ".join(f"{library} {'/'.join(sorted(found))}" for library, found in versions.items())
    users: Any = results[0]["runs"][0]["users"]
    return (
        f"{RAN} --data {data}`, {all_of('date')}; {all_of('machine')}, "
        f"{all_of('device')}, threads {all_of('threads')}; {told}; {users:,} users."
    )


if __name__ == "__main__":
    main()
