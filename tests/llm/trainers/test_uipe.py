"""UIPE: numbered after the checks of its specification."""

import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from recsys.llm.trainers.adapters.adalora import AdaLoRA
from recsys.llm.trainers.adapters.lora import LoRA
from recsys.llm.trainers.extrapolate import Extrapolation, largest_tolerated

sys.path.insert(0, str(Path(__file__).parent))
from fixture import ids, likelihood, llama, logits, plain, stirred


def moved(module, seed=0, size=0.1):
    """The parameters of before; the module has others now."""
    before = {name: one.clone() for name, one in module.state_dict().items()}
    draw = torch.Generator().manual_seed(seed)
    for one in module.parameters():
        one.data += size * torch.randn(one.shape, generator=draw)
    return before


def flat(module):
    return torch.cat([one.detach().flatten() for one in module.parameters()]).double()


def test_uipe_1_alpha_0_is_where_training_ended_to_the_bit():
    module = plain()
    before = moved(module)
    end = flat(module)
    way = Extrapolation(module, before)
    for alpha in (0.0, 0.7, 0.0):
        way.to(alpha)
    assert torch.equal(flat(module), end)


def test_uipe_2_the_way_is_longer_by_alpha_and_not_by_each_time_it_is_set():
    module = plain()
    before = moved(module)
    start, end = flat(plain()), flat(module)
    way = Extrapolation(module, before)
    for _ in range(2):
        way.to(0.5)
    assert float((flat(module) - start).norm()) == pytest.approx(1.5 * float((end - start).norm()), rel=1e-6)


@pytest.mark.parametrize("kind", ["lora", "adalora"])
def test_uipe_3_scaling_what_an_adapter_adds_is_the_same(kind):
    pytest.importorskip("peft")

    def tuned():
        model = llama()
        adapter = LoRA(rank=4) if kind == "lora" else AdaLoRA(total=9, rank=2, first=4)
        adapter.attach(model)
        stirred(adapter, size=0.2)
        return model, adapter

    model, adapter = tuned()
    Extrapolation(adapter).to(0.5)
    folded, other = tuned()
    if kind == "adalora":
        other.allocations += 1
        with pytest.warns(UserWarning):
            other.merge()
    else:
        other.merge()
    Extrapolation(folded, llama().state_dict()).to(0.5)
    assert torch.allclose(logits(model), logits(folded), atol=1e-4)
    assert not torch.allclose(logits(model), logits(tuned()[0]), atol=1e-2)


def test_uipe_4_buffers_stay_frozen_ones_too_and_tied_ones_move_once():
    module = nn.ModuleDict({"norm": nn.BatchNorm1d(3), "one": nn.Linear(3, 3), "two": nn.Linear(3, 3)})
    module["two"].weight = module["one"].weight
    before = moved(module)
    module["norm"].weight.data.copy_(before["norm.weight"])  # frozen
    module["norm"].running_mean += 1
    module["norm"].num_batches_tracked += 5
    buffers = {name: one.clone() for name, one in module.named_buffers()}
    end = module["one"].weight.detach().clone()
    Extrapolation(module, before).to(1.0)
    assert all(torch.equal(one, buffers[name]) for name, one in module.named_buffers())
    assert torch.equal(module["norm"].weight, before["norm.weight"])
    assert module["two"].weight is module["one"].weight
    assert torch.allclose(module["one"].weight, 2 * end - before["one.weight"], atol=1e-6)


def test_uipe_5_behind_unlearning_more_is_forgotten():
    pytest.importorskip("peft")
    model, adapter, tokens = llama(), LoRA(rank=4), ids(seed=7)
    adapter.attach(model)
    with torch.no_grad(), adapter.off():
        reference = likelihood(model, tokens)
    optimizer = torch.optim.Adam(adapter.parameters_of(), 3e-3)
    for _ in range(5):  # negative preferences, of one sequence
        optimizer.zero_grad()
        (-2 / 0.1 * F.logsigmoid(-0.1 * (likelihood(model, tokens) - reference))).backward()
        optimizer.step()
    way, found = Extrapolation(adapter), {}
    for alpha in (0.0, 0.5):
        way.to(alpha)
        with torch.no_grad():
            found[alpha] = float(likelihood(model, tokens))
    assert found[0.5] < found[0.0] < float(reference)


def test_uipe_6_alpha_is_0_where_every_other_one_costs_too_much():
    module = plain()
    way = Extrapolation(module, moved(module))
    end = flat(module)
    found = largest_tolerated(way, lambda: 1.0 - way.alpha, tolerance=0.01)
    assert found.alpha == way.alpha == 0 and torch.equal(flat(module), end)
    assert found.retained[0.1] == pytest.approx(0.9) and len(found.retained) == 11
    found = largest_tolerated(way, lambda: float("nan") if way.alpha else 1.0)
    assert found.alpha == 0


def test_uipe_6_the_largest_tolerated_one_is_found_and_set():
    module = plain()
    way = Extrapolation(module, moved(module))
    found = largest_tolerated(way, lambda: 2.0 - 0.1 * way.alpha, tolerance=0.0201)
    assert found.alpha == way.alpha == 0.4
    with pytest.raises(ValueError, match="above"):
        largest_tolerated(way, lambda: 0.0)
    for wrong in ({"tolerance": 1.0}, {"alphas": ()}, {"alphas": (0.0,)}):
        with pytest.raises(ValueError):
            largest_tolerated(way, lambda: 1.0, **wrong)


def test_uipe_what_cannot_be_gone_further_is_refused():
    module = plain()
    live = module.state_dict()
    moved(module)
    with pytest.raises(ValueError, match="clone"):
        Extrapolation(module, live)
    with pytest.raises(ValueError, match="same model"):
        Extrapolation(module, {name: one[:1] for name, one in live.items()})
    with pytest.raises(ValueError, match="before"):
        Extrapolation(module)
    way = Extrapolation(module, plain().state_dict())
    with pytest.raises(ValueError, match="at least 0"):
        way.to(-0.1)
