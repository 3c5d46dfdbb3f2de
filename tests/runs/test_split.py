"""The split of a run: kept before training, told apart by its cut, found again, and never the end of a training."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from cycles import cycles, tiny

import recsys.runs.split as splits
from recsys.errors import DataError, DataWarning
from recsys.ids.vocabulary import Vocabulary
from recsys.recommenders.popularity import Popularity
from recsys.runs.read import load_run
from recsys.runs.split import remember_split, split_of
from recsys.train.fit import fit


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("RECSYS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def trained(split, folder: Path):
    fit(Popularity(), split, folder=folder, progress=False)
    return load_run(folder)


def halved(split):
    """The same data, name and protocol, of which only half is trained on: a point of a learning curve."""
    start = split.prepared.offsets[:-1]
    return replace(split, train_stop=start + (split.train_stop - start + 1) // 2)


@pytest.mark.parametrize("learned", [True, False])
def test_a_run_made_in_python_finds_its_split_again(split, tmp_path: Path, learned: bool) -> None:
    settings = {} if learned else {"epochs": 1}
    fit(Popularity() if learned else tiny(), split, folder=tmp_path / "run", progress=False, **settings)
    found = split_of(tmp_path / "run", load_run(tmp_path / "run"))
    assert found.cut.digest == split.cut.digest and found.name == split.name


def test_b2_b_a_split_of_another_cut_is_not_taken_for_the_one_trained_on(split, tmp_path: Path) -> None:
    for name, one in (("whole", split), ("half", halved(split))):
        model = trained(one, tmp_path / name)
        assert split_of(tmp_path / name, model).train.num_events == one.train.num_events


@pytest.mark.parametrize("change", ["stops", "times", "texts", "users", "protocol", "name", "none"])
def test_b2_b_whatever_comes_back_otherwise_is_kept_apart(split, tmp_path: Path, change: str) -> None:
    changed = {
        "stops": lambda: halved(split),
        "times": lambda: replace(split, prepared=replace(split.prepared, times=np.arange(split.prepared.num_events))),
        "texts": lambda: replace(split, item_text={"title": np.array(["", *"abcdefghijklmnopqrst"], object)}),
        "users": lambda: replace(split, users=Vocabulary(np.arange(split.num_users) + 7, first=0)),
        "protocol": lambda: replace(split, protocol={**split.protocol, "note": "mine"}),
        "name": lambda: replace(split, name="other/../name"),
        "none": lambda: cycles(),
    }[change]()
    for number, one in enumerate((split, changed)):
        (tmp_path / f"run{number}").mkdir()
        remember_split(one, tmp_path / f"run{number}")
    kept = list((tmp_path / "cache" / "splits").iterdir())
    assert len(kept) == (1 if change == "none" else 2)


def test_b2_b_a_kept_split_that_was_exchanged_is_noticed(split, tmp_path: Path) -> None:
    model = trained(split, tmp_path / "run")
    (place,) = (tmp_path / "cache" / "splits").iterdir()
    halved(split).save(place)
    with pytest.raises(DataError, match="--split"):
        split_of(tmp_path / "run", model)


def test_a_split_with_the_items_in_another_order_is_refused(split, tmp_path: Path) -> None:
    model = trained(split, tmp_path / "run")
    replace(split, items=Vocabulary(split.items.ids[::-1].copy(), first=1)).save(tmp_path / "turned")
    with pytest.raises(DataError, match="order"):
        split_of(tmp_path / "run", model, tmp_path / "turned")


def test_hostile_7_a_cache_that_cannot_be_written_ends_no_training(split, tmp_path: Path, cache: Path) -> None:
    cache.write_text("a file where the cache should be")
    with pytest.warns(DataWarning, match="RECSYS_CACHE"):
        model = trained(split, tmp_path / "run")
    assert split_of(tmp_path / "run", model).cut.digest == split.cut.digest
    (tmp_path / "run").rename(tmp_path / "moved")
    assert split_of(tmp_path / "moved", model).cut.digest == split.cut.digest
    cache.unlink()
    fit(Popularity(), split, folder=tmp_path / "moved", resume=False, progress=False)
    assert not (tmp_path / "moved" / "split").exists()


def test_hostile_7_a_large_split_is_given_by_hand(
    split, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache.write_text("")
    monkeypatch.setattr(splits, "SMALL", 0)
    with pytest.warns(DataWarning, match="--split"):
        model = trained(split, tmp_path / "run")
    with pytest.raises(DataError, match="--split"):
        split_of(tmp_path / "run", model)
    split.save(tmp_path / "given")
    assert split_of(tmp_path / "run", model, tmp_path / "given").num_users == split.num_users


def test_hostile_7_a_missing_home_ends_no_training(split, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    for name in ("RECSYS_CACHE", "XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(Path, "home", homeless)
    with pytest.warns(DataWarning, match="RECSYS_CACHE"):
        model = trained(split, tmp_path / "run")
    assert split_of(tmp_path / "run", model).num_users == split.num_users


def test_hostile_7_a_resumed_run_keeps_its_split_again(split, tmp_path: Path, cache: Path) -> None:
    fit(tiny(), split, epochs=1, folder=tmp_path / "run", progress=False)
    cache.rename(tmp_path / "gone")
    with pytest.raises(DataError, match="RECSYS_CACHE"):
        split_of(tmp_path / "run", load_run(tmp_path / "run"))
    fit(tiny(), split, epochs=1, folder=tmp_path / "run", progress=False)
    assert split_of(tmp_path / "run", load_run(tmp_path / "run")).num_users == split.num_users


@pytest.mark.parametrize(
    "note", ["", "null", "[]", "7", "{}", '{"cache": 3}', '{"cache": null}', '{"folder": []}', '{"cache": ["a"]}', "["],
)  # fmt: skip
def test_hostile_14_a_damaged_note_is_a_clear_error(split, tmp_path: Path, note: str) -> None:
    model = trained(split, tmp_path / "run")
    (tmp_path / "run" / "split.json").write_text(note)
    with pytest.raises(DataError, match="run"):
        split_of(tmp_path / "run", model)


@pytest.mark.parametrize("key", ["cache", "folder"])
def test_hostile_15_a_note_leads_into_the_cache_only(split, tmp_path: Path, key: str) -> None:
    model = trained(split, tmp_path / "run")
    split.save(tmp_path / "elsewhere" / "private")
    for path in (str(tmp_path / "elsewhere" / "private"), "../../elsewhere/private"):
        (tmp_path / "run" / "split.json").write_text(json.dumps({key: path}))
        with pytest.raises(DataError, match="--split"):
            split_of(tmp_path / "run", model)


def test_a_note_of_an_earlier_version_is_read(split, tmp_path: Path, cache: Path) -> None:
    model = trained(split, tmp_path / "run")
    (place,) = (cache / "splits").iterdir()
    (tmp_path / "run" / "split.json").write_text(json.dumps({"folder": str(place), "data_hash": ""}))
    assert split_of(tmp_path / "run", model).num_users == split.num_users
