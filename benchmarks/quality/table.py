"""The recorded tables as text, and paired tests between run folders.

python benchmarks/quality/table.py                          the tables of quality to stdout
python benchmarks/quality/table.py --write                  all tables into benchmarks/README.md, two into README.md
python benchmarks/quality/table.py --compare RUN RUN ...    paired differences against the first
"""

from __future__ import annotations

import argparse
import datetime
import json
from pathlib import Path

from front import choices, numbers
from sections import interval, sections

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
RESULTS = HERE / "results"
SPEED = HERE.parent / "speed" / "results"
UNBIASED = HERE.parent / "unbiased" / "results"
OWN = {  # headings of the tables that a script of their own wrote without one
    "baselines-ml-100k": "Baselines on ml-100k",
    "ml1m-softmax-bce": "Full softmax and binary cross-entropy on ml-1m, user by user",
}


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
        for path, blocks in documents().items():
            path.write_text(filled(path.read_text(), blocks))
    else:
        print("\n\n".join([quality(), *map(str, sections())]))


def documents() -> dict[Path, dict[str, str]]:
    """What stands between the markers of each document: path -> name of the markers -> text."""
    return {
        ROOT / "README.md": {"choices": choices(), "numbers": numbers()},
        HERE.parent / "README.md": {"quality": of_quality(), "speed": of_speed(), "unbiased": of_unbiased()},
    }


def of_quality() -> str:
    """Single results, the tables of encoders and auxiliaries, and those that a script of their own wrote."""
    found = [folded(str(section)) for section in sections() if section.found]
    missing = [str(section) for section in sections() if not section.found]
    own = []
    for path in sorted(RESULTS.glob("*.md")):
        text = path.read_text().strip()
        own.append(folded(text if text.startswith("#") else f"### {OWN.get(path.stem, path.stem)}\n\n{text}"))
    listed = "\n".join(["Planned, and not run yet:", "", *(f"- {line}" for line in missing)]) if missing else ""
    return "\n\n".join(filter(None, [quality(), *found, *own, listed]))


def of_speed() -> str:
    """The tables of speed and memory, as their scripts wrote them."""
    texts = [path.read_text().strip().replace("\n## ", "\n#### ") for path in sorted(SPEED.glob("*.md"))]
    return "\n\n".join(map(folded, texts))


def of_unbiased() -> str:
    """The tables of ranking under exposure bias, as their script wrote them."""
    titles = {
        "ml-100k": "Rel-MF on the semi-synthetic world of ml-100k, five draws of clicks",
        "ml-100k-20-seeds": "Rel-MF on the semi-synthetic world of ml-100k, twenty draws of clicks",
        "simulation-unbiased": "Rel-MF on simulated data with a uniform test set",
    }
    paths = sorted(UNBIASED.glob("*.md"), key=lambda path: path.stem)
    return "\n\n".join(folded(f"### {titles.get(path.stem, path.stem)}\n\n{path.read_text()}") for path in paths)


def quality() -> str:
    """The table of all single results."""
    head = "| result | NDCG@10 | HR@10 | seeds | epochs | seconds | peak GiB | threads | date | command |"
    rows = [row(json.loads(path.read_text())) for path in sorted(RESULTS.glob("*.json"))]
    return "\n".join([head, "|---" * 10 + "|", *rows])


def folded(text: str) -> str:
    """A section that shows its heading, and the rest when asked to."""
    head, _, body = text.partition("\n")
    return f"<details><summary>{head.lstrip('# ')}</summary>\n\n{body.strip()}\n\n</details>"


def filled(document: str, blocks: dict[str, str]) -> str:
    """A document with other text between its markers ``<!-- NAME:begin -->`` and ``<!-- NAME:end -->``.

    Raises:
        ValueError: the document lacks a pair of markers.
    """
    for name, text in blocks.items():
        begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
        if document.count(begin) != 1 or document.count(end) != 1:
            raise ValueError(f"expected one line {begin} and one line {end} in the document: put them back in")
        before, _, rest = document.partition(begin)
        document = f"{before}{begin}\n{text}\n{end}{rest.partition(end)[2]}"
    return document


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
