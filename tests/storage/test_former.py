"""Runs and bundles of version 0.1 name classes where they were then; these load as before."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import recsys as rs
from recsys.data.split import Split
from recsys.storage.former import _CLASSES, _MODULES, present
from recsys.storage.parts import class_of, describe

FORMER = {
    f"{package}.{module}:{name}": f"{old}:{name}"
    for old, (package, names) in _CLASSES.items()
    for name, module in names.items()
}


@pytest.mark.parametrize("name", [f"{old}:{name}" for old, (_, names) in _CLASSES.items() for name in names])
def test_former_classes_are_found(name: str) -> None:
    assert class_of({"class": name}).__name__ == name.partition(":")[2]


def test_a_run_and_a_bundle_of_former_names_load(split: Split, tmp_path: Path) -> None:
    model = rs.Recommender(
        rs.IdItems(8, extra=1),
        rs.SASRec(8, 1, max_length=10),
        rs.GBCE(negatives=rs.UniformNegatives(2)),
        auxiliaries=[rs.CL4SRec()],
        weightings=[rs.InversePropensity(rs.PopularityPropensity(0.5))],
    )
    rs.fit(model, split, epochs=1, folder=tmp_path / "run", progress=False)
    rs.export(model, tmp_path / "bundle", split=split)
    assert json.loads((tmp_path / "bundle" / "index" / "manifest.json").read_text())["kind"] == "recsys.index"
    config = tmp_path / "run" / "config.json"
    assert _rename(config) >= 6
    manifest = tmp_path / "run" / "manifest.json"
    facts = json.loads(manifest.read_text())
    facts.pop("files")  # 0.1 kept no hashes
    manifest.write_text(json.dumps(facts))
    loaded = rs.load_run(tmp_path / "run")
    assert describe(loaded) == describe(model)
    for name, value in model.tensors().items():
        assert torch.equal(value, loaded.tensors()[name])


def _rename(path: Path) -> int:
    """Give every class of a file the name that it had in version 0.1; how many there were."""
    former = {new: old for old, new in _MODULES.items()}
    text, count = path.read_text(), 0
    names = {name for name in json.dumps(json.loads(text)).split('"') if name.startswith("recsys.") and ":" in name}
    for name in names:
        module, _, cls = name.partition(":")
        old = FORMER.get(name) or (f"{former[module]}:{cls}" if module in former else name)
        assert present(old) == name
        text, count = text.replace(f'"{name}"', f'"{old}"'), count + (old != name)
    path.write_text(text)
    return count
