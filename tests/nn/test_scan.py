"""The selective scan: every kernel against the recurrence written out, and the checks of its spec by number."""

from __future__ import annotations

import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from recsys.nn import scan_torch
from recsys.nn.convolution import causal_silu
from recsys.nn.kernels import available as fast
from recsys.nn.scan import selective_scan

try:
    import numba  # noqa: F401

    KERNELS = ("numba", "torch", "chunked")
except ImportError:
    KERNELS = ("torch", "chunked")
E, N = 6, 5


def offsets(*lengths: int) -> Tensor:
    return torch.tensor([0, *lengths]).cumsum(0)


def inputs_of(tokens: int, init: str = "recbole", states: int = N, seed: int = 0) -> list[Tensor]:
    """x, delta, A, B, C, D in float64, with the step sizes of an initialisation ("recbole": all near 0.69)."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    spread = torch.rand(tokens, E, generator=generator, dtype=torch.float64)
    delta = 0.6 + 0.2 * spread if init == "recbole" else 10 ** (-3 + 2 * spread)
    A = -torch.arange(1.0, states + 1, dtype=torch.float64).expand(E, states) * (1 + 0.1 * normal(E, states).abs())
    return [normal(tokens, E), delta, A, normal(tokens, states), normal(tokens, states), normal(E)]


def naive(x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, start: Tensor) -> Tensor:
    out = []
    for first, stop in pairwise(start.tolist()):
        h = torch.zeros_like(A)
        for t in range(first, stop):
            h = torch.exp(delta[t, :, None] * A) * h + (delta[t] * x[t])[:, None] * B[t]
            out.append(h @ C[t] + D * x[t])
    return torch.stack(out) if out else torch.zeros_like(x)


def doubling(x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor) -> Tensor:
    """One row by parallel doubling: pairs (decay, state) combine as (a, b), (c, d) -> (a c, c b + d)."""
    decay, state = torch.exp(delta[:, :, None] * A), (delta * x)[:, :, None] * B[:, None]
    reach = 1
    while reach < len(x):
        state = torch.cat([state[:reach], decay[reach:] * state[:-reach] + state[reach:]])
        decay = torch.cat([decay[:reach], decay[reach:] * decay[:-reach]])
        reach *= 2
    return (state * C[:, None]).sum(2) + D * x


def error(found: Tensor, expected: Tensor) -> float:
    """Largest deviation, relative to the largest expected value."""
    return float((found.double() - expected).abs().max() / expected.abs().max().clamp(min=1e-30))


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("init", ["recbole", "mamba"])
@pytest.mark.parametrize("length", [1, 2, 3, 15, 16, 17, 50, 200])
def test_check_01_kernel_equals_the_recurrence_in_float32(kernel: str, init: str, length: int) -> None:
    start, inputs = offsets(length), inputs_of(length, init)
    expected = naive(*inputs, start)
    assert error(selective_scan(*(value.float() for value in inputs), start, kernel=kernel), expected) < 1e-5
    assert error(doubling(*inputs), expected) < 1e-12


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("size", [10.0, 1e-6, 0.0])
@pytest.mark.parametrize("states", [1, 5, 16, 20])
def test_check_01_extreme_step_sizes_and_any_number_of_states(kernel: str, size: float, states: int) -> None:
    start, inputs = offsets(3, 40), inputs_of(43, states=states)
    inputs[1] = torch.full_like(inputs[1], size)  # 10 * 20 lets the decay underflow
    found = selective_scan(*(value.float() for value in inputs), start, kernel=kernel)
    assert error(found, naive(*inputs, start)) < 1e-5


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("init", ["recbole", "mamba"])
def test_check_01_gradients_equal_autograd_of_the_recurrence(kernel: str, init: str) -> None:
    start = offsets(3, 0, 1, 17, 50, 2, 32, 15, 16, 200)
    inputs = [value.requires_grad_() for value in inputs_of(336, init)]
    single = [value.detach().float().requires_grad_() for value in inputs]
    weight = torch.randn(336, E, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    expected = torch.autograd.grad(naive(*inputs, start), inputs, weight)
    found = torch.autograd.grad(selective_scan(*single, start, kernel=kernel), single, weight.float())
    for ours, theirs in zip(found, expected, strict=True):
        assert error(ours, theirs) < 1e-4


@pytest.mark.parametrize("kernel", ["torch", "chunked"])
def test_check_01_gradcheck_in_float64(kernel: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scan_torch, "STEPS", 3)
    monkeypatch.setattr(scan_torch, "BUFFER", 200)  # several parts
    start, inputs = offsets(4, 0, 7, 1), [value[:, :2] for value in inputs_of(12, states=2)[:2]]
    inputs += [inputs_of(12, states=2)[2][:2], *inputs_of(12, states=2)[3:5], inputs_of(12)[5][:2]]
    inputs = [value.contiguous().requires_grad_() for value in inputs]
    assert torch.autograd.gradcheck(lambda *values: selective_scan(*values, start, kernel=kernel), inputs)


@pytest.mark.parametrize("kernel", KERNELS)
@settings(max_examples=25, deadline=None)
@given(lengths=st.lists(st.integers(0, 40), max_size=9))
def test_ragged_rows_equal_each_row_alone(kernel: str, lengths: list[int]) -> None:
    start, inputs = offsets(*lengths), inputs_of(sum(lengths))
    found = selective_scan(*(value.float() for value in inputs), start, kernel=kernel)
    assert found.shape == (sum(lengths), E)
    if len(found):
        assert error(found, naive(*inputs, start)) < 1e-5


@pytest.mark.parametrize("kernel", KERNELS)
def test_outputs_asked_for_are_the_same_with_the_same_gradients(kernel: str) -> None:
    start, at = offsets(3, 0, 20, 18), torch.tensor([40, 2, 22, 22])
    inputs = [value.float().requires_grad_() for value in inputs_of(41)]
    every, some = (
        selective_scan(*inputs, start, kernel=kernel)[at],
        selective_scan(*inputs, start, kernel=kernel, at=at),
    )
    torch.testing.assert_close(some, every, rtol=0, atol=1e-6)
    for ours, theirs in zip(
        torch.autograd.grad(some.square().sum(), inputs),
        torch.autograd.grad(every.square().sum(), inputs),
        strict=True,
    ):
        assert error(ours, theirs.double()) < 1e-5


@pytest.mark.parametrize("kernel", KERNELS)
def test_check_13_two_runs_and_any_number_of_threads_give_the_same_bits(kernel: str) -> None:
    start, threads = offsets(*range(130)), torch.get_num_threads()
    inputs = [value.float().requires_grad_() for value in inputs_of(int(offsets(*range(130))[-1]), states=20)]
    runs = []
    try:
        for count in (1, 1, 3):
            torch.set_num_threads(count if kernel == "numba" else 1)  # torch's own sums may depend on it
            y = selective_scan(*inputs, start, kernel=kernel)
            runs.append([y, *torch.autograd.grad(y.square().sum(), inputs)])
    finally:
        torch.set_num_threads(threads)
    for other in runs[1:]:
        assert all(torch.equal(one, same) for one, same in zip(runs[0], other, strict=True))


@pytest.mark.parametrize("kernel", ["torch", "chunked"])
def test_check_13_block_length_does_not_matter(kernel: str, monkeypatch: pytest.MonkeyPatch) -> None:
    start, inputs = offsets(5, 33, 50), [value.float() for value in inputs_of(88, "mamba")]
    expected = selective_scan(*inputs, start, kernel=kernel)
    for steps in (1, 7, 64):
        monkeypatch.setattr(scan_torch, "STEPS", steps)
        assert error(selective_scan(*inputs, start, kernel=kernel), expected.double()) < 1e-6


class Largest(TorchDispatchMode):
    """Notes the largest storage that any operation returns."""

    size = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for value in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(value, Tensor):
                self.size = max(self.size, value.untyped_storage().nbytes() // value.element_size())
        return out


@pytest.mark.parametrize("kernel", KERNELS)
def test_check_14_no_state_per_token_is_ever_held(kernel: str, monkeypatch: pytest.MonkeyPatch) -> None:
    states, channels, rows, length = 32, 64, 16, 64
    monkeypatch.setattr(scan_torch, "BUFFER", rows * channels * states)
    start, tokens = offsets(*[length] * rows), rows * length
    shapes = (tokens, channels), (tokens, channels), (channels, states), (tokens, states), (tokens, states), (channels,)
    inputs = [torch.rand(shape).requires_grad_() for shape in shapes]
    inputs[2] = -inputs[2]
    every_state = rows * length * channels * states

    def work() -> None:
        selective_scan(*inputs, start, kernel=kernel).sum().backward()

    work()  # compiling is not what is measured
    if kernel == "numba":
        tracemalloc.start()  # knows what numpy allocates
        work()
        assert every_state / 32 < tracemalloc.get_traced_memory()[1] / 4 < every_state / 2  # all arrays together
        tracemalloc.stop()
    else:
        with Largest() as seen:
            work()
        assert every_state / 32 < seen.size <= every_state / 8


@pytest.fixture
def without_numba(monkeypatch: pytest.MonkeyPatch):
    """The library as it is where numba cannot be imported."""
    hidden = ["numba", "llvmlite", *(f"recsys.nn.kernels.{name}" for name in ("loops", "scan", "convolution"))]
    for name in hidden:
        monkeypatch.setitem(sys.modules, name, None)
    fast._load.cache_clear()
    fast.say_once.cache_clear()
    yield
    monkeypatch.undo()
    fast._load.cache_clear()


@pytest.mark.parametrize("kernel", ["auto", "numba"])
def test_check_12_without_numba_torch_computes_the_same_and_it_is_said_once(
    kernel: str, without_numba: None, recwarn: pytest.WarningsRecorder
) -> None:
    start, inputs = offsets(3, 20, 4), [value.float() for value in inputs_of(27)]
    first, second = (selective_scan(*inputs, start, kernel=kernel) for _ in range(2))
    told = [str(warning.message) for warning in recwarn if "recsys[fast]" in str(warning.message)]
    assert len(told) == 1
    assert torch.equal(first, second)
    assert torch.equal(first, selective_scan(*inputs, start, kernel="torch"))
    assert error(first, naive(*inputs_of(27), start)) < 1e-4


def test_a_compiled_kernel_that_computes_wrongly_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    scan_numba = pytest.importorskip("recsys.nn.kernels.scan")
    monkeypatch.setattr(scan_numba, "forward", lambda x, *rest: (torch.zeros_like(x), torch.zeros(0)))
    fast._load.cache_clear()
    fast.say_once.cache_clear()
    start, inputs = offsets(9), [value.float() for value in inputs_of(9)]
    with pytest.warns(UserWarning, match="compiled"):
        found = selective_scan(*inputs, start)
    fast._load.cache_clear()
    assert error(found, naive(*inputs_of(9), start)) < 1e-5


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_converted_and_said(dtype: torch.dtype, recwarn: pytest.WarningsRecorder) -> None:
    fast.say_once.cache_clear()
    start, inputs = offsets(30, 20), inputs_of(50)
    halves = [value.to(dtype) for value in inputs]
    halves[2] = halves[2].float()
    found = selective_scan(*halves, start)
    selective_scan(*halves, start)
    assert found.dtype == torch.float32
    assert error(found, naive(*inputs, start)) < 2e-2
    assert sum("converted" in str(warning.message) for warning in recwarn) == 1


@pytest.mark.parametrize("kernel", KERNELS)
def test_check_11_autocast_does_not_reach_the_scan(kernel: str) -> None:
    start, inputs = offsets(30, 20), [value.float().requires_grad_() for value in inputs_of(50)]
    plain = selective_scan(*inputs, start, kernel=kernel)
    with torch.autocast("cpu", torch.bfloat16):
        low = selective_scan(*inputs, start, kernel=kernel)
        gradients = torch.autograd.grad(low.sum(), inputs)
    assert low.dtype == torch.float32
    assert torch.equal(low, plain)
    assert all(torch.equal(*pair) for pair in zip(gradients, torch.autograd.grad(plain.sum(), inputs), strict=True))


def test_wrong_arguments_say_which() -> None:
    inputs = [value.float() for value in inputs_of(9)]
    with pytest.raises(ValueError, match="kernel"):
        selective_scan(*inputs, offsets(9), kernel="cuda")
    with pytest.raises(ValueError, match="start"):
        selective_scan(*inputs, offsets(8))
    with pytest.raises(ValueError, match="start"):
        selective_scan(*inputs, offsets(2, 7)[1:])  # no row would be given the first two tokens
    with pytest.raises(ValueError, match="shape"):
        selective_scan(*inputs[:3], inputs[3][:, :2], *inputs[4:], offsets(9))
    with pytest.raises(ValueError, match="float32"):
        selective_scan(*inputs_of(9), offsets(9), kernel="numba")


@pytest.mark.skipif("numba" not in KERNELS, reason="needs numba")
@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_compiled_loops_are_found_whatever_torch_is_set_to(context: Callable[[], Any]) -> None:
    fast._load.cache_clear()
    torch.set_default_dtype(torch.float64)
    try:
        with context(), torch.autocast("cpu", torch.bfloat16):
            found = [fast.compiled("auto", name, 4, torch.ones(1).float()) for name in ("scan", "convolution")]
    finally:
        torch.set_default_dtype(torch.float32)
    assert None not in found


def test_importing_the_scan_does_not_import_numba() -> None:
    code = "import sys, recsys.nn.mamba; sys.exit('numba' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.skipif("numba" not in KERNELS, reason="needs numba")
@pytest.mark.parametrize(("channels", "width"), [(6, 4), (128, 4), (70, 1), (64, 3)])
def test_compiled_convolution_equals_the_one_in_torch(channels: int, width: int) -> None:
    torch.manual_seed(0)
    start = offsets(3, 0, 1, 17, 2)
    values = [torch.randn(23, channels) * 3, torch.randn(channels, width), torch.randn(channels)]
    values = [value.requires_grad_() for value in values]
    ours, theirs = (causal_silu(*values, start, kernel) for kernel in ("numba", "torch"))
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    weight = torch.randn(23, channels)
    for one, other in zip(
        torch.autograd.grad(ours, values, weight), torch.autograd.grad(theirs, values, weight), strict=True
    ):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kernel", KERNELS[:2])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_value_that_is_not_finite_stays_in_its_row(kernel: str, bad: float) -> None:
    x = torch.ones(8, 3)
    x[3] = bad
    start = offsets(4, 4)
    assert causal_silu(x, torch.ones(3, 4), torch.zeros(3), start, kernel)[4:].isfinite().all()
    inputs = [value.float() for value in inputs_of(8)]
    inputs[0][3] = bad
    assert selective_scan(*inputs, start, kernel=kernel)[4:].isfinite().all()
