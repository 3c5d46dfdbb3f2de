"""Skill-It: the shares by hand, how often domains are drawn, and a run that is stopped and resumed."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

import recsys as rs
from recsys.errors import DataError
from recsys.llm.trainers.selectors.skill_it import SkillIt, held_out_losses, shares
from recsys.testing import check_source
from recsys.train.loader import TrainBatches
from recsys.train.source import BatchSource
from tests.llm.trainers.numbered import Numbers, rows_of


def test_skill_it_1_equal_losses_are_uniform() -> None:
    np.testing.assert_allclose(shares([[2.0, 2.0, 2.0]]), np.full(3, 1 / 3))


def test_skill_it_2_without_eta_the_prior_stays() -> None:
    np.testing.assert_allclose(shares([[5.0, 0.1, 2.0]], prior=[2, 1, 1], eta=0.0), [0.5, 0.25, 0.25])
    found = shares([[1e5, 1.0]], eta=10.0, floor=0.0)
    assert np.isfinite(found).all() and found[0] == 1.0, "nothing overflows"


def test_skill_it_3_a_loss_lifts_the_domains_that_help_it() -> None:
    graph = np.array([[1.0, 0.0, 1.0], [0.0, 1.0, 0.0], [1.0, 0.0, 1.0]])
    before = shares([[1.0, 1.0, 1.0]], graph)
    for skill in range(3):
        losses = np.ones((1, 3))
        losses[0, skill] = 2.0
        after = shares(losses, graph)
        helps = graph[:, skill] > 0
        assert (after[helps] > before[helps]).all() and (after[~helps] < before[~helps]).all()
    graph = np.array([[1.0, 0.0, 0.5], [0.0, 1.0, 0.0], [0.3, 0.0, 1.0]])
    expected = np.exp(0.5 * graph @ np.array([1.0, 2.0, 1.0]))
    np.testing.assert_allclose(shares([[1.0, 2.0, 1.0]], graph), expected / expected.sum())


def test_skill_it_4_old_losses_are_forgotten() -> None:
    new = [[1.0, 3.0], [2.0, 1.0]]
    np.testing.assert_allclose(shares([[9.0, 0.0], *new], window=2), shares(new, window=2))
    summed = np.exp(0.5 * np.array([3.0, 4.0]))
    np.testing.assert_allclose(shares(new, window=2), summed / summed.sum())
    assert not np.allclose(shares([[9.0, 0.0], *new], window=3), shares(new, window=3))


def told(mixture: SkillIt, losses: list[list[float]]) -> SkillIt:
    """The mixture after these evaluations."""
    for number, row in enumerate(losses, 1):
        mixture.losses = lambda model, row=row: row
        mixture(SimpleNamespace(epoch=number, model=None))
    return mixture


def domains(**options: Any) -> SkillIt:
    sources = {"books": Numbers(20), "games": Numbers(12, first=100), "music": Numbers(8, first=200)}
    return SkillIt(sources, lambda model: [1.0, 1.0, 1.0], **options)


def test_skill_it_5_domains_are_drawn_by_their_shares() -> None:
    mixture = told(domains(batches=10_000, relative=False, eta=1.0), [[0.2, 1.0, 0.5]])
    expected = np.array(list(mixture.shares_of(1).values())) * 10_000
    np.testing.assert_allclose(expected / 10_000, np.exp([0.2, 1.0, 0.5]) / np.exp([0.2, 1.0, 0.5]).sum())
    found = np.bincount(mixture._turns(1), minlength=3)
    assert ((found - expected) ** 2 / expected).sum() < 13.8, "the 0.1% point of chi squared with two degrees"


def test_skill_it_6_a_single_domain_gets_all() -> None:
    assert shares([[7.0]]).tolist() == [1.0]
    mixture = SkillIt({"all": Numbers(8)}, lambda model: [1.0])
    assert sorted(rows_of(mixture.epoch(0))) == list(range(8))


def test_skill_it_shares_are_bounded() -> None:
    found = shares([[0.0, 10.0, 20.0]], eta=2.0, floor=0.05, cap=0.8)
    np.testing.assert_allclose(found, [0.05, 0.15, 0.8], atol=1e-9)
    found = shares([[0.0, 1.0, 30.0]], eta=1.0)
    assert found.min() >= 1e-3 - 1e-12 and found.sum() == pytest.approx(1.0)
    for seed in range(30):
        random = np.random.default_rng(seed)
        found = shares(random.normal(size=(2, 5)) * 5, floor=0.02, cap=0.5, eta=random.uniform(0, 3))
        assert found.sum() == pytest.approx(1.0) and found.min() > 0.02 - 1e-9 and found.max() < 0.5 + 1e-9


def test_skill_it_losses_count_by_the_first() -> None:
    mixture = told(domains(), [[10.0, 1.0, 0.1], [5.0, 1.0, 0.1]])
    np.testing.assert_allclose(list(mixture.shares_of(1).values()), np.full(3, 1 / 3))
    expected = np.exp(0.5 * np.array([1.5, 2.0, 2.0]))
    np.testing.assert_allclose(list(mixture.shares_of(2).values()), expected / expected.sum())
    np.testing.assert_allclose(list(mixture.shares_of(0).values()), np.full(3, 1 / 3))


def test_skill_it_a_domain_goes_through_all_its_rows_before_any_comes_again() -> None:
    mixture = told(domains(batches=7), [[1.0, 2.0, 3.0]] * 6)
    rows = [row for epoch in range(6) for row in rows_of(mixture.epoch(epoch)) if row >= 200]
    for first in range(0, len(rows) - 7, 8):
        assert sorted(rows[first : first + 8]) == list(range(200, 208))


def test_skill_it_an_epoch_goes_on_from_any_batch_and_on_any_process(tmp_path: Path) -> None:
    losses = [[1.0, 2.0, 3.0], [2.0, 1.0, 1.0]]
    mixture = told(domains(folder=tmp_path), losses)
    assert isinstance(mixture, BatchSource)
    whole = [batch.rows.tolist() for batch in mixture.epoch(2)]
    for start in range(len(whole) + 1):
        again = domains(folder=tmp_path)
        again.bind(None)
        assert [batch.rows.tolist() for batch in again.epoch(2, start)] == whole[start:]
    parts = [list(mixture.epoch(2, 0, rank, 2)) for rank in range(2)]
    for batch, *both in zip(whole, *parts, strict=True):
        assert sorted(batch) == sorted(rows_of(both))


def test_skill_it_passes_the_check_of_sources_and_tells_what_an_epoch_holds_on_average() -> None:
    sources = {"short": Numbers(40, size=2), "long": Numbers(60, size=10, first=100)}
    mixture = told(SkillIt(sources, lambda model: [1.0, 1.0], batches=2_000, prior=[3, 1]), [[1.0, 2.0], [1.0, 2.0]])
    check_source(mixture)
    assert mixture.num_rows == mixture.num_targets == 2_000 * (0.75 * 2 + 0.25 * 10)
    assert len(rows_of(mixture.epoch(0))) == pytest.approx(mixture.num_rows, rel=0.1)
    again = told(SkillIt(sources, lambda model: [1.0, 1.0], batches=8), [[1.0, 2.0]])
    sizes = {len(rows_of(again.epoch(epoch))) for epoch in (0, 1)}
    assert len(sizes) == 2 and again.varying, "which is why no number can be right for every epoch"


def test_skill_it_measured_losses_of_a_former_run_are_not_used(tmp_path: Path) -> None:
    told(domains(folder=tmp_path), [[1.0, 2.0, 3.0], [5.0, 1.0, 1.0]])
    again = domains(folder=tmp_path)
    again.bind(None)
    told(again, [[1.0, 1.0, 9.0]])
    assert list(json.loads((tmp_path / "losses.json").read_text())["losses"]) == ["1"]
    with pytest.raises(DataError, match="callback"):
        list(again.epoch(2))


def test_skill_it_wrong_arguments() -> None:
    with pytest.raises(ValueError, match="at least one"):
        SkillIt({}, lambda model: [])
    with pytest.raises(ValueError, match="floor"):
        domains(floor=0.5)
    with pytest.raises(ValueError, match="graph"):
        domains(graph=[[1.0], [1.0]])
    with pytest.raises(ValueError, match="3 finite numbers"):
        told(domains(), [[1.0, float("nan"), 1.0]])
    with pytest.raises(ValueError, match="finite"):
        shares([[1.0, np.inf]])


def parts(split: Any) -> tuple[dict[str, TrainBatches], dict[str, TrainBatches]]:
    trained = {
        name: TrainBatches(split.train, max_length=4, batch_size=16, seed=seed) for seed, name in enumerate("ab")
    }
    held = {name: TrainBatches(split.train, max_length=4, batch_size=16, seed=seed) for seed, name in enumerate("cd")}
    return trained, held


class Stopped(Exception):
    pass


def test_skill_it_a_resumed_run_ends_as_one_that_never_stopped(split: Any, tmp_path: Path) -> None:
    def run(folder: Path, stop: int | None = None) -> Any:
        trained, held = parts(split)
        mixture = SkillIt(trained, held_out_losses(held, 2), batches=4, eta=5.0, folder=folder / "mixture")

        def halt(epoch: Any) -> None:
            if epoch.epoch == stop:
                raise Stopped

        model = rs.Recommender(rs.IdItems(8), rs.SASRec(8, 1, max_length=4), rs.FullSoftmax())
        told = {"progress": False, "metric": "ndcg@5", "learning_rate": 0.03}
        rs.fit(model, split, stages=[rs.Stage(4, data=mixture)], callbacks=[mixture, halt], folder=folder, **told)
        return model, mixture

    whole, mixture = run(tmp_path / "whole")
    assert len({tuple(mixture.shares_of(epoch).values()) for epoch in range(4)}) == 3, "the shares do change"
    with pytest.raises(Stopped):
        run(tmp_path / "halted", stop=2)
    resumed, _ = run(tmp_path / "halted")
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name


def test_skill_it_held_out_losses_are_means_over_targets(split: Any) -> None:
    model = rs.Recommender(rs.IdItems(8), rs.SASRec(8, 1, max_length=4, dropout=0.5), rs.FullSoftmax())
    rs.fit(model, split, epochs=1, progress=False, metric="ndcg@5")
    _, held = parts(split)
    found = held_out_losses(held, batches=2)(model)
    total = number = 0.0
    model.eval()
    for _, batch in zip(range(2), held["c"].epoch(0)):
        batch = model.targets.train(batch, torch.Generator())
        encoded = model.encode(batch)
        states, targets, _ = encoded.at_targets(batch)
        logs = model.items.scores(states).detach().log_softmax(1)
        total -= float(logs.gather(1, targets[:, None] - 1).sum())
        number += len(targets)
    assert found[0] == pytest.approx(total / number, rel=1e-5)
