"""Parts as class name and JSON: what is kept, what is refused."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from recsys.encoders.sasrec import SASRec
from recsys.parts import build, describe


def test_arguments_survive_json() -> None:
    again = build(json.loads(json.dumps(describe(SASRec(dim=8, layout="ligr", dropout=0.35)))))
    assert (again.dim, again.layout, again.dropout, again.max_length) == (8, "ligr", 0.35, 50)


def test_foreign_code_runs_only_when_trusted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "visitor.py").write_text("LOADED = []\nclass Part:\n    def __init__(self, a=1):\n        self.a = a\n")
    monkeypatch.syspath_prepend(tmp_path)
    description = {"class": "visitor:Part", "arguments": {"a": 5}}
    with pytest.raises(PermissionError, match="trust"):
        build(description)
    assert "visitor" not in sys.modules
    assert build(description, trust=["visitor"]).a == 5


def test_a_trusted_module_that_is_not_there_is_explained() -> None:
    with pytest.raises(ValueError, match="PYTHONPATH"):
        build({"class": "nowhere_at_all:Part", "arguments": {}}, trust=["nowhere_at_all"])


@pytest.mark.parametrize(
    "name", ["recsys.parts:json", "recsys.encoders.sasrec:Block", "recsys.parts:describe", "os:system"]
)
def test_only_classes_defined_where_they_say_are_built(name: str) -> None:
    with pytest.raises((ValueError, PermissionError)):
        build({"class": name, "arguments": {}})


def test_an_argument_that_was_not_kept_is_named() -> None:
    class Forgetful:
        def __init__(self, width: int) -> None:
            pass

    with pytest.raises(TypeError, match="width"):
        describe(Forgetful(3))


def test_an_argument_that_is_no_data_is_named() -> None:
    class Holder:
        def __init__(self, function: object) -> None:
            self.function = function

    with pytest.raises(TypeError, match=r"Holder\.function"):
        describe(Holder(lambda: 0))
