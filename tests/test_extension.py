"""One part of each kind, written in one file outside the package: checked, trained, evaluated, exported, loaded."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

import recsys as rs
from recsys import testing
from recsys.recommenders.base import Ranker

MODULE = "somebody_elses_parts"
SOURCE = '''
"""A gated recurrent encoder and friends, by somebody who never edits the library."""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from recsys.objectives.weighted import weighted_sum
from recsys.protocols import Encoded


class GatedHistory(nn.Module):
    """GRU4Rec's encoder: a recurrent pass over the history."""

    sees = "past"

    def __init__(self, dim: int = 16, max_length: int = 10, dropout: float = 0.1) -> None:
        super().__init__()
        self.dim, self.max_length, self.dropout = dim, max_length, dropout
        self.cell = nn.GRU(dim, dim, batch_first=True)

    def forward(self, batch, items):
        vectors = F.dropout(items.embed(batch.flat_ids), self.dropout, self.training)
        states, _ = self.cell(batch.pad(vectors))
        return Encoded(batch, batch.flatten(states))


class SkipOne:
    """Predicts the next item at every second position, counted from the newest."""

    sees = "past"
    scheme = "windows"

    def train(self, batch, generator):
        lengths = (batch.lengths - 1).clamp(min=0)
        width = max(batch.ids.shape[1] - 1, 1)
        place = torch.arange(width, device=batch.ids.device)
        inside = place < lengths[:, None]
        nearly = torch.zeros_like(batch.ids) if batch.ids.shape[1] == 1 else batch.ids[:, 1:]
        chosen = inside & ((lengths[:, None] - 1 - place) % 2 == 0)
        return batch.replace(
            ids=batch.ids[:, :width] * inside,
            lengths=lengths,
            targets=nearly[:, :width] * chosen,
            weights=None,
            times=None if batch.times is None else batch.times[:, :width] * inside,
        )

    def query(self, batch):
        return batch


class Margin(nn.Module):
    """Hinge loss against a few uniform items."""

    def __init__(self, margin: float = 1.0, count: int = 8) -> None:
        super().__init__()
        self.margin, self.count = margin, count

    def forward(self, encoded, batch, items, generator):
        states, targets, weights = encoded.at_targets(batch)
        drawn = torch.randint(1, items.num_items + 1, (self.count,), generator=generator, device=states.device)
        positive = (states * items.output(targets)).sum(1, keepdim=True)
        negative = states @ items.output(drawn).T
        hinge = F.relu(self.margin - positive + negative).masked_fill(drawn == targets[:, None], 0.0)
        return weighted_sum(hinge.mean(1), weights)


class Calm(nn.Module):
    """Keeps user states small around a learned centre."""

    def __init__(self, dim: int = 16, weight: float = 0.01) -> None:
        super().__init__()
        self.dim, self.weight = dim, weight
        self.centre = nn.Parameter(torch.zeros(dim))

    def forward(self, step):
        return (step.encoded.user - self.centre).square().mean()


class DropFirst:
    """Forgets the oldest item of some histories."""

    def __init__(self, share: float = 0.3) -> None:
        self.share = share

    def __call__(self, batch, generator):
        drop = (torch.rand(len(batch), generator=generator, device=batch.ids.device) < self.share) & (batch.lengths > 1)

        def shifted(values):
            return torch.where(drop[:, None], F.pad(values[:, 1:], (0, 1)), values)

        fields = {name: getattr(batch, name) for name in ("ids", "times", "weights")}
        moved = {name: shifted(values) for name, values in fields.items() if values is not None}
        return batch.replace(lengths=batch.lengths - drop.long(), **moved)


class TopHalf:
    """The share of a user's targets that stand in the better half of the catalogue."""

    name = "top_half"
    at_k = False

    def __call__(self, ranked, k):
        return ranked.hits_within(max(k // 2, 1)) / np.maximum(ranked.relevant, 1)
'''


@pytest.fixture
def parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    (tmp_path / f"{MODULE}.py").write_text(SOURCE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, MODULE, raising=False)
    module = __import__(MODULE)
    yield module
    sys.modules.pop(MODULE, None)


def compose(parts: ModuleType) -> rs.Recommender:
    return rs.Recommender(
        rs.IdItems(16), parts.GatedHistory(), parts.Margin(), parts.SkipOne(), [parts.Calm()], [parts.DropFirst()]
    )


def test_each_part_passes_its_check(parts: ModuleType) -> None:
    testing.check_encoder(parts.GatedHistory())
    testing.check_targets(parts.SkipOne())
    testing.check_objective(parts.Margin())
    testing.check_auxiliary(parts.Calm())
    testing.check_augmentation(parts.DropFirst())
    testing.check_metric(parts.TopHalf())
    testing.check_ranker(compose(parts))


@pytest.mark.filterwarnings("ignore::recsys.errors.DataWarning")
def test_trained_evaluated_exported_and_loaded(parts: ModuleType, tmp_path: Path) -> None:
    split = testing.toy_split(num_users=200)
    model = compose(parts)
    fitted = rs.fit(model, split, epochs=6, batch_size=32, learning_rate=0.02, seed=1, progress=False)
    assert len(fitted.history) == 6
    assert fitted.history[-1]["loss"] < fitted.history[0]["loss"]

    popular = rs.Popularity()
    rs.fit(popular, split, progress=False)
    settings = {"k": 5, "metrics": ["ndcg", parts.TopHalf()], "progress": False}
    report, other = rs.evaluate(model, split.test, **settings), rs.evaluate(popular, split.test, **settings)
    assert 0 < report.means()["top_half"] <= 1
    assert report.means()["ndcg@5"] > other.means()["ndcg@5"]

    rs.export(model, tmp_path / "bundle", split=split)
    with pytest.raises(PermissionError, match=MODULE):
        rs.Bundle.load(tmp_path / "bundle")
    bundle = rs.Bundle.load(tmp_path / "bundle", trust=[MODULE])
    histories = [["i1", "i2"], ["i9"]]
    assert bundle.recommend(histories, 5).items == model.recommend(histories, 5).items
    np.testing.assert_allclose(bundle.model.scores(histories), model.scores(histories), rtol=1e-5, atol=1e-6)


def test_nothing_runs_without_trust(parts: ModuleType, tmp_path: Path) -> None:
    model: Ranker = compose(parts)
    model.bind(testing.toy_context())
    rs.export(model, tmp_path / "bundle")
    program = textwrap.dedent(f"""
        import sys
        import recsys as rs
        try:
            rs.Bundle.load({str(tmp_path / "bundle")!r})
        except PermissionError:
            assert {MODULE!r} not in sys.modules
            rs.Bundle.load({str(tmp_path / "bundle")!r}, trust=[{MODULE!r}])
            assert {MODULE!r} in sys.modules
            print("refused, then trusted")
    """)
    root = str(Path(rs.__file__).parents[1])
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True, text=True, timeout=600, env={"PYTHONPATH": f"{tmp_path}:{root}", "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.stdout.strip() == "refused, then trusted", done.stderr
