"""Which policy scores the sequences of a recommender, by its kind. Experimental: may change."""

from __future__ import annotations

from typing import Any

from recsys.generative.code_policy import CodePolicy
from recsys.generative.generator import Generator
from recsys.llm.trainers.item_policy import ItemPolicy
from recsys.recommenders.blend import Blend
from recsys.recommenders.composed import Recommender


def policy_of(model: Any, whole: bool = True) -> Any:
    """The policy by which sequences of ``model`` are scored; with ``whole`` its item table is a part of it.

    Raises:
        TypeError: there is none for its kind.
    """
    if isinstance(model, Generator):
        return CodePolicy(model.encoder, model.decoder)
    if isinstance(model, Recommender):
        return ItemPolicy(model.encoder, model.items if whole else None)
    if isinstance(model, Blend):
        raise TypeError(
            "a blend is nothing that is trained: give the runs of its members, and blend what comes of them"
        )
    raise TypeError(
        f"sequences are scored by a Recommender or a Generator; {type(model).__name__} is fitted in one go: fit it "
        "again, on recsys.data.without.without_users(split, rows) where something is to be forgotten"
    )
