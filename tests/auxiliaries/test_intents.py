"""Intent contrast: what is clustered, when, and against what a history is then contrasted."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from recsys.augmentations.crop import Crop
from recsys.augmentations.mask import Mask
from recsys.augmentations.reorder import Reorder
from recsys.auxiliaries import intents
from recsys.auxiliaries.cl4srec import CL4SRec
from recsys.auxiliaries.contrast import alike, nt_xent, pooled
from recsys.auxiliaries.duorec import DuoRec
from recsys.auxiliaries.intents import POINTS, IntentContrast
from recsys.data.batch import Batch
from recsys.encoders.sasrec import SASRec
from recsys.errors import DataWarning
from recsys.items.ids import IdItems
from recsys.objectives.softmax import FullSoftmax
from recsys.protocols import Context, Step
from recsys.recommenders.composed import Recommender
from recsys.testing import check_auxiliary, toy_batch, toy_context, toy_split
from recsys.train.fit import fit


def iclrec(**options: Any) -> IntentContrast:
    views = CL4SRec(0.1, [Crop(0.2), Mask(0.7, hide="drop"), Reorder(0.2)], pool="flat")
    return IntentContrast(views, **{"dim": 16, "clusters": 3, **options})


def icsrec(**options: Any) -> IntentContrast:
    return IntentContrast(DuoRec(0.3, hide=("target",)), **{"dim": 16, "clusters": 3, "pool": "last", **options})


def recommender(*auxiliaries: Any, dim: int = 16) -> Recommender:
    return Recommender(IdItems(dim), SASRec(dim, 1, 1, 0.0, 8), FullSoftmax(), auxiliaries=auxiliaries)


def bound(auxiliary: IntentContrast) -> tuple[Recommender, Step]:
    of = recommender(auxiliary)
    context = toy_context()
    of.bind(context)
    assert context.training is not None
    batch = context.training.gather(torch.arange(20).numpy(), 9, needs=frozenset({"events"}))
    return of, Step(of.prepare(batch, Step(batch)), seed=1, items=of.items, encode=of.encode)


class Clustered(IntentContrast):
    """With centroids from the start, as in any epoch but the first."""

    def bind(self, context: Context) -> None:
        super().bind(context)
        self.centroids.copy_(torch.randn(self.clusters, self.dim, generator=torch.Generator().manual_seed(0)))
        self.marks[intents.KNOWN], self._ready = 1, True


@pytest.mark.parametrize("cls", [IntentContrast, Clustered])
@pytest.mark.parametrize("pairs", [CL4SRec(operations=[Crop(), Reorder()], pool="flat"), DuoRec()])
@pytest.mark.parametrize("hide", [False, True])
def test_auxiliaries_conform_to_the_seam(cls: Any, pairs: Any, hide: bool) -> None:
    check_auxiliary(cls(pairs, 16, clusters=3, hide=hide), recommender())


@pytest.mark.parametrize("make", [iclrec, icsrec])
@pytest.mark.parametrize("hide", [False, True])
def test_each_view_is_contrasted_with_the_nearest_centroid(make: Any, hide: bool) -> None:
    auxiliary = make(hide=hide)
    _, step = bound(auxiliary)
    first = auxiliary(step)
    assert set(first) == {"pairs", "intent"} and first["intent"].item() == 0 and first["pairs"].item() > 0
    auxiliary.on_epoch(1)
    again = auxiliary(step)
    torch.testing.assert_close(again["pairs"], first["pairs"])
    inner = step.within("IntentContrast")
    torch.testing.assert_close(first["pairs"], auxiliary.pairs.weight * auxiliary.pairs(inner))

    views = Batch.join(auxiliary.pairs.views(inner, step.batch))
    assert step.encode is not None
    states = pooled(step.encode(views.replace(targets=views.ids)), auxiliary.pool).split(len(step.batch))
    own = pooled(step.encoded, auxiliary.pool).detach()
    losses = []
    for view, state in zip(states, (own, own if make is iclrec else states[1].detach()), strict=True):
        near = torch.tensor(
            [min(range(3), key=lambda k: float((one - auxiliary.centroids[k]).norm())) for one in state]
        )
        centres = torch.stack([F.normalize(auxiliary.centroids[k], dim=0) for k in near.tolist()])
        losses.append(nt_xent(view, centres, hide=alike(near) if hide else None))
    torch.testing.assert_close(again["intent"], auxiliary.intent * (losses[0] + losses[1]) / 2)


def test_both_terms_share_one_pass_and_weight_zero_leaves_the_pairs_out() -> None:
    auxiliary = iclrec()
    of, step = bound(auxiliary)
    calls: list[int] = []
    of.encoder.register_forward_hook(lambda *_: calls.append(1))
    auxiliary(step)
    assert len(calls) == 2  # the recommendation pass, and both views
    auxiliary.pairs.weight = 0.0
    assert set(auxiliary(step)) == {"intent"}


def test_the_states_of_an_epochs_own_steps_are_clustered(monkeypatch: pytest.MonkeyPatch) -> None:
    auxiliary = icsrec()
    _, step = bound(auxiliary)
    calls: list[Any] = []

    def spy(vectors: Any, clusters: int, iterations: int, seed: int, start: Any) -> Any:
        calls.append((torch.from_numpy(vectors.copy()), start if start is None else start.copy()))
        return vectors[:clusters]

    monkeypatch.setattr(intents, "kmeans", spy)
    auxiliary.on_epoch(0)
    assert not calls  # nothing was seen
    auxiliary(step)
    auxiliary.eval()
    auxiliary(step)  # not training: not remembered
    auxiliary.train()
    auxiliary.on_epoch(1)
    ((vectors, start),) = calls
    torch.testing.assert_close(vectors, step.encoded.user.detach())
    assert start is None
    before = auxiliary.centroids.clone()
    for _ in range(POINTS):  # more than is remembered
        auxiliary(step)
    auxiliary.on_epoch(2)
    assert len(calls[1][0]) == 3 * POINTS
    torch.testing.assert_close(torch.from_numpy(calls[1][1]), before)  # the clusters go on from where they were
    places = (torch.arange(20 * (POINTS - 1), 20 * POINTS)) % (3 * POINTS)
    torch.testing.assert_close(calls[1][0][places], step.encoded.user.detach())  # the newest are kept


def test_check_12_fewer_rows_than_clusters_are_no_intents_and_said_once() -> None:
    auxiliary = icsrec(clusters=21)
    _, step = bound(auxiliary)
    for epoch in range(4):
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            auxiliary.on_epoch(epoch)
        told = [one for one in seen if issubclass(one.category, DataWarning)]
        assert len(told) == (epoch == 1)
        assert auxiliary(step)["intent"].item() == 0


def test_check_12_clusters_are_the_same_under_one_seed() -> None:
    found = []
    for _ in range(2):
        auxiliary = iclrec()
        _, step = bound(auxiliary)
        auxiliary(step)
        auxiliary.on_epoch(1)
        found.append(auxiliary.centroids.clone())
    assert torch.equal(*found) and bool(found[0].any())


def test_an_interrupted_epoch_goes_on_with_its_clusters() -> None:
    auxiliary, other = icsrec(), icsrec()
    of, step = bound(auxiliary)
    resumed, again = bound(other)
    auxiliary(step)
    auxiliary.on_epoch(1)
    auxiliary(step)
    resumed.load_tensors(of.tensors())
    other.on_epoch(1)  # the loop calls it again where it goes on within the epoch
    for name, value in auxiliary(step).items():
        torch.testing.assert_close(other(again)[name], value)
    assert torch.equal(other.centroids, auxiliary.centroids)


def test_a_resumed_run_is_the_uninterrupted_one(tmp_path: Path) -> None:
    weights = []
    for name, stops in (("whole", (3,)), ("halves", (2, 3))):
        for epochs in stops:
            made = recommender(iclrec(dim=8), dim=8)
            options: dict[str, Any] = {"batch_size": 16, "progress": False, "validate_every": 0}
            done = fit(made, toy_split(), epochs=epochs, folder=tmp_path / name, **options)
        weights.append(made.tensors())
    assert {"loss", "IntentContrast0.pairs", "IntentContrast0.intent"} == set(done.history[-1]["terms"])
    assert done.history[-1]["terms"]["IntentContrast0.intent"] > 0 == done.history[0]["terms"]["IntentContrast0.intent"]
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())


def test_a_saved_model_loads_without_training_events() -> None:
    of, step = bound(icsrec())
    of.loss(step)
    fresh = recommender(icsrec())
    fresh.bind(Context(30, toy_context().vocabulary))
    fresh.load_tensors(of.tensors())
    assert torch.equal(fresh.encode(toy_batch()).user, of.encode(toy_batch()).user)


@pytest.mark.parametrize(
    ("settings", "word"),
    [
        ({"pool": "flat"}, "pool"),
        ({"temperature": 0}, "temperature"),
        ({"clusters": 1}, "clusters"),
        ({"dim": 0}, "dim"),
    ],
)
def test_wrong_settings_say_which(settings: dict[str, Any], word: str) -> None:
    with pytest.raises(ValueError, match=word):
        icsrec(**settings)
    with pytest.raises(ValueError, match="mode"):
        IntentContrast(DuoRec(mode="su"))


@pytest.mark.parametrize("pairs", [CL4SRec(operations=[Crop(), Reorder()], pool="flat"), DuoRec(hide=("target",))])
def test_a_process_without_rows_brings_nothing(pairs: Any) -> None:
    auxiliary = Clustered(pairs, 16, clusters=3, hide=True)
    _, step = bound(auxiliary)
    batch = step.batch
    assert batch.targets is not None
    nothing = batch.replace(ids=batch.ids * 0, lengths=batch.lengths * 0, targets=batch.targets * 0)
    for less in (replace(step, batch=nothing), replace(step, share=0.0)):
        assert sum(auxiliary(less).values()).item() == 0
    assert int(auxiliary.marks[intents.SEEN]) == 0


def test_another_width_than_the_encoders_is_an_error() -> None:
    auxiliary = icsrec(dim=8)
    _, step = bound(auxiliary)
    with pytest.raises(ValueError, match="width"):
        auxiliary(step)
