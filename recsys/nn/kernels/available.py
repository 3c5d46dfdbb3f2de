"""Whether compiled loops can run: numba is an extra (``pip install recsys[fast]``), and nothing may fail without it."""

from __future__ import annotations

import functools
import importlib
import warnings
from types import ModuleType

import torch
from torch import Tensor

KERNELS = ("auto", "numba", "torch", "chunked")


def check_kernel(kernel: str) -> str:
    """``kernel`` itself, if it is one of :data:`KERNELS`.

    Raises:
        ValueError: it is not.
    """
    if kernel not in KERNELS:
        raise ValueError(f"kernel must be one of {', '.join(KERNELS)}, found {kernel!r}")
    return kernel


def compiled(kernel: str, module: str, size: int, x: Tensor) -> ModuleType | None:
    """The module with the compiled loops for ``x``, or None if ``kernel`` or ``x`` is not for them or they fail.

    The first call for a ``size``, which the code is compiled for, has the module work out a small case; if numba is
    missing or anything goes wrong, that is said once per process and the loops in torch do the work.

    Raises:
        ValueError: ``kernel`` is "numba", and ``x`` is not on the CPU or not float32.
    """
    fits = x.device.type == "cpu" and x.dtype == torch.float32
    if kernel == "numba" and not fits:
        raise ValueError(
            f"kernel 'numba' computes float32 on the CPU, found {x.dtype} on {x.device.type}: use kernel='auto'"
        )
    return _load(module, size) if fits and kernel in ("auto", "numba") else None


@functools.cache
def _load(module: str, size: int) -> ModuleType | None:
    try:
        loops = importlib.import_module(f"recsys.nn.kernels.{module}")
        loops.rehearse(size)
    except Exception as error:
        say_once(
            f"no compiled loops ({type(error).__name__}: {error}), so slower ones in torch do the work: "
            "for speed, `pip install recsys[fast]`"
        )
        return None
    return loops


@functools.cache
def say_once(text: str) -> None:
    """Warn, if this process has not said so yet."""
    warnings.warn(text, stacklevel=3)
