"""Parts as class name and JSON arguments, so that run folders and bundles load without pickle.

One convention carries it: a part keeps every constructor argument as an attribute of the same name. A part that is
used twice is described once, with a number ("shared"), and named by that number where it is used again. A class whose
new argument has a default that changes what it computes says in ``former`` which value stands for what it did before,
one that has lost an argument says in ``retired`` which value is what it does now, and what to do about any other.
"""

from __future__ import annotations

import collections.abc
import importlib
import inspect
import sys
import types
import typing
from collections import Counter
from collections.abc import Sequence
from typing import Any

from torch import nn

from recsys.errors import printable
from recsys.storage.former import present
from recsys.storage.reading import inert

_PLAIN = (str, int, float, bool, type(None))
# Where parts are defined, besides what the user trusts. Nothing here reads a model or asks a network by its making.
PACKAGES = (
    "recsys.recommenders", "recsys.items", "recsys.encoders", "recsys.objectives", "recsys.auxiliaries",
    "recsys.augmentations", "recsys.targets", "recsys.negatives", "recsys.weighting", "recsys.statistics.similarity",
    "recsys.nn", "recsys.llm.tokens", "recsys.llm.trainers", "recsys.generative", "recsys.preferences",
)  # fmt: skip
_METHODS = (("train", "query"), ("sample",))  # what a part has that is not a module: targets, negatives


def describe(part: Any) -> dict[str, Any]:
    """``{"class": "module:Name", "arguments": {...}}`` of a part, nested parts included.

    Raises:
        TypeError: an argument is not kept as an attribute, or is neither plain data nor a part.
    """
    return _describe(part, {id(one): number for number, one in enumerate(_shared(part), 1)}, set())


def title(part: Any) -> str:
    """The class of a part and those plain arguments that are not its defaults, to tell two of a kind apart.

    >>> from recsys.negatives.uniform import UniformNegatives
    >>> title(UniformNegatives(count=64))
    'UniformNegatives(count=64)'
    """
    defaults = {name: entry.default for name, entry in inspect.signature(type(part)).parameters.items()}
    given = {name: getattr(part, name, default) for name, default in defaults.items()}
    told = [
        f"{name}={given[name]!r}" for name in given if isinstance(given[name], _PLAIN) and given[name] != defaults[name]
    ]
    return type(part).__name__ + (f"({', '.join(told)})" if told else "")


def build(description: dict[str, Any], trust: Sequence[str] = ()) -> Any:
    """The part that :func:`describe` described, freshly constructed; nothing else is read meanwhile.

    Only parts are made: public classes of :data:`PACKAGES` that are modules, targets or negatives, each for an argument
    that it fits. Code of anybody else runs only if its module (or a package above it) is listed in ``trust``.

    Raises:
        PermissionError: the class lives in a module that is neither ours nor trusted, or its making would read from
            somewhere else.
        ValueError: the name does not lead to a part, or the part does not fit the argument it is for.
    """
    with inert(trust):
        return _build(description, tuple(trust), {})


def with_new_defaults(before: Any, now: Any) -> Any:
    """``before``, plain data with descriptions of parts that an earlier version wrote, with the arguments that they got
    since, as far as ``now``, the same by this version, leaves them at their defaults."""
    if isinstance(before, list) and isinstance(now, list) and len(before) == len(now):
        return [with_new_defaults(left, right) for left, right in zip(before, now, strict=True)]
    if not isinstance(before, dict) or not isinstance(now, dict):
        return before
    found = {key: with_new_defaults(value, now[key]) if key in now else value for key, value in before.items()}
    own, others = found.get("arguments"), now.get("arguments")
    if isinstance(own, dict) and isinstance(others, dict) and before.get("class") == now.get("class"):
        defaults = _defaults(str(now["class"]))
        new = {name: value for name, value in others.items() if name not in own and name in defaults}
        found["arguments"] = own | {name: value for name, value in new.items() if defaults[name] == value}
    return found


def _defaults(name: str) -> dict[str, Any]:
    """The plain default values of the constructor of a class whose module is imported, by argument."""
    module, _, qualified = name.partition(":")
    found: Any = sys.modules.get(module)
    for one in qualified.split("."):
        found = getattr(found, one, None)
    if not isinstance(found, type):
        return {}
    plain = {
        key: one.default for key, one in inspect.signature(found).parameters.items() if isinstance(one.default, _PLAIN)
    }
    return plain | dict(getattr(found, "former", {}))


def class_of(description: Any, trust: Sequence[str] = ()) -> type:
    """The class of the part that was described, without making it; errors as of :func:`build`."""
    if not isinstance(description, dict) or not isinstance(description.get("class"), str):
        raise ValueError(f"a part is expected, as class and arguments; found {printable(repr(description))}")
    return _resolve(description["class"], tuple(trust))


def _describe(part: Any, numbers: dict[int, int], told: set[int]) -> dict[str, Any]:
    cls = type(part)
    name = f"{cls.__module__}:{cls.__qualname__}"
    number = numbers.get(id(part))
    if number in told:
        return {"class": name, "shared": number}
    arguments = {}
    for argument, value in _arguments(part).items():
        arguments[argument] = _encode(value, f"{cls.__name__}.{argument}", numbers, told)
    if number is None:
        return {"class": name, "arguments": arguments}
    told.add(number)
    return {"class": name, "arguments": arguments, "shared": number}


def _arguments(part: Any) -> dict[str, Any]:
    """What the constructor of a part was given, by name."""
    cls = type(part)
    inherited = cls.__init__ in (object.__init__, nn.Module.__init__)
    parameters = {} if inherited else dict(list(inspect.signature(cls.__init__).parameters.items())[1:])
    found = {}
    for name, parameter in parameters.items():
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            raise TypeError(f"{cls.__name__} takes *{name}: a part names each constructor argument, so it can be saved")
        if not hasattr(part, name):
            raise TypeError(f"{cls.__name__} does not keep its argument {name!r}: set self.{name} = {name} in __init__")
        found[name] = getattr(part, name)
    return found


def _shared(part: Any) -> list[Any]:
    """The parts inside ``part`` that several arguments, or one of them several times, hold."""
    found: dict[int, Any] = {}
    times: Counter[int] = Counter()

    def walk(value: Any) -> None:
        if _is_list(value) or isinstance(value, dict):
            for inner in value.values() if isinstance(value, dict) else value:
                walk(inner)
        elif not isinstance(value, _PLAIN) and not _is_code(value):
            times[id(value)] += 1
            if id(value) not in found:
                found[id(value)] = value
                for inner in _arguments(value).values():
                    walk(inner)

    walk(part)
    return [one for key, one in found.items() if times[key] > 1]


def _encode(value: Any, where: str, numbers: dict[int, int], told: set[int]) -> Any:
    if isinstance(value, _PLAIN):
        return value
    if _is_list(value):
        return [_encode(inner, where, numbers, told) for inner in value]
    if isinstance(value, dict):
        return {str(key): _encode(inner, where, numbers, told) for key, inner in value.items()}
    if _is_code(value):
        raise TypeError(f"{where} holds {value!r}, which cannot be written as JSON: pass plain values or parts")
    return _describe(value, numbers, told)


def _is_list(value: Any) -> bool:
    return isinstance(value, (list, tuple)) or type(value).__name__ in ("ModuleList", "PartList", "frozenset")


def _is_code(value: Any) -> bool:
    return inspect.isroutine(value) or inspect.isclass(value) or type(value).__module__ == "builtins"


def _build(description: Any, trust: tuple[str, ...], made: dict[Any, Any]) -> Any:
    cls = class_of(description, trust)
    name, number = description["class"], description.get("shared")
    if "arguments" not in description:
        if not isinstance(number, int) or number not in made:
            raise ValueError(
                f"{printable(name)} is to be shared part number {printable(number)}, which is not described: the "
                "folder is damaged"
            )
        return made[number]
    given = description["arguments"]
    if not isinstance(given, dict):
        raise ValueError(f"{printable(name)} has arguments that are not an object: {printable(repr(given))}")
    arguments = {key: _decode(value, trust, made) for key, value in given.items()}
    for key, (now, instead) in getattr(cls, "retired", {}).items():
        if arguments.pop(key, now) != now:
            shown = printable(repr(given[key]))
            raise ValueError(f"{cls.__name__} has no {key}={shown} any more: {instead}, or load it with recsys 0.1")
    if not _inside(cls.__module__, trust):
        _check_arguments(cls, arguments)
    part = cls(**{**getattr(cls, "former", {}), **arguments})
    if isinstance(number, int):
        made[number] = part
    return part


def _decode(value: Any, trust: tuple[str, ...], made: dict[Any, Any]) -> Any:
    if isinstance(value, list):
        return [_decode(inner, trust, made) for inner in value]
    if isinstance(value, dict):
        if "class" in value and value.keys() <= {"class", "arguments", "shared"} and len(value) > 1:
            return _build(value, trust, made)
        return {key: _decode(inner, trust, made) for key, inner in value.items()}
    return value


def _resolve(name: str, trust: tuple[str, ...]) -> type:
    name = present(name)
    module, _, qualname = name.partition(":")
    trusted, ours = _inside(module, trust), _inside(module, PACKAGES)
    if not trusted and not ours and not _inside(module, ("recsys",)):
        raise PermissionError(
            f"this folder asks for {printable(name)}, which is not part of recsys, and loading it would run its code; "
            f"if you know it and want that, pass trust=[{printable(repr(module))}]"
        )
    if not trusted and (not ours or any(word.startswith("_") for word in (*module.split("."), qualname))):
        raise ValueError(f"{printable(name)} is not a part of a model: this folder is damaged, or made to do harm")
    try:
        found = getattr(importlib.import_module(module), qualname, None)
    except ModuleNotFoundError as error:
        raise ValueError(
            f"{printable(name)} cannot be loaded ({error}): install its package, or put the folder of {module} on "
            "PYTHONPATH"
        ) from error
    if not isinstance(found, type) or found.__module__ != module:
        raise ValueError(
            f"{printable(name)} is not a class defined in {printable(module)}; the folder was written by another "
            "version?"
        )
    if not trusted and not _is_part(found):
        raise ValueError(f"{printable(name)} is not a part of a model: this folder is damaged, or made to do harm")
    return found


def _inside(module: str, roots: Sequence[str]) -> bool:
    return any(module == root or module.startswith(f"{root}.") for root in roots)


def _is_part(cls: type) -> bool:
    if getattr(cls, "_is_protocol", False):
        return False
    if issubclass(cls, nn.Module):
        return True
    return any(all(callable(getattr(cls, name, None)) for name in names) for names in _METHODS)


def _check_arguments(cls: type, arguments: dict[str, Any]) -> None:
    """Raise ValueError where an argument is a part and none is asked for, or is not the part asked for."""
    try:
        hints = typing.get_type_hints(cls.__init__)  # type: ignore[misc]
    except (NameError, TypeError):  # annotations that only a type checker can resolve
        return
    for name, value in arguments.items():
        if name in hints and not _fits(value, hints[name]):
            wanted = getattr(hints[name], "__name__", None) or str(hints[name])
            found = type(value).__name__ if not isinstance(value, _PLAIN) else printable(repr(value))
            raise ValueError(f"{cls.__name__}.{name} must be {wanted}, found {found}: the folder is damaged")


def _fits(value: Any, hint: Any) -> bool:
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, one) for one in inner)
    if origin is typing.Annotated:
        return _fits(value, inner[0])
    if origin in (collections.abc.Sequence, list, tuple, set, frozenset):
        return isinstance(value, list) and (not inner or all(_fits(one, inner[0]) for one in value))
    if hint in (Any, inspect.Parameter.empty) or isinstance(hint, typing.TypeVar):
        return True
    if origin is typing.Literal:
        return not _is_made(value)  # its part says better which words it takes
    if origin is not None:
        return isinstance(value, dict) if origin in (dict, collections.abc.Mapping) else not _is_made(value)
    if hint in (int, float, bool):
        return isinstance(value, (int, float))
    if hint is None:
        return value is None
    if getattr(hint, "_is_protocol", False):
        return _is_made(value) and _follows(value, hint)
    return isinstance(value, hint) if isinstance(hint, type) else True


def _follows(value: Any, protocol: Any) -> bool:
    """Whether a part has what a protocol asks for, numbers where it says numbers, and is called as it says."""
    if getattr(protocol, "_is_runtime_protocol", False) and not isinstance(value, protocol):
        return False
    kinds: dict[Any, Any] = {int: int, float: (int, float), str: str, bool: bool}
    for name, hint in typing.get_type_hints(protocol).items():
        computed = isinstance(getattr(type(value), name, None), property)  # perhaps not before it is bound
        if hint in kinds and not computed and not isinstance(getattr(value, name, None), kinds[hint]):
            return False
    if "__call__" not in vars(protocol):
        return True
    asked = list(inspect.signature(protocol.__call__).parameters)[1:]
    call = value.forward if isinstance(value, nn.Module) else value.__call__
    try:
        inspect.signature(call).bind(*asked)
    except TypeError:
        return False
    return getattr(call, "__name__", "") != "_forward_unimplemented"


def _is_made(value: Any) -> bool:
    return not isinstance(value, (*_PLAIN, list, dict))
