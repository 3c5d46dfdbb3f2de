"""Alignment fine-tuning: the checks of its specification, by number."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from recsys.llm.trainers.objectives.aft import AFT
from recsys.llm.trainers.protocols import SequenceObjective
from recsys.llm.trainers.sequences import Role, Sequences
from recsys.storage.parts import describe
from tests.llm.trainers.tiny import (
    fitted,
    g_checks,
    loss_and_gradient,
    of_model,
    scored,
    sequences,
    texts,
    tiny_llama,
    total,
)

P, N, TARGET = Role.POSITIVE, Role.NEGATIVE, Role.TARGET
FORMS = {
    "detached": AFT(), "boundary": AFT("boundary"), "none": AFT("none"), "alone": AFT("boundary", supervised=0.0),
}  # fmt: skip


@g_checks
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("roles", [(P, N), (P, N, N)])
def test_aft(check: Callable[[Any, Sequences], None], form: str, roles: tuple[Role, ...]) -> None:
    check(FORMS[form], sequences(12, 5, roles=roles))


def test_aft_1_one_pair_is_a_softplus() -> None:
    batch = sequences(2, 5, roles=(P, N))
    wanted = F.softplus(batch.means[1] - batch.means[0])
    torch.testing.assert_close(AFT("none", supervised=0.0)(batch)["alignment"], wanted)


def test_aft_2_detached_negatives_have_no_gradient() -> None:
    batch = sequences(12, 5, roles=(P, N, N))
    _, gradient = loss_and_gradient(AFT("detached"), batch)
    assert not gradient[batch.role == N].any()
    assert gradient[batch.role == P].any()
    assert loss_and_gradient(AFT("none"), batch)[1][batch.role == N].any()


@pytest.mark.parametrize(("score", "margin"), [(-0.5, 0.15), (-2.0, 0.5)])
def test_aft_3_boundary_negatives_rest_a_margin_below(score: float, margin: float) -> None:
    def slope(bad: float) -> float:
        batch = scored(torch.tensor([score, bad], dtype=torch.float64), [P, N], [0, 0])
        return loss_and_gradient(AFT("boundary", margin, supervised=0.0), batch)[1][1].item()

    rest = score - margin
    assert slope(rest) == pytest.approx(0.0, abs=1e-9)
    assert slope(rest - 5) < slope(rest - 1e-3) < 0 < slope(rest + 1e-3) < slope(rest + 0.4)


def test_aft_3_boundary_hangs_on_the_worst_positive_which_it_does_not_move() -> None:
    batch = scored(torch.tensor([-0.5, -2.0, -9.0]), [P, P, N], [0, 0, 0])
    loss, gradient = loss_and_gradient(AFT("boundary", 0.15, supervised=0.0), batch)
    terms = [math.exp(-9.0 - s) for s in (-0.5, -2.0)] + [2 * math.exp(-2.0 - 0.3 + 9.0)]
    assert loss.item() == pytest.approx(math.log1p(sum(terms)), rel=1e-6)
    assert (gradient[:2] <= 0).all(), "positives are never pulled down"
    assert gradient[2] < 0, "a negative below the floor is lifted"


def test_aft_4_a_constant_in_all_scores_of_a_group_changes_nothing() -> None:
    batch = sequences(12, 5, roles=(P, N))
    moved = replace(batch, log_probs=batch.log_probs + 3.0 * batch.group[:, None])
    objective = AFT("none", supervised=0.0)
    torch.testing.assert_close(objective(moved), objective(batch))


@pytest.mark.parametrize("constraint", ["none", "detached"])
def test_aft_5_a_far_negative_changes_nothing(constraint: Any) -> None:
    batch = scored(torch.tensor([-0.5, -0.7, -1.0, -100.0]), [P, N, N, N], [0] * 4)
    objective = AFT(constraint)
    near, all_of_them = (total(objective(one)).item() for one in (batch[torch.arange(3)], batch))
    assert all_of_them == pytest.approx(near, abs=1e-6)


def ordered(constraint: Any) -> float:
    """How far the negatives lie below the worst positives, in margins, after 30 updates that order all pairs."""
    model, (ids, completion) = tiny_llama(seed=6), texts(16, seed=7)
    group = torch.arange(16) // 4
    ids[:, :4] = ids[::4, :4].repeat_interleave(4, 0)
    role = torch.tensor([int(P), int(P), int(N), int(N)] * 4)
    objective = AFT(constraint, margin=0.15, supervised=0.0)

    def make() -> Sequences:
        return of_model(model, ids, completion, group=group, role=role)

    start = objective.figures(make())
    assert start["pairs in order"] < start["pairs in order of"]
    fitted(model, objective, make, 30, 3e-3)
    batch = make()
    figures = objective.figures(batch)
    assert figures["pairs in order"] == figures["pairs in order of"] == 16
    worst = torch.stack([batch.means[(group == g) & (role == P)].min() for g in range(4)])
    return (worst.mean() - batch.means[role == N].mean()).item() / 0.15


def test_aft_6_boundary_orders_all_pairs_and_keeps_a_floor() -> None:
    assert ordered("boundary") < 3
    assert ordered("none") > 10


def test_aft_by_hand_the_mean_is_over_groups_that_have_both() -> None:
    scores = torch.tensor([-1.0, -2.0, -3.0, -1.0, -4.0, -0.5, -6.0])
    batch = scored(scores, [P, N, N, P, N, P, N], [0, 0, 0, 1, 1, 2, 3])
    first, second = math.log1p(math.exp(-1) + math.exp(-2)), math.log1p(math.exp(-3))
    found = AFT("none", supervised=2.0)(batch)
    assert found["alignment"].item() == pytest.approx((first + second) / 2, rel=1e-6)
    assert found["supervised"].item() == pytest.approx(2 * (1 + 1 + 0.5) / 3, rel=1e-6)
    figures = AFT().figures(batch)
    assert (figures["groups of one side"], figures["groups of one side of"]) == (2, 4)
    assert (figures["pairs in order"], figures["pairs in order of"]) == (3, 3)


def test_aft_of_groups_of_one_side_only_imitates() -> None:
    batch = scored(torch.tensor([-1.0, -2.0]), [P, N], [0, 1])
    found = AFT()(batch)
    assert (found["alignment"].item(), found["supervised"].item()) == (0.0, 1.0)
    assert AFT().figures(batch)["groups of one side"] == 2


def test_aft_weights_by_hand() -> None:
    weight = torch.tensor([2.0, 1.0, 3.0, 1.0, 4.0])
    batch = scored(torch.tensor([-1.0, -2.0, -3.0, -1.0, -4.0]), [P, N, N, P, N], [0, 0, 0, 1, 1], weight=weight)
    first = math.log1p(0.5 * math.exp(-1) + 1.5 * math.exp(-2))  # relative to the mean weight of 2 below
    second = math.log1p(math.exp(-3))
    found = AFT("none", supervised=0.0)(batch)["alignment"]
    assert found.item() == pytest.approx((4 * first + 4 * second) / 8, rel=1e-6)


def test_aft_imitates_targets_too() -> None:
    batch = scored(torch.tensor([-1.0, -2.0, -7.0]), [P, N, TARGET], [0, 0, 5])
    assert AFT()(batch)["supervised"].item() == pytest.approx(4.0)
    assert AFT().figures(batch)["groups of one side of"] == 1


def test_aft_is_a_part_and_refuses_what_it_cannot_do() -> None:
    assert isinstance(AFT(), SequenceObjective)
    assert describe(AFT("none"))["arguments"] == {"constraint": "none", "margin": 0.15, "supervised": 1.0}
    wrongs: list[dict[str, Any]] = [{"constraint": "some"}, {"margin": 0.0}, {"supervised": -1.0}]
    for wrong in wrongs:
        with pytest.raises(ValueError, match="found"):
            AFT(**wrong)
