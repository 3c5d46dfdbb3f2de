"""Generation against the same model without a history: the search's lists against exhaustive ones, and training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import recsys as rs
from recsys.data.batch import Batch
from recsys.encoders.sasrec import SASRec
from recsys.encoders.tokens import TokenEncoder
from recsys.generative.beam import Beam, all_log_probs, exact_log_probs
from recsys.generative.code_decoder import CodeDecoder
from recsys.generative.contrasted import Contrasted, hidden
from recsys.generative.set_decoder import SetDecoder
from recsys.llm.trainers.decoders.adacad import adaptive_contrast
from recsys.protocols import Encoded
from recsys.semantic_ids.table import SemanticIds
from tests.cycles import cycles
from tests.generative.tiny import bound, code_items, histories, random_codes

SIZES = (4, 3, 5)


def model(**options: Any) -> tuple[Any, Contrasted, Encoded]:
    items = code_items(random_codes(30, SIZES), SIZES, std=2.0)
    decoder = bound(CodeDecoder(16, 1, 2, 8, 16, 0.0, **options.pop("decoder", {})))
    encoder = bound(SASRec(16, 1, max_length=12))
    encoded = encoder(histories((5, 3, 8), 30).ask_all(), items)
    return items, Contrasted(decoder, **options).eval(), encoded


def by_hand(decoder: Any, encoded: Encoded, items: Any, least: float = 0.0) -> Tensor:
    """(B, N): each history and item on its own, code by code, among the codes that lead to an item."""
    nothing = hidden(encoded, torch.zeros(len(encoded.batch), dtype=torch.bool))
    found = torch.zeros(len(encoded.batch), items.num_items)
    known = items.codes[1:].tolist()
    for number, codes in enumerate(known):
        memories = [decoder.begin(one, items) for one in (encoded, nothing)]
        tokens, first = None, 1
        for level, code in enumerate(codes):
            parents = None if tokens is None else torch.zeros_like(tokens)
            told = [decoder.step(memory, items, tokens, parents) for memory in memories]
            memories = [memory for _, memory in told]
            allowed = torch.zeros(SIZES[level], dtype=torch.bool)
            allowed[[other[level] for other in known if other[:level] == codes[:level]]] = True
            both = [logs[:, 0] for logs, _ in told]
            combined = adaptive_contrast(*both, allowed.expand(len(both[0]), -1), least).log_softmax(-1)
            found[:, number] += combined[:, code]
            tokens, first = torch.full((len(encoded.batch), 1), first + code), first + SIZES[level]
    return found


@pytest.mark.parametrize("memory", ["past", "newest", "both"])
@torch.no_grad()
def test_adacad_5_items_and_their_probabilities(memory: str) -> None:
    items, decoder, encoded = model(decoder={"memory": memory}, least=0.3)
    expected = by_hand(decoder.decoder, encoded, items, 0.3)
    torch.testing.assert_close(expected.exp().sum(1), torch.ones(3))
    torch.testing.assert_close(all_log_probs(decoder, encoded, items), expected, rtol=1e-4, atol=1e-4)
    rows = torch.arange(1, 31).expand(3, -1)
    torch.testing.assert_close(exact_log_probs(decoder, encoded, items, rows), expected, rtol=1e-4, atol=1e-4)
    found, scores = Beam(30)(decoder, encoded, items, None, 10)
    best, columns = expected.topk(10)
    torch.testing.assert_close(scores, best, rtol=1e-4, atol=1e-4)
    assert found.tolist() == (columns + 1).tolist()


@torch.no_grad()
def test_adacad_4_a_batch_of_histories_is_one_by_one() -> None:
    items, decoder, encoded = model()
    together = all_log_probs(decoder, encoded, items)
    for row, tokens in enumerate(encoded.states):
        one = encoded.batch.select(torch.tensor([row]))
        alone = Encoded(one, tokens[: int(one.lengths[0])])
        torch.testing.assert_close(all_log_probs(decoder, alone, items)[0], together[row], rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_adacad_1_without_history_there_is_nothing_to_contrast() -> None:
    items, decoder, encoded = model()
    nothing = hidden(encoded, torch.zeros(3, dtype=torch.bool))
    found = all_log_probs(decoder, nothing, items)
    plain = all_log_probs(decoder.decoder, nothing, items)
    order = plain.argsort(1)
    torch.testing.assert_close(found[0], found[1])
    assert not torch.equal(all_log_probs(decoder, encoded, items).argsort(1), order)


@torch.no_grad()
def test_nothing_is_an_empty_history() -> None:
    """What is hidden is as if the history had no item."""
    items, decoder, encoded = model()
    empty = Batch(encoded.batch.rows, encoded.batch.rows, torch.zeros(3, 1, dtype=torch.int64), torch.zeros(3).long())
    states = Encoded(empty, encoded.tokens[:0])
    nothing = hidden(encoded, torch.zeros(3, dtype=torch.bool))
    found, expected = (all_log_probs(decoder.decoder, one, items) for one in (nothing, states))
    torch.testing.assert_close(found, expected)


@torch.no_grad()
def test_implausible_codes_are_not_generated() -> None:
    items, decoder, encoded = model(plausible=0.9)
    found, scores = Beam(30)(decoder, encoded, items, None, 10)
    assert bool((found[:, 0] > 0).all()) and bool((found == 0).any()), "lists are shorter"
    assert bool((scores[found == 0] == -torch.inf).all())


def test_training_hides_some_histories() -> None:
    items, decoder, encoded = model(drop=0.5)
    targets = encoded.batch.ids.roll(-1, 1) * encoded.batch.mask
    batch = encoded.batch.replace(targets=targets)
    encoded = Encoded(batch, encoded.tokens.detach())

    @torch.no_grad()
    def loss(part: Any, seed: int, states: Encoded = encoded) -> float:
        return float(part(states, batch, items, torch.Generator().manual_seed(seed)))

    plain = loss(decoder.decoder, 0)
    assert loss(decoder, 0) == plain, "not in evaluation"
    decoder.train()
    kept = torch.rand(3, generator=torch.Generator().manual_seed(4)) >= 0.5
    assert loss(decoder, 4) == pytest.approx(loss(decoder.decoder, 0, hidden(encoded, kept)))
    assert len({loss(decoder, seed) for seed in range(8)}) > 1
    assert loss(Contrasted(decoder.decoder, drop=0.0).train(), 0) == plain


class Popular:
    """One level: what is popular, and what the history's state adds to it."""

    ordered = True

    def begin(self, encoded: Encoded, items: Any) -> Tensor:
        return encoded.user + torch.tensor([4.0, 0.0, 0.0, 0.0])

    def step(self, memory: Tensor, items: Any, tokens: Any, parents: Any) -> tuple[Tensor, Tensor]:
        return memory[:, None].log_softmax(-1), memory


def test_adacad_6_a_popular_item_gives_way_to_one_of_the_history() -> None:
    items = code_items([[0], [1], [2], [3]], (4,))
    batch = histories((1, 1, 1), 4)
    states = torch.tensor([[-2.0, 1.8, 0, 0], [-2.0, 0, 1.8, 0], [-2.0, 0, 0, 1.8]])
    encoded = Encoded(batch, states)
    assert Beam(4)(Popular(), encoded, items, None, 1)[0].tolist() == [[1], [1], [1]]
    assert Beam(4)(Contrasted(Popular()), encoded, items, None, 1)[0].tolist() == [[2], [3], [4]]


def test_a_contrasted_generator_learns_is_saved_and_loaded(tmp_path: Path) -> None:
    split = cycles()
    number = np.arange(split.num_items)
    SemanticIds.of(split.items.ids, np.stack([number // 5, number % 5], 1)).save(tmp_path / "ids")
    encoder = TokenEncoder(16, 1, 2, 8, 32, 0.0, 8, causal=True)
    items = rs.CodeItems(16, str(tmp_path / "ids"), tied=True, std=1.0)
    decoder = Contrasted(CodeDecoder(16, 1, 2, 8, 32, 0.0, memory="both"), least=0.1)
    made = rs.Generator(items, encoder, decoder, Beam(8))
    told = {"learning_rate": 0.01, "batch_size": 64, "validate_every": 0, "progress": False}
    rs.fit(made, split, epochs=25, folder=tmp_path / "run", **told)
    report = rs.evaluate(made, split.test, metrics=["hr@1"], exclude="none", progress=False)
    assert report.mean("hr@1") > 0.8
    raw = split.items.ids.tolist()
    histories = [raw[:3], raw[7:9]]
    assert np.exp(made.log_probs(histories, raw)).sum(1) == pytest.approx(np.ones(2), abs=1e-4)
    again = rs.load_run(tmp_path / "run")
    assert again.decoder.least == 0.1 and again.recommend(histories, k=5).items == made.recommend(histories, k=5).items


def test_only_decoders_of_levels_are_contrasted() -> None:
    with pytest.raises(TypeError, match="level by level"):
        Contrasted(SetDecoder(16))
    with pytest.raises(ValueError, match="drop"):
        Contrasted(CodeDecoder(16), drop=1.0)
