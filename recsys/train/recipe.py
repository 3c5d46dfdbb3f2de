"""Recipes: Python files with a function ``run(...)`` that returns a :class:`recsys.Run`, found by path or by name."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import TYPE_CHECKING

from recsys.shipped import folder
from recsys.train.settings import closest

if TYPE_CHECKING:
    from recsys.train.run import Run


def recipe_names() -> list[str]:
    """The recipes that come with the package."""
    return sorted(path.stem for path in folder("configs").glob("*.py") if not path.stem.startswith("_"))


def find_recipe(name: str) -> Path:
    """The recipe file: as given, else one of those that come with the package, by file name.

    Raises:
        FileNotFoundError: there is neither; the message names the nearest.
    """
    given = Path(name)
    if given.is_file():
        return given
    shipped = folder("configs") / f"{given.stem}.py"
    if shipped.is_file():
        return shipped
    nearest = closest(given.stem, recipe_names())
    raise FileNotFoundError(f"no recipe {name!r}: neither a file nor one of ours; {nearest}")


def load_recipe(path: Path) -> Callable[..., Run]:
    """The function ``run`` of a recipe file.

    A recipe may import what lies beside it, as any script may. Parts may be defined in the recipe itself: its file
    name is their module, the one to trust when the run is loaded.

    Raises:
        ValueError: it has no such function.
    """
    add_to_path(path.resolve().parent)
    spec = _spec(path.stem)
    if spec is None or spec.origin is None or Path(spec.origin).resolve() != path.resolve():  # the name is taken
        spec = importlib.util.spec_from_file_location(f"recsys_recipe_{path.stem}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    if not callable(getattr(module, "run", None)):
        raise ValueError(f"{path} has no function run(...) that returns a recsys.Run: that is what makes it a recipe")
    function: Callable[..., Run] = module.run
    return function


def add_to_path(folder: Path) -> None:
    """Let modules in ``folder`` be imported, unless another one has their name."""
    if str(folder) not in sys.path:
        sys.path.append(str(folder))


def _spec(name: str) -> ModuleSpec | None:
    """Where ``import name`` would lead, None if nowhere."""
    try:
        return importlib.util.find_spec(name)
    except (ImportError, ValueError):
        return None
