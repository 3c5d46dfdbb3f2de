"""Self-aggregation: the numbered checks with a writer that is a function, and with a tiny language model."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys.errors import DataWarning
from recsys.llm.chat import Answer, Prompt
from recsys.llm.journal import Journal
from recsys.llm.trainers.decoders.aggregate import TASK, aggregated, fused, majority, together, writes


class Stub:
    """Answers sample s of each prompt with ``samples[s]``, and the last call with ``last``."""

    def __init__(self, samples: Sequence[str | None], last: str | None = "best") -> None:
        self.samples, self.last = list(samples), last
        self.calls: list[tuple[list[str], float, int]] = []

    def __call__(self, prompts: Sequence[str], temperature: float, seed: int) -> list[str | None]:
        self.calls.append((list(prompts), temperature, seed))
        drawn = len([one for one in self.calls if one[1] > 0])
        return [self.samples[drawn - 1] if temperature else self.last] * len(prompts)


def test_gsa_1_one_call_more_than_samples() -> None:
    stub = Stub(["one", "two", "three"])
    assert aggregated(stub, ["Describe."], samples=3, temperature=0.7) == ["best"]
    assert [temperature for _, temperature, _ in stub.calls] == [0.7, 0.7, 0.7, 0.0]
    assert len({seed for _, _, seed in stub.calls}) == 4, "each sample has a seed of its own"
    single = Stub(["one"])
    assert aggregated(single, ["Describe."], samples=1) == ["one"] and len(single.calls) == 1


def test_gsa_1_seeds_derive_from_one() -> None:
    first, second, third = Stub(list("abcd")), Stub(list("abcd")), Stub(list("abcd"))
    for stub, seed in ((first, 1), (second, 1), (third, 2)):
        aggregated(stub, ["Describe."], seed=seed)
    assert first.calls == second.calls and first.calls != third.calls


def test_gsa_2_the_last_prompt_holds_all_answers_in_order() -> None:
    samples = ["likes crime", "likes <b>dark</b> films", "zebra", "ape"]
    stub = Stub(samples)
    aggregated(stub, ["Describe the viewer of Heat."])
    asked = stub.calls[-1][0][0]
    shown = [text.replace("<", "&lt;").replace(">", "&gt;") for text in samples]
    places = [asked.index(text) for text in shown]
    assert places == sorted(places) and asked.count("<answer>") == 4 + TASK.count("<answer>")
    assert "Describe the viewer of Heat." in asked


def test_gsa_3_equal_answers_need_no_last_call() -> None:
    stub = Stub(["same", " same\n", "same"])
    assert aggregated(stub, ["Describe."], samples=3) == ["same"] and len(stub.calls) == 3


def test_gsa_3_only_prompts_that_need_it_are_asked_again() -> None:
    class Some(Stub):
        def __call__(self, prompts: Sequence[str], temperature: float, seed: int) -> list[str | None]:
            super().__call__(prompts, temperature, seed)
            return [f"{prompt[:3]}{seed if 'vary' in prompt else ''}" for prompt in prompts]

    stub = Some([""] * 9)
    found = aggregated(stub, ["one", "two vary", "six"], samples=2)
    assert found[0] == "one" and found[2] == "six" and len(stub.calls[-1][0]) == 1


@pytest.mark.parametrize("context", [1_100, 2_000])
def test_gsa_4_long_answers_are_cut_and_the_task_is_not(context: int) -> None:
    task, samples = "Describe the viewer of Heat and Alien.", ["word " * 400, "<<<>>> " * 300, "x" * 3000, "short"]
    stub = Stub(samples)
    with pytest.warns(DataWarning, match="3 samples are cut"):
        aggregated(stub, [task], context=context)
    asked = stub.calls[-1][0][0]
    assert len(asked) <= context and TASK in asked and task in asked and asked.endswith("Your answer to the task:")
    assert "short</answer>" in asked and asked.count("</answer>") == 4
    with pytest.raises(ValueError, match="raise context"):
        aggregated(Stub(samples), ["task " * 400], context=context)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.text("ab <>&\n", min_size=1, max_size=300), min_size=2, max_size=5), st.integers(900, 2_000))
def test_gsa_4_the_prompt_always_fits(samples: list[str], context: int) -> None:
    import warnings

    stub = Stub(samples)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DataWarning)
        aggregated(stub, ["Describe."], samples=len(samples), context=context)
    assert all(len(text) <= context for prompts, temperature, _ in stub.calls if not temperature for text in prompts)


def test_gsa_5_ranks_are_fused() -> None:
    assert fused([["a", "b", "c"], ["b", "a", "d"]]) == ["a", "b", "c", "d"], "ties go by the first list"
    assert fused([["b", "a", "d"], ["a", "b", "c"]]) == ["b", "a", "d", "c"]
    assert fused([["a", "b"], ["c", "b"]], k=1) == ["b"], "2/62 is more than 1/61"
    assert fused([["a", "a", "b"], ["b"]]) == ["b", "a"], "what stands twice counts once"
    assert fused([]) == []


def test_gsa_5_fusion_against_a_loop() -> None:
    for lists in itertools.product(itertools.permutations("abcd", 3), repeat=2):
        scores = {
            one: sum(1 / (60 + own.index(one) + 1) for own in sorted(lists, key=str) if one in own) for one in "abcd"
        }
        found = fused(lists)
        values = [scores[one] for one in found]
        assert all(first >= second - 1e-15 for first, second in itertools.pairwise(values))
        assert set(found) == set(lists[0]) | set(lists[1])


def test_gsa_5_attributes_go_by_majority() -> None:
    answers = [{"genre": "crime", "mood": ["dark", "slow"]}, {"genre": "crime", "mood": ["dark"]}, {"genre": "war"}]
    assert majority(answers) == {"genre": "crime", "mood": ["dark"]}
    assert majority(answers, share=0.0) == {"genre": "crime", "mood": ["dark", "slow"]}
    assert majority([{"a": 1}, {"a": 2}]) == {} and majority([{"a": 1}, {"a": 2}], share=0.4) == {"a": 1}
    assert majority([{"a": "X"}, {"a": "x "}], of=lambda value: str(value).strip().lower()) == {"a": "X"}


def test_gsa_6_a_sample_that_failed_is_left_out() -> None:
    stub = Stub(["one", None, "two", "  "])
    with pytest.warns(DataWarning, match="2 of 4 samples are empty"):
        assert aggregated(stub, ["Describe."]) == ["best"]
    assert stub.calls[-1][0][0].count("</answer>") == 2
    with pytest.warns(DataWarning, match="4 of 4"):
        assert aggregated(Stub([None] * 4), ["Describe."]) == [None]
    with pytest.warns(DataWarning, match="first stands in"):
        assert aggregated(Stub(list("abcd"), last=None), ["Describe."]) == ["a"]


def test_gsa_wrong_arguments() -> None:
    with pytest.raises(ValueError, match="temperature"):
        aggregated(Stub([]), ["x"], temperature=0.0)
    with pytest.raises(ValueError, match="2 answers to 1 prompts"):
        aggregated(lambda prompts, temperature, seed: ["a", "b"], ["x"])
    with pytest.raises(TypeError, match="sampled"):
        writes(object())
    assert aggregated(Stub(list("abcd")), []) == []
    assert together("x", ["a"], 5).count("<answer>a</answer>") == 1


class Counting:
    """A writer in the manner of LocalWriter that says what it was asked with."""

    def __init__(self, temperature: float = 0.0, seed: int = 0, asked: list[Any] | None = None) -> None:
        self.temperature, self.seed, self.asked = temperature, seed, [] if asked is None else asked
        self.name, self.settings = "counting", {"temperature": temperature, "seed": seed}

    def sampled(self, temperature: float, seed: int) -> Counting:
        return Counting(temperature, seed, self.asked)

    def write(self, prompts: Sequence[Prompt], done: Any) -> None:
        self.asked += prompts
        for index, prompt in enumerate(prompts):
            done(index, Answer(f"{prompt.user[:8]} at {self.temperature} and {self.seed}"))


def test_gsa_answers_are_kept_by_task_and_seed(tmp_path: Path) -> None:
    writer = Counting()
    found = []
    for _ in range(2):
        with Journal(tmp_path / "profiles") as journal:
            found.append(aggregated(writes(writer, "Say.", journal), ["Describe.", "Tell."], samples=3))
    assert found[0] == found[1] and len(writer.asked) == 2 * 4, "nothing is asked twice"
    assert found[0] == aggregated(writes(Counting(), "Say."), ["Describe.", "Tell."], samples=3)
