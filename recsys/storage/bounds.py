"""A bound on the memory that a saved model may take before its tensors are read: what its file holds, and some more.

A number in a JSON file (a width of 10^12, ten million layers) costs its author nothing; the tensors must be there. So
while a model is made from a file, the sizes that it asks torch for are added up before torch takes them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch.overrides import TorchFunctionMode

from recsys.storage.reading import is_bounded
from recsys.storage.tensors import Sizes

# What any model may ask for besides: 1 GiB of float32, so that the base of a small language model made from its config
# (of which a run keeps the adapters alone) can be made again.
SPARE_ELEMENTS, SPARE_TENSORS = 1 << 28, 4_000
TIMES = 16  # how often what is in the file may be made: as drawn, as copied, in tables that are not saved
_BY_SHAPE = (
    "empty", "zeros", "ones", "full", "rand", "randn", "randint", "new_empty", "new_zeros", "new_ones", "new_full",
    "empty_strided", "repeat",
)  # fmt: skip
_BY_COUNT = ("arange", "linspace", "logspace", "randperm", "eye", "tril_indices", "triu_indices")


@contextmanager
def bounded(sizes: Sizes) -> Iterator[None]:
    """Raise ValueError as soon as what is made inside is far larger than what a file of ``sizes`` could fill."""
    with _Bound(TIMES * sizes.elements + SPARE_ELEMENTS, TIMES * sizes.tensors + SPARE_TENSORS):
        yield


class _Bound(TorchFunctionMode):
    # Not a dispatch mode, which would see more, and loads torch's compiler: seconds for every model that is read.
    def __init__(self, elements: int, tensors: int) -> None:
        super().__init__()
        self.elements, self.tensors = elements, tensors

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name, named = getattr(func, "__name__", ""), kwargs or {}
        if (name in _BY_SHAPE or name in _BY_COUNT) and is_bounded():
            self._take(_asked(name, args, named))
        return func(*args, **named)

    def _take(self, elements: float) -> None:
        self.elements -= int(min(elements, 1 << 62))
        self.tensors -= 1
        if self.elements < 0 or self.tensors < 0:
            raise ValueError(
                "its model is described as far larger than the tensors beside it, so one of the two is not what was "
                "written: copy or write it again"
            )


def _asked(name: str, args: Sequence[Any], named: dict[str, Any]) -> float:
    """How many numbers a call of torch asks for."""
    numbers = [float(one) for one in args if isinstance(one, (int, float))]
    if name == "arange":
        first, last, step = {0: (0.0, 0.0, 1.0), 1: (0.0, *numbers, 1.0), 2: (*numbers, 1.0)}.get(
            len(numbers), tuple(numbers[:3])
        )
        return abs((float(named.get("end", last)) - first) / (float(named.get("step", step)) or 1.0))
    if name in ("linspace", "logspace"):
        return float(named.get("steps", numbers[2] if len(numbers) > 2 else 0.0))
    if name == "randperm":
        return float(named.get("n", numbers[0] if numbers else 0.0))
    if name in _BY_COUNT:
        return numbers[0] * numbers[min(1, len(numbers) - 1)] if numbers else 0.0
    given = named.get("size", named.get("shape"))
    lists = [one for one in (given, *args) if isinstance(one, (list, tuple))]
    shape = lists[0] if lists else numbers
    product = math.prod(float(one) for one in shape if isinstance(one, (int, float)) and one >= 0)
    return product * args[0].numel() if name == "repeat" else product
