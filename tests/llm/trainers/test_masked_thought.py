"""Masked thought: the checks of its specification, by number."""

from __future__ import annotations

import pytest
import torch

from recsys.llm.trainers.masked_thought import MaskedThought
from recsys.randomness import torch_generator
from tests.llm.trainers.tiny import PAD, of_model, texts, tiny_llama

MASK = 63


def test_masked_thought_1_no_rate_changes_nothing() -> None:
    ids, completion = texts(20)
    assert torch.equal(MaskedThought(MASK)(ids, completion, 0.0, torch_generator(1)), ids)


@pytest.mark.parametrize("rate", [0.1, 0.5, 1.0])
def test_masked_thought_2_labels_and_prompts_stay(rate: float) -> None:
    ids, completion = texts(20, seed=2)
    before = ids.clone()
    found = MaskedThought(MASK)(ids, completion, rate, torch_generator(1))
    assert torch.equal(ids, before), "what is to be predicted is another tensor"
    assert torch.equal(found[~completion], ids[~completion])
    assert (found[completion] == MASK).any()
    assert ((found == ids) | (found == MASK)).all()
    assert rate < 1 or (found[completion] == MASK).all()


def test_masked_thought_3_share_of_hidden_tokens() -> None:
    ids, completion = torch.full((1000, 101), 5), torch.ones(1000, 101).bool()
    completion[:, 0] = False
    found = MaskedThought(MASK)(ids, completion, 0.3, torch_generator(3))
    assert (found[completion] == MASK).double().mean().item() == pytest.approx(0.3, abs=0.01)


def test_masked_thought_4_ramp() -> None:
    part = MaskedThought(MASK, probability=0.4, ramp=0.5)
    assert part.rate(0, 100) == 0.0
    assert part.rate(50, 100) == pytest.approx(0.4 * 50 / 51)
    assert part.rate(51, 100) == part.rate(100, 100) == 0.4
    assert MaskedThought(MASK, ramp=0.0).rate(1, 100) == 0.4


def test_masked_thought_5_hidden_tokens_are_attended_to() -> None:
    model, (ids, completion) = tiny_llama(), texts(12, seed=5)
    hidden = MaskedThought(PAD)(ids, completion, 1.0, torch_generator(5))
    plain, masked = of_model(model, ids, completion), of_model(model, ids, completion, inputs=hidden)
    assert torch.equal(plain.mask, masked.mask)
    assert torch.equal(plain.tokens, masked.tokens)
    torch.testing.assert_close(masked.log_probs[:, 0], plain.log_probs[:, 0])  # read from the prompt alone
    later = plain.mask[:, 1:]
    assert not torch.isclose(masked.log_probs[:, 1:], plain.log_probs[:, 1:])[later].any()


def test_masked_thought_6_the_same_seed_hides_the_same() -> None:
    ids, completion = texts(20)
    part = MaskedThought(MASK)
    one, again, other = (part(ids, completion, 0.4, torch_generator(seed, "masked thought")) for seed in (1, 1, 2))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)


def test_masked_thought_refuses_what_it_cannot_do() -> None:
    ids, completion = texts(3)
    with pytest.raises(ValueError, match="int64"):
        MaskedThought(MASK)(ids, completion.long(), 0.4, torch_generator(1))
    with pytest.raises(ValueError, match=r"1\.5"):
        MaskedThought(MASK)(ids, completion, 1.5, torch_generator(1))
    for wrong in ({"token": -1}, {"token": 3, "probability": 1.1}, {"token": 3, "ramp": -0.1}):
        with pytest.raises(ValueError, match="found"):
            MaskedThought(**wrong)
