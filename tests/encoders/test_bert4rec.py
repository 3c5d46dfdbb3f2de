"""BERT4Rec: its place at the seams, its size, and masked training on users who walk round a circle of items."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import recsys as rs
from recsys.data.batch import Batch
from recsys.data.prepared import Prepared
from recsys.data.split import Split
from recsys.encoders.bert4rec import BERT4Rec
from recsys.ids.vocabulary import Vocabulary
from recsys.items.ids import IdItems
from recsys.objectives.softmax import FullSoftmax
from recsys.protocols import Context, Stepwise, Targets
from recsys.recommenders.composed import Recommender
from recsys.targets.last_item import LastItem
from recsys.targets.masked_items import MaskedItems
from recsys.targets.next_item import NextItem
from recsys.testing import check_encoder, check_ranker, toy_batch

NUM_ITEMS = 20


def circle(users: int = 200) -> Split:
    """Users start anywhere and walk round the catalogue, a step of 3 at a time."""
    random = np.random.default_rng(0)
    lengths, starts = random.integers(6, 11, users), random.integers(0, NUM_ITEMS, users)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    place = np.arange(lengths.sum()) - np.repeat(offsets[:-1], lengths)
    items = (np.repeat(starts, lengths) + 3 * place) % NUM_ITEMS + 1
    prepared = Prepared(items.astype(np.int32), offsets, NUM_ITEMS, order="file")
    return Split.of(prepared, rs.LeaveLast(), Vocabulary(np.arange(NUM_ITEMS), 1), Vocabulary(np.arange(users), 0))


def model_of(targets: Targets, extra: int = 1) -> Recommender:
    encoder = BERT4Rec(32, num_layers=1, dropout=0.0, max_length=8)
    return Recommender(IdItems(32, scale=False, extra=extra), encoder, FullSoftmax(), targets)


def bound(**settings: object) -> tuple[BERT4Rec, IdItems]:
    torch.manual_seed(0)
    encoder, items = BERT4Rec(16, **settings), IdItems(16, scale=False, extra=1)  # type: ignore[arg-type]
    for part in (encoder, items):
        part.bind(Context(30))
    return encoder.eval(), items


@pytest.mark.parametrize(
    "settings", [{}, {"head": False, "positions": "absolute"}, {"positions": "none", "num_heads": 1, "num_layers": 1}]
)
def test_conforms(settings: dict[str, object]) -> None:
    encoder = BERT4Rec(16, max_length=8, dropout=0.1, **settings)  # type: ignore[arg-type]
    check_encoder(encoder, IdItems(16, scale=False, extra=1))


def test_conforms_as_a_recommender() -> None:
    check_ranker(model_of(MaskedItems()))


@pytest.mark.parametrize("head", [True, False])
def test_number_of_parameters(head: bool) -> None:
    d, length = 64, 50
    encoder = BERT4Rec(d, num_layers=2, max_length=length, head=head)
    block = 4 * (d * d + d) + (4 * d * d + 4 * d) + (4 * d * d + d) + 4 * d
    expected = (length + 1) * d + 2 * d + 2 * block + (d * d + 3 * d if head else 0)
    assert sum(one.numel() for one in encoder.parameters()) == expected


def test_every_state_reads_the_whole_history() -> None:
    encoder, items = bound()
    batch = toy_batch((5, 3))
    entered = items.embed(batch.flat_ids).detach().requires_grad_()
    items.embed = lambda ids: entered  # type: ignore[method-assign]
    (gradient,) = torch.autograd.grad(encoder(batch.ask_all(), items).tokens[0].square().sum(), entered)
    assert gradient[:5].abs().sum(1).gt(0).all()
    assert gradient[5:].abs().max() == 0


@pytest.mark.parametrize("positions", ["recency", "absolute"])
def test_begin_gives_the_states_of_a_call(positions: str) -> None:
    encoder, items = bound(positions=positions)
    batch = toy_batch((5, 1, 3)).ask_all()
    assert torch.equal(encoder.begin(batch, items)[0].tokens, encoder(batch, items).tokens)
    assert isinstance(encoder, Stepwise)


def test_the_newest_states_are_the_same_when_no_others_are_asked_for() -> None:
    encoder, items = bound()
    batch = toy_batch((5, 1, 3, 0, 8) * 8)
    alone, among = encoder(batch, items), encoder(batch.ask_all(), items)
    torch.testing.assert_close(alone.user, among.user, atol=1e-6, rtol=1e-5)
    assert int(alone.tokens.any(1).sum()) == len(batch.wanted_tokens) < len(batch.flat)


def test_masked_training_learns_a_walk_and_never_recommends_the_mask() -> None:
    model, split = model_of(MaskedItems(0.3, last=0.3)), circle()
    rs.fit(model, split, epochs=60, batch_size=32, learning_rate=5e-3, seed=1, validate_every=0, progress=False)
    assert rs.evaluate(model, split.test, k=(1,), exclude="none", progress=False).mean("hr@1") > 0.7
    histories = [[0, 3, 6], [9, 12, 15, 18, 1], [4], list(range(20))]
    assert model.scores(histories).shape == (4, NUM_ITEMS)
    assert set(np.concatenate(model.recommend(histories, k=NUM_ITEMS, exclude="none").items)) <= set(range(NUM_ITEMS))


def test_trains_on_prefixes_without_a_mask() -> None:
    model, split = model_of(LastItem(), extra=0), circle(12)
    fitted = rs.fit(model, split, epochs=3, batch_size=20, learning_rate=5e-3, seed=1, validate_every=0, progress=False)
    assert fitted.history[-1]["loss"] < fitted.history[0]["loss"]


def test_a_table_that_nobody_asked_for_a_mask_says_so() -> None:
    assert model_of(MaskedItems(), extra=0).items.extra == 1
    encoder, _ = bound(num_layers=1, max_length=8)
    bare = IdItems(16, scale=False)
    bare.bind(Context(30))
    with pytest.raises(ValueError, match="reserve"):
        encoder(toy_batch((3, 1)).replace(ids=torch.tensor([[4, 5, 31], [31, 0, 0]])), bare)


def test_targets_that_stand_in_the_input_are_refused() -> None:
    with pytest.raises(ValueError, match="NextItem"):
        model_of(NextItem())


def test_the_mask_comes_on_top_of_max_length() -> None:
    encoder, items = bound(max_length=4)
    ids = torch.randint(1, 31, (1, 6))
    batch = Batch(torch.zeros(1, dtype=torch.long), torch.zeros(1, dtype=torch.long), ids, torch.tensor([6]))
    assert encoder(batch.replace(ids=ids[:, :5], lengths=torch.tensor([5])), items).tokens.shape == (5, 16)
    with pytest.raises(ValueError, match="max_length"):
        encoder(batch, items)


@pytest.mark.parametrize(
    ("settings", "word"),
    [
        ({"dim": 10, "num_heads": 3}, "divisible"),
        ({"positions": "left"}, "positions"),
        ({"activation": "tanh"}, "activation"),
        ({"dropout": 1.0}, "dropout"),
        ({"init": "zeros"}, "init"),
        ({"max_length": 0}, "max_length"),
        ({"num_layers": -1}, "num_layers"),
    ],
)
def test_wrong_settings_say_which(settings: dict[str, object], word: str) -> None:
    with pytest.raises(ValueError, match=word):
        BERT4Rec(**settings)  # type: ignore[arg-type]
