"""Recipes: found by path or name, importing what lies beside them, defining parts of their own."""

from __future__ import annotations

import inspect
import shutil
import sys
from pathlib import Path

import pytest

from recsys.runs.recipe import find_recipe, imported, keep_recipe, load_recipe, recipe_names
from recsys.storage.parts import build, describe


@pytest.fixture(autouse=True)
def clean_imports(monkeypatch: pytest.MonkeyPatch):
    before = set(sys.modules)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield
    for name in set(sys.modules) - before:
        if name.startswith(("neighbour", "inventor", "recsys_recipe_")):
            del sys.modules[name]


def test_ours_are_found_by_name_and_a_file_by_its_path(tmp_path: Path) -> None:
    assert "sasrec_ml100k" in recipe_names()
    assert find_recipe("sasrec_ml1m").name == find_recipe("configs/sasrec_ml1m.py").name == "sasrec_ml1m.py"
    own = tmp_path / "mine.py"
    own.touch()
    assert find_recipe(str(own)) == own
    with pytest.raises(ValueError, match="run"):
        load_recipe(own)


def test_a_recipe_imports_the_part_that_lies_beside_it(tmp_path: Path) -> None:
    (tmp_path / "neighbour.py").write_text("class Part:\n    def __init__(self, a=1):\n        self.a = a\n")
    (tmp_path / "recipe.py").write_text("from neighbour import Part\n\ndef run():\n    return Part(3)\n")
    part = load_recipe(tmp_path / "recipe.py")()
    assert build(describe(part), trust=["neighbour"]).a == 3


def test_a_part_defined_in_the_recipe_is_trusted_by_the_name_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "inventor.py"
    path.write_text("class Part:\n    def __init__(self, a=1):\n        self.a = a\n\ndef run():\n    return Part(3)\n")
    described = describe(load_recipe(path)())
    assert described["class"] == "inventor:Part"
    with pytest.raises(PermissionError, match="inventor"):
        build(described)
    assert build(described, trust=["inventor"]).a == 3


def test_a_recipe_does_not_hide_a_module_of_its_name(tmp_path: Path) -> None:
    path = tmp_path / "json.py"
    path.write_text("def run():\n    return 7\n")
    assert load_recipe(path)() == 7
    assert hasattr(sys.modules["json"], "dumps")


@pytest.mark.parametrize(
    "path", ["wrong/path/sasrec.py", "./sasrec", "sasrec.py", "nowhere/mine.py", "a/sasrec_ml100k"]
)
def test_b12_a_path_is_that_file_or_an_error(path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"recsys fit sasrec|mean|known"):
        find_recipe(path)


@pytest.mark.parametrize("kind", ["file", "folder", "recipe"])
def test_hostile_14_nothing_in_the_working_folder_takes_the_place_of_a_recipe_by_name(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    if kind == "file":
        Path("sasrec").write_text("not Python")
    elif kind == "folder":
        Path("sasrec").mkdir()
    else:
        Path("sasrec.py").write_text("def run():\n    return 5\n")
    assert find_recipe("sasrec").parent.name == "configs"
    if kind == "recipe":
        assert load_recipe(find_recipe("sasrec.py"))() == 5
        assert load_recipe(find_recipe("./sasrec.py"))() == 5


@pytest.mark.parametrize("name", recipe_names())
def test_b12_a_stored_recipe_is_loaded_again_with_what_it_imports(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keep_recipe(find_recipe(name), tmp_path / "run")
    written = {path.relative_to(tmp_path / "run" / "recipe_imports").as_posix() for path in kept_in(tmp_path / "run")}
    assert written == set(imported(find_recipe(name)))
    (tmp_path / "other").mkdir()
    (tmp_path / "run").rename(tmp_path / "moved")
    monkeypatch.chdir(tmp_path / "other")
    first = load_recipe(find_recipe(name))
    again = load_recipe(tmp_path / "moved" / "recipe.py")
    assert inspect.signature(again) == inspect.signature(first)
    for module in written:  # the kept ones, not those that come along
        assert str(tmp_path / "moved") in str(sys.modules[module.removesuffix(".py")].__file__)


def test_b12_what_a_recipe_of_ones_own_imports_is_kept_with_it(tmp_path: Path) -> None:
    home, run = tmp_path / "home", tmp_path / "run"
    (home / "neighbour_package").mkdir(parents=True)
    (home / "neighbour_package" / "__init__.py").write_text("from neighbour_package.deep import VALUE\n")
    (home / "neighbour_package" / "deep.py").write_text("import neighbour_last\nVALUE = neighbour_last.VALUE\n")
    (home / "neighbour_last.py").write_text("VALUE = 3\n")
    (home / "json.py").write_text("raise RuntimeError('the json of Python is meant')\n")
    (home / "neighbour_unused.py").write_text("")
    (home / "mine.py").write_text("import json\n\ndef run():\n    import neighbour_package as n\n    return n.VALUE\n")
    assert load_recipe(home / "mine.py")() == 3
    keep_recipe(home / "mine.py", run)
    assert {path.name for path in kept_in(run)} == {"__init__.py", "deep.py", "neighbour_last.py"}
    shutil.rmtree(home)
    assert load_recipe(run / "recipe.py")() == 3
    keep_recipe(run / "recipe.py", tmp_path / "again")  # of a stored one too
    assert len(kept_in(tmp_path / "again")) == 3
    keep_recipe(None, run)
    assert list(run.iterdir()) == []


def test_what_holds_on_to_a_neighbour_that_goes_is_imported_again(tmp_path: Path) -> None:
    knobs = "from dataclasses import dataclass\nfrom typing import Literal\n\n\n@dataclass\nclass Knobs:\n"
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        text = f'from __future__ import annotations\n{knobs}    """Args:\n        way: {name}.\n    """\n\n'
        (tmp_path / name / "neighbour_knobs.py").write_text(f'{text}    way: Literal["{name}"] = "{name}"\n')
    inner = "from neighbour_knobs import Knobs\n\n\nclass More(Knobs):\n    pass\n"
    (tmp_path / "a" / "neighbour_more.py").write_text(inner)
    read = "def run(knobs: {0} = {0}()):\n    return knobs.way\n"
    (tmp_path / "a" / "mine_a.py").write_text("from neighbour_more import More\n" + read.format("More"))
    (tmp_path / "b" / "mine_b.py").write_text("from neighbour_knobs import Knobs\n" + read.format("Knobs"))
    assert [load_recipe(tmp_path / name / f"mine_{name}.py")() for name in "aba"] == ["a", "b", "a"]


def test_b12_each_recipe_gets_the_neighbour_that_lies_beside_it(tmp_path: Path) -> None:
    for name, value in (("a", 1), ("b", 2)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "neighbour.py").write_text(f"VALUE = {value}\n")
        (tmp_path / name / f"mine_{name}.py").write_text("import neighbour\ndef run():\n    return neighbour.VALUE\n")
    assert [load_recipe(tmp_path / name / f"mine_{name}.py")() for name in "aba"] == [1, 2, 1]


def test_hostile_14_a_file_without_its_ending_is_no_recipe(tmp_path: Path) -> None:
    (tmp_path / "plain").write_text("def run(): ...")
    for wrong in (tmp_path / "plain", tmp_path):
        with pytest.raises(FileNotFoundError, match="py"):
            find_recipe(str(wrong))
    with pytest.raises(ValueError, match="py"):
        load_recipe(tmp_path / "plain")


def test_hostile_1_imports_are_not_written_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "mine.py").write_text("mine")
    (tmp_path / "run" / "recipe_imports").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(FileExistsError, match="link"):
        keep_recipe(find_recipe("cl4srec"), tmp_path / "run")
    assert [path.name for path in (tmp_path / "elsewhere").iterdir()] == ["mine.py"]


def kept_in(run: Path) -> list[Path]:
    return list((run / "recipe_imports").rglob("*.py"))


@pytest.mark.parametrize("text", [b"def run(:\n", b"x = '\xff'\n"])
def test_hostile_14_a_recipe_that_is_no_python_is_named(tmp_path, text):
    recipe = tmp_path / "own.py"
    recipe.write_bytes(text)
    with pytest.raises(ValueError, match=r"own\.py"):
        load_recipe(recipe)
