"""Commands on runs: fit, evaluate, compare, and quickstart, which does all of it once."""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from recsys.cli.arguments import parsed

if TYPE_CHECKING:
    from recsys.data.split import HeldOut
    from recsys.train.run import Run


def parse_fit(arguments: list[str]) -> Callable[[], None]:
    """What ``recsys fit`` is to do; nothing is trained yet."""
    train = _parse_fit(arguments)

    def command() -> None:
        train()

    return command


def evaluate(
    run: Path,
    /,
    part: Literal["valid", "test"] = "test",
    k: tuple[int, ...] | None = None,
    exclude: Literal["history", "none", "history-except-targets"] = "history",
    users: int | None = None,
    split: Path | None = None,
    trust: tuple[str, ...] = (),
) -> None:
    """Rank a part of the split a run was trained on and write the report into its folder, in place of the last one.

    Args:
        run: the run folder.
        part: whose targets are ranked.
        k: cut-offs (by default 1, 5, 10 and 20).
        exclude: what is taken out of the candidates; history-except-targets spares targets that repeat the history.
        users: rank so many users only, drawn once; the report says so.
        split: folder of a saved split with the same items, instead of the run's own.
        trust: modules outside recsys whose parts may be loaded; their code runs.
    """
    from recsys.eval.evaluate import evaluate as rank
    from recsys.runs.read import load_run
    from recsys.runs.split import split_of
    from recsys.train.results import renew

    model = load_run(run, importable(trust))
    found = split_of(run, model, split)
    held_out: HeldOut = found.test if part == "test" else found.valid
    report = rank(model, held_out, k=k, exclude=exclude, sample=users, name=run.resolve().name)
    renew(run, model, found, report)
    print(report)


def compare(runs: tuple[Path, ...], /, metrics: tuple[str, ...] = ()) -> None:
    """Compare runs user by user: differences, intervals, corrected p-values.

    Args:
        runs: two or more run folders that were evaluated alike; the first is the reference. A baseline of a run is a
            folder in its folder baselines.
        metrics: what to compare in, such as ndcg@10 (default: NDCG, recall and MRR at 10, or at the longest list).
    """
    from recsys.eval.compare import compare as contrast
    from recsys.eval.report import Report

    if len(set(runs)) < 2:
        raise ValueError(
            f"compare needs two different run folders or more, found {', '.join(map(str, runs)) or 'none'}"
        )
    reports = [Report.load(run) for run in runs]
    print(contrast(*reports, names=[str(run) for run in runs], metrics=metrics or None))


def quickstart(out: Path = Path("runs/quickstart"), epochs: int | None = None) -> None:
    """Fetch ml-100k, train SASRec, rank it against four baselines, export a bundle, recommend by title.

    Args:
        out: the run folder; the bundle is written into it.
        epochs: most epochs (by default those of the recipe).
    """
    flags = [] if epochs is None else ["--epochs", str(epochs)]
    show(_parse_fit(["sasrec_ml100k", "--out", str(out), *flags])(), out)


def show(run: Run, out: Path) -> None:
    """Export a bundle and recommend, by title, for one history of the test part."""
    from recsys.serve.bundle import Bundle
    from recsys.serve.bundle import export as write

    split = run.split
    write(run.model, out / "bundle", split=split)
    bundle = Bundle.load(out / "bundle")
    print(f"\n{bundle}")
    titles = (split.item_text or {}).get("title")
    lengths = split.test.history_lengths
    person = int(abs(lengths - 30).argmin())
    _, rows = split.test.history(_one(person))
    history = split.items.raw(rows)
    best = bundle.recommend([history.tolist()], k=10)

    def name(row: int) -> str:
        return str(titles[row]) if titles is not None and titles[row] else str(split.items.raw(_one(row))[0])

    print(
        f"\nuser {split.users.raw(split.test.users[_one(person)])[0]} watched, newest last: "
        + "; ".join(map(name, rows[-5:]))
    )
    print("recommended from the bundle:")
    for rank, (row, score) in enumerate(zip(best.rows[0], best.scores[0], strict=True), 1):
        if row:
            print(f"  {rank:>2}. {name(int(row))}  ({score:.2f})")


def importable(trust: tuple[str, ...]) -> tuple[str, ...]:
    """``trust``, whose modules may lie in the working folder."""
    from recsys.runs.recipe import add_to_path

    if trust:
        add_to_path(Path.cwd())
    return trust


def _parse_fit(arguments: list[str]) -> Callable[[], Run]:
    """A recipe and its flags; the machine's flags (--out, --resume, --devices ...) are the same for all."""
    from recsys.runs.recipe import find_recipe, load_recipe

    parser = _machine()
    if not arguments or arguments[0] in ("-h", "--help"):
        from recsys.runs.recipe import recipe_names

        parser.print_help()
        print(f"\nrecipes that come with recsys: {', '.join(recipe_names())}")
        print("recsys fit RECIPE --help lists a recipe's flags")
        raise SystemExit(0 if arguments else 2)
    own, flags = parser.parse_known_args(arguments)
    path = find_recipe(own.recipe)
    function = load_recipe(path)
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


def _machine() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "recsys fit", add_help=False, allow_abbrev=False, usage="recsys fit RECIPE [--out DIR] ... [recipe flags]"
    )
    add = parser.add_argument
    add("recipe", metavar="RECIPE", help="a .py file with a function run(...), or a recipe that comes along, by name")
    add("--out", type=Path, metavar="DIR", help="run folder (default: runs/RECIPE-HASH, one per choice of flags)")
    start = "go on from the weights of a run of the same model, on this data (new users and items too)"
    add("--start", type=Path, metavar="RUN", help=start)
    resume = "auto: go on with an unfinished run; yes: insist on one; no: replace what is there (default: auto)"
    add("--resume", choices=["auto", "yes", "no"], default="auto", help=resume)
    add("--devices", type=int, default=1, metavar="N", help="how many devices train together (default: 1)")
    add("--accelerator", default="auto", help="auto, cpu, cuda or mps (default: auto)")
    add("--precision", default="auto", help="auto, 32-true, bf16-mixed or 16-mixed (default: auto)")
    add("--workers", type=int, default=0, metavar="N", help="processes that prepare batches (default: 0)")
    return parser


def _called(path: Path) -> str:
    """What a recipe is called: the one of a run by the name of its folder."""
    from recsys.runs.recipe import KEPT

    return path.resolve().parent.name if path.name == KEPT else path.stem


def _one(position: int) -> Any:
    import numpy as np

    return np.array([position])


def _short(values: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True, default=str).encode()).hexdigest()[:8]
