"""``recsys similar``: the nearest items of each given one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from recsys.cli.arguments import importable, raw_ids


def similar(bundle: Path, items: tuple[str, ...], /, k: int = 10, trust: tuple[str, ...] = ()) -> None:
    """Print the most similar items of each given item, by cosine similarity of their vectors.

    Args:
        bundle: the folder that export wrote.
        items: item ids, as in the data.
        k: number of neighbours per item.
        trust: modules outside recsys whose classes the model may use; their code is run (default: none).
    """
    from recsys.serve.bundle import Bundle

    if not items:
        raise ValueError("name the items to find similar ones of: recsys similar BUNDLE ITEM ...")
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
