"""What a caller sees of each route, over a real socket."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import recsys as rs
from recsys.data.split import Split
from recsys.encoders.sasrec import SASRec
from recsys.ids.vectors import Vectors
from recsys.items.text import TextItems
from recsys.objectives.softmax import FullSoftmax
from recsys.recommenders.base import Ranker
from recsys.serve.bundle import Bundle, export
from recsys.serve.feedback import FeedbackLog


@pytest.mark.filterwarnings("ignore::recsys.errors.DataWarning")
def test_recommend_gives_what_the_bundle_gives_with_titles_and_what_was_not_known(serving, bundle: Path) -> None:
    server = serving({"toy": bundle})
    body = {"histories": [["i1", "nope", "i2"], {"items": ["i9"]}, []], "k": 4, "deny": ["i3"]}
    status, found = server.post("/recommend", body)
    wanted = Bundle.load(bundle).recommend([["i1", "nope", "i2"], ["i9"], []], 4, deny=["i3"])
    assert status == 200 and [[one["id"] for one in row["items"]] for row in found["results"]] == wanted.items
    assert found["bundle"] == {"name": "toy", "hash": server.service.current().hash}
    assert [row["source"] for row in found["results"]] == ["model", "model", "popular"]
    assert [row["unknown"] for row in found["results"]] == [["nope"], [], []]
    assert all(one["title"] == f"Title {one['id'][1:]}" for row in found["results"] for one in row["items"])
    np.testing.assert_allclose([one["score"] for one in found["results"][0]["items"]], wanted.scores[0], rtol=1e-5)


def test_filters_exclusion_and_allow_lists(serving, bundle: Path) -> None:
    server = serving({"toy": bundle})
    filters = {"title": {"has": ["7", "8", "9"]}}
    _, found = server.post("/recommend", {"histories": [["i7"]], "filters": filters})
    assert {one["id"] for one in found["results"][0]["items"]} == {"i8", "i9"}
    _, found = server.post(
        "/recommend", {"histories": [["i7"]], "filters": filters, "exclude": "none", "allow": ["i7"]}
    )
    assert [one["id"] for one in found["results"][0]["items"]] == ["i7"]
    status, found = server.post("/recommend", {"histories": [["i7"]], "filters": {"titel": {"is": ["x"]}}})
    assert status == 422 and "title" in found["detail"]


@pytest.mark.parametrize(
    ("body", "where"),
    [
        ({}, "histories"),
        ({"histories": []}, "histories"),
        ({"histories": [[True]]}, "histories.0"),
        ({"histories": [["i1"]], "k": 0}, "k"),
        ({"histories": [["i1"]], "k": "3"}, "k"),
        ({"histories": [["i1"]], "k": True}, "k"),
        ({"histories": [["i1"]], "topk": 3}, "topk"),
        ({"histories": [[2**63]]}, "histories.0"),
        ({"histories": [["i1"]], "allow": []}, "allow"),
        ({"histories": [{"items": ["i1"], "times": [1, 2]}]}, "1 items and 2 times"),
        ({"histories": [["i1"]], "bundle": "toi"}, "toy"),
        (b"{", "body"),
        (b'{"histories": [[NaN]]}', ""),
    ],
)
def test_bad_requests_are_told_where_they_are_bad(serving, bundle: Path, body: Any, where: str) -> None:
    status, found, headers = serving({"toy": bundle}).ask("POST", "/recommend", body)
    assert status == 422 and headers["content-type"] == "application/problem+json"
    assert found["status"] == 422 and where in json.dumps(found)


def test_unknown_routes_methods_and_types_are_problems(serving, bundle: Path) -> None:
    server = serving({"toy": bundle})
    for method, path, wanted in (
        ("GET", "/nothing", 404),
        ("GET", "/recommend", 405),
        ("POST", "/bundles/x/reload", 404),
    ):
        status, found, headers = server.ask(method, path)
        assert status == found["status"] == wanted and headers["content-type"] == "application/problem+json"
    assert server.post("/recommend", b"{}", Content_Type="text/plain")[0] == 415


def test_similar_search_why_and_facts(serving, bundle: Path, other: Path) -> None:
    server = serving({"toy": bundle, "counted": other})
    _, found = server.post("/similar", {"items": ["i5"], "k": 3})
    assert [one["id"] for one in found["results"][0]["items"]] == [
        one for one, _ in Bundle.load(bundle).similar(["i5"], 3)[0]
    ]
    assert server.post("/similar", {"items": ["zz"]})[0] == 422
    assert server.post("/similar", {"items": ["i5"], "bundle": "counted"})[0] == 422  # has no vectors
    _, found = server.get("/items?q=title+1&count=3")
    assert {one["title"] for one in found["items"]} <= {"Title 1", *(f"Title {n}" for n in range(10, 20))}
    assert found["items"][0]["text"] == {"title": found["items"][0]["title"]}
    assert server.get("/items?q=i17")[1]["items"][0]["id"] == "i17"
    assert len(server.get("/items")[1]["items"]) == 10
    assert len(server.get("/items?count=100")[1]["items"]) == 60  # all there are
    for name in ("toy", "counted"):
        _, found = server.post("/why", {"history": ["i1", "i2"], "items": ["i3"], "bundle": name})
        assert [one["id"] for one in found["items"][0]["influence"]] == ["i1", "i2"][
            -len(found["items"][0]["influence"]) :
        ]
    assert server.post("/why", {"history": ["zz"], "items": ["i3"]})[0] == 422
    facts = server.get("/bundles")[1]["bundles"]
    assert [one["name"] for one in facts] == ["toy", "counted"] and facts[0]["columns"] == ["title"]
    assert [one["similar"] for one in facts] == [True, False]


def test_items_come_and_go_while_it_serves(serving, split: Split, tmp_path: Path) -> None:
    texts = np.random.default_rng(0).normal(size=(split.num_items, 5))
    Vectors.of(split.items.ids.tolist(), texts).save(tmp_path / "vectors")
    model = rs.Recommender(
        TextItems(8, str(tmp_path / "vectors")), SASRec(8, num_layers=1, max_length=6), FullSoftmax()
    )
    rs.fit(model, split, epochs=1, progress=False, validate_every=0)
    export(model, tmp_path / "text", split=split)
    server = serving({"text": tmp_path / "text"})
    strong = (100 * texts[3]).tolist()
    status, found = server.post("/items", {"items": [{"id": "new", "vector": strong, "text": {"title": "Brand New"}}]})
    assert (status, found["items"], found["withdrawn"]) == (200, 61, 0)
    assert server.get("/items?q=brand")[1]["items"][0]["id"] == "new"
    body = {"histories": [["i1"]], "k": 100}
    ids = [one["id"] for one in server.post("/recommend", body)[1]["results"][0]["items"]]
    assert "new" in ids and len(ids) == 60
    for id_ in ("new", ""):
        assert server.post("/items", {"items": [{"id": id_, "vector": strong}]})[0] == 422
    assert server.post("/items", {"items": [{"id": "other", "vector": [1.0]}]})[0] == 422
    assert server.post("/items/withdraw", {"ids": ["new", "i5"]})[1]["withdrawn"] == 2
    ids = [one["id"] for one in server.post("/recommend", body)[1]["results"][0]["items"]]
    assert not {"new", "i5"} & set(ids) and len(ids) == 58
    assert server.get("/items?q=i5&count=1")[1]["items"][0]["withdrawn"] is True
    assert server.post("/items/restore", {"ids": ["i5"]})[1]["withdrawn"] == 1
    assert "i5" in [one["id"] for one in server.post("/recommend", body)[1]["results"][0]["items"]]
    assert server.post("/items/withdraw", {"ids": ["nothing"]})[0] == 422


def test_items_without_a_way_in_are_refused(serving, bundle: Path) -> None:
    status, found = serving({"toy": bundle}).post("/items", {"items": [{"id": "new", "vector": [1.0, 2.0]}]})
    assert status == 422 and "IdItems" in found["detail"]


def test_feedback_is_written_once_and_only_where_there_is_a_log(serving, bundle: Path, tmp_path: Path) -> None:
    server = serving({"toy": bundle}, feedback=FeedbackLog(tmp_path / "events.ndjson"))
    events = [
        {"id": "a", "user": "u", "item": "i1"},
        {"id": "b", "user": 5, "item": "i2", "time": "2024-05-01T00:00:00Z", "value": 0.5},
    ]
    assert server.post("/feedback", {"events": events}) == (200, {"written": 2, "repeated": 0})
    assert server.post("/feedback", {"events": events[:1]}) == (200, {"written": 0, "repeated": 1})
    first, second = map(json.loads, (tmp_path / "events.ndjson").read_text().splitlines())
    assert first["time"] > 1_700_000_000_000 and second == {
        "id": "b", "user": 5, "item": "i2", "time": 1_714_521_600_000, "type": "click", "value": 0.5,
    }  # fmt: skip
    assert server.post("/feedback", {"events": [{**events[0], "id": "c", "time": "soon"}]})[0] == 422
    assert serving({"toy": bundle}).post("/feedback", {"events": events})[0] == 422


def test_health_metrics_and_the_log_tell_without_histories(serving, bundle: Path) -> None:
    lines: list[str] = []
    server = serving({"toy": bundle}, log=lines.append)
    assert server.get("/health/live")[0] == server.get("/health/ready")[0] == 200
    server.post("/recommend", {"histories": [["i1"], ["secret"], []]})
    text = server.get("/metrics")[1]
    assert 'recsys_lists_total{bundle="toy",source="model"} 1.0' in text
    assert 'recsys_lists_total{bundle="toy",source="popular"} 2.0' in text
    assert 'recsys_unknown_items_total{bundle="toy"} 1.0' in text
    assert 'recsys_requests_total{path="/recommend",status="200"} 1.0' in text and "secret" not in text
    told = [json.loads(line) for line in lines]
    asked = next(one for one in told if one["path"] == "/recommend")
    assert (asked["status"], asked["histories"], asked["unknown"], asked["fallbacks"]) == (200, 3, 1, 2)
    assert "secret" not in "".join(lines) and "i1" not in json.dumps(asked)


def test_a_swap_of_bundles_names_itself_and_a_broken_one_is_refused(
    serving, bundle: Path, counted: Ranker, split: Split
) -> None:
    server = serving({"toy": bundle})
    before = server.service.current().hash
    export(counted, bundle, split=split)
    status, found = server.post("/bundles/toy/reload", None)
    assert status == 200 and found["before"]["hash"] == before != found["bundle"]["hash"]
    assert server.post("/recommend", {"histories": [["i1"]]})[1]["bundle"]["hash"] == found["bundle"]["hash"]
    (bundle / "model.json").write_text("{}")
    status, refused = server.post("/bundles/toy/reload", None)
    assert status == 422 and found["bundle"]["hash"] in refused["detail"]
    assert server.post("/recommend", {"histories": [["i1"]]})[0] == 200
    assert 'recsys_swaps_total{bundle="toy",outcome="refused"} 1.0' in server.get("/metrics")[1]


def test_a_folder_that_is_written_anew_is_noticed(serving, bundle: Path, counted: Ranker, split: Split) -> None:
    server = serving({"toy": bundle}, watch=0.05)
    before = server.service.current().hash
    export(counted, bundle, split=split)
    for _ in range(600):
        if server.get("/bundles")[1]["bundles"][0]["hash"] != before:
            break
    assert server.get("/bundles")[1]["bundles"][0]["model"] == "Markov"


def test_many_callers_at_once_get_each_their_own_answer(serving, bundle: Path) -> None:
    server = serving({"toy": bundle})
    ids = [f"i{row}" for row in range(1, 61)]
    model = Bundle.load(bundle)
    wanted = {one: model.recommend([[one]], 5).items[0] for one in ids}
    wrong: list[Any] = []

    def ask(some: list[str]) -> None:
        for one in some:
            status, found = server.post("/recommend", {"histories": [[one]], "k": 5})
            if status != 200 or [item["id"] for item in found["results"][0]["items"]] != wanted[one]:
                wrong.append((one, found))

    threads = [threading.Thread(target=ask, args=(ids[at::6],)) for at in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_the_document_describes_every_route(serving, bundle: Path) -> None:
    server = serving({"toy": bundle})
    document = server.get("/openapi.json")[1]
    operations = {(method.upper(), path) for path, one in document["paths"].items() for method in one}
    assert {("POST", "/recommend"), ("GET", "/items"), ("POST", "/items/withdraw"), ("GET", "/metrics")} <= operations
    text = json.dumps(document)
    names = set(document["components"]["schemas"])
    assert all(part.split('"')[0] in names for part in text.split("#/components/schemas/")[1:])
    assert server.get("/")[0] == server.get("/page.js")[0] == server.get("/page.css")[0] == 200


@pytest.mark.parametrize("vector", [[10**400, 1], [1e308, 1.0], [1.0]])
def test_numbers_that_no_vector_holds_are_refused(serving, bundle: Path, vector: list[Any]) -> None:
    assert serving({"toy": bundle}).post("/items", {"items": [{"id": "new", "vector": vector}]})[0] == 422


class TestElicit:
    def test_asks_about_what_is_popular_and_likes_become_the_history(self, serving, bundle: Path) -> None:
        server = serving({"toy": bundle})
        status, first = server.post("/elicit", {"k": 3})
        assert status == 200 and first["asker"] == "popular" and first["reader"] == "history" and not first["enough"]
        popular = server.get("/items?count=3")[1]["items"]
        assert [one["id"] for one in first["questions"]] == [one["id"] for one in popular]
        assert all(one["title"] == f"Title {one['id'][1:]}" and one["known"] is None for one in first["questions"])
        answers = [
            {"id": one["id"], "answer": word}
            for one, word in zip(first["questions"], ("like", "dislike", "unknown"), strict=True)
        ]
        _, found = server.post("/elicit", {"answers": answers, "k": 2, "count": 5})
        asked = [one["id"] for one in answers]
        assert not {one["id"] for one in found["questions"]} & set(asked)
        body = {"histories": [[asked[0]]], "k": 5, "deny": asked}
        _, lists = server.post("/recommend", body)
        assert [one["id"] for one in found["items"]] == [one["id"] for one in lists["results"][0]["items"]]

    def test_an_elicitor_beside_the_bundle_asks(
        self, serving, counted: Ranker, split: Split, other: Path, tmp_path: Path
    ) -> None:
        elicitor = rs.elicit(counted, split, "group_gain", 6, "groups", groups=3)
        elicitor.save(other / "elicitation")
        server = serving({"counted": other})
        answers: list[tuple[str, str]] = []
        for word in ("like", "unknown", "dislike"):
            sent = [{"id": one, "answer": said} for one, said in answers]
            _, found = server.post("/elicit", {"answers": sent, "k": 2, "count": 4})
            wanted = elicitor.next(answers, 2)
            assert [one["id"] for one in found["questions"]] == wanted.items
            assert found["asker"] == "group_gain" and found["enough"] == wanted.enough
            assert [one["id"] for one in found["items"]] == elicitor.recommend(answers, 4).items[0]
            answers.append((wanted.items[0], word))
        gone = found["questions"][0]["id"]
        server.post("/items/withdraw", {"ids": [gone, found["items"][0]["id"]]})
        _, after = server.post("/elicit", {"answers": sent, "k": 6, "count": 9})
        assert gone not in [one["id"] for one in after["questions"]]
        assert not {gone, found["items"][0]["id"]} & {one["id"] for one in after["items"]}

    @pytest.mark.parametrize(
        ("body", "where"),
        [
            ({"answers": [{"id": "i1", "answer": "love"}]}, "answers.0.answer"),
            ({"answers": [{"id": True, "answer": "like"}]}, "answers.0.id"),
            ({"answers": [["i1", "like"]]}, "answers.0"),
            ({"k": 0}, "k"),
            ({"k": True}, "k"),
            ({"count": -1}, "count"),
        ],
    )
    def test_refuses(self, serving, bundle: Path, body: dict[str, Any], where: str) -> None:
        status, found = serving({"toy": bundle}).post("/elicit", body)
        assert status == 422 and where in json.dumps(found["errors"])

    def test_unknown_ids_and_an_exhausted_pool(self, serving, bundle: Path) -> None:
        server = serving({"toy": bundle})
        status, found = server.post(
            "/elicit", {"answers": [{"id": "nope", "answer": "like"}, {"id": 7, "answer": "like"}]}
        )
        assert status == 200 and len(found["questions"]) == 1 and found["items"]
        ids = [one["id"] for one in server.get("/items?count=100")[1]["items"]]
        _, found = server.post("/elicit", {"answers": [{"id": one, "answer": "unknown"} for one in ids]})
        assert found["questions"] == [] and found["enough"]
