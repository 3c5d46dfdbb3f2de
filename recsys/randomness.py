"""Every random number derives from (seed, names): nothing depends on what ran before it.

A generator asked for by the same seed and names always starts at the same place, so a part that is switched off
changes nothing for the others, and a run resumed at step 1,000 draws what the uninterrupted run drew there.
"""

from __future__ import annotations

import hashlib

import numpy as np
import torch


def derive_seed(seed: int, *names: str | int) -> int:
    """A 63-bit seed for the stream called ``names`` under ``seed``.

    >>> derive_seed(7, "negatives", 0, 3) == derive_seed(7, "negatives", 0, 3)
    True
    >>> derive_seed(7, "negatives", 0, 3) == derive_seed(7, "dropout", 0, 3)
    False
    """
    key = "\x1f".join([str(int(seed)), *(f"{type(name).__name__}:{name}" for name in names)])
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "little") >> 1


def torch_generator(seed: int, *names: str | int, device: torch.device | str = "cpu") -> torch.Generator:
    """A torch generator for the stream called ``names`` under ``seed``, on ``device``."""
    return torch.Generator(device=device).manual_seed(derive_seed(seed, *names))


def numpy_generator(seed: int, *names: str | int) -> np.random.Generator:
    """A numpy generator for the stream called ``names`` under ``seed``."""
    return np.random.default_rng(derive_seed(seed, *names))
