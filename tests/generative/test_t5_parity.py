"""T5's layers, TIGER's encoder and decoder against ``transformers`` with equal weights (semantic_ids.md 6 and 12)."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from recsys.data.batch import Batch
from recsys.encoders.tokens import TokenEncoder, TokenMemory
from recsys.generative.code_decoder import CodeDecoder
from recsys.items.codes import CodeItems
from recsys.nn.t5 import T5Stack
from tests.generative.tiny import bound, code_items, histories, plain_beam, random_codes

transformers = pytest.importorskip("transformers")

SIZES, NUM_ITEMS = (6, 7, 5), 40
DIMS = {"num_layers": 2, "num_heads": 3, "head_dim": 8, "ff": 24}


def their_model(tied: bool = True, dim: int = 16) -> Any:
    """A small random T5 over our tokens; its biases of distances are made large enough to matter."""
    config = transformers.T5Config(
        vocab_size=sum(SIZES) + 2, d_model=dim, d_kv=8, d_ff=24, num_layers=2, num_decoder_layers=2, num_heads=3,
        dropout_rate=0.1, feed_forward_proj="relu", pad_token_id=0, eos_token_id=sum(SIZES) + 1,
        decoder_start_token_id=0, tie_word_embeddings=tied,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = transformers.T5ForConditionalGeneration(config).eval()
        for stack in (model.encoder, model.decoder):
            torch.nn.init.normal_(stack.block[0].layer[0].SelfAttention.relative_attention_bias.weight)
    return model


@torch.no_grad()
def copy_stack(ours: T5Stack, theirs: Any) -> None:
    """Give our stack the weights of an encoder or decoder of transformers."""
    ours.positions.table.weight.copy_(theirs.block[0].layer[0].SelfAttention.relative_attention_bias.weight)
    ours.after.weight.copy_(theirs.final_layer_norm.weight)
    for own, block in zip(ours.blocks, theirs.block, strict=True):
        first, feed = block.layer[0], block.layer[-1]
        attention = first.SelfAttention
        own.own.enter.weight.copy_(torch.cat([attention.q.weight, attention.k.weight, attention.v.weight]))
        own.own.leave.weight.copy_(attention.o.weight)
        own.own_norm.weight.copy_(first.layer_norm.weight)
        own.inner.weight.copy_(feed.DenseReluDense.wi.weight)
        own.outer.weight.copy_(feed.DenseReluDense.wo.weight)
        own.feed_norm.weight.copy_(feed.layer_norm.weight)
        if own.look is not None:
            look = block.layer[1].EncDecAttention
            own.look.enter.weight.copy_(look.q.weight)
            own.look.memory.weight.copy_(torch.cat([look.k.weight, look.v.weight]))
            own.look.leave.weight.copy_(look.o.weight)
            own.look_norm.weight.copy_(block.layer[1].layer_norm.weight)


def both(tied: bool = True, end: bool = False) -> tuple[Any, TokenEncoder, CodeDecoder, CodeItems]:
    theirs = their_model(tied)
    items = code_items(random_codes(NUM_ITEMS, SIZES), SIZES, 16, tied)
    with torch.no_grad():
        items.tokens.copy_(theirs.shared.weight)
        items.prototypes.copy_(theirs.lm_head.weight)
    encoder = bound(TokenEncoder(16, **DIMS))
    decoder = bound(CodeDecoder(16, **DIMS, softmax="vocabulary", end=end))
    copy_stack(encoder.stack, theirs.encoder)
    copy_stack(decoder.stack, theirs.decoder)
    return theirs, encoder, decoder, items


def their_input(batch: Batch, items: CodeItems) -> tuple[Tensor, Tensor]:
    """Token numbers with an end behind each history, and which of them are real."""
    rows = [
        [*items.token_table[ids[:length]].flatten().tolist(), len(items.tokens) - 1]
        for ids, length in zip(batch.ids, batch.lengths.tolist(), strict=True)
    ]
    width = max(map(len, rows))
    return (
        torch.tensor([row + [0] * (width - len(row)) for row in rows]),
        torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows]),
    )


def last_targets(batch: Batch, seed: int = 3) -> Batch:
    targets = torch.zeros_like(batch.ids)
    drawn = torch.from_numpy(np.random.default_rng(seed).integers(1, NUM_ITEMS + 1, len(batch)))
    return batch.replace(targets=targets.scatter(1, batch.lengths[:, None] - 1, drawn[:, None]))


def test_encoder_states_equal_those_of_transformers() -> None:
    theirs, encoder, _, items = both()
    batch = histories((5, 1, 3, 20), NUM_ITEMS)
    tokens, real = their_input(batch, items)
    with torch.no_grad():
        expected = theirs.encoder(input_ids=tokens, attention_mask=real).last_hidden_state
        memory = encoder(batch, items).read(TokenMemory)
    shown = memory.item >= 0
    assert torch.equal(shown, real.bool())
    torch.testing.assert_close(memory.states[shown], expected[shown], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("end", [True, False])
def test_taught_logits_and_loss_equal_those_of_transformers(tied: bool, end: bool) -> None:
    theirs, encoder, decoder, items = both(tied, end)
    batch = last_targets(histories((5, 1, 3, 9), NUM_ITEMS))
    tokens, real = their_input(batch, items)
    labels = items.token_table[batch.targets[batch.targets > 0]]
    if end:
        labels = torch.cat([labels, torch.full((4, 1), len(items.tokens) - 1)], 1)
    expected = theirs(input_ids=tokens, attention_mask=real, labels=labels)
    found = decoder(encoder(batch, items), batch, items, torch.Generator())
    torch.testing.assert_close(found / 4, expected.loss, atol=1e-5, rtol=1e-5)
    states, _, _ = encoder(batch, items).at_targets(batch)
    hidden = decoder.teach(encoder(batch, items), batch, items, states, labels)
    logits = hidden * (16**-0.5 if tied else 1.0) @ items.prototypes.T
    torch.testing.assert_close(logits, expected.logits, atol=1e-5, rtol=1e-5)


def test_gradients_of_the_loss_equal_those_of_transformers() -> None:
    theirs, encoder, decoder, items = both()
    batch = last_targets(histories((5, 1, 3, 9), NUM_ITEMS))
    tokens, real = their_input(batch, items)
    theirs(
        input_ids=tokens, attention_mask=real, labels=items.token_table[batch.targets[batch.targets > 0]]
    ).loss.backward()
    (decoder(encoder(batch, items), batch, items, torch.Generator()) / 4).backward()
    torch.testing.assert_close(items.tokens.grad, theirs.shared.weight.grad, atol=1e-5, rtol=1e-4)
    for ours, their in ((encoder.stack, theirs.encoder), (decoder.stack, theirs.decoder)):
        bias = their.block[0].layer[0].SelfAttention.relative_attention_bias.weight.grad
        torch.testing.assert_close(ours.positions.table.weight.grad, bias, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(
            ours.blocks[1].inner.weight.grad,
            their.block[1].layer[-1].DenseReluDense.wi.weight.grad,
            atol=1e-5,
            rtol=1e-4,
        )


def test_constrained_beam_equals_generate_of_transformers() -> None:
    theirs, encoder, decoder, items = both()
    batch = histories((5, 1, 3, 9, 2, 2), NUM_ITEMS, seed=4)
    tokens, real = their_input(batch, items)
    known = {tuple(row.tolist()): number for number, row in enumerate(items.token_table) if number}
    children: dict[tuple[int, ...], set[int]] = {}
    for one in known:
        for depth in range(len(one)):
            children.setdefault(one[:depth], set()).add(one[depth])

    def allowed(row: int, so_far: Tensor) -> list[int]:
        return sorted(children[tuple(so_far.tolist()[1:])])

    width = 8
    made = theirs.generate(
        input_ids=tokens, attention_mask=real, num_beams=width, num_return_sequences=width, max_new_tokens=3,
        prefix_allowed_tokens_fn=allowed, output_scores=True, return_dict_in_generate=True, length_penalty=0.0,
        early_stopping=False, do_sample=False,
    )  # fmt: skip
    expected = torch.tensor([known[tuple(row)] for row in made.sequences[:, 1:].tolist()]).view(len(batch), width)
    with torch.no_grad():
        rows, scores = plain_beam(decoder, encoder(batch, items), items, width)
    assert torch.equal(rows, expected)
    torch.testing.assert_close(scores, made.sequences_scores.view(len(batch), width), atol=1e-4, rtol=1e-5)
