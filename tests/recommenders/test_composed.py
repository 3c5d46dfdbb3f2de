"""The composition of parts: checks at construction, seeds per part, terms of the loss, vectors."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from per_target import per_target
from torch import Tensor, nn

from recsys.augmentations.choice import OneOf
from recsys.augmentations.crop import Crop
from recsys.augmentations.insert import Insert
from recsys.auxiliaries.coserec import CoSeRec
from recsys.auxiliaries.duorec import DuoRec
from recsys.auxiliaries.editor import Editor
from recsys.auxiliaries.reasoning import StepContrast
from recsys.auxiliaries.semantic import SemanticContrast
from recsys.auxiliaries.triplet import TripletContrast
from recsys.auxiliaries.unirec import UniRecLoss
from recsys.data.batch import Batch
from recsys.encoders.gru4rec import GRU4Rec
from recsys.encoders.rearec import ReaRec, ReasoningStates
from recsys.encoders.sasrec import SASRec
from recsys.encoders.unirec import UniRec
from recsys.ids.vocabulary import Vocabulary
from recsys.items.ids import IdItems
from recsys.objectives.softmax import FullSoftmax
from recsys.protocols import Context, Encoded, Step
from recsys.recommenders.composed import Recommender
from recsys.statistics.similarity import ItemCF
from recsys.storage.parts import build, describe
from recsys.targets.masked_items import MaskedItems
from recsys.testing import toy_batch, toy_context
from recsys.train.update import target_weight

NUM_ITEMS = 12


class Pull(nn.Module):
    """An auxiliary that draws user states to zero."""

    def __init__(self, weight: float = 0.5) -> None:
        super().__init__()
        self.weight = weight
        self.layer = nn.Linear(8, 8)

    def forward(self, step: Step) -> Tensor:
        assert step.encoded is not None
        return self.layer(step.encoded.user).pow(2).mean()


def model_of(**parts: object) -> Recommender:
    settings = {"items": IdItems(8), "encoder": SASRec(8, max_length=5, dropout=0.0), "objective": FullSoftmax()}
    model = Recommender(**{**settings, **parts})  # type: ignore[arg-type]
    model.bind(Context(NUM_ITEMS, Vocabulary(np.arange(100, 100 + NUM_ITEMS), first=1), seed=4))
    return model


def training_batch() -> Batch:
    ids = torch.tensor([[1, 2, 3, 4], [5, 6, 0, 0]])
    return Batch(torch.arange(2), torch.arange(2), ids, torch.tensor([4, 2]))


def test_loss_is_the_mean_over_targets_and_shares_add_up() -> None:
    model = model_of()
    step = Step(batch=training_batch(), total_weight=4.0)
    batch = model.prepare(step.batch, step)
    assert batch.targets is not None and batch.targets.tolist() == [[2, 3, 4], [6, 0, 0]]
    terms = model.loss(Step(batch=batch, total_weight=4.0))
    states = model.encode(batch).tokens
    expected = nn.functional.cross_entropy(states @ model.items.weight[1:].T, torch.tensor([2, 3, 4, 6]) - 1)
    torch.testing.assert_close(terms["loss"], expected)


def test_target_weights_multiply_any_objective() -> None:
    model = model_of()
    step = Step(batch=training_batch())
    plain = model.prepare(step.batch, step)
    weights = torch.tensor([[0.5, 2.0, 0.0], [1.0, 0.0, 0.0]])
    parts = per_target(model.objective, model.encode(plain), plain, model.items)
    weighted = model.loss(Step(batch=plain.replace(weights=weights), total_weight=3.5))["loss"]
    torch.testing.assert_close(weighted, (parts * torch.tensor([0.5, 2.0, 0.0, 1.0])).sum() / 3.5)
    ones = model.loss(Step(batch=plain.replace(weights=torch.ones(2, 3)), total_weight=4.0))["loss"]
    assert torch.equal(ones, model.loss(Step(batch=plain, total_weight=4.0))["loss"])


def test_a_part_of_weight_zero_changes_nothing_and_costs_no_pass() -> None:
    with_part, without = model_of(auxiliaries=[Pull(weight=0.0)]), model_of()
    for name, value in without.tensors().items():
        assert torch.equal(with_part.tensors()[name], value)
    step = Step(batch=training_batch(), total_weight=4.0)
    batch = without.prepare(step.batch, step)
    step = Step(batch=batch, total_weight=4.0)
    assert with_part.loss(step).keys() == {"loss"}
    assert model_of(auxiliaries=[Pull()]).loss(step).keys() == {"loss", "Pull0"}


def test_an_encoder_that_sees_the_target_is_refused() -> None:
    encoder = SASRec(8)
    encoder.sees = "all"
    with pytest.raises(ValueError, match="LastItem"):
        model_of(encoder=encoder)
    with pytest.raises(ValueError, match="dim"):
        model_of(items=IdItems(16))


def test_a_part_that_makes_longer_histories_than_the_encoder_reads_is_refused() -> None:
    long_edits = TripletContrast(editor=Editor(8, max_length=6))
    for part in (DuoRec(max_length=6), CoSeRec(max_length=6), long_edits):
        with pytest.raises(ValueError, match="max_length=5 or less"):
            model_of(auxiliaries=[part])
        part.weight = 0.0
        model_of(auxiliaries=[part])
    with pytest.raises(ValueError, match="max_length=5 or less"):
        model_of(augmentations=[OneOf([Crop(), Insert(0.2, ItemCF(), max_length=6)])])
    unread = [DuoRec(mode="un", max_length=6), SemanticContrast(vectors="texts", cross=0.0, text_dim=4, max_length=6)]
    Recommender(IdItems(8), SASRec(8, max_length=5), FullSoftmax(), auxiliaries=unread)
    model_of(auxiliaries=[DuoRec(max_length=5)])
    model_of(augmentations=[Insert(0.2, ItemCF(), max_length=5)])


def test_a_mask_gets_a_row_of_its_own_under_any_encoder() -> None:
    for encoder in (SASRec(8, max_length=5), GRU4Rec(8, 8, max_length=5)):
        model = model_of(encoder=encoder, targets=MaskedItems())
        model.bind(toy_context())
        assert model.items.extra == 1
        assert np.isfinite(model.scores([["i1", "i2"]])).all()


def test_a_mask_takes_the_place_of_an_item_where_the_encoder_has_no_room_for_it() -> None:
    model = Recommender(IdItems(8, extra=1), SASRec(8, 1, max_length=6), FullSoftmax(), MaskedItems())
    assert model.max_length == 5
    model.bind(toy_context())
    scores = model.scores([[f"i{row}" for row in range(1, 20)]])
    assert np.isfinite(scores).all()


def test_scores_are_dot_products_of_the_vectors_it_exports() -> None:
    model = model_of().eval()
    histories = [[100, 101, 102], [105], [100, 101, 102, 103, 104, 105, 106]]
    np.testing.assert_allclose(
        model.scores(histories), model.user_vectors(histories) @ model.item_vectors().T, atol=1e-6
    )
    assert model.user_vectors([[]]).tolist() == [[0.0] * 8]


def test_similar_items_by_cosine() -> None:
    model = model_of()
    with torch.no_grad():
        model.items.weight[1] = model.items.weight[7] * 3
    ((best, cosine), *_) = model.similar([100], k=3)[0]
    assert best == 106
    assert cosine == pytest.approx(1.0, abs=1e-5)
    with pytest.raises(KeyError, match="999"):
        model.similar([999])


def test_rebuilt_from_its_description_it_scores_the_same() -> None:
    model = model_of().eval()
    again = build(describe(model))
    again.bind(Context(NUM_ITEMS, model.vocabulary))
    again.load_tensors(model.tensors())
    assert np.array_equal(again.scores([[100, 101]]), model.scores([[100, 101]]))


def test_check_10_padding_is_not_recommended_and_its_row_stays() -> None:
    model = model_of()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    before = model.items.weight[0].clone()
    step = Step(batch=training_batch())
    batch = model.prepare(step.batch, step)
    for _ in range(3):
        optimizer.zero_grad()
        model.loss(Step(batch=batch, total_weight=4.0))["loss"].backward()
        optimizer.step()
    assert torch.equal(model.items.weight[0], before)
    assert model.recommend([[100]], k=NUM_ITEMS - 1).rows.min() > 0


class Doubled(nn.Module):
    """Weighs targets by their item row, self-normalised or not."""

    def __init__(self, normalised=True):
        super().__init__()
        self.normalised = normalised

    def forward(self, batch):
        return batch.targets.float() * 2


@pytest.mark.parametrize("normalised", [True, False])
def test_weightings_multiply_the_losses_and_the_divisor_only_if_normalised(normalised):
    plain, weighted = (
        Recommender(IdItems(8), SASRec(8, 1, dropout=0.0, max_length=8), FullSoftmax(), weightings=parts)
        for parts in ([], [Doubled(normalised)])
    )
    rows = toy_batch((4, 2, 5))
    for model in (plain, weighted):
        model.bind(toy_context())
    before, after = (model.prepare(rows, Step(rows)) for model in (plain, weighted))
    weight = target_weight(after)
    data = before.flatten(before.weights)[before.flatten(before.targets) > 0]
    rate = 2.0 * before.flatten(before.targets)[before.flatten(before.targets) > 0]
    assert weight == pytest.approx(float((data * rate).sum() if normalised else data.sum()), rel=1e-6)
    losses = per_target(plain.objective, plain.encode(before), before, plain.items)
    found = weighted.loss(Step(after, total_weight=weight))["loss"]
    assert found.item() == pytest.approx(float((losses * data * rate).sum().detach() / weight), rel=1e-5)
    found.backward()
    (losses * data * rate).sum().div(weight).backward()
    torch.testing.assert_close(weighted.items.weight.grad, plain.items.weight.grad, rtol=1e-4, atol=1e-6)


class Reads(nn.Module):
    """An auxiliary, or an objective, that reads what not every encoder gives."""

    reads = frozenset({ReasoningStates})
    weight = 1.0


class Holds(nn.Module):
    weight = 0.5

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner


@dataclass(frozen=True)
class Mood:
    """Given by nobody."""


@pytest.mark.parametrize(
    "parts", [{"objective": Reads()}, {"auxiliaries": [Reads()]}, {"auxiliaries": [Holds(Reads())]}]
)
def test_a_loss_that_reads_what_the_encoder_does_not_give_is_refused(parts: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"Reads reads ReasoningStates, which SASRec does not give: use ReaRec"):
        model_of(**parts)
    reasons = ReaRec(SASRec(8, max_length=5), 1)
    Recommender(**{"items": IdItems(8), "encoder": reasons, "objective": FullSoftmax(), **parts})


def test_what_is_given_depends_on_how_the_encoder_is_made() -> None:
    plain, noisy = (ReaRec(SASRec(8, max_length=5), 1, noise=noise) for noise in (None, 0.1))
    contrast = {"auxiliaries": [StepContrast()]}
    with pytest.raises(ValueError, match=r"NoisyStates.*noise=0\.01"):
        Recommender(IdItems(8), plain, FullSoftmax(), **contrast)
    Recommender(IdItems(8), noisy, FullSoftmax(), **contrast)
    with pytest.raises(ValueError, match=r"UniRecLoss reads Branches, which ReaRec does not give: use UniRec"):
        Recommender(IdItems(8), ReaRec(UniRec(8, max_length=5), 1), UniRecLoss())
    Recommender(IdItems(8), ReaRec(UniRec(8, max_length=5), 0), UniRecLoss())
    idle = Reads()
    idle.weight = 0
    Recommender(IdItems(8), SASRec(8), FullSoftmax(), auxiliaries=[idle])


def test_what_an_encoder_gives_is_found_by_its_class() -> None:
    batch = training_batch()
    states = ReasoningStates(torch.zeros(2, 2, 8))
    encoded = Encoded(batch, torch.zeros(6, 8), (states,))
    assert encoded.read(ReasoningStates) is states and encoded.get(Mood) is None
    with pytest.raises(ValueError, match="Mood, and the encoder gives ReasoningStates: use an encoder that names it"):
        encoded.read(Mood)
