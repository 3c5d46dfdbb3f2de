"""Mixed domains: one split of two, batches of one domain, equal numbers of steps, and the table of the story."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

import recsys as rs
from recsys.errors import DataError
from recsys.llm.trainers.selectors.held_out import HeldOutBatches
from recsys.llm.trainers.selectors.skill_it import held_out_losses
from recsys.runs.recipe import find_recipe, load_recipe
from recsys.testing import check_source

ROOT = Path(__file__).parents[3]
SMALL: dict[str, Any] = {"dim": 4, "epochs": 2, "batch_size": 4, "max_length": 5, "held": 9}


def data(users: int, items: int, seed: int) -> rs.Dataset:
    random = np.random.default_rng(seed)
    rows = [(user, int(item), 1000 * seed + 10 * at) for user in range(users)
            for at, item in enumerate(random.permutation(items)[: 4 + user % 5])]  # fmt: skip
    table = pl.DataFrame(rows, schema=["user", "item", "time"], orient="row")
    return rs.Dataset.scan(table, time="time", name=f"data {seed}")


@pytest.fixture
def sets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, rs.Dataset]:
    """Two small data sets with the same raw ids, in place of the public ones."""
    found = {"ml-100k": data(12, 11, 1), "amazon-beauty": data(20, 14, 2)}
    monkeypatch.setattr(rs, "load", found.__getitem__, raising=False)
    monkeypatch.setenv("RECSYS_CACHE", str(tmp_path / "cache"))
    return found


def recipe(**given: Any) -> rs.Run:
    return load_recipe(find_recipe("mixed"))(**{**SMALL, **given})


def test_the_joint_split_holds_both_domains_as_they_are(sets: dict[str, rs.Dataset]) -> None:
    joint = recipe().split
    for name, one in sets.items():
        alone = one.split(rs.LeaveLast())
        for user, raw in enumerate(alone.users.ids.tolist()):
            [row] = joint.users.rows([f"{name}/{raw}"])
            named = [f"{name}/{item}" for item in alone.items.raw(alone.train.history(user)).tolist()]
            assert joint.items.raw(joint.train.history(row)).tolist() == named
        for part in ("valid", "test"):
            here, there = getattr(alone, part), getattr(joint, part)
            own = dict(zip(here.users.tolist(), here.targets(np.arange(len(here)))[1].tolist(), strict=True))
            found = dict(zip(there.users.tolist(), there.targets(np.arange(len(there)))[1].tolist(), strict=True))
            for user, item in own.items():
                [row] = joint.users.rows([f"{name}/{alone.users.ids[user]}"])
                assert joint.items.raw(np.array([found[row]])).tolist() == [f"{name}/{alone.items.raw(np.array(item))}"]
    assert joint.num_items == 25 and joint.num_users == 32
    assert joint.prepared.times is not None


def test_batches_are_of_one_domain_and_hold_its_training_events_alone(sets: dict[str, rs.Dataset]) -> None:
    run = recipe(mix="skill-it")
    split, [mixture] = run.split, [stage.data for stage in run.training.stages]
    for name, source in mixture.sources.items():
        rows = list(source.epoch(0))
        assert all(raw.startswith(f"{name}/") for batch in rows for raw in split.users.raw(batch.users.numpy()))
        assert all(int(batch.mask.sum()) <= 4 * 5 + len(batch) for batch in rows), "a batch holds so many inputs"
        taken = {item for batch in rows for item in batch.ids[batch.mask].tolist()}
        owned = np.flatnonzero([raw.startswith(f"{name}/") for raw in split.users.ids.tolist()])
        assert taken == {item for user in owned for item in split.train.history(user).tolist()}
    check_source(mixture.sources["ml-100k"])


def test_every_way_of_mixing_makes_the_same_number_of_steps(sets: dict[str, rs.Dataset], tmp_path: Path) -> None:
    steps, shares = {}, {}
    for name, given in {"proportional": {}, "equal": {}, "dmt": {"share": 0.0}, "skill-it": {"eta": 99.0}}.items():
        run = recipe(mix=name, epochs=3, **given)
        steps[name] = run.fit(tmp_path / name, progress=False).history[-1]["step"]
        if name != "dmt":
            shares[name] = [list(run.training.stages[0].data.shares_of(epoch).values()) for epoch in (0, 2)]
    assert len(set(steps.values())) == 1
    batches = [source.num_batches(0) for source in recipe().training.stages[0].data.sources.values()]
    np.testing.assert_allclose(shares["proportional"], [np.array(batches) / sum(batches)] * 2)
    np.testing.assert_allclose(shares["equal"], [[0.5, 0.5]] * 2)
    np.testing.assert_allclose(shares["skill-it"][0], shares["proportional"][0])
    assert shares["skill-it"][1] != pytest.approx(shares["skill-it"][0], rel=1e-3)


def test_held_out_batches_ask_for_validation_items_behind_training_histories(sets: dict[str, rs.Dataset]) -> None:
    split = sets["amazon-beauty"].split(rs.LeaveLast())
    source = HeldOutBatches(split.valid, max_length=3, batch_size=6, users=15)
    check_source(source)
    targets = dict(zip(split.valid.users.tolist(), split.valid.targets(np.arange(len(split.valid)))[1].tolist()))
    seen = set()
    for batch in source.epoch(0):
        assert batch.targets is not None
        for row, user in enumerate(batch.users.tolist()):
            end = int(batch.lengths[row])
            assert batch.ids[row, :end].tolist() == split.train.history(user)[-3:].tolist()
            assert batch.targets[row].tolist() == [0] * (end - 1) + [targets[user]] + [0] * (batch.ids.shape[1] - end)
            seen.add(user)
    assert len(seen) == source.num_rows == 15 < len(split.valid)
    model = rs.Recommender(rs.IdItems(4), rs.SASRec(4, 1, max_length=3, dropout=0.5), rs.FullSoftmax())
    rs.fit(model, split, epochs=1, progress=False, metric="ndcg@5")
    [found] = held_out_losses({"all": source}, batches=9)(model)
    model.eval()
    logs = [-float(model.score(split.valid.batch(np.array([at]), 3)).log_softmax(1)[0, targets[user] - 1])
            for at, user in enumerate(split.valid.users.tolist()) if user in seen]  # fmt: skip
    assert found == pytest.approx(np.mean(logs), rel=1e-5)
    with pytest.raises(ValueError, match="at least 1"):
        HeldOutBatches(split.valid, batch_size=0)
    with pytest.raises(DataError, match="history"):
        HeldOutBatches(split.valid.subset(np.zeros(len(split.valid), bool)))


@pytest.fixture
def domains(monkeypatch: pytest.MonkeyPatch) -> Any:
    folder = ROOT / "benchmarks" / "quality"
    if not folder.is_dir():
        pytest.skip("the benchmarks are not here")
    monkeypatch.syspath_prepend(str(folder))
    return importlib.import_module("domains")


def test_a_row_is_measured_and_the_table_compares_users(
    domains: Any, sets: dict[str, rs.Dataset], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = [word for name, value in SMALL.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    given = ["domains.py", "--only", "proportional", "dmt, 1/16", "--seeds", "0", "--runs", str(tmp_path / "runs")]
    monkeypatch.setattr("sys.argv", [*given, "--results", str(tmp_path), "--", *flags])
    domains.main()
    folder = tmp_path / "stories" / "domains"
    rows = {name: domains.each_of(folder, name)[0] for name in ("proportional", "dmt, 1/16")}
    [told] = domains.read(folder, "dmt, 1/16")
    assert set(told["ndcg@10"]) == {"ml-100k", "amazon-beauty", "both"}
    for at, name in enumerate(("ml-100k", "amazon-beauty")):
        values, number = rows["dmt, 1/16"]
        assert (number == at).sum() == sets[name].split(rs.LeaveLast()).num_users
        assert values[number == at].mean() == pytest.approx(told["ndcg@10"][name], rel=1e-5)
        assert told["own"][name] >= told["ndcg@10"][name], "fewer items to be better than"
    text = (tmp_path / "domains.md").read_text(encoding="utf-8")
    change = rows["dmt, 1/16"][0] - rows["proportional"][0]
    assert f"{change[rows['proportional'][1] == 0].mean():+.4f}" in text and f"{change.mean():+.4f}" in text
    file = folder / f"{domains.filed('dmt, 1/16')}-seed0.json"
    file.write_text(json.dumps({**told, "steps": told["steps"] + 1}))
    with pytest.raises(ValueError, match="optimizer steps"):
        domains.table(folder, flags)
    file.write_text(json.dumps(told))
    with pytest.raises(ValueError, match="other flags"):
        domains.table(folder, [])


def test_differences_are_averaged_over_seeds_user_by_user(domains: Any) -> None:
    numbers = np.array([0.0, 0, 1, 1])
    before = {0: np.stack([np.array([0.0, 0, 0, 0]), numbers]), 1: np.stack([np.array([0.2, 0, 0, 0]), numbers])}
    after = {0: np.stack([np.array([0.1, 0.3, 1, 0]), numbers]), 1: np.stack([np.array([0.2, 0.1, 0, 0]), numbers])}
    assert domains.difference(before, after, 0).startswith("+0.1250 ")
    assert domains.difference(before, after, 1).startswith("+0.2500 ")
    assert domains.difference(before, after, None).startswith("+0.1875 ")
    assert domains.difference(before, {}, None) == ""
