"""ASLoRA: numbered after the checks of its specification."""

import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from recsys.errors import DataWarning
from recsys.llm.trainers.adapters.aslora import ASLoRA
from recsys.train.fit import fit

sys.path.insert(0, str(Path(__file__).parent))
from cycles import cycles, outcome
from fixture import adapted, ids, likelihood, llama, logits, stirred


def blocks(count=4):
    torch.manual_seed(0)
    sizes = ((6, 6), (6, 3), (3, 6))
    return nn.Sequential(*(nn.Sequential(*(nn.Linear(*size) for size in sizes), nn.Tanh()) for _ in range(count)))


def attached(module=None, **options):
    module, adapter = module or blocks(), ASLoRA(**{"total": 20, "rank": 2, "groups": 1, **options})
    adapter.attach(module)
    return module, adapter


X = torch.randn(5, 6, generator=torch.Generator().manual_seed(1))


def trained(module, adapter, updates, optimizer=None):
    optimizer = optimizer or torch.optim.Adam(adapter.parameters_of(), 0.01)
    adapter.on_optimizer(optimizer)
    for number in range(updates):
        optimizer.zero_grad()
        (module(X) - 1).square().sum().backward()
        optimizer.step()
        adapter.after_update(number + 1)
    return optimizer


def size(adapter):
    return sum(one.numel() for one in adapter.parameters_of())


def test_aslora_1_a_fresh_adapter_changes_nothing():
    model, adapter = attached(llama())
    assert torch.equal(logits(model), logits(llama()))
    stirred(adapter)
    with adapter.off():
        assert torch.equal(logits(model), logits(llama()))


def test_aslora_2_parameters_are_as_many_as_the_formula_says():
    module, adapter = attached()
    # of each kind r I + L O r: 6 x 6, 6 -> 3, 3 -> 6
    assert size(adapter) == (2 * 6 + 4 * 6 * 2) + (2 * 6 + 4 * 3 * 2) + (2 * 3 + 4 * 6 * 2)
    trained(module, adapter, 20)
    assert size(adapter) == (2 * 6 + 6 * 2) + (2 * 6 + 3 * 2) + (2 * 3 + 6 * 2)


def test_aslora_3_equal_ones_merge_without_a_trace_and_others_to_their_mean():
    module, adapter = attached(blocks(3), begin=0.0, end=0.1, groups=2, decay=0.0, targets=["0"])
    first, second, third = (module[number][0] for number in range(3))
    stirred(adapter)
    second.lora_B.data.copy_(first.lora_B)
    before = module(X)
    optimizer = torch.optim.SGD(adapter.parameters_of(), 0.1)
    adapter.on_optimizer(optimizer)
    adapter.after_update(1)
    adapter.after_update(2)
    assert first.lora_B is second.lora_B and third.lora_B is not first.lora_B
    assert torch.equal(module(X), before)
    module, adapter = attached(blocks(2), begin=0.0, end=0.1, decay=0.0, targets=["0"])
    stirred(adapter)
    mean = (module[0][0].lora_B + module[1][0].lora_B).detach() / 2
    optimizer = torch.optim.SGD(adapter.parameters_of(), 0.1)
    adapter.on_optimizer(optimizer)
    adapter.after_update(1)
    adapter.after_update(2)
    assert torch.allclose(module[0][0].lora_B, mean, atol=1e-6) and module[1][0].lora_B is module[0][0].lora_B


def test_aslora_3_a_third_layer_counts_for_a_third():
    module, adapter = attached(blocks(3), begin=0.0, end=0.1, decay=0.0, targets=["0"])
    layers = [module[number][0] for number in range(3)]
    for layer, value in zip(layers, (1.0, 1.01, -4.0), strict=True):
        layer.lora_B.data.fill_(value)
        layer.lora_B.data[0, 0] = 1.0
    optimizer = torch.optim.SGD(adapter.parameters_of(), 0.1)
    adapter.on_optimizer(optimizer)
    adapter.after_update(1)
    adapter.after_update(2)
    assert len(adapter.groups_of(0)) == 1
    assert float(layers[2].lora_B.detach()[1, 1]) == pytest.approx((1.0 + 1.01 - 4.0) / 3, abs=1e-6)


def test_aslora_4_groups_never_grow_and_end_as_wanted():
    module, adapter = attached(blocks(5), groups=2)
    optimizer = torch.optim.Adam(adapter.parameters_of(), 0.01)
    counts = []
    for _ in range(20):
        trained(module, adapter, 1, optimizer)
        counts.append(len(adapter.groups_of(0)))
    # between steps 4 and 12, one of three merges after each third
    assert counts == [5] * 6 + [4] * 3 + [3] * 2 + [2] * 9


def test_aslora_5_the_optimizer_has_what_is_left_and_moves_both_layers():
    module, adapter = attached(blocks(2), targets=["0"], begin=0.1, end=0.5)
    old = module[1][0].lora_B
    optimizer = trained(module, adapter, 9)
    states = [optimizer.state[module[number][0].lora_B]["exp_avg"].clone() for number in range(2)]
    trained(module, adapter, 1, optimizer)  # merges behind its update
    shared = module[0][0].lora_B
    held = [one for group in optimizer.param_groups for one in group["params"]]
    assert (
        {id(one) for one in held}
        == {id(one) for one in adapter.parameters_of()}
        == {id(one) for one in optimizer.state}
    )
    assert old is not shared and all(one is not old for one in held)
    assert not torch.equal(*states)
    before = shared.detach().clone()
    trained(module, adapter, 1, optimizer)
    assert module[1][0].lora_B is shared and not torch.equal(before, shared)


def test_aslora_5_averages_of_gradients_are_averaged():
    from recsys.llm.trainers.adapters.aslora import forget

    kept, gone = nn.Parameter(torch.zeros(2, 2)), nn.Parameter(torch.zeros(2, 2))
    optimizer = torch.optim.Adam([kept, gone])
    for one, value in ((kept, 1.0), (gone, 5.0)):
        one.grad = torch.full((2, 2), value)
    optimizer.step()
    forget(optimizer, kept, gone, 0.25)
    assert torch.allclose(optimizer.state[kept]["exp_avg"], torch.tensor(0.1 * (0.75 * 1 + 0.25 * 5)))
    assert len(optimizer.state) == 1 and optimizer.state[kept]["step"] == 1


def test_aslora_6_saved_and_loaded_it_shares_alike():
    module, adapter = attached(blocks(5), groups=2)
    trained(module, adapter, 8)
    whole, again = attached(blocks(5), groups=2)
    again.load_state_dict(adapter.state_dict())
    whole.load_state_dict(module.state_dict())
    assert [again.groups_of(kind) for kind in range(3)] == [adapter.groups_of(kind) for kind in range(3)]
    assert torch.equal(whole(X), module(X)) and size(again) == size(adapter)
    start = {name: one.clone() for name, one in attached(blocks(5), groups=2)[1].state_dict().items()}
    adapter.load_state_dict(start)  # and back to what it was before merges
    assert len(adapter.groups_of(0)) == 5


def test_aslora_6_a_resumed_run_is_an_uninterrupted_one(tmp_path):
    split, options = cycles(users=40), {"batch_size": 16, "progress": False}

    def model():
        return adapted(ASLoRA(total=9, rank=2, begin=0.1, end=0.6))

    fit(model(), split, epochs=3, folder=tmp_path / "whole", **options)
    for epochs in (1, 2, 3):
        found = model()
        fit(found, split, epochs=epochs, folder=tmp_path / "parts", **options)
    assert outcome(tmp_path / "whole") == outcome(tmp_path / "parts")
    assert len(found.adapter.groups_of(0)) == 1
    assert all(torch.equal(found.encoder.get_buffer(name), one) for name, one in found.fresh.items())


def test_aslora_7_folded_in_it_computes_the_same():
    model, adapter = attached(llama(), total=5, targets=["q_proj", "down_proj"])
    names = list(llama().state_dict())
    optimizer = torch.optim.Adam(adapter.parameters_of(), 0.01)
    adapter.on_optimizer(optimizer)
    for number in range(4):
        optimizer.zero_grad()
        (-likelihood(model, ids(seed=number))).backward()
        optimizer.step()
        adapter.after_update(number + 1)
    assert len(adapter.groups_of(0)) == 1
    found = logits(model)
    adapter.merge()
    assert torch.allclose(logits(model), found, atol=1e-5) and list(model.state_dict()) == names


def test_aslora_merging_waits_until_b_has_learned_and_says_so():
    adapter = attached(blocks(2))[1]
    optimizer = torch.optim.SGD(adapter.parameters_of(), 0.0)
    adapter.on_optimizer(optimizer)
    for number in range(11):
        adapter.after_update(number + 1)
    with pytest.warns(DataWarning, match="learned nothing"):
        adapter.after_update(12)
    assert len(adapter.groups_of(0)) == 2


def test_aslora_errors_say_what_is_missing():
    adapter = attached(begin=0.0, end=0.1)[1]
    stirred(adapter)
    with pytest.raises(ValueError, match="on_optimizer"):
        for number in range(3):
            adapter.after_update(number + 1)
    with pytest.raises(ValueError, match="no step of 2"):
        attached(total=2, begin=0.1, end=0.2)
    with pytest.warns(DataWarning, match="shared"):
        attached(blocks(1))
    for wrong in ({"total": 0}, {"begin": 0.7}, {"groups": 0}, {"decay": 1.0}):
        with pytest.raises(ValueError):
            ASLoRA(**{"total": 20, **wrong})
