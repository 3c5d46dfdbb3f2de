"""Ten exchanges of a bundle during 30 seconds of load: does a request fail, and is each answer of the bundle it names?

    python benchmarks/serving/swaps.py --bundles runs/quickstart/bundle runs/quickstart/blend/bundle

The two bundles are written in turn over the folder that is served, and read by ``POST /bundles/NAME/reload``, while
eight callers ask for one history. Written to ``benchmarks/serving/results/swaps.txt``.
"""

from __future__ import annotations

import argparse
import datetime
import http.client
import json
import shutil
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from load import RESULTS, running

import recsys as rs

SWAPS, CALLERS = 10, 8


def main() -> None:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundles", type=Path, nargs=2, required=True, help="two that differ in their model")
    parser.add_argument("--history", nargs="+", default=["50", "172", "127"])
    parser.add_argument("--seconds", type=float, default=30.0)
    asked = parser.parse_args()
    bundles = [rs.Bundle.load(folder) for folder in asked.bundles]
    lists = {type(one.model).__name__: one.recommend([asked.history], 10).items[0] for one in bundles}
    with tempfile.TemporaryDirectory() as work:
        live = Path(work) / "live"
        shutil.copytree(asked.bundles[0], live)
        with running([sys.executable, "-m", "recsys", "serve", str(live), "--port"]) as port:
            told = swapped(port, live, bundles, lists, asked)
    text = f"{told}\npython benchmarks/serving/swaps.py, {datetime.date.today()}\n"
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "swaps.txt").write_text(text)
    print(text)


def swapped(port: int, live: Path, bundles: list[Any], lists: dict[str, list[Any]], asked: Any) -> str:
    """What happened during the exchanges, in a sentence."""
    seen: list[tuple[str, list[Any]]] = []
    failed: list[int] = []
    over = threading.Event()

    def ask() -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port)
        while not over.is_set():
            status, found = call(connection, "POST", "/recommend", {"histories": [asked.history]})
            if status == 200:
                seen.append((found["bundle"]["hash"], [one["id"] for one in found["results"][0]["items"]]))
            else:
                failed.append(status)

    connection = http.client.HTTPConnection("127.0.0.1", port)
    first = call(connection, "GET", "/bundles")[1]["bundles"][0]["hash"]
    kinds = {first: type(bundles[0].model).__name__}
    threads = [threading.Thread(target=ask) for _ in range(CALLERS)]
    for thread in threads:
        thread.start()
    began = time.monotonic()
    for number in range(1, SWAPS + 1):
        one = bundles[number % 2]
        rs.export(one.model, live, item_text=one.item_text)
        _, found = call(connection, "POST", "/bundles/live/reload")
        kinds[found["bundle"]["hash"]] = type(one.model).__name__
        time.sleep(max(0.0, began + number * asked.seconds / SWAPS - time.monotonic()))
    over.set()
    for thread in threads:
        thread.join()
    others = sum(found != lists[kinds[digest]] for digest, found in seen)
    return (
        f"{SWAPS} exchanges in {time.monotonic() - began:.0f} s under {CALLERS} callers: {len(seen):,} answers of "
        f"{len({digest for digest, _ in seen})} bundles, {len(failed)} requests failed, {others} answers were of "
        "another bundle than the one they name"
    )


def call(connection: Any, method: str, path: str, body: Any = None) -> tuple[int, Any]:
    """Status and JSON of an answer."""
    data = None if body is None else json.dumps(body)
    connection.request(method, path, data, {"Content-Type": "application/json"})
    answer = connection.getresponse()
    return answer.status, json.loads(answer.read())


if __name__ == "__main__":
    main()
