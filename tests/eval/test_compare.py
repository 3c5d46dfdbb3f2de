from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from recsys.errors import DataError, DataWarning
from recsys.eval.compare import compare
from recsys.eval.evaluate import evaluate
from recsys.eval.report import Report, number
from recsys.eval.significance import holm


@pytest.fixture
def pair(random_case, scripted):
    worse, part = random_case(users=120, items=30, seed=1)
    table = worse.table.numpy().copy()
    owner, item = part.targets(np.arange(len(part)))
    table[owner, item - 1] += 3
    better = scripted(table)
    return [evaluate(model, part, k=(1, 10), progress=False) for model in (worse, better)] + [part]


def test_differences_are_paired_and_other_minus_first(pair):
    first, other, _ = pair
    found = compare(first, other, names=["worse", "better"])
    row = found.find("ndcg@10", "better")
    expected = other.columns["ndcg@10"] - first.columns["ndcg@10"]
    assert row.difference == pytest.approx(expected.mean())
    assert row.difference == pytest.approx(row.other_mean - row.first_mean)
    assert 0 < row.low < row.difference < row.high
    assert row.p < 0.001 and row.users == 120
    assert [entry.metric for entry in found.overall] == ["ndcg@10", "recall@10", "mrr@10"]
    assert [entry.p_holm for entry in found.overall] == pytest.approx(holm(np.array([r.p for r in found.overall])))


def test_the_order_of_users_does_not_matter(pair):
    first, other, _ = pair
    shuffle = np.random.default_rng(0).permutation(other.users)
    shuffled = replace(other, columns={name: values[shuffle] for name, values in other.columns.items()})
    assert compare(first, other).to_dict() == compare(first, shuffled).to_dict()
    turned = replace(first, columns={name: values[::-1] for name, values in first.columns.items()})
    assert compare(first, other).to_dict() == compare(turned, shuffled).to_dict()


def test_segments_are_compared_as_a_family_of_their_own(pair):
    first, other, _ = pair
    found = compare(first, other, metrics="mrr@10")
    assert {row.metric for row in found.segments} == {"mrr@10"}
    by_history = [row for row in found.segments if row.segment.startswith("history length")]
    assert len(by_history) > 1 and sum(row.users for row in by_history) == 120
    assert [row.p_holm for row in found.segments] == pytest.approx(holm(np.array([row.p for row in found.segments])))
    assert found.find("mrr@10", segment=by_history[0].segment) == by_history[0]
    assert compare(first, other, segments=False).segments == ()


def test_a_model_against_itself_shows_nothing(pair):
    first, _, _ = pair
    found = compare(first, first)
    assert all((row.difference, row.p, row.p_holm) == (0.0, 1.0, 1.0) for row in found.overall)
    assert found.names == ("Scripted", "Scripted #2")


def test_three_reports_give_two_rows_per_metric(pair):
    first, other, _ = pair
    found = compare(first, other, first, metrics=["hr@1"], segments=False)
    assert [row.other for row in found.overall] == ["Scripted #2", "Scripted #3"]
    with pytest.raises(KeyError):
        found.find("hr@1")
    assert found.find("hr@1", "Scripted #3").difference == 0.0


def test_saved_runs_compare_like_live_ones(pair, tmp_path):
    first, other, _ = pair
    first.save(tmp_path / "a")
    other.save(tmp_path / "b")
    loaded = compare(Report.load(tmp_path / "a" / "per_user.parquet"), Report.load(tmp_path / "b"))
    assert loaded.to_dict() == compare(first, other).to_dict()
    assert json.loads(json.dumps(loaded.to_dict())) == loaded.to_dict()


def test_text_names_models_and_methods(pair):
    first, other, _ = pair
    text = str(compare(first, other, names=["Popularity", "SASRec"]))
    for word in ("Popularity", "SASRec", "ndcg@10", "Holm", "120", "exclude=history", "leave-last", "cohort"):
        assert word in text


def test_the_columns_of_the_table_are_named_plainly(pair):
    first, other, _ = pair
    found = compare(first, other, names=["Popularity", "SASRec"])
    heading, row = found.table()[:2]
    assert heading[:5] == ["metric", "model", "value", "reference (Popularity)", "difference"]
    assert row[:4] == [row[0], "SASRec", number(other.mean(row[0])), number(first.mean(row[0]))]
    assert found.table(segments=True)[0][:5] == ["segment", "users", "metric", "model", "value"]


def test_what_cannot_be_compared_says_what_differs(pair, scripted, part_of):
    first, other, part = pair
    model = scripted(np.zeros((120, 30)))
    with pytest.raises(ValueError, match="two reports"):
        compare(first)
    with pytest.raises(TypeError, match="takes reports, found Scripted"):
        compare(first, model)
    with pytest.raises(ValueError, match="names"):
        compare(first, other, names=["same", "same"])
    with pytest.raises(ValueError, match="ndcg@3"):
        compare(first, other, metrics="ndcg@3")
    with pytest.raises(DataError, match="exclude"):
        compare(first, evaluate(model, part, k=10, exclude="none", progress=False))
    with pytest.raises(DataError, match="protocol"):
        compare(first, evaluate(model, replace(part, protocol={"name": "given"}), k=10, progress=False))
    with pytest.raises(DataError, match="same users"):
        compare(first, evaluate(model, part.subset(np.arange(100)), k=10, progress=False))
    moved = part_of([[]] * 120, [[1]] * 120, 30)
    with pytest.raises(DataError, match="targets"):
        compare(first, evaluate(model, moved, k=10, progress=False))


def test_k2_the_two_rules_for_a_history_compare_where_no_target_repeats_it(scripted, part_of):
    model = scripted(np.random.default_rng(0).normal(size=(30, 9)))
    for targets, same in (([[3]] * 30, True), ([[3]] * 29 + [[1]], False)):
        part = part_of([[1, 2]] * 30, targets, 9)
        first, other = (
            evaluate(model, part, k=5, exclude=rule, progress=False) for rule in ("history", "history-except-targets")
        )
        if same:
            assert compare(first, other).overall[0].difference == 0
        else:
            with pytest.raises(DataError, match="exclude"):
                compare(first, other)


def test_b1_reports_over_other_catalogues_or_users_do_not_compare(pair):
    first, other, _ = pair
    for key in ("catalogue", "user_ids", "ranked"):
        one, two = (replace(report, meta={**report.meta, key: name}) for report, name in ((first, "a"), (other, "b")))
        with pytest.raises(DataError, match=key):
            compare(one, two)
        assert compare(one, first).overall[0].difference == 0  # a report of before does not say
        with pytest.raises(DataError, match=key):
            Report.merge([one, two])


def test_k6_models_that_were_trained_on_other_events_are_told_of(pair):
    first, other, _ = pair
    one, two = (
        replace(report, meta={**report.meta, "trained_on": name}) for report, name in ((first, "a"), (other, "b"))
    )
    with pytest.warns(DataWarning, match="other events"):
        compare(one, two)


def test_what_compare_advises_can_be_done(pair):
    with pytest.raises(TypeError, match=r"evaluate\(model, split\.test\)"):
        compare(object(), object())
