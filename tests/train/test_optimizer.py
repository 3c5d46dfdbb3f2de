"""Named parameter groups: who asks for one, what rates it gets, that it survives a resume whatever the order."""

import json

import pytest
import torch
from cycles import cycles, outcome, plain, tiny
from torch import nn

from recsys.encoders.sasrec import SASRec
from recsys.errors import DataError
from recsys.runs.checkpoint import pack, unpack
from recsys.train import loop
from recsys.train.fit import fit
from recsys.train.optimizer import groups_of, load_named_state, make_optimizer, named_state, told_groups
from recsys.train.settings import Stage, Training

QUIET = {"progress": False, "batch_size": 16}
ADAPTERS = {"adapters": {"parameters": ["down", "*.scale"], "learning_rate": 1e-4, "weight_decay": 0.0}}


class Inner(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale, self.shift = nn.Parameter(torch.ones(8)), nn.Parameter(torch.zeros(8))


class Adapted(nn.Module):
    """An auxiliary with weights that are trained at a rate of their own."""

    def __init__(self, weight=0.5, groups=None):
        super().__init__()
        self.weight, self.groups = weight, ADAPTERS if groups is None else groups
        self.down, self.up, self.inner = nn.Linear(8, 8), nn.Linear(8, 8), Inner()

    def param_groups(self):
        return self.groups

    def forward(self, step):
        made = self.up(self.down(step.encoded.user)) * self.inner.scale + self.inner.shift
        return (made - step.encoded.user.detach()).square().mean()


def model_of(*auxiliaries, **parts):
    model = tiny(auxiliaries=list(auxiliaries), **parts)
    split = cycles(users=40)
    from recsys.protocols import Context

    model.bind(Context(split.num_items, split.items, split.train, split.item_text, 0, split.users))
    return model


def rates_of(model, training, stage=None):
    made = make_optimizer(model, training, stage or Stage(1))
    return {group["name"]: (group["lr"], group["weight_decay"]) for group in made.param_groups}


def test_a_part_gets_the_group_it_asks_for_and_the_others_the_run_s():
    model = model_of(Adapted())
    default, adapters = groups_of(model)
    assert list(adapters.parameters) == [
        "auxiliaries.0.down.weight",
        "auxiliaries.0.down.bias",
        "auxiliaries.0.inner.scale",
    ]
    assert default.parameters.keys() | adapters.parameters.keys() == {name for name, _ in model.named_parameters()}
    assert rates_of(model, Training(weight_decay=0.1)) == {"default": (1e-3, 0.1), "adapters": (1e-4, 0.0)}
    assert told_groups([default, adapters], Training(), Stage(1)) == (
        f"parameter groups: default ({default.describe()['parameters']:,} parameters at 0.001), "
        "adapters (80 parameters at 0.0001, weight decay 0)"
    )
    assert told_groups(groups_of(model_of()), Training(), Stage(1)) == ""


def test_parts_within_parts_share_a_group_they_ask_for_alike():
    class Low(nn.Linear):
        def param_groups(self):
            return {"adapters": {"factor": 0.1}}

    class Encoder(SASRec):
        def __init__(self, dim=8, max_length=6):
            super().__init__(dim, 1, 1, max_length=max_length)
            self.first, self.second = Low(2, 2), nn.Sequential(Low(3, 3))

    model = model_of()
    model.encoder = Encoder()
    _, adapters = groups_of(model)
    assert sorted(adapters.parameters) == [
        "encoder.first.bias",
        "encoder.first.weight",
        "encoder.second.0.bias",
        "encoder.second.0.weight",
    ]
    assert rates_of(model, Training(learning_rate=0.5))["adapters"] == (0.05, 0.0)


@pytest.mark.parametrize(
    ("asked", "own", "rates"),
    [
        (None, {"learning_rate": 1e-4}, (1e-3, 1e-4)),
        (0.1, {"learning_rate": 1e-4}, (0.1, 1e-4)),
        (0.1, {"factor": 0.5}, (0.1, 0.05)),
        (None, {"factor": 0.5}, (1e-3, 5e-4)),
        ({"adapters": 0.2}, {"learning_rate": 1e-4}, (1e-3, 0.2)),
        ({"default": 0.3}, {"learning_rate": 1e-4}, (0.3, 1e-4)),
        ({"default": 0.3}, {"factor": 0.5}, (0.3, 0.15)),
    ],
)
def test_a_stage_sets_the_rate_of_the_others_or_of_groups_by_name(asked, own, rates):
    found = rates_of(model_of(Adapted(groups={"adapters": own})), Training(), Stage(1, learning_rate=asked))
    assert [rate for rate, _ in found.values()] == pytest.approx(rates)


def test_a_stage_that_freezes_a_group_leaves_it_out():
    model = model_of(Adapted(groups={"adapters": {}}))
    from recsys.train.optimizer import train_only

    stage = Stage(1, freeze=["auxiliaries"])
    train_only(model, stage)
    assert list(rates_of(model, Training(), stage)) == ["default"]
    stage = Stage(1, train=["auxiliaries"])
    train_only(model, stage)
    assert list(rates_of(model, Training(), stage)) == ["adapters"]


@pytest.mark.parametrize(
    ("groups", "named"),
    [
        ({"default": {}}, "default"),
        ({"a": {"lr": 0.1}}, "learning_rate"),
        ({"a": {"learning_rate": 0}}, "above 0"),
        ({"a": {"weight_decay": -1.0}}, "at least 0"),
        ({"a": {"learning_rate": 0.1, "factor": 0.1}}, "leave one out"),
        ({"a": {"parameters": ["dawn"]}}, "down"),
        ({"a": {"parameters": "down"}}, "list"),
        ({"a": {"parameters": ["down"]}, "b": {"parameters": ["*.bias"]}}, "auxiliaries.0.down.bias"),
        ([{"params": []}], "dict"),
        ({"a": ["down"]}, "dict"),
    ],
)
def test_groups_that_make_no_sense_are_refused_before_anything_is_trained(groups, named, tmp_path):
    with pytest.raises((ValueError, TypeError), match=named):
        fit(tiny(auxiliaries=[Adapted(groups=groups)]), cycles(users=12), epochs=1, folder=tmp_path / "run", **QUIET)
    assert not (tmp_path / "run" / "config.json").exists()


def test_two_parts_that_ask_otherwise_for_one_name_are_refused():
    low, high = Adapted(groups={"adapters": {"factor": 0.1}}), Adapted(groups={"adapters": {"factor": 0.2}})
    with pytest.raises(ValueError, match="another name"):
        groups_of(model_of(low, high))
    assert [group.name for group in groups_of(model_of(low, Adapted(groups={"adapters": {"factor": 0.1}})))] == [
        "default",
        "adapters",
    ]


def test_an_auxiliary_of_weight_0_asks_for_nothing():
    assert [group.name for group in groups_of(model_of(Adapted(weight=0.0)))] == ["default"]


def test_a_stage_that_names_a_group_nobody_asks_for_is_refused():
    stages = [Stage(1, learning_rate={"adaptors": 0.1})]
    with pytest.raises(ValueError, match="adapters"):
        fit(tiny(auxiliaries=[Adapted()]), cycles(users=12), stages=stages, **QUIET)


def test_groups_are_said_and_kept_in_the_config(tmp_path, capsys):
    fit(tiny(auxiliaries=[Adapted()]), cycles(users=12), epochs=1, folder=tmp_path, batch_size=16)
    assert "adapters (80 parameters at 0.0001, weight decay 0)" in capsys.readouterr().err
    groups = json.loads((tmp_path / "config.json").read_text())["parameter_groups"]
    assert groups["adapters"] == {"parameters": 80, "learning_rate": 1e-4, "weight_decay": 0.0}
    assert list(groups) == ["default", "adapters"]


def test_a_group_moves_at_its_rate_which_warm_up_multiplies():
    """The first update of Adam is the rate, times the sign of the gradient."""
    for rate in (1e-3, 1e-5):
        model = tiny(dropout=0.0, auxiliaries=[Adapted(groups={"own": {"parameters": ["up"], "learning_rate": rate}})])
        fit(model, cycles(users=12), epochs=0, **QUIET)
        before = {name: value.clone() for name, value in model.tensors().items()}
        fit(model, cycles(users=12), epochs=1, max_steps=1, warmup_steps=4, validate_every=0, **QUIET)
        moved = {name: float((value - before[name]).abs().max()) for name, value in model.tensors().items()}
        assert moved["auxiliaries.0.up.weight"] == pytest.approx(rate / 4, rel=1e-2)
        assert moved["auxiliaries.0.down.weight"] == pytest.approx(1e-3 / 4, rel=1e-2)


@pytest.mark.parametrize("order", [1, -1])
def test_a_resumed_run_with_groups_equals_an_uninterrupted_one(tmp_path, order):
    class Two(Adapted):
        direction = 1

        def param_groups(self):
            groups = {"adapters": {"parameters": ["down", "inner.scale"], "learning_rate": 1e-2}}
            groups["head"] = {"parameters": ["up"], "factor": 0.5, "weight_decay": 0.0}
            return dict(list(groups.items())[:: self.direction])

    knobs = {**QUIET, "weight_decay": 0.1, "warmup_steps": 5}
    split, resumed = cycles(users=40), Two()
    resumed.direction = order
    fit(tiny(auxiliaries=[Two()]), split, epochs=4, folder=tmp_path / "whole", **knobs)
    fit(tiny(auxiliaries=[Two()]), split, epochs=2, folder=tmp_path / "parts", **knobs)
    fit(tiny(auxiliaries=[resumed]), split, epochs=4, folder=tmp_path / "parts", **knobs)
    assert outcome(tmp_path / "whole") == outcome(tmp_path / "parts")


def test_the_state_finds_parameters_by_name_whatever_their_order():
    model = model_of(Adapted())
    first = make_optimizer(model, Training(), Stage(1))
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    first.step()
    tensors = {}
    kept = unpack(json.loads(json.dumps(pack(named_state(first, model), "optimizer", tensors))), tensors)
    groups = [{**group, "params": group["params"][::-1]} for group in first.param_groups[::-1]]
    second = torch.optim.Adam(groups, fused=True)
    load_named_state(second, model, kept)
    for parameter in model.parameters():
        for name, value in first.state[parameter].items():
            assert torch.equal(value, second.state[parameter][name])
    assert [group["lr"] for group in second.param_groups] == [group["lr"] for group in first.param_groups][::-1]


def test_a_checkpoint_of_other_groups_is_refused(tmp_path):
    def adapted(name):
        class Same(Adapted):
            def param_groups(self):
                return {name: {}}

        Same.__qualname__ = Same.__name__ = "Same"
        return tiny(auxiliaries=[Same()])

    fit(adapted("a"), cycles(users=12), epochs=1, folder=tmp_path, **QUIET)
    with pytest.raises(DataError, match=r"'a'.*'b'.*resume=False"):
        fit(adapted("b"), cycles(users=12), epochs=2, folder=tmp_path, **QUIET)


@pytest.mark.parametrize("optimizer", [None, lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9)])
def test_a_checkpoint_of_0_1_which_counts_parameters_is_resumed(tmp_path, monkeypatch, optimizer):
    knobs = {**QUIET, "optimizer": optimizer}
    fit(tiny(), cycles(users=40), epochs=3, folder=tmp_path / "whole", **knobs)
    with monkeypatch.context() as patch:
        patch.setattr(loop, "named_state", lambda optimizer, model: former(optimizer.state_dict()))
        fit(tiny(), cycles(users=40), epochs=1, folder=tmp_path / "parts", **knobs)
    for epochs in (2, 3):
        fit(tiny(), cycles(users=40), epochs=epochs, folder=tmp_path / "parts", **knobs)
    assert outcome(tmp_path / "whole") == outcome(tmp_path / "parts")


def former(state):
    for group in state["param_groups"]:
        group.pop("name", None)
    return state


def test_the_caller_s_optimizer_gets_the_groups_and_may_not_drop_them():
    given = []

    def sgd(parameters):
        given.append(parameters)
        return torch.optim.SGD(parameters, lr=0.1)

    parts = {"adapters": {"parameters": ["down"], "learning_rate": 0.5}, "head": {"parameters": ["up"], "factor": 0.5}}
    model = model_of(Adapted(groups=parts))
    made = make_optimizer(model, Training(optimizer=sgd), Stage(1))
    assert [group["name"] for group in given[0]] == ["default", "adapters", "head"]
    assert [group["lr"] for group in made.param_groups] == [0.1, 0.5, 0.05]
    with pytest.raises(ValueError, match="default"):
        flat = Training(optimizer=lambda groups: torch.optim.SGD([p for g in groups for p in g["params"]], lr=0.1))
        make_optimizer(model, flat, Stage(1))
    make_optimizer(model_of(), Training(optimizer=sgd), Stage(1))
    assert all(isinstance(one, nn.Parameter) for one in given[1])


def test_a_model_without_groups_trains_as_with_one_list_of_parameters():
    one, other = tiny(), tiny()
    fit(one, cycles(users=40), epochs=2, **QUIET)
    own = lambda parameters: torch.optim.Adam(parameters, lr=1e-3, fused=True)
    fit(other, cycles(users=40), epochs=2, optimizer=own, **QUIET)
    assert plain(one.tensors()) == plain(other.tensors())
