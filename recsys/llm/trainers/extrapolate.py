"""UIPE (2025, arXiv 2503.04693): further along the way that unlearning went, to forget what is related as well.

    theta(alpha) = theta_un + alpha (theta_un - theta_0)

After a run of unlearning, without data or training. Biases, norms and token vectors are part of the way; buffers and
what was frozen are not, and tied weights are moved once. Where an adapter that began at nothing was trained, the way is
what it adds, which is multiplied by 1 + alpha; no weights are copied for that.

Going too far looks like success on what is to be forgotten and costs everything else, so alpha is chosen by what is
retained: :func:`largest_tolerated`. The equation is that of a summary and of public code, the default tolerance ours.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from recsys.llm.trainers.adapters.linear import LinearAdapter


class Extrapolation:
    """A way that can be gone further: every alpha is from where training ended, however often it is set.

    Args:
        trained: the module behind unlearning, or the adapter that was attached to it for that.
        before: of a module, its parameters by name before unlearning (a ``state_dict`` has more, which is not read).

    Raises:
        ValueError: a module without ``before``, an adapter with it, parameters that do not fit, or none that differs.
    """

    def __init__(self, trained: nn.Module, before: Mapping[str, Tensor] | None = None) -> None:
        adapter = isinstance(trained, LinearAdapter)
        if adapter == (before is not None):
            raise ValueError("give a module and its parameters of before, or an attached adapter alone")
        if isinstance(trained, LinearAdapter):
            held = {str(number): one for number, one in enumerate(trained.outer())}
            origin: dict[str, Tensor | None] = dict.fromkeys(held)
        else:
            held = {name: one for name, one in trained.named_parameters() if one.is_floating_point()}
            origin = {name: _fitting(name, one, before or {}) for name, one in held.items()}
        # Only what moved: what was frozen stays as it is to the bit.
        moved = [(one, origin[name]) for name, one in held.items() if not _equal(one, origin[name])]
        if not moved:
            raise ValueError("no parameter differs from before, so there is no way to go further on; a state_dict "
                             "follows its module: clone its tensors before training")  # fmt: skip
        self._moved = [(one, one.detach().clone(), start) for one, start in moved]
        self.alpha = 0.0

    @torch.no_grad()
    def to(self, alpha: float) -> None:
        """Set the parameters to theta(alpha), in place; 0 is where training ended, to the bit.

        Raises:
            ValueError: alpha is negative or not finite.
        """
        if not 0 <= alpha < math.inf:
            raise ValueError(f"alpha must be at least 0, found {alpha}")
        for parameter, end, start in self._moved:
            way = end if start is None else end - start.to(end)
            parameter.copy_(end + alpha * way if alpha else end)
        self.alpha = alpha


@dataclass(frozen=True)
class Tolerated:
    """The alpha that was chosen, and what was retained at each that was tried."""

    alpha: float
    retained: dict[float, float]


def largest_tolerated(
    way: Extrapolation,
    retained: Callable[[], float],
    tolerance: float = 0.01,
    alphas: Sequence[float] = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0),
) -> Tolerated:
    """The largest alpha of ``alphas`` that costs at most ``tolerance`` of what is retained; ``way`` is set to it.

    Args:
        retained: a metric of the model as it is on held-out data that is to be kept, such as NDCG@10: more is better.
        tolerance: relative to the metric at alpha 0.

    Returns:
        alpha 0 if every other one costs more.

    Raises:
        ValueError: the metric at alpha 0 is not above 0, so that there is nothing to keep; or a number out of range.
    """
    if not 0 <= tolerance < 1 or not alphas or min(alphas) <= 0:
        raise ValueError(f"tolerance must be in [0, 1) and alphas above 0, found {tolerance} and {list(alphas)}")
    way.to(0.0)
    found = {0.0: float(retained())}
    if not 0 < found[0.0] < math.inf:
        raise ValueError(f"what is retained is {found[0.0]} at alpha 0, and a share of that is to be kept: it must be "
                         "above 0, more being better")  # fmt: skip
    for alpha in sorted(set(alphas), reverse=True):
        way.to(alpha)
        found[alpha] = float(retained())
        if found[alpha] >= (1 - tolerance) * found[0.0]:  # False if it is not a number
            return Tolerated(alpha, found)
    way.to(0.0)
    return Tolerated(0.0, found)


def _fitting(name: str, one: Tensor, before: Mapping[str, Tensor]) -> Tensor:
    if name not in before or before[name].shape != one.shape:
        found = f"{tuple(before[name].shape)}" if name in before else "nothing"
        raise ValueError(f"{name} is {tuple(one.shape)} in the module, and was {found} before: these are not the "
                         "parameters of the same model")  # fmt: skip
    return before[name].detach()


def _equal(one: Tensor, start: Tensor | None) -> bool:
    return start is not None and torch.equal(one.detach(), start.to(one))
