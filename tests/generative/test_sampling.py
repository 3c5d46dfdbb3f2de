"""Samples against the probabilities they are drawn by."""

from __future__ import annotations

from collections import Counter
from itertools import permutations
from typing import Any

import numpy as np
import pytest
import torch

from recsys.generative.beam import exact_log_probs
from recsys.generative.sampling import Samples, sample
from recsys.ranking.filters import Shown
from tests.generative.coded import Asked, Coded, Recurrent, Tabled

ITEMS = Coded([[0, 0], [0, 1], [1, 1], [2, 0], [2, 2], [2, 2]], [4, 3])
TABLES = [torch.tensor([0.4, 0.2, 0.1, 0.3]).log(), torch.tensor([0.5, 0.2, 0.3]).log()]
USERS = 20_000


def drawn(count: int, shown: Shown | None = None, users: int = USERS, **options: Any) -> Samples:
    decoder = Tabled([table.expand(users, -1) for table in TABLES])
    return sample(decoder, None, ITEMS, shown, count, torch.Generator().manual_seed(0), **options)


def paths(temperature: float = 1.0, hidden: tuple[int, ...] = ()) -> dict[tuple[int, int], float]:
    """Probability of each tuple of codes that may be shown: at each node among its children that lead to one."""
    left = {tuple(codes) for row, codes in enumerate(ITEMS.codes[1:].tolist(), 1) if row not in hidden}
    first, second = (table.div(temperature).exp().tolist() for table in TABLES)
    above = {a for a, _ in left}
    return {
        (a, b): first[a] / sum(first[c] for c in above) * second[b] / sum(second[d] for c, d in left if c == a)
        for a, b in left
    }


def shares(found: list[Any]) -> dict[Any, float]:
    return {one: number / len(found) for one, number in Counter(found).items()}


def tuples(found: Samples) -> list[list[tuple[int, int]]]:
    return [[(a - 1, b - 5) for a, b in one if a] for one in found.tokens.tolist()]


def close(found: dict[Any, float], wanted: dict[Any, float]) -> None:
    """Within four deviations of each share."""
    assert found.keys() == wanted.keys()
    for one, share in wanted.items():
        assert abs(found[one] - share) < 4 * (share * (1 - share) / USERS) ** 0.5 + 1e-9, (one, found[one], share)


@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_without_replacement_tuples_come_one_after_another_by_their_probability(temperature) -> None:
    found = drawn(3, temperature=temperature)
    chance = paths(temperature)
    wanted = {
        (a, b, c): chance[a] * chance[b] / (1 - chance[a]) * chance[c] / (1 - chance[a] - chance[b])
        for a, b, c in permutations(chance, 3)
    }
    close(shares([tuple(one) for one in tuples(found)]), wanted)
    one = found.tokens[0, 0].tolist()
    assert float(found.drawn[0, 0].exp()) == pytest.approx(chance[(one[0] - 1, one[1] - 5)], abs=1e-5)


def test_with_replacement_every_sample_is_drawn_alike() -> None:
    found = drawn(4, users=USERS // 4, replace=True)
    close(shares([one for user in tuples(found) for one in user]), paths())
    pairs = shares([tuple(one[:2]) for one in tuples(found)])
    for (a, b), share in pairs.items():  # the first two know nothing of each other
        assert share == pytest.approx(paths()[a] * paths()[b], abs=0.03)


def test_items_of_equal_codes_are_drawn_evenly() -> None:
    found = drawn(5)
    rows = found.rows.flatten().tolist()
    number = Counter(rows)
    assert number[5] + number[6] == number[1] == USERS  # all five tuples of every history
    assert abs(number[5] / USERS - 0.5) < 4 * (0.25 / USERS) ** 0.5


def test_reg4rec_samples_are_valid_items_that_may_be_shown() -> None:
    histories = [[1, 5], [], [1, 2, 3, 4, 5, 6], [5, 6, 4]] * 500
    shown = Shown.of(lambda rows: np.array([row - 1 for row in rows], np.int64), histories)
    found = drawn(4, shown, users=2000)
    hidden = [set(one) for one in histories]
    for user, (rows, tokens) in enumerate(zip(found.rows.tolist(), tuples(found))):
        kept = [row for row in rows if row]
        assert [tuple(ITEMS.codes[row].tolist()) for row in kept] == tokens
        assert not hidden[user] & set(kept) and len(set(kept)) == len(kept)
        assert len(kept) == min(4, len(paths(hidden=tuple(hidden[user])) if len(hidden[user]) < 6 else ()))
        assert torch.isneginf(found.drawn[user, len(kept) :]).all() and rows[len(kept) :] == [0] * (4 - len(kept))
    again = drawn(4, shown, users=2000, replace=True)
    first = shares([one[0] for one in tuples(again)[0::4]])
    for one, share in paths(hidden=(1, 5)).items():
        assert first[one] == pytest.approx(share, abs=0.1)
    assert (again.rows[2] == 0).all() and (again.rows[[0, 1, 3]] > 0).all()


def test_log_probs_are_those_of_the_decoder() -> None:
    random = np.random.default_rng(0)
    items, decoder = Coded(random.integers(0, 5, (40, 3)), [5, 5, 5]), Recurrent([5, 5, 5])
    asked = Asked(torch.randn(6, 8))
    for replace in (False, True):
        found = sample(decoder, asked, items, None, 12, torch.Generator().manual_seed(1), 0.7, replace)
        wanted = exact_log_probs(decoder, asked, items, found.rows)
        assert torch.allclose(found.log_probs.sum(2), wanted, atol=1e-4) and found.tokens.shape == (6, 12, 3)
        same = sample(decoder, asked, items, None, 12, torch.Generator().manual_seed(1), 0.7, replace)
        assert torch.equal(found.rows, same.rows)
    everything = sample(decoder, asked, items, None, 100, torch.Generator().manual_seed(1))
    distinct = len({tuple(codes) for codes in items.codes[1:].tolist()})
    assert ((everything.rows > 0).sum(1) == distinct).all()
    assert torch.allclose(everything.drawn.exp().sum(1), torch.ones(6), atol=1e-4)  # of all that could be drawn


def test_what_cannot_be_drawn_is_refused() -> None:
    with pytest.raises(ValueError, match="count >= 1"):
        drawn(0)
    with pytest.raises(ValueError, match="temperature > 0"):
        drawn(1, temperature=0)
    broken = Tabled([torch.full((1, 4), torch.nan), torch.zeros(1, 3)])
    with pytest.raises(ValueError, match="NaN"):
        sample(broken, None, ITEMS, None, 1, torch.Generator())
