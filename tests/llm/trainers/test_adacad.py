"""AdaCAD: the numbered checks, and texts generated with two caches against a loop without any."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from recsys.llm.chat import Prompt
from recsys.llm.trainers.decoders.adacad import ContextTrust, Contrast, adaptive_contrast, divergence


def logits(seed: int, *shape: int) -> Tensor:
    return 3 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_adacad_1_equal_distributions_are_left_alone() -> None:
    context = logits(0, 3, 7)
    torch.testing.assert_close(adaptive_contrast(context, context + 2), context, rtol=0, atol=1e-5)
    torch.testing.assert_close(divergence(context, context + 2), torch.zeros(3), rtol=0, atol=1e-6)


def test_adacad_2_disjoint_supports_give_the_logarithm_of_2() -> None:
    context, bare = torch.tensor([[0.0, 0.0, -torch.inf]]), torch.tensor([[-torch.inf, -torch.inf, 0.0]])
    torch.testing.assert_close(divergence(context, bare), torch.tensor([math.log(2)]))
    torch.testing.assert_close(
        divergence(torch.tensor([90.0, 0.0]), torch.tensor([0.0, 90.0])), torch.tensor(math.log(2))
    )
    combined = adaptive_contrast(context, bare)
    assert combined.isfinite().tolist() == [[True, True, False]]


def test_adacad_3_divergence_is_symmetric_and_bounded() -> None:
    for seed in range(20):
        one, other = logits(seed, 4, 9) * (seed + 1), logits(seed + 100, 4, 9)
        found = divergence(one, other)
        torch.testing.assert_close(found, divergence(other, one))
        assert bool(((found >= 0) & (found <= math.log(2))).all())
        p, q = one.double().softmax(-1).numpy(), other.double().softmax(-1).numpy()
        m = (p + q) / 2
        with np.errstate(divide="ignore", invalid="ignore"):
            plain = 0.5 * (np.nansum(p * np.log(p / m), 1) + np.nansum(q * np.log(q / m), 1))
        np.testing.assert_allclose(found.numpy(), plain, atol=1e-5)


def test_adacad_4_a_batch_is_row_by_row() -> None:
    context, bare = logits(1, 5, 8), logits(2, 5, 8)
    allowed = torch.rand(5, 8, generator=torch.Generator().manual_seed(3)) < 0.6
    allowed[:, 0] = True
    found = adaptive_contrast(context, bare, allowed, least=0.1, plausible=0.05)
    for row in range(5):
        own = adaptive_contrast(context[row], bare[row], allowed[row], least=0.1, plausible=0.05)
        torch.testing.assert_close(found[row], own, rtol=0, atol=1e-6)  # sums of rows differ in the last bit


def test_adacad_5_what_is_not_allowed_has_no_part() -> None:
    context, bare = logits(4, 2, 6), logits(5, 2, 6)
    allowed = torch.tensor([[1, 1, 0, 0, 1, 0], [0, 1, 1, 1, 0, 1]]).bool()
    found = adaptive_contrast(context, bare, allowed)
    probabilities = found.softmax(-1)
    assert not probabilities.isnan().any() and bool((probabilities[~allowed] == 0).all())
    for row in range(2):  # the same as if there were no other tokens
        own = adaptive_contrast(context[row, allowed[row]], bare[row, allowed[row]])
        torch.testing.assert_close(found[row, allowed[row]], own)
    there = context.masked_fill(~allowed, -torch.inf), bare.masked_fill(~allowed, -torch.inf)
    torch.testing.assert_close(adaptive_contrast(*there).softmax(-1), probabilities)
    with pytest.raises(ValueError, match="nothing may come next in 1 of 2"):
        adaptive_contrast(context, bare, allowed & torch.tensor([[True], [False]]))


def test_adacad_6_the_token_of_the_history_beats_the_popular_one() -> None:
    bare = torch.tensor([[4.0, 0.0, 0.0, 0.0]]).expand(3, -1)
    context = torch.tensor([[2.0, 1.8, 0, 0], [2.0, 0, 1.8, 0], [2.0, 0, 0, 1.8]])
    assert context.argmax(1).tolist() == [0, 0, 0]
    assert adaptive_contrast(context, bare).argmax(1).tolist() == [1, 2, 3]


def test_adacad_by_hand() -> None:
    context, bare = torch.tensor([0.5, 0.5]).log(), torch.tensor([0.8, 0.2]).log()
    m = [0.65, 0.35]
    alpha = 0.5 * sum(0.5 * math.log(0.5 / x) for x in m)
    alpha += 0.5 * sum(p * math.log(p / x) for p, x in zip((0.8, 0.2), m))
    weights = [0.5 * (0.5 / 0.8) ** alpha, 0.5 * (0.5 / 0.2) ** alpha]
    expected = torch.tensor(weights) / sum(weights)
    torch.testing.assert_close(adaptive_contrast(context, bare).softmax(0), expected)
    weights = [0.5 * (0.5 / 0.8) ** 0.6, 0.5 * (0.5 / 0.2) ** 0.6]
    expected = torch.tensor(weights) / sum(weights)
    torch.testing.assert_close(adaptive_contrast(context, bare, least=0.6).softmax(0), expected)


def test_adacad_noise_among_the_improbable_is_not_contrasted() -> None:
    context, bare = torch.tensor([0.0, -1.0, -6.0]), torch.tensor([0.0, -1.0, -200.0])
    assert adaptive_contrast(context, bare, least=1.0).argmax() == 2
    assert adaptive_contrast(context, bare, least=1.0, plausible=0.1).argmax() == 0


def test_adacad_wrong_arguments() -> None:
    with pytest.raises(ValueError, match="one shape"):
        adaptive_contrast(torch.zeros(2, 3), torch.zeros(2, 4))
    with pytest.raises(ValueError, match="NaN"):
        adaptive_contrast(torch.full((2, 3), torch.nan), torch.zeros(2, 3))
    with pytest.raises(ValueError, match="least"):
        adaptive_contrast(torch.zeros(2, 3), torch.zeros(2, 3), least=-1)


@pytest.fixture(scope="module")
def model() -> Any:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=4, max_position_embeddings=64, attn_implementation="eager", pad_token_id=0, eos_token_id=1,
        bos_token_id=2,
    )  # fmt: skip
    model = transformers.LlamaForCausalLM(config).eval()
    for parameter in model.parameters():
        parameter.data.mul_(8)
    return model


PROMPTS = [[5, 6, 7, 8, 9], [10, 11, 12], [13, 14, 15, 16]]
BARE = [[5, 6], [20], [13, 21, 22]]


@torch.no_grad()
def plain(model: Any, prompt: list[int], bare: list[int], steps: int, beams: int = 1) -> list[int]:
    """Beam search with contrast for one prompt, everything read anew for each token; an end token is never written."""
    alive: list[tuple[float, list[int]]] = [(0.0, [])]
    for _ in range(steps):
        grown = []
        for total, new in alive:
            context, without = (model(torch.tensor([ids + new])).logits[0, -1] for ids in (prompt, bare))
            if beams > 1:
                context = context.log_softmax(0)
            combined = adaptive_contrast(context, without)
            combined[1] = -torch.inf
            for token in combined.topk(beams).indices.tolist():
                grown.append((total + float(combined[token]), [*new, token]))
        alive = sorted(grown, key=lambda one: -one[0])[:beams]
    return alive[0][1]


def generated(model: Any, processor: Any, beams: int = 1, steps: int = 6) -> list[list[int]]:
    width = max(map(len, PROMPTS))
    ids = torch.tensor([[0] * (width - len(row)) + row for row in PROMPTS])
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in PROMPTS])
    told = {"max_new_tokens": steps, "min_new_tokens": steps, "do_sample": False, "num_beams": beams}
    found = model.generate(input_ids=ids, attention_mask=mask, logits_processor=[processor], **told)
    return found[:, width:].tolist()


@pytest.mark.parametrize("beams", [1, 3])
def test_adacad_4_texts_of_a_batch_are_those_without_caches(model: Any, beams: int) -> None:
    found = generated(model, Contrast(model, BARE), beams)
    assert found == [plain(model, prompt, bare, 6, beams) for prompt, bare in zip(PROMPTS, BARE)]
    assert found != [plain(model, prompt, prompt, 6, beams) for prompt in PROMPTS], "contrast does change something"


def test_adacad_1_against_itself_is_plain_generation(model: Any) -> None:
    assert generated(model, Contrast(model, PROMPTS)) == [plain(model, row, row, 6) for row in PROMPTS]


def test_adacad_a_contrast_serves_one_generation_after_another(model: Any) -> None:
    contrast = Contrast(model, BARE)
    assert generated(model, contrast) == generated(model, contrast)
    with pytest.raises(ValueError, match="bare"):
        Contrast(model, [[]])


def test_adacad_a_trust_tells_what_answers_depend_on() -> None:
    first = ContextTrust(lambda prompt: Prompt(prompt.system, "no history"))
    second = ContextTrust(lambda prompt: Prompt(prompt.system, "nothing"))
    assert first.settings != second.settings != ContextTrust(second.bare, least=0.2).settings
