"""LT-SFT: numbered after the checks of its specification."""

import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from recsys.llm.trainers.adapters.sparse import SparseDelta, SparseTuning, composed, largest
from recsys.train.fit import fit
from recsys.train.settings import Stage

sys.path.insert(0, str(Path(__file__).parent))
from cycles import cycles, outcome
from fixture import Adapted, adapted, plain

X = torch.randn(8, 6, generator=torch.Generator().manual_seed(1))


def state(module):
    return {name: one.clone() for name, one in module.state_dict().items()}


def trained(module, adapter, updates=3, decay=0.1):
    optimizer = torch.optim.AdamW(module.parameters(), 0.05, weight_decay=decay)
    for number in range(updates):
        optimizer.zero_grad()
        (module(X) - 1).square().mean().backward()
        adapter.on_gradients()
        optimizer.step()
        adapter.after_update(number + 1)


def both(share=0.1, decay=0.1, seed=3):
    module, adapter = plain(seed), SparseTuning(share)
    adapter.attach(module)
    trained(module, adapter, decay=decay)
    adapter.on_stage("chosen")
    return module, adapter


def test_lt_sft_1_exactly_k_numbers_change():
    module, adapter = both()
    trained(module, adapter)
    delta = adapter.delta()
    assert len(delta) == int(0.1 * 84) == 8 and all(bool((one != 0).all()) for one in delta.values.values())
    changed = sum(int((one != state(plain())[name]).sum()) for name, one in module.state_dict().items())
    assert changed == 8
    assert sum(share * one.numel() for share, one in zip(adapter.shares().values(), module.parameters())) == 8


def test_lt_sft_1_those_that_moved_most_and_the_first_of_equals():
    module, adapter = nn.Linear(3, 1), SparseTuning(0.5)
    adapter.attach(module)
    module.weight.data += torch.tensor([[0.5, -2.0, 0.5]])
    module.bias.data += 0.5
    adapter.rewind()
    assert adapter.chosen.tolist() == [0, 1]
    values = torch.tensor([2.0, 2, 2, 1, 3, 2])
    assert [largest(values, count).tolist() for count in (1, 3, 6)] == [[4], [0, 1, 4], list(range(6))]


def test_lt_sft_2_others_stay_to_the_bit_under_weight_decay_and_momentum():
    module, adapter = both()
    assert all(torch.equal(one, state(plain())[name]) for name, one in module.state_dict().items())
    trained(module, adapter, decay=0.5)
    for (name, one), places in zip(module.named_parameters(), adapter._places(), strict=True):
        rest = torch.ones(one.numel(), dtype=torch.bool)
        rest[places] = False
        assert torch.equal(one.flatten()[rest], state(plain())[name].flatten()[rest])


def test_lt_sft_3_added_and_taken_away_nothing_is_left():
    module = nn.Linear(2, 2, bias=False)
    module.weight.data = torch.tensor([[0.5, 1.25], [-2.0, 3.0]])
    before = state(module)
    delta = SparseDelta({"weight": torch.tensor([1, 2])}, {"weight": torch.tensor([0.25, -0.5])})
    delta.add_to(module)
    assert module.weight.tolist() == [[0.5, 1.5], [-2.5, 3.0]]
    delta.add_to(module, -1.0)
    assert torch.equal(module.weight, before["weight"])
    awkward = SparseDelta({"weight": torch.tensor([1, 2])}, {"weight": torch.tensor([1e9, 1e-9])})
    with composed(module, [awkward, delta]):
        assert float(module.weight.detach()[0, 1]) > 1e8
    assert torch.equal(module.weight, before["weight"])


def test_lt_sft_4_deltas_of_other_places_add_up_in_any_order():
    deltas = []
    for _ in range(2):
        module, adapter = both()
        trained(module, adapter, 1 + len(deltas))
        deltas.append(adapter.delta())
    shifted = SparseDelta(
        {name: (one + 1) % plain().get_parameter(name).numel() for name, one in deltas[1].places.items()},
        deltas[1].values,
    )
    first = {(name, place) for name, one in deltas[0].places.items() for place in one.tolist()}
    kept = {
        name: [place for place in one.tolist() if (name, place) not in first] for name, one in shifted.places.items()
    }
    second = SparseDelta(
        {name: torch.tensor(one, dtype=torch.int64) for name, one in kept.items()},
        {name: torch.arange(1.0, len(one) + 1) for name, one in kept.items()},
    )
    assert len(second)
    module, found = plain(), []
    for order in ((deltas[0], second), (second, deltas[0])):
        with composed(module, order):
            found.append(state(module))
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])
    with composed(module, [second]):
        alone = state(module)
    for name, one in second.places.items():
        assert torch.equal(found[0][name].flatten()[one], alone[name].flatten()[one])


def test_lt_sft_5_all_weights_chosen_is_ordinary_training():
    module, adapter = both(share=1.0)
    trained(module, adapter)
    ordinary = plain()
    optimizer = torch.optim.AdamW(ordinary.parameters(), 0.05, weight_decay=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        (ordinary(X) - 1).square().mean().backward()
        optimizer.step()
    assert all(torch.equal(one, state(ordinary)[name]) for name, one in module.state_dict().items())


def test_lt_sft_6_what_is_saved_grows_with_k_and_comes_back():
    sizes = {}
    for share in (0.1, 0.5):
        module, adapter = both(share)
        trained(module, adapter)
        tensors = adapter.delta().tensors()
        sizes[share] = sum(one.numel() for one in tensors.values())
    assert sizes == {0.1: 2 * 8, 0.5: 2 * 42}
    other = plain()
    SparseDelta.of(tensors).add_to(other)
    assert all(torch.allclose(one, state(module)[name], atol=1e-6) for name, one in other.state_dict().items())


def test_lt_sft_off_is_the_start_to_the_bit_and_gradients_go_on_behind_it():
    module, adapter = both()
    trained(module, adapter)
    module.zero_grad()
    now = state(module)
    loss = module(X).sum()
    with adapter.off():
        assert torch.equal(module(X), plain()(X))
    loss.backward()
    found = [one.grad.clone() for one in module.parameters()]
    module.zero_grad()
    module(X).sum().backward()
    assert all(torch.equal(one.grad, before) for one, before in zip(module.parameters(), found, strict=True))
    assert all(torch.equal(one, now[name]) for name, one in module.state_dict().items())
    adapter.merge()
    assert list(module.state_dict()) == list(plain().state_dict())
    with pytest.raises(ValueError, match="attach"):
        adapter.delta()


def test_lt_sft_the_penalty_is_the_mean_size_of_changes():
    module, adapter = nn.Linear(3, 1), SparseTuning(0.5, decay=2.0)
    adapter.attach(module)
    module.weight.data += torch.tensor([[1.0, -2.0, 0.0]])
    penalty = adapter.penalty()
    assert float(penalty) == pytest.approx(2 * 3 / 4)
    penalty.backward()
    assert torch.allclose(module.weight.grad, torch.tensor([[0.5, -0.5, 0.0]]))


class Sparse(Adapted):
    def bind(self, context):
        super().bind(context)
        self.fresh = state(self.encoder)


def test_lt_sft_detached_the_module_is_what_it_was():
    module, adapter = both()
    trained(module, adapter)
    adapter.detach()
    assert all(torch.equal(one, state(plain())[name]) for name, one in module.state_dict().items())
    assert not any(name.startswith("origin") for name in adapter.state_dict())


def test_lt_sft_fit_trains_in_two_stages_and_a_resumed_run_is_an_uninterrupted_one(tmp_path):
    split = cycles(users=40)

    def run(folder, last):
        parts = adapted(SparseTuning(0.05))
        model = Sparse(parts.items, parts.encoder, parts.objective, parts.adapter)
        stages = [Stage(1, name="all", validate=False), Stage(last, name="chosen")]
        options = {"batch_size": 16, "progress": False, "weight_decay": 0.1, "folder": tmp_path / folder}
        fit(model, split, stages=stages, **options)
        return model

    run("whole", 2)
    for last in (1, 2):
        model = run("parts", last)
    assert outcome(tmp_path / "whole") == outcome(tmp_path / "parts")
    count = sum(int((one != model.fresh[name]).sum()) for name, one in model.encoder.named_parameters())
    assert count == len(model.adapter.delta()) == int(0.05 * sum(one.numel() for one in model.encoder.parameters()))


def test_lt_sft_errors_say_what_to_do():
    for wrong in ({"share": 0}, {"share": 1.5}, {"decay": -1}):
        with pytest.raises(ValueError):
            SparseTuning(**wrong)
    with pytest.raises(ValueError, match="no weights"):
        SparseTuning().attach(nn.Tanh())
    module, adapter = plain(), SparseTuning()
    adapter.attach(module)
    with pytest.raises(ValueError, match="attached already"):
        adapter.attach(module)
    with pytest.raises(ValueError, match="validate=False"):
        adapter.delta()
    with pytest.raises(ValueError, match="no weight has moved"):
        adapter.rewind()
    delta = SparseDelta({"0.0.weight": torch.tensor([99])}, {"0.0.weight": torch.tensor([1.0])})
    with pytest.raises(ValueError, match="another base"):
        delta.add_to(module)
