"""Sampling of paths: distribution, no path twice, probabilities among what is possible."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from set_models import code_items, encoded_histories, histories, random_codes, set_decoder

from recsys.generative.set_sample import SampledPaths, sample_paths
from recsys.ranking.filters import Shown

SIZES = (3, 2, 4)


def drawn(
    count: int, copies: int = 1, shown: Shown | None = None, seed: int = 0, distinct: bool = True
) -> tuple[SampledPaths, object, object, object]:
    codes = random_codes(7, SIZES, seed=4) if distinct else np.array([[0, 1, 2]] * 3 + [[2, 1, 0]])
    items = code_items(codes, SIZES)
    decoder = set_decoder(3, temperature=0.5)
    batch = histories(len(codes), (3, 2)).select(torch.arange(2).repeat(copies))
    encoded = encoded_histories(items, batch)
    with torch.no_grad():
        paths = sample_paths(decoder, encoded, items, count, torch.Generator().manual_seed(seed), shown=shown)
    return paths, decoder, encoded, items


def test_paths_lead_to_their_items_by_each_codebook_once() -> None:
    paths, _, _, items = drawn(5)
    assert paths.order.shape == paths.tokens.shape == (2, 5, 3) and bool(paths.real.all())
    assert torch.equal(paths.order.sort(2).values, torch.arange(3).expand(2, 5, 3))
    assert torch.equal(items.token_table[paths.rows].gather(2, paths.order), paths.tokens)
    assert all(len(row.unique()) == 5 for row in paths.rows)


def test_probabilities_are_those_of_the_decoder_among_what_is_possible() -> None:
    paths, decoder, encoded, items = drawn(5)
    found = decoder.path_log_probs(encoded, items, paths.order, paths.tokens, paths.allowed)
    torch.testing.assert_close(found.detach(), paths.log_probs, rtol=1e-4, atol=1e-5)
    for row in range(2):
        for path in range(5):
            left = np.ones(7, bool)
            for step in range(3):
                level = int(paths.order[row, path, step])
                own = items.codes[1:, level].numpy()
                assert set(paths.allowed[row, path, step].nonzero().flatten().tolist()) == set(own[left])
                left &= own == own[int(paths.rows[row, path]) - 1]


def test_all_paths_together_have_probability_one() -> None:
    paths, *_ = drawn(7)
    torch.testing.assert_close(paths.log_probs.sum(2).exp().sum(1), torch.ones(2))


def test_more_paths_than_items() -> None:
    paths, *_ = drawn(50)
    assert paths.real.sum(1).tolist() == [7, 7]


def test_hidden_items_are_never_sampled() -> None:
    shown = Shown.of(lambda ids: np.asarray(ids, np.int64), [[0, 1, 2], [3]], "history", deny=[6])
    paths, *_ = drawn(50, shown=shown)
    assert [sorted(row[row > 0].tolist()) for row in paths.rows] == [[4, 5, 6], [1, 2, 3, 5, 6]]


def test_items_of_equal_codes_share_a_path() -> None:
    paths, *_ = drawn(4, distinct=False)
    for rows, shares in zip(paths.rows.tolist(), paths.shares.tolist(), strict=True):
        found = dict(zip(rows, shares, strict=True))
        assert found[1] == pytest.approx(1 / 3) and found[4] == 1 and set(rows) <= {0, 1, 4}


@pytest.mark.parametrize("seed", [0, 1])
def test_samples_without_replacement_have_their_distribution(seed: int) -> None:
    copies = 4000
    paths, *_ = drawn(2, copies, seed=seed)
    every, *_ = drawn(7)
    for row in range(2):
        chances = np.zeros(8)
        chances[every.rows[row]] = every.log_probs[row].sum(1).exp()
        first, second = paths.rows[row::2].numpy().T
        expected = np.outer(chances, chances) / (1 - chances)[:, None]
        np.fill_diagonal(expected, 0)
        counts = np.zeros((8, 8))
        np.add.at(counts, (first, second), 1 / copies)
        error = 4.5 * np.sqrt(expected.clip(1 / copies) / copies)
        assert (np.abs(counts - expected) < error).all()


def test_the_generator_alone_decides() -> None:
    first, second, other = (drawn(3, 5, seed=seed)[0].rows for seed in (3, 3, 4))
    assert torch.equal(first, second) and not torch.equal(first, other)
