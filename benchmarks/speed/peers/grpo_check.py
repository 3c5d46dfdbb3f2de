"""Whether our GRPO over a causal language model and trl's compute the same of the same samples.

trl samples, and makes its loss of what it sampled; ours gets the same items, rewards and former log-probabilities.
Compared are log-probabilities among the whole vocabulary (trl's; ours trains on those among the codes that lead to
some item), credit and loss. That tries the model, its tree of samples behind one history, and the objective.
"""

from __future__ import annotations

import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from peers.loop import Task, generator, histories, redraw
from peers.trl_trainers import grpo_trainer, prefix_share, tokens_of, trainable
from torch import Tensor


class Stopped(Exception):
    """The trainer has all that is asked for."""


def grpo_check(task: Task) -> dict[str, Any]:
    """The largest differences, by name, and how many of trl's samples are no items."""
    with tempfile.TemporaryDirectory(prefix="recsys-speed-") as folder:
        inputs, theirs, wanted = sampled(grpo_trainer(task, folder))
        log_probs, known = scored({**task, "variant": "causal"}, inputs, Path(folder) / "ids")
    credit, loss = judged(task, inputs, log_probs)
    return {
        "log_probs": float((log_probs - theirs).abs().max()),
        "credit": float((credit - inputs["advantages"][:, None]).abs().max()),
        "loss": abs(loss - wanted), "strangers": int((~known).sum()), "samples": len(known), "value": wanted,
    }  # fmt: skip


def sampled(made: Any) -> tuple[dict[str, Any], Tensor, float]:
    """What trl hands to its loss, its log-probabilities, and its loss where the sampling model was another one."""
    found: list[Any] = []
    original = made._compute_loss

    def loss(model: Any, inputs: dict[str, Any]) -> Tensor:
        ids, prompts = inputs["completion_ids"], inputs["prompt_ids"]
        attention = torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], 1)
        with torch.no_grad():
            scored = made._get_per_token_logps_and_entropies
            own = scored(model, torch.cat([prompts, ids], 1), attention, ids.shape[1])[0]
            noise = torch.randn(own.shape, generator=torch.Generator().manual_seed(6))
            inputs = {**inputs, "old_per_token_logps": own + 0.3 * noise}
            found.extend([inputs, own, float(original(model, inputs))])
        raise Stopped

    made._compute_loss = loss
    redraw(trainable(made))
    with suppress(Stopped):
        made.train()
    inputs, own, value = found
    return inputs, own, value


def scored(task: Task, inputs: dict[str, Any], folder: Path) -> tuple[Tensor, Tensor]:
    """Our log-probabilities (N, M) of trl's samples, all of a history behind it at once, and which are items (N,)."""
    from recsys.data.batch import Batch
    from recsys.generative.beam import begun
    from recsys.llm.trainers.adapters.lora import LoRA
    from recsys.protocols import Context

    model, split = generator(task, folder, [], whole_vocabulary=True)
    model.bind(Context(split.num_items, split.items, split.train))
    adapter = LoRA(task["rank"])
    adapter.attach([model.encoder, model.decoder])
    redraw(adapter.named())
    rows = {tuple(tokens): number + 1 for number, tokens in enumerate(tokens_of(task))}
    completions, levels = inputs["completion_ids"], task["levels"]
    known = torch.tensor([tuple(one) in rows for one in completions.tolist()])
    found = torch.zeros(completions.shape)
    for prompt in inputs["prompt_ids"].unique(dim=0):
        own = (inputs["prompt_ids"] == prompt).all(1)
        ids = torch.tensor([[rows[tuple(one)] for one in prompt.view(-1, levels).tolist()]])
        number = torch.zeros(1, dtype=torch.int64)
        batch = Batch(number, number, ids, torch.tensor([ids.shape[1]]))
        tokens, steps = completions[own][None], []
        with torch.no_grad():
            log_probs, memory = begun(model.decoder, model.encode(batch), model.items)
            for level in range(levels):
                code = tokens[:, :, level] - model.items.span(level).start
                steps.append(log_probs.expand(-1, tokens.shape[1], -1).gather(2, code[:, :, None])[0, :, 0])
                if level + 1 < levels:
                    every = torch.arange(tokens.shape[1])[None]
                    parents = every if level else torch.zeros_like(every)
                    log_probs, memory = model.decoder.step(memory, model.items, tokens[:, :, level], parents)
        found[own] = torch.stack(steps, 1)
    return found, known


def judged(task: Task, inputs: dict[str, Any], log_probs: Tensor) -> tuple[Tensor, float]:
    """Our credit (N, M) and our loss of trl's samples."""
    from recsys.llm.trainers.credit.groups import GroupRelative
    from recsys.llm.trainers.objectives.policy import PolicyGradient
    from recsys.llm.trainers.sequences import Role, Sequences

    numbers, prompts = tokens_of(task), inputs["prompt_ids"]
    wanted = {
        tuple(one for item in row[:-1] for one in numbers[item - 1]): numbers[row[-1] - 1] for row in histories(task)
    }
    told = zip(prompts.tolist(), inputs["completion_ids"].tolist(), strict=True)
    batch = Sequences(
        log_probs, inputs["completion_mask"].bool(), prompts.unique(dim=0, return_inverse=True)[1],
        torch.full((len(prompts),), int(Role.TARGET)), old=inputs["old_per_token_logps"],
        reward=torch.tensor([prefix_share(own, wanted[tuple(prompt)]) for prompt, own in told]),
    )  # fmt: skip
    return GroupRelative()(batch), float(PolicyGradient(GroupRelative())(batch))
