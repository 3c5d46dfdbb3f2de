"""What may be tried of a recipe's knobs: ranges and choices.

A recipe says so in ``RANGES``, by the names of its parameters; the file of its shared knobs has theirs (``_knobs.py``).
In the shell and in a mapping of texts: ``1e-4..1e-2 log``, ``0..0.6``, ``1..4`` (whole numbers), ``32,64,128``.
"""

from __future__ import annotations

import inspect
import math
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, is_dataclass
from typing import Any

from recsys.errors import closest


@dataclass(frozen=True)
class Range:
    """Numbers from ``low`` to ``high``, both included; whole ones if both are whole.

    Args:
        log: search by factors instead of differences.

    Raises:
        ValueError: the range is empty, not finite, or by factors from 0.
    """

    low: float
    high: float
    log: bool = False

    def __post_init__(self) -> None:
        if not (math.isfinite(self.low) and math.isfinite(self.high) and self.low < self.high):
            raise ValueError(f"a range goes from a number to a larger one, found {self.low} to {self.high}")
        if self.log and self.low <= 0:
            raise ValueError(f"a range by factors begins above 0, found {self.low}")

    def draw(self, trial: Any, name: str) -> Any:
        """What an optuna trial takes."""
        whole = isinstance(self.low, int) and isinstance(self.high, int)
        return (trial.suggest_int if whole else trial.suggest_float)(name, self.low, self.high, log=self.log)

    def __str__(self) -> str:
        return f"{self.low:g}..{self.high:g}{' log' if self.log else ''}"


@dataclass(frozen=True)
class Choice:
    """One of several values.

    Raises:
        ValueError: there are fewer than two.
    """

    values: tuple[Any, ...]

    def __post_init__(self) -> None:
        if len(set(self.values)) < 2:
            raise ValueError(f"a choice needs at least two values, found {self.values}")

    def draw(self, trial: Any, name: str) -> Any:
        """What an optuna trial takes."""
        return trial.suggest_categorical(name, list(self.values))

    def __str__(self) -> str:
        return ",".join(map(str, self.values))


Space = Mapping[str, Range | Choice]


def space_of(function: Callable[..., Any], ranges: Mapping[str, Any] | None = None, only: bool = False) -> Space:
    """The space of a recipe's function: what its file says in ``RANGES``, and what is given instead or besides.

    Args:
        ranges: name -> a :class:`Range`, a :class:`Choice`, a text (see the top of this file), or None: not tried.
        only: nothing but ``ranges``.

    Raises:
        ValueError: a name is no parameter of the recipe, a text cannot be read, or nothing is left to try.
    """
    told = {} if only else _told(inspect.unwrap(function))
    known = inspect.signature(function).parameters
    found: dict[str, Any] = {name: one for name, one in told.items() if name in known} | dict(ranges or {})
    for name in found:
        if name not in known:
            raise ValueError(f"the recipe has no parameter {name!r}; {closest(name, known)}")
    space = {name: read(one) if isinstance(one, str) else one for name, one in found.items() if one is not None}
    if not space:
        raise ValueError(
            "nothing is to be tried: the recipe has no RANGES, so give some, such as "
            "--try 'learning_rate=1e-4..1e-2 log'"
        )
    return space


def _told(function: Callable[..., Any]) -> dict[str, Any]:
    """``RANGES`` of the recipe's file, and before them those of the files of its shared knobs."""
    kinds = [one.annotation for one in inspect.signature(function, eval_str=True).parameters.values()]
    bases = [base for kind in kinds if is_dataclass(kind) and isinstance(kind, type) for base in kind.__mro__[::-1]]
    modules = dict.fromkeys([*(base.__module__ for base in bases), function.__module__])
    return {name: one for module in modules for name, one in getattr(sys.modules.get(module), "RANGES", {}).items()}


def read(text: str) -> Range | Choice:
    """A range or choice as text.

    >>> read("1e-4..1e-2 log"), read("32,64")
    (Range(low=0.0001, high=0.01, log=True), Choice(values=(32, 64)))

    Raises:
        ValueError: it is neither.
    """
    body, log = text.strip(), False
    if body.endswith(" log"):
        body, log = body[:-4].strip(), True
    low, dots, high = body.partition("..")
    try:
        if dots:
            return Range(_number(low), _number(high), log)
        if "," in body and not log:
            return Choice(tuple(_value(one.strip()) for one in body.split(",")))
    except ValueError as error:
        raise ValueError(f"{text!r} is no range: {error}") from error
    raise ValueError(f"{text!r} is neither a range, such as 1e-4..1e-2 log, nor a choice, such as 32,64,128")


def _number(text: str) -> float:
    try:
        return int(text)
    except ValueError:
        return float(text)


def _value(text: str) -> Any:
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    try:
        return _number(text)
    except ValueError:
        return text
