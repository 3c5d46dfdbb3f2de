"""DMT, two stages of data: the specialised first, then the general with a small sample of the specialised.

After "How Abilities in Large Language Models are Affected by Supervised Fine-tuning Data Composition" (Dong et al.,
arXiv 2310.05492), which takes 1/256 of the specialised data and reports a 7-billion model at 41.9 on GSM8K where plain
sequence gives 32.6. With nothing of them the second stage forgets the first; with much of them the two interfere.

    stages = [Stage(5, data=special, name="special"), Stage(5, data=Rehearsed(general, special), name="general")]

Each stage has an optimizer and a schedule of its own. General last: the other way round is the common mistake.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from itertools import islice
from typing import Any

import numpy as np

from recsys.data.batch import Batch
from recsys.errors import DataWarning
from recsys.llm.trainers.selectors.mixing import Source, begin, fixed, identity_of, picked, prepared_alike, stacked
from recsys.randomness import numpy_generator


class Rehearsed:
    """All general data in each epoch, and among them the same few rows of the specialised; a source of batches.

    The rows are drawn once, from the first epoch of the specialised source, which is read through for that; they are
    kept in memory. Their batches are as large as that source's and come anywhere in an epoch.

    Args:
        general, special: sources of batches of one kind (``prepared``).
        share: of the specialised rows; 0 for none, 1 for all. At least one row is taken if it is above 0.
        seed: of the draw and the order.

    Raises:
        TypeError: something else than sources.
        ValueError: a share that is none, sources of two kinds, or specialised ones whose epochs differ in size.
    """

    def __init__(self, general: Source, special: Source, share: float = 1 / 256, seed: int = 0) -> None:
        if not 0 <= share <= 1:
            raise ValueError(f"share must lie in 0..1, found {share}")
        self.prepared = prepared_alike({"general": general, "special": special})
        fixed("special", special)
        self.varying = bool(getattr(general, "varying", False))
        self.general, self.special, self.share, self.seed = general, special, share, seed
        self._pool: Batch | None = None

    def bind(self, context: Any) -> None:
        """Tell both sources; the sample is drawn anew."""
        self._pool = None
        begin([self.general, self.special], context)
        if 0 < self.share * self.special.num_rows < 1:
            warnings.warn(
                f"a share of {self.share:g} of {self.special.num_rows:,} specialised rows is less than one: one row is "
                "rehearsed",
                DataWarning,
                stacklevel=2,
            )

    @property
    def rehearsed(self) -> int:
        """Specialised rows of an epoch."""
        return math.ceil(self.share * self.special.num_rows - 1e-9)

    @property
    def num_rows(self) -> int:
        """Rows of an epoch."""
        return self.general.num_rows + self.rehearsed

    @property
    def num_targets(self) -> int:
        """What an epoch predicts; of the sample the share that its rows are."""
        return self.general.num_targets + round(
            self.special.num_targets * self.rehearsed / max(self.special.num_rows, 1)
        )

    def identity(self) -> dict[str, Any]:
        """Both sources, the share and the seed."""
        told = {"general": identity_of(self.general), "special": identity_of(self.special)}
        return told | {"share": self.share, "seed": self.seed}

    def num_batches(self, epoch: int) -> int:
        """Batches of an epoch."""
        return self.general.num_batches(epoch) + self._more

    def epoch(self, epoch: int, start: int = 0, rank: int = 0, world_size: int = 1) -> Iterator[Batch]:
        """The batches of an epoch, each of one of the two sources, in an order drawn for it."""
        random = numpy_generator(self.seed, "Rehearsed", epoch)
        turns = np.zeros(self.num_batches(epoch), bool)  # True: of the sample
        turns[: self._more] = True
        random.shuffle(turns)
        rows = random.permutation(self.rehearsed)
        done = int(turns[:start].sum())
        general = self.general.epoch(epoch, start - done, rank, world_size)
        for rehearses in turns[start:]:
            if not rehearses:
                yield from islice(general, 1)
                continue
            part = rows[done * self._size : (done + 1) * self._size]
            done += 1
            yield picked(self._sample(), part[rank::world_size])

    @property
    def _size(self) -> int:
        """Rows of a batch of the sample: as of the specialised source."""
        return max(-(-self.special.num_rows // max(self.special.num_batches(0), 1)), 1)

    @property
    def _more(self) -> int:
        return -(-self.rehearsed // self._size)

    def _sample(self) -> Batch:
        """The chosen rows, in the order of the source."""
        if self._pool is None:
            count = self.special.num_rows
            drawn = numpy_generator(self.seed, "rehearsed rows").choice(count, self.rehearsed, replace=False)
            chosen, parts, first = np.sort(drawn), [], 0
            for batch in self.special.epoch(0):
                low, high = np.searchsorted(chosen, [first, first + len(batch)])
                if high > low:
                    parts.append(picked(batch, chosen[low:high] - first))
                first += len(batch)
            if first != count:
                raise ValueError(
                    f"{type(self.special).__name__} says that it has {count:,} rows, and its first epoch has {first:,}"
                )
            self._pool = stacked(parts)
        return self._pool
