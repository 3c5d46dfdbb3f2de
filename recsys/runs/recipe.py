"""Recipes: Python files with a function ``run(...)`` that returns a :class:`recsys.Run`, found by path or by name.

A run folder keeps its recipe (``recipe.py``) with the modules that the recipe imports from beside it
(``recipe_imports/``), so that ``recsys fit RUN/recipe.py`` runs it again wherever the folder lies.
"""

from __future__ import annotations

import ast
import importlib.util
import os
import sys
from collections.abc import Callable, Iterator
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

from recsys.errors import closest
from recsys.runs.knobs import flat
from recsys.storage.files import refuse_links, write_text
from recsys.storage.shipped import folder

KEPT, IMPORTS = "recipe.py", "recipe_imports"
_HOMES: list[str] = []  # folders that recipes may import from, the newest first


def recipe_names() -> list[str]:
    """The recipes that ship with recsys."""
    return sorted(path.stem for path in folder("configs").glob("*.py") if not path.stem.startswith("_"))


def find_recipe(name: str) -> Path:
    """The recipe file: what has a separator or ends in ``.py`` is a path, any other name a recipe of recsys.

    Raises:
        FileNotFoundError: there is none; the message names the nearest.
    """
    given = Path(name)
    if _is_path(name):
        if given.is_file() and given.suffix == ".py":
            return given
        raise FileNotFoundError(_no_file(given))
    if name in recipe_names():
        return folder("configs") / f"{name}.py"
    own = [path for path in (Path(f"{name}.py"), given / KEPT) if path.is_file()]
    here = f"; recsys fit {own[0]} runs the file here" if own else ""
    near = closest(name, recipe_names())
    raise FileNotFoundError(f"no recipe {name!r} ships with recsys; {near} (a file of your own ends in .py){here}")


def load_recipe(path: Path) -> Callable[..., Any]:
    """The function ``run`` of a recipe file; shared knobs by their names, see :func:`recsys.runs.knobs.flat`.

    A recipe may import what lies beside it, as any script may, and the recipes that ship with recsys. Parts may
    be defined in the recipe itself: its file name is their module, the one to trust when the run is loaded.

    Raises:
        ValueError: it has no such function, or is not Python.
    """
    path = Path(path)
    _import_from(_homes(path))
    spec = _spec(path.stem)
    if spec is None or spec.origin is None or Path(spec.origin).resolve() != path.resolve():  # the name is taken
        spec = importlib.util.spec_from_file_location(f"recsys_recipe_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise ValueError(f"{path} is not Python source: a recipe ends in .py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException as error:
        del sys.modules[spec.name]
        if isinstance(error, SyntaxError):
            raise ValueError(f"{error.filename or path} is not Python source ({error})") from error
        raise
    if not callable(getattr(module, "run", None)):
        raise ValueError(f"{path} has no function run(...) that returns a recsys.Run: that is what makes it a recipe")
    return flat(module.run)


def keep_recipe(path: Path | None, run: Path) -> None:
    """Copy a recipe, and what it imports from beside it, into a run folder, in place of what an earlier run kept."""
    texts = {} if path is None else {KEPT: Path(path).read_text(encoding="utf-8")}
    if path is not None:
        for name, source in imported(Path(path)).items():
            texts[f"{IMPORTS}/{name}"] = source.read_text(encoding="utf-8")
    _clear(run)
    for name, text in texts.items():
        (run / name).parent.mkdir(parents=True, exist_ok=True)
        write_text(run / name, text)


def imported(path: Path) -> dict[str, Path]:
    """The files that a recipe imports from its own folder or from ours, and what these import, by name there."""
    homes, found, left = _homes(path), dict[str, Path](), [path]
    while left:
        for name in _imports(left.pop()):
            for inner, source in _module(name, homes).items():
                if inner not in found and source.resolve() != path.resolve():
                    found[inner] = source
                    left.append(source)
    return found


def add_to_path(folder: Path) -> None:
    """Let modules in ``folder`` be imported, unless another one has their name."""
    if str(folder) not in sys.path:
        sys.path.append(str(folder))


def _is_path(name: str) -> bool:
    return any(separator in name for separator in (os.sep, os.altsep or os.sep)) or name.endswith(".py")


def _no_file(given: Path) -> str:
    """Why ``given`` is not a recipe, and what was meant perhaps."""
    if (given / KEPT).is_file():
        return f"{given} is a folder: recsys fit {given / KEPT} runs the recipe in it"
    if given.exists():
        return f"{given} is not a recipe: a recipe is a file that ends in .py"
    names = recipe_names()
    known = f"recsys fit {given.stem} runs the one that ships with recsys" if given.stem in names else None
    return f"there is no file {given}; {known or closest(given.stem, names)}"


def _homes(path: Path) -> list[Path]:
    """Where a recipe imports from: beside it, what was kept with it, and last the recipes that ship with recsys."""
    beside = path.resolve().parent
    return [home for home in dict.fromkeys((beside, beside / IMPORTS, folder("configs"))) if home.is_dir()]


def _import_from(homes: list[Path]) -> None:
    """Put these folders behind all others on the path, but before those of other recipes, whose modules go."""
    ours = [str(home) for home in homes]
    others = [home for home in _HOMES if home not in ours]
    _HOMES[:] = [*ours, *others]
    sys.path[:] = [entry for entry in sys.path if entry not in _HOMES] + _HOMES
    held = {name: Path(module.__file__ or "") for name, module in list(sys.modules.items()) if _is_held(name, module)}
    gone: set[str] = set()
    for name, file in held.items():
        home, _ = _first(name.partition(".")[0], homes)
        if home is not None and str(home) != _home_of(name, str(file)):
            gone.add(name)
    while gone:  # what has imported one that goes holds on to it
        for name in gone:
            del sys.modules[name], held[name]
        tops = {name.partition(".")[0] for name in gone}
        gone = {name for name, file in held.items() if tops & set(_imports(file))}


def _is_held(name: str, module: Any) -> bool:
    """Whether a module was imported from the folder of some recipe."""
    return _home_of(name, getattr(module, "__file__", None)) in _HOMES


def _home_of(name: str, file: str | None) -> str | None:
    """The folder from which the module ``name`` was imported."""
    if not file:
        return None
    top = Path(file).resolve()
    up = name.count(".") + (top.name == "__init__.py")
    return str(top.parents[up]) if up < len(top.parents) else None


def _module(name: str, homes: list[Path]) -> dict[str, Path]:
    """The files of the module or package ``name`` in the first of ``homes`` that has it, none if another is meant."""
    home, first = _first(name, homes)
    if home is None or first is None:
        return {}
    spec = _spec(name)
    if spec is not None and spec.origin is not None and Path(spec.origin).resolve() != first.resolve():
        return {}  # something installed has that name
    files = [first] if first.name != "__init__.py" else sorted(first.parent.rglob("*.py"))
    return {file.relative_to(home).as_posix(): file for file in files}


def _first(name: str, homes: list[Path]) -> tuple[Path | None, Path | None]:
    """The first folder that has a module or package of that name, and its file."""
    for home in homes:
        for file in (home / name / "__init__.py", home / f"{name}.py"):
            if file.is_file():
                return home, file
    return None, None


def _imports(path: Path) -> Iterator[str]:
    """The top-level names that a Python file imports, within functions too."""
    try:
        tree = ast.parse(path.read_bytes())
    except (OSError, SyntaxError, ValueError):
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield node.module.partition(".")[0]


def _clear(run: Path) -> None:
    """Remove the recipe of an earlier run: Python files, and folders that are then empty; no link is followed."""
    refuse_links(run, (IMPORTS,))
    (run / KEPT).unlink(missing_ok=True)
    for inner, _, files in os.walk(run / IMPORTS, topdown=False):
        for name in files:
            if name.endswith((".py", ".pyc")):
                (Path(inner) / name).unlink()
        if not os.listdir(inner):
            Path(inner).rmdir()


def _spec(name: str) -> ModuleSpec | None:
    """Where ``import name`` would lead, None if nowhere."""
    try:
        return importlib.util.find_spec(name)
    except (ImportError, ValueError):
        return None
