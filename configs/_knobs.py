"""Knobs that recipes share: a parameter of one of these types gives a recipe its fields as parameters and flags.

``run(weight: float = 0.1, knobs: Knobs = Knobs(epochs=200))`` is called as ``run(weight=0.2, epochs=5)`` and
``--weight 0.2 --epochs 5``. A recipe of your own may import them: ``from _knobs import Knobs``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, TypeVar

T = TypeVar("T", bound="TrainingKnobs")

# What ``recsys tune`` tries of them, in recipes that take these over.
RANGES = {"learning_rate": "3e-4..1e-2 log", "dropout": "0..0.6", "dim": "32,64,128"}


@dataclass(frozen=True, kw_only=True)
class TrainingKnobs:
    """How a recipe trains and evaluates.

    Args:
        epochs: maximum number of training epochs.
        patience: early stopping: epochs without a better validation NDCG@10 after which training ends.
        batch_size: training rows (histories, or windows of them) per batch (default: depends on the data set).
        learning_rate: learning rate of Adam (default: depends on the data set).
        exclude: seen items when ranking: "history" leaves out the items of the user's history, "none" ranks them too.
        seed: random seed: initial weights, order of batches, dropout and all other draws.
    """

    epochs: int = 60
    patience: int = 8
    batch_size: int | None = None
    learning_rate: float | None = None
    exclude: Literal["history", "none"] = "history"
    seed: int = 0

    def filled(self: T, values: Mapping[str, Any]) -> T:
        """The same with those of ``values`` where a knob is None; other names are passed over."""
        empty = {one.name for one in fields(self) if getattr(self, one.name) is None}
        return replace(self, **{name: value for name, value in values.items() if name in empty})

    def training(self, **more: Any) -> dict[str, Any]:
        """Fields of :class:`recsys.Training`, and ``more`` of them."""
        names = ("epochs", "patience", "batch_size", "learning_rate", "exclude", "seed")
        return {name: getattr(self, name) for name in names} | more

    def evaluation(self) -> dict[str, Any]:
        """Arguments of :func:`recsys.evaluate`."""
        return {"exclude": self.exclude}


@dataclass(frozen=True, kw_only=True)
class Knobs(TrainingKnobs):
    """The sizes of a model as well.

    Args:
        dim: embedding size: width of item vectors and hidden states.
        dropout: dropout rate (default: depends on the data set).
        max_length: maximum history length: only the newest items are read (default: depends on the data set).
    """

    dim: int = 64
    dropout: float | None = None
    max_length: int | None = None


@dataclass(frozen=True, kw_only=True)
class Public(Knobs):
    """One of the data sets of our tables as well.

    Args:
        data: data set; all but ml-100k are copied from RECSYS_MIRROR.
    """

    data: Literal["ml-100k", "ml-1m", "amazon-beauty"] = "ml-100k"


@dataclass(frozen=True, kw_only=True)
class Generative(Knobs):
    """One of the data sets of the tables of generative recommenders.

    Args:
        data: data set; all but ml-100k are copied from RECSYS_MIRROR.
        dim: embedding size: width of the vectors of codes and of hidden states (default: depends on the data set).
    """

    data: Literal["ml-100k", "amazon-beauty", "amazon-sports"] = "ml-100k"
    dim: int | None = None  # type: ignore[assignment]


@dataclass(frozen=True, kw_only=True)
class Contrast:
    """How two views of a batch of histories are contrasted.

    Args:
        temperature: temperature of the contrastive loss, which divides the similarities.
        cosine: contrast cosine similarities instead of dot products.
        hide: false negatives to leave out: pairs of a batch with the same target, of the same user, or both.
        keep: how much a hidden pair still counts as a negative: 0 not at all, 1 like any other.
    """

    temperature: float = 1.0
    cosine: bool = False
    hide: tuple[Literal["target", "user"], ...] = ()
    keep: float = 0.0
