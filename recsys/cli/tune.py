"""``recsys tune``: the best knobs of a recipe, by validation."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from recsys.cli.arguments import parsed


def tune(arguments: list[str]) -> None:
    """Search the knobs of a recipe by its validation metric; a stopped search goes on."""
    parse(arguments)()


def parse(arguments: list[str]) -> Callable[[], Any]:
    """What ``tune`` is to do; nothing is trained yet. The recipe's own flags stay fixed."""
    from recsys.runs.recipe import find_recipe, load_recipe

    parser = flags()
    if not arguments or arguments[0] in ("-h", "--help"):
        parser.print_help()
        raise SystemExit(0 if arguments else 2)
    own, rest = parser.parse_known_args(arguments)
    function = load_recipe(find_recipe(own.recipe))
    chosen = parsed(function, rest, f"recsys tune {own.recipe}", "\n\nBesides these: see recsys tune --help.").arguments
    named = {word.partition("=")[0].removeprefix("--").replace("-", "_") for word in rest if word.startswith("--")}
    named |= {name.removeprefix("no_") for name in named}
    fixed = {name: value for name, value in chosen.items() if name in named}
    ranges = dict(_range(text) for text in own.ranges)
    folder = own.out or Path("runs") / f"tune-{Path(own.recipe).stem}"

    def search() -> None:
        from recsys.tune.study import tune as run

        print(run(
            own.recipe, own.trials, folder=folder, ranges=ranges, only=own.only, fixed=fixed, sampler=own.sampler,
            prune=own.prune, minutes=own.minutes, seed=own.tune_seed, keep=own.keep,
        ))  # fmt: skip

    return search


def flags() -> argparse.ArgumentParser:
    """The flags of the search."""
    parser = argparse.ArgumentParser(
        "recsys tune", add_help=False, allow_abbrev=False,
        usage="recsys tune RECIPE [--trials N] [--out DIR] [--try 'NAME=RANGE' ...] [recipe flags, which stay fixed]",
    )  # fmt: skip
    add = parser.add_argument
    add("recipe", metavar="RECIPE", help="a recipe by its name, or a .py file with a function run(...)")
    add(
        "--trials",
        type=int,
        default=20,
        metavar="N",
        help="besides the recipe's own values, in all calls (default: 20)",
    )
    add("--out", type=Path, metavar="DIR", help="where the search is kept (default: runs/tune-RECIPE)")
    tried = (
        "what is tried of a parameter: 'learning_rate=1e-4..1e-2 log', 'num_layers=1..4', 'dim=32,64,128', or 'dim=' "
        "to leave one out; may be repeated (default: what the recipe says in RANGES)"
    )
    add("--try", dest="ranges", action="append", default=[], metavar="NAME=RANGE", help=tried)
    add("--only", action="store_true", help="try nothing but what --try says")
    add("--sampler", choices=["tpe", "random"], default="tpe", help="how values are proposed (default: tpe)")
    add("--no-prune", dest="prune", action="store_false", help="train every trial to its end")
    add("--minutes", type=float, metavar="M", help="begin no trial after M minutes of this call")
    add("--tune-seed", type=int, default=0, metavar="N", help="random seed of the proposals (default: 0)")
    add("--keep", action="store_true", help="leave the run folders of all trials, not only of the best")
    return parser


def _range(text: str) -> tuple[str, str | None]:
    name, found, given = text.partition("=")
    if not found:
        raise ValueError(f"--try {text!r}: NAME=RANGE is expected, such as 'dim=32,64,128'")
    return name.strip().replace("-", "_"), given.strip() or None
