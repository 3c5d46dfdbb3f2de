"""Runs contenders one process at a time, in rounds, and makes a dated table of what came out.

Contenders take turns within a round, so a machine that slows down slows all of them; of the rounds the median counts.
"""

from __future__ import annotations

import datetime
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from environments import UnavailableError, ensure

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
sys.path.insert(0, str(ROOT))  # this library, from the checkout the benchmark lies in
# Variables that change threading or memory allocation: no contender gets them, whatever the shell has set.
DROPPED = ("MALLOC_", "LD_PRELOAD", "GLIBC_TUNABLES", "OMP_", "MKL_", "KMP_", "GOMP_", "OPENBLAS_", "PYTHON", "TORCH")
ROLES = ("ours", "peer", "yardstick")


@dataclass(frozen=True)
class Contender:
    """One row of the table: which runner, with which variant, in which environment (None: this interpreter)."""

    name: str
    module: str
    environment: str | None = None
    variant: str = ""
    role: str = "peer"
    note: str = ""
    gib: float = 2.0  # free memory it must find before it is started


def available_gib() -> float:
    """Memory that a new process can have, in GiB; unknown counts as plenty."""
    meminfo = Path("/proc/meminfo")
    if not meminfo.exists():
        return float("inf")
    line = next(line for line in meminfo.read_text().splitlines() if line.startswith("MemAvailable"))
    return int(line.split()[1]) / 1024**2


def run(contender: Contender, task: dict[str, Any], cache: Path, timeout: float) -> dict[str, Any]:
    """One measurement in a process of its own; ``{"error": why}`` if there is none."""
    try:
        python = Path(sys.executable) if contender.environment is None else ensure(contender.environment, cache)
    except UnavailableError as error:
        return {"error": str(error)}
    if available_gib() < contender.gib:
        return {"error": f"needs {contender.gib:.0f} GiB of free memory, and {available_gib():.1f} GiB are free"}
    folder = Path(tempfile.mkdtemp(prefix="recsys-speed-"))
    try:
        (folder / "task.json").write_text(json.dumps({**task, "variant": contender.variant}))
        command = [str(python), "-m", f"peers.{contender.module}", "task.json", "result.json"]
        environment = {name: value for name, value in os.environ.items() if not name.startswith(DROPPED)}
        threads = str(task["threads"])
        environment |= {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads, "CUDA_VISIBLE_DEVICES": ""}
        environment["PYTHONPATH"] = os.pathsep.join([str(HERE), str(ROOT)])
        load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
        try:
            done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=timeout)
        except subprocess.TimeoutExpired:
            return {"error": f"not done after {timeout:.0f} s"}
        if not (folder / "result.json").exists():
            last = (done.stderr.strip() or done.stdout.strip() or "no output").splitlines()[-1]
            return {"error": f"exit {done.returncode}: {last}", "log": done.stderr[-4000:]}
        return {**json.loads((folder / "result.json").read_text()), "load_before": load}
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def hold(
    contenders: Sequence[Contender], task: dict[str, Any], rounds: int, cache: Path, timeout: float
) -> list[dict[str, Any]]:
    """Every contender once per round, one after the other; one summary per contender, in their order."""
    runs: dict[str, list[dict[str, Any]]] = {contender.name: [] for contender in contenders}
    for number in range(rounds):
        for contender in contenders:
            if any("error" in earlier for earlier in runs[contender.name]):
                continue
            result = run(contender, task, cache, timeout)
            runs[contender.name].append(result)
            told = result.get("error") or f"{result['per_second']:,.0f}/s, {result['peak_mib']:,.0f} MiB"
            print(f"round {number + 1}/{rounds}  {contender.name}: {told}", file=sys.stderr, flush=True)
    return summarise(contenders, runs)


def summarise(contenders: Sequence[Contender], runs: dict[str, list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """Medians over the rounds, and the ratio of each speed to that of the fastest other library."""
    rows = []
    for contender in contenders:
        good = [result for result in runs[contender.name] if "error" not in result]
        row: dict[str, Any] = {**asdict(contender), "runs": runs[contender.name]}
        if good:
            speeds = [result["per_second"] for result in good]
            row |= {"per_second": statistics.median(speeds), "slowest": min(speeds), "fastest": max(speeds)}
            row["peak_mib"] = statistics.median(result["peak_mib"] for result in good)
            row["loaded_mib"] = statistics.median(result["loaded_mib"] for result in good)
            row["cores"] = statistics.median(result["cores"] for result in good)
            row["versions"] = good[0]["versions"]
            row["metrics"] = good[0].get("metrics")
            row["catalogue"] = good[0].get("catalogue")
        if len(good) < len(runs[contender.name]):
            row["error"] = next(result["error"] for result in runs[contender.name] if "error" in result)
        rows.append(row)
    best = max((row["per_second"] for row in rows if row["role"] == "peer" and "per_second" in row), default=None)
    for row in rows:
        row["ratio"] = row["per_second"] / best if best and "per_second" in row else None
    return rows


def machine(threads: int) -> dict[str, Any]:
    """Where and when the numbers were taken."""
    names: list[str] = []
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1024**3 if hasattr(os, "sysconf") else None
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=HERE, capture_output=True, text=True)
    return {
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "processor": names[0] if names else platform.processor(),
        "cores": os.cpu_count(),
        "memory_gib": None if total is None else round(total, 1),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "python": platform.python_version(),
        "threads": threads,
        "allocator": "the system's, no settings",
        "load_before": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "commit": commit.stdout.strip() or None,
    }


def table(rows: Sequence[dict[str, Any]], unit: str) -> str:
    """The summaries of one task as a Markdown table."""
    lines = [
        f"| | version | {unit}/s, median (lowest to highest) | against the fastest other library | peak memory, MiB "
        "(libraries alone) | cores busy | remarks |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        if "per_second" not in row:
            lines.append(f"| {row['name']} | | not measured | | | | {row['error']} |")
            continue
        library, version = next(iter(row["versions"].items()))
        speed = f"{row['per_second']:,.0f} ({row['slowest']:,.0f} to {row['fastest']:,.0f})"
        ratio = "" if row["ratio"] is None else f"{row['ratio']:.2f} ×"
        memory = f"{row['peak_mib']:,.0f} ({row['loaded_mib']:,.0f})"
        remarks = [row["note"], f"{row['catalogue']:,} items" if row["catalogue"] else ""]
        remarks += [f"{name} {value:.6f}" for name, value in (row["metrics"] or {}).items()]
        remarks.append(f"a round failed: {row['error']}" if "error" in row else "")
        told = "; ".join(filter(None, remarks))
        cells = [row["name"], f"{library} {version}", speed, ratio, memory, f"{row['cores']:.2f}", told]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def write(output: Path, name: str, title: str, stamp: dict[str, Any], parts: Sequence[dict[str, Any]]) -> None:
    """``name.json`` with everything, ``name.md`` with the tables: a title, where it was measured, a table per part."""
    told = ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in stamp.items() if value is not None)
    text = [f"# {title}", "", f"Command: `{stamp_command()}`", "", f"Measured: {told}.", ""]
    for part in parts:
        text += [f"## {part['name']}", "", part["text"], "", table(part["rows"], part["unit"]), ""]
    save(output / name, "\n".join(text), {"stamp": stamp, "command": stamp_command(), "parts": list(parts)})


def save(path: Path, text: str, content: dict[str, Any]) -> None:
    """``path``.md with the tables and ``path``.json with the numbers, each whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    for suffix, data in ((".json", json.dumps(content, indent=1)), (".md", text)):
        partial = path.with_name(f"{path.name}{suffix}.partial")
        partial.write_text(data + "\n", encoding="utf-8")
        os.replace(partial, path.with_name(f"{path.name}{suffix}"))


def stamp_command() -> str:
    """The command line that makes these numbers, from the repository root."""
    script = Path(sys.argv[0]).resolve()
    shown = script.relative_to(ROOT) if script.is_relative_to(ROOT) else script.name
    return " ".join(["python", str(shown), *sys.argv[1:]])
