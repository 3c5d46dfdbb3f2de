"""IPS, SNIPS and uniform test sets against brute force, by the numbers of the Rel-MF specification's checks."""

from __future__ import annotations

from itertools import chain, permutations, product
from typing import Any

import numpy as np
import pytest
import torch

from recsys.data.prepared import Prepared
from recsys.data.split import HeldOut, Split
from recsys.data.splitters import LeaveLast
from recsys.errors import DataError
from recsys.eval.evaluate import evaluate
from recsys.eval.unbiased import evaluate_uniform, ranked_metrics, ratio_interval, unbiased
from recsys.ids.vocabulary import Vocabulary
from recsys.weighting.propensity import PopularityPropensity


@pytest.fixture
def case(random_case: Any) -> Any:
    model, part = random_case(multi=False, levels=None)
    return evaluate(model, part, k=[3, 10], progress=False), part


def theta_of(part: Any, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(0.05, 1.0, part.num_items + 1)


def test_check_10_equal_propensities_give_the_plain_metrics(case: Any) -> None:
    report, part = case
    found = unbiased(report, part, np.full(part.num_items + 1, 0.5), clip=0.0)
    for name in report.metrics:
        assert found.snips[name].mean == pytest.approx(report.mean(name))
        assert found.plain[name].mean == pytest.approx(report.mean(name))
        assert found.ips[name].mean == pytest.approx(2 * report.mean(name))
        assert found.plain[name].low == pytest.approx(report.interval(name)[0])
    assert found.effective_users == pytest.approx(report.users)


def test_check_10_the_scale_of_propensities_changes_ips_only(case: Any) -> None:
    report, part = case
    theta = theta_of(part)
    one, other = (unbiased(report, part, theta * scale, clip=0.0) for scale in (1.0, 0.25))
    for name in report.metrics:
        assert other.snips[name].mean == pytest.approx(one.snips[name].mean)
        assert other.snips[name].low == pytest.approx(one.snips[name].low)
        assert other.ips[name].mean == pytest.approx(4 * one.ips[name].mean)
    assert other.effective_users == pytest.approx(one.effective_users)


def test_fidelity_f1_snips_divides_over_users_where_within_one_it_would_be_the_plain_metric(case: Any) -> None:
    report, part = case
    theta = theta_of(part)
    found = unbiased(report, part, theta, clip=0.0)
    for name in report.metrics:
        weights = np.array([1 / theta[part.targets(np.array([at]))[1][0]] for at in report.columns["position"]])
        values = report.columns[name]
        within = np.mean(values * weights / weights)  # one click a user: its propensity cancels
        assert within == pytest.approx(found.plain[name].mean)
        assert found.snips[name].mean == pytest.approx((values * weights).sum() / weights.sum())
        assert found.snips[name].mean != pytest.approx(within)


def test_check_10_by_the_formulas(case: Any) -> None:
    report, part = case
    theta, clip = theta_of(part), 0.2
    found = unbiased(report, part, theta, clip, metrics=["ndcg@10"])
    values, total, weights = [], 0.0, []
    for place, position in enumerate(report.columns["position"]):
        (item,) = part.targets(np.array([position]))[1]
        weight = 1 / max(theta[item], clip)
        values.append(report.per_user("ndcg@10")[place] * weight)
        weights.append(weight)
        total += weight
    assert found.snips["ndcg@10"].mean == pytest.approx(sum(values) / total)
    assert found.ips["ndcg@10"].mean == pytest.approx(np.mean(values))
    assert found.effective_users == pytest.approx(total**2 / np.square(weights).sum())
    assert found.largest == pytest.approx(max(weights))
    assert found.snips["ndcg@10"].low <= found.snips["ndcg@10"].mean <= found.snips["ndcg@10"].high
    assert "SNIPS" in str(found) and list(found.snips) == ["ndcg@10"]


def test_check_10_a_hit_on_a_rare_item_counts_more(scripted: Any, part_of: Any) -> None:
    part = part_of([[3], [3]], [[1], [2]], num_items=3)
    theta = np.array([1.0, 0.1, 1.0, 1.0])
    means = []
    for hit in (0, 1):  # which of the two users is served well; item 1 is the rare one
        scores = np.array([[2.0, 1.0, 0.0], [1.0, 2.0, 0.0]]) if hit == 0 else np.array([[1.0, 2.0, 0.0]] * 2)
        report = evaluate(scripted(scores), part, k=1, metrics=["hr"], exclude="none", progress=False)
        means.append((unbiased(report, part, theta).snips["hr@1"].mean, report.mean("hr@1")))
    only_rare = evaluate(
        scripted(np.array([[2.0, 1.0, 0.0], [2.0, 1.0, 0.0]])),
        part,
        k=1,
        metrics=["hr"],
        exclude="none",
        progress=False,
    )
    assert unbiased(only_rare, part, theta).snips["hr@1"].mean == pytest.approx(10 / 11)
    assert means[1] == (pytest.approx(1 / 11), 0.5) and means[0] == (pytest.approx(1.0), 1.0)


def test_a_learned_propensity_can_be_passed_and_wrong_ones_are_refused(case: Any) -> None:
    report, part = case
    learned = PopularityPropensity()
    learned.theta = torch.tensor(theta_of(part), dtype=torch.float32)
    assert unbiased(report, part, learned).users == report.users
    with pytest.raises(ValueError, match="bind"):
        unbiased(report, part, PopularityPropensity())
    with pytest.raises(ValueError, match=r"\(0, 1\]"):
        unbiased(report, part, theta_of(part) * 2)
    with pytest.raises(DataError, match="others"):
        unbiased(report, part.subset(np.arange(5)), theta_of(part))
    with pytest.raises(ValueError, match="no per-user metric"):
        unbiased(report, part, theta_of(part), metrics=["auc"])


def test_the_linearised_interval_agrees_with_resampling(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    weights = rng.uniform(1, 5, 3000)
    values = rng.binomial(1, 0.3, (3000, 1)) * weights[:, None]
    resampled = ratio_interval(values, weights)
    monkeypatch.setattr("recsys.eval.unbiased.RESAMPLED_USERS", 100)
    np.testing.assert_allclose(ratio_interval(values, weights), resampled, atol=3e-3)


def brute_force(labels: list[int], k: int, floor: float) -> dict[str, float]:
    """The metrics of one order, as they are defined."""
    gain = [floor + (1 - floor) * label for label in labels]
    dcg = sum(g if rank == 1 else g / np.log2(rank) for rank, g in enumerate(gain[:k], 1))
    mean = sum(sum(gain[:rank]) / rank for rank, label in enumerate(labels[:k], 1) if label)
    return {"dcg_old": dcg, "recall_all": sum(gain[:k]) / sum(gain), "map_all": mean}


def test_check_11_ranks_one_and_two_weigh_the_same() -> None:
    found = ranked_metrics(np.zeros(3, int), np.array([3.0, 2.0, 1.0]), np.array([1, 1, 0]), k=[2], floor=0.0)
    assert found["dcg_old@2"][0] == pytest.approx(2.0)
    assert found["recall_all@2"][0] == pytest.approx(1.0)


@pytest.mark.parametrize("floor", [0.0, 0.001, 0.01])
def test_uniform_metrics_are_the_mean_over_the_orders_of_ties(floor: float) -> None:
    rng = np.random.default_rng(1)
    owner = np.repeat(np.arange(4), [1, 4, 5, 6])
    labels = rng.integers(0, 2, len(owner))
    labels[[0, 1, 5, 10]] = 1  # every user likes something, so that no mean is 0 / 0
    scores = rng.integers(0, 3, len(owner)).astype(float)
    found = ranked_metrics(owner, scores, labels, k=[1, 3, 5], floor=floor)
    for user in range(4):
        own = owner == user
        levels = sorted(set(scores[own]), reverse=True)
        groups = [list(permutations(labels[own][scores[own] == level])) for level in levels]
        orders = [list(chain.from_iterable(order)) for order in product(*groups)]
        for k in (1, 3, 5):
            expected = [brute_force(order, k, floor) for order in orders]
            for name in expected[0]:
                mean = np.mean([one[name] for one in expected])
                assert found[f"{name}@{k}"][user] == pytest.approx(mean), (name, k, user)


class Table:
    """Answers with a fixed score per user row."""

    max_length, needs = None, frozenset[str]()

    def __init__(self, table: np.ndarray) -> None:
        self.table = torch.as_tensor(table)

    def parameters(self) -> Any:
        return iter(())

    buffers = parameters

    def score_safely(self, batch: Any) -> torch.Tensor:
        return self.table[batch.users]


def make_split() -> Split:
    rows = [[1, 1, 2, 3, 4], [2, 1, 3, 4], [1, 2, 2, 1]]
    offsets = np.concatenate([[0], np.cumsum([len(row) for row in rows])])
    prepared = Prepared(np.array(list(chain.from_iterable(rows)), np.int32), offsets, 5, order="file")
    return Split.of(prepared, LeaveLast(), Vocabulary(np.arange(10, 60, 10), 1), Vocabulary(np.array([7, 8, 9]), 0))


def test_only_what_a_user_rated_is_ranked() -> None:
    split = make_split()
    table = np.random.default_rng(0).normal(size=(3, 5))
    users, items = [9, 7, 9, 7, 9, 7, 5, 7], [10, 50, 30, 20, 50, 40, 10, 99]
    ratings = [5, 1, 2, 4, 1, 3, 5, 5]
    report = evaluate_uniform(Table(table), split, users, items, ratings, k=[1, 2], memory="1KB")  # type: ignore[arg-type]
    assert report.user.tolist() == [0, 2] and report.rated.tolist() == [3, 3]
    assert report.skipped == {"unknown user or item": 2, "not rare": 0}
    for place, (row, own) in enumerate(((0, {50: 0, 20: 1, 40: 0}), (2, {10: 1, 30: 0, 50: 0}))):
        order = sorted(own, key=lambda item: -table[row][item // 10 - 1])
        for k in (1, 2):
            for name, value in brute_force([own[item] for item in order], k, 0.001).items():
                assert report.columns[f"{name}@{k}"][place] == pytest.approx(value)
    estimate = report.estimates()["dcg_old@2"]
    assert estimate.low <= estimate.mean <= estimate.high
    assert estimate.mean == pytest.approx(report.mean("dcg_old@2"))
    assert "2 ratings left out" in str(report)


def test_rare_items_alone_and_bad_ratings() -> None:
    split = make_split()  # training: item 1 three times, item 2 three times, item 3 once
    model: Any = Table(np.random.default_rng(0).normal(size=(3, 5)))
    rare = evaluate_uniform(model, split, [7, 7, 8], [10, 30, 50], [5, 5, 1], rare=1)
    assert rare.rated.tolist() == [1, 1] and rare.skipped["not rare"] == 1
    with pytest.raises(DataError, match="ids"):
        evaluate_uniform(model, split, [1], [10], [5])
    with pytest.raises(ValueError, match="found"):
        evaluate_uniform(model, split, [7, 8], [10], [5])
    with pytest.raises(DataError, match="twice"):
        evaluate_uniform(model, split, [7, 7], [10, 10], [5, 1])
    with pytest.raises(ValueError, match="NaN"):
        evaluate_uniform(Table(np.full((3, 5), np.nan)), split, [7], [10], [5])  # type: ignore[arg-type]


class Fixed:
    """Scores of three items by user."""

    num_items, max_length, needs, vocabulary = 3, None, frozenset(), None

    def score_safely(self, batch: Any) -> torch.Tensor:
        return torch.tensor([[0.0, 1.0, 2.0], [0.0, 2.0, 1.0]])[batch.users]


def test_a_report_over_some_candidates_of_several_targets_is_refused() -> None:
    prepared = Prepared(np.array([3, 1, 2, 3, 2], np.int32), np.array([0, 3, 5]), 3, order="file")
    starts, targets, stops = np.array([0, 3]), np.array([1, 4]), np.array([3, 5])
    part = HeldOut("test", np.arange(2), starts, targets, stops, prepared, {}, np.array([0, 1, 5, 9]))
    some = np.array([False, False, True, True])
    report = evaluate(Fixed(), part, k=1, metrics=["hr"], exclude="none", candidates=some, progress=False)
    with pytest.raises(DataError, match="candidates"):
        unbiased(report, part, np.array([1, 0.1, 1, 1]), clip=0.0)


def test_a_rating_that_is_no_number_is_refused() -> None:
    prepared = Prepared(np.array([1, 2, 3], np.int32), np.array([0, 3]), 3, order="file")
    split = Split.of(prepared, LeaveLast(), Vocabulary(np.arange(1, 4), 1), Vocabulary(np.arange(1), 0))
    with pytest.raises(DataError, match="NaN"):
        evaluate_uniform(Fixed(), split, [0, 0], [1, 2], [5, float("nan")])


def test_a_rated_item_that_is_never_shown_adds_nothing() -> None:
    split, table = make_split(), np.array([[5.0, 4.0, 3.0, 2.0, 1.0]] * 3)
    shown = evaluate_uniform(Table(table), split, [7, 7], [10, 50], [5, 5], k=[1, 2])  # type: ignore[arg-type]
    table[:, 4] = -np.inf
    never = evaluate_uniform(Table(table), split, [7, 7], [10, 50], [5, 5], k=[1, 2])  # type: ignore[arg-type]
    assert never.mean("recall_all@1") == shown.mean("recall_all@1") == never.mean("recall_all@2") == 0.5
    assert shown.mean("recall_all@2") == 1.0
