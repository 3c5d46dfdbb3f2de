"""Tokenizers against brute force: nearest centroids, residuals, rotations, the losses of RQ-VAE."""

from __future__ import annotations

import faiss
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys.errors import DataError
from recsys.semantic_ids.mpq import MPQ
from recsys.semantic_ids.product import ProductQuantiser
from recsys.semantic_ids.quality import level_quality, reconstruction_error
from recsys.semantic_ids.r3vae import R3VAE, AngleCodebooks, angle_step, spread
from recsys.semantic_ids.random_codes import RandomCodes
from recsys.semantic_ids.residual import ResidualKMeans
from recsys.semantic_ids.rqvae import RQVAE, ResidualCodebooks
from recsys.semantic_ids.tokenizer import Tokenizer


def points(n: int = 400, width: int = 16, seed: int = 0) -> np.ndarray:
    """Clustered vectors of which the first dimensions carry most."""
    random = np.random.default_rng(seed)
    centres = random.standard_normal((20, width))
    found = centres[random.integers(0, 20, n)] + 0.3 * random.standard_normal((n, width))
    return (found * np.linspace(3, 0.2, width)).astype(np.float32)


def argmin(vectors: np.ndarray, centroids: np.ndarray) -> np.ndarray:
    """Brute force: all distances, in float64."""
    distances = ((vectors[:, None].astype(np.float64) - centroids[None].astype(np.float64)) ** 2).sum(2)
    return distances.argmin(1)


TOKENIZERS = [
    ResidualKMeans(levels=3, size=16),
    ResidualKMeans(levels=3, size=16, normalise=True),
    ProductQuantiser(levels=4, size=16),
    ProductQuantiser(levels=4, size=16, rotate=True, rounds=3),
    RQVAE(levels=2, size=16, dim=8, hidden=(16,), epochs=40, batch_size=128, learning_rate=5e-3),
    R3VAE(levels=3, size=16, epochs=3, batch_size=128),
    RandomCodes(levels=3, size=16),
]


@pytest.mark.parametrize("tokenizer", TOKENIZERS, ids=lambda one: type(one).__name__)
def test_same_seed_same_codes_within_the_sizes(tokenizer: Tokenizer) -> None:
    vectors = points()
    tokenizer.fit(vectors, 3)
    codes = tokenizer.encode(vectors)
    assert isinstance(tokenizer, Tokenizer)
    assert codes.dtype == np.int32 and codes.shape == (400, len(tokenizer.sizes))
    assert (codes >= 0).all() and (codes < np.array(tokenizer.sizes)).all()
    state = torch.get_rng_state()
    tokenizer.fit(vectors, 3)
    assert np.array_equal(tokenizer.encode(vectors), codes)
    assert torch.equal(torch.get_rng_state(), state)
    tokenizer.fit(vectors, 4)
    assert not np.array_equal(tokenizer.encode(vectors), codes)


@pytest.mark.parametrize("tokenizer", TOKENIZERS[:5], ids=lambda one: type(one).__name__)
def test_codes_of_a_part_are_those_of_the_whole_and_say_something(tokenizer: Tokenizer) -> None:
    vectors = points()
    tokenizer.fit(vectors, 3)
    codes = tokenizer.encode(vectors)
    assert np.array_equal(tokenizer.encode(vectors[100:150]), codes[100:150])
    assert reconstruction_error(vectors, tokenizer.decode(codes)) < 0.6


@given(seed=st.integers(0, 5), levels=st.integers(1, 4), size=st.integers(2, 20))
@settings(max_examples=12, deadline=None)
def test_semantic_ids_12_1_residual_codes_equal_the_sequential_argmin(seed: int, levels: int, size: int) -> None:
    vectors = points(seed=seed)
    tokenizer = ResidualKMeans(levels, size, iterations=5, restarts=1)
    tokenizer.fit(vectors, seed)
    codes, left = tokenizer.encode(vectors), vectors.astype(np.float64)
    norms = [np.linalg.norm(left, axis=1).mean()]
    for level, centroids in enumerate(tokenizer.codewords):
        assert (codes[:, level] == argmin(left, centroids)).all()
        left = left - centroids[codes[:, level]]
        norms.append(np.linalg.norm(left, axis=1).mean())
    np.testing.assert_allclose(tokenizer.decode(codes) + left, vectors, atol=1e-4)
    assert (np.diff(norms) <= 1e-6).all()  # 12.2: the residuals get no longer


def test_semantic_ids_12_1_normalised_residuals_equal_the_sequential_argmin() -> None:
    vectors = points()
    tokenizer = ResidualKMeans(3, 16, normalise=True)
    tokenizer.fit(vectors, 0)
    codes, left = tokenizer.encode(vectors), vectors.astype(np.float64)
    for level, centroids in enumerate(tokenizer.codewords):
        left /= np.linalg.norm(left, axis=1, keepdims=True)
        assert (codes[:, level] == argmin(left, centroids)).all()
        left = left - centroids[codes[:, level]]


@pytest.mark.parametrize("repeats", [1, 5])
def test_semantic_ids_12_2_a_code_for_each_point_is_exact(repeats: int) -> None:
    vectors = np.repeat(points(n=24), repeats, axis=0)
    tokenizer = ResidualKMeans(levels=1, size=24)
    tokenizer.fit(vectors, 0)
    codes = tokenizer.encode(vectors)
    np.testing.assert_allclose(tokenizer.decode(codes), vectors, atol=1e-5)
    assert len(np.unique(codes)) == 24


def test_semantic_ids_12_1_quantiser_terms_and_gradients_by_hand() -> None:
    books = ResidualCodebooks(levels=2, size=3, dim=2, commitment=0.25)
    with torch.no_grad():
        books.words.copy_(torch.tensor([[[1.0, 0], [0, 1], [-1, -1]], [[0.5, 0], [0, 0.5], [0, 0]]]))
    latents = torch.tensor([[1.4, 0.1], [-0.2, 1.7]], requires_grad=True)
    found = books(latents)
    # Level 1: codes 0 and 1, residuals (.4, .1) and (-.2, .7); level 2: codes 0 and 1, left (-.1, .1) and (-.2, .2).
    assert found.codes.tolist() == [[0, 0], [1, 1]]
    torch.testing.assert_close(found.straight + found.left, latents)
    first = (0.4**2 + 0.1**2 + 0.2**2 + 0.7**2) / 4
    second = (0.1**2 + 0.1**2 + 0.2**2 + 0.2**2) / 4
    torch.testing.assert_close(found.loss, torch.tensor(1.25 * (first + second) / 2))
    wanted = torch.tensor([[0.3, -0.7], [1.1, 0.2]])
    (passed,) = torch.autograd.grad((found.straight * wanted).sum(), latents, retain_graph=True)
    torch.testing.assert_close(passed, wanted)  # the identity, and nothing of it reaches the codebooks
    (none,) = torch.autograd.grad((found.straight * wanted).sum(), books.words, retain_graph=True, allow_unused=True)
    assert none is None or not none.any()
    to_words, to_latents = torch.autograd.grad(found.loss, [books.words, latents])
    # Each of 2 levels has a mean over 4 numbers: d/de = 2 (e - r) / 8, and d/dz = β Σ_l 2 (r_l - e_l) / 8.
    torch.testing.assert_close(to_words[0, 0], -torch.tensor([0.4, 0.1]) / 4)
    torch.testing.assert_close(to_words[1, 1], -torch.tensor([-0.2, 0.2]) / 4)
    assert not to_words[0, 2].any() and not to_words[1, 2].any()
    torch.testing.assert_close(to_latents[0], 0.25 * (torch.tensor([0.4, 0.1]) + torch.tensor([-0.1, 0.1])) / 4)


def test_rqvae_moves_codes_that_nobody_uses_to_what_is_there() -> None:
    books = ResidualCodebooks(levels=2, size=4, dim=3, commitment=0.25)
    with torch.no_grad():
        books.words[:, 0], books.words[:, 1:] = 0, 100  # one code is used, three are far away
    latents = torch.from_numpy(points(60, 3))
    assert books.move_unused(latents, torch.Generator().manual_seed(0)) == 6
    assert len(books(latents).codes[:, 0].unique()) > 1
    moved = books.words[0, 1:].detach()
    assert all((latents == row).all(1).any() for row in moved)


def test_rqvae_learns_and_does_not_collapse_on_unit_vectors() -> None:
    vectors = points(600)
    vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True) + 5  # far from zero, hardly varying
    short, long = (
        RQVAE(levels=2, size=16, dim=8, hidden=(32,), epochs=epochs, batch_size=128, learning_rate=3e-3)
        for epochs in (1, 60)
    )
    errors = []
    for one in (short, long):
        one.fit(vectors, 0)
        codes = one.encode(vectors)
        errors.append(reconstruction_error(vectors, one.decode(codes)))
    assert errors[1] < 0.5 < errors[0]
    assert all(level_quality(codes[:, level], 16)["perplexity"] > 5 for level in range(2))
    scaled = torch.from_numpy((vectors - long._mean) / long._scale)
    latents = long._net["encoder"](scaled).detach().numpy()
    assert (codes[:, 0] == argmin(latents, long.codewords[0])).all()


@pytest.mark.parametrize("whiten", [True, False])
@pytest.mark.parametrize("rotate", [True, False])
def test_rpg_14_1_product_codes_equal_the_argmin_of_each_piece(rotate: bool, whiten: bool) -> None:
    vectors = points()
    tokenizer = ProductQuantiser(4, 16, rotate=rotate, whiten=whiten, rounds=4, iterations=10)
    tokenizer.fit(vectors, 1)
    codes, books = tokenizer.encode(vectors), tokenizer.codewords
    turned = (vectors - vectors.mean(0)) @ tokenizer._into
    for level, book in enumerate(books):
        assert (codes[:, level] == argmin(turned[:, 4 * level : 4 * level + 4], book)).all()
    identity = tokenizer._into @ tokenizer._back
    np.testing.assert_allclose(identity, np.eye(16), atol=1e-4)  # a rotation is undone by its transpose
    if not whiten:
        np.testing.assert_allclose(tokenizer._into.T @ tokenizer._into, np.eye(16), atol=1e-5)
    joined = np.concatenate([book[codes[:, level]] for level, book in enumerate(books)], axis=1)
    np.testing.assert_allclose(tokenizer.decode(codes), joined @ tokenizer._back + vectors.mean(0), atol=1e-4)


@pytest.mark.parametrize("whiten", [True, False])
def test_rpg_14_19_a_code_of_a_field_is_about_that_field_alone(whiten: bool) -> None:
    random = np.random.default_rng(0)
    fields = [random.standard_normal((400, 12)).astype(np.float32) for _ in range(3)]
    tokenizer = ProductQuantiser(12, 8, whiten=whiten, fields=3)
    tokenizer.fit(np.concatenate(fields, axis=1), 0)
    before = tokenizer.encode(np.concatenate(fields, axis=1))
    for changed in range(3):
        other = [random.standard_normal((400, 12)).astype(np.float32) if i == changed else fields[i] for i in range(3)]
        differs = (tokenizer.encode(np.concatenate(other, axis=1)) != before).any(0).reshape(3, 4)
        assert differs[changed].all() and not np.delete(differs, changed, axis=0).any()
    wide = ProductQuantiser(12, 8, fields=3, whiten=whiten, width=36)
    wide.fit(np.concatenate(fields, axis=1), 0)
    assert np.allclose(wide._into @ wide._back, np.eye(36), atol=1e-4)


def test_fields_that_cannot_be_kept_apart_are_refused() -> None:
    with pytest.raises(ValueError, match="multiple of fields"):
        ProductQuantiser(8, 4, fields=3)
    with pytest.raises(ValueError, match="mixes the fields"):
        ProductQuantiser(8, 4, fields=2, rotate=True)
    with pytest.raises(DataError, match="3 fields of equal width"):
        ProductQuantiser(6, 4, fields=3).fit(points()[:, :16], 0)


def test_rpg_14_1_product_codes_equal_those_of_faiss_for_the_same_centroids() -> None:
    vectors = points()
    tokenizer = ProductQuantiser(4, 16, whiten=False)
    tokenizer.fit(vectors, 1)
    quantiser = faiss.ProductQuantizer(16, 4, 4)
    faiss.copy_array_to_vector(np.stack(tokenizer.codewords).ravel(), quantiser.centroids)
    packed = quantiser.compute_codes(np.ascontiguousarray((vectors - vectors.mean(0)) @ tokenizer._into))
    unpacked = np.stack([packed[:, 0] & 15, packed[:, 0] >> 4, packed[:, 1] & 15, packed[:, 1] >> 4], axis=1)
    assert np.array_equal(unpacked, tokenizer.encode(vectors))


def test_a_rotation_loses_less_where_pieces_are_unequal() -> None:
    vectors = points(n=800)
    errors = []
    for rotate in (False, True):
        tokenizer = ProductQuantiser(4, 16, rotate=rotate, whiten=False)
        tokenizer.fit(vectors, 0)
        errors.append(reconstruction_error(vectors, tokenizer.decode(tokenizer.encode(vectors))))
    assert errors[1] < errors[0]


def test_whitened_pieces_carry_equal_variance() -> None:
    vectors = points()
    tokenizer = ProductQuantiser(4, 16, width=12)
    tokenizer.fit(vectors, 0)
    turned = (vectors - vectors.mean(0)) @ tokenizer._into
    np.testing.assert_allclose(np.cov(turned.T, bias=True), np.eye(12), atol=1e-3)


def test_fewer_different_vectors_than_codes_are_told_by_number() -> None:
    few = np.repeat(points(n=11), 9, axis=0)
    with pytest.raises(DataError, match="only 11 different ones among 99, for 16 codes"):
        ResidualKMeans(1, 16).fit(few, 0)
    with pytest.raises(DataError, match="what 1 levels leave of the vectors: there are only 1 different"):
        ResidualKMeans(2, 11).fit(few, 0)
    with pytest.raises(DataError, match="piece 1 of the vectors: there are only 11"):
        ProductQuantiser(2, 16).fit(few, 0)
    with pytest.raises(DataError, match="only 11 different"):
        RQVAE(size=16, epochs=1).fit(few, 0)
    flat = np.concatenate([points(width=3), np.zeros((400, 13), np.float32)], axis=1)
    with pytest.raises(DataError, match="3 components that vary, 4 are asked for"):
        ProductQuantiser(4, 16).fit(flat, 0)
    with pytest.raises(DataError, match="all vectors are alike"):
        ProductQuantiser(2, 4).fit(np.ones((20, 8), np.float32), 0)


@pytest.mark.parametrize(
    "tokenizer", [ResidualKMeans(2, 4), ProductQuantiser(2, 4), RQVAE(2, 4), R3VAE(2, 4), MPQ(2, 4)],
    ids=lambda one: type(one).__name__,
)  # fmt: skip
def test_what_has_learned_no_codes_gives_none(tokenizer: Tokenizer) -> None:
    with pytest.raises(ValueError, match="learned no codes"):
        tokenizer.encode(points(8))


def test_wrong_arguments_are_refused() -> None:
    for wrong in (
        lambda: ResidualKMeans(0), lambda: ResidualKMeans(size=1), lambda: ResidualKMeans(restarts=0),
        lambda: ProductQuantiser(4, width=10), lambda: ProductQuantiser(rounds=0), lambda: RQVAE(epochs=0),
        lambda: RQVAE(hidden=(0,)), lambda: RandomCodes(size=1), lambda: R3VAE(epochs=0),
    ):  # fmt: skip
        with pytest.raises(ValueError, match="found"):
            wrong()


def test_the_loss_of_a_level_is_what_torch_computes() -> None:
    books = ResidualCodebooks(levels=1, size=5, dim=3, commitment=0.5)
    torch.nn.init.normal_(books.words)
    latents = torch.randn(7, 3)
    found = books(latents)
    words = books.words[0][found.codes[:, 0]]
    torch.testing.assert_close(found.loss, 1.5 * F.mse_loss(words, latents))


def test_rpg_14_18_angles_equal_brute_force_and_the_residual_follows_its_formula() -> None:
    books = AngleCodebooks(levels=3, size=7, width=5)
    generator = torch.Generator().manual_seed(0)
    for weight in books.parameters():
        torch.nn.init.normal_(weight, generator=generator)
    vectors = F.normalize(torch.randn(50, 5, generator=generator), dim=-1)
    codes, sums, last = books(vectors)
    unit = books.reference / books.reference.norm()
    for row, vector in enumerate(vectors):
        along = (vector @ unit) * unit
        left = vector - along
        for level, book in enumerate(books.words):
            cosines = torch.stack([left @ word / (left.norm() * word.norm()) for word in book])
            found = int(cosines.argmax())
            assert codes[row, level] == found
            after = left - cosines[found] * book[found] / book[found].norm()
            torch.testing.assert_close(
                after.norm() ** 2, left.norm() ** 2 + cosines[found] ** 2 * (1 - 2 * left.norm())
            )
            left = after
            torch.testing.assert_close(sums[level][row] + left, vector)
        torch.testing.assert_close(last[row], left)


def test_rpg_14_18_residuals_grow_below_one_half() -> None:
    book = torch.eye(3)
    short, long = torch.tensor([[0.3, 0.1, 0]]), torch.tensor([[0.8, 0.1, 0]])
    for left, grows in ((short, True), (long, False)):
        _, part = angle_step(left, book)
        assert bool((left - part).norm() > left.norm()) is grows


def test_rpg_14_18_spread_of_orthogonal_and_identical_codewords() -> None:
    torch.testing.assert_close(spread(torch.eye(6) * 3), torch.tensor(-2.0))
    torch.testing.assert_close(spread(torch.ones(4, 3)), torch.tensor(0.0), atol=1e-6, rtol=0)


def test_r3vae_learns_from_its_loss_by_hand_and_spreads_codes() -> None:
    vectors = points(600)
    first, last = (R3VAE(levels=2, size=16, epochs=epochs, batch_size=128) for epochs in (1, 20))
    for one in (first, last):
        one.fit(vectors, 0)
    assert last.facts["loss"] < first.facts["loss"]
    assert all(level_quality(last.encode(vectors)[:, level], 16)["perplexity"] > 5 for level in range(2))
    books, batch = last._books, last._unit(vectors[:9])
    decoder = torch.nn.Identity()
    found = last.loss(books, decoder, batch)
    _, sums, _ = books(batch)
    reference = books.split(batch)[1]
    near = [1 - F.cosine_similarity(reference, one, dim=-1).mean() for one in sums]
    expected = 1 - F.cosine_similarity(sums[1], batch, dim=-1).mean() + 0.05 * sum(near)
    expected = expected + 0.05 * (spread(books.words[0]) + spread(books.words[1])) / 2
    torch.testing.assert_close(found, expected)
