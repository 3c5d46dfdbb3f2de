"""One of two processes that contrast together; started by test_contrast.py, imports as little as possible."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from torch import Tensor, distributed

from recsys.auxiliaries.contrast import alike, info_nce, nt_xent

TEMPERATURE = 0.7
# Two processes: (pairs, width) of each, so that numbers and widths differ and one brings nothing.
SHARES = [((3, 4), (2, 4)), ((5, 4), (0, 0)), ((2, 4), (3, 2))]


def problem(count: int = 5, width: int = 4, seed: int = 0) -> tuple[Tensor, Tensor]:
    torch.manual_seed(seed)
    return torch.randn(count, width, requires_grad=True), torch.randn(count, width, requires_grad=True)


def shared(shares: tuple[tuple[int, int], ...]) -> tuple[Tensor, Tensor, Tensor]:
    """The whole problem: vectors narrower than the widest are zero behind their width."""
    first, second = (values.detach() for values in problem())
    widths = torch.cat([torch.full((count,), width) for count, width in shares])
    inside = torch.arange(4) < widths[:, None]
    return first * inside, second * inside, torch.tensor([1, 2, 1, 1, 3])


def process(folder: Path, rank: int) -> None:
    """What one of two processes does."""
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    results = []
    for shares in SHARES:
        start, (count, width) = sum(share[0] for share in shares[:rank]), shares[rank]
        first, second, labels = (values[start : start + count] for values in shared(shares))
        first, second = first[:, :width].clone().requires_grad_(), second[:, :width]
        for loss in (nt_xent, info_nce):
            found = loss(first, second, TEMPERATURE, hide=alike(labels), keep=0.2)
            (slope,) = torch.autograd.grad(found, first)
            results.append({"loss": found.item(), "slope": slope.flatten().tolist()})
    (folder / f"{rank}.json").write_text(json.dumps(results))
    distributed.barrier()
    distributed.destroy_process_group()


if __name__ == "__main__":
    process(Path(sys.argv[1]), int(sys.argv[2]))
