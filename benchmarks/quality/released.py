"""Parts as released code has them, where it does what was hardly meant: to compare with published numbers.

    from released import PaddedSIGMA        # in a recipe, instead of rs.SIGMA
    from released import ReleasedSequences  # instead of recsys.auxiliaries.unirec.SequenceEnhancement

Legend: B histories, L = ``max_length``, T real tokens, S tokens with padding that is read, D width, U users, M items.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recsys.auxiliaries.unirec import ItemEnhancement, SequenceEnhancement
from recsys.data.batch import Batch
from recsys.data.split import TrainingEvents
from recsys.encoders.sigma import SIGMA, Rows, positions_of_tokens
from recsys.encoders.unirec import Branches
from recsys.nn.gru import Steps
from recsys.protocols import Context, Step
from recsys.statistics.gaps import lowest, user_variance


class PaddedSIGMA(SIGMA):
    """SIGMA whose reversed pass works on padded positions, as its authors' code does.

    The first ``max_length - keep`` positions of the padded row are reversed: the reversed branch of a row shorter than
    half of that sees nothing but padding. The released file reverses the first 45 whatever L is, which is ``keep=155``
    at L = 200. The vector of padding, row 0 of the tied table in the original, is a parameter ``pad``. The forward pass
    is the original's, training is not: there the row is a class of the softmax and has no gradient as an input
    (``padding_idx``), here it is no class and learns through the input (gradients of .01 to .35 where theirs are 0).

    Raises:
        ValueError: as :class:`SIGMA`, or a history is longer than ``max_length``.
    """

    @functools.wraps(SIGMA.__init__)  # a saved run asks for the arguments
    def __init__(self, *given: Any, **named: Any) -> None:
        super().__init__(*given, **named)
        self.pad = nn.Parameter(torch.empty(self.dim))

    def bind(self, context: Context) -> None:
        """Initialise all weights."""
        super().bind(context)
        nn.init.normal_(self.pad, std=0.02)

    def laid(self, x: Tensor, batch: Batch) -> tuple[Tensor, Rows]:
        """Input of the last layer (S, D), real tokens first, and the rows in it, as if all were padded to L."""
        size, longest = len(batch), int(batch.lengths.max())
        if longest > self.max_length:
            raise ValueError(
                f"PaddedSIGMA reverses within max_length={self.max_length}, and a history of {longest} items came: "
                "cut it to its newest items, raise max_length, or use SIGMA"
            )
        place = torch.arange(self.max_length, device=x.device).expand(size, -1)
        real = place < batch.lengths[:, None]  # (B, L)
        window, lengths = self.max_length - self.keep, batch.lengths[:, None]
        read = ~real  # which padding anything reads: all, if there are layers before the last
        if self.num_layers == 1:
            read = read & ((place == lengths) | ((place < window) & (place >= window - lengths)))
        at = torch.cat([real.flatten().nonzero(), read.flatten().nonzero()]).squeeze(1)  # (S,) into B * L
        x = self.before(self.drop(torch.cat([x, self.pad.expand(len(at) - len(x), -1)])))
        index = torch.zeros(size * self.max_length, dtype=torch.long, device=x.device)
        index[at] = torch.arange(len(at), device=x.device)
        if self.num_layers > 1:
            x, full = x[index], torch.full_like(batch.lengths, self.max_length)
            rows = padded_rows(full, torch.arange(len(index), device=x.device).view_as(real), window)
            for layer in self.layers[:-1]:
                x = layer(x, rows, None)
            x = x[at]
        return x, padded_rows(batch.lengths, index.view_as(real), window)


def padded_rows(lengths: Tensor, index: Tensor, window: int) -> Rows:
    """Rows with padding behind them, reversed in their first ``window`` positions.

    Args:
        index: (B, L) the place among S tokens of what stands at each position, padding included.
    """
    start, position, _ = positions_of_tokens(lengths)
    wide, edge = index.shape[1], int(index.max()) + 1
    table = F.pad(index, (1, 1), value=edge).flatten()  # a zero vector at either end of a row
    begin = torch.arange(len(lengths), device=lengths.device).repeat_interleave(lengths) * (wide + 2) + 1
    mirrored = torch.where(position < window, window - 1 - position, position)
    around = (begin + position)[:, None] + torch.arange(-1, 2, device=lengths.device)
    return Rows(start, table[begin + mirrored], table[around], Steps.of(lengths))


class ReleasedSequences(SequenceEnhancement):
    """UniRec's enhancement of sequences as its authors' code has it.

    The 40% of users with the most uneven gaps take part, against their figure; the kept items move to the newest
    positions of the full history and take the times there, the positions before them are read without an item, every
    position is compared, and the loss counts twice from epoch ``start`` on.
    """

    def users(self, training: TrainingEvents) -> np.ndarray:
        """(U,) bool: who takes part, among all users."""
        variance, _ = user_variance(training)
        return lowest(-variance, np.ones(len(variance), dtype=bool), 0.4 if self.share is None else self.share)

    def distance(self, step: Step, rows: Tensor) -> Tensor:
        """The mean over all real tokens of the batch, and over 2 D, of the histories ``rows`` (R,)."""
        assert step.encoded is not None and step.encode is not None
        whole = step.batch.select(rows)
        part = self.thin(whole)
        thinned = step.encode(seated(part, whole)).read(Branches).states[0]
        at = step.batch.last[rows].repeat_interleave(whole.lengths) - whole.ages
        errors = (self.generator(thinned).float() - step.encoded.read(Branches).states[0][at].float()).square().mean(1)
        weights = self.weigh(step.epoch, part.lengths) * (2.0 if step.epoch >= self.start else 1.0)
        return (weights.repeat_interleave(whole.lengths) * errors).sum() / step.batch.lengths.sum()


class ReleasedItems(ItemEnhancement):
    """UniRec's enhancement of items as its authors' code has it.

    w_i may be negative, so that error is rewarded; G learns from rarer items too; L_item also draws G's bias to 0 at
    rarer items; and items with one or two interactions, whose gaps do not vary, count as frequent.
    """

    least = 1

    def rebuild(self, made: Tensor, own: Tensor, weights: Tensor, head: Tensor) -> Tensor:
        """L_item, with G's bias at items that are not frequent."""
        return super().rebuild(made, own, weights, head) + self.generator.bias.square().mean() * (weights * ~head).sum()

    def hand_on(self, made: Tensor, own: Tensor) -> Tensor:
        """(M,) L_transfer of each item, which G learns from as well."""
        return self.errors(made, own)

    def weigh(self, epoch: int, variance: Tensor) -> Tensor:
        """w_i of items with these normalised variances (M,), of either sign."""
        return torch.sin((torch.pi / 2) * ((epoch - self.start) / self.span + (100 - variance) / 100))


def seated(part: Batch, whole: Batch) -> Batch:
    """The items of ``part`` at the newest positions of ``whole``, with the times there; those before hold no item."""
    age = whole.lengths[:, None] - 1 - torch.arange(whole.ids.shape[1], device=whole.ids.device)
    kept = whole.mask & (age < part.lengths[:, None])
    return whole.histories().replace(ids=torch.zeros_like(whole.ids).masked_scatter(kept, part.flat_ids))
