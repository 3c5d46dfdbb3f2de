"""Parts as class name and JSON arguments, so that run folders and bundles load without pickle.

One convention carries it: a part keeps every constructor argument as an attribute of the same name.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Sequence
from typing import Any

from torch import nn

_PLAIN = (str, int, float, bool, type(None))


def describe(part: Any) -> dict[str, Any]:
    """``{"class": "module:Name", "arguments": {...}}`` of a part, nested parts included.

    Raises:
        TypeError: an argument is not kept as an attribute, or is neither plain data nor a part.
    """
    cls = type(part)
    arguments = {}
    inherited = cls.__init__ in (object.__init__, nn.Module.__init__)
    parameters = {} if inherited else dict(list(inspect.signature(cls.__init__).parameters.items())[1:])
    for name, parameter in parameters.items():
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            raise TypeError(f"{cls.__name__} takes *{name}: a part names each constructor argument, so it can be saved")
        if not hasattr(part, name):
            raise TypeError(f"{cls.__name__} does not keep its argument {name!r}: set self.{name} = {name} in __init__")
        arguments[name] = _encode(getattr(part, name), f"{cls.__name__}.{name}")
    return {"class": f"{cls.__module__}:{cls.__qualname__}", "arguments": arguments}


def title(part: Any) -> str:
    """The class of a part and those plain arguments that are not its defaults, to tell two of a kind apart.

    >>> from recsys.data.negatives import UniformNegatives
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
    """The part that :func:`describe` described, freshly constructed.

    Only classes defined in ``recsys`` are resolved; code of anybody else runs only if its module (or a package above
    it) is listed in ``trust``.

    Raises:
        PermissionError: the class lives in a module that is neither ours nor trusted.
        ValueError: the name does not lead to a class, or its module is not there.
    """
    cls = _resolve(description["class"], tuple(trust))
    return cls(**{name: _decode(value, trust) for name, value in description["arguments"].items()})


def _encode(value: Any, where: str) -> Any:
    if isinstance(value, _PLAIN):
        return value
    if isinstance(value, (list, tuple)) or type(value).__name__ in ("ModuleList", "frozenset"):
        return [_encode(inner, where) for inner in value]
    if isinstance(value, dict):
        return {str(key): _encode(inner, where) for key, inner in value.items()}
    if inspect.isroutine(value) or inspect.isclass(value) or type(value).__module__ == "builtins":
        raise TypeError(f"{where} holds {value!r}, which cannot be written as JSON: pass plain values or parts")
    return describe(value)


def _decode(value: Any, trust: Sequence[str]) -> Any:
    if isinstance(value, list):
        return [_decode(inner, trust) for inner in value]
    if isinstance(value, dict):
        if set(value) == {"class", "arguments"}:
            return build(value, trust)
        return {key: _decode(inner, trust) for key, inner in value.items()}
    return value


def _resolve(name: str, trust: tuple[str, ...]) -> type:
    module, _, qualname = name.partition(":")
    if not any(module == root or module.startswith(f"{root}.") for root in ("recsys", *trust)):
        raise PermissionError(
            f"this folder asks for {name}, which is not part of recsys, and loading it would run its code; "
            f"if you know it and want that, pass trust=[{module!r}]"
        )
    try:
        found = getattr(importlib.import_module(module), qualname, None)
    except ModuleNotFoundError as error:
        raise ValueError(
            f"{name} cannot be loaded ({error}): install its package, or put the folder of {module} on PYTHONPATH"
        ) from error
    if not isinstance(found, type) or found.__module__ != module:
        raise ValueError(f"{name} is not a class defined in {module}; the folder was written by another version?")
    return found
