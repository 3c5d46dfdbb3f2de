"""LT-SFT, sparse fine-tuning by the lottery (Ansell et al. 2022): the few weights that move most, trained alone.

1. All weights of a module are trained, from theta_0 to theta_1. 2. Those K with the largest |theta_1 - theta_0| of all
tensors together are chosen. 3. The module is back at theta_0, and the chosen ones alone are trained. What they changed
is a delta of K numbers, added at loading time at no cost of serving; deltas of several tasks (a market, a domain) are
added up. After ``cambridgeltl/composable-sft``, with one round of choosing.

What we do differently: equal changes at the border are chosen by their place, so that K are chosen and no more; weights
that were not chosen are put back to the bit behind each step, whatever weight decay or the momentum of an optimizer did
to them. A head that is to be trained in full is not part of the module that this is attached to.

Until it is merged theta_0 is kept beside the module, as long as training goes on as it is.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True, eq=False)
class SparseDelta:
    """What a few weights of a module changed by, for each parameter by name."""

    places: dict[str, Tensor]  # (K_p,) int64 of the flattened parameter, ascending
    values: dict[str, Tensor]  # (K_p,) in the parameter's type

    def __len__(self) -> int:
        return sum(len(one) for one in self.places.values())

    def tensors(self) -> dict[str, Tensor]:
        """Everything by name, ready for safetensors; :meth:`of` reads it."""
        places = {f"places.{name}": one for name, one in self.places.items()}
        return places | {f"values.{name}": one for name, one in self.values.items()}

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor]) -> SparseDelta:
        """What :meth:`tensors` gave."""
        kinds = [
            {name.partition(".")[2]: one for name, one in tensors.items() if name.startswith(f"{kind}.")}
            for kind in ("places", "values")
        ]
        return cls(*kinds)

    @torch.no_grad()
    def add_to(self, module: nn.Module, factor: float = 1.0) -> None:
        """Add ``factor`` times the change to a module, in place.

        Raises:
            ValueError: the module has no such parameter, or too small a one.
        """
        for flat, name in self._of(module):
            places = self.places[name].to(flat.device)
            flat[places] += factor * self.values[name].to(flat)

    def _of(self, module: nn.Module) -> list[tuple[Tensor, str]]:
        """The parameters of a module that it changes, as flat views."""
        named, found = dict(module.named_parameters()), []
        for name, places in self.places.items():
            if name not in named or (len(places) and int(places.max()) >= named[name].numel()):
                raise ValueError(f"the delta changes {name!r}, and the module has no such parameter, or a smaller one: "
                                 "it is of another base")  # fmt: skip
            found.append((named[name].detach().view(-1), name))
        return found


@contextmanager
def composed(module: nn.Module, deltas: Sequence[SparseDelta]) -> Iterator[None]:
    """Within it the deltas are added to ``module``; afterwards it is what it was, to the bit.

    Raises:
        ValueError: one of them is of another base.
    """
    before = [(flat, one.places[name].to(flat.device)) for one in deltas for flat, name in one._of(module)]
    kept = [(flat, places, flat[places]) for flat, places in before]
    try:
        for one in deltas:
            one.add_to(module)
        yield
    finally:
        for flat, places, values in kept:
            flat[places] = values


class SparseTuning(nn.Module):
    """Trains the few weights of a module that move most.

    The module's weights stay parameters. ``fit`` does it in two stages: in the first all are trained; when the stage
    called ``stage`` begins, :meth:`rewind` is called. Only weights of the second stage are of use, so a plan is
    ``[Stage(3, name="all", validate=False), Stage(3, name="chosen")]``.

    Args:
        share: of the weights that are chosen.
        stage: the name of the stage in which the chosen ones are trained.
        decay: factor of :meth:`penalty`, the mean size of changes.

    Raises:
        ValueError: a number out of range.
    """

    trains_base = True  # the weights themselves, not something beside them
    chosen: Tensor
    rewound: Tensor

    def __init__(self, share: float = 0.01, stage: str = "chosen", decay: float = 0.0) -> None:
        super().__init__()
        if not 0 < share <= 1 or decay < 0:
            raise ValueError(f"share must be in (0, 1] and decay at least 0, found {share} and {decay}")
        self.share, self.stage, self.decay = share, stage, decay
        self.register_buffer("rewound", torch.zeros((), dtype=torch.bool))
        self._held: list[nn.Module] = []

    def attach(self, module: nn.Module) -> None:
        """Remember the weights of ``module``, theta_0.

        Raises:
            ValueError: it is attached already, or the module has no weights.
        """
        if self._held:
            raise ValueError("this SparseTuning is attached already: make another one, or merge it first")
        self._held = [module]
        sizes = [one.numel() for one in self.parameters_of()]
        if not sizes:
            self._held = []
            raise ValueError(f"{type(module).__name__} has no weights to choose from: attach it to the encoder")
        for number, one in enumerate(self.parameters_of()):
            self.register_buffer(f"origin_{number}", one.detach().clone())
        count = max(1, math.floor(self.share * sum(sizes)))
        self.register_buffer("chosen", torch.zeros(count, dtype=torch.int64, device=one.device))  # of all, in a row
        self.rewound.zero_()

    def parameters_of(self) -> list[nn.Parameter]:
        """The weights of the module, each once."""
        return list(self._named().values())

    @contextmanager
    def off(self) -> Iterator[None]:
        """Within it the module computes what it did before it was attached to, to the bit."""
        held = [(one, one.data) for one in self.parameters_of()]
        try:
            for (one, _), origin in zip(held, self._origins(), strict=True):
                one.data = origin
            yield
        finally:
            for one, data in held:
                one.data = data

    def penalty(self) -> Tensor:
        """Scalar: ``decay`` times the mean size of what the weights changed by."""
        pairs = list(zip(self.parameters_of(), self._origins(), strict=True))
        total = torch.stack([(one - origin).abs().sum() for one, origin in pairs]).sum()
        return self.decay * total / sum(one.numel() for one, _ in pairs)

    def on_stage(self, name: str) -> None:
        """Choose and go back to the start, when the stage of that name begins for the first time."""
        if name == self.stage and not self.rewound:
            self.rewind()

    @torch.no_grad()
    def rewind(self) -> None:
        """Choose the weights that moved most, and put all back to theta_0; an optimizer must begin anew.

        Raises:
            ValueError: no weight moved, or one is not finite.
        """
        pairs = list(zip(self.parameters_of(), self._origins(), strict=True))
        moved = torch.cat([(one - origin).abs().flatten().float() for one, origin in pairs])
        if not bool(moved.isfinite().all()) or not bool(moved.any()):
            what = "no weight has moved since it was attached" if not moved.any() else "weights are not finite"
            raise ValueError(f"there is nothing to choose: {what}; train all weights first, in a stage of another name "
                             f"than {self.stage!r}")  # fmt: skip
        self.chosen = largest(moved, len(self.chosen))
        for one, origin in pairs:
            one.copy_(origin)
        self.rewound.fill_(True)

    def on_gradients(self) -> None:
        """Leave the gradients of chosen weights alone."""
        for one, places in zip(self.parameters_of(), self._places(), strict=True):
            if self.rewound and one.grad is not None:
                kept = one.grad.flatten()[places]
                one.grad.zero_().view(-1)[places] = kept

    @torch.no_grad()
    def after_update(self, done: int) -> None:
        """Put weights that were not chosen back where they were."""
        for one, origin, places in zip(self.parameters_of(), self._origins(), self._places(), strict=True):
            if self.rewound and one.requires_grad:
                kept = one.flatten()[places]
                one.copy_(origin)
                one.view(-1)[places] = kept

    def shares(self) -> dict[str, float]:
        """Which share of each parameter was chosen, by name: few tensors often have most of them."""
        named = self._named()
        parts = zip(named.items(), self._places(), strict=True)
        return {name: len(places) / one.numel() for (name, one), places in parts}

    @torch.no_grad()
    def delta(self) -> SparseDelta:
        """What the chosen weights changed by.

        Raises:
            ValueError: none were chosen yet.
        """
        if not self.rewound:
            raise ValueError(f"no weights were chosen: train all of them, and then these in the stage {self.stage!r} "
                             "(or call rewind()); a run whose best weights are of the first stage has none either, so "
                             "give that one validate=False")  # fmt: skip
        places, values = {}, {}
        for (name, one), origin, own in zip(self._named().items(), self._origins(), self._places(), strict=True):
            if len(own):
                places[name] = own.cpu()
                values[name] = (one.flatten()[own] - origin.flatten()[own]).cpu()
        return SparseDelta(places, values)

    def merge(self) -> None:
        """Let the module go as it is, theta_0 is forgotten; take :meth:`delta` before.

        Raises:
            ValueError: no weights were chosen yet.
        """
        self.delta()
        self._forget()

    @torch.no_grad()
    def detach(self) -> None:
        """Put the module back to theta_0, if this is attached to one."""
        if self._held:
            for one, origin in zip(self.parameters_of(), self._origins(), strict=True):
                one.copy_(origin)
            self._forget()

    def _forget(self) -> None:
        for number in range(len(self.parameters_of())):
            del self._buffers[f"origin_{number}"]
        self._held = []

    def _named(self) -> dict[str, nn.Parameter]:
        if not self._held:
            raise ValueError("this SparseTuning is attached to no module: call attach(module) first")
        named = self._held[0].named_parameters()
        return {name: one for name, one in named if one.is_floating_point()}

    def _origins(self) -> list[Tensor]:
        return [self.get_buffer(f"origin_{number}") for number in range(len(self._named()))]

    def _places(self) -> list[Tensor]:
        """Of each parameter the chosen places, (K_p,) int64."""
        found, first = [], 0
        for one in self.parameters_of():
            low, high = torch.searchsorted(self.chosen, torch.tensor([first, first + one.numel()]).to(self.chosen))
            found.append(self.chosen[int(low) : int(high)] - first)
            first += one.numel()
        return found


def largest(values: Tensor, count: int) -> Tensor:
    """(count,) places of the largest of ``values`` (n,), ascending; of equal ones at the border the first.

    >>> largest(torch.tensor([1.0, 3.0, 1.0, 2.0, 1.0]), 3).tolist()
    [0, 1, 3]
    """
    border = values.kthvalue(len(values) - count + 1).values
    above = (values > border).nonzero().squeeze(1)
    equal = (values == border).nonzero().squeeze(1)[: count - len(above)]
    return torch.cat([above, equal]).sort().values
