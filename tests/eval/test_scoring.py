"""A model and a part are matched by raw ids, damaged parts are refused, and a batch of one rounds as any other."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

import recsys as rs
from recsys.data.prepared import Prepared
from recsys.data.split import HeldOut, Split
from recsys.data.splitters import LeaveLast
from recsys.errors import DataError, DataWarning
from recsys.eval.sampled import evaluate_sampled
from recsys.eval.scoring import require_same_items
from recsys.eval.unbiased import evaluate_uniform, unbiased
from recsys.ids.vocabulary import Vocabulary
from recsys.protocols import Context

CYCLE = [7, 4, 9, 0, 11, 2, 1, 3, 5, 10, 8, 6]


def walks(item_ids: list[str], user_prefix: str = "u", users: int = 60, shuffle: int | None = None) -> Split:
    """Walks along a cycle of 12 items, split leave-last; ``shuffle`` numbers the items and users otherwise."""
    draw, rows = np.random.default_rng(4), []
    for user in range(users):
        item = int(draw.integers(12))
        for _ in range(7):
            rows.append((user, item))
            item = CYCLE[item]
    rng = np.random.default_rng(shuffle)
    item_row = np.arange(12) if shuffle is None else rng.permutation(12)
    user_row = np.arange(users) if shuffle is None else rng.permutation(users)
    events = np.zeros((users, 7), np.int32)
    for at, (user, item) in enumerate(rows):
        events[user_row[user], at % 7] = item_row[item] + 1
    items, people = np.empty(12, object), np.empty(users, object)
    items[item_row], people[user_row] = item_ids, [f"{user_prefix}{user:02d}" for user in range(users)]
    prepared = Prepared(events.ravel(), np.arange(0, 7 * users + 1, 7, dtype=np.int64), 12, order="file")
    return Split.of(prepared, LeaveLast(), Vocabulary(items, 1), Vocabulary(people, 0))


IDS = [f"p{at:02d}" for at in range(12)]


@pytest.fixture(scope="module")
def markov() -> tuple[Any, Split]:
    model, split = rs.Markov(), walks(IDS)
    rs.fit(model, split, progress=False)
    return model, split


def test_k1_d_another_vocabulary_of_the_same_size_is_refused(markov: tuple[Any, Split]) -> None:
    model, split = markov
    assert rs.evaluate(model, split.test, metrics=["hr@1"], exclude="none", progress=False).mean("hr@1") == 1.0
    other = walks(["zz", *IDS[1:]])
    for evaluate in (rs.evaluate, evaluate_sampled):
        with pytest.raises(DataError, match="zz") as caught:
            evaluate(model, other.test)  # type: ignore[operator]
        assert "p00" in str(caught.value)
    with pytest.raises(DataError, match="zz"):
        evaluate_uniform(model, other, ["u00"], ["zz"], [5])


@pytest.mark.parametrize("shuffle", range(3))
def test_b1_the_same_ids_in_another_order_give_the_same_numbers(markov: tuple[Any, Split], shuffle: int) -> None:
    model, split = markov
    other = walks(IDS, shuffle=shuffle)
    settings: dict[str, Any] = {"k": (1, 3, 5), "exclude": "none", "progress": False}
    for more in ({}, {"candidates": IDS[:7]}, {"deny": IDS[3:5]}, {"candidates": {"u00": IDS, "u07": IDS[:4]}}):
        one, two = (rs.evaluate(model, part.test, **settings, **more) for part in (split, other))
        for user in one.columns["user_id"].tolist():
            at, there = (report.columns["user_id"].tolist().index(user) for report in (one, two))
            for column in (*one.metrics, "candidates", "target_popularity", "tied_targets", "unreachable_targets"):
                assert one.columns[column][at] == pytest.approx(two.columns[column][there], abs=1e-12), column
        assert one.aggregates == two.aggregates
        shown = [
            dict(zip(part.items.raw(_universe(part, more)).tolist(), report.exposure[3].tolist(), strict=True))
            for part, report in ((split, one), (other, two))
        ]
        assert shown[0] == shown[1]


def _universe(split: Split, more: dict[str, Any]) -> np.ndarray:
    """Rows that can stand in a list, by hand."""
    ids = set(more.get("candidates", IDS)) - set(more.get("deny", ()))
    if isinstance(more.get("candidates"), dict):
        ids = set(IDS)  # u00 lists all
    return np.sort(split.items.rows(sorted(ids)))


def test_b1_a_batch_in_other_rows_reaches_the_model_in_its_own(markov: tuple[Any, Split]) -> None:
    model, split = markov
    other = walks(IDS, shuffle=5)
    theta = {f"p{at:02d}": 0.1 + at / 20 for at in range(12)}
    values = []
    for part in (split, other):
        report = rs.evaluate(model, part.test, k=3, metrics=["ndcg"], exclude="none", progress=False)
        table = np.array([1.0, *(theta[one] for one in part.items.ids.tolist())])
        values.append(unbiased(report, part.test, table).snips["ndcg@3"].mean)
        rated = evaluate_uniform(model, part, ["u03"] * 3, IDS[:3], [5, 1, 2])
        values.append(rated.mean("dcg_old@1"))
    assert values[:2] == pytest.approx(values[2:])
    with pytest.raises(DataError, match="others"):
        unbiased(report, walks(IDS, shuffle=6).test, np.ones(13))
    with pytest.raises(DataError, match="order"):
        require_same_items(model, other)
    require_same_items(model, walks(IDS))


def test_user_rows_of_other_users_are_unknown_to_the_model(markov: tuple[Any, Split]) -> None:
    _, split = markov
    asked: list[list[int]] = []

    class Spy(rs.Markov):
        def score(self, batch: Any) -> torch.Tensor:
            asked.append(batch.users.tolist())
            return super().score(batch)

    spy = Spy()
    rs.fit(spy, split, progress=False)
    spy.cut = split.cut
    rs.evaluate(spy, split.test, progress=False, exclude="none")
    spy.cut = replace(split.cut)
    with pytest.warns(DataWarning, match="trained"):
        rs.evaluate(spy, walks(IDS, "v").test, progress=False, exclude="none")
    assert asked[0][:3] == [0, 1, 2] and set(asked[-1]) == {-1}


def test_raw_ids_of_users_come_from_the_split(markov: tuple[Any, Split]) -> None:
    model, split = markov
    report = rs.evaluate(model, split.test, k=1, exclude="none", progress=False)
    assert report.columns["user_id"].tolist() == split.users.raw(report.columns["user"]).tolist()


def test_a_bundle_and_a_split_say_what_to_pass(markov: tuple[Any, Split]) -> None:
    model, split = markov

    class Bundle:
        def __init__(self) -> None:
            self.model = model

    with pytest.raises(TypeError, match=r"\.model"):
        rs.evaluate(Bundle(), split.test)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="part"):
        rs.evaluate(model, split)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("history_start", -1), ("target_start", 10**6), ("target_stop", 10**6), ("target_start", -5),
        ("users", 60), ("users", -1),
    ],
)  # fmt: skip
def test_hostile_9_ranges_that_are_not_the_users_own_are_refused(
    markov: tuple[Any, Split], field: str, value: int
) -> None:
    model, split = markov
    wrong = np.array(getattr(split.test, field))
    wrong[7] = value
    part: HeldOut = replace(split.test, **{field: wrong})
    for evaluate in (rs.evaluate, evaluate_sampled):
        with pytest.raises(DataError, match="damaged"):
            evaluate(model, part)  # type: ignore[operator]


@pytest.mark.parametrize("row", [0, -3, 13, 2**30])
def test_hostile_9_rows_that_are_no_items_are_refused(markov: tuple[Any, Split], row: int) -> None:
    model, split = markov
    items = split.prepared.items.copy()
    items[40] = row
    broken = replace(split.test, prepared=replace(split.prepared, items=items))
    with pytest.raises(DataError, match=r"1\.\.12"):
        rs.evaluate(model, broken)


def test_index_f5_equal_items_stay_equal_in_a_batch_of_one(part_of: Any) -> None:
    users = 40
    part = part_of([[1 + user % 35, 2 + user % 30] for user in range(users)], [[37]] * users, 37)
    ids = np.empty(37, object)
    ids[:] = [f"i{at}" for at in range(37)]
    model = rs.Recommender(
        items=rs.IdItems(16), encoder=rs.SASRec(dim=16, num_layers=1, num_heads=1), objective=rs.FullSoftmax()
    )
    model.bind(Context(37, Vocabulary(ids, 1)))
    with torch.no_grad():
        model.items.weight[37] = model.items.weight[1]
    together = rs.evaluate(model, part, k=5, exclude="none", progress=False)
    alone = [
        rs.evaluate(model, part.subset(np.array([user])), k=5, exclude="none", progress=False) for user in range(40)
    ]
    assert together.columns["tied_targets"].tolist() == [1] * users
    assert [report.columns["tied_targets"][0] for report in alone] == [1] * users
