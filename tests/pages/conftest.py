from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

import recsys as rs
from recsys.data.prepared import Prepared
from recsys.data.split import Split
from recsys.eval.report import Report
from recsys.ids.vocabulary import Vocabulary

HOSTILE = "<script>alert('x')</script>"


def made(users: int = 80, items: int = 40, seed: int = 0) -> Split:
    """A split with titles, one of them hostile, and times; the next item often follows from the last one."""
    random = np.random.default_rng(seed)
    lengths = random.integers(4, 12, users)
    starts = random.integers(0, items, users)
    rows = [(start + np.arange(n) * random.choice([1, 1, 3])) % items + 1 for start, n in zip(starts, lengths)]
    times = [1_600_000_000_000 + 86_400_000 * np.sort(random.integers(0, 400, n)) for n in lengths]
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    prepared = Prepared(np.concatenate(rows).astype(np.int32), offsets, items, times=np.concatenate(times))
    titles = np.array(["", *(f"Film {row} {HOSTILE if row % 2 else '& co'}" for row in range(1, items + 1))], object)
    raw = Vocabulary(np.array([f"i{row}" for row in range(items)], object), first=1)
    names = Vocabulary(np.array([f"u{row}" for row in range(users)], object), first=0)
    return Split.of(prepared, rs.LeaveLast(), raw, names, name="films", item_text={"title": titles})


@pytest.fixture(scope="session")
def films() -> Split:
    return made()


@pytest.fixture(scope="session")
def markov(films: Split) -> rs.Markov:
    model = rs.Markov()
    rs.fit(model, films, progress=False)
    return model


@pytest.fixture(scope="session")
def reports(films: Split, markov: rs.Markov) -> tuple[Report, Report]:
    """Of a model with a hostile name, and of popularity."""
    other = rs.Popularity()
    rs.fit(other, films, progress=False)
    found = [rs.evaluate(one, films.test, k=(1, 5, 10), progress=False) for one in (markov, other)]
    names = ("<script>alert(1)</script> $x_1$", "Zero & Co")
    first, second = (replace(one, meta={**one.meta, "model": name}) for one, name in zip(found, names, strict=True))
    return first, second
