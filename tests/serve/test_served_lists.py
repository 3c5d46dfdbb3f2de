"""Model, loaded model and bundle give the lists that sorting all scores by raw ids gives, whatever is asked."""

from __future__ import annotations

import tempfile
import warnings
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from recsys.data.split import Split
from recsys.encoders.sasrec import SASRec
from recsys.ids.vocabulary import Vocabulary
from recsys.items.ids import IdItems
from recsys.objectives.softmax import FullSoftmax
from recsys.protocols import Context
from recsys.recommenders.composed import Recommender
from recsys.recommenders.popularity import Popularity
from recsys.runs.read import load_run
from recsys.serve.bundle import Bundle, export
from recsys.train.fit import fit


@cache
def served(size: int, distinct: int, seed: int, text: bool) -> tuple[Any, list[Bundle], np.ndarray]:
    """A model of ``size`` items of ``distinct`` vectors, in a catalogue of odd order, and its bundles."""
    rng = np.random.default_rng(seed)
    names = rng.permutation(10 * size)[:size]
    ids = np.array([f"n{one}" for one in names], object) if text else names
    model = Recommender(IdItems(8), SASRec(8, num_layers=1, max_length=4, dropout=0.0), FullSoftmax())
    model.bind(Context(size, Vocabulary(ids, first=1)))
    kinds = torch.from_numpy(rng.integers(0, distinct, size))
    with torch.no_grad():
        model.items.weight[1:] = torch.randn(distinct, 8, generator=torch.Generator().manual_seed(seed))[kinds]
    model.popularity = torch.from_numpy(np.append(0, rng.integers(0, 3, size)).astype(np.float32))
    with tempfile.TemporaryDirectory() as folder:
        for name, index in (("exact", "exact"), ("none", None), ("hnsw", "hnsw")):
            export(model, Path(folder) / name, index=index)
        bundles = [Bundle.load(Path(folder) / name) for name in ("exact", "none", "hnsw")]
        for bundle in bundles:
            assert bundle.item_text == {}
    return model, bundles, ids


def brute(model: Any, ids: list[Any], history: list[Any], k: int, exclude: str, allow: Any, deny: Any) -> list[Any]:
    scores = model.scores([history])[0]
    known = {*ids}
    if not known & {*history}:
        scores = model.popularity[1:].numpy()
    order = sorted(range(len(ids)), key=lambda row: (-scores[row], row))
    hidden = ({*history} if exclude == "history" else set()) | {*(deny or ())}
    return [ids[row] for row in order if ids[row] not in hidden and (allow is None or ids[row] in allow)][:k]


@settings(deadline=None, max_examples=25, suppress_health_check=list(HealthCheck))
@given(
    shape=st.sampled_from([(9, 9), (23, 5), (23, 1), (60, 30)]), seed=st.integers(0, 2), text=st.booleans(),
    k=st.integers(1, 70), exclude=st.sampled_from(["history", "none"]), per_history=st.booleans(), data=st.data(),
)  # fmt: skip
def test_done_2_all_doors_give_the_lists_of_a_sort_by_raw_ids(shape, seed, text, k, exclude, per_history, data) -> None:
    model, bundles, ids = served(*shape, seed, text)
    some = st.lists(st.sampled_from([*ids.tolist(), "stranger" if text else 10**6]), max_size=8)
    histories = data.draw(st.lists(some, min_size=1, max_size=12))
    if per_history:
        allow, deny = (
            data.draw(st.lists(st.none() | some, min_size=len(histories), max_size=len(histories))) for _ in "ad"
        )
    else:
        allow, deny = data.draw(st.none() | st.just(ids[::2].tolist())), data.draw(some)
    own = [
        (one if per_history and any(x is not None for x in one) else None) for one in (allow or [None], deny or [None])
    ]
    if per_history:
        allow, deny = own
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = [one.recommend(histories, k, exclude, allow, deny).items for one in (model, *bundles)]
        shorter = model.recommend(histories, max(1, k // 2), exclude, allow, deny).items
    expected = found[0]
    assert found == [expected] * 4
    assert shorter == [one[: max(1, k // 2)] for one in expected]
    for row, history in enumerate(histories):
        mine = [None if one is None else one[row] if per_history else one for one in (allow, deny)]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            alone = model.recommend(
                [history], k, exclude, *([None if one is None else [one] for one in mine] if per_history else mine)
            )
        scores = dict(zip(alone.items[0], alone.scores[0].tolist(), strict=False))
        truth = brute(model, ids.tolist(), history, k, exclude, *mine)
        assert alone.items[0] == truth
        assert sorted(scores.values(), reverse=True) == list(scores.values())
        assert set(expected[row]) == set(truth) or len(truth) == k


def arguments_of(model: Any) -> dict[str, Any]:
    return {"epochs": 1} if isinstance(model, Recommender) else {}


@pytest.mark.filterwarnings("ignore::recsys.errors.DataWarning")
def test_a_run_gives_the_lists_of_the_model_that_it_was(split: Split, tmp_path: Path) -> None:
    for model in (Recommender(IdItems(8), SASRec(8, 1, max_length=6), FullSoftmax()), Popularity()):
        folder = tmp_path / type(model).__name__
        fit(model, split, folder=folder, progress=False, **arguments_of(model))
        histories = [["i1", "i2"], [], ["i9", "nobody"]]
        again = load_run(folder)
        bundle = export(again, tmp_path / f"{type(model).__name__}.bundle", split=split)
        for arguments in ({}, {"k": 99, "deny": ["i3"]}, {"exclude": "none", "allow": ["i1", "i4"]}):
            expected = model.recommend(histories, **arguments).items
            assert again.recommend(histories, **arguments).items == expected
            assert bundle.recommend(histories, **arguments).items == expected
