"""Items by their features: vectors by hand, learning what follows a genre, cold items, saving, going on, adding."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

import recsys as rs
from recsys.errors import DataError, DataWarning
from recsys.features.features import Features
from recsys.protocols import Change, Context
from recsys.recommenders.composed import Recommender
from recsys.storage.parts import describe
from recsys.testing import NUM_ITEMS, check_items, toy_context

DIM, GENRES, EACH, COLD = 16, 5, 8, 2
KINDS = {"genre": "category", "tags": "list", "price": "number"}
ITEMS = [f"{genre}-{number}" for genre in range(GENRES) for number in range(EACH)]


def table() -> pl.DataFrame:
    """Item table: a genre, its number among the tags and a price, some of it missing."""
    genre = [f"genre {one[0]}" for one in ITEMS]
    tags = [[] if number % 7 == 6 else ["any", f"tag {number % 3}"] for number in range(len(ITEMS))]
    price = [None if number % 9 == 8 else 10.0 * number for number in range(len(ITEMS))]
    return pl.DataFrame({"item_id": ITEMS, "genre": genre, "tags": tags, "price": price})


def log(users: int = 300, long: int = 8, seed: int = 0, cold: bool = False) -> pl.DataFrame:
    """Users go from genre to genre in a ring, to any item of it; the last ``COLD`` items of a genre only in the end."""
    rng = np.random.default_rng(seed)
    genre = (rng.integers(0, GENRES, (users, 1)) + np.arange(long)) % GENRES
    number = rng.integers(0, EACH - COLD, (users, long))
    number[:, -1] = rng.integers(EACH - COLD if cold else 0, EACH, users)
    items = [f"{one}-{other}" for one, other in zip(genre.flatten(), number.flatten(), strict=True)]
    return pl.DataFrame(
        {"user": np.repeat(np.arange(users), long), "item": items, "time": np.tile(np.arange(long), users) + 10**9}
    )


def split_of(events: pl.DataFrame, items: pl.DataFrame | None = None) -> rs.Split:
    kinds = {"genre": "category"}
    described = rs.read_items(table() if items is None else items, kinds=kinds)
    return rs.Dataset.scan(events, time="time", items=described).split(rs.LeaveLast(), audit=False)


@pytest.fixture(scope="module")
def split() -> rs.Split:
    return split_of(log(cold=True))


def context_of(split: rs.Split) -> Context:
    return Context(split.num_items, split.items, split.train, item_features=split.item_features)


def toy(**more: Any) -> Context:
    """The toy data with features of their items."""
    rows = np.arange(NUM_ITEMS + 1)
    values = {
        "genre": ["", *(f"g{row % 4}" for row in rows[1:])],
        "tags": [[], *([f"t{one}" for one in range(row % 3)] for row in rows[1:])],
        "price": [None, *(None if row % 5 == 0 else float(row) for row in rows[1:])],
    }
    plain = toy_context()
    return Context(
        NUM_ITEMS, plain.vocabulary, plain.training, item_features=Features.of(values, KINDS), users=plain.users, **more
    )


def bound(items: Any, context: Context) -> Any:
    torch.manual_seed(0)
    items.bind(context)
    return items


def model_of(items: Any, dim: int = DIM) -> Recommender:
    return Recommender(items, rs.SASRec(dim, num_layers=1, dropout=0.0, max_length=8), rs.FullSoftmax())


def test_feature_items_conform() -> None:
    for columns in (KINDS, {"genre": "category"}, {"price": "number"}, {"tags": "list"}):
        for more in ({}, {"extra": 2}, {"scale": False}):
            check_items(rs.FeatureItems(columns, DIM, **more), toy())
    check_items(rs.SumItems([rs.IdItems(DIM), rs.FeatureItems(KINDS, DIM)]), toy())


def test_vectors_of_each_kind_by_hand() -> None:
    items = bound(rs.FeatureItems(KINDS, dim=2), toy())
    items.column2_scale = torch.tensor([4.0, 2.0])
    with torch.no_grad():
        items.column0.copy_(torch.tensor([[1.0, 1], [10, 0], [20, 0], [30, 0], [40, 0]]))  # missing, g0 .. g3
        items.column1.copy_(torch.tensor([[3.0, 3], [100, 0], [300, 0]]))  # none, t0, t1
        items.column2.copy_(torch.tensor([[0.5, 0.5], [0, 1]]))  # missing, slope
    found = items.output(torch.tensor([[0, 1, 2], [3, 5, 30]]))
    expected = [
        [[0, 0], [20 + 100, 0 - 1.5], [30 + 200, -1.0]],  # tags of item 2 are t0 and t1
        [[40 + 3, 3 - 0.5], [20 + 200 + 0.5, 0.5], [30 + 3 + 0.5, 3.5]],
    ]
    torch.testing.assert_close(found, torch.tensor(expected))
    torch.testing.assert_close(items.embed(torch.tensor(5)), found[1, 1] * 2**0.5)
    with torch.no_grad():
        items.column2_values[1] = 1e9
        assert items.output(torch.tensor(1))[1] == 10.0  # far from the mean a number counts no further


def test_numbers_are_scaled_by_what_training_saw_and_new_categories_begin_at_zero(split: rs.Split) -> None:
    items = bound(rs.FeatureItems(KINDS, DIM), context_of(split))
    seen = split.train.item_counts() > 0
    assert 0 < int((~seen[1:]).sum()) <= GENRES * COLD
    prices = split.item_features["price"].values[seen]
    prices = prices[~np.isnan(prices)]
    torch.testing.assert_close(
        items.column2_scale, torch.tensor([prices.mean(), prices.std()], dtype=torch.float32), rtol=1e-4, atol=1e-4
    )
    rare = table().with_columns(genre=pl.Series(["new" if one.endswith("-7") else "old" for one in ITEMS]))
    events = log(cold=True)
    cold = bound(rs.FeatureItems({"genre": "category"}, DIM), context_of(split_of(events, rare)))
    new, old = cold._categories("column0").rows(["new", "old"])
    assert not bool(cold.column0[int(new)].any()) and bool(cold.column0[int(old)].all())


def test_a_genre_is_learned_and_places_items_that_training_never_saw(split: rs.Split, tmp_path: Path) -> None:
    """The next item is of the next genre; the targets of the test are items of which training knows the genre alone."""
    rates = {}
    for name, make in {
        "ids": lambda: rs.IdItems(DIM),
        "both": lambda: rs.SumItems([rs.IdItems(DIM), rs.FeatureItems({"genre": "category"}, DIM)]),
        "features": lambda: rs.FeatureItems(KINDS, DIM),
    }.items():
        model = model_of(make())
        rs.fit(
            model, split, epochs=12, batch_size=64, learning_rate=0.01, exclude="none", validate_every=0,
            folder=tmp_path / name, progress=False,
        )  # fmt: skip
        scores = model.scores([["0-0", "1-1", "2-2"]])[0]
        assert split.items.raw(np.argsort(-scores)[:5] + 1)[0].startswith("3-")
        cold = [f"{genre}-{number}" for genre in range(GENRES) for number in range(EACH - COLD, EACH)]
        found = model.recommend([["0-0", "1-1", "2-2"]], k=COLD, allow=cold, exclude="none").items[0]
        rates[name] = float(np.mean([one.startswith("3-") for one in found]))
    assert rates["both"] == rates["features"] == 1.0
    assert rates["ids"] < 1.0


def test_a_saved_model_ranks_without_the_item_table(split: rs.Split, tmp_path: Path) -> None:
    model = model_of(rs.SumItems([rs.IdItems(DIM), rs.FeatureItems(KINDS, DIM)]))
    rs.fit(model, split, epochs=1, folder=tmp_path / "run", progress=False)
    rs.export(model, tmp_path / "bundle", split=split)
    histories = [["0-0", "1-1"], ["4-2"]]
    expected = model.scores(histories)
    for loaded in (rs.load_run(tmp_path / "run"), rs.Bundle.load(tmp_path / "bundle").model):
        np.testing.assert_allclose(loaded.scores(histories), expected, rtol=1e-4, atol=1e-5)
        assert describe(loaded) == describe(model)
        part = loaded.items.tables[1]
        assert part._categories("column0").ids.tolist() == [f"genre {one}" for one in range(GENRES)]
        part.check_split(split)
    other = split_of(log(), table().with_columns(genre=pl.lit("one")))
    with pytest.raises(DataError, match="other categories"):
        model.items.tables[1].check_split(other)  # type: ignore[attr-defined]


def test_items_are_added_by_their_features(split: rs.Split, tmp_path: Path) -> None:
    model = model_of(rs.FeatureItems(KINDS, DIM))
    rs.fit(model, split, epochs=2, folder=tmp_path / "run", progress=False)
    rs.export(model, tmp_path / "bundle", split=split)
    like, count = "2-3", split.num_items
    row = ITEMS.index(like)
    with pytest.raises(DataError, match="features="):
        model.add_items(["new"])
    with pytest.raises(DataError, match=r"1 items .* 2 values"):
        model.add_items(["new"], features={"genre": ["a", "b"]})
    given = {"genre": ["genre 2", "genre 9"], "tags": [table()["tags"][row].to_list(), []], "price": [10.0 * row, None]}
    for one in (model, rs.load_run(tmp_path / "run"), rs.Bundle.load(tmp_path / "bundle")):
        with pytest.warns(DataWarning, match=r"2 further items: 1 values of 'genre' are .* such as 'genre 9'"):
            one.add_items(["new", "odd"], features=given)
        ranked = one if isinstance(one, Recommender) else one.model
        assert ranked.num_items == ranked.items.num_items == count + 2
        vectors = ranked.item_vectors()
        np.testing.assert_array_equal(vectors[count], vectors[int(split.items.rows([like])[0]) - 1])
        nothing = sum(getattr(ranked.items, f"column{at}")[0] for at in range(3))
        np.testing.assert_allclose(vectors[count + 1], nothing.detach().numpy(), rtol=1e-6)
        assert [found for found, _ in ranked.similar([like], 1)[0]] == ["new"]
        assert one.recommend([["new", "1-1"]], k=3).items
        with pytest.warns(DataWarning, match=r"no column 'genre', which the model reads \(given: gnere, tags, price\)"):
            one.add_items(["typo"], features={"gnere": ["genre 2"], "tags": [[]], "price": [1.0]})


def test_a_learned_model_goes_on_with_other_items_and_categories(split: rs.Split) -> None:
    model = model_of(rs.FeatureItems(KINDS, DIM))
    rs.fit(model, split, epochs=1, progress=False)
    items: Any = model.items
    before = {name: value.detach().clone() for name, value in items.state_dict().items()}
    grown = table().with_columns(genre=pl.Series(["aaa" if one == "0-0" else f"genre {one[0]}" for one in ITEMS]))
    rs.fit(model, split_of(log(seed=1), grown), epochs=0, progress=False)
    assert items._categories("column0").ids.tolist()[:2] == ["aaa", "genre 0"]
    torch.testing.assert_close(items.column0[2:].detach(), before["column0"][1:])
    torch.testing.assert_close(items.column2_scale, before["column2_scale"])
    torch.testing.assert_close(items.column2.detach(), before["column2"])
    rs.fit(model, split, epochs=1, progress=False)
    assert np.isfinite(model.item_vectors()).all()


def test_carry_leaves_a_run_that_goes_on_as_it_is() -> None:
    items = bound(rs.FeatureItems(KINDS, DIM), toy())
    before = {name: value.clone() for name, value in items.state_dict().items()}
    items.carry(before, Change(True, np.arange(NUM_ITEMS + 1), toy()))
    assert all(torch.equal(value, before[name]) for name, value in items.state_dict().items())


def test_the_vectors_are_made_once_per_evaluation_and_anew_after_a_change(
    split: rs.Split, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = model_of(rs.SumItems([rs.IdItems(DIM), rs.FeatureItems(KINDS, DIM)]))
    rs.fit(model, split, epochs=1, progress=False)
    items: Any = model.items.tables[1]  # type: ignore[attr-defined]
    sizes: list[int] = []
    make = items._of
    monkeypatch.setattr(items, "_of", lambda ids: (sizes.append(len(ids)), make(ids))[1])
    rs.evaluate(model, split.test, memory=100_000, progress=False)
    before = model.item_vectors()
    assert sizes.count(split.num_items + 1) == 1
    with torch.no_grad():
        items.column0.data.mul_(2.0)  # leaves no trace in the version counter
    after = model.item_vectors()
    assert not np.allclose(before, after)
    expected = make(torch.arange(split.num_items + 1)) + model.items.tables[0].weight  # type: ignore[attr-defined]
    np.testing.assert_allclose(after, expected[1:].detach().numpy(), rtol=1e-5, atol=1e-6)


def test_a_mask_gets_its_row_and_only_that() -> None:
    encoder = rs.BERT4Rec(DIM, num_layers=1, max_length=8)
    model = Recommender(rs.FeatureItems(KINDS, DIM), encoder, rs.FullSoftmax(), rs.MaskedItems())
    model.bind(toy())
    items: Any = model.items
    assert items.extra == 1
    assert torch.equal(items.output(torch.tensor([NUM_ITEMS + 1]))[0], items.rows[0])
    with pytest.raises(ValueError, match="reserve"):
        items.output(torch.tensor([NUM_ITEMS + 2]))
    with pytest.raises(ValueError, match="reserve"):
        bound(rs.FeatureItems(KINDS, DIM), toy()).output(torch.tensor([NUM_ITEMS + 1]))


def test_what_is_wrong_is_said(split: rs.Split) -> None:
    for columns, word in (({}, "at least one"), ({"genre": "text"}, "TextItems"), ("genre", "at least one")):
        with pytest.raises(ValueError, match=word):
            rs.FeatureItems(columns, DIM)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="dim must be"):
        rs.FeatureItems(KINDS, 0)
    with pytest.raises(DataError, match="no column 'gender'"):
        bound(rs.FeatureItems({"gender": "category"}, DIM), context_of(split))
    with pytest.raises(DataError, match="is a category in these data"):
        bound(rs.FeatureItems({"genre": "number"}, DIM), context_of(split))
    with pytest.raises(DataError, match="no item table"):
        bound(rs.FeatureItems(KINDS, DIM), toy_context())
