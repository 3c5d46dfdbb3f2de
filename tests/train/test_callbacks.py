"""Callbacks behind each epoch: what they see, how they stop a run, what is left after an error in one."""

import json
from dataclasses import FrozenInstanceError

import numpy as np
import pytest
import torch
from cycles import cycles, outcome, plain, tiny

import recsys as rs
from recsys.train.fit import fit
from recsys.train.loop import Loop, Validation
from recsys.train.settings import Stage

QUIET = {"progress": False, "batch_size": 16}


def scripted(monkeypatch, values):
    answers = iter(values)
    monkeypatch.setattr(Validation, "__call__", lambda self, model, metric: next(answers))


def second_epoch(epoch):
    return epoch.epoch == 2


def test_a_callback_sees_each_epoch_behind_its_validation(monkeypatch):
    scripted(monkeypatch, [0.1, 0.5, 0.3])
    seen, model = [], tiny()
    fitted = fit(model, cycles(users=12), stages=[Stage(2), Stage(1, name="more")], callbacks=[seen.append], **QUIET)
    assert [(one.epoch, one.stage, one.stage_name) for one in seen] == [
        (1, 0, "train"),
        (2, 0, "train"),
        (3, 1, "more"),
    ]
    assert [one.metrics["ndcg@10"] for one in seen] == [0.1, 0.5, 0.3]
    assert [one.best["epoch"] for one in seen] == [1, 2, 2] and seen[0].model is model
    assert [dict(one.metrics)["loss"] for one in seen] == [line["loss"] for line in fitted.history]
    with pytest.raises(TypeError):
        seen[0].metrics["loss"] = 0.0
    with pytest.raises(FrozenInstanceError):
        seen[0].epoch = 7


def test_true_stops_the_run_in_all_its_stages_and_the_best_weights_stay(monkeypatch, tmp_path, capsys):
    scripted(monkeypatch, [0.5, 0.1])
    kept, model = [], tiny()

    def stop(epoch):
        kept.append(plain(epoch.model.tensors()))
        return epoch.epoch == 2

    options = {"stages": [Stage(4), Stage(3)], "folder": tmp_path, "batch_size": 16}
    fitted = fit(model, cycles(users=12), callbacks=[lambda epoch: None, stop], **options)
    assert len(fitted.history) == 2 and fitted.best["epoch"] == 1 and plain(model.tensors()) == kept[0] != kept[1]
    name = stop.__qualname__
    assert fitted.history[-1]["stopped"] == {"by": name} and "stopped" not in fitted.history[0]
    assert json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[-1])["stopped"] == {"by": name}
    assert f"stopped by {name}" in capsys.readouterr().err


def test_stop_training_says_why():
    class Budget:
        def __call__(self, epoch):
            if epoch.metrics["step"] >= 2:
                raise rs.StopTraining("the budget is spent")

    fitted = fit(tiny(), cycles(users=12), epochs=9, callbacks=[Budget()], **QUIET)
    stopped = fitted.history[-1]["stopped"]
    assert stopped["by"].endswith("Budget") and stopped["why"] == "the budget is spent" and len(fitted.history) < 9


def test_a_stopped_run_stays_stopped_until_its_callback_is_left_away(tmp_path):
    split, options = cycles(users=40), {"epochs": 4, "folder": tmp_path / "parts", **QUIET}
    first = fit(tiny(), split, callbacks=[second_epoch], **options)
    again = fit(tiny(), split, callbacks=[second_epoch], **options)
    assert len(first.history) == 2 and again.history == first.history
    on = fit(tiny(), split, **options)
    assert len(on.history) == 4 and on.history[1]["stopped"] == {"by": "second_epoch"}
    fit(tiny(), split, epochs=4, folder=tmp_path / "whole", **QUIET)
    whole, parts = outcome(tmp_path / "whole"), outcome(tmp_path / "parts")
    assert whole["last"] == parts["last"] and whole["optimizer"] == parts["optimizer"]


def test_callbacks_change_nothing_in_what_is_trained(tmp_path):
    def noisy(epoch):
        torch.rand(3), np.random.rand(2)
        epoch.model.eval()

    split = cycles(users=40)
    fit(tiny(), split, epochs=3, folder=tmp_path / "without", **QUIET)
    fit(tiny(), split, epochs=3, folder=tmp_path / "with", callbacks=[noisy], **QUIET)
    assert outcome(tmp_path / "without") == outcome(tmp_path / "with")


def test_an_error_in_a_callback_keeps_the_checkpoint_and_the_run_goes_on_from_it(tmp_path):
    def broken(epoch):
        if epoch.epoch == 2:
            raise OSError("no network")

    split = cycles(users=40)
    fit(tiny(), split, epochs=3, folder=tmp_path / "whole", **QUIET)
    with pytest.raises(OSError, match="no network"):
        fit(tiny(), split, epochs=3, folder=tmp_path / "parts", callbacks=[broken], **QUIET)
    fit(tiny(), split, epochs=3, folder=tmp_path / "parts", resume=True, **QUIET)
    assert outcome(tmp_path / "whole") == outcome(tmp_path / "parts")


def test_answers_that_are_neither_true_nor_none_are_refused():
    def score(epoch):
        return epoch.metrics["loss"]

    with pytest.raises(TypeError, match=r"score.*True to stop"):
        fit(tiny(), cycles(users=12), epochs=2, callbacks=[score], **QUIET)
    with pytest.raises(TypeError, match="callbacks"):
        fit(tiny(), cycles(users=12), callbacks=["stop"], **QUIET)
    assert len(fit(tiny(), cycles(users=12), epochs=2, callbacks=[lambda _: np.bool_(True)], **QUIET).history) == 1


def test_a_stage_without_validation_stopped_at_once_keeps_its_weights():
    model = tiny()
    fitted = fit(model, cycles(users=12), stages=[Stage(5, validate=False)], callbacks=[lambda _: True], **QUIET)
    assert len(fitted.history) == 1 and model.learned


def test_a_model_that_is_counted_has_one_epoch(tmp_path):
    seen = []
    fitted = fit(rs.Popularity(), cycles(), callbacks=[seen.append], progress=False, folder=tmp_path)
    assert [one.epoch for one in seen] == [1] and seen[0].metrics["ndcg@10"] == fitted.best["value"]
    assert "stopped" in fit(rs.Popularity(), cycles(), callbacks=[lambda _: True], progress=False).history[0]


def test_loggers_get_numbers_only_of_a_stopped_epoch(monkeypatch):
    logged = []
    monkeypatch.setattr("lightning.fabric.Fabric.log_dict", lambda self, values, step: logged.append(values))

    class Logger:
        pass

    monkeypatch.setattr(Loop, "_talks", False)
    import recsys.train.engine as engine

    start = engine.start
    from dataclasses import replace

    monkeypatch.setattr("recsys.train.fit.start", lambda settings: start(replace(settings, loggers=())))
    fit(tiny(), cycles(users=12), epochs=3, callbacks=[lambda _: True], loggers=[Logger()], **QUIET)
    assert len(logged) == 1 and all(isinstance(value, (int, float)) for value in logged[0].values())
