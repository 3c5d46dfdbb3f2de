"""Attention against torch's own and against an explicit softmax; steps behind a history against encoding it anew."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from recsys.data.batch import Batch
from recsys.encoders.bert4rec import BERT4Rec
from recsys.encoders.sasrec import SASRec
from recsys.items.ids import IdItems
from recsys.nn import continuation as steps
from recsys.nn.attention import Attention
from recsys.nn.blocks import LAYOUTS
from recsys.nn.kernels.available import compiled
from recsys.nn.transformer import Transformer
from recsys.protocols import Context

NUM_ITEMS, DIM, LONGEST = 30, 8, 7
ENCODERS: dict[str, Callable[[], Transformer]] = {
    **{f"sasrec-{one}": lambda one=one: SASRec(DIM, 2, 2, max_length=LONGEST, layout=one) for one in LAYOUTS},
    "sasrec-input-norm": lambda: SASRec(
        DIM, 1, 1, max_length=LONGEST, layout="post", input_norm=True, final_norm=False
    ),
    "bert4rec": lambda: BERT4Rec(DIM, 2, 2, max_length=LONGEST),
}


def batch_of(lengths: list[int], wanted: str) -> Batch:
    """Random histories; ``wanted`` says where the targets are: at the newest token, at all, or at some."""
    generator = torch.Generator().manual_seed(1)
    sizes = torch.tensor(lengths)
    inside = torch.arange(max(lengths)) < sizes[:, None]
    ids = torch.randint(1, NUM_ITEMS + 1, inside.shape, generator=generator) * inside
    some = torch.rand(inside.shape, generator=generator) < 0.3
    targets = {"newest": None, "all": ids, "some": ids * some}[wanted]
    return Batch(torch.arange(len(ids)), torch.arange(len(ids)), ids, sizes, targets)


def pair(name: str) -> tuple[Transformer, IdItems]:
    torch.manual_seed(0)
    encoder, items = ENCODERS[name](), IdItems(DIM, scale=False, init="torch")
    for part in (encoder, items):
        part.bind(Context(NUM_ITEMS))
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return encoder.eval(), items


def explicit(layer: Attention, query: Tensor, source: Tensor, sees: Tensor) -> Tensor:
    """Softmax attention of one history, (n, D), where query i sees the keys that ``sees`` (n, n) says."""
    split = len(query), layer.num_heads, layer.dim // layer.num_heads
    keys, values = layer.key_value(source).chunk(2, 1)
    logits = torch.einsum("qhd,khd->hqk", layer.query(query).view(split), keys.view(split))
    logits = (logits / (layer.dim / layer.num_heads) ** 0.5).masked_fill(~sees, -torch.inf)
    return layer.output(torch.einsum("hqk,khd->qhd", logits.softmax(-1), values.view(split)).flatten(1))


def encoded_anew(encoder: Transformer, items: IdItems, batch: Batch, latents: Tensor) -> Tensor:
    """(Q, K, D): for each wanted token its history and its latents (Q, K, D), through the blocks at once."""
    entered = encoder._enter(batch, items).split(batch.lengths.tolist())
    rows = (batch.flat[batch.wanted_tokens] // batch.ids.shape[1]).tolist()
    states = []
    for row, position, own in zip(rows, batch.positions[batch.wanted_tokens].tolist(), latents, strict=True):
        history = entered[row] if encoder.sees == "all" else entered[row][: position + 1]
        x = torch.cat([history, encoder.before(own)])
        sees = torch.ones(len(x), len(x), dtype=torch.bool).tril()
        if encoder.sees == "all":
            sees[: len(history), : len(history)] = True
        for block in encoder.blocks:
            x, _ = block.run(x, lambda q, s, layer=block.attention, sees=sees: (explicit(layer, q, s, sees), None))
        states.append(encoder.after(x)[len(history) :])
    return torch.stack(states)


def stepped(encoder: Transformer, items: IdItems, batch: Batch, latents: Tensor) -> Tensor:
    _, memory = encoder.begin(batch, items)
    states = []
    for step in range(latents.shape[1]):
        state, memory = encoder.extend(latents[:, step], memory)
        states.append(state)
    return torch.stack(states, 1)


def random_latents(batch: Batch, count: int) -> Tensor:
    shape = len(batch.wanted_tokens), count, DIM
    return torch.randn(shape, generator=torch.Generator().manual_seed(2)).requires_grad_()


@pytest.mark.parametrize("lengths", [[7, 1, 4, 0, 7], [5, 5], [1]])
@pytest.mark.parametrize("heads", [1, 2])
def test_both_directions_equal_torch_with_a_padding_mask(lengths: list[int], heads: int) -> None:
    torch.manual_seed(0)
    ours, theirs = Attention(DIM, heads, causal=False), nn.MultiheadAttention(DIM, heads, batch_first=True)
    with torch.no_grad():
        theirs.in_proj_weight.copy_(torch.cat([ours.query.weight, ours.key_value.weight]))
        theirs.in_proj_bias.copy_(torch.cat([ours.query.bias, ours.key_value.bias]))
        theirs.out_proj.load_state_dict(ours.output.state_dict())
    batch = batch_of(lengths, "newest")
    query, source = torch.randn(2, sum(lengths), DIM)
    query.requires_grad_(), source.requires_grad_()
    found = ours(query, source, batch)
    full = batch.lengths > 0
    padded = [batch.pad(one)[full] for one in (query, source, source)]
    expected, _ = theirs(*padded, key_padding_mask=~batch.mask[full], need_weights=False)
    expected = expected[batch.mask[full]]
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    weight = torch.randn_like(found)
    for one, other in zip(
        torch.autograd.grad((found * weight).sum(), (query, source)),
        torch.autograd.grad((expected * weight).sum(), (query, source)),
        strict=True,
    ):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


def test_groups_of_both_directions_equal_one_history_at_a_time() -> None:
    torch.manual_seed(0)
    layer, lengths = Attention(DIM, 2, causal=False), [0, 0, *range(1, 8)] * 5
    batch = batch_of(sorted(lengths), "newest")
    assert len(batch.groups) == 4
    tokens = torch.randn(sum(lengths), DIM)
    found = layer(tokens, tokens, batch).split(sorted(lengths))
    for one, own in zip(found, tokens.split(sorted(lengths)), strict=True):
        sees = torch.ones(len(own), len(own), dtype=torch.bool)
        torch.testing.assert_close(one, explicit(layer, own, own, sees), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("wanted", ["newest", "all", "some"])
@pytest.mark.parametrize("name", ENCODERS)
def test_check_02_steps_equal_encoding_anew(name: str, wanted: str, count: int) -> None:
    encoder, items = pair(name)
    batch = batch_of([7, 1, 0, 3, 7, 5], wanted)
    latents = random_latents(batch, count)
    found, expected = stepped(encoder, items, batch, latents), encoded_anew(encoder, items, batch, latents)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    with torch.no_grad():  # one token a row: compiled loops, where they can run
        torch.testing.assert_close(stepped(encoder, items, batch, latents), expected, atol=1e-5, rtol=0)
    if count != 3:
        return
    weight = torch.randn_like(found)
    inputs = [latents, items.weight, *(one for one in encoder.parameters())]
    gradients = [torch.autograd.grad((one * weight).sum(), inputs, allow_unused=True) for one in (found, expected)]
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("wanted", ["newest", "all", "some"])
@pytest.mark.parametrize("name", ["sasrec-post", "bert4rec"])
def test_check_02_in_groups_of_like_length(name: str, wanted: str) -> None:
    encoder, items = pair(name)
    batch = batch_of(sorted([0, 1, 2, 5, 6, 7] * 6), wanted)
    assert len(batch.groups) == 4
    latents = random_latents(batch, 2)
    expected = encoded_anew(encoder, items, batch, latents)
    for gradients in (True, False):
        with torch.set_grad_enabled(gradients):
            found = stepped(encoder, items, batch, latents)
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("lengths", [[7, 7, 7], [7, 1, 0, 3], [5] * 40])
def test_compiled_loops_equal_torch(lengths: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("numba")
    encoder, items = pair("sasrec-post")
    batch = batch_of(lengths, "newest")
    latents = random_latents(batch, 3).detach()
    calls = []
    monkeypatch.setattr(steps, "compiled", lambda *asked: calls.append(asked) or compiled(*asked))
    with torch.inference_mode():
        found = stepped(encoder, items, batch, latents)
    assert len(calls) == 3 * len(encoder.blocks) * len(batch.groups)
    assert compiled(*calls[0]) is not None
    monkeypatch.setattr(steps, "compiled", lambda *asked: None)
    with torch.inference_mode():
        torch.testing.assert_close(found, stepped(encoder, items, batch, latents), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["sasrec-post", "bert4rec"])
def test_a_memory_can_be_continued_twice(name: str) -> None:
    encoder, items = pair(name)
    batch = batch_of([7, 1, 4], "newest")
    latents = random_latents(batch, 2)
    _, memory = encoder.begin(batch, items)
    first, longer = encoder.extend(latents[:, 0], memory)
    encoder.extend(latents[:, 1], longer)
    again, _ = encoder.extend(latents[:, 0], memory)
    other, _ = encoder.extend(latents[:, 1], memory)
    torch.testing.assert_close(again, first, atol=0, rtol=0)
    assert not torch.allclose(other, first, atol=1e-3)


def test_dropped_attention_weights_are_dropped_in_steps_too() -> None:
    torch.manual_seed(0)
    layer = Attention(DIM, 2, dropout=0.5)
    batch = batch_of([7, 4], "newest")
    places = steps.places_of(batch, causal=True)
    tokens, (latent,) = torch.randn(11, DIM), torch.randn(1, 2, DIM)
    _, past = layer.begin(tokens, tokens, batch)
    answers = [layer.extend(latent, latent, past, places)[0] for _ in range(2)]
    assert not torch.allclose(*answers)
    layer.eval()
    answers = [layer.extend(latent, latent, past, places)[0] for _ in range(2)]
    assert torch.equal(*answers)


@pytest.mark.parametrize("wanted", ["newest", "all"])
def test_no_wanted_token_and_no_token_at_all(wanted: str) -> None:
    for name in ("sasrec-original", "bert4rec"):
        encoder, items = pair(name)
        batch = batch_of([1, 0], wanted)
        empty = batch.replace(ids=torch.zeros_like(batch.ids), lengths=torch.zeros_like(batch.lengths))
        encoded, memory = encoder.begin(empty, items)
        states, _ = encoder.extend(torch.zeros(0, DIM), memory)
        assert encoded.tokens.shape == states.shape == (0, DIM)
