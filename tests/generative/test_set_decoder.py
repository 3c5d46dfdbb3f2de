"""The decoder of sets. Numbers of the tests are those of the behavioural checks of the method's page."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from set_models import code_items, encoded_histories, histories, random_codes, set_decoder

from recsys.data.batch import Batch
from recsys.encoders.tokens import TokenEncoder
from recsys.generative.set_decoder import SetDecoder
from recsys.generative.set_layers import Reading
from recsys.items.codes import CodeItems
from recsys.items.ids import IdItems
from recsys.protocols import Context, Encoded
from recsys.targets.last_item import LastItem
from recsys.targets.next_item import NextItem

SIZES = (5, 4, 6)
FORMS = [
    {"order_free": True},
    {"order_free": True, "num_layers": 2, "newest": False},
    {"order_free": False, "num_layers": 2},
]


def made(tied: bool = False, **knobs: object) -> tuple[CodeItems, SetDecoder]:
    return code_items(random_codes(30, SIZES), SIZES, tied=tied), set_decoder(3, **knobs)


def taught(items: CodeItems, targets: type = NextItem, **changed: object) -> tuple[Batch, Encoded]:
    batch = targets().train(histories(30, (5, 3, 7, 2))).replace(**changed)
    return batch, encoded_histories(items, batch)


def stepped(decoder: SetDecoder, encoded: Encoded, items: CodeItems, tokens: list[int]) -> torch.Tensor:
    """(B, C) log-probabilities behind a path of tokens, one beam."""
    found, memory = decoder.step(decoder.begin(encoded, items), items, None, None)
    count = len(encoded.batch)
    for token in tokens:
        beams = torch.full((count, 1), token), torch.zeros(count, 1, dtype=torch.int64)
        found, memory = decoder.step(memory, items, *beams)
    return found[:, 0]


@pytest.mark.parametrize("num_layers", [1, 2])
def test_reg4rec_13_3_two_orders_of_a_set_decide_alike(num_layers: int) -> None:
    items, decoder = made(num_layers=num_layers)
    encoded = encoded_histories(items, histories(30))
    first, second = stepped(decoder, encoded, items, [2, 11]), stepped(decoder, encoded, items, [11, 2])
    torch.testing.assert_close(first, second, rtol=1e-5, atol=1e-5)
    assert float((first - stepped(decoder, encoded, items, [2, 12])).abs().max()) > 1e-3  # what is chosen matters
    causal = set_decoder(3, order_free=False)
    apart = stepped(causal, encoded, items, [2, 11]) - stepped(causal, encoded, items, [11, 2])
    assert num_layers == 2 or float(apart.abs().max()) > 1e-3


def test_reg4rec_13_3_an_identical_code_of_another_codebook_is_another_token() -> None:
    items, decoder = made()
    encoded = encoded_histories(items, histories(30))
    with torch.no_grad():
        items.tokens[6] = items.tokens[1]  # code 0 of the second codebook is as code 0 of the first
    apart = stepped(decoder, encoded, items, [1]) - stepped(decoder, encoded, items, [6])
    assert float(apart.abs().max()) > 1e-3


@pytest.mark.parametrize("form", FORMS)
def test_log_probabilities_are_normalised_for_each_codebook(form: dict[str, object]) -> None:
    items, decoder = made(**form)
    found = stepped(decoder, encoded_histories(items, histories(30)), items, [3])
    for part in found.split(SIZES, 1):
        torch.testing.assert_close(part.exp().sum(1), torch.ones(4))


@pytest.mark.parametrize("form", FORMS)
def test_beams_are_as_if_each_were_alone(form: dict[str, object]) -> None:
    items, decoder = made(**form)
    encoded = encoded_histories(items, histories(30))
    _, memory = decoder.step(decoder.begin(encoded, items), items, None, None)
    zeros = torch.zeros(4, 3, dtype=torch.int64)
    _, memory = decoder.step(memory, items, torch.tensor([[1, 7, 12]]).expand(4, 3), zeros)
    parents = torch.tensor([[2, 0, 1, 0], [0, 0, 2, 1], [1, 2, 0, 0], [2, 2, 2, 2]])
    tokens = torch.tensor([[6, 10, 3, 8], [6, 10, 3, 8], [11, 1, 9, 8], [6, 7, 1, 2]])
    found, _ = decoder.step(memory, items, tokens, parents)
    for row in range(4):
        one = encoded_histories(items, histories(30).select(torch.tensor([row])))
        for beam in range(4):
            path = [[1, 7, 12][int(parents[row, beam])], int(tokens[row, beam])]
            alone = stepped(decoder, one, items, path)[0]
            torch.testing.assert_close(found[row, beam], alone, rtol=1e-4, atol=1e-5)


def reference(
    decoder: SetDecoder, items: CodeItems, batch: Batch, orders: dict[tuple[int, int], list[int]], others: float
) -> dict[tuple[int, int], float]:
    """The loss of each target, by steps along its order, each with the history up to its position alone."""
    losses = {}
    for (row, position), order in orders.items():
        ids, length = batch.ids[row : row + 1, : position + 1], torch.tensor([position + 1])
        encoded = encoded_histories(items, Batch(torch.zeros(1), torch.zeros(1), ids, length))
        codes = items.codes[batch.targets[row, position]]
        first, loss = [1, 6, 10], 0.0
        for step, level in enumerate(order):
            path = [first[r] + int(codes[r]) for r in order[:step]]
            found = stepped(decoder, encoded, items, path)[0]
            column = [first[r] - 1 + int(codes[r]) for r in range(3)]
            loss -= float(found[column[level]])
            left = order[step + 1 :]
            loss -= others * sum(float(found[column[r]]) for r in left) / max(len(left), 1)
        losses[row, position] = loss / 3
    return losses


def orders_of(
    batch: Batch, decoder: SetDecoder, encoded: Encoded, items: CodeItems
) -> dict[tuple[int, int], list[int]]:
    """The orders that the decoder draws for the targets of a batch with generator 3."""
    places = (batch.targets > 0).nonzero()
    tokens = items.token_table[batch.targets[batch.targets > 0]]
    now = encoded.at_targets(batch)[0]
    random = torch.Generator().manual_seed(3)
    drawn = decoder._order(encoded, places[:, 0], places[:, 1], now, items, tokens, random)
    return {(int(r), int(p)): order.tolist() for (r, p), order in zip(places, drawn, strict=True)}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("targets", [NextItem, LastItem])
def test_reg4rec_5_loss_equals_steps_along_the_order(form: dict[str, object], targets: type) -> None:
    items, decoder = made(order="random", others=0.5, **form)
    batch, encoded = taught(items, targets)
    total = decoder(encoded, batch, items, torch.Generator().manual_seed(3))
    losses = reference(decoder, items, batch, orders_of(batch, decoder, encoded, items), 0.5)
    assert len(losses) == int((batch.targets > 0).sum()) > 1
    assert float(total) == pytest.approx(sum(losses.values()), rel=1e-4)


def test_targets_are_weighted() -> None:
    items, decoder = made(order="random")
    batch, _ = taught(items)
    weights = torch.rand(batch.ids.shape) * (batch.targets > 0)
    batch = batch.replace(weights=weights)
    encoded = encoded_histories(items, batch)
    total = decoder(encoded, batch, items, torch.Generator().manual_seed(3))
    losses = reference(decoder, items, batch, orders_of(batch, decoder, encoded, items), 0.5)
    assert float(total) == pytest.approx(sum(float(weights[at]) * loss for at, loss in losses.items()), rel=1e-4)


@pytest.mark.parametrize("form", [{"order_free": True}, {"order_free": False, "num_layers": 2}])
@pytest.mark.parametrize("head", ["cosine", "dot"])
def test_reg4rec_13_6_without_others_and_choice_it_is_plain_autoregressive(form: dict[str, object], head: str) -> None:
    items, decoder = made(order="confidence", others=0.0, own=0.0, head=head, temperature=0.2, **form)
    batch, encoded = taught(items)
    with pytest.MonkeyPatch.context() as patch:  # the identity instead of a random permutation
        patch.setattr(torch.Tensor, "argsort", lambda self, dim: torch.arange(3).expand(len(self), -1))
        total = decoder(encoded, batch, items, torch.Generator().manual_seed(3))
    fixed = made(order="fixed", others=0.0, head=head, temperature=0.2, **form)[1]
    fixed.load_state_dict(decoder.state_dict())
    assert float(total) == float(fixed(encoded, batch, items, torch.Generator().manual_seed(8)))
    identity = {(int(r), int(p)): [0, 1, 2] for r, p in (batch.targets > 0).nonzero()}
    assert float(total) == pytest.approx(sum(reference(decoder, items, batch, identity, 0.0).values()), rel=1e-4)


@pytest.mark.parametrize("form", FORMS)
def test_reg4rec_13_4_preferred_order_takes_the_likeliest_code_next_and_each_codebook_once(
    form: dict[str, object],
) -> None:
    items, decoder = made(**form)
    batch, encoded = taught(items)
    places = (batch.targets > 0).nonzero()
    targets = batch.targets[batch.targets > 0]
    reading, now = Reading(encoded, places[:, 0], places[:, 1]), encoded.at_targets(batch)[0]
    order = decoder.preferred(reading, now, items, items.token_table[targets])
    assert torch.equal(order.sort(1).values, torch.arange(3).expand(len(order), -1))
    assert torch.equal(order, decoder.preferred(reading, now, items, items.token_table[targets]))
    assert len(order.unique(dim=0)) > 1
    for (row, position), target, own in zip(places.tolist(), targets, order.tolist(), strict=True):
        ids, length = batch.ids[row : row + 1, : position + 1], torch.tensor([position + 1])
        one = encoded_histories(items, Batch(torch.zeros(1), torch.zeros(1), ids, length))
        numbers, path, left = items.token_table[target], [], [0, 1, 2]
        for level in own:
            found = stepped(decoder, one, items, path)[0]
            values = {r: float(found[numbers[r] - 1]) for r in left}
            assert values[level] >= max(values.values()) - 1e-5
            left.remove(level)
            path.append(int(numbers[level]))


def test_reg4rec_5_share_of_own_orders_is_a_ramp_over_epochs() -> None:
    items, decoder = made(order="confidence", own=0.6, ramp=4)
    shares = []
    for epoch in (0, 1, 4, 9):
        decoder.on_epoch(epoch)
        shares.append(decoder.share)
    assert shares == pytest.approx([0, 0.15, 0.6, 0.6])
    batch, encoded = taught(items)
    places = (batch.targets > 0).nonzero()
    tokens = items.token_table[batch.targets[batch.targets > 0]]
    now = encoded.at_targets(batch)[0]
    liked = decoder.preferred(Reading(encoded, places[:, 0], places[:, 1]), now, items, tokens)
    decoder.share = 1.0
    drawn = decoder._order(encoded, places[:, 0], places[:, 1], now, items, tokens, torch.Generator().manual_seed(0))
    assert torch.equal(drawn, liked)
    random = made(order="random")[1]
    random.on_epoch(9)
    assert random.share == 0


def test_batches_do_not_change_the_loss_of_a_target() -> None:
    items, decoder = made(order="fixed")
    batch, encoded = taught(items)
    total = float(decoder(encoded, batch, items, torch.Generator()))
    parts = []
    for row in range(len(batch)):
        one = batch.select(torch.tensor([row]))
        one = one.trim(int(one.lengths))
        parts.append(float(decoder(encoded_histories(items, one), one, items, torch.Generator())))
    assert total == pytest.approx(sum(parts), rel=1e-4)
    wide = batch.select(torch.arange(4).repeat(16))  # many rows are read in groups of like length
    wide = wide.select(wide.lengths.argsort(stable=True))
    assert float(decoder(encoded_histories(items, wide), wide, items, torch.Generator())) == pytest.approx(
        16 * total, rel=1e-4
    )


@pytest.mark.parametrize("causal", [True, False])
def test_token_states_are_read_where_the_encoder_gives_them(causal: bool) -> None:
    items, decoder = made(order="fixed", others=0.0)
    encoder = TokenEncoder(16, 1, 2, 8, 32, 0.0, 10, causal)
    torch.manual_seed(0)
    encoder.bind(Context(30))
    encoder.eval()
    batch = (NextItem if causal else LastItem)().train(histories(30, (5, 3, 4)))
    total = decoder(encoder(batch.ask_all(), items), batch, items, torch.Generator()).item()
    expected = 0.0
    for row, position in (batch.targets > 0).nonzero().tolist():
        ids, length = batch.ids[row : row + 1, : position + 1], torch.tensor([position + 1])
        encoded = encoder(Batch(torch.zeros(1), torch.zeros(1), ids, length), items)
        tokens = items.token_table[batch.targets[row, position]][None, None]
        order = torch.arange(3)[None, None]
        expected -= decoder.path_log_probs(encoded, items, order, tokens).mean().item()
        stepped_to = stepped(decoder, encoded, items, tokens[0, 0, :2].tolist())
        again = decoder.path_log_probs(encoded, items, order, tokens)[0, 0, 2]
        torch.testing.assert_close(stepped_to[0, tokens[0, 0, 2] - 1], again, rtol=1e-4, atol=1e-5)
    assert total == pytest.approx(expected, rel=1e-4)


def test_paths_that_are_known_have_the_probabilities_of_steps() -> None:
    items, decoder = made()
    encoded = encoded_histories(items, histories(30))
    order = torch.tensor([[2, 0, 1], [0, 1, 2]]).expand(4, 2, 3)
    tokens = torch.tensor([[12, 3, 7], [1, 9, 10]]).expand(4, 2, 3)
    found = decoder.path_log_probs(encoded, items, order, tokens)
    for path in range(2):
        for step in range(3):
            before = stepped(decoder, encoded, items, tokens[0, path, :step].tolist())
            torch.testing.assert_close(found[:, path, step], before[:, tokens[0, path, step] - 1], rtol=1e-4, atol=1e-5)
    allowed = torch.zeros(4, 2, 3, 6, dtype=torch.bool)
    first = torch.tensor([0, 5, 9])
    allowed.scatter_(3, (tokens - 1 - first[order])[..., None], True)
    allowed[..., 0] = True
    narrowed = decoder.path_log_probs(encoded, items, order, tokens, allowed)
    before = stepped(decoder, encoded, items, [12])[:, :5]  # then code 2 of the first codebook, among 0 and 2
    torch.testing.assert_close(narrowed[:, 0, 1], before[:, [0, 2]].log_softmax(1)[:, 1], rtol=1e-4, atol=1e-5)
    assert float(narrowed[:, 1, 0].abs().max()) == 0  # nothing else could be chosen


def test_a_head_learns_to_tell_begun_sets_of_the_target_from_others() -> None:
    codes = random_codes(12, (6, 6), seed=1)
    items = code_items(codes, (6, 6))
    decoder = set_decoder(2, reflection=1.0, others=0.0)
    batch = NextItem().train(histories(12, (2,) * 24, seed=4))
    batch = batch.replace(targets=batch.ids)  # what comes next is what was
    optimizer = torch.optim.Adam([*decoder.parameters(), *items.parameters()], 5e-3)
    random = torch.Generator().manual_seed(0)
    for _ in range(200):
        optimizer.zero_grad()
        decoder(encoded_histories(items, batch), batch, items, random).div(24).backward()
        optimizer.step()
    decoder.eval()
    with torch.no_grad():
        encoded = encoded_histories(items, batch)
        _, memory = decoder.step(decoder.begin(encoded, items), items, None, None)
        right = items.token_table[batch.ids[:, 0]]
        beams = torch.stack([right[:, 0], right[:, 0].roll(1)], 1)
        _, memory = decoder.step(memory, items, beams, torch.zeros_like(beams))
        judged = decoder.judged(memory)
    other = beams[:, 0] != beams[:, 1]
    assert int(other.sum()) > 10 and float((judged[:, 0] > judged[:, 1])[other].float().mean()) > 0.9
    assert bool((judged <= 0).all())
    with pytest.raises(ValueError, match="reflection"):
        set_decoder(2).judged(memory)


@pytest.mark.parametrize("order", ["confidence", "fixed"])
def test_reg4rec_13_10_overfits_64_users(order: str) -> None:
    from recsys.generative.set_beam import SetBeam

    codes = random_codes(40, (8, 8, 8), seed=3)
    items = code_items(codes, (8, 8, 8), dim=32)
    random = torch.Generator().manual_seed(1)
    ids = torch.stack([torch.randperm(40, generator=random)[:4] + 1 for _ in range(64)])
    batch = LastItem().train(Batch(torch.arange(64), torch.arange(64), ids, torch.full((64,), 4)))
    decoder = SetDecoder(32, 3, dropout=0.0, order=order)
    decoder.bind(Context(40))
    from recsys.encoders.sasrec import SASRec

    encoder = SASRec(32, num_layers=1, num_heads=2, max_length=5, dropout=0.0)
    torch.manual_seed(0)
    encoder.bind(Context(40))
    optimizer = torch.optim.Adam([*decoder.parameters(), *items.parameters(), *encoder.parameters()], 4e-3)
    for epoch in range(160):
        decoder.on_epoch(epoch // 4)
        optimizer.zero_grad()
        encoded = encoder(batch.ask_all(), items)
        decoder(encoded, batch, items, torch.Generator().manual_seed(epoch)).div(64).backward()
        optimizer.step()
    with torch.no_grad():
        encoded = encoder(batch.histories().ask_all(), items)
        rows, _ = SetBeam(8, order=order)(decoder.eval(), encoded, items, None, 1)
    assert float((rows[:, 0] == ids[:, 3]).float().mean()) == 1


def test_what_does_not_fit_is_refused() -> None:
    items, decoder = made()
    batch, encoded = taught(items)
    with pytest.raises(ValueError, match="3 codes each, the decoder levels=2"):
        set_decoder(2)(encoded, batch, items, torch.Generator())
    with pytest.raises(TypeError, match="CodeItems"):
        decoder(encoded, batch, IdItems(16), torch.Generator())
    for knobs in ({"head": "sum"}, {"order": "best"}, {"own": 1.5}, {"temperature": 0.0}, {"num_heads": 3}):
        with pytest.raises(ValueError):
            SetDecoder(16, 3, **knobs)  # type: ignore[arg-type]


def test_tied_vectors_and_gradients_reach_every_part() -> None:
    items, decoder = made(tied=True, num_layers=2, reflection=0.1)
    batch, encoded = taught(items)
    decoder.train()
    decoder.share = 0.5
    decoder(encoded, batch, items, torch.Generator().manual_seed(0)).backward()
    for name, value in decoder.named_parameters():
        assert value.grad is not None and float(value.grad.abs().sum()) > 0, name
    assert float(items.tokens.grad[1:-1].abs().sum(1).min()) > 0
    assert np.isfinite(float(items.tokens.grad.sum()))


def test_memory_is_not_changed_by_a_step() -> None:
    items, decoder = made(order_free=False)
    encoded = encoded_histories(items, histories(30))
    first, memory = decoder.step(decoder.begin(encoded, items), items, None, None)
    one = torch.ones(4, 1, dtype=torch.int64)
    again = [decoder.step(memory, items, one * token, one * 0)[0] for token in (3, 8, 3)]
    assert torch.equal(again[0], again[2]) and not torch.equal(again[0], again[1])
    assert F.softmax(first, -1).shape == (4, 1, 15) and replace(memory).chosen.shape == (4, 1, 0)
