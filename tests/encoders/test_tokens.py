"""TIGER's encoder: what each token may see, padding, company, and its one-pass form (semantic_ids.md 12)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from recsys.data.batch import Batch
from recsys.encoders.tokens import TokenEncoder, TokenMemory
from recsys.items.codes import CodeItems
from recsys.items.ids import IdItems
from recsys.protocols import Context
from recsys.semantic_ids.table import SemanticIds
from recsys.testing import check_encoder, toy_context
from tests.generative.tiny import bound, code_items, histories, random_codes

SIZES, NUM_ITEMS, DIM = (6, 7, 5), 40, 16
SMALL = {"num_layers": 2, "num_heads": 3, "head_dim": 8, "ff": 24, "dropout": 0.0}


def items() -> CodeItems:
    return code_items(random_codes(NUM_ITEMS, SIZES), SIZES, DIM)


def memory(encoder: TokenEncoder, batch: Batch, table: CodeItems) -> Tensor:
    with torch.no_grad():
        return encoder(batch, table).read(TokenMemory).states


@pytest.mark.parametrize("causal", [True, False])
def test_conforms(causal: bool, tmp_path: Path) -> None:
    context = toy_context()
    assert context.vocabulary is not None
    codes = random_codes(context.num_items, SIZES)
    SemanticIds.of(context.vocabulary.ids, codes, SIZES).save(tmp_path / "ids")
    table = CodeItems(DIM, str(tmp_path / "ids"), tied=True)
    check_encoder(TokenEncoder(DIM, **SMALL, max_length=10, causal=causal), table)


@pytest.mark.parametrize("causal", [True, False])
def test_semantic_ids_12_7_padding_and_company_change_nothing(causal: bool) -> None:
    table, encoder = items(), bound(TokenEncoder(DIM, **SMALL, causal=causal))
    lengths = (5, 1, 3, 7, 2)
    batch, wide = histories(lengths, NUM_ITEMS), histories(lengths, NUM_ITEMS, width=11)
    end = 0 if causal else 1
    states, others = memory(encoder, batch, table), memory(encoder, wide, table)
    for row, length in enumerate(lengths):
        alone = batch.select(torch.tensor([row])).trim(length)
        real = 3 * length + end
        torch.testing.assert_close(others[row, :real], states[row, :real], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(memory(encoder, alone, table)[0], states[row, :real], atol=1e-5, rtol=1e-5)
        assert not states[row, real:].any()


def test_the_state_of_an_item_is_that_of_its_last_token() -> None:
    table, encoder = items(), bound(TokenEncoder(DIM, **SMALL))
    batch = histories((4, 2), NUM_ITEMS)
    encoded = encoder(batch, table)
    states = encoded.read(TokenMemory).states
    for row, position in ((0, 0), (0, 3), (1, 1)):
        torch.testing.assert_close(encoded.states[row, position], states[row, 3 * position + 2])


def test_tokens_are_told_to_which_item_they_belong() -> None:
    table = items()
    batch = histories((2, 1), NUM_ITEMS)
    whole = bound(TokenEncoder(DIM, **SMALL))(batch, table).read(TokenMemory)
    assert whole.item.tolist() == [[0, 0, 0, 1, 1, 1, 1], [0, 0, 0, 0, -1, -1, -1]]  # the end token is the newest's
    past = bound(TokenEncoder(DIM, **SMALL, causal=True))(batch, table).read(TokenMemory)
    assert past.item.tolist() == [[0, 0, 0, 1, 1, 1], [0, 0, 0, -1, -1, -1]]


def test_in_one_pass_a_token_sees_its_own_item_and_earlier_ones() -> None:
    """Gradients tell what reaches a state: all tokens of its own item and of earlier items, no later one."""
    table = items()
    encoder = bound(TokenEncoder(DIM, **SMALL, causal=True))
    batch = Batch(torch.zeros(1).long(), torch.zeros(1).long(), torch.tensor([[1, 2, 3]]), torch.tensor([3]))
    with torch.no_grad():  # nine tokens of their own, so that a gradient names its place
        table.token_table[1:4] = torch.arange(1, 10).view(3, 3)
    states = encoder(batch, table).read(TokenMemory).states[0]
    for place in range(9):
        (gradient,) = torch.autograd.grad(states[place].square().sum(), table.tokens, retain_graph=True)
        reached = [token - 1 for token in gradient.abs().sum(1).nonzero().squeeze(1).tolist()]
        assert reached == list(range(3 * (place // 3 + 1)))


def test_one_pass_gives_the_states_of_every_prefix() -> None:
    table, encoder = items(), bound(TokenEncoder(DIM, **SMALL, causal=True))
    batch = histories((6,), NUM_ITEMS)
    states = memory(encoder, batch, table)[0]
    for length in range(1, 7):
        prefix = batch.replace(ids=batch.ids[:, :length], lengths=torch.tensor([length]))
        torch.testing.assert_close(memory(encoder, prefix, table)[0], states[: 3 * length], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("causal", [True, False])
def test_an_empty_history_has_a_finite_answer(causal: bool) -> None:
    table, encoder = items(), bound(TokenEncoder(DIM, **SMALL, causal=causal))
    encoded = encoder(histories((0, 2), NUM_ITEMS), table)
    assert encoded.tokens.shape == (2, DIM)
    assert bool(encoded.read(TokenMemory).states.isfinite().all())
    assert not encoded.user[0].any()


def test_bad_input_is_refused() -> None:
    encoder = bound(TokenEncoder(DIM, **SMALL))
    plain = IdItems(DIM)
    plain.bind(Context(NUM_ITEMS))
    with pytest.raises(TypeError, match="CodeItems"):
        encoder(histories((2,), NUM_ITEMS), plain)
    with pytest.raises(ValueError, match="width"):
        encoder(histories((2,), NUM_ITEMS), code_items(random_codes(NUM_ITEMS, SIZES), SIZES, 8))
    masked = histories((2,), NUM_ITEMS)
    masked = masked.replace(ids=masked.ids.fill_(NUM_ITEMS + 1))
    with pytest.raises(ValueError, match="codes"):
        encoder(masked, items())
    with pytest.raises(ValueError, match="max_length"):
        TokenEncoder(DIM, max_length=0)


def test_randomness_of_dropout_is_torchs_own() -> None:
    table, encoder = items(), bound(TokenEncoder(DIM, **{**SMALL, "dropout": 0.3})).train()
    batch = histories((4, 2), NUM_ITEMS)
    found = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        found.append(encoder(batch, table).tokens)
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])
    assert np.isfinite(found[0].detach().numpy()).all()
