"""A recommender that generates the codes of the next item: parts like those of any other, and a decoder that is asked
step by step for what comes next.

    histories -> encoder -> states -> decoder -> log-probabilities of codes -> search among the items there are

It is trained as :class:`recsys.recommenders.composed.Recommender` is, with the decoder as its objective. It answers by
a search over codes: lists hold items, each exists, and none that is excluded; an item's score is the log-probability of
its codes. It gives no scores of all items, so it is evaluated by its lists ("list only, to K"); :meth:`log_probs` tells
the exact log-probabilities of given items.

Legend: B histories, N items (rows 1..N), M levels, K cut-off.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from recsys.data.batch import PAD, Batch
from recsys.errors import DataWarning, UnknownItemError
from recsys.generative.beam import Beam, exact_log_probs
from recsys.hooks import member
from recsys.ids.ranges import padded_blocks
from recsys.protocols import Augmentation, Auxiliary, Decoder, Encoded, Encoder, Objective, Targets, Weighting
from recsys.ranking.filters import EVERYTHING, Limits, Shown
from recsys.ranking.ties import best
from recsys.recommenders.history import as_histories, collate
from recsys.recommenders.modes import evaluating
from recsys.recommenders.parts import Composed
from recsys.recommenders.top import TopK, top_of, warn_of

SEARCHED, BEAMS = 256, 12_800  # histories and beams of one search, at most


class Generator(Composed):
    """Parts put together that generate.

    Args:
        items: a table with codes, :class:`recsys.items.codes.CodeItems`.
        encoder: histories to states.
        decoder: states to codes, which is the objective too.
        search: how items are found by their codes (default ``Beam(50)``).
        targets, auxiliaries, augmentations, weightings: as of a ``Recommender``.
        cold: the largest share of a list that items without training events may have, as in TIGER's cold-start study
            (0.1 there; 0 leaves them out); None: they compete by their codes like all others. It is a share of the
            list that is asked for, so a list of 10 need not begin one of 20: evaluate to the cut-off that is served.

    Raises:
        TypeError: the items have no codes, or the decoder does not generate.
        ValueError: the decoder has another width, the search is for another kind of decoder; or as
            :class:`recsys.recommenders.parts.Composed`.
    """

    def __init__(
        self,
        items: Any,
        encoder: Encoder,
        decoder: Decoder,
        search: Any = None,
        targets: Targets | None = None,
        auxiliaries: Sequence[Auxiliary] = (),
        augmentations: Sequence[Augmentation] = (),
        weightings: Sequence[Weighting] = (),
        cold: float | None = None,
    ) -> None:
        if cold is not None and not 0 <= cold <= 1:
            raise ValueError(f"cold is a share of the list, 0 to 1, or None; found {cold}")
        if not hasattr(items, "token_table"):
            raise TypeError(f"a Generator needs items with codes, such as CodeItems; {type(items).__name__} has none")
        if getattr(items, "width", items.dim) != items.dim:
            raise TypeError(
                f"a Generator decodes one code at a time, and {type(items).__name__} has a head per level of "
                "its own for all codes at once (RPG): use CodeItems"
            )
        if not isinstance(decoder, Decoder):
            raise TypeError(f"a decoder has begin and step, beside its loss; {type(decoder).__name__} lacks them")
        dim = getattr(decoder, "dim", items.dim)
        if dim != items.dim:
            raise ValueError(f"the item table has dim={items.dim}, {type(decoder).__name__} dim={dim}: give both one")
        super().__init__(items, encoder, decoder, targets, auxiliaries, augmentations, weightings)
        self.search, self.cold = Beam() if search is None else search, cold
        if not hasattr(self.search, "ordered"):
            raise TypeError(f"search is a part that finds items by their codes, such as Beam(50); found {search!r:.60}")
        if self.search.ordered != decoder.ordered:
            kinds = {True: "codes level by level", False: "sets of codes"}
            raise ValueError(
                f"{type(self.search).__name__} searches {kinds[self.search.ordered]}, and {type(decoder).__name__} "
                f"generates {kinds[decoder.ordered]}: use a search of its kind"
            )

    def _keep(self, objective: Objective) -> None:
        self.decoder: Any = objective

    @property
    def objective(self) -> Any:  # type: ignore[override]
        """The decoder."""
        return self.decoder

    def encode(self, batch: Batch) -> Encoded:
        """States of a batch as it is, all of them where the decoder reads all."""
        return self.encoder(batch.ask_all() if member(self.decoder, "whole") else batch, self.items)

    def recommend(
        self, histories: Sequence[Any], k: int = 10, exclude: str = "history", allow: Any = None, deny: Any = None
    ) -> TopK:
        """The ``k`` most probable items for each raw history, found by the search; see ``Recommender.recommend``.

        Scores are log-probabilities. Lists have ``k`` items wherever so many may be shown; a warning counts those that
        fall short because the model gives what is left no probability at all.
        """
        before = self._short()
        histories = as_histories(histories)
        top, shown = self._rank(histories, k, exclude, allow, deny)
        warn_of(shown, top, histories, 3)
        if short := self._short() - before:
            warnings.warn(
                f"{short:,} of {len(top):,} lists are shorter than k={k}: what is left has probability zero",
                DataWarning,
                stacklevel=2,
            )
        return top

    def _short(self) -> int:
        return int(getattr(getattr(self.search, "tally", None), "short", 0))

    def log_probs(self, histories: Sequence[Any], items: Sequence[Any]) -> np.ndarray:
        """(B, C) float32 exact log-probabilities of the raw ``items`` for each raw history, NaN where it is empty.

        Raises:
            UnknownItemError: an item is not in the catalogue.
        """
        histories = self._ready(histories)
        assert self.vocabulary is not None
        rows = self.vocabulary.rows(list(items))
        if (rows <= PAD).any():
            unknown = [item for item, row in zip(items, rows, strict=True) if row <= PAD]
            raise UnknownItemError(f"{len(unknown)} items are not in the catalogue, such as {unknown[:3]}")
        scored: Any = exact_log_probs if self.decoder.ordered else self.search.log_probs
        found = []
        with evaluating(self), torch.inference_mode():
            wanted = torch.from_numpy(rows).to(self.popularity.device)
            for batch, _ in self._batches(histories):
                batch = self._alone(batch)
                values = torch.full((len(batch), len(rows)), torch.nan, device=wanted.device)
                known = (batch.lengths > 0).nonzero().squeeze(1)
                if len(known):
                    encoded = self._read(batch.select(known))
                    values[known] = scored(self.decoder, encoded, self.items, wanted.expand(len(known), -1)).float()
                found.append(values.cpu().numpy())
        return np.concatenate(found) if found else np.zeros((0, len(rows)), np.float32)

    def _alone(self, batch: Batch) -> Batch:
        """The batch with a position in the histories without items that the encoder can answer."""
        alone = getattr(self.encoder, "alone", None)
        return batch if alone is None else alone(batch)

    def _read(self, batch: Batch) -> Encoded:
        """States of histories that are not empty, as they are ranked."""
        return self.encode(self.targets.query(batch.trim(int(batch.lengths.max()))))

    def _rank(
        self,
        histories: Sequence[Any],
        k: int,
        exclude: str,
        allow: Any = None,
        deny: Any = None,
        limits: Limits = EVERYTHING,
    ) -> tuple[TopK, Shown]:
        """``recommend`` without warnings, within rows besides, and what might be shown."""
        k = self._check(k, exclude)
        histories = self._ready(histories, 4)
        shown = self._shown(histories, exclude, allow, deny, limits)
        width, first = min(k, self.num_items), 0
        found: list[tuple[np.ndarray, ...]] = []
        with evaluating(self), torch.inference_mode():
            for batch, skipped in self._batches(histories, max(width, getattr(self.search, "width", 1))):
                batch = self._alone(batch)
                part, known = shown.part(first, first + len(batch)), (batch.lengths > 0).cpu().numpy()
                rows, values = self._found(batch, part, known, width)
                found.append((values, rows, skipped, ~known))
                first += len(batch)
        return top_of(found, width, self.vocabulary, histories), shown

    def _found(self, batch: Batch, shown: Shown, known: np.ndarray, width: int) -> tuple[np.ndarray, np.ndarray]:
        """Rows (B, width) and scores: generated, or by popularity where a history has no ``known`` item."""
        rows = np.zeros((len(batch), width), np.int64)
        values = np.full((len(batch), width), -np.inf, np.float32)
        asking, others = np.flatnonzero(known), np.flatnonzero(~known)
        if len(asking):
            asked = batch.select(torch.from_numpy(asking).to(batch.ids.device))
            near, scores = self._generated(self._read(asked), shown.rows(asking, len(batch)), width)
            rows[asking, : near.shape[1]] = near.cpu().numpy()
            values[asking, : near.shape[1]] = scores.cpu().numpy()
        if len(others):
            counts = self.popularity[1:].repeat(len(others), 1)
            shown.rows(others, len(batch)).hide(counts)
            top, columns = best(counts, width)
            rows[others] = torch.where(top == -torch.inf, PAD, columns + 1).cpu().numpy()
            values[others] = top.cpu().numpy()
        return rows, values

    def _generated(self, encoded: Encoded, shown: Shown, width: int) -> tuple[Tensor, Tensor]:
        """Item rows (B, K) and their scores, best first; 0 and -inf behind the end."""
        if self.cold is None:
            return self._searched(encoded, shown, width)
        new = (self.popularity[1:] == 0).cpu().numpy()
        if not new.any():
            return self._searched(encoded, shown, width)
        rows, scores = self._searched(encoded, _without(shown, new), width)
        if few := int(self.cold * width + 1e-9):
            more, values = self._searched(encoded, _without(shown, ~new), few)
            rows, order = torch.cat([rows, more], 1).sort(dim=1, stable=True)  # equal scores by item row
            scores, columns = best(torch.cat([scores, values], 1).gather(1, order), width)
            rows = rows.gather(1, columns)
        return rows, scores

    def _searched(self, encoded: Encoded, shown: Shown, width: int) -> tuple[Tensor, Tensor]:
        found: tuple[Tensor, Tensor] = self.search(self.decoder, encoded, self.items, shown, width)
        return found

    def _batches(self, histories: Sequence[Any], beams: int = 1) -> Any:
        histories = self._ready(histories)
        assert self.vocabulary is not None
        lengths = np.asarray([len(one.items) for one in histories], np.int64)
        lengths = lengths if self.max_length is None else np.minimum(lengths, self.max_length)
        for block in padded_blocks(lengths, 2**26, 0, 64):
            some = max(1, min(SEARCHED, BEAMS // beams))
            for start in range(block.start, min(block.stop, len(lengths)), some):
                chosen = slice(start, min(start + some, block.stop, len(lengths)))
                yield collate(histories[chosen], self.vocabulary, self.max_length, self.needs, self.popularity.device)


def _without(shown: Shown, hidden: np.ndarray) -> Shown:
    """What may be shown, less the columns that are ``hidden`` (N,) to all."""
    return replace(shown, denied_to_all=np.union1d(shown.denied_to_all, np.flatnonzero(hidden)))
