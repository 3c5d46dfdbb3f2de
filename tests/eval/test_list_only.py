"""Recommenders that only give lists: metrics to K as of exact ranks, and every fault of a list is told."""

from __future__ import annotations

import warnings
from dataclasses import replace
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

import recsys as rs
from recsys.data.prepared import Prepared
from recsys.data.split import Split
from recsys.data.splitters import LeaveLast
from recsys.errors import DataError
from recsys.eval.report import Report
from recsys.eval.sampled import evaluate_sampled
from recsys.ids.vocabulary import Vocabulary
from recsys.pages.run import write_html
from recsys.recommenders.base import Ranker, Recommends, Scores
from recsys.serve.files import recommend_file

pytestmark = pytest.mark.filterwarnings("ignore::recsys.errors.DataWarning")

ITEMS, USERS = 25, 80
QUIET: dict[str, Any] = {"progress": False}


def make_split(text: bool = True, seed: int = 0) -> Split:
    """Random histories, with repeats among them and some users whose history is empty; one item is cold."""
    draw = np.random.default_rng(seed)
    lengths = draw.integers(1, 9, USERS)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    items = (draw.zipf(1.6, lengths.sum()) % (ITEMS - 1) + 1).astype(np.int32)
    items[(offsets[1:] - 1)[lengths > 4]] = ITEMS  # which training never saw
    prepared = Prepared(items, offsets, ITEMS, times=np.arange(len(items)) * 3_600_000, order="time")
    ids = np.array([f"i{row}" for row in range(1, ITEMS + 1)], object) if text else np.arange(100, 100 + ITEMS)
    people = np.array([f"u{row}" for row in range(USERS)], object)
    return Split.of(prepared, LeaveLast(), Vocabulary(ids, 1), Vocabulary(people, 0))


class OnlyLists:
    """Another recommender behind ``recommend`` alone, as one that lives elsewhere; lists of raw ids, or ``TopK``."""

    def __init__(self, model: Any, plain: bool = True) -> None:
        self.hidden, self.plain = model, plain
        self.asked: list[tuple[list[Any], int]] = []

    def recommend(self, histories: Any, k: int = 10, exclude: str = "history", allow: Any = None, deny: Any = None):
        self.asked.append((list(histories), k))
        top = self.hidden.recommend(histories, k, exclude, allow, deny)
        return top.items if self.plain else top


@pytest.fixture(scope="module")
def split() -> Split:
    return make_split()


@pytest.fixture(scope="module")
def markov(split: Split) -> Any:
    """No two items get the same score."""

    class Untied(rs.Markov):
        def score(self, batch: Any) -> torch.Tensor:
            return super().score(batch).double() + torch.arange(ITEMS) / 1e4

    model = Untied()
    rs.fit(model, split, progress=False)
    return model


def test_the_two_contracts_tell_who_scores_and_who_recommends(markov: Any) -> None:
    class Generator(Ranker):
        def recommend(self, *given: Any, **more: Any) -> Any: ...

    assert isinstance(markov, Scores) and isinstance(markov, Recommends)
    assert isinstance(Generator(), Recommends) and not isinstance(Generator(), Scores)
    assert isinstance(OnlyLists(markov), Recommends) and not isinstance(OnlyLists(markov), Scores)
    with pytest.raises(NotImplementedError, match="no score"):
        Generator().score_safely(None)  # type: ignore[arg-type]


ASKED: dict[str, dict[str, Any]] = {
    "plain": {},
    "repeats": {"exclude": "none"},
    "papers": {"exclude": "history-except-targets"},
    "denied": {"deny": ["i1", "i3", "nobody"]},
    "denied to each": {"deny": {f"u{user}": [f"i{user % 7 + 1}", "i2"] for user in range(0, USERS, 3)}},
    "papers, denied": {"exclude": "history-except-targets", "deny": ["i1", "i4"]},
    "candidates": {"candidates": [f"i{row}" for row in range(1, 16)]},
    "cold": {"candidates": "cold", "exclude": "none"},
    "listed": {"candidates": {f"u{user}": [f"i{user % 5 + 1}", "i6", "i7"] for user in range(60)}},
    "listed, denied": {
        "candidates": {f"u{user}": [f"i{user % 5 + 1}", "i6", "i7", "i8"] for user in range(60)}, "deny": ["i6"],
    },
    "some": {"sample": 30, "seed": 2},
}  # fmt: skip


@pytest.mark.parametrize("plain", [True, False])
@pytest.mark.parametrize("case", ASKED)
def test_lists_give_the_numbers_of_exact_ranks_to_k(markov: Any, split: Split, case: str, plain: bool) -> None:
    given = {"k": (1,) if case == "cold" else (1, 3, 8), **QUIET, **ASKED[case]}
    exact, found = (rs.evaluate(one, split.test, **given) for one in (markov, OnlyLists(markov, plain)))
    longest = max(given["k"])
    assert exact.columns["tied_targets"].sum() == 0 and exact.list_only is None and found.list_only == longest
    for name, values in exact.columns.items():
        assert np.array_equal(values, found.columns[name]), name
    assert exact.aggregates == found.aggregates and exact.metrics == found.metrics
    assert {k: shown.tolist() for k, shown in exact.exposure.items()} == {
        k: shown.tolist() for k, shown in found.exposure.items()
    }
    own = {"model", "list_only", "unlisted_targets", "trained_on"}
    assert {key: value for key, value in exact.meta.items() if key not in own} == {
        key: value for key, value in found.meta.items() if key not in own
    }
    hits = int(found.per_user(f"hr@{longest}").sum())
    assert found.meta["unlisted_targets"] == found.users - found.meta["unreachable_targets"] - hits


def test_ids_that_are_ints_and_users_without_a_history(markov: Any) -> None:
    split = make_split(text=False)
    begins = np.where(np.arange(USERS) % 4 == 0, split.prepared.offsets[:-1], split.train_stop)
    split = replace(split, train_stop=begins)
    model = rs.Popularity()
    rs.fit(model, split, progress=False)
    assert (split.valid.history_lengths == 0).any()
    outside = OnlyLists(model)
    exact, found = (rs.evaluate(one, split.valid, k=ITEMS, **QUIET) for one in (model, outside))
    assert exact.users == found.users == len(split.valid)
    empty = found.columns["history_length"] == 0
    untied = exact.columns["tied_targets"] == 0
    for name in exact.metrics:
        assert np.allclose(exact.columns[name][untied], found.columns[name][untied]), name
    assert found.meta["unlisted_targets"] == 0 and empty.any()
    histories = outside.asked[0][0]
    assert all(type(item) is int for history in histories for item in history)
    with pytest.raises(ValueError, match="larger than the catalogue"):
        rs.evaluate(outside, split.valid, k=ITEMS + 1, **QUIET)


def test_users_are_asked_for_in_batches_with_all_that_is_known_of_them(markov: Any, split: Split, monkeypatch) -> None:
    outside = OnlyLists(markov)
    rs.evaluate(outside, split.test, metrics=["ndcg@5", "hr@3"], **QUIET)
    assert [k for _, k in outside.asked] == [5] * len(outside.asked) and len(outside.asked) <= 2
    history = max(outside.asked[0][0], key=len)
    user = split.users.rows([history.user])[0]
    at = int(np.flatnonzero(split.test.users == user)[0])
    start, stop = split.test.history_start[at], split.test.target_start[at]
    assert list(history) == split.items.raw(split.prepared.items[start:stop]).tolist()
    assert history.times.tolist() == split.prepared.times[start:stop].tolist()
    assert history.query_time == split.prepared.times[stop] and history[-1] == history.items[-1]
    monkeypatch.setattr("recsys.eval.list_only.USERS", 7)
    several = OnlyLists(markov)
    again = rs.evaluate(several, split.test, metrics=["ndcg@5", "hr@3"], **QUIET)
    assert len(several.asked) == 10 and max(len(one) for one, _ in several.asked) == 7
    assert again.means() == rs.evaluate(outside, split.test, metrics=["ndcg@5", "hr@3"], **QUIET).means()


def top_of(split: Split, rows: Any, scores: Any) -> rs.TopK:
    rows = np.asarray(rows)
    nothing = np.zeros(len(rows), np.int64)
    return rs.TopK(rows, np.asarray(scores, np.float32), nothing, nothing > 0, split.items)


FAULTS = {
    "twice": (lambda own: ["i1", "i2", "i1"], ValueError, "'i1' twice"),
    "unknown": (lambda own: ["i1", "stranger"], DataError, "'stranger'"),
    "another type": (lambda own: [3, 4], DataError, "3"),
    "nothing known": (lambda own: [None], DataError, "None"),
    "too long": (lambda own: [f"i{row}" for row in range(1, 8)], ValueError, "7 items where at most k=3"),
    "no list": (lambda own: "i1", TypeError, "'i1'"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_list_that_makes_no_sense_is_told_with_its_user(split: Split, fault: str) -> None:
    make, kind, match = FAULTS[fault]

    class Odd:
        def recommend(self, histories: Any, k: int, exclude: str) -> Any:
            return [make(list(history)) if at == 2 else [] for at, history in enumerate(histories)]

    with pytest.raises(kind, match=match) as caught:
        rs.evaluate(Odd(), split.test, k=3, exclude="none", **QUIET)
    assert "Odd.recommend" in str(caught.value)


@pytest.mark.parametrize(
    ("given", "match"),
    [({}, "in the history"), ({"deny": ["i9"]}, "denied"), ({"candidates": ["i1", "i2", "i3"]}, "not a candidate")],
)
def test_what_may_not_be_shown_is_told(split: Split, given: dict[str, Any], match: str) -> None:
    class Odd:
        def recommend(self, histories: Any, k: int, exclude: str, allow: Any = None, deny: Any = None) -> Any:
            return [["i9"] if given else list(history)[-1:] for history in histories]

    with pytest.raises(ValueError, match=match) as caught:
        rs.evaluate(Odd(), split.test, k=3, **({"exclude": "none"} if given else {}), **given, **QUIET)
    assert "user 'u" in str(caught.value)


@pytest.mark.parametrize(
    ("scores", "match"),
    [([3, np.nan, 1], "NaN"), ([1, 2, 0], "rise.*1, 2"), ([np.inf, 1, 0], "infinite"), ([2, 1, -np.inf], "infinite")],
)
def test_scores_that_make_no_sense_are_told(split: Split, scores: list[float], match: str) -> None:
    class Odd:
        def recommend(self, histories: Any, k: int, exclude: str) -> Any:
            return top_of(split, [[3, 2, 1]] * len(histories), [scores] * len(histories))

    with pytest.raises(ValueError, match=match):
        rs.evaluate(Odd(), split.test, k=3, exclude="none", **QUIET)


def test_equal_scores_count_in_the_order_of_the_list(split: Split) -> None:
    class Level:
        def recommend(self, histories: Any, k: int, exclude: str) -> Any:
            return top_of(split, [[3, 0, 2, 1]] * len(histories), [[1.0, -np.inf, 0.5, 0.5]] * len(histories))

    report = rs.evaluate(Level(), split.test, k=4, metrics=["mrr"], exclude="none", **QUIET)
    _, target = split.test.targets(np.arange(len(split.test)))
    place = {3: 1, 2: 2, 1: 3}
    expected = [1 / place[row] if row in place else 0 for row in target.tolist()]
    assert report.per_user("mrr@4").tolist() == pytest.approx(expected)
    assert report.columns["tied_targets"].tolist() == [int(row in (1, 2)) for row in target.tolist()]
    assert "in the order of the list" in report.header() and report.meta["short_lists"] == report.users


def test_none_in_place_of_a_list_is_told(split: Split) -> None:
    class Silent:
        def recommend(self, histories: Any, k: int = 10, exclude: str = "history") -> list[None]:
            return [None for _ in histories]

    with pytest.raises(TypeError, match=r"Silent.recommend must give one list .* found None in one's place"):
        rs.evaluate(Silent(), split.test, k=3, **QUIET)


def test_a_model_that_cannot_be_asked_is_told_what_it_lacks(split: Split, markov: Any, part_of: Any) -> None:
    class Short:
        def recommend(self, histories: Any, k: int) -> Any: ...

    class Few:
        def recommend(self, histories: Any, k: int, exclude: str) -> Any:
            return []

    class Rank:
        name, at_k = "mean_rank", False

        def __call__(self, ranked: Any, k: int) -> Any:
            return ranked.sum(ranked.rank)

    with pytest.raises(TypeError, match="lacks exclude"):
        rs.evaluate(Short(), split.test, **QUIET)
    for given in ({"deny": ["i1"]}, {"exclude": "history-except-targets"}):
        with pytest.raises(TypeError, match="lacks deny"):
            rs.evaluate(Few(), split.test, **QUIET, **given)
    with pytest.raises(TypeError, match="lacks allow"):
        rs.evaluate(Few(), split.test, candidates=["i1", "i2", "i3"], **QUIET)
    with pytest.raises(ValueError, match="one list per history"):
        rs.evaluate(Few(), split.test, **QUIET)
    with pytest.raises(ValueError, match="mean_rank needs the ranks of all items"):
        rs.evaluate(OnlyLists(markov), split.test, metrics=["ndcg@3", Rank()], **QUIET)
    with pytest.raises(TypeError, match="only recommends"):
        evaluate_sampled(OnlyLists(markov), split.test)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="has none"):
        rs.evaluate(OnlyLists(markov), part_of([[1]], [[2]], 3), **QUIET)


def test_the_report_says_so_in_text_page_and_file(markov: Any, split: Split, tmp_path) -> None:
    found = rs.evaluate(OnlyLists(markov, False), split.test, k=(2, 6), **QUIET)
    assert "list only, to 6" in found.header() and "full ranking" not in found.header()
    assert f"{found.meta['unlisted_targets']:,} targets are not in the lists of 6" in found.header()
    some = rs.evaluate(OnlyLists(markov), split.test, k=2, candidates=["i1", "i2", "i3", "i4"], **QUIET)
    assert "list only, to 2, of the candidates" in some.header()
    write_html(tmp_path / "report.html", "lists", found)
    assert "list only, to 6" in (tmp_path / "report.html").read_text()
    loaded = Report.load(found.save(tmp_path / "run"))
    assert loaded.list_only == 6 and loaded.header() == found.header()
    shares = [rs.evaluate(OnlyLists(markov), split.test, k=(2, 6), rank=i, world_size=3, **QUIET) for i in range(3)]
    merged, whole = Report.merge(shares), rs.evaluate(OnlyLists(markov), split.test, k=(2, 6), **QUIET)
    assert merged.meta == whole.meta and merged.means() == whole.means()


def test_compare_takes_both_to_k_and_refuses_what_lies_deeper(markov: Any, split: Split, tmp_path) -> None:
    exact = rs.evaluate(markov, split.test, k=(5, 10, 20), **QUIET)
    lists = rs.evaluate(OnlyLists(markov), split.test, k=5, **QUIET)
    found = rs.compare(exact, lists, metrics="ndcg@5")
    assert found.find("ndcg@5").difference == 0 and "list only: OnlyLists to 5" in str(found)
    with pytest.raises(ValueError, match="OnlyLists is list only, to 5, so its ndcg@10 is unknown"):
        rs.compare(exact, lists, metrics="ndcg@10")
    with pytest.raises(ValueError, match="list only, to 5"):
        rs.compare(exact, lists)
    assert "list only" not in str(rs.compare(exact, exact))
    write_html(tmp_path / "report.html", "both", comparison=found)
    assert "list only: OnlyLists to 5" in (tmp_path / "report.html").read_text()


class Generator(Ranker):
    """Trained by a loss of its own, answers with lists: the item that its one weight says, then by number."""

    def __init__(self) -> None:
        super().__init__()
        self.max_length, self.modes = 8, set[bool]()
        self.weight = torch.nn.Parameter(torch.zeros(()))

    def loss(self, step: Any) -> dict[str, torch.Tensor]:
        return {"loss": (self.weight - 1.0) ** 2}

    def prepare(self, batch: Any, step: Any) -> Any:
        return batch

    def recommend(self, histories: Any, k: int = 10, exclude: str = "history", allow: Any = None, deny: Any = None):
        self._check(k, exclude)
        assert self.vocabulary is not None
        self.modes.add(self.training)
        items = self.vocabulary.ids.tolist()
        return [[item for item in items if item not in set(history)][:k] for history in histories]


def test_fit_validates_a_model_that_trains_and_only_recommends(split: Split) -> None:
    model = Generator()
    fitted = rs.fit(model, split, epochs=2, metric="hr@5", batch_size=32, progress=False)
    expected = rs.evaluate(model, split.valid, metrics=["hr@5"], **QUIET).mean("hr@5")
    assert [record["hr@5"] for record in fitted.history] == [expected] * 2 and expected > 0
    assert model.modes == {False} and model.training
    assert model.weight.item() != 0 and fitted.best["value"] == expected


@pytest.mark.parametrize("index", ["exact", None])
def test_a_bundle_is_evaluated_by_what_it_serves(split: Split, index: str | None, tmp_path) -> None:
    model = rs.Recommender(rs.IdItems(8), rs.SASRec(dim=8, num_layers=1, num_heads=1, max_length=6), rs.FullSoftmax())
    rs.fit(model, split, epochs=1, progress=False, seed=1)
    bundle = rs.export(model, tmp_path / "bundle", index=index)
    exact, found = (rs.evaluate(one, split.test, k=(1, 10), **QUIET) for one in (model, bundle))
    assert found.name == "Bundle" and found.list_only == 10
    assert found.meta["trained_on"] == exact.meta["trained_on"]
    untied = exact.columns["tied_targets"] == 0
    for name in exact.metrics:
        assert np.allclose(exact.columns[name][untied], found.columns[name][untied]), name
    assert exact.exposure[10].tolist() == found.exposure[10].tolist()
    with pytest.raises(rs.LeakageError):
        rs.evaluate(bundle, Split.of(split.prepared, _NoTest(), split.items, split.users).valid, **QUIET)


class _NoTest:
    """All events but each user's first are targets of the validation part, though the model was trained on them."""

    def apply(self, prepared: Prepared) -> tuple[np.ndarray, np.ndarray]:
        return prepared.offsets[:-1] + 1, prepared.offsets[1:]

    def protocol(self, prepared: Prepared) -> dict[str, Any]:
        return {"name": "no test"}


def test_a_fit_warns_of_repeated_targets_once(split: Split) -> None:
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        fitted = rs.fit(Generator(), split, epochs=3, metric="hr@5", batch_size=32, progress=False)
    assert len(fitted.history) == 3
    assert len([one for one in told if "repeat the user's history" in str(one.message)]) == 1


def test_a_model_that_makes_lists_is_served_without_an_index(split: Split, tmp_path) -> None:
    class Listed(Generator):
        def recommend(self, histories: Any, *given: Any, **more: Any) -> Any:
            lists = super().recommend(histories, *given, **more)
            rows = np.zeros((len(lists), max(map(len, lists), default=0)), np.int64)
            for row, items in zip(rows, lists, strict=True):
                row[: len(items)] = split.items.rows(items)
            return top_of(split, rows, np.where(rows > 0, -np.arange(rows.shape[1]), -np.inf))

    model = Listed()
    rs.fit(model, split, epochs=1, metric="hr@5", progress=False)
    bundle = rs.Bundle(tmp_path, model, None, {})
    found = bundle.recommend([["i1", "i3"]], k=3).items
    assert model.modes == {False} and found == model.recommend([["i1", "i3"]], k=3).items
    (tmp_path / "users.ndjson").write_text('{"user": "a", "items": ["i2", "nobody"]}\n')
    recommend_file(bundle, tmp_path / "users.ndjson", tmp_path / "out.parquet", k=2, progress=False)
    assert pl.read_parquet(tmp_path / "out.parquet")["items"].to_list() == [["i1", "i3"]]


@pytest.mark.parametrize("text", [True, False])
def test_a_model_that_is_known_to_have_other_items_is_refused(split: Split, markov: Any, text: bool, tmp_path) -> None:
    bundle = rs.Bundle(tmp_path, markov, None, {})
    other = make_split(text)
    if text:
        names = np.array([*split.items.ids.tolist()[:-1], "elsewhere"], object)
        other = replace(other, items=Vocabulary(names, 1))
    with pytest.raises(DataError, match="elsewhere" if text else "100") as caught:
        rs.evaluate(bundle, other.test, **QUIET)
    assert "i1" in str(caught.value)
    with pytest.raises(DataError, match="held-out part does not know"):
        rs.evaluate(OnlyLists(markov, False), replace(split, items=renamed(split)).test, leakage="allow", **QUIET)


def renamed(split: Split) -> Vocabulary:
    """Other names for half of the items."""
    ids = split.items.ids.copy()
    ids[::2] = [f"x{one}" for one in ids[::2]]
    return Vocabulary(ids, 1)
