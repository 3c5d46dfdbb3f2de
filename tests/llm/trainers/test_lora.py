"""LoRA beside transformers' models and our own: frozen, off, merged, and what it refuses."""

import copy
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from recsys.encoders.tokens import TokenEncoder
from recsys.errors import DataWarning
from recsys.llm.trainers.adapters.adalora import AdaLoRA
from recsys.llm.trainers.adapters.allora import ALLoRA
from recsys.llm.trainers.adapters.aslora import ASLoRA
from recsys.llm.trainers.adapters.lora import LoRA
from recsys.llm.trainers.adapters.sparse import SparseTuning
from recsys.llm.trainers.protocols import Adapter
from recsys.train.fit import fit

sys.path.insert(0, str(Path(__file__).parent))
from cycles import cycles
from fixture import adapted, likelihood, llama, logits, plain, stirred

pytest.importorskip("peft")


def test_a_fresh_adapter_changes_nothing_and_only_it_is_trained():
    model = llama()
    before = logits(model)
    adapter = LoRA(rank=4)
    assert isinstance(adapter, Adapter)
    adapter.attach(model)
    assert torch.equal(logits(model), before)
    trained = adapter.parameters_of()
    # 7 linear layers in each of 2 layers: 4 of 32 x 32, 3 of 32 x 64; the head is no part of it
    assert sum(one.numel() for one in trained) == 2 * 4 * (4 * (32 + 32) + 3 * (32 + 64))
    assert {id(one) for one in model.parameters()} == {id(one) for one in trained}
    assert not any(layer.training for layer in model.modules())


def test_off_is_the_base_to_the_bit_and_gradients_go_on_behind_it():
    model = llama()
    before = logits(model)
    adapter = LoRA(rank=4, dropout=0.5)
    adapter.attach(model)
    stirred(adapter)
    frozen = adapter.parameters_of()[0].requires_grad_(False)
    loss = likelihood(model)
    with adapter.off():
        assert torch.equal(logits(model), before)
        with adapter.off():
            pass
        assert torch.equal(logits(model), before)
    loss.backward()
    assert not frozen.requires_grad and frozen.grad is None
    assert all(one.grad is not None and one.requires_grad for one in adapter.parameters_of()[1:])
    assert not torch.equal(logits(model), before)


def test_merging_gives_the_former_names_back_and_computes_the_same():
    model = llama()
    names, flags = list(model.state_dict()), {name: one.requires_grad for name, one in model.named_parameters()}
    adapter = LoRA(rank=4)
    adapter.attach(model)
    attached = model.state_dict()
    assert sum(name.endswith("q_proj.base_layer.weight") for name in attached) == 2  # a checkpoint is whole
    stirred(adapter)
    adapted = logits(model)
    adapter.merge()
    assert list(model.state_dict()) == names
    assert {name: one.requires_grad for name, one in model.named_parameters()} == flags
    assert torch.allclose(logits(model), adapted, atol=1e-5)
    folded = logits(model)
    adapter.attach(model)  # and another round
    stirred(adapter)
    adapter.detach()
    assert torch.equal(logits(model), folded) and list(model.state_dict()) == names
    with pytest.raises(ValueError, match="attach"):
        adapter.merge()


def test_tied_weights_stay_one_and_get_no_adapter():
    model = llama(tied=True)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    before = logits(model)
    adapter = LoRA(rank=4)
    adapter.attach(model)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    adapter.merge()
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert torch.equal(logits(model), before)
    with pytest.raises(ValueError, match="lm_head shares its weight"):
        LoRA(targets=["lm_head"]).attach(model)
    assert isinstance(model.lm_head.weight, nn.Parameter)  # what failed changed nothing
    free = llama()
    head = LoRA(rank=4, targets=["lm_head"])
    head.attach(free)
    assert sum(one.numel() for one in head.parameters_of()) == 4 * (32 + 64)


def test_names_are_exact_paths_or_their_last_parts():
    module = nn.ModuleDict({"inner": nn.Linear(3, 3), "block": nn.ModuleDict({"inner": nn.Linear(3, 3)})})
    adapter = LoRA(rank=1, targets=["block.inner"])
    adapter.attach(module)
    assert {name.partition(".lora")[0] for name in adapter.named()} == {"block.inner"}
    adapter.merge()
    adapter = LoRA(rank=1, targets=["inner"])
    adapter.attach(module)
    assert len(adapter.parameters_of()) == 4


@pytest.mark.parametrize(
    "adapter", [LoRA(), AdaLoRA(total=4), ASLoRA(total=4), ALLoRA(), ALLoRA(scales="gradients"), SparseTuning()]
)
def test_every_adapter_keeps_to_the_protocol(adapter):
    assert isinstance(adapter, Adapter)
    module = plain()
    x, names = torch.ones(2, 6), list(module.state_dict())
    before = module(x)
    adapter.attach(module)
    assert torch.equal(module(x), before)
    for one in adapter.parameters_of():
        one.data += 0.1
    after = module(x)
    assert not torch.equal(after, before)
    with adapter.off():
        assert torch.equal(module(x), before)
    assert torch.equal(module(x), after)
    adapter.detach()
    assert torch.equal(module(x), before) and list(module.state_dict()) == names
    assert all(isinstance(one, nn.Parameter) and one.requires_grad for one in module.parameters())


@pytest.mark.parametrize(
    ("module", "targets", "match"),
    [
        (nn.Sequential(nn.Embedding(3, 2)), None, "no linear layer"),
        (nn.Sequential(nn.Linear(2, 2)), ["1"], "no linear layer of the module"),
        (nn.Sequential(nn.MultiheadAttention(4, 2)), None, "without being called"),
        (nn.Sequential(nn.MultiheadAttention(4, 2)), ["out_proj"], "without being called"),
        (nn.TransformerEncoderLayer(4, 2, 8), ["linear1"], "without being called"),
        (nn.Linear(2, 2), None, "alone"),
        (nn.Sequential(nn.Linear(2, 2)), [], "names no linear layer"),
    ],
)
def test_what_has_no_linear_layer_to_adapt_is_refused(module, targets, match):
    with pytest.raises(ValueError, match=match):
        LoRA(targets=targets).attach(module)
    assert list(module.parameters())


def test_arguments_out_of_range_and_second_adapters_are_refused():
    for wrong in ({"rank": 0}, {"alpha": 0}, {"dropout": 1.0}):
        with pytest.raises(ValueError):
            LoRA(**wrong)
    with pytest.raises(TypeError, match="list"):
        LoRA(targets="q_proj")
    module = plain()
    adapter = LoRA(rank=1)
    adapter.attach(module)
    with pytest.raises(ValueError, match="attached already"):
        adapter.attach(plain())
    with pytest.raises(ValueError, match="has an adapter already"):
        LoRA().attach(module)


def test_our_own_encoders_and_several_modules_take_it():
    stack, other = TokenEncoder(dim=8, num_layers=1, num_heads=2, head_dim=4, ff=8), plain()
    adapter = LoRA(rank=2)
    adapter.attach([stack.stack, other])
    x = torch.randn(4, 6)
    stirred(adapter)
    adapted = other(x)
    copied = copy.deepcopy(nn.ModuleList([other, adapter]))  # as a trial before training does
    with copied[1].off():
        assert not torch.equal(copied[0](x), adapted)
    assert torch.equal(other(x), adapted)
    adapter.merge()
    assert torch.allclose(other(x), adapted, atol=1e-6) and isinstance(other[0][0], nn.Linear)


def test_recurrent_layers_beside_it_are_frozen_and_come_back():
    module = nn.ModuleDict({"gru": nn.GRU(3, 3), "out": nn.Linear(3, 2)})
    x = torch.randn(2, 1, 3)
    before = module["out"](module["gru"](x)[0])
    adapter = LoRA(rank=1)
    adapter.attach(module)
    assert torch.equal(module["out"](module["gru"](x)[0]), before)
    assert not module["gru"](x)[0].requires_grad
    adapter.merge()
    after = module["out"](module["gru"](x)[0])
    assert torch.equal(after, before)
    after.sum().backward()
    assert all(one.grad is not None for one in module.parameters())


def test_layers_that_take_no_part_are_told_once():
    module = nn.ModuleDict({"used": nn.Linear(3, 3), "idle": nn.Linear(3, 3)})
    adapter = LoRA(rank=1)
    adapter.attach(module)
    module["used"](torch.ones(1, 3)).sum().backward()
    with pytest.warns(DataWarning, match="1 of 2 adapters get no gradient: idle"):
        adapter.on_gradients()
    adapter.on_gradients()  # warnings are errors here


def test_fit_trains_the_adapter_and_leaves_the_base_bit_identical():
    split, options = cycles(users=40), {"batch_size": 16, "progress": False, "validate_every": 0}
    model = adapted(LoRA(rank=2))
    fit(model, split, epochs=2, **options)
    assert sum("base_layer" in name for name in model.fresh) > 4
    assert all(torch.equal(model.encoder.get_buffer(name), one) for name, one in model.fresh.items())
    assert any(one.abs().sum() > 0 for name, one in model.adapter.named().items() if "lora_B" in name)
