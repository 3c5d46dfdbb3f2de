"""What of the RecBole baseline needs no RecBole; the rest is in tests/parity."""

from __future__ import annotations

import subprocess
import sys

import pytest

import recsys as rs
from recsys.protocols import Context
from recsys.recommenders.recbole import RecBole
from recsys.storage.parts import build, describe


def test_without_recbole_the_error_says_what_to_install(context: Context, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "recbole", None)
    with pytest.raises(ImportError, match="parity"):
        RecBole("GRU4Rec").learn(context)


def test_the_package_is_imported_only_when_something_is_learned() -> None:
    asked = "import sys, recsys.recommenders.recbole as ours; ours.RecBole('SASRec'); print('recbole' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", asked], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "False"


@pytest.mark.parametrize("arguments", [{"epochs": 0}, {"patience": -1}])
def test_bad_arguments(arguments) -> None:
    with pytest.raises(ValueError, match="epochs"):
        RecBole("GRU4Rec", **arguments)


@pytest.mark.parametrize("name", ["eval_args", "seed", "load_col", "epochs", "data_path"])
def test_what_follows_from_the_split_is_not_taken_from_config(name) -> None:
    with pytest.raises(ValueError, match=name):
        RecBole("GRU4Rec", {name: 1, "hidden_size": 8})


def test_is_described_and_built_like_any_part() -> None:
    model = RecBole("SASRec", {"hidden_size": 8, "topk_of_mine": [1, 2]}, epochs=3, patience=0)
    assert describe(build(describe(model))) == describe(model)


def test_neither_loads_nor_scores_untrained(context: Context) -> None:
    with pytest.raises(ValueError, match="outside"):
        RecBole("BPR").bind(Context(num_items=5))
    model = RecBole("BPR")
    model.bind(context)
    with pytest.raises(ValueError, match="fit"):
        model.score(None)


def test_cannot_be_exported(tmp_path) -> None:
    with pytest.raises(ValueError, match="exported"):
        rs.export(RecBole("GRU4Rec"), tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()
