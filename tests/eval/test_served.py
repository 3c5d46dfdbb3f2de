"""What is evaluated is what is served: per user, from the lists of ``recommend``, by raw ids alone."""

from __future__ import annotations

import math
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import recsys as rs
from recsys.data.prepared import Prepared
from recsys.data.split import Split
from recsys.ids.vocabulary import Vocabulary
from recsys.protocols import Context
from recsys.recommenders.base import Ranker

METRICS = ("hr", "recall", "precision", "ndcg", "mrr", "map")


class Wired(Ranker):
    """Scores by the last item of a history, from a table that a test wrote down; -inf for never."""

    def __init__(self, table: np.ndarray) -> None:
        super().__init__()
        self.register_buffer("table", torch.as_tensor(table, dtype=torch.float32))

    def score(self, batch: Any) -> torch.Tensor:
        last = batch.ids.gather(1, batch.lengths[:, None] - 1).squeeze(1)
        return self.table[last - 1].clone()


def text(ids: list[str]) -> np.ndarray:
    found = np.empty(len(ids), object)
    found[:] = ids
    return found


def renumbered(split: Split, items: np.ndarray, users: np.ndarray, prefix: str = "") -> Split:
    """The same events of the same raw ids, with item row i + 1 and user row i at the places that are given."""
    before = split.prepared
    order = np.argsort(users)  # old user row of each new one
    bounds = [
        (before.offsets[old], split.train_stop[old], split.valid_stop[old], before.offsets[old + 1]) for old in order
    ]
    offsets = np.concatenate([[0], np.cumsum([stop - start for start, _, _, stop in bounds])]).astype(np.int64)
    row = np.concatenate([[0], items + 1])
    events = [row[before.items[start:stop]] for start, _, _, stop in bounds]
    prepared = Prepared(np.concatenate(events).astype(np.int32), offsets, before.num_items, order="file")
    stops = [offsets[:-1] + [bound[at] - bound[0] for bound in bounds] for at in (1, 2)]
    names = [prefix + str(split.items.ids[old]) for old in np.argsort(items)]
    people = [prefix + str(split.users.ids[old]) for old in order]
    return Split(prepared, *stops, Vocabulary(text(names), 1), Vocabulary(text(people), 0), {"name": "drawn"})


def drawn(seed: int, users: int = 12, items: int = 9) -> Split:
    """Random histories with repeats, some of them empty, and any number of targets."""
    draw = np.random.default_rng(seed)
    lengths = draw.integers(1, 9, users)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    events = draw.integers(1, items + 1, lengths.sum()).astype(np.int32)
    train = offsets[:-1] + draw.integers(0, lengths + 1)
    valid = train + draw.integers(0, offsets[1:] - train + 1)
    if (valid == offsets[1:]).all():
        valid[0] = train[0] = offsets[1] - 1
    prepared = Prepared(events, offsets, items, order="file")
    ids = (
        Vocabulary(text([f"{name}{i}" for i in range(n)]), first)
        for name, n, first in (("i", items, 1), ("u", users, 0))
    )
    return Split(prepared, train, valid, *ids, {"name": "drawn"})


def of_list(ranking: list[str], targets: set[str], k: int) -> dict[str, float]:
    hits = [int(item in targets) for item in ranking[:k]]
    places = [at for at, hit in enumerate(hits, 1) if hit]
    ideal = sum(1 / math.log2(at + 1) for at in range(1, min(len(targets), k) + 1))
    return {
        "hr": float(bool(places)),
        "recall": len(places) / len(targets),
        "precision": len(places) / k,
        "ndcg": sum(1 / math.log2(at + 1) for at in places) / ideal,
        "mrr": 1 / places[0] if places else 0.0,
        "map": sum(sum(hits[:at]) / at for at in places) / min(len(targets), k),
    }


def tasks(split: Split) -> dict[str, tuple[list[str], set[str]]]:
    """Raw user id -> (history, targets) of the test part."""
    part, found = split.test, {}
    for at, user in enumerate(part.users.tolist()):
        history, targets = (
            split.items.raw(split.prepared.items[start:stop]).tolist()
            for start, stop in (
                (part.history_start[at], part.target_start[at]),
                (part.target_start[at], part.target_stop[at]),
            )
        )
        found[split.users.raw(np.array([user]))[0]] = history, set(targets)
    return found


class OnlyLists:
    """The lists of another recommender and nothing else."""

    def __init__(self, served: Any) -> None:
        self.served = served

    def recommend(self, histories: Any, k: int, exclude: str, allow: Any = None, deny: Any = None) -> Any:
        return self.served.recommend(histories, k, exclude, allow, deny)


def agree(ranker: Any, served: Any, split: Split, k: int, exclude: str, deny: Any) -> None:
    """``evaluate(ranker)`` against the lists that ``served`` recommends; ``deny`` is raw ids, or such by user."""
    told = tasks(split)
    shared = deny if isinstance(deny, list) else []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        report = rs.evaluate(ranker, split.test, k=k, exclude=exclude, progress=False, deny=deny)  # type: ignore[arg-type]
        listed = rs.evaluate(OnlyLists(served), split.test, k=k, exclude=exclude, progress=False, deny=deny)  # type: ignore[arg-type]
        each = deny if isinstance(deny, list) else [deny.get(user, []) for user in told]
        top = served.recommend([history for history, _ in told.values()], k=k, exclude=exclude, deny=each)
    lists = dict(zip(told, top.items, strict=True))
    shown = {item: 0 for item in split.items.ids.tolist() if item not in shared}
    for place, user in enumerate(report.columns["user_id"].tolist()):
        _, targets = told[user]
        assert report.columns["num_targets"][place] == len(targets)
        for name, value in of_list(lists[user], targets, k).items():
            assert listed.columns[f"{name}@{k}"][place] == pytest.approx(value, abs=1e-9), (name, user)
        for item in lists[user]:
            shown[item] += 1
        if report.columns["tied_targets"][place] == 0:  # else the expected value over the orders, tested elsewhere
            for name, value in of_list(lists[user], targets, k).items():
                assert report.columns[f"{name}@{k}"][place] == pytest.approx(value, abs=1e-9), (name, user)
    assert report.exposure[k].tolist() == listed.exposure[k].tolist() == list(shown.values())
    assert np.array_equal(report.columns["repeated_targets"], listed.columns["repeated_targets"])


@settings(max_examples=50, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    k=st.integers(1, 9),
    exclude=st.sampled_from(["history", "none"]),
    denied=st.sets(st.integers(0, 8), max_size=8),
    per_user=st.booleans(),
    never=st.sampled_from([0.0, 0.3, 1.0]),
    levels=st.sampled_from([None, 3]),
    prefix=st.sampled_from(["", "x"]),
)
def test_evaluated_is_served_under_permuted_rows_renamed_ids_repeats_ties_and_denials(
    seed, k, exclude, denied, per_user, never, levels, prefix
):
    first, rng = drawn(seed), np.random.default_rng(seed)
    table = rng.normal(size=(9, 9)) if levels is None else rng.integers(0, levels, (9, 9)).astype(float)
    table[rng.random((9, 9)) < never] = -np.inf
    orders = rng.permutation(9), rng.permutation(12)
    straight = renumbered(first, np.arange(9), np.arange(12), prefix)
    model = Wired(table)
    model.bind(Context(9, straight.items, straight.train))
    deny: Any = [f"{prefix}i{one}" for one in denied]
    if per_user:
        deny = {f"{prefix}u{user}": deny[user % 3 :: 3] for user in range(12)}
    for split in (straight, renumbered(first, *orders, prefix)):
        agree(model, model, split, k, exclude, deny)


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("exclude", ["history", "none"])
def test_evaluated_is_served_by_model_loaded_run_and_bundle(seed, exclude, tmp_path):
    first = drawn(seed, users=40, items=20)
    model = rs.Recommender(
        items=rs.IdItems(8),
        encoder=rs.SASRec(dim=8, num_layers=1, num_heads=1, max_length=4),
        objective=rs.FullSoftmax(),
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        rs.fit(model, first, epochs=1, folder=tmp_path / "run", progress=False, seed=seed)
        loaded = rs.load_run(tmp_path / "run")
        bundle = rs.export(model, tmp_path / "bundle", index="exact")
    rng = np.random.default_rng(seed)
    other = renumbered(first, rng.permutation(20), rng.permutation(40))
    for split in (first, other):
        for served, ranker in ((model, model), (loaded, loaded), (bundle, bundle.model)):
            agree(ranker, served, split, 5, exclude, ["i3", "i7"])
