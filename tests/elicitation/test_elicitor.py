"""Asking a new user: questions, lists, and what is refused."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest

import recsys as rs
from recsys.data.split import Split
from recsys.elicitation.elicitor import ASKERS, Elicitor
from recsys.elicitation.evaluate import evaluate_elicitation
from recsys.errors import DataError, DataWarning
from recsys.recommenders.base import Ranker

ITEMS = 24


def rated(users: int = 160, seed: int = 0) -> pl.DataFrame:
    """Two tastes: users like their half of the items, dislike the other, and know some of each."""
    drawn = np.random.default_rng(seed)
    rows = []
    for user in range(users):
        for item in drawn.permutation(ITEMS)[: drawn.integers(8, 16)].tolist():
            rows.append((f"u{user}", f"i{item}", 5.0 if (item + user) % 2 else 2.0))
    return pl.DataFrame(rows, ["user", "item", "rating"], orient="row")


@pytest.fixture(scope="module")
def split() -> Split:
    return rs.Dataset.scan(rated(), order="file", event_columns={"rating": "number"}, name="two").split(
        rs.LeaveLast(), audit=False
    )


def ease(split: Split) -> Ranker:
    return rs.fit(rs.EASE(20.0), split).model


@pytest.fixture(scope="module")
def model() -> Ranker:
    """Of the likes alone, so with a catalogue of its own."""
    liked = rs.Dataset.scan(rated().filter(pl.col("rating") > 4), order="file")
    return ease(liked.split(rs.LeaveLast(), audit=False))


@pytest.mark.parametrize("asker", ASKERS)
@pytest.mark.parametrize("reader", ["history", "blend", "groups"])
def test_every_asker_and_reader_leads_through_a_conversation(
    asker: str, reader: str, split: Split, model: Ranker
) -> None:
    elicitor = rs.elicit(model, split, asker, 20, reader, "rating", groups=4)
    answers: list[tuple[str, str]] = []
    for word in ("like", "unknown", "dislike", "unknown", "like"):
        found = elicitor.next(answers, k=3)
        assert len(found.items) == 3
        assert found.gains == sorted(found.gains, reverse=True)
        assert not set(found.items) & {one for one, _ in answers}
        assert found == elicitor.next(answers, k=3)
        answers.append((found.items[0], word))
    top = elicitor.recommend(answers, k=5)
    assert len(top.items[0]) == 5
    assert not set(top.items[0]) & {one for one, _ in answers}
    assert np.isfinite(top.scores).all()


def test_answers_move_lists_to_the_taste_they_show(split: Split, model: Ranker) -> None:
    for reader in ("blend", "groups"):
        elicitor = rs.elicit(model, split, "group_gain", 24, reader, "rating", groups=2, weight=0.01)
        for taste in (0, 1):
            answers = [(f"i{item}", "like" if item % 2 == taste else "dislike") for item in range(8)]
            found = elicitor.recommend(answers, k=6).items[0]
            assert all(int(one[1:]) % 2 == taste for one in found), (reader, found)


class TestReaders:
    def test_7_a_blend_of_nothing_is_the_history_and_a_heavy_one_popularity(self, split: Split, model: Ranker) -> None:
        answers = [("i1", "like"), ("i2", "dislike"), ("i3", "unknown"), ("i4", "like")]
        history = rs.elicit(model, split, reader="history", rating="rating").recommend(answers, k=20)
        nothing = rs.elicit(model, split, reader="blend", rating="rating", weight=0.0).recommend(answers, k=20)
        heavy = rs.elicit(model, split, reader="blend", rating="rating", weight=1e6)
        assert history.items == nothing.items
        assert history.items == model.recommend([["i1", "i4"]], k=20, deny=["i2", "i3"]).items
        shares = heavy.likes[model.vocabulary.rows(heavy.recommend(answers, k=20).items[0]) - 1]
        assert (np.diff(shares) <= 0).all()

    def test_8_without_a_like_it_is_popularity(self, split: Split, model: Ranker) -> None:
        for reader in ("history", "blend"):
            elicitor = rs.elicit(model, split, reader=reader, rating="rating")
            likes = elicitor.likes
            for answers in ([], [("i1", "unknown")], [("i1", "dislike"), ("i2", "dislike")]):
                top = elicitor.recommend(answers, k=3)
                left = [at for at in range(ITEMS) if model.vocabulary.raw(np.array([at + 1]))[0] not in dict(answers)]
                best = sorted(left, key=lambda at: (-likes[at], at))[:3]
                assert top.items[0] == model.vocabulary.raw(np.array(best) + 1).tolist()
                assert top.fallback.all()

    def test_models_that_read_more_than_ids_are_refused(self, split: Split, model: Ranker) -> None:
        class Timed(type(model)):  # type: ignore[misc]
            needs = frozenset({"times"})

        timed = Timed()
        timed.vocabulary, timed.num_items = model.vocabulary, model.num_items
        with pytest.raises(ValueError, match="times"):
            rs.elicit(timed, split, rating="rating")


class TestRefusals:
    def test_answers_that_are_none(self, split: Split, model: Ranker) -> None:
        elicitor = rs.elicit(model, split, rating="rating")
        for wrong in ([("i1", "love")], ["i1"], [("i1",)], [("i1", None)]):
            with pytest.raises(ValueError, match=r"answer|'like'"):
                elicitor.next(wrong)
        for k in (0, -1):
            with pytest.raises(ValueError, match="k"):
                elicitor.next([], k=k)

    def test_names_and_numbers(self, split: Split, model: Ranker) -> None:
        for wrong in ({"asker": "likes"}, {"reader": "histoy"}, {"pool": 0}, {"weight": -1.0}, {"weight": np.nan}):
            with pytest.raises(ValueError):
                rs.elicit(model, split, **{"rating": "rating", **wrong})
        with pytest.raises(DataError, match="event_columns"):
            rs.elicit(model, split, rating="stars")
        with pytest.raises(ValueError, match="fit"):
            rs.elicit(rs.EASE(), split)

    def test_unknown_items_are_counted(self, split: Split, model: Ranker) -> None:
        elicitor = rs.elicit(model, split, rating="rating")
        with pytest.warns(DataWarning, match="1 of 2 items are unknown"):
            top = elicitor.recommend([("nothing", "like"), ("i1", "like")], k=3)
        assert top.unknown.tolist() == [1]

    def test_8_more_questions_than_the_pool_has(self, split: Split, model: Ranker) -> None:
        elicitor = rs.elicit(model, split, pool=4, rating="rating")
        found = elicitor.next([], k=50)
        assert len(found.items) == 4
        over = elicitor.next([(one, "unknown") for one in found.items])
        assert over.items == []
        assert over.enough
        assert elicitor.next([], k=9, allow=[found.items[2], "i0"]).items[0] in (found.items[2], "i0")

    def test_the_last_answer_about_an_item_counts(self, split: Split, model: Ranker) -> None:
        elicitor = rs.elicit(model, split, rating="rating")
        twice = elicitor.recommend([("i1", "like"), ("i2", "like"), ("i1", "dislike")], k=5)
        assert twice.items == elicitor.recommend([("i1", "dislike"), ("i2", "like")], k=5).items


class TestSaved:
    @pytest.mark.parametrize(("asker", "reader"), [("liked", "blend"), ("group_gain", "groups"), ("random", "history"),
                                                   ("factor_gain", "blend"), ("probable", "blend")])  # fmt: skip
    def test_11_a_folder_asks_as_the_fitted_one(
        self, asker: str, reader: str, split: Split, model: Ranker, tmp_path: Path
    ) -> None:
        elicitor = rs.elicit(model, split, asker, 15, reader, "rating", groups=3)
        elicitor.save(tmp_path / "asks")
        loaded = Elicitor.load(tmp_path / "asks", model)
        answers = [("i1", "like"), ("i2", "unknown"), ("i5", "dislike")]
        assert loaded.next(answers, k=4) == elicitor.next(answers, k=4)
        assert loaded.recommend(answers).items == elicitor.recommend(answers).items

    def test_of_another_catalogue_is_refused(self, split: Split, model: Ranker, tmp_path: Path) -> None:
        rs.elicit(model, split, rating="rating").save(tmp_path / "asks")
        other = rs.Dataset.scan(rated().filter(pl.col("item") != "i3"), order="file").split(rs.LeaveLast(), audit=False)
        with pytest.raises(DataError, match="another catalogue"):
            Elicitor.load(tmp_path / "asks", ease(other))


class TestEvaluation:
    @pytest.fixture(scope="class")
    @classmethod
    def found(cls, split: Split) -> dict[tuple[str, str], object]:
        every = evaluate_elicitation(
            split, ease, ["liked", "random", "group_gain", "all"], {"history": 0.0, "blend": 0.3}, (0, 3, 6), 24,
            "rating", groups=4, progress=False,
        )  # fmt: skip
        return {(one.asker, one.reader): one for one in every}

    def test_6_no_question_is_popularity_for_everyone(self, found: dict) -> None:
        [value] = {one.reports[0].mean("ndcg@10") for (name, _), one in found.items() if name != "all"}
        assert 0 < value < 1

    def test_6_all_have_the_same_candidates_and_targets(self, found: dict) -> None:
        assert len({report.meta["fingerprint"] for one in found.values() for report in one.reports.values()}) == 1
        candidates = [report.columns["candidates"] for one in found.values() for report in one.reports.values()]
        assert all(np.array_equal(one, candidates[0]) for one in candidates)

    def test_questions_help_where_tastes_differ(self, found: dict) -> None:
        for reader in ("history", "blend"):
            one = found["group_gain", reader]
            assert one.reports[6].mean("ndcg@10") > one.reports[0].mean("ndcg@10") + 0.05
            assert one.answered[6] <= 6
            assert one.likes[6] <= one.answered[6]

    def test_reports_are_compared(self, found: dict) -> None:
        pair = rs.compare(found["liked", "blend"].reports[6], found["random", "blend"].reports[6], metrics="ndcg@10")
        assert pair.meta["users"] == found["liked", "blend"].reports[6].users
        assert 0 <= found["liked", "blend"].worst(6) <= found["liked", "blend"].reports[6].mean("ndcg@10")

    def test_time_halves_answer_with_the_older_events(self, split: Split) -> None:
        from recsys.elicitation.evaluate import conversations
        from recsys.elicitation.opinions import Opinions

        asked = conversations(split, "rating", 4.0, "time", "test", 7)
        everyone = Opinions.of(split, "rating", part="all")
        for at, user in enumerate(asked.users.tolist()):
            own = everyone.items[everyone.owner == user]
            half = asked.answers.items[asked.answers.owner == at]
            assert half.tolist() == own[: len(half)].tolist()
            assert not asked.targets[at, half].any()

    def test_training_users_are_not_asked(self, split: Split) -> None:
        from recsys.elicitation.evaluate import conversations

        parts = [conversations(split, "rating", 4.0, "random", part, 7) for part in ("valid", "test")]
        assert not set(parts[0].users.tolist()) & set(parts[1].users.tolist())
        assert parts[0].training.num_users == 128

    def test_refuses(self, split: Split) -> None:
        for wrong in (
            {"askers": ["likes"]},
            {"readers": ["sum"]},
            {"budgets": ()},
            {"part": "train"},
            {"halves": "no"},
        ):
            with pytest.raises(ValueError):
                evaluate_elicitation(split, ease, rating="rating", progress=False, **wrong)
