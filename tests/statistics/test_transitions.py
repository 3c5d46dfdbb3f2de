"""Memorised, composed and neither, against the definitions in plain sets; numbers are those of the checks of rpg.md."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

import recsys as rs
from recsys.data.prepared import Prepared
from recsys.data.split import Split, TrainingEvents
from recsys.data.splitters import LeaveLast
from recsys.errors import DataWarning
from recsys.ids.vocabulary import Vocabulary
from recsys.statistics import neighbours, transitions
from recsys.statistics.transitions import (
    KINDS,
    LABELS,
    by_user,
    composed,
    label,
    memorised,
    memorised_codes,
    newest,
    relations,
)


def prepared(histories: list[list[int]], items: int) -> Prepared:
    offsets = np.concatenate([[0], np.cumsum([len(one) for one in histories])]).astype(np.int64)
    return Prepared(np.array([item for one in histories for item in one], np.int32), offsets, items)


def trained(histories: list[list[int]], items: int) -> TrainingEvents:
    found = prepared(histories, items)
    return TrainingEvents(found, found.offsets[:-1], found.offsets[1:])


def split_of(histories: list[list[int]], items: int) -> Split:
    names = Vocabulary(np.arange(1, items + 1), 1), Vocabulary(np.arange(len(histories)), 0)
    return Split.of(prepared(histories, items), LeaveLast(), *names)


def drawn(seed: int, users: int = 12, items: int = 40, longest: int = 7) -> list[list[int]]:
    rng = np.random.default_rng(seed)
    return [rng.integers(1, items + 1, rng.integers(0, longest + 1)).tolist() for _ in range(users)]


def cases(seed: int, items: int = 40, count: int = 80) -> tuple[np.ndarray, np.ndarray]:
    """(n, 4) newest items, some histories shorter, and (n,) targets."""
    rng = np.random.default_rng(1000 + seed)
    recent = rng.integers(1, items + 1, (count, 4))
    recent[np.arange(4) >= rng.integers(0, 5, count)[:, None]] = 0
    return recent, rng.integers(1, items + 1, count)


def followers(histories: list[list[int]], items: int, hop: int) -> tuple[list[set[int]], list[set[int]]]:
    after, before = [set() for _ in range(items + 1)], [set() for _ in range(items + 1)]
    for history in histories:
        for at, item in enumerate(history):
            for other in history[at + 1 : at + 1 + hop]:
                after[item].add(other)
                before[other].add(item)
    return after, before


def by_sets(histories: list[list[int]], items: int, recent: list[int], v: int) -> tuple[bool, list[int]]:
    """Whether a case is memorised, and the smallest hop of each kind (0: none), as the definitions read."""
    hops = [0, 0, 0, 0]
    for hop in range(1, 5):
        after, before = followers(histories, items, hop)
        for u in filter(None, recent[:hop]):
            holds = (
                hop >= 2 and v in after[u],
                u in after[v],
                bool(after[u] & before[v]),
                bool(after[v] & before[u] or after[v] & after[u] or before[v] & before[u]),
            )
            hops = [old or (hop if new else 0) for old, new in zip(hops, holds, strict=True)]
    return bool(recent[0]) and v in followers(histories, items, 1)[0][recent[0]], hops


@pytest.mark.parametrize("seed", range(6))
def test_rpg_14_14_as_the_definitions_in_sets(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transitions, "FIRST", (2**17, 8)[seed % 2])  # all at once, or a few events first
    monkeypatch.setattr(neighbours, "LOOKED_UP", (2**22, 5)[seed % 2])
    histories, (recent, target) = drawn(seed), cases(seed)
    known = [pair for history in histories for pair in pairwise(history)][:8]
    recent[: len(known), 0], target[: len(known)] = np.array(known).T
    training = trained(histories, 40)
    expected = [by_sets(histories, 40, one.tolist(), int(v)) for one, v in zip(recent, target, strict=True)]
    known, hops = np.array([one for one, _ in expected]), np.array([one for _, one in expected])
    assert memorised(training, recent[:, 0], target).tolist() == known.tolist()
    np.testing.assert_array_equal(relations(training, recent, target), hops)
    np.testing.assert_array_equal(composed(training, recent, target)[~known], hops[~known].any(1))

    cold = ~np.isin(target, [item for one in histories for item in one])
    names = np.where(known, "memorised", np.where(hops.any(1), "composed", "neither")).astype(object)
    names[cold], names[recent[:, 0] == 0] = "cold target", "no history"
    assert [LABELS[code] for code in label(training, recent, target)] == names.tolist()
    kinds = [f"composed, {KINDS[at]}" for at in (hops > 0).argmax(1)]
    names = np.where(names == "composed", kinds, names)
    assert [LABELS[code] for code in label(training, recent, target, kinds=True)] == names.tolist()
    assert {"memorised", "neither", "cold target", "no history"} < set(names.tolist())


def test_rpg_14_14_one_of_each_kind() -> None:
    training = trained([[1, 2, 3, 4, 5], [6, 7, 8], [9, 7], [6, 10], [11, 12]], 14)
    found = {
        (1, 2): "memorised",
        (2, 1): "composed, symmetric",
        (7, 10): "composed, second order",  # both follow 6
        (9, 6): "composed, second order",  # both are followed by 7
        (6, 13): "cold target",
        (2, 12): "neither",
        (0, 2): "no history",
    }
    recent = np.array([[u, 0, 0, 0] for u, _ in found])
    codes = label(training, recent, np.array([v for _, v in found]), kinds=True)
    assert [LABELS[code] for code in codes] == list(found.values())
    two = label(training, np.array([[14, 1, 0, 0], [11, 2, 0, 0]]), np.array([3, 3]), kinds=True)
    assert [LABELS[code] for code in two] == ["composed, substitutable"] * 2  # 1 . 3 and 2 3 from the item before
    one = label(trained([[1, 2], [2, 3]], 3), np.array([[1, 0, 0, 0]]), np.array([3]), kinds=True)
    assert LABELS[one[0]] == "composed, transitive"


def test_rpg_14_14_a_deleted_pair_only_takes_from_what_is_memorised() -> None:
    histories, (recent, target) = drawn(3, users=40, items=12), cases(3, items=12)
    before = memorised(trained(histories, 12), recent[:, 0], target)
    fewer = 0
    for user in range(0, 40, 3):
        less = [one[:-1] if at == user else one for at, one in enumerate(histories)]
        after = memorised(trained(less, 12), recent[:, 0], target)
        assert not (after & ~before).any()
        fewer += int((before & ~after).sum())
    assert fewer > 0


def test_only_training_counts_and_the_newest_item_of_a_test_history_is_the_validation_item() -> None:
    split = split_of([[1, 2, 3, 4], [5, 6, 3, 4], [7, 3, 8, 2], [2, 3, 4, 9, 5, 6]], 9)
    index = np.arange(4)
    assert newest(split.test, index).tolist() == [[3, 2, 1, 0], [3, 6, 5, 0], [8, 3, 7, 0], [5, 9, 4, 3]]
    assert newest(split.valid, index)[:2].tolist() == [[2, 1, 0, 0], [6, 5, 0, 0]]
    test = [LABELS[code] for code in by_user(split.test, index, *split.test.targets(index))]
    assert test[:2] == ["memorised", "memorised"]  # 3 4, of user 3
    assert test[2] != "memorised"  # 8 2 are a validation and a test event
    valid = [LABELS[code] for code in by_user(split.valid, index, *split.valid.targets(index))]
    assert valid == ["memorised", "neither", "cold target", "neither"]  # 2 3; 6 3; 8 is not trained on; 9 5


def test_users_of_several_targets_are_mixed_unless_these_agree() -> None:
    part = split_of([[1, 2, 3, 4], [5, 6, 3, 4], [1, 2, 8, 9]], 12).test
    owner, target = np.array([0, 0, 1, 1, 2]), np.array([10, 11, 10, 2, 12])
    assert [LABELS[code] for code in by_user(part, np.arange(3), owner, target)] == [
        "cold target", "mixed", "cold target",
    ]  # fmt: skip
    answer = by_user(part, np.arange(3), owner, target)
    answer[:] = 0  # and the next one gets its own
    assert [LABELS[code] for code in by_user(part, np.arange(3), owner, target)][1] == "mixed"


def test_a_part_without_split_knows_no_transitions() -> None:
    part = replace(split_of([[1, 2, 3]], 3).test, split=None)
    assert by_user(part, np.arange(1), np.array([0]), np.array([3])) is None


def test_too_many_pairs_are_not_held(monkeypatch: pytest.MonkeyPatch) -> None:
    histories, (recent, target) = drawn(5, users=60), cases(5)
    training = trained(histories, 40)
    whole = label(training, recent, target)
    monkeypatch.setattr(neighbours, "PAIRS", 200)
    monkeypatch.setattr(transitions, "FIRST", 25)  # whose neighbours can be held
    with pytest.warns(DataWarning, match="undecided: more than 200"):
        found = label(training, recent, target)
    names = np.array([LABELS[code] for code in found])
    assert {"undecided", "composed"} < set(names)  # and what is proved by a part is kept
    assert {LABELS[code] for code in whole[names == "undecided"]} <= {"composed", "neither"}
    np.testing.assert_array_equal(found[names != "undecided"], whole[names != "undecided"])
    assert "neither" not in names
    with pytest.warns(DataWarning, match="undecided"):
        kinds = label(training, recent, target, kinds=True)
    np.testing.assert_array_equal(kinds == LABELS.index("undecided"), np.isin(whole, [1, LABELS.index("neither")]))
    with pytest.raises(MemoryError, match="200"):
        relations(training, recent, target)


def test_nothing_to_tell_apart() -> None:
    nobody = trained([[], []], 3)
    assert label(nobody, np.zeros((0, 4), np.int64), np.zeros(0, np.int64)).shape == (0,)
    assert LABELS[label(nobody, np.array([[1, 0, 0, 0]]), np.array([2]))[0]] == "cold target"
    assert memorised_codes(nobody, np.zeros((4, 2), int), np.array([1]), np.array([2])).tolist() == [[False, False]]


@pytest.mark.parametrize("ordered", [True, False])
def test_rpg_14_15_codes_against_sets(ordered: bool) -> None:
    histories, (recent, target) = drawn(7, users=25, items=30), cases(7, items=30)
    recent[:, 0] = np.maximum(recent[:, 0], 1)
    codes = np.random.default_rng(7).integers(0, 3, (31, 4))
    seen = [(a, b) for history in histories for a, b in pairwise(history)]
    found = memorised_codes(trained(histories, 30), codes, recent[:, 0], target, ordered=ordered)
    for level in range(4):
        part = slice(0, level + 1) if ordered else slice(level, level + 1)
        known = {(*codes[a, part], -1, *codes[b, part]) for a, b in seen}
        expected = [(*codes[u, part], -1, *codes[v, part]) in known for u, v in zip(recent[:, 0], target, strict=True)]
        assert found[:, level].tolist() == expected
    if ordered:  # non-increasing, and with a code of its own for each item it is the pair of items
        assert (np.diff(found.astype(int), axis=1) <= 0).all()
        own = memorised_codes(trained(histories, 30), np.arange(31)[:, None], recent[:, 0], target)
        np.testing.assert_array_equal(own[:, 0], memorised(trained(histories, 30), recent[:, 0], target))


@pytest.mark.parametrize("codes", [np.zeros((5, 2)), np.zeros((4, 2), int), np.zeros(5, int)])
def test_a_wrong_table_of_codes_is_refused(codes: np.ndarray) -> None:
    with pytest.raises(ValueError, match="codes"):
        memorised_codes(trained([[1, 2, 3, 4]], 4), codes, np.array([1]), np.array([2]))


MIRROR = Path(os.environ.get("RECSYS_MIRROR", "nowhere"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "shares", "kinds"),
    [
        ("amazon-beauty", (0.0861, 0.8125, 0.1014), (0.1653, 0.1188, 0.6626, 0.7794)),
        ("amazon-sports", (0.0513, 0.8474, 0.1013), None),
    ],
)
def test_rpg_14_14_the_published_shares(name: str, shares: tuple[float, ...], kinds: tuple[float, ...] | None) -> None:
    if not (MIRROR / name).is_dir():
        pytest.skip(f"{name} is not here: RECSYS_MIRROR names a folder of data sets")
    part = rs.load(name).split(rs.LeaveLast()).test
    index = np.arange(len(part))
    owner, target = part.targets(index)
    share = np.bincount(by_user(part, index, owner, target), minlength=len(LABELS)) / len(part)
    found = dict(zip(LABELS, share, strict=True))
    assert (found["memorised"], found["composed"], found["neither"] + found["cold target"]) == pytest.approx(
        shares, abs=5e-5
    )
    if kinds:
        recent = newest(part, index)
        rest = ~memorised(part.split.train, recent[:, 0], target)
        hops = relations(part.split.train, recent[rest], target[rest])
        assert ((hops > 0).sum(0) / len(part)).tolist() == pytest.approx(kinds, abs=5e-5)


@pytest.mark.slow
def test_rpg_14_15_codes_of_amazon_beauty() -> None:
    path = MIRROR / "amazon-beauty" / "Beauty.index.json"
    if not path.is_file():
        pytest.skip("amazon-beauty is not here: RECSYS_MIRROR names a folder of data sets")
    split = rs.load("amazon-beauty").split(rs.LeaveLast())
    table = json.loads(path.read_text())  # "<a_12>" by item id - 1
    codes = np.zeros((split.num_items + 1, 4), np.int64)
    for row, raw in enumerate(split.items.ids, 1):
        codes[row] = [int(one.strip("<>").partition("_")[2]) for one in table[str(int(raw) - 1)]]
    index = np.arange(len(split.test))
    last, target = newest(split.test, index)[:, 0], split.test.targets(index)[1]
    found = memorised_codes(split.train, codes, last, target).mean(0)
    assert found.tolist() == pytest.approx([0.948, 0.153, 0.096, 0.087], abs=5e-4)
    permuted = codes.copy()
    permuted[1:] = np.random.default_rng(0).permutation(codes[1:])
    found = memorised_codes(split.train, permuted, last, target).mean(0)
    assert found.tolist() == pytest.approx([0.953, 0.095, 0.087, 0.086], abs=3e-3)
