"""T5's layers, TIGER's encoder and decoder against ``transformers`` with equal weights (semantic_ids.md 6 and 12)."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from benchmarks.speed.peers.t5 import Beams, their_input, transformers_t5
from recsys.data.batch import Batch
from recsys.encoders.tokens import TokenEncoder, TokenMemory
from recsys.generative.beam import Beam
from recsys.generative.code_decoder import CodeDecoder
from recsys.items.codes import CodeItems
from tests.generative.tiny import bound, code_items, histories, plain_beam, random_codes

pytest.importorskip("transformers")

SIZES, NUM_ITEMS = (6, 7, 5), 40
DIMS: dict[str, Any] = {"num_layers": 2, "num_heads": 3, "head_dim": 8, "ff": 24}


def both(tied: bool = True, end: bool = False) -> tuple[Any, TokenEncoder, CodeDecoder, CodeItems]:
    """Ours, with distances that matter, and a T5 of transformers with the same weights."""
    items = code_items(random_codes(NUM_ITEMS, SIZES), SIZES, 16, tied)
    encoder = bound(TokenEncoder(16, **DIMS))
    decoder = bound(CodeDecoder(16, **DIMS, softmax="vocabulary", end=end), seed=2)
    with torch.random.fork_rng():
        torch.manual_seed(3)
        for stack in (encoder.stack, decoder.stack):
            torch.nn.init.normal_(stack.positions.table.weight)
            for name, weight in stack.named_parameters():
                if "norm" in name or "after" in name:
                    torch.nn.init.normal_(weight, 1.0, 0.2)
    return transformers_t5(encoder, decoder, items), encoder, decoder, items


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
    width = 8
    tokens, values = Beams(theirs, items, width)(batch)
    with torch.no_grad():
        encoded = encoder(batch, items)
        plain = plain_beam(decoder, encoded, items, width)
        for rows, scores in (plain, Beam(width)(decoder, encoded, items, None, width)):
            assert torch.equal(items.token_table[rows], tokens)
            torch.testing.assert_close(scores, values, atol=1e-4, rtol=1e-5)
