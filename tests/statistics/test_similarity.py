"""Item similarity against dictionaries and full products; check 10 of contrastive_baselines.md by number."""

from __future__ import annotations

import math
from collections import defaultdict
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import recsys as rs
from recsys.augmentations.choice import OneOf
from recsys.augmentations.insert import Insert
from recsys.augmentations.substitute import Substitute
from recsys.data.prepared import Prepared
from recsys.data.split import Split
from recsys.data.splitters import LeaveLast
from recsys.ids.vocabulary import Vocabulary
from recsys.items.ids import IdItems
from recsys.protocols import Context
from recsys.statistics import similarity as module
from recsys.statistics.similarity import EmbeddingSimilar, Hybrid, ItemCF, Similar, nearest
from recsys.storage.parts import build, describe
from recsys.testing import toy_context, toy_split

EPOCH_SEEDS = torch.Generator()


def split_of(histories: list[list[int]], num_items: int) -> Split:
    offsets = np.concatenate([[0], np.cumsum([len(history) for history in histories])])
    prepared = Prepared(np.concatenate(histories).astype(np.int32), offsets, num_items)
    items, users = Vocabulary(np.arange(1, num_items + 1), 1), Vocabulary(np.arange(len(histories)), 0)
    return Split.of(prepared, LeaveLast(), items, users)


def context_of(histories: list[list[int]], num_items: int, seed: int = 0) -> Context:
    return Context(num_items, training=split_of(histories, num_items).train, seed=seed)


def random_histories(users: int, num_items: int, seed: int = 0) -> list[list[int]]:
    """Popular items are more popular, and items come again."""
    rng = np.random.default_rng(seed)
    return [(rng.integers(0, num_items, rng.integers(3, 12)) ** 2 // num_items + 1).tolist() for _ in range(users)]


def slow(histories: list[list[int]], iuf: bool = True) -> dict[int, dict[int, float]]:
    """Similarities from dictionaries, of histories as they are."""
    users, shared = defaultdict(int), defaultdict(lambda: defaultdict(float))
    for history in map(set, histories):
        for item in history:
            users[item] += 1
            for other in history - {item}:
                shared[item][other] += 1 / math.log(1 + len(history)) if iuf else 1.0
    return {
        item: {other: value / math.sqrt(users[item] * users[other]) for other, value in row.items()}
        for item, row in shared.items()
    }


def best(row: dict[int, float]) -> int:
    """The lowest of the most similar items."""
    highest = max(row.values())
    return min(item for item, value in row.items() if value > highest - 1e-12)


def neighbours(part: Similar, num_items: int) -> list[int]:
    return part.most_similar(torch.arange(num_items + 1), EPOCH_SEEDS).tolist()


def table(vectors: list[list[float]] | Tensor) -> IdItems:
    vectors = torch.as_tensor(vectors)
    items = IdItems(vectors.shape[1])
    items.bind(Context(len(vectors)))
    items.weight.data[1:] = vectors
    return items


@pytest.mark.parametrize("iuf", [True, False])
@pytest.mark.parametrize("pairs", [50, 2**22])
def test_check_10_equals_dictionaries(iuf: bool, pairs: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("recsys.statistics.cooccurrence.PAIRS", pairs)  # one item a block, and all at once
    histories, num_items = random_histories(80, 40), 40
    part = ItemCF(iuf)
    part.bind(context_of(histories, num_items))
    expected = slow([history[:-2] for history in histories], iuf)
    found = neighbours(part, num_items)
    assert [found[item] for item in expected] == [best(row) for row in expected.values()]
    values = [value for row in expected.values() for value in row.values()]
    scaled = {item: (max(row.values()) - min(values)) / (max(values) - min(values)) for item, row in expected.items()}
    assert part.score[list(scaled)].tolist() == pytest.approx(list(scaled.values()), abs=1e-6)
    assert part.alone == num_items - len(expected)
    assert found[0] == 0


def test_check_10_no_held_out_pair_contributes() -> None:
    histories = random_histories(80, 40)
    moved = [[*history[:-2], 41 + place % 9, 50] for place, history in enumerate(histories)]  # other held-out items
    parts = []
    for held_out in (histories, moved):
        part = ItemCF()
        part.bind(context_of(held_out, 50))
        parts.append(part)
    assert torch.equal(parts[0].neighbour, parts[1].neighbour)
    assert torch.equal(parts[0].score, parts[1].score)
    assert parts[1].score[41:].tolist() == [-1.0] * 10


def test_equal_similarities_go_to_the_lower_row() -> None:
    part = ItemCF()
    part.bind(context_of([[3, 2, 1, 9, 9], [4, 2, 9, 9], [4, 1, 9, 9]], 9))
    assert neighbours(part, 9)[1:5] == [3, 3, 1, 1]  # 3 and 4 are as near to 1 as to 2


def test_items_alone_get_another_item_once_by_the_seed() -> None:
    histories = [[1, 2, 3, 4], [5, 6, 7], [2, 1, 8, 8]]  # 3, 4, 6, 7, 8 occur in no training row, 5 alone
    found = []
    for seed in (0, 0, 1):
        part = ItemCF()
        part.bind(context_of(histories, 500, seed))
        found.append(neighbours(part, 500))
        assert part.alone == 498
    assert found[0] == found[1] != found[2]
    assert found[0][1:3] == [2, 1]
    assert all(1 <= other <= 500 and other != item for item, other in enumerate(found[0]) if item)


def test_a_catalogue_of_one_item() -> None:
    part = ItemCF()
    part.bind(context_of([[1, 1, 1]], 1))
    assert neighbours(part, 1) == [0, 1]
    assert nearest(table([[1.0, 2.0]]))[0].tolist() == [0, 1]


def test_a_large_catalogue_is_not_made_dense() -> None:
    num_items = 300_000  # 720 GB as a square of float64
    rng = np.random.default_rng(0)
    histories = [rng.integers(1, num_items + 1, 12).tolist() for _ in range(500)]
    part = ItemCF()
    part.bind(context_of(histories, num_items))
    expected = slow([history[:-2] for history in histories[:20]])
    found = neighbours(part, num_items)
    assert sum(found[item] == best(row) for item, row in expected.items()) > 0.9 * len(expected)


def test_counted_once_per_training_set_and_not_saved(monkeypatch: pytest.MonkeyPatch) -> None:
    counts = []
    count = module._count
    monkeypatch.setattr(module, "_count", lambda *arguments: counts.append(1) or count(*arguments))
    context = toy_context()
    part = OneOf([Substitute(0.1, ItemCF()), Insert(0.4, ItemCF())])
    part.bind(context)
    assert len(counts) == 1
    assert not part.state_dict()


def test_what_needs_training_rows_says_so() -> None:
    for part in (ItemCF(), Hybrid(ItemCF(), EmbeddingSimilar())):
        part.bind(Context(9))
        with pytest.raises(ValueError, match="training"):
            part.most_similar(torch.tensor([1]), EPOCH_SEEDS)
    with pytest.raises(ValueError, match="refresh"):
        EmbeddingSimilar().most_similar(torch.tensor([0]), EPOCH_SEEDS)
    with pytest.raises(ValueError, match="warm_up"):
        Hybrid(ItemCF(), EmbeddingSimilar(), -1)


@pytest.mark.parametrize("held", [1, 70, 161, 4096])
def test_nearest_vectors_equal_the_full_product(held: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PRODUCTS", held)
    vectors = torch.randn(23, 4, generator=torch.Generator().manual_seed(0))
    neighbour, score = nearest(table(vectors))
    products, own = vectors @ vectors.T, torch.eye(23, dtype=torch.bool)
    others = products.masked_fill(own, -torch.inf)
    assert neighbour.tolist() == [0, *(others.argmax(1) + 1).tolist()]
    low, high = products.masked_fill(own, torch.inf).min(), others.max()
    torch.testing.assert_close(score[1:], (others.amax(1) - low) / (high - low), rtol=1e-5, atol=1e-6)


def test_vectors_are_compared_once_an_epoch() -> None:
    part, items = EmbeddingSimilar(), table([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0], [0.1, 1.0]])
    part.bind(Context(4))
    part.refresh(items, 0)
    assert neighbours(part, 4) == [0, 2, 1, 4, 3]
    items.weight.data[1:] = items.weight.data[[3, 2, 1, 4]]
    part.refresh(items, 0)
    assert neighbours(part, 4) == [0, 2, 1, 4, 3]
    part.refresh(items, 1)
    assert neighbours(part, 4) == [0, 4, 3, 2, 1]


def test_a_run_resumed_within_an_epoch_goes_on_with_its_table() -> None:
    part, items = EmbeddingSimilar(), table(torch.randn(12, 3, generator=torch.Generator().manual_seed(0)))
    part.bind(Context(12))
    part.refresh(items, 4)
    again = build(describe(part))
    again.bind(Context(12))
    again.load_state_dict(part.state_dict())
    items.weight.data.neg_()
    items.weight.data[1:7] *= 3
    again.refresh(items, 4)
    assert neighbours(again, 12) == neighbours(part, 12)
    again.refresh(items, 5)
    assert neighbours(again, 12) == nearest(items)[0].tolist() != neighbours(part, 12)


def test_hybrid_takes_the_higher_score_after_the_warm_up() -> None:
    histories = random_histories(60, 20)
    part = Hybrid(ItemCF(), EmbeddingSimilar(), warm_up=2)
    part.bind(context_of(histories, 20))
    items = table(torch.randn(20, 4, generator=torch.Generator().manual_seed(1)))
    counted = part.cf.neighbour.tolist()
    for epoch in (0, 1):
        part.refresh(items, epoch)
        assert neighbours(part, 20) == counted
        assert int(part.model.epoch) == -1
    part.refresh(items, 2)
    neighbour, score = nearest(items)
    expected = [int(neighbour[item]) if score[item] > part.cf.score[item] else counted[item] for item in range(21)]
    assert neighbours(part, 20) == expected
    assert expected != counted and expected != neighbour.tolist()


@pytest.mark.parametrize("warm_up", [0, 1, 5])
def test_c3_vectors_are_asked_from_the_epoch_of_the_warm_up_on(warm_up: int) -> None:
    """The released code begins an epoch later."""
    histories = random_histories(40, 12)
    part = Hybrid(ItemCF(), EmbeddingSimilar(), warm_up=warm_up)
    part.bind(context_of(histories, 12))
    items, begun = table(torch.randn(12, 4, generator=torch.Generator().manual_seed(1))), []
    for epoch in range(7):
        part.refresh(items, epoch)
        begun.append(int(part.model.epoch) == epoch)
    assert begun == [epoch >= warm_up for epoch in range(7)]


def test_nested_parts_are_described_as_nested() -> None:
    part: Any = Substitute(0.1, Hybrid(ItemCF(False), EmbeddingSimilar(), 7))
    again = build(describe(part))
    assert again.similar.warm_up == 7 and again.similar.cf.inverse_user_frequency is False


def test_a_hybrid_that_nobody_tells_the_epoch_says_so() -> None:
    part = Substitute(0.5, Hybrid(ItemCF(), EmbeddingSimilar(), 0))
    model = rs.Recommender(IdItems(8), rs.SASRec(8, 1, 1, 0.0, 12), rs.FullSoftmax(), augmentations=[part])
    with pytest.raises(ValueError, match="refresh"):
        rs.fit(model, toy_split(), epochs=1, batch_size=16, progress=False)
