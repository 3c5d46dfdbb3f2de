"""The chunked softmax against the plain one: values, gradients, weights, precision."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from per_target import cross_entropies
from torch import Tensor

from recsys.nn import softmax
from recsys.nn.softmax import cross_entropy, log_sum_exp


def problem(tokens: int = 37, items: int = 101, dim: int = 8) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(1)
    hidden, table = torch.randn(tokens, dim, requires_grad=True), torch.randn(items, dim, requires_grad=True)
    return hidden, table, torch.randint(1, items + 1, (tokens,))


def plain(hidden: Tensor, targets: Tensor, table: Tensor) -> Tensor:
    return F.cross_entropy(hidden @ table.T, targets - 1, reduction="none")


@pytest.mark.parametrize("chunk", [1, 5, 37, 512])
@pytest.mark.parametrize("sizes", [[101], [1, 60, 40]])
@pytest.mark.parametrize("weighted", [False, True])
def test_check_05_chunked_equals_plain(chunk: int, sizes: list[int], weighted: bool) -> None:
    hidden, table, targets = problem()
    weights = torch.rand(37) if weighted else None
    total = cross_entropy(hidden, targets, weights, table.split(sizes), chunk)
    expected = (plain(hidden, targets, table) * (torch.ones(37) if weights is None else weights)).sum()
    torch.testing.assert_close(total, expected, rtol=1e-5, atol=1e-6)
    each = cross_entropies(hidden, targets, table.split(sizes), chunk)
    torch.testing.assert_close(each, plain(hidden, targets, table), rtol=1e-5, atol=1e-6)
    ours = torch.autograd.grad(total / 7, [hidden, table])
    theirs = torch.autograd.grad(expected / 7, [hidden, table])
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("chunk", [1, 5, 37, 512])
@pytest.mark.parametrize("sizes", [[101], [1, 60, 40]])
def test_logarithms_of_sums_and_any_gradient_of_theirs(chunk: int, sizes: list[int]) -> None:
    hidden, table, _ = problem()
    found = log_sum_exp(hidden, table.split(sizes), chunk)
    expected = (hidden @ table.T).logsumexp(1)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    factor = torch.randn(37)  # of both signs
    ours = torch.autograd.grad((found.square() * factor).sum(), [hidden, table])
    theirs = torch.autograd.grad((expected.square() * factor).sum(), [hidden, table])
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_gradients_by_finite_differences() -> None:
    torch.manual_seed(2)
    hidden, table = torch.randn(5, 3).double().requires_grad_(), torch.randn(7, 3).double().requires_grad_()
    targets, weights = torch.tensor([1, 7, 3, 3, 2]), torch.randn(5).double().requires_grad_()
    assert torch.autograd.gradcheck(lambda *given: log_sum_exp(given[0], given[1:], 2), (hidden, table))
    assert torch.autograd.gradcheck(
        lambda states, weight, *blocks: cross_entropy(states, targets, weight, blocks, 2), (hidden, weights, table)
    )


def test_check_05_positions_with_weight_zero_give_no_gradient() -> None:
    hidden, table, targets = problem()
    weights = torch.ones(37)
    weights[::3] = 0.0
    (gradient,) = torch.autograd.grad(cross_entropy(hidden, targets, weights, (table,), 8), [hidden])
    assert gradient[::3].abs().max() == 0
    assert gradient[1::3].abs().sum(1).min() > 0


def test_gradient_of_the_weighted_sum_is_exact_however_many_targets() -> None:
    torch.manual_seed(0)
    hidden, table = torch.randn(200_000, 2, requires_grad=True), torch.randn(3, 2, requires_grad=True)
    targets, weights = torch.randint(1, 4, (200_000,)), torch.rand(200_000) * 0.2 + 0.9
    ours = torch.autograd.grad(cross_entropy(hidden, targets, weights, (table,), 512), [hidden, table])
    theirs = torch.autograd.grad((plain(hidden, targets, table) * weights).sum(), [hidden, table])
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_large_scores_neither_overflow_nor_lose_the_loss() -> None:
    table = torch.tensor([[200.0], [-200.0], [0.0]])
    hidden = torch.tensor([[1.0], [1.0]])
    sums = log_sum_exp(hidden, (table,), 4)
    torch.testing.assert_close(sums, torch.tensor([200.0, 200.0]))
    losses = cross_entropies(hidden, torch.tensor([1, 2]), (table,), 4)
    torch.testing.assert_close(losses, torch.tensor([0.0, 400.0]))


def test_no_targets_give_no_loss_and_zero_gradient() -> None:
    hidden, table, _ = problem()
    none = torch.zeros(0, dtype=torch.long)
    for found in (cross_entropy(hidden[:0], none, None, (table,), 8), log_sum_exp(hidden[:0], (table,), 8).sum()):
        (gradient,) = torch.autograd.grad(found, [table])
        assert found == 0
        assert gradient.abs().max() == 0


def test_bf16_autocast_stays_near_fp32() -> None:
    hidden, table, targets = problem()
    for call in (
        lambda: cross_entropy(hidden, targets, None, (table,), 8) / 37,
        lambda: log_sum_exp(hidden, (table,), 8).mean(),
    ):
        full = call()
        with torch.autocast("cpu", torch.bfloat16):
            low = call()
        assert low.dtype == torch.float32
        torch.testing.assert_close(low, full, rtol=0.05, atol=0.05)
        ours, theirs = torch.autograd.grad(low, [hidden, table]), torch.autograd.grad(full, [hidden, table])
        for one, other in zip(ours, theirs, strict=True):
            assert one.dtype == torch.float32
            torch.testing.assert_close(one, other, rtol=0.1, atol=2e-3)


def test_bf16_losses_of_single_targets_stay_near_fp32() -> None:
    hidden, table, targets = problem()
    with torch.autocast("cpu", torch.bfloat16):
        low = cross_entropies(hidden, targets, (table,), 8)
    torch.testing.assert_close(low, cross_entropies(hidden, targets, (table,), 8), rtol=0.05, atol=0.05)


def test_bf16_gradients_of_the_table_do_not_stall_over_many_chunks() -> None:
    torch.manual_seed(0)
    hidden, table = torch.rand(4096, 4, requires_grad=True), (torch.randn(6, 4) * 0.1).requires_grad_()
    targets = torch.randint(1, 3, (4096,))
    (full,) = torch.autograd.grad(cross_entropy(hidden, targets, None, (table,), 8), [table])
    with torch.autocast("cpu", torch.bfloat16):
        low = cross_entropy(hidden, targets, None, (table,), 8)
    (ours,) = torch.autograd.grad(low, [table])
    torch.testing.assert_close(ours, full, rtol=0.02, atol=0.0)


def test_what_is_frozen_gets_no_gradient_and_costs_none(monkeypatch: pytest.MonkeyPatch) -> None:
    hidden, table, targets = problem()
    first, second = table.detach()[:60], table.detach()[60:].clone().requires_grad_()
    made, accumulate = [], softmax.accumulate

    def counted(total: Tensor, *given: Tensor) -> None:
        made.append(len(total))
        accumulate(total, *given)

    monkeypatch.setattr(softmax, "accumulate", counted)
    monkeypatch.setattr(softmax, "wider", lambda *operands: False)
    for asked in ([hidden, second], [second], [hidden]):
        made.clear()
        states = hidden if any(value is hidden for value in asked) else hidden.detach()
        blocks = (first, second if any(value is second for value in asked) else second.detach())
        ours = torch.autograd.grad(cross_entropy(states, targets, None, blocks, 8), asked)
        theirs = torch.autograd.grad(plain(states, targets, torch.cat(blocks)).sum(), asked)
        for one, other in zip(ours, theirs, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)
        assert set(made) == ({len(second)} if blocks[1].requires_grad else set())


def test_the_cross_entropy_is_one_pass_and_the_sum_two(monkeypatch: pytest.MonkeyPatch) -> None:
    hidden, table, targets = problem()
    passes, chunks = [], softmax._Work.chunks
    monkeypatch.setattr(softmax._Work, "chunks", lambda self: (passes.append(1), chunks(self))[1])
    surprise = torch.randn(37)  # of both signs
    ours = torch.autograd.grad(cross_entropy(hidden, targets, surprise, (table,), 8), [hidden, table])
    theirs = torch.autograd.grad((plain(hidden, targets, table) * surprise).sum(), [hidden, table])
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)
    assert len(passes) == 1
    log_sum_exp(hidden, (table,)).sum().backward()
    assert len(passes) == 3
