"""Item tables: text, sums, frozen vectors; what is kept between batches and what a saved model needs."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from recsys.encoders.bert4rec import BERT4Rec
from recsys.encoders.gru4rec import GRU4Rec
from recsys.encoders.sasrec import SASRec
from recsys.errors import DataError
from recsys.eval.evaluate import evaluate
from recsys.hooks import call
from recsys.ids.vectors import Vectors
from recsys.ids.vocabulary import Vocabulary
from recsys.items.frozen import FrozenItems
from recsys.items.ids import IdItems
from recsys.items.local import LocalItems
from recsys.items.sums import SumItems
from recsys.items.text import TextItems
from recsys.negatives.uniform import UniformNegatives
from recsys.objectives.bce import BCE
from recsys.objectives.bpr import BPR
from recsys.objectives.gbce import GBCE
from recsys.objectives.sampled import SampledSoftmax
from recsys.objectives.softmax import FullSoftmax
from recsys.protocols import Context, Encoded, Step
from recsys.recommenders.composed import Recommender
from recsys.runs.read import load_run
from recsys.serve.bundle import Bundle, export
from recsys.targets.masked_items import MaskedItems
from recsys.targets.next_item import NextItem
from recsys.testing import NUM_ITEMS, check_encoder, check_items, toy_batch, toy_context, toy_split
from recsys.train.fit import fit

DIM, WIDTH = 16, 12
IDS = [f"i{row}" for row in range(1, NUM_ITEMS + 1)]
MISSING = ["i3", "i17"]


def save_vectors(path: Path, ids: list[str], width: int = WIDTH, seed: int = 0) -> str:
    values = np.random.default_rng(seed).normal(size=(len(ids), width))
    return str(Vectors.of(ids, values, of="items", model="toy").save(path).path)


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_vectors(tmp_path_factory.mktemp("vectors") / "full", IDS)


@pytest.fixture(scope="module")
def holed(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_vectors(tmp_path_factory.mktemp("vectors") / "holed", [one for one in IDS if one not in MISSING])


def bound(items: Any, context: Context | None = None, seed: int = 0) -> Any:
    torch.manual_seed(seed)
    items.bind(toy_context() if context is None else context)
    return items


def whole(items: Any) -> torch.Tensor:
    return items.output(torch.arange(1, items.num_items + 1)).detach()


@pytest.mark.parametrize("project", ["linear", "mlp"])
@pytest.mark.parametrize(
    "more", [{}, {"extra": 2}, {"scale": False}, {"trainable": True}, {"precision": "float16"}, {"normalize": False}]
)
def test_text_items_conform(full: str, holed: str, project: Any, more: dict[str, Any]) -> None:
    check_items(TextItems(DIM, full, project, **more))
    check_items(TextItems(DIM, holed, project, **more))


def test_sums_and_frozen_items_conform(full: str, tmp_path: Path) -> None:
    check_items(SumItems([IdItems(DIM), TextItems(DIM, full)]))
    check_items(SumItems([IdItems(DIM, extra=2), TextItems(DIM, full, "mlp", extra=2)]))
    check_items(FrozenItems(save_vectors(tmp_path / "ids", IDS, DIM)))


@pytest.mark.parametrize("kind", [SASRec, GRU4Rec])
def test_encoders_read_text_tables(full: str, kind: Any) -> None:
    check_encoder(kind(DIM, dropout=0.0, max_length=8), TextItems(DIM, full))
    check_encoder(kind(DIM, dropout=0.0, max_length=8), SumItems([IdItems(DIM), TextItems(DIM, full)]))


def test_a_linear_table_is_the_projection_of_the_normalised_vectors(holed: str) -> None:
    items = bound(TextItems(DIM, holed))
    torch.nn.init.normal_(items.rows.data)
    raw, known = Vectors.load(holed).aligned(toy_context().vocabulary)  # type: ignore[arg-type]
    mean = raw[known].mean(0)
    for row in range(1, NUM_ITEMS + 1):
        text = (raw[row] - mean) / np.linalg.norm(raw[row] - mean)
        expected = items.last.weight @ torch.from_numpy(text) + items.rows[0] if known[row] else items.rows[1]
        torch.testing.assert_close(items.output(torch.tensor([row]))[0], expected, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(items.embed(torch.tensor(row)), expected * DIM**0.5, rtol=1e-4, atol=1e-5)


def test_items_without_a_vector_share_a_learned_row_and_are_counted_once(holed: str, capsys: Any) -> None:
    items = bound(TextItems(DIM, holed))
    assert "2 of 30" in (told := capsys.readouterr().err) and told.count("\n") == 1
    rows = torch.tensor([IDS.index(one) + 1 for one in MISSING])
    assert torch.equal(items.output(rows)[0], items.output(rows)[1])
    items.output(rows).sum().backward()
    assert (
        bool(items.rows.grad[1].all()) and not bool(items.rows.grad[0].any()) and not bool(items.last.weight.grad.any())
    )
    trained = bound(TextItems(DIM, holed, trainable=True))
    trained.output(rows[:1]).sum().backward()
    assert bool(trained.text.grad[rows[0]].any()) and not bool(trained.text.grad[rows[1]].any())


def test_input_only_rows_are_learned_in_every_table_and_never_scored(full: str) -> None:
    ids = torch.tensor([[NUM_ITEMS + 1, NUM_ITEMS + 2]])
    for items in (TextItems(DIM, full, extra=2), SumItems([IdItems(DIM, extra=2), TextItems(DIM, full, extra=2)])):
        bound(items)
        mask, end = items.embed(ids)[0]
        assert not torch.equal(mask, end) and bool(mask.any())
        assert len(whole(items)) == NUM_ITEMS
        (mask - end).sum().backward()
        text = items if isinstance(items, TextItems) else items.tables[1]
        assert bool(text.rows.grad[2:].all()) and not bool(text.rows.grad[:2].any())
    with pytest.raises(ValueError, match="reserve"):
        bound(TextItems(DIM, full)).embed(ids)
    with torch.no_grad(), pytest.raises(ValueError, match="reserve"):
        bound(TextItems(DIM, full)).eval().embed(ids)


def test_the_tables_of_a_sum_get_the_input_only_rows_that_one_was_given(full: str, tmp_path: Path) -> None:
    frozen = FrozenItems(save_vectors(tmp_path / "ids", IDS, DIM))
    items = bound(SumItems([IdItems(DIM, extra=1), TextItems(DIM, full), frozen]))
    assert [table.extra for table in (items, *items.tables)] == [1, 1, 1, 1]
    mask = items.embed(torch.tensor([NUM_ITEMS + 1]))[0]
    assert not torch.equal(mask, items.tables[0].embed(torch.tensor(NUM_ITEMS + 1)))
    mask.sum().backward()
    assert bool(items.tables[1].rows.grad[2:].all()) and bool(frozen.rows.grad.all())  # type: ignore[union-attr]


def test_padding_is_zero_with_and_without_the_kept_table(full: str) -> None:
    items = bound(TextItems(DIM, full, "mlp", extra=1))
    ids = torch.tensor([[0, 4, NUM_ITEMS + 1], [0, 0, 9]])
    trained = items.embed(ids).detach()
    with torch.no_grad():
        kept = items.eval().embed(ids)
    assert not bool(trained[ids == 0].any())
    torch.testing.assert_close(kept, trained)


def test_the_table_is_projected_once_per_evaluation_and_anew_after_a_step(
    full: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    split = toy_split()
    model = model_with(SumItems([IdItems(DIM), TextItems(DIM, full)]))
    model.bind(toy_context())
    text: Any = model.items.tables[1]  # type: ignore[attr-defined]
    sizes: list[int] = []
    project = text._project
    monkeypatch.setattr(text, "_project", lambda rows: (sizes.append(len(rows)), project(rows))[1])
    first = evaluate(model, split.test, memory=400_000, progress=False)
    again = evaluate(model, split.test, memory=400_000, progress=False)
    assert sizes == [NUM_ITEMS] and first.means() == again.means()
    with torch.no_grad():
        text.last.weight.data.mul_(-3.0)  # leaves no trace in the version counter
        text.rows.data[0] += 1.0
    moved = model.item_vectors()
    assert sizes == [NUM_ITEMS, NUM_ITEMS]
    expected = text._project(text.text[1:]) + text.rows[0] + model.items.tables[0].weight[1:]  # type: ignore[attr-defined]
    np.testing.assert_allclose(moved, expected.detach().numpy(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("trainable", [False, True])
def test_evaluation_after_an_optimizer_step_sees_the_new_table(full: str, trainable: bool) -> None:
    model = model_with(TextItems(DIM, full, "mlp", trainable))
    model.bind(toy_context())
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    part = toy_split().test
    for _ in range(3):
        model.eval()
        with torch.inference_mode():
            before = model.score(part.batch(np.arange(4), 8))
        model.train()
        batch = model.prepare(toy_batch((5, 3, 4)), Step(toy_batch((5, 3, 4))))
        sum(model.loss(Step(batch)).values()).backward()  # type: ignore[union-attr]
        optimizer.step()
        optimizer.zero_grad()
        model.eval()
        with torch.inference_mode():
            after = model.score(part.batch(np.arange(4), 8))
        fresh = model.vectors(part.batch(np.arange(4), 8)).detach() @ whole(model.items).T  # gradients on: not kept
        assert not torch.allclose(before, after)
        torch.testing.assert_close(after, fresh, rtol=1e-4, atol=1e-5)


def test_loaded_tensors_replace_a_kept_table(full: str) -> None:
    one, other = (bound(TextItems(DIM, full), seed=seed).eval() for seed in (1, 2))
    with torch.inference_mode():
        first, second = whole(one), whole(other)
        one.load_state_dict(other.state_dict())
        torch.testing.assert_close(whole(one), second)
    model = model_with(bound(TextItems(DIM, full), seed=1))
    model.bind(toy_context())
    model.eval()
    tensors = {name: value.clone() for name, value in model.tensors().items()}
    before = model.item_vectors()
    tensors["items.text"] = -tensors["items.text"]
    model.load_tensors(tensors)
    assert not np.allclose(model.item_vectors(), before) and not torch.allclose(first, second)


@pytest.mark.parametrize("objective", [FullSoftmax(), SampledSoftmax()])
def test_gradients_are_those_of_a_plain_projection(full: str, objective: Any) -> None:
    """Against a table written out as one matrix, through a whole training step; tolerance 1e-5."""

    class Plain(LocalItems):
        def __init__(self, table: TextItems) -> None:
            super().__init__()
            self.dim, self.num_items = table.dim, table.num_items
            own = torch.nn.functional.linear(table.text, table.last.weight) + table.rows[0]
            self.matrix = torch.cat([torch.zeros(1, self.dim), own[1:]])

        def embed(self, ids: torch.Tensor) -> torch.Tensor:
            return self.matrix[ids] * self.dim**0.5

        def output(self, ids: torch.Tensor) -> torch.Tensor:
            return self.matrix[ids]

    items = bound(TextItems(DIM, full))
    encoder = SASRec(DIM, num_layers=1, dropout=0.0, max_length=8)
    encoder.bind(toy_context())
    batch = toy_batch((6, 2, 5))
    batch = batch.replace(targets=batch.ids.flip(1) * batch.mask)

    def gradients(table: Any) -> list[torch.Tensor]:
        items.zero_grad()
        losses = objective(encoder(batch, table), batch, table, torch.Generator().manual_seed(1))
        losses.sum().backward()
        return [value.grad.clone() for value in items.parameters()]

    for ours, theirs in zip(gradients(items), gradients(Plain(items)), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    assert bool(items.last.weight.grad.any())


def test_a_sum_adds_and_passes_refresh_on(full: str) -> None:
    class Made(IdItems):
        def refresh(self, encoder: Any, epoch: int) -> None:
            self.made = epoch

    ids, text = Made(DIM), TextItems(DIM, full)
    both = bound(SumItems([ids, text]))
    rows = torch.tensor([[3, 9], [9, 1]])
    torch.testing.assert_close(both.embed(rows), ids.embed(rows) + text.embed(rows))
    torch.testing.assert_close(both.output(rows), ids.output(rows) + text.output(rows))
    call(both, "refresh", None, 4)
    assert ids.made == 4


@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_a_saved_model_ranks_without_the_artifact(tmp_path: Path, precision: Any) -> None:
    folder = save_vectors(tmp_path / "vectors", [one for one in IDS if one not in MISSING])
    split, histories = toy_split(), [["i1", "i4"], ["i3", "i17", "i2"]]
    table = TextItems(DIM, folder, precision=precision)
    model = model_with(SumItems([IdItems(DIM), table]))
    fit(model, split, epochs=1, folder=tmp_path / "run", progress=False)
    export(model, tmp_path / "bundle", split=split)
    expected = model.scores(histories)
    shutil.rmtree(folder)
    np.testing.assert_allclose(load_run(tmp_path / "run").scores(histories), expected, rtol=1e-4, atol=1e-5)
    loaded = Bundle.load(tmp_path / "bundle")
    np.testing.assert_allclose(loaded.model.scores(histories), expected, rtol=1e-4, atol=1e-5)
    assert loaded.recommend(histories, k=5).items == model.recommend(histories, k=5).items
    assert loaded.model.items.tables[1].text.dtype == getattr(torch, precision)  # type: ignore[attr-defined]


def test_a_masked_encoder_trains_on_text(full: str) -> None:
    model = Recommender(
        TextItems(DIM, full, extra=1), BERT4Rec(DIM, num_layers=1, max_length=8), FullSoftmax(), MaskedItems()
    )
    fitted = fit(model, toy_split(), epochs=1, progress=False)
    assert np.isfinite(fitted.history[-1]["loss"])


def test_bad_tables_say_what_is_wrong(full: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="dim must be at least 1"):
        IdItems(0)
    with pytest.raises(ValueError, match="must name a folder"):
        TextItems(DIM)
    with pytest.raises(FileNotFoundError):
        TextItems(DIM, str(tmp_path / "nowhere"))
    with pytest.raises(ValueError, match="project"):
        TextItems(DIM, full, "cubic")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="trained"):
        TextItems(DIM, full, trainable=True, precision="float16")
    with pytest.raises(ValueError, match="12 wide"):
        bound(TextItems(DIM, full, text_dim=WIDTH + 1))
    with pytest.raises(DataError, match="other data"):
        bound(TextItems(DIM, save_vectors(tmp_path / "other", ["x1", "x2"])))
    with pytest.raises(ValueError, match="float16"):
        huge = Vectors.of(IDS, np.full((NUM_ITEMS, 2), 1e6)).save(tmp_path / "huge").path
        bound(TextItems(DIM, str(huge), normalize=False, precision="float16"))
    numbers = Vectors.of(list(range(1, NUM_ITEMS + 1)), np.eye(NUM_ITEMS)).save(tmp_path / "numbers").path
    with pytest.raises(DataError):
        bound(TextItems(DIM, str(numbers)))
    with pytest.raises(ValueError, match="same dim"):
        SumItems([IdItems(DIM), TextItems(DIM + 1, full)])
    with pytest.raises(ValueError, match="at least one"):
        SumItems([])
    with pytest.raises(ValueError, match="dim=16"):
        Recommender(TextItems(DIM, full), SASRec(DIM + 2), FullSoftmax())


def test_frozen_items_are_those_of_a_trained_run_by_raw_id(tmp_path: Path) -> None:
    split = toy_split()
    trained = model_with(IdItems(DIM))
    fit(trained, split, epochs=1, folder=tmp_path / "run", progress=False)
    export(trained, tmp_path / "bundle", split=split)
    expected = torch.from_numpy(trained.item_vectors())
    order = np.random.default_rng(3).permutation(NUM_ITEMS)
    shuffled = Vocabulary(np.array(IDS, object)[order], 1)
    context = toy_context()
    context = Context(NUM_ITEMS, shuffled, context.training)
    for folder in (tmp_path / "run", tmp_path / "bundle"):
        items = FrozenItems(str(folder))
        assert items.dim == DIM and not list(items.parameters())
        torch.testing.assert_close(whole(bound(items)), expected)
        torch.testing.assert_close(whole(bound(FrozenItems(str(folder)), context)), expected[order])
    both = bound(FrozenItems(str(tmp_path / "run"), extra=1, scale=True))
    rows = torch.tensor([[2, NUM_ITEMS + 1]])
    torch.testing.assert_close(both.embed(rows)[0, 0], expected[1] * DIM**0.5)
    both.embed(rows).sum().backward()
    assert bool(both.rows.grad.all())


def untied(extra: int = 0) -> IdItems:
    items: IdItems = bound(IdItems(DIM, extra=extra, init="torch", tied=False))
    return items


@pytest.mark.parametrize("extra", [0, 2])
def test_g1_an_untied_table_reads_one_matrix_and_scores_another(extra: int) -> None:
    check_items(IdItems(DIM, extra=extra, tied=False))
    items, tied = untied(extra), bound(IdItems(DIM, extra=extra, init="torch"))
    assert torch.equal(items.weight, tied.weight)  # what is read starts as in a tied table
    assert items.output_weight is not None and items.output_weight.shape == (1 + NUM_ITEMS, DIM)
    assert not items.output_weight[0].any() and not torch.equal(
        items.output_weight[1:], items.weight[1 : 1 + NUM_ITEMS]
    )
    rows = torch.arange(1, NUM_ITEMS + 1)
    torch.testing.assert_close(items.embed(rows), items.weight[rows] * DIM**0.5)
    assert torch.equal(items.output(rows), items.output_weight[1:]) and torch.equal(
        whole(items), items.output_weight[1:]
    )
    behind = torch.arange(NUM_ITEMS + 1, NUM_ITEMS + 1 + extra)
    assert torch.equal(items.output(behind), items.weight[behind])


@pytest.mark.parametrize(
    "objective",
    [
        FullSoftmax(), SampledSoftmax(UniformNegatives(5, per="batch")), SampledSoftmax(UniformNegatives(5)), BCE(),
        GBCE(negatives=UniformNegatives(5)), BPR(),
    ],
)  # fmt: skip
def test_g1_every_objective_scores_the_output_table(objective: Any) -> None:
    """The same states against a tied table with these output vectors give the same losses; the input table none."""
    items, tied, batch = untied(), bound(IdItems(DIM)), NextItem().train(toy_batch())
    assert items.output_weight is not None
    tied.weight.data.copy_(items.output_weight.data)
    states = torch.randn(int(batch.lengths.sum()), DIM, generator=torch.Generator().manual_seed(2))
    losses = [
        objective(Encoded(batch, states), batch, table, torch.Generator().manual_seed(4)) for table in (items, tied)
    ]
    torch.testing.assert_close(*losses)
    losses[0].sum().backward()
    assert items.weight.grad is None or not items.weight.grad.any()
    assert items.output_weight.grad is not None and items.output_weight.grad[1:].any()


def test_g1_gbce_on_an_untied_table_by_hand() -> None:
    items = untied()
    assert items.output_weight is not None
    batch = toy_batch((2,)).replace(ids=torch.tensor([[4, 9]]), weights=None, times=None)
    made, state = NextItem().train(batch), torch.linspace(-1, 1, DIM)[None]
    part = GBCE(t=0.75, negatives=UniformNegatives(3))
    loss = part(Encoded(made, state), made, items, torch.Generator().manual_seed(4))
    drawn = part.negatives.sample(made, torch.tensor([9]), NUM_ITEMS, torch.Generator().manual_seed(4)).ids[0]
    scores = (items.output_weight[torch.cat([torch.tensor([9]), drawn])] @ state[0]).double()
    alpha = 3 / (NUM_ITEMS - 1)
    power = alpha * (0.75 * (1 - 1 / alpha) + 1 / alpha)
    terms = power * scores[0].sigmoid().log() + (1 - scores[1:].sigmoid()).log().sum()
    torch.testing.assert_close(loss.double(), -terms / 4, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("encoder", [SASRec, GRU4Rec])
def test_g1_what_is_served_exported_and_compared_are_the_output_vectors(tmp_path: Path, encoder: Any) -> None:
    split, histories = toy_split(), [["i1", "i4"], ["i3", "i17", "i2"]]
    model = Recommender(IdItems(DIM, tied=False), encoder(DIM, num_layers=1, dropout=0.0, max_length=8), GBCE())
    fit(model, split, epochs=2, folder=tmp_path / "run", learning_rate=0.01, progress=False)
    items: Any = model.items
    output = items.output_weight.detach().numpy()[1:]
    np.testing.assert_array_equal(model.item_vectors(), output)
    assert not np.allclose(output, items.weight.detach().numpy()[1:])
    scores = model.scores(histories)
    np.testing.assert_allclose(scores, model.user_vectors(histories) @ output.T, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(load_run(tmp_path / "run").scores(histories), scores, rtol=1e-4, atol=1e-5)
    export(model, tmp_path / "bundle", split=split)
    bundle = Bundle.load(tmp_path / "bundle")
    assert bundle.recommend(histories, k=5).items == model.recommend(histories, k=5).items
    lengths = np.linalg.norm(output, axis=1)
    cosine = output @ output[3] / lengths / lengths[3]
    best = [IDS[row] for row in np.argsort(-cosine) if row != 3][:4]
    assert [item for item, _ in model.similar(["i4"], k=4)[0]] == best
    torch.testing.assert_close(whole(bound(FrozenItems(str(tmp_path / "run")))), torch.from_numpy(output))


def test_frozen_items_of_other_data_are_refused(full: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="missing"):
        bound(FrozenItems(save_vectors(tmp_path / "less", IDS[:-1], DIM)))
    with pytest.raises(DataError, match="31"):
        bound(FrozenItems(save_vectors(tmp_path / "more", [*IDS, "i99"], DIM)))
    with pytest.raises(DataError, match="other data"):
        bound(FrozenItems(save_vectors(tmp_path / "other", ["x1", "x2"], DIM)))
    with pytest.raises(ValueError, match="16 wide"):
        bound(FrozenItems(save_vectors(tmp_path / "own", IDS, DIM), dim=DIM + 1))
    with pytest.raises(FileNotFoundError):
        FrozenItems(str(tmp_path / "nowhere"))
    fit(model_with(TextItems(DIM, full)), toy_split(), epochs=1, folder=tmp_path / "run", progress=False)
    with pytest.raises(DataError, match="no table"):
        FrozenItems(str(tmp_path / "run"))


def test_k11_a_table_that_is_in_a_sum_twice_grows_once(full: str) -> None:
    once = bound(TextItems(DIM, full))
    items = bound(SumItems([once, once]))
    items.add_items(["new"], Vectors.of(["new"], np.ones((1, WIDTH))))
    assert items.num_items == once.num_items == NUM_ITEMS + 1
    torch.testing.assert_close(whole(items), 2 * whole(once))
    assert len(whole(items)) == NUM_ITEMS + 1


def model_with(items: Any) -> Recommender:
    return Recommender(items, SASRec(DIM, num_layers=1, dropout=0.0, max_length=8), FullSoftmax())


def test_a_frozen_table_trains_a_model_and_stays(tmp_path: Path) -> None:
    folder = save_vectors(tmp_path / "vectors", IDS, DIM)
    model = model_with(FrozenItems(folder))
    fit(model, toy_split(), epochs=1, progress=False)
    expected, _ = Vectors.load(folder).aligned(toy_split().items)
    np.testing.assert_array_equal(model.item_vectors(), expected[1:])
