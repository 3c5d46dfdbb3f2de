"""The T5 of transformers with the weights of our encoder and decoder of code tokens, and its constrained beams."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import torch
from torch import Tensor

from recsys.data.batch import Batch


def transformers_t5(encoder: Any, decoder: Any, items: Any) -> Any:
    """A ``T5ForConditionalGeneration`` over the tokens of ``items`` that computes what ours do."""
    import transformers

    config = transformers.T5Config(
        vocab_size=len(items.tokens), d_model=items.dim, d_kv=encoder.head_dim, d_ff=encoder.ff,
        num_layers=encoder.num_layers, num_decoder_layers=decoder.num_layers, num_heads=encoder.num_heads,
        dropout_rate=encoder.dropout, feed_forward_proj="relu", pad_token_id=0, decoder_start_token_id=0,
        eos_token_id=len(items.tokens) - 1, tie_word_embeddings=items.tied,
    )  # fmt: skip
    theirs = transformers.T5ForConditionalGeneration(config)
    with torch.no_grad():
        theirs.shared.weight.copy_(items.tokens)
        if not items.tied:  # since 5.0 transformers ties whatever it is told, and leaves the scale out
            theirs.lm_head.weight = torch.nn.Parameter(items.prototypes.clone())
        copy_stack(encoder.stack, theirs.encoder)
        copy_stack(decoder.stack, theirs.decoder)
    return theirs.eval()


def copy_stack(ours: Any, theirs: Any) -> None:
    """Give an encoder or decoder of transformers the weights of one of our stacks."""
    theirs.block[0].layer[0].SelfAttention.relative_attention_bias.weight.copy_(ours.positions.table.weight)
    theirs.final_layer_norm.weight.copy_(ours.after.weight)
    for own, block in zip(ours.blocks, theirs.block, strict=True):
        first, feed = block.layer[0], block.layer[-1]
        for name, weight in zip("qkv", own.own.enter.weight.chunk(3), strict=True):
            getattr(first.SelfAttention, name).weight.copy_(weight)
        first.SelfAttention.o.weight.copy_(own.own.leave.weight)
        first.layer_norm.weight.copy_(own.own_norm.weight)
        feed.DenseReluDense.wi.weight.copy_(own.inner.weight)
        feed.DenseReluDense.wo.weight.copy_(own.outer.weight)
        feed.layer_norm.weight.copy_(own.feed_norm.weight)
        if own.look is not None:
            look = block.layer[1]
            weights = (own.look.enter.weight, *own.look.memory.weight.chunk(2))
            for name, weight in zip("qkv", weights, strict=True):
                getattr(look.EncDecAttention, name).weight.copy_(weight)
            look.EncDecAttention.o.weight.copy_(own.look.leave.weight)
            look.layer_norm.weight.copy_(own.look_norm.weight)


def their_input(batch: Batch, items: Any) -> tuple[Tensor, Tensor]:
    """Token numbers (B, S) of histories with an end token behind each, and which are real."""
    lengths = batch.lengths * items.levels
    numbers = torch.nn.functional.pad(items.token_table[batch.ids].flatten(1), (0, 1))
    numbers = numbers.scatter(1, lengths[:, None], len(items.tokens) - 1)
    return numbers, (torch.arange(numbers.shape[1]) <= lengths[:, None]).long()


class Beams:
    """Constrained beams of ``generate``: a prefix function that looks children up in a dict."""

    def __init__(self, model: Any, items: Any, width: int) -> None:
        self.model, self.items, self.width = model, items, width
        children: dict[tuple[int, ...], set[int]] = defaultdict(set)
        for tokens in items.token_table[1:].tolist():
            for depth, token in enumerate(tokens):
                children[tuple(tokens[:depth])].add(token)
        self.children = {prefix: sorted(found) for prefix, found in children.items()}

    @torch.inference_mode()
    def __call__(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Tokens (B, width, M) and their log-probabilities (B, width), best first."""
        numbers, real = their_input(batch, self.items)
        made = self.model.generate(
            input_ids=numbers, attention_mask=real, num_beams=self.width, num_return_sequences=self.width,
            max_new_tokens=self.items.levels, prefix_allowed_tokens_fn=self._allowed, do_sample=False,
            length_penalty=0.0, early_stopping=False, output_scores=True, return_dict_in_generate=True,
        )  # fmt: skip
        rows = len(batch)
        return made.sequences[:, 1:].unflatten(0, (rows, -1)), made.sequences_scores.view(rows, -1)

    def _allowed(self, row: int, so_far: Tensor) -> list[int]:
        return self.children[tuple(so_far.tolist()[1:])]
