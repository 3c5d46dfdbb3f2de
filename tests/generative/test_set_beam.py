"""Search among sets of codes. Numbers of the tests are those of the behavioural checks of the method's page."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from set_models import code_items, encoded_histories, histories, random_codes, set_decoder

from recsys.generative.set_beam import SetBeam, kept
from recsys.generative.set_decoder import SetDecoder
from recsys.items.codes import CodeItems
from recsys.protocols import Encoded
from recsys.ranking.filters import Shown

SIZES = (4, 5, 6)


def made(
    count: int = 50, sizes: tuple[int, ...] = SIZES, distinct: bool = True, seed: int = 0, **knobs: object
) -> tuple[CodeItems, SetDecoder, Encoded]:
    items = code_items(random_codes(count, sizes, seed, distinct), sizes, seed=seed)
    return items, set_decoder(len(sizes), **knobs), encoded_histories(items, histories(count, seed=seed))


def next_codebook(found: torch.Tensor, left: list[int], order: str, first: list[int], sizes: tuple[int, ...]) -> int:
    if order == "fixed":
        return left[0]
    parts = {r: found[first[r] : first[r] + sizes[r]] for r in left}
    if order == "confidence":
        sure = {r: float(part.max()) for r, part in parts.items()}
    else:
        sure = {r: float((part.exp() * part).sum()) / np.log(sizes[r]) for r, part in parts.items()}
    return max(left, key=lambda r: sure[r])


def brute(decoder: SetDecoder, items: CodeItems, encoded: Encoded, order: str = "fixed") -> np.ndarray:
    """(B, N) log-probability of each item, alone, along the path that it is reached by."""
    sizes = tuple(items.sizes)
    first, scores = np.cumsum([0, *sizes]).tolist(), np.zeros((len(encoded.batch), items.num_items))
    start, memory = decoder.step(decoder.begin(encoded, items), items, None, None)
    begun: dict[tuple[int, ...], torch.Tensor] = {(): start[:, 0]}
    memories = {(): memory}
    zeros = torch.zeros(len(encoded.batch), 1, dtype=torch.int64)
    for row in range(len(encoded.batch)):
        for item in range(items.num_items):
            codes, path, left = items.codes[item + 1].tolist(), (), list(range(len(sizes)))
            while left:
                level = next_codebook(begun[path][row], left, order, first, sizes)
                column = first[level] + codes[level]
                scores[row, item] += float(begun[path][row, column])
                left.remove(level)
                if left and (*path, column) not in begun:
                    found, longer = decoder.step(memories[path], items, zeros + 1 + column, zeros)
                    begun[*path, column], memories[*path, column] = found[:, 0], longer
                path = (*path, column)
    return scores


def check_lists(rows: torch.Tensor, values: torch.Tensor, expected: np.ndarray, k: int) -> None:
    """The lists are the best of the expected scores (B, N), -inf what may not be shown."""
    for row, (own, value, scores) in enumerate(zip(rows.numpy(), values.numpy(), expected, strict=True)):
        left = min(int(np.isfinite(scores).sum()), k)
        assert (own[:left] > 0).all() and (own[left:] == 0).all() and np.isneginf(value[left:]).all(), row
        assert len(set(own[:left])) == left
        np.testing.assert_allclose(value[:left], scores[own[:left] - 1], rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(value[:left], np.sort(scores)[::-1][:left], rtol=1e-4, atol=1e-4)


def hidden(expected: np.ndarray, shown: Shown) -> np.ndarray:
    scores = torch.from_numpy(expected.copy())
    shown.hide(scores)
    return scores.numpy()


@pytest.mark.parametrize("order", ["fixed", "confidence", "entropy"])
@pytest.mark.parametrize("distinct", [True, False])
@torch.no_grad()
def test_reg4rec_13_5_a_beam_of_all_equals_exhaustive_scoring(order: str, distinct: bool) -> None:
    items, decoder, encoded = made(distinct=distinct)
    expected = brute(decoder, items, encoded, order)
    rows, values = SetBeam(50, order)(decoder, encoded, items, None, 50)
    check_lists(rows, values, expected, 50)
    scored = SetBeam(1, order).log_probs(decoder, encoded, items, torch.arange(1, 51).expand(4, -1))
    np.testing.assert_allclose(scored.numpy(), expected, rtol=1e-4, atol=1e-4)


SHOWN = {
    "history": {"exclude": "history"},
    "deny": {"exclude": "none", "deny": list(range(5, 30))},
    "deny each": {"exclude": "history", "deny": [[1, 2], None, list(range(50)), [7]]},
    "allow": {"exclude": "history", "allow": [3, 4, 5, 6, 40]},
    "allow each": {"exclude": "history", "allow": [[3, 4], None, [9], list(range(20))], "deny": [4, 17]},
}


@pytest.mark.parametrize("case", SHOWN)
@torch.no_grad()
def test_reg4rec_13_5_exclusions_act_inside_the_search(case: str) -> None:
    items, decoder, encoded = made(distinct=False)
    seen = [(row[row > 0] - 1).tolist() for row in encoded.batch.ids]
    shown = Shown.of(lambda ids: np.asarray(ids, np.int64), seen, **SHOWN[case])
    for order in ("fixed", "confidence"):
        expected = hidden(brute(decoder, items, encoded, order), shown)
        check_lists(*SetBeam(50, order)(decoder, encoded, items, shown, 50), expected, 50)
        rows, values = SetBeam(2, order)(
            decoder, encoded, items, shown, 8
        )  # raised to 8, which then must fill the list
        for own, value, scores in zip(rows.numpy(), values.numpy(), expected, strict=True):
            left = min(8, int(np.isfinite(scores).sum()))
            assert (own[:left] > 0).all() and (own[left:] == 0).all()
            np.testing.assert_allclose(value[:left], scores[own[:left] - 1], rtol=1e-4, atol=1e-4)


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_reg4rec_13_5_lists_are_as_long_as_what_is_left(data: st.DataObject) -> None:
    count = data.draw(st.integers(1, 30))
    sizes = tuple(data.draw(st.lists(st.integers(1, 5), min_size=1, max_size=3)))
    items, decoder, encoded = made(count, sizes, distinct=False, seed=data.draw(st.integers(0, 5)))
    some = st.one_of(st.none(), st.lists(st.integers(0, count - 1), max_size=count))
    deny, allow = (data.draw(st.lists(some, min_size=4, max_size=4)) for _ in range(2))
    lists = {
        name: None if all(one is None for one in given) else given for name, given in (("deny", deny), ("allow", allow))
    }
    shown = Shown.of(lambda ids: np.asarray(ids, np.int64), [[]] * 4, "none", **lists)
    k, width = data.draw(st.integers(1, 40)), data.draw(st.integers(1, 10))
    prune = data.draw(st.sampled_from([None, "prediction"]))
    with torch.no_grad():
        search = SetBeam(width, data.draw(st.sampled_from(["confidence", "fixed", "random"])), prune, keep=0.3)
        rows, values = search(decoder, encoded, items, shown, k)
    open_items = np.isfinite(hidden(np.zeros((4, count)), shown))
    for own, value, may in zip(rows.numpy(), values.numpy(), open_items, strict=True):
        real = own[own > 0]
        assert len(real) == min(k, may.sum()) and len(set(real)) == len(real) and may[real - 1].all()
        assert (np.diff(value[: len(real)]) <= 0).all()


@torch.no_grad()
def test_reg4rec_13_4_decoding_uses_each_codebook_once_and_is_deterministic() -> None:
    items, decoder, encoded = made()
    chosen: list[torch.Tensor] = []
    step = decoder.step

    def watched(memory: object, table: object, tokens: torch.Tensor | None, parents: torch.Tensor | None) -> object:
        found, longer = step(memory, table, tokens, parents)  # type: ignore[arg-type]
        chosen.append(longer.chosen)
        return found, longer

    decoder.step = watched  # type: ignore[method-assign, assignment]
    first = SetBeam(6)(decoder, encoded, items, None, 5)
    second = SetBeam(6)(decoder, encoded, items, None, 5)
    assert torch.equal(first[0], second[0]) and torch.equal(first[1], second[1])
    levels = torch.bucketize(chosen[2], torch.tensor([1, 5, 10]), right=True)  # two of the three are chosen
    assert bool((levels[:, :, 0] != levels[:, :, 1]).all())
    assert len(levels[:, 0, 0].unique()) > 1  # histories begin with codebooks of their own


@torch.no_grad()
def test_histories_do_not_change_each_other() -> None:
    items, decoder, _ = made()
    batch = histories(50, (6, 2, 3, 1, 5))
    for order in ("confidence", "random"):
        search = SetBeam(7, order)
        rows, values = search(decoder, encoded_histories(items, batch), items, None, 6)
        for row in range(len(batch)):
            one = batch.select(torch.tensor([row]))
            alone = encoded_histories(items, one.trim(int(one.lengths)))
            own, value = search(decoder, alone, items, None, 6)
            assert torch.equal(own[0], rows[row])
            torch.testing.assert_close(value[0], values[row], rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_random_orders_differ_between_histories_and_score_exactly() -> None:
    items, decoder, encoded = made()
    search = SetBeam(50, "random")
    drawn = search.drawn(encoded, 3)
    assert torch.equal(drawn.sort(1).values, torch.arange(3).expand(4, -1)) and len(drawn.unique(dim=0)) > 1
    rows, values = search(decoder, encoded, items, None, 50)
    torch.testing.assert_close(search.log_probs(decoder, encoded, items, rows), values, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_reg4rec_13_5_orders_of_one_item_are_merged_to_the_best() -> None:
    items, decoder, encoded = made(20, (3, 3, 3))
    from itertools import permutations

    best = np.full((4, 20), -np.inf)
    for order in permutations(range(3)):
        total = decoder.path_log_probs(
            encoded,
            items,
            torch.tensor(order).expand(4, 20, 3),
            items.token_table[1:].gather(1, torch.tensor(order).expand(20, -1)).expand(4, -1, -1),
        )
        best = np.maximum(best, total.sum(2).numpy())
    search = SetBeam(200, branches=3)
    rows, values = search(decoder, encoded, items, None, 20)
    check_lists(rows, values, best, 20)
    assert search.tally.widened == 0 and search.tally.histories == 4
    narrow = SetBeam(2, branches=3)
    rows, values = narrow(decoder, encoded, items, None, 12)  # several orders of an item fill the beams
    for own in rows.numpy():
        assert len(set(own)) == 12 and (own > 0).all()
    assert narrow.tally.raised == 4 and narrow.tally.short == narrow.tally.missing == 0


class Given(torch.nn.Module):
    """Log-probabilities by hand: of each set of chosen columns those of all columns."""

    ordered = False

    def __init__(self, table: dict[tuple[int, ...], list[float]]) -> None:
        super().__init__()
        self.table = table

    def begin(self, encoded: Encoded, items: CodeItems) -> list[list[tuple[int, ...]]]:
        return [[()] for _ in range(len(encoded.batch))]

    def step(self, memory, items, tokens, parents):  # type: ignore[no-untyped-def]
        if tokens is not None:
            memory = [
                [tuple(sorted((*own[parent], token - 1))) for parent, token in zip(*pair, strict=True)]
                for own, pair in zip(memory, zip(parents.tolist(), tokens.tolist(), strict=True), strict=True)
            ]
        zeros = [-1.0] * sum(items.sizes)
        return torch.tensor([[self.table.get(one, zeros) for one in own] for own in memory]), memory


def given_search(**knobs: object) -> tuple[list[int], list[float]]:
    """Two codebooks of two codes and all four items. The second codebook is the surer one."""
    items = code_items(np.array([[0, 0], [0, 1], [1, 0], [1, 1]]), (2, 2))
    table = {
        (): [-0.7, -0.8, -0.2, -1.6],
        (2,): [-0.1, -2.5, 0, 0],  # with the likely code of the second the first of the first: as not expected less
        (3,): [-2.0, -0.3, 0, 0],
    }
    encoded = encoded_histories(items, histories(4, (2,)))
    rows, values = SetBeam(4, **knobs)(Given(table), encoded, items, None, 4)  # type: ignore[arg-type]
    return rows[0].tolist(), values[0].tolist()


def test_reg4rec_13_9_consistency_by_hand() -> None:
    rows, values = given_search()
    assert rows == [1, 4, 3, 2]
    assert values == pytest.approx([-0.3, -1.9, -2.7, -3.6])
    # One choice is judged, that of the first codebook: 0 for its code 0, which was expected, -.1 for code 1.
    rows, values = given_search(prune="prediction", keep=1.0, omega=2.0)
    assert rows == [1, 4, 3, 2]
    assert values == pytest.approx([-0.3, -1.9 - 0.2, -2.7 - 0.2, -3.6])


def test_reg4rec_13_9_keep_all_and_omega_0_change_nothing() -> None:
    items, decoder, encoded = made()
    with torch.no_grad():
        plain = SetBeam(8)(decoder, encoded, items, None, 6)
        judged = SetBeam(8, prune="prediction", keep=1.0)(decoder, encoded, items, None, 6)
        headed = set_decoder(3, reflection=1.0)
        headed.load_state_dict(decoder.state_dict(), strict=False)
        by_head = SetBeam(8, prune="head", keep=1.0)(headed, encoded, items, None, 6)
    for other in (judged, by_head):
        assert torch.equal(plain[0], other[0]) and torch.equal(plain[1], other[1])


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 12), st.integers(1, 12), st.integers(0, 99))
def test_reg4rec_13_9_survivors_are_the_most_consistent_and_never_too_few(most: int, least: int, seed: int) -> None:
    random = torch.Generator().manual_seed(seed)
    trust, alive = -torch.rand(3, 10, generator=random), torch.rand(3, 10, generator=random) < 0.7
    left = kept(trust, alive, most, least)
    assert bool((left <= alive).all())
    assert torch.equal(left.sum(1), alive.sum(1).clamp(max=max(most, least)))
    worst_left = trust.masked_fill(~left, torch.inf).amin(1)
    best_gone = trust.masked_fill(left | ~alive, -torch.inf).amax(1)
    assert bool((worst_left >= best_gone).all())


@torch.no_grad()
def test_reg4rec_13_9_pruning_drops_paths_and_leaves_k() -> None:
    items, _, encoded = made()
    for prune in ("prediction", "head"):
        judge = set_decoder(3, reflection=1.0)
        plain = SetBeam(20)(judge, encoded, items, None, 20)[0]
        few = SetBeam(20, prune=prune, keep=0.2)(judge, encoded, items, None, 4)[0]
        assert few.shape == (4, 4) and bool((few > 0).all())
        assert not torch.equal(few, plain[:, :4])


@torch.no_grad()
def test_items_of_equal_codes_are_listed_by_row() -> None:
    codes = np.array([[0, 1], [1, 1], [0, 1], [0, 1], [1, 0]])
    items = code_items(codes, (2, 2))
    decoder, encoded = set_decoder(2), encoded_histories(items, histories(5, (3, 2)))
    rows, values = SetBeam(1)(decoder, encoded, items, None, 5)
    for own, value in zip(rows.tolist(), values.tolist(), strict=True):
        at = own.index(1)
        assert own[at : at + 3] == [1, 3, 4] and value[at] == value[at + 1] == value[at + 2]
    short = SetBeam(1)(decoder, encoded, items, None, 2)[0]
    assert torch.equal(short, rows[:, :2])
    assert SetBeam(1)(decoder, encoded, items, None, 99)[0].shape == (2, 5)


def test_a_model_that_has_diverged_is_told() -> None:
    items, decoder, encoded = made()
    with torch.no_grad():
        decoder.codebook.fill_(torch.nan)
    with pytest.raises(ValueError, match="NaN"):
        SetBeam(3)(decoder, encoded, items, None, 3)
    with pytest.raises(ValueError, match="k must be"):
        SetBeam(3)(decoder, encoded, items, None, 0)


@torch.no_grad()
def test_lists_are_looked_at_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    items, decoder, encoded = made()
    whole = SetBeam(9)(decoder, encoded, items, None, 9)
    monkeypatch.setattr("recsys.generative.set_walk.BLOCK", 7)
    parts = SetBeam(9)(decoder, encoded, items, None, 9)
    assert torch.equal(whole[0], parts[0]) and torch.equal(whole[1], parts[1])


@torch.no_grad()
def test_the_index_follows_the_codes() -> None:
    items, decoder, encoded = made()
    search = SetBeam(50)
    search(decoder, encoded, items, None, 5)
    other = code_items(random_codes(50, SIZES, seed=7), SIZES)
    items.codes, items.token_table = other.codes, other.token_table
    rows, values = search(decoder, encoded, items, None, 50)
    check_lists(rows, values, brute(decoder, items, encoded, "confidence"), 50)
    assert torch.equal(copy.deepcopy(search)(decoder, encoded, items, None, 50)[0], rows)


def test_arguments() -> None:
    for knobs in (
        {"order": "best"}, {"prune": "all"}, {"keep": 0.0}, {"width": 0}, {"omega": 1.0}, {"branches": 0},
    ):  # fmt: skip
        with pytest.raises(ValueError):
            SetBeam(**knobs)  # type: ignore[arg-type]
