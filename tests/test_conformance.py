"""Every encoder behind its seam, and every sensible combination with targets and objectives, end to end."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import recsys as rs
from benchmarks.quality.released import PaddedSIGMA
from recsys.auxiliaries.reasoning import ProgressiveSoftmax, StepContrast, StepDiversity
from recsys.auxiliaries.unirec import UniRecLoss
from recsys.encoders.bert4rec import BERT4Rec
from recsys.encoders.gru4rec import GRU4Rec
from recsys.encoders.mamba4rec import Mamba4Rec
from recsys.encoders.rearec import ReaRec
from recsys.encoders.sigma import SIGMA
from recsys.encoders.unirec import UniRec
from recsys.targets.masked_items import MaskedItems
from recsys.testing import check_encoder, check_ranker, toy_split

DIM, LENGTH = 16, 12

ENCODERS: dict[str, Callable[[], Any]] = {
    "SASRec": lambda: rs.SASRec(DIM, 1, 2, 0.1, LENGTH),
    "GRU4Rec": lambda: GRU4Rec(DIM, 12, dropout=0.1, max_length=LENGTH),
    "GRU4Rec, two layers": lambda: GRU4Rec(DIM, 12, 2, 0.1, LENGTH),
    "BERT4Rec": lambda: BERT4Rec(DIM, 1, 2, 0.1, LENGTH),
    "Mamba4Rec": lambda: Mamba4Rec(DIM, 1, 4, dropout=0.1, max_length=LENGTH),
    "Mamba4Rec, two layers": lambda: Mamba4Rec(DIM, 2, 4, dropout=0.1, max_length=LENGTH, ssm_init="mamba"),
    "SIGMA": lambda: SIGMA(DIM, 1, 4, dropout=0.1, max_length=LENGTH, keep=3),
    "SIGMA, two layers": lambda: SIGMA(DIM, 2, 4, dropout=0.1, max_length=LENGTH, keep=3, gate_cross="clean"),
    "SIGMA of the released code": lambda: PaddedSIGMA(DIM, 1, 4, dropout=0.1, max_length=LENGTH, keep=3),
    "UniRec": lambda: UniRec(DIM, 1, 2, 0.1, LENGTH),
    "ReaRec(SASRec)": lambda: ReaRec(rs.SASRec(DIM, 1, 2, 0.1, LENGTH), 2),
    "ReaRec(SASRec), noisy": lambda: ReaRec(rs.SASRec(DIM, 1, 2, 0.1, LENGTH), 2, "last", noise=0.01, warmup=0),
    "ReaRec(GRU4Rec)": lambda: ReaRec(GRU4Rec(DIM, 12, dropout=0.1, max_length=LENGTH), 2, combine="last"),
    "ReaRec(BERT4Rec)": lambda: ReaRec(BERT4Rec(DIM, 1, 2, 0.1, LENGTH), 2),
    "ReaRec(Mamba4Rec)": lambda: ReaRec(Mamba4Rec(DIM, 1, 4, dropout=0.1, max_length=LENGTH), 1),
    "ReaRec(SIGMA)": lambda: ReaRec(SIGMA(DIM, 1, 4, dropout=0.1, max_length=LENGTH, keep=3), 2),
    "ReaRec(UniRec)": lambda: ReaRec(UniRec(DIM, 1, 2, 0.1, LENGTH), 1),
}
OBJECTIVES: dict[str, Callable[[], Any]] = {
    "FullSoftmax": rs.FullSoftmax,
    "SampledSoftmax": lambda: rs.SampledSoftmax(rs.UniformNegatives(5)),
    "BCE": rs.BCE,
    "GBCE": rs.GBCE,
}
PAST = [name for name, make in ENCODERS.items() if make().sees == "past"]


def recommender(encoder: str, targets: Any, objective: Any, **more: Any) -> rs.Recommender:
    return rs.Recommender(rs.IdItems(DIM, extra=1), ENCODERS[encoder](), objective, targets, **more)


def fit(model: rs.Recommender, **settings: Any) -> list[float]:
    fitted = rs.fit(model, toy_split(), **{"epochs": 3, "batch_size": 16, "progress": False, "seed": 1, **settings})
    return [record["loss"] for record in fitted.history]


@pytest.mark.parametrize("name", ENCODERS)
def test_every_encoder_keeps_the_contract_of_its_seam(name: str) -> None:
    check_encoder(ENCODERS[name](), rs.IdItems(DIM, extra=1))


@pytest.mark.parametrize("name", ENCODERS)
def test_every_encoder_ranks_alone_as_in_company_and_after_loading(name: str) -> None:
    targets = MaskedItems() if name == "BERT4Rec" else rs.LastItem()
    check_ranker(recommender(name, targets, rs.FullSoftmax()))


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("name", ENCODERS)
def test_every_encoder_trains_on_the_last_item_with_every_objective(name: str, objective: str) -> None:
    losses = fit(recommender(name, rs.LastItem(), OBJECTIVES[objective]()), epochs=1)
    assert np.isfinite(losses).all()


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("name", PAST)
def test_encoders_of_the_past_train_on_all_positions_with_every_objective(name: str, objective: str) -> None:
    losses = fit(recommender(name, rs.NextItem(), OBJECTIVES[objective]()), epochs=1)
    assert np.isfinite(losses).all()


@pytest.mark.parametrize("name", [name for name in ENCODERS if name not in PAST])
def test_sigma_check_07_encoders_that_look_ahead_refuse_targets_at_all_positions(name: str) -> None:
    with pytest.raises(ValueError, match="LastItem"):
        recommender(name, rs.NextItem(), rs.FullSoftmax())


@pytest.mark.parametrize(
    ("name", "targets", "objective", "auxiliaries"),
    [
        ("BERT4Rec", MaskedItems(), rs.FullSoftmax(), []),
        ("BERT4Rec", MaskedItems(), rs.BCE(), []),
        ("ReaRec(SASRec)", rs.NextItem(), rs.FullSoftmax(), [StepDiversity(0.1)]),
        ("ReaRec(SASRec), noisy", rs.NextItem(), ProgressiveSoftmax(1.0, 2.0), [StepContrast(0.1)]),
        ("ReaRec(SIGMA)", rs.LastItem(), ProgressiveSoftmax(1.0, 2.0), [StepDiversity(0.1)]),
        ("ReaRec(GRU4Rec)", rs.LastItem(), ProgressiveSoftmax(1.0, 2.0), []),
        ("UniRec", rs.NextItem(), UniRecLoss(), []),
    ],
)
def test_objectives_made_for_an_encoder_train_it(name: str, targets: Any, objective: Any, auxiliaries: Any) -> None:
    losses = fit(recommender(name, targets, objective, auxiliaries=auxiliaries), epochs=4, learning_rate=5e-3)
    assert np.isfinite(losses).all()
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("name", ENCODERS)
def test_every_encoder_resumes_from_its_folder_and_serves_from_its_bundle(name: str, tmp_path: Path) -> None:
    model = recommender(name, rs.LastItem(), rs.FullSoftmax())
    split = toy_split()
    rs.fit(model, split, epochs=1, batch_size=16, progress=False, folder=tmp_path / "run")
    histories = [rs.History(["i1", "i2", "i3"], [60_000, 120_000, 180_000], query_time=240_000)]
    scores = model.scores(histories)
    trust = [type(model.encoder).__module__]
    np.testing.assert_allclose(rs.load_run(tmp_path / "run", trust).scores(histories), scores, rtol=1e-5, atol=1e-6)
    rs.export(model, tmp_path / "bundle", split=split)
    served = rs.Bundle.load(tmp_path / "bundle", trust=trust).recommend(histories, k=5)
    np.testing.assert_allclose(served.scores, model.recommend(histories, k=5).scores, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ENCODERS)
def test_two_runs_from_one_seed_are_equal_to_the_bit(name: str) -> None:
    first, second = (fit(recommender(name, rs.LastItem(), rs.FullSoftmax()), epochs=2) for _ in range(2))
    assert first == second


def test_losses_that_read_what_has_not_reasoned_are_refused_around_reasoning() -> None:
    with pytest.raises(ValueError, match="UniRec"):
        fit(recommender("ReaRec(UniRec)", rs.LastItem(), UniRecLoss()))
