"""Time and memory of the selective scan, forward and backward: each kernel against autograd through the plain loop.

    python benchmarks/speed/scan.py                     both sizes, three rounds, two threads
    python benchmarks/speed/scan.py --only numba naive --smoke

The plain loop is what the equation says, one step per token on all rows at once, differentiated by torch. Inputs are
random, step sizes near 0.69 as RecBole's initialisation has them. Extra memory is the peak of the process beyond what
it held with the inputs loaded and the kernel compiled; outputs and gradients count.
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
from pathlib import Path
from typing import Any

from contest import HERE, ROOT, available_gib, machine, save, stamp_command

KERNELS = ("naive", "numba", "numba, last token", "torch", "chunked")
SIZES = ((256, 200), (32, 50))  # rows, tokens of each
CHANNELS, STATES = 128, 32
NEEDED_GIB = 8.0  # what the plain loop may take


def main() -> None:
    """Measure every kernel at every size in a process of its own, rounds interleaved."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", help="kernels whose name begins with one of these (default: all)")
    parser.add_argument("--rounds", type=int, default=3, help="default: %(default)s")
    parser.add_argument("--seconds", type=float, default=5.0, help="measured per round (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=2, help="default: %(default)s")
    parser.add_argument("--output", type=Path, default=HERE / "results", help="default: benchmarks/speed/results")
    parser.add_argument("--smoke", action="store_true", help="one short round, nothing written")
    options = parser.parse_args()
    if options.smoke:
        options.rounds, options.seconds = 1, 0.5
    stamp = machine(options.threads)
    names = [name for name in KERNELS if not options.only or name.startswith(tuple(options.only))]
    runs: dict[tuple[int, int, str], list[dict[str, Any]]] = {(*size, name): [] for size in SIZES for name in names}
    for number in range(options.rounds):
        for (rows, length, name), found in runs.items():
            found.append(child(name, rows, length, options))
            told = found[-1].get("error") or f"{found[-1]['ms']:.1f} ms, {found[-1]['mib']:,.0f} MiB extra"
            print(
                f"round {number + 1}/{options.rounds}  {rows} x {length}  {name}: {told}", file=sys.stderr, flush=True
            )
    where = ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in stamp.items() if value is not None)
    text = [
        "# Selective scan: forward and backward", "", f"Command: `{stamp_command()}`", "",
        f"Measured: {where}, {versions(runs)}; {options.rounds} rounds of {options.seconds:g} s, medians.", "",
    ]  # fmt: skip
    for size in SIZES:
        text += [
            f"## {size[0]} rows of {size[1]} tokens, {CHANNELS} channels, {STATES} states",
            "",
            table(runs, size),
            "",
        ]
    print("\n".join(text))
    if not options.smoke:
        every = [
            {"rows": rows, "length": length, "kernel": kernel, "runs": found}
            for (rows, length, kernel), found in runs.items()
        ]
        content = {"stamp": stamp, "command": stamp_command(), "kernels": every}
        save(options.output / f"scan-{options.threads}-threads", "\n".join(text), content)


def child(name: str, rows: int, length: int, options: argparse.Namespace) -> dict[str, Any]:
    """One measurement in a process of its own, which has the threads to itself."""
    if available_gib() < NEEDED_GIB:
        return {"error": f"{available_gib():.1f} GiB are free, {NEEDED_GIB:g} are needed"}
    with tempfile.TemporaryDirectory(prefix="recsys-speed-") as folder:
        result, threads = Path(folder) / "result.json", str(options.threads)
        task = json.dumps({"name": name, "rows": rows, "length": length, "seconds": options.seconds})
        code = "import sys, scan; scan.run(*sys.argv[1:])"
        path = os.pathsep.join([str(HERE), str(ROOT)])
        environment = {**os.environ, "OMP_NUM_THREADS": threads, "NUMBA_NUM_THREADS": threads, "PYTHONPATH": path}
        command = [sys.executable, "-c", code, task, str(result)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=1800)
        if not result.exists():
            return {"error": (done.stderr.strip().splitlines() or ["no output"])[-1]}
        return json.loads(result.read_text())


def run(task: str, result: str) -> None:
    """In the child: time ``task`` and write the milliseconds of a call and the extra MiB to ``result``."""
    import torch

    settings = json.loads(task)
    torch.manual_seed(0)
    compute(settings["name"], *inputs_of(2, 20))  # imports, threads, compilation
    inputs = inputs_of(settings["rows"], settings["length"])
    held = reset_peak()
    compute(settings["name"], *inputs)
    extra = peak_mib() - held
    began, times = time.perf_counter(), []
    while time.perf_counter() - began < settings["seconds"] or not times:
        before = time.perf_counter()
        compute(settings["name"], *inputs)
        times.append(time.perf_counter() - before)
    used = {"torch": torch.__version__}
    if "numba" in sys.modules:
        used["numba"] = sys.modules["numba"].__version__
    Path(result).write_text(json.dumps({"ms": 1e3 * statistics.median(times), "mib": extra, "versions": used}))


def inputs_of(rows: int, length: int) -> tuple[list[Any], Any]:
    """x, delta, A, B, C, D of full rows, and where the rows start."""
    import torch

    tokens = rows * length
    A = -torch.arange(1.0, STATES + 1).expand(CHANNELS, STATES).clone()
    values = [torch.randn(tokens, CHANNELS), 0.6 + 0.2 * torch.rand(tokens, CHANNELS), A]
    values += [torch.randn(tokens, STATES), torch.randn(tokens, STATES), torch.randn(CHANNELS)]
    return [value.requires_grad_() for value in values], torch.arange(0, tokens + 1, length)


def compute(name: str, values: list[Any], start: Any) -> None:
    """One forward and backward pass."""
    import torch

    from recsys.nn.scan import selective_scan

    if name == "naive":
        y = naive(*values, rows=len(start) - 1)
    elif name == "numba, last token":
        y = selective_scan(*values, start, kernel="numba", at=start[1:] - 1)
    else:
        y = selective_scan(*values, start, kernel=name)
    torch.autograd.grad(y, values, torch.ones_like(y))


def naive(x: Any, delta: Any, A: Any, B: Any, C: Any, D: Any, rows: int) -> Any:
    """The recurrence as it is written, on rows of one length."""
    import torch

    x, delta, B, C = (value.view(rows, -1, value.shape[1]) for value in (x, delta, B, C))
    state, out = x.new_zeros(rows, *A.shape), []
    for t in range(x.shape[1]):
        decay = torch.exp(delta[:, t, :, None] * A)
        state = decay * state + (delta[:, t] * x[:, t])[:, :, None] * B[:, t, None]
        out.append((state * C[:, t, None]).sum(2) + D * x[:, t])
    return torch.stack(out, 1).flatten(0, 1)


def reset_peak() -> float:
    """MiB held now; the peak counts anew from here, where the system can do that."""
    if Path("/proc/self/clear_refs").exists():
        Path("/proc/self/clear_refs").write_text("5")
    return peak_mib()


def peak_mib() -> float:
    """The largest resident size of this process, MiB."""
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) / 1024
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1024**2 if sys.platform == "darwin" else 1024)


def table(runs: dict[tuple[int, int, str], list[dict[str, Any]]], size: tuple[int, int]) -> str:
    """One row per kernel: milliseconds, how many times faster than the plain loop, extra memory."""
    lines = [
        "| kernel | ms, median (lowest to highest) | against the plain loop | extra memory, MiB |",
        "|---|---|---|---|",
    ]
    slow = [found["ms"] for found in runs.get((*size, "naive"), []) if "ms" in found]
    for (rows, length, name), found in runs.items():
        good = [one for one in found if "ms" in one]
        if (rows, length) != size:
            continue
        if not good:
            lines.append(f"| {name} | not measured: {found[0]['error']} | | |")
            continue
        times = [one["ms"] for one in good]
        middle = statistics.median(times)
        ratio = f"{statistics.median(slow) / middle:.1f} ×" if slow else ""
        memory = statistics.median(one["mib"] for one in good)
        lines.append(f"| {name} | {middle:.1f} ({min(times):.1f} to {max(times):.1f}) | {ratio} | {memory:,.0f} |")
    return "\n".join(lines)


def versions(runs: dict[tuple[int, int, str], list[dict[str, Any]]]) -> str:
    """The libraries that took part."""
    used: dict[str, str] = {}
    for found in runs.values():
        used |= {key: value for one in found for key, value in one.get("versions", {}).items()}
    return ", ".join(f"{key} {value}" for key, value in used.items())


if __name__ == "__main__":
    main()
