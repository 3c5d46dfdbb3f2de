"""ReaRec's behavioural checks by number, around every kind of encoder.

Not here: 14 (row counts of data sets that are not ours to ship) and the wall time of 17, which is a benchmark; the
test of 17 counts the tokens that the blocks work on instead.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from per_target import per_target
from torch import Tensor, nn

import recsys as rs
from recsys.auxiliaries.reasoning import ProgressiveSoftmax, StepContrast, StepDiversity
from recsys.data.batch import Batch
from recsys.encoders.bert4rec import BERT4Rec
from recsys.encoders.gru4rec import GRU4Rec
from recsys.encoders.mamba4rec import Mamba4Rec
from recsys.encoders.rearec import NoisyStates, ReaRec, ReasoningStates
from recsys.encoders.sasrec import SASRec
from recsys.encoders.sigma import SIGMA
from recsys.encoders.unirec import UniRec
from recsys.errors import DataWarning
from recsys.items.ids import IdItems
from recsys.objectives.softmax import FullSoftmax
from recsys.protocols import Context, Encoded, ItemTable, Step
from recsys.recommenders.composed import Recommender
from recsys.targets.last_item import LastItem
from recsys.targets.next_item import NextItem
from recsys.testing import check_encoder, toy_batch, toy_context, toy_split

NUM_ITEMS, DIM = 30, 8

ENCODERS: dict[str, Callable[[], Any]] = {
    "sasrec": lambda: SASRec(DIM, 2, 2, 0.0, 60),
    "sasrec, post": lambda: SASRec(DIM, 2, 1, 0.0, 60, layout="post", positions="absolute", input_norm=True),
    "bert4rec": lambda: BERT4Rec(DIM, 2, 2, 0.0, 60),
    "gru4rec": lambda: GRU4Rec(DIM, 12, 2, 0.0, 60),
}
UNCACHED: dict[str, Callable[[], Any]] = {
    "mamba4rec": lambda: Mamba4Rec(DIM, 1, 4, dropout=0.0, max_length=60),
    "sigma": lambda: SIGMA(DIM, 1, 4, dropout=0.0, gate_dropout=0.0, max_length=60, keep=2),
    "unirec": lambda: UniRec(DIM, 1, 2, 0.0, 60),
}


def pair(encoder: Any, steps: int = 2, jitter: float = 0.1, **settings: Any) -> tuple[ReaRec, IdItems]:
    """A wrapped encoder and its items, every weight away from its start."""
    torch.manual_seed(0)
    items, model = IdItems(DIM, init="torch"), ReaRec(encoder, steps, **settings)
    items.bind(Context(NUM_ITEMS))
    model.bind(Context(NUM_ITEMS))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * jitter)
    return model.eval(), items.eval()


def states_of(model: ReaRec, items: IdItems, batch: Batch, steps: int | None = None) -> Tensor:
    found: Tensor = model(batch, items, steps).read(ReasoningStates).states.detach()
    return found


def explicit(layer: Any, query: Tensor, source: Tensor, sees: Tensor) -> Tensor:
    """Softmax attention of one unpadded history under the mask ``sees`` (n, n)."""
    n, dim = query.shape
    q = layer.query(query).view(n, layer.num_heads, -1)
    k, v = layer.key_value(source).view(n, 2, layer.num_heads, -1).unbind(1)
    logits = torch.einsum("qhd,khd->hqk", q, k) / q.shape[-1] ** 0.5
    return layer.output(
        torch.einsum("hqk,khd->qhd", logits.masked_fill(~sees, -torch.inf).softmax(-1), v).reshape(n, dim)
    )


def reread(model: ReaRec, items: IdItems, history: Tensor, length: int, steps: int) -> Tensor:
    """(K + 1, D): [items, z_1..z_k] encoded anew at every step, latents without position and unseen by the items.

    ``length`` is that of the row, from whose newest item positions are counted.
    """
    encoder: Any = model.encoder
    if isinstance(encoder, GRU4Rec):
        return reread_gru(model, items, history, steps)
    n = len(history)
    place = torch.arange(n)
    x = items.embed(history)
    if encoder.position_table is not None:
        x = x + encoder.position_table(length - 1 - place if encoder.positions == "recency" else place)
    states: list[Tensor] = []
    for step in range(steps + 1):
        if step:
            x = torch.cat([x, (states[-1] + model.position[step - 1])[None]])
        y, m = encoder.before(x), n + step
        sees = torch.ones(m, m, dtype=torch.bool).tril()
        if encoder.sees == "all":
            sees[:, :n] = True
        for block in encoder.blocks:
            y, _ = block.run(y, lambda q, s, layer=block.attention, sees=sees: (explicit(layer, q, s, sees), None))
        states.append(encoder.after(y)[-1])
    return torch.stack(states)


def reread_gru(model: ReaRec, items: IdItems, history: Tensor, steps: int) -> Tensor:
    encoder: Any = model.encoder
    x = items.embed(history)
    states: list[Tensor] = []
    for step in range(steps + 1):
        if step:
            x = torch.cat([x, (states[-1] + model.position[step - 1])[None]])
        y = x[None]
        for layer in encoder.layers:
            y = layer(y)[0]
        states.append(encoder.output(y[0, -1]))
    return torch.stack(states)


def histories_of(batch: Batch) -> list[tuple[Tensor, int]]:
    """What each wanted token has behind it, itself included, and the length of its row."""
    where = [divmod(place, batch.ids.shape[1]) for place in batch.flat[batch.wanted_tokens].tolist()]
    return [(batch.ids[row, : place + 1], int(batch.lengths[row])) for row, place in where]


@pytest.mark.filterwarnings("ignore::recsys.errors.DataWarning")
@pytest.mark.parametrize("name", [*ENCODERS, *UNCACHED])
def test_check_01_no_steps_are_the_encoder_itself(name: str) -> None:
    encoder = (ENCODERS | UNCACHED)[name]()
    model, items = pair(encoder, 2)
    batch = toy_batch((5, 1, 3))
    plain = encoder(batch, items)
    zero = model(batch, items, 0)
    assert torch.equal(zero.tokens, plain.tokens)
    assert torch.equal(zero.user, plain.user)
    assert not torch.allclose(model(batch, items).user, plain.user, atol=1e-3)


@pytest.mark.parametrize("name", [*ENCODERS, *UNCACHED])
def test_check_01_a_model_without_steps_has_the_scores_and_weights_of_its_encoder(name: str) -> None:
    bare, wrapped = (
        Recommender(IdItems(DIM), encoder, FullSoftmax(), LastItem())
        for encoder in ((ENCODERS | UNCACHED)[name](), ReaRec((ENCODERS | UNCACHED)[name](), 0))
    )
    histories = [rs.History(one, [60_000] * len(one)) for one in (["i1", "i2"], ["i5"], ["i9", "i8", "i7", "i6"])]
    for model in (bare, wrapped):
        model.bind(toy_context())
        model.eval()
    assert sum(p.numel() for p in bare.parameters()) == sum(p.numel() for p in wrapped.parameters())
    np.testing.assert_array_equal(bare.scores(histories), wrapped.scores(histories))


@pytest.mark.parametrize("name", ENCODERS)
@pytest.mark.parametrize("all_positions", [False, True])
def test_check_02_cached_steps_equal_reading_everything_again(name: str, all_positions: bool) -> None:
    model, items = pair(ENCODERS[name](), 5)
    batch = toy_batch((50, 1, 17, 2, 33, 8))
    if all_positions:
        targets = LastItem() if model.sees == "all" else NextItem()
        batch = targets.train(toy_batch((14, 2, 6, 1)))
    found = states_of(model, items, batch)
    assert found.shape == (len(batch.wanted_tokens), 6, DIM)
    for states, (history, length) in zip(found, histories_of(batch), strict=True):
        expected = reread(model, items, history, length, 5).detach()
        torch.testing.assert_close(states, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("all_positions", [False, True])
@pytest.mark.parametrize("name", ["gru4rec", "sasrec without positions"])
def test_check_02_both_ways_of_reading_are_one_model_without_positions(name: str, all_positions: bool) -> None:
    def make() -> Any:
        return SASRec(DIM, 2, 2, 0.0, 60, positions="none") if "sasrec" in name else ENCODERS[name]()

    cached, items = pair(make(), 3, cache="always")
    again, _ = pair(make(), 3, cache="never")
    batch = toy_batch((11, 1, 4, 7))
    batch = NextItem().train(batch) if all_positions else batch
    torch.testing.assert_close(states_of(again, items, batch), states_of(cached, items, batch), atol=1e-5, rtol=0)
    assert (again.reencoded, cached.reencoded) == (3 * len(batch.wanted_tokens), 0)


@pytest.mark.filterwarnings("ignore::recsys.errors.DataWarning")
@pytest.mark.parametrize("name", [*ENCODERS, *UNCACHED])
def test_check_03_a_state_does_not_depend_on_how_many_follow(name: str) -> None:
    model, items = pair((ENCODERS | UNCACHED)[name](), 4)
    batch = toy_batch((5, 1, 9))
    most = states_of(model, items, batch)
    plain = model.encoder(batch, items).tokens
    for steps in range(4):
        torch.testing.assert_close(states_of(model, items, batch, steps), most[:, : steps + 1], atol=1e-6, rtol=0)
    others = torch.ones(len(plain), dtype=torch.bool).index_fill(0, batch.wanted_tokens, False)
    assert torch.equal(model(batch, items).tokens[others], plain[others])


@pytest.mark.filterwarnings("ignore::recsys.errors.DataWarning")
@pytest.mark.parametrize("name", [*ENCODERS, *UNCACHED])
def test_check_04_padding_and_company_change_nothing(name: str) -> None:
    model, items = pair((ENCODERS | UNCACHED)[name](), 2)
    alone = states_of(model, items, toy_batch((7,)))
    for batch in (toy_batch((7,), width=20), toy_batch((7,), width=50), toy_batch((7, 40, 1))):
        torch.testing.assert_close(states_of(model, items, batch)[:1], alone, atol=1e-5, rtol=1e-5)


def test_check_05_temperatures_of_the_steps() -> None:
    assert ProgressiveSoftmax(0.07, 5.0).temperatures(3) == pytest.approx([1.75, 0.35, 0.07])
    assert ProgressiveSoftmax(0.3, 1.0).temperatures(3) == pytest.approx([0.3] * 3)


def entropies(steps: Tensor, items: IdItems, batch: Batch, temperatures: list[float]) -> list[Tensor]:
    """CE_k (T',) of every step, by the book."""
    assert batch.targets is not None
    targets = batch.targets[batch.targets > 0] - 1
    table = items.weight[1:]
    return [
        F.cross_entropy(steps[:, k] @ table.T / tau, targets, reduction="none") for k, tau in enumerate(temperatures)
    ]


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_check_06_progressive_loss_equals_the_cross_entropies_by_hand(reduction: str) -> None:
    model, items = pair(ENCODERS["sasrec"](), 2, combine="last")
    batch = NextItem().train(toy_batch((6, 2, 4)))
    encoded = model(batch, items)
    losses = per_target(ProgressiveSoftmax(0.5, 2.0, reduction=reduction), encoded, batch, items)
    hot, warm, last = entropies(encoded.read(ReasoningStates).states, items, batch, [2.0, 1.0, 0.5])
    expected = last + (hot + warm) / (2 if reduction == "mean" else 1)
    torch.testing.assert_close(losses, expected, atol=1e-5, rtol=1e-5)


def contrast(steps: Tensor, temperature: float) -> Tensor:
    """Mean over the steps 1..K of CE(R_k R_k^T / tau, diagonal)."""
    own = torch.arange(len(steps))
    each = [F.cross_entropy(r @ r.T / temperature, own) for r in steps[:, 1:].transpose(0, 1)]
    return torch.stack(each).mean()


def test_check_07_without_noise_and_dropout_both_branches_agree() -> None:
    model, items = pair(ENCODERS["sasrec"](), 2, noise=0.0, warmup=0)
    model.train()
    batch = LastItem().train(toy_batch((6, 2, 5, 3)))
    encoded = model(batch, items)
    torch.testing.assert_close(encoded.read(NoisyStates).states, encoded.read(ReasoningStates).states[:, 1:])
    loss = StepContrast(temperature=0.7)(Step(batch, encode=lambda _: encoded, items=items))
    torch.testing.assert_close(loss, contrast(encoded.read(ReasoningStates).states, 0.7))
    summed = StepContrast(temperature=0.7, reduction="sum")(Step(batch, encode=lambda _: encoded, items=items))
    torch.testing.assert_close(summed, 2 * loss)


def test_check_07_noise_enters_each_latent_and_does_not_compound_through_the_states() -> None:
    """A recurrent encoder that forgets shows it: its noisy state is that of the clean latent plus one noise."""
    model, items = pair(Forgetful(DIM), 3, noise=0.3, warmup=0)
    model.train()
    torch.manual_seed(5)
    encoded = model(toy_batch((3,) * 4000), items)
    assert isinstance(model.position, nn.Parameter)
    latents = encoded.read(ReasoningStates).states[:, :-1] + model.position
    noise = encoded.read(NoisyStates).states - latents
    assert noise.std().item() == pytest.approx(0.3, rel=0.02)
    torch.testing.assert_close(noise.flatten(0, 1).T.cov(), 0.09 * torch.eye(DIM), atol=0.01, rtol=0)


class Forgetful(nn.Module):
    """A state is its input: what :class:`ReaRec` feeds it can be read off."""

    sees, max_length = "past", 60

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim

    def forward(self, batch: Batch, items: ItemTable) -> Encoded:
        return Encoded(batch, items.embed(batch.flat_ids))

    def begin(self, batch: Batch, items: ItemTable) -> tuple[Encoded, None]:
        return self(batch, items), None

    def extend(self, latents: Tensor, memory: None) -> tuple[Tensor, None]:
        return latents, memory


@pytest.mark.parametrize("targets", [False, True])
def test_check_08_noise_waits_for_the_warm_up_and_ends_with_training(targets: bool) -> None:
    model, items = pair(SASRec(DIM, 1, 1, 0.3, 60), 2, noise=0.01)
    batch = LastItem().train(toy_batch((6, 2, 5, 3))) if targets else toy_batch((6, 2))
    for epoch, rows in (
        (0, 0),
        (1, 0),
        (2, len(batch.wanted_tokens)),
        (7, len(batch.wanted_tokens)),
    ):  # epochs 1 and 2 of the code
        model.train()
        model.on_epoch(epoch)
        encoded = model(batch, items)
        assert encoded.read(NoisyStates).states.shape == (rows, 2, DIM)
        loss = StepContrast()(Step(batch, encode=partial(model, items=items), items=items))
        assert (loss.item() == 0) == (rows == 0)
        model.eval()
        first, second = model(batch, items), model(batch, items)
        assert first.read(NoisyStates).states.numel() == 0
        assert torch.equal(first.tokens, second.tokens)


def test_check_08_the_noisy_branch_has_a_dropout_of_its_own() -> None:
    model, items = pair(SASRec(DIM, 1, 1, 0.5, 60), 1, noise=0.0, warmup=0)
    model.train()
    encoded = model(toy_batch((6, 2)), items)
    noisy, steps = encoded.read(NoisyStates).states, encoded.read(ReasoningStates).states
    assert not torch.allclose(noisy, steps[:, 1:], atol=1e-2)


def step_of(model: ReaRec, items: IdItems, batch: Batch) -> Step:
    return Step(batch, encode=lambda view: model(view, items), items=items)


def test_check_09_divergence_is_zero_for_equal_steps_only() -> None:
    model, items = pair(ENCODERS["sasrec"](), 2)
    step = step_of(model, items, toy_batch((6, 2, 5)))
    assert step.encoded is not None
    assert StepDiversity()(step).item() < -1e-3
    states = step.encoded.read(ReasoningStates).states[:, :1].expand(-1, 3, -1)
    step = replace(step, encode=lambda view: replace(model(view, items), given=(ReasoningStates(states),)))
    assert StepDiversity()(step).item() == pytest.approx(0.0, abs=1e-6)


def test_check_10_ensemble_scores_with_the_mean_whatever_the_temperature() -> None:
    model, items = pair(ENCODERS["gru4rec"](), 3)
    batch = toy_batch((6, 2, 5))
    encoded = model(batch, items)
    torch.testing.assert_close(encoded.user, encoded.read(ReasoningStates).states.mean(1))
    last, _ = pair(ENCODERS["gru4rec"](), 3, combine="last")
    assert torch.equal(last(batch, items).user, last(batch, items).read(ReasoningStates).states[:, -1])
    best = [
        Recommender(IdItems(DIM), ReaRec(ENCODERS["gru4rec"](), 2), FullSoftmax(temperature))
        for temperature in (0.1, 5)
    ]
    for one in best:
        one.bind(toy_context())
    one, other = (model.recommend([["i1", "i2", "i3"]], k=10).items for model in best)
    assert list(one[0]) == list(other[0])


def test_check_11_losses_without_steps_are_the_cross_entropy_of_the_encoder() -> None:
    model, items = pair(ENCODERS["sasrec"](), 0, noise=0.1, warmup=0)
    model.train()
    batch = NextItem().train(toy_batch((6, 2, 4)))
    step = step_of(model, items, batch)
    assert step.encoded is not None
    plain = per_target(FullSoftmax(0.5), model.encoder(batch, items), batch, items)
    for objective in (FullSoftmax(0.5), ProgressiveSoftmax(0.5, 3.0)):
        torch.testing.assert_close(per_target(objective, step.encoded, batch, items), plain)
    assert StepDiversity()(step).item() == 0
    assert StepContrast()(step).item() == 0


@pytest.mark.filterwarnings("ignore::recsys.errors.DataWarning")
@pytest.mark.parametrize("method", ["erl", "prl"])
@pytest.mark.parametrize("name", ["sasrec", "bert4rec", "gru4rec", "sigma"])
def test_check_12_every_step_embedding_learns(name: str, method: str) -> None:
    model = recommender((ENCODERS | UNCACHED)[name](), method, steps=3)
    total(model, toy_batch((6, 2, 5, 3))).backward()  # type: ignore[no-untyped-call]
    gradient = model.encoder.position.grad  # type: ignore[union-attr]
    assert gradient.shape == (3, DIM)
    assert bool((gradient.abs().sum(1) > 0).all())


def recommender(encoder: Any, method: str, steps: int = 2, weight: float = 0.05) -> Recommender:
    """A bound model with the parts of ERL, PRL or neither."""
    parts = {
        "base": (encoder, FullSoftmax(), []),
        "erl": (ReaRec(encoder, steps), FullSoftmax(), [StepDiversity(weight)]),
        "prl": (
            ReaRec(encoder, steps, "last", noise=0.01, warmup=0),
            ProgressiveSoftmax(1.0, 1.5),
            [StepContrast(0.1)],
        ),
    }
    wrapped, objective, auxiliaries = parts[method]
    targets = LastItem() if encoder.sees == "all" else NextItem()
    model = Recommender(IdItems(DIM, scale=False), wrapped, objective, targets, auxiliaries)  # type: ignore[arg-type]
    model.bind(toy_context())
    return model.train()


def total(model: Recommender, batch: Batch) -> Tensor:
    batch = model.prepare(batch, Step(batch))
    return sum(model.loss(Step(batch, total_weight=len(batch.wanted_tokens))).values())  # type: ignore[return-value]


@torch.inference_mode()
def scored(model: Recommender, batch: Batch) -> Tensor:
    return model.eval().score(batch)


@pytest.mark.parametrize("method", ["erl", "prl"])
def test_check_13_ranking_equals_a_sort_of_the_scores(method: str) -> None:
    model = recommender(SASRec(DIM, 1, 1, 0.0, 12), method)
    split = toy_split()
    report = rs.evaluate(model, split.test, k=5, metrics=["recall", "ndcg"], exclude="none", progress=False)
    batch = split.test.batch(np.arange(len(split.test)), model.max_length)
    targets = split.test.prepared.items[split.test.target_start]
    scores = scored(model, batch).numpy()
    assert scores.shape == (len(split.test), NUM_ITEMS)  # padding has no column
    ranks = 1 + (scores > scores[np.arange(len(targets)), targets - 1][:, None]).sum(1)
    np.testing.assert_allclose(report.columns["recall@5"], ranks <= 5)
    np.testing.assert_allclose(report.columns["ndcg@5"], np.where(ranks <= 5, 1 / np.log2(ranks + 1), 0.0))
    assert set(report.columns["ndcg@5"][ranks == 3]) <= {0.5}
    shown = model.recommend([["i1", "i2", "i3"]], k=NUM_ITEMS, exclude="none").items[0]
    assert {"i1", "i2", "i3"} <= set(shown)  # the history may be ranked


@pytest.mark.parametrize("method", ["base", "erl", "prl"])
def test_check_15_sixty_four_rows_are_learnt_by_heart(method: str) -> None:
    model = recommender(SASRec(DIM, 1, 1, 0.0, 12), method)
    model.targets = LastItem()
    batch = toy_batch((6,) * 64)
    query = batch.replace(ids=batch.ids[:, :-1], lengths=batch.lengths - 1, times=None, weights=None)
    optimizer = torch.optim.Adam(model.parameters(), 0.02)
    for _ in range(25):
        for _ in range(10):
            optimizer.zero_grad()
            total(model.train(), batch).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        if torch.equal(scored(model, query).argmax(1) + 1, batch.ids[:, -1]):
            return
    pytest.fail("not learnt in 250 steps")


def test_check_16_steps_differ_more_with_the_divergence_than_without() -> None:
    cosines = []
    for weight in (0.0, 0.1):
        model = recommender(SASRec(DIM, 1, 1, 0.0, 12), "erl", weight=weight)
        batch = toy_batch((6, 5, 4, 7) * 8)
        optimizer = torch.optim.Adam(model.parameters(), 0.01)
        for _ in range(60):
            optimizer.zero_grad()
            total(model, batch).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        steps = F.normalize(model.eval().encode(batch).read(ReasoningStates).states, dim=2)
        cosine = steps @ steps.transpose(1, 2)
        cosines.append(((cosine.sum((1, 2)) - 3) / 6).mean().item())
    assert cosines[1] < cosines[0] - 0.01


@pytest.mark.parametrize("name", ENCODERS)
def test_check_17_a_cached_step_works_on_the_wanted_tokens_only(name: str) -> None:
    model, items = pair(ENCODERS[name](), 3)
    rows: list[int] = []
    for layer in model.encoder.modules():  # type: ignore[union-attr]
        if isinstance(layer, nn.Linear):
            layer.register_forward_hook(lambda _, inputs, __: rows.append(inputs[0].shape[0]))
    batch = toy_batch((9, 4, 5, 30))
    model(batch, items, 0)
    encoding, rows[:] = list(rows), []
    model(batch, items)
    assert {48} <= set(encoding) <= {48, 4}  # a topmost block of attention reads all and gives the wanted ones
    assert sorted(rows) == sorted(encoding + [4] * (3 * len(encoding)))


def test_an_encoder_without_a_cache_is_counted_and_told_once() -> None:
    model, items = pair(UNCACHED["sigma"](), 2)
    batch = toy_batch((5, 1, 3))
    with pytest.warns(DataWarning, match="SIGMA"):
        model(batch, items)
    assert model.reencoded == 6
    assert "6 rows" in repr(model)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model(batch, items, 1)
    assert model.reencoded == 9


def test_histories_read_again_carry_latents_behind_the_token_they_follow() -> None:
    """Times and what else has a value per event are those of the token, and the state is that of the newest latent."""
    seen: list[Batch] = []

    class Watched(Forgetful):
        begin = extend = None  # type: ignore[assignment]

        def forward(self, batch: Batch, items: ItemTable) -> Encoded:
            seen.append(batch)
            return super().forward(batch, items)

    encoder: Any = Watched(DIM)
    model, items = pair(encoder, 2, cache="never")
    batch = NextItem().train(toy_batch((4, 2)))
    encoded = model(batch, items)
    assert isinstance(model.position, nn.Parameter)
    torch.testing.assert_close(
        encoded.read(ReasoningStates).states[:, 2],
        encoded.tokens * 0 + items.embed(batch.flat_ids) + model.position.sum(0),
    )
    second = seen[2]
    assert second.lengths.tolist() == [3, 3, 4, 5]
    assert second.ids.gt(NUM_ITEMS).sum().item() == 8
    assert second.times is not None and second.times[3].tolist() == [60_000, 120_000, 180_000, 180_000, 180_000]
    assert second.target_times[3].tolist() == [120_000, 180_000, 240_000, 240_000, 240_000]
    assert second.wanted_tokens.tolist() == second.last.tolist()


def test_all_tokens_reason_where_all_are_asked_for_with_a_target_or_without() -> None:
    batch = NextItem().train(toy_batch((6, 2, 4)))
    batch = batch.replace(targets=batch.targets * (torch.arange(5) % 2))  # type: ignore[operator]
    found = []
    for cache in ("always", "never"):
        model, items = pair(SASRec(DIM, 2, 2, 0.0, 60, positions="none"), 2, cache=cache)
        found.append(model.eval()(batch.ask_all(), items).read(ReasoningStates).states)
    assert len(found[0]) == len(batch.flat) > len(batch.wanted_tokens)
    torch.testing.assert_close(*found, atol=1e-5, rtol=1e-5)


def test_steps_are_an_argument_at_inference() -> None:
    model = recommender(SASRec(DIM, 1, 1, 0.0, 12), "erl", steps=3).eval()
    wrapped: Any = model.encoder
    batch = toy_batch((5, 1, 3))
    for steps in (0, 1, 3):
        wrapped.inference_steps = steps
        torch.testing.assert_close(model.encode(batch).user, wrapped(batch, model.items, steps).user)
    wrapped.train()
    assert wrapped(batch, model.items).read(ReasoningStates).states.shape[1] == 4
    for wrong in (-1, 4):
        with pytest.raises(ValueError, match="steps"):
            wrapped(batch, model.items, wrong)


def test_empty_histories_have_no_state_and_no_steps() -> None:
    model, items = pair(ENCODERS["sasrec"](), 2, noise=0.1, warmup=0)
    model.train()
    some = toy_batch((3, 2))
    none = some.replace(ids=some.ids * 0, lengths=some.lengths * 0)
    encoded = model(none, items)
    assert encoded.read(ReasoningStates).states.shape == (0, 3, DIM)
    assert encoded.user.abs().max() == 0
    mixed = some.replace(ids=some.ids * torch.tensor([[1], [0]]), lengths=some.lengths * torch.tensor([1, 0]))
    assert model(mixed, items).user[1].abs().max() == 0


@pytest.mark.filterwarnings("ignore::recsys.errors.DataWarning")
@pytest.mark.parametrize(
    "make",
    [
        lambda: ReaRec(SASRec(16, 1, 2, 0.1, 8), 2),
        lambda: ReaRec(GRU4Rec(16, 12, 2, 0.1, 8), 2, "last", noise=0.1, warmup=0),
        lambda: ReaRec(SASRec(16, 1, 2, 0.1, 8), 2, cache="never"),
        lambda: ReaRec(BERT4Rec(16, 1, 2, 0.1, 8), 2),
        lambda: ReaRec(UniRec(16, 1, 2, 0.1, 8), 1),
        lambda: ReaRec(Mamba4Rec(16, 1, 4, dropout=0.1, max_length=8), 1),
        lambda: ReaRec(SIGMA(16, 1, 4, dropout=0.1, max_length=8, keep=2), 2, inference_steps=1),
    ],
    ids=["sasrec", "gru4rec", "sasrec read again", "bert4rec", "unirec", "mamba4rec", "sigma"],
)
def test_conforms_to_the_seam(make: Callable[[], ReaRec]) -> None:
    check_encoder(make())


@pytest.mark.parametrize("method", ["erl", "prl"])
@pytest.mark.parametrize("encoder", [lambda: SASRec(16, 1, 1, 0.1, 12), lambda: GRU4Rec(16, 12, 1, 0.1, 12)])
def test_trains_with_the_trainer(encoder: Callable[[], Any], method: str) -> None:
    torch.manual_seed(0)
    wrapped = ReaRec(encoder(), 2, "mean" if method == "erl" else "last", None if method == "erl" else 0.01, 0)
    objective: Any = FullSoftmax() if method == "erl" else ProgressiveSoftmax(1.0, 2.0)
    auxiliary: Any = StepDiversity() if method == "erl" else StepContrast(0.1)
    model = Recommender(IdItems(16), wrapped, objective, auxiliaries=[auxiliary])
    fitted = rs.fit(model, toy_split(), epochs=4, batch_size=16, learning_rate=0.01, progress=False)
    losses = [record["loss"] for record in fitted.history]
    assert losses[-1] < losses[0]
    assert wrapped.epoch == 3


@pytest.mark.parametrize(
    ("settings", "word"),
    [
        ({"steps": -1}, "steps"),
        ({"combine": "max"}, "combine"),
        ({"cache": "yes"}, "cache"),
        ({"noise": -0.1}, "noise"),
        ({"warmup": -1}, "warmup"),
        ({"inference_steps": 3}, "steps"),
        ({"steps": 60, "cache": "never"}, "max_length"),
    ],
)
def test_wrong_settings_say_which(settings: dict[str, Any], word: str) -> None:
    with pytest.raises(ValueError, match=word):
        ReaRec(ENCODERS["sasrec"](), **settings)


def test_cached_reasoning_of_an_encoder_without_a_cache_is_an_error() -> None:
    with pytest.raises(ValueError, match="Mamba4Rec"):
        ReaRec(UNCACHED["mamba4rec"](), cache="always")
    assert ReaRec(UNCACHED["mamba4rec"](), 2).max_length == 58
    assert ReaRec(ENCODERS["sasrec"](), 2).max_length == 60
