"""Mamba4Rec against the recurrence written out, and its checks by their number in the specification (sigma.md 12)."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recsys.data.batch import Batch
from recsys.encoders.mamba4rec import Layer, Mamba4Rec
from recsys.items.ids import IdItems
from recsys.nn.mamba import Mamba
from recsys.objectives.softmax import FullSoftmax
from recsys.protocols import Context, Step
from recsys.recommenders.composed import Recommender
from recsys.targets.last_item import LastItem
from recsys.targets.next_item import NextItem
from recsys.testing import check_encoder, toy_batch, toy_context

NUM_ITEMS = 30
HISTORIES = ([3, 1, 4, 1, 5], [9], [2, 6, 5, 3, 5, 8, 9], [7, 7])


def batch_of(*histories: list[int], width: int = 1) -> Batch:
    lengths = torch.tensor([len(one) for one in histories])
    ids = torch.zeros(len(histories), max(width, int(lengths.max())), dtype=torch.long)
    for row, one in enumerate(histories):
        ids[row, : len(one)] = torch.tensor(one, dtype=torch.long)
    return Batch(torch.arange(len(histories)), torch.arange(len(histories)), ids, lengths)


def pair(dim: int = 16, **settings: object) -> tuple[Mamba4Rec, IdItems]:
    torch.manual_seed(0)
    items, encoder = IdItems(dim, scale=False, init="torch"), Mamba4Rec(dim, state=8, **settings)  # type: ignore[arg-type]
    items.bind(Context(NUM_ITEMS))
    encoder.bind(Context(NUM_ITEMS))
    jitter(encoder)
    return encoder.eval(), items.eval()


@torch.no_grad()
def jitter(module: nn.Module) -> None:
    """Move all weights, so that a forgotten bias shows and the recurrence does not forget at once."""
    for name, parameter in module.named_parameters():
        parameter.add_(torch.randn_like(parameter) * 0.1)
        if name.endswith("dt_proj.bias"):
            parameter.sub_(2.0)


def mamba(block: Mamba, x: Tensor) -> Tensor:
    """The block on one unpadded row (n, D), token by token."""
    state = torch.zeros(block.channels, block.state)
    inner, gate = block.in_proj(x).chunk(2, dim=1)
    inner = F.silu(block.conv1d(inner.T.unsqueeze(0))[0, :, : len(x)].T)
    outputs = []
    for token in inner:
        rank, b, c = block.x_proj(token).split([block.rank, block.state, block.state])
        delta = F.softplus(block.dt_proj(rank))
        state = torch.exp(delta[:, None] * -block.A_log.exp()) * state + (delta * token)[:, None] * b
        outputs.append(state @ c + block.D * token)
    return block.out_proj(torch.stack(outputs) * F.silu(gate))


def around(layer: Layer, mixed: Tensor, x: Tensor) -> Tensor:
    y = layer.norm(mixed + x if layer.residual else mixed)
    return layer.feed_norm(layer.feed.outer(F.gelu(layer.feed.inner(y), approximate="none")) + y)


@pytest.mark.parametrize("num_layers", [1, 2])
def test_states_equal_the_equations(num_layers: int) -> None:
    encoder, items = pair(num_layers=num_layers, readout="all")
    states = encoder(batch_of(*HISTORIES), items).states
    for row, history in enumerate(HISTORIES):
        x = encoder.before(items.weight[torch.tensor(history)])
        for layer in encoder.layers:
            x = around(layer, mamba(layer.mixer, x), x)
        torch.testing.assert_close(states[row, : len(history)], x, atol=1e-5, rtol=1e-5)


def test_one_layer_has_no_residual_and_two_have() -> None:
    assert [layer.residual for layer in Mamba4Rec(8).layers] == [False]
    assert [layer.residual for layer in Mamba4Rec(8, num_layers=2).layers] == [True, True]


@pytest.mark.parametrize("settings", [{}, {"num_layers": 2, "readout": "all"}, {"ssm_init": "mamba", "readout": "all"}])
def test_keeps_the_seam(settings: dict[str, object]) -> None:
    check_encoder(Mamba4Rec(16, state=8, max_length=10, **settings))  # type: ignore[arg-type]


def test_check_02_causal_and_consistent_with_its_prefixes() -> None:
    encoder, items = pair(num_layers=2, readout="all")
    history = [3, 1, 4, 1, 5, 9, 2, 6]
    whole = encoder(batch_of(history), items).tokens
    for length in (1, 2, 5, 7):
        prefix = encoder(batch_of(history[:length]), items).tokens
        torch.testing.assert_close(prefix, whole[:length], atol=1e-6, rtol=1e-5)
    (gradient,) = torch.autograd.grad(whole[3].sum(), items.weight)
    assert gradient[[3, 1, 4]].abs().sum(1).gt(0).all()
    assert gradient[[5, 9, 2, 6]].abs().max() == 0


def test_check_03_padding_invariance() -> None:
    encoder, items = pair(num_layers=2)
    history = [3, 1, 4, 1, 5, 9, 2, 6]
    alone = encoder(batch_of(history), items).user
    for width in (50, 64):
        torch.testing.assert_close(encoder(batch_of(history, width=width), items).user, alone, atol=1e-6, rtol=0)


@pytest.mark.parametrize("num_items", [3_416, 12_101])
def test_check_05_parameter_count(num_items: int) -> None:
    encoder, items = Mamba4Rec(), IdItems(64, scale=False)
    items.bind(Context(num_items))
    assert sum(p.numel() for p in [*encoder.parameters(), *items.parameters()]) == 64 * (num_items + 1) + 72_256


def test_check_08_recbole_start() -> None:
    encoder = Mamba4Rec()
    torch.manual_seed(0)
    encoder.bind(Context(NUM_ITEMS))
    for name, parameter in encoder.named_parameters():
        if "proj.weight" in name or ("feed." in name and "weight" in name):
            assert 0.018 < parameter.std() < 0.022, name
        elif name.endswith("bias") and "conv1d" not in name:
            assert parameter.abs().max() == 0, name
    torch.testing.assert_close(encoder.layers[0].mixer.A_log[5].exp(), torch.arange(1.0, 33.0))


@pytest.mark.parametrize("targets", [NextItem(), LastItem(), None])
def test_check_10_readout_of_wanted_tokens_equals_the_full_computation(targets: NextItem | None) -> None:
    batch = toy_batch((7, 1, 2, 6)) if targets is None else targets.train(toy_batch((7, 2, 3, 6)))
    found = {}
    for readout in ("wanted", "all"):
        encoder, items = pair(num_layers=2, readout=readout)
        found[readout] = encoder(batch, items).tokens
    torch.testing.assert_close(
        found["wanted"][batch.wanted_tokens], found["all"][batch.wanted_tokens], atol=1e-6, rtol=0
    )
    others = torch.ones(len(batch.flat), dtype=torch.bool).index_fill(0, batch.wanted_tokens, False)
    assert found["wanted"][others].abs().sum() == 0


def test_check_12_empty_histories_have_no_state() -> None:
    encoder, items = pair()
    user = encoder(batch_of([5], [], [1, 2, 3]), items).user
    assert user.isfinite().all()
    assert user[1].abs().max() == 0
    assert user[[0, 2]].abs().sum(1).gt(0).all()
    assert encoder(batch_of([]), items).user.shape == (1, 16)


@pytest.mark.parametrize("targets", [NextItem(), LastItem()])
def test_trains_on_all_positions_and_on_the_last(targets: NextItem | LastItem) -> None:
    model = Recommender(IdItems(16, scale=False), Mamba4Rec(16, state=8), FullSoftmax(), targets)
    model.bind(toy_context())
    step = Step(toy_batch((6, 2, 5, 3)))
    loss = sum(model.loss(Step(model.prepare(step.batch, step))).values())
    loss.backward()
    assert loss.isfinite()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_check_13_two_runs_without_dropout_are_bit_identical() -> None:
    found = []
    for _ in range(2):
        encoder, items = pair(dropout=0.0)
        tokens = encoder.train()(batch_of(*HISTORIES), items).tokens
        tokens.pow(2).sum().backward()
        found.append([tokens.detach(), *(p.grad for p in encoder.parameters())])
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


@pytest.mark.parametrize(
    ("settings", "word"),
    [
        ({"max_length": 0}, "max_length"),
        ({"num_layers": 0}, "num_layers"),
        ({"hidden": 0}, "hidden"),
        ({"readout": "some"}, "readout"),
        ({"dropout": 1.0}, "dropout"),
        ({"ssm_init": "zeros"}, "init"),
        ({"state": 0}, "state"),
        ({"kernel": "magic"}, "kernel"),
    ],
)
def test_wrong_settings_say_which(settings: dict[str, object], word: str) -> None:
    with pytest.raises(ValueError, match=word):
        Mamba4Rec(**settings)  # type: ignore[arg-type]


def test_other_width_is_an_error() -> None:
    encoder, _ = pair()
    other = IdItems(8)
    other.bind(Context(NUM_ITEMS))
    with pytest.raises(ValueError, match="width"):
        encoder(batch_of([1, 2]), other)
