"""Auxiliaries with every kind of encoder and targets, end to end; recipes whose weights are 0 are the backbone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import recsys as rs
from recsys.augmentations.choice import OneOf
from recsys.augmentations.crop import Crop
from recsys.augmentations.insert import Insert
from recsys.augmentations.mask import Mask
from recsys.augmentations.reorder import Reorder
from recsys.auxiliaries.editor import Editor
from recsys.ids.vectors import Vectors
from recsys.protocols import Step
from recsys.recommenders.composed import Recommender
from recsys.runs.recipe import find_recipe, load_recipe
from recsys.statistics.similarity import ItemCF
from recsys.testing import check_auxiliary, toy_context, toy_split

DIM, LENGTH = 16, 12

ENCODERS: dict[str, Callable[[], Any]] = {
    "SASRec": lambda: rs.SASRec(DIM, 1, 2, 0.1, LENGTH),
    "GRU4Rec": lambda: rs.GRU4Rec(DIM, 12, dropout=0.1, max_length=LENGTH),
    "BERT4Rec": lambda: rs.BERT4Rec(DIM, 1, 2, 0.1, LENGTH),
    "Mamba4Rec": lambda: rs.Mamba4Rec(DIM, 1, 4, dropout=0.1, max_length=LENGTH),
    "SIGMA": lambda: rs.SIGMA(DIM, 1, 4, dropout=0.1, max_length=LENGTH, keep=3),
    "UniRec": lambda: rs.UniRec(DIM, 1, 2, 0.1, LENGTH),
    "ReaRec(SASRec)": lambda: rs.ReaRec(rs.SASRec(DIM, 1, 2, 0.1, LENGTH), 2),
}
AUXILIARIES: dict[str, Callable[[str], Any]] = {
    "CL4SRec": lambda texts: rs.CL4SRec(0.1),
    "CoSeRec": lambda texts: rs.CoSeRec(0.1, max_length=LENGTH),
    "DuoRec": lambda texts: rs.DuoRec(0.1, hide=("target",), max_length=LENGTH),
    "DuoRec, us": lambda texts: rs.DuoRec(0.1, mode="us", max_length=LENGTH),
    "IntentContrast": lambda texts: rs.IntentContrast(
        rs.CL4SRec(0.1, [Crop(0.5), Mask(0.3), Reorder(0.5)]), DIM, clusters=4, iterations=3
    ),
    "SemanticContrast": lambda texts: rs.SemanticContrast(
        vectors=texts, k=3, max_length=LENGTH, dim=8, cache=False, own_pass=True
    ),
    "TripletContrast": lambda texts: rs.TripletContrast(
        editor=Editor(DIM, 2, 0.1, max_length=LENGTH), keep_learning=0.5
    ),
}
TARGETS = {"past": rs.NextItem, "all": rs.LastItem}


@pytest.fixture(scope="session")
def texts(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Text vectors of the toy items."""
    ids = [f"i{row}" for row in range(1, 31)]
    folder = tmp_path_factory.mktemp("texts") / "vectors"
    return str(Vectors.of(ids, np.random.default_rng(0).normal(size=(30, 8)), model="made up").save(folder).path)


def recommender(encoder: str, auxiliary: Any, targets: Any = None) -> Recommender:
    made = ENCODERS[encoder]()
    chosen = TARGETS[made.sees]() if targets is None else targets
    return Recommender(rs.IdItems(DIM, extra=2), made, rs.FullSoftmax(), chosen, auxiliaries=[auxiliary])


def fit(model: Recommender, **settings: Any) -> Any:
    return rs.fit(model, toy_split(), **{"epochs": 2, "batch_size": 16, "progress": False, "seed": 1, **settings})


@pytest.mark.parametrize("auxiliary", AUXILIARIES)
@pytest.mark.parametrize("encoder", ENCODERS)
def test_every_auxiliary_trains_every_encoder(encoder: str, auxiliary: str, texts: str) -> None:
    made = AUXILIARIES[auxiliary](texts)
    fitted = fit(recommender(encoder, made))
    terms = fitted.history[-1]["terms"]
    assert len(terms) > 1 and np.isfinite(list(terms.values())).all()
    assert any(value > 0 for name, value in terms.items() if name != "loss")


@pytest.mark.parametrize("auxiliary", AUXILIARIES)
def test_every_auxiliary_trains_under_masked_items(auxiliary: str, texts: str) -> None:
    fitted = fit(recommender("BERT4Rec", AUXILIARIES[auxiliary](texts), rs.MaskedItems()))
    assert np.isfinite(list(fitted.history[-1]["terms"].values())).all()


@pytest.mark.parametrize("auxiliary", AUXILIARIES)
def test_every_auxiliary_keeps_the_contract_of_its_seam(auxiliary: str, texts: str) -> None:
    check_auxiliary(
        AUXILIARIES[auxiliary](texts),
        Recommender(rs.IdItems(DIM, extra=2), rs.SASRec(DIM, 1, dropout=0.0, max_length=LENGTH), rs.FullSoftmax()),
    )


@pytest.mark.parametrize("auxiliary", AUXILIARIES)
def test_a_run_with_an_auxiliary_resumes_exactly_and_its_model_loads_without_the_data(
    auxiliary: str, texts: str, tmp_path: Path
) -> None:
    def made() -> Recommender:
        return recommender("SASRec", AUXILIARIES[auxiliary](texts))

    whole = made()
    fit(whole, epochs=3, folder=tmp_path / "whole")
    fit(made(), epochs=2, folder=tmp_path / "parts")
    resumed = made()
    fit(resumed, epochs=3, folder=tmp_path / "parts", resume=True)
    for name, value in whole.tensors().items():
        assert torch.equal(value, resumed.tensors()[name]), name
    loaded = rs.load_run(tmp_path / "whole")
    histories = [["i1", "i2"], ["i7"]]
    np.testing.assert_allclose(loaded.scores(histories), whole.scores(histories), rtol=1e-5, atol=1e-6)


ZERO: dict[str, dict[str, Any]] = {
    "cl4srec": {"weight": 0.0},
    "coserec": {"weight": 0.0},
    "duorec": {"weight": 0.0},
    "sracl": {"cross": 0.0, "intra": 0.0},
    "laclrec": {"contrast": 0.0, "triplet": 0.0, "pretrain_epochs": 0},
}


class Toy:
    """Stands for a data set."""

    def split(self, splitter: Any) -> rs.Split:
        return toy_split(num_users=30)


@pytest.mark.parametrize("recipe", ZERO)
def test_a_recipe_without_weight_is_the_backbone_and_adds_no_pass(recipe: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rs, "load", lambda name: Toy(), raising=False)
    passes: list[int] = []
    encode = Recommender.encode
    monkeypatch.setattr(Recommender, "encode", lambda self, batch: passes.append(len(batch)) or encode(self, batch))

    def train(name: str, **knobs: Any) -> tuple[dict[str, torch.Tensor], list[int]]:
        passes.clear()
        run = load_recipe(find_recipe(name))(dim=16, max_length=10, batch_size=8, epochs=2, seed=3, **knobs)
        run.fit(progress=False)
        return run.model.tensors(), list(passes)

    expected, plain = train("sasrec")
    found, taken = train(recipe, **ZERO[recipe])
    assert taken == plain
    for name, value in expected.items():
        assert torch.equal(value, found[name][: len(value)]), name  # a table may have input-only rows behind the items


def seen(of: Recommender, needs: tuple[str, ...] = ("events",)) -> Step:
    """A prepared step of a bound recommender."""
    context = toy_context()
    of.bind(context)
    assert context.training is not None
    batch = context.training.gather(np.arange(20), of.max_length + 1, needs=frozenset(needs) | of.train_needs)
    return Step(of.prepare(batch, Step(batch)), seed=1)


@pytest.mark.parametrize("encoder", ["SASRec", "BERT4Rec"])
def test_intents_are_of_whole_histories_where_only_the_newest_state_is_asked_for(encoder: str) -> None:
    auxiliary = rs.IntentContrast(rs.CL4SRec(0.1, [Crop(0.5), Reorder(0.5)]), DIM, clusters=4)
    of = recommender(encoder, auxiliary, rs.LastItem()).eval()
    step = seen(of, ())
    of.train()
    for module in of.modules():
        if hasattr(module, "p"):
            module.p = 0.0  # no dropout, so that passes can be compared
    of.loss(step)
    states = of.encode(step.batch.ask_all()).states
    mean = states.sum(1) / step.batch.lengths[:, None]
    count = len(step.batch)
    torch.testing.assert_close(auxiliary.memory[:count], mean.detach(), rtol=1e-4, atol=1e-5)


def test_partners_under_masked_items_are_read_at_a_mask_as_they_are_ranked() -> None:
    auxiliary = rs.DuoRec(0.1, max_length=LENGTH - 1)
    of = recommender("BERT4Rec", auxiliary, rs.MaskedItems(0.3))
    step = replace(seen(of), items=of.items, encode=of.encode, query=of.targets.query)
    _, partners = auxiliary.views(step, step.batch.select(auxiliary.rows(step.batch)))
    assert bool((partners.ids.gather(1, partners.lengths[:, None] - 1) == of.num_items + 1).all())


@pytest.mark.parametrize("name", ["CL4SRec", "DuoRec", "IntentContrast"])
def test_a_stage_of_one_auxiliary_trains_where_nothing_takes_part(name: str) -> None:
    made = {
        "CL4SRec": lambda: rs.CL4SRec(0.1),
        "DuoRec": lambda: rs.DuoRec(0.1, max_length=LENGTH - 1),
        "IntentContrast": lambda: rs.IntentContrast(rs.CL4SRec(0.1), DIM, clusters=30),
    }[name]()
    of = recommender("BERT4Rec", made, rs.MaskedItems(0.2))
    stage = rs.Stage(epochs=1, losses=[f"{name}0.intent" if name == "IntentContrast" else f"{name}0"])
    fitted = rs.fit(of, toy_split(), stages=[stage], batch_size=3, progress=False, validate_every=0)
    assert np.isfinite(fitted.history[-1]["loss"])


def test_views_that_grow_are_cut_or_refused() -> None:
    growing = [Crop(0.6), Insert(0.4, ItemCF())]
    of = recommender("SASRec", rs.CL4SRec(0.1, growing))
    rs.fit(of, toy_split(longest=LENGTH + 4), epochs=1, progress=False)  # full windows, and yet no history is too long
    for part in (
        rs.CL4SRec(0.1, [Crop(0.6), Insert(0.4, ItemCF(), 30)]),
        rs.CoSeRec(max_length=30),
        rs.DuoRec(max_length=30),
    ):
        for auxiliary in (part, rs.IntentContrast(part, DIM)):
            with pytest.raises(ValueError, match="max_length=30"):
                recommender("SASRec", auxiliary)


def test_a_part_within_another_draws_views_of_its_own() -> None:
    inner, outer = rs.CL4SRec(0.1), rs.CL4SRec(0.1)
    of = recommender("SASRec", rs.IntentContrast(inner, DIM))
    step = seen(of)
    inner.bind(toy_context())
    outer.bind(toy_context())
    step = replace(step, items=of.items)
    first, _ = inner.views(step.within("IntentContrast"), step.batch)
    second, _ = outer.views(step, step.batch)
    assert first.ids.shape != second.ids.shape or not torch.equal(first.ids, second.ids)


def test_a_mask_among_augmentations_is_refused() -> None:
    for part in (Mask(0.5), OneOf([Crop(), Mask(0.5)])):
        with pytest.raises(ValueError, match='hide="drop"'):
            Recommender(rs.IdItems(DIM, extra=1), ENCODERS["SASRec"](), rs.FullSoftmax(), augmentations=[part])
    Recommender(rs.IdItems(DIM), ENCODERS["SASRec"](), rs.FullSoftmax(), augmentations=[Mask(0.5, hide="drop")])
