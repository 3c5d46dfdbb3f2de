"""UniRec's encoder: items mixed with when they happened, one branch per time encoding (Liu, Wang & Feng, CIKM 2024).

Each branch reads [item ; time] of width 2 D: the calendar branch encodes the date, the interval branch the hours since
the previous item. A block scores queries against keys twice, on items and on times, mixes the two scores of each
pair by a small network into the heads' scores, and attends. Source: arXiv 2406.18470 and its code, which extends
MOJITO's (SIGIR 2023); the paper's own equations were not at hand.

In the first block the time scores are made of the calendar's vectors, whichever branch it is, as in the authors' graph;
``first_times="own"`` takes each branch's own time encoding there, the more natural form (states of the interval branch
then differ by up to .38, and by 1.4e-6 otherwise).

What we do differently: scores of one user are mixed with that user's alone (both codes pair the maps of different
users, so their scores depend on the batch); the noise on the scores is drawn in training only, with two trained scales
for each block, not two for all; all branches share every weight but their time encoding's unless ``share_norms=False``,
and the thinned history of :mod:`recsys.auxiliaries.unirec` is read with the norms and score mixing of the first branch,
where the code has a third set; the first item read has waited 0 hours, not a year; a wait is of whole hours elapsed,
theirs the difference of whole clock hours (one hour more for about half of all gaps); and the state that is scored,
exported and indexed is the item half, summed over branches: the time half of the logit is the same for all candidates
of a query, and the profile term is no dot product. Not built: feeding generated vectors of rarer items back into the
history, whose rule is not public.

Legend: B histories, W padded width, T real tokens, C branches, H heads, D width of items and of times.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recsys.data.batch import PAD, Batch, Group
from recsys.nn.dropout import Dropout
from recsys.nn.initialise import initialise
from recsys.nn.time_encoding import CalendarEncoder, IntervalEncoder
from recsys.protocols import Context, Encoded, ItemTable

BRANCHES = ("calendar", "interval")
FIRST_TIMES = ("calendar", "own")
EPS = 1e-6


@dataclass(frozen=True)
class Branches:
    """States of each branch and, where the batch says when its targets happened, what each makes of those times."""

    given_by = "UniRec(...)"

    states: Tensor  # (C, T, 2 D)
    contexts: Tensor | None = None  # (C, T, D)


class UniRec(nn.Module):
    """Histories with times to states, all positions at once, each from its past.

    It gives :class:`Branches`. A token of row 0 has a position and a time, and no item.

    Args:
        dim: width D, the same as the item table's; attention works on 2 D. The table should scale its input vectors
            by sqrt(D) (``IdItems(dim, scale=True)``), as this part does with its times.
        num_heads: heads that the mixed scores are split into; 2 D is divisible by it.
        dropout: on inputs, times, attention weights and inside the feed-forward part.
        max_length: longest history read.
        branches: some of "calendar" and "interval", in the order of :class:`Branches`.
        share_norms: branches share LayerNorms and score mixing, else each has its own, as in the authors' code.
        first_times: what the time scores of the first block are made of: the "calendar" in every branch, as the
            authors do, or each branch's "own" time encoding.
        noise: start of the trained sigma of the N(0, sigma^4) noise on the scores while training; 0 for none.
        first_year: the calendar's range of years; years outside are read as its ends.
        last_year: see ``first_year``.

    Raises:
        ValueError: 2 ``dim`` not divisible by ``num_heads``, or a branch that does not exist.
    """

    sees = "past"
    needs = frozenset({"times"})
    gives = frozenset({Branches})
    former: ClassVar[dict[str, str]] = {"first_times": "own"}  # of models saved before there was a choice

    def __init__(
        self,
        dim: int = 64,
        num_layers: int = 2,
        num_heads: int = 2,
        dropout: float = 0.3,
        max_length: int = 50,
        branches: Sequence[str] = BRANCHES,
        share_norms: bool = True,
        noise: float = 0.1,
        first_year: int = 1970,
        last_year: int = 2069,
        first_times: str = "calendar",
    ) -> None:
        super().__init__()
        if first_times not in FIRST_TIMES:
            raise ValueError(f"first_times must be one of {', '.join(FIRST_TIMES)}, found {first_times!r}")
        if not branches or not set(branches) <= set(BRANCHES) or len(set(branches)) < len(branches):
            raise ValueError(f"branches are some of {', '.join(BRANCHES)}, each once; found {list(branches)}")
        if num_heads < 1 or 2 * dim % num_heads:
            raise ValueError(f"2 * dim must be divisible by num_heads, found dim={dim}, num_heads={num_heads}")
        if max_length < 1 or num_layers < 0 or noise < 0:
            raise ValueError(
                f"max_length >= 1, num_layers >= 0 and noise >= 0 are needed, found {max_length}, {num_layers}, {noise}"
            )
        self.dim, self.num_layers, self.num_heads, self.dropout = dim, num_layers, num_heads, dropout
        self.max_length, self.branches, self.share_norms, self.noise = max_length, list(branches), share_norms, noise
        self.first_year, self.last_year, self.first_times = first_year, last_year, first_times
        own = 1 if share_norms else len(self.branches)
        calendar = CalendarEncoder(dim, dropout=dropout, first_year=first_year, last_year=last_year)
        self.calendar = calendar if "calendar" in branches or first_times == "calendar" else None
        self.interval = IntervalEncoder(dim) if "interval" in branches else None
        self.position_table = nn.Embedding(max_length, dim)
        self.drop = Dropout(dropout)
        self.blocks = nn.ModuleList(MixtureBlock(dim, num_heads, dropout, own, noise) for _ in range(num_layers))
        self.after = BranchNorm(2 * dim, own)

    def bind(self, context: Context) -> None:
        """Initialise all weights: Glorot uniform, but what has a rule of its own (from torch's generator)."""
        initialise(self, "glorot")
        for layer in self.modules():
            if isinstance(layer, (CalendarEncoder, BranchNorm, ScoreMixing)):
                layer.reset_parameters()

    def forward(self, batch: Batch, items: ItemTable) -> Encoded:
        """States of all real tokens.

        Raises:
            ValueError: the batch has no times, a history is longer than ``max_length``, or the item table has another
                width.
        """
        if items.dim != self.dim:
            raise ValueError(f"the item table has width {items.dim}, the encoder {self.dim}: give both the same dim")
        if batch.times is None:
            raise ValueError(
                "UniRec reads when each item of a history happened and this batch has no times: name the time column "
                "of the data, pass History(items, times), or use an encoder that does without"
            )
        if batch.ids.shape[1] > self.max_length:
            raise ValueError(
                f"a history of {batch.ids.shape[1]} items came to an encoder with max_length={self.max_length}: "
                "cut it to its newest items, or raise max_length"
            )
        encoded, contexts = self._read_times(batch, batch.flatten(batch.times))
        position = self.position_table(batch.ages).unsqueeze(1)
        vectors = items.embed(batch.flat_ids) * (batch.flat_ids > PAD).unsqueeze(1)
        item = (vectors.unsqueeze(1) + position).expand_as(encoded)
        x = self.drop(torch.cat([item, encoded * self.dim**0.5 + position], dim=-1))  # (T, C, 2 D)
        z = self._first_times(encoded, batch)
        for block in self.blocks:
            x = block(x, z, batch)
            z = x[..., self.dim :]
        x = self.after(x)
        given = Branches(x.transpose(0, 1), None if contexts is None else contexts.transpose(0, 1))
        return Encoded(batch, x[..., : self.dim].sum(1), (given,))

    def _read_times(self, batch: Batch, times: Tensor) -> tuple[Tensor, Tensor | None]:
        """(T, C, D) of the tokens, and of what they are to predict if the batch knows when that happened."""
        earlier = torch.where(batch.positions > 0, times.roll(1), times)  # an item without a predecessor: 0 hours
        targets = batch.target_times if batch.targets is not None else None
        if targets is not None:
            # One pass for both. A token without a target has time 0 there, and its vector is not read.
            earlier, times = torch.cat([earlier, times]), torch.cat([times, batch.flatten(targets)])
        read = torch.stack([self._encoded(name, earlier, times) for name in self.branches], dim=1)
        return (read, None) if targets is None else read.chunk(2)  # type: ignore[return-value]

    def _first_times(self, encoded: Tensor, batch: Batch) -> Tensor:
        """(T, C, D) vectors of times that the first block scores."""
        if self.first_times == "own":
            return encoded
        if "calendar" in self.branches:
            index = self.branches.index("calendar")
            return encoded[:, index : index + 1].expand_as(encoded)
        assert self.calendar is not None and batch.times is not None
        return self.calendar(batch.flatten(batch.times)).unsqueeze(1).expand_as(encoded)

    def _encoded(self, name: str, earlier: Tensor, times: Tensor) -> Tensor:
        if name == "calendar":
            assert self.calendar is not None
            return self.calendar(times)
        assert self.interval is not None
        return self.interval(earlier, times)


class BranchNorm(nn.Module):
    """LayerNorm over the last dimension of (T, C, width), with one scale and shift, or one for each of ``own``."""

    def __init__(self, width: int, own: int = 1) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(own, width)), nn.Parameter(torch.zeros(own, width))

    def reset_parameters(self) -> None:
        """Scale 1, shift 0."""
        nn.init.ones_(self.weight)
        nn.init.zeros_(self.bias)

    def forward(self, x: Tensor) -> Tensor:
        """(T, C, width) to the same."""
        shape = x.shape[-1:]
        if len(self.weight) == 1:
            return F.layer_norm(x, shape, self.weight[0], self.bias[0], EPS)
        return F.layer_norm(x, shape, eps=EPS) * self.weight + self.bias


class ScoreMixing(nn.Module):
    """The network 2 -> 2 -> H that turns a pair's item score and time score into the scores of the heads.

    The second layer has no bias: it would shift all scores of a head, which a softmax does not see.
    """

    def __init__(self, num_heads: int, own: int = 1) -> None:
        super().__init__()
        self.inner, self.inner_bias = nn.Parameter(torch.empty(own, 2, 2)), nn.Parameter(torch.empty(own, 2, 1))
        self.outer = nn.Parameter(torch.empty(own, num_heads, 2))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Glorot uniform, biases 0."""
        for weight in (self.inner, self.outer):
            bound = (6 / (weight.shape[1] + weight.shape[2])) ** 0.5
            nn.init.uniform_(weight, -bound, bound)
        nn.init.zeros_(self.inner_bias)

    def forward(self, maps: Tensor) -> Tensor:
        """(C, H, n) of the item scores and time scores (C, 2, n)."""
        count = len(maps)
        hidden = torch.baddbmm(self.inner_bias, self.inner.expand(count, -1, -1), maps).relu()
        return torch.bmm(self.outer.expand(count, -1, -1), hidden)


class MixtureBlock(nn.Module):
    """One block: o = LN(x) + attention, x' = LN(o) + FFN(LN(o)).

    Args:
        own: 1, or the number of branches if each has its own norms and score mixing.
        noise: see :class:`UniRec`.
    """

    def __init__(self, dim: int, num_heads: int, dropout: float, own: int, noise: float) -> None:
        super().__init__()
        self.dim, self.num_heads, self.noise = dim, num_heads, noise
        self.item_query, self.item_key = nn.Linear(2 * dim, dim), nn.Linear(2 * dim, dim)
        self.time_query, self.time_key = nn.Linear(dim, dim), nn.Linear(dim, dim)
        self.value = nn.Linear(2 * dim, 2 * dim)
        self.inner, self.outer = nn.Linear(2 * dim, 2 * dim), nn.Linear(2 * dim, 2 * dim)
        self.norm, self.time_norm, self.feed_norm = (
            BranchNorm(2 * dim, own),
            BranchNorm(dim, own),
            BranchNorm(2 * dim, own),
        )
        self.mixing = ScoreMixing(num_heads, own)
        self.sigma = nn.Parameter(torch.full((2,), noise)) if noise else None
        self.drop = Dropout(dropout)

    def forward(self, x: Tensor, z: Tensor, batch: Batch) -> Tensor:
        """(T, C, 2 D) from tokens x (T, C, 2 D) and the times z (T, C, D) that the time scores are made of."""
        normed, timed = self.norm(x), self.time_norm(z)
        projected = [self.item_query(normed), self.time_query(timed), self.item_key(x), self.time_key(z), self.value(x)]
        counts = [len(group.index) for group in batch.groups]
        parts = zip(*(one.split(counts) for one in projected), strict=True)
        mixed = [self._attend(group, *tokens) for tokens, group in zip(parts, batch.groups, strict=True)]
        o = self.feed_norm(normed + (mixed[0] if len(mixed) == 1 else torch.cat(mixed)))
        return o + self.drop(self.outer(self.drop(self.inner(o).relu())))

    def _attend(
        self, group: Group, item_query: Tensor, time_query: Tensor, item_key: Tensor, time_key: Tensor, value: Tensor
    ) -> Tensor:
        """(t, C, 2 D) of one group's tokens. Padding lies behind every real token, so causality hides it."""
        item = self._scores(item_query, item_key, group, 0)  # (C, B, W, W)
        time = self._scores(time_query, time_key, group, 1)
        maps = torch.stack([item, time], dim=1)
        count, width = len(maps), group.width
        scores = self.mixing(maps.flatten(2)).view(count, self.num_heads, -1, width, width) / self.dim**0.5
        later = torch.ones(width, width, dtype=torch.bool, device=value.device).triu(1)
        weights = self.drop(scores.masked_fill(later, -torch.inf).softmax(-1))
        values = group.pad(value).unflatten(-1, (self.num_heads, -1)).permute(2, 3, 0, 1, 4)  # (C, H, B, W, 2 D / H)
        return group.flatten((weights @ values).permute(2, 3, 0, 1, 4).flatten(3))

    def _scores(self, query: Tensor, key: Tensor, group: Group, kind: int) -> Tensor:
        scores = group.pad(query).permute(2, 0, 1, 3) @ group.pad(key).permute(2, 0, 3, 1)
        if self.sigma is None or not self.training:
            return scores
        return scores + self.sigma[kind] ** 2 * torch.randn_like(scores)
