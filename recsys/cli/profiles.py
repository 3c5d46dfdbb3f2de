"""``recsys profiles``: a text about each user or item."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from recsys.cli.arguments import saved_or_left_last


def profiles(
    name: str,
    out: Path,
    /,
    of: Literal["users", "items"] = "users",
    url: str | None = None,
    model: str | None = None,
    key_env: str = "OPENAI_API_KEY",
    concurrency: int = 8,
    requests_per_minute: float | None = None,
    repetition: float = 1.1,
    max_history: int = 20,
    histories: int = 0,
    limit: int | None = None,
    user: str | None = None,
    item: str | None = None,
    time: str | None = None,
    items: Path | None = None,
) -> None:
    """Write a text profile of each user or item, by a language model or, without one, from item texts.

    Every answer is kept as it arrives: after an interruption the same call asks for what is missing.

    Args:
        name: a data set that has a card, the folder of a saved split, or a file of interactions.
        out: the folder to write.
        of: users (from their training history, leave-last) or items.
        url: base URL of an OpenAI-compatible endpoint, such as http://localhost:8000/v1 (needs --model as well).
        model: name of the model at the endpoint; without --url a transformers model (folder or name), run here.
        key_env: environment variable that holds the endpoint's key.
        concurrency: concurrent requests to the endpoint.
        requests_per_minute: rate limit of the endpoint (default: none).
        repetition: of a transformers model: what makes words that a text has already less likely (1: nothing does).
        max_history: maximum history length: newest training events of a user in the prompt.
        histories: training histories that end in the item to put into the prompt, with --of items.
        limit: write only the first N profiles with the model (default: all).
        user: column of user ids in a file of interactions (default: user, or what the format calls it).
        item: column of item ids (default: item, or what the format calls it).
        time: column of times (default: none, except in MovieLens and atomic files).
        items: item table (titles, features) of a file of interactions.
    """
    from recsys.llm.chat import ChatEndpoint, Writer
    from recsys.llm.local import LocalWriter
    from recsys.llm.profiles import profiles as make

    if url is not None and model is None:
        raise ValueError("--url needs --model: the name under which the endpoint serves it")
    writer: Writer | None = None if model is None else LocalWriter(model, repetition=repetition)
    if url is not None and model is not None:
        writer = ChatEndpoint(
            url, model, key_env=key_env, concurrency=concurrency, requests_per_minute=requests_per_minute
        )
    split = saved_or_left_last(name, user, item, time, items)
    print(make(
        split, of, writer, folder=out, max_history=max_history, histories=histories, limit=limit
    ))  # fmt: skip
