"""CL4SRec, CoSeRec and DuoRec: where their views come from, what they cost, and that they change nothing else."""

from __future__ import annotations

import inspect
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import recsys as rs
from recsys.augmentations.crop import Crop
from recsys.augmentations.reorder import Reorder
from recsys.auxiliaries import duorec, pairs
from recsys.auxiliaries.cl4srec import CL4SRec
from recsys.auxiliaries.contrast import false_negatives, newest_target, nt_xent, pooled
from recsys.auxiliaries.coserec import CoSeRec
from recsys.auxiliaries.duorec import DuoRec
from recsys.auxiliaries.pairs import ViewContrast
from recsys.data.batch import Batch
from recsys.encoders.mamba4rec import Mamba4Rec
from recsys.encoders.sasrec import SASRec
from recsys.items.ids import IdItems
from recsys.objectives.softmax import FullSoftmax
from recsys.protocols import Context, Encoded, Step
from recsys.recommenders.composed import Recommender
from recsys.runs.recipe import find_recipe, load_recipe
from recsys.statistics.same_target import same_item
from recsys.statistics.similarity import EmbeddingSimilar
from recsys.targets.last_item import LastItem
from recsys.targets.next_item import NextItem
from recsys.targets.one_target import OneTarget
from recsys.testing import check_auxiliary, toy_context, toy_split
from recsys.train.fit import fit

SHIPPED = [
    CL4SRec(),
    CL4SRec(pool="mean", cosine=True, temperature=0.1),
    CoSeRec(),
    CoSeRec(similar=EmbeddingSimilar()),
]
SHIPPED += [DuoRec(mode=mode, hide=("target", "user"), keep=0.5) for mode in duorec.MODES]


def model(
    *auxiliaries: Any, dropout: float = 0.0, targets: Any = None, encoder: Any = None, extra: int = 1
) -> Recommender:
    encoder = encoder or SASRec(8, 1, dropout=dropout, max_length=8)
    return Recommender(IdItems(8, extra=extra), encoder, FullSoftmax(), targets, auxiliaries)


def bound(*auxiliaries: Any, **options: Any) -> Recommender:
    made = model(*auxiliaries, **options)
    made.bind(toy_context())
    return made


def rows(of: Recommender, count: int = 12) -> Batch:
    """Prepared training rows of different lengths."""
    training = toy_context().training
    assert training is not None
    batch = training.gather(np.arange(count), of.max_length + 1, needs=frozenset({"events"}))
    return of.prepare(batch, Step(batch))


def step_of(of: Recommender, batch: Batch | None = None, **more: Any) -> tuple[Step, list[Batch]]:
    """A step, and the list of what it has the encoder read."""
    read: list[Batch] = []

    def encode(view: Batch) -> Encoded:
        read.append(view)
        return of.encode(view)

    return Step(rows(of) if batch is None else batch, seed=3, items=of.items, encode=encode, **more), read


@pytest.mark.parametrize("auxiliary", SHIPPED, ids=lambda one: type(one).__name__ + getattr(one, "mode", ""))
@pytest.mark.parametrize("targets", [NextItem, LastItem])
def test_auxiliaries_conform_to_the_seam(auxiliary: ViewContrast, targets: Any) -> None:
    check_auxiliary(auxiliary, Recommender(IdItems(16, extra=1), SASRec(16, 1, 1, 0.1, 8), FullSoftmax(), targets()))


@pytest.mark.parametrize(
    ("auxiliary", "views"),
    [(CL4SRec(), 2), (CoSeRec(), 2), *((DuoRec(mode=mode), n) for mode, n in zip(duorec.MODES, (2, 1, 1, 2)))],
)
def test_all_views_of_a_step_go_through_the_encoder_in_one_pass(auxiliary: ViewContrast, views: int) -> None:
    of = bound(auxiliary)
    step, read = step_of(of)
    auxiliary(step)
    extra = [batch for batch in read if batch is not step.batch]  # the recommendation pass, where it is read
    assert [len(batch) for batch in extra] == [views * len(step.batch)]
    assert len(read) - len(extra) == (getattr(auxiliary, "mode", "us_x") != "us_x")


def test_check_03_the_prepared_batch_is_unchanged() -> None:
    auxiliaries = [CL4SRec(), CoSeRec(), DuoRec()]
    of = bound(*auxiliaries)
    batch = rows(of)
    before = batch.ids.clone(), batch.lengths.clone(), None if batch.targets is None else batch.targets.clone()
    step, _ = step_of(of, batch)
    for auxiliary in auxiliaries:
        auxiliary(step)
    for now, then in zip((batch.ids, batch.lengths, batch.targets), before, strict=True):
        assert now is not None and then is not None and torch.equal(now, then)


def test_c1_coserec_reorders_the_share_of_the_authors_code_unless_told_otherwise() -> None:
    """In their lists of operations Reorder gets the share to mask wherever a threshold is set: 14 of 20 items."""
    for given, window in (({}, 14), ({"reorder": 0.2}, 4), ({"mask": 0.3}, 14)):
        part = CoSeRec(**given)
        part.bind(toy_context())
        reorder = next(one for one in part.draw.operations if isinstance(one, Reorder))
        batch = Batch(*(torch.zeros(1, dtype=torch.long),) * 2, torch.arange(1, 21)[None], torch.tensor([20]))
        spans = []
        for seed in range(200):
            moved = (reorder(batch, torch.Generator().manual_seed(seed)).ids != batch.ids)[0].nonzero()
            spans.append(int(moved.max() - moved.min()) + 1 if len(moved) else 0)
        assert max(spans) == window


def test_c1_the_recipe_does_as_its_part() -> None:
    recipe = inspect.signature(load_recipe(find_recipe("coserec"))).parameters
    part = inspect.signature(CoSeRec).parameters
    for name in ("crop", "mask", "reorder"):
        assert recipe[name].default == part[name].default, name


def drawn(auxiliary: DuoRec, batch: Batch, seed: int) -> Batch:
    return auxiliary.positives(batch, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("targets", [NextItem, LastItem])
def test_check_06_partners_have_the_same_target_and_are_other_training_rows(targets: Any) -> None:
    duo, training = DuoRec(), toy_context().training
    of = bound(duo, targets=targets())
    assert training is not None
    batch = rows(of, 40)
    counts = same_item(training).counts(newest_target(batch).numpy())
    histories = [training.history(user).tolist() for user in range(training.num_users)]
    for seed in range(5):
        partner = drawn(duo, batch, seed)
        assert torch.equal(newest_target(partner), newest_target(batch))
        for row in range(len(batch)):
            items = partner.ids[row, : partner.lengths[row]].tolist()
            whole, user = [*items, int(newest_target(partner)[row])], int(partner.users[row])
            ends = [end for end in range(2, len(histories[user]) + 1) if histories[user][:end][-len(whole) :] == whole]
            assert ends  # training events of that user, in their order
            if counts[row] == 1:
                assert user == int(batch.users[row])
            elif user == int(batch.users[row]):
                assert ends[0] < len(histories[user])  # another event of the same user


def test_check_06_partners_are_uniform() -> None:
    duo, training = DuoRec(), toy_context().training
    of = bound(duo)
    assert training is not None
    batch = rows(of, 40)
    counts = same_item(training).counts(newest_target(batch).numpy())
    row = int(counts.argmax())
    many = batch.select(torch.full((3000,), row))
    partner = drawn(duo, many, 0)
    _, seen = np.unique(partner.users.numpy() * 100 + partner.lengths.numpy(), return_counts=True)
    others = counts[row] - 1
    assert len(seen) == others > 3
    expected = 3000 / others
    assert ((seen - expected) ** 2 / expected).sum() < 3 * others  # chi-square, mean others - 1


def test_check_06_partners_are_as_long_as_asked_for() -> None:
    short, long = DuoRec(max_length=2), DuoRec()
    batch = rows(bound(short, long), 40)
    few, many = drawn(short, batch, 0), drawn(long, batch, 0)
    assert torch.equal(few.users, many.users)
    assert torch.equal(few.lengths, many.lengths.clamp(max=2)) and int(many.lengths.max()) <= batch.ids.shape[1]


def captured(auxiliary: ViewContrast, monkeypatch: pytest.MonkeyPatch) -> list[tuple[Tensor, Tensor]]:
    seen: list[tuple[Tensor, Tensor]] = []

    def spy(first: Tensor, second: Tensor, *options: Any) -> Tensor:
        seen.append((first, second))
        return nt_xent(first, second, *options)

    monkeypatch.setattr(pairs, "nt_xent", spy)
    return seen


def test_check_08_without_dropout_the_views_of_un_coincide(monkeypatch: pytest.MonkeyPatch) -> None:
    duo = DuoRec(mode="un")
    seen = captured(duo, monkeypatch)
    duo(step_of(bound(duo))[0])
    ((first, second),) = seen
    torch.testing.assert_close(first, second)
    duo(step_of(bound(duo, dropout=0.5))[0])
    assert not torch.allclose(*seen[1])


def test_modes_contrast_what_they_say(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors: dict[str, list[tuple[Tensor, Tensor]]] = {}
    for mode in duorec.MODES:
        duo = DuoRec(mode=mode)
        seen = captured(duo, monkeypatch)
        duo(step_of(bound(duo))[0])
        vectors[mode] = seen
    assert {mode: len(found) for mode, found in vectors.items()} == {"us_x": 1, "un": 1, "su": 1, "us": 2}
    for found, expected in zip(vectors["us"], [vectors["un"][0], vectors["su"][0]], strict=True):
        torch.testing.assert_close(found, expected)
    torch.testing.assert_close(vectors["us_x"][0], vectors["su"][0])  # the same where there is no dropout


def test_check_09_weight_zero_adds_no_pass_and_no_term() -> None:
    auxiliaries = [CL4SRec(0.0), CoSeRec(0.0), DuoRec(0.0)]
    of, plain = bound(*auxiliaries), bound()
    terms = []
    for one in (of, plain):
        batch, calls = rows(one), []
        one.encoder.register_forward_hook(lambda *_, calls=calls: calls.append(1))
        terms.append(one.loss(Step(batch, seed=3)))
        assert len(calls) == 1
    assert terms[0].keys() == terms[1].keys() == {"loss"}
    assert torch.equal(terms[0]["loss"], terms[1]["loss"])


def test_check_09_weight_zero_trains_the_same_weights() -> None:
    weights = []
    for auxiliaries in ([], [CL4SRec(0.0), CoSeRec(0.0), DuoRec(0.0)], [CL4SRec(), CoSeRec(), DuoRec()]):
        made = model(*auxiliaries, dropout=0.2)
        history = fit(made, toy_split(), epochs=1, batch_size=16, progress=False, validate_every=0).history
        weights.append({name: value for name, value in made.tensors().items() if "auxiliaries" not in name})
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())
    assert not torch.equal(weights[0]["items.weight"], weights[2]["items.weight"])
    assert set(history[0]["terms"]) == {"loss", "CL4SRec0", "CoSeRec0", "DuoRec0"}


@pytest.mark.parametrize("name", ["cl4srec", "coserec", "duorec"])
def test_check_09_the_recipe_without_weight_is_the_backbone(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    split = toy_split()
    monkeypatch.setattr(rs, "load", lambda data: SimpleNamespace(split=lambda splitter: split))
    knobs: dict[str, Any] = {"epochs": 2, "batch_size": 16, "max_length": 5, "dim": 8}
    made = [load_recipe(find_recipe(recipe)) for recipe in (name, "sasrec")]
    runs = [made[0](weight=0.0, **knobs), made[1](**knobs)]
    losses = [[record["loss"] for record in run.fit(progress=False).history] for run in runs]
    assert losses[0] == losses[1]
    one, other = (run.model.tensors() for run in runs)
    assert one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def test_check_11_equal_targets_and_users_are_not_told_apart() -> None:
    for auxiliary in (CL4SRec(hide="target"), CoSeRec(hide=("target",)), DuoRec(hide=("target",))):
        of = bound(auxiliary)
        batch = rows(of)
        assert batch.targets is not None
        same = batch.replace(targets=torch.where(batch.targets > 0, 4, 0))
        assert bool(false_negatives(same, "target").all())
        assert auxiliary(step_of(of, same)[0]).item() == pytest.approx(0.0, abs=1e-6)
        assert auxiliary(step_of(of, batch)[0]).item() > 0.1


@pytest.mark.parametrize("auxiliary", [CL4SRec(), CoSeRec(), DuoRec(), DuoRec(mode="us")])
def test_rows_without_input_take_no_part(auxiliary: ViewContrast, monkeypatch: pytest.MonkeyPatch) -> None:
    of = bound(auxiliary)
    batch = rows(of, 6)
    emptied = (torch.arange(6) != 2).long()
    assert batch.targets is not None
    less = batch.replace(ids=batch.ids * emptied[:, None], lengths=batch.lengths * emptied)
    less = less.replace(targets=batch.targets * emptied[:, None])
    seen = captured(auxiliary, monkeypatch)
    kept = emptied.nonzero().squeeze(1)
    losses = [auxiliary(step_of(of, one)[0]) for one in (less, batch.select(kept))]
    assert all(len(first) == len(second) == 5 for first, second in seen)
    torch.testing.assert_close(*losses)
    calls = len(seen) // 2
    nothing = batch.replace(ids=batch.ids * 0, lengths=batch.lengths * 0, targets=batch.targets * 0)
    assert auxiliary(step_of(of, nothing)[0]).item() == 0
    assert len(seen) == 3 * calls  # as many as in the processes that have rows, which wait for this one


@pytest.mark.parametrize("auxiliary", [CL4SRec(), DuoRec(), DuoRec(mode="us")])
def test_the_spare_row_of_a_process_without_rows_is_contrasted_with_nothing(
    auxiliary: ViewContrast, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = captured(auxiliary, monkeypatch)
    of = bound(auxiliary)
    loss = auxiliary(step_of(of, rows(of, 1), share=0.0)[0])
    assert all(len(first) == 0 for first, _ in seen)
    loss.backward()  # every weight takes part, with nothing to learn
    assert loss.item() == 0 and of.items.weight.grad is not None and not bool(of.items.weight.grad.any())


def test_pooling_sees_the_states_of_all_tokens() -> None:
    encoder = Mamba4Rec(8, 1, state=4, dropout=0.0, max_length=8)  # spares itself the states that nobody asks for
    for pool in ("mean", "flat"):
        auxiliary = CL4SRec(operations=[Crop(1.0), Reorder(0.0)], pool=pool)
        of = bound(auxiliary, targets=LastItem(), encoder=encoder)
        step, read = step_of(of)
        auxiliary(step)
        assert len(read[0].wanted_tokens) == int(read[0].lengths.sum())
        states = pooled(of.encode(read[0]), pool)
        assert bool((states.view(len(states), -1, 8)[:, 0] != 0).all())


def test_views_never_get_longer_than_the_batch_or_the_given_length() -> None:
    for auxiliary in (CoSeRec(insert=1.0, threshold=1), CoSeRec(insert=1.0, threshold=1, max_length=8)):
        of = bound(auxiliary)
        batch = rows(of).trim(7)
        width = 7 if auxiliary.max_length is None else 8
        lengths = []
        for seed in range(6):
            step, read = step_of(of, batch)
            auxiliary(replace(step, seed=seed))
            lengths.append(int(read[0].lengths.max()))
        assert max(lengths) == width


def test_partners_need_training_events() -> None:
    duo = DuoRec()
    of = bound(duo)
    batch = rows(of)
    with pytest.raises(ValueError, match="events"):
        duo(step_of(of, batch.replace(events=None))[0])
    duo.bind(Context(30))
    with pytest.raises(ValueError, match="training"):
        duo(step_of(of, batch)[0])
    assert DuoRec(mode="un").needs == frozenset() and duo.needs == frozenset({"events"})


@pytest.mark.parametrize(
    ("part", "settings", "word"),
    [
        (CL4SRec, {"pool": "first"}, "pool"),
        (CL4SRec, {"temperature": 0.0}, "temperature"),
        (CL4SRec, {"hide": ("item",)}, "item"),
        (CL4SRec, {"keep": 2.0}, "keep"),
        (CL4SRec, {"operations": [Crop()]}, "two"),
        (CoSeRec, {"short": ("cut",)}, "short"),
        (CoSeRec, {"max_length": 0}, "max_length"),
        (DuoRec, {"mode": "x"}, "mode"),
        (DuoRec, {"max_length": 0}, "max_length"),
    ],
)
def test_wrong_settings_say_which(part: Any, settings: dict[str, Any], word: str) -> None:
    with pytest.raises(ValueError, match=word):
        part(**settings)


def test_a_partner_is_another_event_wherever_the_target_of_a_row_was_drawn() -> None:
    contrast = DuoRec(max_length=12)
    contrast.bind(toy_context())
    training = toy_context().training
    assert training is not None
    rows = training.gather(np.arange(40), 13, needs=frozenset({"events"}))
    batch = OneTarget().train(rows, torch.Generator().manual_seed(1))
    many = torch.as_tensor(same_item(training).counts(newest_target(batch).numpy()) > 1)
    for seed in range(30):
        partner = contrast.positives(batch, torch.Generator().manual_seed(seed))
        same = (partner.users == batch.users) & (partner.lengths == batch.lengths)
        assert not bool(same[many].any())


def test_two_auxiliaries_of_a_class_draw_views_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[tuple[Tensor, Tensor]] = []

    def spied(self: CL4SRec, step: Step, batch: Batch) -> tuple[Batch, Batch]:
        made = made_by(self, step, batch)
        drawn.append((made[0].ids, made[1].ids))
        return made

    made_by = CL4SRec.views
    monkeypatch.setattr(CL4SRec, "views", spied)

    def views(*weights: float) -> list[tuple[Tensor, Tensor]]:
        drawn.clear()
        contrasts = [CL4SRec(weight, [Crop(0.5), Reorder(0.5)]) for weight in weights]
        model = Recommender(IdItems(8), SASRec(8, 1, 1, 0.0, 12), FullSoftmax(), auxiliaries=contrasts)
        fit(model, toy_split(), epochs=1, batch_size=256, progress=False)
        return list(drawn)

    one, (first, second), behind = views(0.1), views(0.1, 0.1), views(0.0, 0.1)
    assert all(torch.equal(*pair) for pair in zip(one[0], first, strict=True))
    assert not all(torch.equal(*pair) for pair in zip(first, second, strict=True))
    assert all(torch.equal(*pair) for pair in zip(behind[0], first, strict=True))  # an unused one is not there
