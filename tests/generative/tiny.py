"""Small tables of codes, histories, and a beam search to compare with, for tests of decoders."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from recsys.data.batch import Batch
from recsys.items.codes import CodeItems
from recsys.protocols import Context


def code_items(
    codes: Any, sizes: tuple[int, ...], dim: int = 16, tied: bool = True, std: float = 1.0, seed: int = 0
) -> CodeItems:
    """A table with these codes (N, M) of the items 1..N, without a folder."""
    items = CodeItems(dim, "none", tied=tied, std=std)
    table = torch.cat([torch.zeros(1, len(sizes), dtype=torch.int64), torch.as_tensor(np.asarray(codes))])
    items.num_items = len(table) - 1
    items._take(table, torch.tensor(sizes))
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        for weight in {items.tokens, items.prototypes}:
            nn.init.normal_(weight, std=std)
    return items


def random_codes(num_items: int, sizes: tuple[int, ...], seed: int = 0) -> np.ndarray:
    """Distinct codes (N, M)."""
    rng = np.random.default_rng(seed)
    flat = rng.choice(int(np.prod(sizes)), num_items, replace=False)
    return np.stack(np.unravel_index(flat, sizes), 1)


def histories(lengths: tuple[int, ...], num_items: int, seed: int = 0, width: int = 0) -> Batch:
    """Random histories, padded to ``width`` or the longest."""
    generator = torch.Generator().manual_seed(seed)
    sizes, wide = torch.tensor(lengths), max(width, *lengths, 1)
    ids = torch.randint(1, num_items + 1, (len(lengths), 32), generator=generator)[:, :wide]
    rows = torch.arange(len(lengths))
    return Batch(rows, rows, ids * (torch.arange(wide) < sizes[:, None]), sizes)


def bound(part: Any, seed: int = 1) -> Any:
    """The part with fresh weights, in eval mode."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        part.bind(Context(num_items=1))
    return part.eval()


@torch.no_grad()
def plain_beam(decoder: Any, encoded: Any, items: CodeItems, width: int) -> tuple[Tensor, Tensor]:
    """Item rows and log-probabilities (B, width), best first, by a beam of ``width`` in plain loops over prefixes."""
    known = {tuple(codes.tolist()): row for row, codes in enumerate(items.codes) if row}
    begun = decoder.begin(encoded, items)
    found = []
    for user in range(len(encoded.batch)):
        beams: list[tuple[float, tuple[int, ...]]] = [(0.0, ())]
        for level in range(items.levels):
            alive = {codes[: level + 1] for codes in known}
            grown = []
            for total, prefix in beams:
                memory, tokens = begun, None
                for depth in range(level + 1):  # from the start each time: no reordered cache
                    logs, memory = decoder.step(memory, items, tokens, None if tokens is None else tokens * 0)
                    if depth < level:
                        token = items.span(depth).start + prefix[depth]
                        tokens = torch.full((len(encoded.batch), 1), token)
                grown += [
                    (total + float(logs[user, 0, code]), (*prefix, code))
                    for code in range(items.sizes[level])
                    if (*prefix, code) in alive
                ]
            beams = sorted(grown, key=lambda one: -one[0])[:width]
        found.append([(known[prefix], total) for total, prefix in beams])
    return torch.tensor([[row for row, _ in one] for one in found]), torch.tensor(
        [[v for _, v in one] for one in found]
    )


def exact(decoder: Any, encoded: Any, items: CodeItems) -> Tensor:
    """(B, N) log-probabilities of all items, each a beam of its own from the start on."""
    rows = len(encoded.batch)
    numbers = items.token_table[1:].expand(rows, -1, -1)
    beams = torch.arange(items.num_items).expand(rows, -1)
    memory, total = decoder.begin(encoded, items), torch.zeros(1, 1)
    tokens: Tensor | None = None
    parents: Tensor | None = None
    for level in range(items.levels):
        logs, memory = decoder.step(memory, items, tokens, parents)
        codes = items.codes[1:, level].expand(rows, -1)
        at_beam = logs.expand(-1, items.num_items, -1) if level == 0 else logs
        total = total + at_beam.gather(2, codes[..., None])[..., 0]
        tokens = numbers[..., level]
        parents = torch.zeros_like(beams) if level == 0 else beams
    return total
