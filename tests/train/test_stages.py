import pytest
import torch
from cycles import cycles, plain, tiny

from recsys.recommenders.composed import Recommender
from recsys.train.fit import fit
from recsys.train.loop import Loop, Validation
from recsys.train.settings import Stage

QUIET = {"progress": False, "batch_size": 32}


def weights(model, part=""):
    return plain({name: value for name, value in model.tensors().items() if name.startswith(part)})


def scripted(monkeypatch, values, seen=None):
    answers = iter(values)

    def validate(self, model, metric):
        if seen is not None:
            seen.append((metric, weights(model)))
        return next(answers)

    monkeypatch.setattr(Validation, "__call__", validate)


def test_one_stage_is_what_epochs_mean(split):
    plainly, staged = tiny(), tiny()
    fit(plainly, split, epochs=2, **QUIET)
    fit(staged, split, stages=[Stage(2)], **QUIET)
    assert weights(plainly) == weights(staged)


def test_frozen_parts_keep_their_weights_and_the_others_move(split):
    first, both = tiny(), tiny()
    fit(first, split, epochs=2, validate_every=0, **QUIET)
    fit(both, split, stages=[Stage(2), Stage(2, freeze=["items"])], validate_every=0, **QUIET)
    assert weights(first, "items") == weights(both, "items")
    assert weights(first, "encoder") != weights(both, "encoder")
    only = tiny()
    fit(only, split, stages=[Stage(2), Stage(2, train=["items"])], validate_every=0, **QUIET)
    assert weights(first, "items") != weights(only, "items")
    assert weights(first, "encoder") == weights(only, "encoder")


@pytest.mark.parametrize("start", ["best", "last"])
def test_the_second_stage_starts_from_the_best_or_the_last_weights(split, monkeypatch, start):
    seen = []
    scripted(monkeypatch, [0.2, 0.5, 0.1, 0.3], seen)
    # So low a rate that the second stage shows where it started.
    fit(tiny(), split, stages=[Stage(3), Stage(1, learning_rate=1e-30, start=start)], **QUIET)
    assert seen[3][1] == seen[1 if start == "best" else 2][1]


def test_the_best_of_all_stages_is_kept_unless_a_stage_selects_by_another_metric(split, monkeypatch):
    seen = []
    scripted(monkeypatch, [0.5, 0.1], seen)
    model = tiny()
    fitted = fit(model, split, stages=[Stage(1), Stage(1)], **QUIET)
    assert fitted.best["epoch"] == 1 and weights(model) == seen[0][1]
    scripted(monkeypatch, [0.5, 0.1], seen)
    fitted = fit(model, split, stages=[Stage(1), Stage(1, select="hr@5")], **QUIET)
    assert fitted.best == {"metric": "hr@5", "value": 0.1, "epoch": 2, "stage": 1}
    assert [metric for metric, _ in seen] == ["ndcg@10", "ndcg@10", "ndcg@10", "hr@5"]
    assert weights(model) == seen[3][1]


def test_each_stage_has_its_own_patience(split, monkeypatch):
    scripted(monkeypatch, [0.5, 0.4, 0.3, 0.2, 0.1, 0.1, 0.1])
    fitted = fit(tiny(), split, stages=[Stage(9, patience=1), Stage(9)], patience=2, **QUIET)
    assert [line["stage"] for line in fitted.history] == [0, 0, 1, 1]


def test_a_stage_minimises_only_the_losses_it_names(split):
    class Two(Recommender):
        def loss(self, step):
            norm = self.items.weight.square().mean() * step.share
            return {**super().loss(step), "norm": norm}

    model = tiny(cls=Two)
    history = fit(model, split, stages=[Stage(1), Stage(2, losses=["norm"])], validate_every=0, **QUIET).history
    assert set(history[0]["terms"]) == {"loss", "norm"} and set(history[1]["terms"]) == {"norm"}
    assert history[2]["loss"] < history[1]["loss"]
    with pytest.raises(ValueError, match="norm"):
        fit(tiny(cls=Two), split, stages=[Stage(1, losses=["nrm"])], **QUIET)


@pytest.mark.parametrize(
    ("stage", "error", "named"),
    [
        (lambda: Stage(-1), ValueError, "epochs"),
        (lambda: Stage(1, start="worst"), ValueError, "start"),
        (lambda: Stage(1, freeze="items"), TypeError, "freeze"),
        (lambda: Stage(1, freeze=["itms"]), ValueError, "items"),
        (lambda: Stage(1, train=["items"], freeze=["items"]), ValueError, "nothing"),
        (lambda: Stage(1, select="nonsense@3"), ValueError, "metric"),
    ],
)
def test_bad_stages_are_named(split, stage, error, named):
    with pytest.raises(error, match=named):
        fit(tiny(), split, stages=[stage()], **QUIET)


def test_all_parameters_ask_for_gradients_again_after_a_frozen_stage(split):
    model = tiny()
    fit(model, split, stages=[Stage(1, freeze=["items"])], **QUIET)
    fit(model, split, epochs=1, **QUIET)
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert torch.isfinite(model.items.weight).all()


class Counted(torch.nn.Module):
    """An auxiliary with two terms that counts how often it is asked, and in which stage."""

    def __init__(self, weight=0.5):
        super().__init__()
        self.weight, self.calls = weight, []

    def forward(self, step):
        self.calls.append((step.stage, step.epoch))
        norm = step.items.weight.square().mean()
        return {"small": norm, "large": 2 * norm}


def test_a_stage_computes_only_what_it_asks_for(split, monkeypatch):
    auxiliary = Counted()
    model = tiny(auxiliaries=[auxiliary])
    passes = []
    encode = model.encode
    monkeypatch.setattr(model, "encode", lambda batch: passes.append(len(batch)) or encode(batch))
    stages = [
        Stage(1, losses=["Counted0"], name="first"),
        Stage(1, losses=["loss"], name="second"),
        Stage(1, losses=["loss", "Counted0.large"], name="third"),
    ]
    seen = []
    scripted(monkeypatch, [0.1, 0.2, 0.3], seen)
    fitted = fit(model, split, stages=stages, **QUIET)
    assert [sorted(record["terms"]) for record in fitted.history] == [
        ["Counted0.large", "Counted0.small"],
        ["loss"],
        ["Counted0.large", "loss"],
    ]
    updates = len(auxiliary.calls) // 2
    assert {stage for stage, _ in auxiliary.calls} == {"first", "third"}
    assert len(passes) == 2 * updates  # the encoder runs where the objective is asked for, once a step
    with pytest.raises(ValueError, match="Counted0"):
        fit(tiny(auxiliaries=[Counted()]), split, stages=[Stage(1, losses=["Count0"])], **QUIET)


def test_an_auxiliary_of_weight_0_changes_nothing_and_costs_nothing(split):
    auxiliary = Counted(weight=0)
    model, plainly = tiny(auxiliaries=[auxiliary]), tiny()
    fit(model, split, epochs=1, **QUIET)
    fit(plainly, split, epochs=1, **QUIET)
    assert auxiliary.calls == [] and weights(model) == weights(plainly)


def test_a_stage_without_validation_runs_all_its_epochs_and_hands_on_its_last_weights(split, monkeypatch):
    seen = []
    scripted(monkeypatch, [0.5, 0.4], seen)
    model = tiny()
    stages = [Stage(3, validate=False), Stage(2, learning_rate=1e-30)]
    fitted = fit(model, split, stages=stages, patience=1, **QUIET)
    assert len(fitted.history) == 5 and len(seen) == 2
    assert fitted.best["epoch"] == 4
    three = tiny()
    fit(three, split, epochs=3, validate_every=0, **QUIET)
    assert weights(three) == seen[0][1]


# Stages that are validated (v) or not (u), two epochs each: the epoch that is kept, and where each stage begins.


@pytest.mark.parametrize(
    ("kinds", "values", "kept", "begins"),
    [
        ("vu", [0.5, 0.4], 4, [0, 1]),  # the last stage ranks nothing: its last weights are the run's
        ("vuv", [0.5, 0.4, 0.1, 0.2], 6, [0, 1, 4]),  # what is best is chosen anew behind it
        ("vuvv", [0.5, 0.4, 0.3, 0.2, 0.1, 0.1], 5, [0, 1, 4, 5]),
        ("uv", [0.5, 0.4], 3, [0, 2]),
        ("uu", [], 4, [0, 2]),
        ("vv", [0.5, 0.4, 0.3, 0.2], 1, [0, 1]),
        ("vuu", [0.5, 0.4], 6, [0, 1, 4]),
    ],
)
@pytest.mark.parametrize("start", ["best", "last"])
@pytest.mark.parametrize("interrupted", [False, True])
def test_b5_a_stage_without_validation_keeps_what_it_trained(
    monkeypatch, tmp_path, kinds, values, kept, begins, start, interrupted
):
    split = cycles(users=12)
    ends, found, stop = {0: None}, [], [3] * interrupted  # weights behind each epoch; with which a stage began
    end, train = Loop._end_epoch, Loop._train_epoch

    def ended(self, stage):
        ends[self.state.epoch + 1] = weights(self.model)
        end(self, stage)

    def begun(self, stage):
        if self.state.fresh:
            now = weights(self.model)
            found.append(next((epoch for epoch, held in ends.items() if held == now), 0))
        if stop and self.state.epoch == stop[0]:
            stop.clear()
            raise KeyboardInterrupt
        train(self, stage)

    monkeypatch.setattr(Loop, "_end_epoch", ended)
    monkeypatch.setattr(Loop, "_train_epoch", begun)
    scripted(monkeypatch, values)
    stages = [Stage(2, validate=kind == "v", start=start) for kind in kinds]
    if interrupted:
        with pytest.raises(KeyboardInterrupt):
            fit(tiny(), split, stages=stages, folder=tmp_path, **QUIET)
    model = tiny()
    fitted = fit(model, split, stages=stages, folder=tmp_path if interrupted else None, **QUIET)
    assert len(fitted.history) == 2 * len(kinds)
    assert fitted.best["epoch"] == kept and (fitted.best["value"] is None) == (kinds[-1] == "u")
    assert weights(model) == ends[kept]
    assert found == (begins if start == "best" else [2 * number for number in range(len(kinds))])


def test_a_last_stage_without_validation_says_what_is_kept(monkeypatch, capsys):
    scripted(monkeypatch, [0.5])
    fit(tiny(), cycles(users=12), stages=[Stage(1), Stage(1, validate=False, name="more")], batch_size=32)
    assert "'more'" in capsys.readouterr().err


def test_b9_each_stage_is_warmed_up(tmp_path):
    options = {"learning_rate": 0.1, "warmup_steps": 4, "batch_size": 16, "progress": False, "folder": tmp_path}
    for epochs in (1, 2):  # resumed in the middle of the first stage's warm-up
        stages = [Stage(epochs), Stage(epochs - 1)]
        history = fit(tiny(), cycles(users=40), stages=stages, validate_every=0, **options).history
    assert [line["step"] for line in history] == [3, 6, 9]
    assert [line["learning_rate"] for line in history] == pytest.approx([0.075, 0.1, 0.075])
