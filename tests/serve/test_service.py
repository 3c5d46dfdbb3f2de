"""What a server answers, without the web: the same lists as the bundle, whoever is asked beside."""

from __future__ import annotations

import shutil
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import recsys as rs
from recsys.data.split import Split
from recsys.errors import DataError, UnknownItemError
from recsys.recommenders.base import Ranker
from recsys.recommenders.composed import Recommender
from recsys.recommenders.history import History
from recsys.recommenders.top import TopK
from recsys.serve.bundle import Bundle, export
from recsys.serve.service import Ask, Served, Service
from recsys.serve.why import leave_one_out

HISTORIES = [["i1", "i2", "i3"], ["i9", "nothing"], [], ["unknown"], [f"i{row}" for row in range(1, 41)]]


@pytest.fixture(params=["exact", "hnsw", None, "counted"])
def folder(request: Any, model: Recommender, counted: Ranker, split: Split, tmp_path: Path) -> Path:
    kind = request.param
    export(
        counted if kind == "counted" else model, tmp_path / "b", index=None if kind == "counted" else kind, split=split
    )
    return tmp_path / "b"


def asked(served: Served, asks: list[Ask]) -> list[Any]:
    return Service({"b": served.bundle.folder}).answer(asks)


@pytest.mark.filterwarnings("ignore::recsys.errors.DataWarning")
def test_answers_are_those_of_the_bundle_in_any_company(folder: Path) -> None:
    bundle = Bundle.load(folder)
    served = Served(bundle, "b")
    allow, deny = [f"i{row}" for row in range(5, 30)], ["i7", "i8"]
    rows = served.columns.rows({"title": {"has": [str(row) for row in range(10, 50)]}})
    asks = [
        Ask(served, [History(one) for one in HISTORIES], 7),
        Ask(served, [History(HISTORIES[0])], 3, exclude=False),
        Ask(served, [History(HISTORIES[1]), History(HISTORIES[4])], 60, allow=allow, deny=deny),
        Ask(served, [History(HISTORIES[0])], 5, rows=rows, deny=deny),
        Ask(served, [History(HISTORIES[0])], 5, rows=rows, allow=allow, exact=True),
    ]
    among = bundle.vocabulary.raw(rows).tolist()
    expected = [
        bundle.recommend(HISTORIES, 7),
        bundle.recommend([HISTORIES[0]], 3, "none"),
        bundle.recommend([HISTORIES[1], HISTORIES[4]], 60, allow=allow, deny=deny),
        bundle.recommend([HISTORIES[0]], 5, allow=among, deny=deny),
        bundle.recommend([HISTORIES[0]], 5, allow=[one for one in among if one in allow]),
    ]
    for found, wanted in zip(asked(served, asks), expected, strict=True):
        assert found.items == wanted.items
        for ours, theirs in zip(found.scores, wanted.scores, strict=True):
            np.testing.assert_allclose(ours, theirs[: len(ours)], rtol=1e-5, atol=1e-6)
    first = asked(served, asks[:1])[0]
    assert first.sources == ["model", "model", "popular", "popular", "model"]
    assert first.unknown == [[], ["nothing"], [], ["unknown"], []]
    assert first.titles[0] == [f"Title {one[1:]}" for one in first.items[0]]


def test_one_bad_request_does_not_spoil_the_others(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    served = Served(Bundle.load(folder))
    rank = Bundle._rank

    def refusing(self: Bundle, histories: list[History], *more: Any) -> Any:
        if any("bad" in one.items for one in histories):
            raise DataError("a time cannot be read")
        return rank(self, histories, *more)

    monkeypatch.setattr(Bundle, "_rank", refusing)
    good, bad = Ask(served, [History(["i1"])]), Ask(served, [History(["bad"])])
    first, second, third = asked(served, [good, bad, good])
    assert isinstance(second, DataError) and first.items == third.items and len(first.items[0]) == 10


def test_ids_of_either_type_mean_the_same_item(folder: Path, split: Split, tmp_path: Path) -> None:
    served = Served(Bundle.load(folder))
    assert served.find(["i3", 5, "5", "", None]).tolist() == [3, 0, 0, 0, 0]
    numbers = rs.Popularity()
    rs.fit(numbers, _numbered(tmp_path))
    served = Served(export(numbers, tmp_path / "numbers"))
    [told] = asked(served, [Ask(served, [History(served.ids(["7", "x", 99]))], given=[["7", "x", 99]])])
    assert told.unknown == [["x", 99]]
    assert served.find([7, "7", " 7", "07", "x", 10**30, 1.5]).tolist() == [served.find([7])[0]] * 2 + [0] * 5


def _numbered(folder: Path) -> Split:
    lines = [f"{user},{(user * 3 + at) % 9},{at}" for user in range(12) for at in range(5)]
    (folder / "events.csv").write_text("user,item,time\n" + "\n".join(lines) + "\n")
    data = rs.Dataset.scan(folder / "events.csv", user="user", item="item", time="time", time_unit="days")
    return data.split(rs.LeaveLast(), audit=False)


@pytest.mark.filterwarnings("ignore::recsys.errors.DataWarning")
def test_what_is_withdrawn_is_recommended_by_nobody_until_it_is_restored(folder: Path) -> None:
    served = Served(Bundle.load(folder), lists={"ours": ["i4", "i5", "i6"]}, chain=["ours", "popular"])
    [before] = asked(served, [Ask(served, [History(["i1", "i2"]), History([])], 5)])
    gone = [before.items[0][0], before.items[0][2], "i4"]
    served.withdraw(gone)
    [after] = asked(served, [Ask(served, [History(["i1", "i2"]), History([])], 5)])
    assert not {*gone} & {*after.items[0], *after.items[1]} and [len(one) for one in after.items] == [5, 5]
    kept = [one for one in before.items[0] if one not in gone]
    assert after.items[0][: len(kept)] == kept
    served.restore(gone)
    assert asked(served, [Ask(served, [History(["i1", "i2"]), History([])], 5)])[0].items == before.items
    with pytest.raises(UnknownItemError, match="nowhere"):
        served.withdraw(["i1", "nowhere"])
    assert not len(served.withdrawn)


@pytest.mark.filterwarnings("ignore::recsys.errors.DataWarning")
def test_fallbacks_answer_in_their_order_and_within_what_may_be_shown(folder: Path) -> None:
    served = Served(Bundle.load(folder), chain=["ours", "popular"], lists={"ours": ["i50", "zzz", "i51", "i52"]})
    assert served.fallbacks.unknown == {"ours": 1}
    asks = [
        Ask(served, [History([]), History(["i1"])], 5, deny=["i51"]),
        Ask(served, [History(["no", "such"])], 2, allow=["i52", "i3", "i51"]),
        Ask(served, [History([])], 2, allow=["i3"]),
    ]
    first, second, third = asked(served, asks)
    popular = served.vocabulary.raw(served.popular(4)).tolist()
    assert first.items[0][:2] == ["i50", "i52"] and first.items[0][2:] == popular[:3]
    assert first.sources == ["ours", "model"] and np.isnan(first.scores[0][:2]).all()
    assert second.items == [["i51", "i52"]] and third.items == [["i3"]] and third.sources == ["popular"]
    with pytest.raises(ValueError, match="popular"):
        Served(served.bundle, chain=["populer"])
    with pytest.raises(DataError, match="editors"):
        Served(served.bundle, chain=["editors"], lists={"editors": ["nothing"]})


def test_a_new_bundle_takes_over_and_a_broken_one_does_not(
    model: Recommender, counted: Ranker, split: Split, tmp_path: Path
) -> None:
    export(model, tmp_path / "b", split=split)
    service = Service({"b": tmp_path / "b"})
    with pytest.raises(LookupError):
        service.current()
    first = service.load()
    first.withdraw(["i3"])
    export(counted, tmp_path / "b", split=split)
    second = service.load()
    assert service.current() is second and second.hash != first.hash
    assert second.vocabulary.raw(second.withdrawn).tolist() == ["i3"]
    [one, other] = service.answer([Ask(first, [History(["i1"])]), Ask(second, [History(["i1"])])])
    assert one.served is first and other.served is second and one.items != other.items
    weights = tmp_path / "b" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-7])
    with pytest.raises(DataError):
        service.load()
    shutil.rmtree(tmp_path / "b")
    with pytest.raises(FileNotFoundError):
        service.load()
    assert service.current() is second
    with pytest.raises(ValueError, match="known: b"):
        service.current("c")


def test_what_is_withdrawn_while_a_bundle_is_read_stays_withdrawn(
    model: Recommender, split: Split, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    export(model, tmp_path / "b", split=split)
    service, load = Service({"b": tmp_path / "b"}), Bundle.load
    service.load()

    def late(*given: Any) -> Bundle:
        found = load(*given)
        service.withdraw("b", ["i3"])
        return found

    monkeypatch.setattr(Bundle, "load", late)
    after = service.load()
    assert after.vocabulary.raw(after.withdrawn).tolist() == ["i3"]
    service.restore(None, ["i3"])
    assert not len(service.current().withdrawn)


def test_bundles_are_exchanged_while_they_are_asked(
    model: Recommender, counted: Ranker, split: Split, tmp_path: Path
) -> None:
    folders = [tmp_path / "one", tmp_path / "two"]
    lists = {}
    for folder, one in zip(folders, (model, counted), strict=True):
        export(one, folder, split=split)
        served = Served(Bundle.load(folder))
        lists[type(one)] = asked(served, [Ask(served, [History(["i1", "i2"])])])[0].items
    service = Service({"b": tmp_path / "live"})
    shutil.copytree(folders[0], tmp_path / "live")
    service.load()
    stop, wrong, seen = threading.Event(), [], set()

    def ask() -> None:
        while not stop.is_set():
            served = service.current()
            [answer] = service.answer([Ask(served, [History(["i1", "i2"])])])
            seen.add(served.hash)
            if isinstance(answer, Exception) or answer.items != lists[type(served.bundle.model)]:
                wrong.append(answer)

    threads = [threading.Thread(target=ask) for _ in range(2)]
    for thread in threads:
        thread.start()
    for number in range(10):
        export(counted if number % 2 == 0 else model, tmp_path / "live", split=split)
        service.load()
    stop.set()
    for thread in threads:
        thread.join()
    assert not wrong and len(seen) >= 2


def _brute(scores: np.ndarray) -> np.ndarray:
    return scores - np.log(np.exp(scores).sum())


@pytest.mark.filterwarnings("ignore::recsys.errors.DataWarning")
def test_why_is_what_changes_without_an_item(model: Recommender, split: Split, tmp_path: Path) -> None:
    bundle = export(model, tmp_path / "b", split=split)
    history = ["i1", "x", "i2", "i3"]
    found = leave_one_out(bundle, history, ["i9", "i20"])
    assert found.history == ["i1", "i2", "i3"]
    whole = model.scores([history])[0].astype(np.float64)
    for at, left in enumerate([["i2", "i3"], ["i1", "i3"], ["i1", "i2"]]):
        without = model.scores([left])[0].astype(np.float64)
        wanted = (_brute(whole) - _brute(without))[[8, 19]]
        np.testing.assert_allclose(found.change[at], wanted, atol=1e-5)
        assert found.rank_without[at, 0] == 1 + (without[3:] > without[8]).sum()  # outside i1, i2, i3
    assert found.rank[1] == 1 + (whole[3:] > whole[19]).sum()
    best = bundle.recommend([history], 5).items[0]
    assert leave_one_out(bundle, history, best).rank.tolist() == [1, 2, 3, 4, 5]  # as they stand in the list
    alone = leave_one_out(bundle, ["i1"], ["i9"])
    popular = np.log(split.train.item_counts()[1:] + 1)
    np.testing.assert_allclose(
        alone.change[0, 0], _brute(model.scores([["i1"]])[0].astype(float))[8] - _brute(popular)[8], atol=1e-5
    )
    with pytest.raises(UnknownItemError, match="zz"):
        leave_one_out(bundle, history, ["zz"])
    with pytest.raises(ValueError, match="no known item"):
        leave_one_out(bundle, ["zz"], ["i9"])


class Lists(Ranker):
    """Makes lists of the items behind the newest one."""

    def recommend(
        self, histories: Any, k: int = 10, exclude: str = "history", allow: Any = None, deny: Any = None
    ) -> Any:
        rows = np.zeros((len(histories), k), np.int64)
        assert self.vocabulary is not None
        for at, one in enumerate(histories):
            known = [row for row in self.vocabulary.rows(list(one)).tolist() if row > 0] or [0]
            lists = [
                value if value is None or not value or not isinstance(value[0], list) else value[at]
                for value in (allow, deny)
            ]
            wanted = [(known[-1] + step) % self.num_items + 1 for step in range(self.num_items)]
            raw = self.vocabulary.raw(np.array(wanted)).tolist()
            kept = [row for row, one in zip(wanted, raw, strict=True)
                    if (lists[0] is None or one in lists[0]) and one not in (lists[1] or [])]  # fmt: skip
            rows[at, : len(kept[:k])] = kept[:k]
        scores = np.where(rows > 0, 1.0, -np.inf).astype(np.float32)
        return TopK(rows, scores, np.zeros(len(rows), np.int64), np.zeros(len(rows), bool), self.vocabulary)


def test_a_model_that_only_makes_lists_is_served_and_explained(context: Any, tmp_path: Path) -> None:
    lister = Lists()
    lister.bind(context)
    export(lister, tmp_path / "b")
    served = Served(Bundle.load(tmp_path / "b", trust=[Lists.__module__]))
    asks = [
        Ask(served, [History(["i1"]), History(["i30"])], 3, deny=["i3"]),
        Ask(served, [History(["i1"])], 2, rows=np.array([8, 9])),
    ]
    first, second = asked(served, asks)
    assert first.items == [["i4", "i5", "i6"], ["i32", "i33", "i34"]] or first.items[0][0] == "i2"
    assert second.items == [["i8", "i9"]]
    served.withdraw(["i8"])
    assert asked(served, asks[1:])[0].items == [["i9"]]
    found = leave_one_out(served.bundle, ["i1", "i30"], ["i31"])
    assert found.rank[0] >= 1 and found.change[0, 0] == 0 and found.change[1, 0] > 0
