"""Makes the virtual environments the speed benchmarks run the other libraries in, one per library, kept between runs.

``python benchmarks/speed/environments.py`` makes them all; ``ensure`` makes one and returns its interpreter. Every
environment holds the same torch as the others, built for the CPU: several gigabytes of CUDA packages are never
downloaded; where only a CUDA build can be had, the library is left out of the comparison and the reason printed.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

TORCH = "2.13.0"
CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "recsys" / "benchmarks"


class UnavailableError(RuntimeError):
    """An environment cannot be made here; the message says why."""


@dataclass(frozen=True)
class Environment:
    """What one library is installed with. ``below`` is the first Python version its pins cannot live in."""

    name: str
    requirements: tuple[str, ...]
    below: tuple[int, int] | None = None
    torch: str = TORCH


ENVIRONMENTS = {
    "rectools": Environment("rectools", ("rectools[torch]==0.19.0",)),
    "replay": Environment("replay", ("replay-rec[torch]==0.22.0",)),
    # recbole needs ray <= 2.6.3 (no wheels from Python 3.12 on), numpy 1 and the pandas that still writes in place.
    "recbole": Environment("recbole", ("recbole==1.2.1", "numpy==1.26.4", "pandas==2.3.3"), below=(3, 12)),
}


def ensure(name: str, cache: Path = CACHE) -> Path:
    """The interpreter of the environment called ``name``, made first if it is missing or was made from other pins.

    Raises:
        UnavailableError: if it cannot be made (no suitable Python, no CPU build of torch, no network).
    """
    environment = ENVIRONMENTS[name]
    folder = cache / name
    interpreter = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    stamp = folder / "environment.json"
    wanted = json.loads(json.dumps(asdict(environment)))
    if interpreter.exists() and stamp.exists() and json.loads(stamp.read_text())["environment"] == wanted:
        return interpreter
    shutil.rmtree(folder, ignore_errors=True)
    started = time.perf_counter()
    print(f"making the environment of {name} in {folder}", file=sys.stderr)
    _call([_python(environment), "-m", "venv", str(folder)], name)
    _install(interpreter, environment)
    seconds = round(time.perf_counter() - started, 1)
    partial = stamp.with_name(stamp.name + ".partial")
    made = {"environment": wanted, "seconds": seconds, "packages": _packages(interpreter)}
    partial.write_text(json.dumps(made, indent=1))
    os.replace(partial, stamp)
    print(f"made in {seconds} s", file=sys.stderr)
    return interpreter


def _python(environment: Environment) -> str:
    """An interpreter old enough for the pins: this one, or an older one that is installed beside it."""
    if environment.below is None or sys.version_info[:2] < environment.below:
        return sys.executable
    for minor in range(environment.below[1] - 1, 9, -1):
        found = shutil.which(f"python3.{minor}")
        if found and subprocess.run([found, "-c", ""], capture_output=True).returncode == 0:
            return found
    version = ".".join(map(str, environment.below))
    raise UnavailableError(f"{environment.name} needs a Python older than {version}; install one and run again")


def _install(interpreter: Path, environment: Environment) -> None:
    pip = [str(interpreter), "-m", "pip", "--disable-pip-version-check", "install", "-q"]
    _install_torch(pip, environment)
    constraints = interpreter.parent.parent / "torch.txt"
    constraints.write_text(f"torch=={_packages(interpreter)['torch']}\n")
    _call([*pip, "-c", str(constraints), *environment.requirements], environment.name)
    cuda = [name for name in _packages(interpreter) if _is_cuda(name)]
    if cuda:
        raise UnavailableError(f"installing {environment.name} pulled CUDA packages: {', '.join(cuda[:3])}")


def _install_torch(pip: list[str], environment: Environment) -> None:
    """Install torch without CUDA: builds named so, and on Linux no other, since the index's own build brings CUDA."""
    exact = f"torch=={environment.torch}+cpu"
    attempts = [[exact]]
    if sys.platform != "linux":
        attempts.append([f"torch=={environment.torch}"])
    reasons = []
    for arguments in attempts:
        try:
            return _call([*pip, *arguments], environment.name)
        except UnavailableError as error:
            reasons.append(str(error))
    raise UnavailableError(
        f"{reasons[-1]}; only a build of torch {environment.torch} for the CPU will do (set PIP_FIND_LINKS to a folder "
        f"that holds its wheel, or PIP_EXTRA_INDEX_URL to an index)"
    )


def _is_cuda(name: str) -> bool:
    return bool(re.match(r"(nvidia|cuda|triton)", name.lower()))


def _packages(interpreter: Path) -> dict[str, str]:
    command = [str(interpreter), "-m", "pip", "--disable-pip-version-check", "list", "--format", "json"]
    listed = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    return {entry["name"].lower(): entry["version"] for entry in listed}


def _call(command: list[str], name: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise UnavailableError(f"making the environment of {name} failed: {_reason(done.stderr or done.stdout)}")


def _reason(output: str) -> str:
    lines = [line for line in output.strip().splitlines() if not line.startswith("WARNING")]
    errors = [line for line in lines if line.startswith("ERROR")]
    return (errors or lines or ["no output"])[-1]


def main() -> None:
    """Make the named environments, or all of them."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("names", nargs="*", help=f"which, out of {', '.join(ENVIRONMENTS)}; all if none is named")
    parser.add_argument("--cache", type=Path, default=CACHE, help="folder they are kept in (default: %(default)s)")
    options = parser.parse_args()
    for name in options.names or ENVIRONMENTS:
        try:
            print(f"{name}: {ensure(name, options.cache)}")
        except UnavailableError as error:
            print(f"{name}: left out, {error}")


if __name__ == "__main__":
    main()
