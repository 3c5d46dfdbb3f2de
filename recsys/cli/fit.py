"""``recsys fit``: train a recipe; its parameters are flags."""

from __future__ import annotations

import argparse
import ast
import hashlib
import inspect
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recsys.cli.arguments import parsed

if TYPE_CHECKING:
    from recsys.train.run import Run


def fit(arguments: list[str]) -> None:
    """Train a recipe, evaluate it and its baselines on the test part, and write a run folder."""
    parse(arguments)()


def parse(arguments: list[str]) -> Callable[[], Run]:
    """What ``fit`` is to do, by a recipe and its flags; nothing is trained yet.

    The flags of the machine (--out, --resume, --devices ...) are the same for all recipes.
    """
    from recsys.runs.recipe import find_recipe, load_recipe

    parser = common_flags()
    if not arguments or arguments[0] in ("-h", "--help"):
        parser.print_help()
        print(f"\nrecipes that come with recsys\n{_recipes()}\n\nrecsys fit RECIPE --help lists a recipe's flags")
        raise SystemExit(0 if arguments else 2)
    own, flags = parser.parse_known_args(arguments)
    path = find_recipe(own.recipe)
    function = load_recipe(path)
    _check_names(function, path, parser)
    machine_flags = "--out --start --resume --devices --accelerator --precision --workers"
    more = f"\n\nBesides these: {machine_flags}, see recsys fit --help."
    chosen = dict(parsed(function, flags, f"recsys fit {own.recipe}", more).arguments)
    start = {} if own.start is None else {"--start": str(own.start.resolve())}
    folder = own.out or Path("runs") / f"{_called(path)}-{_short(chosen | start)}"
    goes_on = {"auto": "auto", "yes": True, "no": False}[own.resume]
    machine = {name: getattr(own, name) for name in ("devices", "accelerator", "precision", "workers")}

    def train() -> Run:
        from recsys.train.run import Run

        run = function(**chosen)
        if not isinstance(run, Run):
            raise TypeError(f"run(...) of {path} gave {run!r}: a recipe returns a recsys.Run")
        if own.start is not None:
            _go_on_from(run, own.start)
        _train(run, folder, path, chosen, resume=goes_on, **machine)
        return run

    return train


def _go_on_from(run: Run, start: Path) -> None:
    """Train what another run has learned instead of a new model, if it is the same kind of model."""
    from recsys.runs.checkpoint import differences
    from recsys.runs.read import load_run
    from recsys.storage.parts import describe

    wanted = describe(run.model)
    model = load_run(start, trust=_modules(wanted))  # the recipe has run their code already
    differing = list(differences(describe(model), wanted))
    if differing:
        shown = "\n  ".join(differing[:12])
        raise ValueError(f"{start} holds another model than the recipe makes; it differs in\n  {shown}")
    run.model = model


def _modules(described: Any) -> list[str]:
    """The modules of all parts in a description."""
    if isinstance(described, list):
        return [name for inner in described for name in _modules(inner)]
    if not isinstance(described, dict):
        return []
    own = [str(described["class"]).partition(":")[0]] if "class" in described else []
    return own + [name for inner in described.values() for name in _modules(inner)]


def _train(run: Run, folder: Path, path: Path, chosen: dict[str, Any], **machine: Any) -> None:
    from recsys.train.fit import leads
    from recsys.train.results import finish

    fitted = run.fit(folder, path, chosen, **machine)
    if leads():  # the other processes of a distributed run have done their part
        print(finish(run, fitted))
        print(f"\n{folder}: model.safetensors, per_user.parquet, report.html", flush=True)


def _check_names(function: Callable[..., Any], path: Path, parser: argparse.ArgumentParser) -> None:
    """Refuse a recipe whose parameter could never be given in the shell, as a flag of all recipes has its name."""
    taken = {action.dest for action in parser._actions if action.option_strings}
    if both := sorted(taken & set(inspect.signature(function).parameters)):
        raise TypeError(
            f"run(...) of {path} has the parameter {both[0]}, and --{both[0]} is a flag of recsys fit itself: call it "
            "otherwise"
        )


def common_flags() -> argparse.ArgumentParser:
    """The flags that all recipes have: where the run goes and what it is trained on."""
    parser = argparse.ArgumentParser(
        "recsys fit", add_help=False, allow_abbrev=False, usage="recsys fit RECIPE [--out DIR] ... [recipe flags]"
    )
    add = parser.add_argument
    add(
        "recipe",
        metavar="RECIPE",
        help="a recipe of the list below by its name, or a .py file with a function run(...)",
    )
    add("--out", type=Path, metavar="DIR", help="run folder (default: runs/RECIPE-HASH, one per choice of flags)")
    start = (
        "begin with the weights of another run of the same model; users and items may have been added (default: none)"
    )
    add("--start", type=Path, metavar="RUN", help=start)
    resume = "auto: continue an unfinished run; yes: fail if there is none; no: replace what is there (default: auto)"
    add("--resume", choices=["auto", "yes", "no"], default="auto", help=resume)
    add("--devices", type=int, default=1, metavar="N", help="number of devices that train together (default: 1)")
    add("--accelerator", default="auto", help="device to train on: auto, cpu, cuda or mps (default: auto)")
    add("--precision", default="auto", help="of training: auto, 32-true, bf16-mixed or 16-mixed (default: auto)")
    add("--workers", type=int, default=0, metavar="N", help="processes that prepare batches (default: 0)")
    return parser


def _recipes() -> str:
    """Our recipes, a line each: the name and what it is."""
    from recsys.runs.recipe import find_recipe, recipe_names

    lines = []
    for name in recipe_names():
        said = ast.get_docstring(ast.parse(find_recipe(name).read_bytes())) or ""
        lines.append(f"  {name:<14} {said.splitlines()[0] if said else ''}".rstrip())
    return "\n".join(lines)


def _called(path: Path) -> str:
    """What a recipe is called: the one of a run by the name of its folder."""
    from recsys.runs.recipe import KEPT

    return path.resolve().parent.name if path.name == KEPT else path.stem


def _short(values: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True, default=str).encode()).hexdigest()[:8]
