"""Recipes: found by path or name, importing what lies beside them, defining parts of their own."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from recsys.parts import build, describe
from recsys.train.recipe import find_recipe, load_recipe, recipe_names


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
