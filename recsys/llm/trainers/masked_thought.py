"""Masked-thought fine-tuning: some completion tokens are hidden from the model, which still has to predict them all.

Each token of a completion is replaced in the *inputs*, with probability p, by a mask token; what is to be predicted,
the prompt and the attention mask stay. So the next token cannot be read off the one before alone. The first completion
token is predicted from the prompt, whatever is masked. p rises with the optimizer steps:

    p_t = min(probability, probability * t / (ramp * total + 1))

Source: "Masked thought" and its released code (AlibabaResearch/DAMO-ConvAI), whose defaults are these; for the three or
four codes of an item 0.2 is ours. Off at evaluation and for references: whoever computes those does not call this.
Legend: N sequences, S tokens of prompt and completion.
"""

from __future__ import annotations

import torch
from torch import Tensor


class MaskedThought:
    """Hides completion tokens from the model during supervised training.

    Args:
        token: what stands for a hidden token, a new one or the padding token; it stays attended to.
        probability: largest share of completion tokens that are hidden.
        ramp: share of the optimizer steps until then, linearly.

    Raises:
        ValueError: a number out of range.
    """

    def __init__(self, token: int, probability: float = 0.4, ramp: float = 2 / 3) -> None:
        if token < 0 or not 0 <= probability <= 1 or not 0 <= ramp <= 1:
            raise ValueError(
                f"token >= 0, probability and ramp between 0 and 1 are needed, found {token}, {probability} and {ramp}"
            )
        self.token, self.probability, self.ramp = token, probability, ramp

    def rate(self, done: int, total: int) -> float:
        """The probability after ``done`` of ``total`` optimizer steps."""
        return min(self.probability, self.probability * done / (self.ramp * total + 1))

    def __call__(self, ids: Tensor, completion: Tensor, rate: float, generator: torch.Generator) -> Tensor:
        """(N, S) what the model reads: ``ids`` (N, S) with tokens at ``completion`` (N, S) bool hidden at this rate.

        Args:
            generator: one of its own for each batch, so that a resumed run hides what the uninterrupted one hid.

        Raises:
            ValueError: shapes differ, or the rate is no probability.
        """
        if completion.shape != ids.shape or completion.dtype != torch.bool:
            raise ValueError(
                f"completion is bool of the shape of ids, {tuple(ids.shape)}; found {completion.dtype} "
                f"{tuple(completion.shape)}"
            )
        if not 0 <= rate <= 1:
            raise ValueError(f"a rate between 0 and 1 is needed, found {rate}")
        drawn = torch.rand(ids.shape, generator=generator, device=generator.device).to(ids.device)
        return ids.masked_fill(completion & (drawn < rate), self.token)
