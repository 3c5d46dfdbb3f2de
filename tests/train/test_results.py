import json
import os
import subprocess
import sys
import warnings

import numpy as np
import pytest
import torch
from cycles import tiny
from torch import nn

from recsys.data.split import Split
from recsys.errors import DataWarning
from recsys.eval.evaluate import evaluate
from recsys.eval.report import Report
from recsys.recommenders.markov import Markov
from recsys.recommenders.popularity import Popularity
from recsys.runs.read import load_run
from recsys.runs.split import remember_split
from recsys.train.fit import fit
from recsys.train.results import finish, keep_baselines, kept_baselines, renew, sections, write_page
from recsys.train.run import Run


class Told(nn.Module):
    """An auxiliary with something to show."""

    weight = 1.0

    def __init__(self, inner=None):
        super().__init__()
        self.inner, self.calls = inner, []

    def forward(self, step):
        return torch.zeros(())

    def sections(self, model, split):
        self.calls.append((model.training, torch.is_grad_enabled(), model.num_items == split.num_items))
        return {"Edits": {"bars": {"keep <all>": 3, "delete": 1}}}


class Broken(Told):
    def sections(self, model, split):
        raise KeyError("no such column")


def report(run, folder):
    found = finish(run, run.fit(folder))
    return found, (folder / "report.html").read_text(encoding="utf-8")


def test_parts_show_their_sections_in_the_report(split, tmp_path):
    shared = Told()
    run = Run(tiny(auxiliaries=[shared, Told(shared)]), split, {"epochs": 1, "progress": False})
    _, page = report(run, tmp_path / "run")
    assert shared.calls == [(False, False, True)]
    assert 'class="bar"' in page and "keep &lt;all&gt;" in page and page.count("<h2>Edits") == 2
    assert (tmp_path / "run" / "per_user.parquet").is_file()
    kept = json.loads((tmp_path / "run" / "sections.json").read_text(encoding="utf-8"))
    assert len(kept) == 2 and all("bars" in content for content in kept.values())


def test_a_section_that_fails_does_not_lose_the_run(split, tmp_path):
    run = Run(tiny(auxiliaries=[Broken(), Told()]), split, {"epochs": 1, "progress": False})
    with pytest.warns(DataWarning, match="no such column"):
        found, page = report(run, tmp_path / "run")
    assert found.reports[0].users and "KeyError" in page and 'class="bar"' in page


def test_a_warning_that_is_an_error_comes_after_the_report(split, tmp_path):
    run = Run(tiny(auxiliaries=[Broken()]), split, {"epochs": 1, "progress": False})
    fitted = run.fit(tmp_path / "run")
    with warnings.catch_warnings(), pytest.raises(DataWarning):
        warnings.simplefilter("error", DataWarning)
        finish(run, fitted)
    assert "KeyError" in (tmp_path / "run" / "report.html").read_text(encoding="utf-8")


def test_contents_that_are_no_mapping_are_an_error_of_the_part(split):
    model = tiny(auxiliaries=[Told()])
    model.auxiliaries[0].sections = lambda model, split: 3
    found, failures = sections(model, split)
    assert list(found) == ["Told"] and "TypeError" in failures[0]
    assert sections(tiny(), split) == ({}, [])


def test_headings_that_are_no_strings_cost_no_run(split):
    model = tiny(auxiliaries=[Told(), Told()])
    for auxiliary in model.auxiliaries:
        auxiliary.sections = lambda model, split: {1: "one", None: "none"}
    found, failures = sections(model, split)
    assert list(found) == ["1", "None", "1 (again)", "None (again)"] and failures == []


def test_numbers_and_keys_of_numpy_reach_the_file_of_sections(split, tmp_path):
    model = tiny(auxiliaries=[Told()])
    shown = {"bars": {np.int64(3): np.float32(0.5), ("a", 1): 2}}
    model.auxiliaries[0].sections = lambda model, split: {"Edits": shown, "Titles": ["half \ud800 a pair"]}
    run = Run(model, split, {"epochs": 1, "progress": False})
    finish(run, run.fit(tmp_path / "run"))
    kept = json.loads((tmp_path / "run" / "sections.json").read_text(encoding="utf-8"))
    assert kept == {"Edits": {"bars": {"3": 0.5, "('a', 1)": 2}}, "Titles": ["half ? a pair"]}


def test_a_run_that_is_replaced_leaves_nothing_of_the_one_before(split, tmp_path, monkeypatch):
    monkeypatch.setenv("RECSYS_CACHE", str(tmp_path / "cache"))
    run = Run(tiny(), split, settings={"epochs": 1, "progress": False})
    recipe = tmp_path / "mine.py"
    recipe.write_text("# a recipe")
    finish(run, run.fit(tmp_path / "run", recipe=recipe))
    remember_split(split, tmp_path / "run")
    (tmp_path / "run" / "sections.json").write_text("{}")
    Run(tiny(), split, settings={"epochs": 1, "progress": False, "seed": 5}).fit(tmp_path / "run", resume=False)
    kept = {path.name for path in (tmp_path / "run").iterdir()}
    first = {"checkpoints", "config.json", "manifest.json", "split.json", "stops.safetensors"}
    assert kept == first | {"metrics.jsonl", "model.safetensors", "vocabulary"}


def test_runs_that_end_together_keep_one_whole_split(split, tmp_path):
    code = """
import sys, time
from pathlib import Path
import numpy as np
from recsys.data.prepared import Prepared
from recsys.data.split import Split
from recsys.data.splitters import LeaveLast
from recsys.ids.vocabulary import Vocabulary
from recsys.runs.split import remember_split

home, users, events = Path(sys.argv[1]), 200_000, 10
items, offsets = np.tile(np.arange(1, 11, dtype=np.int32), users), np.arange(0, users * events + 1, events)
prepared = Prepared(items, offsets, 10, times=np.tile(np.arange(10), users))
split = Split.of(prepared, LeaveLast(), Vocabulary(np.arange(10), 1), Vocabulary(np.arange(users), 0), data_hash="x")
run = home / sys.argv[2]
run.mkdir()
while len(list(home.glob("run*"))) < 2:
    time.sleep(0.001)
remember_split(split, run)
"""
    environment = {**os.environ, "RECSYS_CACHE": str(tmp_path / "cache")}
    started = [
        subprocess.Popen([sys.executable, "-c", code, str(tmp_path), f"run{i}"], env=environment) for i in range(2)
    ]
    assert [one.wait() for one in started] == [0, 0]
    (kept,) = (tmp_path / "cache" / "splits").iterdir()
    assert Split.load(kept, verify=True).num_users == 200_000


def again(folder, split, part="test", **how):
    """What ``recsys evaluate`` does: rank a part anew, and put the report into the run folder."""
    model = load_run(folder)
    report = evaluate(model, getattr(split, part), users=split.users, progress=False, name=folder.name, **how)
    found = renew(folder, model, split, report)
    return found, (folder / "report.html").read_text(encoding="utf-8")


def test_an_evaluation_keeps_comparison_and_sections_on_the_page(split, tmp_path):
    run = Run(Popularity(), split, {"progress": False}, baselines=[Markov(), Popularity()])
    finish(run, run.fit(tmp_path / "run"))
    (tmp_path / "run" / "sections.json").write_text('{"Edits": {"bars": {"keep": 3}}}')
    for part, how, compared in (("test", {}, 2), ("valid", {}, 0), ("test", {"exclude": "none"}, 0), ("test", {}, 2)):
        comparison, page = again(tmp_path / "run", split, part, **how)
        assert (len(comparison.names) - 1 if comparison else 0) == compared, (part, how)
        assert ("Compared with run" in page) == bool(compared) and "<h2>Edits" in page
        assert ("No comparison" in page) == (not compared)
    assert len(kept_baselines(tmp_path / "run")) == 2 and Report.load(tmp_path / "run" / "baselines" / "0-Markov").users


def test_a_baseline_that_was_trained_is_compared_as_it_is(split):
    model = tiny()
    fit(model, split, epochs=1, progress=False)
    before = {name: one.clone() for name, one in model.tensors().items()}
    run = Run(Popularity(), split, {"progress": False, "epochs": 3}, baselines=[model, Markov()])
    found = finish(run, run.fit())
    assert [one.name for one in found.reports] == ["Popularity", "SASRec", "Markov"]
    assert all(torch.equal(one, before[name]) for name, one in model.tensors().items())
    alone = evaluate(model, split.test, progress=False)
    assert found.reports[1].mean("ndcg@10") == alone.mean("ndcg@10")


def test_a_page_of_a_run_made_in_python_has_its_curves_and_sections(split, tmp_path, monkeypatch):
    run = Run(Popularity(), split, {"progress": False})
    run.fit(tmp_path / "run")
    monkeypatch.setattr(Popularity, "sections", lambda self, model, split: {"Shown": "by a part"}, raising=False)
    comparison, page = again(tmp_path / "run", split)
    assert comparison is None and "by a part" in page and "No comparison" not in page


@pytest.mark.parametrize("name", ["sections.json", "metrics.jsonl", "baselines/0-Markov/per_user.parquet"])
@pytest.mark.parametrize("text", ["", "[", "7", "[1]", "\x00", '{"a": ' + "[" * 100_000])
def test_hostile_14_a_damaged_file_costs_its_place_on_the_page_only(split, tmp_path, name, text):
    run = Run(Popularity(), split, {"progress": False}, baselines=[Markov()])
    finish(run, run.fit(tmp_path / "run"))
    (tmp_path / "run" / name).write_text(text)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DataWarning)
        _, page = again(tmp_path / "run", split)
    assert "<h2>Metrics" in page


def test_a_baseline_that_fails_does_not_lose_the_run(split, tmp_path):
    class Greedy(Popularity):
        def learn(self, context):
            raise MemoryError("items x items does not fit")

    run = Run(Popularity(), split, {"progress": False}, baselines=[Greedy(), Markov()])
    fitted = run.fit(tmp_path / "run")
    with pytest.warns(DataWarning, match="does not fit"):
        found = finish(run, fitted)
    assert [report.name for report in found.reports][1:] == ["Markov"] and (tmp_path / "run" / "report.html").is_file()


@pytest.mark.parametrize("metrics", [["recall"], ["hr@3"], ["map@2", "mrr@4"]])
def test_a_run_that_is_ranked_by_other_metrics_is_compared_in_those(split, tmp_path, metrics):
    run = Run(Popularity(), split, {"progress": False}, baselines=[Markov()], evaluate={"metrics": metrics})
    found = finish(run, run.fit(tmp_path / "run"))
    assert {row.metric for row in found.comparison.overall} <= set(found.reports[0].metrics)
    assert str(found) and again(tmp_path / "run", split, metrics=metrics)[0] is not None


def test_hostile_1_reports_of_baselines_are_neither_written_nor_removed_through_a_link(split, tmp_path):
    (tmp_path / "home" / "0-mine").mkdir(parents=True)
    (tmp_path / "home" / "0-mine" / "report.json").write_text("mine")
    run = Run(Popularity(), split, {"progress": False})
    run.fit(tmp_path / "run")
    for link, target in (("baselines", tmp_path / "home"), ("baselines/0-mine", tmp_path / "home" / "0-mine")):
        (tmp_path / "run" / link).parent.mkdir(exist_ok=True)
        (tmp_path / "run" / link).symlink_to(target)
        for action in (lambda: keep_baselines(tmp_path / "run", []), lambda: run.fit(tmp_path / "run", resume=False)):
            with pytest.raises(FileExistsError, match="link"):
                action()
        (tmp_path / "run" / link).unlink()
    assert (tmp_path / "home" / "0-mine" / "report.json").read_text() == "mine"


def test_the_page_of_a_run_shows_its_data_users_and_how_to_repeat_it(split, tmp_path):
    run = Run(tiny(), split, {"epochs": 2, "progress": False}, baselines=[Popularity()])
    _, page = report(run, tmp_path / "run")
    for heading in ("Headline", "Protocol", "Data", "Training", "Metrics", "Segments", "Users", "Examples"):
        assert f"<h2>{heading}</h2>" in page
    assert "Beside the baselines" in page and "How to repeat it" in page
    history = split.items.raw(split.prepared.items[: split.prepared.offsets[1]]).tolist()
    assert any(f"<li>{item}</li>" in page for item in history)


def test_what_cannot_be_shown_costs_its_own_section(split, tmp_path, monkeypatch):
    def fails(*_given):
        raise MemoryError("too many events")

    monkeypatch.setattr("recsys.train.results.data_section", fails)
    monkeypatch.setattr("recsys.train.results.examples", fails)
    run = Run(tiny(), split, {"epochs": 1, "progress": False})
    with pytest.warns(DataWarning, match="too many events"):
        _, page = report(run, tmp_path / "run")
    assert "<h2>Metrics</h2>" in page and page.count("too many events") == 2
    assert "<h2>Data</h2>" not in page and "<h2>Examples</h2>" not in page


def test_a_page_made_anew_keeps_its_curves_sections_and_baselines(split, tmp_path):
    run = Run(tiny(auxiliaries=[Told()]), split, {"epochs": 2, "progress": False}, baselines=[Popularity()])
    _, before = report(run, tmp_path / "run")
    write_page(tmp_path / "run", Report.load(tmp_path / "run"), run.model, split)
    after = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    headings = [part.partition("</h2>")[0] for part in before.split("<h2>")[1:]]
    assert headings == [part.partition("</h2>")[0] for part in after.split("<h2>")[1:]]
    assert {"Edits", "Training"} <= set(headings)
    write_page(tmp_path / "run", Report.load(tmp_path / "run"), notes=["no <split>"])
    without = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert "no &lt;split&gt;" in without and "<h2>Edits</h2>" in without and "<h2>Data</h2>" not in without
