"""The table of semantic ids: made, aligned, saved and loaded; what does not fit is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys.errors import DataError
from recsys.ids.vocabulary import Vocabulary
from recsys.semantic_ids.table import SemanticIds


def table(kind: str = "str", items: int = 30, levels: int = 3, seed: int = 0) -> SemanticIds:
    random = np.random.default_rng(seed)
    ids = random.permutation(items)
    names = ids if kind == "int" else np.array([f"i{one}" for one in ids], object)
    words = [random.standard_normal((9, 4)) for _ in range(levels - 1)]
    codes = random.integers(0, 9, (items, levels))
    return SemanticIds.of(names, codes, sizes=[9] * levels, codewords=words, source="a test")


@pytest.mark.parametrize("kind", ["int", "str"])
def test_aligned_equals_one_at_a_time(kind: str) -> None:
    ids = table(kind)
    asked = ids.ids[np.random.default_rng(1).permutation(len(ids))[:20]]
    found = ids.aligned(Vocabulary(asked, first=1))
    by_id = dict(zip(ids.ids.tolist(), ids.codes.tolist(), strict=True))
    assert found.dtype == np.int64 and found[0].tolist() == [0, 0, 0]
    assert found[1:].tolist() == [by_id[one] for one in asked.tolist()]


@pytest.mark.parametrize("kind", ["int", "str"])
def test_saved_and_loaded(tmp_path: Path, kind: str) -> None:
    ids = table(kind)
    loaded = ids.save(tmp_path / "ids")
    for one in (loaded, loaded.save(tmp_path / "again")):
        assert np.array_equal(one.codes, ids.codes) and one.codes.dtype == np.int32
        assert one.ids.tolist() == ids.ids.tolist() and one.sizes == (9, 9, 9) and one.ordered
        assert one.digest == ids.digest and one.manifest["source"] == "a test"
        assert len(one.codewords) == 2
        assert all(np.array_equal(a, b) for a, b in zip(one.codewords, ids.codewords, strict=True))
    plain = SemanticIds.of([1, 2], [[0], [5]], ordered=False).save(tmp_path / "plain")
    assert plain.codewords is None and not plain.ordered and plain.sizes == (6,)


@given(seed=st.integers(0, 50), other=st.integers(0, 50))
@settings(max_examples=30, deadline=None)
def test_the_digest_tells_codes_sizes_and_ids_apart(seed: int, other: int) -> None:
    a, b = table(seed=seed), table(seed=other)
    assert (a.digest == b.digest) == (seed == other)
    swapped = SemanticIds.of(a.ids[::-1], a.codes, a.sizes)
    wider = SemanticIds.of(a.ids, a.codes, (9, 9, 10))
    assert len({a.digest, swapped.digest, wider.digest}) == 3


def test_codes_of_other_items_are_refused() -> None:
    ids = table()
    with pytest.raises(DataError, match=r"2 of 3 items have no semantic ids, such as \['x', 'y'\]"):
        ids.aligned(Vocabulary(np.array(["x", "i3", "y"], object), first=1))
    with pytest.raises(DataError, match="are int"):
        SemanticIds.of(["1", "2"], [[0], [1]]).aligned(Vocabulary(np.array([1, 2]), first=1))


@pytest.mark.parametrize(
    ("codes", "sizes", "told"),
    [
        ([[0, 3], [1, 1]], (2, 3), "such as 3 of level 2, whose codes are 0..2"),
        ([[0, -1], [1, 1]], None, "such as -1 of level 2"),
        ([[0, 0.5], [1, 1]], None, "whole numbers"),
        ([[0, np.nan], [1, 1]], None, "whole numbers"),
        ([[0, 1], [1]], None, "equal length"),
        ([0, 1], None, r"\(items, levels\)"),
        ([[0, 1]], None, "1 items for 2 ids"),
        ([[0, 1], [1, 1]], (2,), "each of 2 levels"),
    ],
)
def test_codes_that_are_none_are_refused(codes: object, sizes: tuple[int, ...] | None, told: str) -> None:
    with pytest.raises(DataError, match=told):
        SemanticIds.of(["a", "b"], codes, sizes)


def test_repeated_ids_are_refused() -> None:
    with pytest.raises(DataError, match="'a'"):
        SemanticIds.of(["a", "a"], [[0], [1]])


@pytest.mark.parametrize("name", ["codes.npy", "ids.blob.npy", "codewords.1.npy", "ids.json"])
@pytest.mark.parametrize("how", ["cut", "flipped", "gone"])
def test_damaged_folders_are_refused(tmp_path: Path, name: str, how: str) -> None:
    table().save(tmp_path / "ids")
    path = tmp_path / "ids" / name
    data = path.read_bytes()
    if how == "gone":
        path.unlink()
    else:
        path.write_bytes(data[:-3] if how == "cut" else data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(DataError):
        SemanticIds.load(tmp_path / "ids")


def test_a_manifest_of_other_codes_is_refused(tmp_path: Path) -> None:
    table().save(tmp_path / "ids")
    path = tmp_path / "ids" / "manifest.json"
    for change in ({"sizes": [9, 9]}, {"sizes": [5, 9, 9]}, {"sizes": "x"}, {"digest": "0"}, {"codewords": 3}):
        path_text = path.read_text()
        path.write_text(json.dumps({**json.loads(path_text), **change}))
        with pytest.raises(DataError):
            SemanticIds.load(tmp_path / "ids")
        path.write_text(path_text)
    with pytest.raises(FileNotFoundError, match="recsys semantic-ids"):
        SemanticIds.load(tmp_path / "nowhere")
    path.write_text(json.dumps({**json.loads(path.read_text()), "kind": "recsys.vectors"}))
    with pytest.raises(DataError, match="a folder of vectors"):
        SemanticIds.load(tmp_path / "ids")
