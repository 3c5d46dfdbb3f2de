from __future__ import annotations

import itertools
import math
import warnings
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import recsys as rs
from recsys.errors import DataError, DataWarning
from recsys.eval.evaluate import evaluate

ACCURACY = ("hr", "recall", "ndcg", "mrr", "map", "precision")


def metrics_of_list(ranking: list[int], targets: set[int], k: int) -> dict[str, float]:
    hits = [int(item in targets) for item in ranking[:k]]
    places = [at for at, hit in enumerate(hits, start=1) if hit]
    ideal = sum(1 / math.log2(at + 1) for at in range(1, min(len(targets), k) + 1))
    return {
        "hr": float(bool(places)),
        "recall": len(places) / len(targets),
        "precision": len(places) / k,
        "ndcg": sum(1 / math.log2(at + 1) for at in places) / ideal,
        "mrr": 1 / places[0] if places else 0.0,
        "map": sum(sum(hits[:at]) / at for at in places) / min(len(targets), k),
    }


def brute_force(scores: np.ndarray, targets: set[int], hidden: set[int], k: int) -> dict[str, float]:
    """Mean over every order of the candidates that sorts them by score."""
    candidates = [item for item in range(1, len(scores) + 1) if item not in hidden and scores[item - 1] > -math.inf]
    levels = sorted({scores[item - 1] for item in candidates}, reverse=True)
    groups = [[item for item in candidates if scores[item - 1] == level] for level in levels]
    found = [
        metrics_of_list([item for group in orders for item in group], targets, k)
        for orders in itertools.product(*(list(itertools.permutations(group)) for group in groups))
    ]
    return {name: float(np.mean([one[name] for one in found])) for name in ACCURACY}


@pytest.mark.parametrize("exclude", ["history", "none", "history-except-targets"])
@pytest.mark.parametrize("seed", range(6))
def test_all_metrics_equal_the_mean_over_all_orders(seed, exclude, random_case):
    model, part = random_case(users=25, items=6, seed=seed, levels=4)
    part = replace(part, prepared=part.prepared)
    report = evaluate(model, part, k=(1, 2, 3, 6), exclude=exclude, progress=False)
    for user in range(len(part)):
        history = set(part.history(np.array([user]))[1].tolist()) if exclude != "none" else set()
        targets = set(part.targets(np.array([user]))[1].tolist())
        history -= targets if exclude == "history-except-targets" else set()
        for k in (1, 2, 3, 6):
            expected = brute_force(model.table[user].numpy(), targets, history, k)
            found = {name: report.columns[f"{name}@{k}"][user] for name in ACCURACY}
            assert found == pytest.approx(expected, abs=1e-9)


def test_all_equal_scores_on_seven_items_equal_all_5040_orders(scripted, part_of):
    model, part = scripted(np.zeros((1, 7))), part_of([[]], [[2, 5, 7]], 7)
    report = evaluate(model, part, k=(1, 3, 7), progress=False)
    for k in (1, 3, 7):
        expected = brute_force(np.zeros(7), {2, 5, 7}, set(), k)
        assert {name: report.mean(f"{name}@{k}") for name in ACCURACY} == pytest.approx(expected, abs=1e-9)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_any_small_case_equals_brute_force(data):
    items = data.draw(st.integers(2, 6))
    level = st.one_of(st.integers(-2, 2), st.just(-math.inf))
    scores = data.draw(st.lists(level, min_size=items, max_size=items))
    rows = st.integers(1, items)
    targets = data.draw(st.sets(rows, min_size=1, max_size=3))
    history = data.draw(st.lists(rows, max_size=4))
    k = data.draw(st.integers(1, items))
    from_table, build = _fixtures()
    report = evaluate(from_table([scores]), build([history], [sorted(targets)], items), k=k, progress=False)
    expected = brute_force(np.array(scores, dtype=float), targets, set(history), k)
    assert {name: report.mean(f"{name}@{k}") for name in ACCURACY} == pytest.approx(expected, abs=1e-9)


LOG3, LOG4, LOG5, LOG6 = (math.log2(x) for x in (3, 4, 5, 6))
# score order of items 1..6 is 6 5 4 3 2 1 (item 6 first); (targets, k) -> hand-computed values
HAND = [
    ([6], 1, {"hr": 1, "recall": 1, "ndcg": 1, "mrr": 1, "map": 1, "precision": 1}),
    ([5], 1, {"hr": 0, "recall": 0, "ndcg": 0, "mrr": 0, "map": 0, "precision": 0}),
    ([5], 2, {"hr": 1, "recall": 1, "ndcg": 1 / LOG3, "mrr": 1 / 2, "map": 1 / 2, "precision": 1 / 2}),
    ([4], 5, {"hr": 1, "recall": 1, "ndcg": 1 / 2, "mrr": 1 / 3, "map": 1 / 3, "precision": 1 / 5}),
    ([6, 4], 3, {"hr": 1, "recall": 1, "ndcg": (1 + 1 / 2) / (1 + 1 / LOG3), "mrr": 1, "map": (1 + 2 / 3) / 2,
                 "precision": 2 / 3}),
    ([5, 2, 1], 5, {"hr": 1, "recall": 2 / 3, "ndcg": (1 / LOG3 + 1 / LOG6) / (1 + 1 / LOG3 + 1 / 2), "mrr": 1 / 2,
                    "map": (1 / 2 + 2 / 5) / 3, "precision": 2 / 5}),
    ([5, 3, 1], 2, {"hr": 1, "recall": 1 / 3, "ndcg": (1 / LOG3) / (1 + 1 / LOG3), "mrr": 1 / 2, "map": 1 / 4,
                    "precision": 1 / 2}),
]  # fmt: skip


@pytest.mark.parametrize(("targets", "k", "expected"), HAND)
def test_check_16_hand_computed_values(targets, k, expected, scripted, part_of):
    report = evaluate(scripted([[1, 2, 3, 4, 5, 6]]), part_of([[]], [targets], 6), k=k, progress=False)
    assert {name: report.mean(f"{name}@{k}") for name in ACCURACY} == pytest.approx(expected, abs=1e-12)


def test_check_16_seen_items_are_filtered_and_a_seen_target_is_kept_by_the_rule_that_says_so(scripted, part_of):
    # items by score: 5 4 3 2 1; history 5 3 4, target 3: only 5 and 4 are taken out, so the target comes first
    model, part = scripted([[1, 2, 3, 4, 5]]), part_of([[5, 3, 4, 5]], [[3]], 5)
    kept = evaluate(model, part, k=(1, 3), exclude="history-except-targets", progress=False)
    assert kept.mean("hr@1") == 1.0
    assert kept.columns["candidates"].tolist() == [3]
    assert kept.meta["repeated_targets"] == 1
    everything = evaluate(model, part, k=(1, 3), exclude="none", progress=False)
    assert everything.mean("hr@1") == 0.0 and everything.mean("mrr@3") == pytest.approx(1 / 3)
    assert everything.columns["candidates"].tolist() == [5]
    assert everything.meta["repeated_targets"] == 1


def test_check_11_constant_scores_get_what_guessing_gives(scripted, part_of):
    items = 50
    part = part_of([[1, 2, 3]] * 4, [[10], [20], [30], [3]], items)
    model = scripted(np.full((4, items), 7.0))
    report = evaluate(model, part, k=(1, 10, 50), exclude="history-except-targets", progress=False)
    candidates = np.array([47, 47, 47, 48])  # the last target repeats the history
    assert report.columns["hr@1"] == pytest.approx(1 / candidates, abs=1e-12)
    assert report.columns["recall@10"] == pytest.approx(10 / candidates, abs=1e-12)
    harmonic = sum(1 / place for place in range(1, 11))
    assert report.columns["mrr@10"] == pytest.approx(harmonic / candidates, abs=1e-12)
    gain = sum(1 / math.log2(place + 1) for place in range(1, 11))
    assert report.columns["ndcg@10"] == pytest.approx(gain / candidates, abs=1e-12)
    assert report.columns["hr@50"] == pytest.approx(np.ones(4))
    assert report.meta["tied_targets"] == 4
    assert report.meta["short_lists"] == 4
    with pytest.warns(DataWarning, match="none"):
        served = evaluate(model, part, k=(1, 10, 50), progress=False)
    assert served.columns["candidates"].tolist() == [47] * 4
    assert served.columns["hr@50"].tolist() == [1, 1, 1, 0]
    assert served.columns["ndcg@10"][:3] == pytest.approx(gain / candidates[:3], abs=1e-12)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_check_11_scores_that_are_not_finite_raise(bad, scripted, part_of):
    table = np.zeros((5, 4))
    table[3, [0, 2]] = bad
    with pytest.raises(ValueError, match=r"2 scores.*user row 3"):
        evaluate(scripted(table), part_of([[]] * 5, [[1]] * 5, 4), k=1, progress=False)


def test_huge_finite_scores_are_fine(scripted, part_of):
    table = np.full((1, 4), 3e38, dtype=np.float32)
    assert evaluate(scripted(table), part_of([[]], [[1]], 4), k=1, progress=False).mean("hr@1") == 0.25


def test_item_relabelling_changes_nothing(random_case, scripted, part_of):
    model, part = random_case(seed=3)
    shuffle = np.random.default_rng(1).permutation(part.num_items)  # item i + 1 becomes shuffle[i] + 1
    renamed = np.concatenate([[0], shuffle + 1])
    prepared = replace(part.prepared, items=renamed[part.prepared.items].astype(np.int32))
    table = np.empty_like(model.table.numpy())
    table[:, shuffle] = model.table.numpy()
    counts = np.empty_like(part.item_counts)
    counts[renamed] = part.item_counts
    first = evaluate(model, part, k=(1, 5, 10), metrics=ACCURACY, progress=False)
    second = evaluate(
        scripted(table), replace(part, prepared=prepared, item_counts=counts), k=(1, 5, 10), metrics=ACCURACY,
        progress=False,
    )  # fmt: skip
    for metric in first.metrics:
        assert np.allclose(first.columns[metric], second.columns[metric], atol=1e-12)


def test_monotone_transforms_change_nothing(random_case, scripted):
    model, part = random_case(seed=4)
    transformed = scripted(np.exp(model.table.numpy() / 3) - 40)
    first, second = (evaluate(one, part, k=(1, 5), progress=False) for one in (model, transformed))
    for metric in first.metrics:
        assert np.array_equal(first.columns[metric], second.columns[metric])


def test_a_target_listed_twice_counts_once(scripted, part_of):
    model = scripted([[1, 2, 3, 4]])
    once, twice = part_of([[]], [[4, 2]], 4), part_of([[]], [[4, 2, 4, 4]], 4)
    first, second = (evaluate(model, part, k=(1, 3), progress=False) for part in (once, twice))
    assert first.means() == second.means()
    assert second.columns["num_targets"].tolist() == [2]


@pytest.mark.parametrize("memory", [3000, "8KB", "1GiB"])
@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_batch_size_and_number_of_processes_change_nothing(memory, world_size, random_case):
    model, part = random_case(users=41, items=30, seed=5)
    model.max_length = 1
    whole = evaluate(model, part, k=(1, 5, 20), progress=False)
    shares = [
        evaluate(model, part, k=(1, 5, 20), memory=memory, progress=False, rank=rank, world_size=world_size)
        for rank in range(world_size)
    ]
    merged = type(whole).merge(shares[::-1])
    assert merged.meta == whole.meta
    assert merged.aggregates == whole.aggregates
    assert list(merged.columns) == list(whole.columns)
    for name, values in whole.columns.items():
        assert np.array_equal(merged.columns[name], values), name
    assert {k: v.tolist() for k, v in merged.exposure.items()} == {k: v.tolist() for k, v in whole.exposure.items()}


def test_a_process_without_users_merges_too(random_case):
    model, part = random_case(users=2)
    shares = [evaluate(model, part, progress=False, rank=rank, world_size=3) for rank in range(3)]
    assert shares[2].users == 0
    whole = evaluate(model, part, progress=False)
    assert type(whole).merge(shares).means() == whole.means()


def test_the_budget_decides_the_batch(random_case):
    model, part = random_case(users=50, items=30)
    model.max_length = 0
    evaluate(model, part, progress=False, memory=4 * 30 * 7 + 16 * 30)
    assert max(model.batch_sizes) == 7
    with pytest.raises(ValueError, match="memory"):
        evaluate(model, part, progress=False, memory=500)
    with pytest.raises(ValueError, match="memory"):
        evaluate(model, part, progress=False, memory="a lot")


def test_one_long_history_does_not_cost_the_other_users_their_batch(scripted, part_of):
    model, part = scripted(torch.randn(40, 30)), part_of([[1]] * 39 + [[1, 2] * 500], [[3]] * 40, 30)
    evaluate(model, part, progress=False, memory=2048 * 1001 + 20 * 30)
    assert model.batch_sizes == [39, 1]


def test_users_without_history_are_scored_apart(random_case):
    model, part = random_case(users=50)
    evaluate(model, part, progress=False)
    empty = int((part.history_lengths == 0).sum())
    assert model.batch_sizes == [50 - empty, empty]


def test_half_precision_is_ranked_as_float32(random_case, scripted, part_of):
    table = torch.randn(10, 30)
    part = part_of([[]] * 10, [[3]] * 10, 30)
    half = evaluate(scripted(table, torch.bfloat16), part, progress=False)
    wide = evaluate(scripted(table.bfloat16().float()), part, progress=False)
    assert half.means() == wide.means()


def test_the_scores_of_the_model_are_left_alone(random_case):
    model, part = random_case()
    before = model.table.clone()
    evaluate(model, part, progress=False)
    assert torch.equal(before, model.table)


def test_training_mode_of_each_module_is_restored(random_case):
    model, part = random_case()
    model.frozen = torch.nn.Dropout()
    model.train()
    model.frozen.eval()
    evaluate(model, part, progress=False)
    assert model.training and not model.frozen.training


def test_a_metric_and_an_aggregate_from_outside(random_case):
    class MeanRank:
        name = "mean_rank"
        at_k = False

        def __call__(self, ranked: Any, k: int) -> np.ndarray:
            return ranked.sum(ranked.hits * ranked.rank) / ranked.relevant

    class TopItem:
        name = "top_share"
        exposure = True

        def __call__(self, exposure: np.ndarray, k: int) -> float:
            return float(exposure.max() / exposure.sum())

    model, part = random_case()
    report = evaluate(model, part, k=3, metrics=["ndcg@7", MeanRank(), TopItem()], progress=False)
    assert report.metrics == ("ndcg@7", "mean_rank")
    assert 1 <= report.mean("mean_rank") <= 30
    assert 0 < report.mean("top_share@3") <= 1


def test_a_metric_that_does_not_answer_per_user_is_refused(random_case):
    class Scalar:
        name = "scalar"

        def __call__(self, ranked: Any, k: int) -> float:
            return 1.0

    model, part = random_case()
    with pytest.raises(ValueError, match="scalar@1"):
        evaluate(model, part, k=1, metrics=[Scalar()], progress=False)


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ({"k": 31}, "catalogue"),
        ({"k": 0}, "whole numbers"),
        ({"k": 1.5}, "whole numbers"),
        ({"metrics": ["ndgc"]}, "ndcg"),
        ({"metrics": ["ndcg@31"]}, "catalogue"),
        ({"metrics": ["ndcg@x"]}, "ndcg@10"),
        ({"metrics": ["ndcg", "ndcg@10"], "k": 10}, "twice"),
        ({"metrics": []}, "empty"),
        ({"exclude": "seen"}, "exclude"),
        ({"rank": 2, "world_size": 2}, "rank"),
        ({"segments": {"country": ["de"]}}, "country"),
    ],
)
def test_bad_arguments(arguments, word, random_case):
    model, part = random_case()
    with pytest.raises((ValueError, TypeError), match=word):
        evaluate(model, part, progress=False, **({"k": 5} | arguments))


def test_an_unfitted_model_other_items_and_an_empty_part(random_case, scripted, part_of):
    model, part = random_case()
    with pytest.raises(DataError, match="no users"):
        evaluate(model, part.subset(np.zeros(0, dtype=int)), progress=False)
    with pytest.raises(DataError, match="31 items"):
        evaluate(scripted(np.zeros((60, 31))), part, progress=False)
    model.num_items = 0
    with pytest.raises(ValueError, match="fit"):
        evaluate(model, part, progress=False)


def test_users_without_target_are_left_out_and_counted(scripted, part_of):
    part = part_of([[1], [2], [3]], [[2], [], [1]], 4)
    with pytest.warns(DataWarning, match="1 of 3"):
        report = evaluate(scripted(np.zeros((3, 4))), part, k=1, progress=False)
    assert report.columns["user"].tolist() == [0, 2]
    assert report.meta["users_without_targets"] == 1


def test_per_user_facts(scripted, part_of):
    part = part_of([[1, 1, 2], [], [3]], [[2, 4], [1], [5]], 5, item_counts=[4, 3, 2, 1, 0])
    report = evaluate(scripted(np.zeros((3, 5))), part, k=1, progress=False, segments={"country": ["de", "fr", "de"]})
    assert report.columns["history_length"].tolist() == [3, 0, 1]
    assert report.columns["target_popularity"].tolist() == [2.0, 4.0, 0.0]
    assert report.columns["cold_targets"].tolist() == [0, 0, 1]
    assert report.columns["repeated_targets"].tolist() == [1, 0, 0]
    assert report.columns["candidates"].tolist() == [3, 5, 4]
    assert report.columns["unreachable_targets"].tolist() == [1, 0, 0]
    assert report.columns["segment:country"].tolist() == ["de", "fr", "de"]


def test_k2_a_a_target_that_repeats_the_history_is_a_miss(tmp_path):
    rows = [("a", item, at) for at, item in enumerate("xyxyx")] + [("b", item, at) for at, item in enumerate("zwvzw")]
    path = tmp_path / "k2.csv"
    path.write_text("user,item,time\n" + "".join(f"{u},{i},{1_700_000_000 + t}\n" for u, i, t in rows))
    split = rs.Dataset.scan(path, user="user", item="item", time="time").split(rs.LeaveLast(), audit=False)
    model = rs.Popularity()
    rs.fit(model, split, metric="ndcg@2", validate_every=0, progress=False)
    with pytest.warns(DataWarning, match="exclude='none'"):
        report = evaluate(model, split.test, k=1, metrics=["hr"], progress=False)
    assert report.columns["user_id"].tolist() == ["a", "b"]
    assert report.per_user("hr@1").tolist() == [0.0, 0.0] and report.meta["targets"] == 2
    assert "2 targets repeat the history, counted as misses" in report.header()
    assert "x" not in model.recommend([["x", "y", "x", "y"]], k=2).items[0]
    with warnings.catch_warnings():
        warnings.simplefilter("error", DataWarning)
        former = evaluate(model, split.test, k=1, metrics=["hr"], exclude="history-except-targets", progress=False)
        kept = evaluate(model, split.test, k=1, metrics=["hr"], exclude="none", progress=False)
    assert former.per_user("hr@1")[0] == 1.0 and "except for targets" in former.header()
    assert kept.columns["candidates"].tolist() == [5, 5]


@pytest.mark.parametrize(("repeats", "told"), [(1, False), (2, True)])
def test_k2_a_warning_above_one_percent_of_the_targets(repeats, told, scripted, part_of):
    histories, targets = [[1]] * 100, [[1]] * repeats + [[2]] * (100 - repeats)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", DataWarning)
        evaluate(scripted(np.zeros((100, 3))), part_of(histories, targets, 3), progress=False)
    assert any("exclude='none'" in str(one.message) for one in caught) == told


def test_k2_repeated_targets_are_misses_of_every_metric_and_stay_in_the_denominators(random_case):
    model, part = random_case(users=80, seed=11)
    report = evaluate(model, part, k=(3, 30), progress=False)
    repeated = report.columns["repeated_targets"]
    assert repeated.sum() > 0 and report.columns["unreachable_targets"].tolist() == repeated.tolist()
    targets = report.columns["num_targets"]
    assert report.columns["recall@30"] == pytest.approx((targets - repeated) / targets)
    missed = repeated == targets
    for metric in ACCURACY:
        assert not report.columns[f"{metric}@30"][missed].any()
    lengths = np.array([len(set(part.history(np.array([user]))[1].tolist())) for user in range(80)])
    assert report.columns["candidates"].tolist() == (30 - lengths).tolist()


def test_scores_of_minus_infinity_are_never_shown(scripted, part_of):
    table = np.array([[3.0, -np.inf, 2.0, 1.0], [-np.inf] * 4, [0.0, 0.0, -np.inf, 0.0]])
    part = part_of([[], [], [1]], [[2, 4], [3], [4]], 4)
    report = evaluate(scripted(table), part, k=(1, 3, 4), progress=False)
    assert report.columns["candidates"].tolist() == [3, 0, 2]
    assert report.columns["recall@4"].tolist() == [0.5, 0.0, 1.0]
    assert report.columns["recall@1"].tolist() == [0.0, 0.0, 0.5]
    assert report.meta["unreachable_targets"] == 2 and report.meta["short_lists"] == 3
    assert report.exposure[4].tolist() == [1, 1, 1, 2]
    assert report.mean("novelty@4") > 0
    table[1, 2] = np.inf
    with pytest.raises(ValueError, match="user row 1"):
        evaluate(scripted(table), part, k=1, progress=False)


def test_a_sample_of_the_users(random_case):
    model, part = random_case(users=60, seed=2)
    whole = evaluate(model, part, k=5, progress=False)
    some = evaluate(model, part, k=5, sample=20, seed=3, progress=False, segments={"at": list(range(60))})
    chosen = some.columns["position"]
    assert len(chosen) == 20 and (np.diff(chosen) > 0).all()
    assert some.columns["segment:at"].tolist() == [str(at) for at in chosen]
    for column in whole.metrics:
        assert some.columns[column].tolist() == whole.columns[column][chosen].tolist()
    again = evaluate(model, part, k=5, sample=20, seed=3, progress=False)
    other = evaluate(model, part, k=5, sample=20, seed=4, progress=False)
    assert again.columns["position"].tolist() == chosen.tolist() != other.columns["position"].tolist()
    shares = [evaluate(model, part, k=5, sample=20, seed=3, progress=False, rank=r, world_size=3) for r in range(3)]
    merged = type(whole).merge(shares)
    assert merged.means() == again.means() and merged.meta == again.meta
    assert "20 of 60" in some.header() and "drawn" not in whole.header()
    assert evaluate(model, part, k=5, sample=100, progress=False).means() == whole.means()
    for wrong in (0, -1, 2.5, True):
        with pytest.raises(ValueError, match="sample"):
            evaluate(model, part, sample=wrong, progress=False)


@pytest.mark.parametrize("items", [1, 2, 7, 9])
def test_k7_the_default_cut_offs_fit_any_catalogue(items, scripted, part_of):
    report = evaluate(scripted(np.zeros((1, items))), part_of([[]], [[1]], items), progress=False)
    assert {int(name.partition("@")[2]) for name in report.metrics} == {cut for cut in (1, 5, 10) if cut <= items}
    with pytest.raises(ValueError, match=f"ndcg@{items}"):
        evaluate(scripted(np.zeros((1, items))), part_of([[]], [[1]], items), metrics=["ndcg@10"], progress=False)


def _fixtures() -> tuple[Any, Any]:
    return _fixtures.scripted, _fixtures.part_of  # type: ignore[attr-defined]


@pytest.fixture(autouse=True)
def _for_hypothesis(scripted, part_of):
    _fixtures.scripted, _fixtures.part_of = scripted, part_of  # type: ignore[attr-defined]
