"""Users who walk round a circle of items: the next item is certain, so any sequence model learns it in seconds."""

import json
from pathlib import Path

import numpy as np

from recsys.data.prepared import Prepared
from recsys.data.split import Split
from recsys.data.splitters import LeaveLast
from recsys.encoders.sasrec import SASRec
from recsys.ids.vocabulary import Vocabulary
from recsys.items.ids import IdItems
from recsys.objectives.softmax import FullSoftmax
from recsys.recommenders.composed import Recommender
from recsys.runs.read import read_tensors
from recsys.runs.state import TIMES


def cycles(users=100, items=20, seed=0, splitter=None):
    random = np.random.default_rng(seed)
    lengths = random.integers(5, 12, users)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    rows = [(start + np.arange(n)) % items + 1 for start, n in zip(random.integers(0, items, users), lengths)]
    prepared = Prepared(np.concatenate(rows).astype(np.int32), offsets.astype(np.int64), items, order="file")
    raw = Vocabulary(np.array([f"item-{i}" for i in range(items)], dtype=object), first=1)
    return Split.of(prepared, splitter or LeaveLast(), raw, Vocabulary(np.arange(users), first=0), name="cycles")


ODD = np.arange(10)  # users of two_circles who go round by threes, the others by ones


def two_circles(users=60, items=20, seed=0):
    """Users who go round by ones, and a few (ODD) by threes: what only these do can be unlearned."""
    random = np.random.default_rng(seed)
    lengths = random.integers(6, 12, users)
    starts = random.integers(0, items, users)
    rows = [
        (start + np.arange(n) * (3 if user in ODD else 1)) % items + 1
        for user, (start, n) in enumerate(zip(starts, lengths))
    ]
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    prepared = Prepared(np.concatenate(rows).astype(np.int32), offsets, items, order="file")
    raw = Vocabulary(np.array([f"item-{i}" for i in range(items)], dtype=object), first=1)
    return Split.of(prepared, LeaveLast(), raw, Vocabulary(np.arange(users), first=0), name="circles")


def tiny(dropout=0.2, objective=None, cls=Recommender, **parts):
    encoder = SASRec(dim=8, num_layers=1, num_heads=1, dropout=dropout, max_length=6)
    return cls(IdItems(8), encoder, objective or FullSoftmax(), **parts)


def outcome(folder):
    """What a run folder says, without clock readings: weights, optimizer, metrics, where it stands."""
    folder = Path(folder)
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    last = folder / "checkpoints" / json.loads((folder / "checkpoints" / "last.json").read_text())["folder"]
    loop = json.loads((last / "state.json").read_text())["loop"]
    loop["history"] = [without_clock(line) for line in loop["history"]]
    return {
        "weights": plain(read_tensors(folder / "model.safetensors")),
        "last": plain(read_tensors(last / "model.safetensors")),
        "optimizer": plain(read_tensors(last / "optimizer.safetensors")),
        "metrics": [without_clock(line) for line in lines],
        "loop": without_clock(loop),
    }


def plain(tensors):
    return {name: value.numpy().tobytes() for name, value in tensors.items()}


def without_clock(record):
    return {name: value for name, value in record.items() if name not in TIMES}
