"""Forgetting users and items: their events become as probable as events never seen, others keep their quality."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from torch import Tensor

import recsys as rs
from recsys.cli import main
from recsys.data.split import Split
from recsys.errors import DataError, DataWarning
from recsys.forgetting.forget import forget
from recsys.forgetting.memory import auc, log_probs, training_events
from recsys.forgetting.purge import purge, remains
from recsys.forgetting.statement import NAMES
from recsys.llm.profiles import Profiles
from recsys.llm.trainers.drafts import Judged
from recsys.llm.trainers.item_policy import ItemPolicy
from recsys.llm.trainers.objectives.d2o import D2O
from recsys.llm.trainers.tuning import Tuning
from recsys.runs.split import split_of
from recsys.serve.bundle import export
from recsys.storage.folders import write_folder
from tests.cycles import ODD, tiny, two_circles
from tests.generative.test_generator import codes, generator

_KNOWN: dict[str, Tensor] = {}
FAST: dict[str, Any] = {"epochs": 25, "learning_rate": 5e-3, "kl": 3.0, "tolerance": 0.1, "progress": False}


@pytest.fixture(scope="module")
def split() -> Split:
    return two_circles()


@pytest.fixture
def model(split: Split) -> Any:
    """Trained until it knows the odd users by heart."""
    made = tiny(dropout=0.0)
    rs.fit(made, split, epochs=1 if _KNOWN else 40, learning_rate=0.02, batch_size=32, validate_every=0, progress=False)
    if not _KNOWN:
        _KNOWN.update({name: value.clone() for name, value in made.tensors().items()})
    made.load_tensors({name: value.clone() for name, value in _KNOWN.items()})
    return made


def test_auc_is_the_chance_of_pairs() -> None:
    random = np.random.default_rng(0)
    members, others = random.integers(0, 5, 40).astype(float), random.integers(0, 5, 30).astype(float)
    pairs = members[:, None] - others
    assert auc(members, others) == pytest.approx(((pairs > 0) + 0.5 * (pairs == 0)).mean())
    assert np.isnan(auc(members, others[:0]))


def test_events_are_scored_with_the_history_before_them(split: Split, model: Any) -> None:
    part = training_events(split, np.array([3, 12]))
    found = log_probs(model, ItemPolicy(model.encoder, model.items), part)
    wanted = []
    for user in (3, 12):
        history = split.train.history(user)
        raw = [split.items.ids[row - 1] for row in history]
        for at in range(1, len(history)):
            scores = torch.from_numpy(model.scores([raw[:at]])).log_softmax(1)
            wanted.append(float(scores[0, history[at] - 1]))
    assert np.allclose(found, wanted, atol=1e-5)


def test_users_are_forgotten_and_the_others_are_not(split: Split, model: Any) -> None:
    before = {name: value.clone() for name, value in model.tensors().items()}
    done = forget(model, split, users=ODD.tolist(), **FAST)
    assert done.before["own events hr@10"] > 0.5
    assert done.after["log-probability"] < done.before["log-probability"] - 0.5
    assert done.after["valid ndcg@10"] >= 0.9 * done.before["valid ndcg@10"]
    assert done.split.num_users == 50 and not set(done.split.users.ids.tolist()) & set(ODD.tolist())
    assert all(torch.equal(value, before[name]) for name, value in model.tensors().items())  # the model stays
    assert set(done.model.tensors()) == set(before)
    assert "10 users forgotten" in str(done) and done.facts["chosen epoch"] >= 1


def test_a_generator_forgets_too(split: Split, tmp_path: Path) -> None:
    made = generator(codes(tmp_path / "codes", split))
    rs.fit(made, split, epochs=40, learning_rate=0.01, batch_size=64, validate_every=0, progress=False)
    done = forget(made, split, users=ODD.tolist(), **FAST)
    assert done.after["log-probability"] < done.before["log-probability"] - 0.3
    assert done.after["valid ndcg@10"] >= 0.9 * done.before["valid ndcg@10"]
    assert len(done.model.recommend([["item-1", "item-2"]], k=5).items[0]) == 5


def test_a_model_of_frozen_vectors_forgets_by_its_encoder(split: Split, model: Any, tmp_path: Path) -> None:
    rs.fit(model, split, epochs=0, init="keep", validate_every=0, progress=False, folder=tmp_path / "run")
    frozen = rs.Recommender(rs.FrozenItems(str(tmp_path / "run")), rs.SASRec(8, 1, 1, 0.0, 6), rs.FullSoftmax())
    rs.fit(frozen, split, epochs=30, learning_rate=0.02, batch_size=32, validate_every=0, progress=False)
    done = forget(frozen, split, users=ODD.tolist(), **FAST)
    assert done.after["log-probability"] < done.before["log-probability"]


def test_further_along_the_way_more_is_forgotten(split: Split, model: Any) -> None:
    plain, further = (
        forget(model, split, users=ODD.tolist(), extrapolate=share, **(FAST | {"epochs": 1, "tolerance": 0.3}))
        for share in (0.0, 1.0)
    )
    assert further.facts["extrapolated"] > 0
    assert further.after["log-probability"] < plain.after["log-probability"]
    assert further.after["valid ndcg@10"] >= 0.7 * further.before["valid ndcg@10"]


def test_after_a_stage_of_another_kind_only_forgetting_is_trained(split: Split, model: Any) -> None:
    model.auxiliaries.append(Tuning(ItemPolicy(model.encoder, model.items), Judged(samples=2), D2O()))
    done = forget(model, split, users=ODD.tolist(), **(FAST | {"epochs": 2}))
    assert done.facts["epochs"] >= 1 and len(done.model.auxiliaries) == 1


def test_an_item_is_forgotten(split: Split, model: Any) -> None:
    done = forget(model, split, items=["item-4"], **FAST)
    assert done.after["log-probability"] < done.before["log-probability"] - 0.5
    assert done.split.train.item_counts()[5] == 0 and done.split.num_users == split.num_users


def test_with_adapters_only_these_are_trained(split: Split, model: Any) -> None:
    pytest.importorskip("peft")
    from recsys.llm.trainers.adapters.lora import LoRA

    before = {name: value.clone() for name, value in model.tensors().items()}
    done = forget(model, split, users=ODD.tolist(), adapter=LoRA(4), **(FAST | {"epochs": 4}))
    after = done.model.tensors()
    assert set(after) == set(before)
    assert torch.equal(after["items.weight"], before["items.weight"])


def test_23_6_where_quality_would_be_lost_nothing_changes_and_all_is_told(split: Split, model: Any) -> None:
    done = forget(model, split, users=ODD.tolist(), **(FAST | {"tolerance": 0.0, "epochs": 2, "learning_rate": 1.0}))
    assert done.facts["chosen epoch"] == 0 and "NOT FORGOTTEN" in str(done)
    assert set(done.before) == set(done.after) == set(NAMES) and all(title in str(done) for title in NAMES.values())
    assert done.after["log-probability"] == pytest.approx(done.before["log-probability"], abs=1e-6)


def test_who_was_never_trained_on_cannot_be_forgotten(split: Split, model: Any) -> None:
    with pytest.raises(DataError, match="never saw any"):
        forget(model, split, users=[1000, 1001], **FAST)
    with pytest.warns(DataWarning, match="1 of 11"):
        forget(model, split, users=[*ODD.tolist(), 1000], **(FAST | {"epochs": 1}))
    with pytest.raises(ValueError, match="either"):
        forget(model, split, users=[1], items=["item-1"], **FAST)
    with pytest.raises(ValueError, match="tolerance"):
        forget(model, split, users=[1], **(FAST | {"tolerance": 1.5}))
    with pytest.raises(DataError, match="nobody"):
        forget(model, split, users=split.users.ids.tolist(), **FAST)
    with pytest.raises(TypeError, match="fitted in one go"):
        forget(rs.EASE(), split, users=[1], **FAST)
    with pytest.raises(TypeError, match="its members"):
        forget(rs.Blend([model]), split, users=[1], **FAST)


def test_what_holds_them_elsewhere_is_named_and_their_texts_are_purged(
    split: Split, model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RECSYS_CACHE", str(tmp_path / "cache"))
    runs, ids = tmp_path / "runs", ODD.tolist()
    for name in ("run", "other"):
        rs.fit(model, split, epochs=0, init="keep", validate_every=0, progress=False, folder=runs / name)
    export(model, tmp_path / "serving" / "bundle", split=split)
    rs.fit(tiny(), two_circles(30), epochs=0, validate_every=0, progress=False, folder=runs / "elsewhere")
    report = {"of": "user", "data": "made up"}
    users = split.users.ids.tolist()
    Profiles(users, [f"likes {user}" for user in users], ["llm"] * len(users), report).save(runs / "profiles" / "users")
    Profiles(ids, ["an item"] * len(ids), ["llm"] * len(ids), {"of": "item"}).save(runs / "items")
    (runs / "profiles" / "users.answers.jsonl").write_text("{}\n")
    cache = tmp_path / "cache" / "artifacts"
    facts = {"data_hash": split.data_hash or split.cut.digest}
    for kind in ("recsys.teacher-states", "recsys.semantic-ids"):
        write_folder(cache / kind, kind, 1, lambda work: {"facts": facts})
    (runs / "broken").mkdir()
    (runs / "broken" / "manifest.json").write_text("no manifest of ours")

    run = runs / "run"
    told = remains(run, split, ids, places=[tmp_path])
    assert sum("weights of before" in line for line in told) == 1
    lines = {Path(line.partition(":")[0]).name: line for line in told if "weights of before" not in line}
    assert {"other", "bundle", "users"} <= set(lines) and not {"run", "elsewhere", "items", "broken"} & set(lines)
    assert f"{len(ids)} texts" in lines["users"]
    assert not any("bundle" in line for line in remains(run, split, ids)), "it does not lie beside the run"

    done = purge(run, split, ids, places=[tmp_path])
    assert sum("texts in" in line for line in done) == 1
    assert not (cache / "recsys.teacher-states").exists() and (cache / "recsys.semantic-ids").exists()
    left = Profiles.load(runs / "profiles" / "users")
    assert left.ids == [user for user in users if user not in ids]
    assert left.texts == [f"likes {user}" for user in left.ids] and left.report == report
    assert not (runs / "profiles" / "users.answers.jsonl").exists()
    assert len(Profiles.load(runs / "items")) == len(ids), "items that are called as these users are no users"
    assert rs.load_run(runs / "other") and not any("texts" in line for line in remains(run, split, ids))


def test_from_the_shell(split: Split, model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setenv("RECSYS_CACHE", str(tmp_path / "cache"))
    rs.fit(model, split, epochs=0, init="keep", validate_every=0, progress=False, folder=tmp_path / "run")
    pl.DataFrame({"user": ODD}).write_parquet(tmp_path / "users.parquet")
    flags = ["--epochs", "3", "--learning-rate", "5e-3", "--kl", "3", "--tolerance", "0.2", "--purge"]
    assert main(["forget", str(tmp_path / "run"), str(tmp_path / "users.parquet"), *flags]) == 0
    out = tmp_path / "run-forgotten"
    facts = json.loads((out / "forgotten.json").read_text())
    assert facts["facts"]["forgotten"] == 10 and facts["purged"]
    told = (out / "forgotten.txt").read_text()
    assert told in capsys.readouterr().out
    assert main(["evaluate", str(out)]) == 0
    assert len(pl.read_parquet(out / "per_user.parquet")) == 50
    kept = split_of(out, rs.load_run(out))  # the data that the new run remembers
    assert not set(kept.users.ids.tolist()) & set(ODD.tolist())
    assert main(["forget", str(tmp_path / "run"), str(tmp_path / "users.parquet")]) == 1  # it is there already
    flags = ["--out", str(tmp_path / "none"), "--epochs", "1", "--tolerance", "0", "--learning-rate", "1"]
    rs.fit(model, split, epochs=0, init="keep", validate_every=0, progress=False, folder=tmp_path / "other")
    assert main(["forget", str(tmp_path / "other"), str(tmp_path / "users.parquet"), *flags]) == 1
    assert not (tmp_path / "none").exists() and "NOT FORGOTTEN" in capsys.readouterr().err
