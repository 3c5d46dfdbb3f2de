import random

import numpy as np
import pytest
import torch

from recsys.runs.checkpoint import (
    Checkpoint,
    differences,
    pack,
    random_state,
    read_checkpoint,
    restore_random_state,
    unpack,
    write_checkpoint,
)


@pytest.mark.parametrize(
    "make",
    [
        lambda p: torch.optim.Adam(p, amsgrad=True),
        lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
        lambda p: torch.optim.Adadelta(p),
        lambda p: torch.optim.LBFGS(p, history_size=2),
    ],
)
def test_optimizer_state_survives_exactly(make, tmp_path):
    def problem():
        layer = torch.nn.Linear(3, 2)
        return layer, make(layer.parameters())

    def train(layer, optimizer, steps):
        def closure():
            optimizer.zero_grad()
            loss = (layer(torch.arange(6.0).view(2, 3)) - 1).square().sum()
            loss.backward()
            return loss

        for _ in range(steps):
            optimizer.step(closure)

    layer, optimizer = problem()
    train(layer, optimizer, 3)
    tensors = {}
    packed = pack(optimizer.state_dict(), "optimizer", tensors)
    write_checkpoint(tmp_path, "step-3", Checkpoint({"optimizer": packed}, {"optimizer": tensors}))
    again, restored = problem()
    again.load_state_dict(layer.state_dict())
    found = read_checkpoint(tmp_path)
    restored.load_state_dict(unpack(found.state["optimizer"], found.tensors["optimizer"]))
    train(layer, optimizer, 3)
    train(again, restored, 3)
    assert torch.equal(layer.weight, again.weight) and torch.equal(layer.bias, again.bias)


def test_random_states_survive_exactly(tmp_path):
    np.random.standard_normal()  # half a pair of normals is part of numpy's state
    tensors = {}
    packed = pack(random_state(), "random", tensors)
    write_checkpoint(tmp_path, "step-0", Checkpoint({"random": packed}, {"random": tensors}))

    def draw():
        return torch.rand(2).tolist(), np.random.standard_normal(3).tolist(), random.random()

    expected = draw()
    found = read_checkpoint(tmp_path)
    restore_random_state(unpack(found.state["random"], found.tensors["random"]))
    assert draw() == expected


def test_only_the_newest_checkpoint_stays_and_a_name_may_repeat(tmp_path):
    assert read_checkpoint(tmp_path) is None
    (tmp_path / "step-9.0.partial").mkdir()
    for value in range(3):
        write_checkpoint(tmp_path, "step-9", Checkpoint({"value": value}, {"model": {"w": torch.ones(value + 1)}}))
    found = read_checkpoint(tmp_path)
    assert found.state["value"] == 2 and found.tensors["model"]["w"].shape == (3,)
    assert len(list(tmp_path.iterdir())) == 2


def test_tied_and_empty_tensors_are_written(tmp_path):
    shared = torch.rand(4)
    tensors = {"a": shared, "b": shared, "c": shared[1:3], "d": torch.zeros(0, 5), "e": torch.rand(2, 3).T}
    write_checkpoint(tmp_path, "step-1", Checkpoint({}, {"model": tensors}))
    found = read_checkpoint(tmp_path).tensors["model"]
    assert all(torch.equal(found[name], value) for name, value in tensors.items())


def test_state_that_cannot_be_written_is_named():
    with pytest.raises(TypeError, match="step"):
        pack({"step": object()}, "optimizer", {})


def test_differences_name_the_leaf():
    before = {"model": {"dropout": 0.1, "layers": [1, 2]}, "seed": 0}
    now = {"model": {"dropout": 0.2, "layers": [1, 3]}, "seed": 0, "more": 1}
    lines = list(differences(before, now))
    assert len(lines) == 3 and lines[0].startswith("model.dropout: 0.1") and "layers[1]" in lines[1]
