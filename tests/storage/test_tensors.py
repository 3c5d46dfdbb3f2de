"""Tensors on disk: shared ones stay shared, damaged ones are told, nothing else takes memory."""

import struct

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from recsys.errors import DataError, LeakageError
from recsys.storage.bounds import bounded
from recsys.storage.reading import inert, is_inert, outside, read_json, reading, unbounded
from recsys.storage.tensors import Sizes, once_each, read_tensors, refuse_not_finite, shared, sizes, write_tensors


def test_tensors_of_several_names_are_stored_once_and_come_back_as_one(tmp_path):
    one, view = torch.rand(40, 5), torch.rand(6)
    tensors = {
        "a": one,
        "b.c": one,
        "d": one.T,
        "e": view,
        "f": view[1:4],
        "g": torch.zeros(0, 3),
        "h": torch.tensor(2.0),
    }
    write_tensors(tmp_path / "t.safetensors", tensors)
    found = read_tensors(tmp_path / "t.safetensors")
    assert list(found) and found.keys() == tensors.keys()
    assert all(torch.equal(found[name], value) for name, value in tensors.items())
    assert found["a"] is found["b.c"] and shared(found) == [["a", "b.c"]]
    assert len(load_file(tmp_path / "t.safetensors")) == 6


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.integers(0, 3), min_size=1, max_size=8), st.sampled_from([torch.float32, torch.bfloat16, torch.int64])
)
def test_any_sharing_comes_back(tmp_path_factory, owners, dtype):
    own = [torch.arange(1, 5).to(dtype) * (number + 1) for number in range(4)]
    path = tmp_path_factory.mktemp("t") / "t.safetensors"
    write_tensors(path, {f"n{place}": own[owner] for place, owner in enumerate(owners)})
    found = read_tensors(path)
    for i, left in enumerate(owners):
        for j, right in enumerate(owners):
            assert (found[f"n{i}"] is found[f"n{j}"]) == (left == right)
        assert torch.equal(found[f"n{i}"], own[left])


def test_equal_tensors_make_equal_files(tmp_path):
    for name in ("a", "b"):
        write_tensors(tmp_path / name, {"x": torch.ones(2), "y": torch.ones(2), "z": torch.zeros(1)})
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_hostile_9_a_flipped_bit_is_told_wherever_it_is(tmp_path):
    path = tmp_path / "t.safetensors"
    write_tensors(path, {"weight": torch.rand(3, 2), "other": torch.ones(2)})
    whole = path.read_bytes()
    for at in range(8, len(whole), 3):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        try:
            found = read_tensors(path)
        except DataError as error:
            assert "t.safetensors" in str(error)
        else:  # in a name of the metadata that nothing depends on
            assert found["weight"].shape == (3, 2)
            assert at < 8 + struct.unpack("<Q", whole[:8])[0]


def test_files_of_others_and_of_before_are_read(tmp_path):
    save_file({"a": torch.ones(2)}, tmp_path / "t.safetensors")
    assert read_tensors(tmp_path / "t.safetensors")["a"].tolist() == [1, 1]


@pytest.mark.parametrize(
    "data", [b"", b"12345678", b"\xff" * 20, struct.pack("<Q", 2**60) + b"{}", struct.pack("<Q", 2) + b"[]"]
)
def test_hostile_14_a_damaged_file_is_one_clear_error(tmp_path, data):
    path = tmp_path / "t.safetensors"
    path.write_bytes(data)
    for read in (read_tensors, sizes):
        with pytest.raises(DataError, match=r"t\.safetensors"):
            read(path)


def test_hostile_8_numbers_that_are_not_finite_are_named(tmp_path):
    good = {"a": torch.ones(3), "ids": torch.arange(3), "never": torch.tensor([0.0, -torch.inf])}
    refuse_not_finite(tmp_path, good, never=["never"])
    with pytest.raises(DataError, match="never"):
        refuse_not_finite(tmp_path, good)
    for value in (torch.nan, torch.inf):
        with pytest.raises(DataError, match="never"):
            refuse_not_finite(tmp_path, {"never": torch.tensor([value])}, never=["never"])


def test_one_change_for_all_names():
    value = torch.ones(2)
    found = once_each({"a": value, "b": value, "c": torch.ones(2)}, torch.clone)
    assert found["a"] is found["b"] and found["a"] is not value and found["c"] is not found["a"]


@pytest.mark.parametrize(
    "make",
    [
        lambda: torch.nn.Linear(10**6, 10**6), lambda: torch.empty(10**12), lambda: torch.arange(10**10),
        lambda: torch.full((10**6, 10**6), 1.0), lambda: [torch.zeros(1) for _ in range(10**7)],
        lambda: torch.eye(10**6), lambda: torch.randperm(10**9),
        lambda: torch.linspace(0, 1, 10**10), lambda: torch.ones(1).new_zeros(10**10),
    ],
)  # fmt: skip
def test_hostile_15_sizes_are_bounded_before_memory_is_taken(make):
    with pytest.raises(ValueError, match="larger"), bounded(Sizes(10, 1000)):
        make()


def test_what_fits_may_be_made_and_what_is_trusted_may_be_larger():
    with bounded(Sizes(2, 1000)):
        torch.nn.Linear(100, 100)
        torch.linspace(0, 10**12, 16)
        torch.empty(2 * 10**8, device="meta")  # a small language model, made again from its config
    with bounded(Sizes(1, -(1 << 28) // 16)), unbounded():
        torch.zeros(1000)


@pytest.mark.parametrize(
    "text", ["[" * 100_000, "{", "null", "7", "[1]", '{"a": 1e999}', "\xff", '{"a": "' + "\\ud800" * 3 + '"}']
)
def test_hostile_14_json_that_is_damaged_is_one_clear_error(tmp_path, text):
    path = tmp_path / "x.json"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(DataError, match=r"x\.json"):
        read_json(path, "copy it again", lambda found: [int(found["a"])])


def test_the_boundary_lets_clear_errors_through(tmp_path):
    for error in (LeakageError("clear"), PermissionError(13, "clear"), ImportError("clear")):
        with pytest.raises(type(error), match="clear"), reading(tmp_path, "remedy"):
            raise error
    for error in (DataError(f"clear: {tmp_path / 'x'}"), DataError("clear")):  # one that names the file, one that must
        with pytest.raises(DataError, match="clear") as caught, reading(tmp_path, "remedy"):
            raise error
        assert str(caught.value).count(str(tmp_path)) == 1
    with pytest.raises(KeyboardInterrupt), reading(tmp_path, "remedy"):
        raise KeyboardInterrupt
    for error in (RecursionError("deep"), OverflowError("big"), EOFError("end"), AssertionError(), struct.error("x")):
        with pytest.raises(DataError, match="remedy"), reading(tmp_path, "remedy"):
            raise error


def test_hostile_4_nothing_outside_is_read_while_a_model_is_made():
    assert outside("anything", "folder") and not is_inert()
    with inert(["known"]):
        assert is_inert() and outside("known", "folder")
        with pytest.raises(PermissionError, match="trust"):
            outside("anything", "folder")
    assert outside("anything", "folder")
