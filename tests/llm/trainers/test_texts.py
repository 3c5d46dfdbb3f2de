"""A language model as a policy: probabilities of texts, batches of them, and training beside a recommender."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import recsys as rs
from recsys.errors import DataError, DataWarning
from recsys.hooks import PartList
from recsys.llm.trainers.adapters.lora import LoRA
from recsys.llm.trainers.objectives.preference import DPO
from recsys.llm.trainers.objectives.supervised import Supervised
from recsys.llm.trainers.sequences import Role
from recsys.llm.trainers.text_policy import LanguageModel, TextBatch, TextPolicy, Texts
from recsys.llm.trainers.texts import TextRows
from recsys.llm.trainers.tuning import Tuning
from recsys.testing import check_source
from recsys.train.settings import Stage
from tests.cycles import cycles, tiny

pytest.importorskip("transformers")
LLAMA = {
    "model_type": "llama", "vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 4, "max_position_embeddings": 64, "bos_token_id": None,
    "eos_token_id": 1,
}  # fmt: skip


def rows(count: int = 6, seed: int = 0, **more: Any) -> TextRows:
    random = np.random.default_rng(seed)
    lengths = random.integers(4, 9, count)
    return TextRows([random.integers(2, 64, n).tolist() for n in lengths], random.integers(1, 4, count), **more)


def bound(layers: int | None = None) -> LanguageModel:
    model = LanguageModel(LLAMA, layers)
    model.bind(None)
    return model


def test_texts_have_the_probabilities_of_the_model_token_by_token() -> None:
    model, source = bound(), rows()
    batch = source.batch(np.array([4, 0, 2, 5]))
    scored = TextPolicy(model)(None, batch, full=True)
    assert scored.full is not None
    for number, row in enumerate((4, 0, 2, 5)):
        ids = torch.from_numpy(source.tokens[source.first[row] : source.first[row + 1]])
        probable = model.body(input_ids=ids[None]).logits[0].float().log_softmax(1)
        begin, count = int(source.begins[row]), len(ids) - int(source.begins[row])
        wanted = probable[torch.arange(begin - 1, len(ids) - 1), ids[begin:]]
        assert torch.allclose(scored.log_probs[number, :count], wanted, atol=1e-5)
        assert scored.mask[number].sum() == count
        assert torch.allclose(scored.full[number, :count], probable[begin - 1 : -1], atol=1e-5)


def test_what_stands_behind_a_text_is_not_read() -> None:
    model, source = bound(), rows()
    batch = source.batch(np.arange(6))
    noisy = torch.where(batch.completion | (torch.arange(batch.tokens.shape[1]) < 1), batch.tokens, batch.tokens)
    behind = torch.arange(noisy.shape[1]) >= torch.from_numpy(np.diff(source.first))[:, None]
    noisy = noisy.masked_fill(behind, 9)
    one, other = (TextPolicy(model)(None, made) for made in (batch, batch.replace(tokens=noisy)))
    assert torch.equal(one.log_probs, other.log_probs)


def test_texts_of_a_prompt_are_in_one_batch() -> None:
    source = rows(9, prompts=[3, 1, 3, 2, 1, 1, 9, 9, 2], batch_size=2)
    seen: list[int] = []
    for batch in source.epoch(0):
        assert isinstance(batch, TextBatch) and batch.prompts is not None
        assert len(batch.prompts.unique()) <= 2
        for prompt in batch.prompts.unique().tolist():
            assert int((batch.prompts == prompt).sum()) == int((source.prompts == prompt).sum())
        seen += batch.rows.tolist()
    assert sorted(seen) == list(range(9))
    check_source(source)


def test_long_prompts_lose_their_beginning_and_are_counted() -> None:
    class Letters:
        eos_token_id = 1

        def __call__(self, text: str, add_special_tokens: bool = False) -> dict[str, list[int]]:
            return {"input_ids": [ord(one) - 90 for one in text]}

    with pytest.warns(DataWarning, match="1 of 2"):
        source = TextRows.of(Letters(), ["abcdefgh", "ab"], ["xy", "x"], window=6)
    assert source.tokens[:6].tolist() == [12, 13, 14, 30, 31, 1]  # "fgh" and "xy", and the end
    assert source.begins.tolist() == [3, 2]


def test_bad_texts_are_refused() -> None:
    for tokens, begins in (([], []), ([[1, 2]], [2]), ([[1, 2]], [0]), ([[1, 2]], [1, 1])):
        with pytest.raises(DataError):
            TextRows(tokens, begins)


@pytest.mark.parametrize("adapted", [False, True])
def test_a_language_model_is_trained_in_a_stage_and_the_recommender_is_not(tmp_path: Path, adapted: bool) -> None:
    if adapted:
        pytest.importorskip("peft")
    split, model = cycles(users=30), tiny(dropout=0.0)
    tuning = Tuning(TextPolicy(LanguageModel(LLAMA)), Texts(), Supervised(), LoRA(4) if adapted else None)
    model.auxiliaries = PartList([tuning])
    source = rows(12, batch_size=4)
    stage = Stage(30, losses=["Tuning0"], train=["auxiliaries.0"], data=source, validate=False)
    fitted = rs.fit(model, split, stages=[stage], learning_rate=1e-2, progress=False, folder=tmp_path / "run")
    assert fitted.history[-1]["loss"] < fitted.history[0]["loss"] - 0.3
    again = rs.load_run(tmp_path / "run")
    batch = source.batch(np.arange(12))
    one, other = (made.auxiliaries[0].policy(None, batch).log_probs for made in (model, again))
    assert torch.allclose(one, other, atol=1e-5)


def test_pairs_are_learned_against_the_reference() -> None:
    pytest.importorskip("peft")
    split, model = cycles(users=30), tiny(dropout=0.0)
    roles = [Role.POSITIVE, Role.NEGATIVE] * 6
    source = rows(12, roles=roles, prompts=np.arange(12) // 2, batch_size=3)
    tuning = Tuning(TextPolicy(LanguageModel(LLAMA)), Texts(), DPO(0.5), LoRA(4))
    model.auxiliaries = PartList([tuning])
    stage = Stage(30, losses=["Tuning0"], train=["auxiliaries.0"], data=source, validate=False)
    fitted = rs.fit(model, split, stages=[stage], learning_rate=1e-2, progress=False)
    assert fitted.history[0]["loss"] == pytest.approx(float(F.softplus(torch.tensor(0.0))), abs=0.2)
    assert fitted.history[-1]["loss"] < 0.2


def test_fewer_layers_are_the_first_ones() -> None:
    whole, cut = bound(), bound(1)
    one, other = (made.body.base_model.layers[0].mlp.up_proj.weight for made in (whole, cut))
    assert torch.equal(one, other) and len(cut.body.base_model.layers) == 1
