"""Losses of latent reasoning (ReaRec, arXiv 2503.22675): what makes the thought steps of ``ReaRec`` useful.

- Ensemble reasoning (ERL): ``FullSoftmax(temperature)`` on the mean of the thought steps (``combine="mean"``), and
  :class:`StepDiversity`. The paper's earlier version, one cross-entropy per thought step, is
  ``ProgressiveSoftmax(temperature, reduction="sum")``.
- Progressive reasoning (PRL): :class:`ProgressiveSoftmax` on each thought step (``combine="last"``), and
  :class:`StepContrast` (``noise=0.01``).

Where paper and released code differ, the default is the code's choice and the paper's is an option. The published
temperatures lie between .05 and 5; the code's defaults are .07 with alpha 5, and .05 as the weight of the diversity.

Legend: Q wanted tokens (the T' targets), K thought steps, S = K + 1 states of a token, D width, N items, C tokens of
a chunk.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recsys.data.batch import Batch
from recsys.encoders.rearec import NoisyStates, ReasoningStates
from recsys.protocols import Encoded, ItemTable, Step

REDUCTIONS = ("mean", "sum")


class ProgressiveSoftmax(nn.Module):
    """Cross-entropy over all items at every thought step, sharper from one to the next (PRL's L_Rec, Eq. 9 and 10).

    loss_t = CE_K + early_weight * mean_{k<K} CE_k, where CE_k has the temperature tau_k = temperature * alpha^(K - k):
    hottest at the encoder's own state, ``temperature`` itself at the last thought step.

    Use when: the last thought step is scored (``ReaRec(combine="last")``). An encoder that gives no ``ReasoningStates``
    has one state per token, and the loss is that of ``FullSoftmax(temperature)``.

    Args:
        temperature: divides the scores of the last thought step.
        alpha: by how much each earlier thought step is hotter; 1 makes all equal.
        early_weight: of the thought steps before the last.
        reduction: "mean" over the early thought steps (released code) or their "sum" (Eq. 10).

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
            ValueError: the thought steps in ``encoded`` are not those of the targets in ``batch``.
        """
        hidden, targets, weights = encoded.at_targets(batch)
        given = encoded.get(ReasoningStates)
        steps = hidden.unsqueeze(1) if given is None else given.states  # (T', S, D)
        if len(steps) != len(targets):
            raise ValueError(f"{len(targets)} targets, but thought steps of {len(steps)} tokens: encode this batch")
        count = steps.shape[1]
        stacked = (steps / steps.new_tensor(self.temperatures(count)).unsqueeze(1)).flatten(0, 1)
        shares = self._shares(count).to(hidden.device)
        each = (shares if weights is None else weights.unsqueeze(1) * shares).expand(len(targets), -1).flatten()
        return items.cross_entropy(stacked, targets.repeat_interleave(count), each)

    def temperatures(self, count: int) -> list[float]:
        """tau_0 .. tau_K of ``count`` = K + 1 states."""
        return [self.temperature * self.alpha ** (count - 1 - step) for step in range(count)]

    def _shares(self, count: int) -> Tensor:
        """(S,): what each thought step's cross-entropy counts."""
        early = self.early_weight / (count - 1 if self.reduction == "mean" and count > 1 else 1)
        return torch.tensor([early] * (count - 1) + [1.0])


class StepDiversity(nn.Module):
    """Push the predictions of the thought steps apart (ERL's L_KL, Eq. 7).

    loss = -mean over tokens and ordered pairs j != i of KL(p_j || p_i), p_k = softmax(r_k E^T / temperature); the
    gradient reaches p_j only.

    Use when: the mean of the thought steps is scored (``ReaRec(combine="mean")``); without it they collapse into one.

    Args:
        weight: of the loss (lambda); .001 to .1 in the paper.
        temperature: divides the scores; the same as the objective's in the released code.
        stop_gradient: hold the second argument of each KL fixed (released code).
        reduction: "mean" over the S (S - 1) ordered pairs (released code), or "sum" over the pairs j < i (Eq. 7).

    Raises:
        ValueError: a temperature that is not positive, or an unknown reduction.
    """

    reads = frozenset({ReasoningStates})

    def __init__(
        self, weight: float = 0.05, temperature: float = 1.0, stop_gradient: bool = True, reduction: str = "mean"
    ) -> None:
        super().__init__()
        _check(temperature, reduction)
        self.weight, self.temperature = weight, temperature
        self.stop_gradient, self.reduction = stop_gradient, reduction

    def forward(self, step: Step) -> Tensor:
        """The loss, 0 where there is no thought step.

        Raises:
            ValueError: the encoder gives no thought steps.
        """
        steps = step.encoded.read(ReasoningStates).states
        assert step.items is not None
        count = steps.shape[1]
        if self.reduction == "mean":
            pairs = (1 - torch.eye(count)) / max(count * (count - 1), 1)
        else:
            pairs = torch.ones(count, count).triu(1)
        total = step.items.divergence(steps / self.temperature, pairs.to(steps.device), self.stop_gradient)
        return -total / max(len(steps), 1)


class StepContrast(nn.Module):
    """Tell each noisy reasoning state's own clean state from those of other users (PRL's L_RCL, Eq. 12).

    loss = mean over tokens and thought steps k of CE(r~_k R_k^T / temperature, itself), R_k the clean states of thought
    step k. One token per history takes part, drawn anew in every optimizer step, so that prefixes of one history are
    never each other's negatives; under ``LastItem`` that is all of them. Histories with the same target are not told
    apart (neither does the released code).

    Use when: ``ReaRec`` has ``noise``; 0 while the noisy branch is off (warm-up).

    Args:
        weight: of the loss.
        temperature: divides the products; the same as the objective's in the paper.
        reduction: "mean" (released code) or "sum" (Eq. 12) over the thought steps.

    Raises:
        ValueError: a temperature that is not positive, or an unknown reduction.
    """

    reads = frozenset({ReasoningStates, NoisyStates})

    def __init__(self, weight: float = 1.0, temperature: float = 1.0, reduction: str = "mean") -> None:
        super().__init__()
        _check(temperature, reduction)
        self.weight, self.temperature, self.reduction = weight, temperature, reduction

    def forward(self, step: Step) -> Tensor:
        """The loss.

        Raises:
            ValueError: the encoder gives no thought steps, or has no noisy branch.
        """
        clean = step.encoded.read(ReasoningStates).states[:, 1:]
        noisy = step.encoded.read(NoisyStates).states
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
    """(B',) indices into ``batch.wanted_tokens``: one at random of each history that has any."""
    rows = batch.flat[batch.wanted_tokens] // batch.ids.shape[1]
    counts = torch.bincount(rows, minlength=len(batch))
    draws = torch.rand(len(batch), generator=generator, device=rows.device)
    chosen = counts.cumsum(0) - counts + (draws * counts).long().minimum(counts - 1)
    return chosen[counts > 0]


def _check(temperature: float, reduction: str) -> None:
    if temperature <= 0:
        raise ValueError(f"temperature must be positive, found {temperature}")
    if reduction not in REDUCTIONS:
        raise ValueError(f"reduction must be one of {', '.join(REDUCTIONS)}, found {reduction!r}")
