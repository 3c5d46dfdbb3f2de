"""``recsys semantic-ids``: from texts, vectors, a table; controls; what is wrong is told."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest

import recsys as rs
from recsys.cli import main


@pytest.fixture(autouse=True)
def log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RECSYS_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    rows = [(f"u{u}", f"i{(u + t) % 30}", 1_700_000_000 + 60 * t + u) for u in range(40) for t in range(6)]
    pl.DataFrame(rows, schema=["user", "item", "time"], orient="row").write_csv("log.csv")
    words = ("red", "blue", "small", "large", "cup", "plate", "lamp", "round")
    titles = [f"{words[row % 8]} {words[row // 4 % 8]} {words[row * 3 % 7]} {row % 11}" for row in range(30)]
    pl.DataFrame({"item": [f"i{row}" for row in range(30)], "title": titles}).write_csv("titles.csv")


LOG = ["log.csv", "--time", "time", "--items", "titles.csv"]
SMALL = ["--text", "tfidf", "--levels", "2", "--size", "6"]


def by_id(folder: str) -> dict[object, list[int]]:
    ids = rs.SemanticIds.load(folder)
    return dict(zip(ids.ids.tolist(), ids.codes.tolist(), strict=True))


def test_from_texts_to_a_folder_that_a_model_reads(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["semantic-ids", *LOG, *SMALL, "--out", "ids"]) == 0
    shown = capsys.readouterr().out
    for part in ("ResidualKMeans", "tfidf", "level 1", "perplexity", "largest bucket", "error", "ids"):
        assert part in shown, part
    ids = rs.SemanticIds.load("ids")
    assert len(ids) == 30 and ids.sizes[:2] == (6, 6) and ids.levels == 3
    split = rs.Dataset.scan("log.csv", time="time").split(rs.LeaveLast(), audit=False)
    model = rs.Recommender(rs.CodeItems(8, "ids"), rs.SASRec(8, 1, max_length=8), rs.FullSoftmax())
    rs.fit(model, split, epochs=1, progress=False)
    assert len(model.recommend([["i1", "i2"]], k=3).items[0]) == 3
    assert main(["semantic-ids", *LOG, *SMALL, "--out", "ids"]) == 0
    assert "reused" in capsys.readouterr().err


@pytest.mark.parametrize("method", ["product", "opq", "rqvae", "r3vae", "mpq", "random"])
def test_every_method_makes_codes(method: str) -> None:
    assert main(["semantic-ids", *LOG, *SMALL, "--method", method, "--out", "ids"]) == 0
    ids = rs.SemanticIds.load("ids")
    assert ids.sizes[:2] == (6, 6) and ids.ordered is (method not in ("product", "opq", "mpq"))


def test_vectors_beside_texts(capsys: pytest.CaptureFixture[str]) -> None:
    split = rs.Dataset.scan("log.csv", time="time").split(rs.LeaveLast(), audit=False)
    rs.Vectors.of(split.items.ids, np.random.default_rng(0).standard_normal((30, 5)), model="own").save("own")
    model = rs.Recommender(rs.IdItems(8), rs.SASRec(8, 1, max_length=8), rs.FullSoftmax())
    rs.fit(model, split, epochs=1, progress=False, folder="run")
    small = ["--levels", "2", "--size", "6"]
    assert main(["semantic-ids", *LOG, *small, "--vectors", "own", "--out", "a"]) == 0
    assert main(["semantic-ids", *LOG, *small, "--vectors", "own", "run", "--out", "b"]) == 0
    assert main(["semantic-ids", *LOG, *SMALL, "--vectors", "own", "run", "--out", "c"]) == 0
    widths = [[one["width"] for one in rs.SemanticIds.load(x).manifest["facts"]["vectors"]] for x in "abc"]
    assert widths[:2] == [[5], [5, 8]] and widths[2][1:] == [5, 8] and len(widths[2]) == 3
    run = rs.SemanticIds.load("b").manifest["facts"]["vectors"][1]
    assert run["cut"] == split.cut.digest
    rs.export(model, "bundle", split=split)
    ids = rs.make_semantic_ids(rs.Dataset.scan("log.csv", time="time"), "bundle", rs.ResidualKMeans(2, 6))
    assert ids.manifest["facts"]["vectors"][0]["cut"] == split.cut.digest and len(ids) == 30


def test_controls_by_flag(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["semantic-ids", *LOG, *SMALL, "--out", "true"]) == 0
    for control in ("permuted", "shuffled", "random"):
        assert main(["semantic-ids", *LOG, *SMALL, "--control", control, "--out", control]) == 0
        assert "CONTROL" in capsys.readouterr().out
        assert by_id(control) != by_id("true") and len({*map(tuple, by_id(control).values())}) == 30
    assert sorted(by_id("permuted").values()) == sorted(by_id("true").values())
    assert main(["semantic-ids", *LOG, *SMALL, "--control", "permuted"]) == 0
    assert main(["semantic-ids", *LOG, *SMALL, "--control", "permuted"]) == 0
    assert "control-permuted" in capsys.readouterr().out


def write(table: pl.DataFrame, path: str) -> None:
    if path.endswith(("csv", "tsv")):
        table.write_csv(path, separator="," if path.endswith("csv") else "\t")
    else:
        table.write_parquet(path) if path.endswith("parquet") else table.write_ndjson(path)


@pytest.mark.parametrize("form", ["csv", "tsv", "parquet", "ndjson"])
def test_given_codes(form: str, capsys: pytest.CaptureFixture[str]) -> None:
    table = pl.DataFrame({"item": [f"i{row}" for row in range(31)], "a": np.arange(31) % 7, "b": np.arange(31) // 7})
    path = f"codes.{form}"
    write(table, path)
    assert main(["semantic-ids", *LOG, "--method", "given", "--table", path, "--out", "ids"]) == 0
    assert by_id("ids")["i9"] == [2, 1] and rs.SemanticIds.load("ids").sizes == (7, 5)
    write(table, path)
    assert main(["semantic-ids", "log.csv", "--time", "time", "--method", "given", "--table", path]) == 0
    table = table.filter(pl.col("item") != "i9")
    write(table, path)
    capsys.readouterr()
    assert main(["semantic-ids", *LOG, "--method", "given", "--table", path, "--out", "other"]) == 1
    assert "1 of 30 items have no semantic ids, such as ['i9']" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--size", "500"], "only 29 different ones among 30, for 500 codes"),
        (["--method", "given"], "--table FILE"),
        (["--method", "given", "--table", "none.csv"], "there is no file none.csv"),
        (["--method", "given", "--table", "titles.csv"], "numbers"),
        (["--table", "titles.csv"], "--table has nothing to do"),
        (["--method", "product", "--normalise"], "--normalise belongs to"),
        (["--vectors", "nowhere"], "nowhere"),
    ],
)
def test_what_is_wrong_is_told(words: list[str], told: str, capsys: pytest.CaptureFixture[str]) -> None:
    text = [] if "given" in words or "--vectors" in words else ["--text", "tfidf"]
    assert main(["semantic-ids", *LOG, *text, *words]) == 1
    shown = capsys.readouterr().err
    assert told in shown and "failed:" not in shown, shown
