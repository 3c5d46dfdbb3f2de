"""An epoch of hours names what is cheaper, and only where that is the reason."""

import pytest
from cycles import tiny
from torch import nn

from recsys.objectives.sampled import SampledSoftmax
from recsys.objectives.softmax import FullSoftmax
from recsys.recommenders.popularity import Popularity
from recsys.train import advice
from recsys.train.advice import Adviser, slow_epoch
from recsys.train.fit import fit


class Around(nn.Module):
    """An objective of one's own around another."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner


@pytest.mark.parametrize(
    ("model", "seconds", "items", "spoken"),
    [
        (tiny(), 66_241.0, 195_811, True),
        (tiny(objective=Around(FullSoftmax())), 4_000.0, 50_000, True),
        (tiny(), 1_000_000.0, 195_811, True),
        (tiny(), 600.0, 195_811, False),
        (tiny(), 66_241.0, 500, False),
        (tiny(), float("nan"), 195_811, False),
        (tiny(objective=SampledSoftmax()), 66_241.0, 195_811, False),
        (Popularity(), 66_241.0, 195_811, False),
        (tiny(objective=lambda *given: 0), 66_241.0, 195_811, False),
    ],
)
def test_hostile_12_an_epoch_of_hours_names_the_cheaper_objective(model, seconds, items, spoken):
    found = slow_epoch(model, seconds, items)
    assert (found is not None) == spoken
    assert not spoken or "SampledSoftmax" in found


def test_hostile_12_training_says_it_once(split, monkeypatch, capsys):
    for name, value in (("AFTER_SECONDS", 0), ("LONG_SECONDS", 0), ("MANY_ITEMS", 1)):
        monkeypatch.setattr(advice, name, value)
    fit(tiny(), split, epochs=2, batch_size=16)
    assert capsys.readouterr().err.count("SampledSoftmax") == 1
    for quiet in ({"objective": SampledSoftmax()}, {}):
        fit(tiny(**quiet), split, epochs=1, batch_size=16, progress=quiet != {})
        assert "SampledSoftmax" not in capsys.readouterr().err


@pytest.mark.parametrize(("seconds", "done", "said"), [(5.0, 1, False), (100.0, 12, True), (30.0, 0, False)])
def test_hostile_12_the_estimate_waits_until_it_can_be_made(seconds, done, said, capsys):
    model = tiny()
    model.num_items = 195_811
    adviser = Adviser(model)
    adviser(seconds, done, 6_111)
    adviser(seconds, done, 6_111)
    assert capsys.readouterr().err.count("SampledSoftmax") == said
