"""Sampled softmax, BCE and gBCE against their formulas, and what all objectives owe the seam."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from per_target import per_target
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from recsys.data.batch import Batch
from recsys.items.ids import IdItems
from recsys.negatives.in_batch import InBatchNegatives
from recsys.negatives.uniform import UniformNegatives
from recsys.nn.scoring import score_ids
from recsys.objectives.bce import BCE
from recsys.objectives.gbce import GBCE, beta
from recsys.objectives.sampled import SampledSoftmax, Scored
from recsys.objectives.softmax import FullSoftmax
from recsys.protocols import Context, Encoded

NUM_ITEMS, DIM = 40, 6


def problem() -> tuple[Encoded, Batch, IdItems]:
    torch.manual_seed(2)
    items = IdItems(DIM, init="torch")
    items.bind(Context(NUM_ITEMS))
    ids = torch.tensor([[1, 2, 3, 4], [5, 6, 7, 0]])
    targets = torch.tensor([[2, 3, 4, 9], [6, 0, 8, 0]])
    batch = Batch(torch.arange(2), torch.arange(2), ids, torch.tensor([4, 3]), targets=targets)
    return Encoded(batch, torch.randn(7, DIM, requires_grad=True)), batch, items


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("per", ["position", "row", "batch"])
def test_check_07_all_other_items_as_negatives_is_the_full_softmax(per: str) -> None:
    encoded, batch, items = problem()
    count = NUM_ITEMS - 1 if per == "position" else NUM_ITEMS
    sampled = SampledSoftmax(UniformNegatives(count, per=per, distinct=True))
    ours = per_target(sampled, encoded, batch, items)
    torch.testing.assert_close(ours, per_target(FullSoftmax(), encoded, batch, items), rtol=1e-5, atol=1e-5)
    whole = [one(encoded, batch, items, generator()) for one in (sampled, FullSoftmax())]
    torch.testing.assert_close(*whole)


def gbce_by_the_paper(positive: Tensor, negative: Tensor, t: float, alpha: float) -> Tensor:
    positive, negative = positive.double(), negative.double()
    power = alpha * (t * (1 - 1 / alpha) + 1 / alpha)
    transformed = torch.log(1 / (torch.sigmoid(positive).pow(-power) - 1))
    logits = torch.cat([transformed[:, None], negative], 1)
    truth = torch.zeros_like(logits)
    truth[:, 0] = 1
    return F.binary_cross_entropy_with_logits(logits, truth, reduction="none").mean(1)


@pytest.mark.parametrize("t", [0.0, 0.3, 0.75, 1.0])
def test_check_06_stable_gbce_equals_the_transformed_logits(t: float) -> None:
    positive = torch.linspace(-15, 15, 61)
    negative = torch.linspace(15, -15, 61)[:, None].repeat(1, 8)
    power = beta(t, 8, NUM_ITEMS)
    ours = (power * F.softplus(-positive.double()) + F.softplus(negative.double()).sum(1)) / 9
    torch.testing.assert_close(
        ours, gbce_by_the_paper(positive, negative, t, 8 / (NUM_ITEMS - 1)), rtol=1e-6, atol=1e-6
    )


@pytest.mark.parametrize("t", [0.0, 0.75, 1.0])
def test_check_06_the_objective_is_the_papers_formula(t: float) -> None:
    encoded, batch, items = problem()
    negatives = UniformNegatives(5)
    hidden, targets, _ = encoded.at_targets(batch)
    ids, mask = negatives.sample(batch, targets, NUM_ITEMS, generator()).for_targets()
    assert not mask.any()
    positive, negative = (hidden * items.weight[targets]).sum(1), torch.einsum("td,tkd->tk", hidden, items.weight[ids])
    expected = gbce_by_the_paper(positive, negative, t, 5 / (NUM_ITEMS - 1))
    ours = per_target(GBCE(t, negatives), encoded, batch, items)
    torch.testing.assert_close(ours.double(), expected, rtol=1e-5, atol=1e-6)


def test_check_06_reference_value_of_beta() -> None:
    assert beta(0.75, 256, 3416) == pytest.approx(0.3062, abs=1e-4)
    assert beta(0.0, 5, 100) == 1.0
    assert beta(1.0, 5, 100) == pytest.approx(5 / 99)


def test_check_06_t_zero_is_mean_bce() -> None:
    encoded, batch, items = problem()
    negatives = UniformNegatives(5)
    ours = per_target(GBCE(0.0, negatives), encoded, batch, items)
    assert torch.equal(ours, per_target(BCE(negatives, mean=True), encoded, batch, items))


def test_bce_sums_the_two_terms_and_never_draws_from_the_history() -> None:
    encoded, batch, items = problem()
    drawn = BCE().negatives.sample(batch, torch.tensor([2, 3, 4, 9, 6, 8]), NUM_ITEMS, generator())
    ids, mask = drawn.for_targets()
    assert ids.shape == (6, 1) and not mask.any()
    hidden, targets, _ = encoded.at_targets(batch)
    positive = (hidden * items.weight[targets]).sum(1)
    negative = (hidden * items.weight[ids[:, 0]]).sum(1)
    expected = F.softplus(-positive) + F.softplus(negative)
    torch.testing.assert_close(per_target(BCE(), encoded, batch, items), expected)


OBJECTIVES: list[Callable[[], nn.Module]] = [
    FullSoftmax,
    lambda: FullSoftmax(temperature=0.5),
    SampledSoftmax,
    lambda: SampledSoftmax(UniformNegatives(7, per="position")),
    lambda: SampledSoftmax(UniformNegatives(7, per="row", exclude_history=True)),
    lambda: SampledSoftmax(InBatchNegatives()),
    BCE,
    GBCE,
]


@pytest.mark.parametrize("make", OBJECTIVES)
def test_a_finite_sum_over_the_targets_the_same_for_the_same_seed(make: Callable[[], nn.Module]) -> None:
    encoded, batch, items = problem()
    losses = per_target(make(), encoded, batch, items, seed=3)
    assert losses.shape == (6,)
    assert losses.isfinite().all() and losses.dtype == torch.float32
    total = make()(encoded, batch, items, generator(3))
    torch.testing.assert_close(total, losses.sum())
    assert torch.equal(total, make()(encoded, batch, items, generator(3)))
    (gradient,) = torch.autograd.grad(total, [encoded.tokens])
    assert gradient[5].abs().max() == 0, "the position without a target"
    assert gradient[:5].abs().sum(1).gt(0).all()


class Largest(TorchDispatchMode):
    """Remembers the most numbers that any one tensor held."""

    size = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        made = function(*args, **(kwargs or {}))
        for one in tree_flatten(made)[0]:
            if isinstance(one, Tensor):
                self.size = max(self.size, one.numel())
        return made


@pytest.mark.parametrize("make", [FullSoftmax, SampledSoftmax, BCE, GBCE])
def test_tokens_times_items_are_never_held(make: Callable[[], nn.Module]) -> None:
    num_items, rows, width = 60_000, 20, 40
    items = IdItems(DIM)
    items.bind(Context(num_items))
    ids, targets = torch.randint(1, num_items + 1, (2, rows, width))
    batch = Batch(torch.arange(rows), torch.arange(rows), ids, torch.full((rows,), width), targets=targets)
    tokens = torch.randn(rows * width, DIM, requires_grad=True)
    with Largest() as largest:
        make()(Encoded(batch, tokens), batch, items, generator()).backward()
    assert num_items < largest.size < rows * width * num_items / 10


@pytest.mark.parametrize("shape", [(4, 3), (9, 30)])
def test_scores_of_few_items_equal_a_gather_in_value_and_gradient(shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    _, _, items = problem()
    hidden, ids = torch.randn(shape[0], DIM, requires_grad=True), torch.randint(1, NUM_ITEMS + 1, shape)
    ours, plain = score_ids(hidden, items, ids), torch.einsum("td,tkd->tk", hidden, items.weight[ids])
    torch.testing.assert_close(ours, plain)
    factor = torch.randn(shape)
    for one, other in zip(
        torch.autograd.grad((ours * factor).sum(), [hidden, items.weight]),
        torch.autograd.grad((plain * factor).sum(), [hidden, items.weight]),
        strict=True,
    ):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("wide", [True, False])
def test_scores_of_few_items_do_not_depend_on_the_chunk(wide: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    _, _, items = problem()
    hidden, ids = torch.randn(11, DIM), torch.randint(1, NUM_ITEMS + 1, (11, 4))
    monkeypatch.setattr("recsys.nn.scoring.DENSE", 1000 if wide else 0)
    whole = score_ids(hidden, items, ids)
    monkeypatch.setattr("recsys.nn.scoring.BUFFER", 50)
    torch.testing.assert_close(score_ids(hidden, items, ids), whole)


@pytest.mark.parametrize(
    "make", [lambda: GBCE(t=1.5), lambda: SampledSoftmax(temperature=0), lambda: FullSoftmax(chunk=0)]
)
def test_settings_that_mean_nothing_are_refused(make: Callable[[], nn.Module]) -> None:
    with pytest.raises(ValueError, match="found"):
        make()


def test_g3_the_loss_of_gbce_has_no_floor():
    scores = torch.tensor([-10.0, -40.0], requires_grad=True)
    found = Scored(scores, torch.full((2, 1), -torch.inf))
    losses = GBCE(0.75).of_scores(found, 101)
    power = beta(0.75, 1, 101)
    assert losses.tolist() == pytest.approx([power * 10 / 2, power * 40 / 2], rel=1e-4)
    losses.sum().backward()
    assert scores.grad.tolist() == pytest.approx([-power / 2] * 2, rel=1e-4)


def test_g2_a_negative_is_never_the_target():
    _, batch, _ = problem()
    targets = batch.flatten(batch.targets)
    targets = targets[targets > 0]
    ids, counts = UniformNegatives(300, per="position").sample(batch, targets, NUM_ITEMS, generator()).for_targets()
    assert ids.min() >= 1 and ids.max() <= NUM_ITEMS
    assert not ((ids == targets[:, None]) & counts).any()
