"""What all tests share: a cache of their own, since runs keep their splits there; and small prepared data."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from recsys.data.prepared import Prepared
from recsys.data.split import Split

sys.path.insert(0, str(Path(__file__).parent))  # for `cycles`, which child processes import too

from cycles import cycles


@pytest.fixture(autouse=True, scope="session")
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RECSYS_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> Iterator[None]:
    """For the whole session: what fixtures of modules train is compared bit by bit with what tests train."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True, scope="session")
def charts_are_drawn_in_their_own_tests() -> Iterator[None]:
    """Every run writes a page, and its charts take longer than most runs of tests."""
    from recsys.pages import charts

    can_draw = charts.can_draw
    with pytest.MonkeyPatch.context() as patch:
        own = ("tests/pages/", "tests/cli/test_report.py")
        patch.setattr(
            charts, "can_draw", lambda: os.environ.get("PYTEST_CURRENT_TEST", "").startswith(own) and can_draw()
        )
        yield


@pytest.fixture(scope="session")
def split() -> Split:
    return cycles()


@pytest.fixture(scope="session")
def prepare() -> Callable[..., Prepared]:
    """``prepare([[1, 2], [3]], times=[[10, 20], [5]], parts=..., weights=...)``: one list per user."""

    def build(histories: Sequence[Sequence[int]], **fields: Any) -> Prepared:
        flat = [item for history in histories for item in history]
        offsets = np.cumsum([0, *(len(history) for history in histories)]).astype(np.int64)
        num_items = fields.pop("num_items", max(flat, default=1))
        types = {"times": np.int64, "weights": np.float32, "parts": np.int8}
        for name, dtype in types.items():
            if fields.get(name) is not None:
                fields[name] = np.array([value for history in fields[name] for value in history], dtype=dtype)
        return Prepared(items=np.array(flat, np.int32), offsets=offsets, num_items=num_items, **fields)

    return build


@pytest.fixture(scope="session")
def draw(prepare: Callable[..., Prepared]) -> Callable[..., Prepared]:
    """``draw(seed, users=20, longest=12, num_items=9)``: random histories, some empty, times with ties, weights."""

    def build(seed: int, users: int = 20, longest: int = 12, num_items: int = 9, span: int = 40) -> Prepared:
        random = np.random.default_rng(seed)
        sizes = random.integers(0, longest + 1, users)
        return prepare(
            [random.integers(1, num_items + 1, size).tolist() for size in sizes],
            times=[np.sort(random.integers(0, span, size)).tolist() for size in sizes],
            weights=[random.random(size).tolist() for size in sizes],
            num_items=num_items,
        )

    return build
