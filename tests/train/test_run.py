import json

import pytest
from cycles import tiny

from recsys.errors import DataError
from recsys.runs.read import load_run
from recsys.train.run import Run
from recsys.train.settings import Stage
from recsys.train.update import Updater


def test_a_run_trains_with_its_settings_and_changes_override_them(split, tmp_path):
    run = Run(tiny(), split, settings={"epochs": 5, "batch_size": 32, "progress": False}, name="mine")
    fitted = run.fit(tmp_path / "run", arguments={"dim": 8}, epochs=1)
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert len(fitted.history) == 1 and config["name"] == "mine" and config["arguments"] == {"dim": 8}
    assert load_run(tmp_path / "run").num_items == split.num_items
    stages = Run(tiny(), split, {"progress": False}, stages=[Stage(1), Stage(1)]).fit()
    assert [line["stage"] for line in stages.history] == [0, 1] and stages.folder is None


def test_arguments_that_do_not_exist_are_named_at_once(split):
    with pytest.raises(TypeError, match="epochs"):
        Run(tiny(), split, settings={"epoch": 5})
    with pytest.raises(TypeError, match="exclude"):
        Run(tiny(), split, evaluate={"exclud": "none"})
    with pytest.raises(TypeError, match="batch_size"):
        Run(tiny(), split).fit(batchsize=3)


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    for manifest in ("{}", '{"kind": "recsys.bundle"}'):
        (tmp_path / "manifest.json").write_text(manifest)
        (tmp_path / "config.json").write_text('{"format": 1}')
        with pytest.raises(DataError, match="run"):
            load_run(tmp_path)


def test_a_run_that_stopped_too_early_does_not_load(split, tmp_path, monkeypatch):
    def fail(*_):
        raise MemoryError("stop")

    monkeypatch.setattr(Updater, "__call__", fail)
    with pytest.raises(MemoryError):
        Run(tiny(), split, {"epochs": 1, "progress": False}).fit(tmp_path / "run")
    with pytest.raises(DataError, match="epoch"):
        load_run(tmp_path / "run")
