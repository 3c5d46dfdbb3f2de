"""The ``recsys`` command: the words of the Python interface, typed arguments, the same functions.

``recsys fit RECIPE`` takes the recipe's own parameters as flags; ``recsys COMMAND --help`` lists what a command takes.
"""

from __future__ import annotations

import inspect
import os
import sys
from collections.abc import Callable, Sequence

from recsys.cli.arguments import parsed
from recsys.cli.data import audit, embed, fetch, profiles
from recsys.cli.runs import compare, evaluate, parse_fit, quickstart
from recsys.cli.serving import export, recommend, similar
from recsys.cli.terminal import plain_output, told, tolerate_any_locale


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; the exit status is 0, 1 after an error that a message explains, 2 for wrong arguments."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    tolerate_any_locale()
    try:
        command = parse_fit(arguments[1:]) if arguments[:1] == ["fit"] else _parse(arguments)
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
        print(f"recsys: {told(error, arguments)}\n(RECSYS_DEBUG=1 shows where)", file=sys.stderr)
        return 1
    return 0


def doctor() -> None:
    """Print what a bug report needs: versions, processor, threads, GPU, folders."""
    from recsys.cli.doctor import examine

    print(examine())


COMMANDS: dict[str, Callable[..., None]] = {
    "fetch": fetch,
    "audit": audit,
    "evaluate": evaluate,
    "compare": compare,
    "recommend": recommend,
    "similar": similar,
    "export": export,
    "embed": embed,
    "profiles": profiles,
    "doctor": doctor,
    "quickstart": quickstart,
}


def _parse(arguments: list[str]) -> Callable[[], None]:
    """The command that is asked for, with its arguments."""
    if not arguments or arguments[0] in ("-h", "--help"):
        return _help
    if arguments[0] == "--version":
        return _version
    if arguments[0] not in COMMANDS:
        from recsys.errors import closest

        raise ValueError(f"there is no command {arguments[0]!r}; {closest(arguments[0], [*COMMANDS, 'fit'])}")
    command = COMMANDS[arguments[0]]
    given = parsed(command, arguments[1:], f"recsys {arguments[0]}")
    return lambda: command(*given.args, **given.kwargs)


def _help() -> None:
    lines = [f"  {name:<11} {(inspect.getdoc(command) or '').splitlines()[0]}" for name, command in COMMANDS.items()]
    lines.insert(2, "  fit         Train a recipe, rank it on the test part beside its baselines, keep a run folder.")
    print("usage: recsys COMMAND [ARGUMENTS]\n\n" + "\n".join(lines))


def _version() -> None:
    from recsys import __version__

    print(__version__)
