"""MPQ: experts, codebooks, gate. Numbers of the tests are those of the behavioural checks of the method's page."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from recsys.errors import DataError
from recsys.semantic_ids.mpq import MPQ, Experts, between_codebooks, between_latents, straight_through


def clustered(count: int = 600, width: int = 12, seed: int = 0) -> np.ndarray:
    random = np.random.default_rng(seed)
    factors = random.normal(size=(count, 6)) + 2 * random.integers(-1, 2, size=(count, 6))
    return (factors @ random.normal(size=(6, width)) * random.uniform(0.1, 20, width) + 3).astype(np.float32)


def fitted(**changed: object) -> tuple[MPQ, np.ndarray]:
    knobs = {"levels": 3, "size": 16, "dim": 8, "hidden": (32, 16), "steps": 400, "batch_size": 100} | changed
    made, vectors = MPQ(**knobs), clustered()  # type: ignore[arg-type]
    made.fit(vectors, seed=1)
    return made, vectors


def net(seed: int = 0) -> Experts:
    torch.manual_seed(seed)
    return Experts(width=6, levels=3, size=5, dim=4, hidden=(8, 8))


def test_reg4rec_13_1_codes_are_the_nearest_codewords() -> None:
    experts, vectors = net(), torch.randn(50, 6)
    latents = experts.latents(vectors)
    expected = torch.stack([torch.cdist(e, z).argmin(1) for e, z in zip(latents, experts.codebooks, strict=True)], 1)
    assert torch.equal(experts.nearest(latents), expected)
    words = experts.codewords(expected)
    assert torch.equal(words[1, 7], experts.codebooks[1, expected[7, 1]])


def test_reg4rec_13_1_experts_do_not_share_and_equal_a_loop() -> None:
    experts, vectors = net(), torch.randn(9, 6)
    for level, latent in enumerate(experts.latents(vectors)):
        x = experts.norm(vectors)
        for number, (weight, bias) in enumerate(zip(experts.weights, experts.biases, strict=True)):
            x = (x.relu() if number else x) @ weight[level] + bias[level]
        torch.testing.assert_close(latent, x)


def test_reg4rec_13_1_straight_through_reaches_experts_and_not_codebooks() -> None:
    experts, vectors = net(), torch.randn(20, 6)
    latents = experts.latents(vectors)
    words = experts.codewords(experts.nearest(latents))
    mixed = straight_through(latents, words)
    torch.testing.assert_close(mixed, words)
    experts.rebuild(vectors, mixed).square().sum().backward()
    assert experts.codebooks.grad is None
    assert all(float(weight.grad.abs().sum()) > 0 for weight in experts.weights)
    assert all(bool((weight.grad.flatten(1).abs().sum(1) > 0).all()) for weight in experts.weights)


def test_reg4rec_13_1_codebooks_learn_from_their_own_term() -> None:
    experts, vectors = net(), torch.randn(20, 6)
    loss, codes = experts.loss(vectors, commitment=0.25, weight=0.0, orthogonal="latents")
    loss.backward()
    used = torch.zeros(3, 5, dtype=torch.bool).scatter(1, codes.T, True)
    assert torch.equal(experts.codebooks.grad.abs().sum(2) > 0, used)


def test_reg4rec_13_1_orthogonality_is_zero_of_orthogonal_and_one_of_identical_latents() -> None:
    apart = torch.eye(4)[:3, None].expand(3, 7, 4) * torch.rand(3, 7, 1)
    same = torch.randn(1, 7, 4).expand(3, 7, 4)
    assert float(between_latents(apart)) == pytest.approx(0, abs=1e-7)
    assert float(between_latents(same)) == pytest.approx(1)
    assert float(between_latents(same * torch.tensor([1.0, -2.0, 3.0])[:, None, None])) == pytest.approx(1)
    books = torch.stack([torch.eye(4)[:2], torch.eye(4)[2:]])
    assert float(between_codebooks(books)) == pytest.approx(0)
    assert float(between_codebooks(books[:1].expand(2, 2, 4))) == pytest.approx(0.5)  # 2 of 4 products are 1


def test_reg4rec_13_1_mean_over_pairs_by_hand() -> None:
    latents = torch.tensor([[[1.0, 0.0]], [[1.0, 1.0]], [[0.0, 2.0]]])  # cos^2: .5, 0, .5
    assert float(between_latents(latents)) == pytest.approx(1 / 3)


def test_reg4rec_13_1_permuting_experts_permutes_columns_only() -> None:
    made, vectors = fitted(steps=12)
    codes, order = made.encode(vectors), [2, 0, 1]
    experts = made._net
    assert experts is not None
    with torch.no_grad():
        for value in (*experts.weights, *experts.biases, experts.codebooks, experts.gate.weight, experts.gate.bias):
            value.copy_(value[order].clone())
    assert np.array_equal(made.encode(vectors), codes[:, order])


@pytest.mark.parametrize("orthogonal", ["latents", "codebooks"])
def test_reg4rec_13_2_codebooks_are_used_and_reported(orthogonal: str) -> None:
    made, vectors = fitted(orthogonal=orthogonal)
    codes = made.encode(vectors)
    assert codes.shape == (600, 3) and codes.dtype == np.int32 and codes.min() >= 0 and codes.max() < 16
    for level in range(3):
        share = np.bincount(codes[:, level], minlength=16) / len(codes)
        expected = np.exp(-(share[share > 0] * np.log(share[share > 0])).sum())
        assert made.report["perplexity"][level] == pytest.approx(expected)
        assert expected > 8
    assert 0 < made.report["gate_entropy"] <= 1
    assert sum(made.report["gate"]) == pytest.approx(1, abs=1e-4)
    assert made.report["reconstruction"] < 0.6  # the mean of all would give 1


def test_codes_are_a_function_of_vectors_and_seed() -> None:
    (first, vectors), (second, _) = fitted(steps=18), fitted(steps=18)
    codes = first.encode(vectors)
    assert np.array_equal(codes, second.encode(vectors))
    assert np.array_equal(codes[::-1], first.encode(vectors[::-1]))
    other = MPQ(levels=3, size=16, dim=8, hidden=(32, 16), steps=18, batch_size=100)
    other.fit(vectors, seed=2)
    assert not np.array_equal(codes, other.encode(vectors))
    moved = first.encode(vectors)
    assert np.array_equal(moved, codes)
    assert [book.shape for book in first.codewords or []] == [(16, 8)] * 3
    assert first.sizes == (16, 16, 16) and not first.ordered


def test_standardised_so_that_units_do_not_matter() -> None:
    vectors = clustered()
    made = MPQ(levels=2, size=8, dim=4, hidden=(8, 8), steps=12)
    made.fit(vectors, seed=0)
    other = MPQ(levels=2, size=8, dim=4, hidden=(8, 8), steps=12)
    other.fit(vectors * 1024 + 512, seed=0)
    assert (made.encode(vectors) == other.encode(vectors * 1024 + 512)).mean() > 0.99


def test_unused_codes_are_moved_to_latents() -> None:
    made, vectors = fitted(steps=6)
    experts, inputs = made._net, made._standard(vectors)
    assert experts is not None
    with torch.no_grad():
        experts.codebooks[1, 3:] = 1e6
    used = experts.codebooks.abs().amax(2) < 1e5
    before = experts.codebooks.detach().clone()
    made._reset(inputs, used, torch.Generator().manual_seed(0))
    assert torch.equal(experts.codebooks[used], before[used])
    latents = experts.latents(inputs)[1]
    assert float(torch.cdist(experts.codebooks[1, 3:], latents).amin(1).max()) < 1e-4


def test_fewer_distinct_vectors_than_codes() -> None:
    vectors = np.repeat(clustered(10), 20, 0)
    with pytest.raises(DataError, match=r"10 different ones .* 16 codes"):
        MPQ(levels=2, size=16, dim=4).fit(vectors, seed=0)


def test_arguments() -> None:
    with pytest.raises(ValueError, match="orthogonal must be one of"):
        MPQ(orthogonal="experts")
    with pytest.raises(ValueError, match="size at least 2"):
        MPQ(size=1)
    with pytest.raises(ValueError, match="fit"):
        MPQ().encode(clustered(3))
