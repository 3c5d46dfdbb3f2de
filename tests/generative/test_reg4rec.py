"""The recipe reg4rec on made-up data, with each of its ablations."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from cycles import cycles

import recsys as rs
from recsys.generative.rewards import PathRewards
from recsys.generative.set_beam import SetBeam
from recsys.generative.set_decoder import SetDecoder
from recsys.runs.recipe import find_recipe, load_recipe
from recsys.train.results import sections

SMALL: dict[str, Any] = {
    "dim": 8, "epochs": 1, "reward_epochs": 1, "batch_size": 16, "max_length": 6, "num_layers": 1, "num_heads": 1,
    "levels": 2, "size": 4, "text": "tfidf", "beam": 12, "samples": 3,
}  # fmt: skip
ABLATIONS = [
    {"tokens": "residual", "order": "fixed", "reward": "off", "prune": "off"},
    {"tokens": "product", "order": "random", "reward": "pars", "prune": "prediction"},
    {"tokens": "mpq", "order": "confidence", "reward": "msra", "prune": "head", "omega": 0.1, "category": "genre"},
]


@pytest.fixture(scope="module")
def events(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder, random = tmp_path_factory.mktemp("events"), np.random.default_rng(5)
    rows = [(u, (u * 5 + t * int(random.integers(1, 4))) % 20, 1000 + t) for u in range(24) for t in range(6)]
    pl.DataFrame(rows, schema=["user", "item", "time"], orient="row").unique(
        ["user", "item"], keep="first", maintain_order=True
    ).write_csv(folder / "events.csv")
    kinds = ("comedy", "drama", "noir")
    titles = [(i, f"the {kinds[i % 3]} number {i}", kinds[i % 3]) for i in range(20)]
    pl.DataFrame(titles, schema=["item", "title", "genre"], orient="row").write_csv(folder / "items.csv")
    items = rs.read_items(folder / "items.csv", item="item")
    return rs.Dataset.scan(folder / "events.csv", user="user", item="item", time="time", items=items)


@pytest.mark.filterwarnings("ignore::recsys.errors.DataWarning")
@pytest.mark.parametrize("flags", ABLATIONS, ids=lambda flags: flags["reward"])
def test_reg4rec_13_11_ablations_run_from_one_recipe(
    flags: dict[str, Any], events: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rs, "load", lambda name: events, raising=False)
    monkeypatch.setenv("RECSYS_CACHE", str(tmp_path / "cache"))
    run = load_recipe(find_recipe("reg4rec"))(**{**SMALL, **flags})
    model = run.model
    assert model.decoder.order == model.search.order == flags["order"]
    assert (model.search.prune or "off") == flags["prune"]
    rewards = [part for part in model.auxiliaries if isinstance(part, PathRewards)]
    assert [part.horizon for part in rewards] == {"off": [], "pars": [1], "msra": [3]}[flags["reward"]]
    run.fit(tmp_path / "run", progress=False)
    loaded = rs.load_run(tmp_path / "run")
    made, failures = sections(loaded, run.split)
    shown = [rows for heading, rows in made.items() if "Order" in heading]
    assert not failures
    assert len(shown) == (flags["order"] == "confidence")
    for rows in shown:  # each codebook is somewhere, each step has one
        shares = np.array(
            [[float(value.rstrip("%")) for key, value in row.items() if key != "codebook"] for row in rows]
        )
        assert np.allclose(shares.sum(0), 100, atol=0.5) and np.allclose(shares.sum(1), 100, atol=0.5)
    top = loaded.recommend([[3, 8], [5]], k=19)
    assert [len(row) for row in top.items] == [18, 19]  # all that is not in the history
    assert loaded.recommend([[3, 8], [5]], k=19).items == run.model.recommend([[3, 8], [5]], k=19).items
    if flags["prune"] == "off":
        chances = loaded.log_probs([[3, 8]], top.items[0])[0]
        np.testing.assert_allclose(chances, top.scores[0][:18], rtol=1e-4, atol=1e-4)
    rs.export(loaded, tmp_path / "bundle")
    assert rs.Bundle.load(tmp_path / "bundle").recommend([[3, 8]], k=5).items == loaded.recommend([[3, 8]], k=5).items


@pytest.mark.filterwarnings("ignore::recsys.errors.DataWarning")
def test_rewards_and_searches_go_on_from_a_run(events: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rs, "load", lambda name: events, raising=False)
    monkeypatch.setenv("RECSYS_CACHE", str(tmp_path / "cache"))
    recipe = load_recipe(find_recipe("reg4rec"))
    base = recipe(**{**SMALL, "reward": "off"})
    base.fit(tmp_path / "base", progress=False)
    start = {**SMALL, "base": str(tmp_path / "base")}
    searched = recipe(**start, reward="off", prune="prediction")
    searched.fit(tmp_path / "searched", progress=False)
    for name, value in base.model.tensors().items():
        assert (value == rs.load_run(tmp_path / "searched").tensors()[name]).all(), name
    rewarded = recipe(**start, reward="pars")
    fitted = rewarded.fit(tmp_path / "rewarded", progress=False)
    assert [record["stage"] for record in fitted.history] == [0]  # of one stage: that of rewards
    assert len(rs.load_run(tmp_path / "rewarded").recommend([[3, 8]], k=5).items[0]) == 5
    with pytest.raises(ValueError, match="was trained with --order confidence"):
        recipe(**start, order="fixed")
    with pytest.raises(ValueError, match="trained without"):
        recipe(**start, prune="head")


def test_learns_cycles_and_is_evaluated_by_its_lists(tmp_path: Path) -> None:
    split = cycles()
    number = np.random.default_rng(1).permutation(split.num_items)
    rs.SemanticIds.of(split.items.ids, np.stack([number // 5, number % 5], 1), ordered=False).save(tmp_path / "ids")
    model = rs.Generator(
        rs.CodeItems(16, str(tmp_path / "ids"), std=0.36),
        rs.SASRec(16, num_layers=1, dropout=0.0, max_length=8, layout="pre"),
        SetDecoder(16, 2, dropout=0.0, ramp=10),
        SetBeam(8),
    )
    rs.fit(model, split, epochs=30, learning_rate=0.01, batch_size=64, validate_every=0, progress=False)
    report = rs.evaluate(model, split.test, metrics=["hr@1"], exclude="none", progress=False)
    assert report.mean("hr@1") > 0.9 and "list only" in str(report)
    raw = split.items.ids.tolist()
    top = model.recommend([[raw[0], raw[1]]], k=split.num_items, exclude="none")
    np.testing.assert_allclose(
        model.log_probs([[raw[0], raw[1]]], top.items[0])[0], top.scores[0], rtol=1e-4, atol=1e-3
    )
