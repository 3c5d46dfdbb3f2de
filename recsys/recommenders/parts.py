"""What recommenders composed of parts share: parts checked against each other, bound, and their training losses.

Legend: B histories, T targets, N items, D width.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from recsys.data.batch import Batch
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
from recsys.recommenders.base import Ranker
from recsys.recommenders.history import History
from recsys.targets.next_item import NextItem


class Composed(Ranker):
    """A recommender of parts, as :func:`recsys.fit` trains it; how it answers is up to who inherits this.

    Args:
        items: the item table.
        encoder: histories to states.
        objective: the loss of the targets.
        targets: what is predicted where (default ``NextItem``).
        auxiliaries: further losses, each with its ``weight``.
        augmentations: applied in order to every training batch, before the targets are set.
        weightings: how much each target counts, multiplied with the weights that the data may have.

    Raises:
        ValueError: widths differ, the encoder would see its own target, gives no state where the targets are, reads
            less than a part makes, or gives nothing of what a loss reads.
    """

    objective: Objective

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
        self.items, self.encoder = items, encoder
        self._keep(objective)
        self.targets: Targets = NextItem() if targets is None else targets
        self.auxiliaries = PartList(auxiliaries)
        self.augmentations = PartList(augmentations)
        self.weightings = PartList(weightings)
        room = member(encoder, "longest") or encoder.max_length  # tokens it reads; targets may append some to a query
        self.max_length = min(encoder.max_length, room - member(self.targets, "appends"))
        self.needs = needs_of(encoder, self.targets) | member(encoder, "may_read")
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

    def _keep(self, objective: Objective) -> None:
        self.objective = objective

    def _reserve(self, fresh: bool = False) -> None:
        """Have the item table, and those in the encoder, make room for the input-only rows that parts write or read.

        Args:
            fresh: the parts are being put together, so the rows that the table holds are those of another model.

        Raises:
            ValueError: one has none to give, or the encoder reads none.
        """
        tables = [self.items, *(one for _, one in having(self.encoder, "reserve"))]
        for path, part in parts_of(self, used=True):
            asked = member(part, "rows_behind")
            if asked and not member(self.encoder, "reads_behind"):
                raise ValueError(
                    f"{type(part).__name__} ({path}) writes a mask or an end token into histories, and "
                    f"{type(self.encoder).__name__} reads the codes of items, which those do not have: use an encoder "
                    "of items, or leave the part out"
                )
            if fresh and self.items.num_items and asked > self.items.extra:
                raise ValueError(
                    f"{type(part).__name__} ({path}) needs {asked} input-only rows behind the items (mask, end token), "
                    f"and {type(self.items).__name__} already holds {self.items.num_items:,} items of another model "
                    f"with {self.items.extra} such rows: give each model a table of its own"
                )
            if asked:
                try:
                    for table in tables:
                        table.reserve(asked)
                except ValueError as error:
                    raise ValueError(
                        f"{type(part).__name__} ({path}) needs {asked} input-only rows behind the items (mask, end "
                        f"token), and {error}"
                    ) from error

    def add_items(self, ids: Sequence[Any], vectors: Any = None, features: Mapping[str, Any] | None = None) -> None:
        """Take items into the catalogue that came after training, behind those it has, whose rows stay as they are.

        Args:
            ids: raw ids that are new.
            vectors: what the item table makes of them (text vectors for ``TextItems``): a
                :class:`recsys.ids.vectors.Vectors`, or an array (n, H) in the order of ``ids``; of ``CodeItems`` the
                ``SemanticIds`` that have them. A table that reads something else, or all if this is None, looks them
                up in the folder that it was made from.
            features: what ``FeatureItems`` makes of them: column -> values in the order of ``ids``, or ``Features``.

        Raises:
            DataError: an id is in the catalogue already, is of another type, or has no vector.
            ValueError: the table or another part learned something for each item and has nothing for new ones.
        """
        self._check(1, "none")
        assert self.vocabulary is not None
        tables = self._tables()
        if unable := [table for table in tables if not hasattr(table, "add_items")]:
            raise ValueError(
                f"{type(unable[0]).__name__} has no vectors for items that training never saw: use TextItems or "
                "FeatureItems, or train on data that hold them"
            )
        if not len(ids):
            return
        grown = self.vocabulary.extended(ids)
        new = grown.raw(np.arange(self.num_items + 1, self.num_items + 1 + len(ids))).tolist()
        if vectors is not None and not isinstance(vectors, Vectors) and not hasattr(vectors, "codes"):
            vectors = Vectors.of(new, vectors)
        kept = [(one, dict(vars(one)), dict(one._parameters), dict(one._buffers)) for one in self.modules()]
        marked = getattr(self.targets, "num_items", None) == self.num_items  # where the mask is: behind the items
        try:
            for table in tables:
                table.add_items(new, vectors, **({} if features is None else {"features": features}))
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

    def _tables(self) -> list[Any]:
        """The item tables: that of the items, and those that the encoder or an auxiliary holds; each once."""
        parts = [part for one in (self.encoder, *self.auxiliaries) for _, part in parts_of(one)]
        held = [table for part in parts for table in getattr(part, "item_tables", ())]
        return list({id(table): table for table in (self.items, *held)}.values())

    @property
    def train_needs(self) -> frozenset[str]:
        """Optional batch fields that any part reads in training; those of weight 0 read nothing."""
        return needs_of(self) - (member(self.encoder, "may_read") - needs_of(self.encoder, self.targets))

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
