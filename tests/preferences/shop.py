"""A small shop whose items say what they are, users who buy of one kind, and writers without a model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from recsys.data.prepared import Prepared
from recsys.data.split import Split
from recsys.data.splitters import LeaveLast
from recsys.ids.vocabulary import Vocabulary
from recsys.llm.chat import Answer, Prompt

KINDS = ("red lipstick", "blue lipstick", "sweet perfume", "fresh perfume", "hair dryer", "hair brush")
GROUPS = ("lips", "lips", "scent", "scent", "hair", "hair")
PER_KIND = 4
ITEMS = len(KINDS) * PER_KIND


def text_of(row: int) -> str:
    """The title of an item row, from 1."""
    return f"{KINDS[(row - 1) // PER_KIND]} number{row}"


def shop(users: int = 30, length: int = 7, seed: int = 0) -> Split:
    """Users who buy items of three kinds; titles, and paths of categories."""
    rng = np.random.default_rng(seed)
    events = []
    for user in range(users):
        kinds = rng.choice(len(KINDS), 3, replace=False)
        rows = [rng.choice(kinds) * PER_KIND + rng.integers(PER_KIND) + 1 for _ in range(length + user % 3)]
        events.append(np.array(rows))
    offsets = np.cumsum([0, *map(len, events)])
    prepared = Prepared(offsets=offsets, items=np.concatenate(events).astype(np.int32), num_items=ITEMS)
    kinds = [(row - 1) // PER_KIND for row in range(1, ITEMS + 1)]
    text = {
        "title": np.array(["", *(text_of(row) for row in range(1, ITEMS + 1))], object),
        "categories": np.array(["", *(f'[["Shop", "{GROUPS[k]}", "{KINDS[k]}"]]' for k in kinds)], object),
    }
    items = Vocabulary(np.array([f"i{row}" for row in range(1, ITEMS + 1)], object), 1)
    people = Vocabulary(np.array([f"u{user}" for user in range(users)], object), 0)
    return Split.of(
        prepared, LeaveLast(), items, people, name="shop", data_hash=f"shop {users} {length} {seed}", item_text=text
    )


class Says:
    """A writer that answers with what ``says`` makes of the user message."""

    name = "says"

    def __init__(self, says: Callable[[str], str]) -> None:
        self.says, self.prompts, self.settings = says, list[Prompt](), {"model": "says"}

    def write(self, prompts: Sequence[Prompt], done: Callable[[int, Answer], Any]) -> None:
        for index, prompt in enumerate(prompts):
            self.prompts.append(prompt)
            text = self.says(prompt.user)
            done(index, Answer(None, refused="too long") if text == "REFUSE" else Answer(text))
