"""The folder of a run: one writer at a time, no links followed, nothing deleted but its own, no program started."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from cycles import cycles, tiny

from recsys.errors import DataError
from recsys.recommenders.popularity import Popularity
from recsys.runs.checkpoint import Checkpoint, read_checkpoint, write_checkpoint
from recsys.runs.write import RunFolder, commit
from recsys.train.fit import fit
from recsys.train.loop import Loop

QUIET = {"progress": False, "batch_size": 64, "epochs": 1}
ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("RECSYS_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def small():
    return cycles(users=20)


@pytest.fixture(scope="module")
def made(small, tmp_path_factory):
    home = tmp_path_factory.mktemp("made")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RECSYS_CACHE", str(home / "cache"))
        fit(tiny(), small, folder=home / "run", **QUIET)
    return home / "run"


@pytest.fixture
def run(made, tmp_path):
    shutil.copytree(made, tmp_path / "run")
    return tmp_path / "run"


@pytest.fixture
def home(tmp_path):
    """Somebody's folder, which must not change."""
    (tmp_path / "home" / "photos").mkdir(parents=True)
    (tmp_path / "home" / "photos" / "a").write_text("mine")
    (tmp_path / "home" / "step-7.0").mkdir()
    (tmp_path / "home" / "file").write_text("mine")
    return tmp_path / "home"


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.mark.parametrize("resume", ["auto", False])
@pytest.mark.parametrize("name", ["checkpoints", "vocabulary", "split", "baselines", "recipe_imports"])
def test_hostile_1_a_link_in_the_place_of_a_folder_is_refused_before_anything_happens(small, run, home, resume, name):
    if (run / name).is_dir():
        shutil.rmtree(run / name)
    (run / name).symlink_to(home)
    before, own = contents(home), contents(run)
    with pytest.raises((FileExistsError, DataError), match=name):
        fit(tiny(), small, folder=run, resume=resume, **QUIET)
    assert contents(home) == before and (home / "step-7.0").is_dir() and contents(run) == own


def test_hostile_1_only_checkpoints_of_ours_are_removed(small, run):
    others = ["photos", "step-one", "last", "step-1.0.backup"]
    for name in others:
        (run / "checkpoints" / name).mkdir()
        (run / "checkpoints" / name / "a").write_text("mine")
    for name in ("step-3", "step-00000009.4.partial", "step-2.0.0123456789abcdef.partial"):
        (run / "checkpoints" / name).mkdir()
    (run / "checkpoints" / "step-5.0").symlink_to(run.parent)
    fit(tiny(), small, folder=run, resume=False, **QUIET)
    left = {one.name for one in (run / "checkpoints").iterdir() if one.is_dir() and one.name not in others}
    assert len(left - {"step-5.0"}) == 1 and all((run / "checkpoints" / name / "a").exists() for name in others)


FILES = ["metrics.jsonl", "manifest.json", "config.json", "model.safetensors", "split.json", "recipe.py"]


@pytest.mark.parametrize("name", [*FILES, *(f"{name}.partial" for name in FILES), "report.html.partial"])
def test_hostile_2_no_file_elsewhere_is_written_through_a_link(small, run, home, name):
    if (run / name).exists() and name != "manifest.json":
        (run / name).unlink()
    if name == "manifest.json":
        shutil.copy(run / name, home / "file")
        (run / name).unlink()
    before = (home / "file").read_bytes()
    (run / name).symlink_to(home / "file")
    recipe = run.parent / "mine.py"
    recipe.write_text("# a recipe")
    fit(tiny(), small, folder=run, resume=False, recipe=recipe, **QUIET)
    assert (home / "file").read_bytes() == before


def test_hostile_3_no_program_is_started_for_the_commit(tmp_path, monkeypatch):
    marker = tmp_path / "started"
    program = tmp_path / "program.sh"
    program.write_text(f"#!/bin/sh\ntouch {marker}\n")
    program.chmod(0o755)
    path = tmp_path / "bin"
    path.mkdir()
    (path / "git").symlink_to(program)
    monkeypatch.setenv("PATH", f"{path}{os.pathsep}{os.environ['PATH']}")
    git = tmp_path / "work" / ".git"
    git.mkdir(parents=True)
    (git / "config").write_text(f"[core]\n\tfsmonitor = {program}\n\tpager = {program}\n")
    (git / "HEAD").write_text("a" * 40 + "\n")
    (tmp_path / "work" / "deep").mkdir()
    monkeypatch.chdir(tmp_path / "work" / "deep")
    assert commit() == "a" * 40 and not marker.exists()


@pytest.fixture
def git(tmp_path, monkeypatch):
    folder = tmp_path / "work" / ".git"
    (folder / "refs" / "heads").mkdir(parents=True)
    (folder / "HEAD").write_text("ref: refs/heads/main\n")
    monkeypatch.chdir(folder.parent)
    return folder


def test_the_commit_is_read_from_loose_and_packed_references_and_worktrees(git, tmp_path, monkeypatch):
    assert commit() is None
    (git / "packed-refs").write_text(f"# pack-refs with: peeled\n{'b' * 40} refs/heads/main\n^{'c' * 40}\n")
    assert commit() == "b" * 40
    (git / "refs" / "heads" / "main").write_text("d" * 40 + "\n")
    assert commit() == "d" * 40
    tree = tmp_path / "tree"
    tree.mkdir()
    inner = git / "worktrees" / "tree"
    inner.mkdir(parents=True)
    (tree / ".git").write_text(f"gitdir: {inner}\n")
    (inner / "HEAD").write_text("ref: refs/heads/main\n")
    (inner / "commondir").write_text("../..\n")
    monkeypatch.chdir(tree)
    assert commit() == "d" * 40


@pytest.mark.parametrize(
    "head", ["", "ref: ../../../secret", "ref: refs/../../secret", "\xff\xfe", "zz" * 20, "ref: refs/heads"]
)
def test_a_repository_that_is_damaged_or_lies_has_no_commit(git, head):
    (git.parent.parent / "secret").write_text("e" * 40)
    (git / "HEAD").write_bytes(head.encode("latin-1"))
    assert commit() is None


def test_the_commit_of_this_repository_is_that_of_git(monkeypatch):
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("no repository")
    monkeypatch.chdir(ROOT)
    told = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=True)
    assert commit() == told.stdout.strip()


@pytest.mark.parametrize("model", [tiny, Popularity])
def test_hostile_13_a_second_process_in_the_same_folder_is_told_before_it_starts(small, tmp_path, model):
    code = """
import sys, time
from recsys.runs.write import RunFolder
folder = RunFolder(sys.argv[1])
folder.lock()
print("locked", flush=True)
sys.stdin.read()
"""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    child = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "run")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=environment,
    )
    try:
        assert child.stdout.readline() == b"locked\n"
        with pytest.raises(BlockingIOError, match="another process"):
            fit(model(), small, folder=tmp_path / "run", **QUIET)
        assert [one.name for one in (tmp_path / "run").iterdir()] == [".lock"]
    finally:
        child.kill()  # its lock frees itself
        child.wait()
    fit(model(), small, folder=tmp_path / "run", **QUIET)
    assert not (tmp_path / "run" / ".lock").exists()


def test_the_lock_is_released_whatever_happens(small, tmp_path, monkeypatch):
    def fail(self):
        with pytest.raises(BlockingIOError):
            RunFolder(tmp_path / "run").lock()
        raise RuntimeError("stopped")

    with monkeypatch.context() as patch:
        patch.setattr(Loop, "run", fail)
        with pytest.raises(RuntimeError, match="stopped"):
            fit(tiny(), small, folder=tmp_path / "run", **QUIET)
    fit(tiny(), small, folder=tmp_path / "run", **QUIET)


def test_what_a_killed_run_left_half_written_is_removed(small, run):
    (run / "metrics.jsonl.0123456789abcdef.partial").write_text("half")
    (run / "metrics.jsonl.partial").write_text("mine")
    fit(tiny(), small, folder=run, **{**QUIET, "epochs": 2})
    assert [one.name for one in run.glob("*.partial")] == ["metrics.jsonl.partial"]


POINTERS = [
    [], 7, None, "x", {"format": 1}, {"format": 1, "folder": 7}, {"format": 1, "folder": "../home"},
    {"format": 1, "folder": "/"}, {"format": 1, "folder": ""}, {"format": 1, "folder": "step-9.9"}, {"format": [1]},
    {"format": 1, "folder": "step-1.0/../../home"},
]  # fmt: skip


@pytest.mark.parametrize("pointer", POINTERS)
def test_hostile_15_a_pointer_that_leads_elsewhere_is_refused(run, home, pointer):
    (run / "checkpoints" / "last.json").write_text(json.dumps(pointer))
    with pytest.raises(DataError, match=r"last\.json|step-9"):
        read_checkpoint(run / "checkpoints")


STATES = [
    {"loop": {}},
    {"loop": None},
    {"groups": ["../../home/file"]},
    {"groups": [7]},
    {"groups": None},
    {"loop": {"stage": 99}},
    {"loop": {"phase": "sleep"}},
    {"loop": {"epoch": -1}},
    {"loop": {"history": "x"}},
    {"loop": {"unknown": 1}},
    {"optimizer": {"dict": 7}},
    {"random": {"tensor": "nowhere"}},
    {"optimizer": []},
    {"identity": None, "loop": {"step": "x"}},
]


@pytest.mark.parametrize("changed", STATES)
def test_hostile_14_a_checkpoint_that_makes_no_sense_is_one_clear_error(small, run, changed):
    pointer = run / "checkpoints" / "last.json"
    head = json.loads(pointer.read_text())
    place = pointer.parent / head["folder"] / "state.json"
    state = json.loads(place.read_text())
    loop = changed.get("loop")
    if isinstance(loop, dict) and loop:
        changed = {**changed, "loop": {**state["loop"], **loop}}
    state["loop"] |= (
        {"phase": "train", "consumed": 1, "stage_epoch": 0, "epoch": 0, "history": []} if "loop" not in changed else {}
    )
    place.write_text(json.dumps({**state, **changed}))
    del head["sha256"]
    pointer.write_text(json.dumps(head))
    with pytest.raises((DataError, ValueError), match=r"resume=False|differs"):
        fit(tiny(), small, folder=run, **QUIET)


@pytest.mark.parametrize("name", ["state.json", "model.safetensors", "optimizer.safetensors", "random.safetensors"])
def test_hostile_9_a_flipped_bit_in_a_checkpoint_is_told(small, run, name):
    (path,) = (run / "checkpoints").glob(f"step-*/{name}")
    whole = path.read_bytes()
    path.write_bytes(whole[:-9] + bytes([whole[-9] ^ 1]) + whole[-8:])
    with pytest.raises(DataError, match="resume=False"):
        fit(tiny(), small, folder=run, **QUIET)


def test_a_checkpoint_is_not_written_through_a_link(tmp_path, home):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "checkpoints").symlink_to(home)
    before = contents(home)
    with pytest.raises(FileExistsError):
        write_checkpoint(tmp_path / "run" / "checkpoints", "step-1", Checkpoint({}, {"model": {"a": torch.ones(1)}}))
    assert contents(home) == before
