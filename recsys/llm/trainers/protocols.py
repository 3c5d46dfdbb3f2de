"""The seams of training over sequences: what a part of each kind is. Experimental: may change.

    examples -> policy -> Sequences -> objective (with credit) -> loss
                  |
               adapter: what is trained, and without which the policy is the reference

Parts are plain objects or ``nn.Module``s that keep their constructor arguments as attributes of the same name.
Legend: N sequences, T tokens of the longest completion.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Protocol, runtime_checkable

from torch import Tensor, nn

from recsys.llm.trainers.sequences import Sequences


@runtime_checkable
class SequenceObjective(Protocol):
    """A loss over sequences: a scalar, or several by name. A mean by weight, so that doubled weights change nothing.

    May have ``figures(batch) -> dict[str, float]``: sums that are told after each epoch, each with its number of cases
    under the same name with ``" of"`` behind it.

    Raises:
        ValueError: the batch has no sequence of a role that it needs; the message names the role.
    """

    # Optional fields of Sequences: "reference", "entropy", "divergence", "reward", "rewards", "tokens"; and "entropy
    # gradient" where the entropy is trained and not only looked at.
    reads: frozenset[str]

    def __call__(self, batch: Sequences) -> Tensor | dict[str, Tensor]: ...


@runtime_checkable
class Credit(Protocol):
    """What each token of a rewarded sequence gets of the reward; no gradient goes through it.

    May have ``figures``, and ``observe(batch)``, called once for each batch in training, behind the credit for it: what
    a credit learns of its own, kept in buffers. Calling it alone changes nothing.
    """

    reads: frozenset[str]

    def __call__(self, batch: Sequences) -> Tensor:
        """(N, T) advantages, 0 where the mask is False."""


@runtime_checkable
class Adapter(Protocol):
    """Few parameters beside a frozen module; where they begin at nothing, the module without them is the reference.

    While it is attached the module's own weights are buffers, so no stage can train them. ``penalty() -> Tensor`` (a
    term of the loss), ``on_gradients()`` (behind the backward pass and before clipping) and ``after_update(done)``
    (behind the optimizer's step, before gradients are cleared) are optional; ``done`` counts optimizer steps from 1.
    """

    def attach(self, module: nn.Module) -> None:
        """Put it into ``module``, in place; what the module computes stays the same."""

    def off(self) -> AbstractContextManager[None]:
        """Within it the module computes what it did before it was attached to."""

    def parameters_of(self) -> Sequence[nn.Parameter]:
        """What is trained."""

    def merge(self) -> None:
        """Fold it into the module's weights, which are parameters again, under their former names."""


@runtime_checkable
class Writes(Protocol):
    """Whatever answers prompts with texts, as sampling and aggregation of texts need it."""

    def __call__(self, prompts: Sequence[str], temperature: float, seed: int) -> Sequence[str | None]:
        """An answer to each prompt, None where there is none."""
