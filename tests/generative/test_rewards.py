"""The reward stage. Numbers of the tests are those of the behavioural checks of the method's page."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from set_models import code_items, histories, random_codes, set_decoder

import recsys as rs
from recsys.data.batch import Batch
from recsys.errors import DataError
from recsys.features.features import Features
from recsys.generative.rewards import PathRewards, drawn_positions, histories_to, items_to_come
from recsys.generative.set_beam import SetBeam
from recsys.generative.set_decoder import SetDecoder
from recsys.generative.set_sample import SampledPaths
from recsys.protocols import Change, Context, Step
from recsys.runs.read import load_run
from recsys.storage.parts import build, describe
from recsys.targets.last_item import LastItem
from recsys.targets.next_item import NextItem
from recsys.testing import toy_split
from recsys.train.fit import fit
from recsys.train.loader import TrainBatches
from recsys.train.settings import Stage

CODES = np.array([[0, 0], [0, 1], [1, 0], [1, 1], [1, 1]])  # the last two items share their codes


def paths_to(rows: list[list[int]], shares: list[list[float]]) -> SampledPaths:
    found = torch.tensor(rows)
    nothing = torch.zeros(*found.shape, 2, dtype=torch.int64)
    return SampledPaths(nothing, nothing, nothing.float(), nothing[..., None].bool(), found, torch.tensor(shares))


def rewards(horizon: int, **knobs: object) -> PathRewards:
    return PathRewards(set_decoder(2), horizon=horizon, **knobs)  # type: ignore[arg-type]


def test_reg4rec_6_rewards_by_hand() -> None:
    items = code_items(CODES, (2, 2))
    paths = paths_to([[1, 2, 4], [3, 1, 0]], [[1.0, 1.0, 0.5], [1.0, 1.0, 0.0]])
    part = rewards(2, discount=0.5, token=0.5, item=1.0)
    wanted = torch.tensor([[1, 5], [3, 0]])  # the second history ends with its first item to come
    found = part.rewards(paths, wanted, items)
    # token x share of codes + item x (equal / items that share them); the second item to come counts half as much.
    assert found[0].tolist() == pytest.approx([(1.5 + 0.5 * 0) / 1.5, (0.25 + 0.5 * 0.25) / 1.5, (0 + 0.5 * 1.0) / 1.5])
    assert found[1, :2].tolist() == pytest.approx([1.5, 0.25])


def test_reg4rec_6_categories_and_verdicts() -> None:
    items = code_items(CODES, (2, 2))
    part = rewards(1, token=0.0, item=1.0, category=0.25, reflect=0.1, category_column="kind")
    features = Features.of({"kind": ["", "a", "b", "a", "", ""]}, {"kind": "category"})
    split = toy_split()
    part.bind(Context(5, training=split.train, item_features=features))
    paths = paths_to([[1, 2, 3]], [[1.0, 1.0, 1.0]])
    verdicts = torch.tensor([[True, True, False]])
    found = part.rewards(paths, torch.tensor([[1]]), items, verdicts)
    assert found[0].tolist() == pytest.approx([1 + 0.25 + 0.1, 0, 0.25 + 0.1])
    part.bind(Context(5, training=split.train, item_text={"kind": np.array(["", "x", "x", "y", "", ""])}))
    found = part.rewards(paths_to([[2, 3, 4, 5]], [[1.0] * 4]), torch.tensor([[1]]), items)
    assert found[0].tolist() == pytest.approx([0.25, 0, 0, 0])
    with pytest.raises(DataError, match="kind"):
        part.bind(Context(5, training=split.train, item_text={"title": np.array([""] * 6)}))


def test_reg4rec_13_8_one_item_to_come_is_pars_and_no_discount_left_too() -> None:
    items = code_items(random_codes(20, (4, 4, 4)), (4, 4, 4))
    random = torch.Generator().manual_seed(0)
    paths = paths_to(torch.randint(1, 21, (6, 5), generator=random).tolist(), [[1.0] * 5] * 6)
    wanted = torch.randint(1, 21, (6, 3), generator=random)
    pars = rewards(1).rewards(paths, wanted[:, :1], items)
    assert torch.equal(rewards(3, discount=0.0).rewards(paths, wanted, items), pars)
    assert not torch.allclose(rewards(3, discount=0.5).rewards(paths, wanted, items), pars)


@pytest.mark.parametrize("windows", ["last", "sliding"])
def test_reg4rec_13_8_nothing_of_validation_or_test_is_rewarded(windows: str) -> None:
    split = toy_split(60, longest=14)
    times = split.prepared.times
    assert times is not None
    begins = np.array([times[stop - 1] for stop in split.train.stop])  # the newest training event of each user
    source = TrainBatches(split.train, max_length=4, batch_size=16, windows=windows, needs=frozenset({"times"}))
    seen = 0
    for rows in source.epoch(0):
        batch = NextItem().train(rows)
        at, positions = drawn_positions(batch, torch.Generator().manual_seed(1))
        wanted = items_to_come(batch, at, positions, 3)
        moments = items_to_come(batch.replace(targets=batch.target_times), at, positions, 3)
        before = histories_to(batch, at, positions)
        newest = before.times.gather(1, before.lengths[:, None] - 1)
        own = torch.from_numpy(begins)[batch.users[at]][:, None]
        real = wanted > 0
        assert bool(((moments <= own) | ~real).all()) and bool(((moments > newest) | ~real).all())
        assert bool(real[:, 0].all())
        # As many as there are: the items that the user has next, up to the end of the row.
        left = (batch.targets > 0).sum(1)[at] - positions
        assert torch.equal(real.sum(1), left.clamp(max=3))
        seen += len(at)
    assert seen >= 60


def test_items_to_come_follow_the_history_and_are_0_behind_the_end() -> None:
    batch = NextItem().train(histories(9, (5, 2, 1)))
    rows, positions = torch.tensor([0, 0, 1]), torch.tensor([1, 3, 0])
    ids = histories(9, (5, 2, 1)).ids
    assert items_to_come(batch, rows, positions, 2).tolist() == [
        ids[0, 2:4].tolist(),
        [int(ids[0, 4]), 0],
        [int(ids[1, 1]), 0],
    ]
    before = histories_to(batch, rows, positions)
    assert before.lengths.tolist() == [2, 4, 1] and before.targets is None
    assert before.ids[0].tolist() == [*ids[0, :2].tolist(), 0, 0]
    drawn = [drawn_positions(batch, torch.Generator().manual_seed(seed)) for seed in range(40)]
    assert {(int(r), int(p)) for found in drawn for r, p in zip(*found, strict=True)} == {
        (0, 0),
        (0, 1),
        (0, 2),
        (0, 3),
        (1, 0),
    }


def test_a_single_target_has_no_items_to_come() -> None:
    batch = LastItem().train(histories(9, (5, 3)))
    at = torch.arange(2), batch.lengths - 1
    with pytest.raises(ValueError, match="NextItem"):
        items_to_come(batch, *at, 3)
    assert items_to_come(batch, *at, 1).shape == (2, 1)


def generator_of(folder: Path, items: int = 12, reward: bool = True, **knobs: object) -> rs.Generator:
    names = np.array([f"i{row}" for row in range(1, items + 1)], object)
    if not folder.exists():
        rs.SemanticIds.of(names, random_codes(items, (4, 4), seed=1), (4, 4), ordered=False).save(folder)
    decoder = SetDecoder(16, 2, dropout=0.1, ramp=2, reflection=0.1)
    return rs.Generator(
        items=rs.CodeItems(16, str(folder)),
        encoder=rs.SASRec(16, num_layers=1, num_heads=2, max_length=8),
        decoder=decoder,
        search=SetBeam(12, prune="prediction", keep=0.9),
        auxiliaries=[PathRewards(decoder, **{"samples": 4, **knobs})] if reward else [],  # type: ignore[arg-type]
    )


STAGES = (
    Stage(1, losses=["loss"], name="supervised"),
    Stage(2, losses=["loss", "PathRewards0"], train=["decoder"], learning_rate=1e-3, name="reward", start="last"),
)
QUIET = {"progress": False, "batch_size": 16, "seed": 3, "learning_rate": 5e-3}


def step_of(model: rs.Generator, batch: Batch) -> Step:
    return Step(batch, seed=1, items=model.items, encode=model.encode, total_weight=1.0)


def bound(folder: Path, **knobs: object) -> tuple[rs.Generator, Batch]:
    model, split = generator_of(folder, **knobs), toy_split(num_items=12)
    model.bind(Context(12, split.items, split.train, split.item_text, 0, split.users))
    with torch.no_grad():
        for value in model.parameters():
            value.mul_(3)
    batch = next(iter(TrainBatches(split.train, max_length=8, batch_size=12).epoch(0)))
    return model, NextItem().train(batch)


def largest(values: object) -> float:
    return max(float(one.grad.abs().max()) for one in values if one.grad is not None)  # type: ignore[attr-defined]


def test_reg4rec_13_7_without_differences_only_the_divergence_teaches(tmp_path: Path) -> None:
    model, batch = bound(tmp_path / "ids", kl=0.0, reflect=0.0)
    part = model.auxiliaries[0]
    part.token = part.item = 0.0  # all rewards are equal
    terms = part(step_of(model, batch))
    terms["reward"].backward()
    assert list(terms) == ["reward"] and terms["reward"].item() == 0 and largest(model.parameters()) == 0
    part.kl = 1.0
    loss = part(step_of(model, batch))["divergence"]  # the reference is taken here
    loss.backward()
    assert abs(loss.item()) < 1e-6 and largest(model.decoder.parameters()) < 1e-4
    disturb(model)
    loss = part(step_of(model, batch))["divergence"]
    loss.backward()
    assert loss.item() > 1e-3 and largest(model.decoder.parameters()) > 1e-3


def disturb(model: rs.Generator) -> None:
    with torch.no_grad():
        for value in model.decoder.parameters():
            value.add_(0.3 * torch.randn(value.shape, generator=torch.Generator().manual_seed(value.numel())))
    model.zero_grad()


def test_reg4rec_13_7_gradient_is_that_of_the_rewarded_paths(tmp_path: Path) -> None:
    model, batch = bound(tmp_path / "ids", kl=0.0, samples=3)
    model.eval()
    part, kept = model.auxiliaries[0], []
    terms = part._terms

    def watched(*given: object) -> dict[str, torch.Tensor]:
        kept.append(given)
        return terms(*given)

    part._terms = watched
    loss = part(step_of(model, batch))["reward"]
    loss.backward()
    encoded, items, paths, reward = kept[0]
    assert loss.item() == pytest.approx(-reward.mean().item())
    found = [value.grad.clone() for value in model.decoder.parameters() if value.grad is not None]
    model.zero_grad()
    advantages = (reward - reward.mean(1, keepdim=True)) / (reward.std(1, correction=0, keepdim=True) + 1e-6)
    log_probs = model.decoder.path_log_probs(
        model.encode(encoded.batch), items, paths.order, paths.tokens, paths.allowed
    )
    (-(advantages[:, :, None] * log_probs).mean()).backward()
    expected = [value.grad for value in model.decoder.parameters() if value.grad is not None]
    for own, other in zip(found, expected, strict=True):
        torch.testing.assert_close(own, other, rtol=1e-3, atol=1e-5)


def test_updates_by_rewards_raise_the_reward(tmp_path: Path) -> None:
    model, batch = bound(tmp_path / "ids", kl=0.0, horizon=1, samples=3)
    part, optimizer = model.auxiliaries[0], torch.optim.Adam(model.decoder.parameters(), 3e-3)
    values = []
    for _ in range(40):
        optimizer.zero_grad()
        loss = part(step_of(model, batch))["reward"]
        loss.backward()
        optimizer.step()
        values.append(loss.item())
    assert np.mean(values[-5:]) < np.mean(values[:5]) - 0.1


def test_the_reference_is_the_decoder_as_it_was_and_is_saved(tmp_path: Path) -> None:
    model, batch = bound(tmp_path / "ids")
    model.eval()
    part = model.auxiliaries[0]
    assert len(part.reference) == 0
    part(step_of(model, batch))
    before = torch.nn.utils.parameters_to_vector(model.decoder.parameters()).detach().clone()
    disturb(model)
    loss = part(step_of(model, batch))["divergence"]
    assert torch.equal(part.reference, before) and loss.item() > 1e-5
    other, _ = bound(tmp_path / "ids")
    other.eval().load_tensors(model.tensors())
    assert other.auxiliaries[0](step_of(other, batch))["divergence"].item() == loss.item()
    part.carry({}, Change(True, np.arange(13), Context(12)))
    assert len(part.reference) == 0


def test_reg4rec_stages_train_are_saved_and_resumed_exactly(tmp_path: Path) -> None:
    split = toy_split(24, num_items=12)
    whole = generator_of(tmp_path / "ids")
    run = fit(whole, split, stages=STAGES, folder=tmp_path / "whole", **QUIET)
    history = run.history
    assert "PathRewards0" in str(history[-1]) and "PathRewards0" not in str(history[0])

    class Stopped(Exception):
        pass

    parts = generator_of(tmp_path / "ids")
    calls = parts.auxiliaries[0].forward

    def failing(step: Step) -> torch.Tensor:
        if step.epoch == 2:
            raise Stopped
        return calls(step)

    parts.auxiliaries[0].forward = failing
    with pytest.raises(Stopped):
        fit(parts, split, stages=STAGES, folder=tmp_path / "parts", **QUIET)
    resumed = generator_of(tmp_path / "ids")
    fit(resumed, split, stages=STAGES, folder=tmp_path / "parts", resume=True, **QUIET)
    for (name, value), other in zip(whole.tensors().items(), resumed.tensors().values(), strict=True):
        assert torch.equal(value, other), name
    loaded = load_run(tmp_path / "parts")
    assert loaded.auxiliaries[0].decoder is loaded.decoder
    raw = [["i3", "i4"], ["i7"]]
    assert loaded.recommend(raw, 5).items == whole.recommend(raw, 5).items


def test_described_with_the_decoder_once(tmp_path: Path) -> None:
    model = generator_of(tmp_path / "ids", horizon=2)
    made = build(describe(model))
    assert made.auxiliaries[0].decoder is made.decoder and made.auxiliaries[0].horizon == 2
    assert made.search.prune == "prediction" and made.search.keep == 0.9


def test_arguments() -> None:
    for knobs in ({"samples": 1}, {"horizon": 0}, {"discount": 2.0}, {"token": 0.0, "item": 0.0}, {"kl": -1.0}):
        with pytest.raises(ValueError):
            PathRewards(set_decoder(2), **knobs)  # type: ignore[arg-type]
