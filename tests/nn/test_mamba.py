"""The Mamba block against torch's own layers and a written-out recurrence, and its checks by number."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from recsys.nn.mamba import Mamba

DIM, LENGTHS = 16, (3, 0, 1, 9, 20)


def offsets(*lengths: int) -> Tensor:
    return torch.tensor([0, *lengths]).cumsum(0)


def block(init: str = "mamba", **settings: object) -> Mamba:
    torch.manual_seed(0)
    return Mamba(DIM, **{"state": 5, "init": init, **settings})  # type: ignore[arg-type]


def reference(mamba: Mamba, row: Tensor) -> Tensor:
    """One row (n, D) by torch's padded convolution and the recurrence."""
    x, gate = mamba.in_proj(row).chunk(2, dim=1)
    x = F.silu(mamba.conv1d(x.T[None])[0, :, : len(row)].T)
    rank, b, c = mamba.x_proj(x).split([mamba.rank, mamba.state, mamba.state], dim=1)
    delta, a = F.softplus(mamba.dt_proj(rank)), -mamba.A_log.exp()
    h, out = torch.zeros_like(a), []
    for t in range(len(row)):
        h = torch.exp(delta[t][:, None] * a) * h + (delta[t] * x[t])[:, None] * b[t]
        out.append(h @ c[t] + mamba.D * x[t])
    return mamba.out_proj(torch.stack(out) * F.silu(gate))


@pytest.mark.parametrize("kernel", ["auto", "torch", "chunked"])
@pytest.mark.parametrize("conv", [1, 4])
def test_block_equals_its_reference_row_by_row(kernel: str, conv: int) -> None:
    mamba, start = block(kernel=kernel, conv=conv), offsets(*LENGTHS)
    tokens = torch.randn(sum(LENGTHS), DIM)
    expected = torch.cat([reference(mamba, row) for row in tokens.split(LENGTHS) if len(row)])
    torch.testing.assert_close(mamba(tokens, start), expected, rtol=1e-4, atol=1e-5)


def test_check_05_parameter_count_and_names() -> None:
    mamba = Mamba(64, state=32)
    assert sum(parameter.numel() for parameter in mamba.parameters()) == 38_784
    shapes = {name: tuple(parameter.shape) for name, parameter in mamba.named_parameters()}
    assert shapes == {
        "A_log": (128, 32),
        "D": (128,),
        "in_proj.weight": (256, 64),
        "conv1d.weight": (128, 1, 4),
        "conv1d.bias": (128,),
        "x_proj.weight": (68, 128),
        "dt_proj.weight": (128, 4),
        "dt_proj.bias": (128,),
        "out_proj.weight": (64, 128),
    }


def test_check_02_block_is_causal_and_a_prefix_gives_the_same() -> None:
    mamba, tokens = block(), torch.randn(12, DIM)
    whole = mamba(tokens, offsets(12))
    torch.testing.assert_close(mamba(tokens[:7], offsets(7)), whole[:7], rtol=0, atol=1e-6)
    tokens.requires_grad_()
    (gradient,) = torch.autograd.grad(mamba(tokens, offsets(12))[4].sum(), tokens)
    assert gradient[:5].abs().sum(1).gt(0).all()
    assert gradient[5:].abs().max() == 0


def test_check_02_one_token_at_a_time_equals_the_full_pass() -> None:
    mamba, tokens = block(), torch.randn(3, 10, DIM)
    whole = mamba(tokens.flatten(0, 1), offsets(10, 10, 10)).view(3, 10, DIM)
    memory, steps = mamba.initial(3), []
    for t in range(10):
        out, memory = mamba.step(tokens[:, t], memory)
        steps.append(out)
    torch.testing.assert_close(torch.stack(steps, 1), whole, rtol=1e-4, atol=1e-6)


def test_check_08_initialisations() -> None:
    torch.manual_seed(0)
    recbole, own = Mamba(64, init="recbole"), Mamba(64, init="mamba")
    assert not recbole.dt_proj.bias.any()
    assert F.softplus(recbole.dt_proj.bias).mean().item() == pytest.approx(0.6931, abs=1e-4)
    for linear in (recbole.in_proj, recbole.x_proj, recbole.out_proj, recbole.dt_proj):
        assert linear.weight.std().item() == pytest.approx(0.02, rel=0.1)
    sizes = F.softplus(own.dt_proj.bias)
    assert sizes.min() >= 1e-4 and sizes.max() <= 0.1
    assert sizes.log().mean().item() == pytest.approx(torch.tensor([1e-3, 1e-1]).log().mean().item(), abs=0.4)
    assert own.dt_proj.weight.abs().max() <= 4**-0.5
    for mamba in (recbole, own):
        torch.testing.assert_close(-mamba.A_log.exp(), -torch.arange(1.0, 33).expand(128, 32))
        assert bool((mamba.D == 1).all())


def test_reset_sets_every_parameter() -> None:
    mamba, torch_state = block("recbole"), torch.get_rng_state()
    before = {name: value.clone() for name, value in block("recbole").named_parameters()}
    with torch.no_grad():
        for parameter in mamba.parameters():
            parameter.fill_(7.0)
    torch.set_rng_state(torch_state)
    mamba.reset_parameters()
    assert all(not bool((value == 7.0).any()) for value in mamba.parameters())
    torch.testing.assert_close(mamba.A_log.data, before["A_log"])


def test_check_10_tokens_asked_for_equal_those_of_the_full_pass() -> None:
    mamba, start, at = block(), offsets(*LENGTHS), torch.tensor([2, 3, 12, 32])
    tokens = torch.randn(sum(LENGTHS), DIM, requires_grad=True)
    some, every = mamba(tokens, start, at), mamba(tokens, start)[at]
    torch.testing.assert_close(some, every, rtol=0, atol=1e-6)
    (ours,), (theirs,) = (torch.autograd.grad(out.square().sum(), tokens) for out in (some, every))
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("init", ["recbole", "mamba"])
def test_check_11_rates_stay_negative_and_the_loss_finite_under_bf16_autocast(init: str) -> None:
    mamba, start = block(init), offsets(*LENGTHS)
    optimizer = torch.optim.Adam(mamba.parameters(), lr=0.05)
    generator = torch.Generator().manual_seed(3)
    tokens, wanted = (torch.randn(sum(LENGTHS), DIM, generator=generator) for _ in range(2))
    losses = []
    for _ in range(60):
        with torch.autocast("cpu", torch.bfloat16):
            loss = (mamba(tokens, start).float() - wanted).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        assert bool((-mamba.A_log.exp() < 0).all())
    assert all(map(torch.isfinite, torch.tensor(losses)))
    assert losses[-1] < 0.7 * losses[0]


def test_check_11_what_the_scan_gets_is_float32_under_autocast(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[torch.dtype] = []

    def scan(*arguments: object) -> Tensor:
        seen.extend(value.dtype for value in arguments if isinstance(value, Tensor) and value.is_floating_point())
        return selective_scan(*arguments)  # type: ignore[arg-type]

    from recsys.nn import mamba as module

    selective_scan = module.selective_scan
    monkeypatch.setattr(module, "selective_scan", scan)
    with torch.autocast("cpu", torch.bfloat16):
        out = block()(torch.randn(5, DIM), offsets(5))
    assert out.dtype == torch.bfloat16
    assert seen == [torch.float32] * 6


@pytest.mark.filterwarnings("ignore:selective_scan computes in")
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_parameters_give_the_same_to_their_precision(dtype: torch.dtype) -> None:
    tokens, start = torch.randn(sum(LENGTHS), DIM), offsets(*LENGTHS)
    with torch.no_grad():
        whole, halved = block("mamba")(tokens, start), block("mamba").to(dtype)(tokens.to(dtype), start)
    assert halved.dtype == dtype
    torch.testing.assert_close(halved.float(), whole, rtol=0.05, atol=0.02 * whole.abs().max().item())


def test_check_13_two_runs_are_bit_identical() -> None:
    tokens, start = torch.randn(sum(LENGTHS), DIM), offsets(*LENGTHS)
    one, other = (block()(tokens, start) for _ in range(2))
    assert torch.equal(one, other)


@pytest.mark.parametrize(
    ("settings", "word"), [({"init": "xavier"}, "init"), ({"kernel": "cuda"}, "kernel"), ({"conv": 0}, "conv")]
)
def test_wrong_settings_say_which(settings: dict[str, object], word: str) -> None:
    with pytest.raises(ValueError, match=word):
        Mamba(DIM, **settings)  # type: ignore[arg-type]
