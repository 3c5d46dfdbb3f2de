"""Two processes compute what one does: gradients, loss, validation."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from two_processes import train

from recsys.runs.read import read_tensors
from recsys.runs.state import TIMES

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    root = tmp_path_factory.mktemp("distributed")
    path = os.pathsep.join([str(HERE), str(HERE.parent), str(HERE.parent.parent)])
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    train(root / "1", devices=1)
    command = [sys.executable, str(HERE / "two_processes.py"), str(root / "2"), "2"]
    subprocess.run(command, env=environment, check=True, timeout=600)
    return root


def test_weights_and_metrics_are_those_of_one_process(runs):
    one, two = (json.loads((runs / name / "rank-0.json").read_text()) for name in ("1", "2"))
    assert len(one[2]) == len(two[2]) == 4
    for alone, together in zip(one[2], two[2], strict=True):
        assert together["targets"] == alone["targets"] and together["step"] == alone["step"]
        for name in alone.keys() - {*TIMES, "terms"}:
            assert together[name] == pytest.approx(alone[name], abs=1e-5), name
    first, second = (read_tensors(runs / name / "model.safetensors") for name in ("1", "2"))
    for name, value in first.items():
        torch.testing.assert_close(second[name], value, atol=1e-5, rtol=1e-4)


def test_all_processes_end_with_the_same_answer(runs):
    ranks = [json.loads((runs / "2" / f"rank-{rank}.json").read_text()) for rank in (0, 1)]
    assert ranks[0][:2] == ranks[1][:2] and ranks[0][1]["epoch"] >= ranks[0][0]["epoch"]
    assert json.loads((runs / "2" / "manifest.json").read_text())["machine"]["processes"] == 2


def test_a_stage_with_batches_of_its_own_and_a_callback_on_two_processes(runs):
    (alone, weights), *ranks = (
        json.loads((runs / name / f"rank-{rank}.json").read_text())[3] for name, rank in (("1", 0), ("2", 0), ("2", 1))
    )
    assert len(alone) == 2 and alone[-1]["stopped"] == {"by": "early"}
    for history, found in ranks:
        assert [line["targets"] for line in history] == [line["targets"] for line in alone] == [31.0, 31.0]
        assert [line["step"] for line in history] == [6, 12] and history[-1]["stopped"] == {"by": "early"}
        assert found == ranks[0][1]
    for name, values in weights.items():
        assert ranks[0][1][name] == pytest.approx(values, abs=1e-5), name
