"""What a server does when things go wrong: bad bytes, slow and greedy callers, broken bundles, no room, a kill."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as some

from recsys.data.split import Split
from recsys.recommenders.base import Ranker
from recsys.recommenders.composed import Recommender
from recsys.serve.bundle import Bundle, export
from recsys.serve.http.server import Limits
from recsys.serve.service import Service

ASK = {"histories": [["i1", "i2"]]}
POSTS = ("/recommend", "/similar", "/why", "/items", "/items/withdraw", "/items/restore", "/feedback")
JSON = some.recursive(
    some.none()
    | some.booleans()
    | some.integers()
    | some.just(10**400)
    | some.floats()
    | some.text(max_size=8)
    | some.sampled_from(["i1", "i2"]),
    lambda inner: some.lists(inner, max_size=4) | some.dictionaries(some.text(max_size=6), inner, max_size=3),
    max_leaves=8,
)
FIELDS = [
    "histories",
    "history",
    "items",
    "ids",
    "k",
    "exclude",
    "allow",
    "deny",
    "filters",
    "metric",
    "events",
    "bundle",
]
BODIES = some.dictionaries(some.sampled_from(FIELDS), JSON, max_size=4) | JSON


def test_no_body_whatever_is_answered_by_an_error_of_the_server(serving, bundle: Path) -> None:
    server = serving({"toy": bundle})
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    kinds = {"Content-Type": "application/json"}

    @settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
    @given(
        path=some.sampled_from(POSTS), body=BODIES.map(lambda one: json.dumps(one).encode()) | some.binary(max_size=40)
    )
    def asked(path: str, body: bytes) -> None:
        connection.request("POST", path, body, kinds)
        answer = connection.getresponse()
        text = answer.read()
        assert answer.status in (200, 422), (path, body, text)
        json.loads(text)

    asked()
    assert server.post("/recommend", ASK)[0] == 200


def test_a_body_of_wrong_ids_alone_is_refused_at_the_first_of_them(serving, bundle: Path) -> None:
    status, found = serving({"toy": bundle}).post("/recommend", {"histories": [[[]] * 5000] * 200})
    assert status == 422 and len(found["errors"]) <= 3


def test_large_bodies_are_refused_before_they_are_read(serving, bundle: Path) -> None:
    server = serving({"toy": bundle}, limits=Limits(body=1000))
    status, found, headers = server.ask("POST", "/recommend", b" " * 1001)
    assert status == 413 and "1,000 bytes" in found["detail"] and headers["connection"] == "close"
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as raw:  # one that does not tell its length
        head = "POST /recommend HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        raw.sendall(f"{head}Transfer-Encoding: chunked\r\n\r\n".encode())
        for _ in range(3):
            raw.sendall(b"200\r\n" + b" " * 512 + b"\r\n")
        assert b" 413 " in raw.recv(4096)
    assert server.post("/recommend", ASK)[0] == 200


def test_slow_callers_are_let_go_and_hold_nobody_up(serving, bundle: Path) -> None:
    server = serving({"toy": bundle}, limits=Limits(body_seconds=0.3, in_flight=20))
    head = b"POST /recommend HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 99\r\n"
    silent = [socket.create_connection(("127.0.0.1", server.port), timeout=30) for _ in range(40)]
    for one in silent[:30]:
        one.sendall(head)  # and never the end of the headers
    for one in silent[30:]:
        one.sendall(head + b"\r\n{")  # and never the end of the body
    assert server.post("/recommend", ASK)[0] == 200
    for one in silent[30:]:
        assert b" 408 " in one.recv(4096)
    for one in silent:
        one.close()
    assert server.post("/recommend", ASK)[0] == 200


class Slow:
    """A service that answers when it is told to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.go, rank = threading.Event(), Bundle._rank
        self.asked = threading.Semaphore(0)

        def waiting(bundle: Bundle, *given: Any, **named: Any) -> Any:
            self.asked.release()
            assert self.go.wait(60)
            return rank(bundle, *given, **named)

        self.go.set()
        monkeypatch.setattr(Bundle, "_rank", waiting)
        monkeypatch.setattr("recsys.serve.batching.SHORT", 0.0)  # so that the loop goes on meanwhile


def test_a_full_queue_says_when_to_come_back(serving, bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slow = Slow(monkeypatch)
    server = serving({"toy": bundle}, limits=Limits(waiting=4, batch=1))
    assert server.post("/recommend", ASK)[0] == 200  # after which a thread ranks
    slow.go.clear()
    found: list[tuple[int, Any, dict[str, str]]] = []
    threads = [threading.Thread(target=lambda: found.append(server.ask("POST", "/recommend", ASK))) for _ in range(12)]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + 30
    while len(found) < 7 and time.monotonic() < deadline:
        time.sleep(0.01)
    refused = list(found)
    assert {status for status, _, _ in refused} == {503} and len(refused) == 7
    assert all(int(headers["retry-after"]) >= 1 for _, _, headers in refused)
    assert server.get("/health/live")[0] == 200
    slow.go.set()
    for thread in threads:
        thread.join()
    assert sorted(status for status, _, _ in found) == [200] * 5 + [503] * 7


def test_too_many_at_a_time_are_sent_away_but_not_those_who_ask_for_its_health(
    serving, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = Slow(monkeypatch)
    server = serving({"toy": bundle}, limits=Limits(in_flight=2))
    assert server.post("/recommend", ASK)[0] == 200
    slow.go.clear()
    threads = [threading.Thread(target=lambda: server.post("/recommend", ASK)) for _ in range(2)]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        status, _, headers = server.ask("GET", "/bundles")
        if status == 503:
            break
    assert status == 503 and headers["retry-after"] == "1" and server.get("/health/live")[0] == 200
    slow.go.set()
    for thread in threads:
        thread.join()
    assert server.get("/bundles")[0] == 200


def test_nothing_but_its_health_is_answered_before_the_bundles_are_there(
    serving, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    go, load = threading.Event(), Service.load

    def late(self: Service, name: str | None = None) -> Any:
        assert go.wait(60)
        return load(self, name)

    monkeypatch.setattr(Service, "load", late)
    server = serving({"toy": bundle}, wait=False)
    for method, path, body in (("POST", "/recommend", ASK), ("GET", "/bundles", None), ("GET", "/health/ready", None)):
        status, found, headers = server.ask(method, path, body)
        assert status == found["status"] == 503 and int(headers["retry-after"]) >= 1
    assert server.get("/health/live")[0] == server.get("/")[0] == 200
    go.set()
    deadline = time.monotonic() + 30
    while server.get("/health/ready")[0] != 200 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert server.post("/recommend", ASK)[0] == 200


def test_a_key_is_asked_for_where_there_is_one(serving, bundle: Path) -> None:
    server = serving({"toy": bundle}, key="open sesame")
    for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "open sesame"}):
        status, _, answered = server.ask("POST", "/recommend", ASK, **headers)
        assert status == 401 and answered["www-authenticate"] == "Bearer"
    assert server.ask("GET", "/metrics")[0] == server.ask("POST", "/bundles/toy/reload")[0] == 401
    assert server.post("/recommend", ASK, Authorization="Bearer open sesame")[0] == 200
    assert server.get("/health/ready")[0] == server.get("/")[0] == 200


def test_on_loopback_only_the_own_names_are_answered(serving, bundle: Path) -> None:
    server = serving({"toy": bundle}, hosts=("localhost", "127.0.0.1", "[::1]"))
    assert server.post("/recommend", ASK, Host="elsewhere.example")[0] == 421
    assert server.post("/recommend", ASK, Host=f"LOCALHOST:{server.port}")[0] == 200
    assert server.post("/recommend", ASK, Host="[::1]:80")[0] == 200


def test_pages_of_other_websites_are_not_answered(serving, bundle: Path) -> None:
    server = serving({"toy": bundle})
    assert server.post("/bundles/toy/reload", None, Origin="http://elsewhere.example")[0] == 403
    assert server.post("/bundles/toy/reload", None, Origin="null")[0] == 403
    assert server.post("/recommend", ASK, Origin=f"http://127.0.0.1:{server.port}")[0] == 200


def test_an_error_of_the_server_says_nothing_of_its_inside_and_it_goes_on(
    serving, bundle: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    server = serving({"toy": bundle})
    with monkeypatch.context() as broken:
        broken.setattr(Service, "answer", lambda self, asks: 1 // 0)
        server.service.answer  # noqa: B018
        status, found = server.post("/recommend", ASK)
    assert status in (200, 500)
    if status == 500:
        assert "division" not in json.dumps(found)
    assert server.post("/recommend", ASK)[0] == 200


def test_ten_swaps_under_load_fail_no_request_and_mix_no_answer(
    serving, model: Recommender, counted: Ranker, split: Split, tmp_path: Path
) -> None:
    wanted: dict[str, set[str]] = {}
    folder = tmp_path / "live"
    for one in (counted, model):
        lists = export(one, folder, split=split).recommend(ASK["histories"], 10).items[0]
        wanted[type(one).__name__] = {json.dumps(lists)}
    server = serving({"live": folder})
    known, wrong, stop = {server.service.current().hash: "Recommender"}, [], threading.Event()

    def load() -> None:
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
        while not stop.is_set():
            connection.request("POST", "/recommend", json.dumps(ASK), {"Content-Type": "application/json"})
            answer = connection.getresponse()
            found = json.loads(answer.read())
            if answer.status != 200:
                wrong.append(found)
                continue
            lists = json.dumps([one["id"] for one in found["results"][0]["items"]])
            seen.append((found["bundle"]["hash"], lists))

    seen: list[tuple[str, str]] = []
    threads = [threading.Thread(target=load) for _ in range(3)]
    for thread in threads:
        thread.start()
    for number in range(10):
        one = counted if number % 2 == 0 else model
        export(one, folder, split=split)
        status, found = server.post("/bundles/live/reload", None)
        assert status == 200
        known[found["bundle"]["hash"]] = type(one).__name__
        deadline = time.monotonic() + 30
        while not any(digest == found["bundle"]["hash"] for digest, _ in seen[-20:]) and time.monotonic() < deadline:
            time.sleep(0.01)
    stop.set()
    for thread in threads:
        thread.join()
    assert not wrong and {digest for digest, _ in seen} == set(known)
    assert all(lists in wanted[known[digest]] for digest, lists in seen)


@pytest.mark.slow
def test_a_killed_server_starts_again_with_its_log_whole(bundle: Path, tmp_path: Path) -> None:
    log = tmp_path / "events.ndjson"
    command = [
        sys.executable,
        "-m",
        "recsys",
        "serve",
        str(bundle),
        "--port",
        "0",
        "--feedback",
        str(log),
        "--log",
        "none",
    ]

    def started() -> tuple[subprocess.Popen[str], int]:
        process = subprocess.Popen(
            command, stderr=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
        )
        assert process.stderr is not None
        line = process.stderr.readline()
        return process, int(line.rsplit(":", 1)[1])

    def send(port: int, numbers: range) -> dict[str, int]:
        events = [{"id": f"e{number}", "user": "u", "item": "i1"} for number in numbers]
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        connection.request("POST", "/feedback", json.dumps({"events": events}), {"Content-Type": "application/json"})
        return dict(json.loads(connection.getresponse().read()))

    process, port = started()
    assert send(port, range(3)) == {"written": 3, "repeated": 0}
    process.kill()
    process.wait()
    process, port = started()
    assert send(port, range(5)) == {"written": 2, "repeated": 3}
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) in (0, -signal.SIGTERM)  # uvicorn raises it again when it is done
    assert [json.loads(line)["id"] for line in log.read_text().splitlines()] == [f"e{number}" for number in range(5)]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["nothing"], "nothing"),
        ([], "recsys export"),
        (["BUNDLE", "--host", "0.0.0.0"], "RECSYS_API_KEY"),
        (["BUNDLE", "--fallback", "nobody.txt"], "nobody.txt"),
        (["BUNDLE", "--port", "70000"], "--port"),
        (["BUNDLE", "--batch", "0"], "--batch"),
    ],
)
def test_the_command_refuses_what_cannot_be_served(
    bundle: Path, arguments: list[str], told: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from recsys.cli import main

    monkeypatch.delenv("RECSYS_API_KEY", raising=False)
    assert main(["serve", *(str(bundle) if one == "BUNDLE" else one for one in arguments)]) != 0
    assert told in capsys.readouterr().err
