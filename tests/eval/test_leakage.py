from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import recsys as rs
from recsys.data.cut import Cut
from recsys.errors import DataWarning, LeakageError
from recsys.eval.sampled import evaluate_sampled


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> rs.Dataset:
    draw = np.random.default_rng(0)
    rows = [
        (f"u{u:02d}", f"p{draw.integers(40):02d}", 1_700_000_000 + t * 86400 + u) for u in range(80) for t in range(10)
    ]
    path: Path = tmp_path_factory.mktemp("leak") / "events.csv"
    pl.DataFrame(rows, schema=["user", "item", "time"], orient="row").write_csv(path)
    return rs.Dataset.scan(path, user="user", item="item", time="time")


@pytest.fixture(scope="module")
def splits(data: rs.Dataset) -> tuple[Any, Any]:
    return data.split(rs.LeaveLast(), audit=False), data.split(rs.GlobalTime(0.1, 0.3), audit=False)


def popular(split: Any, **changes: Any) -> Any:
    model = rs.Popularity()
    rs.fit(model, split, progress=False)
    model.cut = replace(split.cut, **changes)
    return model


def test_k6_a_a_model_ranked_on_what_it_was_trained_on_is_refused(splits: tuple[Any, Any]) -> None:
    leave, time = splits
    model = rs.EASE(l2=0.1)
    rs.fit(model, leave, progress=False)
    model.cut = leave.cut
    for evaluate in (rs.evaluate, evaluate_sampled):
        with pytest.raises(LeakageError, match="trained on"):
            evaluate(model, time.test)  # type: ignore[operator]
    with pytest.warns(DataWarning, match="trained on"):
        rs.evaluate(model, time.test, exclude="none", progress=False, leakage="warn")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        rs.evaluate(model, time.test, exclude="none", progress=False, leakage="allow")
        rs.evaluate(model, leave.test, exclude="none", progress=False)
        rs.evaluate(model, leave.valid, exclude="none", progress=False)


def test_k6_training_on_validation_too_is_no_leak_into_the_test(splits: tuple[Any, Any]) -> None:
    leave, _ = splits
    model = popular(replace(leave, train_stop=leave.valid_stop))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        rs.evaluate(model, leave.test, exclude="none", progress=False)
    with pytest.raises(LeakageError):
        rs.evaluate(model, leave.valid, exclude="none", progress=False)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10), st.integers(0, 10))
def test_k6_the_count_of_any_two_cuts(splits: tuple[Any, Any], trained: int, tested: int) -> None:
    leave, _ = splits
    first = leave.prepared.offsets[:-1]
    part = replace(leave, train_stop=first + min(tested, 9), valid_stop=first + min(tested, 9)).test
    model = popular(leave)
    model.cut = replace(leave, train_stop=first + trained).cut
    seen = 80 * max(trained - min(tested, 9), 0)
    if seen:
        with pytest.raises(LeakageError, match=f"{seen:,} of"):
            rs.evaluate(model, part, exclude="none", progress=False)
    else:
        rs.evaluate(model, part, exclude="none", progress=False)


@pytest.mark.parametrize("changes", [{"stops": None}, {"events": "others"}, {"catalogue": "others"}])
def test_k6_what_cannot_be_told_is_warned_of(splits: tuple[Any, Any], changes: dict[str, Any]) -> None:
    leave, time = splits
    model = popular(leave, digest="another", **changes)
    with pytest.warns(DataWarning, match="it is not known whether"):
        rs.evaluate(model, time.test, exclude="none", progress=False)
    with pytest.warns(DataWarning, match="it is not known whether"):
        rs.evaluate(model, replace(leave.test, split=None), exclude="none", progress=False)


def test_k6_a_model_that_does_not_know_costs_and_says_nothing(splits: tuple[Any, Any], monkeypatch: Any) -> None:
    leave, time = splits
    model = popular(leave)
    model.cut = None
    fresh = replace(time)
    monkeypatch.setattr(Cut, "of", lambda split: pytest.fail("all events were hashed"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        rs.evaluate(model, fresh.test, exclude="none", progress=False)
    with pytest.raises(ValueError, match="leakage"):
        rs.evaluate(model, fresh.test, progress=False, leakage="ignore")  # type: ignore[arg-type]
