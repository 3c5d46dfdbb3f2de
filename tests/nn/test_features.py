"""Features of events and users as inputs: what they add, what is learned with them, saved, loaded, asked for."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

import recsys as rs
from recsys.data.batch import Batch
from recsys.errors import DataError, DataWarning
from recsys.protocols import Change, Context
from recsys.recommenders.features import coded

N, USERS, LONG, DIM = 20, 300, 8, 32
STEP = {"next": 1, "jump": 7}


def log(seed: int = 0, names: dict[str, int] | None = None, users: int = USERS) -> pl.DataFrame:
    """Users who walk over a ring of items; how far they go next is told by the button that they pressed."""
    rng = np.random.default_rng(seed)
    steps = names or STEP
    button = rng.choice(list(steps), (users, LONG))
    size = np.vectorize(steps.get)(button)
    start = rng.integers(0, N, (users, 1))
    place = (start + np.cumsum(np.concatenate([np.zeros_like(start), size[:, :-1]], 1), 1)) % N
    return pl.DataFrame(
        {
            "user": np.repeat(np.arange(users), LONG),
            "item": [f"i{one}" for one in place.flatten()],
            "time": np.tile(np.arange(LONG), users) + 1_700_000_000,
            "button": button.flatten(),
            "size": size.flatten().astype(float),
            "tags": [[one] if one == "jump" else [] for one in button.flatten()],
        }
    )


KINDS = {"button": "category", "size": "number", "tags": "list"}


def split_of(table: pl.DataFrame, **more: object) -> rs.Split:
    return rs.Dataset.scan(table, time="time", event_columns=KINDS, **more).split(rs.LeaveLast(), audit=False)


@pytest.fixture(scope="module")
def split() -> rs.Split:
    return split_of(log())


@pytest.fixture(scope="module")
def learned(split, tmp_path_factory) -> tuple[rs.Recommender, Path]:
    """A model that reads all three kinds, and its run folder."""
    folder = tmp_path_factory.mktemp("learned") / "run"
    return train(split, rs.FeatureInputs(KINDS, dim=DIM), folder=folder), folder


def model_of(features: rs.FeatureInputs | None, dim: int = DIM) -> rs.Recommender:
    encoder = rs.SASRec(dim, num_layers=1, max_length=LONG, dropout=0.0, hidden=64, features=features)
    return rs.Recommender(rs.IdItems(dim), encoder, rs.FullSoftmax())


def train(split: rs.Split, features: rs.FeatureInputs | None, folder=None, epochs: int = 25) -> rs.Recommender:
    model = model_of(features)
    rs.fit(model, split, epochs=epochs, batch_size=64, learning_rate=0.01, exclude="none", folder=folder)
    return model


def hits(model: rs.Recommender, split: rs.Split) -> float:
    return float(rs.evaluate(model, split.test, exclude="none", metrics=["hr@1"]).mean("hr@1"))


def bound(features: rs.FeatureInputs, split: rs.Split) -> rs.FeatureInputs:
    features.bind(
        Context(split.num_items, split.items, split.train, user_features=split.user_features, users=split.users)
    )
    return features


def test_vectors_of_each_kind_by_hand(split):
    part = bound(rs.FeatureInputs(KINDS, dim=2), split)
    part.event1_scale = torch.tensor([4.0, 2.0])
    with torch.no_grad():
        part.event0.copy_(torch.tensor([[1.0, 1], [10, 0], [0, 10]]))  # missing, jump, next
        part.event1.copy_(torch.tensor([[5.0, 5], [1, 2]]))  # missing, slope
        part.event2.copy_(torch.tensor([[3.0, 3], [100, 0]]))  # none, jump
    ids = torch.tensor([[1, 2, 3], [4, 0, 0]])
    features = {
        "button": torch.tensor([[1, 0, 2], [1, 0, 0]]),
        "size": torch.tensor([[6.0, torch.nan, 0.0], [4.0, 0, 0]]),
        "tags": torch.tensor([[[1, 1], [0, 0], [1, 0]], [[0, 0], [0, 0], [0, 0]]]),
    }
    batch = Batch(torch.arange(2), torch.arange(2), ids, torch.tensor([3, 1]), features=features)
    wanted = [[10 + 1 + 100, 0 + 2], [1 + 5 + 3, 1 + 5 + 3], [0 - 2 + 100, 10 - 4], [10 + 3, 0 + 3]]
    assert part(batch).tolist() == wanted


def test_the_next_item_is_learned_with_the_feature_it_depends_on_and_not_without(split):
    assert hits(train(split, None), split) < 0.65
    for columns in ({"button": "category"}, {"size": "number"}, {"tags": "list"}):
        assert hits(train(split, rs.FeatureInputs(columns, dim=DIM)), split) > 0.85


def test_saved_exported_loaded_and_asked_with_raw_values(split, learned, tmp_path):
    model, folder = learned
    found = hits(model, split)
    again = rs.load_run(folder)
    assert hits(again, split) == found > 0.85
    rs.export(model, tmp_path / "bundle", split=split)
    bundle = rs.Bundle.load(tmp_path / "bundle")
    asked = [
        rs.History(["i3"], features={"button": [name], "size": [size], "tags": [[name] if size > 1 else []]})
        for name, size in STEP.items()
    ]
    for one in (model, again, bundle):
        assert one.recommend(asked, k=1).items == [["i4"], ["i10"]]


def test_missing_and_unknown_features_of_a_request_are_counted(split):
    model = train(split, rs.FeatureInputs({"button": "category"}, dim=DIM), epochs=1)
    some = [
        rs.History(["i3", "i4"], features={"button": ["next", "fridge"]}),
        rs.History(["i3"], features={"place": ["x"]}),
        ["i5"],
    ]
    with pytest.warns(DataWarning) as told:
        scores = model.scores(some)
    texts = [str(one.message) for one in told]
    assert any("2 of 3 histories have no feature 'button'" in text for text in texts)
    assert any("1 of 2 values of 'button'" in text and "'fridge'" in text for text in texts)
    assert any("features place are not read by any part of this model" in text for text in texts)
    assert all(one.filename == __file__ for one in told)
    plain = [
        rs.History(["i3", "i4"], features={"button": ["next", None]}),
        rs.History(["i3"], features={"button": [None]}),
    ]
    np.testing.assert_allclose(model.scores(plain), scores[:2], rtol=1e-4, atol=1e-5)
    with pytest.raises(DataError, match="one value per item of a history: 2 are expected, found 1"):
        model.recommend([rs.History(["i3", "i4"], features={"button": ["next"]})])
    with pytest.raises(DataError, match=r"the feature 'size' of a history: a number is expected.*'far'"):
        coded([rs.History(["i3"], features={"size": ["far"]})], {"size": rs.Column.of("number", [])}, {})


def test_items_that_are_unknown_take_their_features_with_them(split):
    model = train(split, rs.FeatureInputs({"button": "category"}, dim=DIM), epochs=1)
    whole = [rs.History(["i3", "new", "i4"], features={"button": ["next", "jump", "jump"]})]
    left = [rs.History(["i3", "i4"], features={"button": ["next", "jump"]})]
    np.testing.assert_allclose(model.scores(whole), model.scores(left), rtol=1e-4, atol=1e-5)


def test_a_model_with_features_starts_as_the_one_without(split):
    context = Context(split.num_items, split.items, split.train, seed=3)
    plain, more = model_of(None), model_of(rs.FeatureInputs(KINDS, dim=DIM))
    plain.bind(context)
    more.bind(context)
    for name, value in plain.state_dict().items():
        assert torch.equal(value, more.state_dict()[name]), name
    batch = split.test.batch(np.arange(5), LONG, more.needs)
    assert torch.equal(plain.vectors(batch), more.vectors(batch))


def test_columns_of_users(tmp_path):
    table = log().with_columns(button=pl.lit("x"))
    steps = np.random.default_rng(1).integers(0, 2, USERS)
    walks = (np.arange(USERS)[:, None] + np.arange(LONG) * np.where(steps == 1, 7, 1)[:, None]) % N
    table = table.with_columns(item=pl.Series([f"i{one}" for one in walks.flatten()]))
    people = pl.DataFrame({"user": np.arange(USERS), "habit": ["jump" if one else "next" for one in steps]})
    users = rs.read_users(people, kinds={"habit": "category"})
    split = split_of(table, users=users)
    model = train(split, rs.FeatureInputs(users={"habit": "category"}, dim=DIM))
    batch = split.train.gather(np.array([0, 1]), needs=model.needs)
    assert batch.user_features["habit"].tolist() == (steps[:2] * -1 + 2).tolist()
    asked = [rs.History(["i3"], features={"habit": habit}) for habit in ("next", "jump")]
    near, far = model.scores(asked)[:, split.items.rows(["i4", "i10"]) - 1]
    assert near[0] > near[1] and far[1] > far[0]
    with pytest.raises(DataError, match=r"reads the column 'habit' of users, and these data have none.*read_users"):
        train(split_of(table), rs.FeatureInputs(users={"habit": "category"}, dim=DIM))


def test_data_that_lack_a_column_or_have_another_kind_are_refused(split):
    with pytest.raises(DataError, match=r"reads the event column 'place', and these data keep button, size, tags"):
        train(split, rs.FeatureInputs({"place": "category"}, dim=DIM))
    with pytest.raises(DataError, match="'size' is a number in these data, and FeatureInputs reads a category"):
        train(split, rs.FeatureInputs({"size": "category"}, dim=DIM))
    with pytest.raises(ValueError, match="features have dim=8, the encoder dim=32"):
        model_of(rs.FeatureInputs({"size": "number"}, dim=8))
    with pytest.raises(ValueError, match="one of category, number, list, found 'text'"):
        rs.FeatureInputs({"size": "text"})
    with pytest.raises(ValueError, match="at least one column"):
        rs.FeatureInputs()


def test_categories_of_another_split_are_matched_by_name(learned):
    model, _ = learned
    rows = log(seed=9)
    same = split_of(rows)
    extra = pl.DataFrame(
        {**{name: rows[name][:2] for name in rows.columns}, "user": [9999, 9999], "button": ["a", "z"]}
    )
    other = split_of(pl.concat([rows, extra.select(rows.columns)]))  # codes of buttons are others
    keep = other.test.subset(other.users.raw(other.test.users) != 9999)
    assert other.prepared.features["button"].num_categories == 4
    found = [rs.evaluate(model, part, exclude="none", metrics=["hr@1"]).mean("hr@1") for part in (same.test, keep)]
    assert found[0] == pytest.approx(found[1], abs=0.01) and found[0] > 0.85
    wrong = rs.Dataset.scan(rows, time="time", event_columns={**KINDS, "size": "category"})
    with pytest.raises(DataError, match="'size' as a number, and in the split it is a category"):
        rs.evaluate(model, wrong.split(rs.LeaveLast(), audit=False).test)


def test_a_bundle_is_evaluated_with_the_features_of_the_histories(split, learned, tmp_path):
    model, _ = learned
    bundle = rs.export(model, tmp_path / "bundle", split=split)
    lists = rs.evaluate(bundle, split.test, exclude="none", metrics=["hr@1"])
    assert lists.mean("hr@1") == pytest.approx(hits(model, split), abs=0.01)


def test_training_goes_on_with_the_categories_that_were_there(split):
    model = train(split, rs.FeatureInputs(KINDS, dim=DIM), epochs=3)
    before = {name: value.clone() for name, value in model.tensors().items()}
    later = split_of(log(seed=5, names={"hop": 2, "jump": 7, "next": 1}))
    part = model.encoder.features
    context = Context(later.num_items, later.items, later.train)
    own = {name.removeprefix("encoder.features."): one for name, one in before.items() if "features" in name}
    part.bind(context)
    part.carry(own, Change(False, np.arange(later.num_items + 1), context))
    assert torch.equal(part.event0[[0, 2, 3]], own["event0"]) and not part.event0[1].any()  # missing, jump, next; hop
    assert torch.equal(part.event1_scale, own["event1_scale"])


def test_a_learned_model_goes_on_with_new_categories_and_is_whole_again_after_a_failure(learned):
    model = copy.deepcopy(learned[0])
    later = split_of(log(seed=5, names={"hop": 2, "jump": 7, "next": 1}))
    before = {name: value.clone() for name, value in model.tensors().items()}
    with pytest.raises(DataError, match="reads a"):
        other = rs.Dataset.scan(log(), time="time", event_columns={**KINDS, "size": "category"})
        rs.fit(model, other.split(rs.LeaveLast(), audit=False), epochs=1, batch_size=64)
    for name, value in model.tensors().items():
        assert torch.equal(value, before[name]), name
    rs.fit(model, later, epochs=1, batch_size=64, learning_rate=1e-9, exclude="none")
    assert hits(model, later) > 0.4  # two of three buttons are those it knows, under other codes


def test_bert4rec_reads_them_too(split):
    encoder = rs.BERT4Rec(DIM, num_layers=1, max_length=LONG, dropout=0.0, features=rs.FeatureInputs(KINDS, dim=DIM))
    model = rs.Recommender(rs.IdItems(DIM, extra=1), encoder, rs.FullSoftmax(), rs.MaskedItems(0.3))
    rs.fit(model, split, epochs=1, batch_size=64)
    asked = [rs.History(["i3"], features={"button": ["next"], "size": [1.0], "tags": [[]]})]
    assert np.isfinite(model.scores(asked)).all()
