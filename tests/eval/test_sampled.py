"""Sampled evaluation against loops (unirec.md, checks 15 and 17)."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from recsys.data.split import HeldOut
from recsys.errors import DataWarning
from recsys.eval.sampled import SEEDS, SampledReport, draw_negatives, evaluate_sampled

NUM_USERS, NUM_ITEMS = 25, 60


@pytest.fixture
def problem(part_of: Any, scripted: Any) -> tuple[Any, HeldOut]:
    rng = np.random.default_rng(0)
    histories = [rng.integers(1, NUM_ITEMS + 1, rng.integers(0, 9)).tolist() for _ in range(NUM_USERS)]
    targets = [rng.integers(1, NUM_ITEMS + 1, 1 + user % 3).tolist() for user in range(NUM_USERS)]
    scores = rng.integers(0, 12, (NUM_USERS, NUM_ITEMS))  # many ties
    return scripted(scores), part_of(histories, targets, NUM_ITEMS)


def known(part: HeldOut, user: int) -> list[tuple[np.ndarray, np.ndarray]]:
    index = np.array([user])
    return [part.targets(index), part.history(index)]


def negatives_of(part: HeldOut, user: int, count: int, seed: int) -> np.ndarray:
    return draw_negatives(part.users[[user]], known(part, user), NUM_ITEMS, count, seed)[0]


def place(scores: np.ndarray, rivals: list[int], target: int) -> list[int]:
    """Every rank (from 1) that the target has in some order of the tied items."""
    above = sum(scores[item - 1] > scores[target - 1] for item in rivals)
    tied = sum(scores[item - 1] == scores[target - 1] for item in rivals)
    return list(range(above + 1, above + tied + 2))


def test_check_15_negatives_are_unknown_distinct_and_fixed_per_seed(problem: tuple[Any, HeldOut]) -> None:
    _, part = problem
    index = np.arange(len(part))
    together = draw_negatives(part.users, [part.targets(index), part.history(index)], NUM_ITEMS, 20, SEEDS[0])
    for user in range(NUM_USERS):
        drawn = negatives_of(part, user, 20, SEEDS[0])
        assert drawn.tolist() == together[user].tolist()  # whoever else is in the batch
        assert len(set(drawn.tolist())) == 20 and drawn.min() >= 1 and drawn.max() <= NUM_ITEMS
        assert not set(drawn.tolist()) & {item for _, items in known(part, user) for item in items.tolist()}
        assert drawn.tolist() != negatives_of(part, user, 20, SEEDS[1]).tolist()


def test_fidelity_e1_the_negatives_of_a_user_are_distinct() -> None:
    """Theirs are drawn with replacement: 100 of 110 items would hold about 66 different ones."""
    nobody = np.zeros(0, np.int64)
    for seed in SEEDS:
        drawn = draw_negatives(np.arange(50), [(nobody, nobody)], 110, 100, seed=seed)
        assert all(len(set(row)) == 100 for row in drawn.tolist())


def test_check_15_negatives_are_uniform() -> None:
    nobody = np.zeros(0, np.int64)
    drawn = draw_negatives(np.arange(4000), [(nobody, nobody)], 20, 5, seed=3)
    share = np.bincount(drawn.ravel(), minlength=21)[1:] / 4000
    assert np.abs(share - 0.25).max() < 0.04  # 5.8 standard deviations


@pytest.mark.parametrize("memory", ["512MB", 60_000])
def test_check_15_metrics_equal_a_loop_and_mrr_is_0_beyond_k(problem: tuple[Any, HeldOut], memory: str | int) -> None:
    model, part = problem
    scores = model.table.detach().numpy()
    rule: Any = {"exclude": "history-except-targets"}
    found = evaluate_sampled(model, part, negatives=20, seeds=(5,), k=3, memory=memory, **rule)
    reciprocal, gain, hit = [], [], []
    for user in range(NUM_USERS):
        targets = part.targets(np.array([user]))[1].tolist()
        if len(targets) > 1:
            continue
        ranks = place(scores[user], negatives_of(part, user, 20, 5).tolist(), targets[0])
        reciprocal.append(np.mean([1 / rank if rank <= 3 else 0.0 for rank in ranks]))
        gain.append(np.mean([1 / np.log2(rank + 1) if rank <= 3 else 0.0 for rank in ranks]))
        hit.append(np.mean([float(rank <= 3) for rank in ranks]))
    single = [user for user in range(NUM_USERS) if len(part.targets(np.array([user]))[1]) == 1]
    alone = evaluate_sampled(model, part.subset(np.array(single)), negatives=20, seeds=(5,), k=3, **rule)
    assert alone.mean("mrr@3") == pytest.approx(np.mean(reciprocal))
    assert alone.mean("ndcg@3") == pytest.approx(np.mean(gain))
    assert alone.mean("hr@3") == pytest.approx(np.mean(hit))
    assert found.users == NUM_USERS
    whole = evaluate_sampled(model, part, negatives=20, seeds=(5,), k=3, **rule)
    for name in whole.cohorts:
        np.testing.assert_array_equal(found.cohorts[name], whole.cohorts[name])
    assert 0 in [round(value, 9) for value in reciprocal]


def test_several_targets_are_rivals_of_each_other(part_of: Any, scripted: Any) -> None:
    part = part_of([[1]], [[2, 3]], 30)
    scores = np.zeros((1, 30))
    scores[0, [1, 2]] = 5.0, 4.0
    found = evaluate_sampled(scripted(scores), part, negatives=25, seeds=(0,), k=2)
    assert found.mean("ndcg@2") == pytest.approx(1.0) and found.mean("mrr@2") == pytest.approx(1.0)


def test_check_17_mean_and_deviation_are_two_numbers(problem: tuple[Any, HeldOut]) -> None:
    model, part = problem
    found = evaluate_sampled(model, part, negatives=20, users=10)
    values = found.cohorts["ndcg@10"]
    assert values.shape == (5,) and len(set(values.tolist())) > 1
    assert found.mean("ndcg@10") == pytest.approx(sum(values) / 5)
    assert found.std("ndcg@10") == pytest.approx((sum((value - sum(values) / 5) ** 2 for value in values) / 4) ** 0.5)
    assert str(found).startswith("SAMPLED") and found.users == 10
    again = evaluate_sampled(model, part, negatives=20, users=10)
    np.testing.assert_array_equal(again.cohorts["hr@10"], found.cohorts["hr@10"])
    one = SampledReport({"hr@1": np.array([0.5])}, 3, 10, (1,), "test")
    assert one.std("hr@1") == 0.0


def test_known_items_may_be_drawn_if_asked(part_of: Any, scripted: Any) -> None:
    part = part_of([[1, 2, 3, 4]], [[5]], 10)
    scores = np.zeros((1, 10))
    scores[0, :4] = 1.0
    evaluate_sampled(scripted(scores), part, negatives=9, seeds=(0,), k=1, exclude_known=False)
    with pytest.raises(ValueError, match="lower negatives"):
        evaluate_sampled(scripted(scores), part, negatives=6, seeds=(0,), k=1)


@pytest.mark.parametrize("wrong", [{"negatives": 0}, {"seeds": ()}, {"users": 26}, {"users": 0}, {"k": 61}])
def test_wrong_arguments_are_errors(problem: tuple[Any, HeldOut], wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"found|larger"):
        evaluate_sampled(*problem, **{"negatives": 5, **wrong})


def test_scores_that_are_not_finite_are_errors(problem: tuple[Any, HeldOut], scripted: Any) -> None:
    table = problem[0].table.detach().numpy().copy()
    table[3, 4] = np.nan
    with pytest.raises(ValueError, match="NaN"):
        evaluate_sampled(scripted(table), problem[1], negatives=5)


def test_k2_a_target_that_repeats_the_history_is_a_miss_here_too(part_of: Any, scripted: Any) -> None:
    part = part_of([[1, 2], [3]], [[1, 5], [4]], 30)
    scores = np.zeros((2, 30))
    scores[0, [0, 4]], scores[1, 3] = (9.0, 5.0), 5.0
    settings: dict[str, Any] = {"negatives": 20, "seeds": (0, 1), "k": 1}
    with pytest.warns(DataWarning, match="exclude='none'"):
        served = evaluate_sampled(scripted(scores), part, **settings)
    assert served.mean("hr@1") == 1.0 and served.mean("ndcg@1") == 1.0 and served.repeated == 1
    assert "misses" in str(served)
    ranked = evaluate_sampled(scripted(scores), part, exclude="history-except-targets", **settings)
    assert ranked.mean("ndcg@1") == 1.0 and "misses" not in str(ranked)
    only = part_of([[1]], [[1]], 30)
    assert evaluate_sampled(scripted(scores), only, **settings).mean("hr@1") == 0.0
    assert evaluate_sampled(scripted(scores), only, exclude="none", **settings).mean("hr@1") == 1.0
    for wrong in ({"exclude": "seen"}, {"exclude": "history", "exclude_known": False}):
        with pytest.raises(ValueError, match="exclude"):
            evaluate_sampled(scripted(scores), part, **settings, **wrong)


def test_scores_of_minus_infinity_are_never_shown_here_either(part_of: Any, scripted: Any) -> None:
    part = part_of([[1]], [[2, 3]], 30)
    scores = np.full((1, 30), -np.inf)
    scores[0, 2] = 1.0
    found = evaluate_sampled(scripted(scores), part, negatives=20, seeds=(0,), k=10)
    assert found.mean("mrr@10") == 1.0
    scores[0, 2] = -np.inf
    assert evaluate_sampled(scripted(scores), part, negatives=20, seeds=(0,), k=10).mean("hr@10") == 0.0
