"""The learning rates of one update: the caller's optimizer keeps its own, warm-up and decay multiply them."""

import pytest
import torch
from cycles import cycles, outcome, tiny

from recsys.train.fit import fit
from recsys.train.optimizer import scaled
from recsys.train.settings import Stage

UPDATES = 9


SEEN = []  # the rates of each step


class Halving(torch.optim.SGD):
    """Halves all of its rates at every step."""

    def step(self, closure=None):
        SEEN.append([group["lr"] for group in self.param_groups])
        found = super().step(closure)
        for group in self.param_groups:
            group["lr"] *= 0.5
        return found


def halving(parameters):
    first, *rest = parameters
    return Halving([{"params": [first], "lr": 0.4}, {"params": rest, "lr": 0.1}])


def scheduled(parameters):
    """A schedule of torch that sets rates from where they began, whatever they are now."""
    made = torch.optim.SGD(parameters, lr=0.1)
    schedule = torch.optim.lr_scheduler.LambdaLR(made, lambda step: 1 / (step + 1))
    made.register_step_pre_hook(lambda optimizer, *_: SEEN.append([optimizer.param_groups[0]["lr"]]))
    made.register_step_post_hook(lambda *_: schedule.step())
    return made


def rates(**options):
    SEEN.clear()
    fit(tiny(), cycles(users=40), epochs=3, batch_size=16, validate_every=0, progress=False, **options)
    assert len(SEEN) == UPDATES
    return list(SEEN)


def test_b9_a_schedule_of_the_callers_is_left_alone():
    assert rates(optimizer=halving) == [pytest.approx([0.4 / 2**step, 0.1 / 2**step]) for step in range(UPDATES)]
    assert rates(optimizer=scheduled) == [pytest.approx([0.1 / (step + 1)]) for step in range(UPDATES)]


@pytest.mark.parametrize("options", [{"warmup_steps": 4}, {"decay": "linear"}, {"warmup_steps": 4, "decay": "cosine"}])
def test_b9_warm_up_and_decay_multiply_the_rates_of_the_time(options):
    ones = rates(optimizer=lambda parameters: Recorded(parameters, lr=1.0), **options)
    factors = [factor for (factor,) in ones]
    assert min(factors) < 1
    expected = [[0.4 / 2**step * factor, 0.1 / 2**step * factor] for step, factor in enumerate(factors)]
    assert rates(optimizer=halving, **options) == [pytest.approx(pair) for pair in expected]
    expected = [[0.1 / (step + 1) * factor] for step, factor in enumerate(factors)]
    assert rates(optimizer=scheduled, **options) == [pytest.approx(one) for one in expected]


class Recorded(torch.optim.SGD):
    def step(self, closure=None):
        SEEN.append([group["lr"] for group in self.param_groups])
        return super().step(closure)


def test_b9_a_rate_that_halves_itself_survives_a_resume(tmp_path):
    options = {"batch_size": 16, "progress": False, "optimizer": halving, "warmup_steps": 5}
    fit(tiny(), cycles(users=40), epochs=2, folder=tmp_path / "whole", **options)
    for epochs in (1, 2):
        fit(tiny(), cycles(users=40), epochs=epochs, folder=tmp_path / "parts", **options)
    assert outcome(tmp_path / "whole") == outcome(tmp_path / "parts")


def test_a_rate_for_a_stage_beside_an_optimizer_that_sets_its_own_is_refused():
    with pytest.raises(ValueError, match="rate"):
        fit(tiny(), cycles(users=12), stages=[Stage(1, learning_rate=0.1)], optimizer=halving, progress=False)


def test_rates_come_back_where_no_step_is_made():
    made = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=0.5)
    with scaled(made, 0.0):
        assert made.param_groups[0]["lr"] == 0.0
    assert made.param_groups[0]["lr"] == 0.5


def test_max_steps_ends_training_and_keeps_the_weights(tmp_path):
    split, options = cycles(users=40), {"batch_size": 16, "progress": False}
    model = tiny()
    fitted = fit(model, split, epochs=5, max_steps=4, folder=tmp_path, **options)
    assert [line["step"] for line in fitted.history] == [3, 4] and "ndcg@10" in fitted.history[-1]
    again = fit(tiny(), split, epochs=5, max_steps=4, folder=tmp_path, **options)
    assert again.history == fitted.history
    two = fit(tiny(), split, stages=[Stage(5), Stage(5)], max_steps=4, **options)
    assert len(two.history) == 2 and model.learned


@pytest.mark.parametrize("items", [3, 8, 10])
def test_k7_a_the_default_metric_fits_a_small_catalogue(items):
    import recsys as rs

    for model in (tiny(), rs.Popularity()):
        fitted = fit(model, cycles(users=12, items=items), epochs=1, progress=False)
        assert fitted.best["metric"] == f"ndcg@{min(items, 10)}"


class Spy(torch.nn.Module):
    """An auxiliary without effect that notes what happens around it, and the gradients and weights of the time."""

    weight = 1.0

    def __init__(self):
        super().__init__()
        self.told, self.norms, self.watched = [], [], []

    def forward(self, step):
        cleared = all(one.grad is None for one in self.watched)
        self.told.append("forward" if cleared else "forward, gradients there")
        return step.batch.ids.sum() * 0.0

    def on_optimizer(self, optimizer):
        self.watched = optimizer.param_groups[0]["params"][:1]  # in a list: no part of it
        optimizer.register_step_pre_hook(self.on_step)

    def on_step(self, *_):
        self.note("step")

    def on_gradients(self):
        self.note("on_gradients")

    def after_update(self, done):
        self.note(f"after_update {done}")

    def note(self, what):
        self.told.append(what)
        self.norms.append(float(self.watched[0].grad.norm()))


@pytest.mark.parametrize("clip", [None, 1e-4])
def test_23_3_parts_see_an_update_in_order(clip):
    spy = Spy()
    fit(tiny(auxiliaries=[spy]), cycles(users=40), epochs=1, max_steps=2, batch_size=16, clip_norm=clip, progress=False)
    around = ["on_gradients", "step", "after_update"]
    told = [one for one in spy.told if not one.startswith("forward")]
    assert told == [*around[:2], "after_update 1", *around[:2], "after_update 2"]
    assert "forward, gradients there" not in spy.told  # they are cleared before the next one
    for before, clipped, after in (spy.norms[:3], spy.norms[3:]):
        assert clipped == after and (clipped < before if clip else clipped == before)


@pytest.mark.parametrize("clip", [None, 1e-4])
def test_23_3_the_scale_of_mixed_precision_is_off_once_and_before_parts_look(clip, monkeypatch):
    from lightning.fabric.plugins.precision import Precision

    spy = Spy()
    monkeypatch.setattr(Precision, "unscale_gradients", lambda self, optimizer: spy.note("unscale"))
    fit(tiny(auxiliaries=[spy]), cycles(users=40), epochs=1, max_steps=1, batch_size=16, clip_norm=clip, progress=False)
    assert [one for one in spy.told if one != "forward"] == ["unscale", "on_gradients", "step", "after_update 1"]


def test_23_3_updates_are_counted_on_from_where_a_run_was_resumed(tmp_path):
    for epochs in (1, 2):
        spy = Spy()
        fit(tiny(auxiliaries=[spy]), cycles(users=40), epochs=epochs, batch_size=16, progress=False, folder=tmp_path)
        done = [one for one in spy.told if one.startswith("after")]
        assert done == [f"after_update {3 * epochs - 2 + number}" for number in range(3)]


def test_23_3_clipping_behind_a_part_that_looks_is_that_of_before():
    def trained(*auxiliaries):
        model = tiny(auxiliaries=auxiliaries)
        fit(model, cycles(users=40), epochs=1, batch_size=16, clip_norm=1e-3, progress=False)
        return model.tensors()

    alone, watched = trained(), trained(Spy())
    assert all(torch.equal(value, watched[name]) for name, value in alone.items())
