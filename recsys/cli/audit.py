"""``recsys audit``: cut a data set and print what the split leaks."""

from __future__ import annotations

from pathlib import Path
from typing import Literal


def audit(
    name: str,
    /,
    split: Literal["global-time", "leave-last", "given"] | None = None,
    valid: float = 0.1,
    test: float = 0.1,
    user: str | None = None,
    item: str | None = None,
    time: str | None = None,
    drop_missing: bool = False,
    save: Path | None = None,
) -> None:
    """Split a data set and report leaks, tied times, cold users and cold items.

    Args:
        name: a data set that has a card, a file of interactions, or the folder of a saved split.
        split: how to split (default: global-time, as in Python; without a time column only leave-last is possible).
        valid: share of the events for validation, under global-time.
        test: share of the events for the test, under global-time.
        user: column of user ids in a file of interactions (default: user, or what the format calls it).
        item: column of item ids (default: item, or what the format calls it).
        time: column of times (default: none, except in MovieLens and atomic files).
        drop_missing: drop (and count) events with a missing user, item or time, which are an error otherwise.
        save: folder to save the split in, for embed, profiles, evaluate, fit own and your own recipes.
    """
    from recsys.cards.card import data_set
    from recsys.data.audit import audit as find_leaks
    from recsys.data.split import Split as Saved
    from recsys.data.splitters import Given, GlobalTime, LeaveLast

    if Path(name).is_dir():
        if split or save or user or item or time or drop_missing:
            raise ValueError(f"{name} is a saved split: it is audited as it is, so leave all other arguments away")
        found = Saved.load(name)
        print(found)
        print(find_leaks(found))
        return
    splitters = {"leave-last": LeaveLast, "given": Given}
    splitter = splitters[split]() if split in splitters else GlobalTime(valid, test)
    data = data_set(name, user, item, time)
    cut = (data.clean() if drop_missing else data).split(splitter)
    if save is not None:
        cut.save(save)
        print(f"kept in {save}")
