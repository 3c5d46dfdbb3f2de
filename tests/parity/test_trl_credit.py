"""GRPO's credit and the loss of the policy gradient against trl 1.16: its own trainer, on the same samples."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from recsys.llm.trainers.credit.groups import GroupRelative
from recsys.llm.trainers.objectives.policy import PolicyGradient
from recsys.llm.trainers.sequences import Role, Sequences

pytestmark = pytest.mark.parity

PROMPTS, SAMPLES, LONGEST = 3, 4, 5
REWARDS = [1.0, 0.0, 0.0, 0.5, 0.25, 0.25, 0.25, 0.25, 0.0, 0.0, 0.0, 1.0]


class Stopped(Exception):
    """The trainer has all that the test asks for."""


def trainer(folder: Path, **settings: Any) -> Any:
    """A trainer of trl over a tiny Llama and words of one token each, offline, whose rewards are ``REWARDS``."""
    trl = pytest.importorskip("trl", exc_type=ImportError)
    transformers, tokenizers = pytest.importorskip("transformers"), pytest.importorskip("tokenizers")
    datasets, pyarrow = pytest.importorskip("datasets"), pytest.importorskip("pyarrow")
    words = {name: number for number, name in enumerate(["<pad>", "<end>", *(f"w{n}" for n in range(14))])}
    model = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="<end>"))
    model.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=model, pad_token="<pad>", eos_token="<end>")
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=len(words), hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        pad_token_id=0, eos_token_id=1, bos_token_id=None, max_position_embeddings=32,
    )  # fmt: skip
    transformers.LlamaForCausalLM(config).save_pretrained(folder / "model")  # trl reads its reference from there
    arguments = trl.GRPOConfig(
        output_dir=str(folder), use_cpu=True, report_to="none", per_device_train_batch_size=PROMPTS * SAMPLES,
        num_generations=SAMPLES, max_completion_length=LONGEST, max_steps=1, **settings,
    )  # fmt: skip

    def rewarded(completions: list[str], **_: Any) -> list[float]:
        return REWARDS[: len(completions)]

    prompts = pyarrow.table({"prompt": [f"w{n} w{n + 1}" for n in range(PROMPTS)]})
    data = datasets.Dataset(datasets.table.InMemoryTable(prompts), fingerprint="prompts")  # its own hash needs a pickle
    return trl.GRPOTrainer(
        transformers.LlamaForCausalLM.from_pretrained(folder / "model"),
        rewarded,
        args=arguments,
        train_dataset=data,
        processing_class=tokenizer,
    )


def computed(made: Any) -> tuple[dict[str, Any], float, Tensor, Tensor]:
    """What trl hands to its loss, the loss that it makes of it, and log-probabilities and entropies of the policy.

    The loss is taken in training, after the model has moved away from the one that sampled.
    """
    found: list[Any] = []
    original = made._compute_loss
    scored = made._get_per_token_logps_and_entropies

    def loss(model: Any, inputs: dict[str, Any]) -> Tensor:
        ids, prompt = inputs["completion_ids"], inputs["prompt_ids"]
        whole = torch.cat([prompt, ids], 1)
        attention = torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], 1)
        with torch.no_grad():
            before = scored(model, whole, attention, ids.shape[1])[0]
            generator = torch.Generator().manual_seed(1)
            for parameter in model.parameters():
                parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
            inputs = {**inputs, "old_per_token_logps": before}
            now, entropies = scored(model, whole, attention, ids.shape[1], compute_entropy=True)[:2]
        value = float(original(model, inputs).detach())
        found.extend([inputs, value, now, entropies])
        raise Stopped

    made._compute_loss = loss
    with pytest.raises(Stopped):
        made.train()
    inputs, value, now, entropies = found
    return inputs, value, now, entropies


def batch_of(inputs: dict[str, Any], now: Tensor) -> Sequences:
    """The same samples as a batch of ours; trl keeps those of a prompt together but shuffles them all."""
    prompts = inputs["prompt_ids"]
    group = prompts.unique(dim=0, return_inverse=True)[1]
    return Sequences(
        now.detach().requires_grad_(), inputs["completion_mask"].bool(), group,
        torch.full((len(group),), int(Role.TARGET)), old=inputs["old_per_token_logps"],
        reference=inputs.get("ref_per_token_logps"), tokens=inputs["completion_ids"],
    )  # fmt: skip


def with_rewards(batch: Sequences, advantages: Tensor, scale: str) -> Sequences:
    """The batch with the rewards in trl's shuffled order: the one whose credit is nearest to trl's, each used once."""
    rewards = torch.tensor(REWARDS)
    own = torch.arange(PROMPTS * SAMPLES) // SAMPLES
    ours = GroupRelative(scale).of(rewards, own)
    left, order = list(range(len(rewards))), []
    for value in advantages.tolist():
        nearest = min(left, key=lambda at: abs(float(ours[at]) - value))
        order.append(nearest)
        left.remove(nearest)
    return replace(batch, reward=rewards[order], group=own[order])


KINDS = [("grpo", "sequences"), ("bnpo", "tokens"), ("dapo", "tokens"), ("dr_grpo", "longest")]


@pytest.mark.parametrize(("theirs", "ours"), KINDS)
def test_the_loss_is_that_of_trl(theirs: str, ours: str, tmp_path: Path) -> None:
    made = trainer(tmp_path, loss_type=theirs, beta=0.3, epsilon=0.05, epsilon_high=0.1, use_bias_correction_kl=False)
    inputs, expected, now, _ = computed(made)
    batch = with_rewards(batch_of(inputs, now), inputs["advantages"], "group")
    objective = PolicyGradient(GroupRelative(), low=0.05, high=0.1, kl=0.3, normalise=ours)
    assert 0 < objective.figures(batch)["clipped tokens"] < objective.figures(batch)["clipped tokens of"]
    assert float(objective(batch).detach()) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("scale", ["group", "batch", "none"])
def test_the_credit_is_that_of_trl(scale: str, tmp_path: Path) -> None:
    inputs, _, now, _ = computed(trainer(tmp_path, scale_rewards=scale))
    batch = with_rewards(batch_of(inputs, now), inputs["advantages"], scale)
    found = GroupRelative(scale)(batch)[:, 0]
    torch.testing.assert_close(found, inputs["advantages"], atol=1e-6, rtol=0)


def test_the_entropy_bonus_is_that_of_trl(tmp_path: Path) -> None:
    inputs, expected, now, entropies = computed(trainer(tmp_path, entropy_coef=0.2, beta=0.0))
    batch = with_rewards(batch_of(inputs, now), inputs["advantages"], "group")
    batch = replace(batch, entropy=entropies.detach().requires_grad_())
    found = PolicyGradient(GroupRelative(), entropy=0.2)(batch)
    assert float(found.detach()) == pytest.approx(expected, abs=1e-6)
