import json
import warnings

import numpy as np
import pytest
import torch
from cycles import tiny
from torch import nn

from recsys.errors import DataWarning
from recsys.train.results import finish, sections
from recsys.train.run import Run


class Told(nn.Module):
    """An auxiliary with something to show."""

    weight = 0.0

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
    assert "<rect" in page and "keep &lt;all&gt;" in page and page.count("<h2>Edits") == 2
    assert (tmp_path / "run" / "per_user.parquet").is_file()
    kept = json.loads((tmp_path / "run" / "sections.json").read_text(encoding="utf-8"))
    assert len(kept) == 2 and all("bars" in content for content in kept.values())


def test_a_section_that_fails_does_not_lose_the_run(split, tmp_path):
    run = Run(tiny(auxiliaries=[Broken(), Told()]), split, {"epochs": 1, "progress": False})
    with pytest.warns(DataWarning, match="no such column"):
        found, page = report(run, tmp_path / "run")
    assert found.reports[0].users and "KeyError" in page and "<rect" in page


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
