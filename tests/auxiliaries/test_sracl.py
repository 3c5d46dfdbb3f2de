"""SRA-CL: retrieval, synthesiser and losses against slow references, numbered as in section 12 of its specification."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import recsys as rs
from recsys.auxiliaries import retrieval, semantic
from recsys.auxiliaries.retrieval import Histories, history_neighbours, item_neighbours, short_rows
from recsys.auxiliaries.semantic import SemanticContrast, substituted
from recsys.auxiliaries.synthesiser import Synthesiser
from recsys.data.prepared import Prepared
from recsys.data.split import Split
from recsys.data.splitters import LeaveLast
from recsys.encoders.gru4rec import GRU4Rec
from recsys.ids.vectors import Vectors
from recsys.ids.vocabulary import Vocabulary
from recsys.protocols import Context, Step
from recsys.runs.recipe import find_recipe, load_recipe
from recsys.targets.last_item import LastItem
from recsys.testing import NUM_ITEMS, check_auxiliary, toy_batch, toy_split

WIDTH, DIM, LENGTH = 6, 8, 5


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RECSYS_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def texts(tmp_path: Path) -> str:
    return saved(tmp_path / "texts")


def saved(folder: Path, missing: tuple[int, ...] = (), model: str = "one", seed: int = 3) -> str:
    """Random vectors for the items of the toy data, but for some rows."""
    rows = np.array([row for row in range(1, NUM_ITEMS + 1) if row not in missing])
    array = np.random.default_rng(seed).normal(size=(NUM_ITEMS + 1, WIDTH)).astype(np.float32)
    Vectors.of(np.array([f"i{row}" for row in rows], object), array[rows], model=model).save(folder)
    return str(folder)


def contrast(texts: str, **more: Any) -> SemanticContrast:
    return SemanticContrast(vectors=texts, **{"k": 3, "dim": 4, "max_length": LENGTH, "cache": False, **more})


def recommender(part: SemanticContrast, encoder: Any = None, **more: Any) -> rs.Recommender:
    encoder = encoder or rs.SASRec(DIM, 1, 1, 0.0, LENGTH)
    return rs.Recommender(rs.IdItems(DIM), encoder, rs.FullSoftmax(), auxiliaries=[part], **more)


def context(split: Split, seed: int = 0) -> Context:
    return Context(split.num_items, split.items, split.train, split.item_text, seed)


def bound(part: SemanticContrast, split: Split | None = None, **more: Any) -> tuple[rs.Recommender, Split]:
    split = split or toy_split()
    model = recommender(part, **more)
    model.bind(context(split))
    return model, split


def step_of(model: rs.Recommender, split: Split, rows: int = 12) -> Step:
    """The step of a batch of the newest windows of some users."""
    batch = split.train.gather(np.arange(rows), LENGTH + 1, needs=frozenset({"events"}))
    batch = model.prepare(batch.replace(weights=None), Step(batch, seed=4))
    return Step(batch, seed=4, items=model.items, encode=model.encode)


def histories(pool: Histories) -> list[list[int]]:
    """The items of every row's window, one row at a time."""
    train, items = pool.training, []
    for user, event in zip(pool.users, pool.events, strict=True):
        before = train.history(user)[: event - train.start[user]]
        items.append(before[-pool.max_length :].tolist())
    return items


def naive_nt_xent(first: Tensor, second: Tensor, temperature: float = 1.0) -> Tensor:
    z, count = torch.cat([first, second]), len(first)
    losses = []
    for i in range(2 * count):
        partner = (i + count) % (2 * count)
        others = torch.stack([z[i] @ z[j] / temperature for j in range(2 * count) if j != i])
        losses.append(torch.logsumexp(others, 0) - z[i] @ z[partner] / temperature)
    return torch.stack(losses).mean()


@pytest.mark.parametrize("kind", ["user", "prefix"])
def test_pool_holds_training_histories_only(kind: str) -> None:
    split = toy_split()
    pool = Histories.of(split.train, kind, LENGTH)
    train = split.train
    ends = train.stop[pool.users]
    assert (pool.events < ends).all() and (pool.events > train.start[pool.users]).all()
    expected = np.maximum(train.lengths - 1, 0).sum() if kind == "prefix" else (train.lengths > 1).sum()
    assert len(pool) == expected
    rows = np.arange(len(pool))[::3]
    batch = pool.batch(rows, frozenset({"times", "query_time"}))
    assert batch.lengths.max() == LENGTH and pool.lengths(rows).tolist() == batch.lengths.tolist()
    expected_items = histories(pool)
    for at, row in enumerate(rows):
        assert batch.ids[at, : batch.lengths[at]].tolist() == expected_items[row]
        assert batch.query_time is not None and batch.query_time[at] == pool.events[row] * 60_000  # its target's


def test_pool_reads_as_the_training_row_that_ends_in_its_event() -> None:
    split = toy_split()
    pool = Histories.of(split.train, "user", LENGTH)
    row = LastItem().train(split.train.gather(pool.users, LENGTH + 1))
    torch.testing.assert_close(pool.batch(np.arange(len(pool))).ids, row.ids)


@pytest.mark.parametrize("window", ["mean", "recent"])
@pytest.mark.parametrize("kind", ["user", "prefix"])
def test_pooled_vectors_equal_sums_over_windows(kind: str, window: str, monkeypatch: pytest.MonkeyPatch) -> None:
    split = toy_split()
    pool = Histories.of(split.train, kind, LENGTH)
    items = np.random.default_rng(1).normal(size=(NUM_ITEMS + 1, WIDTH)).astype(np.float32)
    known = np.random.default_rng(2).random(NUM_ITEMS + 1) < 0.5
    whole = pool.vectors(items, known, window)
    monkeypatch.setattr("recsys.auxiliaries.histories.NUMBERS", 60)  # blocks of few users
    np.testing.assert_allclose(pool.vectors(items, known, window), whole, atol=1e-6)
    directions = items / np.linalg.norm(items, axis=1, keepdims=True)
    empty = 0
    for vector, history in zip(whole, histories(pool), strict=True):
        weights = np.arange(1, len(history) + 1) if window == "recent" else np.ones(len(history))
        total = sum(w * directions[item] for w, item in zip(weights, history, strict=True) if known[item])
        empty += isinstance(total, int)
        expected = np.zeros(WIDTH) if isinstance(total, int) else total / np.linalg.norm(total)
        np.testing.assert_allclose(vector, expected, atol=1e-5)
    assert kind == "user" or empty  # some windows hold no item with a text


def test_twins_are_rows_with_the_same_window() -> None:
    split = toy_split(num_items=6)
    for kind in ("user", "prefix"):
        pool = Histories.of(split.train, kind, 3)
        windows, twins = [tuple(history) for history in histories(pool)], pool.twins()
        first = {window: windows.index(window) for window in windows}
        numbers = {twins[first[window]] for window in windows}
        assert len(numbers) == len(first) < len(windows)
        assert all(twins[row] == twins[first[window]] for row, window in enumerate(windows))


def test_check_01_without_weights_the_recipe_is_the_backbone(monkeypatch: pytest.MonkeyPatch) -> None:
    split = toy_split()
    monkeypatch.setattr(rs, "load", lambda name: SimpleNamespace(split=lambda splitter: split))
    for name in ("recsys.llm.embed.embed", "recsys.ids.vectors.Vectors.load"):
        monkeypatch.setattr(name, lambda *arguments, **more: pytest.fail("text vectors were asked for"))
    sracl, sasrec = (load_recipe(find_recipe(name)) for name in ("sracl", "sasrec"))
    knobs: dict[str, Any] = {"epochs": 2, "batch_size": 16, "max_length": LENGTH, "dim": DIM}
    runs = [sracl(cross=0.0, intra=0.0, **knobs), sasrec(**knobs)]
    losses = [[record["loss"] for record in run.fit(progress=False).history] for run in runs]
    assert losses[0] == losses[1]
    one, other = (run.model.tensors() for run in runs)
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_check_01_without_weights_no_table_is_made_and_no_pass_added(texts: str) -> None:
    part = SemanticContrast(vectors="no such folder", cross=0.0, intra=0.0)
    model, split = bound(part)
    assert not list(part.buffers()) and not list(part.parameters())
    assert set(model.loss(step_of(model, split))) == {"loss"}
    intra = contrast(texts, cross=0.0)
    model, split = bound(intra)
    assert intra.nearest is None and not list(intra.parameters())
    assert set(model.loss(step_of(model, split))) == {"loss", "SemanticContrast0.intra"}


@pytest.mark.parametrize("same_user", [True, False])
@pytest.mark.parametrize("twins", [True, False])
@pytest.mark.parametrize("spare", [0, 32])
def test_check_02_neighbours_equal_brute_force(
    same_user: bool, twins: bool, spare: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retrieval, "SPARE", spare)
    monkeypatch.setattr(retrieval, "HITS", 1000 + 10**6 * spare)  # some rows at a time, or all
    split = toy_split(num_users=120, num_items=12)
    pool = Histories.of(split.train, "prefix", 3)
    items = np.random.default_rng(1).normal(size=(13, WIDTH)).astype(np.float32)
    vectors = pool.vectors(items, np.arange(13) > 0)
    groups, k = pool.twins(), 4
    apart = [pool.users] * same_user
    found = history_neighbours(vectors, k, apart, twins=groups if twins else None)
    rng = np.random.default_rng(0)
    for query in rng.choice(len(pool), min(500, len(pool)), replace=False):
        allowed = np.arange(len(pool)) != query
        allowed &= ~((pool.users == pool.users[query]) & same_user) & ~((groups == groups[query]) & twins)
        assert allowed[found[query]].all() and len(set(found[query])) == k
        products = vectors @ vectors[query]
        best = np.sort(products[allowed])[::-1][:k]
        np.testing.assert_allclose(products[found[query]], best, atol=1e-5)  # ids may differ where windows tie
    assert not np.isin(pool.events, np.arange(split.prepared.num_events)[_held_out(split)]).any()


def _held_out(split: Split) -> np.ndarray:
    """(E,) bool: validation and test events."""
    held = np.zeros(split.prepared.num_events, bool)
    for part in (split.valid, split.test):
        for start, stop in zip(part.target_start, part.target_stop, strict=True):
            held[start:stop] = True
    return held


def test_many_equal_windows_do_not_widen_the_search(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    vectors, twins = rng.normal(size=(900, WIDTH)).astype(np.float32), np.arange(900)
    vectors[:600], twins[:600] = vectors[0], 0  # windows of one best seller
    users, asked, search = rng.integers(0, 300, 900), [], retrieval.nearest_rows

    def spy(queries: Any, rows: Any, k: int, **knobs: Any) -> Any:
        asked.append(len(queries) * k)
        return search(queries, rows, k, **knobs)

    monkeypatch.setattr(retrieval, "nearest_rows", spy)
    found = history_neighbours(vectors, 5, [users], twins=twins)
    assert sum(asked) <= 2 * 900 * (5 + 1 + retrieval.SPARE)
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    for query in rng.choice(900, 100, replace=False):
        allowed = (users != users[query]) & (twins != twins[query])
        best = np.sort((unit @ unit[query])[allowed])[::-1][:5]
        assert allowed[found[query]].all() and len(set(found[query])) == 5
        np.testing.assert_allclose((unit @ unit[query])[found[query]], best, atol=1e-5)


def test_check_02_items_find_others_with_a_text() -> None:
    rng = np.random.default_rng(0)
    vectors, known = rng.normal(size=(60, WIDTH)).astype(np.float32), rng.random(60) < 0.7
    known[0], vectors[0] = True, vectors[5]  # row 0 is no item, whatever it holds
    table = item_neighbours(vectors, known, 4)
    directions = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    for row in range(60):
        if row == 0 or not known[row]:
            assert (table[row] == 0).all()
            continue
        others = [
            other for other in np.argsort(-(directions @ directions[row])) if known[other] and other not in (0, row)
        ]
        assert table[row].tolist() == others[:4]


def test_check_02_rows_left_short_repeat_what_they_have_and_are_counted() -> None:
    vectors = np.random.default_rng(0).normal(size=(6, WIDTH)).astype(np.float32)
    vectors[5] = 0.0
    users = np.array([0, 0, 0, 0, 1, 1])
    table = history_neighbours(vectors, 2, [users])
    assert (table[:4] == 4).all()  # the only other user with a text
    assert set(table[4]) <= {0, 1, 2, 3} and len(set(table[4])) == 2
    assert (table[5] == -1).all()
    assert short_rows(table) == (1, 4)
    assert (history_neighbours(vectors[:4], 2, [users[:4]]) == -1).all()


def test_check_03_twins_find_each_other_and_never_themselves() -> None:
    vectors = np.random.default_rng(0).normal(size=(40, WIDTH)).astype(np.float32)
    vectors[20:] = vectors[:20]
    table = history_neighbours(vectors, 3)
    assert (table[:, 0] == (np.arange(40) + 20) % 40).all()
    assert (table != np.arange(40)[:, None]).all()
    apart = history_neighbours(vectors, 3, [np.arange(40) % 20])
    assert ((apart - np.arange(40)[:, None]) % 20 != 0).all()
    known = np.arange(41) > 0
    items = item_neighbours(np.concatenate([np.zeros((1, WIDTH), np.float32), vectors]), known, 3)
    assert (items[1:, 0] == (np.arange(40) + 20) % 40 + 1).all()


@pytest.mark.parametrize("exact", [False, True])
def test_check_04_views_exchange_items_for_their_neighbours(exact: bool) -> None:
    count, k, share = 50, 4, 0.2
    batch = toy_batch(tuple(range(5, 55)) * 100, num_items=count)
    batch = batch.replace(targets=batch.ids)
    similar = (torch.arange(count + 1)[:, None] + torch.arange(1, k + 1) - 1) % count + 1
    similar[0] = 0
    similar[7] = 0  # an item without a text
    random = torch.Generator().manual_seed(0)
    before = batch.ids.clone()
    views = [substituted(batch, similar.int(), share, random, exact) for _ in range(2)]
    changed = [view.ids != batch.ids for view in views]
    assert torch.equal(batch.ids, before)
    for view, moved in zip(views, changed, strict=True):
        assert torch.equal(view.lengths, batch.lengths) and view.targets is None and view.weights is None
        assert (view.ids[~batch.mask] == 0).all()
        old, new = batch.ids[moved], view.ids[moved]
        assert (similar[old] == new[:, None]).any(1).all()
        assert not (old == 7).any()
    able = batch.mask & (batch.ids != 7)
    if exact:
        whole = batch.replace(ids=torch.where(batch.ids == 7, 8, batch.ids))
        view = substituted(whole, similar.int(), share, random, True)
        assert torch.equal((view.ids != whole.ids).sum(1), (whole.lengths * share).round().long().clamp(min=1))
        return
    assert able.sum() > 1e5
    both = (changed[0] & changed[1])[able]
    assert changed[0][able].float().mean().item() == pytest.approx(share, abs=0.005)
    assert both.float().mean().item() == pytest.approx(share**2, abs=0.003)
    same = (views[0].ids == views[1].ids)[changed[0] & changed[1]]
    assert same.float().mean().item() == pytest.approx(1 / k, abs=0.03)
    drawn = (similar[batch.ids[changed[0]]] == views[0].ids[changed[0]][:, None]).float().mean(0)
    torch.testing.assert_close(drawn, torch.full((k,), 1 / k), atol=0.01, rtol=0)


def test_check_04_one_million_tokens_change_at_the_share() -> None:
    batch = toy_batch((64,) * 16_000, num_items=30)
    similar = (torch.arange(31)[:, None] % 30 + 1).int()
    view = substituted(batch, similar, 0.2, torch.Generator().manual_seed(1))
    assert batch.mask.sum() > 1e6
    assert (view.ids != batch.ids).float().mean().item() == pytest.approx(0.2, abs=0.005)


def test_check_05_weights_of_the_neighbours() -> None:
    torch.manual_seed(0)
    synthesiser = Synthesiser(WIDTH, 4, dropout=0.5).eval()
    own, near = torch.randn(7, WIDTH), torch.randn(9, WIDTH)
    index = torch.randint(9, (7, 5))
    random = torch.Generator().manual_seed(0)
    shares = synthesiser(own, near, index, random)
    torch.testing.assert_close(shares.sum(1), torch.ones(7))
    torch.testing.assert_close(shares, slow_shares(synthesiser, own, near[index]))
    order = torch.randperm(5)
    torch.testing.assert_close(synthesiser(own, near, index[:, order], random), shares[:, order])
    assert (synthesiser(own, near, index[:, :1], random) == 1).all()
    synthesiser.train()
    dropped = torch.stack([synthesiser(own, near, index, random) for _ in range(2000)])
    assert ((dropped == 0) | ((dropped - 2 * shares).abs() < 1e-6)).all()
    torch.testing.assert_close(dropped.mean(0), shares, atol=0.08, rtol=0)  # five standard errors at most


def test_s1_shares_start_the_more_even_the_shorter_the_text_vectors_are() -> None:
    """Of ten neighbours: vectors have length 1 here, in the released code that which their encoder gives them."""
    generator, found = torch.Generator().manual_seed(0), []
    torch.manual_seed(0)
    synthesiser, texts = Synthesiser(384, 64).eval(), F.normalize(torch.randn(510, 384, generator=generator), dim=1)
    for length in (1, 8, 16, 30):
        shares = synthesiser(length * texts[:50], length * texts, torch.arange(10, 510).view(50, 10), generator)
        found.append(shares.amax(1).mean().item())
    assert found == sorted(found) and 0.1 < found[0] < 0.12 and found[1] > 0.15 and found[3] > 0.4


def test_s1_text_vectors_enter_the_mixture_with_length_one(texts: str) -> None:
    part = contrast(texts)
    bound(part)
    assert part.texts is not None and part.texts.dtype == torch.float16
    torch.testing.assert_close(part.texts.float().norm(dim=1), torch.ones(len(part.texts)), atol=2e-3, rtol=0)


def slow_shares(synthesiser: Synthesiser, own: Tensor, near: Tensor) -> Tensor:
    """Equations 6 and 7 as written: (B, k) of ``own`` (B, H) and ``near`` (B, k, H)."""
    rows = []
    for query, neighbours in zip(own, near, strict=True):
        projected = synthesiser.project @ query
        pairs = [torch.cat([projected, synthesiser.project @ one]) for one in neighbours]
        rows.append(torch.stack([F.leaky_relu(synthesiser.attention[0] @ pair, 0.2) for pair in pairs]).softmax(0))
    return torch.stack(rows)


@pytest.mark.parametrize("neighbours_grad", [True, False])
def test_check_06_gradients_reach_what_is_learned(texts: str, neighbours_grad: bool) -> None:
    part = contrast(texts, intra=0.0, neighbours_grad=neighbours_grad)
    model, split = bound(part)
    before = {name: value.clone() for name, value in part.named_buffers()}
    optimizer = torch.optim.Adam(model.parameters())
    part(step_of(model, split))["cross"].backward()
    for name, value in model.named_parameters():
        assert value.grad is not None and bool(value.grad.any()), name
    optimizer.step()
    assert set(before) == {"texts", "nearest", "keys"}
    for name, value in part.named_buffers():
        assert not value.requires_grad and torch.equal(value, before[name])


@pytest.mark.parametrize("neighbours_grad", [True, False])
def test_check_06_neighbours_pass_gradient_on_unless_told_not_to(texts: str, neighbours_grad: bool) -> None:
    part = contrast(texts, intra=0.0, neighbours_grad=neighbours_grad)
    model, split = bound(part)
    step = step_of(model, split)
    step.encoded.__dict__["user"] = step.encoded.user.detach()  # what is left are the neighbours
    part(step)["cross"].backward()
    assert all((value.grad is not None) == neighbours_grad for value in model.encoder.parameters())


def test_check_07_every_query_orders_a_set_of_neighbours_alike() -> None:
    torch.manual_seed(1)
    synthesiser = Synthesiser(WIDTH, 4, dropout=0.0)
    own, near = torch.randn(20, WIDTH), torch.randn(8, WIDTH)
    shares = synthesiser(own, near, torch.arange(8).expand(20, 8), torch.Generator())
    expected = (near @ (synthesiser.attention[0, 4:] @ synthesiser.project)).argsort()
    assert (shares.argsort(1) == expected).all()


@pytest.mark.parametrize("pool", ["user", "prefix"])
@pytest.mark.parametrize("own_pass", [False, True])
@pytest.mark.parametrize("cross_loss", ["ntxent", "infonce"])
def test_check_08_terms_equal_the_equations(texts: str, pool: str, own_pass: bool, cross_loss: str) -> None:
    part = contrast(texts, pool=pool, own_pass=own_pass, cross_loss=cross_loss, temperature=0.7, cross=0.3, intra=0.2)
    model, split = bound(part)
    model.eval()
    step = step_of(model, split, 6)
    terms = part(step)
    rows = Histories.of(split.train, pool, LENGTH)
    wanted = step.batch.users if pool == "user" else step.batch.events
    table = part.nearest
    assert table is not None and part.texts is not None and part.synthesiser is not None
    anchors, mixed = step.encoded.user, []
    for key in wanted.tolist():
        own = int(np.flatnonzero((rows.users if pool == "user" else rows.events) == key)[0])
        near = table[own]
        states = torch.stack([model.encode(rows.batch(np.array([int(row)]))).user[0] for row in near])
        vectors = part.texts.float()
        mixed.append(slow_shares(part.synthesiser, vectors[own][None], vectors[near][None])[0] @ states)
    positives = torch.stack(mixed)
    if cross_loss == "ntxent":
        expected = naive_nt_xent(anchors, positives, 0.7)
    else:
        logits = torch.stack([torch.stack([a @ p for p in positives]) for a in anchors]) / 0.7
        expected = -torch.stack([logits[q].log_softmax(0)[q] for q in range(len(logits))]).mean()
    torch.testing.assert_close(terms["cross"], 0.3 * expected, rtol=1e-4, atol=1e-5)
    random = step.generator("SemanticContrast")
    assert part.similar is not None
    first, second = (model.encode(substituted(step.batch, part.similar, 0.2, random)).user for _ in range(2))
    torch.testing.assert_close(terms["intra"], 0.2 * naive_nt_xent(first, second, 0.7), rtol=1e-4, atol=1e-5)


def test_check_08_one_direction_by_hand(texts: str) -> None:
    part = contrast(texts, cross_loss="infonce", cross=1.0)
    eye, index = torch.eye(3), torch.arange(3)[:, None]
    model, split = bound(part)
    step = step_of(model, split, 3)
    found = part._cross(step, eye, torch.arange(3), torch.eye(3) * 2, torch.ones(3, 1), index)
    # each anchor scores 2 with its own positive and 0 with the two others: -log(e^2 / (e^2 + 2))
    assert found.item() == pytest.approx(np.log(np.exp(2) + 2) - 2, abs=1e-6)


@pytest.mark.parametrize("by", [["target"], ["user", "target"]])
def test_check_08_hidden_pairs_are_no_negatives(texts: str, by: list[str]) -> None:
    part = contrast(texts, hide=by, attention_dropout=0.0)
    model, split = bound(part)
    step = step_of(model, split, 6)
    assert step.batch.targets is not None
    alike = replace(step, batch=step.batch.replace(targets=(step.batch.targets > 0).long()))  # one target for all
    terms = part(alike)
    assert all(value.item() == pytest.approx(0.0, abs=1e-6) for value in terms.values())
    assert all(value.item() > 0.01 for value in part(step).values())


def test_check_09_more_padding_changes_nothing(texts: str) -> None:
    part = contrast(texts, intra=0.0)
    model, split = bound(part, encoder=rs.SASRec(DIM, 1, 1, 0.0, LENGTH + 3))
    step = step_of(model, split)
    assert step.batch.targets is not None
    wider = {name: F.pad(getattr(step.batch, name), (0, 3)) for name in ("ids", "targets")}
    padded = Step(step.batch.replace(**wider, times=None), seed=4, items=model.items, encode=model.encode)
    plain = Step(step.batch.replace(times=None), seed=4, items=model.items, encode=model.encode)
    torch.testing.assert_close(part(padded), part(plain))


def test_check_10_a_loaded_model_recommends_without_tables_or_vectors(texts: str, tmp_path: Path) -> None:
    split = toy_split()
    model = recommender(contrast(texts, cache=True))
    rs.fit(model, split, epochs=1, batch_size=16, progress=False, folder=tmp_path / "run")
    shutil.rmtree(texts)
    shutil.rmtree(tmp_path / "cache")
    loaded = rs.load_run(tmp_path / "run")
    extra = [name for name in loaded.tensors() if name.startswith("auxiliaries")]
    assert sorted(extra) == ["auxiliaries.0.synthesiser.attention", "auxiliaries.0.synthesiser.project"]
    users = [["i1", "i2", "i4"], ["i9"]]
    np.testing.assert_allclose(loaded.scores(users), model.scores(users), rtol=1e-5)
    plain = rs.Recommender(rs.IdItems(DIM), rs.SASRec(DIM, 1, 1, 0.0, LENGTH), rs.FullSoftmax())
    plain.bind(Context(split.num_items, split.items))
    plain.load_tensors({name: value for name, value in loaded.tensors().items() if name not in extra})
    np.testing.assert_array_equal(plain.scores(users), loaded.scores(users))
    batch = toy_batch((3, 2))
    with pytest.raises(ValueError, match="fit"):
        loaded.loss(Step(loaded.prepare(batch, Step(batch))))


def test_check_11_padding_is_never_recommended(texts: str) -> None:
    # That full ranking equals a slow rank is shown for all recommenders in tests/eval/test_ranking.py.
    model, _ = bound(contrast(texts))
    users = [[f"i{row}"] for row in range(1, NUM_ITEMS + 1)]
    best = model.recommend(users, k=NUM_ITEMS, exclude="none")
    assert (np.sort(best.rows, axis=1) == np.arange(1, NUM_ITEMS + 1)).all()


def clustered(tmp_path: Path) -> tuple[Split, str]:
    """Short histories that stay within a group of items; the texts say which group an item is of."""
    groups, size, users = 8, 12, 80
    rng = np.random.default_rng(5)
    lengths = rng.integers(4, 7, users)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    group = np.repeat(rng.integers(0, groups, users), lengths)
    items = group * size + rng.integers(0, size, offsets[-1]) + 1
    prepared = Prepared(items.astype(np.int32), offsets, groups * size)
    names = Vocabulary(np.arange(1, groups * size + 1), 1)
    split = Split.of(prepared, LeaveLast(), names, Vocabulary(np.arange(users), 0), name="clustered")
    vectors = np.repeat(np.eye(groups), size, 0) + rng.normal(size=(groups * size, groups)) * 0.05
    Vectors.of(names.ids, vectors).save(tmp_path / "clusters")
    return split, str(tmp_path / "clusters")


def test_check_12_shuffled_semantics_lose_the_gain(tmp_path: Path) -> None:
    split, folder = clustered(tmp_path)

    def ndcg(**more: Any) -> float:
        part = contrast(folder, k=6, share=0.5, **more)
        model = recommender(part, rs.SASRec(DIM, 1, 1, 0.2, LENGTH))
        rs.fit(model, split, epochs=15, batch_size=32, learning_rate=5e-3, patience=15, progress=False, seed=1)
        return rs.evaluate(model, split.test, k=10, metrics=["ndcg"], progress=False).mean("ndcg@10")

    plain = ndcg(cross=0.0, intra=0.0)
    gain = ndcg(cross=0.3, intra=0.3) - plain
    control = ndcg(cross=0.3, intra=0.3, shuffle=True) - plain
    assert gain > 0.03
    assert control < 0.5 * gain


def test_check_13_tables_are_kept_by_what_decides_them(
    tmp_path: Path, texts: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    searches: list[str] = []
    search = retrieval.nearest_rows

    def counted(*arguments: Any, **more: Any) -> Any:
        searches.append(more["label"])
        return search(*arguments, **more)

    monkeypatch.setattr(retrieval, "nearest_rows", counted)

    def searched(**more: Any) -> int:
        """Tables made anew for these settings."""
        searches.clear()
        folder = more.pop("vectors", texts)
        bound(contrast(folder, cache=True, **more), more.pop("split", None))
        return len(set(searches))

    assert searched() == 2
    assert searched() == 0
    assert searched(vectors=saved(tmp_path / "other", model="two")) == 2  # another name, the same numbers
    assert searched(vectors=saved(tmp_path / "third", seed=4)) == 2
    assert searched(k=4) == 2
    assert searched(shuffle=True) == 2
    for change in ({"pool": "prefix"}, {"window": "recent"}, {"max_length": 4}, {"exclude_twins": False}):
        assert searched(**change) == 1, change  # the items' table is the same
        assert searched(**change) == 0, change
    assert searched(temperature=0.5, share=0.3) == 0
    searches.clear()
    bound(contrast(texts, cache=True), toy_split(seed=1))
    assert len(set(searches)) == 1  # other training data, the same items


def test_check_14_plugs_into_a_gru(texts: str) -> None:
    encoder = GRU4Rec(DIM, 12, dropout=0.1, max_length=LENGTH)
    model = recommender(contrast(texts), encoder)
    fitted = rs.fit(model, toy_split(), epochs=2, batch_size=16, progress=False)
    assert {"SemanticContrast0.cross", "SemanticContrast0.intra"} <= set(fitted.history[0]["terms"])
    check_auxiliary(
        contrast(texts, max_length=8),
        rs.Recommender(rs.IdItems(16), GRU4Rec(16, 12, dropout=0.0, max_length=8), rs.FullSoftmax()),
    )


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"pool": "prefix", "exclude_same_user": False, "exclude_twins": False, "own_pass": True},
        {"cross": 0.0, "exact_share": True},
        {"intra": 0.0, "window": "recent", "cross_loss": "infonce"},
        {"hide": ["target", "user"], "shuffle": True, "neighbours_grad": False},
    ],
)
def test_semantic_contrast_is_an_auxiliary(texts: str, more: dict[str, Any]) -> None:
    check_auxiliary(contrast(texts, max_length=8, **more))


@pytest.mark.parametrize(("train", "windows"), [("all", "last"), ("all", "sliding"), ("last", "last")])
def test_training_finds_the_anchors_of_every_row(texts: str, train: str, windows: str) -> None:
    part = contrast(texts, pool="prefix", max_length=3)
    targets = rs.NextItem() if train == "all" else LastItem()
    model = recommender(part, rs.SASRec(DIM, 1, 1, 0.0, 3), targets=targets)
    located: list[int] = []
    locate = part._locate
    part._locate = lambda batch: located.append(len(locate(batch)[1]) - len(batch)) or locate(batch)  # type: ignore[method-assign, func-returns-value]
    rs.fit(model, toy_split(), epochs=1, batch_size=16, progress=False, windows=windows)
    assert located and not any(located)


def test_items_without_text_are_counted_and_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = saved(tmp_path / "few", missing=tuple(range(1, 13)))
    part = contrast(folder)
    model, split = bound(part)
    assert "12 of 30" in capsys.readouterr().err
    assert part.counts["items without a text vector"] == 12
    assert part.counts["histories without neighbours"] > 0
    assert part.similar is not None and part.nearest is not None
    assert (part.similar[:13] == 0).all() and (part.similar[13:] > 12).all()
    _, anchors = part._locate(step_of(model, split, 40).batch)
    none = int(part.counts["histories without neighbours"])
    assert len(anchors) == 40 - none
    assert part(step_of(model, split, 40))["cross"].isfinite()
    alone = np.flatnonzero(part.nearest[:, 0].numpy() < 0)
    step = step_of(model, split, 40)
    only = step.batch.select(torch.as_tensor(alone))
    terms = part(Step(only, items=model.items, encode=model.encode))
    assert terms["cross"].item() == 0.0
    terms["cross"].backward()


@pytest.mark.parametrize("more", [{}, {"own_pass": True}, {"hide": "user"}, {"neighbours_grad": False}])
def test_the_spare_row_of_a_process_without_rows_is_contrasted_with_nothing(
    texts: str, more: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    part = contrast(texts, **more)
    model, split = bound(part)
    seen: list[int] = []
    loss = semantic.nt_xent
    monkeypatch.setattr(
        semantic, "nt_xent", lambda first, *rest, **by: seen.append(len(first)) or loss(first, *rest, **by)
    )
    terms = part(replace(step_of(model, split, 1), share=0.0))
    assert seen == [0, 0]  # as many terms as in the processes that have rows, which wait for this one
    sum(terms.values(), torch.zeros(())).backward()
    assert all(value.item() == 0 for value in terms.values())


def test_rows_without_input_take_no_part(texts: str) -> None:
    part = contrast(texts, share=0.0)  # views that change nothing, so that fewer rows draw the same
    model, split = bound(part)
    model.eval()
    step = step_of(model, split, 6)
    batch, kept = step.batch, torch.tensor([0, 1, 3, 4, 5])
    assert batch.targets is not None
    emptied = (torch.arange(6) != 2).long()
    less = batch.replace(ids=batch.ids * emptied[:, None], lengths=batch.lengths * emptied)
    less = less.replace(targets=batch.targets * emptied[:, None])
    found, expected = (part(Step(one, items=model.items, encode=model.encode)) for one in (less, batch.select(kept)))
    torch.testing.assert_close(found, expected)


def test_a_prefix_pool_needs_to_know_the_events(texts: str) -> None:
    part = contrast(texts, pool="prefix")
    model, split = bound(part)
    step = step_of(model, split)
    with pytest.raises(ValueError, match="events"):
        part(Step(step.batch.replace(events=None), items=model.items, encode=model.encode))


def test_report_shows_neighbours_by_title(texts: str) -> None:
    part = contrast(texts)
    model, split = bound(part)
    sections = part.sections(model, split)
    counts, lines = sections.values()
    assert counts["training histories searched"] == 40 and counts["histories without neighbours"] == 0
    assert len(lines) == 5 and set(lines[0]) == {"history", "neighbour 1", "neighbour 2", "neighbour 3"}
    pool = Histories.of(split.train, "user", LENGTH)
    assert split.item_text is not None
    assert lines[0]["history"] == "; ".join(split.item_text["title"][histories(pool)[0]])
    assert SemanticContrast(cross=0.0, intra=0.0).sections(model, split) == {}


def test_user_vectors_describe_the_rows_of_the_pool(tmp_path: Path, texts: str) -> None:
    array = np.random.default_rng(7).normal(size=(40, 9)).astype(np.float32)
    Vectors.of(np.arange(40)[::-1].copy(), array[::-1].copy()).save(tmp_path / "users")
    part = contrast(texts, users=str(tmp_path / "users"))
    assert part.text_dim == 9
    split = toy_split()
    given: Any = SimpleNamespace(**{**vars(context(split)), "users": None})
    with pytest.raises(ValueError, match="vocabulary"):
        part.bind(given)
    given.users = split.users
    part.bind(given)
    pool = Histories.of(split.train, "user", LENGTH)
    expected = history_neighbours(array[pool.users], 3, [pool.users, pool.twins()])
    assert part.nearest is not None and (part.nearest.numpy() == expected).all()


@pytest.mark.parametrize(
    ("call", "word"),
    [
        (lambda texts: contrast(texts, pool="session"), "prefix"),
        (lambda texts: contrast(texts, window="max"), "recent"),
        (lambda texts: contrast(texts, cross_loss="triplet"), "infonce"),
        (lambda texts: contrast(texts, share=1.5), "share"),
        (lambda texts: contrast(texts, cross=-0.1), "cross"),
        (lambda texts: contrast(texts, attention_dropout=1.0), "dropout"),
        (lambda texts: contrast(texts, temperature=0.0), "temperature"),
        (lambda texts: contrast(texts, hide=["item"]), "target"),
        (lambda texts: contrast(texts, users=texts, pool="prefix"), "user"),
        (lambda texts: contrast(""), "embed"),
        (lambda texts: bound(contrast(texts, k=NUM_ITEMS)), "k="),
        (lambda texts: bound(contrast(texts, k=40, intra=0.0)), "k="),
        (lambda texts: bound(contrast(texts, text_dim=WIDTH + 1)), "text_dim"),
        (lambda texts: Histories.of(toy_split().train, "sessions"), "prefix"),
        (lambda texts: Histories.of(toy_split().train, "user", 0), "max_length"),
    ],
)
def test_bad_arguments_are_refused(texts: str, call: Callable[[str], Any], word: str) -> None:
    with pytest.raises(ValueError, match=word):
        call(texts)


def test_missing_vectors_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        contrast(str(tmp_path / "nowhere"))
    part = contrast(str(tmp_path / "nowhere"), text_dim=WIDTH)  # as when a saved model is built
    part.bind(Context(NUM_ITEMS))
    with pytest.raises(FileNotFoundError):
        bound(part)


def test_a_run_is_not_resumed_with_other_text_vectors(tmp_path: Path) -> None:
    def fit(seed: int, epochs: int) -> None:
        array = np.random.default_rng(seed).normal(size=(NUM_ITEMS, WIDTH)).astype(np.float32)
        shutil.rmtree(tmp_path / "texts", ignore_errors=True)
        Vectors.of([f"i{row}" for row in range(1, NUM_ITEMS + 1)], array).save(tmp_path / "texts")
        part = SemanticContrast(vectors=str(tmp_path / "texts"), k=3, dim=4, max_length=LENGTH, cache=False)
        model = rs.Recommender(rs.IdItems(8), rs.SASRec(8, 1, 1, 0.0, LENGTH), rs.FullSoftmax(), auxiliaries=[part])
        rs.fit(model, toy_split(), epochs=epochs, batch_size=16, progress=False, folder=tmp_path / "run")

    fit(1, 1)
    fit(1, 2)
    with pytest.raises(ValueError, match="sources"):
        fit(2, 3)


def test_without_weights_no_vectors_are_read() -> None:
    assert SemanticContrast(vectors="no such folder", cross=0.0, intra=0.0).sources() == ""
