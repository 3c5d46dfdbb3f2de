"""The ``recsys`` command: the words of the Python interface, typed arguments, the same functions.

``recsys fit RECIPE`` takes the recipe's own parameters as flags; ``recsys COMMAND --help`` lists what a command takes.
"""

from __future__ import annotations

import inspect
import os
import sys
from collections.abc import Callable, Sequence

from recsys.cli import (
    audit,
    compare,
    doctor,
    embed,
    evaluate,
    export,
    fetch,
    fit,
    forget,
    models,
    profiles,
    quickstart,
    recommend,
    report,
    semantic_ids,
    serve,
    similar,
    tune,
)
from recsys.cli.arguments import parsed
from recsys.cli.terminal import plain_output, told, tolerate_any_locale

GROUPS: dict[str, tuple[Callable[..., None], ...]] = {  # in the order in which a user needs them
    "Data": (fetch.fetch, audit.audit, models.models, embed.embed, profiles.profiles, semantic_ids.semantic_ids),
    "Models": (fit.fit, tune.tune, evaluate.evaluate, compare.compare, report.report, forget.forget),
    "Serving": (export.export, recommend.recommend, similar.similar, serve.serve),
    "About": (quickstart.quickstart, doctor.doctor),
}
ELSEWHERE = {
    "unlearn": "forget", "erase": "forget",
    "search": "tune", "optimize": "tune", "hpo": "tune",
    "train": "fit", "predict": "recommend", "infer": "recommend", "test": "evaluate", "eval": "evaluate",
    "benchmark": "compare", "split": "audit", "stats": "audit", "download": "fetch", "neighbours": "similar",
    "neighbors": "similar", "deploy": "serve", "api": "serve", "tokenize": "semantic-ids", "ids": "semantic-ids",
}  # fmt: skip


def word(command: Callable[..., None]) -> str:
    """What the shell calls a command."""
    return command.__name__.replace("_", "-")


COMMANDS = {word(command): command for group in GROUPS.values() for command in group}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; the exit status is 0, 1 after an error that a message explains, 2 for wrong arguments."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    tolerate_any_locale()
    try:
        command = _parse(arguments)
        with plain_output():
            command()
            sys.stdout.flush()
    except KeyboardInterrupt:
        print("\nrecsys: stopped", file=sys.stderr)
        return 130
    except BrokenPipeError:  # whoever read the output has seen enough, as head does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except BaseException as error:
        panic = type(error).__name__ == "PanicException"  # of Polars, whose errors of that kind are no Exception
        if os.environ.get("RECSYS_DEBUG") or not (panic or isinstance(error, Exception)):
            raise
        print(f"recsys: {told(error, arguments)}\n(RECSYS_DEBUG=1 shows the traceback)", file=sys.stderr)
        return 1
    return 0


def _parse(arguments: list[str]) -> Callable[[], object]:
    """The command of the arguments."""
    if not arguments or arguments[0] in ("-h", "--help"):
        return _help
    if arguments[0] == "--version":
        return _version
    if arguments[0] not in COMMANDS:
        from recsys.errors import closest

        raise ValueError(f"there is no command {arguments[0]!r}; {closest(arguments[0], COMMANDS, ELSEWHERE)}")
    if arguments[0] in ("fit", "tune"):  # whose flags are those of the recipe
        return (fit if arguments[0] == "fit" else tune).parse(arguments[1:])
    command = COMMANDS[arguments[0]]
    given = parsed(command, arguments[1:], f"recsys {arguments[0]}")
    return lambda: command(*given.args, **given.kwargs)


def _help() -> None:
    print("usage: recsys COMMAND [ARGUMENTS]")
    for group, commands in GROUPS.items():
        print(f"\n{group}")
        for command in commands:
            print(f"  {word(command):<12} {(inspect.getdoc(command) or '').splitlines()[0]}")
    print("\nrecsys COMMAND --help lists what a command takes, recsys --version says which version this is")


def _version() -> None:
    from recsys import __version__

    print(__version__)
