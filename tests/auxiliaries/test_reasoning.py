"""The losses of latent reasoning against what their equations say, written out."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from per_target import per_target
from torch import Tensor

from recsys.auxiliaries.reasoning import (
    ProgressiveSoftmax,
    StepContrast,
    StepDiversity,
    one_per_history,
)
from recsys.data.batch import Batch
from recsys.encoders.rearec import NoisyStates, ReaRec, ReasoningStates
from recsys.encoders.sasrec import SASRec
from recsys.items.ids import IdItems
from recsys.nn import divergence as kernel
from recsys.nn import softmax
from recsys.nn.divergence import divergence
from recsys.objectives.softmax import FullSoftmax
from recsys.protocols import Context, Encoded, Step
from recsys.recommenders.composed import Recommender
from recsys.targets.last_item import LastItem
from recsys.targets.next_item import NextItem
from recsys.testing import check_auxiliary, check_objective, toy_batch

NUM_ITEMS = 30


def problem(tokens: int = 7, count: int = 3, items: int = 23, dim: int = 5) -> tuple[Tensor, Tensor]:
    torch.manual_seed(1)
    return torch.randn(tokens, count, dim, requires_grad=True), torch.randn(items, dim, requires_grad=True)


def naive(steps: Tensor, table: Tensor, pairs: Tensor, stop_gradient: bool) -> Tensor:
    """Sum over j, i of pairs[j, i] KL(p_j || p_i), one KL at a time."""
    log_p = (steps @ table.T).log_softmax(2)
    total = steps.new_zeros(())
    for j in range(steps.shape[1]):
        for i in range(steps.shape[1]):
            second = log_p[:, i].detach() if stop_gradient else log_p[:, i]
            total = total + pairs[j, i] * (log_p[:, j].exp() * (log_p[:, j] - second)).sum()
    return total


@pytest.mark.parametrize("stop_gradient", [True, False])
@pytest.mark.parametrize("sizes", [[23], [1, 14, 8]])
@pytest.mark.parametrize("tokens", [0, 1, 7, 70])
def test_check_09_fast_divergence_equals_the_naive_one(
    stop_gradient: bool, sizes: list[int], tokens: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernel, "NUMBERS", 1)
    steps, table = problem(tokens)
    pairs = torch.rand(3, 3)
    fast = divergence(steps, tuple(table.split(sizes)), pairs, stop_gradient)
    slow = naive(steps, table, pairs, stop_gradient)
    torch.testing.assert_close(fast, slow, rtol=1e-5, atol=1e-6)
    ours = torch.autograd.grad(fast * 1.7, [steps, table])
    theirs = torch.autograd.grad(slow * 1.7, [steps, table])
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("stop_gradient", [True, False])
def test_check_09_gradient_by_finite_differences(stop_gradient: bool) -> None:
    steps, table = (value.detach().double().requires_grad_() for value in problem(tokens=2))
    pairs = torch.rand(3, 3).double()
    fixed = (steps @ table.T).log_softmax(2).detach()

    def value(at: Tensor) -> Tensor:
        log_p = (at @ table.T).log_softmax(2)
        second = fixed if stop_gradient else log_p
        each = log_p.exp().unsqueeze(2) * (log_p.unsqueeze(2) - second.unsqueeze(1))  # (Q, j, i, N)
        return (each.sum(3) * pairs).sum()

    (gradient,) = torch.autograd.grad(divergence(steps, (table,), pairs, stop_gradient), steps)
    for index in torch.cartesian_prod(*(torch.arange(size) for size in steps.shape)).tolist():
        shift = torch.zeros_like(steps)
        shift[tuple(index)] = 1e-5
        found = (value(steps + shift) - value(steps - shift)) / 2e-5
        assert gradient[tuple(index)].item() == pytest.approx(found.item(), abs=1e-6)


def test_check_09_gradient_reaches_the_first_argument_only() -> None:
    steps, table = problem(count=2)
    first_only = torch.tensor([[0.0, 1.0], [0.0, 0.0]])
    (gradient,) = torch.autograd.grad(divergence(steps, (table,), first_only, True), steps)
    assert gradient[:, 0].abs().min() > 0
    assert gradient[:, 1].abs().max() == 0
    (gradient,) = torch.autograd.grad(divergence(steps, (table,), first_only, False), steps)
    assert gradient[:, 1].abs().min() > 0


def test_divergence_in_bf16_stays_near_fp32() -> None:
    steps, table = problem(tokens=64)
    pairs = torch.ones(3, 3)
    plain = divergence(steps, (table,), pairs, True)
    with torch.autocast("cpu", torch.bfloat16):
        low = divergence(steps, (table,), pairs, True)
    torch.testing.assert_close(low, plain, rtol=0.03, atol=0.0)
    ours, theirs = (torch.autograd.grad(value, [steps, table]) for value in (low, plain))
    for one, other in zip(ours, theirs, strict=True):
        assert one.dtype == torch.float32
        assert F.cosine_similarity(one.flatten(), other.flatten(), 0) > 0.999


def encoded_step(batch: Batch, count: int = 3, noisy: Tensor | None = None) -> Step:
    """A step whose encoder gave random reasoning states."""
    torch.manual_seed(2)
    items = IdItems(8, init="torch")
    items.bind(Context(NUM_ITEMS))
    states = torch.randn(len(batch.wanted_tokens), count, 8, requires_grad=True)
    tokens = torch.zeros(int(batch.lengths.sum()), 8).index_copy(0, batch.wanted_tokens, states.mean(1))
    given: tuple[Any, ...] = (ReasoningStates(states), *(() if noisy is None else (NoisyStates(noisy),)))
    return Step(batch, encode=lambda _: Encoded(batch, tokens, given), items=items)


def steps_of(step: Step) -> tuple[Tensor, Tensor]:
    assert step.encoded is not None and isinstance(step.items, IdItems)
    return step.encoded.read(ReasoningStates).states, step.items.weight[1:]


def test_diversity_is_minus_the_mean_over_ordered_pairs() -> None:
    step = encoded_step(NextItem().train(toy_batch((5, 3))))
    steps, table = steps_of(step)
    log_p = (steps @ table.T / 0.5).log_softmax(2)
    each = [
        F.kl_div(log_p[:, i], log_p[:, j], log_target=True, reduction="batchmean")  # KL(p_j || p_i)
        for i in range(3)
        for j in range(3)
        if i != j
    ]
    torch.testing.assert_close(StepDiversity(temperature=0.5)(step), -sum(each) / 6)
    summed = [
        F.kl_div(log_p[:, j], log_p[:, i], log_target=True, reduction="batchmean")
        for i in range(3)
        for j in range(i + 1, 3)
    ]
    torch.testing.assert_close(StepDiversity(temperature=0.5, reduction="sum")(step), -sum(summed))


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_progressive_softmax_equals_plain_cross_entropies(weighted: bool, reduction: str) -> None:
    batch = NextItem().train(toy_batch((5, 3, 2)))
    batch = batch if weighted else batch.replace(weights=None)
    step = encoded_step(batch, 4)
    steps, table = steps_of(step)
    assert step.encoded is not None and step.items is not None
    objective = ProgressiveSoftmax(0.7, 1.5, early_weight=0.4, reduction=reduction)
    total = objective(step.encoded, batch, step.items, torch.Generator())
    losses = per_target(objective, step.encoded, batch, step.items)
    assert batch.targets is not None
    targets = batch.targets[batch.targets > 0] - 1
    each = [
        F.cross_entropy(steps[:, k] @ table.T / (0.7 * 1.5 ** (3 - k)), targets, reduction="none") for k in range(4)
    ]
    expected = each[3] + 0.4 * sum(each[:3]) / (3 if reduction == "mean" else 1)
    torch.testing.assert_close(losses, expected)
    weights = torch.ones(len(targets)) if batch.weights is None else batch.flatten(batch.weights)
    ours, theirs = (
        torch.autograd.grad(value, [steps, step.items.weight]) for value in (total, (expected * weights).sum())
    )  # type: ignore[list-item]
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("count", [3, 4])
def test_progressive_softmax_under_autocast_keeps_float32_losses_and_one_pass(
    count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = NextItem().train(toy_batch((5, 3, 2))).replace(weights=None)
    step = encoded_step(batch, count)
    steps, _ = steps_of(step)
    assert step.encoded is not None and step.items is not None
    passes: list[int] = []
    chunks = softmax._Work.chunks
    monkeypatch.setattr(softmax._Work, "chunks", lambda self: (passes.append(1), chunks(self))[1])
    with torch.autocast("cpu", torch.bfloat16):
        total = ProgressiveSoftmax(0.7, 1.5)(step.encoded, batch, step.items, torch.Generator())
    assert total.dtype == torch.float32
    torch.autograd.grad(total / 7, steps)
    assert len(passes) == 1  # losses and gradient together


def test_contrast_under_autocast_takes_products_in_float32() -> None:
    step = encoded_step(toy_batch((5, 3, 4)), noisy=torch.randn(3, 2, 8))
    plain = StepContrast(temperature=0.07)(step)
    with torch.autocast("cpu", torch.bfloat16):
        low = StepContrast(temperature=0.07)(step)
    torch.testing.assert_close(low, plain)


def test_progressive_softmax_without_early_weight_is_the_last_steps_softmax() -> None:
    batch = LastItem().train(toy_batch((5, 3, 2)))
    step = encoded_step(batch)
    steps, _ = steps_of(step)
    assert step.encoded is not None and step.items is not None
    last = Encoded(batch, step.encoded.tokens.index_copy(0, batch.wanted_tokens, steps[:, -1]))
    torch.testing.assert_close(
        per_target(ProgressiveSoftmax(0.7, 5.0, early_weight=0.0), step.encoded, batch, step.items),
        per_target(FullSoftmax(0.7), last, batch, step.items),
    )


def test_steps_of_another_batch_are_an_error() -> None:
    step = encoded_step(toy_batch((5, 3)))
    assert step.encoded is not None and step.items is not None
    other = NextItem().train(toy_batch((5, 3)))
    with pytest.raises(ValueError, match="encode"):
        ProgressiveSoftmax()(
            Encoded(other, torch.zeros(6, 8), step.encoded.given), other, step.items, torch.Generator()
        )


def test_contrast_takes_one_token_of_each_history() -> None:
    batch = NextItem().train(toy_batch((9, 2, 1, 5)))  # 8, 1, 0 and 4 targets
    rows = torch.tensor([0] * 8 + [1] + [3] * 4)
    drawn = [one_per_history(batch, torch.Generator().manual_seed(seed)) for seed in range(60)]
    assert all(rows[chosen].tolist() == [0, 1, 3] for chosen in drawn)
    assert {int(chosen[0]) for chosen in drawn} == set(range(8))
    assert {int(chosen[2]) for chosen in drawn} == {9, 10, 11, 12}


def test_contrast_equals_infonce_over_the_rows() -> None:
    batch = toy_batch((5, 3, 4))
    noisy = torch.randn(3, 2, 8)
    step = encoded_step(batch, noisy=noisy)
    clean = steps_of(step)[0][:, 1:]
    expected = torch.zeros(())
    for k in range(2):
        for b in range(3):
            logits = torch.stack([noisy[b, k] @ clean[other, k] for other in range(3)]) / 0.3
            expected = expected + (logits.exp().sum().log() - logits[b]) / 6
    torch.testing.assert_close(StepContrast(temperature=0.3)(step), expected)
    torch.testing.assert_close(StepContrast(temperature=0.3, reduction="sum")(step), 2 * expected)


@pytest.mark.parametrize(("auxiliary", "word"), [(StepDiversity(), "ReaRec"), (StepContrast(), "ReaRec")])
def test_an_encoder_that_does_not_reason_is_an_error(auxiliary: Any, word: str) -> None:
    batch = toy_batch((3,))
    with pytest.raises(ValueError, match=word):
        auxiliary(Step(batch, encode=lambda _: Encoded(batch, torch.zeros(3, 8))))


def test_contrast_without_a_noisy_branch_is_an_error() -> None:
    with pytest.raises(ValueError, match="noise"):
        StepContrast()(encoded_step(toy_batch((3,))))


@pytest.mark.parametrize("objective", [ProgressiveSoftmax(), ProgressiveSoftmax(0.5, 2.0, 0.5, "sum")])
def test_objective_conforms_to_the_seam(objective: ProgressiveSoftmax) -> None:
    check_objective(objective)


@pytest.mark.parametrize("targets", [NextItem, LastItem])
@pytest.mark.parametrize("auxiliary", [StepDiversity(temperature=0.5), StepContrast(temperature=0.5)])
def test_auxiliaries_conform_to_the_seam(auxiliary: Any, targets: Any) -> None:
    encoder = ReaRec(SASRec(16, 1, 1, 0.1, 8), 2, noise=0.1, warmup=0)
    check_auxiliary(auxiliary, Recommender(IdItems(16), encoder, FullSoftmax(), targets()))


@pytest.mark.parametrize(
    ("part", "settings", "word"),
    [
        (ProgressiveSoftmax, {"temperature": 0.0}, "temperature"),
        (ProgressiveSoftmax, {"alpha": 0.0}, "alpha"),
        (ProgressiveSoftmax, {"early_weight": -1.0}, "early_weight"),
        (ProgressiveSoftmax, {"reduction": "max"}, "reduction"),
        (StepDiversity, {"temperature": -1.0}, "temperature"),
        (StepDiversity, {"reduction": "max"}, "reduction"),
        (StepContrast, {"temperature": 0.0}, "temperature"),
    ],
)
def test_wrong_settings_say_which(part: Any, settings: dict[str, Any], word: str) -> None:
    with pytest.raises(ValueError, match=word):
        part(**settings)
