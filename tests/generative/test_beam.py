"""Beams against an exhaustive search: each item of each history scored on its own, hidden ones left out, sorted."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import recsys as rs
from recsys.data.prepared import Prepared
from recsys.data.split import Split
from recsys.generative import trie as trie_module
from recsys.generative.beam import Beam, all_log_probs, exact_log_probs
from recsys.ids.vocabulary import Vocabulary
from recsys.ranking.filters import Shown
from recsys.semantic_ids.table import SemanticIds
from recsys.testing import toy_batch
from tests.generative.coded import Asked, Coded, Recurrent, Tabled, lists, ranked, told
from tests.generative.tiny import code_items


@pytest.fixture(params=["tables", "ranges"], autouse=True)
def layout(request, monkeypatch) -> None:
    """Children of the first levels by table, as they are for small catalogues, and by range, as further down."""
    if request.param == "ranges":
        monkeypatch.setattr(trie_module, "TABLE", 0)


def made(count: int = 60, sizes: tuple[int, ...] = (4, 5, 6), users: int = 5, seed: int = 0, share: int = 0) -> Any:
    """Items of which ``share`` repeat the codes of others, a decoder for them, and histories."""
    random = np.random.default_rng(seed)
    codes = np.stack(np.unravel_index(random.permutation(int(np.prod(sizes)))[:count], sizes), 1)
    if share:
        codes[random.permutation(count)[:share]] = codes[random.integers(0, count, share)]
    asked = Asked(torch.randn(users, 8, generator=torch.Generator().manual_seed(seed)))
    return Coded(codes, list(sizes)), Recurrent(list(sizes), seed=seed), asked


def close(found: Any, wanted: Any) -> None:
    assert found[0] == wanted[0]
    for one, other in zip(found[1], wanted[1], strict=True):
        assert one == pytest.approx(other, abs=1e-4)


def find(rows: Any) -> np.ndarray:
    return np.array([row - 1 for row in rows], np.int64)


def shown_to(users: int, histories: Any = None, allow: Any = None, deny: Any = None) -> Shown:
    return Shown.of(find, histories or [[]] * users, "history", allow, deny, empty=True)


def test_semantic_ids_12_5_beam_as_wide_as_the_catalogue_is_exact() -> None:
    items, decoder, asked = made()
    scores = told(decoder, asked, items)
    rows, values = Beam(60)(decoder, asked, items, None, 60)
    assert rows.dtype == torch.int64 and values.dtype == torch.float32
    close(lists(rows, values), ranked(scores, None, 60))
    close(lists(*Beam(60)(decoder, asked, items, None, 7)), ranked(scores, None, 7))
    assert (values.exp().sum(1) <= 1 + 1e-5).all()  # joint probabilities, not those among what exists


def test_semantic_ids_12_5_narrow_beams_give_distinct_items_with_their_exact_scores() -> None:
    items, decoder, asked = made()
    rows, values = Beam(6)(decoder, asked, items, None, 6)
    assert decoder.widths == [4, 6]  # no more than there are children, then the same at every level
    found, scores = lists(rows, values)
    assert all(len(set(one)) == 6 and one_scores == sorted(one_scores)[::-1] for one, one_scores in zip(found, scores))
    assert torch.allclose(values, exact_log_probs(decoder, asked, items, rows), atol=1e-4)


def test_beams_are_those_of_a_plain_search() -> None:
    items, decoder, asked = made(400, (8, 12, 3, 7), users=4, share=50)
    histories = [list(range(1 + 90 * user, 100 + 90 * user)) for user in range(4)]
    found, scores = lists(*Beam(10)(decoder, asked, items, shown_to(4, histories), 10))
    for user, seen in enumerate(histories):
        paths = {row: codes for row, codes in enumerate(items.codes[1:].tolist(), 1) if row not in seen}
        beams = {(): 0.0}
        for level in range(4):
            known = {tuple(codes[: level + 1]) for codes in paths.values()}
            longer = {}
            for beam, score in beams.items():
                memory = decoder.begin(Asked(asked.users[user : user + 1]), items)
                log_probs, memory = decoder.step(memory, items, None, None)
                for code, first in zip(beam, decoder.first):
                    token = torch.tensor([[first + code]])
                    log_probs, memory = decoder.step(memory, items, token, torch.zeros_like(token))
                longer |= {
                    (*beam, code): score + value
                    for code, value in enumerate(log_probs[0, 0].tolist())
                    if (*beam, code) in known
                }
            beams = dict(sorted(longer.items(), key=lambda one: -one[1])[:10])
        wanted = sorted((-beams[tuple(codes)], row) for row, codes in paths.items() if tuple(codes) in beams)[:10]
        close(([found[user]], [scores[user]]), ([[row for _, row in wanted]], [[-value for value, _ in wanted]]))


def test_exclusions_allow_and_deny_lists_act_inside_the_search() -> None:
    items, decoder, asked = made(share=20)
    scores, draw = told(decoder, asked, items), np.random.default_rng(1)
    some = lambda n: [int(one) for one in draw.integers(1, 61, n)]
    histories = [some(n) for n in (0, 3, 10, 40, 200)]
    each = [None, some(5), [], some(30), some(60)]
    for allow, deny in [
        (None, None),
        (None, some(20)),
        (some(20), None),
        (some(30), some(30)),
        (each, None),
        (each, some(9)),
        (None, each),
        (each, each[::-1]),
        ([], None),
        (None, list(range(1, 61))),
    ]:
        shown = shown_to(5, histories, allow, deny)
        for width, k in ((60, 60), (60, 8)):
            close(lists(*Beam(width)(decoder, asked, items, shown, k)), ranked(scores, shown, k))
        found, _ = lists(*Beam(4)(decoder, asked, items, shown, 8))
        complete, _ = ranked(scores, shown, 60)
        for one, whole in zip(found, complete):
            assert len(set(one)) == len(one) == min(8, len(whole)) and set(one) <= set(whole)


def test_items_of_equal_codes_are_all_listed_by_row() -> None:
    items = Coded([[1, 0], [0, 1], [1, 0], [1, 1], [1, 0]], [2, 2])
    tables = [torch.tensor([[-2.0, -0.5]]), torch.tensor([[-1.0, -1.0]])]
    found = lists(*Beam(1)(Tabled(tables), None, items, None, 5))
    assert found == ([[1, 3, 4, 5, 2]], [[-1.5, -1.5, -1.5, -1.5, -3.0]])
    shown = shown_to(1, [[3]])
    assert lists(*Beam(1)(Tabled(tables), None, items, shown, 2)) == ([[1, 4]], [[-1.5, -1.5]])
    assert lists(*Beam(1)(Tabled(tables), None, items, shown_to(1, allow=[[5, 3]]), 2))[0] == [[3, 5]]
    assert lists(*Beam(1)(Tabled(tables), None, items, shown_to(1, deny=[1, 4]), 2))[0] == [[3, 5]]


def test_a_catalogue_of_equal_codes_lists_the_first_that_may_be_shown() -> None:
    items = Coded(np.zeros((3000, 2), int), [1, 1])
    tables = [torch.zeros(2, 1), torch.zeros(2, 1)]
    shown = shown_to(2, [[1, 3], []])
    assert lists(*Beam(2)(Tabled(tables), None, items, shown, 3))[0] == [[2, 4, 5], [1, 2, 3]]


def test_one_item_one_level_and_nothing_left() -> None:
    one = Coded([[2]], [3])
    tables = [torch.tensor([[-1.0, -2.0, -3.0]])]
    assert lists(*Beam()(Tabled(tables), None, one, None, 10)) == ([[1]], [[-3.0]])
    rows, scores = Beam()(Tabled(tables), None, one, shown_to(1, [[1]]), 10)
    assert rows.tolist() == [[0]] and scores.tolist() == [[-np.inf]]
    flat = Coded([[2], [0], [1]], [3])
    assert lists(*Beam(1)(Tabled(tables), None, flat, None, 2)) == ([[2, 3]], [[-1.0, -2.0]])
    assert Beam()(Recurrent([3]), Asked(torch.zeros(0, 8)), flat, None, 2)[0].shape == (0, 2)


def test_rpg_14_17_two_ids_never_yield_a_third() -> None:
    items = Coded([[1, 2, 3], [8, 2, 9]], [10, 10, 10])
    tables = [torch.full((1, 10), -5.0) for _ in range(3)]
    tables[0][0, 1] = tables[1][0, 2] = tables[2][0, 9] = 0  # the codes of (1, 2, 9), which is no item
    assert lists(*Beam(5)(Tabled(tables), None, items, None, 5)) == ([[1, 2]], [[-5.0, -5.0]])
    assert lists(*Beam(1)(Tabled(tables), None, items, None, 1)) == ([[1]], [[-5.0]])


def test_semantic_ids_12_6_what_a_filter_leaves_of_all_codes_is_what_the_trie_finds() -> None:
    """A beam over all sequences of codes, wide enough to be exact, filtered afterwards: never more than ours."""
    items, decoder, asked = made(40)
    everything = Coded(np.stack(np.unravel_index(np.arange(120), (4, 5, 6)), 1), [4, 5, 6])
    rows, values = Beam(120)(decoder, asked, everything, None, 120)
    known = {tuple(codes): row for row, codes in enumerate(items.codes[1:].tolist(), 1)}
    for width in (10, 120):
        filtered = [
            [known[codes] for codes in map(tuple, everything.codes[one[:width]].tolist()) if codes in known]
            for one in rows
        ]
        ours, _ = lists(*Beam(120)(decoder, asked, items, None, width))
        assert all(kept == own[: len(kept)] for kept, own in zip(filtered, ours))
    assert torch.allclose(values.exp().sum(1), torch.ones(5), atol=1e-4)  # of all codes the probabilities sum up to one


def test_semantic_ids_12_6_a_trained_model_hardly_ever_names_what_is_no_item(tmp_path: Path) -> None:
    """Of the ten likeliest sequences of codes, searched without the trie, fewer than 5% belong to no item."""
    random = np.random.default_rng(0)
    steps = random.integers(1, 13, (400, 8))  # each item is followed by one of twelve
    rows = (random.integers(0, 20, (400, 1)) + steps.cumsum(1)) % 20 + 1
    prepared = Prepared(rows.astype(np.int32).ravel(), np.arange(0, 3201, 8), 20, order="file")
    raw = Vocabulary(np.array([f"item-{i}" for i in range(20)], dtype=object), first=1)
    split = Split.of(prepared, rs.LeaveLast(), raw, Vocabulary(np.arange(400), first=0), name="twelve")
    number = np.random.default_rng(0).permutation(split.num_items)
    codes = np.stack([number // 4, number % 4, number % 2], 1)
    SemanticIds.of(split.items.ids, codes, [10, 10, 10]).save(tmp_path / "ids")
    model = rs.Generator(
        rs.CodeItems(16, str(tmp_path / "ids"), tied=True, std=1.0),
        rs.SASRec(16, num_layers=1, dropout=0.0, max_length=8),
        rs.CodeDecoder(16, 1, 2, 8, 32, 0.0),
        Beam(10),
    )
    rs.fit(model, split, epochs=40, learning_rate=0.01, batch_size=64, validate_every=0, progress=False)
    everything = code_items(np.stack(np.unravel_index(np.arange(1000), (10, 10, 10)), 1), (10, 10, 10))
    for name in ("tokens", "prototypes"):
        setattr(everything, name, getattr(model.items, name))
    batch = rs.NextItem().train(toy_batch((5, 3, 7, 4), num_items=split.num_items))
    with torch.no_grad():
        encoded = model.eval().encoder(replace(batch, targets=None), model.items)
        rows, _ = Beam(10)(model.decoder, encoded, everything, None, 10)
    known = {tuple(one) for one in codes.tolist()}
    invalid = [tuple(one) not in known for one in everything.codes[rows.flatten()].tolist()]
    assert np.mean(invalid) < 0.05


def test_semantic_ids_12_7_lists_do_not_depend_on_the_batch() -> None:
    items, decoder, asked = made(share=10, users=6)
    histories = [list(range(1, 1 + 7 * n)) for n in range(6)]
    whole = lists(*Beam(5)(decoder, asked, items, shown_to(6, histories), 5))
    for user in (0, 3, 5):
        alone = Asked(asked.users[user : user + 1])
        found = lists(*Beam(5)(decoder, alone, items, shown_to(1, histories[user : user + 1]), 5))
        close(found, ([whole[0][user]], [whole[1][user]]))


def test_lists_longer_than_the_beam_are_searched_with_more_and_counted() -> None:
    items, decoder, asked = made()
    beam = Beam(4)
    close(lists(*beam(decoder, asked, items, None, 60)), ranked(told(decoder, asked, items), None, 60))
    beam(decoder, asked, items, None, 4)
    tally = beam.tally
    assert (tally.histories, tally.raised, tally.widened, tally.short, tally.missing) == (10, 5, 0, 0, 0)


def test_beams_that_end_in_probability_zero_are_searched_again_until_the_list_is_full() -> None:
    """The best first code leads to codes of probability zero alone, for the first of two histories."""
    codes = [[a, b] for a in range(6) for b in range(3)]
    first = torch.tensor([[0.0, -1.0, -1.5, -2.0, -2.5, -3.0], [-1.0, -2.0, -2.0, -2.0, -2.0, -2.0]])

    class Ending(Tabled):
        def step(self, memory: Any, items: Any, tokens: Any, parents: Any) -> Any:
            log_probs, memory = super().step(memory, items, tokens, parents)
            if tokens is not None:
                log_probs = log_probs.clone()
                log_probs[0, (tokens[0] <= 4)] = -torch.inf  # after the first four codes of level one
            return log_probs, memory

    decoder, beam = Ending([first, torch.tensor([[-1.0, -1.5, -2.0]] * 2)]), Beam(2)
    items = Coded(codes, [6, 3])
    found = lists(*beam(decoder, None, items, None, 2))
    assert found == ([[13, 14], [1, 2]], [[-3.5, -4.0], [-2.0, -2.5]])
    assert (beam.tally.widened, beam.tally.short, beam.tally.missing) == (1, 0, 0)
    found = lists(*beam(decoder, None, items, shown_to(2, [range(14, 18), []]), 4))
    assert found[0] == [[13, 18], [1, 2, 3, 4]]
    assert (beam.tally.widened, beam.tally.short, beam.tally.missing) == (2, 1, 2)
    impossible = Tabled([torch.full((1, 6), -torch.inf), torch.zeros(1, 3)])
    assert lists(*beam(impossible, None, items, None, 2)) == ([[]], [[]])
    assert beam.tally.missing == 4


def test_exact_log_probs_are_those_of_each_item_alone(monkeypatch) -> None:
    items, decoder, asked = made(share=10)
    scores = told(decoder, asked, items)
    everything = torch.arange(61).expand(5, -1)
    for numbers in (1 << 24, 7 * 6 * 5):
        monkeypatch.setattr("recsys.generative.beam.NUMBERS", numbers)
        found = exact_log_probs(decoder, asked, items, everything)
        assert torch.isneginf(found[:, 0]).all() and torch.allclose(found[:, 1:], scores, atol=1e-4)
        assert max(decoder.widths) <= (61 if numbers > 1000 else 7)
    mixed = torch.tensor([[5, 0], [60, 5], [1, 1], [2, 3], [0, 0]])
    wanted = scores.gather(1, (mixed - 1).clamp(min=0)).masked_fill(mixed == 0, -torch.inf)
    assert torch.allclose(exact_log_probs(decoder, asked, items, mixed), wanted, atol=1e-4)
    assert exact_log_probs(decoder, asked, items, mixed[:, :0]).shape == (5, 0)


def test_all_items_are_scored_with_each_node_decoded_once() -> None:
    items, decoder, asked = made(share=10)
    scores = told(decoder, asked, items)
    assert torch.allclose(all_log_probs(decoder, asked, items), scores, atol=1e-4)
    distinct = [len({tuple(codes[:depth]) for codes in items.codes[1:].tolist()}) for depth in (1, 2)]
    assert decoder.widths == distinct
    for numbers in (1, 5 * 6 * 7, 5 * 6 * 50):
        assert torch.allclose(all_log_probs(decoder, asked, items, numbers), scores, atol=1e-4)


def test_exact_log_probs_pass_gradients() -> None:
    items, decoder, asked = made()
    asked.users.requires_grad_()
    exact_log_probs(decoder, asked, items, torch.arange(1, 4).expand(5, -1)).sum().backward()
    assert (asked.users.grad != 0).any()


def test_what_cannot_be_searched_is_refused() -> None:
    items, decoder, asked = made()
    for width in (0, -1):
        with pytest.raises(ValueError, match="width >= 1"):
            Beam(width)
    with pytest.raises(ValueError, match="at least 1"):
        Beam()(decoder, asked, items, None, 0)
    broken = torch.zeros(2, 4)
    broken[1, 3] = torch.nan
    rest = [torch.zeros(2, 5), torch.zeros(2, 6)]
    with pytest.raises(ValueError, match=r"1 of 2 histories .* position 1"):
        Beam()(Tabled([broken, *rest]), None, items, None, 3)
    with pytest.raises(ValueError, match=r"\(2, 4, 5\) at level 2; found \(2, 4, 6\)"):
        Beam()(Tabled([torch.zeros(2, 4), rest[1], rest[1]]), None, items, None, 3)


@st.composite
def searches(draw: st.DrawFn) -> dict[str, Any]:
    sizes = draw(st.lists(st.integers(1, 4), min_size=1, max_size=3))
    code = st.tuples(*(st.integers(0, size - 1) for size in sizes))
    codes = draw(st.lists(code, min_size=1, max_size=16))
    rows = st.lists(st.integers(1, len(codes)), max_size=12)
    wishes = st.none() | rows | st.lists(st.none() | rows.map(tuple), min_size=3, max_size=3)
    halves = lambda size: st.lists(st.integers(-6, 0).map(lambda one: one / 2), min_size=size, max_size=size)
    tables = [torch.tensor(draw(st.lists(halves(size), min_size=3, max_size=3))) for size in sizes]
    histories = draw(st.lists(rows, min_size=3, max_size=3))
    allow, deny = (draw(wishes) for _ in range(2))
    allow, deny = (None if one is not None and one and set(one) == {None} else one for one in (allow, deny))
    return {"items": Coded(codes, sizes), "tables": tables, "shown": shown_to(3, histories, allow, deny)}


@settings(max_examples=60, deadline=None)
@given(searches(), st.integers(1, 20), st.integers(1, 20))
def test_any_exclusions_of_any_catalogue(search, width, k) -> None:
    """Scores are sums of halves, so ties are many, and exact: rows decide about them."""
    items, shown, decoder = search["items"], search["shown"], Tabled(search["tables"])
    scores = sum(table[:, items.codes[1:, level]] for level, table in enumerate(search["tables"]))
    assert lists(*Beam(items.num_items)(decoder, None, items, shown, k)) == ranked(scores, shown, k)
    beam = Beam(width)
    found, values = lists(*beam(decoder, None, items, shown, k))
    whole, exact = ranked(scores, shown, items.num_items)
    for own, own_values, rows, all_values in zip(found, values, whole, exact):
        assert len(own) == len(set(own)) == min(k, len(rows))
        assert own_values == [all_values[rows.index(row)] for row in own]
        assert list(zip(own_values, own)) == sorted(zip(own_values, own), key=lambda pair: (-pair[0], pair[1]))
    assert beam.tally.missing == 0


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_search_on_a_gpu_finds_the_same() -> None:
    items, _, _ = made(share=20)
    tables = [torch.randn(5, size).log_softmax(1) for size in items.sizes]
    shown = shown_to(5, [[1, 2, 3]] * 5, [None, [1, 5, 6], None, [], None], [7, 8])
    wanted = lists(*Beam(60)(Tabled(tables), None, items, shown, 20))
    found = lists(*Beam(60)(Tabled([one.cuda() for one in tables]), None, items, shown, 20))
    close(found, wanted)
