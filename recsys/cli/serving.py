"""Commands on bundles: export, recommend, similar."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path
from typing import Any, Literal

from recsys.cli.arguments import raw_ids
from recsys.cli.runs import importable
from recsys.errors import DataWarning


def export(
    run: Path,
    out: Path,
    /,
    index: Literal["auto", "hnsw", "exact", "none"] = "auto",
    split: Path | None = None,
    trust: tuple[str, ...] = (),
) -> None:
    """Write one folder that serves: parts, weights, item vectors, FAISS index, vocabulary, item table.

    Args:
        run: the run folder.
        out: the folder to write.
        index: kind of the FAISS index; auto decides as recsys.export does.
        split: folder of a saved split with the same items, instead of the run's own.
        trust: modules outside recsys whose parts may be loaded; their code runs.
    """
    from recsys.runs.read import load_run
    from recsys.runs.split import split_of
    from recsys.serve.bundle import export as write

    kind = None if index == "none" else index
    model = load_run(run, importable(trust))
    bundle = write(model, out, index=kind, split=split_of(run, model, split))
    print(bundle)


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
    """Recommend for every user of a Parquet, CSV or NDJSON file, streamed, into a Parquet file.

    Args:
        bundle: the folder that export wrote.
        users: the histories: columns user and items (lists), or user, item and time.
        out: the Parquet file to write.
        k: recommendations per user.
        exclude: what is not recommended to a user again.
        allow: item ids, or one file of them (a line each, or a column item): nothing else is recommended.
        deny: item ids, or one file of them, that are not recommended to anybody.
        layout: a row per user with lists, or a long table with a row per recommendation.
        trust: modules outside recsys whose parts may be loaded; their code runs.
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


def similar(bundle: Path, items: tuple[str, ...], /, k: int = 10, trust: tuple[str, ...] = ()) -> None:
    """Print the items nearest to each given one, by the similarity that Bundle.similar has.

    Args:
        bundle: the folder that export wrote.
        items: item ids.
        k: neighbours of each.
        trust: modules outside recsys whose parts may be loaded; their code runs.
    """
    from recsys.serve.bundle import Bundle

    if not items:
        raise ValueError("name the items whose neighbours are asked for: recsys similar BUNDLE ITEM ...")
    loaded = Bundle.load(bundle, trust=importable(trust))
    wanted = raw_ids(items, loaded.vocabulary) or []
    for one, near in zip(wanted, loaded.similar(wanted, k=k), strict=True):
        print(f"{titled(loaded, one)}:")
        for rank, (other, similarity) in enumerate(near, 1):
            print(f"  {rank:>2}. {titled(loaded, other)}  ({similarity:.3f})")


def titled(bundle: Any, item: Any) -> str:
    """An item by its title, where the bundle has one, and its id."""
    titles = bundle.item_text.get("title")
    row = int(bundle.vocabulary.rows([item])[0])
    known = titles is not None and 0 < row < len(titles) and titles[row]
    return f"{titles[row]} [{item}]" if known else str(item)
