"""A trial run of parts from outside this package on a few rows, before anything is trained or written.

What a part gives in another shape than its protocol says often trains all the same, on a wrong number. The try runs on
a copy of the model (parameters are shared and stay as they are), in eval mode, and leaves random states alone.

Legend: B histories, L longest history, T real tokens, T' targets, D width, N items (rows 1..N).
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from recsys.data.batch import Batch
from recsys.hooks import call, parts_of
from recsys.protocols import Encoded, Step
from recsys.recommenders.parts import Composed
from recsys.runs.checkpoint import random_state, restore_random_state
from recsys.train.loader import TrainBatches
from recsys.train.settings import Stage

ROWS = 8  # training histories that parts are tried on
SUM = (
    "the sum over the targets of weight times loss: recsys.objectives.weighted.weighted_sum(losses, weights), the "
    "weights being the third of encoded.at_targets(batch)"
)
OPTIONAL = ("targets", "weights", "times", "query_time", "target_times", "events")  # fields that a batch may lack


def try_parts(model: Any, batches: TrainBatches, plan: Sequence[Stage]) -> None:
    """Run every part of a bound model once, if one of them is of another package.

    Losses that only stages with batches of their own ask for are left out: these rows are not meant for them.

    Raises:
        ValueError: a part gives something else than its protocol says; the message names its class.
    """
    if not isinstance(model, Composed) or not any(_foreign(part) for _, part in parts_of(model, used=True)):
        return
    _check_owned(model)
    training = batches.training
    users = np.flatnonzero(training.lengths > 1)[:ROWS]

    def rows(more: int = 1) -> Batch:
        return training.gather(users, batches.max_length + more, needs=batches.needs)

    wanted = [stage.losses for stage in plan if stage.data is None]
    before = random_state()
    try:
        _Trial(_copied(model, training), rows(), wanted).run(rows(0))
    except ValueError:  # some parts need their hooks first; they are called only then, as they may do more than that
        tried = _copied(model, training)
        call(tried, "on_stage", plan[0].name)
        call(tried, "on_epoch", 0)
        _Trial(tried, rows(), wanted).run(rows(0))
    finally:
        restore_random_state(before)


class _Trial:
    """The protocols in the order of a training step."""

    def __init__(self, model: Composed, rows: Batch, wanted: Sequence[Sequence[str] | None] = (None,)) -> None:
        model.eval()
        self.wanted = wanted
        self.model, self.rows = model, rows.to(model.popularity.device)
        self.highest = model.num_items + getattr(model.items, "extra", 0)
        self.step = Step(self.rows, items=model.items, encode=self._encode, query=model.targets.query)

    def run(self, asked: Batch) -> None:
        model, step = self.model, self.step
        self._items()
        batch = self.rows
        for part in model.augmentations:
            batch = self._augmented(part, batch)
        with _blamed(model.targets, batch):
            made = model.targets.train(batch, step.generator("targets"))
        self._well_formed(model.targets, made, len(self.rows))
        targets = made.targets
        if targets is None or targets.shape != made.ids.shape or targets.dtype != torch.int64:
            found = None if targets is None else f"{targets.dtype} {tuple(targets.shape)}"
            raise _wrong(model.targets, f"targets (B, L) int64, {tuple(made.ids.shape)}", found)
        if bool((targets < 0).any()) or bool((targets > self.highest).any()):
            raise _wrong(model.targets, f"targets in 0..{self.highest}", f"{int(targets.min())}..{int(targets.max())}")
        for part in model.weightings:
            if not isinstance(getattr(part, "normalised", None), bool):
                raise _wrong(part, "an attribute normalised, True or False", "none")
            with _blamed(part, made):
                weights = part(made)
            if not isinstance(weights, Tensor) or weights.shape != made.ids.shape:
                raise _wrong(part, f"weights (B, L), {tuple(made.ids.shape)}", _shape(weights))
            self._finite(part, "weights", weights)
        step = self.step = replace(step, batch=made)
        encoded = step.encoded
        if self._asks_for("loss"):
            self._objective(encoded, made)
        for name, twin, part in model._weighted():
            if not isinstance(getattr(part, "weight", None), (int, float, Tensor)):
                raise _wrong(part, "an attribute weight, a number", repr(getattr(part, "weight", None)))
            if _foreign(part) and self._asks_for(name):
                self._auxiliary(part, name, step.for_twin(twin))
        self._encode(model.targets.query(asked.to(self.rows.ids.device)))  # without targets, as validation does

    def _asks_for(self, term: str) -> bool:
        return any(replace(self.step, losses=losses).asks_for(term) for losses in self.wanted)

    def _items(self) -> None:
        items, count = self.model.items, self.model.num_items
        rows = torch.arange(1, min(count, 4) + 1, device=self.rows.ids.device)
        with _blamed(items, self.rows):
            if items.num_items != count:
                raise _wrong(items, f"num_items={count} after bind(context)", items.num_items)
            for verb in ("embed", "output"):
                vectors = getattr(items, verb)(rows[None])
                if not isinstance(vectors, Tensor) or vectors.shape != (1, len(rows), items.dim):
                    raise _wrong(items, f"{verb}(ids) of (1, {len(rows)}, {items.dim})", _shape(vectors))
            if not _foreign(items):
                return
            scored = items.output(rows)
            found = items.scores(scored)
            if found.shape != (len(rows), count):
                raise _wrong(items, f"scores(users) of ({len(rows)}, {count})", _shape(found))
            if not torch.allclose(found[:, : len(rows)], scored @ scored.T, 1e-3, 1e-5):
                raise _wrong(items, "scores(users) that are products with the vectors of output(ids)", "others")
            if items.log_sum_exp(scored).shape != (len(rows),):
                raise _wrong(items, f"log_sum_exp(hidden) of ({len(rows)},)", _shape(items.log_sum_exp(scored)))

    def _augmented(self, part: Any, batch: Batch) -> Batch:
        with _blamed(part, batch), _untouched(part, batch):
            made = part(batch, self.step.generator(type(part).__name__))
        self._well_formed(part, made, len(batch))
        found: Batch = made
        return found

    def _well_formed(self, part: Any, batch: Any, size: int) -> None:
        if not isinstance(batch, Batch):
            raise _wrong(part, "a Batch", type(batch).__name__)
        if len(batch) != size or batch.lengths.shape != (size,):
            raise _wrong(
                part, f"as many histories as it was given, {size}", f"{len(batch)}, lengths {_shape(batch.lengths)}"
            )
        if batch.ids.dtype != torch.int64 or batch.ids.dim() != 2:
            raise _wrong(part, "ids (B, L) int64", f"{batch.ids.dtype} {_shape(batch.ids)}")
        if bool((batch.lengths < 0).any()) or bool((batch.lengths > batch.ids.shape[1]).any()):
            raise _wrong(part, f"lengths in 0..{batch.ids.shape[1]}", batch.lengths.tolist())
        if bool((batch.ids < 0).any()) or bool((batch.ids > self.highest).any()):
            raise _wrong(part, f"item rows in 0..{self.highest}", f"{int(batch.ids.min())}..{int(batch.ids.max())}")

    def _encode(self, batch: Batch) -> Encoded:
        model = self.model
        with _blamed(model.encoder, batch), _untouched(model.encoder, batch):
            encoded = model.encoder(batch, model.items)
            if not isinstance(encoded, Encoded):
                raise _wrong(model.encoder, "Encoded(batch, tokens)", type(encoded).__name__)
            shape = (int(batch.lengths.sum()), model.encoder.dim)
            if encoded.tokens.shape != shape:
                raise _wrong(model.encoder, f"states of the real tokens (T, D), {shape}", _shape(encoded.tokens))
            if encoded.user.shape != (len(batch), model.encoder.dim):
                raise _wrong(model.encoder, f"users (B, D), {(len(batch), model.encoder.dim)}", _shape(encoded.user))
        self._finite(model.encoder, "states", encoded.tokens)
        return encoded

    def _objective(self, encoded: Encoded, batch: Batch) -> None:
        part = self.model.objective
        if not len(encoded.at_targets(batch)[1]):
            return
        with _blamed(part, batch):
            total = self._loss(encoded, batch)
        if not isinstance(total, Tensor) or total.dim():
            raise _wrong(part, f"a scalar, {SUM}", _shape(total))
        if not total.requires_grad and any(one.requires_grad for one in self.model.parameters()):
            raise _wrong(part, "a loss that has a gradient", f"{total.dtype} without one")
        self._finite(part, "a loss", total)
        if _foreign(part):
            self._sums(part, encoded, batch, total.item())

    def _sums(self, part: Any, encoded: Encoded, batch: Batch, total: float) -> None:
        """Refuse an objective that forgets the weights, or gives a mean: the recommender divides."""
        assert batch.targets is not None
        ones = torch.ones(batch.ids.shape, device=batch.ids.device) if batch.weights is None else batch.weights
        with _blamed(part, batch):
            twice = self._loss(encoded, batch.replace(weights=2 * ones)).item()
        if not np.isclose(twice, 2 * total, 1e-3, 1e-5):
            raise _wrong(part, SUM, f"{total:.4g}, and {twice:.4g} under doubled weights")
        odd = torch.arange(len(batch), device=batch.ids.device)[:, None] % 2
        halves = [batch.targets * half for half in (odd, 1 - odd)]
        if all(bool(half.any()) for half in halves):
            with _blamed(part, batch):
                apart = [batch.replace(targets=half) for half in halves]
                added = sum(self._loss(self._encode(half), half).item() for half in apart)
            if abs(added - 2 * total) < abs(total) / 4:
                raise _wrong(part, SUM, f"a mean: {total:.4g}, and {added:.4g} added up over two halves of them")

    def _loss(self, encoded: Encoded, batch: Batch) -> Any:
        return self.model.objective(encoded, batch, self.model.items, self.step.generator("objective"))

    def _auxiliary(self, part: Any, name: str, step: Step) -> None:
        with _blamed(part, step.batch):
            found = part(step)
        terms = found if isinstance(found, dict) else {name: found}
        for term, value in terms.items():
            if not isinstance(value, Tensor) or value.dim():
                raise _wrong(part, "a scalar tensor, or a dict of them", f"{term}: {_shape(value)}")
            self._finite(part, term, value)

    def _finite(self, part: Any, what: str, value: Tensor) -> None:
        if not bool(torch.isfinite(value).all()):
            raise _wrong(part, f"finite {what}", f"{int((~torch.isfinite(value)).sum())} that are not")


@contextmanager
def _untouched(part: Any, batch: Batch) -> Iterator[None]:
    """A batch belongs to all parts: none may change it in place."""
    kept = {entry.name: getattr(batch, entry.name) for entry in fields(batch)}
    values = {name: value.clone() for name, value in kept.items() if isinstance(value, Tensor)}
    yield
    changed = [name for name, value in values.items() if not torch.equal(value, getattr(batch, name))]
    if changed:
        raise _wrong(part, "a changed copy of the batch", f"{', '.join(changed)} changed in place")


@contextmanager
def _blamed(part: Any, batch: Batch) -> Iterator[None]:
    """Errors of a foreign part that do not say whose they are, with its class and the fields it may have missed."""
    try:
        yield
    except (AttributeError, TypeError, KeyError, IndexError, RuntimeError) as error:
        if not _foreign(part):
            raise
        absent = [f"batch.{name}" for name in OPTIONAL if getattr(batch, name) is None]
        more = f"; these batches do not have {', '.join(absent)}: does it read one, and not declare it in needs?"
        raise ValueError(
            f"{_title(part)} failed on some rows ({type(error).__name__}: {error}){more if absent else ''}"
        ) from error


def _check_owned(model: Composed) -> None:
    """Weights in what is not a module would neither be trained nor saved."""
    known = {id(value) for value in model.parameters()}
    for _, part in parts_of(model, used=True):
        if isinstance(part, nn.Module):
            continue
        for name, value in vars(part).items() if hasattr(part, "__dict__") else ():
            loose = [value] if isinstance(value, nn.Parameter) else []
            if isinstance(value, nn.Module):
                loose = [one for one in value.parameters() if one.requires_grad]
            if any(id(one) not in known for one in loose):
                raise _wrong(
                    part, "an nn.Module, since it has weights to train", f"a plain object with weights in {name}"
                )


def _copied(model: Composed, training: Any) -> Composed:
    """A copy that shares what cannot change: parameters, and the training data that parts may hold."""
    memo: dict[int, Any] = {id(value): value for value in model.parameters()}
    for value in (training, *vars(training).values()):
        memo[id(value)] = value
    for vocabulary in (model.vocabulary, model.users):
        memo[id(vocabulary)] = vocabulary
    try:
        return copy.deepcopy(model, memo)
    except Exception:  # a part that cannot be copied is tried as it is
        return model


def _foreign(part: Any) -> bool:
    module: str | None = part.__module__ if inspect.isfunction(part) else type(part).__module__
    return (module or "").partition(".")[0] not in ("recsys", "torch")


def _title(part: Any) -> str:
    """The name of its class, or its own if it is a function or a class."""
    return str(getattr(part, "__name__", type(part).__name__))


def _shape(value: Any) -> Any:
    return tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__


def _wrong(part: Any, expected: str, found: Any) -> ValueError:
    return ValueError(
        f"{_title(part)} must give {expected}; found {found}. recsys.testing has a check for each kind of part"
    )
