"""CONTRIBUTING names files, folders, checks and tests: all of them are there; no folder is left out."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from recsys import testing

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "CONTRIBUTING.md"
pytestmark = pytest.mark.skipif(not PAGE.is_file(), reason="the document is not here")
TOPS = "recsys|configs|datasets|benchmarks|docs|tests"


def table() -> list[list[str]]:
    """The cells of each row of "Where does X go"."""
    section = PAGE.read_text().partition("## Where does X go\n")[2].partition("\n## ")[0]
    rows = [line.strip("| ").split(" | ") for line in section.splitlines() if line.startswith("| ")]
    return rows[1:]


def test_every_change_goes_to_a_file_or_folder_that_is_there() -> None:
    rows = table()
    assert len(rows) >= 20
    for change, target, _ in rows:
        paths = re.findall(rf"`((?:{TOPS})/[\w./]*)`", target)
        assert paths, f"{change}: no path in {target!r}"
        for path in paths:
            assert (ROOT / path).exists(), f"{change}: there is no {path}"
            assert path.endswith("/") == (ROOT / path).is_dir(), f"{change}: folders end in /, files do not: {path}"


def test_every_check_and_test_that_a_change_must_pass_is_there() -> None:
    for change, _, checks in table():
        names = re.findall(r"`([^`]*)`", checks)
        assert names, f"{change}: nothing to pass in {checks!r}"
        for name in names:
            if name.startswith("testing."):
                assert callable(getattr(testing, name.removeprefix("testing."), None)), f"{change}: no {name}"
            else:
                assert (ROOT / name).exists(), f"{change}: there is no {name}"


def test_every_name_of_the_page_that_looks_like_a_path_is_there() -> None:
    for path in re.findall(rf"`((?:{TOPS})/[\w./]*)`", PAGE.read_text()):
        assert (ROOT / path).exists(), f"there is no {path}"


def test_the_tree_is_that_of_the_package() -> None:
    tree = PAGE.read_text().partition("```\nrecsys/\n")[2].partition("configs/")[0]
    listed = re.findall(r"^  (\w+)/", tree, re.MULTILINE)
    folders = [path.parent.name for path in (ROOT / "recsys").glob("*/__init__.py")]
    assert sorted(listed) == sorted(folders)
    files = {path.name for path in (ROOT / "recsys").glob("*.py") if not path.name.startswith("__")}
    assert set(re.findall(r"\b(\w+\.py)\b", tree)) == files
