"""Candidates and denied items given for each user: by brute force over the lists, ties and exclusion included."""

from __future__ import annotations

import importlib.util
import warnings
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import recsys as rs
from recsys.data.prepared import Prepared
from recsys.data.split import Split
from recsys.errors import DataError, DataWarning
from recsys.eval.compare import compare
from recsys.eval.report import Report
from recsys.ids.vocabulary import Vocabulary

ITEMS = np.array([f"i{row}" for row in range(1, 13)], object)
USERS = np.array([f"u{row}" for row in range(6)], object)


class Scripted:
    num_items, max_length, needs = 12, None, frozenset[str]()

    def __init__(self, table: np.ndarray) -> None:
        import torch

        self.table = torch.as_tensor(table, dtype=torch.float32)

    def score_safely(self, batch: Any) -> Any:
        return self.table[batch.users]


def split_of(histories: list[list[int]], targets: list[list[int]]) -> Split:
    events = [[*h, *t] for h, t in zip(histories, targets, strict=True)]
    offsets = np.concatenate([[0], np.cumsum([len(one) for one in events])]).astype(np.int64)
    stop = offsets[:-1] + [len(one) for one in histories]
    prepared = Prepared(np.array([i for one in events for i in one], np.int32), offsets, 12, order="file")
    return Split(prepared, stop, stop, Vocabulary(ITEMS, 1), Vocabulary(USERS, 0), {"name": "drawn"})


def case(seed: int, levels: int | None = 4) -> tuple[Scripted, Split, list[list[str]]]:
    draw = np.random.default_rng(seed)
    histories = [draw.integers(1, 13, draw.integers(0, 5)).tolist() for _ in range(6)]
    targets = [(draw.choice(12, draw.integers(1, 4), replace=False) + 1).tolist() for _ in range(6)]
    scores = draw.normal(size=(6, 12)) if levels is None else draw.integers(0, levels, (6, 12)).astype(float)
    scores[draw.random((6, 12)) < 0.1] = -np.inf
    lists = [[f"i{row}" for row in draw.integers(1, 13, draw.integers(1, 8))] for _ in range(6)]
    return Scripted(scores), split_of(histories, targets), lists


def expected(
    model: Scripted, split: Split, lists: list[list[str]], exclude: str, denied: list[set[str]], k: int
) -> Any:
    """Per user: number of candidates, expected recall@k, and the list with equal scores by row; by hand."""
    found = []
    for user in range(6):
        part = split.test
        history = set(part.history(np.array([user]))[1].tolist())
        targets = set(part.targets(np.array([user]))[1].tolist())
        shown = {int(one[1:]) for one in lists[user]} | targets
        shown -= {int(one[1:]) for one in denied[user]}
        shown -= {"history": history, "none": set(), "history-except-targets": history - targets}[exclude]
        scores = {row: float(model.table[user, row - 1]) for row in shown}
        ranked = sorted((row for row in shown if scores[row] > -np.inf), key=lambda row: (-scores[row], row))
        hits = 0.0
        for target in targets & set(ranked):
            above = sum(scores[row] > scores[target] for row in ranked)
            size = sum(scores[row] == scores[target] for row in ranked)
            hits += min(max(k - above, 0), size) / size
        found.append((len(ranked), hits / len(targets), ranked[:k]))
    return found


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    exclude=st.sampled_from(["history", "none", "history-except-targets"]),
    levels=st.sampled_from([None, 3]),
    k=st.integers(1, 12),
    form=st.sampled_from(["lists", "mapping", "table", "array"]),
    deny=st.sampled_from([None, "all", "each"]),
    memory=st.sampled_from(["512MB", 4 * 12 * 2 + 2048 * 5 + 16 * 12]),
)
def test_k12_lists_per_user_are_ranked_exactly(seed, exclude, levels, k, form, deny, memory):
    model, split, lists = case(seed, levels)
    draw = np.random.default_rng(seed + 1)
    denied = [{f"i{row}" for row in draw.integers(1, 13, 3)} for _ in range(6)]
    if deny != "each":
        denied = [denied[0] if deny == "all" else set()] * 6
    given_as: Any = lists
    order = draw.permutation(6)
    if form == "mapping":
        given_as = {USERS[user]: lists[user] for user in order}
    elif form == "table":
        rows = [(USERS[user], item) for user in order for item in lists[user]]
        given_as = pl.DataFrame(rows, schema=["user", "item"], orient="row")
    elif form == "array":
        given_as = [np.array(one, object) for one in lists]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DataWarning)
        report = rs.evaluate(
            model,  # type: ignore[arg-type]
            split.test,
            k=k,
            metrics=["recall", "coverage"],
            exclude=exclude,
            candidates=given_as,
            deny={None: None, "all": sorted(denied[0]), "each": [sorted(one) for one in denied]}[deny],
            progress=False,
            memory=memory,
        )
    wanted = expected(model, split, lists, exclude, denied, k)
    assert report.columns["candidates"].tolist() == [one[0] for one in wanted]
    np.testing.assert_allclose(report.columns[f"recall@{k}"], [one[1] for one in wanted], atol=1e-12)
    targets = [{f"i{row}" for row in split.test.targets(np.array([user]))[1]} for user in range(6)]
    assert report.meta["targets_added"] == sum(len(own - set(one)) for own, one in zip(targets, lists, strict=True))
    some = {int(one[1:]) for own, one in zip(targets, lists, strict=True) for one in own | set(one)}
    some -= {int(one[1:]) for one in denied[0]} if deny == "all" else set()
    shown = np.zeros(13, int)
    for _, _, best in wanted:
        shown[best] += 1
    assert report.exposure[k].tolist() == shown[sorted(some)].tolist()


def test_k12_a_the_example() -> None:
    model = Scripted(np.arange(12.0)[None].repeat(6, 0))
    split = split_of([[1], [2], [3], [4], [5], [6]], [[8], [7], [9], [8], [7], [12]])
    lists = [["i2", "i8"], ["i11", "i7"], ["i2"], ["i12", "i11", "i10"], ["i1"], ["i2"]]
    report = rs.evaluate(model, split.test, k=2, candidates=lists, progress=False)  # type: ignore[arg-type]
    assert report.columns["candidates"].tolist() == [2, 2, 2, 4, 2, 2]
    assert report.per_user("ndcg@2").tolist() == pytest.approx([1, 1 / np.log2(3), 1, 0, 1, 1])
    assert report.meta["targets_added"] == 4 and "4 targets added" in report.header()
    assert "full ranking" not in report.header()


def test_k12_users_without_candidates_are_left_out_and_counted() -> None:
    model, split, lists = case(3)
    for some in ([*lists[:4], [], []], {USERS[user]: lists[user] for user in range(4)}):
        with pytest.warns(DataWarning, match="2 of 6 users"):
            report = rs.evaluate(model, split.test, candidates=some, exclude="none", progress=False)  # type: ignore[arg-type]
        assert report.columns["user"].tolist() == [0, 1, 2, 3] and report.meta["users_without_targets"] == 2


def test_k12_lists_may_come_one_by_one() -> None:
    model, split, lists = case(3)
    settings: dict[str, Any] = {"exclude": "none", "progress": False}
    plain = rs.evaluate(model, split.test, candidates=lists, deny=lists[:1] * 6, **settings)  # type: ignore[arg-type]
    given = {"candidates": (one for one in lists), "deny": iter(lists[:1] * 6)}
    assert rs.evaluate(model, split.test, **given, **settings).means() == plain.means()  # type: ignore[arg-type]


def test_k12_unknown_ids_are_counted() -> None:
    model, split, lists = case(3)
    plain = rs.evaluate(model, split.test, candidates=lists, exclude="none", progress=False)  # type: ignore[arg-type]
    some = [[*one, "gone", "late"] for one in lists]
    with pytest.warns(DataWarning, match="12 listed candidates"):
        report = rs.evaluate(model, split.test, candidates=some, exclude="none", progress=False)  # type: ignore[arg-type]
    assert report.means() == plain.means() and "12 listed candidates" in report.header()


def test_k12_shares_and_saved_reports_keep_the_candidates(tmp_path: Any) -> None:
    model, split, lists = case(5)
    settings: dict[str, Any] = {"candidates": lists, "exclude": "none", "progress": False}
    whole = rs.evaluate(model, split.test, **settings)  # type: ignore[arg-type]
    parts = [rs.evaluate(model, split.test, rank=rank, world_size=2, **settings) for rank in range(2)]  # type: ignore[arg-type]
    merged = Report.merge(parts)
    assert merged.meta == whole.meta and merged.means() == whole.means()
    whole.save(tmp_path)
    assert compare(Report.load(tmp_path), whole).overall[0].difference == 0
    other = rs.evaluate(model, split.test, **settings | {"candidates": lists[::-1]})  # type: ignore[arg-type]
    with pytest.raises(DataError, match="same thing"):
        compare(whole, other)


@pytest.mark.parametrize(
    ("wrong", "error", "word"),
    [
        ([["i1"]], ValueError, "1 lists"),
        ([["i1"], "i2", ["i3"], ["i1"], ["i1"], ["i1"]], TypeError, "not a list"),
        ({"u0": "i1"}, TypeError, "i1"),
        ({"who": ["i1"]}, DataError, "who"),
        ([["a"]] * 6, DataError, "catalogue"),
        ([[]] * 6, DataError, "no item"),
        (pl.DataFrame({"person": ["u0"], "item": ["i1"]}), ValueError, "person"),
    ],
)
def test_k12_what_cannot_be_read_says_what_was_expected(wrong: Any, error: type[Exception], word: str) -> None:
    model, split, _ = case(0)
    with pytest.raises(error, match=word):
        rs.evaluate(model, split.test, candidates=wrong, progress=False)  # type: ignore[arg-type]


@pytest.mark.skipif(importlib.util.find_spec("pandas") is None, reason="pandas is not installed")
def test_k12_a_pandas_table_is_read() -> None:
    import pandas as pd

    model, split, lists = case(7)
    rows = [(USERS[user], item) for user in range(6) for item in lists[user]]
    table = pd.DataFrame(rows, columns=["user", "item"])
    one, two = (
        rs.evaluate(model, split.test, candidates=some, exclude="none", progress=False)  # type: ignore[arg-type]
        for some in (table, lists)
    )
    assert one.means() == two.means()


def test_k13_a_denied_target_is_a_miss_and_unknown_ids_are_told() -> None:
    model = Scripted(np.arange(12.0)[None].repeat(6, 0))
    split = split_of([[1]] * 6, [[12], [11], [12], [12], [10], [9]])
    with pytest.warns(DataWarning, match="1 of 3 denied"):
        report = rs.evaluate(model, split.test, k=1, deny=["i12", "i1", "gone"], progress=False)  # type: ignore[arg-type]
    assert report.per_user("hr@1").tolist() == [0, 1, 0, 0, 0, 0]
    assert report.columns["candidates"].tolist() == [10] * 6
    assert report.meta["unreachable_targets"] == 3 and "3 targets can never be shown" in report.header()
    assert "denied" in report.header()
    plain = rs.evaluate(model, split.test, k=1, progress=False)  # type: ignore[arg-type]
    with pytest.raises(DataError, match="same thing"):
        compare(report, plain)
    each = rs.evaluate(model, split.test, k=1, deny={"u0": ["i12"]}, progress=False)  # type: ignore[arg-type]
    assert each.per_user("hr@1").tolist() == [0, 0, 1, 1, 0, 0]
    with pytest.raises(TypeError, match="i12"):
        rs.evaluate(model, split.test, deny="i12", progress=False)  # type: ignore[arg-type]


def test_k13_denied_lists_may_leave_users_out_as_those_of_recommend_do() -> None:
    model = Scripted(np.arange(12.0)[None].repeat(6, 0))
    split = split_of([[1]] * 6, [[12], [11], [12], [12], [10], [9]])
    for some in ([["i12"], None, None, (), np.array(["i12"], object), None], {"u0": ["i12"], "u4": ["i12"]}):
        each = rs.evaluate(model, split.test, k=1, deny=some, progress=False)
        assert each.per_user("hr@1").tolist() == [0, 0, 1, 1, 0, 0]
    with pytest.raises(ValueError, match="6 expected, 2 found"):
        rs.evaluate(model, split.test, k=1, deny=[["i12"], None], progress=False)
    nothing: list[Any] = [[], (), iter([])]
    plain = rs.evaluate(model, split.test, k=1, progress=False)
    assert [rs.evaluate(model, split.test, k=1, deny=one, progress=False).means() for one in nothing] == [
        plain.means()
    ] * 3
