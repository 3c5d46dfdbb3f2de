"""Shared knobs, written once: a parameter of a recipe that is a dataclass stands for the fields of that dataclass.

``run(weight: float = 0.1, knobs: Knobs = Knobs(epochs=200))`` is called as ``run(weight=0.2, epochs=5)``, has the flags
``--weight 0.2 --epochs 5`` in the shell, and these names are what a run folder records.
"""

from __future__ import annotations

import functools
import inspect
import re
import typing
from collections.abc import Callable, Iterator, Mapping
from dataclasses import MISSING, Field, fields, is_dataclass
from inspect import Parameter
from typing import Any


def flat(function: Callable[..., Any]) -> Callable[..., Any]:
    """``function``, called by the fields of its dataclasses; as it is where it takes none.

    The fields are keyword parameters, those of a derived class before those of its base; their defaults are those of
    the dataclass that is the parameter's default. ``Args:`` of the docstring names all of them, with the words of the
    function, or else of the dataclass.

    Raises:
        TypeError: two parameters have one name.
    """
    signature = inspect.signature(function, eval_str=True)
    shared = {name: one for name, one in signature.parameters.items() if _is_dataclass(one.annotation)}
    if not shared:
        return function
    expanded = {name: list(_fields(one)) for name, one in shared.items()}
    parameters = [each for name, one in signature.parameters.items() for each in expanded.get(name, [one])]
    names = [one.name for one in parameters]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise TypeError(
            f"{function.__name__}(...) has {', '.join(twice)} twice, of its own and in {', '.join(shared)}: "
            "leave one of the two out"
        )
    changed = signature.replace(parameters=sorted(parameters, key=lambda one: one.kind))

    @functools.wraps(function)
    def called(*given: Any, **named: Any) -> Any:
        bound = changed.bind(*given, **named)
        bound.apply_defaults()
        values = dict(bound.arguments)
        for name, inner in expanded.items():
            values[name] = shared[name].annotation(**{one.name: values.pop(one.name) for one in inner})
        original = inspect.BoundArguments(signature, {name: values[name] for name in signature.parameters})  # type: ignore[arg-type]
        return function(*original.args, **original.kwargs)

    called.__signature__ = changed  # type: ignore[attr-defined]
    called.__annotations__ = {one.name: one.annotation for one in parameters}
    called.__doc__ = _documented(function, [one.annotation for one in shared.values()], changed)
    return called


def _is_dataclass(annotation: Any) -> bool:
    return isinstance(annotation, type) and is_dataclass(annotation)


def _fields(parameter: Parameter) -> Iterator[Parameter]:
    """The fields of a parameter's dataclass as keyword parameters, with the defaults of its default."""
    shared, own = parameter.annotation, parameter.default
    hints, known = typing.get_type_hints(shared, include_extras=True), {one.name: one for one in fields(shared)}
    for kind in shared.__mro__:
        for name in inspect.get_annotations(kind):
            if name in known:
                one = known.pop(name)
                default = _default(one) if own is Parameter.empty else getattr(own, name)
                yield Parameter(name, Parameter.KEYWORD_ONLY, default=default, annotation=hints[name])


def _default(field: Field[Any]) -> Any:
    if field.default_factory is not MISSING:
        return field.default_factory()
    return Parameter.empty if field.default is MISSING else field.default


def _documented(function: Callable[..., Any], shared: list[type], changed: inspect.Signature) -> str:
    """The docstring with ``Args:`` of all parameters, in their order.

    What a dataclass says of a default of None, in brackets, is left out where the recipe has another default.
    """
    head, entries, tail = _parted(inspect.getdoc(function) or "")
    known: dict[str, str] = {}
    for kind in [each for one in shared for each in one.__mro__]:
        known = {**_parted(inspect.cleandoc(kind.__doc__ or ""))[1], **known}
    for name, one in changed.parameters.items():
        if name in known and one.default is not None:
            known[name] = re.sub(r" \(default: [^)]*\)", "", known[name])
    known |= entries
    lines = [f"    {name}: {known[name]}" for name in changed.parameters if name in known]
    return "\n".join([head.rstrip(), "", "Args:", *lines, "", tail.strip()]).strip() + "\n"


def _parted(text: str) -> tuple[str, Mapping[str, str], str]:
    """A docstring's text before ``Args:``, the text of each argument, and what follows."""
    lines = text.splitlines()
    if "Args:" not in lines:
        return text, {}, ""
    at = lines.index("Args:")
    end = next((i for i in range(at + 1, len(lines)) if lines[i] and not lines[i].startswith(" ")), len(lines))
    entries: dict[str, str] = {}
    name = ""
    for line in lines[at + 1 : end]:
        if line.startswith("    ") and not line.startswith("     "):
            name, _, said = line.strip().partition(": ")
            entries[name] = said
        elif line.strip() and name:
            entries[name] += f" {line.strip()}"
    return "\n".join(lines[:at]), entries, "\n".join(lines[end:])
