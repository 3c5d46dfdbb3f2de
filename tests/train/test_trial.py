"""Parts of others that give something else than their seam says are refused before anything is trained or written."""

import numpy as np
import pytest
import torch
from cycles import cycles, plain, tiny
from torch import nn

import recsys as rs
from recsys.augmentations.crop import Crop
from recsys.auxiliaries.cl4srec import CL4SRec
from recsys.auxiliaries.duorec import DuoRec
from recsys.auxiliaries.triplet import TripletContrast
from recsys.encoders.sasrec import SASRec
from recsys.encoders.unirec import Branches
from recsys.items.ids import IdItems
from recsys.items.recformer import RecformerItems
from recsys.objectives.softmax import FullSoftmax
from recsys.protocols import Encoded, Step
from recsys.recommenders.composed import Recommender
from recsys.targets.masked_items import MaskedItems
from recsys.targets.next_item import NextItem
from recsys.testing import toy_batch, toy_context
from recsys.train.fit import fit


def objective(change):
    class MyLoss(nn.Module):
        def forward(self, encoded, batch, items, generator):
            states, targets, weights = encoded.at_targets(batch)
            rows = torch.arange(1, items.num_items + 1)
            losses = nn.functional.cross_entropy(states @ items.output(rows).T, targets - 1, reduction="none")
            return change(losses if weights is None else losses * weights)

    return {"objective": MyLoss()}


def auxiliary(answer):
    class MyTerm(nn.Module):
        weight = 0.5

        def forward(self, step):
            return answer(step)

    return {"auxiliaries": [MyTerm()]}


def augmentation(change):
    class MyView:
        def __call__(self, batch, generator):
            return change(batch)

    return {"augmentations": [MyView()]}


def weighting(change):
    class MyWeight:
        normalised = True

        def __call__(self, batch):
            return change(batch)

    return {"weightings": [MyWeight()]}


def targets(change):
    class MyTargets(NextItem):
        def train(self, batch, generator=None):
            return change(super().train(batch))

    return {"targets": MyTargets()}


def encoder(change):
    class MyEncoder(SASRec):
        def forward(self, batch, items):
            return change(super().forward(batch, items))

    return {"encoder": MyEncoder(8, 1, 1, max_length=6)}


def items(**methods):
    return {"items": type("MyItems", (IdItems,), methods)(8)}


def shifted(batch):
    batch.ids[:, 0] = 1
    return batch


def unweighted(given):
    return given


class Forgetful(nn.Module):
    """An objective that leaves the weights of the targets out."""

    def forward(self, encoded, batch, items, generator):
        return encoded.at_targets(batch)[0].square().sum()


class Held:
    """No module, but with weights."""

    weight = 0.5

    def __init__(self):
        self.layer = nn.Linear(8, 8)

    def __call__(self, step):
        return self.layer(step.encoded.user).mean()


WRONG = {
    "k10-a mean": (objective(lambda loss: loss.mean()), "MyLoss"),
    "loss per target": (objective(lambda loss: loss), "MyLoss"),
    "no weights": ({"objective": Forgetful()}, "doubled weights"),
    "a weighted mean": (objective(lambda loss: loss.mean()), "a mean"),
    "loss (T, 1)": (objective(lambda loss: loss[:, None]), "MyLoss"),
    "loss of fewer": (objective(lambda loss: loss[1:]), "MyLoss"),
    "loss of floats": (objective(lambda loss: loss.tolist()), "MyLoss"),
    "loss not finite": (objective(lambda loss: loss.log().sum() * 0 + torch.inf), "MyLoss"),
    "term per row": (auxiliary(lambda step: step.encoded.user.mean(1)), "MyTerm"),
    "terms per row": (auxiliary(lambda step: {"a": step.encoded.user.sum(), "b": step.encoded.user}), "MyTerm"),
    "term of float": (auxiliary(lambda step: 0.5), "MyTerm"),
    "term not finite": (auxiliary(lambda step: step.encoded.user.sum() / 0), "MyTerm"),
    "times nobody gives": (auxiliary(lambda step: step.batch.times[:, 0].float().mean()), "times"),
    "extra nobody gives": (auxiliary(lambda step: step.encoded.read(Branches).states.mean()), "Branches"),
    "weights it must have": (objective(lambda loss: (loss * None).sum()), "MyLoss"),
    "view of fewer": (augmentation(lambda batch: batch.select(torch.arange(2))), "MyView"),
    "view in place": (augmentation(shifted), "MyView"),
    "view of rows nobody has": (augmentation(lambda b: b.replace(ids=b.ids + 90 * b.mask)), "MyView"),
    "no view": (augmentation(lambda batch: batch.ids), "MyView"),
    "weight per row": (weighting(lambda batch: torch.ones(len(batch))), "MyWeight"),
    "targets nobody has": (targets(lambda b: b.replace(targets=b.targets + 90 * (b.targets > 0))), "MyTargets"),
    "targets of one column": (targets(lambda b: b.replace(targets=b.targets[:, :1])), "MyTargets"),
    "no targets": (targets(lambda b: b.replace(targets=None)), "MyTargets"),
    "states of padding": (encoder(lambda e: Encoded(e.batch, e.states.flatten(0, 1))), "MyEncoder"),
    "user of another width": (encoder(lambda e: Encoded(e.batch, e.tokens, users=e.user[:, :2])), "MyEncoder"),
    "no encoded": (encoder(lambda e: e.tokens), "MyEncoder"),
    "scores from row 0": (items(scores=lambda self, users, **more: users @ self.weight.T), "MyItems"),
    "scores of some": (items(scores=lambda self, users, **more: users @ self.weight[1:5].T), "MyItems"),
    "one sum for all": (items(log_sum_exp=lambda self, hidden: (hidden @ self.weight[1:].T).exp().sum()), "MyItems"),
    "output of another shape": (items(output=lambda self, ids: self.weight[ids].sum(-1)), "MyItems"),
    "scores of other vectors": (items(scores=lambda self, users, **more: users @ self.weight[1:].T * 2), "MyItems"),
    "loss without a gradient": (objective(lambda loss: loss.sum().detach()), "MyLoss"),
    "targets where there are none": (encoder(lambda e: Encoded(e.batch, e.tokens + e.batch.targets.sum())), "targets"),
    "batch in place": (encoder(lambda e: Encoded(shifted(e.batch), e.tokens)), "MyEncoder"),
    "no normalised": ({"weightings": [unweighted]}, "unweighted"),
    "no weight": ({"auxiliaries": [unweighted]}, "unweighted"),
    "weights outside": ({"auxiliaries": [Held()]}, "Held"),
}


def model_of(given):
    parts = {"items": IdItems(8), "encoder": SASRec(8, 1, 1, max_length=6), "objective": FullSoftmax(), **given}
    return Recommender(**parts)


@pytest.mark.parametrize("case", WRONG)
def test_k10_a_foreign_part_is_refused_before_the_first_update(tmp_path, case):
    given, named = WRONG[case]
    with pytest.raises(ValueError, match=named):
        # a function cannot be kept in a run folder, which is told before
        folder = None if named == "unweighted" else tmp_path / "run"
        fit(model_of(given), cycles(users=12), epochs=1, progress=False, folder=folder)
    assert not list((tmp_path / "run").glob("*"))


class Counting(nn.Module):
    """Changes whatever it can when it is called, and draws."""

    def __init__(self, weight=0.5):
        super().__init__()
        self.weight, self.calls = weight, []
        self.register_buffer("seen", torch.zeros(2))

    def forward(self, step):
        self.calls.append(torch.rand(1) + np.random.rand())
        self.seen += 1
        return step.encoded.user.square().mean()


def test_the_trial_leaves_no_trace(monkeypatch):
    results = []
    for tried in (True, False):
        if not tried:
            monkeypatch.setattr("recsys.train.fit.try_parts", lambda *_: None)
        part = Counting()
        model = tiny(auxiliaries=[part])
        fit(model, cycles(users=12), epochs=1, batch_size=4, progress=False, validate_every=0)
        results.append((plain(model.tensors()), len(part.calls), torch.stack(part.calls).tolist()))
    assert results[0] == results[1]


def test_k10_the_shape_of_the_loss_is_looked_at_in_every_step():
    model = model_of(objective(lambda loss: loss))
    model.bind(toy_context())
    batch = model.prepare(toy_batch(), Step(toy_batch()))
    with pytest.raises(ValueError, match="MyLoss"):
        model.loss(Step(batch))


@pytest.mark.parametrize(
    "given",
    [
        {"targets": MaskedItems(), "items": RecformerItems(8)},
        {"auxiliaries": [CL4SRec()], "items": RecformerItems(8)},
        {"auxiliaries": [TripletContrast()], "items": RecformerItems(8)},
        {"auxiliaries": [DuoRec()], "augmentations": [Crop(0.6, least=2)]},
    ],
)
def test_what_does_not_fit_is_refused_when_the_parts_are_put_together(given):
    with pytest.raises(ValueError, match=r"RecformerItems|DuoRec0"):
        model_of({"encoder": SASRec(8, 1, 1, max_length=60), **given})
    fitting = {name: [] if name in ("auxiliaries", "augmentations") else part for name, part in given.items()}
    fitting["items"] = IdItems(8, extra=2)
    model_of(fitting)


def test_a_table_that_holds_the_items_of_another_model_is_not_given_more_rows(tmp_path):
    split, items = cycles(users=12), IdItems(8)
    first = model_of({"items": items})
    fit(first, split, epochs=1, progress=False)
    with pytest.raises(
        ValueError, match=r"MaskedItems \(targets\) needs 1 .* IdItems already holds 20 items of another"
    ):
        model_of({"items": items, "targets": MaskedItems()})
    rs.export(first, tmp_path / "bundle", split=split)  # could not be loaded: the table said that it had a mask
    served = rs.Bundle.load(tmp_path / "bundle").recommend([["item-3"]], k=2)
    assert served.items == first.recommend([["item-3"]], k=2).items


def test_an_objective_of_the_former_contract_is_told_what_to_return():
    def losses(encoded, batch, items, generator):
        hidden, targets, _ = encoded.at_targets(batch)
        return -(hidden * items.output(targets)).sum(1)

    with pytest.raises(ValueError, match=r"must give a scalar, .*weighted_sum\(losses, weights\)"):
        fit(model_of({"objective": losses}), cycles(users=12), epochs=1, progress=False)


def test_what_fit_cannot_train_is_named():
    class Own:
        def recommend(self, histories, k=10, exclude="history"):
            return [[] for _ in histories]

    for given, named in ((Own(), "found Own"), (Recommender, "found the class Recommender")):
        with pytest.raises(TypeError, match=named):
            fit(given, cycles(users=12))


def test_a_part_of_weight_0_asks_for_no_rows():
    model_of({"auxiliaries": [CL4SRec(0), DuoRec(0)], "augmentations": [Crop(0.6, least=2)]})


class Epochs(nn.Module):
    """Remembers which epochs it was told of."""

    weight = 0.1

    def __init__(self):
        super().__init__()
        self.told = []

    def on_epoch(self, epoch):
        self.told.append(epoch)

    def forward(self, step):
        return step.encoded.user.square().mean()


def test_on_epoch_comes_again_when_a_run_is_resumed_within_the_epoch(tmp_path, monkeypatch):
    from recsys.train.loop import Loop

    update, calls = Loop._update, []

    def stopping(self, batches):
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return update(self, batches)

    options = {"epochs": 2, "batch_size": 4, "progress": False, "folder": tmp_path, "checkpoint_every": 1}
    monkeypatch.setattr(Loop, "_update", stopping)
    first, second = Epochs(), Epochs()
    with pytest.raises(KeyboardInterrupt):
        fit(tiny(auxiliaries=[first]), cycles(users=12), **options)
    fit(tiny(auxiliaries=[second]), cycles(users=12), **options)
    assert (first.told, second.told) == ([0, 1], [1])
    whole = tiny(auxiliaries=[Epochs()])
    monkeypatch.undo()
    fit(whole, cycles(users=12), **{**options, "folder": None})
    resumed = tiny(auxiliaries=[Epochs()])
    fit(resumed, cycles(users=12), **options)
    assert plain(resumed.tensors()) == plain(whole.tensors())


def test_one_target_forgets_the_stage_of_an_earlier_fit():
    from recsys.targets.one_target import OneTarget

    part = OneTarget()
    part.on_stage("pretrain")
    tiny(targets=part).bind(toy_context())
    assert part.stage == ""


def test_one_process_decides_when_to_save():
    from types import SimpleNamespace

    from recsys.train.loop import Loop

    def decided(leads, due, others):
        fabric = SimpleNamespace(world_size=2, device="cpu", is_global_zero=leads)
        fabric.all_reduce = lambda value, reduce_op: value + torch.tensor([0.0, 0.0, others])
        return Loop._agree(SimpleNamespace(fabric=fabric, _leads=leads), 1.0, False, due)[2]

    assert decided(True, True, 0) and not decided(True, False, 0)
    assert decided(False, False, 1) and not decided(False, True, 0)


def test_parts_of_this_package_are_not_tried(monkeypatch):
    tried = []
    monkeypatch.setattr("recsys.train.trial._Trial.run", tried.append)
    fit(tiny(), cycles(20), epochs=1, progress=False)
    assert not tried
