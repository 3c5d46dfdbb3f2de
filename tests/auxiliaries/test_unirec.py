"""UniRec's losses against their formulas, and the behavioural checks of unirec.md by number."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from per_target import per_target
from torch import Tensor

from benchmarks.quality.released import ReleasedItems, ReleasedSequences
from recsys.auxiliaries.unirec import ItemEnhancement, ProfileTerm, SequenceEnhancement, UniRecLoss
from recsys.data.batch import Batch
from recsys.data.prepared import Prepared
from recsys.data.split import Split
from recsys.data.splitters import LeaveLast
from recsys.encoders.unirec import Branches, UniRec
from recsys.errors import DataError
from recsys.ids.vocabulary import Vocabulary
from recsys.items.ids import IdItems
from recsys.negatives.in_batch import InBatchNegatives
from recsys.negatives.uniform import UniformNegatives
from recsys.protocols import Context, Encoded, Step
from recsys.recommenders.composed import Recommender
from recsys.targets.last_item import LastItem
from recsys.targets.next_item import NextItem
from recsys.testing import DIM, NUM_ITEMS, check_auxiliary, toy_batch, toy_context

SEQUENCES: dict[str, type[SequenceEnhancement]] = {"paper": SequenceEnhancement, "repo": ReleasedSequences}
ITEMS: dict[str, type[ItemEnhancement]] = {"paper": ItemEnhancement, "repo": ReleasedItems}
SCHEDULE: dict[str, Any] = {"epochs": 220, "start": 100, "span": 120}  # the constants of the authors' code


def model(objective: Any = None, **settings: Any) -> Recommender:
    """An unbound recommender."""
    encoder = UniRec(DIM, num_layers=1, dropout=0.0, noise=0.0, max_length=8, **settings)
    return Recommender(IdItems(DIM, init="torch"), encoder, objective or UniRecLoss())


def bound(*auxiliaries: Any, **settings: Any) -> Recommender:
    torch.manual_seed(0)
    found = model(**settings)
    for part in (found, *auxiliaries):
        part.bind(toy_context())
    return found


def step_of(found: Recommender, batch: Batch, epoch: int = 0) -> Step:
    """A prepared step of a bound model, as its auxiliaries see it."""
    made = found.prepare(batch, Step(batch))
    return Step(made, seed=1, epoch=epoch, items=found.items, encode=found.encode)


def bce(states: Tensor, contexts: Tensor, items: IdItems, positive: Tensor, negative: Tensor) -> Tensor:
    """Section 3.5 with the joined vectors written out: (T',) of one branch."""
    logit = [(torch.cat([items.output(ids), contexts], -1) * states).sum(-1).double() for ids in (positive, negative)]
    return (-torch.sigmoid(logit[0]).log() - (1 - torch.sigmoid(logit[1])).log()).float()


@pytest.mark.parametrize("branches", [("calendar",), ("interval",), ("calendar", "interval")])
def test_check_14_without_enhancements_the_loss_is_that_of_the_branches(branches: tuple[str, ...]) -> None:
    """With one branch only this is the single-branch model's loss."""
    found = bound(branches=branches)
    step = step_of(found, toy_batch((6, 2, 5, 3)))
    batch, encoded = step.batch, step.encoded
    assert encoded is not None and batch.targets is not None
    losses = per_target(found.objective, encoded, batch, found.items, seed=3)
    _, targets, _ = encoded.at_targets(batch)
    drawn = found.objective.negatives.sample(batch, targets, NUM_ITEMS, torch.Generator().manual_seed(3)).ids[:, 0]
    assert encoded.read(Branches).states.shape == (len(branches), len(targets), 2 * DIM)
    pairs = zip(encoded.read(Branches).states, encoded.read(Branches).contexts, strict=True)
    expected = torch.stack([bce(*pair, found.items, targets, drawn) for pair in pairs]).sum(0)
    torch.testing.assert_close(losses, expected, atol=1e-3, rtol=1e-3)
    assert list(found.loss(replace(step, total_weight=1.0))) == ["loss"]


@pytest.mark.parametrize("negatives", [None, UniformNegatives(7, per="batch"), InBatchNegatives()])
def test_any_negatives_give_a_finite_loss_per_target_with_gradients(negatives: Any) -> None:
    torch.manual_seed(0)
    found = model(UniRecLoss(negatives))
    found.bind(toy_context())
    step = step_of(found, toy_batch((6, 2, 1, 3)))
    losses = per_target(found.objective, step.encoded, step.batch, found.items)
    assert losses.shape == (8,) and bool(losses.isfinite().all())
    found.objective(step.encoded, step.batch, found.items, torch.Generator().manual_seed(0)).backward()
    assert all(parameter.grad is not None for parameter in found.encoder.parameters())


def test_last_item_targets_read_the_time_of_the_last_event() -> None:
    found = bound()
    every, last = (targets.train(toy_batch((6, 2))) for targets in (NextItem(), LastItem()))
    encoded = found.encode(last)
    assert per_target(found.objective, encoded, last, found.items).shape == (2,)
    contexts = [found.encode(batch).read(Branches).contexts[:, batch.last] for batch in (every, last)]
    torch.testing.assert_close(*contexts)


def test_the_loss_says_what_it_misses() -> None:
    found = bound()
    batch = NextItem().train(toy_batch((4, 3)))
    with pytest.raises(ValueError, match="UniRec"):
        found.objective(Encoded(batch, torch.zeros(5, DIM)), batch, found.items, torch.Generator())
    bare = batch.replace(target_times=None)
    with pytest.raises(ValueError, match="times of the targets"):
        found.objective(found.encode(bare), bare, found.items, torch.Generator())


@pytest.mark.parametrize("part", [ProfileTerm, SequenceEnhancement, ItemEnhancement, ReleasedSequences, ReleasedItems])
def test_auxiliaries_keep_the_contract_of_the_seam(part: Any) -> None:
    check_auxiliary(ProfileTerm() if part is ProfileTerm else part(DIM), model())


def test_profile_term_equals_its_formula_where_the_profile_is_one_item() -> None:
    part = ProfileTerm(size=3, mix=0.5)
    found = bound()
    batch = toy_batch((2, 1))  # one target, its input is the whole profile
    step = step_of(found, batch)
    loss = part(step)
    drawn = part.negatives.sample(step.batch, batch.ids[:1, 1], NUM_ITEMS, step.generator("ProfileTerm")).ids[0]
    profile, vectors = (
        found.items.output(batch.ids[:1, 0]),
        found.items.output(torch.stack([batch.ids[0, 1], drawn[0]])),
    )
    glob = ((0.5 * vectors + 0.5 * vectors * profile) * vectors).sum(1)
    torch.testing.assert_close(loss, F.softplus(-glob[0]) + F.softplus(glob[1]), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("mode", SEQUENCES)
def test_check_04_nobody_flagged_gives_no_loss_and_no_gradient(mode: str) -> None:
    part = SEQUENCES[mode](DIM, **SCHEDULE)
    found = bound(part)
    part.flags = torch.zeros_like(part.flags)
    loss = part(step_of(found, toy_batch((6, 2, 5, 3)), epoch=150))
    assert loss.item() == 0.0
    loss.backward()
    assert part.generator.weight.grad is None or not part.generator.weight.grad.any()


@pytest.mark.parametrize("mode", SEQUENCES)
def test_check_04_in_repo_mode_the_loss_counts_twice_from_the_start_on(mode: str) -> None:
    part = SEQUENCES[mode](DIM, **SCHEDULE)
    found = bound(part)
    part.flags = torch.ones_like(part.flags)
    batch = toy_batch((6, 6))
    kept = part.thin(NextItem().train(batch)).lengths
    with torch.no_grad():
        ratios = [(part(step_of(found, batch, epoch)) / part.weigh(epoch, kept)[0]).item() for epoch in (99, 120, 200)]
    assert bool((kept == kept[0]).all())
    assert ratios[1] / ratios[0] == pytest.approx(2.0 if mode == "repo" else 1.0, rel=1e-4)
    assert ratios[2] == pytest.approx(ratios[1], rel=1e-4)


def test_check_05_weights_of_the_curriculum() -> None:
    users, items = SequenceEnhancement(DIM, **SCHEDULE), ItemEnhancement(DIM, **SCHEDULE)
    assert users.weigh(100, torch.tensor([3])).item() == pytest.approx(0, abs=1e-6)
    assert users.weigh(220, torch.tensor([3])).item() == pytest.approx(1)
    assert users.weigh(0, torch.tensor([8])).item() == pytest.approx(abs(math.sin(math.pi / 2 * (-100 / 120 + 0.1))))
    values = {
        (epoch, v): items.weigh(epoch, torch.tensor([float(v)])).item() for epoch in (0, 100, 220) for v in (0, 100)
    }
    assert values[220, 100] == pytest.approx(1) and values[100, 0] == pytest.approx(1)
    assert values[220, 0] == pytest.approx(0, abs=1e-6)
    assert values[0, 100] == 0.0  # negative in the authors' code, where error would be rewarded
    repo = ReleasedItems(DIM, **SCHEDULE)
    assert repo.weigh(0, torch.tensor([100.0])).item() == pytest.approx(math.sin(-math.pi / 2 * 100 / 120))


def test_check_05_constants_follow_from_the_planned_epochs() -> None:
    part = SequenceEnhancement(DIM, epochs=40)
    assert (part.start, part.span, part.length) == pytest.approx((18, 22, 50))


def test_check_06_sub_sequences_keep_the_newest_and_the_uneven() -> None:
    part = SequenceEnhancement(DIM)
    part.bind(toy_context())
    part.variance = torch.zeros(NUM_ITEMS + 1)
    batch = toy_batch((7, 2, 4, 1))
    assert batch.times is not None
    thin = part.thin(batch)
    assert thin.lengths.tolist() == [2, 2, 2, 1]
    assert thin.ids[0].tolist() == batch.ids[0, 5:7].tolist() and thin.ids[2].tolist() == batch.ids[2, 2:4].tolist()
    batch = batch.replace(ids=torch.tensor([[3, 1, 2, 5, 6, 7, 8]]), lengths=torch.tensor([7]), times=batch.times[:1])
    part.variance = torch.zeros(NUM_ITEMS + 1)
    part.variance[1], part.variance[2], part.variance[5] = 1.0, 0.99, 40.0  # kept from 1 on
    thin = part.thin(batch)
    assert thin.ids.tolist() == [[1, 5, 7, 8]] and thin.lengths.tolist() == [4]
    assert thin.times is not None and thin.times.tolist() == [batch.times[0, [1, 3, 5, 6]].tolist()]


@pytest.mark.parametrize("length", range(1, 9))
def test_u3_two_newest_items_are_always_kept(length: int) -> None:
    """The authors' sampler keeps 2 of 7 unmarked items; what is older stays only if it recurs unevenly."""
    part = SequenceEnhancement(DIM)
    part.bind(toy_context())
    part.variance = torch.zeros(NUM_ITEMS + 1)
    batch = toy_batch((length,)).replace(ids=torch.arange(1, length + 1)[None])
    assert part.thin(batch).ids.tolist() == [list(range(1, length + 1))[-2:]]
    part.variance[1] = 1.0
    expected = [item for item in range(1, length + 1) if item == 1 or item > length - 2]
    assert part.thin(batch).ids.tolist() == [expected]


def test_u3_the_phase_of_two_items_is_before_that_of_three() -> None:
    part = SequenceEnhancement(DIM, **SCHEDULE)
    weights = part.weigh(100, torch.tensor([2, 3, 4]))
    expected = [abs(math.sin(math.pi / 2 * (kept - 3) / 50)) for kept in (2, 3, 4)]
    assert weights.tolist() == pytest.approx(expected, abs=1e-6)
    assert weights[0].item() == pytest.approx(0.0314, abs=1e-4)


def test_sequence_enhancement_equals_its_formula() -> None:
    part = SequenceEnhancement(DIM, **SCHEDULE)
    found = bound(part)
    part.flags = torch.arange(len(part.flags)) != 2
    step = step_of(found, toy_batch((8, 2, 5, 1)), epoch=150)  # the last has no input left, the third is not flagged
    part.variance = torch.zeros(NUM_ITEMS + 1)
    assert step.encoded is not None
    full, total = step.encoded.read(Branches).states[0].split(step.batch.lengths.tolist()), torch.tensor(0.0)
    for row in (0, 1):
        alone = part.thin(step.batch.select(torch.tensor([row])))
        q = found.encode(alone).read(Branches).states[0][-1]
        error = (part.generator(q) - full[row][-1]).square().mean()
        total = total + part.weigh(150, alone.lengths)[0] * error
    torch.testing.assert_close(part(step), total / 3, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("seed", range(4))
def test_u4_repo_mode_reads_and_compares_the_empty_slots_of_the_thinned_history(seed: int) -> None:
    """Kept items sit at the newest slots with the times there; the slots before them have no item, and all count."""
    part = ReleasedSequences(DIM, **SCHEDULE)
    found = bound(part)
    generator = torch.Generator().manual_seed(seed)
    part.flags = torch.rand(len(part.flags), generator=generator) < 0.7
    part.variance = torch.rand(NUM_ITEMS + 1, generator=generator) * 3
    step = step_of(found, toy_batch((8, 2, 5, 1, 7), seed=seed), epoch=150)
    assert step.encoded is not None and step.batch.times is not None
    full = step.encoded.read(Branches).states[0].split(step.batch.lengths.tolist())
    total = torch.tensor(0.0)
    for row, states in enumerate(full):
        if not part.flags[row] or not len(states):
            continue
        history, times = step.batch.ids[row, : len(states)], step.batch.times[row, : len(states)]
        kept = [
            item for place, item in enumerate(history.tolist()) if place >= len(history) - 2 or part.variance[item] >= 1
        ]
        slots = torch.tensor([[0] * (len(history) - len(kept)) + kept])
        alone = Batch(*(torch.zeros(1, dtype=torch.long),) * 2, slots, torch.tensor([len(history)]), times=times[None])
        q = found.encode(alone).read(Branches).states[0]
        weight = 2 * abs(math.sin(math.pi / 2 * (50 / 120 + (len(kept) - 3) / 50)))
        total = total + weight * (part.generator(q) - states).square().mean(1).sum()
    torch.testing.assert_close(part(step), total / step.batch.lengths.sum(), atol=1e-5, rtol=1e-4)


def test_u4_an_empty_slot_is_attended_to_and_teaches_no_item() -> None:
    part = ReleasedSequences(DIM, **SCHEDULE)
    found = bound(part)
    part.flags, part.variance = torch.ones_like(part.flags), torch.zeros(NUM_ITEMS + 1)
    batch = toy_batch((7,)).replace(ids=torch.tensor([[1, 2, 3, 4, 5, 6, 7]]))  # inputs 1..6, of which 5 and 6 are kept
    step = step_of(found, batch, epoch=150)
    loss = part(step)
    loss.backward()
    assert found.items.weight.grad is not None and not found.items.weight.grad[0].any()
    assert step.batch.times is not None and step.encoded is not None
    two = part.thin(step.batch).replace(times=step.batch.times[:, 4:6])
    q = found.encode(two).read(Branches).states[0]  # as if the four slots before were padding
    error = (part.generator(q) - step.encoded.read(Branches).states[0][4:]).square().mean(1).sum() / 6
    assert abs(loss.item() - (2 * part.weigh(150, two.lengths)[0] * error).item()) > 0.01


@pytest.mark.parametrize("mode", SEQUENCES)
def test_u5_padding_is_in_no_mean(mode: str) -> None:
    """The authors divide by all slots, so that at a mean length of n of L the same weights act n / L as strongly."""
    sequence, item = (kinds[mode](DIM, **SCHEDULE) for kinds in (SEQUENCES, ITEMS))
    found = bound(sequence, item)
    sequence.flags = torch.ones_like(sequence.flags)
    for part in (sequence, item, ProfileTerm()):
        narrow, wide = (part(step_of(found, toy_batch((6, 3, 4), width=width), epoch=120)) for width in (6, 8))
        torch.testing.assert_close(narrow, wide, atol=1e-5, rtol=1e-4)


def enhancement(mode: str, transfer: float) -> tuple[ItemEnhancement, Recommender]:
    """Heads are items 1..10, whose neighbours are heads; the neighbours of the others are among 11..30."""
    part = ITEMS[mode](DIM, transfer=transfer, **SCHEDULE)
    found = bound(part)
    part.head = torch.arange(NUM_ITEMS + 1) <= 10
    part.variance = torch.zeros(NUM_ITEMS + 1)
    part.near = torch.where(part.head, 1, 11)[:, None] + torch.arange(10)
    return part, found


def gradients_of(part: ItemEnhancement, found: Recommender, ids: list[int], epoch: int) -> tuple[bool, list[int]]:
    """Does G have a gradient, and which item rows have."""
    batch = toy_batch((len(ids) + 1,))
    found.zero_grad()
    part.zero_grad()
    part(step_of(found, batch.replace(ids=torch.tensor([[*ids, ids[0]]])), epoch)).backward()
    weight, moved = part.generator.weight.grad, found.items.weight.grad
    rows = [] if moved is None else moved.abs().sum(1).nonzero().squeeze(1).tolist()
    return weight is not None and bool(weight.any()), rows


def test_check_07_head_items_teach_and_tail_items_learn_through_the_transfer_only() -> None:
    part, found = enhancement("paper", transfer=0.0)
    learnt, rows = gradients_of(part, found, [2, 3, 20, 21], epoch=110)
    assert learnt and {2, 3} <= set(rows) and max(rows) <= 10
    part, found = enhancement("paper", transfer=0.1)
    learnt, rows = gradients_of(part, found, [20, 21], epoch=110)
    assert not learnt and {20, 21} <= set(rows)  # the generator is fixed while it hands on what it knows
    assert gradients_of(part, found, [20, 21], epoch=0) == (False, [])  # sin(0)
    part, found = enhancement("repo", transfer=0.1)
    assert gradients_of(part, found, [20, 21], epoch=110)[0]


@pytest.mark.parametrize("mode", SEQUENCES)
def test_item_enhancement_equals_its_formula(mode: str) -> None:
    part, found = enhancement(mode, transfer=0.1)
    part.near = torch.where(part.head, 4, 14)[:, None].expand(-1, 10).clone()  # one neighbour, however it is drawn
    with torch.no_grad():
        part.generator.bias.normal_()
    ids, epoch = [2, 2, 3, 20], 130
    batch = toy_batch((5,)).replace(ids=torch.tensor([[*ids, 7]]))
    total = torch.tensor(0.0)
    for item in ids:
        own = found.items.weight[item]
        made = part.generator(torch.cat([own, found.items.weight[4 if item <= 10 else 14]]))
        weight = math.sin(math.pi / 2 * (30 / 120 + 1))
        if item <= 10:
            total = total + weight * (made - own).square().mean()
        else:
            total = total + (weight * part.generator.bias.square().mean() if mode == "repo" else 0)
            total = total + 0.1 / 0.3 * math.sin(math.pi / 2 * epoch / 220) * (made - own).square().mean()
    torch.testing.assert_close(part(step_of(found, batch, epoch)), total / 4, atol=1e-5, rtol=1e-4)


def split_of(histories: list[list[int]], timed: bool = True) -> Split:
    lengths = np.array([len(one) for one in histories])
    flat = np.array([item for one in histories for item in one], np.int32)
    times = np.arange(len(flat)) * 3_600_000 if timed else None
    prepared = Prepared(flat, np.concatenate([[0], np.cumsum(lengths)]), NUM_ITEMS, times=times)
    names = [Vocabulary(np.arange(count), first) for count, first in ((NUM_ITEMS, 1), (len(histories), 0))]
    return Split.of(prepared, LeaveLast(), *names)


@pytest.mark.parametrize("mode", SEQUENCES)
def test_users_of_one_interaction_and_items_never_seen_do_no_harm(mode: str) -> None:
    split = split_of([[1], [2, 3], [4, 5, 6], [1, 2, 3, 4, 5, 6]])
    parts = [ProfileTerm(), SEQUENCES[mode](DIM), ITEMS[mode](DIM)]
    encoder = UniRec(DIM, num_layers=1, max_length=8)
    found = Recommender(IdItems(DIM), encoder, UniRecLoss(), auxiliaries=parts)
    found.bind(Context(NUM_ITEMS, split.items, split.train))
    for users in (np.arange(4), np.array([0])):
        batch = split.train.gather(users, 8, needs=found.train_needs)
        made = found.prepare(batch, Step(batch))
        terms = found.loss(Step(made, epoch=50, total_weight=max(float((made.targets > 0).sum()), 1.0)))  # type: ignore[operator]
        assert len(terms) == 4 and all(bool(value.isfinite()) for value in terms.values())
        sum(terms.values()).backward()  # type: ignore[union-attr]


def test_a_model_in_float64_trains() -> None:
    parts = [ProfileTerm(), SequenceEnhancement(DIM), ItemEnhancement(DIM)]
    found = Recommender(IdItems(DIM), UniRec(DIM, num_layers=1, max_length=8), UniRecLoss(), auxiliaries=parts)
    found.bind(toy_context())
    batch = found.double().prepare(toy_batch((6, 2, 5, 3)), Step(toy_batch()))
    sum(found.loss(Step(batch, epoch=50)).values()).backward()  # type: ignore[union-attr]
    gradients = [parameter.grad for parameter in found.parameters()]
    assert all(one is not None and one.dtype == torch.float64 and one.isfinite().all() for one in gradients)


def test_missing_times_and_missing_training_data_are_errors() -> None:
    train = split_of([[1, 2, 3, 4], [5, 6, 7, 8]], timed=False).train
    for part in (SequenceEnhancement(DIM), ItemEnhancement(DIM)):
        with pytest.raises(DataError, match="times"):
            part.bind(Context(NUM_ITEMS, training=train))
    part, found = SequenceEnhancement(DIM), bound()
    part.bind(Context(NUM_ITEMS))
    with pytest.raises(ValueError, match="training"):
        part(step_of(found, toy_batch((4, 3))))


@pytest.mark.parametrize(
    ("make", "word"),
    [
        (lambda: SequenceEnhancement(DIM, epochs=0), "epochs"),
        (lambda: ItemEnhancement(DIM, epochs=0), "epochs"),
        (lambda: ItemEnhancement(DIM, weight=0.0), "transfer"),
        (lambda: ProfileTerm(size=0), "size"),
    ],
)
def test_wrong_settings_say_which(make: Any, word: str) -> None:
    with pytest.raises(ValueError, match=word):
        make()


@pytest.mark.parametrize("mode", SEQUENCES)
def test_runs_of_0_1_load_as_they_were_and_the_repo_mode_is_refused_with_what_to_do(mode: str) -> None:
    from recsys.storage.parts import build, describe

    for kinds in (SEQUENCES, ITEMS):
        found = describe(kinds["paper"](DIM, epochs=7))
        found["arguments"]["mode"] = mode
        if mode == "paper":
            assert type(build(found)) is kinds["paper"] and build(found).epochs == 7
        else:
            with pytest.raises(ValueError, match=f"no mode='repo' any more: its class is {kinds[mode].__name__}"):
                build(found)
        assert type(build(describe(kinds[mode](DIM)), trust=["benchmarks.quality.released"])) is kinds[mode]
