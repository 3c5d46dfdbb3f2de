"""CL4SRec: contrast of two random views of each history (Xie et al. 2022, arXiv 2010.14395)."""

from __future__ import annotations

from collections.abc import Sequence

from recsys.augmentations.choice import DistinctPair
from recsys.augmentations.crop import Crop
from recsys.augmentations.mask import Mask
from recsys.augmentations.reorder import Reorder
from recsys.auxiliaries.contrast import (
    inputs,
    newest,
)
from recsys.auxiliaries.pairs import ViewContrast, refresh_views
from recsys.data.batch import Batch
from recsys.protocols import Augmentation, Context, Step


class CL4SRec(ViewContrast):
    """Two random views of each history, by two different operations (Xie et al. 2022, arXiv 2010.14395).

    Use when: nothing but items is known; the usual first contrast to compare with. The authors published no code: the
    shares are those of DuoRec's re-implementation, which changed its own inputs in place, as ours does not. A history
    of one item is left as it is, so its two views differ by dropout alone.

    Args:
        operations: what views are drawn from, two distinct ones a row (default: crop .6, mask .3, reorder .6). A mask
            has a row of its own in the item table.
        weight, temperature, pool, cosine, hide, keep: see :class:`ViewContrast`.
    """

    def __init__(
        self,
        weight: float = 0.1,
        operations: Sequence[Augmentation] | None = None,
        temperature: float = 1.0,
        pool: str = "last",
        cosine: bool = False,
        hide: Sequence[str] = (),
        keep: float = 0.0,
    ) -> None:
        super().__init__(weight, temperature, pool, cosine, hide, keep)
        self.operations = [Crop(0.6), Mask(0.3), Reorder(0.6)] if operations is None else list(operations)
        self.draw = DistinctPair(self.operations)
        self.longest = self.draw.longest

    def bind(self, context: Context) -> None:
        """Let the operations learn the catalogue."""
        self.draw.bind(context)

    def views(self, step: Step, batch: Batch) -> tuple[Batch, Batch]:
        """Two views, by operations that differ; of one that grew the newest items, as many as the longest input has."""
        refresh_views(self.draw, step)
        first, second = self.draw(inputs(batch), step.generator("CL4SRec"))
        width = self.longest or batch.ids.shape[1]
        return newest(first, width), newest(second, width)
