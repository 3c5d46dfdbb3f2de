"""Cost of each encoder: tokens, targets and floating-point work per second, peak memory, and what reasoning adds.

    python benchmarks/speed/encoders.py                      all encoders at L = 50 and 200, two threads
    python benchmarks/speed/encoders.py --only SIGMA --threads 1
    python benchmarks/speed/encoders.py --steps             only what reasoning steps add

Every encoder reads the same made-up full-length histories (no padding, 3,416 items). *Encoder* is forward and backward
of the encoder alone; *step* is a whole training step: encoder, full softmax, Adam. Encoders that see only the past
train every position of a row, the others one target per row, which is what a target costs them. Work is counted by
torch's own counter for what goes through its matrix products, plus 9 E N per token of each selective scan (forward);
backward counts twice. *Share* compares it with the fp32 matrix product of 2048 x 2048 measured in the same process.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from contest import HERE, ROOT, available_gib, machine, save, stamp_command

ITEMS, DIM = 3416, 64
LENGTHS = (50, 200)


def main() -> None:
    """Measure what the command line asks for, each encoder in a process of its own, rounds interleaved."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", help="encoders whose name contains one of these (default: all)")
    parser.add_argument("--lengths", type=int, nargs="+", default=list(LENGTHS))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=4.0, help="of each of the two measurements, per round")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--output", type=Path, default=HERE / "results")
    parser.add_argument("--steps", action="store_true", help="only what reasoning steps add at inference")
    options = parser.parse_args()
    stamp = machine(options.threads)
    if not options.steps:
        runs = measured(options)
        told = f"{options.rounds} rounds of {options.seconds:g} s, medians."
        rows = [{"name": name, "length": length, "runs": found} for (name, length), found in runs.items()]
        record(options.output / "encoders", "Encoders: speed and memory", stamp, told, table(runs), {"encoders": rows})
    found = child(options, ["--reasoning"])
    told = "S = 50, d = 256, B = 256, encoder only, medians of interleaved calls."
    record(
        options.output / "reasoning", "Reasoning steps at inference", stamp, told, steps_table(found), {"steps": found}
    )


def measured(options: argparse.Namespace) -> dict[tuple[str, int], list[dict[str, Any]]]:
    """(encoder, length) -> its rounds."""
    names = [name for name in encoders(50) if not options.only or any(part in name for part in options.only)]
    tasks = [(name, length) for length in options.lengths for name in names]
    runs: dict[tuple[str, int], list[dict[str, Any]]] = {task: [] for task in tasks}
    for number in range(options.rounds):
        for name, length in tasks:
            if any("error" in run for run in runs[name, length]):
                continue
            found = child(options, ["--encoder", name, "--length", str(length)])
            runs[name, length].append(found)
            told = found.get("error") or f"{found['tokens']:,.0f} tokens/s, {found['targets']:,.0f} targets/s"
            print(f"round {number + 1}/{options.rounds}  L={length}  {name}: {told}", file=sys.stderr, flush=True)
    return runs


def record(path: Path, title: str, stamp: dict[str, Any], told: str, lines: str, found: dict[str, Any]) -> None:
    """Write one result, as numbers and as text, whole or not at all."""
    where = ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in stamp.items() if value is not None)
    head = [f"# {title}", "", f"Command: `{stamp_command()}`", "", f"Measured: {where}; {told}", ""]
    text = "\n".join([*head, lines, ""])
    save(path, text, {"stamp": stamp, "command": stamp_command(), **found})
    print(text)


def encoders(length: int) -> dict[str, Callable[[], Any]]:
    """The encoders of the table by name, at their usual sizes for width 64."""
    from benchmarks.quality.released import PaddedSIGMA
    from recsys.encoders.bert4rec import BERT4Rec
    from recsys.encoders.gru4rec import GRU4Rec
    from recsys.encoders.mamba4rec import Mamba4Rec
    from recsys.encoders.rearec import ReaRec
    from recsys.encoders.sasrec import SASRec
    from recsys.encoders.sigma import SIGMA
    from recsys.encoders.unirec import UniRec

    def sasrec() -> SASRec:
        return SASRec(DIM, 2, 2, max_length=length)

    return {
        "SASRec": sasrec,
        "GRU4Rec": lambda: GRU4Rec(DIM, max_length=length),
        "BERT4Rec": lambda: BERT4Rec(DIM, max_length=length),
        "Mamba4Rec": lambda: Mamba4Rec(DIM, max_length=length),
        "Mamba4Rec, torch scan": lambda: Mamba4Rec(DIM, max_length=length, kernel="torch"),
        "SIGMA": lambda: SIGMA(DIM, max_length=length),
        "SIGMA, torch scan": lambda: SIGMA(DIM, max_length=length, kernel="torch"),
        "SIGMA, all read out": lambda: SIGMA(DIM, max_length=length, readout="all"),
        "SIGMA, repo flip": lambda: PaddedSIGMA(DIM, max_length=length),
        "UniRec": lambda: UniRec(DIM, max_length=length),
        "ReaRec(SASRec), 2 steps": lambda: ReaRec(sasrec(), 2),
        "ReaRec(GRU4Rec), 2 steps": lambda: ReaRec(GRU4Rec(DIM, max_length=length), 2),
    }


def child(options: argparse.Namespace, more: list[str]) -> dict[str, Any]:
    """One measurement in a process of its own, which has the threads to itself."""
    if available_gib() < 2:
        return {"error": f"{available_gib():.1f} GiB are free, 2 are needed"}
    with tempfile.TemporaryDirectory(prefix="recsys-speed-") as folder:
        result = Path(folder) / "result.json"
        command = [sys.executable, __file__, "--child", str(result), str(options.seconds), options.device, *more]
        threads = str(options.threads)
        environment = {**os.environ, "OMP_NUM_THREADS": threads, "NUMBA_NUM_THREADS": threads, "PYTHONPATH": str(ROOT)}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=1800)
        if not result.exists():
            return {"error": (done.stderr.strip().splitlines() or ["no output"])[-1]}
        return json.loads(result.read_text())


def measure(name: str, length: int, seconds: float, device: str) -> dict[str, Any]:
    """Encoder alone, whole step, work and memory of one encoder at one length."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    import recsys as rs
    from recsys.data.batch import Batch
    from recsys.protocols import Context, Step

    encoder = encoders(length)[name]()
    rows = max(16, 6400 // length) * 2 if encoder.sees == "past" else 256
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(1, ITEMS + 1, (rows, length + 1), generator=generator)
    times = torch.randint(1, 10**8, ids.shape, generator=generator).cumsum(1)
    whole = torch.full((rows,), length + 1)
    users = torch.arange(rows)
    raw = Batch(users, users, ids, whole, times=times, query_time=times[:, -1] + 1).to(device)
    items = rs.IdItems(DIM, extra=1)
    targets: Any = rs.NextItem() if encoder.sees == "past" else rs.LastItem()
    model = rs.Recommender(items, encoder, rs.FullSoftmax(), targets)
    model.bind(Context(ITEMS))
    model.to(device).train()
    batch = model.prepare(raw, Step(raw))
    wanted = len(batch.wanted_tokens)
    baseline = peak_mib(device)

    def encode() -> None:
        model.zero_grad(set_to_none=True)
        encoded = model.encode(batch)
        encoded.tokens.index_select(0, batch.wanted_tokens).square().mean().backward()

    optimizer = torch.optim.Adam(model.parameters(), 1e-3)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        sum(model.loss(Step(batch, total_weight=wanted)).values()).backward()
        optimizer.step()

    alone = rate(encode, seconds, device)
    stepped = rate(step, seconds, device)
    peak = peak_mib(device)  # before the counter, which holds records of its own
    with FlopCounterMode(display=False) as counter:
        model.encode(batch)
    work = counter.get_total_flops() + scans(encoder) * int(batch.lengths.sum())
    return {
        "tokens": alone * rows * length,
        "encoded_targets": alone * wanted,
        "targets": stepped * wanted,
        "flop_per_token": work / (rows * length),
        "flop_per_second": 3 * work * alone,
        "peak_flop_per_second": product(seconds, device),
        "peak_mib": peak,
        "baseline_mib": baseline,
        "rows": rows,
        "parameters": sum(parameter.numel() for parameter in encoder.parameters()),
    }


def scans(encoder: Any) -> int:
    """Work per token of the selective scans of an encoder, which torch's counter does not see (9 E N each)."""
    from recsys.nn.mamba import Mamba

    found = sum(9 * layer.A_log.numel() for layer in encoder.modules() if isinstance(layer, Mamba))
    return found * (2 if type(encoder).__name__.endswith("SIGMA") else 1)


def rate(call: Callable[[], None], seconds: float, device: str) -> float:
    """Calls per second, after two to warm up."""
    import torch

    for _ in range(2):
        call()
    if device == "cuda":
        torch.cuda.synchronize()
    began, count = time.perf_counter(), 0
    while time.perf_counter() - began < seconds:
        call()
        count += 1
        if device == "cuda":
            torch.cuda.synchronize()
    return count / (time.perf_counter() - began)


def product(seconds: float, device: str) -> float:
    """Floating-point operations per second of a large fp32 matrix product."""
    import torch

    size = 2048 if device == "cpu" else 8192
    left, right = torch.randn(size, size, device=device), torch.randn(size, size, device=device)
    return rate(lambda: torch.mm(left, right), seconds / 2, device) * 2 * size**3


def peak_mib(device: str) -> float:
    """Most memory this process held so far (on a GPU: of the tensors there)."""
    if device == "cuda":
        import torch

        return torch.cuda.max_memory_allocated() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


def reasoning(seconds: float, device: str) -> dict[str, Any]:
    """Encoding with 0 to 3 reasoning steps at S = 50, d = 256, B = 256 (the reference size), rounds interleaved.

    As a query the states of the newest items alone are asked for; "-1" reads those of all items, without steps.
    """
    import torch

    from recsys.data.batch import Batch
    from recsys.encoders.gru4rec import GRU4Rec
    from recsys.encoders.rearec import ReaRec
    from recsys.encoders.sasrec import SASRec
    from recsys.items.ids import IdItems
    from recsys.protocols import Context

    found = {}
    ids = torch.randint(1, ITEMS + 1, (256, 50), generator=torch.Generator().manual_seed(0))
    batch = Batch(torch.arange(256), torch.arange(256), ids, torch.full((256,), 50)).to(device)
    sasrec = SASRec(256, 2, 2, 0.0, layout="post", hidden=300, activation="gelu", input_norm=True, final_norm=False)
    for name, base in (("SASRec", sasrec), ("GRU4Rec", GRU4Rec(256, hidden=256))):
        items, encoder = IdItems(256, scale=False), ReaRec(base, 3)
        for part in (items, encoder):
            part.bind(Context(ITEMS))
            part.to(device).eval()
        spent: dict[int, list[float]] = {steps: [] for steps in range(-1, 4)}  # -1: no steps, all states read
        began = time.perf_counter()
        with torch.inference_mode():
            while time.perf_counter() - began < 6 * seconds or len(spent[0]) < 5:
                for steps, times in spent.items():
                    start = time.perf_counter()
                    asked = batch.ask_all() if steps < 0 else batch
                    encoder(asked, items, steps=max(steps, 0)).user.sum().item()
                    times.append(time.perf_counter() - start)
        found[name] = {steps: statistics.median(times[2:]) for steps, times in spent.items()}
    return found


def table(runs: dict[tuple[str, int], list[dict[str, Any]]]) -> str:
    """One line per encoder and length."""
    lines = [
        "| L | encoder | parameters | tokens/s, encoder | targets/s, encoder | targets/s, step "
        "| MFLOP a token, forward | share of peak | extra MiB | remark |",
        "|---" * 10 + "|",
    ]
    for (name, length), found in runs.items():
        good = [run for run in found if "error" not in run]
        if not good:
            lines.append(f"| {length} | {name} | | | | | | | | {found[-1]['error'] if found else 'not run'} |")
            continue
        middle = {key: statistics.median(run[key] for run in good) for key in good[0]}
        share = statistics.median(run["flop_per_second"] / run["peak_flop_per_second"] for run in good)
        lines.append(
            f"| {length} | {name} | {middle['parameters']:,.0f} | {middle['tokens']:,.0f} "
            f"| {middle['encoded_targets']:,.0f} | {middle['targets']:,.0f} | {middle['flop_per_token'] / 1e6:.3f} "
            f"| {share:.0%} | {middle['peak_mib'] - middle['baseline_mib']:,.0f} | {middle['rows']:.0f} rows |"
        )
    return "\n".join(lines)


def steps_table(found: dict[str, Any]) -> str:
    """Cost of reasoning steps as a ratio to none: to a query, and to an encoder that computes all states."""
    if "error" in found:
        return f"not measured: {found['error']}"
    lines = ["| encoder | all states, K = 0, ms | K = 0, ms | K = 1 | K = 2 | K = 3 |", "|---" * 6 + "|"]
    for name, times in found.items():
        base, whole = times["0"], times["-1"]
        ratios = (f"{times[k] / base:.3f} × ({times[k] / whole:.3f} × of all states)" for k in ("1", "2", "3"))
        lines.append(f"| {name} | {whole * 1000:.1f} | {base * 1000:.1f} | {' | '.join(ratios)} |")
    return "\n".join(lines)


def run_child(arguments: list[str]) -> None:
    """What ``child`` starts."""
    parser = argparse.ArgumentParser()
    parser.add_argument("result", type=Path)
    parser.add_argument("seconds", type=float)
    parser.add_argument("device")
    parser.add_argument("--encoder")
    parser.add_argument("--length", type=int)
    parser.add_argument("--reasoning", action="store_true")
    chosen = parser.parse_args(arguments)
    if chosen.reasoning:
        found = reasoning(chosen.seconds, chosen.device)
    else:
        found = measure(chosen.encoder, chosen.length, chosen.seconds, chosen.device)
    chosen.result.write_text(json.dumps(found))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        run_child(sys.argv[2:])
    else:
        main()
