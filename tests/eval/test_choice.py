from __future__ import annotations

import numpy as np
import pytest

from recsys.eval.choice import choose


def columns(*arguments: object) -> tuple[list[str], list[str]]:
    choice = choose(*arguments)  # type: ignore[arg-type]
    return [name for name, _, _ in choice.metrics], [name for name, _, _ in choice.aggregates]


def test_names_take_every_cut_or_their_own():
    assert columns(["ndcg", "gini"], (10, 5), 100) == (["ndcg@5", "ndcg@10"], ["gini@5", "gini@10"])
    assert columns(["ndcg@7"], (10, 5), 100) == (["ndcg@7"], [])
    assert columns(["hr"], np.int64(3), 100) == (["hr@3"], [])
    assert columns(["hr@2"], (10, 20), 7) == (["hr@2"], [])  # k plays no role here


def test_everything_by_default():
    metrics, aggregates = columns(None, 10, 100)
    names = ["hr", "recall", "ndcg", "mrr", "map", "precision", "novelty", "popularity"]
    assert metrics == [f"{name}@10" for name in names]
    assert aggregates == ["coverage@10", "gini@10"]


def test_lists_are_made_only_where_they_are_read():
    assert choose(["ndcg", "mrr"], (5, 50), 100).list_length == 0
    assert choose(["ndcg@50", "novelty@5", "coverage@7"], 1, 100).list_length == 7


def test_a_cut_behind_the_catalogue_offers_the_last_one():
    with pytest.raises(ValueError, match="7 items: ask for 'ndcg@7'"):
        choose(["ndcg@10"], 5, 7)


@pytest.mark.parametrize("odd", [object(), 3, type("NoCall", (), {"name": "x"})()])
def test_things_that_are_no_metric(odd):
    with pytest.raises(TypeError, match="metric"):
        choose([odd], 5, 10)


def test_a_class_instead_of_an_object():
    with pytest.raises(TypeError, match="object"):
        choose([type("Mine", (), {"name": "mine", "__call__": lambda self, ranked, k: 0})], 5, 10)


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("HitRate", "hr"), ("hit_ratio@10", "hr@10"), ("Hit", "hr"), ("NDCG@10", "ndcg@10"), ("ndcg_at_10", "ndcg@10"),
        ("Recall@k=5", "recall@5"), ("itemcoverage", "coverage"), ("recal", "recall"), ("ndcg10", "ndcg@10"),
    ],
)  # fmt: skip
def test_names_of_other_libraries_lead_to_ours(written: str, meant: str) -> None:
    with pytest.raises(ValueError, match=f"did you mean '{meant}'"):
        choose([written], 5, 100)


def test_a_name_of_nothing_gets_the_known_ones_only() -> None:
    with pytest.raises(ValueError, match="no metric is called 'auc'; known: hr, "):
        choose(["auc"], 5, 100)
