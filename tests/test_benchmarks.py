"""The quality tables: what is kept of finished runs stands for them on the next machine."""

from __future__ import annotations

import importlib
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import recsys as rs
from recsys.data.prepared import Prepared
from recsys.data.split import Split
from recsys.ids.vocabulary import Vocabulary

QUALITY = Path(__file__).parents[1] / "benchmarks" / "quality"
pytestmark = pytest.mark.skipif(not QUALITY.is_dir(), reason="the benchmarks are not here")


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(QUALITY))
    return importlib.import_module("driver")


@pytest.fixture
def split() -> Split:
    items = np.random.default_rng(0).integers(1, 31, 600).astype(np.int32)
    prepared = Prepared(items, np.arange(61) * 10, 30)
    return Split.of(prepared, rs.LeaveLast(), Vocabulary(np.arange(30), first=1), Vocabulary(np.arange(60), first=0))


def work_of(driver: Any, runs: Path, results: Path) -> Any:
    return driver.Work(importlib.import_module("plan").AUGMENT, runs, results, [], float("inf"))


def finished_run(folder: Path, model: Any, split: Split) -> None:
    rs.fit(model, split, progress=False)
    report = rs.evaluate(model, split.test, k=(10, 20), progress=False)
    report.save(folder)
    result = {
        "metrics": {name: report.mean(name) for name in ("ndcg@10", "hr@10")}, "intervals": {}, "epochs": 1,
        "seconds": 1.0, "train_seconds": 1.0, "threads": 1, "date": "2026-01-01", "machine": "any", "versions": {},
    }  # fmt: skip
    (folder / "result.json").write_text(json.dumps(result))


def test_a_table_is_the_same_without_the_folders_of_its_runs(driver: Any, split: Split, tmp_path: Path) -> None:
    runs, results = tmp_path / "runs", tmp_path / "results"
    for seed in (0, 1):
        for name, model in (("backbone", rs.Popularity()), ("cl4srec", rs.ItemKNN(k=3 + seed))):
            finished_run(runs / "ml-100k" / f"{name}-seed{seed}", model, split)
    work = work_of(driver, runs, results)
    work.summarise("ml-100k", ())
    before = {path.name: path.read_text() for path in (results / "ml-100k").glob("*.json")}
    assert json.loads(before["cl4srec.json"])["paired"]["backbone"]["seeds"] == [0, 1]

    shutil.rmtree(runs)
    again = work_of(driver, runs, results)
    again.do(again.plan.by_name["cl4srec"], "ml-100k", 1)  # does not train
    again.summarise("ml-100k", ())
    assert {path.name: path.read_text() for path in (results / "ml-100k").glob("*.json")} == before
    assert not again.failed and not list(runs.glob("*/*-seed*"))


def test_a_run_made_anew_replaces_what_was_kept(driver: Any, split: Split, tmp_path: Path) -> None:
    work = work_of(driver, tmp_path / "runs", tmp_path / "results")
    folder = work.folder("backbone", "ml-100k", 0)
    kept = []
    for model in (rs.Popularity(), rs.ItemKNN(k=3)):
        finished_run(folder, model, split)
        work.summarise("ml-100k", ())
        kept.append(driver.averaged([work.kept("backbone", "ml-100k", 0)]).columns["ndcg@10"])
    assert not np.array_equal(*kept)


def test_no_folder_of_this_machine_is_recorded(driver: Any, split: Split, tmp_path: Path) -> None:
    work = work_of(driver, tmp_path / "runs", tmp_path / "results")
    folder = work.folder("backbone", "ml-100k", 0)
    finished_run(folder, rs.Popularity(), split)
    result = json.loads((folder / "result.json").read_text())
    told = result | {"command": f"recsys fit rpg --vectors {tmp_path / 'runs'}/ml-100k/sasrec-seed0"}
    (folder / "result.json").write_text(json.dumps(told))
    work.summarise("ml-100k", ())
    recorded = (tmp_path / "results" / "ml-100k" / "backbone.json").read_text()
    assert "RUNS/ml-100k/sasrec-seed0" in recorded and str(tmp_path) not in recorded


def test_seeds_recorded_without_their_users_stay_in_the_mean(driver: Any, split: Split, tmp_path: Path) -> None:
    work = work_of(driver, tmp_path / "runs", tmp_path / "results")
    for seed in (0, 1):
        finished_run(work.folder("backbone", "ml-100k", seed), rs.ItemKNN(k=3 + seed), split)
        finished_run(work.folder("cl4srec", "ml-100k", seed), rs.Popularity(), split)
    work.summarise("ml-100k", ())
    for folder in (work.folder("backbone", "ml-100k", 1), work.kept("backbone", "ml-100k", 1)):
        shutil.rmtree(folder)
    before = json.loads((tmp_path / "results/ml-100k/backbone.json").read_text())
    work.summarise("ml-100k", ())
    assert json.loads((tmp_path / "results/ml-100k/backbone.json").read_text())["metrics"] == before["metrics"]
    compared = json.loads((tmp_path / "results/ml-100k/cl4srec.json").read_text())["paired"]["backbone"]
    assert compared["seeds"] == [0]


def test_a_comparison_whose_users_are_gone_stays_as_it_was_recorded(driver: Any, split: Split, tmp_path: Path) -> None:
    runs, results = tmp_path / "runs", tmp_path / "results"
    for name, model in (("backbone", rs.Popularity()), ("cl4srec", rs.ItemKNN(k=3))):
        finished_run(runs / "ml-100k" / f"{name}-seed0", model, split)
    work_of(driver, runs, results).summarise("ml-100k", ())
    recorded = results / "ml-100k" / "cl4srec.json"
    before = json.loads(recorded.read_text())["paired"]
    assert before
    shutil.rmtree(results / "ml-100k" / "per-user")
    work_of(driver, tmp_path / "elsewhere", results).summarise("ml-100k", ())
    assert json.loads(recorded.read_text())["paired"] == before


def test_seeds_of_a_row_that_were_trained_in_different_ways_are_not_averaged(
    driver: Any, split: Split, tmp_path: Path
) -> None:
    work = work_of(driver, tmp_path / "runs", tmp_path / "results")
    for seed, rate in ((0, 0.1), (1, 0.1), (2, 0.2)):
        folder = work.folder("backbone", "ml-100k", seed)
        finished_run(folder, rs.Popularity(), split)
        settings = {"learning_rate": rate, "seed": seed, "vectors": f"/somewhere/{seed}/vectors"}
        (folder / "config.json").write_text(json.dumps({"identity": {"settings": settings}}))
        if seed < 2:
            work.summarise("ml-100k", ())
    with pytest.raises(ValueError, match="different ways"):
        work.summarise("ml-100k", ())


def test_a_row_of_cold_items_whose_users_are_gone_stays_as_it_was(driver: Any, split: Split, tmp_path: Path) -> None:
    cold = importlib.import_module("cold")
    runs, results = tmp_path / "runs", tmp_path / "results" / "cold"
    work = driver.Work(cold.COLD, runs, results, [], float("inf"))
    finished_run(runs / "ml-100k" / "text-seed0", rs.Popularity(), split)
    table = results.parent / "cold-ml-100k.md"
    work.summarise("ml-100k", [cold.COLD.by_name["text"]])
    table.write_text(cold.table(work, "ml-100k"))
    before = cold.recorded(table)
    assert set(before) == {"text"}
    shutil.rmtree(runs)
    shutil.rmtree(results / "ml-100k" / "per-user")
    finished_run(runs / "ml-100k" / "codes-seed0", rs.Popularity(), split)
    again = driver.Work(cold.COLD, runs, results, [], float("inf"))
    again.summarise("ml-100k", [cold.COLD.by_name["codes"]])
    table.write_text(cold.table(again, "ml-100k"))
    assert cold.recorded(table)["text"] == before["text"] and "codes" in cold.recorded(table)


def test_a_trie_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "benchmarks" / "speed"))
    generate = importlib.import_module("generate")
    for kind in generate.KINDS:
        found = generate.trie_child({"kind": kind, "items": 10_000, "seconds": 0.01, "device": "cpu"})
        assert found["nodes"][-1] <= 10_000 and found["bytes"] > 0 and len(found["levels"]) == generate.LEVELS


def test_an_encoder_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "benchmarks" / "speed"))
    encoders = importlib.import_module("encoders")
    monkeypatch.setattr(encoders, "product", lambda *_: 1.0)
    found = encoders.measure("BERT4Rec", 4, 0.05, "cpu")
    assert found["targets"] > 0 and found["encoded_targets"] > 0


def recorded(data: str, name: str) -> Any:
    """A row of the committed tables of generation."""
    path = QUALITY / "results" / "generative" / data / f"{name}.json"
    if not path.is_file():
        pytest.skip(f"{path.name} is not recorded")
    return json.loads(path.read_text(encoding="utf-8"))


def test_mender_13_13_the_recorded_tiger_is_where_others_reproduce_it() -> None:
    metrics = recorded("amazon-beauty", "tiger")["metrics"]
    assert 0.063 <= metrics["hr@10"]["mean"] <= 0.066 and 0.033 <= metrics["ndcg@10"]["mean"] <= 0.038


def test_semantic_ids_12_8_the_recorded_random_codes_are_clearly_worse() -> None:
    tiger, random = recorded("amazon-beauty", "tiger"), recorded("amazon-beauty", "tiger-random")
    assert random["metrics"]["hr@10"]["mean"] == pytest.approx(0.043, abs=0.003)
    paired = tiger["paired"]["tiger-random"]["metrics"]["hr@10"]
    assert paired["low"] > 0.015 and paired["p"] < 0.01


TASK = {
    "layers": 2, "hidden": 32, "heads": 4, "kv_heads": 2, "intermediate": 64, "vocabulary": 64, "rank": 4, "batch": 3,
    "prompt": 6, "completion": 4, "groups": 2, "samples": 4, "items": 3, "levels": 3, "codes": 8, "catalogue": 40,
    "warmup": 1, "steps": 2,
}  # fmt: skip


@pytest.fixture
def sequences(monkeypatch: pytest.MonkeyPatch) -> Any:
    pytest.importorskip("transformers")
    pytest.importorskip("peft")
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "benchmarks" / "speed"))
    return importlib.import_module("sequences")


def measured(function: str, **more: Any) -> dict[str, Any]:
    module, _, name = function.partition(".")
    found: dict[str, Any] = getattr(importlib.import_module(f"peers.{module}"), name)(TASK | more)
    return found


def test_memory_is_compared_where_the_reference_is_the_first_model(sequences: Any) -> None:
    kinds = ("full", "lora", "lora, reference", "full, reference")
    runs = {kind: [measured("loop.texts_run", variant=kind, same=True)] for kind in kinds}
    assert sequences.same_reference(runs) <= sequences.EXACT
    assert [len(found["references"]) for (found,) in runs.values()] == [0, 0, 3, 3]
    assert all(len(found["seconds"]) == TASK["steps"] for (found,) in runs.values())
    (found,) = runs["lora, reference"]
    found["references"][-1] = found["log_probs"][-1]  # as if the reference had moved along
    with pytest.raises(sequences.DiffersError, match="differ"):
        sequences.same_reference(runs)


@pytest.mark.parametrize("variant", ["causal", "own"])
def test_grpo_over_codes_is_measured(sequences: Any, variant: str) -> None:
    found = measured("loop.grpo_run", variant=variant)
    assert len(found["seconds"]) == TASK["steps"] and found["trained"] > 0
    assert np.isfinite(found["losses"]).all()


def test_a_language_model_gives_codes_what_it_gives_texts(sequences: Any, tmp_path: Path) -> None:
    """The tree of samples behind a history, against one text for each."""
    import torch

    loop = importlib.import_module("peers.loop")
    model, split = loop.generator(TASK | {"variant": "causal"}, tmp_path / "ids", [], whole_vocabulary=True)
    model.bind(rs.protocols.Context(split.num_items, split.items, split.train))
    batch, rows = loop.history_batches(TASK)[0].histories(), torch.tensor([[3, 9, 31], [7, 8, 40]])
    beam = importlib.import_module("recsys.generative.beam")
    with torch.no_grad():
        found = beam.exact_log_probs(model.decoder, model.encode(batch), model.items, rows)
        for history, wanted, own in zip(batch.ids, rows, found, strict=True):
            prompt = model.items.token_table[history].flatten()
            for item, value in zip(wanted, own, strict=True):
                codes = model.items.token_table[item]
                logits = model.decoder.language_model.body(input_ids=torch.cat([prompt, codes])[None]).logits[0]
                probable = logits.log_softmax(1)[len(prompt) - 1 : -1]
                assert float(probable.gather(1, codes[:, None]).sum()) == pytest.approx(float(value), abs=1e-4)


@pytest.mark.parity
def test_training_over_sequences_is_compared_where_trl_computes_the_same(sequences: Any) -> None:
    pytest.importorskip("trl", exc_type=ImportError)
    ours, theirs = measured("loop.texts_run", variant="lora"), measured("trl_trainers.sft_run")
    compact = measured("trl_trainers.sft_run", compact=True)
    told = {"recsys": [ours], "trl": [theirs], sequences.COMPACT: [compact]}
    assert sequences.same_losses(told) <= sequences.EXACT
    assert len(ours["seconds"]) == len(theirs["seconds"]) == TASK["steps"]
    found = measured("grpo_check.grpo_check")
    assert sequences.same_samples(found) <= sequences.EXACT
    assert found["samples"] == TASK["groups"] * TASK["samples"] and found["value"] != 0
    assert len(measured("trl_trainers.grpo_run")["seconds"]) == TASK["steps"]
    with pytest.raises(sequences.DiffersError, match="losses"):
        sequences.same_losses({"recsys": [ours | {"losses": [0.0, 1.0, 2.0]}], "trl": [theirs]})
