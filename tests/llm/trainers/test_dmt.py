"""DMT: which rows are trained on in which stage, and that a stage begins a schedule of its own."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch

import recsys as rs
from recsys.data.batch import Batch
from recsys.errors import DataWarning
from recsys.llm.trainers.selectors.dmt import Rehearsed
from recsys.llm.trainers.selectors.mixing import stacked
from recsys.llm.trainers.selectors.skill_it import SkillIt
from recsys.protocols import Context
from recsys.testing import check_source
from recsys.train.loader import TrainBatches
from recsys.train.source import BatchSource
from tests.llm.trainers.numbered import Numbers, rows_of

GENERAL, SPECIAL = Numbers(30), Numbers(40, size=8, first=100)


@pytest.mark.parametrize("share", [1 / 256, 0.1, 0.33])
def test_dmt_1_all_general_rows_and_the_share_of_the_special(share: float) -> None:
    source = Rehearsed(GENERAL, SPECIAL, share)
    for epoch in range(3):
        rows = rows_of(source.epoch(epoch))
        special = [row for row in rows if row >= 100]
        assert sorted(row for row in rows if row < 100) == list(range(30))
        assert len(special) == len(set(special)) == int(np.ceil(share * 40 - 1e-9)) == source.rehearsed
        assert len(rows) == source.num_rows and len(list(source.epoch(epoch))) == source.num_batches(epoch)
    assert set(rows_of(SPECIAL.epoch(0))) == set(range(100, 140)), "the first stage is the special source itself"


def test_dmt_2_the_sample_is_drawn_once() -> None:
    def sample(seed: int, epoch: int) -> set[int]:
        return {row for row in rows_of(Rehearsed(GENERAL, SPECIAL, 0.2, seed).epoch(epoch)) if row >= 100}

    assert sample(1, 0) == sample(1, 0) == sample(1, 5) != sample(2, 0)
    orders = [rows_of(Rehearsed(GENERAL, SPECIAL, 0.2).epoch(epoch)) for epoch in (0, 1)]
    assert orders[0] != orders[1], "the order is another one"


def test_dmt_3_a_stage_begins_optimizer_and_schedule_anew(split: Any) -> None:
    made: list[Any] = []

    class Recording(torch.optim.SGD):
        def __init__(self, parameters: Any) -> None:
            super().__init__(parameters, lr=0.1)
            self.rates: list[float] = []
            made.append(self)

        def step(self, closure: Any = None) -> Any:
            self.rates.append(self.param_groups[0]["lr"])
            return super().step(closure)

    special = TrainBatches(split.train, max_length=4, batch_size=8, seed=1)
    general = TrainBatches(split.train, max_length=4, batch_size=8, seed=2)
    second = Rehearsed(general, special, 0.1)
    model = rs.Recommender(rs.IdItems(8), rs.SASRec(8, 1, max_length=4), rs.FullSoftmax())
    stages = [rs.Stage(1, data=special, name="special"), rs.Stage(1, data=second, name="general")]
    rs.fit(model, split, stages=stages, optimizer=Recording, decay="linear", progress=False, metric="ndcg@5")
    made = [one for one in made if one.rates]  # one is made to look at the settings
    assert len(made) == 2 and len(made[1].rates) == second.num_batches(1)
    for one in made:
        assert one.rates[0] == pytest.approx(0.1)
        assert all(before > after for before, after in itertools.pairwise(one.rates))


def test_dmt_4_everything_is_mixing_and_nothing_is_sequence() -> None:
    everything = rows_of(Rehearsed(GENERAL, SPECIAL, 1.0).epoch(0))
    assert sorted(everything) == [*range(30), *range(100, 140)]
    turns = [row >= 100 for row in everything]
    assert sum(before != after for before, after in itertools.pairwise(turns)) > 2, "one among the other"
    nothing = Rehearsed(GENERAL, SPECIAL, 0.0)
    assert rows_of(nothing.epoch(2)) == rows_of(GENERAL.epoch(2)) and nothing.num_rows == 30


def test_dmt_an_epoch_goes_on_from_any_batch_and_on_any_process() -> None:
    source = Rehearsed(GENERAL, SPECIAL, 0.5)
    assert isinstance(source, BatchSource)
    whole = [batch.rows.tolist() for batch in source.epoch(1)]
    for start in range(len(whole) + 1):
        assert [batch.rows.tolist() for batch in Rehearsed(GENERAL, SPECIAL, 0.5).epoch(1, start)] == whole[start:]
    shares = [list(source.epoch(1, 0, rank, 3)) for rank in range(3)]
    for batch, *parts in zip(whole, *shares, strict=True):
        assert sorted(batch) == sorted(rows_of(parts))
    check_source(source)
    assert source.identity() != Rehearsed(GENERAL, SPECIAL, 0.4).identity()


def test_dmt_rehearsed_rows_are_whole() -> None:
    source = Rehearsed(GENERAL, SPECIAL, 0.5)
    for batch in source.epoch(0):
        assert batch.ids.shape[1] == int(batch.lengths.max()) and batch.targets is not None
        assert torch.equal(batch.ids, (batch.rows[:, None] + 1) * batch.mask) and torch.equal(batch.ids, batch.targets)


def test_dmt_a_share_of_less_than_a_row_is_told() -> None:
    source = Rehearsed(GENERAL, SPECIAL)
    with pytest.warns(DataWarning, match="less than one"):
        source.bind(Context(num_items=1))
    assert source.rehearsed == 1


def test_dmt_wrong_arguments() -> None:
    with pytest.raises(ValueError, match="share"):
        Rehearsed(GENERAL, SPECIAL, 1.5)
    with pytest.raises(ValueError, match="prepared"):
        Rehearsed(GENERAL, Numbers(4, prepared=False))
    with pytest.raises(TypeError, match="'special' is a list"):
        Rehearsed(GENERAL, [1, 2])  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="different numbers of rows"):
        Rehearsed(GENERAL, SkillIt({"a": GENERAL}, lambda model: [1.0]))
    one, other = (next(Numbers(4).epoch(0)) for _ in range(2))
    with pytest.raises(ValueError, match="targets"):
        stacked([one, Batch(other.rows, other.users, other.ids, other.lengths)])
