from __future__ import annotations

import itertools

import numpy as np
import pytest

from recsys.eval import significance
from recsys.eval.significance import bootstrap_interval, holm, sign_flip_test


def test_the_interval_covers_the_truth_about_as_often_as_it_says():
    rng = np.random.default_rng(0)
    samples = rng.exponential(size=(200, 400))  # 400 columns: as many experiments, truth 1
    bounds = bootstrap_interval(samples)
    covered = ((bounds[:, 0] <= 1) & (bounds[:, 1] >= 1)).mean()
    assert 0.90 <= covered <= 0.98


@pytest.mark.parametrize("chance", [0.02, 0.3])
def test_large_samples_in_closed_form_agree_with_resampling(chance, monkeypatch):
    rng = np.random.default_rng(1)
    values = rng.binomial(1, chance, size=5000) / np.log2(rng.integers(2, 12, size=5000))
    values = values[:, None]
    resampled = np.mean([bootstrap_interval(values, seed=seed)[0] for seed in range(5)], axis=0)
    monkeypatch.setattr(significance, "RESAMPLED_USERS", 0)
    closed = bootstrap_interval(values)[0]
    assert np.abs(closed - resampled).max() < 0.02 * (resampled[1] - resampled[0])


def test_a_level_of_its_own_and_a_seed():
    values = np.random.default_rng(2).normal(size=(300, 1))
    wide, narrow = bootstrap_interval(values, 0.99)[0], bootstrap_interval(values, 0.5)[0]
    assert wide[0] < narrow[0] < narrow[1] < wide[1]
    assert np.array_equal(bootstrap_interval(values, seed=4), bootstrap_interval(values, seed=4))
    assert not np.array_equal(bootstrap_interval(values, seed=4), bootstrap_interval(values, seed=5))


def test_few_users():
    assert bootstrap_interval(np.array([[0.3, 1.0]])).tolist() == [[0.3, 0.3], [1.0, 1.0]]
    assert np.isnan(bootstrap_interval(np.zeros((0, 2)))).all()
    constant = np.full((30_000, 1), 0.25)
    assert bootstrap_interval(constant)[0].tolist() == [0.25, 0.25]


def test_all_sign_patterns_of_few_users():
    differences = np.array([0.5, -0.25, 1.0, 0.0, 0.75])
    nonzero = differences[differences != 0]
    sums = [abs(np.dot(signs, nonzero)) for signs in itertools.product([1, -1], repeat=len(nonzero))]
    expected = np.mean([value >= abs(nonzero.sum()) - 1e-12 for value in sums])
    assert sign_flip_test(differences[:, None]) == [(pytest.approx(expected), "exact")]
    assert sign_flip_test(np.zeros((7, 1))) == [(1.0, "exact")]


def test_sampled_flips_agree_with_all_flips(monkeypatch):
    differences = np.random.default_rng(3).normal(0.4, 1.0, size=(15, 3))
    exact = sign_flip_test(differences)
    monkeypatch.setattr(significance, "ENUMERATED_USERS", 0)
    sampled = sign_flip_test(differences)
    assert [how for _, how in exact + sampled] == ["exact"] * 3 + ["sampled"] * 3
    for (p, _), (other, _) in zip(exact, sampled, strict=True):
        assert abs(p - other) < 0.02


def test_the_limit_agrees_with_sampled_flips(monkeypatch):
    rng = np.random.default_rng(4)
    differences = rng.binomial(1, 0.1, size=(4000, 3)) * rng.normal(0.05, 1.0, size=(4000, 3))
    sampled = sign_flip_test(differences)
    monkeypatch.setattr(significance, "FLIPPED_USERS", 10)
    limit = sign_flip_test(differences)
    assert [how for _, how in limit] == ["normal"] * 3
    for (p, _), (other, _) in zip(sampled, limit, strict=True):
        assert abs(p - other) < 0.02


def test_no_sampled_p_is_zero():
    assert sign_flip_test(np.ones((500, 1)))[0] == (1 / (1 + significance.FLIPS), "sampled")


def test_p_values_of_no_difference_are_uniform_enough():
    differences = np.random.default_rng(5).normal(size=(60, 300))
    p = np.array([value for value, _ in sign_flip_test(differences)])
    assert 0.01 < (p < 0.05).mean() < 0.10
    assert 0.4 < p.mean() < 0.6


def test_holm_by_hand():
    # ascending .005 .01 .03 .04 times 4 3 2 1 = .02 .03 .06 .04; the last one may not fall below its predecessor
    assert holm(np.array([0.01, 0.04, 0.03, 0.005])) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm(np.array([0.6, 0.9])).tolist() == [1.0, 1.0]
    assert holm(np.array([0.2])).tolist() == [0.2]
    assert holm(np.zeros(0)).tolist() == []
