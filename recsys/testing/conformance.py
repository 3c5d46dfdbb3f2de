"""Conformance checks, one per protocol, for parts of your own: call one from a test, it says what is wrong.

Every check takes the part as it would be given to a recommender, works on small made-up data, and raises
``AssertionError`` with what was expected and what was found. A part that passes can be composed, trained, resumed,
exported and loaded.

>>> from recsys.targets.next_item import NextItem
>>> check_targets(NextItem())

Legend: B histories, L longest history, T real tokens, T' targets, D width, N items, K cut-off.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from recsys.data.batch import PAD, Batch
from recsys.data.prepared import Prepared
from recsys.data.split import Split
from recsys.data.splitters import LeaveLast
from recsys.encoders.sasrec import SASRec
from recsys.eval.metrics.ranked import Catalogue, Metric, Ranked
from recsys.hooks import needs_of
from recsys.ids.vocabulary import Vocabulary
from recsys.items.ids import IdItems
from recsys.objectives.softmax import FullSoftmax
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
)
from recsys.recommenders.base import Ranker, Scores
from recsys.recommenders.composed import Recommender
from recsys.recommenders.history import History
from recsys.storage.parts import build, describe
from recsys.testing.assertions import (
    close,
    evaluated,
    gradients,
    modules,
    parameters,
    require,
    round_trip,
    same,
    seeded,
    unchanged,
    well_formed,
)
from recsys.train.loader import SCHEMES

NUM_ITEMS, DIM = 30, 16


def toy_split(num_users: int = 40, num_items: int = NUM_ITEMS, seed: int = 0, longest: int = 12) -> Split:
    """A small leave-last split with times and weights; raw ids are "i1", "i2", ..., and each user walks up the ids."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(4, longest + 1, num_users)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    position = np.arange(lengths.sum()) - np.repeat(offsets[:-1], lengths)
    walk = np.repeat(rng.integers(0, num_items, num_users), lengths) + position * np.repeat(
        rng.integers(1, 3, num_users), lengths
    )
    prepared = Prepared(
        (walk % num_items + 1).astype(np.int32), offsets, num_items,
        times=np.arange(len(walk)) * 60_000, weights=rng.uniform(0.5, 2.0, len(walk)).astype(np.float32),
    )  # fmt: skip
    names = np.array([f"i{row}" for row in range(1, num_items + 1)], object)
    titles = np.array(["", *(f"Item number {row}" for row in range(1, num_items + 1))], object)
    users = Vocabulary(np.arange(num_users), 0)
    return Split.of(prepared, LeaveLast(), Vocabulary(names, 1), users, name="toy", item_text={"title": titles})


def toy_context(num_items: int = NUM_ITEMS, seed: int = 0) -> Context:
    """What :func:`toy_split` lets a part know before training."""
    split = toy_split(num_items=num_items, seed=seed)
    return Context(num_items, split.items, split.train, split.item_text, seed, split.users)


def toy_batch(
    lengths: tuple[int, ...] = (5, 1, 3, 4), num_items: int = NUM_ITEMS, seed: int = 0, width: int = 0
) -> Batch:
    """Random histories of these lengths with times, weights and query times, padded to ``width`` or the longest."""
    generator = torch.Generator().manual_seed(seed)
    shape, sizes = (len(lengths), max(width, *lengths)), torch.tensor(lengths)
    inside = torch.arange(shape[1]) < sizes[:, None]
    ids = torch.randint(1, num_items + 1, (shape[0], 64), generator=generator)[:, : shape[1]]
    return Batch(
        rows=torch.arange(shape[0]),
        users=torch.arange(shape[0]),
        ids=ids * inside,
        lengths=sizes,
        weights=(0.5 + torch.rand((shape[0], 64), generator=generator)[:, : shape[1]]) * inside,
        times=torch.arange(1, shape[1] + 1).expand(shape) * 60_000 * inside,
        query_time=(sizes + 1) * 60_000,
    )


def check_encoder(encoder: Encoder, items: ItemTable | None = None) -> None:
    """An encoder: shapes, nothing in place, padding and company change nothing, no look ahead, gradients, save/load.

    Args:
        items: the item table to read (default: ids of the encoder's width).
    """
    require(encoder.sees in ("past", "all"), f'sees must be "past" or "all", found {encoder.sees!r}')
    require(encoder.max_length >= 4, "give the encoder a max_length of at least 4 for this check")
    encoder = _bound(encoder)
    items = _bound(IdItems(encoder.dim) if items is None else items)
    longest = min(encoder.max_length, 8)
    lengths = (longest - 1, 1, 2, longest - 2)
    batch = toy_batch(lengths)

    def tokens(of: Batch) -> Tensor:
        return evaluated(encoder, lambda: encoder(of, items).tokens)

    encoded = unchanged(batch, lambda: evaluated(encoder, lambda: encoder(batch, items)))
    require(isinstance(encoded, Encoded), f"forward must return Encoded, found {type(encoded).__name__}")
    same(tuple(encoded.tokens.shape), (sum(lengths), encoder.dim), "shape of Encoded.tokens (T, D)")
    same(tuple(encoded.user.shape), (len(batch), encoder.dim), "shape of Encoded.user (B, D)")
    require(bool(encoded.tokens.isfinite().all()), "states must be finite in a fresh model")
    close(tokens(batch), encoded.tokens, "two passes over one batch in eval mode")
    close(tokens(toy_batch(lengths, width=longest)), encoded.tokens, "states with and without more padding")
    for row in range(len(batch)):
        alone = _narrow(batch.select(torch.tensor([row])))
        close(tokens(alone), encoded.tokens.split(lengths)[row], f"states of history {row} alone and in company")
    _empty_history(encoder, items, lengths)
    if encoder.sees == "past":
        _no_look_ahead(tokens, batch, encoded.tokens)
    require(not torch.allclose(encoded.user[0], encoded.user[3]), "the state of a user does not depend on the history")
    seeded(lambda: encoder(batch, items).user)
    gradients(encoder, lambda: _mixed(encoder(batch, items)))
    gradients(items, lambda: _mixed(encoder(batch, items)), "items read by the encoder")
    round_trip(encoder, lambda part: part(batch, items).user, bind=_bound)


def check_targets(targets: Targets) -> None:
    """Targets: well-formed rows and queries, nothing in place, seeded, and no target visible in its own input."""
    require(targets.sees in ("past", "all"), f'sees must be "past" or "all", found {targets.sees!r}')
    scheme = getattr(targets, "scheme", None)  # a default would hide that it was forgotten
    require(scheme in SCHEMES, f"scheme must be one of {', '.join(SCHEMES)}, found {scheme!r}")
    targets = _bound(targets)
    batch = toy_batch((6, 2, 5, 3))

    def train(of: Batch) -> Batch:
        return targets.train(of, torch.Generator().manual_seed(3))

    made = unchanged(batch, lambda: train(batch))
    require(made.targets is not None, "train(batch) must set targets")
    assert made.targets is not None
    well_formed(made, len(batch), "train(batch)")
    same(made.targets.shape, made.ids.shape, "shape of targets, as of ids (B, L)")
    require(bool((made.targets[~made.mask] == PAD).all()), "targets at padding must be 0")
    require(bool((made.targets > PAD).any()), "train(batch) sets no target at all")
    require(
        bool((made.targets <= NUM_ITEMS).all() and (made.targets >= 0).all()), "targets must be item rows 1..N, or 0"
    )
    again = train(batch)
    require(torch.equal(made.ids, again.ids), "train must be decided by the generator it is given: two inputs differ")
    assert again.targets is not None
    require(torch.equal(made.targets, again.targets), "train must be decided by its generator: two targets differ")
    for event in range(batch.ids.shape[1]):
        _no_leak(targets.sees, made, train(_other_item(batch, event)), event)
    query = unchanged(batch, lambda: targets.query(batch))
    well_formed(query, len(batch), "query(batch)")
    require(bool((query.lengths > 0).all()), "query(batch) must leave every history at least one position")
    round_trip(targets, bind=_bound)


def check_objective(objective: Objective) -> None:
    """An objective: the finite sum of weight times loss, seeded, with gradients, lower where the target is near."""
    objective, items = _bound(objective), _bound(IdItems(2 * DIM, scale=False))
    nn.init.orthogonal_(items.weight.data[1:])
    batch = _with_targets(toy_batch())
    assert batch.targets is not None
    states = torch.randn(
        int(batch.lengths.sum()), items.dim, generator=torch.Generator().manual_seed(1)
    ).requires_grad_()

    def loss(of: Batch = batch, tokens: Tensor = states) -> Tensor:
        return objective(Encoded(of, tokens), of, items, torch.Generator().manual_seed(5))

    found = unchanged(batch, loss)
    same(tuple(found.shape), (), "shape of the loss, a scalar (the sum over the targets of weight times loss)")
    require(bool(found.isfinite()), f"the loss must be finite, found {found.item()}")
    close(loss(), found, "two calls with equal generators")
    bare = batch.replace(weights=None)
    wide = bare.replace(ids=_wider(batch.ids), targets=_wider(batch.targets), times=None)
    close(loss(wide), loss(bare), "losses with and without more padding")
    _weighs(loss, batch)
    with torch.no_grad():
        near = torch.zeros_like(states)
        near[batch.flatten(batch.targets) > 0] = items.output(batch.targets[batch.targets > 0])
        near = near * 4 / near.norm(dim=1, keepdim=True).clamp(min=1e-6)
        right, wrong = loss(tokens=near), loss(tokens=-near)
    require(bool(right < wrong), f"a state along its target has loss {right:.4g}, the opposite state {wrong:.4g}")
    (gradient,) = torch.autograd.grad(found, states)
    chosen = batch.flatten(batch.targets) > 0
    require(bool(gradient[chosen].any()), "no gradient reaches the states that have a target")
    gradients(items, loss, "items scored by the objective")
    gradients(objective, loss)
    round_trip(objective, bind=_bound)


def check_auxiliary(auxiliary: Auxiliary, model: Recommender | None = None) -> None:
    """An auxiliary loss: finite scalars, nothing in place, seeded, with gradients for all it owns.

    Args:
        model: an unbound recommender whose encoder gives what the loss reads (default: a small SASRec). The loss is
            checked beside it; it need not be among its auxiliaries.
    """
    weight = getattr(auxiliary, "weight", None)
    require(isinstance(weight, (int, float)), f"an auxiliary has a number as weight, found {weight!r}")
    auxiliary = _bound(auxiliary)
    model = model or Recommender(IdItems(DIM), SASRec(DIM, num_layers=1, dropout=0.0, max_length=8), FullSoftmax())
    model.bind(toy_context())
    rows = toy_batch((6, 2, 5, 3))
    if "events" in needs_of(auxiliary):  # it looks the rows up in the training events
        context = toy_context()
        assert context.training is not None
        rows = context.training.gather(np.arange(8), model.max_length, needs=auxiliary.needs)  # type: ignore[attr-defined]
    batch = model.prepare(rows, Step(rows))

    def loss() -> Tensor:
        torch.manual_seed(0)
        found = auxiliary(Step(batch, seed=4, items=model.items, encode=model.encode))
        return found if isinstance(found, Tensor) else torch.stack(list(found.values())).sum()

    found = unchanged(batch, loss)
    same(tuple(found.shape), (), "shape of the loss, a scalar")
    require(bool(found.isfinite()), f"the loss must be finite, found {found.item()}")
    close(loss(), found, "two calls of one step: draw from step.generator(name)")
    model.zero_grad()
    require(found.requires_grad, "the loss does not depend on any parameter")
    found.backward()
    moved = [name for name, value in model.named_parameters() if value.grad is not None and bool(value.grad.any())]
    require(bool(moved) or bool(list(parameters(auxiliary))), "no gradient reaches the model")
    gradients(auxiliary, loss)
    round_trip(auxiliary, bind=_bound)


def check_augmentation(augmentation: Augmentation, extra_rows: int = 0) -> None:
    """An augmentation: a well-formed changed copy, decided by its generator, never in place.

    Args:
        extra_rows: input-only rows behind the items that it may write (a mask token).
    """
    augmentation = _bound(augmentation)
    for lengths in ((6, 2, 5, 3), (1, 1), (4,)):
        batch = toy_batch(lengths)
        made = unchanged(batch, partial(augmentation, batch, torch.Generator().manual_seed(2)))
        again = augmentation(batch, torch.Generator().manual_seed(2))
        well_formed(made, len(batch), f"{type(augmentation).__name__} of lengths {lengths}")
        require(bool((made.ids <= NUM_ITEMS + extra_rows).all()), f"ids must be at most N + {extra_rows}")
        require(bool((made.lengths > 0).all()), "an augmentation must leave every history at least one item")
        require(torch.equal(made.ids, again.ids), "equal generators must give equal copies: draw from the one given")
    round_trip(augmentation, bind=_bound)


def check_metric(metric: Metric, k: int = 5) -> None:
    """A metric: one finite float64 per user, each from that user alone, and under ties the mean over all orders."""
    require(isinstance(getattr(metric, "name", None), str), "a metric has a name, which becomes its column")
    first = max(k - 2, 0)
    above, size = np.array([0, 3, 7, 1, 4, 0, first]), np.ones(7, np.int64)
    user = np.array([0, 1, 2, 3, 3, 4, 5])
    size[-1] = 4  # a tie group that the cut-off goes through
    ranked = _ranked(user, above, size, users=7)
    before = [np.copy(getattr(ranked, one)) for one in ("candidates", "relevant", "user", "above", "size", "hits")]
    values = metric(ranked, k)
    require(isinstance(values, np.ndarray), f"a metric returns a numpy array, found {type(values).__name__}")
    same((values.shape, values.dtype), ((7,), np.dtype(np.float64)), "shape and type of the values (n,) float64")
    require(bool(np.isfinite(values).all()), f"values must be finite (a user without targets gets 0), found {values}")
    after = [getattr(ranked, one) for one in ("candidates", "relevant", "user", "above", "size", "hits")]
    require(all(np.array_equal(*pair) for pair in zip(before, after, strict=True)), "the metric changed its input")
    for one in range(7):
        own = user == one
        alone = metric(_ranked(np.zeros(own.sum(), np.int64), above[own], size[own], users=1, first=one), k)
        require(bool(np.allclose(alone, values[one])), f"user {one} alone gets {alone}, in company {values[one]}")
    if not getattr(metric, "lists", False):
        ranks = [
            metric(_ranked(np.zeros(1, np.int64), np.array([rank]), np.ones(1, np.int64), 1), k)[0]
            for rank in range(first, first + 4)
        ]
        require(
            bool(np.isclose(values[5], np.mean(ranks))),
            f"a target tied with three others gets {values[5]:.6g}; the mean over its ranks is {np.mean(ranks):.6g}",
        )
    round_trip(metric)


def check_ranker(model: Ranker) -> None:
    """A recommender: recommendations for any history, and the same again after saving and loading; scores that agree
    with them, if it scores all items (:class:`recsys.recommenders.base.Scores`)."""
    context = toy_context()
    (getattr(model, "learn", None) or model.bind)(context)
    lists: list[list[Any]] = [
        ["i1", "i2", "i4"],
        ["i9"],
        ["i3", "no such item"],
        [f"i{row}" for row in range(1, 12)],
    ]
    times = [[60_000 * (position + 1) for position in range(len(items))] for items in lists]
    histories = [History(items, at, query_time=at[-1] + 60_000) for items, at in zip(lists, times, strict=True)]
    best = model.recommend(histories, k=5)
    same(best.unknown.tolist(), [0, 0, 1, 0], "unknown items counted per history")
    require(not any(set(one) & set(own) for one, own in zip(best.items, lists, strict=True)), "history came back")
    for row, history in enumerate(histories):
        same(model.recommend([history], k=5).items[0], best.items[row], f"the list of history {row} alone")
    only = model.recommend(histories[:1], k=3, allow=["i7", "i8"])
    require(set(only.items[0]) <= {"i7", "i8"}, f"allow=['i7', 'i8'] was ignored: {only.items[0]}")
    again = build(describe(model), trust=[type(model).__module__, *modules(model)])
    again.bind(Context(NUM_ITEMS, context.vocabulary))
    again.load_tensors(model.tensors())
    same(again.recommend(histories, k=5).items, best.items, "lists before saving and after loading")
    if isinstance(model, Scores):
        scores = _scores(model, histories)
        close(again.scores(histories), scores, "scores before saving and after loading")


def _scores(model: Ranker, histories: list[History]) -> np.ndarray:
    """(B, N) scores of the histories, which ``recommend`` must agree with."""
    scores = model.scores(histories)
    shape = (len(histories), NUM_ITEMS)
    same((scores.shape, scores.dtype), (shape, np.dtype(np.float32)), "shape and type of scores (B, N)")
    require(bool(np.isfinite(scores).all()), "scores must be finite")
    for row, history in enumerate(histories):
        close(model.scores([history])[0], scores[row], f"scores of history {row} alone and in company")
    order = np.argsort(-scores[1], kind="stable")[:5] + 1
    values = scores[1][order - 1]
    close(model.recommend([histories[1]], k=5, exclude="none").scores[0], values, "recommend and the best scores")
    return scores


def _bound(part: Any) -> Any:
    """The part, bound as a recommender would bind it."""
    torch.manual_seed(0)
    bind = getattr(part, "bind", None)
    if bind is not None:
        bind(toy_context())
    return part


def _ranked(user: np.ndarray, above: np.ndarray, size: np.ndarray, users: int, first: int = 0) -> Ranked:
    counts = np.arange(NUM_ITEMS + 1)
    lists = (np.arange(first, first + users)[:, None] * 3 + np.arange(8)) % NUM_ITEMS + 1
    candidates = np.full(users, NUM_ITEMS)
    return Ranked.from_pairs(user, above, size, candidates, lists=lists, catalogue=Catalogue(counts))


def _with_targets(batch: Batch) -> Batch:
    """Random targets at about half of the positions, at least one per history."""
    generator = torch.Generator().manual_seed(9)
    targets = torch.randint(1, NUM_ITEMS + 1, batch.ids.shape, generator=generator) * batch.mask
    targets[:, 1::2] = 0
    return batch.replace(targets=targets)


def _weighs(loss: Callable[[Batch], Tensor], batch: Batch) -> None:
    """The loss is a sum over the targets, each times its weights: those of the data, and its importance."""
    weights, targets = batch.weights, batch.targets
    assert weights is not None and targets is not None
    found, ones = loss(batch), torch.ones_like(weights)
    how = "return weighted_sum(losses, weights) with the weights of encoded.at_targets(batch)"
    require(not _near(loss(batch.replace(weights=weights * ones.cumsum(1))), found), f"it forgets the weights: {how}")
    close(
        loss(batch.replace(weights=2 * weights)), 2 * found, f"the loss under doubled weights and twice the loss; {how}"
    )
    first = ones.cumsum(0) % 2
    halves = [loss(batch.replace(weights=weights * half)) for half in (first, 1 - first)]
    close(sum(halves), found, f"the loss and its sum over two halves of the weights; {how}")
    plain = loss(batch.replace(weights=None))
    close(loss(batch.replace(weights=ones)), plain, "losses with weights of 1 and without weights")
    close(loss(batch.replace(weights=None, importance=ones)), plain, "losses with an importance of 1 and without one")
    require(
        not _near(loss(batch.replace(weights=None, importance=3 * ones)), plain),
        f"it forgets batch.importance, the weights that the loss is not divided by: {how}",
    )
    apart = sum(loss(batch.replace(weights=None, targets=targets * half.long())) for half in (first, 1 - first))
    added, all_of_them = float(torch.as_tensor(apart).detach()), float(plain.detach())
    require(
        abs(added - 2 * all_of_them) > abs(all_of_them) / 4,
        f"two halves of the targets have losses that add up to {added:.4g}, all of them {all_of_them:.4g}: it takes a "
        f"mean over the targets, and the recommender divides by their weight already; {how}",
    )


def _near(found: Tensor, other: Tensor) -> bool:
    return bool(torch.allclose(found, other, 1e-4, 1e-5))


def _other_item(batch: Batch, event: int) -> Batch:
    ids = batch.ids.clone()
    ids[:, event] = torch.where(ids[:, event] > 0, ids[:, event] % NUM_ITEMS + 1, 0)
    return batch.replace(ids=ids)


def _no_leak(sees: str, made: Batch, other: Batch, event: int) -> None:
    """Where another event changes a target, the input that the target is predicted from must stay the same."""
    assert made.targets is not None and other.targets is not None
    changed_input = (
        (made.ids != other.ids).cumsum(1) > 0 if sees == "past" else (made.ids != other.ids).any(1, keepdim=True)
    )
    leaks = (made.targets != other.targets) & changed_input
    where = leaks.nonzero()[:1].tolist()
    require(
        not where,
        f"event {event} of a history is the target at (row, position) {where} and stands in the input it is predicted "
        f"from, under sees={sees!r}: the target leaks",
    )


def _no_look_ahead(tokens: Callable[[Batch], Tensor], batch: Batch, states: Tensor) -> None:
    for event in range(1, batch.ids.shape[1]):
        earlier = batch.positions < event
        moved = (tokens(_other_item(batch, event))[earlier] - states[earlier]).abs().amax().item()
        require(
            moved < 1e-4,
            f'sees = "past", but changing item {event} moves earlier states by {moved:.3g}: the encoder looks ahead',
        )


def _empty_history(encoder: Encoder, items: ItemTable, lengths: tuple[int, ...]) -> None:
    batch = toy_batch(lengths)
    emptied = batch.replace(ids=batch.ids * (batch.rows != 1)[:, None], lengths=batch.lengths * (batch.rows != 1))
    user = evaluated(encoder, lambda: encoder(emptied, items).user)
    require(bool(user.isfinite().all()), "an empty history in the batch makes states infinite or NaN")
    require(bool((user[1] == 0).all()), "the user state of an empty history must be zero")


def _narrow(batch: Batch) -> Batch:
    width = int(batch.lengths.max())
    cut = {one: None if getattr(batch, one) is None else getattr(batch, one)[:, :width] for one in ("weights", "times")}
    return batch.replace(ids=batch.ids[:, :width], **cut)


def _wider(values: Tensor) -> Tensor:
    return torch.nn.functional.pad(values, (0, 3))


def _mixed(encoded: Encoded) -> Tensor:
    """A scalar that every state enters with a weight of its own."""
    generator = torch.Generator().manual_seed(11)
    return sum(
        (value * torch.randn(value.shape, generator=generator)).sum() for value in (encoded.tokens, encoded.user)
    )  # type: ignore[return-value]
