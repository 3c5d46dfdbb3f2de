"""Memorised, composed and cold targets as segments of every report: exact, of lists, merged, saved, compared."""

from __future__ import annotations

import numpy as np
import pytest

from recsys.data.prepared import Prepared
from recsys.data.split import Split
from recsys.data.splitters import LeaveLast
from recsys.errors import DataError
from recsys.eval.compare import compare
from recsys.eval.evaluate import evaluate
from recsys.eval.report import Report
from recsys.ids.vocabulary import Vocabulary
from recsys.pages.run import write_html
from recsys.statistics.transitions import LABELS

ITEMS = 30
MINE = {"memorised", "composed", "neither", "cold target"}


@pytest.fixture
def split() -> Split:
    rng = np.random.default_rng(4)
    histories = [rng.choice(ITEMS - 4, rng.integers(3, 6), replace=False) + 1 for _ in range(40)]
    for at in range(4):  # cold targets, and transitions that training has
        histories[at][-1] = ITEMS - at
        histories[30 + at][-2:] = histories[10 + at][:2] if len(histories[10 + at]) > 3 else histories[30 + at][-2:]
    offsets = np.concatenate([[0], np.cumsum([len(one) for one in histories])]).astype(np.int64)
    prepared = Prepared(np.concatenate(histories).astype(np.int32), offsets, ITEMS)
    items = Vocabulary(np.arange(1, ITEMS + 1), 1)
    return Split.of(prepared, LeaveLast(), items, Vocabulary(np.arange(40), 0))


@pytest.fixture
def model(scripted):
    return scripted(np.random.default_rng(5).normal(size=(40, ITEMS)))


class Lists:
    """Recommends the same items to everyone, and scores nothing."""

    def recommend(self, histories, k, exclude="history", allow=None, deny=None):
        shown = [[item for item in range(1, ITEMS + 1) if item not in set(map(int, one))] for one in histories]
        return [one[:k] for one in shown]


def labels(report: Report) -> list[str]:
    return [LABELS[code] for code in report.columns["transition"]]


def test_the_segments_of_a_report_are_the_pairs_of_training(split, model):
    report = evaluate(model, split.test, k=5, progress=False, warn=False)
    seen = {
        (int(a), int(b))
        for user in range(40)
        for a, b in zip(split.train.history(user)[:-1], split.train.history(user)[1:], strict=True)
    }
    ends = split.prepared.offsets[1:]
    steps = list(zip(split.prepared.items[ends - 2].tolist(), split.prepared.items[ends - 1].tolist(), strict=True))
    assert [one == "memorised" for one in labels(report)] == [step in seen for step in steps]
    np.testing.assert_array_equal(np.array(labels(report)) == "cold target", report.columns["cold_targets"] > 0)
    assert set(labels(report)) == MINE
    rows = [row for row in report.segments(["ndcg@5"]) if row.grouping == "transition"]
    assert [row.label for row in rows] == [one for one in LABELS if one in MINE]
    for row in rows:
        own = np.array(labels(report)) == row.label
        assert (row.users, row.mean) == (own.sum(), pytest.approx(report.columns["ndcg@5"][own].mean()))
        assert f"{row.users}" in next(line for line in str(report).splitlines() if line.startswith(row.label))


def test_lists_samples_candidates_and_shares_have_them_too(split, model):
    whole = evaluate(model, split.test, k=5, progress=False, warn=False)
    lists = evaluate(Lists(), split.test, k=5, progress=False, warn=False)
    assert lists.list_only == 5 and labels(lists) == labels(whole)
    some = evaluate(model, split.test, k=5, progress=False, warn=False, sample=17)
    assert labels(some) == [labels(whole)[at] for at in some.columns["position"]]
    cold = evaluate(model, split.test, k=1, progress=False, warn=False, candidates="cold")
    assert labels(cold) == ["cold target"] * cold.users and cold.users > 0
    shares = [evaluate(model, split.test, k=5, progress=False, warn=False, rank=at, world_size=3) for at in range(3)]
    assert labels(Report.merge(shares)) == labels(whole)


def test_kinds_divide_what_is_composed(split, model):
    whole = evaluate(model, split.test, k=5, progress=False, warn=False)
    kinds = evaluate(model, split.test, k=5, progress=False, warn=False, transitions="kinds")
    assert [one.split(",")[0] for one in labels(kinds)] == labels(whole)
    assert any(one.startswith("composed, ") for one in labels(kinds))


def test_they_can_be_left_out_and_other_words_are_refused(split, model):
    report = evaluate(model, split.test, k=5, progress=False, warn=False, transitions=False)
    assert "transition" not in report.columns and "memorised" not in str(report)
    assert "transition" not in {row.grouping for row in report.segments()}
    with pytest.raises(ValueError, match="kinds"):
        evaluate(model, split.test, progress=False, transitions="kind")


def test_saved_compared_and_shown(split, model, scripted, tmp_path):
    report = evaluate(model, split.test, k=5, progress=False, warn=False)
    other = evaluate(
        scripted(np.random.default_rng(6).normal(size=(40, ITEMS))), split.test, k=5, progress=False, warn=False
    )
    report.save(tmp_path)
    again = Report.load(tmp_path)
    assert labels(again) == labels(report) and str(again) == str(report)
    found = compare(again, other, metrics="ndcg@5")
    for label in MINE:
        row = found.find("ndcg@5", segment=f"transition: {label}")
        own = np.array(labels(report)) == label
        means = (report.columns["ndcg@5"][own].mean(), other.columns["ndcg@5"][own].mean())
        assert (row.users, row.first_mean, row.other_mean) == (own.sum(), *map(pytest.approx, means))
    write_html(tmp_path / "page.html", "A page", report, found)
    page = (tmp_path / "page.html").read_text()
    assert all(page.count(label) >= 2 for label in MINE)


def test_a_report_of_before_loads_without_them(split, model, tmp_path):
    report = evaluate(model, split.test, k=5, progress=False, warn=False, transitions=False)
    report.save(tmp_path)
    newer = evaluate(model, split.test, k=5, progress=False, warn=False)
    former = Report.load(tmp_path)
    assert "transition" not in {row.grouping for row in former.segments()}
    for pair in ((former, newer), (newer, former)):
        assert compare(*pair).overall[0].difference == 0
    with pytest.raises(DataError, match="columns"):
        Report.merge([former, newer])
