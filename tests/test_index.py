"""The index against brute force, its use of raw ids, its life on disk, and its company with torch."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from recsys.errors import DataError, DataWarning
from recsys.index import Index, kmeans, nearest_rows

KINDS = ["exact", "hnsw"]


def clouds(n: int = 400, dim: int = 8, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((n, dim)).astype(np.float32)


def names(n: int) -> list[str]:
    return [f"sku-{i}" for i in range(n)]


def truth(vectors: np.ndarray, query: np.ndarray, keep: np.ndarray, k: int) -> list[int]:
    scores = vectors @ query
    scores[~keep] = -np.inf
    return np.argsort(-scores)[:k].tolist()


@pytest.mark.parametrize("kind", KINDS)
def test_search_equals_brute_force(kind: str) -> None:
    vectors, queries = clouds(), clouds(20, seed=1)
    index = Index.build(vectors, np.arange(400) * 7, kind=kind, recall_queries=queries)
    hits = index.search(queries, k=10)
    expected = [[7 * slot for slot in truth(vectors, query, np.ones(400, bool), 10)] for query in queries]
    found = hits.ids.tolist()
    if kind == "exact":
        assert found == expected
        assert index.recall["value"] == 1.0
    else:
        overlap = np.mean([len(set(a) & set(b)) / 10 for a, b in zip(found, expected)])
        assert overlap == pytest.approx(index.recall["value"], abs=1e-6)
        assert overlap > 0.95
    assert (np.diff(hits.scores) <= 0).all()
    assert hits.scores[0, 0] == pytest.approx(float(vectors[found[0][0] // 7] @ queries[0]), rel=1e-5)
    assert hits.missing.tolist() == [0] * 20


@pytest.mark.parametrize("kind", KINDS)
def test_denied_items_never_come_back_and_k_is_filled(kind: str) -> None:
    vectors, queries, ids = clouds(), clouds(3, seed=1), names(400)
    order = [truth(vectors, query, np.ones(400, bool), 400) for query in queries]
    deny = [[ids[i] for i in order[0][:5]], [], [ids[i] for i in order[2][:392]] + ["unheard of", ids[order[2][0]]]]
    hits = Index.build(vectors, ids, kind=kind).search(queries, k=8, deny=deny)
    assert hits.missing.tolist() == [0, 0, 0]
    for row, banned in enumerate(deny):
        assert not set(hits.ids[row]) & set(banned)
    assert hits.ids[2].tolist() == [ids[i] for i in order[2][392:]]


@pytest.mark.parametrize("kind", KINDS)
def test_fewer_items_than_k_are_padded_and_counted(kind: str) -> None:
    vectors = clouds(12)
    index = Index.build(vectors, np.arange(12), kind=kind)
    hits = index.search(vectors[:2], k=5, deny=[list(range(9)), []])
    assert hits.missing.tolist() == [2, 0]
    assert hits.ids[0, 3:].tolist() == [-1, -1]
    assert np.isneginf(hits.scores[0, 3:]).all()
    text = Index.build(vectors, names(12), kind=kind).search(vectors[:1], k=5, deny=[names(12)])
    assert text.ids.tolist() == [[None] * 5]


@pytest.mark.parametrize("kind", KINDS)
def test_allow_is_scored_exactly_and_combines_with_deny(kind: str) -> None:
    vectors, queries = clouds(), clouds(4, seed=1)
    index = Index.build(vectors, np.arange(400), kind=kind)
    keep = np.zeros(400, bool)
    keep[[3, 50, 51, 200, 399]] = True
    with pytest.warns(DataWarning, match="1 of 6"):
        hits = index.search(queries, k=5, allow=[399, 3, 50, 200, 51, 5000], deny=[[], [3], [50, 51], []])
    assert hits.ids[0].tolist() == truth(vectors, queries[0], keep, 5)
    assert hits.missing.tolist() == [0, 1, 2, 0]
    assert set(hits.ids[2, :3]) == {3, 200, 399}
    assert index.search(queries, k=5, allow=[]).missing.tolist() == [5] * 4


def test_blocks_of_a_scan_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors, queries = clouds(), clouds(30, seed=1)
    index = Index.build(vectors, np.arange(400))
    deny = [list(range(row * 10)) for row in range(30)]
    whole = index.search(queries, k=5, deny=deny)
    monkeypatch.setattr("recsys.index.SCAN_BYTES", 4 * 400 * 7)
    monkeypatch.setattr("recsys.index.OVERFETCH", 0)
    scanned = index.search(queries, k=5, deny=deny)
    assert (whole.ids == scanned.ids).all()
    np.testing.assert_allclose(whole.scores, scanned.scores, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("ids", [names(400), list(range(1000, 600, -1))], ids=["str", "int"])
@pytest.mark.parametrize("kind", KINDS)
def test_add_and_remove_by_raw_id(kind: str, ids: list[Any], tmp_path: Path) -> None:
    vectors, new = clouds(), ids[0] * 2
    index = Index.build(vectors, ids, kind=kind)
    index.add([new], vectors[:1] * 10)
    assert index.search(vectors[:1], k=1).ids[0, 0] == new
    with pytest.raises(DataError, match="remove them first"):
        index.add([new], vectors[:1])
    index.remove([new, ids[0]])
    assert len(index) == 399
    assert not {new, ids[0]} & set(index.search(vectors[:1], k=399).ids[0])
    index.save(tmp_path / "index")
    index = Index.load(tmp_path / "index")
    assert index.similar([ids[5]], k=3).ids.tolist() == Index.build(vectors, ids).similar([ids[5]], k=3).ids.tolist()
    index.add([ids[0]], vectors[:1])
    assert ids[0] in index.search(vectors[:1], k=400).ids[0]
    with pytest.raises(DataError, match="not in the index"):
        index.remove([new])
    index.remove(ids)
    index.save(tmp_path / "index")
    index = Index.load(tmp_path / "index")
    assert len(index) == 0
    index.add([new], vectors[:1])
    assert index.search(vectors[:1], k=1).ids.tolist() == [[new]]


def test_a_graph_is_rebuilt_when_enough_is_dead() -> None:
    vectors, ids = clouds(), names(400)
    index = Index.build(vectors, ids, kind="hnsw")
    index.remove(ids[:60])
    assert len(index.vectors) == 400
    index.remove(ids[60:100])
    assert len(index.vectors) == 300 == len(index)
    assert index.search(vectors[150:151], k=300).ids[0].tolist() == [
        ids[i] for i in truth(vectors, vectors[150], np.arange(400) >= 100, 300)
    ]
    assert index.measure_recall(5) > 0.9
    index.remove(ids[100:])
    with pytest.raises(ValueError, match="k must"):
        index.search(vectors[:1], k=1)


def test_similar_leaves_the_item_out() -> None:
    vectors = clouds(50)
    hits = Index.build(vectors, np.arange(50)).similar([4, 9], k=3)
    keep = np.arange(50) != 4
    assert hits.ids[0].tolist() == truth(vectors, vectors[4], keep, 3)
    with pytest.raises(DataError, match="not in the index"):
        Index.build(vectors, np.arange(50)).similar([77], k=3)


def test_a_poor_graph_says_so() -> None:
    vectors = clouds(2000, 32)
    with pytest.warns(DataWarning, match="ef_search"):
        Index.build(vectors, np.arange(2000), kind="hnsw", m=2, ef_construction=4, ef_search=1)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("text", [False, True])
def test_save_and_load(kind: str, text: bool, tmp_path) -> None:
    vectors = clouds()
    ids = [f"é{i}" for i in range(400)] if text else np.arange(400)
    index = Index.build(vectors, ids, kind=kind)
    index.remove(ids[3:4])
    index.save(tmp_path / "index")
    index.save(tmp_path / "index")
    again = Index.load(tmp_path / "index")
    assert len(again) == 399
    assert again.recall == index.recall
    before, after = index.search(vectors[:20], k=7), again.search(vectors[:20], k=7)
    assert (before.ids == after.ids).all()
    assert (before.scores == after.scores).all()
    assert [path.name for path in tmp_path.iterdir()] == ["index"]


def test_a_damaged_or_foreign_index_is_refused(tmp_path) -> None:
    Index.build(clouds(20), np.arange(20)).save(tmp_path / "index")
    path = tmp_path / "index" / "index.faiss"
    whole = path.read_bytes()
    path.write_bytes(whole[:-5])
    with pytest.raises(DataError, match="bytes"):
        Index.load(tmp_path / "index", verify=False)
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(DataError, match="SHA-256"):
        Index.load(tmp_path / "index")
    path.unlink()
    with pytest.raises(DataError, match="missing"):
        Index.load(tmp_path / "index")
    manifest = tmp_path / "index" / "manifest.json"
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "format": 99}))
    with pytest.raises(DataError, match="format 99"):
        Index.load(tmp_path / "index")
    manifest.write_text("{")
    with pytest.raises(DataError, match="write the folder anew"):
        Index.load(tmp_path / "index")
    with pytest.raises(FileNotFoundError):
        Index.load(tmp_path / "nowhere")


def test_a_full_disk_leaves_the_old_index(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    index = Index.build(clouds(20), np.arange(20))
    index.save(tmp_path / "index")

    def full(*args: object, **kwargs: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "save", full)
    with pytest.raises(OSError, match="No space"):
        index.save(tmp_path / "index")
    monkeypatch.undo()
    assert len(Index.load(tmp_path / "index")) == 20
    assert [path.name for path in tmp_path.iterdir()] == ["index"]


def test_other_peoples_folders_are_not_replaced(tmp_path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").write_text("x")
    with pytest.raises(FileExistsError, match="photos"):
        Index.build(clouds(20), np.arange(20)).save(tmp_path / "photos")
    assert (tmp_path / "photos" / "a.jpg").exists()


@pytest.mark.parametrize(
    ("vectors", "ids", "word"),
    [
        (clouds(3), [1, 2], "one id per vector"),
        (clouds(3), [1, 2, 1], "repeat"),
        (clouds(3), [1, "2", 3], "all int or all str"),
        (clouds(3), [1.5, 2.5, 3.5], "int"),
        (clouds(3)[0], [1], "must be"),
        (np.full((3, 2), np.nan), [1, 2, 3], "finite"),
        (np.array([[1e38, 1e38], [np.inf, 0]]), [1, 2], "1 of 2"),
        (np.zeros((0, 4)), [], "at least one"),
    ],
)
def test_bad_input_to_build(vectors: np.ndarray, ids: list, word: str) -> None:
    with pytest.raises(ValueError, match=word):
        Index.build(vectors, ids)


def test_bad_input_to_search() -> None:
    index = Index.build(clouds(20), np.arange(20))
    for k in (0, 21):
        with pytest.raises(ValueError, match="20 items"):
            index.search(clouds(1), k=k)
    with pytest.raises(ValueError, match=r"\(n, 8\)"):
        index.search(clouds(1, 9), k=1)
    with pytest.raises(DataError, match="int"):
        index.search(clouds(1), k=1, allow=["3"])
    with pytest.raises(ValueError, match="per query"):
        index.search(clouds(2), k=1, deny=[[1]])
    with pytest.raises(ValueError, match="kind"):
        Index.build(clouds(20), np.arange(20), kind="ivf")


@pytest.mark.parametrize("order", ["import torch, faiss", "import faiss, torch"])
def test_faiss_and_torch_run_threads_in_one_process(order: str) -> None:
    program = f"""{order}
import numpy as np
torch.set_num_threads(2); faiss.omp_set_num_threads(2)
x = np.random.default_rng(0).standard_normal((3000, 16)).astype("f4")
for _ in range(3):
    scores = torch.from_numpy(x) @ torch.from_numpy(x).T
    graph = faiss.IndexHNSWFlat(16, 8, faiss.METRIC_INNER_PRODUCT); graph.add(x)
    flat = faiss.IndexFlatIP(16); flat.add(x)
    assert np.allclose(flat.search(x[:200], 1)[0][:, 0], scores[:200].max(1).values.numpy(), atol=1e-4)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr


def test_nearest_rows_by_cells_finds_nearly_what_comparing_everything_finds():
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(20, 8))
    rows = (centres[rng.integers(0, 20, 3000)] + 0.3 * rng.normal(size=(3000, 8))).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    products = rows[:200] @ rows.T
    truth = np.argsort(-products, axis=1)[:, :5]
    exact, scores = nearest_rows(rows[:200], rows, 5, kind="exact")
    assert (np.sort(exact) == np.sort(truth)).all()
    np.testing.assert_allclose(scores, np.take_along_axis(products, exact, 1), atol=1e-5)
    cells, _ = nearest_rows(rows[:200], rows, 5, kind="ivf")
    assert np.mean([len(np.intersect1d(a, b)) / 5 for a, b in zip(cells, truth)]) >= 0.95
    with pytest.raises(ValueError, match="3000"):
        nearest_rows(rows[:2], rows, 3001)


def test_kmeans_finds_clusters_that_are_there_and_is_repeatable():
    rng = np.random.default_rng(1)
    centres = np.array([[0, 0], [10, 0], [0, 10]], np.float32)
    points = (np.repeat(centres, 50, axis=0) + rng.normal(size=(150, 2))).astype(np.float32)
    found = kmeans(points, 3, seed=5, start=centres + 1)
    assert np.abs(found[:, None] - centres[None]).sum(2).min(0).max() < 1
    assert (kmeans(points, 3, seed=5) == kmeans(points, 3, seed=5)).all()
    with pytest.raises(ValueError, match="fewer"):
        kmeans(points, 151)
