from __future__ import annotations

import importlib.util
import json
import os
import pickle
import re
from pathlib import Path

import numpy as np
import pytest

from recsys.errors import DataError, DataWarning
from recsys.eval.evaluate import evaluate
from recsys.eval.report import Report, align, number
from recsys.eval.storage import read_table, write_table
from recsys.ids.vocabulary import Vocabulary


@pytest.fixture
def report(random_case) -> Report:
    model, part = random_case(seed=2)
    labels = [f"group {user % 2}" for user in range(len(part))]
    ids = Vocabulary(np.array([f"user {row}" for row in range(len(part))], dtype=object), first=0)
    return evaluate(model, part, k=(1, 10), progress=False, name="Mine", users=ids, segments={"half": labels})


def test_means_and_intervals_come_from_the_users(report):
    values = report.columns["ndcg@10"]
    low, high = report.interval("ndcg@10")
    assert report.mean("ndcg@10") == pytest.approx(values.mean())
    assert low < values.mean() < high
    assert report.interval("ndcg@10", level=0.5)[0] > low
    assert report.mean("coverage@10") == report.aggregates["coverage@10"]
    assert list(report.means())[:2] == ["hr@1", "hr@10"]
    with pytest.raises(ValueError, match="ndcg@10"):
        report.mean("ndcg@11")
    with pytest.raises(ValueError, match="per-user"):
        report.interval("coverage@10")


def test_segments_divide_the_users(report):
    rows = report.segments(["ndcg@10"])
    for grouping in ("history length", "target popularity", "cohort", "half"):
        own = [row for row in rows if row.grouping == grouping]
        assert sum(row.users for row in own) == report.users
        assert sum(row.mean * row.users for row in own) == pytest.approx(report.columns["ndcg@10"].sum())
        assert all(row.low <= row.mean + 1e-12 and row.mean <= row.high + 1e-12 for row in own)


def test_the_text_says_the_protocol_and_the_ties(report):
    text = str(report)
    for word in ("Mine", "test", "leave-last", "history excluded", "60 users", "30 items", "tied", "repeat", "@10"):
        assert word in text


def test_saving_and_loading_restores_everything(report, tmp_path):
    path = report.save(tmp_path)
    assert path.name == "per_user.parquet"
    for source in (tmp_path, path, str(tmp_path)):
        loaded = Report.load(source)
        assert loaded.meta == report.meta and loaded.aggregates == report.aggregates
        assert list(loaded.columns) == list(report.columns)
        for name, values in report.columns.items():
            assert loaded.columns[name].tolist() == values.tolist()
        assert str(loaded) == str(report)
    summary = json.loads((tmp_path / "report.json").read_text())
    assert summary["metrics"]["ndcg@10"]["mean"] == report.mean("ndcg@10")
    assert {file.name for file in tmp_path.iterdir()} == {"per_user.parquet", "report.json"}


def test_without_polars_the_table_is_npz(report, tmp_path, monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *more: None if name == "polars" else found(name, *more)
    )
    with pytest.warns(DataWarning, match="polars"):
        report.save(tmp_path)
    loaded = Report.load(tmp_path)
    assert loaded.meta == report.meta
    assert loaded.columns["user_id"].tolist() == report.columns["user_id"].tolist()
    assert loaded.means() == report.means()


def test_a_missing_damaged_or_foreign_file(report, tmp_path):
    with pytest.raises(FileNotFoundError, match=re.escape(f"(recsys evaluate {tmp_path})")):
        Report.load(tmp_path)
    with pytest.raises(FileNotFoundError, match=re.escape(f"(recsys evaluate {tmp_path / 'run'})")):
        Report.load(tmp_path / "run" / "per_user.parquet")
    path = report.save(tmp_path)
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(DataError, match="evaluate again"):
        Report.load(tmp_path)
    other = Report({**report.meta, "version": 99}, report.columns, report.aggregates)
    other.save(tmp_path)
    with pytest.raises(DataError, match="99"):
        Report.load(tmp_path)


def test_a_full_disk_keeps_the_old_report(report, tmp_path, monkeypatch):
    report.save(tmp_path)
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}

    def full(source: Path, target: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="space"):
        report.save(tmp_path)
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before


def test_only_whole_shares_of_one_evaluation_merge(random_case):
    model, part = random_case()
    shares = [evaluate(model, part, progress=False, rank=rank, world_size=3) for rank in range(3)]
    with pytest.raises(DataError, match="shares"):
        Report.merge(shares[:2])
    with pytest.raises(DataError, match="shares"):
        Report.merge([shares[0], shares[1], shares[1]])
    with pytest.raises(DataError, match="exclude"):
        Report.merge([shares[0], evaluate(model, part, exclude="none", progress=False, rank=1, world_size=3)])


def test_loaded_shares_do_not_merge(random_case, tmp_path):
    model, part = random_case()
    shares = [evaluate(model, part, progress=False, rank=rank, world_size=2) for rank in range(2)]
    shares[0].save(tmp_path)
    with pytest.raises(DataError, match="loaded"):
        Report.merge([Report.load(tmp_path), shares[1]])


def test_a_share_travels_between_processes(random_case):
    model, part = random_case()
    shares = [evaluate(model, part, progress=False, rank=rank, world_size=2) for rank in range(2)]
    travelled = [pickle.loads(pickle.dumps(share)) for share in shares]
    assert Report.merge(travelled).means() == evaluate(model, part, progress=False).means()


def test_numbers_and_tables():
    assert [number(value) for value in (0.0912, -0.0912, 1.0, 7.25, 123.456)] == [
        ".0912", "-.0912", "1.0000", "7.2500", "123.5",
    ]  # fmt: skip
    assert align([["a", "bb"], ["ccc", "d"]]) == "a    bb\nccc   d"


@pytest.mark.parametrize(("repeated", "exclude"), [(0, "history"), (3, "history-except-targets")])
def test_reports_of_the_former_version_are_read_by_the_rule_that_they_used(report, tmp_path, repeated, exclude):
    meta = {name: value for name, value in report.meta.items() if name not in ("unreachable_targets", "catalogue")}
    Report({**meta, "version": 1, "repeated_targets": repeated}, report.columns, report.aggregates).save(tmp_path)
    loaded = Report.load(tmp_path)
    assert loaded.meta["exclude"] == exclude and loaded.means() == report.means()
    assert ("except for targets" in loaded.header()) == bool(repeated)
    loaded.save(tmp_path)
    assert Report.load(tmp_path).meta == loaded.meta


@pytest.mark.parametrize("harm", ["no version", "no metrics", "a column less", "facts a list", "cut", "text"])
def test_hostile_14_a_damaged_report_is_one_clear_error(report, tmp_path, harm):
    path = report.save(tmp_path)
    columns, facts = read_table(path)
    if harm == "no version":
        del facts["meta"]["version"]
    elif harm == "no metrics":
        del facts["meta"]["metrics"]
    elif harm == "a column less":
        del columns[facts["meta"]["metrics"][0]]
    facts = [facts] if harm == "facts a list" else facts
    write_table(tmp_path, columns, facts)
    if harm in ("cut", "text"):
        path.write_bytes(path.read_bytes()[:100] if harm == "cut" else b"nothing")
    with pytest.raises(DataError, match="per_user"):
        Report.load(path)


@pytest.mark.parametrize(
    "harm", ["no rows", "rows twice", "text", "no exclude", "no repeats", "no thresholds", "aggregate null"]
)
def test_hostile_14_a_report_that_is_not_whole_does_not_load(report, tmp_path, harm):
    path = report.save(tmp_path)
    columns, facts = read_table(path)
    name, size = facts["meta"]["metrics"][0], report.users
    if harm in ("no rows", "rows twice"):
        columns = {key: np.tile(values, 2 * (harm == "rows twice")) for key, values in columns.items()}
    elif harm == "text":
        columns[name] = np.array(["x"] * size, dtype=object)
    elif harm == "aggregate null":
        facts["aggregates"] = dict.fromkeys(facts["aggregates"])
    else:
        gone = {"no exclude": "exclude", "no repeats": "repeated_targets", "no thresholds": "popularity_thresholds"}
        del facts["meta"][gone[harm]]
    write_table(tmp_path, columns, facts)
    with pytest.raises(DataError, match=str(tmp_path)):
        Report.load(path)


def test_a_folder_whose_name_looks_like_a_pattern_is_read_itself(report, tmp_path):
    report.save(tmp_path / "run[1]")
    other = {**report.columns, "ndcg@10": np.zeros(report.users)}
    Report(report.meta, other, report.aggregates).save(tmp_path / "run1")
    assert Report.load(tmp_path / "run[1]").mean("ndcg@10") == report.mean("ndcg@10") > 0
