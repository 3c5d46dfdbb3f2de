"""An epoch of hours names what is cheaper, and only where that is the reason."""

import pytest
from cycles import tiny
from torch import nn

from recsys.baselines.popularity import Popularity
from recsys.objectives.sampled import SampledSoftmax
from recsys.objectives.softmax import FullSoftmax
from recsys.train.advice import slow_epoch


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
