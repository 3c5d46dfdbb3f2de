"""Names kept out of texts: the numbered checks, on a language model that is a table and on a small tokenizer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from recsys.llm.chat import Prompt
from recsys.llm.trainers.decoders.guard import Forbidden, Restriction, tokenisations

SIZE = 8
TABLE = 3 * torch.randn(SIZE, SIZE, generator=torch.Generator().manual_seed(1))  # logits behind the last token


def greedy(processor: Any, prompts: Sequence[Sequence[int]], steps: int = 6) -> list[list[int]]:
    ids = torch.tensor([list(prompt) for prompt in prompts])
    for _ in range(steps):
        ids = torch.cat([ids, processor(ids, TABLE[ids[:, -1]]).argmax(1, keepdim=True)], 1)
    return ids[:, len(prompts[0]) :].tolist()


def plain(ids: Tensor, scores: Tensor) -> Tensor:
    return scores


def holds(row: list[int], sequence: list[int]) -> bool:
    return any(row[at : at + len(sequence)] == sequence for at in range(len(row)))


@pytest.mark.parametrize("length", [1, 2, 3])
def test_guard_1_a_banned_sequence_is_not_written_and_the_rest_is_as_it_was(length: int) -> None:
    before = greedy(plain, [[0]])[0]
    banned = before[1 : 1 + length]
    after = greedy(Forbidden([[banned]]), [[0]])[0]
    assert holds(before, banned) and not holds(after, banned)
    at = next(at for at in range(len(before)) if before[at : at + length] == banned)
    assert after[: at + length - 1] == before[: at + length - 1] and after[at + length - 1] != before[at + length - 1]


def test_guard_1_every_banned_set_against_a_loop() -> None:
    """What is written never holds a banned sequence, and each token is the likeliest that completes none."""
    random = np.random.default_rng(0)
    for _ in range(20):
        entries = [[random.integers(0, SIZE, size).tolist()] for size in random.integers(1, 4, 5)]
        if len({one[0][0] for one in entries if len(one[0]) == 1}) == SIZE:
            continue
        written: list[int] = []
        found = greedy(Forbidden(entries), [[3]])[0]
        last = 3
        for token in found:
            order = TABLE[last].argsort(descending=True).tolist()
            legal = [one for one in order if not any(holds(([*written, one])[-len(e[0]) :], e[0]) for e in entries)]
            assert token == legal[0]
            written.append(token)
            last = token


def test_guard_2_a_prefix_that_legal_sequences_share_stays_open() -> None:
    scores = torch.zeros(1, SIZE)
    forbidden = Forbidden([[[1, 2, 3]]])
    forbidden(torch.tensor([[7]]), scores)
    for written in ([1], [1, 2]):
        found = forbidden(torch.tensor([[7, *written]]), scores)
        closed = (found == -torch.inf).nonzero()[:, 1].tolist()
        assert closed == ([3] if written == [1, 2] else [])


def test_guard_2_what_the_prompt_says_is_no_beginning() -> None:
    forbidden = Forbidden([[[1, 2]]])
    assert bool(forbidden(torch.tensor([[7, 1]]), torch.zeros(1, SIZE)).isfinite().all())


def test_guard_3_an_empty_list_changes_nothing() -> None:
    scores = torch.randn(2, SIZE)
    assert Forbidden([])(torch.tensor([[1], [2]]), scores) is scores
    assert Restriction([]).begin(None, None, lambda prompt: [], [])(torch.tensor([[1]]), scores[:1]) is not None


def test_guard_4_items_are_denied_in_the_search() -> None:
    """Below a sub-trie all of whose items are denied nothing is reached; that is ``deny``, not this module."""
    from recsys.generative.beam import Beam
    from recsys.ranking.filters import Shown
    from tests.generative.coded import Asked, Coded, Recurrent

    codes = [[a, b] for a in range(3) for b in range(3)]
    items, decoder = Coded(codes, [3, 3]), Recurrent([3, 3])
    asked = Asked(torch.randn(4, 8, generator=torch.Generator().manual_seed(0)))
    gone = np.array([0, 1, 2])  # columns of the items that begin with code 0
    rows, scores = Beam(9)(decoder, asked, items, Shown(denied_to_all=gone), 9)  # type: ignore[arg-type]
    assert all(sorted(row[row > 0].tolist()) == [4, 5, 6, 7, 8, 9] for row in rows)
    assert bool((scores[rows == 0] == -torch.inf).all())


def test_guard_5_everything_banned_is_an_error() -> None:
    entries = [[[token]] for token in range(SIZE)]
    with pytest.raises(ValueError, match="every token is forbidden"):
        Forbidden(entries)(torch.tensor([[0]]), torch.zeros(1, SIZE))
    assert bool(Forbidden(entries, penalty=2.0)(torch.tensor([[0]]), torch.zeros(1, SIZE)).eq(-2).all())


def test_guard_6_rows_are_apart_and_may_be_put_in_another_order() -> None:
    forbidden = Forbidden([[[1, 2]], [[3, 4]]])
    scores = torch.zeros(4, SIZE)
    forbidden(torch.tensor([[7]] * 4), scores)
    written = torch.tensor([[7, 1], [7, 3], [7, 1], [7, 5]])
    order = torch.tensor([2, 3, 1, 0])
    found = forbidden(written, scores)
    assert [(row == -torch.inf).nonzero().flatten().tolist() for row in found] == [[2], [4], [2], []]
    torch.testing.assert_close(forbidden(written[order], scores), found[order])


def test_guard_active_entries_are_those_of_the_prompt() -> None:
    forbidden = Forbidden([[[1]], [[2]]], active=[[0], []])
    found = forbidden(torch.tensor([[7]] * 4), torch.zeros(4, SIZE))  # two beams each
    assert [(row == -torch.inf).nonzero().flatten().tolist() for row in found] == [[1], [1], [], []]


def test_guard_a_penalty_makes_it_less_likely() -> None:
    before = greedy(plain, [[0]])[0]
    tiny, large = (greedy(Forbidden([[before[:1]]], penalty=size), [[0]])[0] for size in (1e-6, 100.0))
    assert tiny == before and large[0] != before[0]


WORDS = ("toy", "alien", "heat")


def embed(texts: Sequence[str]) -> np.ndarray:
    """How often each of three words occurs."""
    return np.array([[text.lower().count(word) for word in WORDS] for text in texts], np.float32)


def test_guard_the_detector_compares_vectors() -> None:
    part = Restriction(["Toy Story", "Alien"], embed=embed, detect=0.6)
    assert part.active(["alien, alien", "toy and alien", "something"]) == [[1], [0, 1], []]
    assert Restriction(["Toy Story"]).active(["anything"]) is None


class Spelled:
    """A tokenizer with a token for each letter."""

    def __call__(self, text: str, add_special_tokens: bool = True) -> dict[str, list[int]]:
        return {"input_ids": [ord(letter) for letter in text]}

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = False) -> str:
        return "".join(map(chr, ids))


def test_guard_names_are_found_in_any_case_and_with_a_space() -> None:
    found = {Spelled().decode(one) for one in tokenisations(Spelled(), "Toy story")}
    assert found == {
        space + form for form in ("Toy story", "toy story", "TOY STORY", "Toy Story") for space in ("", " ")
    }


def test_guard_meaning_pushes_the_beginning_of_a_name_and_what_comes_next() -> None:
    part = Restriction(["Alien", "Toy"], embed=embed, meaning=0.5, every=5, push=3.0)
    logits = part.begin(None, Spelled(), lambda prompt: [], [Prompt("", "")])
    scores = torch.zeros(1, 128)
    scores[0, ord("!")] = 1.0
    start = torch.tensor([[0]])
    logits(start, scores)
    pushed = {}
    for text in ("an al", "alien", "aliens"):
        ids = torch.cat([start, torch.tensor([Spelled()(text)["input_ids"]])], 1)
        lower = (logits(ids, scores) < scores) & (logits(ids, scores) > -torch.inf)
        pushed[text] = {chr(one) for one in lower.nonzero()[:, 1].tolist()}
    assert pushed == {"an al": set(), "alien": {"a", "A", " ", "!"}, "aliens": set()}


def test_guard_wrong_arguments() -> None:
    with pytest.raises(TypeError, match="list of names"):
        Restriction("Alien")
    with pytest.raises(ValueError, match="embed"):
        Restriction(["Alien"], detect=0.5)
    with pytest.raises(ValueError, match="empty"):
        Restriction([" "])
    with pytest.raises(ValueError, match="at least 1"):
        Restriction(["Alien"], every=0)
    assert Restriction(["a"]).settings != Restriction(["b"]).settings
