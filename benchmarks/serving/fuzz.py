"""Requests that nobody meant: 10,000 random bodies on every route of ``recsys serve``, and schemathesis on its schema.

    pip install schemathesis==4.32.5        # into an environment of its own
    python benchmarks/serving/fuzz.py --bundle runs/quickstart/bundle --schemathesis ENV/bin/st

A body is valid JSON of the right shape with a few values exchanged for others (missing, nested, huge, of another type),
or any JSON at all, or bytes cut short or damaged. None may be answered by an error of the server (5xx but 503). Written
to ``benchmarks/serving/results/fuzz.txt``.
"""

from __future__ import annotations

import argparse
import copy
import datetime
import http.client
import json
import random
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

from load import RESULTS, running

CHECKS = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"
GOOD: dict[str, Any] = {
    "/recommend": {
        "histories": [["1", 2], {"items": ["3"], "times": [5], "query_time": 6, "features": {"a": [1]}}], "k": 5,
        "exclude": "none", "allow": ["1", "2"], "deny": [3], "filters": {"title": {"has": ["a"], "min": 1}},
        "search": "exact",
    },
    "/similar": {"items": ["1", 2], "k": 3, "metric": "dot"},
    "/why": {"history": ["1", "2"], "items": ["3"]},
    "/items": {"items": [{"id": "new", "vector": [1.0, 2.0], "features": {"a": "b"}, "text": {"title": "c"}}]},
    "/items/withdraw": {"ids": ["1"]},
    "/items/restore": {"ids": ["1"]},
    "/feedback": {"events": [{"id": "a", "user": 1, "item": "2", "time": 3, "type": "buy", "value": 0.5}]},
}  # fmt: skip
ODD = [
    None, True, -1, 0, 2**31, 2**63, -(2**63), 10**400, 1.5, 1e308, -0.0, "", "1", "a" * 2000, "\0", "\ud800", "é",
    "NaN", [], {}, [[]], [None], {"": {}}, [1] * 300, {"is": []}, "2020-01-01",
]  # fmt: skip


def main() -> None:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--bodies", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--schemathesis", type=Path, help="its command st (default: left out)")
    asked = parser.parse_args()
    serve = [sys.executable, "-m", "recsys", "serve", str(asked.bundle), "--port"]
    with tempfile.TemporaryDirectory() as work, running(serve, "--feedback", f"{work}/events.ndjson") as port:
        told = [f"{asked.bodies:,} bodies: {bodies(port, asked.bodies, random.Random(asked.seed))}"]
        if asked.schemathesis:
            url = f"http://127.0.0.1:{port}/openapi.json"
            command = [str(asked.schemathesis), "run", url, "--checks", CHECKS, "--max-examples", "100"]
            done = subprocess.run(command, capture_output=True, text=True)
            line = next((one.strip() for one in done.stdout.splitlines() if "generated," in one), "it did not run")
            told.append(f"schemathesis, {CHECKS}: {line}, exit status {done.returncode}")
    text = "\n".join([*told, f"python benchmarks/serving/fuzz.py, seed {asked.seed}, {datetime.date.today()}", ""])
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "fuzz.txt").write_text(text)
    print(text)


def bodies(port: int, count: int, draw: random.Random) -> str:
    """Send so many bodies; how often each status was the answer.

    Raises:
        SystemExit: one was answered by an error of the server.
    """
    found: Counter[int] = Counter()
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    for _ in range(count):
        path = draw.choice(list(GOOD))
        body = spelled(changed(copy.deepcopy(GOOD[path]), draw) if draw.random() < 0.8 else draw.choice(ODD), draw)
        connection.request("POST", path, body, {"Content-Type": "application/json"})
        answer = connection.getresponse()
        answer.read()
        found[answer.status] += 1
        if answer.status >= 500 and answer.status != 503:
            raise SystemExit(f"{path} answered {answer.status} to {body[:300]!r}")
    return ", ".join(f"{times:,} x {status}" for status, times in sorted(found.items()))


def changed(value: Any, draw: random.Random) -> Any:
    """The same with some places left out or exchanged."""
    if draw.random() < 0.12:
        return draw.choice(ODD)
    if isinstance(value, dict):
        kept = {name: changed(one, draw) for name, one in value.items() if draw.random() < 0.9}
        return {**kept, "more": 1} if draw.random() < 0.03 else kept
    if isinstance(value, list):
        return [changed(one, draw) for one in value * draw.choice([0, 1, 1, 1, 2])]
    return value


def spelled(value: Any, draw: random.Random) -> bytes:
    """The bytes of a body, some of them damaged."""
    text = json.dumps(value).encode("utf-8", "surrogatepass")
    if draw.random() < 0.1 and text:
        at = draw.randrange(len(text))
        return text[:at] if draw.random() < 0.5 else text[:at] + bytes([draw.randrange(256)]) + text[at + 1 :]
    return text


if __name__ == "__main__":
    main()
