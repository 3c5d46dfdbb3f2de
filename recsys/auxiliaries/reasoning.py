"""Losses of latent reasoning (ReaRec, arXiv 2503.22675): what makes the steps of an encoder in ``ReaRec`` useful.

- Ensemble reasoning (ERL): ``FullSoftmax(temperature)`` on the mean of the steps (``combine="mean"``), and
  :class:`StepDiversity`. The paper's earlier version, one cross-entropy per step, is ``ProgressiveSoftmax(temperature,
  reduction="sum")``.
- Progressive reasoning (PRL): :class:`ProgressiveSoftmax` on each step (``combine="last"``), and :class:`StepContrast`
  (``noise=0.01``).

Where paper and released code differ, the default is the code's choice and the paper's is an option. The published
temperatures lie between .05 and 5; the code's defaults are .07 with alpha 5, and .05 as the weight of the diversity.

Legend: Q wanted tokens (the T' targets), K reasoning steps, S = K + 1 states of a token, D width, N items, C tokens of
a chunk.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from recsys.data.batch import Batch
from recsys.nn.scoring import accumulate, accumulator
from recsys.objectives.softmax import MAX_CHUNK, full_softmax
from recsys.protocols import Encoded, ItemTable, Step

REDUCTIONS = ("mean", "sum")
NUMBERS, LEAST = 2**18, 32  # of a chunk of the divergence: numbers in each of its few buffers, and tokens at least


class ProgressiveSoftmax(nn.Module):
    """Cross-entropy over all items at every reasoning step, sharper from step to step (PRL's L_Rec, Eq. 9 and 10).

    loss_t = CE_K + early_weight * mean_{k<K} CE_k, where CE_k has the temperature tau_k = temperature * alpha^(K - k):
    hottest at the encoder's own state, ``temperature`` itself at the last step.

    Use when: the last step is scored (``ReaRec(combine="last")``). An encoder that gives no ``extra["steps"]`` has one
    state per token, and the loss is that of ``FullSoftmax(temperature)``.

    Args:
        temperature: divides the scores of the last step.
        alpha: by how much each earlier step is hotter; 1 makes all equal.
        early_weight: of the steps before the last.
        reduction: "mean" over the early steps (released code) or their "sum" (Eq. 10).

    Raises:
        ValueError: a temperature or alpha that is not positive, a negative weight, or an unknown reduction.
    """

    def __init__(
        self, temperature: float = 1.0, alpha: float = 1.0, early_weight: float = 1.0, reduction: str = "mean"
    ) -> None:
        super().__init__()
        _check(temperature, reduction)
        if alpha <= 0 or early_weight < 0:
            raise ValueError(f"alpha must be positive and early_weight at least 0, found {alpha} and {early_weight}")
        self.temperature, self.alpha, self.early_weight, self.reduction = temperature, alpha, early_weight, reduction

    def forward(self, encoded: Encoded, batch: Batch, items: ItemTable, generator: torch.Generator) -> Tensor:
        """The sum over the targets of weight times loss; ``generator`` is not used.

        Raises:
            ValueError: the steps in ``encoded`` are not those of the targets in ``batch``.
        """
        hidden, targets, weights = encoded.at_targets(batch)
        steps = encoded.extra.get("steps", hidden.unsqueeze(1))  # (T', S, D)
        if len(steps) != len(targets):
            raise ValueError(f"{len(targets)} targets, but reasoning steps of {len(steps)} tokens: encode this batch")
        count = steps.shape[1]
        stacked = (steps / steps.new_tensor(self.temperatures(count)).unsqueeze(1)).flatten(0, 1)
        shares = self._shares(count).to(hidden.device)
        each = (shares if weights is None else weights.unsqueeze(1) * shares).expand(len(targets), -1).flatten()
        firsts, blocks = zip(*items.blocks(), strict=True)
        return full_softmax(stacked, targets.repeat_interleave(count), each, firsts, blocks)

    def temperatures(self, count: int) -> list[float]:
        """tau_0 .. tau_K of ``count`` = K + 1 states."""
        return [self.temperature * self.alpha ** (count - 1 - step) for step in range(count)]

    def _shares(self, count: int) -> Tensor:
        """(S,): what each step's cross-entropy counts."""
        early = self.early_weight / (count - 1 if self.reduction == "mean" and count > 1 else 1)
        return torch.tensor([early] * (count - 1) + [1.0])


class StepDiversity(nn.Module):
    """Push the predictions of the reasoning steps apart (ERL's L_KL, Eq. 7).

    loss = -mean over tokens and ordered pairs j != i of KL(p_j || p_i), p_k = softmax(r_k E^T / temperature); the
    gradient reaches p_j only.

    Use when: the mean of the steps is scored (``ReaRec(combine="mean")``); without it the steps collapse into one.

    Args:
        weight: of the loss (lambda); .001 to .1 in the paper.
        temperature: divides the scores; the same as the objective's in the released code.
        stop_gradient: hold the second argument of each KL fixed (released code).
        reduction: "mean" over the S (S - 1) ordered pairs (released code), or "sum" over the pairs j < i (Eq. 7).

    Raises:
        ValueError: a temperature that is not positive, or an unknown reduction.
    """

    def __init__(
        self, weight: float = 0.05, temperature: float = 1.0, stop_gradient: bool = True, reduction: str = "mean"
    ) -> None:
        super().__init__()
        _check(temperature, reduction)
        self.weight, self.temperature = weight, temperature
        self.stop_gradient, self.reduction = stop_gradient, reduction

    def forward(self, step: Step) -> Tensor:
        """The loss, 0 where there is but one step.

        Raises:
            ValueError: the encoder gives no reasoning steps.
        """
        steps = _steps(step, "steps", "StepDiversity", "wrap the encoder in ReaRec")
        assert step.items is not None
        count = steps.shape[1]
        if self.reduction == "mean":
            pairs = (1 - torch.eye(count)) / max(count * (count - 1), 1)
        else:
            pairs = torch.ones(count, count).triu(1)
        blocks = tuple(vectors for _, vectors in step.items.blocks())
        total = divergence(steps / self.temperature, blocks, pairs.to(steps.device), self.stop_gradient)
        return -total / max(len(steps), 1)


class StepContrast(nn.Module):
    """Tell each noisy reasoning state's own clean state from those of other users (PRL's L_RCL, Eq. 12).

    loss = mean over tokens and steps k of CE(r~_k R_k^T / temperature, itself), R_k the clean states of step k. One
    token per history takes part, drawn anew in every step of training, so that prefixes of one history are never each
    other's negatives; under ``LastItem`` that is all of them. Histories with the same target are not told apart
    (neither does the released code).

    Use when: ``ReaRec`` has ``noise``; 0 while the noisy branch is off (warm-up).

    Args:
        weight: of the loss.
        temperature: divides the products; the same as the objective's in the paper.
        reduction: "mean" (released code) or "sum" (Eq. 12) over the steps.

    Raises:
        ValueError: a temperature that is not positive, or an unknown reduction.
    """

    def __init__(self, weight: float = 1.0, temperature: float = 1.0, reduction: str = "mean") -> None:
        super().__init__()
        _check(temperature, reduction)
        self.weight, self.temperature, self.reduction = weight, temperature, reduction

    def forward(self, step: Step) -> Tensor:
        """The loss.

        Raises:
            ValueError: the encoder gives no reasoning steps, or has no noisy branch.
        """
        clean = _steps(step, "steps", "StepContrast", "wrap the encoder in ReaRec")[:, 1:]
        noisy = _steps(step, "noisy", "StepContrast", "give ReaRec a noise, such as noise=0.01")
        if noisy.numel() == 0:
            return clean.new_zeros(())
        chosen = one_per_history(step.batch, step.generator("StepContrast"))
        anchors, keys = noisy[chosen].transpose(0, 1).float(), clean[chosen].transpose(0, 1).float()  # (K, B', D)
        with torch.autocast(anchors.device.type, enabled=False):
            logits = anchors @ keys.transpose(1, 2) / self.temperature
        own = torch.arange(len(chosen), device=chosen.device).repeat(len(keys))
        loss = F.cross_entropy(logits.flatten(0, 1), own)
        return loss * len(keys) if self.reduction == "sum" else loss


def one_per_history(batch: Batch, generator: torch.Generator) -> Tensor:
    """(B',) indices into ``batch.wanted``: one at random of each history that has any."""
    rows = batch.flat[batch.wanted] // batch.ids.shape[1]
    counts = torch.bincount(rows, minlength=len(batch))
    draws = torch.rand(len(batch), generator=generator, device=rows.device)
    chosen = counts.cumsum(0) - counts + (draws * counts).long().minimum(counts - 1)
    return chosen[counts > 0]


def divergence(steps: Tensor, blocks: tuple[Tensor, ...], pairs: Tensor, stop_gradient: bool = True) -> Tensor:
    """Sum over tokens and j, i of pairs[j, i] KL(p_j || p_i), p_k = softmax(r_k E^T) over all items; exact.

    The pairs of one token cost a product of (S, S) and (S, N), never a row of N per pair, and only a chunk's
    distributions are held.

    Args:
        steps: (Q, S, D) states r.
        blocks: output vectors E of all items, in blocks (n, D).
        pairs: (S, S) weights; the diagonal does not matter.
        stop_gradient: no gradient through the second argument.
    """
    device = steps.device.type
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
        steps, blocks = steps.to(dtype), tuple(block.to(dtype) for block in blocks)
    with torch.autocast(device, enabled=False):  # products of log-probabilities stay in float32
        total: Tensor = _Divergence.apply(steps, pairs, stop_gradient, *blocks)
    return total


class _Divergence(torch.autograd.Function):
    """Sum_j p_j M_j with M = A log p and A = diag(pairs 1) - pairs; the gradient is taken in the same pass.

    To the scores of step j: p_j (M_j - p_j . M_j) through the first argument, and row j of
    (diag(pairs^T 1) - pairs^T) p through the second.
    """

    @staticmethod
    def forward(ctx: Any, steps: Tensor, pairs: Tensor, stop_gradient: bool, *blocks: Tensor) -> Tensor:
        dtype = torch.promote_types(steps.dtype, torch.float32)
        pairs = pairs.to(dtype)
        first, second = _laplacian(pairs), None if stop_gradient else _laplacian(pairs.T)
        total = torch.zeros((), device=steps.device, dtype=dtype)
        gradients = []
        if any(ctx.needs_input_grad):
            gradients = [torch.empty_like(steps), *(accumulator(block) for block in blocks)]
        rows = sum(len(block) for block in blocks) * steps.shape[1]
        chunk = max(LEAST, min(MAX_CHUNK, NUMBERS // max(rows, 1)))
        for start in range(0, len(steps), chunk):
            part = steps[start : start + chunk].transpose(0, 1)  # (S, C, D)
            hidden = part.flatten(0, 1)
            log_p = _scores(hidden, blocks).to(dtype).log_softmax(1).view(len(part), -1)  # (S, C N)
            p = log_p.exp()
            products = torch.mm(first, log_p).mul_(p).view(len(hidden), -1)
            each = products.sum(1, keepdim=True)
            total += each.sum()
            if gradients:
                slope = products.addcmul_(p.view_as(products), each, value=-1)  # (S C, N)
                if second is not None:
                    slope.view_as(p).addmm_(second, p)
                into = gradients[0][start : start + chunk].transpose(0, 1)
                into.copy_(_propagate(slope.to(hidden.dtype), hidden, blocks, gradients[1:]).view_as(part))
        ctx.save_for_backward(*gradients)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        steps, *blocks = (saved * gradient.to(saved.dtype) for saved in ctx.saved_tensors)
        return steps, None, None, *blocks


def _scores(hidden: Tensor, blocks: tuple[Tensor, ...]) -> Tensor:
    """(S C, N)."""
    scores = [hidden @ block.T for block in blocks]
    return scores[0] if len(scores) == 1 else torch.cat(scores, 1)


def _propagate(slope: Tensor, hidden: Tensor, blocks: tuple[Tensor, ...], totals: list[Tensor]) -> Tensor:
    """The gradient (S C, D) of the states from that of their scores (S C, N); those of the blocks go to ``totals``."""
    pieces = slope.split([len(block) for block in blocks], 1)
    for piece, total in zip(pieces, totals, strict=True):
        accumulate(total, piece, hidden)
    parts = [piece @ block for piece, block in zip(pieces, blocks, strict=True)]
    return parts[0] if len(parts) == 1 else torch.stack(parts).sum(0)


def _laplacian(pairs: Tensor) -> Tensor:
    return torch.diag(pairs.sum(1)) - pairs


def _steps(step: Step, name: str, who: str, remedy: str) -> Tensor:
    if step.encoded is None or name not in step.encoded.extra:
        raise ValueError(f"{who} reads extra[{name!r}] of the encoder, which gives none: {remedy}")
    steps: Tensor = step.encoded.extra[name]
    return steps


def _check(temperature: float, reduction: str) -> None:
    if temperature <= 0:
        raise ValueError(f"temperature must be positive, found {temperature}")
    if reduction not in REDUCTIONS:
        raise ValueError(f"reduction must be one of {', '.join(REDUCTIONS)}, found {reduction!r}")
