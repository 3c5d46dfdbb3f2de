"""Models and tokenizers by folder or by name on the Hugging Face hub, with one answer where they cannot be had."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from recsys.storage.reading import outside, unbounded

Loaded = TypeVar("Loaded")


class ModelUnavailableError(OSError, ValueError):
    """A model that is neither on this machine nor to be had; the message names the way without a network."""


def from_hub(
    load: Callable[[bool], Loaded], name: str, what: str, otherwise: str, revision: str | None = None
) -> Loaded:
    """``load(True)`` from a folder or the hub's cache, else ``load(False)``, which may download.

    The hub is asked once before, because loaders go on trying for a minute where there is no network.

    Args:
        what: what ``name`` names, for the message.
        otherwise: what to do without a network, an instruction.

    Raises:
        ModelUnavailableError: it is nowhere.
        PermissionError: a saved model is being loaded, and nobody said to trust this name.
    """
    from safetensors import SafetensorError

    outside(name, what)
    with unbounded():
        try:
            return load(True)
        except (OSError, ValueError, SafetensorError) as error:  # not here, in part, or damaged
            reason: Exception = error
        if not Path(name).is_dir():
            try:
                newest_commit(name, revision)
                return load(False)
            except (OSError, ValueError) as error:
                reason = error
    raise unavailable(name, what, otherwise, reason) from reason


def held_commit(name: str, files: Sequence[str], revision: str | None = None) -> str | None:
    """The commit at which the hub's cache holds one of the ``files`` of a model; None if it holds none.

    Raises:
        ValueError: no model of the hub can have this name.
    """
    from huggingface_hub import try_to_load_from_cache

    found = (try_to_load_from_cache(name, file, revision=revision) for file in files)
    return next((Path(path).parent.name for path in found if isinstance(path, str)), None)


def newest_commit(name: str, revision: str | None = None) -> str:
    """The commit that the hub has of a model; OSError at once if it cannot be asked."""
    from huggingface_hub import HfApi

    try:
        return str(HfApi().model_info(name, revision=revision, timeout=10).sha)
    except Exception as error:  # the ways in which a network fails are many
        raise OSError(f"not on this machine, and the hub says: {error}") from error


def unavailable(name: str, what: str, otherwise: str, reason: Exception) -> ModelUnavailableError:
    """The error for a model that cannot be had."""
    text = (str(reason).strip().splitlines() or [type(reason).__name__])[0][:200]
    where = "is neither a folder, nor in the hub's cache, nor to be had from the hub"
    if Path(name).is_dir():
        where = "is a folder that cannot be loaded"
    return ModelUnavailableError(f"the {what} {name!r} {where} ({text}). Without a network {otherwise}")
