"""AdaLoRA as our loop drives peft's: numbered after the checks of its specification."""

import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from recsys.errors import DataWarning
from recsys.llm.trainers.adapters.adalora import AdaLoRA
from recsys.train.fit import fit

sys.path.insert(0, str(Path(__file__).parent))
from cycles import cycles, outcome
from fixture import adapted, ids, likelihood, llama, logits, stirred

peft = pytest.importorskip("peft")
SCHEDULE = {"total": 8, "rank": 2, "first": 4, "warmup": 1, "last": 2}


def trained(model, adapter, updates, told=True):
    optimizer = torch.optim.Adam(adapter.parameters_of(), 0.01)
    for number in range(updates):
        optimizer.zero_grad()
        (adapter.penalty() - likelihood(model, ids(seed=number)) / 15).backward()
        optimizer.step()
        if told:
            adapter.after_update(number + 1)


def attached(**options):
    model, adapter = llama(), AdaLoRA(**{**SCHEDULE, **options})
    adapter.attach(model)
    return model, adapter


def test_adalora_1_a_fresh_adapter_changes_nothing():
    model, adapter = attached()
    assert torch.equal(logits(model), logits(llama()))
    # A (4, I), B (O, 4) and E (4, 1) of 4 layers of 32 x 32 and 3 of 32 x 64, twice; and nothing else
    assert sum(one.numel() for one in adapter.parameters_of()) == 2 * (4 * 4 * 65 + 3 * 4 * 97)
    assert {id(one) for one in model.parameters()} == {id(one) for one in adapter.parameters_of()}


@pytest.mark.parametrize("updates", [6, 9])
def test_adalora_2_the_budget_is_kept_and_where_it_went_is_known(updates):
    model, adapter = attached()
    trained(model, adapter, updates)
    ranks = adapter.ranks()
    assert len(ranks) == 14 and abs(sum(ranks.values()) - 2 * 14) <= 1
    assert len(set(ranks.values())) > 1
    assert int(adapter.kept.sum()) == sum(ranks.values()) and len(adapter.kept) == 4 * 14
    base = likelihood(model)
    adapter.merge()
    assert torch.allclose(likelihood(model), base, atol=1e-4)


def test_adalora_3_without_being_told_of_updates_nothing_goes_and_merging_is_refused():
    model, adapter = attached()
    trained(model, adapter, 8, told=False)
    assert sum(adapter.ranks().values()) == 4 * 14
    with pytest.raises(ValueError, match="took no direction away in the 0 steps"):
        adapter.merge()
    assert hasattr(model.lm_head, "weight") and adapter.ranks()


def test_adalora_3_fit_tells_it_and_a_resumed_run_is_an_uninterrupted_one(tmp_path):
    split, options = cycles(users=40), {"batch_size": 16, "progress": False}

    def model():
        return adapted(AdaLoRA(total=8, rank=1, first=3, last=2))

    fit(model(), split, epochs=3, folder=tmp_path / "whole", **options)
    for epochs in (1, 3):
        found = model()
        fit(found, split, epochs=epochs, folder=tmp_path / "parts", **options)
    assert outcome(tmp_path / "whole") == outcome(tmp_path / "parts")
    assert sum(found.adapter.ranks().values()) < 3 * len(found.adapter.ranks())
    assert all(torch.equal(found.encoder.get_buffer(name), one) for name, one in found.fresh.items())


def test_adalora_4_the_penalty_is_that_of_peft():
    model = llama()
    config = peft.AdaLoraConfig(init_r=4, target_r=2, total_step=8, target_modules=["q_proj", "v_proj"])
    theirs = peft.get_peft_model(model, config)
    ours = attached(targets=["q_proj", "v_proj"])[1]
    values = {name.split("base_model.model.")[1]: one for name, one in theirs.named_parameters()}
    for name, one in ours.named().items():
        one.data.copy_(values[name])
    tokens = ids()
    theirs.eval()
    plain = theirs.base_model.model(input_ids=tokens, labels=tokens, use_cache=False).loss
    whole = theirs.base_model(input_ids=tokens, labels=tokens, use_cache=False).loss
    assert torch.allclose(ours.penalty(), whole - plain, atol=1e-5) and float(ours.penalty().detach()) > 0.1


def test_adalora_5_off_is_the_base_to_the_bit():
    model, adapter = attached()
    stirred(adapter)
    base = logits(llama())
    with adapter.off():
        assert torch.equal(logits(model), base)
    assert not torch.allclose(logits(model), base, atol=1e-3)


def test_adalora_6_saved_and_loaded_it_goes_on_alike():
    model, adapter = attached()
    trained(model, adapter, 4)
    other, again = llama(seed=5), AdaLoRA(**SCHEDULE)
    again.attach(other)
    other.load_state_dict(model.state_dict())
    again.load_state_dict(adapter.state_dict())
    assert torch.equal(logits(other), logits(model)) and again.ranks() == adapter.ranks()
    for pair in ((model, adapter), (other, again)):
        trained(*pair, 4)
    assert torch.equal(logits(other), logits(model)) and again.ranks() == adapter.ranks()


def test_adalora_layers_without_gradient_are_named():
    module = nn.ModuleDict({"used": nn.Linear(6, 6), "idle": nn.Linear(6, 6)})
    adapter = AdaLoRA(**SCHEDULE)
    adapter.attach(module)
    module["used"](torch.ones(1, 6)).sum().backward()
    with pytest.raises(ValueError, match="no gradient reaches idle"):
        adapter.after_update(1)


def test_adalora_a_stage_that_trains_something_else_does_not_count():
    module = nn.Sequential(nn.Linear(6, 6))
    adapter = AdaLoRA(**SCHEDULE)
    adapter.attach(module)
    for one in adapter.parameters_of():
        one.requires_grad_(False)
    adapter.after_update(1)
    assert adapter.updates == 0


def test_adalora_a_run_that_ended_early_says_so():
    model, adapter = attached()
    trained(model, adapter, 3)
    with pytest.warns(DataWarning, match="3 of 8 steps"):
        adapter.merge()


@pytest.mark.parametrize(
    "wrong", [{"warmup": 6}, {"last": 8}, {"first": 2}, {"every": 0}, {"betas": (1.0, 0.5)}, {"orthogonality": -1}]
)
def test_adalora_a_schedule_without_room_is_refused(wrong):
    with pytest.raises(ValueError):
        AdaLoRA(**{**SCHEDULE, **wrong})
