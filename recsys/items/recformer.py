"""Items as an encoder of texts has them (Recformer): a matrix that it makes anew, and that is not trained.

Legend: N items (rows 1..N, 0 is padding), D width.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from recsys.errors import DataError
from recsys.items.local import LocalItems
from recsys.protocols import Change, Context, Encoder


class RecformerItems(LocalItems):
    """The item matrix that the encoder makes: a constant, saved with the model.

    Args:
        dim: width D, the encoder's.
        frozen: names of stages in which it is not made anew.
        idle: names of stages in which it is not read.
        shard: items encoded at a time.
    """

    matrix: Tensor
    epoch: Tensor
    checksum: Tensor

    def __init__(
        self,
        dim: int = 64,
        frozen: Sequence[str] = ("second",),
        idle: Sequence[str] = ("pretrain",),
        shard: int = 256,
    ) -> None:
        super().__init__()
        self.dim, self.frozen, self.idle, self.shard = dim, list(frozen), list(idle), shard
        self.num_items, self.stage = 0, ""
        self.register_buffer("matrix", torch.zeros(0, dim))
        self.register_buffer("epoch", torch.tensor(-2))  # the epoch it was made for; -1 by hand, -2 never
        self.register_buffer("checksum", torch.zeros(32, dtype=torch.uint8))

    def bind(self, context: Context) -> None:
        """Room for ``context.num_items`` vectors, to be made by :meth:`refresh`."""
        self.num_items, self.stage = context.num_items, ""
        self.matrix = torch.zeros(self.num_items, self.dim)
        self.epoch, self.checksum = torch.tensor(-2), torch.zeros(32, dtype=torch.uint8)

    def carry(self, before: dict[str, Tensor], change: Change) -> None:
        """Make the matrix anew for other items; for the same ones it is that of no epoch of the run that begins."""
        if self.made:
            self.epoch.fill_(-1 if change.same else -2)

    @property
    def made(self) -> bool:
        """Whether there are vectors."""
        return int(self.epoch) > -2

    def on_stage(self, name: str) -> None:
        """Remember which stage runs."""
        self.stage = name

    def refresh(self, encoder: Encoder, epoch: int) -> None:
        """Make the matrix for ``epoch``, unless it is that of this epoch already, or the stage keeps it."""
        if self.stage in self.idle or int(self.epoch) == epoch or (self.stage in self.frozen and self.made):
            return
        self.make(encoder, epoch)

    def make(self, encoder: Any, epoch: int = -1) -> None:
        """Make the matrix of the encoder's weights as they are (to rank without fine-tuning, or after a change)."""
        if not hasattr(encoder, "encode_catalogue"):
            raise TypeError(f"RecformerItems are made by a Recformer; {type(encoder).__name__} has no encode_catalogue")
        self.matrix.copy_(encoder.encode_catalogue(self.shard))
        self.checksum.copy_(_digest(self.matrix))
        self.epoch.fill_(epoch)

    def check_split(self, split: Any) -> None:
        """Raise DataError if the rows are not those that the encoder made, in their order."""
        if not torch.equal(self.checksum.cpu(), _digest(self.matrix)):
            raise DataError("the item matrix is not the one that was saved (rows changed or shuffled): make it anew")

    def embed(self, ids: Tensor) -> Tensor:
        """The same vectors (..., D), for encoders that read item vectors; Recformer reads tokens. Zeros at padding."""
        return self.output(ids.clamp(min=1)) * (ids > 0)[..., None]

    def output(self, ids: Tensor) -> Tensor:
        """Vectors (..., D) of item rows (...)."""
        return self._ready()[ids - 1]

    def _vectors(self, rows: slice) -> Tensor:
        return self._ready()[rows.start - 1 : rows.stop - 1]

    def _ready(self) -> Tensor:
        if not self.made:
            raise ValueError("the item matrix is not made yet: fit the model, or call items.make(encoder)")
        return self.matrix


def _digest(matrix: Tensor) -> Tensor:
    data = hashlib.sha256(matrix.detach().float().cpu().contiguous().numpy().tobytes()).digest()
    return torch.frombuffer(bytearray(data), dtype=torch.uint8)
