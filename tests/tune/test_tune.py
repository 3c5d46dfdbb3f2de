"""Searching knobs: what is tried, what survives, what is kept, and that test is never looked at."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import recsys as rs
from recsys.cli import main
from recsys.errors import DataError
from recsys.runs.recipe import load_recipe
from recsys.tune.space import Choice, Range, read, space_of

pytest.importorskip("optuna")

from recsys.tune.study import tune

RECIPE = '''
"""A small recipe."""

import os
import signal
from pathlib import Path

import beside

import recsys as rs

RANGES = {"dim": "4,8", "learning_rate": "1e-4..1e-1 log"}


def run(dim: int = 4, learning_rate: float = 1e-4, epochs: int = 3, kill: str = "", seed: int = 0):
    """Circles of items.

    Args:
        dim: width; 6 is no good.
        learning_rate: of Adam.
        epochs: at most.
        kill: a file, of which a process that finds it dies.
        seed: random seed.
    """
    if kill and Path(kill).exists() and learning_rate != 1e-4:
        Path(kill).unlink()
        os.kill(os.getpid(), signal.SIGKILL)
    model = rs.Recommender(
        rs.IdItems(dim), rs.SASRec(dim, num_layers=1, num_heads=4, dropout=0.0, max_length=6), rs.FullSoftmax()
    )
    return rs.Run(model, beside.split(), {"epochs": epochs, "learning_rate": learning_rate, "seed": seed,
                                          "batch_size": 32})
'''
BESIDE = """
from tests.cycles import cycles


def split():
    return cycles(users=20, items=10)
"""


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("RECSYS_CACHE", str(tmp_path / "cache"))
    (tmp_path / "beside.py").write_text(BESIDE)
    (tmp_path / "circles.py").write_text(RECIPE)
    return tmp_path / "circles.py"


def search(recipe: Path, trials: int = 3, name: str = "search", **more: Any) -> Any:
    return tune(recipe, trials, folder=recipe.parent / name, progress=False, **more)


def test_the_best_values_are_a_recipe_that_trains_to_the_same_value(
    recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import recsys.train.validation as validation

    parts, plain = set(), validation.evaluate
    monkeypatch.setattr(
        validation, "evaluate", lambda *given, **more: parts.add(given[1].name) or plain(*given, **more)
    )
    found = search(recipe, 4)
    assert parts == {"valid"}, "test is never looked at"
    own, best = found.trials[0], found.best
    assert own.number == -1 and not own.values and len(found.trials) == 5
    assert best.value == max(one.value for one in found.trials) > own.value
    assert best.values["learning_rate"] > 1e-3, "at the recipe's own rate nothing is learned in three epochs"
    again = load_recipe(found.folder / "best.py")().fit(found.folder.parent / "again", progress=False)
    assert again.best["value"] == best.value
    kept = [one.name for one in (found.folder / "trials").iterdir()]
    assert len([one for one in kept if not one.endswith(".lock")]) == 1, "worse runs are removed"
    told = (found.folder / "tune.txt").read_text()
    page = (found.folder / "report.html").read_text()
    assert found.budget in page.replace("&#x27;", "'") and f"{found.best.value:.4f}"[1:] in page
    assert "4 trials besides" in told and "Test was not looked at" in told and f"{best.value:.4f}" in told


def test_a_search_goes_on_and_repeats_nothing(recipe: Path) -> None:
    first = search(recipe, 2, seed=3)
    began = {one.number: one for one in first.trials}
    whole = search(recipe, 4, seed=3)
    assert [one.number for one in whole.trials] == [-1, 0, 1, 2, 3]
    assert all(one == began[one.number] for one in whole.trials[:3])
    assert search(recipe, 4, seed=3).trials == whole.trials
    with pytest.raises(DataError, match="another search"):
        search(recipe, 4, seed=4)
    with pytest.raises(DataError, match="no search"):
        tune(recipe, 1, folder=recipe.parent, progress=False)


def test_a_killed_search_goes_on_with_the_trial_it_was_at(recipe: Path) -> None:
    marker = recipe.parent / "kill"
    code = (
        "from recsys.tune.study import tune\n"
        f"tune({str(recipe)!r}, 3, folder={str(recipe.parent / 'search')!r}, fixed={{'kill': {str(marker)!r}}}, "
        "progress=False)\n"
    )

    def run() -> int:
        return subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2], check=False).returncode

    marker.touch()
    assert run() == -9 and not marker.exists()
    assert run() == 0
    found = search(recipe, 3, fixed={"kill": str(marker)})
    assert [one.state for one in found.trials] == ["complete"] * 4
    journal = [json.loads(line) for line in (recipe.parent / "search" / "study.log").read_text().splitlines()]
    asked = [one["param_value_internal"] for one in journal if one.get("param_name") == "learning_rate"]
    assert asked[0] == asked[1], "the killed trial was asked for again"


def test_trials_that_fail_are_told_and_the_search_goes_on(recipe: Path) -> None:
    found = search(recipe, 4, ranges={"dim": "6,8"}, fixed={"learning_rate": 0.01}, sampler="random", seed=1)
    failed = [one for one in found.trials if one.state == "failed"]
    assert failed and all(one.values["dim"] == 6 and "num_heads" in one.why for one in failed)
    assert found.best.values == {"dim": 8} and "failed" in str(found)
    with pytest.raises(ValueError, match="no trial succeeded"):
        search(recipe, 1, "other", ranges={"dim": "6,10"}, fixed={"learning_rate": -1.0})


def test_trials_below_the_median_are_pruned(recipe: Path) -> None:
    more: dict[str, Any] = {"ranges": {"learning_rate": "1e-5..0.05 log", "dim": None}, "sampler": "random"}
    found = search(recipe, 9, fixed={"epochs": 9}, **more)
    pruned = [one for one in found.trials if one.state == "pruned"]
    assert pruned and all(one.epochs < 9 and one.value < found.best.value for one in pruned)
    assert f"{len(pruned)} pruned" in str(found)


def test_spaces_are_read_and_refused() -> None:
    assert read("1..4") == Range(1, 4) and read("0..0.5") == Range(0, 0.5) and read("a,b") == Choice(("a", "b"))
    assert read("true,false") == Choice((True, False))
    for text in ("4", "1..1", "0..1 log", "a..b", "3,3", "1,2 log", ""):
        with pytest.raises(ValueError, match=r"range|choice"):
            read(text)

    def run(dim: int = 4) -> None: ...

    with pytest.raises(ValueError, match="dimm"):
        space_of(run, {"dimm": "1..2"})
    with pytest.raises(ValueError, match="nothing"):
        space_of(run)


def test_our_recipes_say_what_is_tried() -> None:
    from recsys.runs.recipe import find_recipe

    found = space_of(load_recipe(find_recipe("sasrec")))
    assert {"learning_rate", "dropout", "dim"} <= found.keys()
    assert found["learning_rate"] == Range(3e-4, 1e-2, log=True)


def test_from_the_shell(recipe: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(recipe.parent)
    words = ["tune", "circles.py", "--trials", "2", "--try", "dim=4,8", "--only", "--epochs", "2", "--out", "found"]
    assert main([*words, "--learning-rate", "0.01"]) == 0
    shown = capsys.readouterr().out
    assert "Budget: 2 trials" in shown and "best.py" in shown
    facts = json.loads((recipe.parent / "found" / "tune.json").read_text())
    assert facts["fixed"] == {"epochs": 2, "learning_rate": 0.01} and facts["space"] == {"dim": "4,8"}
    assert main(["fit", "found/best.py", "--seed", "1", "--out", "trained"]) == 0
    settings = rs.load_run("trained"), json.loads((recipe.parent / "trained" / "config.json").read_text())["settings"]
    assert settings[1]["learning_rate"] == 0.01 and settings[1]["seed"] == 1
    assert main(["fit", "trained/recipe.py", "--out", "once-more"]) == 0
    assert main([*words, "--learning-rate", "0.01", "--try", "learning_rate=1..2"]) == 1
    assert "fixed as well" in capsys.readouterr().err
