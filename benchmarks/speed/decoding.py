"""Parts "beam" and "train" of ``generate.py``: TIGER's search and training, against transformers and row by row.

Part "beam": the 20 most probable items of histories of amazon-beauty by a constrained beam of 20, with one set
of random weights (4 + 4 layers, width 128) in this library and in ``generate`` of transformers, whose prefix function
looks children up in a dict. Codes are those of ``Beauty.index.json`` beside the data, if it is there, or random ones of
the same sizes. Both get the same batches, sorted by length; lists and scores are compared.

Part "train": one optimizer step per 256 targets (about as many, where whole histories are rows), dropout .1, softmax
over the vocabulary, AdamW. "one pass" is the causal encoder under ``NextItem``, "one row per prefix" the paper's form
under ``LastItem``; transformers trains the same rows padded to the longest of a batch, as the public codes do.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

WIDTH, K = 20, 20
TARGETS = 256
SIZES = (256,) * 4
DATA = (("amazon-beauty", 20), ("ml-100k", 20), ("ml-100k", 50))
Contest = dict[str, Callable[[], int]]  # name -> what does a share of the work and counts it


def beam(options: argparse.Namespace) -> tuple[str, dict[str, Any]]:
    """The table of part "beam", and what it is made of."""
    import torch
    from peers.t5 import Beams, transformers_t5

    import recsys as rs
    from recsys.generative.beam import Beam

    torch.set_num_threads(options.threads)
    users = 32 if options.smoke else 128
    split = rs.load("amazon-beauty").split(rs.LeaveLast(), audit=False)
    batch, (codes, source) = histories(split, users), published(split.num_items)
    items, encoder, decoder = parts(split, codes, causal=False)
    for part in (items, encoder, decoder):
        part.eval()
    theirs, ours = Beams(transformers_t5(encoder, decoder, items), items, WIDTH), Beam(WIDTH)

    @torch.inference_mode()
    def search(rows: Any) -> tuple[Any, Any]:
        return ours(decoder, encoder(rows, items), items, None, K)

    equal, gap = compare(theirs, search, batch, items)
    contest: Contest = {}
    for size in (64, 16, 1):
        contest[f"recsys, {size} histories at a time"] = turns(search, batch, size)
    for size in (32, 16, 1):
        contest[f"transformers, {size} histories at a time"] = turns(theirs, batch, size)
    speeds = alternate(contest, options.rounds, options.seconds)
    with torch.inference_mode():
        steps = levels(decoder, encoder, items, batch, options.seconds)
    text = [
        f"{users} training histories of amazon-beauty (mean length {float(batch.lengths.float().mean()):.1f}), "
        f"{items.num_items:,} items, {source}, beam {WIDTH}, lists of {K}. Lists equal to transformers': {equal:.1%}, "
        f"largest difference of a score {gap:.1e}.", "",
        *table(speeds, "users", "transformers"), "",
        "Of one search of 64 histories, milliseconds per history: "
        + ", ".join(f"{name} {value:.2f}" for name, value in steps.items()) + ".",
    ]  # fmt: skip
    return "\n".join(text), {"speeds": speeds, "equal": equal, "gap": gap, "steps": steps}


def train(options: argparse.Namespace) -> tuple[str, dict[str, Any]]:
    """Tables of part "train", and what they are made of."""
    import torch

    import recsys as rs

    torch.set_num_threads(options.threads)
    text, content = [], []
    for name, longest in DATA[:1] if options.smoke else DATA:
        split = rs.load(name).split(rs.LeaveLast(), audit=False)
        contest: Contest = {
            "one pass": updates(split, longest, causal=True, memory="both"),
            "one pass, decoder of the newest state": updates(split, longest, causal=True, memory="newest"),
            "one row per prefix": updates(split, longest, causal=False),
            "transformers, one row per prefix": updates(split, longest, causal=False, theirs=True),
        }
        speeds = alternate(contest, options.rounds, options.seconds)
        text += [
            f"## {name}, {longest} items", "", *table(speeds, "targets", "one row per prefix"), "",
        ]  # fmt: skip
        content.append({"data": name, "max_length": longest, "speeds": speeds})
    return "\n".join(text), {"runs": content}


def histories(split: Any, users: int) -> Any:
    """Training histories of drawn users, their newest 20 items, as a batch sorted by length."""
    import numpy as np
    import torch

    chosen = np.sort(np.random.default_rng(0).choice(split.train.num_users, users, replace=False))
    stop = split.train.stop[chosen]
    start = np.maximum(split.train.start[chosen], stop - 20)
    order = np.argsort(stop - start, kind="stable")
    batch = split.train.gather(chosen[order], start=start[order], stop=stop[order], rows=chosen[order])
    assert torch.equal(batch.lengths, batch.lengths.sort().values)
    return batch


def published(count: int) -> tuple[Any, str]:
    """Codes (N, 4) of amazon-beauty, and where they are from."""
    import numpy as np

    found = Path(os.environ.get("RECSYS_MIRROR", "")) / "amazon-beauty" / "Beauty.index.json"
    if found.is_file():
        named = json.loads(found.read_text()).values()
        codes = np.array([[int(code.split("_")[1][:-1]) for code in one] for one in named])
        if len(codes) == count:
            return codes, "published codes"
    return random_codes(count), "random codes"


def random_codes(count: int) -> Any:
    """Distinct codes (N, 4)."""
    import numpy as np

    flat = np.unique(np.random.default_rng(0).integers(0, 2**32, 2 * count))
    return np.stack(np.unravel_index(np.random.default_rng(1).permutation(flat)[:count], SIZES), 1)


def parts(split: Any, codes: Any, causal: bool, memory: str = "past", longest: int = 20) -> tuple[Any, Any, Any]:
    """Items, encoder and decoder with fresh weights, of the published sizes."""
    import torch

    from recsys.encoders.tokens import TokenEncoder
    from recsys.generative.code_decoder import CodeDecoder
    from recsys.items.codes import CodeItems
    from recsys.protocols import Context
    from recsys.semantic_ids.table import SemanticIds

    torch.manual_seed(0)
    with tempfile.TemporaryDirectory(prefix="recsys-speed-") as folder:
        SemanticIds.of(split.items.ids, codes, SIZES).save(Path(folder) / "ids")
        items = CodeItems(128, str(Path(folder) / "ids"), tied=True, std=1.0)
        encoder = TokenEncoder(dropout=0.1, max_length=longest, causal=causal)
        decoder = CodeDecoder(dropout=0.1, softmax="vocabulary", memory=memory)
        for part in (items, encoder, decoder):
            part.bind(Context(split.num_items, split.items, split.train))
    return items, encoder, decoder


def compare(theirs: Any, search: Any, batch: Any, items: Any) -> tuple[float, float]:
    """The share of histories with equal lists of codes, and the largest difference of a score."""
    import torch

    equal, gap = 0, 0.0
    for rows in torch.arange(len(batch)).split(32):
        part = batch.select(rows)
        part = part.trim(int(part.lengths.max()))
        (tokens, scores), (found, values) = theirs(part), search(part)
        equal += int((items.token_table[found] == tokens).flatten(1).all(1).sum())
        gap = max(gap, float((scores - values).abs().max()))
    return equal / len(batch), gap


def turns(search: Callable[[Any], Any], batch: Any, size: int) -> Callable[[], int]:
    """What searches all histories, ``size`` at a time; an eighth of them where that is 1."""
    import torch

    shares = []
    for rows in torch.arange(0, len(batch), 1 if size > 1 else 8).split(size):
        part = batch.select(rows)
        shares.append(part.trim(int(part.lengths.max())))

    def turn() -> int:
        for share in shares:
            search(share)
        return sum(map(len, shares))

    return turn


def updates(split: Any, longest: int, causal: bool, memory: str = "past", theirs: bool = False) -> Callable[[], int]:
    """What trains on the next batch and counts its targets."""
    import torch

    from recsys.targets.last_item import LastItem
    from recsys.targets.next_item import NextItem
    from recsys.train.loader import TrainBatches

    items, encoder, decoder = parts(split, random_codes(split.num_items), causal, memory, longest)
    rows = TrainBatches(
        split.train, scheme="windows" if causal else "prefixes", max_length=longest,
        windows="sliding" if causal else "last",
        **({"tokens": TARGETS} if causal else {"batch_size": TARGETS}),
    )  # fmt: skip
    targets: Any = NextItem() if causal else LastItem()
    model = peer(encoder, decoder, items) if theirs else None
    modules = [items, encoder, decoder] if model is None else [model]
    optimizer = torch.optim.AdamW([one for module in modules for one in module.parameters()], lr=3e-4)
    for module in modules:
        module.train()

    def endless() -> Iterator[Any]:
        epoch = 0
        while True:
            yield from rows.epoch(epoch)
            epoch += 1

    source = endless()

    def update() -> int:
        batch = targets.train(next(source), None)
        count = int((batch.targets > 0).sum())
        optimizer.zero_grad()
        if model is None:
            loss = decoder(encoder(batch, items), batch, items, torch.Generator()) / count
        else:
            loss = model.of(batch)
        loss.backward()
        optimizer.step()
        return count

    return update


def peer(encoder: Any, decoder: Any, items: Any) -> Any:
    """The same model in transformers, which gives its loss of a batch of prefixes."""
    from peers.t5 import their_input, transformers_t5

    model = transformers_t5(encoder, decoder, items)

    def of(batch: Any) -> Any:
        numbers, real = their_input(batch, items)
        labels = items.token_table[batch.targets[batch.targets > 0]]
        return model(input_ids=numbers, attention_mask=real, labels=labels).loss

    model.of = of
    return model


def alternate(contest: Contest, rounds: int, seconds: float) -> dict[str, list[dict[str, float]]]:
    """Of each contender and round, milliseconds of wall and of processor time for one; first a share not counted."""
    found: dict[str, list[dict[str, float]]] = {name: [] for name in contest}
    for turn in contest.values():
        turn()
    for number in range(rounds):
        for name, turn in contest.items():
            done, began, used = 0, time.perf_counter(), time.process_time()
            while time.perf_counter() - began < seconds or not done:
                done += turn()
            wall, processor = time.perf_counter() - began, time.process_time() - used
            found[name].append({"wall": 1e3 * wall / done, "processor": 1e3 * processor / done})
            print(f"round {number + 1}/{rounds}  {name}: {done / wall:,.1f}/s", file=sys.stderr, flush=True)
    return found


def levels(decoder: Any, encoder: Any, items: Any, batch: Any, seconds: float) -> dict[str, float]:
    """Median milliseconds per history of the encoder, the memory and the step of each level, of 64 histories."""
    import torch

    rows = batch.select(torch.arange(0, len(batch), max(1, len(batch) // 64))[:64])
    rows = rows.trim(int(rows.lengths.max()))
    chosen = torch.randint(0, 256, (len(rows), WIDTH), generator=torch.Generator().manual_seed(0))
    parents = torch.zeros_like(chosen)
    spent: dict[str, list[float]] = {}

    def timed(name: str, call: Callable[[], Any]) -> Any:
        began = time.perf_counter()
        found = call()
        spent.setdefault(name, []).append(1e3 * (time.perf_counter() - began) / len(rows))
        return found

    began = time.perf_counter()
    while time.perf_counter() - began < seconds or len(next(iter(spent.values()))) < 3:
        encoded = timed("encoder", lambda: encoder(rows, items))
        memory = timed("keys and values", lambda e=encoded: decoder.begin(e, items))
        for level in range(items.levels):
            tokens = chosen + items.span(level - 1).start if level else None
            told = (tokens, parents if level == 1 else chosen % WIDTH) if level else (None, None)
            _, memory = timed(f"level {level + 1}", lambda m=memory, t=told: decoder.step(m, items, *t))
    return {name: statistics.median(found) for name, found in spent.items()}


def table(found: dict[str, list[dict[str, float]]], unit: str, against: str) -> list[str]:
    """A row per contender; ``against`` begins the names of those whose best is compared with."""

    def middle(name: str, kind: str) -> float:
        return statistics.median(one[kind] for one in found[name])

    base = {
        kind: min(middle(name, kind) for name in found if name.startswith(against)) for kind in ("wall", "processor")
    }
    lines = [
        f"| | {unit}/s, median (lowest to highest) | ms each | processor ms each | times {against}: wall | processor |",
        "|---" * 6 + "|",
    ]
    for name, rounds in found.items():
        rates = sorted(1e3 / one["wall"] for one in rounds)
        wall, processor = middle(name, "wall"), middle(name, "processor")
        lines.append(
            f"| {name} | {1e3 / wall:,.1f} ({rates[0]:,.1f} to {rates[-1]:,.1f}) | {wall:,.2f} | {processor:,.2f} | "
            f"{base['wall'] / wall:.2f} × | {base['processor'] / processor:.2f} × |"
        )
    return lines
