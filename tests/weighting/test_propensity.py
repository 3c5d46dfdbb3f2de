"""Propensities and the weights they give, by the numbers of the Rel-MF specification's checks; BPR."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import recsys as rs
from recsys import testing
from recsys.data.batch import Batch
from recsys.data.prepared import Prepared
from recsys.data.split import Split
from recsys.data.splitters import LeaveLast
from recsys.errors import DataError
from recsys.ids.vectors import Vectors
from recsys.ids.vocabulary import Vocabulary
from recsys.negatives.in_batch import InBatchNegatives
from recsys.negatives.uniform import UniformNegatives
from recsys.objectives.bce import BCE, LARGEST
from recsys.objectives.bpr import BPR
from recsys.objectives.coupled import Coupled
from recsys.objectives.gbce import GBCE
from recsys.objectives.sampled import SampledSoftmax, Scored
from recsys.objectives.softmax import FullSoftmax
from recsys.protocols import Context, Encoded, Step
from recsys.storage.parts import build, describe
from recsys.weighting.propensity import (
    GivenPropensity,
    InversePropensity,
    PopularityPropensity,
    PositionPropensity,
    effective_size,
)

OBJECTIVES: dict[str, Callable[[], nn.Module]] = {
    "full softmax": FullSoftmax,
    "sampled softmax": lambda: SampledSoftmax(UniformNegatives(8, per="batch")),
    "in-batch softmax": lambda: SampledSoftmax(InBatchNegatives()),
    "bce": BCE,
    "bce exact": lambda: BCE(importance="exact"),
    "gbce": lambda: GBCE(negatives=UniformNegatives(4)),
    "bpr": BPR,
    "coupled": lambda: Coupled(BPR()),
}


def single_targets(batch: Batch, weights: Tensor) -> Iterator[Batch]:
    """The batch with the weight of one target (T',) after the other, and 0 for all others."""
    assert batch.targets is not None
    for index, weight in zip((batch.targets > 0).nonzero(), weights, strict=True):
        one = torch.zeros(batch.ids.shape)
        one[tuple(index)] = weight
        yield batch.replace(weights=one)


def split_of(rows: list[list[int]], num_items: int, times: np.ndarray | None = None) -> Split:
    offsets = np.concatenate([[0], np.cumsum([len(row) for row in rows])])
    items = np.array([item for row in rows for item in row], np.int32)
    prepared = Prepared(items, offsets, num_items, times=times, order="file" if times is None else "time")
    names = Vocabulary(np.arange(10, 10 * num_items + 10, 10), 1)
    return Split.of(prepared, LeaveLast(), names, Vocabulary(np.arange(len(rows)), 0))


def context_of(split: Split) -> Context:
    return Context(split.num_items, split.items, split.train)


def targets_batch(targets: Tensor, **more: object) -> Batch:
    rows = torch.arange(len(targets))
    lengths = torch.full((len(targets),), targets.shape[1])
    return Batch(rows, rows, torch.ones_like(targets), lengths, targets=targets, **more)  # type: ignore[arg-type]


def weights_of(theta: Tensor, clip: float) -> Tensor:
    """(N,) what the part gives each item as a target."""
    part = InversePropensity(PopularityPropensity(), clip, normalised=False)
    part.propensity.theta = F.pad(theta, (1, 0), value=1.0)
    return part(targets_batch(torch.arange(1, len(theta) + 1)[None]))[0]


def draws(count: int = 2000) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """theta, gamma, delta1 - delta0 and delta0 of 30 pairs, and clicks (count, 30)."""
    generator = torch.Generator().manual_seed(0)
    theta, gamma, x = (0.05 + 0.9 * torch.rand(3, 30, generator=generator)).unbind()
    size = (count, 30)
    clicks = torch.bernoulli(theta.expand(size), generator=generator) * torch.bernoulli(
        gamma.expand(size), generator=generator
    )
    return theta, gamma, (1 - x).log() - x.log(), -(1 - x).log(), clicks


def test_check_01_the_weighted_loss_is_unbiased_and_the_naive_one_is_not() -> None:
    theta, gamma, difference, delta0, clicks = draws()
    ideal = (gamma * difference + delta0).mean()
    for clip, agrees in ((0.0, True), (1.0, False)):
        losses = (clicks * weights_of(theta, clip) * difference + delta0).mean(1)
        error = losses.std() / len(losses) ** 0.5
        assert bool((losses.mean() - ideal).abs() < 3 * error) == agrees


def test_check_02_variance_and_bias_follow_the_formulas() -> None:
    theta, gamma, difference, delta0, clicks = draws(20_000)
    variances = []
    for clip in (0.0, 0.4):
        clipped = theta.clamp(min=clip)
        losses = (clicks * weights_of(theta, clip) * difference + delta0).mean(1)
        variance = (theta * gamma * (1 - theta * gamma) / clipped**2 * difference**2).sum() / 30**2
        bias = (gamma * (theta / clipped - 1) * difference).mean()
        torch.testing.assert_close(losses.var(), variance, rtol=0.1, atol=0.0)
        ideal = (gamma * difference + delta0).mean()
        assert abs(losses.mean() - ideal - bias) < 4 * losses.std() / 20_000**0.5
        variances.append(losses.var())
    unclipped = (gamma * (1 / theta - gamma) * difference**2).sum() / 30**2
    torch.testing.assert_close(variances[0], unclipped, rtol=0.1, atol=0.0)
    assert variances[1] < variances[0]


def recommender(objective: nn.Module, *weightings: InversePropensity) -> rs.Recommender:
    encoder = rs.SASRec(16, num_layers=1, dropout=0.1, max_length=8)
    return rs.Recommender(rs.IdItems(16), encoder, objective, weightings=weightings)


def trained(model: rs.Recommender, weights: bool = True) -> tuple[list[float], list[Tensor]]:
    """Losses of three steps of SGD, and the weights after them."""
    from recsys.train.update import target_weight

    context = testing.toy_context()
    model.bind(context)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    losses = []
    for index in range(3):
        torch.manual_seed(index)
        rows = context.training.gather(np.arange(8), 9)
        rows = rows if weights else rows.replace(weights=None)
        batch = model.prepare(rows, Step(rows))
        step = Step(batch, index=index, total_weight=target_weight(batch))
        loss = model.loss(step)["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses, [value.detach() for value in model.parameters()]


@pytest.mark.parametrize("name", OBJECTIVES)
@pytest.mark.parametrize("normalised", [True, False])
def test_check_03_and_14_power_0_or_clip_1_is_the_plain_training_to_the_last_bit(name: str, normalised: bool) -> None:
    plain = trained(recommender(OBJECTIVES[name]()), weights=False)
    for part in (
        InversePropensity(PopularityPropensity(power=0.0), normalised=normalised),
        InversePropensity(PopularityPropensity(), clip=1.0, normalised=normalised),
    ):
        ours = trained(recommender(OBJECTIVES[name](), part), weights=False)
        if name != "bce exact" or normalised:
            assert ours[0] == plain[0]
            assert all(torch.equal(one, other) for one, other in zip(ours[1], plain[1], strict=True))
        else:  # its scores are capped, its terms summed in another order
            np.testing.assert_allclose(ours[0], plain[0], rtol=1e-6)


def test_check_03_a_whole_fit_with_power_0_is_the_plain_one() -> None:
    curves = []
    for parts in ((), (InversePropensity(PopularityPropensity(power=0.0)),)):
        split = testing.toy_split()
        found = rs.fit(recommender(FullSoftmax(), *parts), split, epochs=2, batch_size=16, progress=False)
        curves.append([row["loss"] for row in found.history])
    assert curves[0] == curves[1]


@pytest.mark.parametrize("name", OBJECTIVES)
@pytest.mark.parametrize("normalised", [True, False])
def test_check_14_the_weights_wrap_every_objective(name: str, normalised: bool) -> None:
    part = InversePropensity(PopularityPropensity(power=1.0), clip=0.1, normalised=normalised)
    model = recommender(OBJECTIVES[name](), part)
    context = testing.toy_context()
    model.bind(context)
    model.eval()
    rows = context.training.gather(np.arange(8), 9)
    batch = model.prepare(rows, Step(rows))
    assert batch.targets is not None and batch.weights is not None
    chosen = batch.targets > 0
    counts = context.training.item_counts()
    theta = np.maximum(counts / counts.max(), 0.1)[batch.targets[chosen]]
    expected = torch.tensor(1 / theta, dtype=torch.float32)
    given = rows.weights[:, 1:][chosen]  # type: ignore[index]
    if normalised:
        torch.testing.assert_close(batch.weights[chosen], expected * given)
    else:
        torch.testing.assert_close(batch.importance[chosen], expected)  # type: ignore[index]
        torch.testing.assert_close(batch.weights[chosen], given)
    step = Step(batch, total_weight=2.0)
    loss = model.loss(step)["loss"]
    encoded = model.encode(batch)
    if name in ("bce", "bce exact"):  # importance multiplies but a part of their loss
        singles = single_targets(batch, batch.weights[chosen])
    else:
        singles = single_targets(batch.replace(importance=None), expected * given)
    losses = [model.objective(encoded, one, model.items, step.generator("objective")) for one in singles]
    torch.testing.assert_close(loss, torch.stack(losses).sum() / 2.0)
    loss.backward()
    assert bool(loss.isfinite()) and model.items.weight.grad.abs().sum() > 0


def test_check_04_theta_by_row_with_a_gap_and_a_floor() -> None:
    split = split_of([[1, 1, 4, 1, 3, 2], [4, 1, 4, 2, 2]], num_items=5)  # the last two of each row are held out
    part = PopularityPropensity(floor=0.02)
    part.bind(context_of(split))
    counts = np.array([4, 0, 0, 3, 0])
    np.testing.assert_array_equal(split.train.item_counts()[1:], counts)
    np.testing.assert_allclose(part.theta[1:], [1.0, 0.02, 0.02, 0.75**0.5, 0.02], rtol=1e-6)
    assert part.theta.dtype == torch.float32 and part.theta.max() == 1.0
    order = np.argsort(counts)
    assert (np.diff(part.theta[1:].numpy()[order]) >= 0).all()
    smooth = PopularityPropensity(power=1.0, smoothing=1.0)
    smooth.bind(context_of(split))
    np.testing.assert_allclose(smooth.theta[1:], [1.0, 0.2, 0.2, 0.8, 0.2], rtol=1e-6)


def test_check_05_coefficients_of_a_click_with_theta_a_quarter() -> None:
    score = torch.tensor([0.3], requires_grad=True)
    found = Scored(score, torch.full((1, 2), -torch.inf), importance=torch.tensor([4.0]))
    loss = BCE(importance="exact").of_scores(found, 9)
    torch.testing.assert_close(loss, 4 * F.softplus(-score) - 3 * F.softplus(score))
    (gradient,) = torch.autograd.grad(loss.sum(), score)
    torch.testing.assert_close(gradient, score.sigmoid() - 4.0)


def test_exact_bce_is_the_pointwise_loss_over_all_items() -> None:
    positive, negative = torch.tensor([0.3, -1.0]), torch.randn(2, 3)
    weight = torch.tensor([4.0, 1.0])
    ours = BCE(importance="exact", scale=7.0).of_scores(Scored(positive, negative, None, weight), 9)
    other = 7 * F.softplus(negative).sum(1)
    expected = weight * F.softplus(-positive) + (1 - weight) * F.softplus(positive) + other
    torch.testing.assert_close(ours, expected)
    kept = BCE(scale=7.0).of_scores(Scored(positive, negative, None, weight), 9)
    torch.testing.assert_close(kept, weight * F.softplus(-positive) + other)
    everything = BCE(importance="all", scale=7.0).of_scores(Scored(positive, negative, None, weight), 9)
    torch.testing.assert_close(everything, weight * (F.softplus(-positive) + other))


@pytest.mark.parametrize("kind", ["positive", "exact", "all"])
def test_bce_multiplies_by_both_weights_and_leaves_out_targets_of_importance_0(kind: str) -> None:
    positive, negative = torch.tensor([0.3, -1.0, 0.2]), torch.randn(3, 2)
    importance, weights = torch.tensor([4.0, 0.0, 1e-39]), torch.tensor([0.5, 3.0, 2.0])
    objective = BCE(importance=kind)
    found = objective.of_scores(Scored(positive, negative, None, importance, weights), 9)
    alone = objective.of_scores(Scored(positive, negative, None, importance), 9)
    torch.testing.assert_close(found, weights * alone)
    assert found[1] == 0 and bool(found.isfinite().all())
    if kind == "positive":  # as good as no positive, but all of the negatives, however small the weight
        torch.testing.assert_close(alone[2], F.softplus(negative[2]).sum())


def test_check_06_no_gradient_to_theta_and_no_weight_at_padding() -> None:
    part = InversePropensity()
    part.bind(testing.toy_context())
    part.propensity.theta.requires_grad_()
    weights = part(targets_batch(torch.tensor([[1, 2, 0], [3, 0, 0]])))
    assert not weights.requires_grad and weights.dtype == torch.float32
    assert (weights > 0).tolist() == [[True, True, False], [True, False, False]]


def test_check_07_normalised_loss_does_not_depend_on_the_scale_of_theta() -> None:
    values = {f"i{row}": 0.2 + 0.02 * row for row in range(1, testing.NUM_ITEMS + 1)}
    curves = [
        trained(
            recommender(
                FullSoftmax(), InversePropensity(GivenPropensity({k: v * c for k, v in values.items()}), clip=0.0)
            )
        )
        for c in (1.0, 0.25)
    ]
    np.testing.assert_allclose(curves[0][0], curves[1][0], rtol=1e-5)


def test_check_15_tiny_theta_and_1000_steps_stay_finite() -> None:
    assert weights_of(torch.full((3,), 1e-6), 0.01).tolist() == pytest.approx([100.0] * 3)
    score = torch.zeros(1, requires_grad=True)
    objective = BCE(importance="exact")
    for _ in range(1000):
        found = Scored(score, torch.full((1, 1), -torch.inf), importance=torch.tensor([100.0]))
        (gradient,) = torch.autograd.grad(objective.of_scores(found, 9).sum(), score)
        score = (score - 0.1 * gradient).detach().requires_grad_()
    assert score.isfinite().all() and score.abs().max() < 2 * LARGEST


def test_check_16_held_out_events_change_nothing() -> None:
    rows = [[1, 1, 4, 1, 3, 2], [4, 1, 4, 2, 2]]
    other = [[*row[:-2], 5, 5] for row in rows]
    tables = []
    for events in (rows, other):
        part = PopularityPropensity(power=0.7)
        part.bind(context_of(split_of(events, num_items=5)))
        tables.append(part.theta)
    assert torch.equal(*tables)


def test_periods_count_within_their_time() -> None:
    day = 86_400_000
    rows = [[1, 1, 2, 2, 2, 1, 3, 3], [1, 2, 3, 3]]
    times = np.concatenate([np.array([0, 1, 2, 11, 12, 13, 14, 15]) * day, np.array([1, 11, 12, 13]) * day])
    part = PopularityPropensity(power=1.0, period_days=10)
    part.bind(context_of(split_of(rows, 3, times)))
    np.testing.assert_allclose(part.theta[:, 1:], [[1.0, 1 / 3, 0.01], [1 / 3, 1.0, 0.01]], rtol=1e-6)
    batch = targets_batch(torch.tensor([[1, 1, 2, 1]]))
    asked = torch.tensor([[0, 12 * day, 99 * day, -day]])
    theta = part(batch.replace(target_times=asked))
    np.testing.assert_allclose(theta, [[1.0, 1 / 3, 1.0, 1.0]], rtol=1e-6)
    assert InversePropensity(part).needs == {"times"}
    with pytest.raises(ValueError, match="times"):
        part(batch)
    with pytest.raises(DataError, match="time"):
        PopularityPropensity(period_days=10).bind(context_of(split_of(rows, 3)))


def test_given_propensities_are_looked_up_by_raw_id(tmp_path) -> None:  # type: ignore[no-untyped-def]
    context = context_of(split_of([[1, 2, 3, 1, 2], [3, 2, 1, 1]], num_items=3))
    Vectors.of([30, 10, 20], np.array([[0.3], [0.1], [0.2]])).save(tmp_path / "theta")
    for values in ({30: 0.3, 10: 0.1, 20: 0.2, 99: 7.0}, str(tmp_path / "theta")):
        part = build(describe(GivenPropensity(values)))
        part.bind(context)
        np.testing.assert_allclose(part(targets_batch(torch.tensor([[3, 1, 2]]))), [[0.3, 0.1, 0.2]], rtol=1e-6)
    with pytest.raises(DataError, match=r"30.*0 \("):
        GivenPropensity({30: 0.0, 10: 0.1, 20: 0.2}).bind(context)
    with pytest.raises(DataError, match="missing"):
        GivenPropensity({30: 0.3}).bind(context)
    part = GivenPropensity({30: 0.3}, missing=0.5)
    part.bind(context)
    np.testing.assert_allclose(part.theta[1:], [0.5, 0.5, 0.3], rtol=1e-6)


def test_places_in_a_list() -> None:
    part = InversePropensity(PositionPropensity([1.0, 0.5, 0.25]))
    batch = targets_batch(torch.tensor([[1, 2, 3]]), features={"target_places": torch.tensor([[0, 2, 9]])})
    assert part(batch).tolist() == [[1.0, 4.0, 4.0]]
    with pytest.raises(ValueError, match="target_places"):
        part(targets_batch(torch.tensor([[1]])))


def test_saved_tables_come_back_and_an_unbound_part_says_so() -> None:
    part = InversePropensity(PopularityPropensity(power=0.7), clip=0.05)
    part.bind(testing.toy_context())
    again = build(describe(part))
    again.bind(Context(testing.NUM_ITEMS))
    batch = targets_batch(torch.tensor([[1, 2, 3]]))
    with pytest.raises(ValueError, match="bind"):
        again(batch)
    again.propensity.theta = part.state_dict()["propensity.theta"]
    assert torch.equal(again(batch), part(batch))


def test_the_report_shows_what_the_weights_do() -> None:
    split = split_of([[1] * 9 + [2, 3, 3], [1, 3, 3]], num_items=3)
    part = InversePropensity(PopularityPropensity(power=1.0), clip=0.2)
    part.bind(context_of(split))
    (facts,) = part.sections(None, split).values()
    weights = np.array([1.0] * 10 + [5.0])
    assert facts["maximum weight"] == pytest.approx(5.0)
    assert facts["effective sample size"] == pytest.approx(weights.sum() ** 2 / (weights**2).sum())
    assert facts["share of clipped targets"] == pytest.approx(1 / 11)
    assert effective_size(np.ones(7)) == 7.0 and effective_size(np.zeros(0)) == 0.0


@pytest.mark.parametrize("make", [lambda: BPR(), lambda: BCE(importance="exact", scale=3.0)])
def test_objectives_conform(make: Callable[[], nn.Module]) -> None:
    testing.check_objective(make())


def test_bpr_is_the_mean_over_pairs_that_count() -> None:
    positive, negative = torch.tensor([0.5, -1.0]), torch.tensor([[0.2, 1.0], [0.3, -torch.inf]])
    expected = torch.tensor([
        (F.softplus(negative[0] - 0.5)).mean(),
        F.softplus(torch.tensor(1.3)),
    ])  # fmt: skip
    torch.testing.assert_close(BPR().of_scores(Scored(positive, negative), 9), expected)


@pytest.mark.parametrize(
    "make",
    [
        lambda: InversePropensity(clip=1.5),
        lambda: PopularityPropensity(floor=0.0),
        lambda: PositionPropensity([0.0]),
        lambda: BCE(importance="none"),
        lambda: GivenPropensity({1: 0.5}, missing=2.0),
    ],
)
def test_settings_that_mean_nothing_are_refused(make: Callable[[], object]) -> None:
    with pytest.raises(ValueError, match="found"):
        make()


def test_encoded_gives_the_product_of_all_weights() -> None:
    batch = targets_batch(torch.tensor([[1, 2]]), importance=torch.tensor([[2.0, 3.0]]))
    _, _, weights = Encoded(batch, torch.zeros(2, 4)).at_targets(batch)
    assert weights is not None and weights.tolist() == [2.0, 3.0]
    batch = batch.replace(weights=torch.tensor([[0.5, 2.0]]))
    _, _, weights = Encoded(batch, torch.zeros(2, 4)).at_targets(batch)
    assert weights is not None and weights.tolist() == [1.0, 6.0]


def test_periods_that_do_not_fit_are_refused_before_they_are_made(monkeypatch: pytest.MonkeyPatch) -> None:
    times = np.array([0, 1, 10**7, 10**7 + 1, 10**7 + 2]) * 86_400_000
    context = context_of(split_of([[1, 2, 3, 1, 2]], 1000, times))
    monkeypatch.setattr(np, "bincount", lambda *given, **more: pytest.fail("a table of 10 million periods is made"))
    with pytest.raises(MemoryError, match="period_days"):
        PopularityPropensity(period_days=1).bind(context)
