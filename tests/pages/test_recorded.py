"""Recorded results: every file is a row, beside a table, or counted with a reason."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from scipy.stats import t

from recsys.errors import DataError
from recsys.pages.leaderboard import write_leaderboard
from recsys.pages.recorded import protocol, read_recorded

PROTOCOL = "SASRec on test: leave-last (order time, valid 1), full ranking, history excluded; 943 users, 943 targets"


def result(name: str = "sasrec", mean: float = 0.1, **more: Any) -> dict[str, Any]:
    metrics = {"ndcg@10": {"mean": mean, "low": mean - 0.01, "high": mean + 0.01, "over": "seeds", "seeds": [mean]}}
    runs = [{"seed": seed, "protocol": PROTOCOL} for seed in (0, 1)]
    return {
        "name": name, "command": f"python run.py {name}", "date": "2026-01-02", "machine": "any", "versions": {},
        "metrics": metrics, "runs": runs, "data": "ml-100k", "paired": {}, **more,
    }  # fmt: skip


def paired(p: float) -> dict[str, Any]:
    row = {"difference": 0.01, "low": 0.0, "high": 0.02, "p": p}
    return {"paired": {"sasrec": {"reference": "sasrec", "metrics": {"ndcg@10": row}}}}


def put(folder: Path, name: str, content: Any) -> None:
    path = folder / "results" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")


def page(folder: Path) -> str:
    write_leaderboard(folder / "page.html", read_recorded(folder))
    return (folder / "page.html").read_text(encoding="utf-8")


def test_results_have_their_data_table_protocol_and_numbers(tmp_path: Path) -> None:
    put(tmp_path, "encoders/ml-100k/sasrec.json", result())
    put(tmp_path, "sasrec_ml1m.json", {**result("sasrec_ml1m"), "data": None})
    first, second = read_recorded(tmp_path).results
    assert (first.data, first.table, first.method, first.seeds) == ("ml-100k", "encoders", "sasrec", (0, 1))
    assert first.protocol == "test: leave-last (order time, valid 1), history excluded; 943 users"
    assert (second.data, second.table) == ("ml-1m", "single results")
    shown = page(tmp_path)
    for text in (".1000", "[.0900, .1100]", "2026-01-02", "python run.py sasrec", "encoders"):
        assert text in shown


def test_lists_and_full_rankings_stand_together_and_other_tasks_apart() -> None:
    full = protocol("test: leave-last (valid 1), full ranking, history excluded; 943 users, 3 targets")
    assert full == protocol("test: leave-last (valid 1), list only, to 20, history excluded; 943 users, 3 targets")
    assert full != protocol("test: leave-last (valid 1), full ranking, history not excluded; 943 users, 3 targets")
    assert full != protocol("test: leave-last (valid 1), full ranking, history excluded; 22,363 users, 3 targets")


def test_p_is_corrected_over_the_methods_of_a_table(tmp_path: Path) -> None:
    put(tmp_path, "encoders/ml-100k/a.json", {**result("a"), **paired(0.01)})
    put(tmp_path, "encoders/ml-100k/b.json", {**result("b"), **paired(0.04)})
    put(tmp_path, "augment/ml-100k/c.json", {**result("c"), **paired(0.04)})
    found = {one.method: one.paired[0].p_holm for one in read_recorded(tmp_path).results}
    assert found == pytest.approx({"a": 0.02, "b": 0.04, "c": 0.04})


def test_rows_of_one_seed_are_put_together(tmp_path: Path) -> None:
    for seed, value in enumerate((0.1, 0.2, 0.3)):
        row = {"row": "dpo", "seed": seed, "seconds": 1.0, "ndcg@10": value}
        put(tmp_path, f"stories/noisy/ml-100k-sasrec/dpo-seed{seed}.json", row)
    table = "### Noisy\n\n| row | NDCG |\n|---|---|\n| dpo | .2 |\n\n`python stories.py noisy`, 2026-03-04"
    put(tmp_path, "noisy-ml-100k.md", table)
    recorded = read_recorded(tmp_path)
    (found,) = recorded.results
    assert (found.data, found.method, found.seeds) == ("ml-100k", "dpo (sasrec)", (0, 1, 2))
    assert (found.date, found.command) == ("2026-03-04", "python stories.py noisy")
    reach = t.ppf(0.975, 2) * 0.1 / 3**0.5
    own = found.metrics["ndcg@10"]
    assert (own.mean, own.low, own.high) == pytest.approx((0.2, 0.2 - reach, 0.2 + reach))
    assert len(recorded.tables[0].of) == 3 and recorded.others == ()


def test_what_cannot_be_read_is_counted_and_shown(tmp_path: Path) -> None:
    put(tmp_path, "good.json", result())
    put(tmp_path, "broken.json", '{"name": "x", ')
    put(tmp_path, "list.json", [1, 2])
    put(tmp_path, "other.json", {"name": "x", "metrics": {"ndcg@10": 3}, "runs": []})
    put(tmp_path, "row.json", {"row": "x", "seed": 0})
    put(tmp_path, "empty.json", {"name": "x", "metrics": {}, "runs": []})
    put(tmp_path, "runs.json", {**result(), "runs": 3})
    put(tmp_path, "nan.json", json.dumps(result()).replace("0.1,", "NaN,"))
    (tmp_path / "results" / "bytes.json").write_bytes(b"\xff\xfe\x00")
    found = read_recorded(tmp_path)
    assert len(found.results) == 1 and found.files == 9
    names = {f"results/{name}.json" for name in ("broken", "list", "other", "empty", "runs", "nan", "row", "bytes")}
    assert {name for name, _ in found.others} == names
    assert all(name in page(tmp_path) for name in names)


def test_every_metric_of_a_result_is_shown(tmp_path: Path) -> None:
    names = [f"metric{at}" for at in range(9)]
    metrics = {name: {"mean": 0.3 + at / 100} for at, name in enumerate([*names, "ndcg@10"])}
    put(tmp_path, "a/ml-100k/many.json", {**result("many"), "metrics": metrics})
    put(tmp_path, "a/own/other.json", {**result("other"), "data": "own", "metrics": {"seconds": {"mean": 7.25}}})
    shown = page(tmp_path)
    assert all(name in shown and f".{30 + at}00" in shown for at, name in enumerate(names)) and "7.2500" in shown


def test_numbers_beside_a_table_are_told_by_it(tmp_path: Path) -> None:
    put(tmp_path, "weights/ml-100k.json", {"a": {"value": 1}})
    put(tmp_path, "weights-ml-100k.md", "### Weights\n\n| a | b |\n|---|---|\n| 1 | **2** |\n\n```\nx < y\n```\n")
    found = read_recorded(tmp_path)
    assert found.tables[0].of == ("results/weights/ml-100k.json",) and found.others == ()
    shown = page(tmp_path)
    assert "<td>1</td>" in shown and "<b>2</b>" in shown and "x &lt; y" in shown


def test_names_are_escaped(tmp_path: Path) -> None:
    evil = "<img src=x onerror=alert(1)>"
    told = {
        **result(evil),
        **paired(0.01),
        "data": evil,
        "command": evil,
        "date": evil,
        "machine": evil,
        "tuning": evil,
    }
    told["runs"] = [{"seed": 0, "protocol": f"x on {evil}"}]
    told["metrics"] |= {evil: {"mean": 1.0}}
    told["paired"][evil] = {"reference": evil, "metrics": {"ndcg@10": told["paired"]["sasrec"]["metrics"]["ndcg@10"]}}
    put(tmp_path, "evil.json", told)
    put(tmp_path, "evil.md", f"# {evil}\n\n{evil} `{evil}`\n\n| {evil} |\n|---|\n| **{evil}** |\n\n```\n{evil}\n```\n")
    put(tmp_path, f"x{evil.replace('/', '')}.json", "{")
    shown = page(tmp_path)
    assert "<img" not in shown and "&lt;img" in shown


@pytest.mark.parametrize("files", [{}, {"a.json": "{}"}, {"a.json": "{"}], ids=["empty", "other", "damaged"])
def test_a_folder_without_results_is_refused(tmp_path: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        put(tmp_path, name, text)
    with pytest.raises(DataError, match="no recorded results"):
        read_recorded(tmp_path)


def test_a_folder_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere"):
        read_recorded(tmp_path / "nowhere")


def test_the_same_results_make_the_same_page_wherever_they_lie(tmp_path: Path) -> None:
    for place in ("a", "b"):
        for name in ("x", "y", "z") if place == "a" else ("z", "y", "x"):
            put(tmp_path / place, f"encoders/ml-100k/{name}.json", result(name))
    assert page(tmp_path / "a") == page(tmp_path / "b")


def test_links_are_not_followed(tmp_path: Path) -> None:
    put(tmp_path, "good.json", result())
    (tmp_path / "secret.json").write_text(json.dumps(result("secret")))
    (tmp_path / "results" / "link.json").symlink_to(tmp_path / "secret.json")
    assert "secret" not in page(tmp_path)
