"""SASRec against ten-line references of each layout, and its behavioural checks by number."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from recsys.data.batch import Batch
from recsys.encoders.sasrec import SASRec
from recsys.items.ids import IdItems
from recsys.nn.blocks import LAYOUTS
from recsys.protocols import Context, Stepwise

NUM_ITEMS = 30


def batch_of(*histories: list[int]) -> Batch:
    lengths = torch.tensor([len(one) for one in histories])
    ids = torch.zeros(len(histories), max(1, int(lengths.max())), dtype=torch.long)
    for row, one in enumerate(histories):
        ids[row, : len(one)] = torch.tensor(one, dtype=torch.long)
    return Batch(torch.arange(len(histories)), torch.arange(len(histories)), ids, lengths)


def pair(dim: int = 16, scale: bool = True, **settings: object) -> tuple[SASRec, IdItems]:
    torch.manual_seed(0)
    items, encoder = IdItems(dim, scale=scale, init="torch"), SASRec(dim, **settings)  # type: ignore[arg-type]
    items.bind(Context(NUM_ITEMS))
    encoder.bind(Context(NUM_ITEMS))
    with torch.no_grad():  # biases and norms away from 0 and 1, so that a forgotten one shows
        for parameter in encoder.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return encoder.eval(), items.eval()


def norm(layer: nn.LayerNorm, x: Tensor) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.pow(2).mean(-1, keepdim=True) + layer.eps).sqrt() * layer.weight + layer.bias


def attention(layer: nn.Module, query: Tensor, source: Tensor) -> Tensor:
    """Explicit softmax over one unpadded history (n, D)."""
    n, dim = query.shape
    q = layer.query(query).view(n, layer.num_heads, -1)
    k, v = layer.key_value(source).view(n, 2, layer.num_heads, -1).unbind(1)
    logits = torch.einsum("qhd,khd->hqk", q, k) / q.shape[-1] ** 0.5
    logits = logits.masked_fill(torch.ones(n, n, dtype=torch.bool).triu(1), -torch.inf)
    return layer.output(torch.einsum("hqk,khd->qhd", logits.softmax(-1), v).reshape(n, dim))


def reference(encoder: SASRec, items: IdItems, history: list[int]) -> Tensor:
    n = len(history)
    x = items.weight[torch.tensor(history)] * (encoder.dim**0.5 if items.scale else 1.0)
    x = x + encoder.position_table.weight[torch.arange(n - 1, -1, -1)]
    for block in encoder.blocks:
        attend, feed = block.attention, lambda z, f=block.feed: f.outer(f.activation(f.inner(z)))
        if encoder.layout == "original":
            q = norm(block.attention_norm, x)
            u = norm(block.feed_norm, q + attention(attend, q, x))
            x = u + feed(u)
        elif encoder.layout == "pre":
            q = norm(block.attention_norm, x)
            x = x + attention(attend, q, q)
            x = x + feed(norm(block.feed_norm, x))
        elif encoder.layout == "post":
            x = norm(block.attention_norm, x + attention(attend, x, x))
            x = norm(block.feed_norm, x + feed(x))
        else:
            q = norm(block.attention_norm, x)
            x = x + torch.sigmoid(block.attention_gate(x)) * attention(attend, q, q)
            gate, value = block.feed.inner(norm(block.feed_norm, x)).chunk(2, -1)
            x = x + torch.sigmoid(block.feed_gate(x)) * block.feed.outer(torch.nn.functional.silu(gate) * value)
    return norm(encoder.after, x)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("heads", [1, 2])
def test_check_04_layout_equals_its_reference(layout: str, heads: int) -> None:
    encoder, items = pair(layout=layout, num_heads=heads, max_length=9)
    histories = [[3, 1, 4, 1, 5], [9], [2, 6, 5, 3, 5, 8, 9]]
    states = encoder(batch_of(*histories).ask_all(), items).states
    for row, history in enumerate(histories):
        torch.testing.assert_close(
            states[row, : len(history)], reference(encoder, items, history), atol=1e-5, rtol=1e-5
        )


@pytest.mark.parametrize(("output_projection", "extra"), [(False, 0), (True, 64 * 64 + 64)])
def test_check_04_parameter_counts(output_projection: bool, extra: int) -> None:
    encoder = SASRec(64, num_layers=2, max_length=200, output_projection=output_projection)
    items = IdItems(64)
    items.bind(Context(3416))
    d = 64
    expected = 3417 * d + 200 * d + 2 * (5 * d * d + 9 * d + extra) + 2 * d
    assert sum(p.numel() for p in [*encoder.parameters(), *items.parameters()]) == expected
    assert expected == 282_048 or not output_projection


@pytest.mark.parametrize("layout", LAYOUTS)
def test_check_01_changing_the_future_changes_no_past_state(layout: str) -> None:
    encoder, items = pair(layout=layout, positions="absolute", max_length=12)
    one, other = [1, 2, 3, 4, 5, 6, 7], [1, 2, 3, 4, 20, 21, 22]
    first, second = encoder(batch_of(one).ask_all(), items).states, encoder(batch_of(other).ask_all(), items).states
    torch.testing.assert_close(first[:, :4], second[:, :4], atol=1e-6, rtol=0)
    assert not torch.allclose(first[:, 4:], second[:, 4:], atol=1e-3)


def test_check_01_no_gradient_from_a_state_to_a_later_input() -> None:
    encoder, items = pair(max_length=12)
    states = encoder(batch_of([1, 2, 3, 4, 5, 6]).ask_all(), items).states
    (gradient,) = torch.autograd.grad(states[0, 2].sum(), items.weight)
    assert gradient[1:4].abs().sum(1).gt(0).all()
    assert gradient[4:].abs().max() == 0


@pytest.mark.parametrize("positions", ["recency", "absolute", "none"])
def test_check_02_padding_does_not_change_the_last_state(positions: str) -> None:
    encoder, items = pair(positions=positions, max_length=200)
    history = [3, 1, 4, 1, 5, 9, 2, 6]
    alone = encoder(batch_of(history), items).user
    for longer in (15, 200):
        beside = encoder(batch_of(history, [7] * longer), items).user
        torch.testing.assert_close(beside[:1], alone, atol=1e-5, rtol=1e-5)


def test_check_02_recency_positions_equal_left_padding() -> None:
    """The authors pad on the left to L and number slots 0..L-1: their slot of token t is L - n + t."""
    encoder, items = pair(max_length=10)
    slots = nn.Embedding.from_pretrained(encoder.position_table.weight.flip(0))
    history = [3, 1, 4, 1, 5]
    x = items.embed(torch.tensor(history)) + slots(torch.arange(5, 10))
    for block in encoder.blocks:
        q = norm(block.attention_norm, x)
        u = norm(block.feed_norm, q + attention(block.attention, q, x))
        x = u + block.feed(u)
    torch.testing.assert_close(
        encoder(batch_of(history).ask_all(), items).states[0], norm(encoder.after, x), atol=1e-5, rtol=1e-5
    )


@pytest.mark.parametrize("layout", LAYOUTS)
def test_check_03_extreme_lengths_are_finite(layout: str) -> None:
    encoder, items = pair(layout=layout, max_length=8)
    encoded = encoder(batch_of([5], list(range(1, 9)), []), items)
    assert encoded.states.isfinite().all()
    assert encoded.user[2].abs().max() == 0
    encoder.train()
    loss = encoder(batch_of([5], [], list(range(1, 9))), items).tokens.pow(2).sum()
    loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in encoder.parameters())
    assert encoder(batch_of([]), items).user.shape == (1, 16)


def test_check_12_table_is_tied_and_scaled_at_the_input_only() -> None:
    _, items = pair(dim=16)
    row = torch.tensor([4])
    assert torch.equal(items.embed(row), items.output(row) * 4.0)
    torch.testing.assert_close(items.scores(torch.eye(16)), items.weight[1:].T)
    items.weight.data[4] = 7.0  # no copy is scored
    assert items.scores(torch.ones(1, 16))[0, 3] == 7.0 * 16


def test_check_14_fused_attention_equals_explicit_softmax() -> None:
    encoder, items = pair(layout="pre", num_layers=1, max_length=60)
    history = torch.randint(1, NUM_ITEMS + 1, (50,)).tolist()
    states = encoder(batch_of(history).ask_all(), items).states[0]
    torch.testing.assert_close(states, reference(encoder, items, history), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_begin_gives_the_states_of_a_call(layout: str) -> None:
    encoder, items = pair(layout=layout, max_length=12)
    batch = batch_of([1, 2, 3], [], [4, 5], [6, 7, 8, 9]).ask_all()
    encoded, _ = encoder.begin(batch, items)
    assert torch.equal(encoded.tokens, encoder(batch, items).tokens)
    assert isinstance(encoder, Stepwise)


@pytest.mark.parametrize("heads", [1, 2])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_newest_states_are_the_same_when_no_others_are_asked_for(layout: str, heads: int) -> None:
    encoder, items = pair(layout=layout, num_heads=heads, max_length=12)
    histories = [
        torch.randint(1, NUM_ITEMS + 1, (length,)).tolist() for length in [0, 1, 2, 2, 3, 5, 9, 12] for _ in range(5)
    ]
    batch = batch_of(*histories)
    assert len(batch.groups) > 1
    alone, among = encoder(batch, items), encoder(batch.ask_all(), items)
    torch.testing.assert_close(alone.user, among.user, atol=1e-6, rtol=1e-5)
    assert int(alone.tokens.any(1).sum()) == len(batch.wanted_tokens) < len(batch.flat)
    pull = torch.randn(alone.user.shape)
    weights = [items.weight, *encoder.parameters()]
    spared, whole = (torch.autograd.grad((one.user * pull).sum(), weights, allow_unused=True) for one in (alone, among))
    for some, others in zip(spared, whole, strict=True):
        torch.testing.assert_close(some, others, atol=1e-4, rtol=1e-4)


def test_batch_rows_do_not_touch_each_other() -> None:
    encoder, items = pair(max_length=12)
    together = encoder(batch_of([1, 2, 3], [4, 5], [6, 7, 8, 9]), items).user
    apart = torch.cat([encoder(batch_of(one), items).user for one in ([1, 2, 3], [4, 5], [6, 7, 8, 9])])
    torch.testing.assert_close(together, apart, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(
    ("settings", "word"),
    [
        ({"dim": 10, "num_heads": 3}, "divisible"),
        ({"dim": 10, "num_heads": 0}, "num_heads"),
        ({"layout": "sandwich"}, "layout"),
        ({"positions": "left"}, "positions"),
        ({"dropout": 1.0}, "dropout"),
        ({"init": "zeros"}, "init"),
        ({"activation": "tanh"}, "activation"),
        ({"max_length": 0}, "max_length"),
        ({"num_layers": -1}, "num_layers"),
    ],
)
def test_wrong_settings_say_which(settings: dict[str, object], word: str) -> None:
    with pytest.raises(ValueError, match=word):
        SASRec(**settings)  # type: ignore[arg-type]


def test_too_long_history_and_other_width_are_errors() -> None:
    encoder, items = pair(max_length=3)
    with pytest.raises(ValueError, match="max_length"):
        encoder(batch_of([1, 2, 3, 4]), items)
    other = IdItems(8)
    other.bind(Context(NUM_ITEMS))
    with pytest.raises(ValueError, match="width"):
        encoder(batch_of([1, 2]), other)
