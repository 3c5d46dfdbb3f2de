"""Block ends of a trained teacher, for students that learn from them: computed in each optimizer step, or kept on disk.

Legend: B histories, H hidden size, b blocks, R training rows.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from recsys.data.batch import Batch
from recsys.data.split import TrainingEvents
from recsys.encoders.slmrec import BlockEnds, SLMRec
from recsys.errors import DataError
from recsys.ids.ranges import spread
from recsys.progress import Progress
from recsys.protocols import Context
from recsys.runs.read import load_run
from recsys.storage.artifacts import artifact, artifacts_root
from recsys.storage.cache import cache_folder
from recsys.storage.layout import hash_run

KIND, FORMAT, STATES = "recsys.teacher-states", 1, "states.npy"
CACHES = (None, "prefixes", "users")
ROWS = 256  # histories that the teacher reads at a time, when its states are kept


class TeacherStates:
    """Block ends (B, b, H) of a trained teacher for training batches: computed as needed, or kept on disk.

    Args:
        run: the teacher's run folder.
        context: of the training; its items must be the teacher's.
        blocks: b.
        cache: None, or which training rows are kept, as in :class:`recsys.auxiliaries.distillation.Distillation`.
        trust: as in :func:`recsys.load_run`.

    Raises:
        DataError: the teacher knows other items.
        ValueError: it has no language model, or its depth is not a multiple of ``blocks``.
    """

    def __init__(
        self, run: str, context: Context, blocks: int, cache: str | None = None, trust: Sequence[str] = ()
    ) -> None:
        self.model = load_run(run, trust)
        assert self.model.vocabulary is not None  # a run folder has one
        _same_items(run, self.model.vocabulary.ids, context)
        encoder = getattr(self.model, "encoder", None)
        if not isinstance(encoder, SLMRec):
            raise ValueError(f"the teacher in {run} has the encoder {type(encoder).__name__}, and an SLMRec is needed")
        encoder.set_blocks(blocks)
        self.model.requires_grad_(False).eval()
        self.encoder, self.run, self.blocks, self.cache = encoder, Path(run), blocks, cache
        self.training = context.training
        self._device: torch.device | None = None
        self._kept: tuple[np.ndarray, np.ndarray] | None = None  # events of the kept rows, (R, b, H) states

    def __call__(self, batch: Batch) -> Tensor:
        """(B, b, H) states for a prepared batch.

        Raises:
            ValueError: the teacher reads shorter histories, or these are not the cached ones.
        """
        if batch.ids.shape[1] > self.encoder.max_length:
            raise ValueError(
                f"the student reads {batch.ids.shape[1]} items, the teacher {self.encoder.max_length}: give both the "
                "same max_length"
            )
        if self.cache is None:
            return self.compute(batch)
        if batch.events is None:
            raise ValueError("the kept states are found by the events of the batch, and it has none")
        events = batch.events.cpu().numpy()
        kept, states = self._kept = self._kept or self._open(batch.ids.device)
        row = np.searchsorted(kept, events).clip(max=len(kept) - 1)
        if (kept[row] != events).any() or not self._as_cached(batch, events):
            raise ValueError(
                f"a training row is not among those whose states are cached: cache={self.cache!r} fits targets of that "
                "kind with the teacher's max_length and no augmentation; cache=None runs the teacher in every "
                "optimizer step"
            )
        return torch.from_numpy(states[row]).to(batch.ids.device)

    @torch.no_grad()
    def compute(self, batch: Batch) -> Tensor:
        """(B, b, H) states, by the teacher itself."""
        if self._device != batch.ids.device:
            self.model.to(batch.ids.device)
            self._device = batch.ids.device
        return self.encoder(batch, self.model.items).read(BlockEnds).states

    def _as_cached(self, batch: Batch, events: np.ndarray) -> bool:
        """Whether the inputs are the plain histories before the targets, as long as the teacher read them."""
        assert self.training is not None
        users = batch.users.cpu().numpy()
        length = np.minimum(events - self.training.start[users], self.encoder.max_length)
        if not np.array_equal(length, batch.lengths.cpu().numpy()):
            return False
        plain = self.training.gather(users, start=events - length, stop=events).ids
        return torch.equal(plain, batch.ids[:, : plain.shape[1]].cpu())

    def _open(self, device: torch.device) -> tuple[np.ndarray, np.ndarray]:
        """Events and states of all training rows, computed where they are not on disk yet."""
        users, events = self._rows()
        facts = {
            "run": hash_run(self.run),
            "rows": hashlib.sha256(np.stack([users, events]).tobytes()).hexdigest(),
            "inputs": self._hash_inputs(),
            "blocks": self.blocks,
            "precision": _precision(device),
        }
        key = hashlib.sha256(repr(sorted(facts.items())).encode()).hexdigest()[:16]
        folder = artifacts_root(cache_folder()) / "teacher-states" / key
        path, _ = artifact(folder, KIND, FORMAT, facts, lambda work: self._fill(work, users, events, device))
        return events, np.load(path / STATES, mmap_mode="r", allow_pickle=False)

    def _rows(self) -> tuple[np.ndarray, np.ndarray]:
        """(R,) user and target event of each row, by event."""
        training = self.training
        assert isinstance(training, TrainingEvents)
        if self.cache == "users":
            users = np.flatnonzero(training.lengths > 1)
            return users, training.stop[users] - 1
        return spread(training.start + 1, np.maximum(training.stop, training.start + 1))

    def _hash_inputs(self) -> str:
        training = self.training
        assert training is not None
        digest = hashlib.sha256()
        owner, items, _ = training.events(slice(None))
        for array in (owner, items):
            digest.update(np.ascontiguousarray(array, np.int64).data)
        return digest.hexdigest()

    def _fill(self, work: Path, users: np.ndarray, events: np.ndarray, device: torch.device) -> dict[str, Any]:
        assert self.training is not None
        shape = (len(events), self.blocks, self.encoder.backbone.hidden)
        states = np.lib.format.open_memmap(work / STATES, mode="w+", dtype=np.float32, shape=shape)
        with Progress(len(events), "teacher states", "rows") as bar:
            for start in range(0, len(events), ROWS):
                rows = slice(start, start + ROWS)
                batch = self.training.gather(users[rows], self.encoder.max_length, stop=events[rows]).to(device)
                states[rows] = self.compute(batch).float().cpu().numpy()
                bar.advance(len(batch))
        states.flush()
        return {"shape": list(shape)}


def _same_items(run: str, theirs: np.ndarray, context: Context) -> None:
    remedy = "train the teacher on the same data"
    if len(theirs) != context.num_items:
        raise DataError(
            f"the teacher in {run} knows {len(theirs):,} items, the student {context.num_items:,}: {remedy}"
        )
    if context.vocabulary is not None and not np.array_equal(theirs, context.vocabulary.ids):
        where = int(np.argmax(theirs != context.vocabulary.ids)) if theirs.dtype == context.vocabulary.ids.dtype else 0
        raise DataError(
            f"the teacher in {run} has another vocabulary: its item row {where + 1} is {theirs[where]!r}, the "
            f"student's {context.vocabulary.ids[where]!r}: {remedy}"
        )


def _precision(device: torch.device) -> str:
    """The type that the surrounding training computes in."""
    mixed = torch.is_autocast_enabled(device.type)
    return str(torch.get_autocast_dtype(device.type)) if mixed else "full"
