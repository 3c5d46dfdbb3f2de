"""The split for cold items, by brute force; and a toy in which only texts know the cold items."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from recsys.data.cold import _draw, cold_items
from recsys.data.prepared import Prepared
from recsys.data.split import Split
from recsys.data.splitters import LeaveLast
from recsys.encoders.sasrec import SASRec
from recsys.errors import DataError
from recsys.eval.evaluate import evaluate
from recsys.ids.vectors import Vectors
from recsys.ids.vocabulary import Vocabulary
from recsys.items.ids import IdItems
from recsys.items.sums import SumItems
from recsys.items.text import TextItems
from recsys.objectives.softmax import FullSoftmax
from recsys.recommenders.composed import Recommender
from recsys.testing import toy_split
from recsys.train.fit import fit


def split_of(prepared: Prepared) -> Split:
    items = np.array([f"i{row}" for row in range(1, prepared.num_items + 1)], object)
    users = Vocabulary(np.arange(prepared.num_users) + 100, 0)
    return Split.of(prepared, LeaveLast(), Vocabulary(items, 1), users, name="drawn", data_hash="abc")


def cold_rows(before: Split, made: Split) -> set[int]:
    """The chosen items: those of the tests, and those that vanished or are seen by nobody any more."""
    seen = set(made.prepared.items[np.concatenate([_events(made.train), _history(made)])].tolist())
    return set(before.prepared.items.tolist()) - seen


def _events(part: Any) -> np.ndarray:
    ranges = zip(part.start, part.stop, strict=True)
    return np.concatenate([np.arange(start, stop) for start, stop in ranges])


def _history(split: Split) -> np.ndarray:
    part = split.test
    ranges = zip(part.history_start, part.target_start, strict=True)
    return np.concatenate([np.arange(start, stop) for start, stop in ranges])


def reference(history: list[int], cold: set[int]) -> tuple[list[int], list[int], list[int]]:
    """(training, validation, test) of one user, slowly."""
    warm: list[int] = []
    test: list[int] = []
    for item in history:
        if item in cold and warm:
            test = [item]
            break
        if item not in cold:
            warm.append(item)
    return (warm[:-1], warm[-1:], test) if len(warm) >= 2 else (warm, [], test)


@pytest.mark.parametrize("seed", range(6))
def test_the_parts_are_those_of_a_slow_reading(draw: Callable[..., Prepared], seed: int) -> None:
    before = split_of(draw(seed, users=40, num_items=12))
    made = cold_items(before, count=3, seed=seed)
    again = cold_items(before, count=3, seed=seed)
    np.testing.assert_array_equal(made.prepared.items, again.prepared.items)
    cold = set(np.flatnonzero(_draw(before.prepared, 0.05, 3, seed)).tolist())
    assert len(cold) == 3
    for user in range(before.num_users):
        history = before.prepared.items[before.prepared.offsets[user] : before.prepared.offsets[user + 1]].tolist()
        start, end = made.prepared.offsets[user : user + 2]
        items = made.prepared.items
        cuts = (start, made.train_stop[user], made.valid_stop[user], end)
        found = tuple(items[a:b].tolist() for a, b in itertools.pairwise(cuts))
        assert found == reference(history, cold)
        assert not cold & set(items[start : made.valid_stop[user]].tolist())
    trained = made.train.item_counts()
    assert not trained[sorted(cold)].any()
    assert set(made.prepared.items[made.test.target_start].tolist()) <= cold
    assert cold <= cold_rows(before, made)
    before_weights, made_weights = before.prepared.weights, made.prepared.weights
    assert before_weights is not None and made_weights is not None and len(made_weights) == made.prepared.num_events
    assert set(made_weights.tolist()) <= set(before_weights.tolist())


def test_raw_ids_protocol_and_audit_travel_with_it(tmp_path: Path) -> None:
    before = toy_split(60)
    made = cold_items(before, share=0.1, seed=4)
    assert made.items is before.items and made.users is before.users and made.item_text is before.item_text
    assert made.protocol["name"] == "cold-items" and made.protocol["items"] == 3 and made.protocol["seed"] == 4
    assert made.audit is not None and not made.audit.leaks
    told = made.audit["held-out items"]
    assert told.numbers["items"] == 3 and told.numbers["users"] == len(made.test) and "held out" in str(made.audit)
    assert made.prepared.num_events + told.numbers["events"] == before.prepared.num_events
    made.save(tmp_path / "split")
    loaded = Split.load(tmp_path / "split", verify=True)
    np.testing.assert_array_equal(loaded.prepared.items, made.prepared.items)
    assert loaded.protocol == made.protocol


def test_users_who_are_not_tested_lose_their_cold_events_only() -> None:
    before = toy_split(80)
    everybody, some = cold_items(before, count=6, seed=2), cold_items(before, count=6, seed=2, users=0.3)
    assert 0 < len(some.test) < len(everybody.test) and set(some.test.users) < set(everybody.test.users)
    assert some.train.num_events > everybody.train.num_events
    cold = _draw(before.prepared, 0.05, 6, 2)
    for user in set(range(80)) - set(some.test.users.tolist()):
        start, end = before.prepared.offsets[user : user + 2]
        history = before.prepared.items[start:end]
        start, end = some.prepared.offsets[user : user + 2]
        np.testing.assert_array_equal(some.prepared.items[start:end], history[~cold[history]])
    for users in (0.0, 1.1):
        with pytest.raises(ValueError, match="users"):
            cold_items(before, users=users)


def test_seeds_draw_different_items() -> None:
    before = toy_split(60)
    parts = [cold_items(before, count=4, seed=seed).train.item_counts() for seed in range(3)]
    assert len({counts.tobytes() for counts in parts}) == 3


@pytest.mark.parametrize("share", [0.0, 1.0, -0.1, 1.5, float("nan")])
def test_a_share_outside_of_0_and_1_is_refused(share: float) -> None:
    with pytest.raises(ValueError, match="share"):
        cold_items(toy_split(), share=share)


def test_counts_order_and_users_are_checked(prepare: Callable[..., Prepared]) -> None:
    for count in (0, 30, 31):
        with pytest.raises(ValueError, match="can be cold"):
            cold_items(toy_split(), count=count)
    unordered = split_of(prepare([[1, 2, 3]] * 3, times=[[1, 2, 3]] * 3))
    object.__setattr__(unordered.prepared, "order", "none")
    with pytest.raises(DataError, match="order"):
        cold_items(unordered, count=1)
    lonely = split_of(prepare([[1, 1, 1], [2, 2, 2]], times=[[1, 2, 3]] * 2))
    with pytest.raises(DataError, match="no user"):
        cold_items(lonely, count=1)


def topics(users: int = 240, per: int = 15, groups: int = 20, longest: int = 9) -> tuple[Split, Vectors]:
    """Users who walk from topic to topic in a ring; the text of an item is its topic, with noise."""
    rng = np.random.default_rng(0)
    lengths = rng.integers(5, longest + 1, users)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    place = np.arange(lengths.sum()) - np.repeat(offsets[:-1], lengths)
    topic = (np.repeat(rng.integers(0, groups, users), lengths) + place) % groups
    items = (topic * per + rng.integers(0, per, len(topic)) + 1).astype(np.int32)
    prepared = Prepared(items, offsets, groups * per, times=place * 60_000)
    ids = np.array([f"i{row}" for row in range(1, groups * per + 1)], object)
    text = np.eye(groups)[np.arange(groups * per) // per] + 0.05 * rng.normal(size=(groups * per, groups))
    split = Split.of(prepared, LeaveLast(), Vocabulary(ids, 1), Vocabulary(np.arange(users), 0), name="topics")
    return split, Vectors.of(ids, text)


def test_texts_find_cold_items_and_ids_do_not(tmp_path: Path) -> None:
    split, vectors = topics()
    folder = str(vectors.save(tmp_path / "vectors").path)
    made = cold_items(split, share=0.4, seed=1)
    found = {}
    tables = {
        "ids": IdItems(16),
        "text": TextItems(16, folder),
        "ids+text": SumItems([IdItems(16), TextItems(16, folder)]),
    }
    for name, items in tables.items():
        model = Recommender(items, SASRec(16, num_layers=1, dropout=0.0, max_length=8), FullSoftmax())
        fit(model, made, epochs=30, batch_size=64, learning_rate=1e-2, progress=False, patience=30)
        report = evaluate(model, made.test, candidates="cold", progress=False)
        chance = 10 / report.meta["num_candidates"]
        found[name] = report.mean("recall@10") / chance
    assert found["text"] > 5, found
    assert found["ids+text"] > 5, found
    assert 0.3 < found["ids"] < 2, found
