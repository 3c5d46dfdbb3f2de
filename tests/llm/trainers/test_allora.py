"""ALLoRA in both forms: numbered after the checks of its specification."""

import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from recsys.llm.trainers.adapters.allora import ALLoRA, row_rates
from recsys.llm.trainers.adapters.lora import LoRA

sys.path.insert(0, str(Path(__file__).parent))
from fixture import likelihood, llama, logits, plain, stirred

X = torch.randn(5, 6, generator=torch.Generator().manual_seed(0))


def pair(scales="gradients", **options):
    """Two equal modules: with ALLoRA, and with the LoRA that computes the same."""
    pytest.importorskip("peft")
    module, other = plain(), plain()
    ours, theirs = ALLoRA(rank=3, scales=scales, **options), LoRA(rank=3, alpha=3)
    ours.attach(module)
    theirs.attach(other)
    for one, value in zip(theirs.parameters_of(), ours.parameters_of(), strict=True):
        one.data.copy_(value)
    return module, ours, other, theirs


@pytest.mark.parametrize("scales", ["updates", "gradients"])
def test_allora_1_it_computes_what_lora_with_alpha_r_computes(scales):
    module, ours, other, theirs = pair(scales)
    assert torch.equal(module(X), plain()(X))
    stirred(ours)
    stirred(theirs)
    assert torch.allclose(module(X), other(X), atol=1e-6)


def test_allora_2_at_the_start_sgd_moves_b_eta_times_as_far():
    module, ours, other, theirs = pair(eta=3.0)
    for part, adapter in ((module, ours), (other, theirs)):
        part(X).square().sum().backward()
        assert all(one.grad.abs().max() == 0 for name, one in adapter.named().items() if "lora_A" in name)
        torch.optim.SGD(adapter.parameters_of(), 0.1).step()
    for name, one in ours.named().items():
        if "lora_B" in name:
            moved = theirs.named()[name + ".default.weight"]
            assert torch.allclose(one, 3 * moved, atol=1e-6) and moved.abs().max() > 0


def test_allora_3_what_lies_before_gets_the_true_gradient():
    module, ours, other, theirs = pair()
    stirred(ours)
    stirred(theirs)
    found = []
    for part in (module, other):
        x = X.clone().requires_grad_()
        part(x).square().sum().backward()
        found.append(x.grad)
    assert torch.allclose(*found, atol=1e-5)


def test_allora_4_rates_begin_at_eta_and_fall():
    inner = torch.eye(3)
    outer = torch.tensor([[0.0, 0, 0], [1, 0, 0], [0, 3.75, 0], [0, 0, 100]])
    found = row_rates(inner, outer, eta=2.0)
    assert found.tolist() == pytest.approx([2.0, (1 + 0.25) ** -0.5, 0.5, 100.25**-0.5])
    assert row_rates(inner, torch.zeros(2, 3), eta=0.5).tolist() == [0.5, 0.5]


def test_allora_5_norms_of_rows_are_those_of_the_product():
    inner, outer = torch.randn(3, 7), torch.randn(5, 3)
    dense = (outer @ inner).norm(dim=1)
    assert torch.allclose(row_rates(inner, outer, 2.0), (dense + 0.25).rsqrt(), atol=1e-6)


def test_allora_6_gradients_are_those_of_the_product_with_its_rows_scaled():
    module, adapter = nn.Sequential(nn.Linear(6, 4)), ALLoRA(rank=3, scales="gradients")
    adapter.attach(module)
    stirred(adapter)
    module(X).square().sum().backward()
    layer = module[0]
    inner, outer = layer.lora_A.detach(), layer.lora_B.detach()
    change = (outer @ inner).requires_grad_()
    F.linear(X, layer.weight + change, layer.bias).square().sum().backward()
    scaled = row_rates(inner, outer, 2.0)[:, None] * change.grad
    assert torch.allclose(layer.lora_A.grad, outer.T @ scaled, atol=1e-4)
    assert torch.allclose(layer.lora_B.grad, scaled @ inner.T, atol=1e-4)


def test_allora_under_adam_the_update_of_each_row_is_scaled():
    module, ours, other, theirs = pair("updates")
    stirred(ours)
    stirred(theirs)
    rates, before = ours.rates(), {name: one.detach().clone() for name, one in ours.named().items()}
    for part, adapter in ((module, ours), (other, theirs)):
        optimizer = torch.optim.AdamW(adapter.parameters_of(), 0.1, weight_decay=0.1)
        part(X).square().sum().backward()
        adapter.on_gradients()
        optimizer.step()
    ours.after_update(1)
    for name, one in ours.named().items():
        moved = theirs.named()[name + ".default.weight"] - before[name]
        if "lora_B" in name:
            moved = rates[name.removesuffix(".lora_B")][:, None] * moved
        assert torch.allclose(one - before[name], moved, atol=1e-6)


def test_allora_in_a_language_model_switches_off_and_folds_in():
    model, adapter = llama(), ALLoRA(rank=2, scales="gradients")
    names, base = list(model.state_dict()), logits(model)
    adapter.attach(model)
    stirred(adapter)
    likelihood(model).backward()
    assert all(one.grad is not None for one in adapter.parameters_of())
    with adapter.off():
        assert torch.equal(logits(model), base)
    found = logits(model)
    adapter.merge()
    assert torch.allclose(logits(model), found, atol=1e-5) and list(model.state_dict()) == names


def test_allora_keeps_the_type_of_a_base_in_half_precision():
    module, adapter = plain().bfloat16(), ALLoRA(rank=2, scales="gradients")
    adapter.attach(module)
    made = module(X.bfloat16())
    made.float().sum().backward()
    assert made.dtype == torch.bfloat16 and all(one.dtype == torch.float32 for one in adapter.parameters_of())
    with torch.autocast("cpu", torch.bfloat16):
        loss = module(X.bfloat16()).float().sum()
    loss.backward()


def test_allora_arguments_out_of_range_are_refused():
    for wrong in ({"rank": 0}, {"eta": 0}, {"scales": "update"}):
        with pytest.raises(ValueError):
            ALLoRA(**wrong)
