"""Words of the command line to the typed arguments of a function, and to splits, ids and trusted modules."""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from recsys.errors import DataError

if TYPE_CHECKING:
    from recsys.data.split import Split
    from recsys.ids.vocabulary import Vocabulary

_LISTS = (".txt", ".csv", ".tsv", ".parquet", ".ndjson", ".jsonl")


def parsed(function: Callable[..., Any], words: Sequence[str], program: str, more: str = "") -> inspect.BoundArguments:
    """The arguments of ``function`` that ``words`` give; nothing is called. ``more`` stands before its flags.

    Raises:
        SystemExit: help was asked for (0), or the words do not fit (2).
    """
    import tyro

    signature = inspect.signature(function, eval_str=True)
    found: list[inspect.BoundArguments] = []

    def record(*given: Any, **named: Any) -> None:
        found.append(signature.bind(*given, **named))

    shown = [one.replace(annotation=_shown(one)) for one in signature.parameters.values()]
    record.__signature__ = signature.replace(parameters=shown)  # type: ignore[attr-defined]
    record.__annotations__ = {one.name: one.annotation for one in shown} | {"return": None}
    head, args, rest = (inspect.getdoc(function) or "").partition("\nArgs:\n")  # of which only the arguments are read
    record.__doc__ = f"{head.rstrip()}{more}\n{args}{rest}"
    tyro.cli(record, args=list(words), prog=program)
    found[0].apply_defaults()
    return found[0]


def _shown(parameter: inspect.Parameter) -> Any:
    """The type of a parameter, with what its help calls a value, and no default where ``Args:`` has to say it."""
    import tyro

    kind, default = parameter.annotation, parameter.default
    how: dict[str, Any] = {} if default not in (None, ()) else {"help_behavior_hint": ""}
    if parameter.kind is parameter.POSITIONAL_ONLY:
        many = typing.get_origin(kind) is tuple
        how["metavar"] = f"{parameter.name.upper().removesuffix('S')} ..." if many else parameter.name.upper()
        how |= {"help_behavior_hint": ""} if many else {}
    elif type(None) in typing.get_args(kind):
        named = [_named(one) for one in typing.get_args(kind) if one is not type(None)]
        how |= {"metavar": "|".join(named)} if all(named) else {}
    return Annotated[kind, tyro.conf.arg(**how)] if how else kind


def _named(kind: Any) -> str:
    """What help calls a value of this type, "" for types of which it knows better."""
    inner = typing.get_args(kind)
    if typing.get_origin(kind) is Literal:
        return f"{{{','.join(map(str, inner))}}}"
    if typing.get_origin(kind) is tuple and len(inner) == 2 and inner[1] is ...:
        return f"{_named(inner[0])} ..."
    return kind.__name__.upper() if isinstance(kind, type) and not inner else ""


def saved_or_left_last(
    name: str, user: str | None = None, item: str | None = None, time: str | None = None, items: Path | None = None
) -> Split:
    """A saved split by its folder, or a data set (see :func:`recsys.cards.card.data_set`), split leave-last."""
    from recsys.cards.card import data_set
    from recsys.data.split import Split
    from recsys.data.splitters import LeaveLast

    if Path(name).is_dir():
        if any(given is not None for given in (user, item, time, items)):
            raise ValueError(f"{name} is a saved split: leave --user, --item, --time and --items away")
        return Split.load(name)
    return data_set(name, user, item, time, items).split(LeaveLast())


def importable(trust: tuple[str, ...]) -> tuple[str, ...]:
    """``trust``, whose modules may lie in the working folder."""
    from recsys.runs.recipe import add_to_path

    if trust:
        add_to_path(Path.cwd())
    return trust


def raw_ids(given: tuple[str, ...], vocabulary: Vocabulary) -> list[Any] | None:
    """Raw ids as the catalogue has them, from words or from one file: a line each, or the column ``item``.

    Raises:
        FileNotFoundError, DataError: the file is not there, or cannot be read.
    """
    if not given:
        return None
    of_file = len(given) == 1 and Path(given[0]).suffix in _LISTS
    words = listed(Path(given[0])) if of_file else list(given)
    return words if vocabulary.kind == "str" else [_whole(word) for word in words]


def listed(path: Path) -> list[str]:
    """Words for raw ids from one file: a line each, or the column ``item``.

    Raises:
        FileNotFoundError, DataError: the file is not there, or cannot be read.
    """
    import polars as pl

    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path} of item ids")
    try:
        if path.suffix == ".txt":
            return [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
        if path.suffix in (".csv", ".tsv"):
            table = pl.read_csv(path, separator="\t" if path.suffix == ".tsv" else ",", infer_schema=False, glob=False)
        else:
            table = (
                pl.read_parquet(path, glob=False) if path.suffix == ".parquet" else pl.read_ndjson(path.read_bytes())
            )
        if "item" not in table.columns and table.width != 1:
            raise DataError(f"{path} has the columns {', '.join(table.columns)}: name the one of item ids item")
        column = table["item"] if "item" in table.columns else table.to_series(0)
        return [str(one).strip() for one in column.drop_nulls().to_list()]
    except (pl.exceptions.PolarsError, UnicodeError) as error:
        raise DataError(f"{path} cannot be read as a list of item ids ({str(error).splitlines()[0]})") from error


def _whole(word: str) -> Any:
    """An id of a catalogue of numbers; what is no number stays as it is, and is unknown."""
    text = word.strip()
    return int(text) if text.lstrip("-").isdecimal() and len(text) < 20 else word
