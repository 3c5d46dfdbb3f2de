"""A causal language model as the encoder and decoder of a generator, so that ``CodePolicy`` samples from it.

This library has no such policy of its own: its generators of codes are layers of T5 (``CodeDecoder``), its language
models score texts and draw none. This one is here for the comparison with trl alone. A history is the code tokens of
its items, which are the first ids of the vocabulary, and is read once, whatever number of samples stands behind it: the
samples are branches of a tree behind one history, and each sees the history and its own earlier codes.

Legend: B histories, all of the same length, S tokens of each, W samples, M levels, D width, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from recsys.data.batch import Batch
from recsys.generative.beam import exact_log_probs
from recsys.llm.trainers.text_policy import LanguageModel
from recsys.objectives.weighted import weighted_sum
from recsys.protocols import Encoded


@dataclass(frozen=True)
class Prompts:
    """What is in front of what is generated."""

    given_by = "CodePrompts(...)"

    tokens: Tensor  # (B, S) int64


class CodePrompts(nn.Module):
    """Histories as code tokens; they are read by the decoder.

    Args:
        dim: the width of the item table.
        max_length: items of a history.
    """

    gives = frozenset({Prompts})
    sees = "past"
    reads_behind = False

    def __init__(self, dim: int, max_length: int) -> None:
        super().__init__()
        self.dim, self.max_length = dim, max_length

    def forward(self, batch: Batch, items: Any) -> Encoded:
        """No states, and the tokens.

        Raises:
            ValueError: histories differ in length.
        """
        if not bool(batch.mask.all()):
            raise ValueError("histories of one length are compared here")
        tokens = items.token_table[batch.ids].flatten(1)
        return Encoded(batch, torch.zeros(int(batch.lengths.sum()), self.dim), (Prompts(tokens),))


@dataclass(frozen=True)
class Tree:
    """What is known of B histories and of what was generated behind each."""

    cache: Any  # keys and values of the history, and of all tokens behind it
    hidden: Tensor  # (B, W, D) the newest states
    seen: Tensor  # (B, W, K) bool: which of the tokens behind the history each state sees
    length: int  # S
    depth: int = 0


class CausalDecoder(nn.Module):
    """Codes of the next item by a causal language model.

    Args:
        language_model: whose first ids are the code tokens.
        dim: the width of the item table, which is not read.
        whole_vocabulary: log-probabilities are those among all V, not among the codes of the level.
    """

    ordered = True
    whole = True

    def __init__(self, language_model: LanguageModel, dim: int, whole_vocabulary: bool = False) -> None:
        super().__init__()
        self.language_model, self.dim, self.whole_vocabulary = language_model, dim, whole_vocabulary

    def forward(self, encoded: Encoded, batch: Batch, items: Any, generator: torch.Generator) -> Tensor:
        """The loss of the newest targets; there must be no others."""
        _, targets, weights = encoded.at_targets(batch)
        return weighted_sum(-exact_log_probs(self, encoded, items, targets[:, None])[:, 0], weights)

    def begin(self, encoded: Encoded, items: Any) -> Tree:
        """Keys and values of the histories."""
        tokens = encoded.read(Prompts).tokens
        found = self.language_model.body.base_model(input_ids=tokens, use_cache=True)
        seen = torch.zeros(len(tokens), 1, 0, dtype=torch.bool, device=tokens.device)
        return Tree(found.past_key_values, found.last_hidden_state[:, -1:], seen, tokens.shape[1])

    def step(self, memory: Tree, items: Any, tokens: Tensor | None, parents: Tensor | None) -> tuple[Tensor, Tree]:
        """Log-probabilities (B, W, K) of the codes that come next, and the memory with ``tokens`` (B, W) in it."""
        if tokens is not None and parents is not None:
            memory = self._grown(memory, tokens, parents)
        span = items.span(memory.depth)
        head = self.language_model.body.get_output_embeddings().weight
        if self.whole_vocabulary:
            return (memory.hidden @ head.T).float().log_softmax(2)[:, :, span], memory
        return (memory.hidden @ head[span].T).float().log_softmax(2), memory

    def _grown(self, memory: Tree, tokens: Tensor, parents: Tensor) -> Tree:
        """The memory with a token behind each of the states ``parents`` (B, W)."""
        rows, width = tokens.shape
        above = memory.seen.gather(1, parents[:, :, None].expand(-1, -1, memory.seen.shape[2]))
        own = torch.eye(width, dtype=torch.bool, device=tokens.device).expand(rows, -1, -1)
        seen = torch.cat([above, own], 2)  # (B, W, K + W)
        whole = torch.cat([seen.new_ones(rows, width, memory.length), seen], 2)[:, None]
        mask = torch.zeros(whole.shape, device=tokens.device).masked_fill(~whole, torch.finfo(torch.float32).min)
        place = torch.full_like(tokens, memory.length + memory.depth)
        found = self.language_model.body.base_model(
            input_ids=tokens, attention_mask=mask, position_ids=place, past_key_values=memory.cache, use_cache=True
        )
        return replace(
            memory, cache=found.past_key_values, hidden=found.last_hidden_state, seen=seen, depth=memory.depth + 1
        )
