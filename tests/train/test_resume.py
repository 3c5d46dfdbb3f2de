"""Kill -9 at any moment, then resume: the run ends as if nothing had happened, bit by bit."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from cycles import outcome

HERE = Path(__file__).parent
MOMENTS = ("update", "validation", "weights", "tensors", "rename", "pointer", "stage")

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork and SIGKILL")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    path = os.pathsep.join([str(HERE), str(HERE.parent), str(HERE.parent.parent)])
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(HERE / "kill_and_resume.py"), str(root)]
    subprocess.run(command, env=environment, check=True, timeout=600)
    return root


@pytest.fixture(scope="module")
def codes(runs):
    return json.loads((runs / "codes.json").read_text())


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("moment", MOMENTS)
def test_killed_and_resumed_equals_uninterrupted(runs, codes, moment, workers):
    code = codes[f"{moment}-{workers}"]
    assert (code["died"], code["again"]) == (-9, 0)
    whole, again = outcome(runs / "whole-0"), outcome(runs / f"{moment}-{workers}")
    assert again["metrics"] == whole["metrics"] and len(whole["metrics"]) == 4
    assert again == whole


def test_the_number_of_workers_changes_nothing(runs, codes):
    assert codes["whole-0"] == codes["whole-2"] == 0
    assert outcome(runs / "whole-0") == outcome(runs / "whole-2")


@pytest.mark.parametrize("workers", [0, 2])
def test_the_kills_hit_the_moments_they_are_meant_for(codes, workers):
    left = {moment: codes[f"{moment}-{workers}"]["left"] for moment in MOMENTS}
    state = {moment: codes[f"{moment}-{workers}"]["state"] for moment in MOMENTS}
    assert state["update"]["consumed"] > 0 and state["update"]["epoch"] == 1
    assert state["stage"]["consumed"] > 0 and state["stage"]["stage"] == 1
    assert state["validation"]["phase"] == "validate" and state["weights"]["phase"] == "validate"
    assert any(name.endswith("optimizer.safetensors.partial") for name in left["tensors"])
    assert any(name.endswith(".partial/state.json") for name in left["rename"])
    folders = [name for name in left["pointer"] if "step-" in name and name.count("/") == 1]
    assert len(folders) == 2 and not any(name.endswith(".partial") for name in folders)


def test_a_resumed_run_leaves_nothing_behind_and_says_that_it_resumed(runs):
    for moment in MOMENTS:
        folder = runs / f"{moment}-0"
        assert not list(folder.rglob("*.partial")) and len(list((folder / "checkpoints").iterdir())) == 2
        assert len(json.loads((folder / "manifest.json").read_text())["resumed"]) == 1
