"""A bound on the memory that a saved model may take before its tensors are read: what its file holds, and some more.

A number in a JSON file (a width of 10^12, ten million layers) costs its author nothing; the tensors must be there. So
while a model is made from a file, the sizes that it asks torch for are added up before torch takes them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode

from recsys.storage.reading import is_bounded
from recsys.storage.tensors import Sizes

SPARE_ELEMENTS, SPARE_TENSORS = 1 << 26, 20_000  # what any model may ask for besides
TIMES = 16  # how often what is in the file may be made: as drawn, as copied, in tables that are not saved
_BY_SIZE = (
    "empty", "zeros", "ones", "full", "rand", "randn", "randint", "new_empty", "new_zeros", "new_ones", "new_full",
    "empty_strided", "empty_permuted",
)  # fmt: skip
_BY_COUNT = ("arange", "linspace", "logspace", "randperm", "eye")


@contextmanager
def bounded(sizes: Sizes) -> Iterator[None]:
    """Raise ValueError as soon as what is made inside is far larger than what a file of ``sizes`` could fill."""
    with _Bound(TIMES * sizes.elements + SPARE_ELEMENTS, TIMES * sizes.tensors + SPARE_TENSORS):
        yield


class _Bound(TorchDispatchMode):
    def __init__(self, elements: int, tensors: int) -> None:
        super().__init__()
        self.elements, self.tensors = elements, tensors

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if (name in _BY_SIZE or name in _BY_COUNT) and is_bounded():
            self._take(_asked(name, args))
        return func(*args, **(kwargs or {}))

    def _take(self, elements: float) -> None:
        self.elements -= int(min(elements, 1 << 62))
        self.tensors -= 1
        if self.elements < 0 or self.tensors < 0:
            raise ValueError(
                "its model is described as far larger than the tensors beside it, so one of the two is not what was "
                "written: copy or write it again"
            )


def _asked(name: str, args: Sequence[Any]) -> float:
    """How many numbers a call of torch asks for."""
    if name in _BY_COUNT:
        numbers = [float(one) for one in args if isinstance(one, (int, float))] or [0.0]
        if name == "arange":
            first, last = (0.0, numbers[0]) if len(numbers) == 1 else (numbers[0], numbers[1])
            return abs((last - first) / (numbers[2] if len(numbers) > 2 and numbers[2] else 1.0))
        if name == "eye":
            return numbers[0] * numbers[-1]
        return numbers[0] if name == "randperm" else numbers[min(2, len(numbers) - 1)]
    shape = next((one for one in args if isinstance(one, (list, tuple))), ())
    return math.prod(one for one in shape if isinstance(one, int))
