"""Trained models read back: parts and parameters that were shared, damage, numbers that are not finite."""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from recsys.data.split import Split
from recsys.encoders.sasrec import SASRec
from recsys.errors import DataError
from recsys.items.ids import IdItems
from recsys.items.sums import SumItems
from recsys.objectives.softmax import FullSoftmax
from recsys.protocols import Context, Step
from recsys.recommenders.composed import Recommender
from recsys.recommenders.popularity import Popularity
from recsys.runs.read import load_run, read_tensors
from recsys.serve.bundle import Bundle, export
from recsys.storage.tensors import write_tensors
from recsys.train.fit import fit

spec = importlib.util.spec_from_file_location("cycles", Path(__file__).parents[1] / "cycles.py")
assert spec is not None and spec.loader is not None
toys = importlib.util.module_from_spec(spec)
spec.loader.exec_module(toys)
QUIET = {"progress": False, "batch_size": 64, "seed": 1}
HISTORIES = [["item-1", "item-2"], ["item-7"], []]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RECSYS_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def split() -> Split:
    return toys.cycles(users=30)


class Reader(torch.nn.Module):
    """An auxiliary that is handed a part of the recommender."""

    weight = 1.0

    def __init__(self, encoder: torch.nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, step: Step) -> torch.Tensor:
        return self.encoder(step.batch, step.items).tokens.square().mean()


def encoder() -> SASRec:
    return SASRec(8, num_layers=1, num_heads=1, max_length=6)


def summed() -> Recommender:
    table = IdItems(8)
    return Recommender(SumItems([table, table]), encoder(), FullSoftmax())


def handed() -> Recommender:
    shared = encoder()
    return Recommender(IdItems(8), shared, FullSoftmax(), auxiliaries=[Reader(shared)])


def names(model: Recommender) -> list[list[str]]:
    """The names of each parameter that has several."""
    found: dict[int, list[str]] = {}
    for name, value in model.named_parameters(remove_duplicate=False):
        found.setdefault(id(value), []).append(name)
    return sorted(one for one in found.values() if len(one) > 1)


@pytest.mark.parametrize("make", [summed, handed])
def test_b4_what_is_shared_trains_saves_loads_and_stays_shared(make, split: Split, tmp_path: Path) -> None:
    whole = make()
    fit(whole, split, epochs=2, folder=tmp_path / "whole", **QUIET)
    assert names(whole)
    stopped = make()
    fit(stopped, split, epochs=1, folder=tmp_path / "run", **QUIET)
    fit(stopped, split, epochs=2, folder=tmp_path / "run", **QUIET)  # resumed
    trust = [__name__]
    loaded = load_run(tmp_path / "run", trust)
    export(loaded, tmp_path / "bundle")
    bundle = Bundle.load(tmp_path / "bundle", trust)
    for model in (stopped, loaded, bundle.model):
        assert names(model) == names(whole)
        np.testing.assert_array_equal(model.scores(HISTORIES), whole.scores(HISTORIES))
    stored = read_tensors(tmp_path / "run" / "model.safetensors")
    assert stored.keys() == whole.state_dict().keys()
    with torch.no_grad():  # one of them changes, and so does the other
        dict(loaded.named_parameters(remove_duplicate=False))[names(whole)[0][0]].zero_()
    assert not dict(loaded.named_parameters(remove_duplicate=False))[names(whole)[0][1]].any()


def test_b4_parameters_that_nobody_describes_as_shared_are_tied_again() -> None:
    def model() -> Recommender:
        first, second = IdItems(8), IdItems(8)
        made = Recommender(SumItems([first, second]), encoder(), FullSoftmax())
        made.bind(Context(20))
        return made

    tied, other = model(), model()
    tied.items.tables[1].weight = tied.items.tables[0].weight
    other.load_tensors(tied.tensors())
    assert other.items.tables[0].weight is other.items.tables[1].weight
    other.load_tensors(
        {name: value.clone() for name, value in tied.tensors().items()}
    )  # as earlier versions wrote them
    assert torch.equal(other.items.tables[0].weight, tied.items.tables[0].weight)


@pytest.fixture(scope="module")
def run(split: Split, tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RECSYS_CACHE", str(home / "cache"))
        fit(toys.tiny(), split, epochs=1, folder=home / "run", **QUIET)
        export(load_run(home / "run"), home / "bundle", split=split)
    return home / "run"


@pytest.fixture
def copy(run: Path, tmp_path: Path) -> Path:
    shutil.copytree(run, tmp_path / "run")
    shutil.copytree(run.parent / "bundle", tmp_path / "bundle")
    return tmp_path / "run"


@pytest.mark.parametrize(
    "name", ["model.safetensors", "config.json", "vocabulary/items.json", "vocabulary/items.blob.npy", "manifest.json"]
)
@pytest.mark.parametrize("harm", ["flip", "cut", "empty", "remove", "folder"])
def test_hostile_9_a_damaged_run_is_one_error_that_names_the_file(copy: Path, name: str, harm: str) -> None:
    path = copy / name
    whole = path.read_bytes()
    path.unlink()
    if harm == "flip":
        middle = len(whole) * 2 // 3
        path.write_bytes(whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :])
    elif harm == "folder":
        path.mkdir()
    elif harm != "remove":
        path.write_bytes(whole[: len(whole) // 2] if harm == "cut" else b"")
    if name == "manifest.json" and harm == "flip":
        return  # whether it matters depends on where
    with pytest.raises(DataError) as caught:
        load_run(copy)
    assert path.name.partition(".")[0] in str(caught.value) or str(copy) in str(caught.value)


def test_hostile_9_one_flipped_bit_of_the_weights_is_told(copy: Path) -> None:
    path = copy / "model.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[:-5] + bytes([whole[-5] ^ 1]) + whole[-4:])
    with pytest.raises(DataError, match="hash"):
        load_run(copy)
    load_run(copy, verify=False)


def test_runs_of_earlier_versions_are_loaded(copy: Path) -> None:
    expected = load_run(copy).scores(HISTORIES)
    manifest = json.loads((copy / "manifest.json").read_text())
    del manifest["files"]
    (copy / "manifest.json").write_text(json.dumps(manifest))
    save_file(
        {name: value.clone() for name, value in read_tensors(copy / "model.safetensors").items()},
        copy / "model.safetensors",
    )
    np.testing.assert_array_equal(load_run(copy).scores(HISTORIES), expected)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_hostile_8_a_model_that_is_not_finite_does_not_serve(copy: Path, value: float) -> None:
    tensors = read_tensors(copy / "model.safetensors")
    tensors["items.weight"][3, 2] = value
    write_tensors(copy / "model.safetensors", tensors)
    with pytest.raises(DataError, match=r"items\.weight"):
        load_run(copy)
    bundle = copy.with_name("bundle")
    write_tensors(bundle / "model.safetensors", tensors)
    with pytest.raises(DataError, match=r"SHA-256|bytes"):
        Bundle.load(bundle)
    with pytest.raises(DataError, match=r"items\.weight|bytes"):
        Bundle.load(bundle, verify=False)


@pytest.mark.parametrize(
    "changed",
    [
        {"dim": 10**12}, {"dim": -16}, {"num_layers": 10_000_000}, {"max_length": 10**12}, {"max_length": 10**9},
        {"dim": "8"}, {"num_heads": 0}, {"hidden": 10**9}, {"dim": 10**400},
    ],
)  # fmt: skip
def test_hostile_15_sizes_are_bounded_by_the_file_of_tensors(copy: Path, changed: dict) -> None:
    manifest = json.loads((copy / "manifest.json").read_text())
    del manifest["files"]
    (copy / "manifest.json").write_text(json.dumps(manifest))
    config = json.loads((copy / "config.json").read_text())
    for part in ("encoder", "items"):
        given = config["model"]["arguments"][part]["arguments"]
        given |= {name: value for name, value in changed.items() if name in given}
    (copy / "config.json").write_text(json.dumps(config))
    with pytest.raises(DataError, match="run"):
        load_run(copy)


@pytest.mark.parametrize("value", [-1, 0, 10**12, None, "20", 21])
def test_hostile_14_the_number_of_items_is_that_of_the_vocabulary(copy: Path, value: object) -> None:
    config = json.loads((copy / "config.json").read_text())
    manifest = json.loads((copy / "manifest.json").read_text())
    del manifest["files"]
    (copy / "manifest.json").write_text(json.dumps(manifest))
    (copy / "config.json").write_text(json.dumps({**config, "num_items": value}))
    with pytest.raises(DataError, match="items"):
        load_run(copy)


def test_a_counted_model_is_saved_and_loaded_like_any_other(split: Split, tmp_path: Path) -> None:
    model = Popularity()
    fit(model, split, folder=tmp_path / "run", **QUIET)
    np.testing.assert_array_equal(load_run(tmp_path / "run").scores(HISTORIES), model.scores(HISTORIES))


def test_loading_needs_no_compiler_of_torch() -> None:
    import subprocess
    import sys

    code = "import sys, torch; from recsys.storage.bounds import bounded; from recsys.storage.tensors import Sizes\n"
    code += "with bounded(Sizes(1, 1)): torch.nn.Linear(2, 2)\nassert 'torch._dynamo' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2], check=False).returncode == 0


@pytest.mark.parametrize("first", [0, 2, 1_000_000])
def test_hostile_14_items_that_begin_at_another_row_are_refused(tmp_path, first):
    folder = tmp_path / "run"
    fit(toys.tiny(), toys.cycles(users=20), epochs=1, folder=folder, **QUIET)
    path = folder / "vocabulary" / "items.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"first": first}))
    with pytest.raises(DataError, match="run"):
        load_run(folder, verify=False)


def test_a_bundle_where_a_run_is_expected_is_called_so_with_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text('{"kind": "recsys.bundle", "format": 1}')
    with pytest.raises(DataError, match="is a bundle, and a run folder was expected: pass the run folder"):
        load_run(tmp_path)
