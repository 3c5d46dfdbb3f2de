"""A bundle recommends what the model did, and loads without pickle and without anybody else's code."""

from __future__ import annotations

import json
import pickle
import sys

import numpy as np
import pytest

from recsys.data.split import Split
from recsys.encoders.sasrec import SASRec
from recsys.errors import DataError, DataWarning
from recsys.folders import write_folder
from recsys.items import IdItems
from recsys.objectives.softmax import FullSoftmax
from recsys.ranker import Ranker
from recsys.recommender import Recommender
from recsys.serve.bundle import Bundle, export

HISTORIES = [["i1", "i2", "i3", "i1"], ["i9"], [], ["nothing known"], [f"i{row}" for row in range(1, 41)]]


@pytest.mark.filterwarnings("ignore::recsys.errors.DataWarning")
@pytest.mark.parametrize("exclude", ["history", "none"])
@pytest.mark.parametrize("allow", [None, ["i3", "i50", "i51", "i9", "i60", "i2"]])
def test_an_exact_index_answers_like_the_model(model: Recommender, tmp_path, exclude: str, allow) -> None:
    export(model, tmp_path / "bundle")
    bundle = Bundle.load(tmp_path / "bundle")
    assert bundle.index is not None and bundle.index.kind == "exact"
    ours, theirs = bundle.recommend(HISTORIES, 5, exclude, allow), model.recommend(HISTORIES, 5, exclude, allow)
    assert ours.items == theirs.items
    np.testing.assert_allclose(ours.scores, theirs.scores, rtol=1e-5, atol=1e-6)
    assert (ours.rows == theirs.rows).all()
    assert (ours.unknown == theirs.unknown).all()
    assert (ours.fallback == theirs.fallback).all()


@pytest.mark.filterwarnings("ignore::recsys.errors.DataWarning")
@pytest.mark.parametrize("index", [None, "hnsw"])
def test_other_ways_to_answer(model: Recommender, split: Split, tmp_path, index: str | None) -> None:
    bundle = export(model, tmp_path / "bundle", index=index, split=split)
    again = Bundle.load(tmp_path / "bundle")
    best = again.recommend(HISTORIES, 8)
    assert best.items == bundle.recommend(HISTORIES, 8).items
    assert not set(HISTORIES[4]) & set(best.items[4])
    assert [len(one) for one in best.items] == [8] * 5
    if index is None:
        assert best.items == model.recommend(HISTORIES, 8).items
    else:
        assert again.manifest["index"]["recall"]["queries"] == "given"
        assert again.index.recall["value"] > 0.9


def test_counted_recommenders_are_exported_too(counted: Ranker, split: Split, tmp_path) -> None:
    export(counted, tmp_path / "bundle", split=split, metrics={"ndcg@10": 0.5})
    bundle = Bundle.load(tmp_path / "bundle")
    assert bundle.index is None
    assert bundle.recommend([["i1", "i2"]], 5).items == counted.recommend([["i1", "i2"]], 5).items
    assert bundle.manifest["metrics"] == {"ndcg@10": 0.5}
    assert bundle.manifest["data"]["name"] == "toy"
    assert bundle.item_text["title"][7] == "Title 7"
    with pytest.raises(ValueError, match="index"):
        export(counted, tmp_path / "other", index="hnsw")
    assert not (tmp_path / "other").exists()


def test_one_warning_counts_the_fallbacks(model: Recommender, tmp_path) -> None:
    bundle = export(model, tmp_path / "bundle")
    with pytest.warns(DataWarning, match="2 of 5") as caught:
        bundle.recommend(HISTORIES, 3)
    assert len(caught) == 1


def test_loading_uses_no_pickle(model: Recommender, split: Split, tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    export(model, tmp_path / "bundle", split=split)

    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("a pickle was read")

    for name in ("load", "loads", "Unpickler"):
        monkeypatch.setattr(pickle, name, refuse)
    assert Bundle.load(tmp_path / "bundle").recommend([["i1"]], 3).rows.shape == (1, 3)
    assert not [path for path in (tmp_path / "bundle").rglob("*") if path.suffix in (".pkl", ".pt", ".pth", ".ckpt")]


def test_foreign_classes_need_trust(model: Recommender, tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "stranger.py").write_text(
        "from recsys.encoders.sasrec import SASRec\nRAN = True\nclass Mine(SASRec):\n    pass\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    import stranger

    own = Recommender(IdItems(8), stranger.Mine(8, max_length=6), FullSoftmax())
    own.bind(_context(model))
    export(own, tmp_path / "bundle")
    monkeypatch.delitem(sys.modules, "stranger")
    with pytest.raises(PermissionError, match="trust"):
        Bundle.load(tmp_path / "bundle")
    assert "stranger" not in sys.modules
    bundle = Bundle.load(tmp_path / "bundle", trust=["stranger"])
    assert bundle.recommend([["i1", "i2"]], 4).items == own.recommend([["i1", "i2"]], 4).items


def test_only_recommenders_are_constructed(tmp_path) -> None:
    def fill(partial):
        (partial / "model.json").write_text(json.dumps({"model": {"class": "recsys.items:IdItems", "arguments": {}}}))
        _vocabulary().save(partial, "items")
        return {}

    write_folder(tmp_path / "bundle", "recsys.bundle", 1, fill)
    with pytest.raises(DataError, match="not a recommender"):
        Bundle.load(tmp_path / "bundle")


@pytest.mark.parametrize("name", ["model.safetensors", "vectors.safetensors", "index/index.faiss", "model.json"])
def test_damage_is_found(model: Recommender, tmp_path, name: str) -> None:
    export(model, tmp_path / "bundle")
    path = tmp_path / "bundle" / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(DataError, match="SHA-256"):
        Bundle.load(tmp_path / "bundle")
    path.write_bytes(content[:-1])
    with pytest.raises(DataError, match="bytes"):
        Bundle.load(tmp_path / "bundle", verify=False)


def test_another_version_and_no_bundle_at_all(model: Recommender, tmp_path) -> None:
    export(model, tmp_path / "bundle")
    manifest = tmp_path / "bundle" / "manifest.json"
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "format": 99}))
    with pytest.raises(DataError, match="format 99"):
        Bundle.load(tmp_path / "bundle")
    with pytest.raises(FileNotFoundError):
        Bundle.load(tmp_path / "nowhere")


def test_only_bundles_are_replaced(model: Recommender, tmp_path) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.tex").write_text("x")
    with pytest.raises(FileExistsError, match="thesis"):
        export(model, tmp_path / "thesis")
    export(model, tmp_path / "bundle")
    export(model, tmp_path / "bundle", index=None)
    assert Bundle.load(tmp_path / "bundle").index is None
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bundle", "thesis"]


def test_a_failed_export_keeps_the_old_bundle(model: Recommender, tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    export(model, tmp_path / "bundle")

    def full(*args: object, **kwargs: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("recsys.serve.bundle.write_tensors", full)
    with pytest.raises(OSError, match="No space"):
        export(model, tmp_path / "bundle")
    assert Bundle.load(tmp_path / "bundle").index is not None
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


def test_text_columns_keep_their_names_whatever_the_ids_are_called(model: Recommender, tmp_path) -> None:
    given = {name: np.array(["", *(f"{name} {row}" for row in range(60))], object) for name in ("title", "item")}
    bundle = export(model, tmp_path / "bundle", item_text=given)
    for found in (bundle.item_text, Bundle.load(tmp_path / "bundle").item_text):
        assert {name: values.tolist() for name, values in found.items()} == {k: v.tolist() for k, v in given.items()}


def test_what_cannot_be_exported(model: Recommender, tmp_path) -> None:
    with pytest.raises(ValueError, match="fit it"):
        export(Recommender(IdItems(8), SASRec(8), FullSoftmax()), tmp_path / "bundle")
    with pytest.raises(ValueError, match="entries"):
        export(model, tmp_path / "bundle", item_text={"title": np.array(["", "a"], object)})
    assert list(tmp_path.iterdir()) == []
    bundle = export(model, tmp_path / "bundle")
    for arguments in ({"k": 0}, {"k": 61}, {"exclude": "seen"}):
        with pytest.raises(ValueError, match="must be"):
            bundle.recommend([["i1"]], **arguments)


def _context(model: Recommender):
    from recsys.seams import Context

    return Context(num_items=model.num_items, vocabulary=model.vocabulary)


def _vocabulary():
    from recsys.data.vocabulary import Vocabulary

    return Vocabulary(np.array(["a", "b"], object), 1)


def test_a_run_in_the_place_of_a_bundle_is_called_so(tmp_path) -> None:
    (tmp_path / "manifest.json").write_text('{"kind": "recsys.run", "format": 1}')
    with pytest.raises(DataError, match=r"is a 'recsys\.run', and a 'recsys\.bundle' was expected"):
        Bundle.load(tmp_path)
