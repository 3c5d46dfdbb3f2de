"""Warm start: a run begins from new weights, or from what the model has learned, on other users and items too.

(Warm-up of the learning rate is in :mod:`recsys.train.optimizer`.)

Legend: N items (rows 1..N), U users.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from recsys.data.cut import Cut
from recsys.hooks import having, member
from recsys.ids.vocabulary import Vocabulary
from recsys.protocols import Change, Context

MORE = {"item": 3, "user": 5}  # how many more of each a trial has, to see which tensors have a row for each


@dataclass(frozen=True)
class _Moved:
    """Where rows come from: the former row of each row of the new data, and how many there were and are."""

    former: np.ndarray  # (n,) int64, -1 for what is new
    before: int

    @property
    def new(self) -> int:
        return int((self.former < 0).sum())

    @property
    def gone(self) -> int:
        return self.before - len(self.former) + self.new

    def told(self, what: str, start: str) -> list[str]:
        """What is new and what is gone, for a line of text."""
        told = [f"{self.new:,} {what} are new and start {start}"] if self.new else []
        return told + ([f"{self.gone:,} {what} are gone"] if self.gone else [])


@contextmanager
def unharmed(model: Any) -> Iterator[dict[str, Tensor]]:
    """Copies of what ``model`` has learned, which it has again if anything fails inside."""
    if not model.learned:
        yield {}
        return
    before = {name: value.clone() for name, value in model.tensors().items()}
    known, users, trained, count = model.vocabulary, model.users, model.cut, model.num_items
    device = model.popularity.device
    try:
        yield before
    except BaseException:
        model.to("cpu")
        model.bind(Context(count, known, users=users))
        model.load_tensors(before)
        model.to(device)
        model.cut = trained
        raise


def begin(model: Any, context: Context, cut: Cut, init: str, before: dict[str, Tensor]) -> str:
    """Bind ``model`` for training: with what it has learned (``init="keep"``), or with new weights. Says which.

    Args:
        before: what it has learned, as :func:`unharmed` gives it.

    Raises:
        ValueError: a part cannot go on with these data; its class is named.
    """
    model.to("cpu")  # a part draws its initial values where it is, and on a GPU these are others
    if not model.learned:
        model.bind(context)
        return "starts from new weights"
    if init == "fresh":
        model.bind(context)
        return "starts from new weights, and drops what it had learned"
    return _go_on(model, context, cut, before)


def _go_on(model: Any, context: Context, cut: Cut, before: dict[str, Tensor]) -> str:
    known, users, trained = model.vocabulary, model.users, model.cut
    grown = known is not None and context.vocabulary is not None and known.digest != context.vocabulary.digest
    if trained is not None and trained.digest == cut.digest and not grown:  # else it took items in after training
        model.bind(context)
        model.load_tensors(before)
        _carry(model, before, Change(True, np.arange(context.num_items + 1), context))
        return "goes on from the weights that it has learned on these data"
    items = _moved(known, context.vocabulary)
    people = _moved(users, context.users) if users is not None and context.users is not None else None
    model.load_tensors(_carried(model, before, context, items, people))
    _carry(model, before, Change(False, np.concatenate([[0], items.former + 1]), context))
    notes = items.told("items", "at the mean of the others, or from their texts")
    notes += [] if people is None else people.told("users", "without a history of their own")
    return "; ".join(["goes on from the weights that it has learned", *notes])


def merged(before: Cut | None, now: Cut) -> Cut:
    """The cut of a model that learned on ``before`` and went on with ``now``; None stands for what is not known."""
    if before is not None and before.digest == now.digest:
        return now
    stops = None
    same = before is not None and (before.events, before.users) == (now.events, now.users)
    if before is not None and same and before.stops is not None and now.stops is not None:
        stops = np.maximum(before.stops, now.stops)
        if np.array_equal(stops, now.stops):
            return now
    newest = None
    if before is not None and before.newest is not None and now.newest is not None:
        newest = max(before.newest, now.newest)
    both = f"{'unknown' if before is None else before.digest} {now.digest}"
    digest = hashlib.blake2b(both.encode(), digest_size=16).hexdigest()
    return replace(now, digest=digest, newest=newest, stops=stops)


def _moved(before: Vocabulary | None, now: Vocabulary | None) -> _Moved:
    if before is None or now is None:
        raise ValueError(
            "what the model has learned is carried over by raw id, and these data, or those of before, come without a "
            'vocabulary: pass init="fresh" to start anew'
        )
    rows = before.rows(now.ids) if before.kind == now.kind else np.full(len(now), -1)
    return _Moved(np.where(rows < 0, -1, rows - before.first), len(before))


def _carried(
    model: Any, before: dict[str, Tensor], context: Context, items: _Moved, people: _Moved | None
) -> dict[str, Tensor]:
    """The tensors of the model, bound to the new data, with what it had learned copied in."""
    empty = replace(context, training=None, item_text=None, item_features=None, user_features=None)
    shapes = {name: value.shape for name, value in _bound(model, _larger(empty)).items()}
    blank = {name: value.clone() for name, value in _bound(model, empty).items()}
    fresh = _bound(model, context)
    parameters = dict(model.named_parameters(remove_duplicate=False))
    moved = {MORE["item"]: items, MORE["user"]: people}
    own = {f"{path}.{name}" for path, part in having(model, "carry") for name in member(part, "carried")}
    found: dict[str, Tensor] = {}
    for name, value in fresh.items():
        filled = name not in blank or blank[name].shape != value.shape or not torch.equal(blank[name], value)
        if name in own or (filled and name not in parameters):
            found[name] = value  # read or counted from the new data, or put right by ``carry``
            continue
        if name not in before or name not in shapes or len(before[name].shape) != len(value.shape):
            raise _stuck(model, name, before.get(name), value)
        old = before[name]
        for axis, (more, size) in enumerate(zip(shapes[name], blank[name].shape, strict=True)):
            if more == size:
                continue
            rows = moved.get(more - size)
            if rows is None:
                raise _stuck(model, name, before[name], value)
            start = value if filled and old.shape[:axis] == value.shape[:axis] else None
            old = _along(model, name, old, axis, rows, size - len(rows.former), start)
        if old.shape != value.shape:
            raise _stuck(model, name, before[name], value)
        found[name] = old.to(value.dtype)
    return found


def _along(model: Any, name: str, old: Tensor, axis: int, rows: _Moved, around: int, start: Tensor | None) -> Tensor:
    """``old`` with its rows of ``axis`` where the new data have them; ``around`` rows there belong to no item.

    New rows are those of ``start``, else the mean of the old ones. Of these one is in front (padding), all
    others are behind.
    """
    table = old.movedim(axis, 0)
    if len(table) != rows.before + around or around < 0:
        raise _stuck(model, name, old, start)
    first = min(around, 1)
    own = table[first : first + rows.before]
    former = torch.from_numpy(rows.former)
    made = own.new_zeros((len(former), *own.shape[1:]))
    if start is not None and start.movedim(axis, 0).shape[1:] == own.shape[1:]:
        made.copy_(start.movedim(axis, 0)[first : first + len(former)])
    elif own.is_floating_point() and len(own):
        made.copy_(own.double().mean(0).to(own.dtype).expand_as(made))
    made[former >= 0] = own[former[former >= 0]]
    return torch.cat([table[:first], made, table[first + rows.before :]]).movedim(0, axis).contiguous()


def _bound(model: Any, context: Context) -> dict[str, Tensor]:
    model.bind(context)
    tensors: dict[str, Tensor] = model.tensors()
    return tensors


def _larger(context: Context) -> Context:
    """Some more items and users than there are."""
    items, users = context.num_items + MORE["item"], 0 if context.users is None else len(context.users) + MORE["user"]
    people = None if context.users is None else Vocabulary(np.arange(users), context.users.first)
    return replace(context, num_items=items, vocabulary=Vocabulary(np.arange(items), 1), users=people)


def _carry(model: Any, before: dict[str, Tensor], change: Change) -> None:
    """Let parts put right what rows alone do not."""
    for path, part in having(model, "carry"):
        own = {name[len(path) + 1 :]: value for name, value in before.items() if name.startswith(f"{path}.")}
        part.carry(own, change)


def _stuck(model: Any, name: str, before: Tensor | None, now: Tensor | None) -> ValueError:
    path = name.rpartition(".")[0]
    owner = model.get_submodule(path)
    while path and type(owner).__module__.partition(".")[0] == "torch":
        path = path.rpartition(".")[0]
        owner = model.get_submodule(path)
    sizes = ["nothing" if value is None else str(tuple(value.shape)) for value in (before, now)]
    return ValueError(
        f"{type(owner).__name__} cannot go on from what it has learned: {name} was {sizes[0]} and is {sizes[1]} for "
        'these data, which is not a matter of items or users alone; pass init="fresh" to start anew'
    )
