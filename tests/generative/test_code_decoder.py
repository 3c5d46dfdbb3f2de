"""TIGER's decoder: its loss by hand, one pass against one row per prefix, steps against teaching, learning by heart.

Checks by their number in the specification: semantic_ids.md 12.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from recsys.data.batch import Batch
from recsys.encoders.gru4rec import GRU4Rec
from recsys.encoders.sasrec import SASRec
from recsys.encoders.tokens import TokenEncoder
from recsys.generative.code_decoder import CodeDecoder
from recsys.items.codes import CodeItems
from recsys.items.ids import IdItems
from recsys.protocols import Context, Decoder
from recsys.targets.last_item import LastItem
from recsys.targets.next_item import NextItem
from tests.generative.tiny import bound, code_items, exact, histories, plain_beam, random_codes
from tests.per_target import per_target

SIZES, NUM_ITEMS, DIM = (6, 7, 5), 40, 16
SMALL: dict[str, Any] = {"num_layers": 2, "num_heads": 3, "head_dim": 8, "ff": 24, "dropout": 0.0}
NOTHING = torch.Generator()

ENCODERS: dict[str, Any] = {
    "tokens, causal": lambda: TokenEncoder(DIM, **SMALL, causal=True),
    "tokens": lambda: TokenEncoder(DIM, **SMALL),
    "SASRec": lambda: SASRec(DIM, 1, 2, 0.0, 12, positions="absolute"),  # the same in a prefix and in the whole
    "GRU4Rec": lambda: GRU4Rec(DIM, 12, dropout=0.0, max_length=12),
}
DECODERS: dict[str, Any] = {
    "past": lambda: CodeDecoder(DIM, **SMALL),
    "newest": lambda: CodeDecoder(DIM, **SMALL, memory="newest"),
    "both": lambda: CodeDecoder(DIM, **SMALL, memory="both"),
    "vocabulary": lambda: CodeDecoder(DIM, **SMALL, softmax="vocabulary", end=True),
}
PAIRS = [(one, other) for one in ENCODERS for other in DECODERS]


def parts(encoder: str, decoder: str, tied: bool = True) -> tuple[Any, Any, CodeItems]:
    items = code_items(random_codes(NUM_ITEMS, SIZES), SIZES, DIM, tied)
    return bound(ENCODERS[encoder]()), bound(DECODERS[decoder]()), items


def trained(batch: Batch, targets: Any) -> Batch:
    return targets.train(batch, NOTHING)


def loss(encoder: Any, decoder: Any, items: CodeItems, batch: Batch) -> Tensor:
    return decoder(encoder(batch.ask_all(), items), batch, items, NOTHING)


def prefixes(batch: Batch) -> list[Batch]:
    """One batch per prefix of two events or more."""
    found = []
    for row in range(len(batch)):
        for length in range(2, int(batch.lengths[row]) + 1):
            one = batch.select(torch.tensor([row])).trim(length)
            found.append(one.replace(lengths=torch.tensor([length])))
    return found


def test_is_a_decoder_that_says_what_it_reads() -> None:
    assert isinstance(CodeDecoder(DIM, **SMALL), Decoder)
    assert CodeDecoder(DIM, **SMALL).whole
    assert CodeDecoder(DIM, **SMALL, memory="both").whole
    assert not CodeDecoder(DIM, **SMALL, memory="newest").whole


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("softmax", ["level", "vocabulary"])
def test_the_loss_is_the_mean_over_tokens_of_their_cross_entropy(tied: bool, softmax: str) -> None:
    items = code_items(random_codes(NUM_ITEMS, SIZES), SIZES, DIM, tied)
    encoder, decoder = bound(ENCODERS["tokens, causal"]()), bound(CodeDecoder(DIM, **SMALL, softmax=softmax))
    batch = trained(histories((4, 3), NUM_ITEMS), NextItem())
    encoded = encoder(batch, items)
    states, targets, _ = encoded.at_targets(batch)
    hidden = decoder.teach(encoded, batch, items, states, items.token_table[targets])
    expected = torch.zeros(len(targets))
    for row, target in enumerate(targets.tolist()):
        for level in range(3):
            logits = hidden[row, level] * (DIM**-0.5 if tied else 1.0) @ items.prototypes.T
            token = int(items.token_table[target, level])
            span = items.span(level) if softmax == "level" else slice(0, len(logits))
            expected[row] -= (logits[token] - logits[span].logsumexp(0)) / 3
    torch.testing.assert_close(per_target(decoder, encoded, batch, items), expected)


@pytest.mark.parametrize(("encoder", "decoder"), PAIRS)
def test_semantic_ids_12_5_steps_give_the_taught_log_probabilities(encoder: str, decoder: str) -> None:
    encode, decode, items = parts(encoder, decoder)
    batch = histories((5, 1, 3), NUM_ITEMS)
    with torch.no_grad():
        encoded = encode(batch.ask_all(), items)
        found = exact(decode, encoded, items)
        numbers = with_ends(items, decode)
        for item in (1, 7, NUM_ITEMS):
            taught = batch.replace(targets=torch.zeros_like(batch.ids).scatter(1, batch.lengths[:, None] - 1, item))
            hidden = decode.teach(encoded, taught, items, encoded.user, numbers[item].expand(3, -1))
            total = torch.zeros(3)
            for level in range(3):
                logs = decode._log_probs(hidden[:, level], items, level)
                total += logs[:, items.codes[item, level]]
            torch.testing.assert_close(found[:, item - 1], total, atol=1e-5, rtol=1e-5)


def with_ends(items: CodeItems, decoder: Any) -> Tensor:
    ends = torch.full((len(items.token_table), 1), len(items.tokens) - 1)
    return torch.cat([items.token_table, ends], 1) if decoder.end else items.token_table


def test_probabilities_of_a_level_sum_to_one_and_of_the_vocabulary_to_less() -> None:
    for name, most in (("past", 1.0), ("vocabulary", 0.999)):
        encoder, decoder, items = parts("tokens", name)
        every = code_items(torch.cartesian_prod(*(torch.arange(size) for size in SIZES)), SIZES, DIM)
        every.tokens, every.prototypes = items.tokens, items.prototypes
        with torch.no_grad():
            total = exact(decoder, encoder(histories((5, 2), NUM_ITEMS), every), every).exp().sum(1)
        assert bool((total <= most + 1e-5).all())
        assert name == "vocabulary" or total.tolist() == pytest.approx([1.0, 1.0], abs=1e-4)


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("encoder", ["tokens, causal", "SASRec", "GRU4Rec"])
def test_one_pass_equals_one_row_per_prefix(encoder: str, decoder: str) -> None:
    encode, decode, items = parts(encoder, decoder)
    batch = histories((6, 2, 4, 1), NUM_ITEMS)
    whole = loss(encode, decode, items, trained(batch, NextItem()))
    rows = [loss(encode, decode, items, trained(one, LastItem())) for one in prefixes(batch)]
    torch.testing.assert_close(whole, torch.stack(rows).sum(), atol=1e-4, rtol=1e-5)
    wanted = torch.autograd.grad(whole, items.tokens)[0]
    torch.testing.assert_close(
        wanted, torch.autograd.grad(torch.stack(rows).sum(), items.tokens)[0], atol=1e-4, rtol=1e-4
    )


@pytest.mark.parametrize(("encoder", "decoder"), PAIRS)
def test_semantic_ids_12_7_padding_and_company_change_nothing(encoder: str, decoder: str) -> None:
    encode, decode, items = parts(encoder, decoder)
    lengths = (5, 1, 3, 7)
    targets = LastItem() if encoder == "tokens" else NextItem()
    narrow = trained(histories(lengths, NUM_ITEMS), targets)
    wide = trained(histories(lengths, NUM_ITEMS, width=11), targets)
    torch.testing.assert_close(loss(encode, decode, items, wide), loss(encode, decode, items, narrow))
    batch = histories(lengths, NUM_ITEMS)
    with torch.no_grad():
        found = exact(decode, encode(batch.ask_all(), items), items)
        for row, length in enumerate(lengths):
            alone = batch.select(torch.tensor([row])).trim(length)
            torch.testing.assert_close(
                exact(decode, encode(alone.ask_all(), items), items)[0], found[row], atol=1e-5, rtol=1e-5
            )


def test_many_rows_are_cut_into_groups_and_give_the_same() -> None:
    encode, decode, items = parts("tokens, causal", "past")
    batch = trained(histories(tuple(range(1, 33)), NUM_ITEMS), NextItem())
    assert len(batch.groups) > 1
    whole = loss(encode, decode, items, batch)
    rows = [loss(encode, decode, items, batch.select(torch.tensor([row]))) for row in range(1, 32)]
    torch.testing.assert_close(whole, torch.stack(rows).sum(), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("decoder", DECODERS)
def test_semantic_ids_12_7_cached_steps_equal_steps_from_the_start(decoder: str) -> None:
    """Beams that change places between steps; each is compared with its tokens read alone from the start on."""
    encode, decode, items = parts("tokens", decoder)
    batch = histories((5, 2), NUM_ITEMS)
    first = torch.tensor([[1, 3, 5], [2, 2, 6]])
    second = torch.tensor([[7, 9, 9, 12], [8, 10, 7, 13]])
    parents = torch.tensor([[2, 0, 0, 1], [1, 1, 2, 0]])
    with torch.no_grad():
        begun = decode.begin(encode(batch, items), items)
        _, memory = decode.step(begun, items, None, None)
        _, memory = decode.step(memory, items, first, torch.zeros_like(first))
        found, _ = decode.step(memory, items, second, parents)
        assert found.shape == (2, 4, SIZES[2])
        for beam in range(4):
            _, memory = decode.step(begun, items, None, None)
            zero = torch.zeros(2, 1, dtype=torch.int64)
            _, memory = decode.step(memory, items, first.gather(1, parents[:, beam : beam + 1]), zero)
            alone, _ = decode.step(memory, items, second[:, beam : beam + 1], zero)
            torch.testing.assert_close(alone[:, 0], found[:, beam], atol=1e-5, rtol=1e-5)


def test_a_step_leaves_the_memory_before_it_as_it_was() -> None:
    encode, decode, items = parts("tokens", "past")
    with torch.no_grad():
        begun = decode.begin(encode(histories((5, 2), NUM_ITEMS), items), items)
        once, _ = decode.step(begun, items, None, None)
        again, _ = decode.step(begun, items, None, None)
    assert torch.equal(once, again)


def test_beams_share_what_they_read() -> None:
    encode, decode, items = parts("tokens", "past")
    with torch.no_grad():
        begun = decode.begin(encode(histories((5, 2), NUM_ITEMS), items), items)
        _, memory = decode.step(begun, items, None, None)
        _, memory = decode.step(memory, items, torch.ones(2, 9, dtype=torch.int64), torch.zeros(2, 9).long())
    assert [one.data_ptr() for one in memory.read] == [one.data_ptr() for one in begun.read]
    assert memory.made[0][0].shape[1] == 1  # nor is what belongs to the start token copied


def test_semantic_ids_12_5_a_beam_of_all_items_is_the_exact_order() -> None:
    encode, decode, items = parts("tokens", "past")
    batch = histories((5, 2), NUM_ITEMS)
    with torch.no_grad():
        encoded = encode(batch, items)
        rows, scores = plain_beam(decode, encoded, items, NUM_ITEMS)
        order = exact(decode, encoded, items).sort(1, descending=True)
    assert torch.equal(rows, order.indices + 1)
    torch.testing.assert_close(scores, order.values, atol=1e-4, rtol=1e-5)


def test_a_later_item_changes_no_earlier_target() -> None:
    encode, decode, items = parts("tokens, causal", "past")
    batch = trained(histories((6,), NUM_ITEMS), NextItem())
    other = batch.replace(ids=batch.ids.clone())
    other.ids[0, 3] = batch.ids[0, 3] % NUM_ITEMS + 1
    one = per_target(decode, encode(batch, items), batch, items)
    two = per_target(decode, encode(other, items), other, items)
    torch.testing.assert_close(one[:3], two[:3])
    assert not torch.isclose(one[3:], two[3:]).any()


def test_weights_multiply_losses() -> None:
    encode, decode, items = parts("tokens, causal", "past")
    batch = trained(histories((4, 3), NUM_ITEMS), NextItem())
    encoded, each = encode(batch, items), None
    each = per_target(decode, encoded, batch, items)
    weights = torch.rand(batch.ids.shape)
    found = decode(encoded, batch.replace(weights=weights, importance=weights), items, NOTHING)
    torch.testing.assert_close(found, (each * batch.flatten(weights)[batch.flatten(batch.targets) > 0] ** 2).sum())


@pytest.mark.parametrize("encoder", ["tokens, causal", "tokens", "SASRec"])
@pytest.mark.parametrize("decoder", DECODERS)
def test_every_weight_learns(encoder: str, decoder: str) -> None:
    encode, decode, items = parts(encoder, decoder, tied=False)
    batch = trained(histories((5, 4, 1), NUM_ITEMS), LastItem() if encoder == "tokens" else NextItem())
    loss(encode, decode, items, batch).backward()
    parts_of = [encode, decode, items] if encoder != "SASRec" else [decode, items]
    dead = [
        name for part in parts_of for name, value in part.named_parameters()
        if value.grad is None or not bool(value.grad.any())
    ]  # fmt: skip
    assert not dead
    assert all(bool(value.grad.isfinite().all()) for part in parts_of for value in part.parameters())


def test_an_empty_history_gets_finite_answers() -> None:
    for encoder, decoder in PAIRS:
        encode, decode, items = parts(encoder, decoder)
        batch = histories((0, 3), NUM_ITEMS)
        with torch.no_grad():
            found = exact(decode, encode(batch.ask_all(), items), items)
        assert bool(found.isfinite().all())


@pytest.mark.parametrize(("encoder", "decoder"), PAIRS)
def test_batches_without_rows_or_targets_cost_nothing(encoder: str, decoder: str) -> None:
    encode, decode, items = parts(encoder, decoder)
    none = torch.zeros(0, dtype=torch.int64)
    bare = Batch(none, none, none.view(0, 4), none, targets=none.view(0, 4))
    idle = histories((3, 2), NUM_ITEMS)
    for batch in (bare, idle.replace(targets=torch.zeros_like(idle.ids))):
        found = loss(encode, decode, items, batch)
        found.backward()
        assert found.item() == 0


@pytest.mark.parametrize(("encoder", "decoder"), PAIRS)
def test_bf16_is_near_fp32(encoder: str, decoder: str) -> None:
    encode, decode, items = parts(encoder, decoder)
    query = histories((5, 1, 3), NUM_ITEMS)
    batch = trained(query, LastItem() if encoder == "tokens" else NextItem())
    with torch.no_grad():
        whole = loss(encode, decode, items, batch), exact(decode, encode(query.ask_all(), items), items)
        with torch.autocast("cpu", torch.bfloat16):
            half = loss(encode, decode, items, batch), exact(decode, encode(query.ask_all(), items), items)
    assert all(one.dtype == torch.float32 for one in half)
    torch.testing.assert_close(half[0], whole[0], rtol=0.02, atol=0.05)
    torch.testing.assert_close(half[1], whole[1], rtol=0.05, atol=0.3)


def test_bad_input_is_refused() -> None:
    for wrong in ({"softmax": "codes"}, {"memory": "all"}, {"end": True}, {"num_heads": 0}):
        with pytest.raises(ValueError):
            CodeDecoder(DIM, **{**SMALL, **wrong})
    encode, decode, items = parts("SASRec", "past")
    batch = histories((3,), NUM_ITEMS)
    with pytest.raises(ValueError, match="targets"):
        loss(encode, decode, items, batch)
    plain = IdItems(DIM)
    plain.bind(Context(NUM_ITEMS))
    with pytest.raises(TypeError, match="CodeItems"):
        decode.begin(encode(batch, plain), plain)
    with pytest.raises(ValueError, match="width"):
        bound(CodeDecoder(8, **SMALL)).begin(encode(batch, items), items)


def by_heart(causal: bool, tied: bool, updates: int) -> tuple[Tensor, list[Tensor]]:
    """Which of 64 users' newest items are ranked first behind training on them, and the weights."""
    dim, sizes = 32, {"num_layers": 1, "num_heads": 4, "head_dim": 8, "ff": 64, "dropout": 0.0}
    items = code_items(random_codes(NUM_ITEMS, SIZES), SIZES, dim, tied)
    encoder = bound(TokenEncoder(dim, **sizes, causal=causal), seed=1).train()
    decoder = bound(CodeDecoder(dim, **sizes), seed=2).train()
    rows = histories(tuple([4] * 64), NUM_ITEMS)
    batch = trained(rows, NextItem() if causal else LastItem())
    weights = [value for part in (items, encoder, decoder) for value in part.parameters()]
    optimizer = torch.optim.Adam(weights, lr=0.01)
    decay = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.05, updates)
    for _ in range(updates):
        optimizer.zero_grad()
        (loss(encoder, decoder, items, batch) / int((batch.targets > 0).sum())).backward()
        optimizer.step()
        decay.step()
    query = rows.replace(ids=rows.ids[:, :3], lengths=torch.full((64,), 3))
    with torch.no_grad():
        best = exact(decoder.eval(), encoder.eval()(query, items), items).argmax(1) + 1
    return best == rows.ids[:, 3], [value.detach().clone() for value in weights]


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize(("causal", "updates"), [(True, 180), (False, 70)])
def test_learns_64_users_by_heart(causal: bool, updates: int, tied: bool) -> None:
    """Recall@1 is 1 behind training, in one pass over all positions and with one row per prefix."""
    first, _ = by_heart(causal, tied, updates)
    assert bool(first.all())


@pytest.mark.parametrize("causal", [True, False])
def test_two_trainings_are_one(causal: bool) -> None:
    one, other = (by_heart(causal, True, 3)[1] for _ in range(2))
    assert all(torch.equal(*pair) for pair in zip(one, other, strict=True))
