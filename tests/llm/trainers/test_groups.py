"""Pairs within groups and sums of groups, against what two loops find."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from recsys.llm.trainers.objectives.aft import AFT
from recsys.llm.trainers.objectives.coupled import Coupled
from recsys.llm.trainers.objectives.d2o import D2O
from recsys.llm.trainers.objectives.groups import group_means, log_one_plus, pairs, rows_of, rows_of_any
from recsys.llm.trainers.objectives.npo import NPO
from recsys.llm.trainers.objectives.preference import DPO, R3M
from recsys.llm.trainers.objectives.supervised import Supervised
from recsys.llm.trainers.sequences import Role
from tests.llm.trainers.tiny import loss_and_gradient, scored, sequences

ROLES = (Role.POSITIVE, Role.NEGATIVE, Role.SELF)
SEQUENCE = st.tuples(st.integers(-2, 3), st.sampled_from(ROLES), st.sampled_from([0.0, 0.5, 2.0]))


@settings(max_examples=60, deadline=None)
@given(st.lists(SEQUENCE, min_size=1, max_size=12))
def test_pairs_are_those_of_two_loops(drawn: list[tuple[int, Role, float]]) -> None:
    group, role, weight = zip(*drawn, strict=True)
    batch = scored(torch.zeros(len(drawn)), role, list(group), weight=torch.tensor(weight))
    wanted = {
        (p, q, weight[p] * weight[q])
        for p in range(len(drawn))
        for q in range(len(drawn))
        if role[p] == Role.POSITIVE and role[q] == Role.NEGATIVE and group[p] == group[q] and weight[p] * weight[q]
    }
    together = {g for g in group if {Role.POSITIVE, Role.NEGATIVE} <= {r for h, r, _ in drawn if h == g}}
    if not together:
        with pytest.raises(ValueError, match=r"POSITIVE|NEGATIVE"):
            pairs(batch, Role.POSITIVE, Role.NEGATIVE, "it")
        return
    found = pairs(batch, Role.POSITIVE, Role.NEGATIVE, "it")
    listed = list(zip(found.better.tolist(), found.worse.tolist(), found.weights.tolist(), strict=True))
    assert len(listed) == len(wanted)
    assert set(listed) == wanted
    names = batch.group.unique()
    assert found.count == len(names)
    assert torch.equal(names[found.group], batch.group[found.better])


def test_pairs_of_many_small_groups_need_no_comparison_of_all_with_all() -> None:
    n = 400_000  # all with all would be 160,000,000,000
    batch = scored(torch.zeros(n), [Role.POSITIVE, *[Role.NEGATIVE] * 7] * (n // 8), (torch.arange(n) // 8).tolist())
    found = pairs(batch, Role.POSITIVE, Role.NEGATIVE, "it")
    assert len(found.better) == n // 8 * 7
    assert torch.equal(found.better // 8, found.worse // 8)


def test_no_group_with_both_is_an_error() -> None:
    batch = scored(torch.zeros(4), [Role.POSITIVE, Role.NEGATIVE] * 2, [4, 5, 6, 7])
    with pytest.raises(ValueError, match=r"no group has both.*\[4, 6\].*\[5, 7\]"):
        pairs(batch, Role.POSITIVE, Role.NEGATIVE, "it")


def test_rows_of_a_role_are_those_that_weigh_something() -> None:
    batch = scored(torch.zeros(3), [Role.FORGET, Role.RETAIN, Role.RETAIN], [0, 1, 2], weight=torch.tensor([0.0, 0, 1]))
    assert rows_of(batch, Role.RETAIN, "it").tolist() == [2]
    assert rows_of(batch, Role.FORGET, "it").tolist() == []
    assert rows_of_any(batch, (Role.FORGET, Role.RETAIN, Role.SELF), "it").tolist() == [2]
    with pytest.raises(ValueError, match="TARGET or SELF"):
        rows_of_any(batch, (Role.TARGET, Role.SELF), "it")


@pytest.mark.parametrize(
    ("objective", "roles"),
    [
        (Supervised(), (Role.TARGET,)),
        (NPO(kl=1.0), (Role.FORGET, Role.RETAIN)),
        (D2O(), (Role.NEGATIVE, Role.SELF)),
        (AFT("boundary"), (Role.POSITIVE, Role.NEGATIVE)),
        (DPO(), (Role.POSITIVE, Role.NEGATIVE)),
        (R3M(), (Role.POSITIVE, Role.NEGATIVE)),
        (Coupled(lambda batch: batch.totals), (Role.POSITIVE, Role.NEGATIVE)),
        (Coupled(lambda batch: batch.totals, normalised=True), (Role.POSITIVE, Role.NEGATIVE)),
    ],
    ids=lambda one: type(one).__name__ if isinstance(one, nn.Module) else "",
)
def test_a_batch_in_which_nothing_weighs_anything_teaches_nothing(objective: Any, roles: tuple[Role, ...]) -> None:
    batch = replace(sequences(8, 3, roles=roles), weight=torch.zeros(8))
    loss, gradient = loss_and_gradient(objective, batch)
    assert loss == 0
    assert not gradient.any()
    if hasattr(objective, "figures"):
        assert all(math.isfinite(value) for value in objective.figures(batch).values())


@pytest.mark.parametrize("size", [1e-6, 1.0, 30.0, 1e4])
def test_log_one_plus_of_groups(size: float) -> None:
    values = torch.randn(9, generator=torch.Generator().manual_seed(1), dtype=torch.float64) * size
    values = values.requires_grad_()
    own = torch.tensor([0, 0, 0, 2, 2, 3, 3, 3, 3])
    found = log_one_plus(values, own, 4)
    wanted = torch.stack([torch.cat([values.new_zeros(1), values[own == g]]).logsumexp(0) for g in range(4)])
    torch.testing.assert_close(found, wanted)
    ours, theirs = (torch.autograd.grad(one.sum(), values)[0] for one in (found, wanted))
    torch.testing.assert_close(ours, theirs)


def test_log_one_plus_keeps_what_is_tiny() -> None:
    assert log_one_plus(torch.tensor([-30.0]), torch.tensor([0]), 1).item() == pytest.approx(9.3576e-14, rel=1e-4)


def test_means_of_groups() -> None:
    found = group_means(torch.tensor([1.0, 4.0, 7.0]), torch.tensor([1.0, 2.0, 5.0]), torch.tensor([2, 2, 0]), 3)
    torch.testing.assert_close(found, torch.tensor([7.0, 0.0, 3.0]))
