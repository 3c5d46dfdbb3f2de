"""Contrast with semantic neighbours: SRA-CL (Cui et al., NeurIPS 2025, arXiv 2503.04162), for any encoder.

Two terms, beside whatever the recommender is trained with:

- ``cross``: the state of a history against a learned mixture of the states of the k histories whose text vectors are
  nearest (eqs. 5-9). Those are encoded with the same weights and with gradient.
- ``intra``: two views of a history against each other; in each, items are replaced by items of near text (eq. 11).

What we do differently from the released code: training events only are searched, neighbours of the same user and
exact twins are left out (:mod:`recsys.auxiliaries.retrieval`), a history is encoded once for its own loss and as anchor
unless ``own_pass``, a history that is a neighbour of several is encoded once, and pooled item vectors stand in for an
encoded text per history. Text vectors of items, windows and users enter the mixture with length 1 and 16 bits, where
the code takes them raw (only its search has unit length): nothing for encoders that give unit vectors, such as MiniLM,
but with vectors of length 16 theirs starts with a largest share of .31 among ten neighbours, ours with .11, and the
gradient of W is as much longer. Recommending touches none of this: the tables are not saved with the model.

Legend: B histories, R distinct neighbours of a batch, k neighbours, N items, Q training histories, H width of the text
vectors, D width of the states.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from recsys.auxiliaries.contrast import (
    NO_EVENTS,
    check_contrast,
    check_labels,
    false_negatives,
    info_nce,
    inputs,
    nt_xent,
)
from recsys.auxiliaries.histories import KINDS, WINDOWS, Histories, unit
from recsys.auxiliaries.retrieval import (
    Texts,
    cached,
    history_neighbours,
    item_neighbours,
    neighbours_by_title,
    short_rows,
)
from recsys.auxiliaries.synthesiser import Synthesiser
from recsys.data.batch import PAD, Batch
from recsys.ids.vectors import Vectors
from recsys.protocols import Context, Step
from recsys.storage.artifacts import artifacts_root
from recsys.storage.cache import cache_folder

LOSSES = ("ntxent", "infonce")


class SemanticContrast(nn.Module):
    """Semantic cross-sequence and intra-sequence contrast.

    Use when: histories are short and the items have texts that say what they are. Prefer instead:
    :class:`recsys.auxiliaries.duorec.DuoRec` where there are none.

    Args:
        weight: of both terms together.
        vectors: folder of a :class:`recsys.ids.vectors.Vectors` with the items' text vectors. Items without one are
            counted on standard error; they are not replaced and count as nothing in a history's vector.
        cross, intra: of the two terms (alpha, beta). A term of 0 costs nothing; with both 0 so is ``weight``.
        k: neighbours of an item, and of a history.
        share: of the items that a view replaces.
        exact_share: exactly that share of each history, at least one item (the paper), instead of each item by itself
            with that probability (the released code).
        pool: "user" (the newest window of each user, whichever of them is the anchor) or "prefix" (one row per
            training event; the anchor is found by its last target).
        window: how the vector of a history is made of its items': "mean", or "recent", newer ones counting more.
        users: folder of vectors by raw user id (profiles) instead; for ``pool="user"`` only.
        exclude_same_user, exclude_twins: which rows are not neighbours of each other.
        cross_loss: "ntxent" (released code; anchors are also negatives of anchors) or "infonce" (eq. 9).
        attention_dropout: of the weights of the neighbours (released code).
        temperature: divides the products of both terms.
        hide: which pairs of a batch are not negatives: of the same "target", of the same "user".
        neighbours_grad: whether the states of the neighbours pass gradient on.
        own_pass: encode the anchors once more, with a dropout mask of their own (released code). Needed under
            ``MaskedItems``, where the newest token may have no state.
        shuffle: deal the vectors out anew among those that have one, by the seed: the control that tells what the
            texts, and not merely more views, bring. Histories that share items stay near to each other all the same
            (pooled vectors of equal items are equal), so ``cross`` is then contrast by common items.
        max_length: longest window that is searched; at most the encoder's.
        dim: width of the projected text vectors.
        text_dim: width H of the vectors that describe a history; read from the folder if None.
        cache: keep the tables of neighbours in the cache folder, for the next run with the same facts.

    Raises:
        ValueError: an argument outside of its range, or no vectors where a term needs them.
    """

    similar: Tensor | None
    texts: Tensor | None
    nearest: Tensor | None
    keys: Tensor | None

    def __init__(
        self,
        weight: float = 1.0,
        vectors: str = "",
        cross: float = 0.1,
        intra: float = 0.1,
        k: int = 10,
        share: float = 0.2,
        exact_share: bool = False,
        pool: str = "user",
        window: str = "mean",
        users: str | None = None,
        exclude_same_user: bool = True,
        exclude_twins: bool = True,
        cross_loss: str = "ntxent",
        attention_dropout: float = 0.5,
        temperature: float = 1.0,
        hide: Sequence[str] = (),
        neighbours_grad: bool = True,
        own_pass: bool = False,
        shuffle: bool = False,
        max_length: int = 20,
        dim: int = 64,
        text_dim: int | None = None,
        cache: bool = True,
    ) -> None:
        super().__init__()
        for name, value, known in zip(
            ("pool", "window", "cross_loss"), (pool, window, cross_loss), (KINDS, WINDOWS, LOSSES), strict=True
        ):
            if value not in known:
                raise ValueError(f"{name} must be one of {', '.join(known)}, found {value!r}")
        if min(cross, intra) < 0 or k < 1 or not 0 <= share <= 1:
            raise ValueError(
                f"cross and intra must be at least 0, k at least 1, share in 0..1; found {cross}, {intra}, {k}, {share}"
            )
        check_contrast(temperature, 0.0)
        self.hide = [hide] if isinstance(hide, str) else list(hide)
        check_labels(self.hide)
        if users is not None and pool != "user":
            raise ValueError("users holds one vector per user, so it needs pool='user': leave one of the two out")
        self.weight = weight if cross or intra else 0.0
        if self.weight and not vectors and (intra or users is None):
            raise ValueError("vectors must name a folder of text vectors: make one with recsys.llm.embed.embed(split)")
        self.vectors, self.cross, self.intra, self.k = vectors, cross, intra, k
        self.share, self.exact_share, self.pool, self.window, self.users = share, exact_share, pool, window, users
        self.exclude_same_user, self.exclude_twins = exclude_same_user, exclude_twins
        self.cross_loss, self.attention_dropout, self.temperature = cross_loss, attention_dropout, temperature
        self.neighbours_grad, self.own_pass, self.shuffle = neighbours_grad, own_pass, shuffle
        self.max_length, self.dim, self.cache = max_length, dim, cache
        self.longest, self.as_ranked = max_length if cross else None, True
        self.needs = frozenset({"events"}) if self.weight and cross and pool == "prefix" else frozenset()
        self.synthesiser: Synthesiser | None = None
        if self.weight and cross:
            text_dim = Vectors.load(users or vectors).width if text_dim is None else text_dim
            self.synthesiser = Synthesiser(text_dim, dim, attention_dropout)
        self.text_dim = text_dim
        self.rows: Histories | None = None
        self.counts: dict[str, Any] = {}
        for name in ("similar", "texts", "nearest", "keys"):  # what training needs and a saved model does not
            self.register_buffer(name, None, persistent=False)

    def bind(self, context: Context) -> None:
        """Initialise W and a; where there is training data, find all neighbours (or read them from the cache).

        Raises:
            FileNotFoundError, DataError: the vectors cannot be read, or are those of other data.
            ValueError: ``k`` is not below the number of items with a vector, or of training histories.
        """
        if self.synthesiser is not None:
            self.synthesiser.reset_parameters()
        if context.training is None or not self.weight:
            return
        texts = Texts.none(context.num_items + 1)
        if self.vectors:
            texts = Texts.read(self.vectors, context.vocabulary, "items", context.seed if self.shuffle else None)
        self.counts = dict(texts.counts)
        if self.intra:
            facts = {"table": "items", "k": self.k, **texts.facts}
            table = self._table(facts, lambda: item_neighbours(texts.matrix, texts.known, self.k))
            self.similar = torch.from_numpy(table)
        if self.cross:
            self._bind_histories(context, texts)

    def sources(self) -> str:
        """Hash of the vectors that are read: with others this is another run."""
        read = [folder for folder in (self.vectors, self.cross and self.users) if folder and self.weight]
        return " ".join(Vectors.load(folder).digest() for folder in read)

    def forward(self, step: Step) -> dict[str, Tensor]:
        """The terms "cross" and "intra", each with its weight, as far as that is not 0.

        Raises:
            ValueError: the model was loaded, or bound without training data, and knows no neighbours; or the batch does
                not say which events it predicts and ``pool="prefix"``.
        """
        if (self.intra and self.similar is None) or (self.cross and self.nearest is None):
            raise ValueError("this model was loaded for recommending and knows no neighbours: fit it on a split")
        batch, random = step.batch, step.generator("SemanticContrast")
        parts = []
        if self.similar is not None:
            parts = [substituted(batch, self.similar, self.share, random, self.exact_share) for _ in range(2)]
        if not self.cross:
            return {"intra": self._intra(step, *_states(step, parts))}
        own, anchors = self._locate(batch if step.share else batch.select(batch.rows[:0]))
        near, index = self._near(own)
        neighbours = step.asked(inputs(self._gather(near, batch)))
        parts += [step.asked(inputs(batch))] if self.own_pass else []
        states = _states(step, [*parts, neighbours] if self.neighbours_grad else parts)
        if not self.neighbours_grad:
            with torch.no_grad():
                states += _states(step, [neighbours])
        mine = states[-2] if self.own_pass else step.encoded.user
        assert self.texts is not None and self.synthesiser is not None
        shares = self.synthesiser(self.texts[own].float(), self.texts[near].float(), index, random)
        terms = {"cross": self._cross(step, mine, anchors, states[-1], shares, index)}
        return {**terms, "intra": self._intra(step, states[0], states[1])} if self.intra else terms

    def sections(self, model: Any, split: Any) -> dict[str, Any]:
        """For the report: what was left without neighbours, and neighbours of a few histories by title."""
        if not self.counts:
            return {}
        found: dict[str, Any] = {"Semantic neighbours: counts": dict(self.counts)}
        if self.rows is not None and self.nearest is not None:
            lines = neighbours_by_title(self.rows, self.nearest.cpu().numpy(), split)
            found["Semantic neighbours: last five items, by title"] = lines
        return found

    def _bind_histories(self, context: Context, texts: Texts) -> None:
        assert context.training is not None
        histories = Histories.of(context.training, self.pool, self.max_length)
        if self.users is None:
            vectors = histories.vectors(texts.matrix, texts.known, self.window)
        else:
            vocabulary = context.users
            texts = Texts.read(self.users, vocabulary, "users", context.seed if self.shuffle else None)
            self.counts |= texts.counts
            vectors = unit(texts.matrix)[histories.users]
        if vectors.shape[1] != self.text_dim:
            raise ValueError(f"text_dim={self.text_dim}, but the vectors are {vectors.shape[1]} wide: give that number")
        apart = ["same user"] * self.exclude_same_user + ["twins"] * self.exclude_twins
        facts = {"table": "pool", "k": self.k, "window": self.window, "apart": apart} | histories.facts() | texts.facts

        def search() -> np.ndarray:
            labels = [histories.users] * self.exclude_same_user
            twins = histories.twins() if self.exclude_twins else None
            if self.users is None:
                return history_neighbours(vectors, self.k, labels, twins=twins)
            return history_neighbours(vectors, self.k, labels if twins is None else [*labels, twins])

        table = self._table(facts, search)
        none, some = short_rows(table)
        self.counts |= {"training histories searched": len(histories), "histories without neighbours": none}
        self.counts |= {f"histories with fewer than {self.k} neighbours": some}
        self.rows, self.texts = histories, torch.from_numpy(vectors.astype(np.float16))
        self.nearest, self.keys = torch.from_numpy(table.astype(np.int64)), torch.from_numpy(histories.keys.copy())

    def _table(self, facts: dict[str, Any], make: Any) -> np.ndarray:
        return cached(artifacts_root(cache_folder()) / "neighbours" if self.cache else None, facts, make)

    def _locate(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Training histories (A,), by row, of the histories (A,) of the batch that have neighbours."""
        assert self.keys is not None and self.nearest is not None
        wanted = batch.users if self.pool == "user" else batch.events
        if wanted is None:
            raise ValueError(f'pool="prefix" finds a history by the events of the batch: {NO_EVENTS}')
        rows = torch.searchsorted(self.keys, wanted).clamp(max=len(self.keys) - 1)
        found = (self.keys[rows] == wanted) & (self.nearest[rows, 0] >= 0) & (batch.lengths > 0)
        anchors = found.nonzero().squeeze(1)
        return rows[anchors], anchors

    def _near(self, own: Tensor) -> tuple[Tensor, Tensor]:
        """The neighbours of training histories (A,): each once (R,), by length; and which of them they are (A, k)."""
        assert self.nearest is not None and self.rows is not None
        near, index = self.nearest[own].unique(return_inverse=True)
        lengths = torch.from_numpy(self.rows.lengths(near.cpu().numpy())).to(near.device)
        order = lengths.argsort(stable=True)
        return near[order], order.argsort()[index]

    def _gather(self, rows: Tensor, batch: Batch) -> Batch:
        assert self.rows is not None
        needs = frozenset(name for name in ("times", "query_time") if getattr(batch, name) is not None)
        return self.rows.batch(rows.cpu().numpy(), needs).to(batch.ids.device)

    def _cross(
        self, step: Step, states: Tensor, anchors: Tensor, near: Tensor, shares: Tensor, index: Tensor
    ) -> Tensor:
        """The term over the histories that have neighbours; none is 0, but all processes must take part."""
        mixed = torch.einsum("bk,bkd->bd", shares, near[index])  # eq. 8
        loss = nt_xent if self.cross_loss == "ntxent" else info_nce
        hidden = self._hidden(step.batch.select(anchors)) if self.hide else None
        return self.cross * loss(states[anchors], mixed, self.temperature, hide=hidden)

    def _intra(self, step: Step, first: Tensor, second: Tensor) -> Tensor:
        """The term over the histories with any input, without the extra row of a process that has no rows."""
        rows = ((step.batch.lengths > 0) & (step.share > 0)).nonzero().squeeze(1)
        hidden = self._hidden(step.batch.select(rows))
        return self.intra * nt_xent(first[rows], second[rows], self.temperature, hide=hidden)

    def _hidden(self, batch: Batch) -> Tensor | None:
        return false_negatives(batch, by=tuple(self.hide)) if self.hide else None


def substituted(
    batch: Batch, similar: Tensor, share: float, generator: torch.Generator, exact_share: bool = False
) -> Batch:
    """A view (inputs only) in which some items are exchanged for one of their neighbours, drawn uniformly.

    Args:
        similar: (N+1, k) neighbours by item row; a row of zeros leaves its item as it is, as do rows behind the items.
        share: probability of each item, or with ``exact_share`` the part of each history's items, rounded, at least 1.
    """
    ids, device = batch.ids, batch.ids.device
    draws = torch.rand(ids.shape, generator=generator, device=device)
    if exact_share:
        rank = draws.masked_fill(~batch.mask, 2.0).argsort(1).argsort(1)
        chosen = rank < (batch.lengths * share).round().clamp(min=1)[:, None]
    else:
        chosen = draws < share
    chosen = chosen & batch.mask & (ids < len(similar))
    rank = torch.randint(similar.shape[1], ids.shape, generator=generator, device=device)
    drawn = similar.flatten()[torch.where(chosen, ids, PAD) * similar.shape[1] + rank].long()
    return inputs(batch).replace(ids=torch.where(chosen & (drawn > PAD), drawn, ids))


def _states(step: Step, parts: list[Batch]) -> list[Tensor]:
    """User states of each batch, all from one pass of the encoder."""
    if sum(len(part) for part in parts) == 0:
        return [step.encoded.user[:0] for _ in parts]
    assert step.encode is not None
    return list(step.encode(Batch.join(parts)).user.split([len(part) for part in parts]))
