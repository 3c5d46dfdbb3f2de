"""Small parts that the tests of unordered codes share: a table of codes, a decoder, encoded histories."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from recsys.data.batch import Batch
from recsys.encoders.sasrec import SASRec
from recsys.generative.set_decoder import SetDecoder
from recsys.items.codes import CodeItems
from recsys.protocols import Context, Encoded

DIM = 16


def code_items(
    codes: np.ndarray, sizes: tuple[int, ...], dim: int = DIM, seed: int = 0, tied: bool = False
) -> CodeItems:
    """A table with these codes (N, M), its vectors drawn with deviation 1."""
    items = CodeItems(dim, ids="none", tied=tied)
    items.num_items = len(codes)
    rows = np.concatenate([np.zeros_like(codes[:1]), codes])
    items._take(torch.from_numpy(rows).long(), torch.tensor(sizes))
    torch.manual_seed(seed)
    nn.init.normal_(items.tokens)
    nn.init.normal_(items.prototypes)
    return items


def random_codes(count: int, sizes: tuple[int, ...], seed: int = 0, distinct: bool = True) -> np.ndarray:
    """(N, M) codes, no two rows alike if ``distinct``."""
    random = np.random.default_rng(seed)
    if not distinct:
        return np.stack([random.integers(0, size, count) for size in sizes], 1)
    chosen = random.choice(int(np.prod(sizes)), count, replace=False)
    return np.stack(np.unravel_index(chosen, sizes), 1)


def set_decoder(levels: int, dim: int = DIM, seed: int = 1, **knobs: object) -> SetDecoder:
    """A decoder with weights large enough that everything it reads matters, in evaluation mode."""
    decoder = SetDecoder(dim, levels, **{"dropout": 0.0, **knobs})  # type: ignore[arg-type]
    torch.manual_seed(seed)
    decoder.bind(Context(1))
    with torch.no_grad():
        for name, value in decoder.named_parameters():
            if value.dim() > 1 and "inner" not in name and "outer" not in name:
                value.mul_(12)
    return decoder.eval()


def histories(num_items: int, lengths: tuple[int, ...] = (4, 1, 6, 3), seed: int = 0) -> Batch:
    """Random histories of these lengths."""
    random = torch.Generator().manual_seed(seed)
    sizes = torch.tensor(lengths)
    ids = torch.randint(1, num_items + 1, (len(lengths), max(lengths)), generator=random)
    inside = torch.arange(max(lengths)) < sizes[:, None]
    return Batch(torch.arange(len(lengths)), torch.arange(len(lengths)), ids * inside, sizes)


def encoded_histories(items: CodeItems, batch: Batch, seed: int = 2) -> Encoded:
    """The histories as a small encoder reads them, all states of them."""
    encoder = SASRec(items.dim, num_layers=1, num_heads=2, max_length=20, dropout=0.0, positions="absolute")
    torch.manual_seed(seed)
    encoder.bind(Context(items.num_items))
    return encoder.eval()(batch.ask_all(), items)
