"""What the shell says: help, the machine, errors in one clear line, no control characters, any locale."""

from __future__ import annotations

import inspect
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import recsys as rs
from recsys import cli
from recsys.cli import COMMANDS, GROUPS, main, word
from recsys.runs.recipe import find_recipe, load_recipe, recipe_names
from recsys.testing import toy_split


def test_help_and_doctor(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    assert main(["doctor"]) == 0
    shown = capsys.readouterr().out
    assert "quickstart" in shown and "fit " in shown and "torch" in shown


@pytest.mark.parametrize("kind", ["file", "missing", "homeless"])
def test_hostile_7_doctor_says_whether_the_cache_can_be_written(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("RECSYS_CACHE", str(tmp_path / kind / "deeper"))
    if kind == "homeless":

        def homeless() -> Path:
            raise RuntimeError("Could not determine home directory.")

        for name in ("RECSYS_CACHE", "XDG_CACHE_HOME", "LOCALAPPDATA"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setattr(Path, "home", homeless)
    assert main(["doctor"]) == 0
    assert ("GB free" if kind == "missing" else "RECSYS_CACHE") in capsys.readouterr().out


def flags(shown: str) -> dict[str, str]:
    """What the help of a command says of each flag, without what is said of itself: kind and default."""
    lines = [line.strip("│").rstrip() for line in shown.splitlines()]
    found: dict[str, str] = {}
    for line in lines:
        if re.match(r" {1,2}(-{1,2}[a-z]|[A-Z]+\b)", line):
            flag, _, said = line.strip().partition("  ")
            found[flag] = said
        elif found and line.startswith("      "):
            found[flag] += f" {line.strip()}"
    return {
        flag: re.sub(r"\(default: .*?\)|\((required|optional|repeatable).*?\)", "", said).strip()
        for flag, said in found.items()
    }


@pytest.mark.parametrize(
    "words", [[name] for name in COMMANDS] + [["fit", name] for name in recipe_names()], ids=" ".join
)
def test_every_flag_is_explained(
    words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "300")
    with pytest.raises(SystemExit) as stop:
        main([*words, "--help"])
    assert stop.value.code == 0
    shown = capsys.readouterr().out
    taken = load_recipe(find_recipe(words[1])) if len(words) > 1 else COMMANDS[words[0]]
    told = flags(shown)
    if words not in (["fit"], ["tune"]):  # whose own flags come from argparse
        options = [one for one in inspect.signature(taken).parameters.values() if one.kind is not one.POSITIONAL_ONLY]
        assert {f"--{one.name}".replace("_", "-") for one in options} <= {flag.split()[0].rstrip(",") for flag in told}
    assert not [flag for flag, said in told.items() if len(said) < 4], told


def test_help_names_what_is_expected_and_each_default_once(capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["similar"], ["fit", "sracl"], ["fit", "sasrec_ml1m"]):
        with pytest.raises(SystemExit):
            main([*words, "--help"])
    shown = capsys.readouterr().out
    assert "Besides these: --out" in shown and shown.count("SRA-CL") == 1
    assert "BUNDLE ITEM ..." in shown and "--pool {user,prefix}" in shown
    assert "None" not in shown and "(default: )" not in shown


def test_a_flag_without_help_is_found() -> None:
    told = flags("│ --dim INT             (default: 64)        │\n│ --seed INT            of the draws (default: 0)  │")
    assert told == {"--dim INT": "", "--seed INT": "of the draws"}


def test_commands_are_listed_in_the_order_of_use(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    shown = capsys.readouterr().out.splitlines()
    found = [line.split()[0] for line in shown if line.startswith("  ") or line in GROUPS]
    assert found == [one for group, commands in GROUPS.items() for one in (group, *map(word, commands))]
    assert all(len(line) < 115 and len(line.split()) > 3 for line in shown if line.startswith("  "))
    assert {path.stem.replace("_", "-") for path in Path(cli.__file__).parent.glob("*.py")} >= set(
        COMMANDS
    )  # a file each


@pytest.mark.parametrize(
    ("error", "parts"),
    [
        (KeyError("folder"), ("evaluate runs/a", "KeyError", "folder")),
        (AttributeError("'NoneType' object has no attribute 'x'"), ("evaluate runs/a", "AttributeError")),
        (RecursionError(), ("evaluate runs/a", "RecursionError")),
        (AssertionError(), ("evaluate runs/a", "AssertionError")),
        (MemoryError(), ("evaluate runs/a", "MemoryError")),
        (OverflowError("int too big to convert"), ("evaluate runs/a", "too big")),
        (ValueError("operands could not be broadcast"), ("evaluate runs/a", "broadcast")),
        (rs.DataError("runs/a is\x1b[2J damaged"), ("runs/a is\\x1b[2J damaged",)),
        (PermissionError(13, "Permission denied", "there"), ("Permission denied", "there")),
    ],
    ids=lambda value: type(value).__name__,
)
def test_hostile_14_every_error_is_one_clear_line(
    error: Exception, parts: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import recsys.runs.read as saved

    def fail(*given: object) -> None:
        raise error

    monkeypatch.setattr(saved, "load_run", fail)
    assert main(["evaluate", "runs/a"]) == 1
    shown = capsys.readouterr().err
    assert "Traceback" not in shown and "\x1b" not in shown and len(shown.splitlines()) == 2
    assert all(part in shown for part in parts), shown
    monkeypatch.setenv("RECSYS_DEBUG", "1")
    with pytest.raises(type(error)):
        main(["evaluate", "runs/a"])


def test_hostile_7_an_error_in_the_cache_names_its_variable(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    import recsys.runs.read as saved

    def fail(*given: object) -> None:
        raise PermissionError(13, "Permission denied", str(tmp_path / "cache" / "artifacts" / "x"))

    monkeypatch.setenv("RECSYS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(saved, "load_run", fail)
    assert main(["evaluate", "runs/a"]) == 1 and "RECSYS_CACHE" in capsys.readouterr().err


def test_hostile_15_an_ascii_locale_prints_names_escaped(tmp_path: Path) -> None:
    toy_split().save(tmp_path / "ümlaut")
    forced = {"PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "LC_ALL": "C", "PYTHONIOENCODING": ""}
    environment = {**os.environ, **forced, "PYTHONPATH": str(Path(rs.__file__).parent.parent)}
    for command in (["audit", str(tmp_path / "ümlaut")], ["audit", "--help"], ["evaluate", "nirgends/ümlaut"]):
        done = subprocess.run(
            [sys.executable, "-m", "recsys", *command], cwd=tmp_path, env=environment, capture_output=True, check=False
        )
        assert done.returncode == (1 if command[0] == "evaluate" else 0), done.stderr
        assert b"UnicodeEncodeError" not in done.stderr and b"Traceback" not in done.stderr
        (done.stdout + done.stderr).decode("ascii")


def test_hostile_15_python_m_recsys_runs_nothing_of_the_working_folder(tmp_path: Path) -> None:
    for name in ("numpy", "tyro", "torch", "polars"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('the working folder was run')")
    environment = {**os.environ, "PYTHONPATH": str(Path(rs.__file__).parent.parent)}
    done = subprocess.run(
        [sys.executable, "-m", "recsys", "doctor"], cwd=tmp_path, env=environment, capture_output=True, check=False
    )
    assert done.returncode == 0 and b"torch" in done.stdout, done.stderr


def test_a_reader_that_has_seen_enough_is_no_error(tmp_path: Path) -> None:
    told = tmp_path / "told"
    command = f"{sys.executable} -m recsys --help 2>{told}; echo $? >&2"
    with subprocess.Popen(
        ["sh", "-c", command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ
    ) as shell:
        assert shell.stdout is not None and shell.stderr is not None
        shell.stdout.close()
        assert (shell.stderr.read().strip(), told.read_text()) == ("141", "")
