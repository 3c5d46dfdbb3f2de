"""Semantic ids made of vectors: order of items, collisions, quality, what is missing, cold splits, the cache."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys.data.cold import cold_items
from recsys.errors import DataError, DataWarning
from recsys.ids.vectors import Vectors
from recsys.ids.vocabulary import Vocabulary
from recsys.semantic_ids.collisions import appended, buckets
from recsys.semantic_ids.controls import drawn, permuted, shuffled_columns
from recsys.semantic_ids.make import make_semantic_ids
from recsys.semantic_ids.product import ProductQuantiser
from recsys.semantic_ids.quality import agreement, alarms, level_quality, reconstruction_error, tuple_quality
from recsys.semantic_ids.random_codes import RandomCodes
from recsys.semantic_ids.residual import ResidualKMeans
from recsys.semantic_ids.rqvae import RQVAE
from recsys.semantic_ids.table import SemanticIds
from recsys.testing import toy_split


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RECSYS_CACHE", str(tmp_path / "cache"))


def vectors(items: int = 30, width: int = 8, seed: int = 0, repeats: int = 1) -> Vectors:
    """Those of the items of a toy split, or of more."""
    random = np.random.default_rng(seed)
    centres = random.standard_normal((6, width)) * 3
    array = centres[np.arange(items) % 6] + random.standard_normal((items, width))
    array[items // 2 : items // 2 + repeats - 1] = array[items // 2 - 1]
    return Vectors.of([f"i{row}" for row in range(1, items + 1)], array, of="items", model="a test")


def by_id(ids: SemanticIds) -> dict[object, list[int]]:
    return dict(zip(ids.ids.tolist(), ids.codes.tolist(), strict=True))


SMALL = ResidualKMeans(levels=2, size=4)


def test_codes_of_all_items_of_a_split() -> None:
    split = toy_split()
    ids = make_semantic_ids(split, vectors(), SMALL)
    assert len(ids) == 30 and ids.levels == 3 and ids.sizes[:2] == (4, 4) and ids.ordered
    table = ids.aligned(split.items)
    assert len(np.unique(table[1:], axis=0)) == 30  # 12.4: unique, and decode(encode(i)) = i
    assert (table < np.array(ids.sizes)).all()
    told = ids.manifest
    assert told["facts"]["tokenizer"]["arguments"]["size"] == 4 and told["facts"]["vectors"][0]["model"] == "a test"
    assert len(ids.codewords) == 2 and ids.codewords[0].shape == (4, 8)
    assert "a test" in str(ids) and "perplexity" in str(ids) and str(ids.path) in str(ids)


@given(seed=st.integers(0, 1000), size=st.integers(3, 6), numbers=st.booleans())
@settings(max_examples=15, deadline=None)
def test_two_orders_of_the_same_items_give_the_same_codes(seed: int, size: int, numbers: bool) -> None:
    given_ = vectors(repeats=5)
    names = np.arange(30) * 7 % 31 if numbers else given_.ids
    order = np.random.default_rng(seed).permutation(30)
    tokenizer = ResidualKMeans(2, size, restarts=1)
    a = make_semantic_ids(Vocabulary(names, 1), Vectors.of(names, given_.array), tokenizer)
    moved = Vectors.of(names[order[::-1]], given_.array[order[::-1]])
    b = make_semantic_ids(Vocabulary(names[order], 1), moved, tokenizer)
    assert by_id(a) == by_id(b) and a.digest == b.digest
    assert a.manifest["quality"]["before"]["largest_bucket"] >= 5


@given(
    codes=st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2)), min_size=1, max_size=40),
)
@settings(max_examples=60, deadline=None)
def test_semantic_ids_12_4_appended_codes_are_unique_and_count_from_zero(codes: list[tuple[int, int]]) -> None:
    table = np.array(codes, np.int32)
    longer, size = appended(table, 40)
    counted: dict[tuple[int, ...], int] = {}
    for row, code in enumerate(codes):
        assert longer[row].tolist() == [*code, counted.get(code, 0)]
        counted[code] = counted.get(code, 0) + 1
    assert size == max(counted.values()) and len({*map(tuple, longer.tolist())}) == len(codes)
    owner, counts = buckets(table)
    assert len(counts) == len(counted) and [counts[one] for one in owner] == [counted[code] for code in codes]


def test_collisions_may_be_kept() -> None:
    split, given_ = toy_split(), vectors(repeats=3)
    kept = make_semantic_ids(split, given_, SMALL, collisions="keep")
    assert kept.levels == 2
    found = by_id(kept)
    assert found["i15"] == found["i16"] == found["i17"]
    quality = kept.manifest["quality"]
    assert quality["before"] == quality["after"] and quality["after"]["colliding"] >= 3
    product = make_semantic_ids(split, given_, ProductQuantiser(2, 4))
    assert product.levels == 2 and not product.ordered and "unordered" in repr(product)
    told_apart = make_semantic_ids(split, given_, ProductQuantiser(2, 4), collisions="append")
    assert told_apart.levels == 3 and told_apart.manifest["quality"]["after"]["colliding"] == 0


def test_more_equal_items_than_the_last_level_tells_apart_are_refused() -> None:
    with pytest.raises(DataError, match=r"12 items share the codes .* at most 8 apart.*collisions=\"keep\""):
        make_semantic_ids(toy_split(), vectors(repeats=12), ResidualKMeans(4, 6), largest_bucket=8)
    assert make_semantic_ids(toy_split(), vectors(repeats=12), ResidualKMeans(4, 6), largest_bucket=12).sizes[-1] == 12


def test_items_without_a_vector_are_counted_and_share_codes_or_are_refused() -> None:
    split, some = toy_split(), vectors(27)
    with pytest.warns(DataWarning, match=r"3 of 30 items have no vector, such as \['i28', 'i29', 'i30'\]"):
        ids = make_semantic_ids(split, some, SMALL)
    found = by_id(ids)
    assert found["i28"][:2] == found["i29"][:2] == found["i30"][:2] and ids.manifest["without_vector"] == 3
    mean = np.asarray(some.array).mean(0, keepdims=True)
    same = ResidualKMeans(2, 4)
    same.fit(np.asarray(some.array)[np.argsort(some.ids)], 0)
    assert found["i28"][:2] == same.encode(mean)[0].tolist()
    with pytest.raises(DataError, match="3 of 30 items have no vector"):
        make_semantic_ids(split, some, SMALL, missing="refuse", folder=ids.path.with_name("other"))


def test_vectors_of_other_items_and_broken_ones_are_refused() -> None:
    split, good = toy_split(), vectors()
    with pytest.raises(DataError, match="none of the 30 ids"):
        make_semantic_ids(split, Vectors.of(["x", "y"], np.eye(2)), SMALL)
    array = np.array(good.array)
    array[4, 2] = np.nan
    with pytest.raises(DataError, match="'i5' holds NaN"):
        make_semantic_ids(split, replace(good, array=array), SMALL)
    with pytest.raises(DataError, match="only 30 different ones among 30, for 256 codes"):
        make_semantic_ids(split, good)
    with pytest.raises(ValueError, match="vectors are needed"):
        make_semantic_ids(split)
    with pytest.raises(TypeError, match="vectors must be"):
        make_semantic_ids(split, np.eye(30), SMALL)
    with pytest.raises(ValueError, match="collisions must be one of"):
        make_semantic_ids(split, good, SMALL, collisions="drop")
    with pytest.raises(TypeError, match="tokenizer must have"):
        make_semantic_ids(split, good, "residual")


class Collapsed(RandomCodes):
    """All items but one get the same codes."""

    def encode(self, vectors: np.ndarray) -> np.ndarray:
        codes = np.zeros((len(vectors), self.levels), np.int32)
        codes[0, 1] = 1
        return codes


def test_a_collapse_is_an_alarm(tmp_path: Path) -> None:
    tokenizer = Collapsed(levels=2, size=40)
    with pytest.warns(DataWarning) as told:
        ids = make_semantic_ids(toy_split(), None, tokenizer, folder=tmp_path / "ids")
    assert ["level 1 has collapsed: 1 of 40" in str(one.message) for one in told] == [True, False]
    assert "level 2 has collapsed: 2 of 40 codes are used, perplexity 1.2" in str(told[1].message)
    assert str(ids).count("ALARM") == 2
    with pytest.raises(DataError, match="level 1 has collapsed"):  # also of codes that are there already
        make_semantic_ids(toy_split(), None, tokenizer, folder=tmp_path / "ids", strict=True)


def test_what_a_tokenizer_says_of_its_training_is_kept() -> None:
    ids = make_semantic_ids(toy_split(), vectors(), RQVAE(2, 4, dim=4, hidden=(8,), epochs=2))
    assert set(ids.manifest["tokenizer_facts"]) == {"loss", "codes_moved"}


def test_the_same_is_not_made_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    split, given_ = toy_split(), vectors()
    first = make_semantic_ids(split, given_, SMALL)
    time = (first.path / "manifest.json").stat().st_mtime_ns
    capsys.readouterr()
    again = make_semantic_ids(split, given_, ResidualKMeans(2, 4))
    assert again.path == first.path and "reused" in capsys.readouterr().err
    assert (first.path / "manifest.json").stat().st_mtime_ns == time
    assert make_semantic_ids(split, given_, SMALL, seed=1).path != first.path
    named = make_semantic_ids(split, given_, SMALL, folder=tmp_path / "ids")
    assert named.digest == first.digest
    other = make_semantic_ids(split, given_, ResidualKMeans(2, 5), folder=tmp_path / "ids")
    assert other.sizes[0] == 5 and "tokenizer" in capsys.readouterr().err  # made anew, and it says why
    copied = other.save(tmp_path / "copy")
    assert copied.digest == other.digest and str(copied).splitlines()[:-1] == str(other).splitlines()[:-1]


def test_a_cold_split_fits_without_the_items_it_holds_out() -> None:
    split = cold_items(toy_split(), count=6, users=0.5)
    cold = split.items.raw(np.flatnonzero(split.train.item_counts()[1:] == 0) + 1)
    assert len(cold) >= 6
    ids = make_semantic_ids(split, vectors(), SMALL)
    assert ids.manifest["facts"]["fit_on"] == "train" and ids.manifest["fitted"] == 30 - len(cold)
    array = np.array(vectors().array)
    array[vectors().vocabulary.rows(cold)] = 50  # what the held-out items are changes nothing for the others
    with_others = make_semantic_ids(split, Vectors.of(vectors().ids, array), SMALL)
    before, after = by_id(ids), by_id(with_others)
    warm = [one for one in before if one not in set(cold.tolist())]
    assert [before[one][:2] for one in warm] == [after[one][:2] for one in warm]
    assert all(np.array_equal(a, b) for a, b in zip(ids.codewords, with_others.codewords, strict=True))
    assert make_semantic_ids(split, vectors(), SMALL, fit_on="all").manifest["fitted"] == 30
    assert make_semantic_ids(toy_split(), vectors(), SMALL).manifest["facts"]["fit_on"] == "all"
    with pytest.raises(ValueError, match="needs a split"):
        make_semantic_ids(split.items, vectors(), SMALL, fit_on="train")


def test_several_sources_count_alike_whatever_their_scale_and_width() -> None:
    split, texts = toy_split(), vectors()
    wide = Vectors.of(texts.ids, np.random.default_rng(1).standard_normal((30, 40)))
    huge = Vectors.of(texts.ids, np.asarray(wide.array) * 1000 + 7)
    a, b = (make_semantic_ids(split, [texts, one], SMALL) for one in (wide, huge))
    assert by_id(a) == by_id(b) and a.codewords[0].shape == (4, 48)
    assert a.manifest["combined"] and len(a.manifest["facts"]["vectors"]) == 2
    words = a.codewords[0]
    assert by_id(a) != by_id(make_semantic_ids(split, texts, SMALL)) and (words[:, :8] ** 2).sum() > 0


def test_vectors_that_know_another_split_are_told() -> None:
    split, learned = toy_split(), vectors()
    with pytest.warns(DataWarning, match="learned from another split"):
        make_semantic_ids(split, replace(learned, manifest={"cut": "other", "model": "runs/a"}), SMALL)
    make_semantic_ids(split, replace(learned, manifest={"cut": split.cut.digest}), SMALL)


def test_quality_by_hand() -> None:
    level = level_quality(np.array([0, 0, 1, 3]), 5)
    entropy = -(0.5 * np.log(0.5) + 2 * 0.25 * np.log(0.25))
    assert level["used"] == 3 and level["size"] == 5
    np.testing.assert_allclose([level["entropy"], level["perplexity"]], [entropy, 2**1.5])
    assert tuple_quality(np.array([[0, 1], [0, 1], [1, 1], [1, 0], [0, 1], [1, 0]])) == {
        "tuples": 3, "colliding": 5, "largest_bucket": 3,
    }  # fmt: skip
    points = np.array([[0.0, 0], [2, 0], [4, 6]])
    assert reconstruction_error(points, points) == 0
    np.testing.assert_allclose(reconstruction_error(points, points + np.array([[1, 0], [0, 0], [0, 2]])), 5 / (8 + 24))
    assert reconstruction_error(points, points.mean(0)) == 1
    codes = np.array([[0, 1, 2], [0, 1, 3], [5, 5, 5]])
    np.testing.assert_allclose(agreement(codes, np.array([[0, 1], [0, 2]])), 1 / 3)


@pytest.mark.parametrize(
    ("counts", "size", "few"),
    [
        ([10] * 256, 256, False),
        ([1000] * 15 + [0] * 241, 256, True),  # perplexity 15 of 256
        ([1000] * 20 + [0] * 236, 256, True),  # used 20 of 256, less than a tenth
        ([1000] * 30 + [0] * 226, 256, False),
        ([100000] + [1] * 255, 256, True),
        ([5, 5, 0, 0], 4, False),
        ([9, 0, 0, 0], 4, True),
        ([1] * 8, 256, False),  # eight items cannot use more
    ],
)
def test_semantic_ids_12_3_what_counts_as_collapsed(counts: list[int], size: int, few: bool) -> None:
    codes = np.repeat(np.arange(len(counts)), counts)
    assert bool(alarms([level_quality(codes, size)], len(codes))) is few


def test_many_levels_are_told_together() -> None:
    wide = Vectors.of(vectors().ids, np.random.default_rng(0).standard_normal((30, 20)))
    shown = str(make_semantic_ids(toy_split(), wide, ProductQuantiser(10, 4), collisions="append"))
    assert "levels     10, codes used 4 to 4" in shown and "level 11" in shown and "level 9" not in shown


def test_controls_keep_what_they_say() -> None:
    ids = make_semantic_ids(toy_split(), vectors(repeats=4), SMALL)
    moved = permuted(ids, seed=1)
    assert sorted(map(tuple, moved.codes)) == sorted(map(tuple, ids.codes)) and by_id(moved) != by_id(ids)
    assert moved.sizes == ids.sizes and moved.digest != ids.digest and permuted(ids, 1).digest == moved.digest
    assert permuted(ids, seed=2).digest != moved.digest
    columns = shuffled_columns(ids, seed=1)
    for level in range(2):
        assert sorted(columns.codes[:, level]) == sorted(ids.codes[:, level])
    assert len(np.unique(columns.codes, axis=0)) == 30 and columns.levels == 3
    assert tuple_quality(columns.codes[:, :2])["largest_bucket"] == columns.sizes[-1]
    even = drawn(ids, seed=1)
    assert even.sizes[:2] == ids.sizes[:2] and len(np.unique(even.codes, axis=0)) == 30
    for one in (moved, columns, even):
        assert one.manifest["true_digest"] == ids.digest and "CONTROL" in str(one) and one.ordered
    kept = make_semantic_ids(toy_split(), vectors(), ProductQuantiser(2, 4))
    assert shuffled_columns(kept).levels == 2 and not shuffled_columns(kept).ordered


def test_a_frame_of_codes() -> None:
    import polars as pl

    frame = pl.DataFrame({"item": ["a", "b"], "c1": [0, 4], "c2": [1, 0]})
    ids = SemanticIds.of(frame, ids="item", sizes=[8, 8])
    assert by_id(ids) == {"a": [0, 1], "b": [4, 0]}
    listed = SemanticIds.of(pl.DataFrame({"item": [3, 5], "codes": [[0, 1], [4, 0]]}), ids="item", ordered=False)
    assert by_id(listed) == {3: [0, 1], 5: [4, 0]}


def walks(items: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """(P, 2) consecutive rows of flat histories."""
    ends = np.cumsum(lengths)
    inside = np.ones(len(items) - 1, bool)
    inside[ends[:-1] - 1] = False
    return np.stack([items[:-1], items[1:]], axis=1)[inside]


def test_rpg_14_2_codes_of_items_that_follow_each_other_agree() -> None:
    random = np.random.default_rng(0)
    centres = random.standard_normal((30, 16)) * 2
    array = np.repeat(centres, 20, axis=0) + random.standard_normal((600, 16))
    histories = (random.integers(0, 30, (200, 1)) * 20 + random.integers(0, 20, (200, 8))).ravel()
    pairs = walks(histories, np.full(200, 8))
    pairs = pairs[pairs[:, 0] != pairs[:, 1]]
    names = np.arange(600)
    ids = make_semantic_ids(Vocabulary(names, 0), Vectors.of(names, array), ProductQuantiser(8, 32))
    other = random.integers(0, 600, (20000, 2))
    true, chance = agreement(ids.codes, pairs), agreement(ids.codes, other)
    mixed = agreement(permuted(ids).codes, pairs)
    assert true > 3 * chance and abs(mixed - chance) < 0.5 * chance


MIRROR = os.environ.get("RECSYS_MIRROR", "")


@pytest.mark.slow
@pytest.mark.skipif(not MIRROR, reason="RECSYS_MIRROR is not set")
def test_semantic_ids_12_3_and_rpg_14_2_amazon_beauty_by_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import recsys as rs

    monkeypatch.setenv("RECSYS_MIRROR", MIRROR)
    split = rs.load("amazon-beauty").split(rs.LeaveLast())
    texts = rs.embed(split, model="tfidf")
    levels = rs.make_semantic_ids(split, texts).manifest["quality"]["levels"]
    assert all(level["used"] >= 0.8 * 256 and level["perplexity"] > 100 for level in levels[:3])
    ids = rs.make_semantic_ids(split, texts, ProductQuantiser(16))
    quality = ids.manifest["quality"]
    assert quality["after"]["tuples"] >= 11_500
    assert np.mean([level["perplexity"] for level in quality["levels"]]) >= 200
    table = ids.aligned(split.items)
    lengths = split.train.lengths
    flat = np.concatenate([split.train.history(user) for user in range(split.num_users)])
    pairs = walks(flat, lengths[lengths > 0])
    chance = agreement(table, np.random.default_rng(0).integers(1, split.num_items + 1, (200_000, 2)))
    assert agreement(table, pairs) >= 5 * chance
    mixed = agreement(permuted(ids).aligned(split.items), pairs)
    assert abs(mixed - chance) < 0.1 * chance
