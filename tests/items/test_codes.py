"""Items by their semantic ids: sums over codes by hand, learning, saving, going on, adding; RPG's heads and scores."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

import recsys as rs
from recsys.data.split import Split
from recsys.encoders.parallel import ParallelHeads
from recsys.errors import DataError
from recsys.ids.vectors import Vectors
from recsys.items.codes import CodeItems
from recsys.items.parallel import ParallelItems
from recsys.objectives.code_softmax import CodeSoftmax
from recsys.protocols import Change, Context, Encoded
from recsys.semantic_ids.table import SemanticIds
from recsys.testing import NUM_ITEMS, check_items, toy_batch, toy_context
from tests.cycles import cycles

DIM, LEVELS, SIZE = 8, 3, 5


def saved(folder: Path, num_items: int = NUM_ITEMS, seed: int = 0, levels: int = LEVELS, size: int = SIZE) -> str:
    """A folder of random codes for the items of the toy context, or of a split with as many."""
    rng = np.random.default_rng(seed)
    vocabulary = toy_context().vocabulary
    assert vocabulary is not None
    ids = vocabulary.ids[:num_items]
    codes = rng.integers(0, size, (num_items, levels))
    SemanticIds.of(ids, codes, [size] * levels).save(folder)
    return str(folder)


def bound(items: CodeItems) -> CodeItems:
    items.bind(toy_context())
    return items


def test_vectors_are_sums_over_codes(tmp_path: Path) -> None:
    items = bound(CodeItems(DIM, saved(tmp_path / "ids")))
    ids = torch.tensor([[1, 2], [0, 1]])
    for verb, table in ((items.embed, items.tokens), (items.output, items.prototypes)):
        found = verb(ids)
        for place in product(range(2), range(2)):
            row = int(ids[place])
            wanted = torch.zeros(DIM)
            for level in range(LEVELS) if row else ():
                wanted = wanted + table[1 + level * SIZE + int(items.codes[row, level])]
            assert torch.allclose(found[place], wanted, atol=1e-6)
    assert not torch.equal(items.tokens, items.prototypes)
    states = torch.randn(4, DIM)
    summed = sum(items.code_logits(states, level)[:, items.codes[1:, level]] for level in range(LEVELS))
    assert torch.allclose(items.scores(states), summed, atol=1e-5)


@pytest.mark.parametrize("tied", [True, False])
def test_is_an_item_table(tmp_path: Path, tied: bool) -> None:
    check_items(CodeItems(DIM, saved(tmp_path / "ids"), tied=tied))


def test_an_unknown_item_and_another_width_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no semantic ids"):
        bound(CodeItems(DIM, saved(tmp_path / "ids", NUM_ITEMS - 1)))
    with pytest.raises(ValueError, match="codes an item"):
        bound(ParallelItems(DIM, LEVELS + 1, saved(tmp_path / "all")))
    with pytest.raises(ValueError, match="folder"):
        CodeItems(DIM)


def test_refitted_codes_are_another_run_and_are_not_gone_on_with(tmp_path: Path) -> None:
    items = bound(CodeItems(DIM, saved(tmp_path / "ids")))
    before, source = {name: one.clone() for name, one in items.state_dict().items()}, items.sources()
    rows = np.arange(NUM_ITEMS + 1)
    items.carry(before, Change(True, rows, toy_context()))
    SemanticIds.of(toy_context().vocabulary.ids, np.zeros((NUM_ITEMS, LEVELS)), [SIZE] * LEVELS).save(tmp_path / "ids")
    assert items.sources() != source
    again = bound(CodeItems(DIM, str(tmp_path / "ids")))
    with pytest.raises(ValueError, match="not those that the model was trained on"):
        again.carry(before, Change(False, rows, toy_context()))


def test_going_on_keeps_the_vectors_of_codes_where_the_last_level_grew(tmp_path: Path) -> None:
    items = bound(CodeItems(DIM, saved(tmp_path / "ids")))
    before = {name: one.clone() for name, one in items.state_dict().items()}
    ids = toy_context().vocabulary.ids
    SemanticIds.of(ids, items.codes[1:].numpy(), [SIZE, SIZE, SIZE + 2]).save(tmp_path / "grown")
    grown = bound(CodeItems(DIM, str(tmp_path / "grown")))
    grown.carry(before, Change(False, np.arange(NUM_ITEMS + 1), toy_context()))
    for verb in ("embed", "output"):
        rows = torch.arange(1, NUM_ITEMS + 1)
        assert torch.equal(getattr(grown, verb)(rows), getattr(items, verb)(rows))


def trained(folder: Path, split: Split, objective: torch.nn.Module) -> rs.Recommender:
    """A recommender whose items are codes, every item its own pair."""
    width = math.isqrt(split.num_items - 1) + 1
    number = np.arange(split.num_items)
    SemanticIds.of(split.items.ids, np.stack([number % width, number // width], 1)).save(folder)
    model = rs.Recommender(
        rs.CodeItems(16, str(folder)), rs.SASRec(16, num_layers=1, dropout=0.0, max_length=8), objective
    )
    rs.fit(model, split, epochs=40, learning_rate=0.02, batch_size=64, validate_every=0, progress=False)
    return model


@pytest.mark.parametrize("objective", [CodeSoftmax(), rs.FullSoftmax()])
def test_rpg_14_20_learns_cycles_and_is_served_through_an_index(tmp_path: Path, objective: torch.nn.Module) -> None:
    split = cycles()
    model = trained(tmp_path / "ids", split, objective)
    report = rs.evaluate(model, split.test, progress=False, metrics=["hr@1"], exclude="none")
    assert report.mean("hr@1") > 0.95
    bundle = rs.export(model, tmp_path / "bundle", index="exact")
    loaded = rs.Bundle.load(tmp_path / "bundle")
    histories = [[raw] for raw in split.items.ids[:5].tolist()]
    assert bundle.recommend(histories, 3).items == model.recommend(histories, 3).items
    assert loaded.recommend(histories, 3).items == model.recommend(histories, 3).items


def test_items_are_added_by_their_codes(tmp_path: Path) -> None:
    split = cycles()
    model = trained(tmp_path / "ids", split, CodeSoftmax())
    known = SemanticIds.load(tmp_path / "ids")
    twin = "twin of the first"
    more = SemanticIds.of([*split.items.ids.tolist(), twin], [*known.codes.tolist(), known.codes[0].tolist()])
    with pytest.raises(DataError, match="no codes"):
        model.add_items([twin])
    model.add_items([twin], vectors=more)
    last = split.items.ids[0]
    found = model.scores([[split.items.ids[1]]])[0]
    assert found[model.vocabulary.rows([twin])[0] - 1] == found[model.vocabulary.rows([last])[0] - 1]


def brute_loss(items: CodeItems, states: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    losses = [
        F.cross_entropy(items.code_logits(states, level), items.codes[targets, level], reduction="none")
        for level in range(items.levels)
    ]
    return torch.stack(losses).mean(0)


@pytest.mark.parametrize("heads", [False, True])
def test_rpg_the_loss_is_the_mean_cross_entropy_over_levels(tmp_path: Path, heads: bool) -> None:
    folder = saved(tmp_path / "ids")
    items = bound(ParallelItems(DIM, LEVELS, folder) if heads else CodeItems(DIM, folder))
    batch = rs.NextItem().train(toy_batch((4, 2, 5)))
    states = torch.randn(int(batch.lengths.sum()), items.dim, requires_grad=True)
    encoded = Encoded(batch, states)
    hidden, targets, weights = encoded.at_targets(batch)
    wanted = (brute_loss(items, hidden, targets) * weights).sum()
    found = CodeSoftmax()(encoded, batch, items, torch.Generator())
    assert torch.allclose(found, wanted, rtol=1e-5)
    one, other = (torch.autograd.grad(loss, [states, items.tokens], allow_unused=True) for loss in (found, wanted))
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(one, other, strict=True) if b is not None)


def test_rpg_14_3_the_loss_begins_at_the_value_of_random_heads(tmp_path: Path) -> None:
    dim, size, levels, temperature = 128, 256, 16, 0.07
    folder = saved(tmp_path / "ids", levels=levels, size=size)
    items = bound(ParallelItems(dim, levels, folder, temperature))
    head = ParallelHeads(rs.SASRec(dim, num_layers=1, dropout=0.0, max_length=8), levels)
    torch.manual_seed(0)
    head.bind(toy_context())
    batch = rs.NextItem().train(toy_batch((7, 6, 8, 5)))
    encoded = head(batch, items)
    loss = CodeSoftmax()(encoded, batch, items, torch.Generator()) / encoded.at_targets(batch)[2].sum()
    assert abs(float(loss) - (math.log(size) + 1 / (2 * dim * temperature**2))) < 0.15


def test_rpg_14_4_looked_up_scores_equal_products_and_sums_of_log_probabilities(tmp_path: Path) -> None:
    items = bound(ParallelItems(DIM, LEVELS, saved(tmp_path / "ids")))
    users = F.normalize(torch.randn(6, LEVELS, DIM), dim=2).flatten(1)
    with torch.no_grad():
        found = items.scores(users)
        products = users @ items.output(torch.arange(1, NUM_ITEMS + 1)).T
        assert torch.allclose(found, products, atol=1e-4)
        logs = [items.code_logits(users, level).log_softmax(1) for level in range(LEVELS)]
        summed = sum(one[:, items.codes[1:, level]] for level, one in enumerate(logs))
        assert torch.equal(found.double().argsort(1), summed.double().argsort(1)) or torch.allclose(
            (found - summed).var(1), torch.zeros(6), atol=1e-8
        )
        values, rows = items.topk(users, 3)
        assert torch.allclose(values, found.gather(1, rows - 1))


def test_rpg_14_5_the_order_of_levels_does_not_matter(tmp_path: Path) -> None:
    items = bound(CodeItems(DIM, saved(tmp_path / "ids")))
    order = [2, 0, 1]
    other = CodeItems(DIM, saved(tmp_path / "other", seed=1))
    SemanticIds.of(toy_context().vocabulary.ids, items.codes[1:, order].numpy(), [SIZE] * LEVELS).save(
        tmp_path / "other"
    )
    bound(other)
    with torch.no_grad():
        for name in ("tokens", "prototypes"):
            for place, level in enumerate(order):
                getattr(other, name)[other.span(place)] = getattr(items, name)[items.span(level)]
        users = torch.randn(4, DIM)
        assert torch.allclose(items.scores(users), other.scores(users), atol=1e-6)


def test_rpg_14_6_equal_codes_have_equal_scores(tmp_path: Path) -> None:
    codes = np.random.default_rng(0).integers(0, SIZE, (NUM_ITEMS, LEVELS))
    codes[7] = codes[2]
    SemanticIds.of(toy_context().vocabulary.ids, codes, [SIZE] * LEVELS).save(tmp_path / "ids")
    users = torch.randn(5, DIM)
    with torch.no_grad():
        found = bound(CodeItems(DIM, str(tmp_path / "ids"))).scores(users)
    assert torch.equal(found[:, 7], found[:, 2])


def test_rpg_14_7_one_level_of_all_items_is_a_softmax_over_ids(tmp_path: Path) -> None:
    SemanticIds.of(toy_context().vocabulary.ids, np.arange(NUM_ITEMS)[:, None]).save(tmp_path / "ids")
    items = bound(ParallelItems(DIM, 1, str(tmp_path / "ids"), temperature=0.5))
    batch = rs.NextItem().train(toy_batch((4, 2, 5)))
    encoded = Encoded(batch, F.normalize(torch.randn(int(batch.lengths.sum()), DIM), dim=1))
    hidden, targets, weights = encoded.at_targets(batch)
    logits = hidden @ F.normalize(items.tokens[1:-1], dim=1).T / 0.5
    wanted = (F.cross_entropy(logits, targets - 1, reduction="none") * weights).sum()
    assert torch.allclose(CodeSoftmax()(encoded, batch, items, torch.Generator()), wanted, rtol=1e-5)


def test_rpg_14_8_probabilities_of_all_tuples_add_up_to_one(tmp_path: Path) -> None:
    items = bound(CodeItems(DIM, saved(tmp_path / "ids", levels=2, size=8)))
    state = torch.randn(1, DIM)
    logs = [items.code_logits(state, level).log_softmax(1)[0] for level in range(2)]
    logs = [one.detach() for one in logs]
    total = sum(float((logs[0][a] + logs[1][b]).exp()) for a, b in product(range(8), range(8)))
    assert abs(total - 1) < 1e-5
    seen = {tuple(one) for one in items.codes[1:].tolist()}
    assert sum(float((logs[0][a] + logs[1][b]).exp()) for a, b in seen) <= 1


def test_rpg_14_10_padding_and_company_change_no_state_and_padding_learns_nothing(tmp_path: Path) -> None:
    items = bound(ParallelItems(DIM, LEVELS, saved(tmp_path / "ids")))
    encoder = ParallelHeads(rs.SASRec(DIM, num_layers=1, dropout=0.0, max_length=8), LEVELS)
    encoder.bind(toy_context())
    batch = toy_batch((5, 1, 3))
    wide = toy_batch((5, 1, 3), width=8)
    wide = replace(wide, ids=F.pad(batch.ids, (0, 3)))
    one, other = encoder(batch, items), encoder(wide, items)
    assert torch.allclose(one.user, other.user, atol=1e-6)
    alone = encoder(replace(toy_batch((5,)), ids=batch.ids[:1]), items)
    assert torch.allclose(one.user[:1], alone.user, atol=1e-6)
    one.tokens.square().mul(torch.arange(one.tokens.shape[1])).sum().backward()
    assert items.tokens.grad is not None
    assert not items.tokens.grad[0].any() and items.tokens.grad[1:-1].any()  # token 0 stands for padding


class Largest(TorchDispatchMode):
    """Notes the shapes of all tensors that are made."""

    def __init__(self) -> None:
        super().__init__()
        self.shapes: set[tuple[int, ...]] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        for one in found if isinstance(found, (tuple, list)) else (found,):
            if isinstance(one, torch.Tensor):
                self.shapes.add(tuple(one.shape))
        return found


@pytest.mark.parametrize("targets", [rs.NextItem(), rs.LastItem()])
def test_rpg_14_11_heads_are_made_for_labelled_positions_alone(tmp_path: Path, targets: Any, monkeypatch: Any) -> None:
    """As many rows as there are targets go through the heads, no tensor of heads is longer, and the loss is that of all
    positions."""
    items = bound(ParallelItems(DIM, LEVELS, saved(tmp_path / "ids")))
    encoder = ParallelHeads(rs.SASRec(DIM, num_layers=1, dropout=0.0, max_length=8), LEVELS)
    encoder.bind(toy_context())
    made, heads = [], encoder._heads
    monkeypatch.setattr(encoder, "_heads", lambda hidden: made.append(len(hidden)) or heads(hidden))
    batch = targets.train(toy_batch((7, 3, 6)))
    with Largest() as seen:
        few = CodeSoftmax()(encoder(batch, items), batch, items, torch.Generator())
        few.backward()
    labels, tokens = int((batch.targets > 0).sum()), int(batch.lengths.sum())
    assert labels == tokens or not any(shape[:1] == (tokens,) and shape[-1] == encoder.dim for shape in seen.shapes)
    asked = replace(batch, targets=None)
    with Largest() as seen, torch.no_grad():
        ranked = encoder(asked, items).user
    assert torch.allclose(ranked, encoder(asked.ask_all(), items).user, atol=1e-6)
    assert not any(shape[:1] == (tokens,) and shape[-1] == encoder.dim for shape in seen.shapes)
    made[:] = made[:1]
    assert made == [int((batch.targets > 0).sum())]
    every = CodeSoftmax()(encoder(batch.ask_all(), items), batch, items, torch.Generator())
    assert made[1] == int(batch.lengths.sum()) >= made[0]
    assert torch.allclose(few, every, rtol=1e-6)


def test_rpg_14_12_a_graph_searched_with_all_its_effort_is_exact(tmp_path: Path) -> None:
    """The paper's graph decoding stands for exact scores where there are very many items; here an index does."""
    items = bound(ParallelItems(DIM, LEVELS, saved(tmp_path / "ids")))
    users = F.normalize(torch.randn(6, LEVELS, DIM), dim=2).flatten(1)
    with torch.no_grad():
        vectors, scores = items.output(torch.arange(1, NUM_ITEMS + 1)).numpy(), items.scores(users)
    index = [
        rs.Index.build(vectors, np.arange(NUM_ITEMS), "hnsw", ef_search=effort, progress=False, seed=3)
        for effort in (1, 1, NUM_ITEMS)
    ]
    few, again, every = (one.search(users.numpy(), NUM_ITEMS) for one in index)
    assert np.array_equal(few.ids, again.ids)
    order = scores.sort(1, descending=True)
    assert np.allclose(every.scores, order.values.numpy(), atol=1e-4)
    assert (every.scores[:, 0] >= few.scores[:, 0] - 1e-5).all()


def hits_of_codes(rows: Any, wanted: int, codes: np.ndarray) -> bool:
    """Whether an item with the codes of ``wanted`` is among ``rows``, all that peers look at."""
    return any((codes[row - 1] == codes[wanted - 1]).all() for row in rows)


@pytest.mark.parametrize("unique", [True, False])
def test_rpg_14_13_hits_are_counted_on_items_and_those_on_codes_are_never_fewer(tmp_path: Path, unique: bool) -> None:
    split = cycles()
    number = np.arange(split.num_items)
    codes = np.stack([number % 5, number // (5 if unique else 10)], 1)
    SemanticIds.of(split.items.ids, codes, ordered=False).save(tmp_path / "ids")
    model = rs.Recommender(
        rs.CodeItems(16, str(tmp_path / "ids")), rs.SASRec(16, num_layers=1, dropout=0.0, max_length=8), CodeSoftmax()
    )
    rs.fit(model, split, epochs=40, learning_rate=0.02, batch_size=64, validate_every=0, progress=False)
    report = rs.evaluate(model, split.test, progress=False, metrics=["hr@1"], exclude="none")
    index = np.arange(len(split.test))
    batch, (_, targets) = split.test.batch(index), split.test.targets(index)
    histories = [split.items.raw(row[row > 0]).tolist() for row in batch.ids.numpy()]
    lists = [split.items.rows(one) for one in model.recommend(histories, 1, exclude="none").items]
    by_codes = np.mean([hits_of_codes(rows, want, codes) for rows, want in zip(lists, targets, strict=True)])
    if unique:
        assert report.mean("hr@1") == pytest.approx(by_codes)
    else:  # two items a pair of codes
        assert by_codes > 0.9 and report.mean("hr@1") < 0.7


def test_rpg_14_16_with_codes_of_other_items_at_the_test_nothing_is_found(tmp_path: Path) -> None:
    split = cycles()
    model = trained(tmp_path / "ids", split, CodeSoftmax())
    before = rs.evaluate(model, split.test, progress=False, metrics=["hr@1"], exclude="none").mean("hr@1")
    swapped = model.items.codes[1:][np.random.default_rng(3).permutation(split.num_items)]
    model.items._take(torch.cat([model.items.codes[:1], swapped]), model.items.code_sizes)
    model.items._kept = None
    after = rs.evaluate(model, split.test, progress=False, metrics=["hr@1"], exclude="none").mean("hr@1")
    assert before > 0.95 and after < 0.2


def test_mender_13_10_vectors_begin_as_the_codewords(tmp_path: Path) -> None:
    words = [np.random.default_rng(level).normal(size=(SIZE, DIM)).astype(np.float32) for level in range(2)]
    ids = toy_context().vocabulary.ids
    codes = np.random.default_rng(0).integers(0, SIZE, (NUM_ITEMS, LEVELS))
    SemanticIds.of(ids, codes, [SIZE] * LEVELS, codewords=words).save(tmp_path / "ids")
    for tied in (True, False):
        items = bound(CodeItems(DIM, str(tmp_path / "ids"), tied=tied, start="codewords"))
        for level, word in enumerate(words):
            assert np.array_equal(items.tokens[items.span(level)].detach().numpy(), word)
            assert np.array_equal(items.prototypes[items.span(level)].detach().numpy(), word) == tied
        assert float(items.tokens[items.span(2)].std()) < 0.1  # an appended level has no codewords
    wide = bound(CodeItems(512, str(tmp_path / "ids"), start="codewords"))  # turned by one map
    found, wanted = (
        torch.cat(one) for one in ([wide.tokens[wide.span(i)] for i in (0, 1)], list(map(torch.from_numpy, words)))
    )
    assert torch.linalg.matrix_rank(found.detach()) == DIM
    assert torch.corrcoef(torch.stack([(found @ found.T).flatten(), (wanted @ wanted.T).flatten()]))[0, 1] > 0.95


def test_codewords_to_begin_with_are_needed(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="without codewords"):
        bound(CodeItems(DIM, saved(tmp_path / "ids"), start="codewords"))
    with pytest.raises(ValueError, match="start must be"):
        CodeItems(DIM, "ids", start="codebooks")


def test_a_softmax_per_code_needs_codes() -> None:
    items = rs.IdItems(DIM)
    items.bind(Context(num_items=5))
    batch = rs.NextItem().train(toy_batch((3,)))
    with pytest.raises(TypeError, match="CodeItems"):
        CodeSoftmax()(Encoded(batch, torch.zeros(2, DIM)), batch, items, torch.Generator())


def test_rpg_with_heads_learns_and_is_exported(tmp_path: Path) -> None:
    split = cycles()
    number = np.arange(split.num_items)
    SemanticIds.of(split.items.ids, np.stack([number % 5, number // 5], 1), ordered=False).save(tmp_path / "ids")
    encoder = ParallelHeads(rs.SASRec(16, num_layers=1, dropout=0.0, max_length=8), 2)
    model = rs.Recommender(ParallelItems(16, 2, str(tmp_path / "ids")), encoder, CodeSoftmax())
    rs.fit(model, split, epochs=40, learning_rate=0.01, batch_size=64, validate_every=0, progress=False)
    assert rs.evaluate(model, split.test, progress=False, metrics=["hr@1"], exclude="none").mean("hr@1") > 0.95
    rs.export(model, tmp_path / "bundle", index="exact")
    histories = [[raw] for raw in split.items.ids[:5].tolist()]
    assert rs.Bundle.load(tmp_path / "bundle").recommend(histories, 3).items == model.recommend(histories, 3).items


def test_rpg_with_heads_reads_masks(tmp_path: Path) -> None:
    split = cycles(users=20)
    number = np.arange(split.num_items)
    SemanticIds.of(split.items.ids, np.stack([number % 5, number // 5], 1), ordered=False).save(tmp_path / "ids")
    encoder = ParallelHeads(rs.BERT4Rec(8, num_layers=1, max_length=6), 2)
    model = rs.Recommender(ParallelItems(8, 2, str(tmp_path / "ids")), encoder, CodeSoftmax(), rs.MaskedItems())
    rs.fit(model, split, epochs=1, validate_every=0, progress=False)
    assert len(model.recommend([split.items.ids[:3].tolist()], 4).items[0]) == 4


def test_a_sum_takes_in_items_by_the_codes_and_texts_that_each_table_reads(tmp_path: Path) -> None:
    split = cycles(users=20)
    raw, number = split.items.ids.tolist(), np.arange(split.num_items)
    SemanticIds.of(raw, np.stack([number % 5, number // 5], 1)).save(tmp_path / "ids")
    table = np.random.default_rng(0).normal(size=(22, 4)).astype(np.float32)
    Vectors.of([*raw, "new", "newer"], table).save(tmp_path / "texts")
    texts = rs.TextItems(DIM, str(tmp_path / "texts"))
    model = rs.Recommender(
        rs.SumItems([texts, CodeItems(DIM, str(tmp_path / "ids"))]), rs.SASRec(DIM), rs.FullSoftmax()
    )
    rs.fit(model, split, epochs=1, validate_every=0, progress=False)
    model.add_items(["new"], SemanticIds.of(["new"], [[4, 3]]))
    codes = model.items.tables[1]
    assert codes.codes[21].tolist() == [4, 3] and model.recommend([["new"]], k=3).items
    with pytest.raises(ValueError, match="other codes"):  # of what the model took in
        model.add_items(["newer"], SemanticIds.of(["new", "newer"], [[4, 2], [0, 0]]))
    assert model.num_items == model.items.num_items == codes.num_items == 21


def test_a_table_of_codes_is_named_by_its_folder(tmp_path: Path) -> None:
    ids = SemanticIds.load(saved(tmp_path / "ids"))
    with pytest.raises(TypeError, match="path"):
        CodeItems(DIM, ids)  # type: ignore[arg-type]
