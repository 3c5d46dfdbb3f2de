"""GRU4Rec against its equations, and its reading on against reading the longer history."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from recsys.data.batch import Batch
from recsys.encoders.gru4rec import GRU4Rec
from recsys.items.ids import IdItems
from recsys.protocols import Context, Stepwise
from recsys.targets.next_item import NextItem
from recsys.testing import check_encoder, toy_batch

NUM_ITEMS = 30


def pair(dim: int = 8, **settings: object) -> tuple[GRU4Rec, IdItems]:
    torch.manual_seed(0)
    items, encoder = IdItems(dim, scale=False, init="torch"), GRU4Rec(dim, **settings)  # type: ignore[arg-type]
    items.bind(Context(NUM_ITEMS))
    encoder.bind(Context(NUM_ITEMS))
    return encoder.eval(), items.eval()


def cell(layer: nn.GRU, x: Tensor, h: Tensor) -> Tensor:
    """r = sigma(W_r x + U_r h), z likewise, n = tanh(W_n x + r * U_n h), h' = (1 - z) n + z h."""
    r, z, n = (layer.weight_ih_l0 @ x).chunk(3)
    hr, hz, hn = (layer.weight_hh_l0 @ h).chunk(3)
    r, z = torch.sigmoid(r + hr), torch.sigmoid(z + hz)
    return (1 - z) * torch.tanh(n + r * hn) + z * h


@pytest.mark.parametrize("layers", [1, 2])
def test_states_follow_the_gru_equations(layers: int) -> None:
    encoder, items = pair(hidden=12, num_layers=layers)
    batch = toy_batch((6, 1, 4))
    states = encoder(batch, items).states
    for row, length in enumerate(batch.lengths.tolist()):
        hidden = [torch.zeros(12) for _ in range(layers)]
        for place in range(length):
            x = items.weight[batch.ids[row, place]]
            for index, layer in enumerate(encoder.layers):
                x = hidden[index] = cell(layer, x, hidden[index])
            torch.testing.assert_close(states[row, place], encoder.output(x), atol=1e-6, rtol=1e-5)


def test_parameter_count_is_that_of_recbole() -> None:
    encoder = GRU4Rec(64, 128, 1)
    assert sum(p.numel() for p in encoder.parameters()) == 3 * 128 * (64 + 128) + 128 * 64 + 64


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("targets", [False, True])
def test_reading_on_equals_reading_the_longer_history(layers: int, targets: bool) -> None:
    encoder, items = pair(hidden=12, num_layers=layers)
    assert isinstance(encoder, Stepwise)
    batch = toy_batch((5, 1, 3, 7))
    batch = NextItem().train(batch) if targets else batch
    following = torch.tensor([4, 9, 2])
    encoded, memory = encoder.begin(batch, items)
    torch.testing.assert_close(encoded.tokens, encoder(batch, items).tokens)
    states = []
    for item in following:
        state, memory = encoder.extend(items.embed(item.repeat(len(batch.wanted_tokens))), memory)
        states.append(state)
    for index, token in enumerate(batch.wanted_tokens.tolist()):
        row, place = divmod(int(batch.flat[token]), batch.ids.shape[1])
        longer = torch.cat([batch.ids[row, : place + 1], following])[None]
        again = encoder(Batch(batch.rows[:1], batch.users[:1], longer, torch.tensor([longer.shape[1]])), items)
        found = torch.stack([state[index] for state in states])
        torch.testing.assert_close(found, again.tokens[-3:], atol=1e-6, rtol=0)


def test_states_of_many_ragged_histories_are_those_of_each_alone() -> None:
    encoder, items = pair(hidden=12)
    batch = toy_batch(tuple(1 + i % 9 for i in range(40)))
    alone = torch.cat([encoder(batch.select(torch.tensor([row])), items).tokens for row in range(40)])
    torch.testing.assert_close(encoder(batch, items).tokens, alone, atol=1e-6, rtol=1e-5)


def test_gradients_reach_every_layer_through_reading_on() -> None:
    encoder, items = pair(hidden=12, num_layers=2)
    encoder.train()
    _, memory = encoder.begin(toy_batch((3, 2)), items)
    state, memory = encoder.extend(torch.ones(2, 8), memory)
    encoder.extend(state, memory)[0].square().sum().backward()
    assert all(p.grad is not None and bool(p.grad.any()) for p in encoder.parameters())


@pytest.mark.parametrize("layers", [1, 2])
def test_conforms_to_the_seam(layers: int) -> None:
    check_encoder(GRU4Rec(16, 20, layers, max_length=8))


@pytest.mark.parametrize("name", ["dim", "hidden", "num_layers", "max_length", "dropout"])
def test_wrong_settings_say_which(name: str) -> None:
    with pytest.raises(ValueError, match=name):
        GRU4Rec(**{name: 1.0 if name == "dropout" else 0})  # type: ignore[arg-type]


def test_other_width_is_an_error() -> None:
    encoder, _ = pair()
    other = IdItems(16)
    other.bind(Context(NUM_ITEMS))
    with pytest.raises(ValueError, match="width"):
        encoder(toy_batch((2,)), other)
