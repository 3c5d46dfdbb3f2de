"""Search among sets of codes: beams that choose which codebook comes next, and drop what contradicts itself (REG4Rec).

Each beam goes on with the codebook that the decoder is surest of (CRSS), and with codes that items have which may be
shown. A set of codes leads to one next codebook, so that the sets form a tree: with one branch per beam no item is
reached twice, its score is the log-probability of its path, and a search as wide as the catalogue scores all items
exactly. Paths that contradict themselves can be dropped on the way (CORP): **how is a reconstruction**, the paper's
criterion is not known.

Legend: B histories, W beams, M codebooks, K codes of the largest, C codes of all, J branches, N items.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from recsys.generative.beam import refuse_nan
from recsys.generative.set_layers import of_parents
from recsys.generative.set_walk import Lists, Reach, SetIndex, found_items, index_of
from recsys.generative.widening import Tally, until_full
from recsys.protocols import Encoded
from recsys.ranking.filters import Shown

ORDERS = ("confidence", "entropy", "fixed", "random")
PRUNES = ("prediction", "head")
SCORED = 256  # items, or histories, at a time
SHOWN = 1000  # test histories whose paths the report looks at
SETTLED = 0.9  # share of histories with one order from which the order is a fixed one


@dataclass(frozen=True)
class Paths:
    """Where the beams of B histories stand."""

    filled: Tensor  # (B, W, M) int64: the code of each codebook, -1 where none is chosen yet
    scores: Tensor  # (B, W) log-probability, -inf of a beam that is none
    trust: Tensor  # (B, W) sum of what its choices were worth to the judge of consistency
    judged: int = 0  # choices that it has judged


class SetBeam(nn.Module):
    """Beam search over the codes of a decoder that has no order, such as ``SetDecoder``.

    Args:
        width: beams kept, at least; never fewer than are asked for.
        order: which codebook comes next: "confidence", that with the likeliest code; "entropy", that with the least
            entropy by the logarithm of its number of codes, which is fair to codebooks of other sizes; "fixed", level
            by level; "random", an order drawn for each history by what it holds.
        prune: what drops beams: None nothing; "prediction", the codes that a path chose compared with what was expected
            of their codebooks one step before; "head", the decoder's own verdict on begun sets (``reflection``).
        keep: share of the beams that pruning leaves behind each code, never fewer than are asked for.
        omega: times the mean consistency of a path is added to its score; 0 leaves log-probabilities.
        branches: codebooks that a beam goes on with, the likeliest. With more than one an item may be reached by
            several orders: the best counts. Where these have filled the beams, a search is made again with more.

    ``tally`` counts how the searches fared.

    Raises:
        ValueError: a number or name that makes no sense.
    """

    ordered = False

    def __init__(
        self,
        width: int = 50,
        order: str = "confidence",
        prune: str | None = None,
        keep: float = 0.75,
        omega: float = 0.0,
        branches: int = 1,
    ) -> None:
        super().__init__()
        if order not in ORDERS or prune not in (None, *PRUNES):
            raise ValueError(
                f"order must be one of {', '.join(ORDERS)} and prune None or one of {', '.join(PRUNES)}, found "
                f"{order!r} and {prune!r}"
            )
        if width < 1 or branches < 1 or not 0 < keep <= 1 or omega < 0:
            raise ValueError(
                "width and branches must be at least 1, keep above 0 and at most 1, omega at least 0; found "
                f"{width}, {branches}, {keep} and {omega}"
            )
        if omega and prune is None:
            raise ValueError('omega weighs the consistency that prune measures: set prune="prediction", or omega=0')
        self.width, self.order, self.prune, self.keep, self.omega = width, order, prune, keep, omega
        self.branches, self.tally = branches, Tally()

    @torch.no_grad()
    def forward(self, decoder: Any, encoded: Encoded, items: Any, shown: Shown | None, k: int) -> tuple[Tensor, Tensor]:
        """Item rows (B, K) int64 and scores (B, K) of the best ``k`` that may be shown, K = min(k, N).

        Best first, equal scores by item row; 0 and -inf behind the end of a list.

        Raises:
            ValueError: ``k`` is below 1, or log-probabilities are NaN.
        """
        if k < 1:
            raise ValueError(f"k must be at least 1, found {k}")
        index = index_of(items)
        reach, k = Reach(index, shown, len(encoded.batch)), min(k, index.num_items)
        wanted, width = reach.available.clamp(max=k), max(self.width, k)

        def search(beams: int, again: bool) -> tuple[Tensor, Tensor, Tensor]:
            rows, scores = self._search(decoder, encoded, items, reach, beams, k)
            return rows, scores, torch.ones_like(wanted, dtype=torch.bool)  # orders of one item may have filled them

        return until_full(search, wanted, width, index.num_items, self.tally, width > self.width)

    def _search(
        self, decoder: Any, encoded: Encoded, items: Any, reach: Reach, width: int, k: int
    ) -> tuple[Tensor, Tensor]:
        index = reach.index
        expected, memory = decoder.step(decoder.begin(encoded, items), items, None, None)
        paths, lists, before = _begun(expected, len(index.sizes)), None, None
        best = paths.scores  # NaN stays NaN
        fixed = self.drawn(encoded, len(index.sizes))
        for step in range(len(index.sizes)):
            levels = self.levels(expected, paths.filled, fixed, index)
            allowed = codes_of(reach, levels) if lists is None else lists.allowed(levels)
            values = paths.scores[:, :, None, None] + levels_of(expected, levels, index)
            parents, chosen, codes, paths = self._grown(
                paths, levels, values.masked_fill(~allowed, -torch.inf), width, index
            )
            columns, best = index.first[chosen] + codes, best + paths.scores[:, :1]
            if self.prune == "prediction" and before is not None:
                paths = _trusting(paths, _worth(before, parents, columns, chosen, index))
            before = of_parents(parents, expected)
            alive = paths.scores > -torch.inf
            if lists is None:
                lists = Lists.first(index, reach, columns, alive)
            else:
                lists = lists.filtered(parents, chosen, codes, alive)
            if step + 1 < len(index.sizes) or self.prune == "head":
                expected, memory = decoder.step(memory, items, 1 + columns, parents)
            if self.prune == "head":
                paths = _trusting(paths, decoder.judged(memory))
            if self.prune is not None and paths.judged:
                dropped = ~kept(paths.trust, alive, math.ceil(self.keep * width), k)
                paths = replace(paths, scores=paths.scores.masked_fill(dropped, -torch.inf))
                lists = replace_dead(lists, paths.scores)
        assert lists is not None
        refuse_nan(best)
        scores = paths.scores + self.omega * paths.trust / max(paths.judged, 1) if self.omega else paths.scores
        return found_items(lists, scores, k)

    def _grown(
        self, paths: Paths, levels: Tensor, values: Tensor, width: int, index: SetIndex
    ) -> tuple[Tensor, Tensor, Tensor, Paths]:
        """Of values (B, W, J, K) the best ``width``: their parents, codebooks and codes (B, W'), where they stand."""
        count, (branches, size) = values[0].numel(), values.shape[2:]
        top, at = values.flatten(1).topk(min(width * self.branches, count), dim=1)
        parents, branch, codes = at // (branches * size), at // size % branches, at % size
        chosen = levels.flatten(1).gather(1, parents * branches + branch)
        codes = torch.minimum(codes, index.size[chosen] - 1)  # of a beam that is none
        filled = of_parents(parents, paths.filled)
        filled = filled.scatter(2, chosen[:, :, None], codes[:, :, None])
        if self.branches > 1:
            top, order = top.masked_fill(_again(filled, top), -torch.inf).topk(min(width, top.shape[1]), dim=1)
            parents, chosen, codes = (one.gather(1, order) for one in (parents, chosen, codes))
            filled = of_parents(order, filled)
        trust = paths.trust.gather(1, parents)
        return parents, chosen, codes, Paths(filled, top, trust, paths.judged)

    def levels(self, expected: Tensor, filled: Tensor, fixed: Tensor | None, index: SetIndex) -> Tensor:
        """(B, W, J) the codebooks that beams go on with, by log-probabilities (B, W, C) of all codes.

        Args:
            filled: (B, W, M), -1 where no code is chosen yet.
            fixed: (B, M) int64, what is preferred to what where that is not a matter of the decoder.
        """
        if fixed is not None:
            rank = fixed.argsort(1)[:, None].expand(filled.shape)
            sure = -rank.float()
        else:
            parts = expected.split(index.sizes, 2)
            if self.order == "confidence":
                sure = torch.stack([part.amax(2) for part in parts], 2)
            else:
                logs = [math.log(max(size, 2)) for size in index.sizes]
                sure = torch.stack([(part.exp() * part).sum(2) / log for part, log in zip(parts, logs, strict=True)], 2)
        sure = sure.masked_fill(filled >= 0, -torch.inf)
        left = int((filled[0, 0] < 0).sum())
        # Not topk: of equal ones the first codebook comes first on every device.
        return sure.sort(dim=2, descending=True, stable=True).indices[:, :, : min(self.branches, left)]

    def drawn(self, encoded: Encoded, count: int) -> Tensor | None:
        """(B, M) orders that do not depend on the decoder, if such are asked for."""
        ids = encoded.batch.ids
        if self.order == "fixed":
            return torch.arange(count, device=ids.device).expand(len(ids), -1)
        if self.order != "random":
            return None
        prime, place = 2_147_483_647, torch.arange(1, count + 1, device=ids.device)
        own = (ids * ids * 31 + ids).sum(1, keepdim=True) % prime  # padding adds nothing
        return ((own * 48_271 + 1) % prime * (place * 69_621 % prime) % prime).argsort(1)

    def log_probs(self, decoder: Any, encoded: Encoded, items: Any, rows: Tensor) -> Tensor:
        """(B, n) exact log-probabilities of the item ``rows`` (B, n), each on the path that a search takes to it."""
        parts = [self.paths(decoder, encoded, items, part)[0] for part in rows.split(SCORED, 1)]
        return torch.cat(parts, 1) if parts else torch.zeros(rows.shape, device=rows.device)

    def paths(self, decoder: Any, encoded: Encoded, items: Any, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Log-probabilities (B, n) of the item ``rows`` (B, n), and the order (B, n, M) of their codebooks."""
        index, codes = index_of(items), items.codes[rows]
        expected, memory = decoder.step(decoder.begin(encoded, items), items, None, None)
        filled, fixed = torch.full_like(codes, -1), self.drawn(encoded, len(index.sizes))
        scores = torch.zeros(rows.shape, dtype=expected.dtype, device=rows.device)
        own, order = torch.arange(rows.shape[1], device=rows.device).expand(rows.shape), []
        for step in range(len(index.sizes)):
            expected = expected.expand(-1, rows.shape[1], -1)
            level = self.levels(expected, filled, fixed, index)[:, :, :1]
            code = codes.gather(2, level)
            column = index.first[level] + code
            scores = scores + expected.gather(2, column).squeeze(2)
            filled = filled.scatter(2, level, code)
            order.append(level)
            if step + 1 < len(index.sizes):
                expected, memory = decoder.step(memory, items, 1 + column.squeeze(2), own if step else own * 0)
        return scores, torch.cat(order, 2)

    def sections(self, model: Any, split: Any) -> dict[str, Any]:
        """For the report: the order of the codebooks on the paths to the best item of some test histories."""
        known = np.flatnonzero(split.test.history_lengths > 0)[:SHOWN]
        if self.order in ("fixed", "random") or not len(known):
            return {}
        counts, count = np.zeros((model.items.levels,) * 2), 0
        for index in np.array_split(known, -(-len(known) // SCORED)):
            batch = split.test.batch(index, model.max_length, model.needs).to(model.items.codes.device)
            encoded = model.encode(model.targets.query(batch))
            rows, _ = self(model.decoder, encoded, model.items, None, 1)
            order = self.paths(model.decoder, encoded, model.items, rows)[1][:, 0].cpu().numpy()
            np.add.at(counts, (order, np.arange(order.shape[1])), 1)
            count += len(order)
        shares = [{f"step {step + 1}": f"{share:.1%}" for step, share in enumerate(row / count)} for row in counts]
        found: list[dict[str, Any]] = [{"codebook": level + 1, **row} for level, row in enumerate(shares)]
        heading = "Order of the codebooks on the paths to the best items"
        if len(counts) > 1 and (counts.max(0) > SETTLED * count).all():
            heading += f": the same for more than {SETTLED:.0%}, so that confidence chooses nothing"
        return {heading: found}


def kept(trust: Tensor, alive: Tensor, most: int, least: int) -> Tensor:
    """(B, W) bool: the ``most`` beams among those ``alive`` with the largest ``trust`` (B, W), but ``least`` at least.

    >>> kept(torch.tensor([[-3.0, -1.0, -2.0]]), torch.tensor([[True, True, True]]), most=1, least=2).tolist()
    [[False, True, True]]
    """
    rank = trust.masked_fill(~alive, -torch.inf).argsort(dim=1, descending=True, stable=True).argsort(1)
    return alive & (rank < max(most, least))


def replace_dead(lists: Lists, scores: Tensor) -> Lists:
    """The same lists, empty where a beam is none by its score (B, W)."""
    ends = torch.where(scores > -torch.inf, lists.ends, lists.begins)
    return Lists(lists.index, lists.reach, lists.begins, ends, lists.members, lists.whole)


def _begun(expected: Tensor, count: int) -> Paths:
    """One beam of each history, without a code."""
    histories = len(expected)
    nothing = torch.full((histories, 1, count), -1, dtype=torch.int64, device=expected.device)
    return Paths(nothing, expected.new_zeros(histories, 1), expected.new_zeros(histories, 1))


def _trusting(paths: Paths, worth: Tensor) -> Paths:
    return replace(paths, trust=paths.trust + worth, judged=paths.judged + 1)


def codes_of(reach: Reach, levels: Tensor) -> Tensor:
    """(B, 1, J, K) bool: codes of the codebooks ``levels`` (B, 1, J) that lead to an item."""
    return levels_of((reach.counts > 0)[:, None], levels, reach.index, False)


def levels_of(values: Tensor, levels: Tensor, index: SetIndex, behind: float | bool = -torch.inf) -> Tensor:
    """(B, W, J, K) of values (B, W, C) those of the codes of the codebooks ``levels`` (B, W, J)."""
    code = torch.arange(max(index.sizes), device=values.device)
    inside = code < index.size[levels][..., None]
    columns = (index.first[levels][..., None] + code).clamp(max=values.shape[2] - 1)
    found = values.gather(2, columns.flatten(2)).view(columns.shape)
    return found.masked_fill(~inside, behind)


def _worth(before: Tensor, parents: Tensor, columns: Tensor, levels: Tensor, index: SetIndex) -> Tensor:
    """(B, W) how much less probable, in logarithm, than its best code each codebook's choice was one step before."""
    earlier = torch.stack([part.amax(2) for part in before.split(index.sizes, 2)], 2)  # (B, W, M)
    chosen = before.flatten(1).gather(1, parents * before.shape[2] + columns)
    return chosen - of_parents(parents, earlier).gather(2, levels[:, :, None]).squeeze(2)


def _again(filled: Tensor, values: Tensor) -> Tensor:
    """(B, W) bool: beams whose set of codes (B, W, M) stands at an earlier place, too; by descending values (B, W)."""
    same = torch.ones(*values.shape, values.shape[1], dtype=torch.bool, device=values.device)
    for level in range(filled.shape[2]):
        same &= filled[:, :, None, level] == filled[:, None, :, level]
    return (same & (values > -torch.inf)[:, None, :]).tril(-1).any(2)
