"""One of two processes that train with the triplet loss; started by test_laclrec.py."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from torch import Tensor, distributed, nn

from recsys.auxiliaries.contrast import inputs, newest
from recsys.auxiliaries.editor import Editor
from recsys.auxiliaries.triplet import TripletContrast
from recsys.data.batch import Batch
from recsys.encoders.sasrec import SASRec
from recsys.items.ids import IdItems
from recsys.objectives.softmax import FullSoftmax
from recsys.protocols import Step
from recsys.recommenders.composed import Recommender
from recsys.testing import toy_batch, toy_context

ROWS = 7


class Newest(nn.Module):
    """A view that no random number decides, so that it is the same in any process."""

    def forward(self, batch: Batch, generator: torch.Generator) -> Batch:
        return newest(inputs(batch), 2)


def slope(reduction: str, rows: slice) -> Tensor:
    """The gradient of the item table by the terms of some of the rows."""
    editor = Editor(16, max_length=12, dropout=0.0)
    part = TripletContrast(editor=editor, triplet=0.5, views=Newest(), reduction=reduction)
    model = Recommender(IdItems(16, extra=2), SASRec(16, 1, 1, 0.0, 12), FullSoftmax(), auxiliaries=[part])
    model.bind(toy_context())
    part.taught.fill_(True)
    batch = toy_batch((8,) * ROWS)
    batch = model.prepare(batch, Step(batch)).select(torch.arange(ROWS)[rows])
    torch.stack(list(part(Step(batch, seed=1, items=model.items, encode=model.encode)).values())).sum().backward()
    found: Tensor = model.items.weight.grad
    return found


def process(folder: Path, rank: int) -> None:
    """What one of two processes does."""
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    found = []
    for reduction in ("sum", "mean"):
        own = slope(reduction, slice(rank, ROWS, 2))
        distributed.all_reduce(own)
        found.append(own / 2)  # as DDP averages
    if rank == 0:
        torch.save(found, folder / "slopes.pt")
    distributed.barrier()
    distributed.destroy_process_group()


if __name__ == "__main__":
    process(Path(sys.argv[1]), int(sys.argv[2]))
