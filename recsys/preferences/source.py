"""Training rows with preferences: what a stage reads in place of the split's own rows (``Stage(data=...)``).

The samples of several axes may be mixed (mender.md, section 6.6). A sample whose target is *not* wanted counts
negatively: with weight 1, the loss of an update is

    L = share of the wanted ones * their mean loss - negative_weight * share of the others * their mean loss

which is the released code's for its default weights. It has no lower bound: keep the share and the weight small.

Legend: n samples, B of a batch, L longest history, R texts of a request.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch

from recsys.data.batch import Batch
from recsys.ids.ranges import spread
from recsys.preferences.requests import PREFERENCE
from recsys.preferences.samples import Samples
from recsys.protocols import Context
from recsys.randomness import numpy_generator


class PreferenceBatches:
    """A :class:`recsys.train.source.BatchSource` of samples; the target is at the newest position of each row.

    What is said is read once per distinct list of texts, by the encoder, as it is at a request.

    Args:
        samples: of the training part (``recommendation(matching, "train")`` ...), mixed as they come.
        encoder: ``PreferenceVectors`` or ``PreferenceTokens`` of the model that is trained.
        batch_size: rows of a batch, over all processes.
        negative_weight: of samples whose target is not wanted.
        rows: samples of an epoch, at most, drawn anew for each; None: all of them.

    Raises:
        ValueError: a number out of range, or samples whose histories or targets are held out.
    """

    prepared = True  # what is predicted where is set here

    def __init__(
        self,
        samples: Sequence[Samples],
        encoder: Any,
        batch_size: int = 256,
        negative_weight: float = 1.0,
        rows: int | None = None,
        seed: int = 0,
    ) -> None:
        if min(batch_size, 1 if rows is None else rows, sum(map(len, samples))) < 1 or negative_weight < 0:
            raise ValueError(
                "batch_size and rows must be at least 1, negative_weight at least 0 and there must be samples; found "
                f"{batch_size}, {rows}, {negative_weight} and {sum(map(len, samples))}"
            )
        self.samples, self.encoder, self.batch_size = list(samples), encoder, batch_size
        self.negative_weight, self.rows, self.seed = negative_weight, rows, seed
        self.max_length = encoder.max_length
        self.start = np.concatenate([one.start for one in samples])
        self.stop = np.concatenate([one.stop for one in samples])
        self.target = np.concatenate([one.target for one in samples])
        self._items = samples[0].split.prepared.items
        self._refuse_held_out(samples[0].split)
        flags = [np.zeros(len(one), bool) if one.negative is None else one.negative for one in samples]
        self.importance = np.where(np.concatenate(flags), -negative_weight, 1.0).astype(np.float32)
        self._number, self._lists = _numbered(samples)
        self._said: torch.Tensor | None = None

    def _refuse_held_out(self, split: Any) -> None:
        some = self.stop > self.start
        user = np.searchsorted(split.prepared.offsets, self.start[some], side="right") - 1
        late = self.stop[some] >= split.train_stop[user]  # what followed a history in training is a training event
        if late.any():
            raise ValueError(
                f"{int(late.sum()):,} samples are of histories that held-out events follow, or hold such: take samples "
                "of the training part"
            )

    def bind(self, context: Context) -> None:
        """Take the seed of the run."""
        self.seed = context.seed

    @property
    def num_rows(self) -> int:
        """Samples of an epoch."""
        return len(self.target) if self.rows is None else min(self.rows, len(self.target))

    @property
    def num_targets(self) -> int:
        """One of each."""
        return self.num_rows

    def identity(self) -> dict[str, Any]:
        """A hash of the samples and of what is said with them, and how they are cut into batches."""
        digest = hashlib.sha256()
        for values in (self.start, self.stop, self.target, self.importance, self._number):
            digest.update(np.ascontiguousarray(values).tobytes())
        for texts in self._lists:
            digest.update("\0".join([*texts, "\n"]).encode("utf-8", "surrogatepass"))
        told = {name: getattr(self, name) for name in ("batch_size", "max_length", "rows", "seed")}
        return {"samples": digest.hexdigest(), **told}

    def num_batches(self, epoch: int = 0) -> int:
        """Batches of an epoch."""
        return -(-self.num_rows // self.batch_size)

    def epoch(self, epoch: int, start: int = 0, rank: int = 0, world_size: int = 1) -> Iterator[Batch]:
        """The batches of an epoch behind the first ``start``, in an order drawn by seed and epoch."""
        if self._said is None:
            self._said = torch.from_numpy(self.encoder.read(self._lists))
        order = numpy_generator(self.seed, "preference batches", epoch).permutation(len(self.target))
        order = order[: self.num_rows]
        for first in range(start * self.batch_size, len(order), self.batch_size):
            rows = order[first : first + self.batch_size][rank::world_size]
            yield self._batch(rows[np.argsort(self.stop[rows] - self.start[rows], kind="stable")])

    def _batch(self, rows: np.ndarray) -> Batch:
        assert self._said is not None
        stop = self.stop[rows]
        begin = np.maximum(self.start[rows], stop - self.max_length)
        lengths = np.maximum(stop - begin, 1)  # where there is no history, one position of no item
        width = max(int(lengths.max(initial=1)), 1)
        ids = np.zeros((len(rows), width), np.int64)
        owner, events = spread(begin, stop)
        ids[owner, events - begin[owner]] = self._items[events]
        at = np.arange(len(rows)), lengths - 1
        targets, importance = np.zeros_like(ids), np.ones(ids.shape, np.float32)
        targets[at], importance[at] = self.target[rows], self.importance[rows]
        all_wanted = bool((self.importance == 1).all())
        return Batch(
            rows=torch.from_numpy(rows.astype(np.int64)),
            users=torch.full((len(rows),), -1),
            ids=torch.from_numpy(ids),
            lengths=torch.from_numpy(lengths),
            targets=torch.from_numpy(targets),
            importance=None if all_wanted else torch.from_numpy(importance),
            user_features={PREFERENCE: self._said[torch.from_numpy(self._number[rows])]},
        )


def _numbered(samples: Sequence[Samples]) -> tuple[np.ndarray, list[list[str]]]:
    """(n,) which of the distinct lists of texts goes with each sample, and these lists."""
    numbers: list[np.ndarray] = []
    lists: dict[tuple[str, ...], int] = {}
    for one in samples:
        distinct, back = np.unique(one.said, axis=0, return_inverse=True)
        told = [tuple(one.texts[code] for code in row if code >= 0) for row in distinct.tolist()]
        numbers.append(np.array([lists.setdefault(texts, len(lists)) for texts in told], np.int64)[back.ravel()])
    return np.concatenate(numbers), [list(texts) for texts in lists]
