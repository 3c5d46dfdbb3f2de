"""The quality tables from the results, and paired tests between run folders.

python benchmarks/quality/table.py                          all tables to stdout
python benchmarks/quality/table.py --write                  all tables into benchmarks/quality/README.md and README.md
python benchmarks/quality/table.py --compare RUN RUN ...    paired differences against the first
"""

from __future__ import annotations

import argparse
import datetime
import json
from pathlib import Path

from sections import interval, sections

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results"
SPEED = HERE.parent / "speed" / "results"
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
        put(HERE / "README.md", "\n\n".join([quality(), *map(str, sections()), *tuned]))
        begun = [section.text(measured=True) for section in sections() if section.found]
        put(HERE.parents[1] / "README.md", "\n\n".join([quality(), *map(folded, [*begun, *speed])]))
    else:
        print("\n\n".join([quality(), *map(str, sections())]))


def quality() -> str:
    """The table of all single results."""
    head = "| result | NDCG@10 | HR@10 | seeds | epochs | seconds | peak GiB | threads | date | command |"
    rows = [row(json.loads(path.read_text())) for path in sorted(RESULTS.glob("*.json"))]
    return "\n".join([head, "|---" * 10 + "|", *rows])


def folded(text: str) -> str:
    """A section that shows its heading, and the rest when asked to."""
    head, _, body = text.partition("\n")
    return f"<details><summary>{head.lstrip('# ')}</summary>\n\n{body.strip()}\n\n</details>"


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


if __name__ == "__main__":
    main()
