"""The command line, on a small log: fit, evaluate, compare, export, recommend; and what wrong input is told."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest

from recsys.cli import main

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
