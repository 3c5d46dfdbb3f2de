"""Supervised fine-tuning over sequences, and what the tests' own batches hold."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from recsys.llm.trainers.objectives.supervised import Supervised
from recsys.llm.trainers.protocols import SequenceObjective
from recsys.llm.trainers.sequences import Role, Sequences
from recsys.storage.parts import describe
from tests.llm.trainers.tiny import END, VOCABULARY, fitted, g_checks, of_model, sequences, texts, tiny_llama


@g_checks
@pytest.mark.parametrize("role", [Role.TARGET, Role.POSITIVE])
def test_supervised(check: Callable[[Any, Sequences], None], role: Role) -> None:
    check(Supervised(), sequences(12, 5, roles=(role,)))


def test_supervised_is_the_mean_over_tokens_by_weight() -> None:
    log_probs = torch.tensor([[-1.0, -2.0, -3.0], [-4.0, 9.0, 9.0], [-8.0, -8.0, 9.0]])
    mask = torch.tensor([[1, 1, 1], [1, 0, 0], [1, 1, 0]]).bool()
    role = torch.tensor([int(Role.TARGET), int(Role.POSITIVE), int(Role.NEGATIVE)])
    batch = Sequences(log_probs, mask, torch.arange(3), role)
    assert Supervised()(batch).item() == pytest.approx((1 + 2 + 3 + 4) / 4)
    weighed = replace(batch, weight=torch.tensor([1.0, 3.0, 5.0]))
    assert Supervised()(weighed).item() == pytest.approx((6 + 3 * 4) / (3 + 3 * 1))


def test_supervised_is_a_part() -> None:
    assert isinstance(Supervised(), SequenceObjective)
    assert describe(Supervised())["arguments"] == {}


def test_supervised_learns_by_heart() -> None:
    model, (ids, completion) = tiny_llama(), texts(6, seed=1)
    losses = fitted(model, Supervised(), lambda: of_model(model, ids, completion), 40, 1e-2)
    assert losses[0] > 3.5
    assert losses[-1] < 0.5


def test_of_model_tells_what_each_prefix_makes_probable() -> None:
    model, (ids, completion) = tiny_llama(), texts(3, prompt=4)
    batch = of_model(model, ids, completion)
    assert batch.tokens is not None
    assert batch.entropy is not None
    for row in range(3):
        said = ids[row][completion[row]].tolist()
        assert said[-1] == END
        assert batch.tokens[row][batch.mask[row]].tolist() == said
        for t, token in enumerate(said):
            probable = model(input_ids=ids[row : row + 1, : 4 + t]).logits[0, -1].log_softmax(-1)
            assert len(probable) == VOCABULARY
            assert batch.log_probs[row, t].item() == pytest.approx(probable[token].item(), abs=1e-5)
            entropy = torch.distributions.Categorical(logits=probable).entropy()
            assert batch.entropy[row, t].item() == pytest.approx(entropy.item(), abs=1e-5)
