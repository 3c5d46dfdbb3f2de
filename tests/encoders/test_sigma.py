"""SIGMA against a literal padded reference, and its checks by their number in the specification (sigma.md 12)."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.quality.released import PaddedSIGMA, padded_rows
from recsys.data.batch import Batch
from recsys.encoders.mamba4rec import Layer, Mamba4Rec
from recsys.encoders.sigma import SIGMA, GatedMamba, valid_rows
from recsys.items.ids import IdItems
from recsys.nn.mamba import Mamba
from recsys.objectives.softmax import FullSoftmax
from recsys.protocols import Context, Step
from recsys.recommenders.composed import Recommender
from recsys.targets.last_item import LastItem
from recsys.targets.next_item import NextItem
from recsys.testing import check_encoder, check_ranker, toy_batch, toy_context

KINDS: dict[str, type[SIGMA]] = {"valid": SIGMA, "repo": PaddedSIGMA}
NUM_ITEMS, LONGEST, KEEP = 30, 12, 3
VARIANTS = [(1, "valid"), (1, "repo"), (2, "valid"), (2, "repo")]
LONG = [2, 6, 5, 3, 5, 8, 9, 7, 9, 3]
HISTORIES = ([3, 1, 4, 1, 5], [9], LONG, [7, 7], [*LONG, 1, 2])


def batch_of(*histories: list[int], width: int = 1) -> Batch:
    lengths = torch.tensor([len(one) for one in histories])
    ids = torch.zeros(len(histories), max(width, int(lengths.max())), dtype=torch.long)
    for row, one in enumerate(histories):
        ids[row, : len(one)] = torch.tensor(one, dtype=torch.long)
    return Batch(torch.arange(len(histories)), torch.arange(len(histories)), ids, lengths)


def pair(
    dim: int = 16, max_length: int = LONGEST, keep: int = KEEP, flip: str = "valid", **settings: object
) -> tuple[SIGMA, IdItems]:
    torch.manual_seed(0)
    items = IdItems(dim, scale=False, init="torch")
    encoder = KINDS[flip](dim, state=8, max_length=max_length, keep=keep, **settings)  # type: ignore[arg-type]
    items.bind(Context(NUM_ITEMS))
    encoder.bind(Context(NUM_ITEMS))
    with torch.no_grad():  # so that a forgotten bias shows, and the recurrence does not forget at once
        for name, parameter in encoder.named_parameters():
            generator = torch.Generator().manual_seed(len(name))  # equal for encoders that differ in one parameter
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
            if name.endswith("dt_proj.bias"):
                parameter.sub_(2.0)
    return encoder.eval(), items.eval()


def mamba(block: Mamba, x: Tensor) -> Tensor:
    """The block on one row (n, D), token by token."""
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


def mixed(block: GatedMamba, x: Tensor, window: int) -> Tensor:
    """Section 3 of the specification on one row (n, D), reversed in its first ``window`` positions."""
    flipped = torch.cat([x[:window].flip(0), x[window:]])
    u1 = x + x @ block.dense.weight.T + block.dense.bias
    u2 = flipped + flipped @ block.flipped_dense.weight.T + block.flipped_dense.bias
    g1 = block.silu_gate(u1 * torch.sigmoid(u1)) + block.sigmoid_gate(torch.sigmoid(u1))
    crossed = g1 if block.gate_cross == "repo" else u2
    g2 = block.silu_gate(u2 * torch.sigmoid(u2)) + block.sigmoid_gate(torch.sigmoid(crossed))
    ahead, back = mamba(block.mamba, x), mamba(block.mamba, flipped)
    recent, _ = block.gru(block.conv(x.T.unsqueeze(0))[0].T)
    a1, a2, a3 = block.mixing
    return block.projection(a1 * (ahead * g1 + ahead) + a2 * (back * g2 + back) + a3 * recent)


def around(layer: Layer, out: Tensor, x: Tensor) -> Tensor:
    y = layer.norm(out + x if layer.residual else out)
    return layer.feed_norm(layer.feed.outer(F.gelu(layer.feed.inner(y), approximate="none")) + y)


def reference(encoder: SIGMA, items: IdItems, history: list[int]) -> Tensor:
    """States (n, D) of one history, of PaddedSIGMA as the head of a row padded to L."""
    x = items.weight[torch.tensor(history)]
    window = max(len(history) - encoder.keep, 0)
    if isinstance(encoder, PaddedSIGMA):
        x = torch.cat([x, encoder.pad.expand(encoder.max_length - len(x), -1)])
        window = encoder.max_length - encoder.keep
    x = encoder.before(x)
    for layer in encoder.layers:
        x = around(layer, mixed(layer.mixer, x, window), x)
    return x[: len(history)]


@pytest.mark.parametrize("num_layers", [1, 2])
@pytest.mark.parametrize("flip", ["valid", "repo"])
@pytest.mark.parametrize("gate_cross", ["repo", "clean"])
def test_states_equal_the_padded_reference(num_layers: int, flip: str, gate_cross: str) -> None:
    encoder, items = pair(num_layers=num_layers, flip=flip, gate_cross=gate_cross, readout="all")
    states = encoder(batch_of(*HISTORIES), items).states
    for row, history in enumerate(HISTORIES):
        expected = reference(encoder, items, history)
        torch.testing.assert_close(states[row, : len(history)], expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("num_layers", [1, 2])
@pytest.mark.parametrize("flip", ["valid", "repo"])
def test_gradients_equal_the_padded_reference(num_layers: int, flip: str) -> None:
    encoder, items = pair(num_layers=num_layers, flip=flip)
    batch = LastItem().train(batch_of(*([*one, 1] for one in HISTORIES[:4])))
    weight = torch.randn(len(batch.wanted_tokens), encoder.dim)
    inputs = [items.weight, *encoder.parameters()]
    ours = torch.autograd.grad((encoder(batch, items).tokens[batch.wanted_tokens] * weight).sum(), inputs)
    last = torch.stack([reference(encoder, items, one)[-1] for one in HISTORIES[:4]])
    theirs = torch.autograd.grad((last * weight).sum(), inputs)
    torch.testing.assert_close(ours, theirs, atol=2e-4, rtol=1e-4)


def test_m1_padding_learns_through_the_input_and_is_no_class() -> None:
    encoder, items = pair(max_length=16, keep=4, flip="repo")
    made = LastItem().train(batch_of([1, 2, 3], [4, 5]))
    losses = FullSoftmax()(encoder(made, items), made, items, torch.Generator())
    losses.sum().backward()
    assert encoder.pad is not None and encoder.pad.grad is not None and encoder.pad.grad.abs().max() > 1e-4
    assert items.weight.grad is not None and not items.weight.grad[0].any()
    assert items.scores(torch.ones(1, encoder.dim)).shape == (1, NUM_ITEMS)


@pytest.mark.parametrize(("max_length", "keep"), [(50, 5), (200, 155)])
def test_m2_the_released_file_reverses_the_first_45_positions(max_length: int, keep: int) -> None:
    """Whatever the length is, which is ``keep=155`` at 200."""
    encoder, items = pair(max_length=max_length, keep=keep, flip="repo")
    history = (LONG * 30)[: max_length - 2]
    x = torch.cat([items.weight[torch.tensor(history)], encoder.pad.expand(2, -1)])  # type: ignore[union-attr]
    layer: Any = encoder.layers[0]
    x = encoder.before(x)
    expected = around(layer, mixed(layer.mixer, x, 45), x)[len(history) - 1]
    torch.testing.assert_close(encoder(batch_of(history), items).user[0], expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("num_layers", "flip"), VARIANTS)
def test_keeps_the_seam(num_layers: int, flip: str) -> None:
    check_encoder(KINDS[flip](16, num_layers, state=8, max_length=10, keep=2))
    check_encoder(KINDS[flip](16, num_layers, state=8, max_length=10, gate_cross="clean", readout="all"))


def test_check_03_padding_invariance() -> None:
    history = (LONG * 3)[:30]
    encoder, items = pair(max_length=50)
    alone = encoder(batch_of(history), items).user
    for width in (50, 64):
        torch.testing.assert_close(encoder(batch_of(history, width=width), items).user, alone, atol=1e-6, rtol=0)
    longer, _ = pair(max_length=64)
    torch.testing.assert_close(longer(batch_of(history), items).user, alone, atol=1e-6, rtol=0)


def test_check_03_flip_of_padded_positions_depends_on_the_padding() -> None:
    history = (LONG * 3)[:30]
    users = []
    for max_length in (50, 64):
        encoder, items = pair(max_length=max_length, keep=5, flip="repo")
        users.append(encoder(batch_of(history), items).user)
    assert not torch.allclose(*users, atol=1e-3)


@pytest.mark.parametrize(("length", "seen"), [(6, False), (7, True)])
def test_check_03_short_rows_have_a_reversed_pass_of_padding_alone(length: int, seen: bool) -> None:
    encoder, items = pair(max_length=16, keep=4, flip="repo")  # 12 positions are reversed
    found: list[Tensor] = []
    encoder.layers[0].mixer.mamba.register_forward_hook(lambda block, given, out: found.append(out.chunk(2)[1][-1]))
    for history in ([1, 2, 3, 4, 5, 6, 7], [11, 12, 13, 14, 15, 16, 17]):
        encoder(batch_of(history[:length]), items)
    assert torch.allclose(*found, atol=1e-6) != seen


def test_check_04_valid_flip_is_an_involution_that_keeps_the_newest() -> None:
    lengths = torch.tensor([7, 2, 0, 5, 3])
    flipped = valid_rows(lengths, keep=3).flipped
    assert torch.equal(flipped[flipped], torch.arange(17))
    assert flipped[:9].tolist() == [3, 2, 1, 0, 4, 5, 6, 7, 8]
    assert flipped[9:].tolist() == [10, 9, 11, 12, 13, 14, 15, 16]
    assert torch.equal(valid_rows(lengths, keep=7).flipped, torch.arange(17))


def test_check_04_valid_equals_repo_for_full_rows() -> None:
    lengths, index = torch.tensor([8, 8]), torch.arange(16).view(2, 8)
    valid, repo = valid_rows(lengths, keep=3), padded_rows(lengths, index, window=5)
    assert torch.equal(valid.flipped, repo.flipped)
    assert torch.equal(valid.around, repo.around)
    histories = [list(range(1, 13)), list(range(12, 24))]
    found = [encoder(batch_of(*histories), items).user for encoder, items in (pair(flip=f) for f in ("valid", "repo"))]
    torch.testing.assert_close(*found, atol=1e-6, rtol=0)


@pytest.mark.parametrize("num_items", [3_416, 12_101])
@pytest.mark.parametrize(("flip", "more"), [("valid", 0), ("repo", 64)])
def test_check_05_parameter_count(num_items: int, flip: str, more: int) -> None:
    encoder, items = KINDS[flip](), IdItems(64, scale=False)
    items.bind(Context(num_items))
    found = sum(p.numel() for p in [*encoder.parameters(), *items.parameters()])
    assert found == 64 * (num_items + 1) + 129_987 + more


def test_check_06_both_passes_in_one_call_equal_two_calls() -> None:
    encoder, items = pair()
    block = encoder.layers[0].mixer
    batch = batch_of(*HISTORIES)
    rows, x = valid_rows(batch.lengths, KEEP), encoder.before(items.embed(batch.flat_ids))
    ahead, back = block.mamba(x, rows.start), block.mamba(x[rows.flipped], rows.start)
    found: list[Tensor] = []
    block.mamba.register_forward_hook(lambda module, given, out: found.append(out))
    block(x, rows, None)
    torch.testing.assert_close(found[0], torch.cat([ahead, back]), atol=1e-6, rtol=1e-5)


def test_check_06_without_gates_and_branches_it_is_mamba4rec() -> None:
    encoder, items = pair(readout="all")
    block = encoder.layers[0].mixer
    with torch.no_grad():
        block.mixing.copy_(torch.tensor([1.0, 0.0, 0.0]))
        block.projection.weight.copy_(torch.eye(encoder.dim))
        for parameter in (
            *block.silu_gate.parameters(),
            *block.sigmoid_gate.parameters(),
            block.projection.bias,
        ):
            parameter.zero_()
    plain = Mamba4Rec(encoder.dim, state=8, readout="all").eval()
    weights = {name.replace("mixer.mamba", "mixer"): value for name, value in encoder.state_dict().items()}
    plain.load_state_dict({name: weights[name] for name in plain.state_dict()})
    batch = batch_of(*HISTORIES)
    torch.testing.assert_close(encoder(batch, items).tokens, plain(batch, items).tokens, atol=1e-6, rtol=0)


def test_check_07_targets_at_all_positions_are_refused() -> None:
    with pytest.raises(ValueError, match="LastItem"):
        Recommender(IdItems(16), SIGMA(16), FullSoftmax(), NextItem())
    with pytest.raises(ValueError, match="SIGMA"):
        Recommender(IdItems(16), SIGMA(16), FullSoftmax())
    Recommender(IdItems(16), SIGMA(16), FullSoftmax(), LastItem())


def test_check_09_the_gate_modes_differ_in_the_second_gate_only() -> None:
    x, back = torch.randn(2, 6, 16)
    gates = [pair(gate_cross=mode)[0].layers[0].mixer._gates(x, back) for mode in ("repo", "clean")]
    assert torch.equal(gates[0][0], gates[1][0])
    assert not torch.allclose(gates[0][1], gates[1][1], atol=1e-3)


@pytest.mark.parametrize(("num_layers", "flip"), VARIANTS)
def test_check_10_readout_of_wanted_tokens_equals_the_full_computation(num_layers: int, flip: str) -> None:
    batch = LastItem().train(toy_batch((7, 2, 3, 11)))
    found = {}
    for readout in ("wanted", "all"):
        encoder, items = pair(num_layers=num_layers, flip=flip, readout=readout)
        found[readout] = encoder(batch, items).tokens
    torch.testing.assert_close(
        found["wanted"][batch.wanted_tokens], found["all"][batch.wanted_tokens], atol=1e-6, rtol=0
    )
    others = torch.ones(len(batch.flat), dtype=torch.bool).index_fill(0, batch.wanted_tokens, False)
    assert found["wanted"][others].abs().sum() == 0
    assert found["all"][others].abs().sum() > 0


@pytest.mark.parametrize("flip", ["valid", "repo"])
def test_check_12_empty_histories_and_the_padding_row(flip: str) -> None:
    encoder, items = pair(flip=flip)
    user = encoder(batch_of([5], [], [1, 2, 3]), items).user
    assert user.isfinite().all()
    assert user[1].abs().max() == 0
    assert user[[0, 2]].abs().sum(1).gt(0).all()
    assert encoder(batch_of([]), items).user.shape == (1, 16)
    check_ranker(Recommender(IdItems(16), KINDS[flip](16, max_length=12), FullSoftmax(), LastItem()))


def test_check_13_two_runs_without_dropout_are_bit_identical() -> None:
    found = []
    for _ in range(2):
        encoder, items = pair(dropout=0.0, gate_dropout=0.0)
        tokens = encoder.train()(batch_of(*HISTORIES), items).tokens
        tokens.pow(2).sum().backward()
        found.append([tokens.detach(), *(p.grad for p in encoder.parameters())])
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


@pytest.mark.parametrize("flip", ["valid", "repo"])
def test_a_step_under_autocast_is_finite(flip: str) -> None:
    model = Recommender(IdItems(16, scale=False), KINDS[flip](16), FullSoftmax(), LastItem())
    model.bind(toy_context())
    step = Step(toy_batch((6, 2, 5, 3)))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = sum(model.loss(Step(model.prepare(step.batch, step))).values())
    loss.backward()
    assert loss.isfinite()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.slow
def test_check_11_a_thousand_steps_under_bf16_autocast_stay_finite() -> None:
    encoder = SIGMA(8, state=4, max_length=10, keep=2, hidden=8)
    model = Recommender(IdItems(8, scale=False), encoder, FullSoftmax(), LastItem())
    model.bind(toy_context())
    batch = model.prepare(toy_batch((6, 2, 5, 3)), Step(toy_batch()))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    losses = []
    for _ in range(1000):
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            loss = sum(model.loss(Step(batch, total_weight=4.0)).values())
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    assert bool(torch.stack(losses).isfinite().all())
    assert losses[-1] < 0.2 * losses[0]
    rates = -encoder.layers[0].mixer.mamba.A_log.exp()
    assert rates.dtype == torch.float32 and bool((rates < 0).all())


def test_start_of_the_weights() -> None:
    torch.manual_seed(0)
    encoder = PaddedSIGMA()
    encoder.bind(Context(NUM_ITEMS))
    block = encoder.layers[0].mixer
    torch.testing.assert_close(block.mixing.data, torch.tensor([0.8, 0.1, 0.1]))
    for module in encoder.modules():
        if isinstance(module, nn.Linear):
            assert 0.017 < module.weight.std() < 0.023
            assert module.bias is None or module.bias.abs().max() == 0
    assert 0.015 < encoder.pad.std() < 0.025
    assert block.gru.weight_hh_l0.abs().max() <= 1 / 8
    assert block.gru.weight_hh_l0.std() > 0.06


@pytest.mark.parametrize(
    ("settings", "word"),
    [
        ({"max_length": 4}, "keep"),
        ({"keep": -1}, "keep"),
        ({"gate_cross": "none"}, "gate_cross"),
        ({"gate_dropout": 1.0}, "dropout"),
        ({"readout": "some"}, "readout"),
        ({"num_layers": 0}, "num_layers"),
        ({"hidden": -1}, "hidden"),
    ],
)
def test_wrong_settings_say_which(settings: dict[str, object], word: str) -> None:
    with pytest.raises(ValueError, match=word):
        SIGMA(**settings)  # type: ignore[arg-type]


def test_too_long_history_and_other_width_are_errors() -> None:
    encoder, items = pair(max_length=3, flip="repo")
    with pytest.raises(ValueError, match="max_length"):
        encoder(batch_of([1, 2, 3, 4]), items)
    other = IdItems(8)
    other.bind(Context(NUM_ITEMS))
    with pytest.raises(ValueError, match="width"):
        encoder(batch_of([1, 2]), other)


def test_runs_of_0_1_load_as_they_were_and_the_padded_flip_is_refused_with_what_to_do() -> None:
    from recsys.storage.parts import build, describe

    found = describe(SIGMA(16, keep=3))
    found["arguments"]["flip"] = "valid"
    assert build(found).keep == 3
    found["arguments"]["flip"] = "repo"
    with pytest.raises(ValueError, match="no flip='repo' any more: its class is PaddedSIGMA"):
        build(found)
    padded = build(describe(PaddedSIGMA(16, keep=3)), trust=["benchmarks.quality.released"])
    assert type(padded) is PaddedSIGMA and padded.keep == 3
