"""Products by oneDNN against torch's own, where this machine's oneDNN is the one that is taken and where it is not."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from per_target import cross_entropies

from recsys.nn import products
from recsys.nn.products import add_product, onednn_is_wider, product, transposed_zeros
from recsys.nn.softmax import cross_entropy

there = pytest.mark.skipif(
    not (torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")),
    reason="this build of torch has no oneDNN",
)


@pytest.fixture(params=[pytest.param(True, marks=there), False], ids=["onednn", "torch"])
def wide(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "onednn_is_wider", lambda: request.param)
    monkeypatch.setattr(products, "LEAST", 0)
    monkeypatch.setattr(products, "PIECE", 40)


@pytest.mark.usefixtures("wide")
@pytest.mark.parametrize("gaps", [False, True], ids=["", "gaps"])
@pytest.mark.parametrize("flipped", [False, True], ids=["", "flipped"])
@pytest.mark.parametrize("columns", [7, 40, 101])
def test_a_product_is_the_same_however_the_matrices_lie(columns: int, flipped: bool, gaps: bool) -> None:
    torch.manual_seed(0)
    left, right = torch.randn(9, 17), torch.randn(17, columns)
    plain = left.double() @ right.double()
    if flipped:
        left, right = left.T.contiguous().T, right.T.contiguous().T
    if gaps:
        left, right = torch.stack([left, left], 2)[..., 0], torch.stack([right, right], 2)[..., 0]
    torch.testing.assert_close(product(left, right), plain.float(), rtol=1e-5, atol=1e-5)
    out = torch.full((9, columns + 3), 7.0)
    product(left, right, out=out[:, :columns])
    torch.testing.assert_close(out[:, :columns], plain.float(), rtol=1e-5, atol=1e-5)
    assert bool((out[:, columns:] == 7).all())


@pytest.mark.usefixtures("wide")
@pytest.mark.parametrize("rows", [7, 40, 101])
def test_a_transposed_product_is_added(rows: int) -> None:
    torch.manual_seed(0)
    left, right = torch.randn(9, rows + 2)[:, :rows], torch.randn(9, 5)
    total = transposed_zeros(torch.empty(rows, 5))
    for _ in range(2):
        add_product(total, left, right)
    assert total.shape == (rows, 5)
    torch.testing.assert_close(total, 2 * left.T @ right, rtol=1e-5, atol=1e-5)


@pytest.mark.usefixtures("wide")
@pytest.mark.parametrize("sizes", [[101], [1, 60, 40]])
@pytest.mark.parametrize("asked", ["both", "states", "table"])
def test_the_softmax_in_chunks_equals_the_plain_one(sizes: list[int], asked: str) -> None:
    torch.manual_seed(1)
    hidden, table = torch.randn(37, 8), torch.randn(101, 8)
    wanted = {"both": [hidden, table], "states": [hidden], "table": [table]}[asked]
    for one in wanted:
        one.requires_grad_()
    targets, weights = torch.randint(1, 102, (37,)), torch.rand(37)
    total = cross_entropy(hidden, targets, weights, table.split(sizes), 16)
    plain = F.cross_entropy(hidden @ table.T, targets - 1, reduction="none")
    losses = cross_entropies(hidden, targets, table.split(sizes), 16)
    torch.testing.assert_close(losses, plain, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(total, (plain * weights).sum())
    ours = torch.autograd.grad(total, wanted)
    for one, other in zip(ours, torch.autograd.grad((plain * weights).sum(), wanted), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_other_numbers_than_float32_are_torchs_to_multiply(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "LEAST", 0)
    left, right = torch.randn(9, 17, dtype=torch.float64), torch.randn(17, 30, dtype=torch.float64)
    assert bool((product(left, right) == left @ right).all())
    assert product(left.bfloat16(), right.bfloat16()).dtype == torch.bfloat16


def test_intels_processors_keep_their_own_library(monkeypatch: pytest.MonkeyPatch) -> None:
    onednn_is_wider.cache_clear()
    monkeypatch.setattr(products, "_vendor", lambda: "GenuineIntel")
    assert not onednn_is_wider()
    onednn_is_wider.cache_clear()
