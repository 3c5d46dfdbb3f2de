"""A stage with batches of its own: preference pairs from outside of the package, rows of another split."""

import json
import re

import pytest
import torch
from cycles import cycles, outcome, plain, tiny
from pairs import PairSource, Preference

import recsys as rs
from recsys.data.batch import Batch
from recsys.runs.read import load_run
from recsys.testing import check_source
from recsys.train.fit import fit
from recsys.train.loader import TrainBatches
from recsys.train.loop import Loop
from recsys.train.settings import Stage
from recsys.train.source import BatchSource

QUIET = {"progress": False, "batch_size": 16}


def stages(source, epochs=2):
    return [
        Stage(1, losses=["loss"], name="next item"),
        Stage(epochs, losses=["Preference0"], name="preferences", data=source, validate=False),
    ]


def train(folder=None, source=None, epochs=2, **options):
    model, source = tiny(auxiliaries=[Preference()]), source or PairSource()
    fitted = fit(model, cycles(users=40), stages=stages(source, epochs), folder=folder, **{**QUIET, **options})
    return model, fitted, source


def test_preference_pairs_are_learned_in_a_stage_of_their_own(tmp_path):
    model, fitted, source = train(tmp_path, epochs=20, learning_rate=0.01)
    assert [sorted(line["terms"]) for line in fitted.history] == [["loss"]] + [["Preference0"]] * 20
    assert [line["targets"] for line in fitted.history[1:]] == [30.0] * 20
    assert fitted.history[-1]["loss"] < 0.5 * fitted.history[1]["loss"]
    assert source.asked == [(epoch, 0) for epoch in range(1, 21)]
    assert plain(load_run(tmp_path, trust=["pairs"]).tensors()) == plain(model.tensors())
    rs.export(model, tmp_path / "bundle", split=cycles(users=40))
    bundle = rs.Bundle.load(tmp_path / "bundle", trust=["pairs"])
    assert bundle.recommend([["item-3", "item-4"]], k=5).items == model.recommend([["item-3", "item-4"]], k=5).items
    assert 0 <= rs.evaluate(model, cycles(users=40).test, progress=False).mean("ndcg@10") <= 1
    kept = json.loads((tmp_path / "config.json").read_text())["settings"]["stages"][1]
    assert kept["data"] == {"class": "PairSource", **source.identity()} and isinstance(source, BatchSource)


# The first stage has 3 batches, an epoch of pairs 4: the update that does not come, and where the source goes on.


@pytest.mark.parametrize(
    ("accumulate", "stop", "goes_on"), [(1, 4, (1, 0)), (1, 6, (1, 2)), (1, 9, (2, 1)), (2, 4, (1, 2)), (2, 6, (2, 2))]
)
def test_a_stage_with_its_own_source_stopped_and_resumed_equals_an_uninterrupted_one(
    tmp_path, monkeypatch, accumulate, stop, goes_on
):
    options = {"checkpoint_every": 1, "accumulate": accumulate}
    train(tmp_path / "whole", **options)
    update, calls = Loop._update, []

    def stopping(self, batches):
        calls.append(1)
        if len(calls) == stop:
            raise KeyboardInterrupt
        return update(self, batches)

    with monkeypatch.context() as patch:
        patch.setattr(Loop, "_update", stopping)
        with pytest.raises(KeyboardInterrupt):
            train(tmp_path / "parts", **options)
    _, _, source = train(tmp_path / "parts", **options)
    assert source.asked[0] == goes_on
    assert outcome(tmp_path / "whole") == outcome(tmp_path / "parts")


def test_another_source_is_another_run(tmp_path):
    train(tmp_path)
    with pytest.raises(ValueError, match="pairs"):
        train(tmp_path, PairSource(seed=6))


def test_the_rows_of_a_stage_are_told(capsys):
    train(progress=True)
    said = capsys.readouterr().err
    assert "stage 'preferences', each epoch: 30 targets in 30 rows of PairSource" in said
    assert re.search(r"each epoch: [\d,]+ targets in [\d,]+ rows \(histories of up to \d+ items\)", said)


def test_rows_of_another_split_are_trained_as_those_of_the_run():
    split, other = cycles(users=40), cycles(users=40, seed=1)
    options = {"validate_every": 0, **QUIET}
    there, here = tiny(), tiny()
    data = TrainBatches(other.train, max_length=6, batch_size=16, seed=0)
    fitted = fit(there, split, stages=[Stage(2, data=data)], **options)
    fit(here, other, epochs=2, **options)
    weights = [
        plain({name: value.detach() for name, value in model.named_parameters()})
        for model in (there.eval(), here.eval())
    ]
    assert weights[0] == weights[1]
    assert fitted.history[0]["targets"] == data.num_targets
    assert data.identity() != TrainBatches(split.train, max_length=6, batch_size=16, seed=0).identity()


def test_a_source_is_bound_before_training_and_may_hold_the_model():
    class Bound(PairSource):
        def __init__(self, model):
            super().__init__()
            self.model = model

        def bind(self, context):
            self.context = context

    model = tiny(auxiliaries=[Preference()])
    fit(model, cycles(users=12), stages=[Stage(1, losses=["loss"])], **QUIET)
    before, source = plain(model.tensors()), Bound(model)
    fit(model, cycles(users=12), stages=stages(source, 0)[1:], **QUIET)
    assert source.context.num_items == 20 and plain(model.tensors()) == before


def test_batches_without_targets_beside_an_objective_are_refused_before_the_stages_before_them(tmp_path):
    plan = [Stage(1, losses=["loss"]), Stage(1, data=PairSource(), name="pairs")]
    with pytest.raises(ValueError, match=r"'pairs'.*losses=\[.*Preference0.*prepared = False"):
        fit(tiny(auxiliaries=[Preference()]), cycles(users=12), stages=plan, folder=tmp_path, **QUIET)
    assert not (tmp_path / "config.json").exists()


def test_a_source_without_rows_is_refused():
    with pytest.raises(ValueError, match="no rows"):
        train(source=PairSource(num_pairs=0))


def test_what_is_no_source_is_refused_with_what_it_lacks():
    with pytest.raises(TypeError, match="num_batches"):
        Stage(1, data=[1, 2])


def test_a_batch_of_one_s_own_keeps_its_class_and_fields():
    (batch, *_) = PairSource().epoch(0)
    picked = batch.to("cpu").select(torch.tensor([1, 0]))
    assert type(picked) is type(batch) and torch.equal(picked.better, batch.better[[1, 0]])


@pytest.mark.parametrize("make", [PairSource, lambda: TrainBatches(cycles().train, max_length=6, tokens=64)])
def test_sources_pass_the_check(make):
    check_source(make())


class Forgetful(PairSource):
    def epoch(self, epoch, start=0, rank=0, world_size=1):
        yield from super().epoch(epoch, 0, rank, world_size)


class Restless(PairSource):
    def epoch(self, epoch, start=0, rank=0, world_size=1):
        self.seed += 1
        yield from super().epoch(epoch, start, rank, world_size)


class Greedy(PairSource):
    def epoch(self, epoch, start=0, rank=0, world_size=1):
        yield from super().epoch(epoch, start)


class Uneven(PairSource):
    """Later epochs have fewer rows, and it does not say that they vary."""

    def epoch(self, epoch, start=0, rank=0, world_size=1):
        for batch in super().epoch(epoch, start, rank, world_size):
            yield batch.select(torch.arange(len(batch) - min(epoch, len(batch))))


class Nameless(PairSource):
    def identity(self):
        return {"pairs": object()}


@pytest.mark.parametrize(
    ("broken", "named"),
    [
        (Forgetful, "start"), (Restless, "twice"), (Greedy, "processes"), (Nameless, "identity"),
        (Uneven, "rows of the batches of epoch 1"),
    ],
)  # fmt: skip
def test_broken_sources_are_named(broken, named):
    with pytest.raises(AssertionError, match=named):
        check_source(broken())


def test_a_stage_may_be_given_in_a_recipe(tmp_path):
    source = PairSource()
    run = rs.Run(tiny(auxiliaries=[Preference()]), cycles(users=12), rs.Training(stages=stages(source, 1), **QUIET))
    assert len(run.fit(tmp_path).history) == 2 and isinstance(next(source.epoch(0)), Batch)
