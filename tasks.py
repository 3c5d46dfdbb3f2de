"""Two commands from a bare clone with only Python and pip; each makes the virtual environment it needs.

    python3 tasks.py quickstart        install the wheel of this checkout, run the main job on real data
    python3 tasks.py test              install for development, run the tests (further arguments go to pytest)
    python3 tasks.py check             style, types and import directions
    python3 tasks.py parity            the comparisons with RecBole, in an environment with its pins (Python 3.11)
    python3 tasks.py parity-trl        the comparisons with trl, in an environment of its own
    python3 tasks.py docs              API pages from the docstrings, into docs/api

``--fresh`` builds the environment anew, ``--envs FOLDER`` puts it elsewhere. Versions come from constraints.txt. Only
the standard library is used here.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
import venv
from collections.abc import Callable, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent
OLDEST, NEWEST = (3, 11), (3, 13)
QUICKSTART = ("recsys", "quickstart")  # a script of the environment and its arguments


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one task; the answer is the exit status of its last command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fresh", action="store_true", help="delete the environment first")
    parser.add_argument("--envs", type=Path, default=ROOT, help="folder of the environments (default: this checkout)")
    parser.add_argument("task", choices=list(TASKS))
    parser.add_argument("rest", nargs=argparse.REMAINDER, help="arguments for the task's program")
    chosen = parser.parse_args(arguments)
    if not OLDEST <= sys.version_info[:2] <= NEWEST:
        spans = f"{'.'.join(map(str, OLDEST))} to {'.'.join(map(str, NEWEST))}"
        parser.error(f"recsys needs Python {spans}, this is {sys.version.split()[0]}: run it with another python3")
    started = time.monotonic()
    try:
        TASKS[chosen.task](chosen.envs.resolve(), chosen.fresh, chosen.rest)
    except Failed as failure:
        print(f"\n{failure}", file=sys.stderr, flush=True)
        return failure.status
    say(f"{chosen.task} done in {time.monotonic() - started:.0f} s")
    return 0


class Failed(Exception):
    """A step did not succeed."""

    def __init__(self, message: str, status: int = 1) -> None:
        super().__init__(message)
        self.status = status or 1


def quickstart(envs: Path, fresh: bool, rest: list[str]) -> None:
    """Install the wheel of this checkout, as anybody would, and run the main job."""
    python = environment(envs / ".venv-quickstart", fresh)
    install(python, ".")
    program, *given = QUICKSTART
    step("quickstart", [str(script(python, program)), *given, *rest])


def test(envs: Path, fresh: bool, rest: list[str]) -> None:
    """Install for development and run the tests, as many at once as there are processors, each on one thread."""
    python = environment(envs / ".venv-test", fresh)
    install(python, "-e", ".[dev,text,llm,tune,report,serve]")
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    step("tests", [str(python), "-m", "pytest", "-q", "-n", "logical", "--dist", "worksteal", *rest])


def check(envs: Path, fresh: bool, rest: list[str]) -> None:
    """Style, types and import directions; all of them run before a failure counts."""
    python = environment(envs / ".venv-test", fresh)
    install(python, "-e", ".[dev,text,llm,tune,report,serve]")
    commands = (
        ("style", [str(python), "-m", "ruff", "check", "."]),
        ("format", [str(python), "-m", "ruff", "format", "--check", "."]),
        ("types", [str(python), "-m", "mypy"]),
        ("import directions", [str(script(python, "lint-imports"))]),
    )
    failures = []
    for label, command in commands:
        try:
            step(label, command)
        except Failed as failure:
            say(str(failure))
            failures.append(label)
    if failures:
        raise Failed(f"not in order: {', '.join(failures)}")


def docs(envs: Path, fresh: bool, rest: list[str]) -> None:
    """API pages from the docstrings, into docs/api."""
    python = environment(envs / ".venv-test", fresh)
    install(python, "-e", ".[dev,text,llm,tune,report,serve]")
    step("API pages", [str(python), "docs/build.py", *rest])


def parity(envs: Path, fresh: bool, rest: list[str]) -> None:
    """Compare with RecBole. Its pins (NumPy 1) contradict constraints.txt, of which only torch is taken."""
    if sys.version_info[:2] > (3, 11):
        raise Failed("RecBole 1.2.1 installs on Python 3.11 and older only: run this with python3.11")
    compared(envs / ".venv-parity", fresh, "parity", rest)


def parity_trl(envs: Path, fresh: bool, rest: list[str]) -> None:
    """Compare with trl, which brings a transformers of its own, newer than that of constraints.txt."""
    compared(envs / ".venv-parity-trl", fresh, "parity-trl", rest)


def compared(folder: Path, fresh: bool, extra: str, rest: list[str]) -> None:
    """Run the tests marked parity beside what this extra installs; comparisons with anything else skip."""
    python = environment(folder, fresh)
    pins = (ROOT / "constraints.txt").read_text().splitlines()
    torch = next(line for line in pins if line.startswith("torch=="))
    pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-compile"]
    step("install", [*pip, torch, "-e", f".[{extra}]", "pytest", "pytest-timeout", "hypothesis"])
    step(extra, [str(python), "-m", "pytest", "-q", "-m", "parity", "tests", *rest])


TASKS: dict[str, Callable[[Path, bool, list[str]], None]] = {
    "quickstart": quickstart,
    "test": test,
    "check": check,
    "docs": docs,
    "parity": parity,
    "parity-trl": parity_trl,
}


def environment(folder: Path, fresh: bool) -> Path:
    """The python of the virtual environment at ``folder``, made if it is missing, broken or of another version."""
    python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    if not fresh and python.exists() and version(python) == sys.version:
        return python
    say(f"making the virtual environment {folder}")
    started = time.monotonic()
    try:
        venv.EnvBuilder(clear=True, with_pip=True, symlinks=os.name != "nt").create(folder)
    except (OSError, subprocess.CalledProcessError) as problem:
        raise Failed(
            f"the virtual environment could not be made ({problem}); on Debian and Ubuntu: apt install python3-venv"
        ) from None
    say(f"environment made in {time.monotonic() - started:.0f} s")
    return python


def version(python: Path) -> str | None:
    """``sys.version`` of an interpreter that has a working pip, else None."""
    asked = [str(python), "-c", "import pip, sys; print(sys.version, end='')"]
    try:
        return subprocess.run(asked, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return None


def script(python: Path, name: str) -> Path:
    """A console script of the environment."""
    return python.parent / (f"{name}.exe" if os.name == "nt" else name)


def install(python: Path, *what: str) -> None:
    """Install with pip, in the tested versions; without compiling every module, most of which are never imported."""
    pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-compile"]
    step(f"install {what[-1]}", [*pip, "--constraint", "constraints.txt", *what])


def step(label: str, command: list[str]) -> None:
    """Run a command in the checkout and say how long it took."""
    shown = " ".join(os.path.relpath(part, ROOT) if part.startswith(str(ROOT)) else part for part in command)
    say(f"{label}: {shown}")
    started = time.monotonic()
    try:
        status = subprocess.run(command, cwd=ROOT, check=False).returncode
    except OSError as problem:
        raise Failed(f"{label} could not be started: {problem}") from None
    if status != 0:
        raise Failed(f"{label} failed with status {status} after {time.monotonic() - started:.0f} s", status)
    say(f"{label} took {time.monotonic() - started:.0f} s")


def say(line: str) -> None:
    """A line about what happens here, apart from the output of the programs that run."""
    print(f"[tasks] {line}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
