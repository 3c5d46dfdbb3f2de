"""Policies: probabilities of items as sequences, sampling that agrees with them, and where the reference comes from."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from recsys.encoders.sasrec import SASRec
from recsys.generative.code_decoder import CodeDecoder
from recsys.generative.code_policy import CodePolicy, told
from recsys.items.ids import IdItems
from recsys.llm.trainers.drafts import Draft, pairs_of
from recsys.llm.trainers.item_policy import ItemPolicy
from recsys.llm.trainers.sequences import Role
from recsys.llm.trainers.tuning import divergence, entropy
from recsys.protocols import Context, Step
from recsys.ranking.filters import Shown
from tests.generative.tiny import bound, code_items, histories, random_codes

SIZES, N, DIM = (3, 4, 2), 11, 8


@pytest.fixture(scope="module")
def coded() -> tuple[Any, Any, Any]:
    """A table of codes, a decoder and the reading of four histories."""
    items = code_items(random_codes(N, SIZES, 3), SIZES, DIM)
    decoder = bound(CodeDecoder(DIM, 1, 2, 4, 16, 0.0, memory="both"))
    encoder = bound(SASRec(DIM, 1, 1, 0.0, 6, layout="pre"))
    return items, encoder, decoder


def step_of(items: Any, encoder: Any, seed: int = 0) -> Step:
    batch = histories((3, 1, 5, 2), N)
    return Step(batch, seed, items=items, encode=lambda one: encoder(one.ask_all(), items))


def draft_of(rows: Any, shown: Shown | None = None) -> Draft:
    rows = torch.as_tensor(rows)
    return Draft(histories((3, 1, 5, 2), N), rows, torch.full_like(rows, Role.TARGET), shown=shown)


def by_hand(items: Any, encoder: Any, decoder: Any, allowed: set[int]) -> np.ndarray:
    """(4, N, M) log-probabilities of all items, code by code among the codes of allowed items, in plain loops."""
    batch = histories((3, 1, 5, 2), N)
    encoded = encoder(batch.ask_all(), items)
    codes = [tuple(one) for one in items.codes[1:].tolist()]
    found = np.full((4, N, 3), -np.inf)
    for user in range(4):
        for item in allowed:
            memory, tokens = decoder.begin(encoded, items), None
            for level in range(3):
                logs, memory = decoder.step(memory, items, tokens, None if tokens is None else tokens * 0)
                prefix = codes[item - 1][:level]
                open_codes = sorted({codes[one - 1][level] for one in allowed if codes[one - 1][:level] == prefix})
                chances = logs[user, 0, open_codes].log_softmax(0)
                found[user, item - 1, level] = float(chances[open_codes.index(codes[item - 1][level])].detach())
                tokens = torch.full((4, 1), items.span(level).start + codes[item - 1][level])
    return found


def test_codes_are_told_among_what_exists(coded: Any) -> None:
    items, encoder, decoder = coded
    rows = torch.arange(1, N + 1).expand(4, -1)
    steps, _ = told(decoder, step_of(items, encoder).encoded, items, rows)
    assert np.allclose(steps.detach().numpy(), by_hand(items, encoder, decoder, set(range(1, N + 1))), atol=1e-5)
    assert torch.allclose(steps.sum(2).exp().sum(1), torch.ones(4), atol=1e-5)  # so they are a distribution over items


def test_codes_are_told_among_what_may_be_shown(coded: Any) -> None:
    items, encoder, decoder = coded
    hidden = [0, 3, 4, 7]  # columns
    rows = torch.arange(1, N + 1).expand(4, -1)
    shown = Shown(denied_to_all=np.array(hidden))
    steps, full = told(decoder, step_of(items, encoder).encoded, items, rows, shown, full=True)
    left = {row for row in range(1, N + 1) if row - 1 not in hidden}
    kept = torch.tensor(sorted(left)) - 1
    wanted = by_hand(items, encoder, decoder, left)
    assert np.allclose(steps.detach()[:, kept].numpy(), wanted[:, kept], atol=1e-5)
    assert full is not None and torch.allclose(full[:, kept].exp().sum(3), torch.ones(4, len(kept), 3), atol=1e-5)
    scored = CodePolicy(encoder, decoder)(step_of(items, encoder), draft_of(rows, shown))
    assert len(scored.log_probs) == 4 * len(left)  # what could not have been given is no sequence


def test_23_4_sampled_items_exist_and_have_the_probability_that_is_told(coded: Any) -> None:
    items, encoder, decoder = coded
    policy, denied = CodePolicy(encoder, decoder), pairs_of(histories((3, 1, 5, 2), N).ids)
    step = step_of(items, encoder)
    from recsys.generative.sampling import sample

    found = sample(decoder, step.encoded, items, Shown(denied=denied), 3, torch.Generator().manual_seed(1))
    scored = policy(step, draft_of(found.rows, Shown(denied=denied)))
    assert torch.allclose(scored.log_probs.sum(1), found.drawn[found.rows > 0], atol=1e-5)
    drawn = policy.sample(step, step.batch, 4, 1.0, Shown(denied=denied))
    assert not any(set(row.tolist()) & set(ids.tolist()) for row, ids in zip(drawn, step.batch.ids))
    assert all(len(set(row.tolist())) == 4 for row in drawn)


def test_gradients_reach_encoder_decoder_and_codes(coded: Any) -> None:
    items, encoder, decoder = coded
    scored = CodePolicy(encoder, decoder)(step_of(items, encoder), draft_of([[1, 2], [3, 0], [4, 5], [6, 7]]))
    assert len(scored.log_probs) == 7
    grads = torch.autograd.grad(scored.log_probs.sum(), [items.tokens, *decoder.parameters()], allow_unused=True)
    assert all(one is None or bool(one.isfinite().all()) for one in grads)
    assert float(grads[0].abs().sum()) > 0


@pytest.mark.parametrize("full", [False, True])
def test_items_are_a_softmax_over_all(full: bool) -> None:
    items, encoder = IdItems(DIM), SASRec(DIM, 1, 1, 0.0, 6)
    for part in (items, encoder):
        part.bind(Context(num_items=N))
    step = Step(histories((3, 1, 5, 2), N), items=items, encode=lambda one: encoder(one, items))
    rows = torch.tensor([[1, 2], [3, 0], [4, 5], [6, 7]])
    scored = ItemPolicy(encoder.eval())(step, draft_of(rows), full)
    wanted = items.scores(encoder(histories((3, 1, 5, 2), N), items).user).log_softmax(1)
    assert torch.allclose(
        scored.log_probs[:, 0], wanted[torch.tensor([0, 0, 1, 2, 2, 3, 3]), rows[rows > 0] - 1], atol=1e-5
    )
    assert (scored.full is not None) == full


def test_items_are_sampled_as_the_softmax_says() -> None:
    items, encoder = IdItems(DIM), SASRec(DIM, 1, 1, 0.0, 6)
    for part in (items, encoder):
        part.bind(Context(num_items=N))
    with torch.no_grad():
        items.weight[1:].mul_(8) if hasattr(items, "weight") else None
    encoder.eval()
    batch = histories((3,), N)
    many = replace(
        batch,
        **{name: getattr(batch, name).repeat_interleave(20_000, 0) for name in ("rows", "users", "ids", "lengths")},
    )
    step = Step(many, items=items, encode=lambda one: encoder(one, items))
    shown = Shown(denied=pairs_of(torch.full((20_000, 1), 2)))
    with torch.no_grad():
        drawn = ItemPolicy(encoder).sample(step, many, 1, 1.0, shown)[:, 0]
        scores = items.scores(encoder(batch, items).user)[0]
    scores[1] = -torch.inf
    share = torch.bincount(drawn, minlength=N + 1)[1:] / len(drawn)
    assert float((share - scores.softmax(0)).abs().max()) < 0.015
    assert share[1] == 0


def test_entropy_and_divergence_of_choices_that_are_none() -> None:
    first = torch.tensor([0.5, 0.5, 0.0]).log()
    second = torch.tensor([0.25, 0.75, 0.0]).log()
    assert float(entropy(first)) == pytest.approx(np.log(2))
    assert float(divergence(first, second)) == pytest.approx(0.5 * np.log(2) + 0.5 * np.log(0.5 / 0.75))
    assert float(divergence(first, first)) == 0.0


def test_a_decoder_of_sets_is_refused() -> None:
    class Sets(nn.Module):
        ordered = False

    with pytest.raises(TypeError, match="sets"):
        CodePolicy(None, Sets())
