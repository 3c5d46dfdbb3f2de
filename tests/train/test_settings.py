"""``Training``: one list of knobs for fit, Run and the run folder."""

import inspect
import json
from dataclasses import fields

import pytest
from cycles import outcome, plain, tiny

import recsys as rs
from recsys.train.fit import fit
from recsys.train.run import Run
from recsys.train.settings import Stage, Training

QUIET = {"progress": False, "batch_size": 32}
# What decided the numbers of a run of 0.1; such runs resume where it is equal to what is asked for now.
IDENTITY = {
    "accumulate", "batch_size", "betas", "clip_norm", "decay", "exclude", "learning_rate", "max_steps", "metric",
    "optimizer", "order", "seed", "stages", "stride", "tokens", "valid_users", "validate_every", "warmup_steps",
    "weight_decay", "windows",
}  # fmt: skip


def test_knobs_by_name_and_in_a_training_are_the_same(split, tmp_path):
    training = Training(epochs=2, learning_rate=0.01, seed=7, **QUIET)
    models = [tiny() for _ in range(3)]
    fit(models[0], split, epochs=2, learning_rate=0.01, seed=7, folder=tmp_path / "0", **QUIET)
    fit(models[1], split, training, folder=tmp_path / "1")
    Run(models[2], split, training).fit(tmp_path / "2")
    assert plain(models[0].tensors()) == plain(models[1].tensors()) == plain(models[2].tensors())
    assert outcome(tmp_path / "0") == outcome(tmp_path / "1") == outcome(tmp_path / "2")
    configs = [json.loads((tmp_path / str(number) / "config.json").read_text()) for number in range(3)]
    assert configs[0] == configs[1] == configs[2]
    assert {entry.name for entry in fields(Training)} == configs[0]["settings"].keys()


def test_what_is_given_by_name_goes_before_what_the_training_says(split):
    training = Training(epochs=3, progress=False)
    assert len(fit(tiny(), split, training=training, epochs=1).history) == 1
    assert len(Run(tiny(), split, training).fit(epochs=2).history) == 2


def test_the_signature_of_fit_shows_every_knob_with_its_default():
    shown = inspect.signature(rs.fit).parameters
    for entry in fields(Training):
        assert shown[entry.name].default == entry.default, entry.name
    assert list(shown)[:3] == ["model", "split", "training"]
    for entry in fields(Training):
        assert f"{entry.name}:" in Training.__doc__ or f"{entry.name}," in Training.__doc__, entry.name


@pytest.mark.parametrize(
    "call",
    [
        lambda split: fit(tiny(), split, epoch=5),
        lambda split: Run(tiny(), split, {"epoch": 5}),
        lambda split: Run(tiny(), split).fit(epoch=5),
    ],
)
def test_an_unknown_knob_is_refused_with_the_nearest_name(split, call):
    with pytest.raises(TypeError, match=r"'epoch'.*epochs"):
        call(split)


def test_what_is_no_training_is_refused(split):
    with pytest.raises(TypeError, match="Training"):
        fit(tiny(), split, 5)


@pytest.mark.parametrize(
    ("knobs", "named"),
    [({"epochs": -1}, "epochs"), ({"decay": "cosin"}, "cosine"), ({"betas": (0.9, 1.0)}, "betas"), ({"seed": 0}, None)],
)
def test_knobs_are_checked_where_they_are_written(knobs, named):
    if named is None:
        Training(**knobs)
        return
    with pytest.raises((ValueError, TypeError), match=named):
        Training(**knobs)


def test_what_decides_the_numbers_is_what_it_was_in_0_1():
    plainly = Training(metric="ndcg@10").identity()
    assert plainly.keys() == IDENTITY
    assert plainly["stages"] == [
        {
            "losses": None, "train": None, "freeze": [], "select": None, "start": "best", "learning_rate": None,
            "name": "train", "validate": True,
        }
    ]  # fmt: skip
    assert Training(metric="ndcg@10", callbacks=[print]).identity() == plainly


def test_recipes_of_0_1_say_settings_and_stages(split):
    run = Run(tiny(), split, settings={"progress": False}, stages=[Stage(1), Stage(1)])
    assert run.training == Training(progress=False, stages=run.training.stages) and len(run.fit().history) == 2
    with pytest.raises(TypeError, match="training"):
        Run(tiny(), split, {"epochs": 1}, settings={"epochs": 2})


@pytest.mark.parametrize("rate", [0, -1.0, {"adapters": 0.0}, "fast"])
def test_a_rate_of_a_stage_that_means_nothing_is_refused(rate):
    with pytest.raises((ValueError, TypeError), match="learning_rate"):
        Stage(1, learning_rate=rate)


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("lr", "learning_rate"),
        ("n_epochs", "epochs"),
        ("max_epochs", "epochs"),
        ("early_stopping_patience", "patience"),
    ],
)
def test_names_of_other_libraries_lead_to_ours(split, written, meant):
    with pytest.raises(TypeError, match=f"fit takes no '{written}'; did you mean '{meant}'"):
        fit(tiny(), split, **{written: 1})
