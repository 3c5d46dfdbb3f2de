"""What tests of the trainers share: a tiny language model, random batches, and the checks that every objective passes.

    for check in G_CHECKS: check(objective, sequences(12, 5, roles=(Role.FORGET, Role.RETAIN)))

Legend: N sequences, S tokens of prompt and completion, T tokens of the longest completion, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from recsys.llm.trainers.sequences import Role, Sequences

PAD, END, VOCABULARY = 0, 1, 64
PER_TOKEN = ("log_probs", "mask", "reference", "old", "entropy", "divergence", "tokens")


def tiny_llama(seed: int = 0) -> Any:
    """A Llama of two layers with random weights, float32, on the CPU, in evaluation mode: no dropout."""
    transformers = pytest.importorskip("transformers")
    sizes = {"vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    config = transformers.LlamaConfig(
        **sizes, num_attention_heads=4, num_key_value_heads=4, max_position_embeddings=64, pad_token_id=PAD,
        bos_token_id=None, eos_token_id=END, attn_implementation="eager",
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return transformers.LlamaForCausalLM(config).float().eval()


def texts(n: int, prompt: int = 4, least: int = 2, most: int = 5, seed: int = 0) -> tuple[Tensor, Tensor]:
    """(N, S) random ids, right-padded, and (N, S) which of them are the completion, its end token among them."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(2, VOCABULARY, (n, prompt + most), generator=generator)
    lengths = torch.randint(least, most + 1, (n, 1), generator=generator)
    at = torch.arange(prompt + most)
    ids = torch.where(at == prompt + lengths - 1, END, ids).masked_fill(at >= prompt + lengths, PAD)
    return ids, (at >= prompt) & (at < prompt + lengths)


def of_model(model: Any, ids: Tensor, completion: Tensor, inputs: Tensor | None = None, **known: Any) -> Sequences:
    """The batch of ``ids`` (N, S), whose tokens at ``completion`` (N, S) bool count; other fields as they are given.

    Entropies are those of the model; without ``group`` each sequence has its own, without ``role`` it is a TARGET.

    Args:
        inputs: (N, S) what the model reads instead of ``ids``.
        known: fields of :class:`Sequences`, already of the shapes that it wants.
    """
    attention = (torch.arange(ids.shape[1]) <= last_of(completion)[:, None]).long()
    logits = model(input_ids=ids if inputs is None else inputs, attention_mask=attention).logits
    probable = F.log_softmax(logits[:, :-1].float(), -1)  # (N, S-1, V): position t-1 tells of token t
    own = probable.gather(-1, ids[:, 1:, None]).squeeze(-1)
    entropy = -(probable.exp() * probable).sum(-1).detach()
    counted = int(completion.sum(1).max())
    order = completion[:, 1:].int().argsort(dim=1, descending=True, stable=True)[:, :counted]
    found = {"log_probs": own, "mask": completion[:, 1:], "entropy": entropy, "tokens": ids[:, 1:]}
    moved = {name: value.gather(1, order) for name, value in found.items()}
    told: dict[str, Any] = {"group": torch.arange(len(ids)), "role": torch.full((len(ids),), int(Role.TARGET))}
    return Sequences(**(moved | told | known))


def last_of(completion: Tensor) -> Tensor:
    """(N,) position of the last completion token."""
    return (completion * torch.arange(completion.shape[1])).amax(1)


def sequences(n: int, t: int, seed: int = 0, roles: Sequence[Role] = (Role.TARGET,), size: int = 4) -> Sequences:
    """A random batch with every field: groups of ``size`` in which ``roles`` take turns, lengths of 1 to ``t``.

    Log-probabilities and divergences are leaves with gradient; weights are None.
    """
    generator = torch.Generator().manual_seed(seed)

    def log_probs() -> Tensor:
        return -torch.rand(n, t, generator=generator) * 3

    mask = torch.arange(t) < torch.randint(1, t + 1, (n, 1), generator=generator)
    mask[0] = True
    turns = torch.tensor([int(role) for role in roles])[torch.arange(n) % size % len(roles)]
    return Sequences(
        log_probs().requires_grad_(), mask, torch.arange(n) // size, turns, reference=log_probs(), old=log_probs(),
        entropy=-log_probs(), divergence=(-log_probs()).requires_grad_(),
        tokens=torch.randint(2, VOCABULARY, (n, t), generator=generator).masked_fill(~mask, PAD),
        reward=torch.randint(0, 2, (n,), generator=generator).float(),
    )  # fmt: skip


def with_gains(batch: Sequences, gains: Tensor | float) -> Sequences:
    """``batch`` with its policy as it must be for log-probabilities to be ``gains`` (N,) above the reference."""
    assert batch.reference is not None
    each = torch.as_tensor(gains, dtype=torch.float32).expand(len(batch)) / batch.mask.sum(1)
    return replace(batch, log_probs=(batch.reference + each[:, None]).detach().requires_grad_())


def scored(scores: Tensor, role: Sequence[Role], group: Sequence[int], **known: Any) -> Sequences:
    """Sequences of one token whose log-probabilities are ``scores`` (N,) and whose reference is 0."""
    n = len(scores)
    told: dict[str, Any] = {"reference": scores.new_zeros(n, 1), "tokens": torch.arange(n)[:, None] + 2}
    roles = torch.tensor([int(one) for one in role])
    return Sequences(scores[:, None], torch.ones(n, 1).bool(), torch.tensor(group), roles, **(told | known))


def fitted(
    model: Any, objective: Any, make: Callable[[], Sequences], updates: int, learning_rate: float
) -> list[float]:
    """The losses of ``updates`` AdamW updates of the model towards ``objective`` on ``make()``."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate)
    losses = []
    for _ in range(updates):
        loss = total(objective(make()))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def total(loss: Tensor | dict[str, Tensor]) -> Tensor:
    """The sum of what an objective answers."""
    return torch.stack(list(loss.values())).sum() if isinstance(loss, dict) else loss


def loss_and_gradient(objective: Any, batch: Sequences) -> tuple[Tensor, Tensor]:
    """The scalar loss and its gradient (N, T) by the log-probabilities."""
    batch = replace(batch, log_probs=batch.log_probs.detach().clone().requires_grad_())
    loss = total(objective(batch))
    (gradient,) = torch.autograd.grad(loss, batch.log_probs, materialize_grads=True, allow_unused=True)
    return loss.detach(), gradient


def same(objective: Any, one: Sequences, other: Sequences, rows: Any = slice(None), columns: Any = slice(None)) -> None:
    """The loss of ``one`` is that of ``other``, and the gradient of ``other`` that of ``one`` at rows and columns."""
    (ours, mine), (theirs, yours) = loss_and_gradient(objective, one), loss_and_gradient(objective, other)
    torch.testing.assert_close(theirs, ours, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(yours, mine[rows][:, columns], atol=1e-5, rtol=1e-5)


def g1_padding(objective: Any, batch: Sequences) -> None:
    """Two more columns that do not count, whatever stands there, change neither loss nor gradient."""
    found: dict[str, Tensor] = {}
    for name in PER_TOKEN:
        value = getattr(batch, name)
        fill = {"mask": False, "tokens": 7}.get(name, torch.nan)
        if value is not None:
            found[name] = torch.cat([value.detach(), value.new_full((len(batch), 2), fill)], 1)
    longer = replace(batch, **found)
    same(objective, longer, batch, columns=slice(0, batch.mask.shape[1]))
    changed = {name: value.masked_fill(~longer.mask, 9) for name, value in found.items() if name != "mask"}
    same(objective, longer, replace(longer, **changed))


def g2_permutation(objective: Any, batch: Sequences) -> None:
    """The order of the sequences does not matter, nor what number a group has."""
    order = torch.randperm(len(batch), generator=torch.Generator().manual_seed(5))
    moved = batch[order]
    same(objective, batch, replace(moved, group=1000 - 7 * moved.group), rows=order)


def g3_finite(objective: Any, batch: Sequences) -> None:
    """Loss and gradient are finite however far the policy is from the reference."""
    ends = torch.tensor([-1e4, -50.0, 0.0, 50.0, 1e4])
    generator = torch.Generator().manual_seed(6)
    mixed = [ends[torch.randint(0, 5, (len(batch),), generator=generator)] for _ in range(10)]
    for gains in [*ends, *mixed]:
        loss, gradient = loss_and_gradient(objective, with_gains(batch, gains))
        assert loss.isfinite(), gains
        assert gradient.isfinite().all(), gains


def g4_no_leakage(objective: Any, batch: Sequences) -> None:
    """Nothing but the policy has a gradient, and that only at tokens that count."""
    constant = ("reference", "old", "entropy", "reward")
    leaves = {name: getattr(batch, name).detach().clone().requires_grad_() for name in constant}
    policy = batch.log_probs.detach().clone().requires_grad_()
    total(objective(replace(batch, log_probs=policy, **leaves))).backward()
    for name, leaf in leaves.items():
        assert leaf.grad is None or not leaf.grad.any(), name
    assert policy.grad is not None
    assert policy.grad.any()
    assert not policy.grad[~batch.mask].any()


def g5_weights(objective: Any, batch: Sequences) -> None:
    """Doubled weights change nothing, as weights of one do not; a weight of 0 drops the sequence."""
    n = len(batch)
    weight = torch.rand(n, generator=torch.Generator().manual_seed(7)) + 0.2
    same(objective, batch, replace(batch, weight=torch.ones(n)))
    same(objective, replace(batch, weight=weight), replace(batch, weight=2 * weight))
    uneven = loss_and_gradient(objective, replace(batch, weight=weight))[0]
    assert not torch.allclose(uneven, loss_and_gradient(objective, batch)[0]), "weights have no part in the loss"
    for dropped in range(0, n, 3):
        kept = torch.arange(n) != dropped
        without = weight.masked_fill(~kept, 0)
        weighed, left = replace(batch, weight=without), replace(batch, weight=weight)[kept]
        same(objective, weighed, left, rows=kept)
        assert not loss_and_gradient(objective, weighed)[1][dropped].any()


def g6_empty_role(objective: Any, batch: Sequences) -> None:
    """A batch without one of its roles is an error that names the role."""
    for role in batch.role.unique().tolist():
        with pytest.raises(ValueError, match=Role(role).name):
            objective(batch[batch.role != role])


G_CHECKS: list[Callable[[Any, Sequences], None]] = [
    g1_padding, g2_permutation, g3_finite, g4_no_leakage, g5_weights, g6_empty_role,
]  # fmt: skip
g_checks = pytest.mark.parametrize("check", G_CHECKS, ids=lambda check: check.__name__)
