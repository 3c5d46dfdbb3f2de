"""Examples of recommendations: who is shown, with what titles, and which items count as hits."""

from __future__ import annotations

import recsys as rs
from recsys.data.split import Split
from recsys.eval.report import Report
from recsys.pages.examples import EACH, examples, examples_section


def test_lists_are_those_that_the_model_recommends(
    films: Split, markov: rs.Markov, reports: tuple[Report, Report]
) -> None:
    shown = examples(markov, films.test, reports[0])
    assert 0 < len(shown) <= 2 * EACH
    for one in shown:
        user = int(one.user[1:])
        start, stop = films.prepared.offsets[user : user + 2]
        rows = films.prepared.items[start:stop].tolist()
        history = films.items.raw(films.prepared.items[start : stop - 1]).tolist()
        wanted = markov.recommend([history], k=10).items[0]
        titles = films.item_text["title"]
        assert [title for title, _ in one.listed] == [titles[int(raw[1:]) + 1] for raw in wanted]
        assert one.targets == (titles[rows[-1]],) and one.history[0] == titles[rows[-2]]
        assert one.hits == sum(title == titles[rows[-1]] for title, _ in one.listed)


def test_users_with_a_hit_and_without_are_drawn_alike_each_time(
    films: Split, markov: rs.Markov, reports: tuple[Report, Report]
) -> None:
    shown = examples(markov, films.test, reports[0])
    assert 0 < sum(one.hits > 0 for one in shown) <= EACH and sum(one.hits == 0 for one in shown) <= EACH
    assert examples(markov, films.test, reports[0]) == shown


def test_titles_are_escaped_and_hits_are_marked(
    films: Split, markov: rs.Markov, reports: tuple[Report, Report]
) -> None:
    shown = examples(markov, films.test, reports[0])
    page = examples_section(shown)
    assert "<script" not in page and "&lt;script&gt;" in page
    assert page.count('class="hit"') == sum(one.hits for one in shown)
    assert examples_section(()) == ""


def test_items_without_a_title_go_by_their_id(split: Split) -> None:
    model = rs.Popularity()
    rs.fit(model, split, progress=False)
    shown = examples(model, split.test, rs.evaluate(model, split.test, progress=False))
    assert shown and all(title.startswith("item-") for one in shown for title, _ in one.listed)
