"""The chunked softmax against the plain one: values, gradients, weights."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from per_target import cross_entropies
from torch import Tensor

from recsys.objectives import softmax
from recsys.objectives.softmax import full_softmax


def problem(tokens: int = 37, items: int = 101, dim: int = 8) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(1)
    hidden, table = torch.randn(tokens, dim, requires_grad=True), torch.randn(items, dim, requires_grad=True)
    return hidden, table, torch.randint(1, items + 1, (tokens,))


def cut(table: Tensor, sizes: list[int]) -> tuple[tuple[int, ...], tuple[Tensor, ...]]:
    blocks = table.split(sizes)
    return tuple(1 + sum(sizes[:i]) for i in range(len(sizes))), tuple(blocks)


@pytest.mark.parametrize("chunk", [1, 5, 37, 512])
@pytest.mark.parametrize("sizes", [[101], [1, 60, 40]])
@pytest.mark.parametrize("weighted", [False, True])
def test_check_05_chunked_equals_plain(chunk: int, sizes: list[int], weighted: bool) -> None:
    hidden, table, targets = problem()
    weights = torch.rand(37) if weighted else None
    total = full_softmax(hidden, targets, weights, *cut(table, sizes), chunk)
    plain = F.cross_entropy(hidden @ table.T, targets - 1, reduction="none")
    torch.testing.assert_close(cross_entropies(hidden, targets, *cut(table, sizes), chunk), plain, rtol=1e-5, atol=1e-6)
    factor = torch.ones(37) if weights is None else weights
    torch.testing.assert_close(total, (plain * factor).sum())
    ours = torch.autograd.grad(total / 7, [hidden, table])
    theirs = torch.autograd.grad((plain * factor).sum() / 7, [hidden, table])
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_check_05_positions_with_weight_zero_give_no_gradient() -> None:
    hidden, table, targets = problem()
    weights = torch.ones(37)
    weights[::3] = 0.0
    (gradient,) = torch.autograd.grad(full_softmax(hidden, targets, weights, *cut(table, [101]), 8), [hidden])
    assert gradient[::3].abs().max() == 0
    assert gradient[1::3].abs().sum(1).min() > 0


def test_gradient_is_exact_for_any_weights_and_made_in_one_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    hidden, table, targets = problem()
    surprise = torch.randn(37)
    passes: list[int] = []
    run = softmax._pass
    monkeypatch.setattr(softmax, "_pass", lambda *given: passes.append(1) or run(*given))
    ours = torch.autograd.grad(full_softmax(hidden, targets, surprise, *cut(table, [101]), 8), [hidden, table])
    assert len(passes) == 1
    plain = F.cross_entropy(hidden @ table.T, targets - 1, reduction="none")
    theirs = torch.autograd.grad((plain * surprise).sum(), [hidden, table])
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_large_scores_neither_overflow_nor_lose_the_loss() -> None:
    table = torch.tensor([[200.0], [-200.0], [0.0]])
    hidden, targets = torch.tensor([[1.0], [1.0]]), torch.tensor([1, 2])
    torch.testing.assert_close(cross_entropies(hidden, targets, (1,), (table,), 4), torch.tensor([0.0, 400.0]))


def test_no_targets_give_no_loss_and_zero_gradient() -> None:
    hidden, table, _ = problem()
    total = full_softmax(hidden[:0], torch.zeros(0, dtype=torch.long), None, *cut(table, [101]), 8)
    (gradient,) = torch.autograd.grad(total, [table])
    assert total.shape == () and total == 0
    assert gradient.abs().max() == 0


def test_bf16_autocast_stays_near_fp32() -> None:
    hidden, table, targets = problem()
    plain, each = full_softmax(hidden, targets, None, *cut(table, [101]), 8) / 37, cross_entropies
    with torch.autocast("cpu", torch.bfloat16):
        low = full_softmax(hidden, targets, None, *cut(table, [101]), 8) / 37
        singly = each(hidden, targets, *cut(table, [101]), 8)
    assert low.dtype == torch.float32
    torch.testing.assert_close(singly, each(hidden, targets, *cut(table, [101]), 8), rtol=0.05, atol=0.05)
    ours = torch.autograd.grad(low, [hidden, table])
    theirs = torch.autograd.grad(plain, [hidden, table])
    for one, other in zip(ours, theirs, strict=True):
        assert one.dtype == torch.float32
        torch.testing.assert_close(one, other, rtol=0.1, atol=2e-3)


def test_bf16_gradients_of_the_table_do_not_stall_over_many_chunks() -> None:
    torch.manual_seed(0)
    hidden, table = torch.rand(4096, 4, requires_grad=True), (torch.randn(6, 4) * 0.1).requires_grad_()
    targets = torch.randint(1, 3, (4096,))
    (plain,) = torch.autograd.grad(full_softmax(hidden, targets, None, (1,), (table,), 8), [table])
    with torch.autocast("cpu", torch.bfloat16):
        low = full_softmax(hidden, targets, None, (1,), (table,), 8)
    (ours,) = torch.autograd.grad(low, [table])
    torch.testing.assert_close(ours, plain, rtol=0.02, atol=0.0)


def test_gradient_of_the_weighted_sum_is_exact_however_many_targets() -> None:
    torch.manual_seed(0)
    hidden, table = torch.randn(200_000, 2, requires_grad=True), torch.randn(3, 2, requires_grad=True)
    targets, weighting = torch.randint(1, 4, (200_000,)), torch.rand(200_000) * 0.2 + 0.9
    total = full_softmax(hidden, targets, weighting, (1,), (table,), 512)
    plain = F.cross_entropy(hidden @ table.T, targets - 1, reduction="none")
    ours = torch.autograd.grad(total, [hidden, table])
    theirs = torch.autograd.grad((plain * weighting).sum(), [hidden, table])
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_what_is_frozen_gets_no_gradient_and_costs_none(monkeypatch: pytest.MonkeyPatch) -> None:
    hidden, table, targets = problem()
    first, second = table.detach()[:60], table.detach()[60:].clone().requires_grad_()
    made, accumulate = [], softmax.accumulate

    def counted(total: Tensor, *given: Tensor) -> None:
        made.append(len(total))
        accumulate(total, *given)

    monkeypatch.setattr(softmax, "accumulate", counted)
    for asked in ([hidden, second], [second], [hidden]):
        made.clear()
        states = hidden if any(value is hidden for value in asked) else hidden.detach()
        blocks = (first, second if any(value is second for value in asked) else second.detach())
        ours = torch.autograd.grad(full_softmax(states, targets, None, (1, 61), blocks, 8), asked)
        plain = F.cross_entropy(states @ torch.cat(blocks).T, targets - 1, reduction="sum")
        for one, other in zip(ours, torch.autograd.grad(plain, asked), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)
        assert set(made) == ({len(second)} if blocks[1].requires_grad else set())
