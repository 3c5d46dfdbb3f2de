"""Folders from strangers: 500 of them, each loads or ends in one clear error, and nothing else happens."""

from __future__ import annotations

import importlib.util
import json
import pickle
import random
import shutil
import socket
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from recsys.data.split import PREPARED, Split
from recsys.errors import DataError
from recsys.runs.checkpoint import read_checkpoint, unpack
from recsys.runs.read import load_run
from recsys.runs.state import State
from recsys.serve.bundle import INDEX, Bundle, export
from recsys.storage.folders import hashes
from recsys.storage.tensors import read_tensors, write_tensors
from recsys.train.fit import fit

spec = importlib.util.spec_from_file_location("cycles", Path(__file__).parents[1] / "cycles.py")
assert spec is not None and spec.loader is not None
toys = importlib.util.module_from_spec(spec)
spec.loader.exec_module(toys)

CASES, BLOCKS = 500, 10
CLEAR = (DataError, ValueError, TypeError, OSError)
VALUES: list[Any] = [
    None,
    True,
    -1,
    0,
    1,
    2**31,
    10**12,
    10**400,
    -(10**12),
    0.5,
    1e308,
    float("inf"),
    float("nan"),
    "",
    "x",
    "../../beside",
    "/etc/passwd",
    "\x1b[2J\u202e",
    [],
    [1],
    {},
    {"class": "os:system", "arguments": {"command": "x"}},
    [[[[]]]],
    {"class": "evil_marker:Part", "arguments": {}},
    {"class": "recsys.llm.chat:ChatEndpoint", "arguments": {"url": "http://127.0.0.1:9"}},
    {
        "class": "recsys.llm.embed:_SentenceEncoder",
        "arguments": {"name": "a/b", "device": "cpu", "revision": None, "offline": False},
    },
    {"class": "recsys.items.text:TextItems", "arguments": {"vectors": "../beside"}},
    {"class": "recsys.items.ids:IdItems", "shared": 1},
    {"class": "recsys.nn.backbone:Backbone", "arguments": {"model": "attacker/repo"}},
    {"class": "recsys.items.frozen:FrozenItems", "arguments": {"run": "/"}},
    "recsys.recommenders.composed:Recommender",
]
TEXTS = [
    b"",
    b"[" * 100_000,
    b"{}",
    b"null",
    b"[]",
    b"\xff\xfe\x00",
    b'{"a":' * 5000,
    b"1" * 5000,
    b"\x93NUMPY\x01\x00\xff\xff",
]


class Evil:
    """A pickle of it would leave a mark."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return Path.touch, (self.mark,)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run, a bundle and a split, and a folder beside them that belongs to somebody."""
    home = tmp_path_factory.mktemp("world")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RECSYS_CACHE", str(home / "cache"))
        split = toys.cycles(users=20)
        fit(toys.tiny(), split, epochs=1, folder=home / "run", progress=False)
    export(load_run(home / "run"), home / "hnsw", index="hnsw", split=split)
    export(load_run(home / "run"), home / "exact", index="exact", item_text={"title": ["", *split.items.ids]})
    split.save(home / "split")
    (home / "beside").mkdir()
    (home / "beside" / "mine.txt").write_text("mine")
    (home / "evil_marker.py").write_text(
        "from pathlib import Path\nPath(__file__).with_name('started').touch()\nclass Part: ...\n"
    )
    return home


@pytest.fixture
def quiet(world: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """No network, and what was asked of it."""
    asked: list[Any] = []

    def refuse(*address: Any, **_: Any) -> None:
        asked.append(address)
        raise OSError("no network in tests")

    for name in ("connect", "connect_ex", "sendto", "bind"):
        monkeypatch.setattr(socket.socket, name, refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.syspath_prepend(world)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield asked


def use_bundle(folder: Path) -> None:
    bundle = Bundle.load(folder)
    bundle.recommend([["item-1", "item-2"], []], k=3)
    str(bundle), bundle.item_text


def use_run(folder: Path) -> None:
    load_run(folder).recommend([["item-1", "item-2"], []], k=3)


def use_split(folder: Path) -> None:
    split = Split.load(folder)
    repr(split), split.items.ids, split.users.ids, split.item_text, split.train.item_counts()
    for part in (split.valid, split.test):
        part.batch(range(len(part)), 5), part.targets(range(len(part)))


def use_checkpoint(folder: Path) -> None:
    found = read_checkpoint(folder / "checkpoints")
    if found is not None:
        try:
            State.of(found.state["loop"], 1)
            unpack(found.state["random"], found.tensors["random"])
        except Exception as error:  # Loop reads them at a boundary of its own
            assert not isinstance(error, (MemoryError, SystemError)), error


USES: dict[str, Callable[[Path], None]] = {
    "hnsw": use_bundle, "exact": use_bundle, "run": use_run, "split": use_split, "checkpoint": use_checkpoint,
}  # fmt: skip


def edit(found: Any, rng: random.Random) -> Any:
    """The same JSON with one value exchanged, dropped or renamed somewhere inside."""
    inner = list(found) if isinstance(found, dict) else list(range(len(found))) if isinstance(found, list) else []
    if not inner or rng.random() < 0.15:
        return rng.choice(VALUES)
    key, changed = rng.choice(inner), found.copy()
    if rng.random() < 0.1:
        del changed[key]
    else:
        changed[key] = edit(found[key], rng)
    return changed


def harm_tensors(path: Path, rng: random.Random) -> None:
    """Another file of tensors that vouches for itself."""
    tensors = read_tensors(path)
    name = rng.choice(sorted(tensors))
    value = tensors[name]
    forms: list[Callable[[], Any]] = [
        lambda: torch.zeros(rng.choice([(0,), (3,), (2, 2), (1, 1, 1), ()])),
        lambda: value.reshape(-1),
        lambda: value[:1] if value.dim() else value,
        lambda: value.double(),
        lambda: torch.full_like(value.float(), float("nan")),
        lambda: torch.zeros_like(value).long(),
        lambda: value.unsqueeze(0),
        lambda: torch.zeros(value.shape, dtype=torch.bool),
        lambda: torch.cat([value, value]) if value.dim() else value,
    ]
    if rng.random() < 0.2:
        tensors[f"{name}.more"] = tensors.pop(name)
    else:
        tensors[name] = rng.choice(forms)()
    write_tensors(path, tensors)


def harm(path: Path, world: Path, rng: random.Random) -> None:
    whole = path.read_bytes()
    kind = rng.choice(
        [
            "cut",
            "flip",
            "flip",
            "text",
            "random",
            "pickle",
            "link",
            "folder",
            "remove",
            "swap",
            "grow",
            "edit",
            "edit",
            "edit",
        ]
    )
    if path.suffix == ".safetensors" and rng.random() < 0.6:
        harm_tensors(path, rng)
        return
    if kind == "edit" and path.suffix == ".json":
        changed = json.loads(whole)
        for _ in range(rng.choice([1, 1, 3])):
            changed = edit(changed, rng)
        path.write_text(json.dumps(changed))
        return
    path.unlink()
    if kind == "folder":
        path.mkdir()
    elif kind == "link":
        path.symlink_to(rng.choice([world / "beside" / "mine.txt", world / "beside", world / "nowhere"]))
    elif kind != "remove":
        data = bytearray(whole)
        for _ in range(rng.choice([1, 2, 8]) if kind in ("flip", "edit") and data else 0):
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        other = rng.choice([one for one in path.parent.iterdir() if one.is_file()] or [world / "beside" / "mine.txt"])
        data = {
            "cut": whole[: rng.randrange(len(whole) + 1)],
            "text": rng.choice(TEXTS),
            "random": rng.randbytes(rng.randrange(300)),
            "pickle": pickle.dumps(Evil(world / "started")),
            "swap": other.read_bytes(),
            "grow": whole + b"\0" * 8,
        }.get(kind, bytes(data))
        path.write_bytes(data)


def repair(folder: Path) -> None:
    """Make the manifests vouch for what is there now, as the author of a folder can."""
    for inner, apart in ((folder / INDEX, ()), (folder / PREPARED, ()), (folder, (INDEX, PREPARED, "checkpoints"))):
        path = inner / "manifest.json"
        try:
            manifest = json.loads(path.read_text())
            manifest["files"] = {name: entry for name, entry in hashes(inner, apart).items() if name != "manifest.json"}
            path.write_text(json.dumps(manifest))
        except (OSError, ValueError, TypeError, RecursionError):
            continue


def snapshot(world: Path) -> dict[str, bytes]:
    names = [world / "evil_marker.py", *(world / "beside").rglob("*")]
    return {str(path): path.read_bytes() for path in names if path.is_file()}


@pytest.mark.parametrize("block", range(BLOCKS))
def test_every_harmed_folder_loads_or_ends_in_a_clear_error(
    world: Path, quiet: list[Any], tmp_path: Path, block: int
) -> None:
    before, refused = snapshot(world), 0
    for seed in range(block, CASES, BLOCKS):
        rng = random.Random(seed)
        what = list(USES)[seed // BLOCKS % len(USES)]
        folder = tmp_path / "case"
        shutil.copytree(world / ("run" if what == "checkpoint" else what), folder)
        inside = [path for path in sorted(folder.rglob("*")) if path.is_file()]
        if what in ("run", "checkpoint"):
            inside = [path for path in inside if ("checkpoints" in path.parts) == (what == "checkpoint")]
        for path in rng.sample(inside, rng.choice([1, 1, 1, 2])):
            harm(path, world, rng)
        if rng.random() < 0.6:
            repair(folder)
        try:
            USES[what](folder)
        except CLEAR as error:
            refused += 1
            assert str(error).strip(), f"seed {seed}: an error without words"
        except BaseException as error:
            raise AssertionError(f"seed {seed}, {what}: {type(error).__name__}: {error}") from error
        assert sorted(one.name for one in tmp_path.iterdir()) == ["case"], f"seed {seed}"
        shutil.rmtree(folder)
    assert snapshot(world) == before and not (world / "started").exists() and quiet == []
    assert refused > CASES / BLOCKS / 2
