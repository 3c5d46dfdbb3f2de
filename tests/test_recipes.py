"""Every recipe, with the flags that change its parts: fit, stop, resume, load, evaluate, export, load, recommend.

The data are made up and tiny, and stand for every data set that a recipe names. What comes out of one door must be what
comes out of the next, so nothing here asks how good it is.
"""

from __future__ import annotations

import inspect
import os
import signal
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

import recsys as rs
from recsys.recommenders.history import History
from recsys.runs.recipe import find_recipe, load_recipe, recipe_names
from recsys.train.update import Updater

ITEMS, USERS, T0, DAY = 24, 30, 880_000_000, 86_400
GENRES = ("comedy", "drama", "noir", "western")
SMALL: dict[str, Any] = {
    "dim": 8, "epochs": 2, "batch_size": 16, "max_length": 6, "num_layers": 1, "num_heads": 1, "hidden": 8,
    "baselines": False, "window": 4, "max_tokens": 24, "vocab_size": 280, "pretrain_epochs": 1, "second_epochs": 1,
    "rank": 2,
}  # fmt: skip

CODED = {"rpg": {"levels": 3, "size": 4}, "tiger": {"levels": 2, "size": 3}, "liger": {"levels": 2, "size": 3},
         "mender": {"levels": 2, "size": 3, "text_model": "hashed", "rows": None},
         "reg4rec": {"levels": 2, "size": 3, "samples": 3, "reward_epochs": 1}}  # fmt: skip
TUNED = ("dislikes", "noisy", "varied")  # go on from a run of sasrec
TINY = {"text": "tfidf", "layers": 1, "heads": 2, "head_dim": 4, "ff": 8, "beam": 8}  # of recipes over semantic ids

# Recipe -> variants, each the flags that change what the model is made of.
VARIANTS: dict[str, list[dict[str, Any]]] = {
    "blend": [{}, {"knn": False}],
    "bert4rec": [{}, {"head": False, "last": 1.0}],
    "cl4srec": [{}, {"weight": 0.0}, {"pool": "mean", "cosine": True, "hide": ("target", "user"), "train": "last"}],
    "coserec": [{}, {"warm_up": 0}, {"weight": 0.0, "train": "last"}],
    "dislikes": [{}, {"by": "aft"}, {"by": "npo", "each": 1}],
    "duorec": [{}, {"mode": "un"}, {"mode": "su", "hide": ("target",)}, {"mode": "us", "train": "last"}],
    "gru4rec": [{}, {"train": "last"}],
    "laclrec": [
        {}, {"augmenter": "off"}, {"editor_encoder": "bidirectional", "rec_layers": 1, "keep_learning": 0.1},
        {"decision": "gumbel", "dedup": "none", "train": "last"},
    ],
    "liger": [
        {}, {"rank_by": "dense", "project": "linear"}, {"rank_by": "generative", "control": "permuted"},
        {"cold": True, "share": 0.2},
    ],
    "mamba4rec": [{}, {"train": "last", "ssm_init": "mamba"}],
    "rearec": [
        {}, {"method": "prl"}, {"encoder": "gru4rec", "method": "prl"}, {"encoder": "sigma"}, {"data": "amazon-beauty"},
    ],
    "mender": [{}, {"mixture": ("sentiment", "fine", "coarse"), "use": "preference", "rows": 30}],
    "mixed": [{}, {"mix": "dmt", "share": 0.2}, {"mix": "skill-it"}],
    "noisy": [{"flipped": 0.3}, {"by": "dpo"}],
    "own": [{}, {"split": "leave-last", "loss": "sampled", "min_user": 3}],
    "recformer": [{}, {"train": "last", "pooling": "first", "pretrain_epochs": 0}, {"cold": True, "share": 0.2}],
    "reg4rec": [
        {"category": "genre"}, {"tokens": "residual", "order": "fixed", "reward": "off", "prune": "prediction"},
        {"tokens": "product", "order": "random", "reward": "pars", "prune": "head"},
    ],
    "relmf": [{}, {"loss": "logistic", "steps": 5}],
    "rpg": [
        {"heads": "none"}, {"heads": "residual"}, {"heads": "none", "loss": "items", "ids": True},
        {"heads": "none", "tokens": "random", "tied": True},
        {"heads": "none", "loss": "items", "cold": True, "share": 0.2, "tokens": "product"},
    ],
    "sasrec": [{}, {"train": "last", "data": "amazon-beauty"}],
    "sasrec_beauty": [{}],
    "sasrec_ips": [{}],
    "sasrec_ml100k": [{}, {"layout": "pre"}, {"layout": "post"}, {"layout": "ligr"}],
    "sasrec_ml1m": [{}, {"loss": "sampled"}, {"loss": "bce"}, {"loss": "gbce"}],
    "sigma": [{}, {"gate_cross": "clean", "ssm_init": "mamba"}],
    "slmrec": [{"role": "teacher"}, {"role": "student"}, {"role": "student", "preset": "code", "cache": True},
               {"role": "ce-only", "rows": "users"}, {"role": "ce-only", "adapter": "none"},
               {"role": "ce-only", "adapter": "adalora", "best": False}, {"role": "ce-only", "adapter": "allora"},
               {"role": "ce-only", "adapter": "aslora", "best": False}, {"role": "ce-only", "adapter": "sparse"}],
    "sracl": [{}, {"preset": "parity", "cross_loss": "infonce"}, {"cross": 0.0, "intra": 0.0}, {"shuffle": True}],
    "text_items": [
        {}, {"table": "ids+text", "encoder": "gru4rec"}, {"table": "ids", "encoder": "mamba4rec"},
        {"project": "mlp", "trainable": True, "cold": True, "share": 0.2},
    ],
    "tiger": [
        {}, {"memory": "newest", "tokens": "random"}, {"reads": "tokens", "softmax": "vocabulary"},
        {"reads": "tokens", "rows": "prefixes", "memory": "past"}, {"rows": "prefixes"}, {"tokens": "rqvae"},
    ],
    "varied": [{}, {"credit": "nsr", "entropy": 0.01}, {"credit": "ngrpo"}],
    "unirec": [{}, {"loss": "bce"}, {"enhanced": False, "share_norms": False}],
}  # fmt: skip
CASES = [(recipe, flags) for recipe, variants in VARIANTS.items() for flags in variants]


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Events, an item table and text vectors."""
    folder = tmp_path_factory.mktemp("world")
    random = np.random.default_rng(5)
    events = [
        (f"user {u:02d}", f"item {(u * 5 + t * int(random.integers(1, 4))) % ITEMS:02d}", T0 + u * 99 + t * DAY)
        for u in range(USERS)
        for t in range(int(random.integers(4, 11)))
    ]  # fmt: skip
    pl.DataFrame(events, schema=["user", "item", "time"], orient="row").unique(
        ["user", "item"], keep="first", maintain_order=True
    ).write_csv(folder / "events.csv")
    titles = [(f"item {i:02d}", f"the {GENRES[i % 4]} number {i}", GENRES[i % 4]) for i in range(ITEMS)]
    pl.DataFrame(titles, schema=["item", "title", "genre"], orient="row").write_csv(folder / "items.csv")
    names = [name for name, _, _ in titles]
    rs.Vectors.of(names, random.standard_normal((ITEMS, 6)).astype("f4")).save(folder / "vectors")
    return folder


@pytest.fixture
def toys(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Every data set is the made-up one; caches go to a folder of the test's."""
    items = rs.read_items(world / "items.csv", item="item")
    data = rs.Dataset.scan(world / "events.csv", user="user", item="item", time="time", items=items)
    monkeypatch.setattr(rs, "load", lambda name: data, raising=False)
    monkeypatch.setenv("RECSYS_CACHE", str(tmp_path / "cache"))
    return world


@cache
def recipe(name: str) -> Any:
    return load_recipe(find_recipe(name))


def made(name: str, flags: dict[str, Any], world: Path, sasrec: Path, teacher: Path) -> rs.Run:
    """The run of a recipe in toy size."""
    function = recipe(name)
    known = inspect.signature(function).parameters
    small = {knob: value for knob, value in SMALL.items() if knob in known}
    if name in TUNED:
        small |= {"base": str(sasrec)}
    if name == "blend":
        small |= {"members": (str(sasrec),)}
    if name == "sracl":
        del small["window"]  # there it is how a window is pooled
    if name in ("text_items", "sracl"):
        small["vectors"] = str(world / "vectors")
    if name == "slmrec":
        small |= {"sasrec": str(sasrec), "layers": 4}
        small |= {"teacher": str(teacher)} if flags["role"] == "student" else {}
    if name in CODED:
        small |= {knob: value for knob, value in TINY.items() if knob in known and knob not in flags} | CODED[name]
    if flags.get("cold") and "users" in known:
        small["users"] = 1.0
    return function(**{**small, **flags})


def stopped(run: rs.Run, folder: Path, after: int, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Fit and press Ctrl-C in update number ``after``; whether it came to that."""
    call, count = Updater.__call__, [0]

    def counting(self: Updater, *given: Any, **named: Any) -> Any:
        count[0] += 1
        if count[0] == after:
            os.kill(os.getpid(), signal.SIGINT)
        return call(self, *given, **named)

    with monkeypatch.context() as patch:
        patch.setattr(Updater, "__call__", counting)
        try:
            run.fit(folder, progress=False)
        except KeyboardInterrupt:
            return True
    return False


def same_numbers(first: rs.Run | Any, second: Any) -> None:
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert torch.equal(value, second[name]), name


def histories(split: rs.Split, count: int = 7) -> list[History]:
    index = np.arange(min(count, len(split.test)))
    owner, rows = split.test.history(index)
    raw = split.items.raw(rows)
    times = split.prepared.times
    found = []
    for position in index:
        start, stop = split.test.history_start[position], split.test.target_start[position]
        found.append(
            History(
                raw[owner == position].tolist(),
                times=times[start:stop].tolist(),
                query_time=int(split.test.query_time[position]),
            )
        )
    return found


def test_every_recipe_is_tried() -> None:
    assert set(VARIANTS) == set(recipe_names())


@pytest.mark.filterwarnings("ignore::recsys.errors.DataWarning")
@pytest.mark.parametrize(
    ("name", "flags"), CASES, ids=[f"{name}-{'-'.join(map(str, flags.values()))}" for name, flags in CASES]
)
def test_b3_a_recipe_goes_through_every_door(
    name: str, flags: dict[str, Any], toys: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sasrec, teacher = tmp_path / "sasrec", tmp_path / "teacher"
    if name in ("slmrec", "blend") or name in TUNED:
        made("sasrec", {}, toys, sasrec, teacher).fit(sasrec, progress=False)
        if flags.get("role") == "student":
            made("slmrec", {"role": "teacher"}, toys, sasrec, teacher).fit(teacher, progress=False)

    def fresh() -> rs.Run:
        return made(name, flags, toys, sasrec, teacher)

    whole = fresh()
    whole.fit(tmp_path / "whole", progress=False)
    run = fresh()
    if stopped(run, tmp_path / "run", 4, monkeypatch):
        run = fresh()
        run.fit(tmp_path / "run", progress=False)
        lines = [(tmp_path / where / "metrics.jsonl").read_text().count("\n") for where in ("whole", "run")]
        assert lines[0] == lines[1]
    same_numbers(whole.model.tensors(), run.model.tensors())

    loaded = rs.load_run(tmp_path / "run")
    same_numbers(run.model.tensors(), loaded.tensors())
    reports = [
        rs.evaluate(model, run.split.test, k=(1, 5), progress=False, **run.evaluate) for model in (run.model, loaded)
    ]
    for column in reports[0].columns:
        assert np.array_equal(reports[0].columns[column], reports[1].columns[column]), column

    rs.export(loaded, tmp_path / "bundle", split=run.split)
    bundle = rs.Bundle.load(tmp_path / "bundle")
    asked = histories(run.split)
    expected, found = run.model.recommend(asked, k=5), bundle.recommend(asked, k=5)
    assert found.items == expected.items
    np.testing.assert_allclose(found.scores, expected.scores, rtol=1e-4, atol=1e-5)


def test_ready_codes_are_read_as_they_are_or_as_a_control(toys: Path, tmp_path: Path) -> None:
    split = rs.load("toys").split(rs.LeaveLast(), audit=False)
    ids = rs.make_semantic_ids(split, toys / "vectors", rs.ResidualKMeans(2, 3), folder=tmp_path / "ids")
    named = {"codes": str(ids.path)}
    read = rs.SemanticIds.load(recipe("tiger")(**named).model.items.ids)
    assert read.digest == ids.digest
    control = rs.SemanticIds.load(recipe("tiger")(**named, control="permuted").model.items.ids)
    assert sorted(control.codes.tolist()) == sorted(ids.codes.tolist()) and control.codes.tolist() != ids.codes.tolist()
    for making in ({"tokens": "opq"}, {"levels": 2}, {"size": 4}, {"vectors": str(toys / "vectors")}):
        with pytest.raises(ValueError, match="made already"):
            recipe("tiger")(**named, **making)


def test_semantic_ids_ask_for_texts_where_they_read_them(
    toys: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ValueError, match="--text none"):
        made("liger", {"text": "none"}, toys, tmp_path, tmp_path)
    asked: list[Any] = []
    monkeypatch.setattr(rs, "embed", lambda *given, **named: asked.append(named), raising=False)
    made("tiger", {"tokens": "random"}, toys, tmp_path, tmp_path)
    assert not asked  # random codes need none


def test_what_is_hidden_is_read_from_a_file_or_drawn(toys: Path, tmp_path: Path) -> None:
    made("sasrec", {}, toys, tmp_path, tmp_path).fit(tmp_path / "sasrec", progress=False)
    start = {"base": str(tmp_path / "sasrec"), "epochs": 1, "keep": 0.0, "by": "d2o"}
    told = pl.DataFrame({"user": ["user 00", "user 01", "nobody"], "item": ["item 03", "item 04", "item 05"]})
    told.write_parquet(tmp_path / "hidden.parquet")
    run = recipe("dislikes")(file=str(tmp_path / "hidden.parquet"), **start)
    data, users, items = run.training.stages[0].data, run.split.users, run.split.items
    assert users.raw(data.users).tolist() == ["user 00", "user 01"]
    assert items.raw(data.items).tolist() == ["item 03", "item 04"]
    told.rename({"item": "sku"}).write_parquet(tmp_path / "other.parquet")
    with pytest.raises(rs.DataError, match="no column item"):
        recipe("dislikes")(file=str(tmp_path / "other.parquet"), **start)
    with pytest.raises(ValueError, match="--base names"):
        recipe("dislikes")()
    drawn = recipe("dislikes")(share=0.5, each=2, **start)
    data = drawn.training.stages[0].data
    assert len(data.users) == USERS // 2 and len(data.items) == USERS
    rows, split = np.repeat(np.arange(len(data.users)), np.diff(data.first)), drawn.split
    for user, item in zip(data.users[rows], data.items, strict=True):
        history = split.train.history(user)
        for part in (split.valid, split.test):
            owners, targets = part.targets(np.arange(len(part)))
            assert item not in targets[part.users[owners] == user]  # nobody hides what is then taken
        assert item not in history


def test_pairs_are_flipped_as_asked(toys: Path, tmp_path: Path) -> None:
    from recsys.llm.trainers.sequences import Role

    made("sasrec", {}, toys, tmp_path, tmp_path).fit(tmp_path / "sasrec", progress=False)
    start = {"base": str(tmp_path / "sasrec"), "epochs": 1, "events": 2}
    kinds = []
    for flipped in (0.0, 0.4, 1.0):
        run = recipe("noisy")(flipped=flipped, **start)
        data, training = run.training.stages[0].data, run.split.train
        better = {}
        for row, user in enumerate(data.users):
            event = data.stops[row] - training.start[user]
            for at in range(data.first[row], data.first[row + 1]):
                if data.roles[at] == Role.POSITIVE:
                    better[row] = data.items[at] == training.history(user)[event]
        kinds.append(np.mean(list(better.values())))
    assert kinds[0] == 1 and kinds[2] == 0 and 0.4 < kinds[1] < 0.8
