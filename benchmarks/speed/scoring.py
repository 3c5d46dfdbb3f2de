"""Part "rpg" of ``generate.py``: ranking by the codes of items against ranking by item vectors, per user.

One SASRec (width 64, two blocks, 20 items) over 12,101 items: with a learned vector per item, with the sum of the
vectors of 32 codes of 256 (``CodeItems``, RPG without heads), and with a head per level (``ParallelItems``, as in the
paper). Each ranks the same histories by ``score``, batches of 256, then keeps the best 20. Weights are random.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ITEMS, LEVELS, CODES, WIDTH, LENGTH, USERS = 12_101, 32, 256, 64, 20, 256
MODELS = ("ids", "codes", "heads")


def rpg(options: argparse.Namespace) -> tuple[str, dict[str, Any]]:
    """The table of part "rpg", and what it is made of."""
    import torch

    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory(prefix="recsys-speed-") as folder:
        models = {name: model(name, Path(folder) / "ids") for name in MODELS}
    batch = histories()
    times: dict[str, list[float]] = {name: [] for name in MODELS}
    encodes: dict[str, list[float]] = {name: [] for name in MODELS}
    for number in range(options.rounds):
        for name, one in models.items():
            whole, encode = measured(one, batch, options.seconds / len(MODELS))
            times[name].append(whole)
            encodes[name].append(encode)
            print(f"round {number + 1}/{options.rounds}  {name}: {whole:.4f} ms a user", file=sys.stderr, flush=True)
    base = statistics.median(times["ids"])
    lines = ["| items by | ms a user | of it the encoder | against ids | users a second |", "|---|---|---|---|---|"]
    titles = {"ids": "ids (SASRec)", "codes": "sums over codes (RPG)", "heads": "codes, a head per level (RPG's paper)"}
    for name in MODELS:
        whole, encode = statistics.median(times[name]), statistics.median(encodes[name])
        lines.append(f"| {titles[name]} | {whole:.4f} | {encode:.4f} | {whole / base:.2f} | {1000 / whole:,.0f} |")
    return "\n".join(lines), {"milliseconds": times, "encoder": encodes}


def model(name: str, folder: Path) -> Any:
    """A bound recommender of one kind, in evaluation mode."""
    import numpy as np
    import torch

    import recsys as rs
    from recsys.encoders.parallel import ParallelHeads
    from recsys.ids.vocabulary import Vocabulary
    from recsys.items.parallel import ParallelItems
    from recsys.protocols import Context

    vocabulary = Vocabulary(np.arange(ITEMS), first=1)
    if not folder.is_dir():
        codes = np.random.default_rng(0).integers(0, CODES, (ITEMS, LEVELS))
        rs.SemanticIds.of(vocabulary.ids, codes, [CODES] * LEVELS, ordered=False).save(folder)
    encoder: Any = rs.SASRec(WIDTH, num_layers=2, num_heads=1, dropout=0.0, max_length=LENGTH)
    items: Any = rs.IdItems(WIDTH)
    if name == "codes":
        items = rs.CodeItems(WIDTH, str(folder))
    if name == "heads":
        items, encoder = ParallelItems(WIDTH, LEVELS, str(folder)), ParallelHeads(encoder, LEVELS)
    made = rs.Recommender(items, encoder, rs.FullSoftmax() if name == "ids" else rs.CodeSoftmax())
    torch.manual_seed(0)

    class Training:
        """What the parts ask of training events."""

        def item_counts(self) -> Any:
            return np.ones(ITEMS + 1)

    made.bind(Context(ITEMS, vocabulary, Training()))  # type: ignore[arg-type]
    return made.eval()


def histories() -> Any:
    """A batch of random histories of full length."""
    import torch

    from recsys.data.batch import Batch

    ids = torch.randint(1, ITEMS + 1, (USERS, LENGTH), generator=torch.Generator().manual_seed(0))
    rows = torch.arange(USERS)
    return Batch(rows, rows, ids, torch.full((USERS,), LENGTH))


def measured(one: Any, batch: Any, seconds: float) -> tuple[float, float]:
    """Median milliseconds a user of ranking, and of the encoder within it."""
    import torch

    from recsys.ranking.ties import best

    whole, encode = [], []
    with torch.inference_mode():
        for _ in range(2):
            best(one.score(batch), 20)
        began = time.perf_counter()
        while time.perf_counter() - began < seconds or len(whole) < 5:
            start = time.perf_counter()
            one.vectors(batch)
            between = time.perf_counter()
            best(one.score(batch), 20)
            encode.append(between - start)
            whole.append(time.perf_counter() - between)
    return statistics.median(whole) * 1e3 / USERS, statistics.median(encode) * 1e3 / USERS
