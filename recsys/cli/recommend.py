"""``recsys recommend``: recommendations for a file of users."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path
from typing import Any, Literal

from recsys.cli.arguments import importable, raw_ids
from recsys.errors import DataWarning


def recommend(
    bundle: Path,
    users: Path,
    out: Path,
    /,
    k: int = 10,
    exclude: Literal["history", "none"] = "history",
    allow: tuple[str, ...] = (),
    deny: tuple[str, ...] = (),
    layout: Literal["list", "long"] = "list",
    trust: tuple[str, ...] = (),
) -> None:
    """Recommend items to every user of a Parquet, CSV or NDJSON file; writes a Parquet file.

    Args:
        bundle: the folder that export wrote.
        users: the histories: columns user and items (lists), or user, item and time.
        out: the Parquet file to write.
        k: recommendations per user.
        exclude: seen items: history leaves out the items of the user's history, none recommends them too.
        allow: recommend only these item ids, or those of a file (one per line, or a column item).
        deny: never recommend these item ids, or those of a file.
        layout: one row per user with lists, or one row per recommendation (long).
        trust: modules outside recsys whose classes the model may use; their code is run (default: none).
    """
    from recsys.serve.bundle import Bundle
    from recsys.serve.files import recommend_file

    loaded = Bundle.load(bundle, trust=importable(trust))
    lists = {"allow": raw_ids(allow, loaded.vocabulary), "deny": raw_ids(deny, loaded.vocabulary)}
    given: dict[str, Any] = {name: ids for name, ids in lists.items() if ids is not None}
    for name, ids in given.items():
        unknown = int((loaded.vocabulary.rows(ids) < 1).sum())
        if unknown:
            print(f"{unknown:,} of the {len(ids):,} ids of --{name} are not in the catalogue", file=sys.stderr)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DataWarning)  # the report printed below says it all
        print(recommend_file(loaded, users, out, k=k, exclude=exclude, layout=layout, **given))
