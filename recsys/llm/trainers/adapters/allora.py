"""ALLoRA (2024, arXiv 2410.09692): LoRA without dropout or scale, each row of which learns the slower the larger it is.

    y = W x + B A x,        row i of B A at s_i = 1 / sqrt(||(B A)_i|| + 1 / eta^2) of the learning rate

At the start, where B is zero, s is eta, and it falls as a row grows, so that a fine-tuning of a few hundred steps is
sooner away from B = 0. The published text was not at hand: the formula is that of a second source, and so is eta = 2.
It was refused at a conference for small gains; take it as an option.

Two forms. Scaling the gradient of row i of B A is scaling what comes back to output i, for A and B and not for what
lies before; that is for optimizers whose update is proportional to the gradient (SGD). One that divides by the size of
gradients (Adam and its kin) takes such a factor out again: there the update of row i of B itself is scaled.

||(B A)_i||^2 = B_i (A A^T) B_i^T, so B A is never made. Legend: O outputs of a layer, I inputs, r rank.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from recsys.errors import closest
from recsys.llm.trainers.adapters.linear import LinearAdapter
from recsys.llm.trainers.adapters.lowrank import LowRankLinear, fresh, insert

SCALES = ("updates", "gradients")


class ALLoRA(LinearAdapter):
    """Low-rank matrices beside linear layers, with a rate of its own for each output.

    Args:
        rank: r.
        eta: times the learning rate at which a row begins.
        scales: "updates" of B, for Adam and its kin; or "gradients" of A and B, for SGD.
        targets: as of :class:`LinearAdapter`.

    Raises:
        ValueError: a number or name out of range.
    """

    def __init__(
        self, rank: int = 8, eta: float = 2.0, scales: str = "updates", targets: Sequence[str] | None = None
    ) -> None:
        super().__init__(targets)
        if rank < 1 or eta <= 0:
            raise ValueError(f"rank must be at least 1 and eta above 0, found {rank} and {eta}")
        if scales not in SCALES:
            raise ValueError(f"scales must be one of {', '.join(SCALES)}; {closest(str(scales), SCALES)}")
        self.rank, self.eta, self.scales = rank, eta, scales
        self._before: dict[str, tuple[Tensor, Tensor]] = {}  # B and its rates, between gradients and update

    def on_gradients(self) -> None:
        """Remember B and the rates of its rows, if its updates are scaled."""
        super().on_gradients()
        if self.scales == "updates":
            rates, layers = self.rates(), self._layers.items()
            own = {path: layer.lora_B for path, layer in layers if layer.lora_B.grad is not None}
            self._before = {path: (outer.detach().clone(), rates[path]) for path, outer in own.items()}

    @torch.no_grad()
    def after_update(self, done: int) -> None:
        """Scale what the update did to each row of B."""
        for path, (before, rates) in self._before.items():
            outer = self._layers[path].lora_B
            outer.copy_(before + rates[:, None] * (outer - before))
        self._before = {}

    def rates(self) -> dict[str, Tensor]:
        """The rates s (O,) of each layer, by path."""
        return {path: row_rates(layer.lora_A, layer.lora_B, self.eta) for path, layer in self._layers.items()}

    def _inject(self, module: nn.Module, chosen: Mapping[str, nn.Linear]) -> None:
        how: Any = {} if self.scales == "updates" else {"how": _Scaled(self.eta)}
        insert(module, {path: LowRankLinear(one, *fresh(one, self.rank), 1.0, **how) for path, one in chosen.items()})


@torch.no_grad()
def row_rates(inner: Tensor, outer: Tensor, eta: float) -> Tensor:
    """(O,) 1 / sqrt(norm of each row of B A + 1 / eta^2), of A (r, I) and B (O, r).

    >>> row_rates(torch.tensor([[3.75]]), torch.tensor([[0.0], [1.0]]), eta=2.0)
    tensor([2.0000, 0.5000])
    """
    squares = ((outer @ (inner @ inner.T)) * outer).sum(1)
    return (squares.clamp(min=0).sqrt() + eta**-2).rsqrt()


class _Scaled:
    """B A x, with the gradients of A and B as if that of each row of B A were scaled; that of x is not."""

    def __init__(self, eta: float) -> None:
        self.eta = eta

    def __call__(self, x: Tensor, inner: Tensor, outer: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            made: Tensor = _Product.apply(x.to(inner.dtype), inner, outer, row_rates(inner, outer, self.eta))
        return made


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, inner: Tensor, outer: Tensor, rates: Tensor) -> Tensor:
        hidden = x @ inner.T  # (..., r)
        ctx.save_for_backward(x, inner, outer, rates, hidden)
        return hidden @ outer.T

    @staticmethod
    def backward(ctx: Any, *given: Tensor) -> tuple[Tensor | None, ...]:
        x, inner, outer, rates, hidden = ctx.saved_tensors
        (back,) = given  # (..., O)
        scaled = back * rates
        plain = back @ outer @ inner if ctx.needs_input_grad[0] else None
        of_inner = _rows(scaled @ outer).T @ _rows(x)
        of_outer = _rows(scaled).T @ _rows(hidden)
        return plain, of_inner, of_outer, None


def _rows(values: Tensor) -> Tensor:
    return values.reshape(-1, values.shape[-1])
