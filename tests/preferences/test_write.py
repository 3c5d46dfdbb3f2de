"""Preferences by rule and by a writer: what reaches a prompt, what is kept, what stands in."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from recsys.errors import DataError, DataWarning
from recsys.preferences.rules import by_rule
from recsys.preferences.table import BY_RULE, Preferences
from recsys.preferences.write import write_preferences
from tests.preferences.shop import GROUPS, KINDS, PER_KIND, Says, shop, text_of

GOOD = '{"preferences": ["Find something shiny", "Avoid plain things"]}'


def kind(row: int) -> int:
    return (row - 1) // PER_KIND


def test_by_rule_equals_a_loop_over_events() -> None:
    split = shop()
    texts, codes = by_rule(split)
    counts = split.train.item_counts()
    sizes = [sum(counts[row] for row in range(1, len(counts)) if kind(row) == k) for k in range(len(KINDS))]
    offsets = split.prepared.offsets
    for user in range(split.num_users):
        for event in range(offsets[user], offsets[user + 1]):
            found = [texts[code] for code in codes[event] if code >= 0]
            if event == offsets[user + 1] - 1:
                assert found == [], "the newest event is nobody's history"
                continue
            recent = [kind(row) for row in split.prepared.items[max(offsets[user], event - 4) : event + 1][::-1]]
            wanted = list(dict.fromkeys(f"Find {KINDS[k]}" for k in recent))[:4]
            beside = [k for k in range(len(KINDS)) if GROUPS[k] == GROUPS[recent[0]] and k not in recent]
            best = sorted(beside, key=lambda k: (-sizes[k], k))[:1]
            assert found == wanted + [f"Avoid {KINDS[k]}" for k in best]
    assert sorted(set(codes[codes >= 0].tolist())) == list(range(len(texts)))


def test_by_rule_reads_nothing_behind_the_event() -> None:
    split = shop()
    texts, codes = by_rule(split)
    items = split.prepared.items.copy()
    last = split.prepared.offsets[1:] - 1
    items[last] = items[last] % PER_KIND + 1
    from dataclasses import replace

    other = replace(split, prepared=replace(split.prepared, items=items))
    again, others = by_rule(other)
    same = [[texts[c] for c in row if c >= 0] for row in codes] == [[again[c] for c in row if c >= 0] for row in others]
    assert same, "the test targets are not among what preferences are made of"


def test_preferences_are_saved_and_loaded(tmp_path: Path) -> None:
    split = shop()
    made = write_preferences(split, folder=tmp_path / "p", progress=False)
    loaded = Preferences.load(tmp_path / "p")
    assert loaded.texts == made.texts and loaded.manifest == made.manifest and loaded.label == BY_RULE
    for name in ("codes", "negative", "inverse", "written"):
        assert np.array_equal(getattr(loaded, name), getattr(made, name))
    assert "reviews" in loaded.manifest["left_out"] and "reviews" in str(loaded)
    loaded.check(split)
    with pytest.raises(DataError, match="other events"):
        loaded.check(shop(seed=1, users=31))
    negative = [made.texts[at] for at in np.flatnonzero(made.negative)]
    assert negative and all(text.startswith("Avoid") for text in negative)
    for at in np.flatnonzero(made.negative):
        assert made.texts[made.inverse[at]] == made.texts[at].replace("Avoid", "Find")


def test_another_sentiment_may_class_them() -> None:
    split = shop()
    made = write_preferences(split, progress=False)
    turned = made.with_sentiment(split, lambda texts: np.array(["brush" in text for text in texts]))
    assert {text for text, bad in zip(turned.texts, turned.negative, strict=True) if bad} == {
        text for text in made.texts if "brush" in text and made.given[made.texts.index(text)]
    }


def test_a_writer_sees_the_last_five_items_as_records(tmp_path: Path) -> None:
    split, writer = shop(users=3), Says(lambda user: GOOD)
    made = write_preferences(split, writer, folder=tmp_path / "p", progress=False)
    assert made.written.sum() == (made.codes >= 0).any(1).sum() == split.prepared.num_events - 3
    test, valid = (part.target_start - 1 for part in (split.test, split.valid))
    seen = {prompt.user for prompt in writer.prompts}
    for event in (*test, *valid):
        user = np.searchsorted(split.prepared.offsets, event, side="right") - 1
        rows = split.prepared.items[max(split.prepared.offsets[user], event - 4) : event + 1].tolist()
        records = [
            {"title": text_of(row), "categories": f"Shop, {GROUPS[kind(row)]}, {KINDS[kind(row)]}"} for row in rows
        ]
        assert "\n".join(f"<item>{json.dumps(record)}</item>" for record in records) in seen
    firsts = {prompt.count("<item>") for prompt in seen}
    assert max(firsts) == 5 and made.label == "preferences by says"


def test_what_cannot_be_read_is_counted_and_replaced(tmp_path: Path) -> None:
    split = shop(users=6)
    answers = {"lipstick": "REFUSE", "perfume": "I would rather not.", "hair": '["Find a thing", "word"]'}

    def says(user: str) -> str:
        newest = user.splitlines()[-1]
        return next(answer for kind, answer in answers.items() if kind in newest)

    with pytest.warns(DataWarning, match="cannot be used"):
        made = write_preferences(split, Says(says), folder=tmp_path / "p", progress=False)
    rule = write_preferences(split, progress=False)
    for event in np.flatnonzero((made.codes >= 0).any(1)):
        found = [made.texts[code] for code in made.codes[event] if code >= 0]
        newest = text_of(int(split.prepared.items[event]))
        if "hair" in newest:
            assert found == ["Find a thing"] and made.written[event]
        else:
            assert found == [rule.texts[code] for code in rule.codes[event] if code >= 0] and not made.written[event]
    told = made.manifest
    assert min(told["refused"], told["useless"], told["rejected"]) > 0 and "by rule at the others" in made.label


def test_nothing_but_nonsense_is_an_error(tmp_path: Path) -> None:
    writer = Says(lambda user: "Lorem ipsum.")
    with pytest.raises(ValueError, match="can be used"):
        write_preferences(shop(), writer, folder=tmp_path / "p", progress=False)
    assert not (tmp_path / "p").exists()
    with pytest.raises(ValueError, match="refuses every prompt"):
        write_preferences(shop(), Says(lambda user: "REFUSE"), folder=tmp_path / "p", progress=False)


def test_an_interrupted_writer_goes_on(tmp_path: Path) -> None:
    split = shop(users=4)

    class Breaks(Says):
        def write(self, prompts: Any, done: Any) -> None:
            super().write(prompts[:9], done)
            raise ConnectionError("down")

    with pytest.raises(ConnectionError, match="9 of"):
        write_preferences(split, Breaks(lambda user: GOOD), folder=tmp_path / "p", progress=False)
    writer = Says(lambda user: GOOD)
    made = write_preferences(split, writer, folder=tmp_path / "p", progress=False)
    assert made.manifest["kept"] == 9 and len(writer.prompts) == made.manifest["asked"]


def test_a_limit_takes_the_events_before_test_targets_first(tmp_path: Path) -> None:
    split = shop(users=10)
    made = write_preferences(split, Says(lambda user: GOOD), folder=tmp_path / "p", limit=10, progress=False)
    assert set(np.flatnonzero(made.written)) == set(split.test.target_start - 1)
    assert made.manifest["over_limit"] == (made.codes >= 0).any(1).sum() - 10


def test_bad_arguments_are_told(tmp_path: Path) -> None:
    from dataclasses import replace

    split = shop(users=3)
    with pytest.raises(ValueError, match="folder="):
        write_preferences(split, Says(lambda user: GOOD))
    with pytest.raises(TypeError, match="writer"):
        write_preferences(split, "gpt", folder=tmp_path / "p")  # type: ignore[arg-type]
    with pytest.raises(DataError, match="item table"):
        write_preferences(replace(split, item_text=None))
    with pytest.raises(ValueError, match="at least 1"):
        write_preferences(split, count=0)
    (tmp_path / "p").mkdir()
    (tmp_path / "p" / "mine").write_text("x")
    with pytest.raises(FileExistsError):
        write_preferences(split, folder=tmp_path / "p")
    with pytest.raises(DataError, match="codes"):
        Preferences.of(split, ["Find a b"], np.ones((3, 1), int))
