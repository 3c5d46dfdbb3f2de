"""Recommenders that generate: learning, lists and their scores, filters, saving, resuming, and LIGER's three scores."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import recsys as rs
from recsys.data.cold import cold_items
from recsys.data.split import Split
from recsys.encoders.added import AddedInputs
from recsys.encoders.parallel import ParallelHeads
from recsys.encoders.tokens import TokenEncoder
from recsys.errors import DataWarning, UnknownItemError
from recsys.generative.code_decoder import CodeDecoder
from recsys.generative.dense import DenseRetrieval
from recsys.generative.liger import Liger
from recsys.ids.vectors import Vectors
from recsys.items.parallel import ParallelItems
from recsys.protocols import Context, Step
from recsys.semantic_ids.table import SemanticIds
from tests.cycles import cycles, outcome

DIM = 16


def codes(folder: Path, split: Split, seed: int | None = None) -> str:
    """A pair of codes per item, the pair of its number, or of a shuffled one."""
    number = np.arange(split.num_items)
    number = number if seed is None else np.random.default_rng(seed).permutation(number)
    SemanticIds.of(split.items.ids, np.stack([number // 5, number % 5], 1)).save(folder)
    return str(folder)


def generator(folder: str, kind: type = rs.Generator, reads: str = "items", memory: str = "both", **more: Any) -> Any:
    prefixes = reads == "prefixes"
    encoder: Any = rs.SASRec(DIM, num_layers=1, dropout=0.0, max_length=8, layout="pre")
    if reads != "items":
        encoder = TokenEncoder(DIM, 1, 2, 8, 32, 0.0, 8, causal=not prefixes)
    decoder = CodeDecoder(DIM, 1, 2, 8, 32, 0.0, memory=memory)
    items = rs.CodeItems(DIM, folder, tied=True, std=1.0)
    targets = rs.LastItem() if prefixes else rs.NextItem()
    return kind(items, encoder, decoder, rs.Beam(8), targets=targets, **more)


def trained(model: Any, split: Split, **more: Any) -> Any:
    settings = {"epochs": 40, "learning_rate": 0.01, "batch_size": 64, "validate_every": 0, "progress": False}
    rs.fit(model, split, **(settings | more))
    return model


@pytest.fixture(scope="module")
def split() -> Split:
    return cycles()


@pytest.fixture(scope="module")
def model(split: Split, tmp_path_factory: pytest.TempPathFactory) -> rs.Generator:
    return trained(generator(codes(tmp_path_factory.mktemp("codes") / "ids", split)), split)


@pytest.mark.parametrize(
    ("reads", "memory"), [("items", "both"), ("items", "newest"), ("tokens", "both"), ("prefixes", "past")]
)
def test_23_5_learns_cycles_and_is_evaluated_by_its_lists(
    split: Split, tmp_path: Path, reads: str, memory: str
) -> None:
    model = generator(codes(tmp_path / "ids", split, seed=1), reads=reads, memory=memory)
    more = {"epochs": 50, "decay": "cosine"} if reads == "prefixes" else {}  # it ends where processors agree
    trained(model, split, **more)
    report = rs.evaluate(model, split.test, metrics=["hr@1"], exclude="none", progress=False)
    assert report.mean("hr@1") > 0.9
    assert "list only" in str(report)


def test_scores_are_exact_log_probabilities_and_lists_rank_by_them(split: Split, model: rs.Generator) -> None:
    raw = split.items.ids.tolist()
    histories = [[raw[0], raw[1]], [raw[7]]]
    exact = model.log_probs(histories, raw)
    top = model.recommend(histories, k=split.num_items, exclude="none")
    for row in range(2):
        order = np.argsort(-exact[row], kind="stable")
        assert top.items[row] == [raw[at] for at in order]
        assert np.allclose(top.scores[row], exact[row][order], atol=1e-4)
    assert np.exp(exact).sum(1) == pytest.approx(np.ones(2), abs=0.05)  # 4 x 5 codes are 20 items


def test_lists_keep_what_they_promise(split: Split, model: rs.Generator) -> None:
    raw = split.items.ids.tolist()
    histories = [raw[3:8], raw[:2]]
    short = model.recommend(histories, k=15)
    assert all(len(set(items)) == 15 and not set(items) & set(seen) for items, seen in zip(short.items, histories))
    assert short.items[0][:4] == model.recommend(histories, k=4).items[0]
    allowed = model.recommend(histories, k=5, allow=raw[5:9], deny=[[raw[8]], []])
    assert [set(items) for items in allowed.items] == [set(), set(raw[5:9])]
    with pytest.warns(DataWarning, match="popularity"):
        empty = model.recommend([[], ["unknown"]], k=3)
    assert empty.fallback.all() and all(len(items) == 3 for items in empty.items)
    everything = model.recommend([raw[:1]], k=1000)
    assert len(everything.items[0]) == len(raw) - 1
    with pytest.raises(UnknownItemError):
        model.log_probs(histories, ["nothing"])


def test_company_changes_no_list(split: Split, model: rs.Generator) -> None:
    raw = split.items.ids.tolist()
    histories = [raw[: 1 + n % 7] for n in range(20)]
    together = model.recommend(histories, k=6)
    for row in (0, 5, 19):
        alone = model.recommend([histories[row]], k=6)
        assert alone.items[0] == together.items[row]
        assert np.allclose(alone.scores[0], together.scores[row], atol=1e-5)


def test_a_bundle_and_a_run_recommend_alike(split: Split, tmp_path: Path) -> None:
    folder = codes(tmp_path / "ids", split)
    model = trained(generator(folder), split, epochs=2, folder=tmp_path / "run")
    raw = split.items.ids.tolist()
    histories = [raw[:3], raw[4:6]]
    wanted = model.recommend(histories, k=5)
    rs.export(model, tmp_path / "bundle", split=split)
    for path in (tmp_path / "ids").iterdir():  # codes are part of what was saved
        path.unlink()
    (tmp_path / "ids").rmdir()
    for found in (rs.Bundle.load(tmp_path / "bundle"), rs.load_run(tmp_path / "run")):
        top = found.recommend(histories, k=5)
        assert top.items == wanted.items
        assert np.allclose(top.scores, wanted.scores, atol=1e-6)


def test_a_stopped_run_goes_on_exactly(split: Split, tmp_path: Path) -> None:
    folder = codes(tmp_path / "ids", split)
    settings: dict[str, Any] = {"epochs": 3, "validate_every": 1}
    trained(generator(folder), split, folder=tmp_path / "whole", **settings)
    model = generator(folder)

    class Stop:
        seen = False

        def __call__(self, epoch: Any) -> None:
            if epoch.epoch == 2 and not self.seen:
                type(self).seen = True
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        trained(model, split, folder=tmp_path / "cut", callbacks=[Stop()], **settings)
    trained(generator(folder), split, folder=tmp_path / "cut", callbacks=[Stop()], **settings)
    assert outcome(tmp_path / "whole")["weights"] == outcome(tmp_path / "cut")["weights"]


def test_other_codes_are_another_run(split: Split, tmp_path: Path) -> None:
    folder = codes(tmp_path / "ids", split)
    model = trained(generator(folder), split, epochs=1, folder=tmp_path / "run")
    codes(tmp_path / "ids", split, seed=3)
    with pytest.raises(ValueError, match="semantic ids"):
        rs.fit(model, split, epochs=1, init="keep", validate_every=0, progress=False)
    with pytest.raises((ValueError, FileExistsError)):
        trained(generator(folder), split, epochs=1, folder=tmp_path / "run")


def test_parts_that_do_not_fit_are_refused(split: Split, tmp_path: Path) -> None:
    folder = codes(tmp_path / "ids", split)
    decoder, encoder = CodeDecoder(DIM, 1, 2, 8, 32), rs.SASRec(DIM, max_length=8)
    with pytest.raises(TypeError, match="CodeItems"):
        rs.Generator(rs.IdItems(DIM), encoder, decoder)
    with pytest.raises(TypeError, match="Beam"):
        rs.Generator(rs.CodeItems(DIM, folder), encoder, decoder, search=50)
    with pytest.raises(TypeError, match="begin and step"):
        rs.Generator(rs.CodeItems(DIM, folder), encoder, rs.FullSoftmax())
    with pytest.raises(ValueError, match="past"):
        rs.Generator(rs.CodeItems(DIM, folder), TokenEncoder(DIM, 1, 2, 8, 32), decoder)
    with pytest.raises(ValueError, match="dim=16, CodeDecoder dim=8"):
        rs.Generator(rs.CodeItems(DIM, folder), encoder, CodeDecoder(8, 1, 2, 8, 32))
    with pytest.raises(TypeError, match="CodeItems"):
        heads = ParallelHeads(rs.SASRec(8, max_length=8), 2)
        rs.Generator(ParallelItems(8, 2, folder), heads, decoder)
    tokens: Any = TokenEncoder(DIM, 1, 2, 8, 32, causal=True)
    for more in ({"targets": rs.MaskedItems()}, {"auxiliaries": [rs.CL4SRec()]}):
        with pytest.raises(ValueError, match="mask"):
            rs.Generator(rs.CodeItems(DIM, folder), tokens, decoder, **more)
    for wrapped in (tokens, ParallelHeads(rs.SASRec(8, max_length=8), 2)):
        with pytest.raises(ValueError, match="cannot read its own states"):
            rs.ReaRec(wrapped, steps=1)


def test_long_lists_are_searched_for_few_histories_at_a_time(
    split: Split, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []

    class Counted(rs.Beam):
        def forward(self, decoder: Any, encoded: Any, *more: Any) -> Any:
            asked.append(len(encoded.batch))
            return super().forward(decoder, encoded, *more)

    model = generator(codes(tmp_path / "ids", split))
    model.search = Counted(8)
    model.bind(Context(split.num_items, split.items, split.train))
    monkeypatch.setattr("recsys.generative.generator.BEAMS", 40)
    histories = [[one] for one in split.items.ids.tolist()]
    few, many = model.recommend(histories, k=5), model.recommend(histories, k=20)
    assert asked == [5, 5, 5, 5] + [2] * 10
    assert [one[:5] for one in many.items] == few.items


def test_items_are_added_by_their_codes(split: Split, tmp_path: Path) -> None:
    model = generator(codes(tmp_path / "ids", split))
    model.bind(Context(split.num_items, split.items, split.train))
    model.learned = True
    raw = split.items.ids.tolist()
    histories = [raw[:3], raw[7:8]]
    before = model.recommend(histories, k=20, exclude="none")
    bundle = rs.export(model, tmp_path / "bundle")
    more = SemanticIds.of(["new"], [[3, 4]], sizes=[4, 5])
    for one in (model, bundle):
        one.add_items(["new"], more)
        after = one.recommend([*histories, ["new"]], k=21, exclude="none")
        for kept, items in zip(before.items, after.items[:2], strict=True):
            assert [item for item in items if item != "new"] == kept
            assert items.index("new") == items.index(raw[19]) + 1  # which has the same codes, and comes first
        assert len(after.items[2]) == 21
    bundle.save()
    again = rs.Bundle.load(tmp_path / "bundle").recommend(histories, k=21, exclude="none")
    assert again.items == after.items[:2]
    other = np.random.default_rng(0).permutation(21)
    for refused, told in (
        (SemanticIds.of(["no", *raw], np.stack([other % 4, other % 5], 1), sizes=[4, 5]), "other codes"),
        (SemanticIds.of(["no"], [[4, 0]]), "sizes"),
        (SemanticIds.of(["yes"], [[0, 0]]), "no codes"),
        (np.zeros((1, 4)), "no codes"),
    ):
        with pytest.raises(ValueError, match=told):
            model.add_items(["no"], refused)
    assert model.num_items == 21 and model.recommend(histories, k=21, exclude="none").items == after.items[:2]


@pytest.mark.parametrize(("share", "most"), [(0.0, 0), (0.1, 1), (0.2, 2), (None, 20)])
def test_semantic_ids_12_11_cold_items_have_a_share_of_the_list(tmp_path: Path, share: float, most: int) -> None:
    cut = cold_items(cycles(users=150), count=4, seed=1)
    model = trained(generator(codes(tmp_path / "ids", cut), cold=share), cut, epochs=3)
    cold = set(cut.items.ids[cut.train.item_counts()[1:] == 0].tolist())
    free = generator(codes(tmp_path / "ids", cut), cold=None)
    free.bind(Context(cut.num_items, cut.items, cut.train))
    free.load_tensors(model.tensors())
    raw = cut.items.ids.tolist()
    histories = [[one] for one in raw]
    for items, history, every in zip(
        model.recommend(histories, k=10).items, histories, free.recommend(histories, k=20).items, strict=True
    ):
        assert len(items) == 10 and len(cold & set(items)) <= most
        kept, room = [], most
        for one in every:  # the order of all, with as many cold ones as there is room for
            if one not in cold or room:
                kept.append(one)
                room -= one in cold
        assert items == kept[:10]
        assert history[0] not in items


# LIGER


@pytest.fixture(scope="module")
def liger(tmp_path_factory: pytest.TempPathFactory) -> tuple[Liger, Split, list[Any]]:
    """Two of twenty items have no training event; texts say where an item is on the circle."""
    folder = tmp_path_factory.mktemp("liger")
    whole = cycles(users=200)
    split = cold_items(whole, count=2, seed=0)
    angle = 2 * np.pi * np.arange(split.num_items) / split.num_items
    table = np.stack([f(angle * n) for n in (1, 2) for f in (np.sin, np.cos)], 1)
    Vectors.of(split.items.ids, table.astype(np.float32)).save(folder / "texts")
    text = rs.TextItems(DIM, str(folder / "texts"), "mlp")
    read = rs.TextItems(DIM, str(folder / "texts"), "mlp")
    base = generator(codes(folder / "ids", split))
    encoder = AddedInputs(base.encoder, [read])
    model = Liger(
        base.items, encoder, base.decoder, rs.Beam(5), candidates=5, targets=rs.NextItem(),
        auxiliaries=[DenseRetrieval(text, temperature=0.2)],
    )  # fmt: skip
    trained(model, split, epochs=40)
    cold = split.items.ids[~(split.train.item_counts()[1:] > 0)].tolist()
    return model, split, cold


def test_liger_cold_items_are_found_by_their_texts(liger: tuple[Liger, Split, list[Any]]) -> None:
    model, split, cold = liger
    assert len(cold) == 2 and model.dense.cold.tolist() == (model.vocabulary.rows(cold)).tolist()
    means = {
        by: rs.evaluate(model.by(by), split.test, metrics=["hr@3"], progress=False, k=[3]).mean("hr@3")
        for by in ("hybrid", "dense", "generative")
    }
    assert means["hybrid"] > 0.5 and means["hybrid"] >= means["generative"]
    shown = model.sections(model, split)["Generative, dense and hybrid scores"]
    assert [row["ranked by"] for row in shown] == ["hybrid", "dense", "generative"]


def test_liger_with_all_items_as_candidates_is_its_dense_ranking(liger: tuple[Liger, Split, list[Any]]) -> None:
    model, split, _ = liger
    raw = split.items.ids.tolist()
    histories = [raw[:3], raw[8:12], raw[5:6]]
    dense = model.by("dense").recommend(histories, k=20)
    hybrid = model.recommend(histories, k=20)
    assert dense.items == hybrid.items
    assert np.allclose(dense.scores, hybrid.scores, atol=1e-5)


def test_liger_candidates_are_those_of_the_beam_and_the_cold_ones_once(liger: tuple[Liger, Split, list[Any]]) -> None:
    model, split, cold = liger
    raw = split.items.ids.tolist()
    histories = [raw[:3], raw[8:12]]
    near = model.by("generative").recommend(histories, k=5)
    dense = model.by("dense").recommend(histories, k=20)
    found = model.recommend(histories, k=5)
    for row, history in enumerate(histories):
        allowed = (set(near.items[row]) | set(cold)) - set(history)
        assert found.items[row] == [one for one in dense.items[row] if one in allowed][:5]
    denied = model.recommend(histories, k=5, deny=cold)
    assert not set(cold) & {one for items in denied.items for one in items}


def test_liger_takes_in_items_by_codes_and_texts(liger: tuple[Liger, Split, list[Any]], tmp_path: Path) -> None:
    model, split, _ = liger
    bundle = rs.export(model, tmp_path / "bundle")
    other, raw = bundle.model, split.items.ids.tolist()
    twin = model.dense.vectors()[2].detach()  # the text of the new item is that of the third one
    text = Vectors.load(model.dense.items.vectors)
    Vectors.of(["new"], text.array[text.vocabulary.rows(raw[2:3])]).save(tmp_path / "more")
    with pytest.raises(ValueError, match="new items"):
        bundle.add_items(
            ["new"], SemanticIds.of(["new"], [[0, 0]], sizes=[4, 5])
        )  # texts are in the folder, not this one
    assert other.num_items == other.items.num_items == other.dense.items.num_items == 20
    both = SemanticIds.of([*raw, "new"], np.stack([np.arange(21) % 20 // 5, np.arange(21) % 20 % 5], 1))
    both.save(tmp_path / "ids")
    other.items.ids = str(tmp_path / "ids")
    bundle.add_items(["new"], Vectors.load(tmp_path / "more"))
    assert torch.allclose(other.dense.vectors()[20], twin, atol=1e-5)
    assert other.dense.cold.tolist() == [*model.dense.cold.tolist(), 21]
    found = bundle.recommend([raw[:2], ["new"]], k=5)
    assert "new" in found.items[0]
    bundle.save()
    assert rs.Bundle.load(tmp_path / "bundle").recommend([raw[:2], ["new"]], k=5).items == found.items


def test_the_dense_loss_is_a_mean_over_the_update_however_it_is_batched(
    liger: tuple[Liger, Split, list[Any]],
) -> None:
    model, split, _ = liger
    model.eval()
    whole = split.train.gather(np.arange(7), 9)
    parts = [split.train.gather(np.arange(*ends), 9) for ends in ((0, 2), (2, 7))]
    count = float((model.prepare(whole, Step(whole, 0)).targets > 0).sum())

    def term(batch: Any, share: float) -> float:
        made = model.prepare(batch, Step(batch, 0))
        with torch.no_grad():
            found = model.loss(Step(made, 0, total_weight=count, share=share))["DenseRetrieval0"]
        return float(found)

    chosen = model.prepare(whole, Step(whole, 0))
    hidden, targets, _ = model.encode(chosen).at_targets(chosen)
    scores = (F.normalize(hidden, dim=1) / 0.2) @ model.dense.vectors().T
    expected = F.cross_entropy(scores.masked_fill(~model.dense.warm[1:], -torch.inf), targets - 1).item()
    assert term(whole, 1.0) == pytest.approx(expected, rel=1e-5)
    assert sum(term(part, 0.5) for part in parts) == pytest.approx(expected, rel=1e-5)


def test_liger_does_not_rank_by_a_head_that_learns_nothing(split: Split, tmp_path: Path) -> None:
    folder = codes(tmp_path / "ids", split)
    Vectors.of(split.items.ids, np.eye(split.num_items, 4, dtype=np.float32)).save(tmp_path / "texts")

    def idle(rank_by: str) -> Liger:
        head = DenseRetrieval(rs.TextItems(DIM, str(tmp_path / "texts")), weight=0.0)
        return generator(folder, Liger, rank_by=rank_by, auxiliaries=[head])

    for rank_by in ("hybrid", "dense"):
        with pytest.raises(ValueError, match="weight 0"):
            idle(rank_by)
    model = trained(idle("generative"), split, epochs=1)
    with pytest.raises(ValueError, match="weight 0"):
        model.by("dense")
    rows = model.sections(model, split)["Generative, dense and hybrid scores"]
    assert [row["ranked by"] for row in rows] == ["generative"]


def test_liger_12_10_cold_items_get_no_gradient_and_weight_zero_is_no_part(
    liger: tuple[Liger, Split, list[Any]],
) -> None:
    model, split, cold = liger
    batch = split.train.gather(np.arange(8), 9)
    step = Step(batch, 0)
    step = Step(model.prepare(batch, step), 0)
    text = model.dense.items.text.clone().requires_grad_()
    model.train()
    model.dense.items.text, before = text, model.dense.items.text
    try:
        terms = model.loss(step)
        terms["DenseRetrieval0"].backward()
    finally:
        model.dense.items.text = before
        model.zero_grad()
    rows = torch.from_numpy(model.vocabulary.rows(cold))
    assert torch.equal(text.grad[rows], torch.zeros_like(text.grad[rows]))
    assert bool((text.grad[1:].abs().sum(1) > 0).any())
