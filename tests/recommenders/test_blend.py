"""Blends: the checks of their specification by number, on models that learn circles of items in seconds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import recsys as rs
from recsys.data.split import Split
from recsys.recommenders.base import Ranker
from recsys.recommenders.blend import Blend
from recsys.serve.bundle import Bundle, export
from recsys.testing import check_ranker
from recsys.train.blending import choose_weights
from tests.cycles import cycles, tiny
from tests.generative.test_generator import codes, generator, trained

QUIET: dict[str, Any] = {"progress": False}


@pytest.fixture(scope="module")
def split() -> Split:
    return cycles(users=60)


@pytest.fixture(scope="module")
def members(split: Split) -> list[Any]:
    """Two encoders, one of which reads less, and what is counted."""
    found: list[Any] = [tiny(), tiny(), rs.ItemKNN(k=5, shrink=1.0, decay=0.7), rs.Markov(), rs.Popularity()]
    for seed, model in enumerate(found):
        rs.fit(model, split, epochs=2, seed=seed, **QUIET)
    return found


def histories(split: Split) -> list[list[Any]]:
    index = np.arange(20)
    owner, rows = split.test.history(index)
    return [split.items.raw(rows[owner == at]).tolist() for at in index]


def scores(model: Ranker, split: Split) -> np.ndarray:
    return model.scores(histories(split))


def test_blend_1_a_member_of_weight_0_is_left_out_to_the_bit(split: Split, members: list[Any]) -> None:
    first, _, knn, markov, _ = members
    with_it, without = Blend([first, knn, markov], [1.0, 0.0, 2.0]), Blend([first, markov], [1.0, 2.0])
    assert np.array_equal(scores(with_it, split), scores(without, split))


def test_blend_2_one_member_keeps_its_order(split: Split, members: list[Any]) -> None:
    for member in members:
        assert Blend([member]).recommend(histories(split), 8).items == member.recommend(histories(split), 8).items


def test_blend_3_constants_of_a_user_change_nothing(split: Split, members: list[Any]) -> None:
    first, _, knn, _, _ = members

    class Moved(Ranker):
        def __init__(self, inner: Any, shift: float = 0.0, factor: float = 1.0) -> None:
            super().__init__()
            self.inner, self.shift, self.factor, self.scale = inner, shift, factor, inner.scale
            self.vocabulary, self.num_items, self.learned = inner.vocabulary, inner.num_items, True
            self.max_length, self.popularity = inner.max_length, inner.popularity

        def score(self, batch: Any) -> torch.Tensor:
            return (self.inner.score(batch) + self.shift * batch.lengths[:, None]) * self.factor

    plain = scores(Blend([first, knn], [1.0, 3.0]), split)
    moved = scores(Blend([Moved(first, shift=7.0), Moved(knn, factor=40.0)], [1.0, 3.0]), split)
    assert np.allclose(plain, moved, atol=1e-4)
    assert np.allclose(scores(Blend([first, knn], [2.0, 6.0]), split), 2 * plain, atol=1e-4), "weights are relative"


def test_blend_by_hand(split: Split, members: list[Any]) -> None:
    first, _, knn, _, _ = members
    own, counted = torch.from_numpy(scores(first, split)), scores(knn, split)
    for at, history in enumerate(histories(split)):
        rows = split.items.rows(history)
        others = np.delete(counted[at], rows - 1)
        counted[at] = counted[at] / others.max() if others.max() > 0 else 0 * counted[at]
    expected = own.log_softmax(1).numpy() + 2.5 * counted
    assert np.allclose(scores(Blend([first, knn], [1.0, 2.5]), split), expected, atol=1e-5)


def test_blend_4_weights_are_chosen_without_a_look_at_test(split: Split, members: list[Any]) -> None:
    blend = Blend([members[0], members[2]])
    done = rs.fit(blend, split, **QUIET)
    other = cycles(users=60)
    stops = other.test.target_start
    other.prepared.items[stops] = np.random.default_rng(1).permutation(other.prepared.items[stops])
    again = Blend([members[0], members[2]])
    rs.fit(again, other, **QUIET)
    assert torch.equal(blend.chosen, again.chosen) and blend.curve == again.curve
    values = [one["value"] for one in blend.curve]
    metric = done.best["metric"]
    assert done.best["value"] == max(values) == done.history[0][metric]
    assert done.history[0]["weights"] == blend.chosen.tolist() and blend.chosen[0] == 1
    report = rs.evaluate(blend, split.valid, metrics=[metric], **QUIET)
    assert report.mean(metric) == pytest.approx(max(values))


def test_the_grid_goes_on_while_the_best_weight_lies_at_its_edge(split: Split, members: list[Any]) -> None:
    def best_at(target: float) -> list[float]:
        blend = Blend(members[:3:2])
        choose_weights(blend, lambda kept: -abs(float(kept.blend.chosen[1]) - target), 10)
        return blend.chosen.tolist()

    assert best_at(40.0)[1] == pytest.approx(40, rel=0.2)
    assert best_at(0.05)[1] == pytest.approx(0.05, rel=0.2)
    assert best_at(0.0) == [1.0, 0.0] and best_at(1.0) == [1.0, 1.0]
    three = Blend(members[:3])
    choose_weights(three, lambda kept: -float((kept.blend.chosen - torch.tensor([1.0, 3.0, 0.3])).abs().sum()), 10)
    assert three.chosen.tolist() == pytest.approx([1.0, 3.0, 0.3], rel=0.2)


def test_weights_are_the_same_where_nothing_can_be_kept(
    split: Split, members: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    kept, asked = Blend(members[1:4]), Blend(members[1:4])
    rs.fit(kept, split, **QUIET)
    monkeypatch.setattr("recsys.train.blending.MEMORY", 0)
    rs.fit(asked, split, **QUIET)
    assert torch.equal(kept.chosen, asked.chosen)
    assert [one["value"] for one in kept.curve] == pytest.approx([one["value"] for one in asked.curve])


def test_blend_5_a_model_with_itself_keeps_its_order(split: Split, members: list[Any]) -> None:
    for member in members[::2]:
        twice = Blend([member, member], [1.0, 0.5])
        assert twice.recommend(histories(split), 8).items == member.recommend(histories(split), 8).items


@pytest.mark.parametrize(("chosen", "vectors"), [([0, 2, 3], False), ([0, 1], True)])
def test_blend_6_model_run_and_bundle_give_equal_lists(
    split: Split, members: list[Any], tmp_path: Path, chosen: list[int], vectors: bool
) -> None:
    blend = Blend([members[at] for at in chosen])
    rs.fit(blend, split, folder=tmp_path / "run", **QUIET)
    asked = histories(split)
    best = blend.recommend(asked, 8)
    assert hasattr(blend, "item_vectors") == vectors
    loaded = rs.load_run(tmp_path / "run")
    assert isinstance(loaded, Blend) and torch.equal(loaded.chosen, blend.chosen)
    assert np.array_equal(scores(loaded, split), scores(blend, split))
    for model in (blend, loaded):
        export(model, tmp_path / "bundle", split=split)
        bundle = Bundle.load(tmp_path / "bundle")
        assert (bundle.index is not None) == vectors
        found = bundle.recommend(asked, 8)
        assert found.items == best.items and np.allclose(found.scores, best.scores, atol=1e-5)
    if vectors:
        parts = zip(blend.chosen.tolist(), [scores(members[at], split) for at in chosen], strict=True)
        assert np.allclose(scores(blend, split), sum(weight * part for weight, part in parts), atol=1e-4)


def test_a_member_that_makes_lists_counts_by_rank(split: Split, members: list[Any], tmp_path: Path) -> None:
    model = generator(codes(tmp_path / "ids", split, seed=1))
    trained(model, split, epochs=2)
    blend, asked = Blend([members[4], model], [0.5, 2.0], depth=5), histories(split)
    lists, found = model.recommend(asked, 5, exclude="none").rows, scores(blend, split)
    popular = scores(Blend([members[4]], [0.5]), split)
    for row, items, own in zip(found, lists, popular, strict=True):
        expected = own.copy()
        expected[items - 1] += 2.0 / (60 + np.arange(1, 6))
        assert np.allclose(row, expected, atol=1e-6)
    rs.fit(Blend([members[2], model]), split, valid_users=10, **QUIET)


def test_blend_is_a_recommender_that_counts_what_is_not_counted_yet() -> None:
    check_ranker(Blend([rs.ItemKNN(k=3), rs.Markov(), rs.Popularity()], [1.0, 0.5, 0.1]))


def test_histories_are_cut_to_what_each_member_reads(split: Split, members: list[Any]) -> None:
    long = [split.items.raw(np.arange(15) % 20 + 1).tolist()]
    first, knn = members[0], members[2]
    assert first.max_length < 15 and Blend([first, knn]).max_length is None
    expected = first.scores(long)[0]
    together = Blend([first, knn], [1.0, 0.0]).scores(long)[0]
    assert np.allclose(together - together[0], expected - expected[0], atol=1e-5)


def test_blends_refuse_what_they_cannot_do(split: Split, members: list[Any]) -> None:
    for weights in ([1.0], [0.0, 0.0], [1.0, -1.0], [1.0, float("nan")]):
        with pytest.raises(ValueError, match="weights"):
            Blend(members[:2], weights)
    with pytest.raises(ValueError, match="members"):
        Blend([])
    with pytest.raises(TypeError, match="recommenders"):
        Blend([members[0], "ItemKNN"])
    odd = rs.Popularity()
    odd.scale = 2.0
    with pytest.raises(TypeError, match="scale"):
        Blend([members[0], odd])
    with pytest.raises(ValueError, match="fit it first"):
        rs.fit(Blend([tiny(), rs.ItemKNN()]), split, **QUIET)
    other = rs.Popularity()
    rs.fit(other, cycles(items=15), **QUIET)
    with pytest.raises(ValueError, match="one split"):
        Blend([members[0], other])
