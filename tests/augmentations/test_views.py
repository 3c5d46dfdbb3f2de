"""Views against slow references, one history at a time, and checks 1 to 4 of contrastive_baselines.md by number."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from recsys.augmentations.choice import DistinctPair, OneOf
from recsys.augmentations.crop import Crop
from recsys.augmentations.insert import Insert
from recsys.augmentations.mask import Mask
from recsys.augmentations.reorder import Reorder
from recsys.augmentations.substitute import Substitute
from recsys.data.batch import Batch
from recsys.encoders.sasrec import SASRec
from recsys.items.ids import IdItems
from recsys.objectives.softmax import FullSoftmax
from recsys.protocols import Context, Step
from recsys.recommenders.composed import Recommender
from recsys.statistics.similarity import ItemCF
from recsys.targets.next_item import NextItem
from recsys.testing import check_augmentation, toy_batch, toy_context

NUM_ITEMS, LONGEST, MASK = 30, 17, 31
Event = tuple[int, int, float]  # item, time, weight


class Next(nn.Module):
    """The next row is the most similar item, the first after the last."""

    def most_similar(self, ids: Tensor, generator: torch.Generator) -> Tensor:
        assert bool((ids <= NUM_ITEMS).all())
        return torch.where(ids > 0, ids % NUM_ITEMS + 1, 0)


class Tag(nn.Module):
    """Every item becomes ``item``: shows who was chosen."""

    def __init__(self, item: int) -> None:
        super().__init__()
        self.item = item

    def forward(self, batch: Batch, generator: torch.Generator) -> Batch:
        return batch.replace(ids=batch.ids.clamp(max=1) * self.item)


def bound(operation: Any) -> Any:
    if hasattr(operation, "bind"):
        operation.bind(Context(NUM_ITEMS))
    return operation


def batch_of(rows: int, seed: int = 0, masks: bool = False) -> Batch:
    """Random histories of 0..LONGEST items, the lengths 0, 1, 2, 3 and LONGEST among them, some with mask tokens."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(0, LONGEST + 1, (rows,), generator=generator)
    lengths[:5] = torch.tensor([0, 1, 2, 3, LONGEST])
    batch = toy_batch(tuple(lengths.tolist()), NUM_ITEMS, seed)
    hidden = (torch.rand(batch.ids.shape, generator=generator) < 0.1) & batch.mask & masks
    return batch.replace(ids=batch.ids.masked_fill(hidden, MASK))


def events(batch: Batch) -> list[list[Event]]:
    assert batch.times is not None and batch.weights is not None
    columns = zip(batch.ids.tolist(), batch.times.tolist(), batch.weights.tolist(), batch.lengths.tolist(), strict=True)
    return [list(zip(ids, times, weights, strict=True))[:n] for ids, times, weights, n in columns]


def floor(share: float, n: int) -> int:
    return int(Fraction(str(share)) * n)


def lowest(draws: list[float], places: list[int], count: int) -> set[int]:
    return set(sorted(places, key=lambda place: float(draws[place]))[:count])


# Slow references: one history, and the random numbers drawn for it.


def slow_crop(row: list[Event], start: Tensor, share: float = 0.6) -> list[Event]:
    size = max(1, floor(share, len(row)))
    first = int(start * (len(row) - size + 1))
    return row[first : first + size]


def slow_mask(row: list[Event], draws: list[float], share: float = 0.3) -> list[Event]:
    hidden = lowest(draws, list(range(len(row))), floor(share, len(row)))
    return [(MASK, *event[1:]) if place in hidden else event for place, event in enumerate(row)]


def slow_drop(row: list[Event], draws: list[float]) -> list[Event]:
    return [event for event, hidden in zip(row, slow_mask(row, draws, 0.7), strict=True) if hidden[0] != MASK]


def slow_reorder(row: list[Event], start: Tensor, draws: list[float], share: float = 0.6) -> list[Event]:
    size = floor(share, len(row))
    first = int(start * (len(row) - size + 1))
    window = sorted(range(first, first + size), key=lambda place: float(draws[place]))
    order = [*range(first), *window, *range(first + size, len(row))]
    return [(row[place][0], event[1], row[place][2]) for place, event in zip(order, row, strict=True)]


def slow_chosen(row: list[Event], draws: list[float], share: float) -> set[int]:
    real = [place for place, event in enumerate(row) if event[0] <= NUM_ITEMS]
    return lowest(draws, real, max(1, floor(share, len(row))))


def slow_substitute(row: list[Event], draws: list[float]) -> list[Event]:
    chosen = slow_chosen(row, draws, 0.2)
    return [(event[0] % NUM_ITEMS + 1, *event[1:]) if place in chosen else event for place, event in enumerate(row)]


def slow_insert(row: list[Event], draws: list[float], keep: int = 10**9) -> list[Event]:
    chosen, made = slow_chosen(row, draws, 0.4), []
    for place, event in enumerate(row):
        made += [(event[0] % NUM_ITEMS + 1, *event[1:])] * (place in chosen) + [event]
    return made[-keep:]


CASES: list[tuple[Any, Callable[..., list[Event]], tuple[str, ...], bool]] = [
    (Crop(0.6), slow_crop, ("rows",), False),
    (Mask(0.3), slow_mask, ("places",), False),
    (Mask(0.7, "drop"), slow_drop, ("places",), False),
    (Reorder(0.6), slow_reorder, ("rows", "places"), False),
    (Substitute(0.2, Next()), slow_substitute, ("places",), True),
    (Insert(0.4, Next()), slow_insert, ("places",), True),
    (Insert(0.4, Next(), LONGEST), lambda row, draws: slow_insert(row, draws, LONGEST), ("places",), True),
    (Insert(0.4, Next(), 6), lambda row, draws: slow_insert(row, draws, 6), ("places",), True),
]


@pytest.mark.parametrize(("operation", "slow", "shapes", "masks"), CASES)
def test_check_01_equals_a_loop_over_histories(operation: Any, slow: Any, shapes: Any, masks: bool) -> None:
    batch = batch_of(10_000, masks=masks)
    generator = torch.Generator().manual_seed(7)
    draws = [torch.rand(batch.ids.shape[: 1 + (shape == "places")], generator=generator) for shape in shapes]
    view = bound(operation)(batch, torch.Generator().manual_seed(7))
    drawn = [of if of.dim() == 1 else of.tolist() for of in draws]  # single numbers of a tensor are slow to read
    expected = [slow(row, *(of[i] for of in drawn)) if row else [] for i, row in enumerate(events(batch))]
    assert events(view) == expected
    assert bool((view.ids[~view.mask] == 0).all())
    assert torch.equal(view.users, batch.users) and torch.equal(view.rows, batch.rows)
    assert torch.equal(view.lengths == 0, batch.lengths == 0)


HISTORY = st.lists(st.integers(1, NUM_ITEMS), min_size=1, max_size=25)
SHARE = st.floats(0, 1).map(lambda share: round(share, 3))


def view_of(operation: Any, history: list[int], seed: int = 0, width: int = 30) -> list[int]:
    batch = Batch(
        torch.zeros(1).long(),
        torch.zeros(1).long(),
        torch.tensor([history + [0] * (width - len(history))]),
        torch.tensor([len(history)]),
    )
    view = bound(operation)(batch, torch.Generator().manual_seed(seed))
    return view.ids[0, : int(view.lengths[0])].tolist()


def is_subsequence(some: list[int], of: list[int]) -> bool:
    rest = iter(of)
    return all(one in rest for one in some)


@settings(max_examples=40, deadline=None)
@given(HISTORY, SHARE, st.integers(0, 5))
def test_check_02_what_each_operation_keeps(history: list[int], share: float, seed: int) -> None:
    n, rows = len(history), list(range(1, len(history) + 1))  # distinct items show where each went
    cropped = view_of(Crop(share), rows, seed)
    assert cropped == list(range(cropped[0], cropped[0] + max(1, floor(share, n))))
    shuffled = view_of(Reorder(share), rows, seed)
    assert sorted(shuffled) == rows
    moved = [place for place in range(n) if shuffled[place] != rows[place]]
    assert not moved or moved[-1] - moved[0] < floor(share, n)
    hidden = min(floor(share, n), n - 1)
    assert view_of(Mask(share), history, seed).count(MASK) == hidden
    dropped = view_of(Mask(share, "drop"), history, seed)
    assert len(dropped) == n - hidden and is_subsequence(dropped, history)
    chosen = max(1, floor(share, n))
    replaced = view_of(Substitute(share, Next()), history, seed)
    changed = [place for place in range(n) if replaced[place] != history[place]]
    assert len(changed) == chosen
    assert all(replaced[place] == history[place] % NUM_ITEMS + 1 for place in changed)
    longer = view_of(Insert(share, Next()), history, seed)
    assert len(longer) == n + chosen and is_subsequence(history, longer)
    assert view_of(Insert(share, Next(), 8), history, seed) == longer[-8:]


def test_check_02_a_window_reaches_every_place() -> None:
    batch = toy_batch((5,) * 2000)
    ids = torch.arange(1, 6).expand(2000, 5)
    cropped = Crop(0.4)(batch.replace(ids=ids), torch.Generator().manual_seed(0))
    first = torch.bincount(cropped.ids[:, 0], minlength=5)[1:5] / 2000
    assert bool(((first - 0.25).abs() < 0.04).all())
    shuffled = Reorder(0.4)(batch.replace(ids=ids), torch.Generator().manual_seed(0)).ids
    assert bool((shuffled != ids).any(0).all())


NEEDS_GPU = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=NEEDS_GPU)])
def test_check_03_input_is_bit_identical(device: str) -> None:
    operations = [operation for operation, _, _, _ in CASES]
    store = batch_of(200).to(device)
    for kind in ("whole", "slice", "clone"):
        batch = store
        if kind == "slice":
            batch = store.select(slice(3, 150)).trim(LONGEST)  # type: ignore[arg-type]
            assert batch.ids.untyped_storage().data_ptr() == store.ids.untyped_storage().data_ptr()
        if kind == "clone":
            batch = store.replace(ids=store.ids.clone())
        names = ("ids", "lengths", "times", "weights")
        before = {name: getattr(store, name).clone() for name in names}
        for part in (*operations, OneOf(operations), DistinctPair(operations)):
            bound(part)(batch, torch.Generator(device).manual_seed(1))
        assert all(torch.equal(getattr(store, name), before[name]) for name in names)


def test_check_03_two_views_of_one_batch_differ() -> None:
    first, second = DistinctPair([Crop(), Mask(), Reorder()]), batch_of(300)
    one, other = bound(first)(second, torch.Generator().manual_seed(0))
    long = second.lengths > 6
    assert bool((one.ids != other.ids).any(1)[long].all())


def test_check_04_a_pair_never_repeats_an_operation_and_is_uniform() -> None:
    batch = toy_batch((2,) * 100_000)
    first, second = DistinctPair([Tag(1), Tag(2), Tag(3)])(batch, torch.Generator().manual_seed(0))
    one, other = first.ids[:, 0], second.ids[:, 0]
    assert bool((one != other).all())
    share = torch.bincount(one * 4 + other, minlength=16).view(4, 4)[1:, 1:] / 100_000
    assert bool(((share - (1 - torch.eye(3)) / 6).abs() < 0.01).all())


def test_check_04_one_of_is_uniform_and_short_histories_have_their_own_choice() -> None:
    batch = toy_batch((4, 5) * 50_000)
    part = OneOf([Tag(tag) for tag in range(1, 6)], short=[1, 3], threshold=4)
    tags = part(batch, torch.Generator().manual_seed(0)).ids[:, 0]
    short, long = (torch.bincount(tags[first::2], minlength=6)[1:] / 50_000 for first in (0, 1))
    assert bool(((long - 0.2).abs() < 0.01).all())
    assert bool(((short - torch.tensor([0, 0.5, 0, 0.5, 0])).abs() < 0.01).all())


def test_check_04_a_history_of_one_item_is_twice_itself() -> None:
    batch = toy_batch((1, 3, 1))
    for view in DistinctPair([Tag(7), Tag(8)])(batch, torch.Generator().manual_seed(0)):
        assert view.ids[[0, 2], 0].tolist() == batch.ids[[0, 2], 0].tolist()
        assert int(view.ids[1, 0]) in (7, 8)


def test_a_choice_gives_what_the_chosen_operation_gives() -> None:
    batch = batch_of(400)
    operations = [bound(operation) for operation, _, _, _ in CASES]
    generator = torch.Generator().manual_seed(3)
    choice = (torch.rand(400, generator=generator) * len(operations)).long()
    alone = [events(operation(batch, generator)) for operation in operations]
    picked = OneOf(operations)(batch, torch.Generator().manual_seed(3))
    assert events(picked) == [alone[int(choice[row])][row] for row in range(400)]
    generator = torch.Generator().manual_seed(3)
    order = torch.rand(400, len(operations), generator=generator).argsort(dim=1)
    alone = [events(operation(batch, generator)) for operation in operations]
    for place, view in enumerate(DistinctPair(operations)(batch, torch.Generator().manual_seed(3))):
        chosen = order[:, place].tolist()
        same = events(batch)
        assert events(view) == [alone[chosen[i]][i] if len(same[i]) > 1 else same[i] for i in range(400)]


def test_views_of_a_prepared_batch_have_neither_targets_nor_their_weights() -> None:
    batch = NextItem().train(batch_of(20)).replace(events=torch.arange(20))
    operations = [operation for operation, _, _, _ in CASES]
    parts = [*operations, OneOf(operations)]
    views = [bound(part)(batch, torch.Generator().manual_seed(0)) for part in parts]
    views += bound(DistinctPair(operations))(batch, torch.Generator().manual_seed(0))
    for view in views:
        assert view.targets is None and view.weights is None and view.events is None
        assert view.times is not None


def test_times_stay_sorted() -> None:
    batch = batch_of(300)
    for operation, _, _, _ in CASES:
        view = bound(operation)(batch, torch.Generator().manual_seed(0))
        steps = view.times.diff(dim=1)[view.mask[:, 1:]]
        assert bool((steps >= 0).all())


def test_training_rows_keep_something_to_predict() -> None:
    batch = batch_of(300)
    for operation in (Crop(0.1, least=2), Mask(0.9, "drop", least=2), OneOf([Crop(0.1, 2), Mask(1.0, "drop", 2)])):
        view = operation(batch, torch.Generator().manual_seed(0))
        assert torch.equal(view.lengths >= 2, batch.lengths >= 2)
        model = Recommender(
            IdItems(8), SASRec(8, 1, 1, max_length=LONGEST), FullSoftmax(), augmentations=[operation, Reorder()]
        )
        model.bind(Context(NUM_ITEMS))
        prepared = model.prepare(batch, Step(batch))
        assert prepared.targets is not None and prepared.weights is not None
        assert torch.equal((prepared.targets > 0).any(1), batch.lengths >= 2)
        assert bool((prepared.weights[prepared.targets > 0] > 0).all())


@pytest.mark.parametrize(
    ("operation", "extra"),
    [
        (Crop(), 0),
        (Mask(), 1),
        (Mask(0.7, "drop"), 0),
        (Reorder(), 0),
        (Substitute(0.2, ItemCF()), 0),
        (Insert(0.5, ItemCF(False), 5), 0),
        (OneOf([Crop(), OneOf([Mask(), Insert(0.4, ItemCF())])], short=[0], threshold=2), 1),
    ],
)
def test_conformance(operation: Any, extra: int) -> None:
    check_augmentation(operation, extra)


def test_refresh_reaches_what_is_similar() -> None:
    class Told(Next):
        epochs: tuple[int, ...] = ()

        def refresh(self, items: Any, epoch: int) -> None:
            self.epochs += (epoch,)

    similar = Told()
    part = OneOf([Crop(), OneOf([Insert(0.5, similar)])])
    part.refresh(IdItems(4), 3)
    DistinctPair([Substitute(0.5, similar), part]).refresh(IdItems(4), 4)
    assert similar.epochs == (3, 4, 4)


def test_mask_without_a_row_for_it_is_an_error_of_the_item_table() -> None:
    operation, items = Mask(), IdItems(4)
    operation.bind(toy_context())
    items.bind(toy_context())
    with pytest.raises(ValueError, match="0 rows behind them"):
        items.embed(operation(toy_batch(), torch.Generator().manual_seed(0)).ids)


@pytest.mark.parametrize(
    ("make", "error", "match"),
    [
        (lambda: Crop(1.2), ValueError, "share"),
        (lambda: Crop(least=0), ValueError, "least"),
        (lambda: Mask(hide="padding"), ValueError, "token"),
        (lambda: Substitute(0.1, Crop()), TypeError, "most_similar"),
        (lambda: Insert(0.1, Next(), 0), ValueError, "max_length"),
        (lambda: OneOf([]), ValueError, "at least one"),
        (lambda: OneOf([Crop()], short=[]), ValueError, "at least one"),
        (lambda: OneOf([Crop()], short=[1]), ValueError, "positions"),
        (lambda: DistinctPair([Crop()]), ValueError, "two"),
        (lambda: Mask()(toy_batch(), torch.Generator()), ValueError, "bind"),
        (lambda: Substitute(0.1, Next())(toy_batch(), torch.Generator()), ValueError, "bind"),
    ],
)
def test_errors(make: Callable[[], Any], error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        make()


class Operations(TorchDispatchMode):
    """Counts the tensor operations that run inside."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += 1
        return function(*args, **(kwargs or {}))


def test_check_13_the_number_of_operations_does_not_grow_with_the_batch() -> None:
    """What it costs as a share of a step is measured by benchmarks/speed/augment.py."""
    counted = ItemCF()
    everything = [Crop(), Mask(), Reorder(), Substitute(0.5, counted), Insert(0.5, counted, 12)]
    for part in (*everything, OneOf(everything), DistinctPair(everything)):
        if hasattr(part, "bind"):
            part.bind(toy_context())
        counts = []
        for rows in (4, 256):
            batch = toy_batch((8, 5, 3, 1) * (rows // 4))
            with Operations() as run:
                part(batch, torch.Generator().manual_seed(0))
            counts.append(run.count)
        assert counts[0] == counts[1] < 400
