"""A recommender composed of parts: item table, encoder, targets, objective, auxiliaries, augmentations.

Legend: B histories, T targets, N items, D width, K cut-off.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from recsys.data.batch import PAD, Batch
from recsys.errors import UnknownItemError
from recsys.hooks import PartList, bind, having, member, needs_of, parts_of, unread, unused
from recsys.ids.vectors import Vectors
from recsys.items.local import check_table
from recsys.protocols import (
    Augmentation,
    Auxiliary,
    Context,
    Encoded,
    Encoder,
    ItemTable,
    Objective,
    Step,
    Targets,
    Weighting,
    who_gives,
)
from recsys.randomness import derive_seed
from recsys.ranking.products import check_metric, refuse_nonfinite
from recsys.ranking.ties import best
from recsys.recommenders.base import SCORE_BUDGET, Ranker
from recsys.recommenders.history import History
from recsys.recommenders.modes import evaluating
from recsys.targets.next_item import NextItem

ENCODE_ROWS = 256  # histories encoded at a time when scoring
EXPORT_ROWS = 2**16  # item vectors copied at a time


class Recommender(Ranker):
    """Parts put together, checked against each other, trained by :func:`recsys.fit` and ranked like any other.

    Args:
        items: the item table (``IdItems``, text tables, sums).
        encoder: histories to states; its ``max_length`` is the recommender's, less what a query gets appended (a mask)
            and the encoder has no room for.
        objective: the loss of the targets.
        targets: what is predicted where (default ``NextItem``).
        auxiliaries: further losses, each with its ``weight``.
        augmentations: applied in order to every training batch, before the targets are set.
        weightings: how much each target counts, multiplied with the weights that the data may have.

    Raises:
        ValueError: widths differ, the encoder would see its own target, gives no state where the targets are, reads
            less than a part makes, or gives nothing of what a loss reads.
    """

    def __init__(
        self,
        items: ItemTable,
        encoder: Encoder,
        objective: Objective,
        targets: Targets | None = None,
        auxiliaries: Sequence[Auxiliary] = (),
        augmentations: Sequence[Augmentation] = (),
        weightings: Sequence[Weighting] = (),
    ) -> None:
        super().__init__()
        self._learned = False
        self._unlearned: list[float] | None = None  # sums of the weights that bind gave
        self.items, self.encoder, self.objective = items, encoder, objective
        self.targets: Targets = NextItem() if targets is None else targets
        self.auxiliaries = PartList(auxiliaries)
        self.augmentations = PartList(augmentations)
        self.weightings = PartList(weightings)
        room = member(encoder, "longest") or encoder.max_length  # tokens it reads; targets may append some to a query
        self.max_length = min(encoder.max_length, room - member(self.targets, "appends"))
        self.needs = needs_of(encoder, self.targets)
        check_table(items)
        if items.dim != encoder.dim:
            raise ValueError(f"the item table has dim={items.dim}, the encoder dim={encoder.dim}: give both the same")
        if encoder.sees == "all" and self.targets.sees == "past":
            raise ValueError(
                f"{type(encoder).__name__} looks at the whole history, so under {type(self.targets).__name__} it would "
                "see the item it must predict: use LastItem or MaskedItems targets, or an encoder that sees only "
                "the past"
            )

        if member(encoder, "newest_only") and not member(self.targets, "newest_only"):
            raise ValueError(
                f"{type(encoder).__name__} gives the state of the newest token alone, and "
                f"{type(self.targets).__name__} has targets elsewhere: use LastItem or OneTarget"
            )
        for part, kind in unread(encoder, objective, *(part for _, _, part in self._weighted())):
            raise ValueError(
                f"{type(part).__name__} reads {kind.__name__}, which {type(encoder).__name__} does not give: "
                f"{who_gives(kind)}"
            )
        appended = member(self.targets, "appends")
        for part in (*(part for _, _, part in self._weighted()), *augmentations):
            longest, most = member(part, "longest"), room - appended * member(part, "as_ranked")
            if longest is not None and longest > most:
                raise ValueError(
                    f"{type(part).__name__} makes histories of up to max_length={longest} items, and "
                    f"{type(encoder).__name__} reads {most}: give the part max_length={most} or less"
                )
        self._reserve(fresh=True)
        for part in augmentations:
            if not member(part, "keeps_events"):
                for name, _, other in self._weighted():
                    if "events" in needs_of(other):
                        raise ValueError(
                            f"{name} looks rows up by the event they predict, and {type(part).__name__} changes which "
                            "that is: leave one of the two out"
                        )
            if member(part, "writes_mask"):
                raise ValueError(
                    f"what {type(part).__name__} writes among augmentations becomes a target, which a mask cannot be: "
                    'give its Mask hide="drop"'
                )

    def _reserve(self, fresh: bool = False) -> None:
        """Have the item table make room for the input-only rows that the parts write or read.

        Args:
            fresh: the parts are being put together, so the rows that the table holds are those of another model.

        Raises:
            ValueError: it has none to give.
        """
        for path, part in parts_of(self, used=True):
            asked = member(part, "rows_behind")
            if fresh and self.items.num_items and asked > self.items.extra:
                raise ValueError(
                    f"{type(part).__name__} ({path}) needs {asked} input-only rows behind the items (mask, end token), "
                    f"and {type(self.items).__name__} already holds {self.items.num_items:,} items of another model "
                    f"with {self.items.extra} such rows: give each model a table of its own"
                )
            if asked:
                try:
                    self.items.reserve(asked)
                except ValueError as error:
                    raise ValueError(
                        f"{type(part).__name__} ({path}) needs {asked} input-only rows behind the items (mask, end "
                        f"token), and {error}"
                    ) from error

    @property
    def train_needs(self) -> frozenset[str]:
        """Optional batch fields that any part reads in training; those of weight 0 read nothing."""
        return needs_of(self)

    def bind(self, context: Context) -> None:
        """Size and initialise every part; each draws from a seed of its own name, so an unused part changes nothing.

        An auxiliary of weight 0 is bound as in a loaded model: it gets its shapes, and counts nothing.
        """
        super().bind(context)
        self._reserve()  # again: a part of weight 0 may count by now
        named: list[tuple[str, Any]] = [("items", self.items), ("encoder", self.encoder)]
        named += [("objective", self.objective), ("targets", self.targets)]
        for parts in (self.auxiliaries, self.augmentations, self.weightings):
            named += [(name, part) for name, _, part in _named(parts, unused(self))]
        with torch.random.fork_rng(devices=[]):
            for name, part in named:
                torch.manual_seed(derive_seed(context.seed, "init", name))
                bind(part, context)
            for number, part in enumerate(unused(self)):
                torch.manual_seed(derive_seed(context.seed, "init", "unused", number))
                bind(part, replace(context, training=None, item_text=None, item_features=None, user_features=None))
        self._unlearned = self._sums()

    @property
    def learned(self) -> bool:  # type: ignore[override]
        """Whether its weights are others than those that :meth:`bind` gave it, or were loaded."""
        return self._learned or (self._unlearned is not None and self._sums() != self._unlearned)

    @learned.setter
    def learned(self, value: bool) -> None:
        self._learned = value

    def _sums(self) -> list[float]:
        return [float(value.detach().sum(dtype=torch.float64)) for value in self.parameters()]

    def encode(self, batch: Batch) -> Encoded:
        """States of a batch as it is (no targets or augmentation applied)."""
        return self.encoder(batch, self.items)

    def prepare(self, batch: Batch, step: Step) -> Batch:
        """A training batch, augmented, with its targets set."""
        for name, _, augmentation in _named(self.augmentations):
            batch = augmentation(batch, step.generator(name))
        batch = self.targets.train(batch, step.generator("targets"))
        for weighting in self.weightings:
            batch = _weighted(batch, weighting)
        return batch

    def on_epoch(self, epoch: int) -> None:
        """Let a table whose vectors the encoder makes have them made."""
        for _, table in having(self.items, "refresh"):
            table.refresh(self.encoder, epoch)

    def loss(self, step: Step) -> dict[str, Tensor]:
        """The scalar terms of one prepared batch, by name; their sum is what is minimised.

        The objective's term is its weighted sum over the targets divided by ``step.total_weight``; an auxiliary's is
        multiplied by its weight and by the batch's share of the update. A term that ``step.losses`` does not name is
        not computed.
        """
        step = replace(step, items=self.items, encode=self.encode, query=self.targets.query)
        terms: dict[str, Tensor] = {}
        if step.asks_for("loss"):
            terms["loss"] = self._objective(step) / step.total_weight
        for name, twin, auxiliary in self._weighted():
            if step.asks_for(name):
                found = auxiliary(step.for_twin(twin))
                parts = {name: found} if isinstance(found, Tensor) else {f"{name}.{k}": v for k, v in found.items()}
                terms.update({part: value * auxiliary.weight * step.share for part, value in parts.items()})
        return terms

    @property
    def loss_names(self) -> list[str]:
        """The losses that a stage may ask for: "loss", and the auxiliaries whose weight is not 0."""
        return ["loss", *(name for name, _, _ in self._weighted())]

    def _weighted(self) -> list[tuple[str, int, Any]]:
        """Name, number among those of its class, and part; auxiliaries of weight 0 have neither name nor cost."""
        return _named(self.auxiliaries, unused(self))

    def _objective(self, step: Step) -> Tensor:
        """The sum over the targets of weight times loss."""
        total = self.objective(step.encoded, step.batch, self.items, step.generator("objective"))
        if total.dim():
            raise ValueError(
                f"{type(self.objective).__name__} must give a scalar, the sum over the targets of weight times loss; "
                f"found a tensor of shape {tuple(total.shape)}: return recsys.objectives.weighted.weighted_sum(losses, "
                "weights), with the weights that encoded.at_targets(batch) gives"
            )
        return total

    def score(self, batch: Batch) -> Tensor:
        """(B, N) dot products of user states and item vectors."""
        return self.items.scores(self.vectors(batch))

    def item_vectors(self) -> np.ndarray:
        """(N, D) float32 output vectors of all items, row j for item row j + 1."""
        found = np.empty((self.num_items, self.items.dim), np.float32)
        with evaluating(self), torch.inference_mode():
            for rows in torch.arange(1, self.num_items + 1, device=self.popularity.device).split(EXPORT_ROWS):
                found[int(rows[0]) - 1 : int(rows[-1])] = self.items.output(rows).float().cpu().numpy()
        return found

    def user_vectors(self, histories: Sequence[Any]) -> np.ndarray:
        """(B, D) float32 vectors of raw histories, zero where no item is known."""
        histories = self._ready(histories)
        with evaluating(self), torch.inference_mode():
            chunks = [self.vectors(batch).cpu().numpy() for batch, _ in self._batches(histories)]
        return np.concatenate(chunks) if chunks else np.zeros((0, self.items.dim), np.float32)

    def vectors(self, batch: Batch) -> Tensor:
        """(B, D) float32 user vectors of a batch, zero for an empty history.

        Histories of similar length are encoded together, a few at a time: little padding, and memory that stays warm.
        """
        vectors = torch.zeros(len(batch), self.items.dim, device=batch.ids.device)
        order = batch.lengths.argsort(stable=True)
        known = order[batch.lengths[order] > 0]
        for rows in known.split(ENCODE_ROWS) if len(known) else ():
            part = batch.select(rows)
            part = part.trim(int(part.lengths.max()))
            vectors[rows] = self.encode(self.targets.query(part)).user.float()
        return vectors

    def similar(self, items: Sequence[Any], k: int = 10, metric: str = "cosine") -> list[list[tuple[Any, float]]]:
        """The ``k`` items nearest to each given raw item, as (raw id, similarity), itself left out.

        Fewer where the catalogue has no more; equal ones in the order of the catalogue.

        Args:
            metric: "cosine", or "dot" for the inner product, which is what users and items meet in.

        Raises:
            UnknownItemError: an item is not in the catalogue.
            ValueError: ``k`` is below 1, or ``metric`` is neither of the two.
        """
        k = self._check(k, "none")
        check_metric(metric)
        assert self.vocabulary is not None
        rows = self.vocabulary.rows(items)
        if (rows <= PAD).any():
            unknown = [item for item, row in zip(items, rows, strict=True) if row <= PAD]
            raise UnknownItemError(f"{len(unknown)} items are not in the catalogue, such as {unknown[:3]}")
        found: list[list[tuple[Any, float]]] = []
        with evaluating(self), torch.inference_mode():
            for part in torch.from_numpy(rows).split(max(1, SCORE_BUDGET // (4 * self.num_items))):
                values, columns = best(self._similarity(part.to(self.popularity.device), metric), k)
                raw = self.vocabulary.raw(columns.cpu().numpy() + 1).tolist()
                kept = (values > -torch.inf).sum(1).tolist()
                pairs = zip(raw, values.tolist(), kept, strict=True)
                found += [list(zip(ids[:n], near[:n], strict=True)) for ids, near, n in pairs]
        return found

    def add_items(self, ids: Sequence[Any], vectors: Any = None, features: Mapping[str, Any] | None = None) -> None:
        """Take items into the catalogue that came after training, behind those it has, whose rows stay as they are.

        Args:
            ids: raw ids that are new.
            vectors: what the item table makes of them (text vectors for ``TextItems``): a
                :class:`recsys.ids.vectors.Vectors`, or an array (n, H) in the order of ``ids``; by default they are
                looked up in the folder that the table was made from.
            features: what ``FeatureItems`` makes of them: column -> values in the order of ``ids``, or ``Features``.

        Raises:
            DataError: an id is in the catalogue already, is of another type, or has no vector.
            ValueError: the table or another part learned something for each item and has nothing for new ones.
        """
        self._check(1, "none")
        assert self.vocabulary is not None
        if not hasattr(self.items, "add_items"):
            raise ValueError(
                f"{type(self.items).__name__} has no vectors for items that training never saw: use TextItems or "
                "FeatureItems, or train on data that hold them"
            )
        if not len(ids):
            return
        grown = self.vocabulary.extended(ids)
        new = grown.raw(np.arange(self.num_items + 1, self.num_items + 1 + len(ids))).tolist()
        if vectors is not None and not isinstance(vectors, Vectors):
            vectors = Vectors.of(new, vectors)
        kept = [(one, dict(vars(one)), dict(one._parameters), dict(one._buffers)) for one in self.modules()]
        marked = getattr(self.targets, "num_items", None) == self.num_items  # where the mask is: behind the items
        try:
            self.items.add_items(new, vectors, **({} if features is None else {"features": features}))
            self.vocabulary, self.num_items = grown, len(grown)
            self.popularity = torch.cat([self.popularity, self.popularity.new_zeros(len(new))])
            if marked:
                self.targets.num_items = len(grown)  # type: ignore[attr-defined]
            now = np.zeros(1, np.int64)
            self._rank([History(new[-1:], now, query_time=0, time_unit="ms")], 1, "none")
        except Exception as error:
            for one, values, parameters, buffers in kept:
                vars(one).update(values)
                one._parameters, one._buffers = parameters, buffers
            if marked:
                self.targets.num_items = self.num_items  # type: ignore[attr-defined]
            if isinstance(error, (ValueError, OSError)):
                raise
            raise ValueError(f"a part of this model cannot read items that training never saw ({error})") from error

    def _similarity(self, rows: Tensor, metric: str) -> Tensor:
        """(n, N) similarity of item rows (n,) and all items, -inf to themselves."""
        scores = self.items.scores(self.items.output(rows).float(), metric)
        refuse_nonfinite(scores)
        return scores.index_put_(
            (torch.arange(len(rows), device=scores.device), rows - 1), scores.new_tensor(-torch.inf)
        )


def _weighted(batch: Batch, weighting: Weighting) -> Batch:
    """The batch with further weights: among its own, or beside them if they are not to be divided by."""
    found = weighting(batch).to(torch.float32)
    if weighting.normalised:
        return batch.replace(weights=found if batch.weights is None else batch.weights * found)
    return batch.replace(importance=found if batch.importance is None else batch.importance * found)


def _named(parts: Iterable[Any], idle: Sequence[Any] = ()) -> list[tuple[str, int, Any]]:
    """Name ("CL4SRec0"), number and part: numbers count the parts of one class in their list, but for ``idle`` ones."""
    found, earlier = [], Counter[str]()
    for part in parts:
        if all(part is not one for one in idle):
            kind = type(part).__name__
            found.append((f"{kind}{earlier[kind]}", earlier[kind], part))
            earlier[kind] += 1
    return found
