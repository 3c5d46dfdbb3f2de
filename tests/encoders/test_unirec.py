"""UniRec's encoder against a loop over one history, and the behavioural checks of unirec.md by number."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from recsys.auxiliaries.unirec import SequenceEnhancement
from recsys.data.batch import Batch
from recsys.data.prepared import Prepared
from recsys.data.split import Split
from recsys.data.splitters import LeaveLast
from recsys.encoders.unirec import Branches, MixtureBlock, ScoreMixing, UniRec
from recsys.errors import DataError
from recsys.eval.evaluate import evaluate
from recsys.ids.vocabulary import Vocabulary
from recsys.items.ids import IdItems
from recsys.nn.time_encoding import DAY, HOUR
from recsys.objectives.softmax import FullSoftmax
from recsys.protocols import Context, Step
from recsys.recommenders.composed import Recommender
from recsys.storage.parts import build, describe
from recsys.targets.next_item import NextItem
from recsys.testing import check_encoder, toy_split
from recsys.train.loader import TrainBatches

NUM_ITEMS, DIM = 30, 8
VARIANTS: list[dict[str, Any]] = [
    {},
    {"share_norms": False},
    {"branches": ("interval",)},
    {"branches": ("interval", "calendar"), "num_heads": 4},
    {"noise": 0.0, "num_layers": 1, "num_heads": 1},
    {"first_times": "own"},
    {"first_times": "own", "branches": ("interval",)},
]


def batch_of(*histories: list[int], seed: int = 0) -> Batch:
    """Histories at random hours of 1998; an item's time depends on the item and its place alone."""
    hours = 400 * torch.arange(40)[:, None] + torch.randint(
        0, 400, (40, NUM_ITEMS + 1), generator=torch.Generator().manual_seed(seed)
    )
    lengths = torch.tensor([len(one) for one in histories])
    ids = torch.zeros(len(histories), max(1, int(lengths.max())), dtype=torch.long)
    times = torch.zeros_like(ids)
    for row, one in enumerate(histories):
        ids[row, : len(one)] = torch.tensor(one, dtype=torch.long)
        times[row, : len(one)] = 883_612_800_000 + hours[torch.arange(len(one)), ids[row, : len(one)]] * HOUR
    rows = torch.arange(len(histories))
    return Batch(rows, rows, ids, lengths, times=times)


def pair(dim: int = DIM, **settings: Any) -> tuple[UniRec, IdItems]:
    torch.manual_seed(0)
    items, encoder = IdItems(dim, init="torch"), UniRec(dim, **{"max_length": 12, **settings})
    items.bind(Context(NUM_ITEMS))
    encoder.bind(Context(NUM_ITEMS))
    with torch.no_grad():  # away from zero starts, so that a forgotten part shows
        for parameter in encoder.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return encoder.eval(), items.eval()


def loop(encoder: UniRec, items: IdItems, batch: Batch, branch: int) -> Tensor:
    """unirec.md sections 3.3 and 3.4 for one unpadded history and branch, pair of positions by pair: (n, 2 D)."""
    assert batch.times is not None
    d, n, times = encoder.dim, batch.ids.shape[1], batch.times[0]
    if encoder.branches[branch] == "calendar":
        clock = encoder.calendar(times)
    else:
        hours = [0] + [min((int(b) - int(a)) // HOUR, 8760) for a, b in pairwise(times)]
        clock = encoder.interval.table.weight[torch.tensor(hours)]
    position = encoder.position_table.weight[torch.arange(n - 1, -1, -1)]
    item = items.weight[batch.ids[0]] * d**0.5
    x = torch.cat([item + position, d**0.5 * clock + position], 1)
    z = encoder.calendar(times) if encoder.first_times == "calendar" else clock
    own = 0 if encoder.share_norms else branch

    def norm(layer: Any, values: Tensor) -> Tensor:
        return F.layer_norm(values, values.shape[-1:], layer.weight[own], layer.bias[own], 1e-6)

    for block in encoder.blocks:
        normed, timed, value = norm(block.norm, x), norm(block.time_norm, z), block.value(x)
        width = 2 * d // encoder.num_heads
        mixed = torch.zeros(n, 2 * d)
        for q in range(n):
            scores = torch.zeros(encoder.num_heads, q + 1)
            for k in range(q + 1):
                item = block.item_query(normed[q]) @ block.item_key(x[k])
                maps = torch.stack([item, block.time_query(timed[q]) @ block.time_key(z[k])])
                hidden = (block.mixing.inner[own] @ maps + block.mixing.inner_bias[own, :, 0]).relu()
                scores[:, k] = block.mixing.outer[own] @ hidden
            weights = (scores / d**0.5).softmax(-1)
            for head in range(encoder.num_heads):
                part = slice(head * width, (head + 1) * width)
                mixed[q, part] = weights[head] @ value[: q + 1, part]
        o = norm(block.feed_norm, mixed + normed)
        x = block.outer(block.inner(o).relu()) + o
        z = x[:, d:]
    return norm(encoder.after, x)


@pytest.mark.parametrize("settings", VARIANTS)
def test_encoder_keeps_the_claims_of_the_seam(settings: dict[str, Any]) -> None:
    check_encoder(UniRec(DIM, max_length=8, **settings))


@pytest.mark.parametrize("settings", VARIANTS)
def test_states_equal_a_loop_over_one_history(settings: dict[str, Any]) -> None:
    encoder, items = pair(**settings)
    batch = batch_of([3, 1, 4, 1, 5, 9])
    encoded = encoder(batch, items)
    expected = torch.stack([loop(encoder, items, batch, branch) for branch in range(len(encoder.branches))])
    torch.testing.assert_close(encoded.read(Branches).states, expected, atol=2e-5, rtol=1e-4)
    torch.testing.assert_close(encoded.tokens, expected[..., :DIM].sum(0), atol=4e-5, rtol=1e-4)


def test_u1_interval_branch_scores_the_calendar_in_its_first_block() -> None:
    """One block, all scores of items 0: the interval branch attends by dates, unless each branch has its own times."""
    batch = batch_of([3, 1, 4, 1, 5, 9])
    assert batch.times is not None
    weights = {}
    for first in ("calendar", "own"):
        encoder, items = pair(num_layers=1, num_heads=1, first_times=first, noise=0.0)
        with torch.no_grad():
            encoder.blocks[0].item_key.weight.zero_()
            encoder.blocks[0].item_key.bias.zero_()
        encoded = encoder(batch, items).read(Branches).states
        expected = torch.stack([loop(encoder, items, batch, branch) for branch in (0, 1)])
        torch.testing.assert_close(encoded, expected, atol=2e-5, rtol=1e-4)
        weights[first] = encoded
    torch.testing.assert_close(weights["calendar"][0], weights["own"][0])
    assert (weights["calendar"][1] - weights["own"][1]).abs().max() > 0.01


@pytest.mark.parametrize("branches", [("interval",), ("interval", "calendar")])
def test_u1_only_own_times_do_without_the_calendar(branches: tuple[str, ...]) -> None:
    encoder, items = pair(branches=branches, num_layers=1)
    one = batch_of([1, 2, 3, 4])
    assert one.times is not None
    later = one.replace(times=one.times + 100 * DAY)  # the same waits on other dates
    at = branches.index("interval")
    moved = encoder(one, items).read(Branches).states[at] - encoder(later, items).read(Branches).states[at]
    assert moved.abs().max() > 1e-4
    encoder, items = pair(branches=branches, num_layers=1, first_times="own")
    same = [encoder(batch, items).read(Branches).states[at] for batch in (one, later)]
    torch.testing.assert_close(*same)


def test_u1_a_model_saved_before_there_was_a_choice_computes_what_it_did() -> None:
    description = describe(UniRec(DIM, max_length=12, first_times="own"))
    del description["arguments"]["first_times"]
    assert build(description).first_times == "own"
    assert build(describe(UniRec(DIM, max_length=12))).first_times == "calendar"


def test_an_empty_slot_has_a_position_and_a_time_and_no_item() -> None:
    encoder, items = pair()
    batch = batch_of([0, 0, 3, 4])
    before = encoder(batch, items).tokens
    with torch.no_grad():
        items.weight[0] = 7.0
    assert torch.equal(encoder(batch, items).tokens, before)
    assert batch.times is not None
    moved = batch.replace(times=batch.times - torch.tensor([[50, 20, 0, 0]]) * DAY)
    assert not torch.allclose(encoder(moved, items).tokens[-1], before[-1], atol=1e-4)


@pytest.mark.parametrize("settings", VARIANTS)
def test_check_01_batch_invariance(settings: dict[str, Any]) -> None:
    encoder, items = pair(**settings)
    histories = [
        [1, 2, 3],
        [4, 5],
        [6, 7, 8, 9, 10, 11],
        [12],
        *([13 + k, 14, 15] for k in range(16)),
        *([[7] * 9] * 20),
    ]
    together = encoder(batch_of(*histories), items)
    logits = together.user @ items.weight.T
    branches = together.read(Branches).states.split(together.batch.lengths.tolist(), dim=1)
    for row in (0, 1, 2, 3, 10, 39):
        alone = encoder(batch_of(histories[row]), items)
        torch.testing.assert_close(alone.user @ items.weight.T, logits[row : row + 1], atol=2e-5, rtol=1e-4)
        torch.testing.assert_close(alone.read(Branches).states, branches[row], atol=2e-5, rtol=1e-4)


def test_check_02_evaluation_is_deterministic_and_training_is_noisy() -> None:
    encoder, items = pair(dropout=0.0, noise=1.0)
    batch = batch_of([1, 2, 3, 4], [5, 6])
    assert torch.equal(encoder(batch, items).tokens, encoder(batch, items).tokens)
    encoder.train()
    assert not torch.allclose(encoder(batch, items).tokens, encoder(batch, items).tokens)
    quiet, items = pair(dropout=0.0, noise=0.0)
    quiet.train()
    assert torch.equal(quiet(batch, items).tokens, quiet(batch, items).tokens)


def test_check_03_changing_an_item_changes_no_earlier_state_and_padding_none() -> None:
    encoder, items = pair()
    one = batch_of([1, 2, 3, 4, 5, 6])
    other = one.replace(ids=torch.tensor([[1, 2, 3, 20, 5, 6]]))
    first, second = (encoder(batch, items).tokens for batch in (one, other))
    torch.testing.assert_close(first[:3], second[:3], atol=1e-6, rtol=0)
    assert (first[3:] - second[3:]).abs().amax(1).min() > 1e-3
    assert one.times is not None
    later = one.replace(times=one.times + torch.tensor([0, 0, 0, 0, 40, 90]) * DAY)
    torch.testing.assert_close(first[:4], encoder(later, items).tokens[:4], atol=1e-6, rtol=0)
    wide = one.replace(ids=F.pad(one.ids, (0, 5)), times=F.pad(one.times, (0, 5)))
    torch.testing.assert_close(first, encoder(wide, items).tokens, atol=1e-5, rtol=1e-5)


def test_check_10_waiting_times_have_one_unit_in_training_and_ranking() -> None:
    """The context of the target is the clock's vector that the target, once read, brings along itself."""
    encoder, items = pair(num_layers=0)
    history = batch_of([1, 2, 3, 4, 5])
    made = NextItem().train(history)
    contexts = encoder(made, items).read(Branches).contexts  # of items 2..5
    read, nothing = encoder._read_times(history, history.flatten(history.times))
    torch.testing.assert_close(contexts, read.transpose(0, 1)[:, 1:], atol=1e-6, rtol=1e-6)
    assert nothing is None
    torch.testing.assert_close(read[0, 1], encoder.interval.table.weight[0])  # the first has waited 0 hours


def test_check_11_one_query_time_ranks_as_none_does() -> None:
    encoder, items = pair()
    encoded = encoder(batch_of([1, 2, 3], [4, 5]), items)
    last = encoded.read(Branches).states[:, encoded.batch.last]  # (C, B, 2 D)
    context = torch.randn(2, 2, DIM)
    vectors = items.weight[1:]
    full = torch.zeros(2, NUM_ITEMS)
    for one, state in zip(context, last, strict=True):
        candidates = torch.cat([vectors.expand(2, -1, -1), one.unsqueeze(1).expand(-1, NUM_ITEMS, -1)], dim=-1)
        full += (candidates @ state.unsqueeze(2)).squeeze(2)
    ranked = encoded.user @ vectors.T
    torch.testing.assert_close(full - full[:, :1], ranked - ranked[:, :1], atol=1e-4, rtol=1e-4)
    assert torch.equal(full.argsort(dim=1), ranked.argsort(dim=1))


def test_check_13_identity_mixing_is_attention_of_an_item_head_and_a_time_head() -> None:
    torch.manual_seed(0)
    block, batch = MixtureBlock(DIM, 2, 0.0, own=1, noise=0.0), batch_of([1, 2, 3, 4, 5, 6, 7])
    with torch.no_grad():  # relu(a + c) = a + c where c is large, and a softmax does not see c
        block.mixing.inner.copy_(torch.eye(2)[None])
        block.mixing.outer.copy_(torch.eye(2)[None])
        block.mixing.inner_bias.fill_(100.0)
    x, z = torch.randn(7, 1, 2 * DIM), torch.randn(7, 1, DIM)
    normed, timed = block.norm(x)[:, 0], block.time_norm(z)[:, 0]
    queries = torch.stack([block.item_query(normed), block.time_query(timed)])
    keys = torch.stack([block.item_key(x[:, 0]), block.time_key(z[:, 0])])
    values = torch.stack(block.value(x[:, 0]).split(DIM, dim=-1))
    heads = F.scaled_dot_product_attention(queries[None], keys[None], values[None], is_causal=True)[0]
    o = block.feed_norm((normed + torch.cat([*heads], dim=-1)).unsqueeze(1))
    torch.testing.assert_close(block(x, z, batch), o + block.outer(block.inner(o).relu()), atol=2e-4, rtol=1e-4)


def test_mixing_of_own_branches_uses_the_weights_of_each() -> None:
    mixing = ScoreMixing(3, own=2)
    maps = torch.randn(2, 2, 5)
    for branch in range(2):
        hidden = (mixing.inner[branch] @ maps[branch] + mixing.inner_bias[branch]).relu()
        torch.testing.assert_close(mixing(maps)[branch], mixing.outer[branch] @ hidden)


def weekday_split(num_users: int = 300, length: int = 20, seed: int = 0) -> Split:
    """The group of ten that the next item is from is the weekday of the newest event; every other user is bursty."""
    random = np.random.default_rng(seed)
    gaps = random.integers(6, 24 * 13, (num_users, length))
    gaps[1::2] = np.clip(random.lognormal(2.0, 2.0, gaps[1::2].shape), 1, 2000)
    times = (random.integers(0, 24 * 365, (num_users, 1)) + np.cumsum(gaps, 1)) * HOUR + 900_000_000_000
    items = random.integers(1, 11, (num_users, length)) + 10 * random.integers(0, 7, (num_users, length))
    items[:, 1:] = items[:, 1:] % 10 + 1 + 10 * ((times // DAY + 3) % 7)[:, :-1]
    offsets = np.arange(num_users + 1) * length
    prepared = Prepared(items.ravel().astype(np.int32), offsets, 70, times=times.ravel())
    return Split.of(prepared, LeaveLast(), Vocabulary(np.arange(70), 1), Vocabulary(np.arange(num_users), 0))


def trained(
    split: Split, branches: tuple[str, ...], enhanced: bool = False, epochs: int = 20, seed: int = 0
) -> Recommender:
    first = "calendar" if "calendar" in branches else "own"
    encoder = UniRec(16, num_layers=1, dropout=0.1, max_length=20, branches=branches, first_times=first)
    auxiliaries = [SequenceEnhancement(16, epochs=epochs, length=20)] if enhanced else []
    model = Recommender(IdItems(16), encoder, FullSoftmax(), auxiliaries=auxiliaries)
    model.bind(Context(split.num_items, split.items, split.train, seed=seed))
    model.train()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    batches = TrainBatches(split.train, max_length=20, batch_size=50, needs=model.train_needs)
    for epoch in range(epochs):
        for index, batch in enumerate(batches.epoch(epoch)):
            torch.manual_seed(1000 * epoch + index)
            step = Step(batch, 0, epoch, index)
            made = model.prepare(batch, step)
            assert made.targets is not None
            step = replace(step, batch=made, total_weight=float((made.targets > 0).sum()))
            optimizer.zero_grad()
            sum(model.loss(step).values()).backward()  # type: ignore[union-attr]
            optimizer.step()
    return model


def ndcg(model: Recommender, part: Any) -> float:
    rule: Any = "history-except-targets"  # the items of these histories come again
    return evaluate(model, part, metrics=["ndcg@10"], exclude=rule, progress=False).mean("ndcg@10")


@pytest.mark.timeout(900)
def test_check_16_without_the_calendar_a_weekday_is_not_found() -> None:
    split = weekday_split()
    both, without = (trained(split, branches) for branches in (("calendar", "interval"), ("interval",)))
    assert ndcg(both, split.test) > ndcg(without, split.test) + 0.07


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_check_16_sequence_enhancement_does_not_harm_bursty_users() -> None:
    """The median of three starts, on a thousand users of the same rule.

    A start in ten learns the rule late, mostly with the enhancement, and 150 users give or take .03 by chance alone.
    """
    split, others = weekday_split(), weekday_split(2000, seed=1).test
    bursty = others.subset(np.arange(len(others)) % 2 == 1)
    gains = []
    for seed in range(3):
        plain, enhanced = (trained(split, ("calendar", "interval"), on, epochs=30, seed=seed) for on in (False, True))
        gains.append(ndcg(enhanced, bursty) - ndcg(plain, bursty))
    assert np.median(gains) > -0.05


def test_missing_times_are_an_error_of_the_encoder_and_of_the_data() -> None:
    encoder, items = pair()
    with pytest.raises(ValueError, match="times"):
        encoder(batch_of([1, 2]).replace(times=None), items)
    bare = Prepared(np.array([1, 2, 3, 4], np.int32), np.array([0, 4]), NUM_ITEMS)
    split = Split.of(bare, LeaveLast(), Vocabulary(np.arange(NUM_ITEMS), 1), Vocabulary(np.arange(1), 0))
    with pytest.raises(DataError, match="times"):
        split.train.check_needs(encoder.needs)


@pytest.mark.parametrize(
    ("settings", "word"),
    [
        ({"branches": ()}, "branches"),
        ({"branches": ("calendar", "calendar")}, "branches"),
        ({"branches": ("lunar",)}, "branches"),
        ({"num_heads": 3}, "divisible"),
        ({"num_heads": 0}, "divisible"),
        ({"max_length": 0}, "max_length"),
        ({"noise": -1.0}, "noise"),
        ({"first_times": "interval"}, "first_times"),
        ({"dropout": 1.0}, "dropout"),
    ],
)
def test_wrong_settings_say_which(settings: dict[str, Any], word: str) -> None:
    with pytest.raises(ValueError, match=word):
        UniRec(DIM, **settings)


def test_too_long_history_and_other_width_are_errors() -> None:
    encoder, items = pair(max_length=3)
    with pytest.raises(ValueError, match="max_length"):
        encoder(batch_of([1, 2, 3, 4]), items)
    other = IdItems(DIM + 2)
    other.bind(Context(NUM_ITEMS))
    with pytest.raises(ValueError, match="width"):
        encoder(batch_of([1, 2]), other)


def test_extreme_lengths_are_finite() -> None:
    encoder, items = pair(max_length=8)
    encoder.train()
    encoded = encoder(batch_of([5], list(range(1, 9)), []), items)
    assert encoded.tokens.isfinite().all() and not encoded.user[2].any()
    encoded.tokens.square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in encoder.parameters())
    assert encoder(batch_of([]), items).user.shape == (1, DIM)


def test_saved_and_loaded_it_ranks_the_same_without_training_data() -> None:
    split = toy_split()
    parts: Any = [IdItems(DIM), UniRec(DIM, num_layers=1, max_length=8), FullSoftmax()]
    model = Recommender(*parts, auxiliaries=[SequenceEnhancement(DIM)])
    model.bind(Context(split.num_items, split.items, split.train))
    tensors = model.tensors()
    assert not [name for name in tensors if "flags" in name or "variance" in name]
    parts = [IdItems(DIM), UniRec(DIM, num_layers=1, max_length=8), FullSoftmax()]
    again = Recommender(*parts, auxiliaries=[SequenceEnhancement(DIM)])
    again.bind(Context(split.num_items, split.items))
    again.load_tensors(tensors)
    batch = split.test.batch(np.arange(4), 8, frozenset({"times"}))
    with torch.inference_mode():
        torch.testing.assert_close(again.eval().score(batch), model.eval().score(batch))
