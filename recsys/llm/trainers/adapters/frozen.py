"""Weights as buffers, so that no stage of training can move them, and back."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn


class Frozen:
    """All parameters of a module as persistent buffers, under the names that they had, until :meth:`thaw`.

    A weight that goes by several names is one tensor in between and one parameter afterwards.

    Args:
        insert: puts layers around others, whose own parameters stay parameters; if it fails, nothing is frozen.
    """

    def __init__(self, module: nn.Module, insert: Callable[[], None]) -> None:
        trained = {one: one.requires_grad for one in module.parameters()}
        try:
            insert()
        except BaseException:
            for one, flag in trained.items():
                one.requires_grad_(flag)
            raise
        found: dict[nn.Parameter, tuple[Tensor, list[tuple[nn.Module, str]]]] = {}
        for part in module.modules():
            for name, value in part._parameters.items():
                if value is not None and value in trained:
                    found.setdefault(value, (value.detach(), []))[1].append((part, name))
        for tensor, places in found.values():
            for part, name in places:
                del part._parameters[name]
                part.register_buffer(name, tensor)
                setattr(part, name, tensor)  # recurrent layers keep a list of their weights besides
        self._tied = [(trained[one], places) for one, (_, places) in found.items()]

    def thaw(self) -> None:
        """Make parameters of them again; what got a parameter of its own meanwhile, in a part bound anew, keeps it."""
        for trained, found in self._tied:
            places = [(part, name) for part, name in found if name in part._buffers]
            if not places:
                continue
            first, leaf = places[0]
            parameter = nn.Parameter(getattr(first, leaf), requires_grad=trained)
            for part, name in places:
                del part._buffers[name]
                setattr(part, name, parameter)
        self._tied = []
