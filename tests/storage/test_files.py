"""Files and folders that are whole or absent, under names of their own, and of nobody else."""

import errno
import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import numpy as np
import polars
import pytest
import torch
from safetensors import SafetensorError

from recsys.errors import DataError
from recsys.storage.arrays import read_array, write_array
from recsys.storage.files import (
    MARK,
    Workplace,
    fresh,
    hold,
    refuse_links,
    replace,
    sweep,
    write_parquet,
    write_text,
    writing,
)
from recsys.storage.folders import read_manifest, write_folder
from recsys.storage.tensors import write_tensors

WRITERS = {
    "text": lambda path: write_text(path, "new"),
    "array": lambda path: write_array(path, np.arange(5)),
    "tensors": lambda path: write_tensors(path, {"a": torch.arange(5)}),
}


@pytest.mark.parametrize("writer", WRITERS)
def test_hostile_2_no_link_is_followed_when_a_file_is_written(tmp_path, writer):
    outside, inside = tmp_path / "outside", tmp_path / "inside"
    inside.mkdir()
    for name in ("target", "dangling"):
        (inside / name).symlink_to(outside if name == "target" else tmp_path / "nowhere")
        outside.write_text("mine")
        WRITERS[writer](inside / name)
        assert outside.read_text() == "mine" and not (inside / name).is_symlink()
    (inside / "target.partial").symlink_to(outside)
    WRITERS[writer](inside / "target")
    assert outside.read_text() == "mine" and not (tmp_path / "nowhere").exists()
    assert (inside / "target.partial").is_symlink()  # somebody else's, though we once called ours like this


@pytest.mark.parametrize("writer", WRITERS)
@pytest.mark.parametrize("mask", [0o022, 0o077, 0o002])
def test_hostile_11_files_are_readable_as_the_umask_says(tmp_path, writer, mask):
    before = os.umask(mask)
    try:
        WRITERS[writer](tmp_path / "file")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o666 & ~mask


@pytest.mark.parametrize(
    "error",
    [
        SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
        RuntimeError("Error: 'ret == (size)' failed: write error in x: 5 != 9 (No space left on device)"),
        OSError("3932 requested and 2016 written"),
        OSError(errno.ENOSPC, "No space left on device"),
    ],
)
def test_hostile_10_a_full_disk_is_an_oserror_that_says_what_to_do(tmp_path, error):
    def full(_):
        raise error

    write_text(tmp_path / "file", "old")
    with pytest.raises(OSError, match="make room") as caught:
        replace(tmp_path / "file", full)
    assert caught.value.errno == errno.ENOSPC and caught.value.filename == str(tmp_path / "file")
    assert (tmp_path / "file").read_text() == "old" and [one.name for one in tmp_path.iterdir()] == ["file"]


def test_other_errors_stay_what_they_are(tmp_path):
    for error in (ValueError("no"), KeyError("no"), PermissionError(errno.EACCES, "no")):
        with pytest.raises(type(error)), writing(tmp_path):
            raise error


def test_hostile_6_folders_of_others_beside_the_target_stay(tmp_path):
    def write(text):
        write_folder(tmp_path / "b", "test", 1, lambda place: {"said": (place / "x").write_text(text)})

    names = ["b.old", "b.partial", "b.parts", "b.0123456789abcdef.partial", "b.0123456789abcdef.old"]
    for name in names:
        (tmp_path / name).mkdir()
        (tmp_path / name / "notes.txt").write_text("mine")
    for text in ("one", "two", "three"):
        write(text)
    assert [(tmp_path / name / "notes.txt").read_text() for name in names] == ["mine"] * len(names)
    assert sorted(one.name for one in tmp_path.iterdir()) == sorted(["b", *names])
    assert (tmp_path / "b" / "x").read_text() == "three" and not (tmp_path / "b" / MARK).exists()


def test_what_a_killed_writer_left_is_removed_by_the_next_and_only_that(tmp_path):
    code = """
import os, signal, sys
from recsys.storage.folders import write_folder
def fill(place):
    (place / "half").write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
write_folder(sys.argv[1], "test", 1, fill)
"""
    root = Path(__file__).parents[2]
    child = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "b")], cwd=root, env={**os.environ, "PYTHONPATH": str(root)}
    )
    (left,) = tmp_path.iterdir()
    assert child.returncode == -9 and (left / MARK).is_file()
    write_folder(tmp_path / "other", "test", 1, lambda place: {})
    assert left.is_dir()
    write_folder(tmp_path / "b", "test", 1, lambda place: {})
    assert sorted(one.name for one in tmp_path.iterdir()) == ["b", "other"]


def test_hostile_13_a_second_writer_of_the_same_folder_is_told_at_once(tmp_path):
    def second(place):
        with pytest.raises(BlockingIOError, match="another process"):
            write_folder(tmp_path / "b", "test", 1, lambda _: {})
        write_folder(tmp_path / "c", "test", 1, lambda _: {})
        return {"first": True}

    write_folder(tmp_path / "b", "test", 1, second)
    assert read_manifest(tmp_path / "b", "test", 1)["first"] is True
    assert sorted(one.name for one in tmp_path.iterdir()) == ["b", "c"]


def test_an_interrupted_exchange_is_named_and_the_folder_found_again(tmp_path):
    write_folder(tmp_path / "b", "test", 1, lambda place: {"number": 1})
    (tmp_path / "b").rename(fresh(tmp_path / "b", "old"))
    with pytest.raises(FileNotFoundError, match="rename it back"):
        read_manifest(tmp_path / "b", "test", 1)
    write_folder(tmp_path / "b", "test", 1, lambda place: {"number": 2})
    assert [one.name for one in tmp_path.iterdir()] == ["b"]


def test_a_folder_apart_may_be_written_anew_without_breaking_the_one_around_it(tmp_path):
    def fill(place):
        write_folder(place / "index", "inner", 1, lambda inner: {"a": (inner / "x").write_text("1")})
        (place / "y").write_text("2")
        return {}

    write_folder(tmp_path / "b", "test", 1, fill, apart=("index",))
    assert list(read_manifest(tmp_path / "b", "test", 1, apart=("index",))["files"]) == ["y"]
    write_folder(tmp_path / "b" / "index", "inner", 1, lambda inner: {"a": (inner / "x").write_text("123")})
    read_manifest(tmp_path / "b", "test", 1, apart=("index",))
    (tmp_path / "b" / "y").write_text("3")
    with pytest.raises(DataError, match="SHA-256"):
        read_manifest(tmp_path / "b", "test", 1, apart=("index",))


def test_links_to_folders_are_refused_and_links_to_files_are_not(tmp_path):
    home, run = tmp_path / "home", tmp_path / "run"
    home.mkdir()
    run.mkdir()
    refuse_links(run, ("checkpoints",))
    refuse_links(tmp_path / "absent", ("checkpoints",))
    (run / "file").symlink_to(tmp_path / "x")
    refuse_links(run, ("checkpoints",))
    (run / "other").symlink_to(home)
    refuse_links(run, ("checkpoints",))
    with pytest.raises(FileExistsError, match="other"):
        refuse_links(run, ("other",))
    with pytest.raises(FileExistsError, match="other"):
        refuse_links(run, others=True)


def test_sweeping_removes_unfinished_files_of_ours_alone(tmp_path):
    ours = fresh(tmp_path / "metrics.jsonl")
    ours.write_text("half")
    for name in ("a.partial", "b.0123456789abcdef.old", "notes"):
        (tmp_path / name).write_text("mine")
    fresh(tmp_path / "x").symlink_to(tmp_path / "notes")
    fresh(tmp_path / "y").mkdir()
    sweep(tmp_path)
    assert not ours.exists() and len(list(tmp_path.iterdir())) == 5


def test_a_lock_that_is_a_link_is_not_followed(tmp_path):
    (tmp_path / "mine").write_text("mine")
    (tmp_path / ".lock").symlink_to(tmp_path / "mine")
    with pytest.raises(FileExistsError):
        hold(tmp_path / ".lock", tmp_path)
    assert (tmp_path / "mine").read_text() == "mine"


def test_names_as_long_as_a_file_system_takes_can_be_written(tmp_path):
    name = "n" * 250
    write_text(tmp_path / name, "x")
    with Workplace(tmp_path / ("f" * 250)) as place:
        assert place.path.is_dir()
    assert [one.name for one in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("array", [np.arange(6), np.zeros(0, np.float32), np.array([True, False]), np.ones(3, "f2")])
@pytest.mark.parametrize("mapped", [False, True])
def test_arrays_come_back(tmp_path, array, mapped):
    write_array(tmp_path / "a.npy", array)
    found = read_array(tmp_path / "a.npy", "remedy", mapped)
    assert found.dtype == array.dtype and found.tolist() == array.tolist()
    assert np.load(tmp_path / "a.npy").tolist() == array.tolist()


def header(shape, descr="<i8", order=False):
    text = repr({"descr": descr, "fortran_order": order, "shape": shape})
    text += " " * (-(len(text) + 11) % 64) + "\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode()


@pytest.mark.parametrize(
    "data",
    [
        b"", b"nothing", header((10**12,)), header((10**12, 10**12)), header((-1,)), header((2,), "|O") + b"x" * 16,
        header((2,), "<U8") + b"x" * 64, header((2,)) + b"x" * 15, header((2,)) + b"x" * 17, header((2, 2)) + b"x" * 32,
        b"\x93NUMPY\x09\x00" + b"x" * 100, json.dumps([1]).encode(),
    ],
)  # fmt: skip
def test_hostile_14_a_damaged_array_is_one_clear_error(tmp_path, data):
    (tmp_path / "a.npy").write_bytes(data)
    for mapped in (False, True):
        with pytest.raises(DataError, match=r"a\.npy"):
            read_array(tmp_path / "a.npy", "make it again", mapped)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
def test_hostile_10_a_table_that_finds_the_disk_full_says_so():
    table = polars.DataFrame({"user": list(range(1000))})
    with pytest.raises(OSError, match="make room"), writing(Path("/dev/full")):
        write_parquet(Path("/dev/full"), table)


PAIRS = {
    ("recsys.run", "recsys.bundle"): r"is a run folder, and a bundle was expected: export it first, recsys export \S+ ",
    ("recsys.bundle", "recsys.run"): r"is a bundle, and a run folder was expected: pass the run folder that was expor",
    ("recsys.bundle", "recsys.index"): r"is a bundle, and an index was expected: its index is in \S+/index",
    (
        "recsys.run",
        "recsys.split",
    ): r"is a run folder, and a split was expected: pass a folder that recsys audit --save ",
    (
        "mine",
        "recsys.vectors",
    ): r"is a folder of kind 'mine', and a folder of vectors was expected: pass a folder that recsys embed",
    (5, "test"): r"is a folder of kind 5, and a folder of kind 'test' was expected: name another folder",
}


@pytest.mark.parametrize(("found", "expected"), PAIRS)
def test_a_folder_of_another_kind_is_called_by_its_name_with_what_leads_to_the_right_one(tmp_path, found, expected):
    (tmp_path / "manifest.json").write_text(json.dumps({"kind": found, "format": 1}))
    with pytest.raises(DataError, match=PAIRS[found, expected]):
        read_manifest(tmp_path, expected, 1)


def test_a_folder_that_is_not_there_or_holds_something_else_is_told_apart_with_what_writes_one(tmp_path):
    (tmp_path / "file").write_text("")
    found = {"nothing": "does not exist, a bundle was expected", "file": "is a file, a bundle", ".": "has no manifest"}
    for name, words in found.items():
        with pytest.raises(FileNotFoundError, match=words) as told:
            read_manifest(tmp_path / name, "recsys.bundle", 1)
        assert str(told.value).endswith("pass a folder that recsys export or rs.export wrote")
