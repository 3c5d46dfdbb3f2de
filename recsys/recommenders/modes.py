"""Evaluation mode for as long as a model answers, also when several threads ask it at once."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

from torch import nn

_CHANGING = threading.Lock()
_AT_WORK: WeakKeyDictionary[nn.Module, tuple[int, list[nn.Module]]] = WeakKeyDictionary()  # users, modules in training


@contextmanager
def evaluating(model: Any) -> Iterator[None]:
    """Evaluation mode; the modules that were in training mode are so again when the last thread has left.

    A model that is not a module has no modes.
    """
    if not isinstance(model, nn.Module):
        yield
        return
    with _CHANGING:
        users, training = _AT_WORK.get(model, (0, []))
        if not users:
            training = [module for module in model.modules() if module.training]
            for module in training:
                module.training = False
        _AT_WORK[model] = users + 1, training
    try:
        yield
    finally:
        with _CHANGING:
            users, training = _AT_WORK[model]
            _AT_WORK[model] = users - 1, training if users > 1 else []
            if users == 1:
                for module in training:
                    module.training = True
