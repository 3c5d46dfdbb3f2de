"""Our objectives against trl's on the same tokens, models and references: losses, and gradients by all weights."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from recsys.llm.trainers.objectives.d2o import D2O
from recsys.llm.trainers.objectives.preference import DPO, R3M
from recsys.llm.trainers.objectives.supervised import Supervised
from recsys.llm.trainers.sequences import Role, Sequences
from tests.llm.trainers.tiny import of_model, texts, tiny_llama
from tests.parity.tiny_trl import batch_of, slopes, trainer, words

pytestmark = pytest.mark.parity

PAIRS, PROMPT = 5, 4


def said(columns: int) -> set[tuple[int, ...]]:
    """The completions of :func:`examples`, as ids."""
    ids, completion = texts(PAIRS * columns, prompt=PROMPT, least=2, most=7, seed=1)
    return said_by(ids, completion)


def said_by(ids: Tensor, completion: Tensor) -> set[tuple[int, ...]]:
    return {tuple(row[chosen].tolist()) for row, chosen in zip(ids, completion, strict=True)}


def examples(*columns: str) -> list[dict[str, str]]:
    """Random prompts with a completion in each of the columns, of 1 to 6 words; trl adds the end."""
    ids, completion = texts(PAIRS * len(columns), prompt=PROMPT, least=2, most=7, seed=1)
    told = [words(row[chosen][:-1].tolist()) for row, chosen in zip(ids, completion, strict=True)]
    rows = [{"prompt": words(row[:PROMPT].tolist()) + " "} for row in ids[:PAIRS]]  # trl joins without a space
    return [row | {name: told[n + PAIRS * c] for c, name in enumerate(columns)} for n, row in enumerate(rows)]


@pytest.fixture
def preferences(tmp_path: Path) -> tuple[Any, Any, dict[str, Any], Sequences]:
    """trl's trainer, the model, trl's batch (better ones first) and ours of the same tokens."""
    model, reference = tiny_llama(seed=1), tiny_llama(seed=2)
    rows = examples("chosen", "rejected")
    made = trainer("DPO", tmp_path, model, rows, {"beta": 0.3, "loss_type": "sigmoid"}, ref_model=reference)
    theirs = batch_of(made)
    ids, completion = theirs["input_ids"], theirs["completion_mask"].bool()
    assert len(ids) == 2 * PAIRS
    assert said_by(ids, completion) == said(2)
    with torch.no_grad():
        known = of_model(reference, ids, completion).log_probs
    role = torch.tensor([int(Role.POSITIVE)] * PAIRS + [int(Role.NEGATIVE)] * PAIRS)
    group = torch.arange(PAIRS).repeat(2)
    made.model.eval()
    return made, model, theirs, of_model(model, ids, completion, group=group, role=role, reference=known)


def test_dpo_is_that_of_trl(preferences: tuple[Any, Any, dict[str, Any], Sequences]) -> None:
    made, model, theirs, ours = preferences
    wanted, found = made.compute_loss(made.model, theirs), DPO(0.3)(ours)
    torch.testing.assert_close(found, wanted, atol=1e-6, rtol=0.0)
    torch.testing.assert_close(slopes(found, model), slopes(wanted, model), atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(R3M(0.3, 0.999999)(ours), wanted, atol=1e-6, rtol=0.0)


def test_d2o_2_of_one_sample_is_trls_dpo(preferences: tuple[Any, Any, dict[str, Any], Sequences]) -> None:
    made, model, theirs, ours = preferences
    sampled = replace(ours, role=ours.role.masked_fill(ours.role == Role.POSITIVE, int(Role.SELF)))
    wanted, found = made.compute_loss(made.model, theirs), D2O(0.3, 0.3)(sampled)
    torch.testing.assert_close(found, wanted, atol=1e-6, rtol=0.0)
    torch.testing.assert_close(slopes(found, model), slopes(wanted, model), atol=1e-6, rtol=1e-6)


def test_supervised_is_that_of_trl(tmp_path: Path) -> None:
    model = tiny_llama(seed=3)
    made = trainer("SFT", tmp_path, model, examples("completion"), {"loss_type": "nll"})
    theirs = batch_of(made)
    completion = theirs["labels"] != -100
    assert len(completion) == PAIRS
    assert said_by(theirs["input_ids"], completion) == said(1)
    made.model.eval()
    found = Supervised()(of_model(model, theirs["input_ids"], completion))
    wanted = made.compute_loss(made.model, theirs)
    torch.testing.assert_close(found, wanted, atol=1e-6, rtol=0.0)
    torch.testing.assert_close(slopes(found, model), slopes(wanted, model), atol=1e-6, rtol=1e-6)
