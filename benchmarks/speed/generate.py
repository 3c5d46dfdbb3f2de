"""Speed and memory of generative recommenders, a part at a time.

    python benchmarks/speed/generate.py --part trie     building tries, and what a search does at a level
    python benchmarks/speed/generate.py --part beam --threads 2     a constrained beam, against transformers
    python benchmarks/speed/generate.py --part train --threads 2    training in one pass, against a row per prefix
    python benchmarks/speed/generate.py --part rpg --threads 2      ranking by codes, against ranking by item vectors
    python benchmarks/speed/generate.py --part trie --smoke

Part "trie": 10,000, 100,000 and 1,000,000 items of four codes. Under "random", codes are drawn evenly from 256 a level,
as an even tokenizer gives them; nodes of small catalogues then have fewer children. Under "equal branching", nodes of
all levels but the first have ten children in every catalogue, so what differs is its size. What a search does at a
level: the children of 50 beams of each of 64 histories are found, those that lead to nothing but a history's 20 items
are left out, and the best 50 are taken; at the first one it also finds the nodes above a history's items, at the last
one it makes a list of 50 items. Log-probabilities lie ready, so no decoder is in it. Seconds and milliseconds on a CPU
are processor time.

Parts "beam" and "train" are told of in ``decoding.py``, part "rpg" in ``scoring.py``.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import decoding
import scoring
from contest import HERE, ROOT, machine, save, stamp_command
from scan import peak_mib, reset_peak

ITEMS = (10_000, 100_000, 1_000_000)
KINDS = ("random", "equal branching")
LEVELS, CODES, CHILDREN = 4, 256, 10
HISTORIES, BEAMS, SEEN = 64, 50, 20


def main() -> None:
    """Measure the chosen part, print its tables and write them."""
    parts: dict[str, Callable[[argparse.Namespace], tuple[str, dict[str, Any]]]] = {
        "trie": trie, "beam": decoding.beam, "train": decoding.train, "rpg": scoring.rpg,
    }  # fmt: skip
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=list(parts), required=True)
    parser.add_argument("--rounds", type=int, default=3, help="default: %(default)s")
    parser.add_argument("--seconds", type=float, default=5.0, help="measured per round (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="default: %(default)s")
    parser.add_argument("--device", default="cpu", help="default: %(default)s")
    parser.add_argument("--output", type=Path, default=HERE / "results", help="default: benchmarks/speed/results")
    parser.add_argument("--smoke", action="store_true", help="one short round, nothing written")
    options = parser.parse_args()
    if options.smoke:
        options.rounds, options.seconds = 1, 0.2
    stamp = machine(options.threads)
    text, content = parts[options.part](options)
    where = ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in stamp.items() if value is not None)
    head = (
        f"# Generation: {options.part}\n\nCommand: `{stamp_command()}`\n\nMeasured: {where}, device {options.device}; "
    )
    text = f"{head}{options.rounds} rounds of {options.seconds:g} s, medians.\n\n{text}\n"
    print(text)
    if not options.smoke:
        save(
            options.output / f"generate-{options.part}",
            text,
            {"stamp": stamp, "command": stamp_command(), "part": options.part, **content},
        )


def child(part: str, task: dict[str, Any], options: argparse.Namespace) -> dict[str, Any]:
    """The function ``part``_child of this file on a task, in a process of its own that has the threads to itself."""
    with tempfile.TemporaryDirectory(prefix="recsys-speed-") as folder:
        result, threads = Path(folder) / "result.json", str(options.threads)
        code = (
            f"import json, sys, generate; generate.written(generate.{part}_child(json.loads(sys.argv[1])), sys.argv[2])"
        )
        path = os.pathsep.join([str(HERE), str(ROOT)])
        environment = {**os.environ, "OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads, "PYTHONPATH": path}
        task = {**task, "seconds": options.seconds, "device": options.device}
        command = [sys.executable, "-c", code, json.dumps(task), str(result)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=1800)
        if not result.exists():
            return {"error": (done.stderr.strip().splitlines() or ["no output"])[-1]}
        return json.loads(result.read_text())


def written(found: dict[str, Any], path: str) -> None:
    """In the child: hand over what was measured."""
    Path(path).write_text(json.dumps(found))


def trie(options: argparse.Namespace) -> tuple[str, dict[str, Any]]:
    """Tables of part "trie", and what they are made of."""
    runs: dict[tuple[str, int], list[dict[str, Any]]] = {(kind, items): [] for kind in KINDS for items in ITEMS}
    for number in range(options.rounds):
        for (kind, items), found in runs.items():
            found.append(child("trie", {"kind": kind, "items": items}, options))
            told = found[-1].get("error") or f"built in {found[-1]['build']:.3f} s"
            print(f"round {number + 1}/{options.rounds}  {kind}, {items:,} items: {told}", file=sys.stderr, flush=True)
    text = []
    for kind in KINDS:
        text += [f"## {kind}", "", *trie_table({n: runs[kind, n] for n in ITEMS}), ""]
    every = [{"kind": kind, "items": items, "runs": found} for (kind, items), found in runs.items()]
    return "\n".join(text), {"tries": every}


def trie_table(runs: dict[int, list[dict[str, Any]]]) -> list[str]:
    """A row per size of catalogue: the trie, and milliseconds of each level of a search."""
    lines = [
        "| items | nodes by level | built, s | MB | while building, MB | "
        f"{' | '.join(f'level {level + 1}, ms' for level in range(LEVELS))} | search, ms per level |",
        "|" + "---|" * (6 + LEVELS),
    ]
    for items, found in runs.items():
        good = [one for one in found if "error" not in one]
        if not good:
            lines.append(f"| {items:,} | not measured: {found[0]['error']} |")
            continue
        middle = {name: statistics.median(one[name] for one in good) for name in ("build", "bytes", "extra", "search")}
        levels = [statistics.median(one["levels"][level] for one in good) for level in range(LEVELS)]
        cells = [f"{items:,}", ", ".join(f"{one:,}" for one in good[0]["nodes"]), f"{middle['build']:.3f}"]
        cells += [f"{middle['bytes'] / 1e6:.1f}", f"{middle['extra']:.0f}", *(f"{one:.2f}" for one in levels)]
        cells += [f"{middle['search'] / LEVELS:.2f}"]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def trie_child(task: dict[str, Any]) -> dict[str, Any]:
    """Build a trie and search it: seconds, bytes, and median milliseconds of what a search does."""
    import numpy as np
    import torch

    from recsys.generative.beam import Beam
    from recsys.generative.trie import Trie
    from recsys.ranking.filters import Pairs, Shown

    codes, sizes = catalogue(task["kind"], task["items"])
    Trie(codes[:1000], sizes)
    held, before = reset_peak(), spent_on("cpu")
    made = Trie(codes, sizes)
    build, extra = spent_on("cpu") - before, (peak_mib() - held) * 1.048576
    random = np.random.default_rng(1)
    seen = random.integers(0, task["items"], HISTORIES * SEEN)
    shown = Shown(Pairs(np.repeat(np.arange(HISTORIES), SEEN), seen))

    class Items:
        """What a search reads of a table."""

    items: Any = Items()
    items.sizes, items.codes = sizes, torch.from_numpy(np.concatenate([codes[:1] * 0, codes])).to(task["device"])
    device = task["device"]
    decoder, search, spent = ready(sizes, device), Beam(BEAMS), []
    for _ in range(3):
        search(decoder, None, items, shown, BEAMS)
    began = time.perf_counter()
    while time.perf_counter() - began < task["seconds"] or len(spent) < 5:
        search(decoder, None, items, shown, BEAMS)
        spent.append(np.diff([*decoder.times, spent_on(device)]) * 1e3)
    middle = np.median(spent, 0)
    return {
        "build": build, "extra": extra, "bytes": made.nbytes, "nodes": made.nodes[1:-1],
        "levels": middle.tolist(),
        "search": float(np.median(np.sum(spent, 1))), "torch": torch.__version__,
    }  # fmt: skip


def catalogue(kind: str, items: int) -> tuple[Any, list[int]]:
    """Codes (N, 4) and codes per level."""
    import numpy as np

    random = np.random.default_rng(0)
    if kind == "random":
        return random.integers(0, CODES, (items, LEVELS), dtype=np.int32), [CODES] * LEVELS
    first = items // CHILDREN ** (LEVELS - 1)
    columns, nodes = [np.arange(first)], first
    for _ in range(LEVELS - 1):  # each node ten children, under ten codes that differ from node to node
        start = random.integers(0, CODES, nodes)
        columns.append(((start[:, None] + 25 * np.arange(CHILDREN)) % CODES).ravel())
        nodes *= CHILDREN
    each = [np.repeat(column, items // len(column)) for column in columns]
    return random.permutation(np.stack(each, 1).astype(np.int32)), [max(first, CODES)] + [CODES] * (LEVELS - 1)


def ready(sizes: list[int], device: str) -> Any:
    """A decoder whose log-probabilities lie ready, and which notes when it is asked."""
    import torch

    class Ready:
        """Random log-probabilities of each level, the same for all beams that come in one order."""

        ordered = True

        def __init__(self) -> None:
            draw = torch.Generator().manual_seed(0)
            widths = [1] + [BEAMS] * (len(sizes) - 1)
            shapes = [(HISTORIES, width, size) for width, size in zip(widths, sizes)]
            self.tables = [torch.randn(shape, generator=draw).log_softmax(2).to(device) for shape in shapes]
            self.times: list[float] = []

        def begin(self, encoded: Any, items: Any) -> int:
            self.times = []
            return 0

        def step(self, memory: int, items: Any, tokens: Any, parents: Any) -> tuple[Any, int]:
            width = 1 if tokens is None else tokens.shape[1]
            self.times.append(spent_on(device))
            return self.tables[memory][:, :width], memory + 1

    return Ready()


def spent_on(device: str) -> float:
    """Seconds so far: of this process on a CPU, whatever else the machine does; on the clock for a GPU that is done."""
    if device == "cpu":
        return time.process_time()
    import torch

    torch.cuda.synchronize()
    return time.perf_counter()


if __name__ == "__main__":
    main()
