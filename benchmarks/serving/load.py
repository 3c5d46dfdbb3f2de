"""Load on ``recsys serve`` over loopback, beside what the model does in the process and what the web stack does alone.

    recsys quickstart --out runs/quickstart
    python benchmarks/serving/load.py --bundle runs/quickstart/bundle --name ml-100k
    python benchmarks/serving/load.py --name items-1000000-hnsw --items 1000000 --index hnsw

Needs ``wrk`` (a package of Debian's and Homebrew's) and the extra ``serve``. Each row is a server of its own; requests
hold one history of 30 random items and ask for 10. All rows of a table come from one call:

* *in process*: ``Bundle.recommend`` on batches of 64 such histories, median of rounds;
* *echo*: an application of the same web stack that answers with the JSON it was sent (``echo.py``);
* *served* at 1, 16, 64 and 256 connections, and at 64 without batching (``--batch 1``).

What the two first would give one after the other, 1 / (1 / in process + 1 / echo), is what a server could reach on one
core; *share* is of that, at the same number of connections. Without ``--bundle`` the model is a SASRec over as many
items as ``--items`` says, with weights nobody trained and item vectors around 1,000 centres; the recall of its index is
the one measured at export. ``--seconds`` of load a row, after a second that does not count; everything has one thread
of torch. Written to ``benchmarks/serving/results/load/NAME.json``, and the table of all to ``results/load.md``.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
RESULTS = HERE / "results"
CONNECTIONS, LOADED, BATCH, LENGTH, K, ROUNDS = (1, 16, 64, 256), 64, 64, 30, 10, 7
SCRIPT = """
local ids = {IDS}
wrk.method, wrk.headers["Content-Type"] = "POST", "application/json"
function request()
  local some = {}
  for at = 1, LENGTH do some[at] = ids[math.random(#ids)] end
  return wrk.format(nil, nil, nil, '{"histories": [[' .. table.concat(some, ",") .. ']], "k": K}')
end
function done(summary, latency, requests)
  local errors = summary.errors
  io.write(string.format('FOUND {"requests": %d, "seconds": %f, "errors": %d, "p50": %f, "p95": %f, "p99": %f}\\n',
    summary.requests, summary.duration / 1e6,
    errors.connect + errors.read + errors.write + errors.status + errors.timeout,
    latency:percentile(50) / 1e3, latency:percentile(95) / 1e3, latency:percentile(99) / 1e3))
end
"""


def main() -> None:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--name", help="of the result")
    add("--bundle", type=Path, help="a folder that export wrote")
    add("--items", type=int, default=100_000, help="of a model nobody trained, without --bundle")
    add("--index", choices=("exact", "hnsw"), default="exact", help="of that model")
    add("--seconds", type=int, default=8, help="of load, a row")
    asked = parser.parse_args()
    if asked.name is None or shutil.which("wrk") is None:
        parser.error("give --name, and install wrk (apt install wrk, brew install wrk)")
    with tempfile.TemporaryDirectory() as work:
        found = measured(asked.bundle or made(asked.items, asked.index, Path(work)), asked.seconds, Path(work))
    command = f"python benchmarks/serving/load.py {' '.join(sys.argv[1:])}"
    if asked.bundle:
        command = command.replace(str(asked.bundle), f"RUN/{asked.bundle.name}")
    (RESULTS / "load").mkdir(parents=True, exist_ok=True)
    (RESULTS / "load" / f"{asked.name}.json").write_text(json.dumps({"command": command, **found}, indent=1) + "\n")
    write_table()


def measured(bundle: Path, seconds: int, work: Path) -> dict[str, Any]:
    """All rows of one bundle."""
    import numpy as np
    import torch

    import recsys as rs
    from recsys.cli.doctor import processor

    torch.set_num_threads(1)
    loaded = rs.Bundle.load(bundle)
    ids = loaded.vocabulary.ids
    some = np.random.default_rng(0).choice(len(ids), min(len(ids), 20_000), replace=False)
    spelled = ",".join("'" + json.dumps(one) + "'" for one in ids[some].tolist())
    script = SCRIPT.replace("IDS", spelled).replace("LENGTH", str(LENGTH)).replace('"k": K', f'"k": {K}')
    (work / "ask.lua").write_text(script)
    found: dict[str, Any] = {
        "items": len(ids), "index": loaded.manifest["index"], "model": type(loaded.model).__name__,
        "date": str(datetime.date.today()), "machine": f"{processor()}, {os.cpu_count()} cores", "seconds": seconds,
        "versions": {name: importlib.metadata.version(name) for name in ("recsys", "torch", "starlette", "uvicorn")},
    }  # fmt: skip
    found["in_process"] = in_process(loaded, np.random.default_rng(1))
    print("in process", found["in_process"], flush=True)
    del loaded
    echo = [sys.executable, str(HERE / "echo.py")]
    serve = [sys.executable, "-m", "recsys", "serve", str(bundle), "--port"]
    with running(echo) as port:
        found["echo"] = {str(count): load(port, count, seconds, work) for count in CONNECTIONS}
    print("echo", found["echo"], flush=True)
    with running(serve) as port:
        found["served"] = {str(count): load(port, count, seconds, work) for count in CONNECTIONS}
    print("served", found["served"], flush=True)
    with running(serve, "--batch", "1") as port:
        found["unbatched"] = {str(LOADED): load(port, LOADED, seconds, work)}
    print("unbatched", found["unbatched"], flush=True)
    return found


def in_process(bundle: Any, random: Any) -> float:
    """Histories per second of encode and search, in batches."""
    ids, rates = bundle.vocabulary.ids, []
    for _ in range(ROUNDS + 1):
        histories = [ids[random.integers(0, len(ids), LENGTH)].tolist() for _ in range(BATCH)]
        began, count = time.perf_counter(), 0
        while time.perf_counter() - began < 0.7:
            bundle.recommend(histories, K)
            count += BATCH
        rates.append(count / (time.perf_counter() - began))
    return round(statistics.median(rates[1:]), 1)


@contextmanager
def running(command: list[str], *more: str) -> Iterator[int]:
    """A server on a free port, once it is ready."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = subprocess.Popen([*command, str(port), *more], stderr=subprocess.DEVNULL, env=environment())
    try:
        for _ in range(600):
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health/ready", timeout=5)
                break
            except OSError:
                if process.poll() is not None:
                    raise SystemExit(f"the server ended: {' '.join(command)}") from None
                time.sleep(0.5)
        yield port
    finally:
        process.terminate()
        process.wait()


def load(port: int, connections: int, seconds: int, work: Path) -> dict[str, float]:
    """Requests per second and latencies in milliseconds."""
    base = ["wrk", "-t1", f"-c{connections}", "--timeout", "30s", "-s", str(work / "ask.lua")]
    url = f"http://127.0.0.1:{port}/recommend"
    subprocess.run([*base, "-d1s", url], check=True, capture_output=True)
    time.sleep(1)  # what the tool hung up on is worked off, before it connects again all at once
    done = subprocess.run([*base, f"-d{seconds}s", url], check=True, capture_output=True, text=True).stdout
    told = json.loads(next(line for line in done.splitlines() if line.startswith("FOUND ")).removeprefix("FOUND "))
    row = {"rate": told["requests"] / told["seconds"], "errors": told["errors"]}
    return {name: round(value, 3) for name, value in {**row, **{at: told[at] for at in ("p50", "p95", "p99")}}.items()}


def made(items: int, index: str, work: Path) -> Path:
    """A bundle of a model that nobody trained."""
    import numpy as np
    import torch

    import recsys as rs
    from recsys.ids.vocabulary import Vocabulary
    from recsys.protocols import Context

    model = rs.Recommender(rs.IdItems(64), rs.SASRec(64, num_layers=2, num_heads=1, max_length=50), rs.FullSoftmax())
    ids = np.array([f"item-{number:07d}" for number in range(items)], object)
    model.bind(Context(num_items=items, vocabulary=Vocabulary(ids, 1), training=None))
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(1000, 64, generator=generator)
    weight = model.items.weight
    with torch.no_grad():
        near = centres[torch.randint(1000, (len(weight),), generator=generator)]
        weight.copy_(near + 0.5 * torch.randn(len(weight), 64, generator=generator))
    rs.export(model, work / "bundle", index=index, item_text={"title": np.array(["", *ids], object)})
    return work / "bundle"


def environment() -> dict[str, str]:
    """One thread of torch and faiss."""
    return {**os.environ, "OMP_NUM_THREADS": "1"}


def write_table() -> None:
    """The recorded results as one table."""
    lines = [
        "### recsys serve under load",
        "",
        "| items | index, recall@10 | in process /s | connections | echo /s | served /s | p50 ms | p95 | p99 | share "
        "| against --batch 1 |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    told = []
    for path in sorted((RESULTS / "load").glob("*.json"), key=lambda one: json.loads(one.read_text())["items"]):
        found = json.loads(path.read_text())
        index = found["index"] or {"kind": "none", "recall": {}}
        recall = (index.get("recall") or {}).get("at", {}).get("10")
        unused = ", not asked" if index["kind"] == "hnsw" and not index["depth"] else ""
        for count, row in found["served"].items():
            both = 1 / (1 / found["in_process"] + 1 / found["echo"][count]["rate"])
            alone = found["unbatched"].get(count)
            cells = [
                f"{found['items']:,}", f"{index['kind']}" + (f", {recall:.3f}{unused}" if recall is not None else ""),
                f"{found['in_process']:,.0f}", count, f"{found['echo'][count]['rate']:,.0f}", f"{row['rate']:,.0f}",
                f"{row['p50']:.1f}", f"{row['p95']:.1f}", f"{row['p99']:.1f}", f"{row['rate'] / both:.2f}",
                f"{row['rate'] / alone['rate']:.1f} x" if alone else "",
            ]  # fmt: skip
            lines.append(f"| {' | '.join(cells)} |")
        told.append(f"`{found['command']}`, {found['date']}, {found['machine']}.")
    (RESULTS / "load.md").write_text("\n".join([*lines, "", *told]) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
