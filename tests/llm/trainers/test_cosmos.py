"""COSMOS: numbered after the checks of its specification."""

import copy
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from recsys.llm.trainers.cosmos import Cosmos, orthogonalised, sorted_parameters
from recsys.train.fit import fit

sys.path.insert(0, str(Path(__file__).parent))
from cycles import cycles, outcome, tiny
from fixture import llama


def matrix(rows, columns, seed=0):
    return nn.Parameter(torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)))


def steps(weight, optimizer, count, size=1.0):
    draw = torch.Generator().manual_seed(1)
    for _ in range(count):
        weight.grad = size * torch.randn(weight.shape, generator=draw)
        before = weight.detach().clone()
        optimizer.step()
        yield weight.detach() - before


def test_cosmos_1_each_update_is_as_long_as_said():
    weight = matrix(12, 20)
    for moved in steps(weight, Cosmos([weight], lr=0.01, rank=4, ratio=0.3), 10):
        assert float(moved.norm()) == pytest.approx(0.01 * 0.3 * 240**0.5, rel=1e-3)


def test_cosmos_1_weight_decay_is_decoupled():
    weight = matrix(4, 4)
    before, optimizer = weight.detach().clone(), Cosmos([weight], lr=0.1, weight_decay=0.5)
    weight.grad = torch.zeros(4, 4)
    optimizer.step()
    assert torch.allclose(weight, 0.95 * before)


def test_cosmos_2_directions_stay_orthonormal():
    weight = matrix(12, 20)
    optimizer = Cosmos([weight], rank=5)
    for _ in steps(weight, optimizer, 50):
        found = optimizer.state[weight]["directions"]
        assert torch.allclose(found.T @ found, torch.eye(5), atol=1e-5)


def test_cosmos_2_the_first_directions_are_the_leading_ones():
    weight = matrix(3, 4)
    optimizer = Cosmos([weight], rank=2)
    weight.grad = torch.diag(torch.tensor([1.0, 5.0, 3.0]))[:, [0, 1, 2, 2]] * torch.tensor([1.0, 1, 1, 0])
    optimizer.step()
    found = optimizer.state[weight]["directions"].abs()
    assert torch.allclose(found, torch.eye(4)[:, [1, 2]], atol=1e-6)


def test_cosmos_3_where_the_directions_are_everything_the_rest_is_nothing():
    plain, other = matrix(32, 16), matrix(32, 16)
    whole, without = Cosmos([plain], rank=16, gamma=0.2), Cosmos([other], rank=16, gamma=0.0)
    for moved, same in zip(steps(plain, whole, 20), steps(other, without, 20), strict=True):
        assert torch.equal(moved, same) and bool(moved.isfinite().all())


@pytest.mark.parametrize("shape", [(1, 5), (5, 1), (1, 1), (3, 3)])
def test_cosmos_4_small_matrices_and_no_gradient_are_no_trouble(shape):
    weight = matrix(*shape)
    optimizer = Cosmos([weight])
    assert all(bool(moved.isfinite().all()) for moved in steps(weight, optimizer, 5))
    weight = matrix(*shape)
    assert all(not moved.any() for moved in steps(weight, Cosmos([weight]), 3, size=0.0))


def test_cosmos_5_gradients_are_not_written_to():
    weight, bias = matrix(6, 4), nn.Parameter(torch.ones(4))
    optimizer = Cosmos([weight, bias])
    for _ in range(3):
        grads = torch.randn(6, 4), torch.randn(4)
        weight.grad, bias.grad = (one.clone() for one in grads)
        optimizer.step()
        assert torch.equal(weight.grad, grads[0]) and torch.equal(bias.grad, grads[1])


def test_cosmos_6_the_state_is_as_large_as_said():
    weight = matrix(12, 20)
    optimizer = Cosmos([weight], rank=5)
    list(steps(weight, optimizer, 2))
    held = sum(one.numel() for one in optimizer.state[weight].values() if isinstance(one, torch.Tensor))
    assert held == 12 * 20 + 12 * 5 + 20 * 5 + 5 * 5


def test_cosmos_7_saved_and_loaded_it_goes_on_to_the_bit():
    weight, bias = matrix(6, 4), nn.Parameter(torch.ones(4))
    optimizer = Cosmos([weight, bias], rank=3)
    bias.grad = torch.ones(4)
    list(steps(weight, optimizer, 3))
    other, second = nn.Parameter(weight.detach().clone()), nn.Parameter(bias.detach().clone())
    again = Cosmos([other, second], rank=3)
    again.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    second.grad = torch.ones(4)
    for moved, same in zip(steps(weight, optimizer, 3), steps(other, again, 3), strict=True):
        assert torch.equal(moved, same) and torch.equal(bias, second)


def test_cosmos_8_least_squares_are_solved_better_than_by_sgd():
    draw = torch.Generator().manual_seed(0)
    inputs = torch.randn(64, 16, generator=draw) * torch.logspace(0, -2, 16)
    targets = inputs @ torch.randn(16, 8, generator=draw)

    def solved(make):
        weight = nn.Parameter(torch.zeros(8, 16))
        optimizer = make([weight])
        for _ in range(200):
            optimizer.zero_grad()
            loss = (inputs @ weight.T - targets).square().mean()
            loss.backward()
            optimizer.step()
        return float(loss)

    ours = solved(lambda held: Cosmos(held, lr=0.1, rank=4, betas=(0.9, 0.99)))
    theirs = min(solved(lambda held, rate=rate: torch.optim.SGD(held, rate)) for rate in (0.1, 1.0, 3.0, 10.0))
    assert ours < theirs


def test_cosmos_9_singular_values_come_near_1():
    for seed in range(20):
        found = torch.linalg.svdvals(orthogonalised(torch.randn(16, 32, generator=torch.Generator().manual_seed(seed))))
        assert float(found.min()) >= 0.6 and float(found.max()) <= 1.3
    wide = torch.randn(16, 32)
    assert torch.allclose(orthogonalised(wide.T), orthogonalised(wide).T, atol=1e-6)


def test_cosmos_what_is_no_matrix_is_trained_as_adamw_does():
    one, other = nn.Parameter(torch.ones(5)), nn.Parameter(torch.ones(5))
    ours = Cosmos([{"params": [one], "kind": "adam"}], lr=0.01, betas=(0.8, 0.95), weight_decay=0.1)
    theirs = torch.optim.AdamW([other], lr=0.01, betas=(0.8, 0.95), weight_decay=0.1)
    draw = torch.Generator().manual_seed(0)
    for _ in range(10):
        one.grad = torch.randn(5, generator=draw)
        other.grad = one.grad.clone()
        ours.step()
        theirs.step()
    assert torch.allclose(one, other, atol=1e-6)


def test_cosmos_embeddings_heads_and_vectors_are_no_matrices():
    for tied in (False, True):
        model = llama(tied=tied)
        groups = {group["kind"]: {id(one) for one in group["params"]} for group in sorted_parameters(model)}
        named = {name: "matrix" if id(one) in groups["matrix"] else "adam" for name, one in model.named_parameters()}
        assert sum(kind == "matrix" for kind in named.values()) == 14
        assert all("proj" in name for name, kind in named.items() if kind == "matrix")
        assert sum(map(len, groups.values())) == len(list(model.parameters()))


class Own(nn.Module):
    """An auxiliary without effect whose weights have a rate of their own."""

    weight = 1.0

    def __init__(self):
        super().__init__()
        self.map = nn.Linear(2, 2)

    def forward(self, step):
        return self.map(torch.ones(2)).square().sum()

    def param_groups(self):
        return {"own": {"factor": 0.5}}


@pytest.mark.parametrize("auxiliaries", [(), (Own,)])
def test_cosmos_7_fit_trains_with_it_and_resumes(auxiliaries, tmp_path):
    def run(folder, epochs):
        torch.manual_seed(0)
        model = tiny(auxiliaries=[kind() for kind in auxiliaries])
        options = {"batch_size": 16, "progress": False, "optimizer": Cosmos.of(model, learning_rate=0.01)}
        return fit(model, cycles(users=40), epochs=epochs, folder=tmp_path / folder, **options)

    whole = run("whole", 3)
    for epochs in (1, 3):
        run("parts", epochs)
    assert outcome(tmp_path / "whole") == outcome(tmp_path / "parts")
    assert whole.history[-1]["loss"] < whole.history[0]["loss"]


def test_cosmos_groups_of_parts_keep_their_rates():
    from recsys.train.optimizer import make_optimizer
    from recsys.train.settings import Stage, Training

    model = nn.Module()
    model.own, model.rest = Own(), nn.Linear(2, 2)
    model.auxiliaries = [model.own]
    training = Training(optimizer=Cosmos.of(model, learning_rate=0.01))
    made = make_optimizer(model, training, Stage(1))
    assert {(one["of"], one["kind"]): one["lr"] for one in made.param_groups} == {
        ("default", "matrix"): 0.01,
        ("default", "adam"): 0.01,
        ("own", "matrix"): 0.005,
        ("own", "adam"): 0.005,
    }


def test_cosmos_what_does_not_fit_is_refused():
    for wrong in ({"lr": -1}, {"rank": 0}, {"betas": (1.0, 0.9)}, {"ratio": 0}):
        with pytest.raises(ValueError):
            Cosmos([matrix(2, 2)], **wrong)
    with pytest.raises(ValueError, match="kind"):
        Cosmos([{"params": [matrix(2, 2)]}])
    with pytest.raises(ValueError, match="no matrix"):
        Cosmos([{"params": [nn.Parameter(torch.ones(2, 2, 2))], "kind": "matrix"}])
