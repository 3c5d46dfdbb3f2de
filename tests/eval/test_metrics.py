from __future__ import annotations

import math

import numpy as np
import pytest

from recsys.eval.metrics.hit_rate import HitRate
from recsys.eval.metrics.map import MAP
from recsys.eval.metrics.mrr import MRR
from recsys.eval.metrics.ndcg import NDCG
from recsys.eval.metrics.novelty import Novelty
from recsys.eval.metrics.popularity_bias import PopularityBias
from recsys.eval.metrics.precision import Precision
from recsys.eval.metrics.ranked import Catalogue, Metric, Ranked
from recsys.eval.metrics.recall import Recall


def ranked(pairs: list[tuple[int, int, int]], users: int, candidates: int = 1000, **others: object) -> Ranked:
    user, above, size = np.array(pairs, dtype=np.int64).reshape(-1, 3).T
    return Ranked.from_pairs(user, above, size, np.full(users, candidates), **others)


def test_groups_are_made_from_pairs_in_any_order():
    view = ranked([(2, 5, 3), (0, 9, 1), (2, 1, 1), (2, 5, 3)], users=4)
    assert view.user.tolist() == [0, 2, 2]
    assert view.above.tolist() == [9, 1, 5]
    assert view.hits.tolist() == [1, 1, 2]
    assert view.relevant.tolist() == [1, 0, 3, 0]
    assert view.first.tolist() == [True, True, False]
    assert view.hits_above.tolist() == [0, 0, 1]
    assert view.rank.tolist() == [10.0, 2.0, 7.0]
    assert view.filled(6).tolist() == [0, 1, 1]


@pytest.mark.parametrize("metric", [HitRate(), Recall(), Precision(), NDCG(), MRR(), MAP()])
def test_users_without_a_target_and_no_users_at_all_get_zeros(metric):
    assert isinstance(metric, Metric)
    assert metric(ranked([], users=3), 5).tolist() == [0.0, 0.0, 0.0]
    assert metric(ranked([], users=0), 5).shape == (0,)
    found = metric(ranked([(1, 0, 1)], users=3), 5)
    assert found[[0, 2]].tolist() == [0.0, 0.0] and found[1] > 0


def test_hit_rate_in_a_tie_is_hypergeometric():
    # 3 of the 10 tied items are targets, 4 of the 10 are shown
    view = ranked([(0, 2, 10)] * 3, users=1)
    assert HitRate()(view, 6) == pytest.approx([1 - math.comb(7, 4) / math.comb(10, 4)], abs=1e-12)
    assert HitRate()(view, 2).tolist() == [0.0]
    assert HitRate()(view, 10).tolist() == [1.0]  # 8 shown, only 7 are no targets


def test_a_tie_over_a_million_items_stays_exact():
    size = 10**6
    view = ranked([(0, 0, size)], users=1, candidates=size)
    assert HitRate()(view, 10) == pytest.approx([10 / size], rel=1e-9)
    assert MRR()(view, 10) == pytest.approx([sum(1 / j for j in range(1, 11)) / size], rel=1e-12)
    assert MAP()(view, size) == pytest.approx([sum(1 / j for j in range(1, size + 1)) / size], rel=1e-9)


def test_one_target_makes_recall_hit_rate_and_map_mrr_the_same():
    rng = np.random.default_rng(0)
    view = ranked([(user, int(rng.integers(0, 12)), int(rng.integers(1, 9))) for user in range(200)], users=200)
    for k in (1, 5, 10):
        assert HitRate()(view, k) == pytest.approx(Recall()(view, k), abs=1e-12)
        assert MRR()(view, k) == pytest.approx(MAP()(view, k), abs=1e-12)
        assert Precision()(view, k) * k == pytest.approx(Recall()(view, k), abs=1e-12)


def test_metrics_grow_with_k():
    rng = np.random.default_rng(1)
    pairs = [(user, 10 * place + int(rng.integers(0, 5)), 1 + user % 4) for user in range(50) for place in range(3)]
    view = ranked(pairs, users=50)
    for metric in (HitRate(), Recall(), MRR()):
        values = np.stack([metric(view, k) for k in range(1, 40)])
        assert (np.diff(values, axis=0) >= -1e-12).all()


def test_novelty_and_popularity_of_lists():
    counts = np.array([0, 4, 2, 2, 0])
    lists = np.array([[1, 2, 3], [4, 1, 0]])  # the second list is one item short
    view = ranked([], users=2, lists=lists, catalogue=Catalogue(counts))
    bits = -np.log2((counts[1:] + 1) / 12)
    assert Novelty()(view, 3) == pytest.approx([bits[[0, 1, 2]].mean(), bits[[3, 0]].mean()])
    assert Novelty()(view, 1) == pytest.approx([bits[0], bits[3]])
    percentile = np.array([3.5, 2.0, 2.0, 0.5]) / 4
    assert PopularityBias()(view, 3) == pytest.approx([percentile[:3].mean(), percentile[[3, 0]].mean()])
    assert percentile.mean() == 0.5  # what recommending at random gives
    with pytest.raises(ValueError, match="lists"):
        Novelty()(ranked([], users=2), 3)
