"""Ranking among some items only: by brute force over what is left, ties and exclusion included."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from recsys.errors import DataError, DataWarning
from recsys.eval.evaluate import evaluate
from recsys.eval.report import Report
from recsys.ids.vocabulary import Vocabulary
from recsys.train.run import Run


def brute(model: Any, part: Any, allowed: set[int], exclude: str, k: int) -> dict[int, tuple[float, float, int]]:
    """User row -> (hit rate, recall at k, candidates), ties by averaging over their places."""
    found = {}
    for at, user in enumerate(part.users.tolist()):
        _, history = part.history(np.array([at]))
        _, wanted = part.targets(np.array([at]))
        targets = sorted(set(wanted.tolist()) & allowed)
        if not targets:
            continue
        seen = set(history.tolist()) if exclude != "none" else set()
        seen -= set(targets) if exclude == "history-except-targets" else set()
        candidates = sorted(allowed - seen)
        scores = model.table[user].tolist()
        levels = sorted({scores[row - 1] for row in candidates}, reverse=True)
        hits, miss, place = 0.0, 1.0, 0
        for level in levels:
            group = [row for row in candidates if scores[row - 1] == level]
            inside, right = max(min(k - place, len(group)), 0), len(set(group) & set(targets))
            hits += inside * right / len(group)
            miss *= _none(len(group), right, inside)
            place += len(group)
        found[user] = (1 - miss, hits / len(targets), len(candidates))
    return found


def _none(size: int, right: int, drawn: int) -> float:
    """The chance that ``drawn`` of ``size`` hold none of ``right``."""
    chance = 1.0
    for taken in range(drawn):
        chance *= max(size - right - taken, 0) / (size - taken)
    return chance


@pytest.mark.parametrize("exclude", ["history", "none", "history-except-targets"])
@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("levels", [3, None])
def test_ranks_among_candidates_are_exact(
    random_case: Callable[..., Any], exclude: Any, seed: int, levels: int | None
) -> None:
    model, part = random_case(seed=seed, levels=levels)
    mask = np.zeros(31, bool)
    mask[1:] = np.random.default_rng(seed).random(30) < 0.4
    expected = brute(model, part, set(np.flatnonzero(mask).tolist()), exclude, 5)
    with pytest.warns(DataWarning, match="among the candidates"):
        report = evaluate(
            model, part, k=5, metrics=["hr", "recall"], exclude=exclude, candidates=mask, progress=False, memory=20_000
        )
    assert report.columns["user"].tolist() == sorted(expected)
    for column, index in (("hr@5", 0), ("recall@5", 1), ("candidates", 2)):
        theirs = [expected[user][index] for user in report.columns["user"].tolist()]
        np.testing.assert_allclose(report.columns[column], theirs, rtol=1e-9, err_msg=column)
    assert report.meta["num_candidates"] == mask.sum()
    inside = sum(len(set(part.targets(np.array([at]))[1].tolist()) & set(np.flatnonzero(mask))) for at in range(60))
    total = len(part.targets(np.arange(60))[1])
    assert report.meta["targets_outside"] == total - inside and report.meta["targets"] == inside


def test_all_items_as_candidates_change_nothing(random_case: Callable[..., Any]) -> None:
    model, part = random_case(seed=3)
    mask = np.ones(31, bool)
    plain = evaluate(model, part, progress=False)
    same = evaluate(model, part, candidates=mask, progress=False)
    for column in plain.columns:
        np.testing.assert_array_equal(plain.columns[column], same.columns[column], err_msg=column)
    assert plain.means() == same.means() and "num_candidates" not in plain.meta


def test_lists_and_aggregates_are_of_candidates(random_case: Callable[..., Any]) -> None:
    model, part = random_case(seed=1, levels=None)
    mask = np.zeros(31, bool)
    mask[[4, 9, 11, 20, 30]] = True
    with pytest.warns(DataWarning):
        report = evaluate(model, part, k=2, candidates=mask, exclude="none", progress=False)
    shown = np.zeros(5, int)
    rows = np.flatnonzero(mask)
    for user in report.columns["user"]:
        best = np.argsort(-model.table[user].numpy()[rows - 1], kind="stable")[:2]
        shown[best] += 1
    np.testing.assert_array_equal(report.exposure[2], shown)
    counts = part.item_counts
    information = -np.log2((counts[rows] + 1) / (counts[1:].sum() + 30))
    assert report.mean("novelty@2") == pytest.approx((information * shown).sum() / shown.sum())


def test_cold_candidates_are_what_training_never_saw(part_of: Callable[..., Any], scripted: Any) -> None:
    part = part_of([[1], [2], [1]], [[3], [5], [4]], 6, item_counts=[9, 4, 0, 2, 0, 0])
    model = scripted([[9, 8, 7, 6, 5, 4]] * 3)
    with pytest.warns(DataWarning, match="1 of 3 users"):
        report = evaluate(model, part, k=[1, 3], candidates="cold", progress=False)
    assert report.columns["user"].tolist() == [0, 1] and report.columns["candidates"].tolist() == [3, 3]
    assert report.per_user("hr@1").tolist() == [1.0, 0.0] and report.meta["targets_outside"] == 1
    assert report.meta["protocol"]["chance"] == "hr@k = k/3"
    assert "3 of 6 items" in report.header() and report.meta["protocol"]["name"] == "leave-last"
    assert "full ranking" not in report.header()
    assert "candidates" not in part.protocol


def test_raw_ids_are_looked_up_in_the_models_vocabulary(part_of: Callable[..., Any], scripted: Any) -> None:
    part = part_of([[1], [2]], [[3], [5]], 5)
    model = scripted([[5, 4, 3, 2, 1]] * 2)
    with pytest.raises(ValueError, match="mask"):
        evaluate(model, part, candidates=["a", "b"], progress=False)
    model.vocabulary = Vocabulary(np.array(list("abcde"), object), 1)
    report = evaluate(model, part, k=1, candidates=["e", "c", "e"], progress=False)
    assert report.meta["num_candidates"] == 2 and report.per_user("hr@1").tolist() == [1.0, 0.0]
    with pytest.raises(DataError, match="'z'"):
        evaluate(model, part, candidates=["e", "z"], progress=False)


def test_a_constant_scorer_gets_what_guessing_gives(part_of: Callable[..., Any], scripted: Any) -> None:
    rng = np.random.default_rng(0)
    targets = [[int(row)] for row in rng.integers(11, 41, 50)]
    part = part_of([[1, 2, 3]] * 50, targets, 40, item_counts=[1] * 10 + [0] * 30)
    report = evaluate(scripted(np.zeros((50, 40))), part, k=10, candidates="cold", progress=False)
    assert report.mean("hr@10") == pytest.approx(10 / 30)


def test_shares_merge_to_one_report(random_case: Callable[..., Any]) -> None:
    model, part = random_case(seed=2)
    mask = np.arange(31) % 3 == 1
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DataWarning)
        parts = [evaluate(model, part, candidates=mask, progress=False, rank=r, world_size=3) for r in range(3)]
        whole = evaluate(model, part, candidates=mask, progress=False)
    merged = Report.merge(parts)
    assert merged.means() == whole.means() and merged.meta == whole.meta


def test_bad_candidates_are_refused(part_of: Callable[..., Any], scripted: Any) -> None:
    part = part_of([[1], [2]], [[3], [5]], 5, item_counts=[1] * 5)
    model = scripted(np.zeros((2, 5)))
    model.vocabulary = Vocabulary(np.array(list("abcde"), object), 1)
    for wrong, error, match in (
        ("warm", ValueError, "warm"),
        ("cold", DataError, "none is cold"),
        (np.ones(5, bool), ValueError, r"\(6,\)"),
        (np.zeros(6, bool), DataError, "no item"),
        ([], DataError, "no item"),
        (["a", "b"], DataError, "none of the 2 targets"),
    ):
        with pytest.raises(error, match=match):
            evaluate(model, part, candidates=wrong, progress=False)
    with pytest.raises(ValueError, match="k=4"):
        evaluate(model, part, k=4, candidates=["a", "c", "e"], progress=False)


def test_a_recipe_may_ask_for_candidates() -> None:
    run: Any = Run(None, None, evaluate={"candidates": "cold"})  # type: ignore[arg-type]
    assert list(itertools.chain(run.evaluate)) == ["candidates"]
