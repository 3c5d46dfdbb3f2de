"""A bundle recommends what the model did, and loads without pickle and without anybody else's code."""

from __future__ import annotations

import json
import pickle
import sys
import threading
import warnings
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from recsys.data.split import Split
from recsys.data.splitters import LeaveLast
from recsys.encoders.sasrec import SASRec
from recsys.errors import DataError, DataWarning
from recsys.ids.vectors import Vectors
from recsys.ids.vocabulary import Vocabulary
from recsys.items.ids import IdItems
from recsys.items.sums import SumItems
from recsys.items.text import TextItems
from recsys.objectives.softmax import FullSoftmax
from recsys.recommenders.base import Ranker
from recsys.recommenders.composed import Recommender
from recsys.serve.bundle import Bundle, export
from recsys.storage.folders import write_folder

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
        (partial / "model.json").write_text(
            json.dumps({"model": {"class": "recsys.items.ids:IdItems", "arguments": {}}})
        )
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
    with pytest.raises(ValueError, match=r"not fitted: call fit\(model, split\)"):
        export(Recommender(IdItems(8), SASRec(8), FullSoftmax()), tmp_path / "bundle")
    with pytest.raises(ValueError, match="entries"):
        export(model, tmp_path / "bundle", item_text={"title": np.array(["", "a"], object)})
    assert list(tmp_path.iterdir()) == []
    bundle = export(model, tmp_path / "bundle")
    assert len(bundle.recommend([["i1"]], k=61).items[0]) == 59
    for arguments in ({"k": 0}, {"exclude": "seen"}):
        with pytest.raises(ValueError, match="must be"):
            bundle.recommend([["i1"]], **arguments)


def _context(model: Recommender):
    from recsys.protocols import Context

    return Context(num_items=model.num_items, vocabulary=model.vocabulary)


def _vocabulary():
    from recsys.ids.vocabulary import Vocabulary

    return Vocabulary(np.array(["a", "b"], object), 1)


def test_a_run_in_the_place_of_a_bundle_is_called_so(tmp_path) -> None:
    (tmp_path / "manifest.json").write_text('{"kind": "recsys.run", "format": 1}')
    with pytest.raises(DataError, match=r"is a run folder, and a bundle was expected: .*recsys export "):
        Bundle.load(tmp_path)


IDS = [f"i{row}" for row in range(1, 61)]


@pytest.mark.filterwarnings("ignore::recsys.errors.DataWarning")
@pytest.mark.parametrize("kind", ["exact", "hnsw"])
def test_k1_a_a_removed_item_never_comes_and_the_others_keep_their_ids(model: Recommender, tmp_path, kind: str) -> None:
    bundle = export(model, tmp_path / "bundle", index=kind)
    query = model.user_vectors([["i1", "i2"]])
    gone = bundle.index.search(query, k=3).ids[0, 1]
    bundle.index.remove([gone])
    for served in (bundle, _again(bundle, tmp_path)):
        assert served.recommend([["i1", "i2"]], 60, "none").items[0] == served.index.search(query, k=60).ids[0].tolist()
        new, old = served.recommend([["??"], ["i1", "i2"]], 60, "none").items
        assert len(set(new)) == len(set(old)) == 59
        assert gone not in {*new, *old}
        assert served.recommend([["i1"]], 3, allow=[gone]).items == [[]]


@pytest.mark.filterwarnings("ignore::recsys.errors.DataWarning")
@pytest.mark.parametrize("kind", ["exact", "hnsw"])
def test_k1_c_an_added_item_comes_by_its_id(model: Recommender, tmp_path, kind: str) -> None:
    bundle = export(model, tmp_path / "bundle", index=kind)
    bundle.index.add(["brandnew"], model.user_vectors([["i1", "i2"]]) * 10)
    for served in (bundle, _again(bundle, tmp_path)):
        top = served.recommend([["i1", "i2"], ["i1", "brandnew"]], 3)
        assert top.items[0][0] == "brandnew"
        assert "brandnew" not in top.items[1]
        assert top.unknown.tolist() == [0, 1], "the model cannot read it"
        assert "brandnew" in served.recommend([[]], 61).items[0]
        assert "brandnew" not in served.recommend([["i1", "i2"]], 61, deny=["brandnew"]).items[0]
        assert served.vocabulary.ids[-1] == "brandnew"


def _again(bundle: Bundle, tmp_path) -> Bundle:
    bundle.index.save(tmp_path / "bundle" / "index")
    return Bundle.load(tmp_path / "bundle")


def test_k1_an_index_of_another_catalogue_is_refused(model: Recommender, tmp_path) -> None:
    export(model, tmp_path / "bundle")
    bundle = Bundle.load(tmp_path / "bundle")
    model.vocabulary = Vocabulary(model.vocabulary.ids[::-1].copy(), 1)
    other = export(model, tmp_path / "other")
    other.index.save(tmp_path / "bundle" / "index")
    with pytest.raises(DataError, match="other items"):
        Bundle.load(tmp_path / "bundle")
    bundle.save()
    assert Bundle.load(tmp_path / "bundle").recommend([["i1"]], 3).items == bundle.recommend([["i1"]], 3).items


def test_b1_titles_are_found_by_id_and_other_items_are_refused(model: Recommender, split: Split, tmp_path) -> None:
    order = np.random.default_rng(0).permutation(60)
    ids, titles = split.items.ids[order], split.item_text["title"][1:][order]
    prepared = replace(split.prepared, items=(np.argsort(order) + 1).astype(np.int32)[split.prepared.items - 1])
    mixed = Split.of(
        prepared, LeaveLast(), Vocabulary(ids, 1), split.users, item_text={"title": np.array(["", *titles], object)}
    )
    plain, found = (export(model, tmp_path / "bundle", index="hnsw", split=one) for one in (split, mixed))
    assert found.item_text["title"].tolist() == split.item_text["title"].tolist()
    assert found.index.recall == plain.index.recall
    ids = split.items.ids.copy()
    ids[4] = "another"
    with pytest.raises(DataError, match="another"):
        export(model, tmp_path / "bundle", split=replace(split, items=Vocabulary(ids, 1)))


@pytest.mark.parametrize("index", [None, "exact", "hnsw"])
def test_b11_requests_from_threads_leave_no_filter_and_get_the_same_lists(
    model: Recommender, tmp_path, index: str | None
) -> None:
    bundle = export(model, tmp_path / "bundle", index=index)
    histories = [[f"i{row}", f"i{row % 7 + 1}"] for row in range(1, 50)]
    with warnings.catch_warnings(record=True):
        expected = bundle.recommend([*histories, []], 6, deny=["i3"]).items
    before, wrong = list(warnings.filters), []

    def ask(number: int) -> None:
        for _ in range(5):
            if bundle.recommend([*histories, []], 6, deny=["i3"]).items != expected:
                wrong.append(number)

    with pytest.warns(DataWarning):
        before = list(warnings.filters)
        threads = [threading.Thread(target=ask, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(120)
        assert warnings.filters == before
    assert not wrong


@pytest.mark.parametrize("index", [None, "exact", "hnsw"])
def test_hostile_8_a_model_that_is_not_finite_does_not_serve(model: Recommender, tmp_path, index: str | None) -> None:
    bundle = export(model, tmp_path / "bundle", index=index)
    with torch.no_grad():
        for one in (model, bundle.model):
            one.encoder.position_table.weight[0] = torch.nan
    with pytest.raises(ValueError, match="position"):
        bundle.recommend([["i1", "i2"]], 3)


@pytest.mark.parametrize("index", [None, "exact", "hnsw"])
def test_k13_deny_works_in_a_bundle_as_in_the_model(model: Recommender, tmp_path, index: str | None) -> None:
    bundle = export(model, tmp_path / "bundle", index=index)
    lists = {"deny": [["i5", "i6"], ["i7"], []], "allow": [None, IDS[:20], IDS[30:33]]}
    histories = [["i1"], ["i2", "i9"], ["i30", "i31"]]
    assert bundle.recommend(histories, 30, **lists).items == model.recommend(histories, 30, **lists).items
    assert bundle.recommend(histories, 30, deny=IDS[:40]).items == model.recommend(histories, 30, deny=IDS[:40]).items
    with pytest.warns(DataWarning, match="1 of 1 denied"):
        bundle.recommend(histories, 3, deny=["unheard of"])


@pytest.mark.filterwarnings("ignore::recsys.errors.DataWarning")
@pytest.mark.parametrize("exclude", ["history", "none"])
def test_index_f2_an_exact_index_answers_like_the_model_where_items_are_equal(
    model: Recommender, tmp_path, exclude: str
) -> None:
    with torch.no_grad():
        model.items.weight[31:61] = model.items.weight[1:31]
    bundle = export(model, tmp_path / "bundle")
    rng = np.random.default_rng(0)
    histories = [rng.choice(IDS, rng.integers(1, 9)).tolist() for _ in range(200)]
    for part in (histories, *([one] for one in histories[:20])):
        ours, theirs = bundle.recommend(part, 10, exclude), model.recommend(part, 10, exclude)
        assert ours.items == theirs.items
        assert [one[:4] for one in ours.items] == bundle.recommend(part, 4, exclude).items


@pytest.fixture
def texts(split: Split, tmp_path) -> Any:
    from recsys.protocols import Context

    values = np.random.default_rng(3).normal(size=(62, 12))
    folder = str(Vectors.of([*IDS, "new1", "new2"], values).save(tmp_path / "vectors").path)
    recommender = Recommender(TextItems(8, folder), SASRec(8, num_layers=1, max_length=6), FullSoftmax())
    recommender.bind(Context(num_items=60, vocabulary=split.items, training=split.train))
    return recommender


@pytest.mark.parametrize("index", [None, "exact", "hnsw"])
def test_k11_items_after_training_are_recommended(texts: Recommender, tmp_path, index: str | None) -> None:
    histories = [["i1", "i2"], ["i7"]]
    before, vectors = texts.scores(histories), texts.item_vectors()
    bundle = export(texts, tmp_path / "bundle", index=index)
    assert bundle.recommend(histories, 70).items[0].count("new1") == 0
    bundle.add_items(["new1", "new2"])
    assert texts.num_items == 60, "the bundle has a model of its own"
    texts.add_items(["new1", "new2"])
    np.testing.assert_array_equal(texts.item_vectors()[:60], vectors)
    np.testing.assert_allclose(texts.scores(histories)[:, :60], before, rtol=1e-6)
    bundle.save(tmp_path / "grown")
    for served in (bundle, Bundle.load(tmp_path / "grown")):
        top = served.recommend([*histories, ["new1", "i3"]], 70)
        assert {"new1", "new2"} <= set(top.items[0])
        assert top.items == texts.recommend([*histories, ["new1", "i3"]], 70).items
        assert top.unknown.tolist() == [0, 0, 0], "new items are read"
        assert [one for one, _ in served.similar(["new2"], 3)[0]] == [one for one, _ in texts.similar(["new2"], 3)[0]]
        assert served.recommend(histories, 2, allow=["new1", "new2"]).rows.min() > 60
    bundle.add_items([])  # nothing new
    assert texts.num_items == 62
    with pytest.raises(DataError, match="already"):
        texts.add_items(["new1"])
    with pytest.raises(KeyError, match="nobody"):
        bundle.similar(["nobody"])
    with pytest.raises(DataError, match="no vector"):
        texts.add_items(["new3"])
    assert texts.num_items == len(texts.vocabulary) == 62
    texts.add_items(["new3"], np.ones((1, 12)))
    assert texts.scores(histories).shape == (2, 63)


def test_k11_tables_that_learn_a_vector_per_item_say_so(model: Recommender, texts: Recommender, split: Split) -> None:
    from recsys.protocols import Context

    both = Recommender(SumItems([IdItems(8), texts.items]), SASRec(8, 1, max_length=6), FullSoftmax())
    both.bind(Context(num_items=60, vocabulary=split.items, training=split.train))
    for one in (model, both):
        with pytest.raises(ValueError, match="never saw"):
            one.add_items(["new1"], np.ones((1, 12)))
        assert one.num_items == 60
    twice = Recommender(SumItems([texts.items]), SASRec(8, 1, max_length=6), FullSoftmax())
    twice.bind(Context(num_items=60, vocabulary=split.items, training=split.train))
    twice.add_items(["new1"])
    assert twice.recommend([["new1"]], 61).items[0][0] != "new1"


def test_one_meaning_of_similar_and_of_auto(model: Recommender, tmp_path, monkeypatch) -> None:
    bundle, plain = export(model, tmp_path / "bundle"), export(model, tmp_path / "plain", index=None)
    for metric in ("cosine", "dot"):
        expected = model.similar(["i3", "i8"], 5, metric)
        for one in (bundle, plain):
            found = one.similar(["i3", "i8"], 5, metric)
            assert [[item for item, _ in own] for own in found] == [[item for item, _ in own] for own in expected]
    assert len(model.similar(["i3"], 99)[0]) == len(bundle.similar(["i3"], 99)[0]) == 59
    monkeypatch.setattr("recsys.index.search.EXACT_ITEMS", 10)
    assert export(model, tmp_path / "large", index="auto").index.kind == "hnsw"


def test_scores_are_given_with_gradients_too(model: Recommender, split: Split) -> None:
    batch = split.valid.batch(np.arange(4), model.max_length)
    model.eval()
    scores = model.score(batch)
    assert scores.requires_grad
    with torch.inference_mode():
        np.testing.assert_allclose(model.score(batch).numpy(), scores.detach().numpy(), rtol=1e-5, atol=1e-6)


def test_text_items_saved_without_their_mean_take_no_further_items(texts: Recommender) -> None:
    texts.items.text[0] = 0
    with pytest.raises(DataError, match="again"):
        texts.add_items(["new1"])


class OfVectors(Ranker):
    """A recommender of somebody else: item vectors and user vectors, no parts."""

    def item_vectors(self) -> np.ndarray:
        return np.eye(self.num_items, dtype=np.float32)

    def user_vectors(self, histories: Any) -> np.ndarray:
        found = [self.vocabulary.rows(list(one.items if hasattr(one, "items") else one)) for one in histories]
        return np.stack([np.isin(np.arange(1, self.num_items + 1), rows) for rows in found]).astype(np.float32)


def test_a_recommender_of_vectors_alone_is_served(model: Recommender, tmp_path) -> None:
    own = OfVectors()
    own.bind(_context(model))
    bundle = export(own, tmp_path / "bundle")
    assert bundle.recommend([["i5", "i9"], ["i3"]], 2, exclude="none").items == [["i5", "i9"], ["i3", "i1"]]


def test_k11_titles_and_items_put_into_the_index_by_hand_survive_later_items(
    texts: Any, split: Split, tmp_path
) -> None:
    export(texts, tmp_path / "bundle", split=split)
    bundle = Bundle.load(tmp_path / "bundle")
    bundle.index.add(["new2"], np.ones((1, 8)))
    bundle.add_items(["new1", "new2"])
    assert len(bundle.item_text["title"]) == len(bundle.vocabulary) + 1 == 63
    assert bundle.item_text["title"][[60, 61]].tolist() == ["Title 60", ""]
    expected = bundle.recommend([["i1", "new2"]], 62).items
    assert expected == bundle.model.recommend([["i1", "new2"]], 62).items
    bundle.save()
    again = Bundle.load(tmp_path / "bundle")
    assert again.recommend([["i1", "new2"]], 62).items == expected
    assert again.item_text["title"].tolist() == bundle.item_text["title"].tolist()


@pytest.mark.parametrize("index", [None, "exact", "hnsw"])
def test_k1_a_bundle_stays_what_it_was_when_its_model_trains_on_or_grows(texts, split, tmp_path, index) -> None:
    histories = [["i1", "i2"], ["i7"]]
    bundle = export(texts, tmp_path / "bundle", index=index, split=split)
    before = bundle.recommend(histories, 5)
    with torch.no_grad():
        for value in texts.parameters():
            value.mul_(-1)
    texts.add_items(["new1"])
    for served in (bundle, Bundle.load(tmp_path / "bundle"), bundle.save(tmp_path / "again")):
        np.testing.assert_array_equal(served.recommend(histories, 5).scores, before.scores)
        assert served.recommend(histories, 5).items == before.items
    assert Bundle.load(tmp_path / "again").recommend(histories, 5).items == before.items


def test_k14_a_bundle_remembers_how_late_training_went(model: Recommender, split: Split, tmp_path) -> None:
    model.cut = split.cut
    export(model, tmp_path / "bundle")
    assert Bundle.load(tmp_path / "bundle").model.cut.newest == split.cut.newest


def test_an_index_that_is_saved_again_leaves_the_bundle_whole(model: Recommender, split, tmp_path) -> None:
    bundle = export(model, tmp_path / "bundle", index="hnsw", split=split)
    bundle.index.save(tmp_path / "bundle" / "index")
    again = Bundle.load(tmp_path / "bundle")
    assert again.recommend([["i1"]], 3).items == bundle.recommend([["i1"]], 3).items
    path = tmp_path / "bundle" / "index" / "index.faiss"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(DataError, match="SHA-256"):
        Bundle.load(tmp_path / "bundle")


def test_hostile_6_an_export_leaves_the_folders_of_others_alone(model: Recommender, tmp_path) -> None:
    for name in ("b.old", "b.partial"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "notes.txt").write_text("mine")
    for _ in range(2):
        export(model, tmp_path / "b")
    assert sorted(one.name for one in tmp_path.iterdir()) == ["b", "b.old", "b.partial"]
    assert (
        (tmp_path / "b.old" / "notes.txt").read_text() == (tmp_path / "b.partial" / "notes.txt").read_text() == "mine"
    )


def test_hostile_13_a_second_export_into_the_same_folder_is_told_at_once(model: Recommender, tmp_path) -> None:
    from recsys.storage.files import Workplace

    with Workplace(tmp_path / "b"), pytest.raises(BlockingIOError, match="another process"):
        export(model, tmp_path / "b")
    export(model, tmp_path / "b")


def test_hostile_11_everyone_whom_the_umask_lets_can_serve_a_bundle(model: Recommender, tmp_path) -> None:
    import os
    import stat

    before = os.umask(0o022)
    try:
        export(model, tmp_path / "b", index="hnsw")
    finally:
        os.umask(before)
    modes = {
        path.name: oct(stat.S_IMODE(path.stat().st_mode)) for path in (tmp_path / "b").rglob("*") if path.is_file()
    }
    assert set(modes.values()) == {"0o644"}, modes


def test_titles_of_a_damaged_table_are_one_clear_error(model: Recommender, split, tmp_path) -> None:
    export(model, tmp_path / "b", split=split)
    (tmp_path / "b" / "items.parquet").write_bytes(b"PAR1nothing")
    with pytest.raises(DataError, match=r"SHA-256|bytes"):
        Bundle.load(tmp_path / "b")
    manifest = json.loads((tmp_path / "b" / "manifest.json").read_text())
    del manifest["files"]["items.parquet"]
    (tmp_path / "b" / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(DataError, match=r"items\.parquet"):
        _ = Bundle.load(tmp_path / "b").item_text


def test_bundles_of_the_first_version_can_lose_items_too(model: Recommender, tmp_path) -> None:
    export(model, tmp_path / "bundle")
    for path in (tmp_path / "bundle" / "manifest.json", tmp_path / "bundle" / "index" / "manifest.json"):
        facts = json.loads(path.read_text())
        del facts["catalogue"]
        path.write_text(json.dumps(facts))
    bundle = Bundle.load(tmp_path / "bundle")
    bundle.index.remove(["i7"])
    bundle.index.save(tmp_path / "bundle" / "index")
    assert "i7" not in Bundle.load(tmp_path / "bundle").recommend([["i1"]], 60).items[0]


def test_one_id_is_no_list_of_items_to_be_compared(model: Recommender, tmp_path) -> None:
    for kind in ("exact", None):
        bundle = export(model, tmp_path / f"bundle-{kind}", index=kind)
        with pytest.raises(TypeError, match="one id"):
            bundle.similar("i1")
