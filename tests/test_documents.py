"""What the README and docs/ show runs as it is printed, and the recorded tables stand in them as they were recorded."""

from __future__ import annotations

import importlib
import re
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from recsys.cli import main

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
pytestmark = pytest.mark.skipif(not PAGES[0].is_file(), reason="the documents are not here")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the files that the examples name: a log in which the next item mostly follows from the last one."""
    generator = np.random.default_rng(0)
    lines, users = ["uid,sku,ts"], ["user,item,time"]
    for user in range(150):
        time, item = 1_700_000_000 + int(generator.integers(5_000_000)), int(generator.integers(40))
        for _ in range(int(generator.integers(5, 20))):
            lines.append(f"u{user},sku-{item},{time}")
            users.append(f"u{user},sku-{item},{time}")
            time, item = time + int(generator.integers(60, 200_000)), (item + int(generator.choice([1, 2, 7]))) % 40
    (tmp_path / "events.csv").write_text("\n".join(lines) + "\n")
    (tmp_path / "users.csv").write_text("\n".join(users) + "\n")
    words = ("red", "blue", "small", "large", "cup", "plate", "lamp")
    titles = [f"sku-{item},{' '.join(generator.choice(words, 3))} number {item}" for item in range(40)]
    (tmp_path / "items.csv").write_text("\n".join(["sku,title", *titles]) + "\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def blocks(page: Path, language: str = "") -> list[str]:
    found = re.findall(r"^```(\w*)\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL)
    return [block for named, block in found if named == language]


def run(page: Path) -> dict[str, Any]:
    names: dict[str, Any] = {}
    for block in blocks(page, "python"):
        exec(compile(block, str(page), "exec"), names)
    return names


def test_the_example_of_the_readme_runs_in_python_and_in_the_shell(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = run(ROOT / "README.md")
    assert names["report"].mean("ndcg@10") > 0.2  # what follows what was learned
    assert names["top"].items[0] and (here / "bundles/first").is_dir()
    shown = [line for block in blocks(ROOT / "README.md") for line in block.splitlines() if line.startswith("recsys ")]
    assert len(shown) >= 7
    for line in shown:
        assert main(shlex.split(line, comments=True)[1:]) == 0, f"{line}\n{capsys.readouterr().err}"
    assert (here / "recommendations.parquet").is_file()


@pytest.mark.parametrize("page", PAGES[1:], ids=lambda page: page.stem)
def test_the_examples_of_a_page_run(page: Path, here: Path) -> None:
    run(page)


@pytest.mark.parametrize("page", [*PAGES, ROOT / "CONTRIBUTING.md", *sorted((ROOT / "benchmarks").rglob("README.md"))])
def test_links_between_documents_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if not target.startswith("http"):
            path, _, anchor = target.partition("#")
            found = (page.parent / path) if path else page
            assert found.exists(), f"{page.name} links to {target}"
            heads = [re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in headings(found)]
            assert not anchor or anchor in heads, f"{page.name} links to {target}, its headings are {heads}"


def test_pictures_of_the_readme_are_there() -> None:
    found = re.findall(r'<img src="([^"]+)"', (ROOT / "README.md").read_text())
    assert found and all((ROOT / one).is_file() for one in found if not one.startswith("http"))


def headings(page: Path) -> list[str]:
    return re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE) if page.suffix == ".md" else []


@pytest.fixture
def tables(monkeypatch: pytest.MonkeyPatch) -> Any:
    if not (ROOT / "benchmarks/quality").is_dir():
        pytest.skip("the benchmarks are not here")
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks/quality"))
    return importlib.import_module("table")


def test_the_tables_in_the_documents_are_those_of_the_recorded_results(tables: Any) -> None:
    for path, texts in tables.documents().items():
        assert tables.filled(path.read_text(), texts) == path.read_text(), (
            f"{path.relative_to(ROOT)} differs from the results: python benchmarks/quality/table.py --write"
        )


def test_a_table_stands_in_one_document_only(tables: Any) -> None:
    for page in (ROOT / "README.md", ROOT / "benchmarks/quality/README.md", ROOT / "benchmarks/speed/README.md"):
        assert "| encoder | NDCG@10" not in page.read_text() and "<details>" not in page.read_text()


def test_a_document_without_its_markers_is_refused(tables: Any) -> None:
    assert tables.filled("a\n<!-- x:begin -->\nold\n<!-- x:end -->\nb", {"x": "new"}).count("new") == 1
    with pytest.raises(ValueError, match="x:begin"):
        tables.filled("nothing here", {"x": "new"})


def test_the_readme_is_one_screen_and_a_bit() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 120
