"""How the parts of a model are found and their hooks called, modules or not, nested ones too.

What a part holds are its modules and what its constructor was given (a part keeps each constructor argument as an
attribute of the same name). Who holds parts and has ``bind`` binds them with :func:`bind`; where nothing in between has
``bind``, that is done for it.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import lru_cache
from types import MappingProxyType
from typing import Any

from torch import Tensor, nn

DEFAULTS: Mapping[str, Any] = MappingProxyType({
    "needs": frozenset(), "gives": frozenset(), "reads": frozenset(), "newest_only": False, "longest": None,
    "as_ranked": False, "rows_behind": 0, "appends": 0, "keeps_events": True, "writes_mask": False,
    "scheme": "windows", "draw": None, "carried": (), "may_read": frozenset(), "whole": False,
    "reads_behind": True,
})  # fmt: skip


def member(part: Any, name: str) -> Any:
    """What a part says under ``name``, one of ``DEFAULTS``, which has what holds for a part that says nothing.

    The table at the top of :mod:`recsys.protocols` tells what each means.

    >>> member(object(), "rows_behind")
    0
    """
    return getattr(part, name, DEFAULTS[name])


class PartList(nn.Module):
    """Parts in order, modules or not; modules are registered under their number, as in ``nn.ModuleList``."""

    def __init__(self, parts: Iterable[Any] = ()) -> None:
        super().__init__()
        self._others: dict[int, Any] = {}
        self._count = 0
        for part in parts:
            self.append(part)

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Any]:
        return (self[number] for number in range(len(self)))

    def __getitem__(self, number: int) -> Any:
        number = range(len(self))[number]
        return self._others[number] if number in self._others else self._modules[str(number)]

    def __setitem__(self, number: int, part: Any) -> None:
        number = range(len(self))[number]
        self._others.pop(number, None)
        self._modules.pop(str(number), None)
        if isinstance(part, nn.Module):
            self.add_module(str(number), part)
        else:
            self._others[number] = part

    def append(self, part: Any) -> None:
        """Put a part behind the others."""
        self._count += 1
        self[self._count - 1] = part


def parts_of(model: Any, used: bool = False) -> list[tuple[str, Any]]:
    """Every part of ``model`` by its path (itself first, under ""), each once, outer ones before what they hold.

    Args:
        used: leave out the auxiliaries whose weight is 0, and what only they hold.
    """
    idle = {id(part) for part in unused(model)} if used else set()
    found: dict[int, tuple[str, Any]] = {}

    def walk(name: str, part: Any) -> None:
        if id(part) in found or id(part) in idle:
            return
        found[id(part)] = name, part
        for inner, value in _held(part):
            walk(f"{name}.{inner}" if name else inner, value)

    walk("", model)
    return list(found.values())


def unused(model: Any) -> list[Any]:
    """The auxiliaries of ``model`` whose weight is 0: no part of the training."""
    return [part for part in getattr(model, "auxiliaries", ()) if not getattr(part, "weight", 1)]


def call(model: Any, hook: str, *arguments: Any) -> None:
    """Call ``hook`` of every part of ``model`` that has it."""
    for _, part in having(model, hook):
        getattr(part, hook)(*arguments)


def having(model: Any, hook: str, used: bool = False) -> list[tuple[str, Any]]:
    """The parts of ``model`` that have the method ``hook``, by path; ``used`` as in :func:`parts_of`."""
    return [(name, part) for name, part in parts_of(model, used) if callable(getattr(part, hook, None))]


def needs_of(*parts: Any) -> frozenset[str]:
    """The optional batch fields that these parts, or parts in them, read."""
    fields = [member(part, "needs") for one in parts for _, part in parts_of(one, used=True)]
    return frozenset().union(*(found for found in fields if isinstance(found, (frozenset, set, tuple, list))))


def unread(encoder: Any, *losses: Any) -> list[tuple[Any, type]]:
    """The parts of ``losses``, or parts in them, that read a class which ``encoder`` does not give, and that class."""
    given = member(encoder, "gives")
    parts = [part for one in losses for _, part in parts_of(one, used=True)]
    kinds = [(part, kind) for part in parts for kind in member(part, "reads") if isinstance(kind, type)]
    return [(part, kind) for part, kind in kinds if kind not in given]


def sources(model: Any) -> dict[str, Any]:
    """What the used parts of ``model`` read from elsewhere, as hashes by path."""
    return {name: part.sources() for name, part in having(model, "sources", used=True)}


def bind(part: Any, context: Any) -> None:
    """Bind a part: by its own ``bind``, else by initialising its layers anew and binding what it holds."""
    _bind(part, context, isinstance(part, nn.Module), set())


def _bind(part: Any, context: Any, own: bool, seen: set[int]) -> None:
    """``own``: the weights of ``part`` are the model's to initialise, and not of something it was handed to read."""
    if id(part) in seen:
        return
    seen.add(id(part))
    hook: Callable[[Any], None] | None = getattr(part, "bind", None)
    if callable(hook):
        hook(context)
        return
    reset = getattr(part, "reset_parameters", None)
    if own and callable(reset):
        reset()
    registered = {id(module) for module in part._modules.values()} if isinstance(part, nn.Module) else set()
    for _, inner in _held(part):
        _bind(inner, context, own and id(inner) in registered, seen)


def _held(part: Any) -> Iterator[tuple[str, Any]]:
    """Name and value of the parts that ``part`` holds."""
    named: dict[str, Any] = dict(part._modules) if isinstance(part, nn.Module) else {}
    if isinstance(part, PartList):
        named = {str(number): one for number, one in enumerate(part)}
    for name in _arguments(part.__class__):
        value = named.get(name, getattr(part, name, None))
        if name in named or value is getattr(part, name, None):  # not what a property makes anew each time
            named[name] = value
    for name, value in named.items():
        yield from _parts_in(name, value)


def _parts_in(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, (list, tuple)):
        for number, inner in enumerate(value):
            yield from _parts_in(f"{name}.{number}", inner)
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _parts_in(f"{name}.{key}", inner)
    elif isinstance(value, nn.Module) or _may_be_part(value):
        yield name, value


def _may_be_part(value: Any) -> bool:
    """Whether it is an object of some class, not plain data, an array, a function or a class."""
    if inspect.isroutine(value):
        return inspect.isfunction(value)  # a function may carry hooks as attributes
    return not (isinstance(value, (type, Tensor)) or type(value).__module__.partition(".")[0] in _PLAIN)


_PLAIN = {"builtins", "numpy", "torch", "pathlib", "collections", "datetime", "decimal", "fractions"}


@lru_cache(maxsize=1024)
def _arguments(cls: type) -> tuple[str, ...]:
    """The names that the constructor of ``cls`` takes, as far as its own code says them."""
    made = inspect.getattr_static(cls, "__init__")
    if made in (object.__init__, nn.Module.__init__) or cls.__module__.partition(".")[0] in _PLAIN:
        return ()
    try:
        given = list(inspect.signature(made).parameters.values())[1:]
    except (ValueError, TypeError):
        return ()
    variable = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return tuple(one.name for one in given if one.kind not in variable)
