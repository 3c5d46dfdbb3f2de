"""UniRec's losses: cross-entropy per branch, and the enhancements of sequences, of items and by the user's profile.

L = sum_b L_b + .1 L_profile + .2 L_sequence + .3 L_item + .1 L_transfer (Liu, Wang & Feng, CIKM 2024, arXiv
2406.18470; the equations are those of its code, as the paper's were not at hand). L_b is :class:`UniRecLoss`, the
others are auxiliaries, each of which can be left out:

    Recommender(IdItems(64), UniRec(64), UniRecLoss(),
                auxiliaries=[ProfileTerm(), SequenceEnhancement(64, epochs=60), ItemEnhancement(64, epochs=60)])

Where the released code does otherwise than figure and abstract say, these parts follow the paper;
``benchmarks/quality/released.py`` has the code's form. What we do differently from both:

- Statistics come from training events only, and no 1e-8 is added inside the logarithms.
- The profile holds items of the row and no user vector (losses differ by 3 in 1000) and takes part in training alone
  (it is no dot product, so it cannot be indexed; what it would add to the ranking is not measured).
- Padding is in no mean. The code divides by all T = 50 positions, so that at a mean length of n the same weights .2, .3
  and .1 act 50 / n times as strongly here: 5.5 times at n = 9.
- Schedules start at .45 E and take .55 E; the code has 99 and 121 of 220 epochs, and doubles one epoch earlier.
- A negative is no item of the row, theirs none of the user's whole training history.

Legend: B histories, T real tokens, T' targets, C branches, D width, N items, M distinct items of a batch.
"""

from __future__ import annotations

import math
from typing import ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recsys.data.batch import Batch
from recsys.data.split import TrainingEvents
from recsys.encoders.unirec import Branches
from recsys.negatives.in_batch import InBatchNegatives
from recsys.negatives.uniform import UniformNegatives
from recsys.nn.scoring import score_ids, score_targets
from recsys.objectives.sampled import softplus_sum
from recsys.objectives.weighted import weighted_sum
from recsys.protocols import Context, Encoded, ItemTable, Step
from recsys.statistics.gaps import LEAST, even_users, frequent_items, item_variance, neighbours, normalised

NEEDS = frozenset({"times"})
NEWEST = 2  # items that a thinned history always keeps
KEPT = 1.0  # normalised variance from which an older item stays in the sub-sequence


class UniRecLoss(nn.Module):
    """Binary cross-entropy of each branch, summed: logit_b(j) = <[E_j ; ctx_b], q_b>, ctx_b the target's own time.

    Reads the :class:`recsys.encoders.unirec.Branches` of UniRec, and the times of the targets. All candidates of
    a target share its time, so the time half of the logit only shifts them.

    Use when: reproducing UniRec. Prefer instead: the full or a sampled softmax, which train the same encoder through
    the states that are ranked by.

    Args:
        negatives: where they come from (default: one per position, uniform, outside the history).
    """

    needs = NEEDS
    reads = frozenset({Branches})

    def __init__(self, negatives: UniformNegatives | InBatchNegatives | None = None) -> None:
        super().__init__()
        default = UniformNegatives(1, per="position", exclude_history=True)
        self.negatives = default if negatives is None else negatives

    def forward(self, encoded: Encoded, batch: Batch, items: ItemTable, generator: torch.Generator) -> Tensor:
        """The sum over the targets of weight times loss.

        Raises:
            ValueError: the encoder is not UniRec's, or the batch does not say when its targets happened.
        """
        branches = encoded.read(Branches)
        if branches.contexts is None:
            raise ValueError(
                "UniRecLoss reads the times of the targets, and this batch has none: use NextItem or LastItem targets "
                "on data with times"
            )
        _, targets, weights = encoded.at_targets(batch)
        chosen = batch.flatten(batch.targets) > 0  # type: ignore[arg-type]
        states, contexts = branches.states[:, chosen], branches.contexts[:, chosen]
        hidden, timed = states.split(items.dim, dim=-1)  # (C, T', D) each
        count = len(states)
        drawn = self.negatives.sample(batch, targets, items.num_items, generator)
        ids, mask = drawn.for_targets()
        flat = hidden.flatten(0, 1)  # (C T', D)
        shift = (timed * contexts).sum(-1).flatten().float()
        positive = score_targets(flat, items, targets.repeat(count)).float() + shift
        negative = score_ids(flat, items, ids if ids.dim() == 1 else ids.repeat(count, 1)).float() + shift[:, None]
        negative = negative.masked_fill(mask.repeat(count, 1), -torch.inf)
        return weighted_sum((F.softplus(-positive) + softplus_sum(negative)).view(count, -1).sum(0), weights)


class ProfileTerm(nn.Module):
    """Binary cross-entropy of glob(j) = <(1 - l) E_j + l E_j * att_j, E_j>, att_j what j attends to in the profile.

    The profile of a row is ``size`` items drawn with replacement from its history; used in training alone.

    Args:
        size: items of a profile.
        mix: l.
    """

    def __init__(self, weight: float = 0.1, size: int = 20, mix: float = 0.5) -> None:
        super().__init__()
        if size < 1:
            raise ValueError(f"size must be at least 1, found {size}")
        self.weight, self.size, self.mix = weight, size, mix
        self.negatives = UniformNegatives(1, per="position", exclude_history=True)

    def forward(self, step: Step) -> Tensor:
        """The mean over the targets."""
        batch, items, generator = step.batch, step.items, step.generator("ProfileTerm")
        assert items is not None and batch.targets is not None
        targets = batch.flatten(batch.targets)
        chosen = targets > 0
        drawn = self.negatives.sample(batch, targets[chosen], items.num_items, generator)
        negatives = torch.ones_like(targets).masked_scatter(chosen, drawn.ids)
        at = torch.rand(len(batch), self.size, generator=generator, device=targets.device)
        at = (at * batch.lengths[:, None]).long().minimum((batch.lengths[:, None] - 1).clamp(min=0))
        profile = items.output(batch.ids.gather(1, at).clamp(min=1)).float()  # (B, F, D)
        positive = self._score(items.output(targets.clamp(min=1)).float(), profile, batch)
        negative = self._score(items.output(negatives).float(), profile, batch)
        counted = torch.ones_like(negative).masked_scatter(chosen, (~drawn.mask[:, 0]).float())
        losses = F.softplus(-positive) + F.softplus(negative) * counted
        return (losses * chosen).sum() / chosen.sum().clamp(min=1)

    def _score(self, vectors: Tensor, profile: Tensor, batch: Batch) -> Tensor:
        """(T,) glob of vectors (T, D)."""
        attention = (batch.pad(vectors) @ profile.transpose(1, 2)).softmax(-1)  # (B, L, F)
        attended = batch.flatten(attention @ profile)
        return ((1 - self.mix) * vectors.square() + self.mix * vectors.square() * attended).sum(-1)


class SequenceEnhancement(nn.Module):
    """Even users' histories, thinned out, must lead back to the state of the whole: mean of w_u (G q'_u - q_u)².

    The thinned history keeps the two newest items and, of the older ones, those that recur unevenly (normalised gap
    variance of at least 1). w_u = |sin(pi/2 ((e - start) / span + (n_u - 3) / length))| at epoch e, n_u items kept.

    The 60% of users with the evenest gaps take part, the thinned history has its own times, and the newest position is
    compared.

    Args:
        dim: width D of the encoder.
        epochs: planned epochs E, which the schedule is laid out for.
        length: T of the schedule, the longest history.
        start: epoch e of phase 0 (default: .45 E).
        span: epochs from there to phase 1 (default: .55 E).
        share: how many of the users take part (default: .6).

    Raises:
        ValueError: no epochs.
    """

    needs = NEEDS
    retired: ClassVar = {
        "mode": ("paper", "its class is ReleasedSequences of benchmarks/quality/released.py now: train again with that")
    }
    flags: Tensor  # (U,) bool, by user row; not saved
    variance: Tensor  # (N+1,) float32, not saved

    reads = frozenset({Branches})

    def __init__(
        self,
        dim: int = 64,
        weight: float = 0.2,
        epochs: int = 220,
        length: int = 50,
        start: float | None = None,
        span: float | None = None,
        share: float | None = None,
    ) -> None:
        super().__init__()
        _check(epochs)
        self.dim, self.weight, self.epochs, self.length = dim, weight, epochs, length
        self.start, self.span = _schedule(epochs, start, span)
        self.share = share
        self.generator = nn.Linear(2 * dim, 2 * dim, bias=False)
        self.register_buffer("flags", torch.zeros(0, dtype=torch.bool), persistent=False)
        self.register_buffer("variance", torch.zeros(1), persistent=False)

    def bind(self, context: Context) -> None:
        """Initialise G with N(0, 1 / (2 D)) and read who is even, and which items recur unevenly, off the training."""
        nn.init.normal_(self.generator.weight, std=(2 * self.dim) ** -0.5)
        self.variance = torch.zeros(context.num_items + 1)
        if context.training is not None:
            context.training.check_needs(NEEDS)
            self.flags = torch.from_numpy(self.users(context.training))
            count = context.training.item_counts()
            self.variance = torch.from_numpy(normalised(item_variance(context.training), count))

    def forward(self, step: Step) -> Tensor:
        """The mean over the histories of the batch that are not empty, and over 2 D.

        Raises:
            ValueError: the encoder is not UniRec's, or no training data were bound.
        """
        batch, encoded = step.batch, step.encoded
        assert encoded is not None
        encoded.read(Branches)  # another encoder is an error in a batch where nobody takes part, too
        if len(self.flags) == 0:
            raise ValueError("SequenceEnhancement knows no users: bind it with training data, as recsys.fit does")
        rows = (self.flags[batch.users] & (batch.lengths > 0)).nonzero().squeeze(1)
        if len(rows) == 0:
            return self.generator.weight.sum() * 0.0
        return self.distance(step, rows)

    def users(self, training: TrainingEvents) -> np.ndarray:
        """(U,) bool: who takes part."""
        return even_users(training, 0.6 if self.share is None else self.share)

    def distance(self, step: Step, rows: Tensor) -> Tensor:
        """The loss of the histories ``rows`` (R,) of the batch, none of them empty."""
        assert step.encoded is not None and step.encode is not None
        part = self.thin(step.batch.select(rows))
        thinned = step.encode(part).read(Branches).states[0][part.last]
        full = step.encoded.read(Branches).states[0][step.batch.last[rows]]
        errors = (self.generator(thinned).float() - full.float()).square().mean(1)
        return (self.weigh(step.epoch, part.lengths) * errors).sum() / (step.batch.lengths > 0).sum()

    def thin(self, batch: Batch) -> Batch:
        """The batch of the kept items: no targets, times of their own."""
        assert batch.times is not None
        age = batch.lengths[:, None] - 1 - torch.arange(batch.ids.shape[1], device=batch.ids.device)
        keep = batch.mask & ((age < NEWEST) | (self.variance[batch.ids] >= KEPT))
        lengths = keep.sum(1)
        width = max(int(lengths.max()), 1)
        inside = torch.arange(width, device=batch.ids.device) < lengths[:, None]
        empty = batch.ids.new_zeros(len(batch), width)
        ids, times = (empty.masked_scatter(inside, values[keep]) for values in (batch.ids, batch.times))
        return batch.histories().replace(ids=ids, lengths=lengths, times=times, features={})

    def weigh(self, epoch: int, kept: Tensor) -> Tensor:
        """w_u of histories of which ``kept`` (B,) items are left."""
        phase = (epoch - self.start) / self.span + (kept - 3) / self.length
        return (phase * (math.pi / 2)).sin().abs()


class ItemEnhancement(nn.Module):
    """A frequent item must be rebuilt from itself and its neighbours, and that knowledge reaches rarer items.

    m_i = [E_i ; n_i], n_i = sum_k softmax_k(<E_i, E_nk>) E_nk over 3 random ones of the item's 10 best neighbours.
    L_item = mean of w_i (G m_i - E_i)² over frequent items, L_transfer the same without w over the others, times
    sin(pi/2 e / E). w_i = sin(pi/2 ((e - start) / span + (100 - var_i) / 100)), var_i the normalised gap variance.

    w_i is at least 0 and L_transfer leaves G alone; frequent items have three interactions or more. Each distinct item
    of the batch draws neighbours once.

    Args:
        dim: width D of the item table.
        weight: of L_item.
        transfer: of L_transfer, as it stands in the total loss.
        epochs: planned epochs E; ``start`` and ``span`` as in :class:`SequenceEnhancement`.
        share: how many items are frequent.
        by: what frequent means, "variance" of gaps or "count", see :func:`recsys.statistics.gaps.frequent_items`.

    Raises:
        ValueError: no epochs, or a weight of 0 beside a transfer that is not.
    """

    needs = NEEDS
    retired: ClassVar = {
        "mode": ("paper", "its class is ReleasedItems of benchmarks/quality/released.py now: train again with that")
    }
    least: ClassVar = LEAST  # interactions of a frequent item
    near: Tensor  # (N+1, 10) int64, not saved
    head: Tensor  # (N+1,) bool, not saved
    variance: Tensor  # (N+1,) float32, not saved

    def __init__(
        self,
        dim: int = 64,
        weight: float = 0.3,
        transfer: float = 0.1,
        epochs: int = 220,
        start: float | None = None,
        span: float | None = None,
        share: float = 0.3,
        by: str = "variance",
    ) -> None:
        super().__init__()
        _check(epochs)
        if transfer and not weight:
            raise ValueError("a weight of 0 switches ItemEnhancement off whole: set transfer=0 too, or leave it out")
        self.dim, self.weight, self.transfer, self.epochs = dim, weight, transfer, epochs
        self.start, self.span = _schedule(epochs, start, span)
        self.share, self.by = share, by
        self.generator = nn.Linear(2 * dim, dim)
        self.register_buffer("near", torch.zeros(1, 10, dtype=torch.long), persistent=False)
        self.register_buffer("head", torch.zeros(1, dtype=torch.bool), persistent=False)
        self.register_buffer("variance", torch.zeros(1), persistent=False)

    def bind(self, context: Context) -> None:
        """Initialise G with N(0, 1 / (2 D)) and read neighbours, variances and frequent items off the training."""
        nn.init.normal_(self.generator.weight, std=(2 * self.dim) ** -0.5)
        nn.init.zeros_(self.generator.bias)
        size = context.num_items + 1
        self.near = torch.arange(size)[:, None].repeat(1, 10)
        self.head, self.variance = torch.zeros(size, dtype=torch.bool), torch.zeros(size)
        if context.training is not None:
            context.training.check_needs(NEEDS)
            variance, count = item_variance(context.training), context.training.item_counts()
            self.near = torch.from_numpy(neighbours(context.training, variance)[0])
            self.head = torch.from_numpy(frequent_items(variance, count, self.share, self.by, self.least))
            self.variance = torch.from_numpy(normalised(variance, count))

    def forward(self, step: Step) -> Tensor:
        """L_item + transfer / weight * L_transfer, means over the real tokens of the batch and over D."""
        batch, items = step.batch, step.items
        assert items is not None
        ids, count = batch.flat_ids.unique(return_counts=True)
        own = items.output(ids).float()  # (M, D)
        made = torch.cat([own, self.mix(ids, own, items, step.generator("ItemEnhancement"))], dim=1)
        head, share = self.head[ids], count / max(int(count.sum()), 1)
        weights = self.weigh(step.epoch, self.variance[ids]) * share
        first = self.rebuild(made, own, weights, head)
        if not self.transfer:
            return first
        second = (self.hand_on(made, own) * share * ~head).sum()
        return first + self.transfer / self.weight * math.sin(math.pi / 2 * step.epoch / self.epochs) * second

    def rebuild(self, made: Tensor, own: Tensor, weights: Tensor, head: Tensor) -> Tensor:
        """L_item of items with m_i ``made`` (M, 2 D), E_i ``own`` (M, D), w_i ``weights`` (M,), frequent or not."""
        return (self.errors(made, own) * weights * head).sum()

    def hand_on(self, made: Tensor, own: Tensor) -> Tensor:
        """(M,) L_transfer of each item, which G does not learn from."""
        return self.errors(made, own, learn=False)

    def mix(self, ids: Tensor, own: Tensor, items: ItemTable, generator: torch.Generator) -> Tensor:
        """(M, D) n_i of item rows ``ids`` (M,) with vectors ``own`` (M, D)."""
        near = self.near[ids]
        drawn = torch.rand(near.shape, generator=generator, device=near.device).topk(3, dim=1).indices
        vectors = items.output(near.gather(1, drawn)).float()  # (M, 3, D)
        attention = (vectors @ own.unsqueeze(2)).softmax(dim=1)
        return (attention * vectors).sum(1)

    def weigh(self, epoch: int, variance: Tensor) -> Tensor:
        """w_i of items with these normalised variances (M,)."""
        phase = (epoch - self.start) / self.span + (100 - variance) / 100
        return (phase * (math.pi / 2)).sin().clamp(min=0)

    def errors(self, made: Tensor, own: Tensor, learn: bool = True) -> Tensor:
        """(M,) mean squared error of G; ``learn=False`` keeps the gradient from G."""
        weight, bias = self.generator.weight, self.generator.bias
        rebuilt = F.linear(
            made.to(weight.dtype), weight if learn else weight.detach(), bias if learn else bias.detach()
        )
        return (rebuilt.float() - own).square().mean(1)


def _check(epochs: int) -> None:
    if epochs < 1:
        raise ValueError(f"epochs must be at least 1, found {epochs}")


def _schedule(epochs: int, start: float | None, span: float | None) -> tuple[float, float]:
    """Where the phase of the weights is 0, and how many epochs it takes to 1 from there (the code: 100, 120 of 220)."""
    return (0.45 * epochs if start is None else start), (0.55 * epochs if span is None else span)
