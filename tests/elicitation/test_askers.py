"""Who asks what: hand-computed gains, a world whose groups are known, and the rules of the next question."""

import numpy as np
import pytest

from recsys.elicitation.askers import LISTS, Fixed, Random
from recsys.elicitation.factors import FactorGain
from recsys.elicitation.groups import GroupGain, Groups, Probable
from recsys.elicitation.opinions import DISLIKE, LIKE, UNASKED, UNKNOWN, Opinions
from recsys.errors import DataError
from recsys.ids.vocabulary import Vocabulary


def opinions(rows: list[tuple[int, int, float]], users: int, items: int, rated: bool = True) -> Opinions:
    """Of (user, column, rating)."""
    owner, column, rating = (np.array(one) for one in zip(*rows, strict=True))
    names = Vocabulary([str(one) for one in range(items)], 1)
    return Opinions(owner, column, rating >= 4, users, names, rating.astype(np.float32) if rated else None)


def tables(like: list[list[float]], known: float = 1.0) -> np.ndarray:
    """(3, G, I) from the probability of a like among those who know the item."""
    share = np.array(like, np.float32)
    return np.stack([np.full_like(share, 1 - known), known * share, known * (1 - share)])


NOTHING = np.full((1, 1), UNASKED, np.int8)


class TestGroupGain:
    """Check 2 of the specification."""

    @pytest.mark.parametrize(
        ("like", "known", "gain"),
        [((1.0, 0.0), 1.0, np.log(2)), ((0.9, 0.1), 1.0, 0.3681), ((0.9, 0.1), 0.5, 0.1840), ((0.7, 0.7), 1.0, 0.0)],
    )
    def test_2_mutual_information_of_two_groups(self, like: tuple[float, float], known: float, gain: float) -> None:
        asker = GroupGain(Groups(np.array([0.5, 0.5]), tables([[one] for one in like], known)))
        assert asker.gains(NOTHING)[0, 0] == pytest.approx(gain, abs=1e-4)

    def test_2_is_at_most_what_is_left_to_learn(self) -> None:
        drawn = np.random.default_rng(0)
        groups = Groups(drawn.dirichlet(np.ones(5)), np.moveaxis(drawn.dirichlet(np.ones(3), (5, 40)), 2, 0))
        answers = drawn.integers(-1, 3, (30, 40)).astype(np.int8)
        post = groups.posterior(answers)
        left = -(post * np.log(np.maximum(post, 1e-30))).sum(1)
        gains = GroupGain(groups).gains(answers)
        assert np.isfinite(gains).all()
        assert (gains >= 0).all()
        assert (gains <= left[:, None] + 1e-5).all()

    def test_3_names_one_of_eight_groups_by_three_bits(self) -> None:
        bits = (np.arange(8)[:, None] >> np.arange(3)) & 1
        like = np.concatenate([np.ones((8, 97)), bits], 1)  # the constant items come first
        groups = Groups(np.full(8, 1 / 8), tables(like.tolist()), temper=1.0)
        truth = np.where(like > 0.5, LIKE, DISLIKE)
        assert (ask(GroupGain(groups), truth, 3, groups) == np.arange(8)).all()
        assert (ask(Random(1), truth, 3, groups) != np.arange(8)).any()


def ask(asker: object, truth: np.ndarray, questions: int, groups: Groups) -> np.ndarray:
    """The likeliest group of each user after so many questions."""
    said = np.full(truth.shape, UNASKED, np.int8)
    users = np.arange(len(truth))
    for _ in range(questions):
        gains = asker.gains(said)  # type: ignore[attr-defined]
        chosen = np.where(said == UNASKED, gains, -np.inf).argmax(1)
        said[users, chosen] = truth[users, chosen]
    return groups.posterior(said).argmax(1)


def test_9_in_a_simulated_world_gain_finds_the_group_and_the_most_liked_do_not() -> None:
    drawn = np.random.default_rng(5)
    like = drawn.beta(0.6, 0.6, (8, 100))
    groups = Groups(np.full(8, 1 / 8), tables(like.tolist()), temper=1.0)
    group = drawn.integers(8, size=1000)
    truth = np.where(drawn.random((1000, 100)) < like[group], LIKE, DISLIKE)
    right = {
        name: [(ask(asker, truth, count, groups) == group).mean() for count in (3, 5, 10)]
        for name, asker in (("gain", GroupGain(groups)), ("random", Random(0)), ("liked", Fixed(like.mean(0))))
    }
    assert right["gain"][0] > 0.7
    assert right["gain"][1] > 0.94
    assert right["gain"][2] > 0.99
    assert 0.35 < right["random"][0] < 0.55
    for at in range(3):
        assert right["liked"][at] < right["random"][at] < right["gain"][at]


class TestGroups:
    def test_finds_the_groups_that_made_the_answers(self) -> None:
        drawn = np.random.default_rng(2)
        taste = np.array([[0.95] * 20 + [0.05] * 20, [0.05] * 20 + [0.95] * 20])
        rows = []
        for user in range(400):
            for item in np.flatnonzero(drawn.random(40) < 0.5):
                rows.append((user, int(item), 5.0 if drawn.random() < taste[user % 2, item] else 1.0))
        found = Groups.fit(opinions(rows, 400, 40), groups=2, iterations=40, progress=False)
        answers = np.full((2, 40), UNASKED, np.int8)
        answers[0, :5], answers[1, 20:25] = LIKE, LIKE
        like = found.predicted(answers)[LIKE] / (1 - found.predicted(answers)[UNKNOWN])
        assert (like[0, :20] > 0.75).all()
        assert (like[0, 20:] < 0.25).all()
        assert (like[1, 20:] > 0.75).all()

    def test_an_item_that_everybody_knows_makes_no_nan(self) -> None:
        rows = [(user, item, 5.0) for user in range(20) for item in range(3)]
        found = Groups.fit(opinions(rows, 20, 4), groups=3, progress=False)
        gains = GroupGain(found).gains(np.array([[UNKNOWN, UNASKED, LIKE, UNASKED]], np.int8))
        assert np.isfinite(gains).all()

    def test_repeats_by_its_seed(self) -> None:
        rows = [(user, (user * 7 + item) % 9, float(1 + item % 5)) for user in range(30) for item in range(4)]
        one, same, other = (
            Groups.fit(opinions(rows, 30, 9), groups=3, seed=seed, progress=False).tables for seed in (1, 1, 2)
        )
        assert np.array_equal(one, same)
        assert not np.array_equal(one, other)

    def test_refuses_what_are_no_distributions(self) -> None:
        with pytest.raises(ValueError, match="distributions"):
            Groups(np.ones(2) / 2, np.ones((3, 2, 4)))

    def test_probable_asks_for_what_is_liked_in_the_group(self) -> None:
        groups = Groups(np.array([0.5, 0.5]), tables([[0.9, 0.8, 0.1], [0.1, 0.2, 0.9]]), temper=1.0)
        gains = Probable(groups).gains(np.array([[LIKE, UNASKED, UNASKED], [DISLIKE, UNASKED, UNASKED]], np.int8))
        assert gains[0, 1] > gains[0, 2]
        assert gains[1, 2] > gains[1, 1]


class TestFactorGain:
    """Check 4."""

    def test_4_covariance_is_that_of_the_known_answers_in_any_order(self) -> None:
        drawn = np.random.default_rng(1)
        asker = FactorGain(drawn.normal(size=(12, 4)), np.full(12, 0.5), 0.3)
        answers = drawn.integers(-1, 3, (6, 12)).astype(np.int8)
        for row, found in zip(answers, asker.covariance(answers), strict=True):
            told = asker.vectors[(row == LIKE) | (row == DISLIKE)]
            expected = np.linalg.inv(np.eye(4) + told.T @ told / 0.3)
            np.testing.assert_allclose(found, expected, atol=1e-5)
            one_by_one = np.eye(4)
            for vector in told[::-1]:
                moved = one_by_one @ vector
                one_by_one = one_by_one - np.outer(moved, moved) / (0.3 + vector @ moved)
            np.testing.assert_allclose(found, one_by_one, atol=1e-5)

    def test_reads_the_directions_of_taste(self) -> None:
        rows = [(user, item, 5.0 if (user + item // 5) % 2 else 1.0) for user in range(100) for item in range(10)]
        asker = FactorGain.fit(opinions(rows, 100, 10), np.arange(10), dim=2)
        one = np.full((1, 10), UNASKED, np.int8)
        one[0, 0] = LIKE
        before, after = asker.gains(np.full((1, 10), UNASKED, np.int8))[0], asker.gains(one)[0]
        assert (after < before / 3).all()  # a single answer tells all there is to know


class TestLists:
    def test_go_by_counts_worked_out_by_hand(self) -> None:
        rows = [(0, 0, 5), (1, 0, 5), (2, 0, 1), (0, 1, 4), (1, 1, 2), (0, 2, 3)]
        said = opinions(rows, 4, 4)
        half, third = np.log(2), -(1 / 3) * np.log(1 / 3) - (2 / 3) * np.log(2 / 3)
        quarter = -0.25 * np.log(0.25)
        expected = {
            "liked": [2, 1, 0, 0],
            "popular": [3, 2, 1, 0],
            "entropy0": [half / 2 + 2 * quarter, half / 2 + 2 * quarter, quarter - 0.75 * np.log(0.75), 0],
            "pop_entropy": [3 * third, 2 * half, 0, 0],
            "logpop_entropy": [np.log(3) * third, np.log(2) * half, 0, 0],
            "variance": [32 / 9, 1, 0, 0],
            "pop_variance": [np.sqrt(3) * 32 / 9, np.sqrt(2), 0, 0],
        }
        for name, values in expected.items():
            np.testing.assert_allclose(LISTS[name](said), values, atol=1e-5, err_msg=name)

    def test_variance_needs_ratings(self) -> None:
        with pytest.raises(DataError, match="entropy0"):
            LISTS["variance"](opinions([(0, 0, 5)], 1, 1, rated=False))

    def test_a_draw_repeats_with_its_answers(self) -> None:
        answers = np.array([[UNASKED, LIKE], [UNASKED, DISLIKE]], np.int8)
        first, again = Random(3).gains(answers), Random(3).gains(answers)
        assert np.array_equal(first, again)
        assert not np.array_equal(first[0], first[1])
