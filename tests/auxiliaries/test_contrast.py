"""Contrast against loops over all pairs, and over two processes against one."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from two_ranks import SHARES, TEMPERATURE, problem, shared

from recsys.auxiliaries.contrast import alike, false_negatives, info_nce, newest, newest_target, nt_xent, pooled
from recsys.encoders.sasrec import SASRec
from recsys.items.ids import IdItems
from recsys.nn.processes import from_all
from recsys.protocols import Encoded
from recsys.targets.next_item import NextItem
from recsys.testing import toy_batch, toy_context

HERE = Path(__file__).parent


def looped(first: Tensor, second: Tensor, temperature: float, hide: Tensor | None = None, keep: float = 0.0) -> Tensor:
    """NT-Xent by two loops: what every row of both sides is asked."""
    vectors, count, losses = [*first, *second], len(first), []
    for i in range(2 * count):
        positive, terms = (i + count) % (2 * count), []
        for j in range(2 * count):
            hidden = hide is not None and j != positive and bool(hide[i % count, j % count])
            if j != i and not (hidden and keep == 0):
                terms.append(torch.dot(vectors[i], vectors[j]) / temperature + (math.log(keep) if hidden else 0.0))
        losses.append(torch.stack(terms).logsumexp(0) - torch.dot(vectors[i], vectors[positive]) / temperature)
    return torch.stack(losses).mean()


@pytest.mark.parametrize("count", [1, 2, 5])
@pytest.mark.parametrize("keep", [None, 0.0, 0.3, 1.0])
def test_check_05_nt_xent_equals_a_double_loop(count: int, keep: float | None) -> None:
    first, second = problem(count)
    hide = None if keep is None else alike(torch.tensor([3, 1, 3, -1, -1])[:count])
    ours = nt_xent(first, second, TEMPERATURE, hide=hide, keep=keep or 0.0)
    theirs = looped(first, second, TEMPERATURE, hide, keep or 0.0)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    for one, other in zip(*(torch.autograd.grad(loss, [first, second]) for loss in (ours, theirs)), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_check_05_swapping_the_views_changes_nothing() -> None:
    first, second = problem()
    torch.testing.assert_close(nt_xent(first, second), nt_xent(second, first))
    hide = alike(torch.tensor([1, 1, 2, 3, 2]))
    torch.testing.assert_close(nt_xent(first, second, hide=hide), nt_xent(second, first, hide=hide))


@pytest.mark.parametrize("cosine", [False, True])
def test_check_05_zeros_cost_the_logarithm_of_the_others(cosine: bool) -> None:
    zeros = torch.zeros(6, 3)
    torch.testing.assert_close(nt_xent(zeros, zeros, cosine=cosine), torch.tensor(11.0).log())


def test_cosine_is_the_product_of_unit_vectors() -> None:
    first, second = problem()
    torch.testing.assert_close(
        nt_xent(first, second, 0.1, cosine=True), nt_xent(F.normalize(first, dim=1), F.normalize(second, dim=1), 0.1)
    )
    torch.testing.assert_close(nt_xent(first, second, 0.1, cosine=True), nt_xent(9 * first, second, 0.1, cosine=True))


@pytest.mark.parametrize("keep", [None, 0.0, 0.5])
def test_info_nce_asks_each_anchor_for_its_positive(keep: float | None) -> None:
    anchors, positives = problem(3)
    hide = None if keep is None else torch.tensor([[True, True, False], [False, False, False], [False, True, True]])
    factor = torch.ones(3, 3) if hide is None else torch.where(hide & ~torch.eye(3, dtype=torch.bool), keep or 0.0, 1.0)
    mass = (anchors @ positives.T / TEMPERATURE).exp() * factor
    expected = -(mass.diag() / mass.sum(1)).log().mean()
    torch.testing.assert_close(info_nce(anchors, positives, TEMPERATURE, hide=hide, keep=keep or 0.0), expected)


def test_check_11_all_equal_targets_leave_only_the_positive() -> None:
    first, second = problem()
    hide = alike(torch.zeros(5, dtype=torch.int64))
    assert bool(hide.all())
    assert nt_xent(first, second, hide=hide).item() == pytest.approx(0.0, abs=1e-6)
    assert info_nce(first, second, hide=hide).item() == pytest.approx(0.0, abs=1e-6)


def test_check_11_the_positive_is_never_hidden() -> None:
    first, second = problem()
    near = (first, first.detach() * 3)
    with_positive = nt_xent(*near, hide=torch.eye(5, dtype=torch.bool))  # hides nothing but a pair from itself
    torch.testing.assert_close(with_positive, nt_xent(*near))
    torch.testing.assert_close(info_nce(first, second, hide=torch.eye(5, dtype=torch.bool)), info_nce(first, second))


def test_false_negatives_share_the_newest_target_or_the_user() -> None:
    batch = NextItem().train(toy_batch((4, 3, 2, 4, 1)))
    assert batch.targets is not None
    targets = batch.targets.clone()
    targets[0, 2], targets[1, 1], targets[2, 0], targets[3, 2] = 7, 8, 7, 0
    batch = batch.replace(targets=targets, users=torch.tensor([5, -1, 9, 9, -1]))
    assert newest_target(batch).tolist() == [7, 8, 7, -1, -1]
    by_target = [[one == other and one > 0 for other in (7, 8, 7, -1, -1)] for one in (7, 8, 7, -1, -1)]
    assert false_negatives(batch, "target").tolist() == by_target
    by_user = false_negatives(batch, ("user",))
    assert by_user[2, 3] and by_user[3, 2] and int(by_user.sum()) == 5  # an unknown user is nobody's, also not its own
    assert torch.equal(false_negatives(batch), false_negatives(batch, "target") | by_user)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_contrasted_in_float32(dtype: torch.dtype) -> None:
    first, second = (values.detach().to(dtype) * 200 for values in problem())  # products beyond what float16 holds
    expected = nt_xent(first.float(), second.float())
    assert bool(expected.isfinite())
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(nt_xent(first, second), expected)
        torch.testing.assert_close(info_nce(first, second), info_nce(first.float(), second.float()))


def test_no_pairs_at_all_are_a_loss_of_zero_with_a_gradient() -> None:
    nothing = torch.zeros(0, 4, requires_grad=True)
    for loss in (nt_xent(nothing, nothing), info_nce(nothing, nothing)):
        assert loss.item() == 0 and loss.requires_grad


@pytest.mark.parametrize("pool", ["last", "mean", "flat"])
def test_check_07_padding_on_the_right_changes_no_product_of_pooled_vectors(pool: str) -> None:
    torch.manual_seed(0)
    items, encoder = IdItems(8), SASRec(8, 1, dropout=0.0, max_length=9)
    items.bind(toy_context())
    encoder.bind(toy_context())
    narrow, wide = toy_batch((5, 1, 3)), toy_batch((5, 1, 3), width=9)
    one, other = (pooled(encoder(batch, items), pool) for batch in (narrow, wide))
    torch.testing.assert_close(one @ one.T, other @ other.T, rtol=1e-5, atol=1e-5)
    empty = narrow.replace(ids=torch.zeros_like(narrow.ids), lengths=torch.zeros_like(narrow.lengths))
    assert not bool(pooled(encoder(empty, items), pool).any())


def test_flat_vectors_are_aligned_at_the_newest_item() -> None:
    batch = toy_batch((3, 1))
    encoded = Encoded(batch, torch.arange(8.0).view(4, 2))
    assert pooled(encoded, "flat").tolist() == [[4, 5, 2, 3, 0, 1], [6, 7, 0, 0, 0, 0]]
    assert pooled(encoded, "mean").tolist() == [[2, 3], [6, 7]]


def test_newest_keeps_the_last_items() -> None:
    batch = toy_batch((5, 1, 3))
    cut = newest(batch, 2)
    assert cut.lengths.tolist() == [2, 1, 2] and cut.times is not None and batch.times is not None
    for row, length in enumerate((5, 1, 3)):
        for now, before in ((cut.ids, batch.ids), (cut.times, batch.times)):
            assert now[row, : min(2, length)].tolist() == before[row, :length].tolist()[-2:]
    assert newest(batch, 5) is batch


@pytest.mark.parametrize(
    ("options", "word"),
    [({"temperature": 0.0}, "temperature"), ({"hide": torch.ones(2, 2) > 0}, "hide")],
)
def test_wrong_settings_say_which(options: dict, word: str) -> None:
    with pytest.raises(ValueError, match=word):
        nt_xent(*problem(), **options)


def test_wrong_input_says_what_is_wrong() -> None:
    first, second = problem()
    with pytest.raises(ValueError, match="keep"):
        nt_xent(first, second, hide=torch.ones(5, 5) > 0, keep=1.5)
    with pytest.raises(ValueError, match="contrasted"):
        nt_xent(first, second[:3])
    with pytest.raises(ValueError, match="targets"):
        false_negatives(toy_batch(), "target")
    with pytest.raises(ValueError, match="item"):
        false_negatives(toy_batch(), ("user", "item"))
    with pytest.raises(ValueError, match="at least one"):
        false_negatives(toy_batch(), ())


def test_two_processes_compute_the_loss_and_gradient_of_one(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(HERE.parent.parent), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(HERE / "two_ranks.py"), str(tmp_path)]
    running = [subprocess.Popen([*command, str(rank)], env=environment) for rank in (0, 1)]
    assert [process.wait(timeout=600) for process in running] == [0, 0]
    results = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1)]
    for case, shares in enumerate(SHARES):
        first, second, labels = shared(shares)
        first.requires_grad_()
        for index, loss in enumerate((nt_xent, info_nce)):
            expected = loss(first, second, TEMPERATURE, hide=alike(labels), keep=0.2)
            (slope,) = torch.autograd.grad(expected, first)
            parts = []
            for rank, (count, width) in enumerate(shares):
                found = results[rank][2 * case + index]
                assert found["loss"] == pytest.approx(expected.item(), rel=1e-5)
                parts.append(F.pad(torch.tensor(found["slope"]).view(count, width), (0, 4 - width)))
            inside = first.detach() != 0
            torch.testing.assert_close(torch.cat(parts) / 2, slope * inside, rtol=1e-4, atol=1e-6)  # DDP averages


def test_one_process_collects_nothing() -> None:
    own = torch.randn(3, 2)
    assert from_all(own) is own
