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
from recsys.index.clusters import kmeans
from recsys.index.neighbours import nearest_rows
from recsys.index.search import Index
from recsys.storage.folders import hashes

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
    monkeypatch.setattr("recsys.index.search.SCAN_BYTES", 4 * 400 * 7)
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
    hits = Index.build(vectors, np.arange(50)).similar([4, 9], k=3, metric="dot")
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
        (clouds(3), [1, "2", 3], "all ints or all strings"),
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
    with pytest.raises(ValueError, match="k must"):
        index.search(clouds(1), k=0)
    assert index.search(clouds(1), k=21).ids.shape == (1, 20)
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


def normed(items: int, dim: int, spread: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Clustered vectors whose lengths differ, and queries from the same clusters."""
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((20, dim))
    found = centres[rng.integers(0, 20, items)] + 0.5 * rng.standard_normal((items, dim))
    found *= np.exp(spread * rng.standard_normal((items, 1))) / np.linalg.norm(found, axis=1, keepdims=True)
    queries = centres[rng.integers(0, 20, 30)] + 0.5 * rng.standard_normal((30, dim))
    return found.astype(np.float32), queries.astype(np.float32)


def share(found: np.ndarray, truth: np.ndarray) -> float:
    return float((found >= truth[:, -1:] - 1e-5 * np.abs(truth[:, -1:])).mean())


@pytest.mark.filterwarnings("ignore::recsys.errors.DataWarning")
def test_index_f1_f1b_what_lies_deep_or_behind_denials_is_found() -> None:
    vectors, queries = normed(3000, 32, 0.5)
    graph = Index.build(vectors, np.arange(3000), kind="hnsw", ef_search=48, m=8, ef_construction=40, progress=False)
    exact = Index.build(vectors, np.arange(3000))
    order = exact.search(queries, k=410).ids
    for denied in (0, 50, 100, 200, 400):
        deny = [row[:denied].tolist() for row in order]
        truth = exact.search(queries, k=10, deny=deny)
        assert share(graph.search(queries, k=10, deny=deny).scores, truth.scores) > 0.95
    assert share(graph.search(queries, k=100).scores, exact.search(queries, k=100).scores) > 0.95
    deep = {int(depth): value for depth, value in graph.recall["at"].items()}
    assert deep[100] < deep[10], "measured at two depths"
    assert graph.recall["denied"]["100"] < deep[100]
    assert graph.depth < 100


def test_k9_a_recall_is_measured_on_queries_that_are_not_in_the_index() -> None:
    rng = np.random.default_rng(0)
    copies = np.repeat(rng.standard_normal((100, 32)).astype(np.float32), 40, 0)
    with pytest.warns(DataWarning, match="true top"):
        graph = Index.build(copies, np.arange(4000), kind="hnsw", ef_search=64, m=8, ef_construction=40, progress=False)
    assert graph.recall["value"] < 0.8
    assert graph.depth == 0
    queries = rng.standard_normal((50, 32)).astype(np.float32)
    exact = Index.build(copies, np.arange(4000))
    for k in (10, 100):
        assert (graph.search(queries, k=k).ids == exact.search(queries, k=k).ids).all()


def test_k9_recall_is_measured_with_the_histories_that_will_be_denied() -> None:
    vectors, queries = normed(1500, 16, 0.5)
    order = Index.build(vectors, np.arange(1500)).search(queries, k=60).ids
    graph = Index.build(
        vectors, np.arange(1500), kind="hnsw", recall_queries=queries, recall_deny=order.tolist(), progress=False
    )
    assert (graph.recall["queries"], graph.recall["denial"]) == ("given", "histories")
    assert set(graph.recall["at"]) == set(graph.recall["denied"]) == {"10", "100"}


def test_index_f6_recall_is_stale_until_it_is_measured_again(tmp_path: Path) -> None:
    index = Index.build(clouds(), np.arange(400), kind="hnsw")
    assert not index.stale
    index.remove([5])
    index.add([1000], clouds(1, seed=9))
    assert index.stale
    index.save(tmp_path / "index")
    assert not index.stale
    assert Index.load(tmp_path / "index").recall["count"] == 400


@pytest.mark.parametrize("kind", KINDS)
def test_index_f3_equal_scores_go_by_slot_whatever_is_denied(kind: str) -> None:
    vectors = np.repeat(clouds(10), 30, 0)
    index = Index.build(vectors, np.arange(300), kind=kind)
    query = vectors[:1]
    best = int((vectors @ vectors[0]).argmax()) // 30 * 30
    whole = index.search(query, k=40).ids[0].tolist()
    assert whole[:30] == list(range(best, best + 30))
    for k in (1, 5, 29, 31):
        assert index.search(query, k=k).ids[0].tolist() == whole[:k]
        outside = next(item for item in range(300) if item not in whole[:k])
        assert index.search(query, k=k, deny=[[outside]]).ids[0].tolist() == whole[:k]
        assert index.search(query, k=k, allow=list(range(300))).ids[0].tolist() == whole[:k]


def test_allow_and_deny_may_be_one_list_for_all_or_one_per_query() -> None:
    vectors = clouds(50)
    index = Index.build(vectors, np.arange(50))
    queries = clouds(2, seed=1)
    keep = np.isin(np.arange(50), [1, 2, 3])
    hits = index.search(queries, k=3, allow=[[1, 2, 3], None], deny=[7])
    assert hits.ids[0].tolist() == truth(vectors, queries[0], keep, 3)
    assert hits.ids[1].tolist() == truth(vectors, queries[1], np.arange(50) != 7, 3)


@pytest.mark.parametrize("kind", KINDS)
def test_similar_means_the_same_everywhere(kind: str) -> None:
    vectors = clouds(60) * np.linspace(0.1, 5, 60, dtype=np.float32)[:, None]
    index = Index.build(vectors, np.arange(60), kind=kind)
    cosine = vectors[9] @ vectors.T / np.linalg.norm(vectors, axis=1) / np.linalg.norm(vectors[9])
    order = [item for item in np.argsort(-cosine, kind="stable") if item != 9]
    hits = index.similar([9], k=5)
    assert hits.ids[0].tolist() == order[:5]
    np.testing.assert_allclose(hits.scores[0], cosine[order[:5]], rtol=1e-5)
    assert index.similar([9], k=5, metric="dot").ids[0].tolist() == truth(vectors, vectors[9], np.arange(60) != 9, 5)
    assert index.similar([9], k=99).ids.shape == (1, 59)
    with pytest.raises(ValueError, match="metric"):
        index.similar([9], metric="l2")
    with pytest.raises(KeyError, match="77"):
        index.similar([77])


def test_auto_is_exact_up_to_a_number_of_items(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("recsys.index.search.EXACT_ITEMS", 100)
    assert [Index.build(clouds(n), np.arange(n), kind="auto").kind for n in (100, 101)] == ["exact", "hnsw"]


@pytest.mark.filterwarnings("error")
def test_index_f7_vectors_whose_products_overflow_are_refused() -> None:
    with pytest.raises(DataError, match="products"):
        Index.build(np.full((2, 3), 3e38, np.float32), [1, 2])
    with pytest.raises(DataError, match="products"):
        Index.build(clouds(20), np.arange(20)).search(np.full((1, 8), -3e38, np.float32), k=1)


def test_hostile_12_the_building_of_a_graph_speaks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("recsys.index.search.ADDED", 50)
    told = []
    monkeypatch.setattr("recsys.progress.Progress.advance", lambda self, n=1, **_: told.append((self.label, n)))
    index = Index.build(clouds(120), np.arange(120), kind="hnsw")
    assert [n for label, n in told if "hnsw" in label] == [50, 50, 20]
    assert share(index.search(clouds(5, seed=1), k=3).scores, index.search(clouds(5, seed=1), k=3).scores) == 1.0


def saved_index(tmp_path, kind: str):
    import json

    index = Index.build(clouds(61), [f"i{row}" for row in range(61)], kind=kind)
    index.remove(["i60"])  # of which a graph keeps the row
    index.save(tmp_path / "index")
    return tmp_path / "index", json.loads((tmp_path / "index" / "manifest.json").read_text())


@pytest.mark.parametrize(
    "changed",
    [
        {"ef_search": 10**12}, {"ef_search": 0}, {"ef_search": -1}, {"ef_search": "128"}, {"ef_search": None},
        {"m": 10**9},
        {"index": "flat"}, {"index": None}, {"seed": "x"}, {"ef_search": True}, {"ef_construction": 10**12},
    ],
)  # fmt: skip
def test_hostile_14_settings_of_an_index_are_bounded(tmp_path, changed: dict) -> None:
    import json

    folder, manifest = saved_index(tmp_path, "hnsw")
    manifest["settings"] |= changed
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(DataError, match="index"):
        Index.load(folder)


def written_by_0_1(index: Index, folder: Path) -> Path:
    """The folder of an index in format 1."""
    index.save(folder)
    for path in folder.glob("ids.*"):
        path.unlink()
    np.save(folder / "alive.npy", index.items.alive)
    if index.items.kind == "int":
        np.save(folder / "ids.npy", index.items.ids)
    else:
        encoded = [one.encode() for one in index.items.ids]
        np.save(folder / "ids_ends.npy", np.cumsum([len(one) for one in encoded], dtype=np.int64))
        (folder / "ids.utf8").write_bytes(b"".join(encoded))
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest |= {"format": 1, "slots": manifest.pop("positions")}
    manifest["files"] = hashes(folder, ("manifest.json",))
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


@pytest.mark.parametrize("ids", [names(60), list(range(100, 40, -1))], ids=["str", "int"])
@pytest.mark.parametrize("kind", KINDS)
def test_an_index_of_version_0_1_is_read_with_what_was_removed(kind: str, ids: list[Any], tmp_path: Path) -> None:
    vectors = clouds(60)
    index = Index.build(vectors, ids, kind=kind)
    index.remove(ids[3:5])
    index.add([ids[3]], vectors[3:4])  # a graph now has two rows of it, of which one is dead
    former = Index.load(written_by_0_1(index, tmp_path / "former"))
    assert (former.search(vectors, k=9).ids == index.search(vectors, k=9).ids).all()
    with pytest.raises(DataError, match="not in the index"):
        former.remove([ids[4]])
    former.save(tmp_path / "now")
    again = Index.load(tmp_path / "now")
    assert (again.search(vectors, k=9).ids == index.search(vectors, k=9).ids).all()
    assert again.items.digest == index.items.digest


DAMAGED = [(name, kind) for kind in ("exact", "hnsw") for name in ("ids.json", "ids.offsets.npy", "ids.blob.npy")]
DAMAGED += [("index.faiss", "exact"), ("index.faiss", "hnsw"), ("ids.alive.npy", "hnsw")]
DAMAGED += [(name, f"former {kind}") for kind in KINDS for name in ("alive.npy", "ids_ends.npy", "ids.utf8")]


@pytest.mark.parametrize(("name", "kind"), DAMAGED)
def test_hostile_14_a_damaged_file_of_an_index_is_one_clear_error(tmp_path, kind: str, name: str) -> None:
    folder, _ = saved_index(tmp_path, kind.split()[-1])
    if kind.startswith("former"):
        folder = written_by_0_1(Index.load(folder), folder)
    whole = (folder / name).read_bytes()
    for data in (b"", whole[: len(whole) // 2], whole + b"x", whole[:8] + b"\xff" * 8 + whole[16:]):
        (folder / name).write_bytes(data)
        with pytest.raises(DataError, match="index"):
            Index.load(folder)
        with pytest.raises(DataError, match="index"):
            Index.load(folder, verify=False)


def test_hostile_14_links_that_lead_out_of_a_graph_are_refused(tmp_path) -> None:
    import faiss

    folder, _ = saved_index(tmp_path, "hnsw")
    path = str(folder / "index.faiss")
    for harm in ("neighbors", "levels", "offsets", "entry_point"):
        graph = faiss.read_index(path)
        if harm == "entry_point":
            graph.hnsw.entry_point = 10**6
        else:
            vector = getattr(graph.hnsw, harm)
            values = faiss.vector_to_array(vector)
            values[len(values) // 2] = 10**6
            faiss.copy_array_to_vector(values, vector)
        other = tmp_path / harm
        faiss.write_index(graph, str(other))
        (folder / "index.faiss").write_bytes(other.read_bytes())
        with pytest.raises(DataError, match="index"):
            Index.load(folder, verify=False)
        Index.build(clouds(60), [f"i{row}" for row in range(60)], kind="hnsw").save(folder)


@pytest.mark.parametrize("kind", ["exact", "hnsw"])
def test_hostile_8_vectors_that_are_not_finite_are_refused(tmp_path, kind: str) -> None:
    folder, _ = saved_index(tmp_path, kind)
    index = Index.load(folder)
    index.vectors[7, 1] = np.nan
    index.save(folder)
    with pytest.raises(DataError, match="NaN"):
        Index.load(folder)


@pytest.mark.parametrize(
    "recall", [{"k": 10}, {"k": 10, "value": "x", "queries": "made", "num_queries": 1}, {"at": []}, [1]]
)
def test_hostile_14_a_recall_that_is_none_is_one_clear_error(tmp_path, recall: Any) -> None:
    folder, manifest = saved_index(tmp_path, "hnsw")
    (folder / "manifest.json").write_text(json.dumps(manifest | {"recall": recall}))
    with pytest.raises(DataError, match="index"):
        Index.load(folder)
