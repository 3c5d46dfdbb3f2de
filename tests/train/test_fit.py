import dataclasses
import errno
import json
import math
import os
import signal

import numpy as np
import pytest
import torch
from cycles import cycles, outcome, plain, tiny, without_clock

import recsys as rs
from recsys.data.prepared import Prepared
from recsys.data.split import Split
from recsys.data.splitters import LeaveLast
from recsys.errors import DataError, DataWarning
from recsys.eval.evaluate import evaluate
from recsys.ids.vocabulary import Vocabulary
from recsys.negatives.uniform import UniformNegatives
from recsys.objectives.bce import BCE
from recsys.objectives.gbce import GBCE
from recsys.objectives.sampled import SampledSoftmax
from recsys.objectives.softmax import FullSoftmax
from recsys.recommenders.base import Ranker
from recsys.recommenders.composed import Recommender
from recsys.runs import checkpoint
from recsys.runs.read import load_run, read_tensors
from recsys.train import update
from recsys.train.fit import fit
from recsys.train.loop import Validation

QUIET = {"progress": False, "batch_size": 32}


def weights(model):
    return plain(model.tensors())


def test_learns_the_cycle_and_reports_what_evaluate_reports(split):
    model = tiny(dropout=0.0)
    fitted = fit(model, split, epochs=30, learning_rate=0.01, **QUIET)
    assert fitted.best["value"] > 0.9
    again = evaluate(model, split.valid, metrics=["ndcg@10"], progress=False).mean("ndcg@10")
    assert fitted.best["value"] == again == max(record["ndcg@10"] for record in fitted.history)
    assert fitted.history[-1]["loss"] < fitted.history[0]["loss"] < 1.1 * np.log(20)
    assert fitted.history[0]["targets"] == sum(np.minimum(split.train.lengths - 1, 6))


def test_the_same_seed_gives_the_same_run_and_leaves_the_callers_generators_alone(split):
    first, second, other = tiny(), tiny(), tiny()
    torch.manual_seed(5)
    np.random.seed(5)
    expected = torch.rand(3), np.random.rand(3)
    torch.manual_seed(5)
    np.random.seed(5)
    seeds = ((first, 1), (second, 1), (other, 2))
    records = [fit(model, split, epochs=2, seed=seed, **QUIET).history for model, seed in seeds]
    assert [without_clock(line) for line in records[0]] == [without_clock(line) for line in records[1]]
    assert weights(first) == weights(second) != weights(other)
    assert torch.equal(torch.rand(3), expected[0]) and (np.random.rand(3) == expected[1]).all()


def test_run_folder_holds_everything_and_loads_without_the_data(split, tmp_path):
    model, recipe = tiny(), tmp_path / "mine.py"
    recipe.write_text("def run(): ...\n")
    origin = {"recipe": recipe, "arguments": {"dim": 8}, "name": "mine"}
    fitted = fit(model, split, epochs=2, folder=tmp_path / "run", **origin, **QUIET)
    config = json.loads((fitted.folder / "config.json").read_text())
    manifest = json.loads((fitted.folder / "manifest.json").read_text())
    assert config["name"] == "mine" and config["arguments"] == {"dim": 8} and config["settings"]["epochs"] == 2
    assert config["model"]["class"] == "recsys.recommenders.composed:Recommender"
    assert manifest["seed"] == 0 and manifest["versions"]["torch"]
    assert manifest["data"]["protocol"]["name"] == "leave-last"
    assert (fitted.folder / "recipe.py").read_text() == recipe.read_text()
    lines = [json.loads(line) for line in (fitted.folder / "metrics.jsonl").read_text().splitlines()]
    assert lines == fitted.history and [line["epoch"] for line in lines] == [1, 2]
    loaded = load_run(fitted.folder)
    history = [["item-3", "item-4"]]
    assert loaded.recommend(history, k=3).items == model.recommend(history, k=3).items
    assert np.array_equal(loaded.scores(history), model.scores(history))
    with pytest.raises(FileNotFoundError):
        load_run(tmp_path / "nothing")


def test_a_finished_run_is_not_trained_again_and_more_epochs_go_on(split, tmp_path):
    whole, parts = tiny(), tiny()
    fit(whole, split, epochs=4, folder=tmp_path / "whole", **QUIET)
    fit(parts, split, epochs=2, folder=tmp_path / "parts", **QUIET)
    before = (tmp_path / "parts" / "metrics.jsonl").read_text()
    again = tiny()
    fitted = fit(again, split, epochs=2, folder=tmp_path / "parts", **QUIET)
    assert (tmp_path / "parts" / "metrics.jsonl").read_text() == before and len(fitted.history) == 2
    assert weights(again) == weights(parts)
    fit(again, split, epochs=4, folder=tmp_path / "parts", **QUIET)
    assert outcome(tmp_path / "parts") == outcome(tmp_path / "whole")


def scripted(monkeypatch, values):
    """Validation that answers ``values`` in turn, whatever the model does."""
    answers = iter(values)
    monkeypatch.setattr(Validation, "__call__", lambda self, model, metric: next(answers))


def test_patience_stops_and_the_best_weights_come_back(split, monkeypatch):
    scripted(monkeypatch, [0.1, 0.5, 0.4, 0.5, 0.3, 0.9])
    model, seen = tiny(), []
    original = Recommender.tensors
    monkeypatch.setattr(Recommender, "tensors", lambda self: seen.append(weights_of(original, self)) or original(self))
    fitted = fit(model, split, epochs=20, patience=3, **QUIET)
    assert len(fitted.history) == 5 and fitted.best["epoch"] == 2 and fitted.best["value"] == 0.5
    monkeypatch.undo()
    assert len(seen) == 2 and weights(model) == seen[1]


def weights_of(tensors, model):
    return {name: value.numpy().tobytes() for name, value in tensors(model).items()}


def test_validation_can_be_rarer_or_left_out(split):
    history = fit(tiny(), split, epochs=5, validate_every=2, **QUIET).history
    assert [line["epoch"] for line in history if "ndcg@10" in line] == [2, 4, 5]
    fitted = fit(tiny(), split, epochs=3, validate_every=0, **QUIET)
    assert fitted.best["epoch"] == 3 and fitted.best["value"] is None
    with pytest.warns(DataWarning, match="validation"):
        fitted = fit(tiny(), cycles(splitter=LeaveLast(valid=0)), epochs=2, **QUIET)
    assert fitted.best["epoch"] == 2


def test_a_sample_of_validation_users_is_the_same_every_time(split):
    first, second = (Validation(split, settings(valid_users=10)).part for _ in range(2))
    assert len(first) == 10 and (first.users == second.users).all() and len(set(first.users.tolist())) == 10


def settings(**changes):
    from recsys.train.settings import Training

    return Training(**changes)


def test_no_epochs_keep_the_initial_weights(split, tmp_path):
    model = tiny()
    fitted = fit(model, split, epochs=0, folder=tmp_path / "run", **QUIET)
    assert fitted.history == [] and fitted.best == {}
    assert weights(load_run(tmp_path / "run")) == weights(model)


def test_accumulated_batches_are_one_batch(split):
    whole, parts = tiny(dropout=0.0), tiny(dropout=0.0)
    fit(whole, split, epochs=2, batch_size=40, progress=False)
    fit(parts, split, epochs=2, batch_size=10, accumulate=4, progress=False)
    for name, value in whole.tensors().items():
        torch.testing.assert_close(parts.tensors()[name], value, atol=1e-5, rtol=1e-4)


def test_weights_of_targets_count_over_the_whole_update(split):
    class Weighted(Recommender):
        def prepare(self, batch, step):
            batch = super().prepare(batch, step)
            return batch.replace(weights=1.0 + (batch.targets % 3).float())

    whole, parts = tiny(dropout=0.0, cls=Weighted), tiny(dropout=0.0, cls=Weighted)
    first = fit(whole, split, epochs=1, batch_size=40, progress=False).history[0]
    second = fit(parts, split, epochs=1, batch_size=10, accumulate=4, progress=False).history[0]
    assert first["targets"] == second["targets"] > sum(split.train.lengths - 1)
    assert first["loss"] == pytest.approx(second["loss"], rel=1e-5)


OBJECTIVES = {
    "softmax": FullSoftmax,
    "sampled": lambda: SampledSoftmax(UniformNegatives(5, per="batch")),
    "bce": lambda: BCE(UniformNegatives(3)),
    "gbce": lambda: GBCE(negatives=UniformNegatives(5)),
}


@pytest.mark.parametrize("name", OBJECTIVES)
def test_weights_of_one_train_bit_identically_to_none(split, name):
    ones = np.ones(len(split.prepared.items), np.float32)
    weighted = dataclasses.replace(split, prepared=dataclasses.replace(split.prepared, weights=ones))
    with_ones, without = tiny(objective=OBJECTIVES[name]()), tiny(objective=OBJECTIVES[name]())
    first, second = fit(with_ones, weighted, epochs=2, **QUIET), fit(without, split, epochs=2, **QUIET)
    assert weights(with_ones) == weights(without)
    assert [without_clock(line) for line in first.history] == [without_clock(line) for line in second.history]


@pytest.mark.parametrize("name", OBJECTIVES)
def test_the_weights_of_the_data_decide_what_is_learned(split, name):
    """After item i, half of the users go on to i + 1 and half to i + 2; only the weight says which counts."""
    start, step = np.arange(200) % 20, 1 + np.arange(200) // 20 % 2
    items = (start[:, None] + step[:, None] * np.arange(8)) % 20 + 1
    for favoured in (1, 2):
        weighed = np.repeat(np.where(step == favoured, 1.0, 0.0), 8).astype(np.float32)
        prepared = Prepared(items.astype(np.int32).ravel(), np.arange(201) * 8, 20, weights=weighed)
        model = tiny(dropout=0.0, objective=OBJECTIVES[name]())
        data = Split.of(prepared, LeaveLast(), split.items, Vocabulary(np.arange(200), first=0))
        fitted = fit(model, data, epochs=20, learning_rate=0.03, validate_every=0, seed=1, **QUIET)
        assert fitted.history[0]["targets"] == weighed.sum() / 8 * 5
        scores = model.scores([[f"item-{i}"] for i in range(20)])
        one, two = (scores[np.arange(20), (np.arange(20) + ahead) % 20] for ahead in (1, 2))
        assert ((one > two) == (favoured == 1)).mean() > 0.9


def test_warmup_and_a_callers_optimizer(split):
    history = fit(tiny(), split, epochs=2, warmup_steps=8, **QUIET).history
    assert [line["learning_rate"] for line in history] == pytest.approx([0.0005, 0.001])
    made = []

    def sgd(parameters):
        made.append(torch.optim.SGD(parameters, lr=0.5, momentum=0.9))
        return made[-1]

    history = fit(tiny(), split, epochs=1, optimizer=sgd, **QUIET).history
    assert isinstance(made[-1], torch.optim.SGD) and history[0]["learning_rate"] == 0.5
    with pytest.raises(TypeError, match="optimizer"):
        fit(tiny(), split, epochs=1, optimizer=lambda parameters: None, **QUIET)


def test_the_learning_rate_decays_over_the_epochs_of_each_stage(split, tmp_path):
    rates = {}
    for decay in ("none", "linear", "cosine"):
        stages = [rs.Stage(2), rs.Stage(1, learning_rate=0.01)]
        history = fit(tiny(), split, stages=stages, decay=decay, **QUIET).history  # 4 updates an epoch
        rates[decay] = [line["learning_rate"] for line in history]
    assert rates["none"] == pytest.approx([0.001, 0.001, 0.01])
    assert rates["linear"] == pytest.approx([0.001 * 5 / 8, 0.001 / 8, 0.01 / 4])
    cosine = [(1 + math.cos(math.pi * share)) / 2 for share in (3 / 8, 7 / 8, 3 / 4)]
    assert rates["cosine"] == pytest.approx([0.001 * cosine[0], 0.001 * cosine[1], 0.01 * cosine[2]])
    fit(tiny(), split, epochs=1, decay="linear", folder=tmp_path / "run", **QUIET)
    with pytest.raises(ValueError, match="another run"):  # with other epochs the first one had other rates
        fit(tiny(), split, epochs=2, decay="linear", folder=tmp_path / "run", **QUIET)
    with pytest.raises(ValueError, match="decay"):
        fit(tiny(), split, epochs=1, decay="cosin", **QUIET)


def test_low_precision_and_token_budget_train(split):
    fitted = fit(tiny(), split, epochs=2, precision="bf16-mixed", tokens=60, progress=False)
    assert np.isfinite(fitted.history[-1]["loss"]) and fitted.history[-1]["step"] > 10


class Poisoned(Recommender):
    """Its loss is NaN in the third epoch."""

    def loss(self, step):
        terms = super().loss(step)
        return {**terms, "extra": terms["loss"] * (float("nan") if step.epoch == 2 else 0.0)}


def test_a_loss_that_is_not_finite_stops_with_what_was_seen(split, tmp_path):
    model = tiny(cls=Poisoned)
    with pytest.raises(FloatingPointError, match=r"epoch 3, update 9: .*extra = nan.*rows"):
        fit(model, split, epochs=5, folder=tmp_path / "run", **QUIET)
    assert len((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()) == 2
    for path in (tmp_path / "run").rglob("model.safetensors"):
        assert all(bool(torch.isfinite(value).all()) for value in read_tensors(path).values())
    assert all(bool(torch.isfinite(value).all()) for value in model.parameters())


def test_weights_that_are_not_finite_are_never_written(split, tmp_path, monkeypatch):
    apply = update.Updater._apply

    def broken(self, index, progress):
        apply(self, index, progress)
        if index == 5:
            with torch.no_grad():
                self.model.items.weight[3, 0] = float("inf")

    monkeypatch.setattr(update.Updater, "_apply", broken)
    with pytest.raises(FloatingPointError):
        fit(tiny(), split, epochs=5, folder=tmp_path / "run", checkpoint_every=1, **QUIET)
    for path in (tmp_path / "run").rglob("model.safetensors"):
        assert all(bool(torch.isfinite(value).all()) for value in read_tensors(path).values())


@pytest.fixture
def ctrl_c():
    """Ctrl-C as at a terminal, wherever the tests run: a shell's background jobs ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("ctrl_c")
@pytest.mark.parametrize("where", ["update", "validation"])
def test_interrupted_by_ctrl_c_then_resumed_equals_uninterrupted(split, tmp_path, monkeypatch, capsys, where):
    fit(tiny(), split, epochs=3, folder=tmp_path / "whole", **QUIET)
    owner, name = (update.Updater, "__call__") if where == "update" else (Validation, "__call__")
    original, calls = getattr(owner, name), []

    def interrupted(self, *arguments):
        calls.append(1)
        if len(calls) == (6 if where == "update" else 2):
            os.kill(os.getpid(), signal.SIGINT)
        return original(self, *arguments)

    monkeypatch.setattr(owner, name, interrupted)
    model = tiny()
    with pytest.raises(KeyboardInterrupt):
        fit(model, split, epochs=3, folder=tmp_path / "run", **QUIET)
    assert "resume" in capsys.readouterr().err
    assert weights(load_run(tmp_path / "run")) == weights(model)  # the best so far, on disk and in memory
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    fit(model, split, epochs=3, folder=tmp_path / "run", **QUIET)
    assert outcome(tmp_path / "run") == outcome(tmp_path / "whole")


def test_resuming_something_else_is_refused_with_what_differs(split, tmp_path):
    run = tmp_path / "run"
    fit(tiny(), split, epochs=1, folder=run, **QUIET)
    before = outcome(run)
    for model, data, changes, named in (
        (tiny(dropout=0.3), split, {}, "dropout"),
        (tiny(), split, {"learning_rate": 0.5}, "learning_rate"),
        (tiny(), split, {"seed": 1}, "seed"),
        (tiny(), cycles(seed=1), {}, "hash"),
        (tiny(), split, {"optimizer": lambda p: torch.optim.SGD(p, lr=0.1)}, "optimizer"),
    ):
        with pytest.raises(ValueError, match=named):
            fit(model, data, epochs=2, folder=run, **QUIET, **changes)
    assert outcome(run) == before
    fit(tiny(), split, epochs=1, folder=run, resume=False, seed=1, **QUIET)
    assert outcome(run) != before
    with pytest.raises(ValueError, match="resume"):
        fit(tiny(), split, epochs=1, folder=tmp_path / "new", resume=True, **QUIET)
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.txt").write_text("precious")
    with pytest.raises(FileExistsError):
        fit(tiny(), split, epochs=1, folder=tmp_path / "thesis", resume=False, **QUIET)
    assert (tmp_path / "thesis" / "chapter.txt").read_text() == "precious"


def test_checkpoints_of_other_versions_or_damaged_ones_are_refused(split, tmp_path):
    run = tmp_path / "run"
    fit(tiny(), split, epochs=1, folder=run, **QUIET)
    pointer = run / "checkpoints" / "last.json"
    text = pointer.read_text()
    last = pointer.parent / json.loads(text)["folder"]
    pointer.write_text(text.replace('"format": 1', '"format": 99'))
    with pytest.raises(DataError, match="99"):
        fit(tiny(), split, epochs=2, folder=run, **QUIET)
    pointer.write_text(text)
    whole = (last / "model.safetensors").read_bytes()
    (last / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match="resume=False"):
        fit(tiny(), split, epochs=2, folder=run, **QUIET)
    fit(tiny(), split, epochs=1, folder=run, resume=False, **QUIET)
    config = run / "config.json"
    config.write_text(config.read_text().replace('"format": 1', '"format": 7'))
    with pytest.raises(DataError, match="7"):
        load_run(run)


def test_a_full_disk_leaves_the_last_checkpoint_and_resumes(split, tmp_path, monkeypatch):
    fit(tiny(), split, epochs=3, folder=tmp_path / "whole", **QUIET)
    original, calls = checkpoint.write_tensors, []

    def full(path, tensors):
        calls.append(1)
        if len(calls) == 11:
            path.write_bytes(b"half")
            raise OSError(errno.ENOSPC, "No space left on device")
        original(path, tensors)

    monkeypatch.setattr(checkpoint, "write_tensors", full)
    run = tmp_path / "run"
    with pytest.raises(OSError) as caught:
        fit(tiny(), split, epochs=3, folder=run, **QUIET)
    assert "intact" in caught.value.__notes__[0]
    assert not list(run.rglob("*.partial"))
    monkeypatch.undo()
    fit(tiny(), split, epochs=3, folder=run, **QUIET)
    assert outcome(run) == outcome(tmp_path / "whole")


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"epochs": -1}, "epochs"),
        ({"epochs": 1.5}, "epochs"),
        ({"batch_size": 0}, "batch_size"),
        ({"learning_rate": 0.0}, "learning_rate"),
        ({"learning_rate": float("nan")}, "learning_rate"),
        ({"metric": "ncdg@10"}, "ndcg"),
        ({"metric": "ndcg"}, "cut-off"),
        ({"metric": "coverage@10"}, "metric"),
        ({"metric": "ndcg@50"}, "catalogue"),
        ({"precision": "fp8"}, "precision"),
        ({"exclude": "all"}, "exclude"),
        ({"order": "sorted"}, "order"),
        ({"patience": 0}, "patience"),
        ({"betas": (0.9, 1.0)}, "betas"),
        ({"resume": "always"}, "resume"),
        ({"tokens": 3}, "tokens"),
        ({"strategy": "fsdp", "accelerator": "cpu", "devices": 2}, "strategy|FSDP|fsdp"),
    ],
)
def test_bad_knobs_are_named(split, changes, named):
    with pytest.raises((ValueError, TypeError), match=named):
        fit(tiny(), split, **{"epochs": 1, "progress": False, **changes})


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_asked_for_where_there_is_none(split):
    with pytest.raises(ValueError, match="GPU"):
        fit(tiny(), split, epochs=1, accelerator="gpu", progress=False)


def test_hooks_loggers_and_lines(split, capsys):
    seen, records = [], []

    class Hooked(Recommender):
        def on_epoch(self, epoch):
            seen.append(epoch)

    class Log:
        root_dir = log_dir = name = version = None

        def log_metrics(self, metrics, step=None):
            records.append((step, metrics))

    fit(tiny(cls=Hooked), split, epochs=2, batch_size=32, loggers=[Log()])
    assert seen == [0, 1]
    assert [step for step, _ in records] == [1, 2] and "ndcg@10" in records[0][1]
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("epoch")]
    assert len(lines) == 2 and "targets/s" in lines[0] and "loss" in lines[0] and "left" in lines[0]


def test_a_compiler_that_fails_is_reported_once_and_done_without(split, monkeypatch):
    def broken(self, *arguments, **options):
        self._compiled_call_impl = lambda *inputs: (_ for _ in ()).throw(RuntimeError("no compiler"))

    plain_model, compiled = tiny(), tiny()
    fit(plain_model, split, epochs=1, **QUIET)
    monkeypatch.setattr(torch.nn.Module, "compile", broken)
    with pytest.warns(DataWarning, match="no compiler"):
        fit(compiled, split, epochs=1, compile=True, **QUIET)
    assert weights(plain_model) == weights(compiled)


class Counted(Ranker):
    """Popularity, spelled out."""

    def learn(self, context):
        self.bind(context)

    def score(self, batch):
        return self.popularity[1:].repeat(len(batch), 1)


def test_a_counted_model_gets_the_same_run_folder(split, tmp_path):
    model = Counted()
    fitted = fit(model, split, folder=tmp_path / "run", progress=False)
    expected = evaluate(model, split.valid, metrics=["ndcg@10"], progress=False).mean("ndcg@10")
    assert fitted.best["value"] == fitted.history[0]["ndcg@10"] == expected
    with pytest.raises(PermissionError):
        load_run(tmp_path / "run")
    loaded = load_run(tmp_path / "run", trust=[Counted.__module__]) if "." not in Counted.__module__ else None
    if loaded is not None:
        assert loaded.recommend([["item-1"]], k=2).items == model.recommend([["item-1"]], k=2).items
    fit(Counted(), split, folder=tmp_path / "run", progress=False)
    with pytest.raises(ValueError, match="another run"):
        fit(Counted(), split, seed=4, folder=tmp_path / "run", progress=False)


def test_events_that_no_window_holds_and_users_without_a_target_are_told(split, capsys):
    model = rs.Recommender(rs.IdItems(8), rs.SASRec(8, 1, max_length=2), rs.FullSoftmax())
    rs.fit(model, split, epochs=1, batch_size=16)
    told = capsys.readouterr().err
    left = int(np.maximum(split.train.lengths - 3, 0).sum())
    assert left > 0
    assert f"{left:,} events" in told


def test_data_in_the_place_of_a_split_and_a_split_in_that_of_a_part_are_told_apart(split):
    with pytest.raises(TypeError, match="split"):
        fit(Counted(), object(), progress=False)
    model = Counted()
    fit(model, split, progress=False)
    with pytest.raises(TypeError, match=r"split\.test"):
        evaluate(model, split)
