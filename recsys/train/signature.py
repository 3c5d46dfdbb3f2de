"""A function that takes the fields of a dataclass by name, without listing them again."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, Concatenate, ParamSpec, TypeVar

First = TypeVar("First")
Second = TypeVar("Second")
Made = TypeVar("Made")
Given = ParamSpec("Given")


def takes(
    knobs: Callable[Given, Any],
) -> Callable[[Callable[Concatenate[First, Second, ...], Made]], Callable[Concatenate[First, Second, Given], Made]]:
    """Let a function of two arguments and any others show the fields of the dataclass ``knobs`` as those others.

    Type checkers see it as written here, ``help`` and ``inspect`` by its signature; the function itself is the same.
    """

    def shown(function: Any) -> Any:
        own = list(inspect.signature(function).parameters.values())
        named = {one.name for one in own}
        fields = inspect.signature(knobs).parameters.values()
        listed = [one for one in own if one.kind is not inspect.Parameter.VAR_KEYWORD]
        more = [one for one in fields if one.name not in named]
        function.__signature__ = inspect.signature(function).replace(parameters=[*listed, *more])
        return function

    return shown
