"""Cost of making views of a batch: each operation, the choices among them, and LACLRec's edit, against a training step.

    python benchmarks/speed/augment.py                 three rounds, two threads
    python benchmarks/speed/augment.py --smoke         one short round, nothing written

The step is SASRec's with the full softmax over 12,101 items: 256 histories of 50 items, every position trained, width
64, 2 layers, 2 heads, forward, backward and Adam. Histories are full, so that nothing is spared by padding. Similar
items are counted on made-up training rows; *once an epoch* is the product of all item vectors that ``EmbeddingSimilar``
takes, given for what it is and not as a share of a step. What LACLRec's edit costs depends on how much is inserted. A
fresh editor inserts at about every third token and never stops before five items, which is its worst; the taught one
has learned from 40 updates on corrupted histories how often to insert and when to stop (items are random here, so there
is nothing else to learn), and draws its decisions by that. All contenders take turns within a round.
"""

from __future__ import annotations

import argparse
import copy
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

from contest import HERE, ROOT, available_gib, machine, save, stamp_command

ITEMS, DIM, ROWS, LENGTH = 12_101, 64, 256, 50
STEP, ONCE = "training step", "similar vectors, once an epoch"
TARGET = 0.05  # of a step, the most that views may cost
EDIT_TARGET = 0.6  # and an edit by LACLRec
UPDATES = 40  # that teach the editor
TURN = 10  # calls of a quick contender in its turn
NEEDED_GIB = 2.0


def main() -> None:
    """Measure everything in a process of its own, as often as there are rounds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="default: %(default)s")
    parser.add_argument("--seconds", type=float, default=20.0, help="measured per round (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=2, help="default: %(default)s")
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default: %(default)s)")
    parser.add_argument("--output", type=Path, default=HERE / "results", help="default: benchmarks/speed/results")
    parser.add_argument("--smoke", action="store_true", help="one short round, nothing written")
    options = parser.parse_args()
    if options.smoke:
        options.rounds, options.seconds = 1, 1.0
    stamp = machine(options.threads)
    runs = []
    for number in range(options.rounds):
        runs.append(child(options))
        told = runs[-1].get("error") or f"a step takes {runs[-1]['ms'][STEP]:.1f} ms"
        print(f"round {number + 1}/{options.rounds}  {told}", file=sys.stderr, flush=True)
    where = ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in stamp.items() if value is not None)
    text = [
        "# Views: what they cost", "", f"Command: `{stamp_command()}`", "",
        f"Measured: {where}; {ROWS} histories of {LENGTH} items, {ITEMS:,} items, width {DIM}; {options.rounds} rounds "
        f"of {options.seconds:g} s, medians. Aim: at most {TARGET:.0%} of a step, an edit {EDIT_TARGET:.0%}.",
        "", table(runs), "",
    ]  # fmt: skip
    print("\n".join(text))
    if not options.smoke:
        name = "augment" if options.device == "cpu" else f"augment-{options.device}"
        content = {"stamp": stamp, "command": stamp_command(), "runs": runs}
        save(options.output / name, "\n".join(text), content)


def child(options: argparse.Namespace) -> dict[str, Any]:
    """One round in a process of its own, which has the threads to itself."""
    if available_gib() < NEEDED_GIB:
        return {"error": f"{available_gib():.1f} GiB are free, {NEEDED_GIB:g} are needed"}
    with tempfile.TemporaryDirectory(prefix="recsys-speed-") as folder:
        result, threads = Path(folder) / "result.json", str(options.threads)
        command = [sys.executable, __file__, "--child", str(result), str(options.seconds), options.device]
        environment = {**os.environ, "OMP_NUM_THREADS": threads, "NUMBA_NUM_THREADS": threads, "PYTHONPATH": str(ROOT)}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=1800)
        if not result.exists():
            return {"error": (done.stderr.strip().splitlines() or ["no output"])[-1]}
        return json.loads(result.read_text())


def measure(seconds: float, device: str) -> dict[str, Any]:
    """Median milliseconds of every contender, taking turns."""
    import torch

    torch.manual_seed(0)
    calls = contenders(device)
    spent: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        call(), call()
    began = time.perf_counter()
    while time.perf_counter() - began < seconds or len(spent[STEP]) < 3:
        for name, call in calls.items():
            turn = time.perf_counter()
            for _ in range(TURN):
                synchronise(device)
                start = time.perf_counter()
                call()
                synchronise(device)
                spent[name].append(time.perf_counter() - start)
                if time.perf_counter() - turn > 0.1:
                    break
    found = {name: 1e3 * statistics.median(times) for name, times in spent.items()}
    return {"ms": found, "torch": torch.__version__}


def contenders(device: str) -> dict[str, Callable[[], Any]]:
    """What is measured by name, the step first."""
    import torch

    import recsys as rs
    from recsys.augmentations.choice import DistinctPair, OneOf
    from recsys.augmentations.crop import Crop
    from recsys.augmentations.insert import Insert
    from recsys.augmentations.mask import Mask
    from recsys.augmentations.reorder import Reorder
    from recsys.augmentations.substitute import Substitute
    from recsys.data.batch import Batch
    from recsys.protocols import Context, Step
    from recsys.statistics.similarity import ItemCF, nearest

    context = Context(ITEMS, training=training())
    model = rs.Recommender(rs.IdItems(DIM, extra=2), rs.SASRec(DIM, 2, 2, max_length=LENGTH), rs.FullSoftmax())
    model.bind(context)
    model.to(device).train()
    ids = torch.randint(1, ITEMS + 1, (ROWS, LENGTH + 1))
    rows, lengths = torch.arange(ROWS), torch.full((ROWS,), LENGTH + 1)
    raw = Batch(rows, rows, ids, lengths, times=torch.arange(LENGTH + 1).expand_as(ids).contiguous()).to(device)
    batch = model.prepare(raw, Step(raw))
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        sum(model.loss(Step(batch, total_weight=ROWS * LENGTH)).values()).backward()
        optimizer.step()

    counted = ItemCF()
    operations = {
        "crop": Crop(),
        "mask by token": Mask(),
        "mask by dropping": Mask(0.7, "drop"),
        "reorder": Reorder(),
        "substitute": Substitute(0.1, counted),
        "insert": Insert(0.4, counted, LENGTH),
    }
    both = [Crop(0.2), Mask(0.7, "drop"), Reorder(0.2), *(operations[name] for name in ("substitute", "insert"))]
    parts: dict[str, Any] = dict(operations)
    parts["one of five (a view of CoSeRec)"] = OneOf(both, short=[3, 4, 1])
    parts["pair of crop, mask, reorder (both views of CL4SRec)"] = DistinctPair([Crop(), Mask(), Reorder()])
    parts["pair of all five"] = DistinctPair(both)
    generator = torch.Generator(device).manual_seed(0)
    calls: dict[str, Callable[[], Any]] = {STEP: step}
    for name, part in parts.items():
        if hasattr(part, "bind"):
            part.bind(context)
        part.to(device)
        calls[name] = lambda part=part: part(batch, generator)
    calls[ONCE] = lambda: nearest(model.items)
    for name, updates in (("edit (LACLRec) by a fresh editor", 0), ("edit (LACLRec) by a taught editor", UPDATES)):
        calls[name] = edit(model, batch, generator, updates)
    return calls


def edit(model: Any, batch: Any, generator: Any, updates: int) -> Callable[[], Any]:
    """One edit of all histories, by an editor that was taught for so many updates on a part of them."""
    import torch

    from recsys.augmentations.corruption import corrupt
    from recsys.auxiliaries.editor import Editor
    from recsys.protocols import Context

    model, editor = copy.deepcopy(model), Editor(DIM, decision="gumbel" if updates else "argmax")
    editor.bind(Context(ITEMS))
    editor.to(batch.ids.device)
    optimizer = torch.optim.Adam([*model.parameters(), *editor.parameters()], 1e-3)
    some = batch.select(torch.arange(ROWS // 4, device=batch.ids.device)).replace(targets=None)
    for _ in range(updates):
        corrupted = corrupt(some, ITEMS, generator, max_length=LENGTH)
        optimizer.zero_grad(set_to_none=True)
        sum(editor.loss(corrupted, model.encode, model.items).values()).backward()
        optimizer.step()
    return lambda: editor.edit(batch, model.encode, model.items, generator)


def training() -> Any:
    """Made-up training rows: 20,000 users with 9 items each, some items far more frequent than others."""
    import numpy as np

    from recsys.data.prepared import Prepared
    from recsys.data.split import TrainingEvents

    users, each = 20_000, 9
    items = (np.random.default_rng(0).random(users * each) ** 3 * ITEMS).astype(np.int32) + 1
    offsets = np.arange(users + 1) * each
    return TrainingEvents(Prepared(items, offsets, ITEMS), offsets[:-1], offsets[1:])


def synchronise(device: str) -> None:
    """Wait for what the device still does."""
    if device == "cuda":
        import torch

        torch.cuda.synchronize()


def table(runs: list[dict[str, Any]]) -> str:
    """One line per contender: milliseconds and share of a step, medians over the rounds."""
    good = [run for run in runs if "ms" in run]
    if not good:
        return f"not measured: {runs[0]['error']}"
    lines = ["| | ms, median (lowest to highest) | share of a training step |", "|---|---|---|"]
    for name in good[0]["ms"]:
        times = [run["ms"][name] for run in good if name in run["ms"]]
        share = statistics.median(run["ms"][name] / run["ms"][STEP] for run in good if name in run["ms"])
        aim = EDIT_TARGET if name.startswith("edit") else TARGET
        told = "" if name in (STEP, ONCE) else f"{share:.2%}" + ("" if share <= aim else " (above the aim)")
        lines.append(f"| {name} | {statistics.median(times):.2f} ({min(times):.2f} to {max(times):.2f}) | {told} |")
    return "\n".join(lines)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        Path(sys.argv[2]).write_text(json.dumps(measure(float(sys.argv[3]), sys.argv[4])))
    else:
        main()
