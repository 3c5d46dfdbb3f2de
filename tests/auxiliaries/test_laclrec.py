"""LACLRec: the editor, the views it makes and the losses, by the numbers of section 14 of our note on the method.

Checks 1 and 2, on the corruption alone, are in ``test_corruption``.
"""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from two_triplets import slope

import recsys as rs
from recsys.augmentations.corruption import Corrupted, corrupt
from recsys.augmentations.edits import DELETE, INSERT, KEEP, assemble
from recsys.auxiliaries.contrast import newest_target, nt_xent
from recsys.auxiliaries.edit_report import edit_sections, editor_quality, show_edits
from recsys.auxiliaries.editor import Editor, best_rows
from recsys.auxiliaries.triplet import Topped, TripletContrast, training_rows, triplet_loss
from recsys.data.batch import Batch
from recsys.data.split import Split
from recsys.data.splitters import LeaveLast
from recsys.encoders.bert4rec import BERT4Rec
from recsys.encoders.sasrec import SASRec
from recsys.errors import DataWarning
from recsys.eval.sampled import evaluate_sampled
from recsys.ids.vectors import Vectors
from recsys.items.ids import IdItems
from recsys.objectives.softmax import FullSoftmax
from recsys.protocols import Step
from recsys.recommenders.composed import Recommender
from recsys.runs.recipe import find_recipe, load_recipe
from recsys.targets.last_item import LastItem
from recsys.targets.masked_items import MaskedItems
from recsys.targets.next_item import NextItem
from recsys.testing import check_auxiliary, check_encoder, toy_batch, toy_context, toy_split
from recsys.train.fit import fit
from recsys.train.settings import Stage

HERE = Path(__file__).parent
N, DIM, LENGTH = 30, 16, 12
MASK, END = N + 1, N + 2
PRETRAIN = {"stage": "pretrain", "losses": ["TripletContrast0"]}


def editor(**knobs: Any) -> Editor:
    made = Editor(**{"dim": DIM, "max_length": LENGTH, "dropout": 0.0, **knobs})
    made.bind(toy_context())
    return made


def recommender(
    dropout: float = 0.0, encoder: Any = None, targets: Any = None, init: str = "normal", **knobs: Any
) -> Recommender:
    """A small model with LACLRec's losses."""
    own = {"editor": Editor(DIM, max_length=LENGTH, dropout=dropout), **knobs}
    model = Recommender(
        IdItems(DIM, init=init, extra=2),
        encoder or SASRec(DIM, num_layers=1, dropout=dropout, max_length=LENGTH),
        FullSoftmax(),
        targets=targets,
        auxiliaries=[TripletContrast(**own)],
    )
    model.bind(toy_context())
    return model


def prepared(model: Recommender, batch: Batch | None = None, **more: Any) -> Step:
    """The step of a prepared batch, as the training loop makes it."""
    batch = batch or toy_batch((8, 2, 5, 3))
    step = Step(batch, seed=3, **more)
    return Step(model.prepare(batch, step), seed=3, items=model.items, encode=model.encode, **more)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def slow_assembly(ids: list[int], operations: list[int], inserted: list[list[int]], dedup: str) -> list[int]:
    """Section 6 with lists, before truncation."""
    made: list[int] = []
    for item, operation, listed in zip(ids, operations, inserted, strict=True):
        if operation == DELETE:
            continue
        if operation == INSERT:
            listed = listed[: listed.index(END)] if END in listed else listed
            made += [one for one in reversed(listed) if 1 <= one <= N]
        made.append(item)
    made = [one for one in made if 1 <= one <= N]
    return made if dedup == "none" else list(dict.fromkeys(made))


@pytest.mark.parametrize("dedup", ["none", "first"])
def test_check_03_assembly_equals_the_list_algorithm(dedup: str) -> None:
    draws, rows, longest, limit = generator(), 400, 10, 14
    lengths = torch.randint(0, longest + 1, (rows,), generator=draws)
    inside = torch.arange(longest) < lengths[:, None]
    ids = torch.randint(1, N + 3, (rows, longest), generator=draws) * inside
    operations = torch.randint(0, 3, (rows, longest), generator=draws)
    inserted = torch.randint(0, N + 3, (rows, longest, 5), generator=draws)
    times = torch.arange(longest).expand(rows, -1) * inside
    batch = Batch(torch.arange(rows), torch.arange(rows), ids, lengths, times=times)
    found = assemble(batch, operations, inserted, N, limit, dedup)
    assert found.times is not None
    for row in range(rows):
        length = int(lengths[row])
        arguments = (values[row, :length].tolist() for values in (ids, operations, inserted))
        whole = slow_assembly(*arguments, dedup)
        expected = whole[-limit:] or ([END] if length else [])
        assert found.ids[row, : int(found.lengths[row])].tolist() == expected
        assert bool((found.ids[row, len(expected) :] == 0).all())
        newest = found.times[row, : len(expected)].tolist()
        assert newest == sorted(newest)


def test_check_03_first_generated_item_stands_next_to_its_anchor() -> None:
    batch = Batch(torch.arange(2), torch.arange(2), torch.tensor([[7, 8], [9, 0]]), torch.tensor([2, 1]))
    operations = torch.tensor([[KEEP, INSERT], [DELETE, KEEP]])
    inserted = torch.zeros(2, 2, 5, dtype=torch.int64)
    inserted[0, 1, :4] = torch.tensor([1, 2, 3, END])
    found = assemble(batch, operations, inserted, N, 60)
    assert found.ids.tolist() == [[7, 3, 2, 1, 8], [END, 0, 0, 0, 0]]
    assert found.lengths.tolist() == [5, 1]


@pytest.mark.parametrize(
    ("slip", "instead"), [({"decision": "released_noise"}, "argmax"), ({"dedup": "released_set_order"}, "first")]
)
def test_slips_of_the_released_code_are_refused_with_what_to_do(slip: dict[str, str], instead: str) -> None:
    with pytest.raises(ValueError, match=f"'{instead}', or load this run with recsys 0.1"):
        editor(**slip)


def test_check_04_oracle_restores_the_history() -> None:
    lengths = torch.arange(300) % LENGTH + 1
    ids = torch.rand(300, N, generator=generator()).argsort(1)[:, :LENGTH] + 1
    ids = ids * (torch.arange(LENGTH) < lengths[:, None])
    batch = Batch(torch.arange(300), torch.arange(300), ids, lengths)
    for dedup in ("none", "first"):
        found = corrupt(batch, N, generator(1), max_length=20)
        restored = assemble(found.batch, found.operations, found.inserted, N, LENGTH, dedup)
        assert torch.equal(restored.ids, ids) and torch.equal(restored.lengths, lengths)


@pytest.mark.parametrize("sees", ["past", "all"])
def test_check_05_what_the_editor_sees(sees: str) -> None:
    model = recommender()
    own = BERT4Rec(DIM, num_layers=1, max_length=LENGTH, positions="absolute") if sees == "all" else None
    model.encoder = SASRec(DIM, num_layers=1, max_length=LENGTH, positions="absolute")  # "recency" counts from the end
    made = Editor(DIM, max_length=LENGTH, encoder=own)
    model.auxiliaries[0] = TripletContrast(editor=made)
    model.bind(toy_context())
    model.eval()
    batch = toy_batch((6,))
    other = batch.replace(ids=torch.where(torch.arange(6) == 3, batch.ids % N + 1, batch.ids))
    before, after = (made.states(one, model.encode, model.items) for one in (batch, other))
    same = torch.isclose(before, after, atol=1e-6).all(1)
    assert same.tolist() == ([True] * 3 + [False] * 3 if sees == "past" else [False] * 6)


def test_check_06_padding_changes_nothing() -> None:
    model = recommender(dropout=0.3)
    narrow, wide = toy_batch((5, 1, 3)), toy_batch((5, 1, 3), width=LENGTH)
    assert wide.ids.shape[1] == LENGTH
    model.eval()
    with torch.no_grad():
        torch.testing.assert_close(model.encode(wide).user, model.encode(narrow).user, rtol=1e-5, atol=1e-5)
    part: Any = model.auxiliaries[0]
    edits = [part.editor.edit(one, model.encode, model.items, generator()) for one in (narrow, wide)]
    assert torch.equal(edits[0].batch.ids, edits[1].batch.ids)
    assert torch.equal(edits[0].operations, edits[1].operations[:, :5])


def slow_losses(made: Editor, corrupted: Corrupted, model: Recommender) -> tuple[list[Tensor], list[list[Tensor]]]:
    """Cross-entropies of operations, and by row those of insertions, one token and one label at a time."""
    states = corrupted.batch.pad(made.states(corrupted.batch, model.encode, model.items))
    table = torch.cat([model.items.weight[1 : N + 1], model.items.weight[END:]])  # type: ignore[union-attr, index]
    operations, insertions = [], []
    for row in range(len(corrupted.batch)):
        insertions.append([])
        for place in range(int(corrupted.batch.lengths[row])):
            logits = made.operation_head(states[row, place])
            operations.append(F.cross_entropy(logits, corrupted.operations[row, place]))
            labels = [one for one in corrupted.inserted[row, place].tolist() if one]
            for count, label in enumerate(labels):
                inputs = [states[row, place], *(model.items.embed(torch.tensor(one)) for one in labels[:count])]
                x = torch.stack(inputs) + made.position_table.weight[: count + 1]
                single = Batch(
                    torch.zeros(1).long(), torch.zeros(1).long(), torch.ones(1, count + 1).long(),
                    torch.tensor([count + 1]),
                )  # fmt: skip
                scores = table @ made.generator(x, single)[-1]
                target = torch.tensor(label - 1 if label <= N else N)
                insertions[-1].append(F.cross_entropy(scores, target))
    return operations, insertions


def test_check_07_losses_equal_brute_force_and_padding_counts_for_nothing() -> None:
    model = recommender()
    made: Any = model.auxiliaries[0].editor
    batch = toy_batch((9, 1, 6, 7))
    corrupted = corrupt(batch, N, generator(5), max_length=LENGTH)
    assert bool((corrupted.operations == INSERT).any())
    found = made.loss(corrupted, model.encode, model.items)
    operations, insertions = slow_losses(made, corrupted, model)
    torch.testing.assert_close(found["operations"], torch.stack(operations).mean(), rtol=1e-5, atol=1e-6)
    every = torch.stack([one for row in insertions for one in row]).mean()
    torch.testing.assert_close(found["insertions"], every, rtol=1e-5, atol=1e-6)
    ours = torch.autograd.grad(found["insertions"], list(made.generator.parameters()), retain_graph=True)
    theirs = torch.autograd.grad(every, list(made.generator.parameters()), retain_graph=True)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)
    wide = Corrupted(
        corrupted.batch.replace(ids=F.pad(corrupted.batch.ids, (0, 2)), times=None),
        F.pad(corrupted.operations, (0, 2), value=INSERT),
        F.pad(corrupted.inserted, (0, 0, 0, 2), value=3),
    )
    if wide.batch.ids.shape[1] <= LENGTH:
        again = made.loss(wide, model.encode, model.items)
        torch.testing.assert_close(again["operations"], found["operations"])
        torch.testing.assert_close(again["insertions"], found["insertions"])


def test_check_07_rows_without_insertions_get_no_gradient_of_the_generator() -> None:
    model = recommender()
    made: Any = model.auxiliaries[0].editor
    corrupted = corrupt(toy_batch((9, 1, 6, 7)), N, generator(5), max_length=LENGTH)
    states = made.states(corrupted.batch, model.encode, model.items).detach().requires_grad_()
    hidden, targets = made.predict(states, corrupted, model.items)
    assert len(hidden) == int((corrupted.inserted > 0).sum()) == len(targets)
    hidden.square().sum().backward()
    moved = states.grad.abs().sum(1) > 0
    assert torch.equal(moved, corrupted.batch.flatten(corrupted.operations) == INSERT)
    nothing = corrupt(toy_batch((1, 1)), N, generator(), max_length=LENGTH)
    assert made.loss(nothing, model.encode, model.items)["insertions"].item() == 0


def test_check_08_triplet_loss() -> None:
    torch.manual_seed(0)
    anchors, near, far = torch.randn(3, 7, 4)
    expected = -torch.sigmoid((anchors * near).sum(1) - (anchors * far).sum(1)).log().sum()
    torch.testing.assert_close(triplet_loss(anchors, near, far), expected)
    torch.testing.assert_close(triplet_loss(anchors, near, far, "mean"), expected / 7)
    twice = (value.repeat(2, 1) for value in (anchors, near, far))
    torch.testing.assert_close(triplet_loss(*twice), 2 * expected)
    huge = torch.full((2, 1), 100.0, requires_grad=True)
    for sign in (1, -1):
        found = triplet_loss(huge, -sign * huge, sign * huge)
        found.backward()
        assert bool(found.isfinite()) and bool(huge.grad.isfinite().all())


def test_check_09_who_learns_in_which_stage() -> None:
    encoder = Topped(SASRec(DIM, num_layers=1, max_length=LENGTH), num_heads=2, dropout=0.0)
    model = recommender(encoder=encoder)
    part: Any = model.auxiliaries[0]

    def trained(**more: Any) -> set[str]:
        model.zero_grad()
        terms = model.loss(prepared(model, toy_batch((9, 8, 5, 3)), **more))
        torch.stack(list(terms.values())).sum().backward()
        return {name for name, value in model.named_parameters() if value.grad is not None and bool(value.grad.any())}

    first = trained(**PRETRAIN)
    assert not [name for name in first if name.startswith("encoder.blocks")]
    assert [name for name in first if name.startswith("encoder.encoder")] and "items.weight" in first
    assert [name for name in first if "operation_head" in name] and [name for name in first if ".generator." in name]
    second = trained()
    assert not [name for name in second if name.startswith("auxiliaries")]
    assert [name for name in second if name.startswith("encoder.blocks")]
    part.keep_learning = 0.5
    assert [name for name in trained() if "operation_head" in name]


def test_check_09_stages_of_fit() -> None:
    model = recommender()
    stages = [Stage(1, losses=["TripletContrast0"], name="pretrain", validate=False)]
    stages += [Stage(1, freeze=["auxiliaries.0.editor"], start="last")]
    quiet = {"progress": False, "batch_size": 16}
    fitted = fit(model, toy_split(), stages=stages, **quiet)
    first, second = (set(record["terms"]) for record in fitted.history)
    assert first == {"TripletContrast0.operations", "TripletContrast0.insertions"}
    assert second == {"loss", "TripletContrast0.contrast", "TripletContrast0.triplet"}
    alone = recommender()
    fit(alone, toy_split(), stages=[*stages[:1], Stage(1, losses=["loss"], start="last")], **quiet)
    for one, other in zip(model.auxiliaries.parameters(), alone.auxiliaries.parameters(), strict=True):
        assert torch.equal(one, other)


def walks() -> Split:
    """Each user walks up the ids one by one."""
    split = toy_split(100)
    offsets = split.prepared.offsets
    place = np.arange(offsets[-1]) - np.repeat(offsets[:-1], np.diff(offsets))
    start = np.repeat(np.arange(100) * 7, np.diff(offsets))
    events = replace(split.prepared, items=((start + place) % N + 1).astype(np.int32))
    return Split.of(events, LeaveLast(), split.items, split.users, item_text=split.item_text)


def pretrained(own: Any = None, updates: int = 100) -> Recommender:
    """A model whose editor has learned these walks."""
    torch.manual_seed(0)
    size: dict[str, Any] = {"num_layers": 1, "num_heads": 2, "dropout": 0.0, "max_length": LENGTH}
    encoder, init = SASRec(DIM, layout="post", init="xavier_normal", **size), "xavier_normal"
    model = recommender(encoder=encoder, init=init, editor=Editor(DIM, max_length=LENGTH, dropout=0.0, encoder=own))
    split = walks()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for update in range(updates):
        rows = split.train.gather(np.arange(100), LENGTH)
        batch = model.prepare(rows, Step(rows))
        step = Step(batch, seed=update, items=model.items, encode=model.encode, **PRETRAIN)
        optimizer.zero_grad()
        torch.stack(list(model.loss(step).values())).sum().backward()
        optimizer.step()
    return model


@pytest.fixture(scope="module")
def taught() -> Recommender:
    return pretrained()


def test_check_10_editor_beats_majority_and_popularity(taught: Recommender) -> None:
    found = editor_quality(taught, walks(), seed=7)
    assert 0.35 < found["majority_accuracy"] < 0.55
    assert found["operation_accuracy"] > found["majority_accuracy"] + 0.1
    assert found["generator_top1"] > found["popularity_top1"] + 0.3
    assert found == editor_quality(taught, walks(), seed=7)


def test_check_10_bidirectional_editor_sees_more(taught: Recommender) -> None:
    own = BERT4Rec(DIM, num_layers=1, dropout=0.0, max_length=LENGTH, head=False, init="xavier_normal")
    both = pretrained(own, updates=80)
    found = editor_quality(both, walks(), seed=7)
    assert found["operation_accuracy"] > found["majority_accuracy"] + 0.1
    assert found["generator_top1"] > found["popularity_top1"] + 0.3


@pytest.mark.parametrize("decision", ["argmax", "gumbel"])
def test_check_11_edits_know_no_target_and_hold_only_items(taught: Recommender, decision: str) -> None:
    part: Any = taught.auxiliaries[0]
    part.editor.decision = decision
    step = prepared(taught, toy_batch((9, 2, 5, 3)))
    assert step.batch.targets is not None
    other = step.batch.replace(targets=step.batch.targets % N + 1)
    swapped = Step(other, seed=3, items=taught.items, encode=taught.encode)
    for one, two in zip(part.pair(step, step.batch), part.pair(swapped, other), strict=True):
        assert torch.equal(one.ids, two.ids)
        assert one.targets is None and one.weights is None
    view = part.pair(step, step.batch)[1]
    lone = (view.lengths == 1) & (view.ids[:, 0] == END)
    assert bool(((view.ids[view.mask] <= N) | lone.repeat_interleave(view.lengths)).all())
    part.editor.decision = "argmax"


def test_decisions() -> None:
    logits = torch.tensor([[1.0, 0.0, -1.0]]).expand(20000, -1)
    shares = {}
    for decision in ("argmax", "gumbel"):
        found = editor(decision=decision).decide(logits, generator())
        shares[decision] = (torch.bincount(found, minlength=3) / len(found)).tolist()
    assert shares["argmax"] == [1, 0, 0]
    assert shares["gumbel"] == pytest.approx(logits[0].softmax(0).tolist(), abs=0.02)


def test_generation_is_the_greedy_one_step_by_step(taught: Recommender) -> None:
    made: Any = taught.auxiliaries[0].editor
    states = torch.randn(70, DIM, generator=generator())
    table = torch.cat([taught.items.weight[1 : N + 1], taught.items.weight[END:]])  # type: ignore[union-attr, index]
    found = made.generate(states, taught.items)
    assert len(set((found > 0).sum(1).tolist())) > 1  # some end early
    for state, listed in zip(states, found.tolist(), strict=True):
        inputs, expected = [state], []
        for slot in range(5):
            x = torch.stack(inputs) + made.position_table.weight[: slot + 1]
            ones = torch.ones(1, slot + 1, dtype=torch.int64)
            single = Batch(ones[:, 0], ones[:, 0], ones, torch.tensor([slot + 1]))
            best = int((table @ made.generator(x, single)[-1]).argmax())
            expected.append(best + 1 if best < N else END)
            if best == N:
                break
            inputs.append(taught.items.embed(torch.tensor(best + 1)))
        assert [one for one in listed if one] == expected


def test_best_rows_equals_the_dense_argmax(monkeypatch: pytest.MonkeyPatch) -> None:
    from recsys.items import local as module

    monkeypatch.setattr(module, "PRODUCTS", 8 * N)
    items = IdItems(DIM, extra=2)
    items.bind(toy_context())
    hidden = torch.randn(50, DIM, generator=generator())
    scores = hidden @ torch.cat([items.weight[1 : N + 1], items.weight[END:]]).T
    expected = scores.argmax(1) + 1
    assert torch.equal(best_rows(hidden, items), torch.where(expected > N, END, expected))


def test_editing_disturbs_neither_modes_nor_global_randomness(taught: Recommender) -> None:
    model = recommender(dropout=0.5, editor=Editor(DIM, max_length=LENGTH, decision="gumbel"))
    part: Any = model.auxiliaries[0]
    model.train()
    model.encoder.drop.eval()  # type: ignore[union-attr, operator]
    modes = [module.training for module in model.modules()]
    torch.manual_seed(5)
    state = torch.get_rng_state()
    batch = toy_batch((9, 2, 5, 3))
    once, again = (part.editor.edit(batch, model.encode, model.items, generator(2)) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), state)
    assert [module.training for module in model.modules()] == modes
    assert torch.equal(once.batch.ids, again.batch.ids)
    with pytest.raises(TypeError, match="method"):
        part.editor.edit(batch, lambda view: model.encode(view), model.items, generator())


def recipe(monkeypatch: pytest.MonkeyPatch, name: str, **knobs: Any) -> Recommender:
    """The model of a recipe, trained for one epoch on toy data."""
    monkeypatch.setattr(rs, "load", lambda data: SimpleNamespace(split=lambda splitter: toy_split()), raising=False)
    run = load_recipe(find_recipe(name))(dim=DIM, max_length=LENGTH, epochs=1, batch_size=16, **knobs)
    run.fit(progress=False)
    return run.model


def test_check_12_without_weights_it_is_the_backbone_bit_for_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = recipe(monkeypatch, "sasrec").tensors()
    off = recipe(monkeypatch, "laclrec", contrast=0.0, triplet=0.0, pretrain_epochs=0).tensors()
    rows = N + 1
    for name, value in plain.items():
        assert torch.equal(off[name][:rows] if name == "items.weight" else off[name], value), name


def test_recipe_in_its_variants(monkeypatch: pytest.MonkeyPatch) -> None:
    full = recipe(monkeypatch, "laclrec", pretrain_epochs=1, rec_layers=1, editor_encoder="bidirectional")
    assert isinstance(full.encoder, Topped)
    off: Any = recipe(monkeypatch, "laclrec", augmenter="off")
    assert off.auxiliaries[0].editor is None and off.auxiliaries[0].triplet == 0
    assert off.auxiliaries[0].sections(off, toy_split()) == {}
    again: Any = recipe(monkeypatch, "laclrec", triplet=0.0, pretrain_epochs=1)
    assert set(again.auxiliaries[0](prepared(again))) == {"contrast"}


def test_factors_of_zero_cost_no_pass() -> None:
    model = recommender(contrast=0.0, triplet=0.0)
    passes = []
    step = prepared(model)

    def encode(batch: Batch) -> Any:
        passes.append(batch)
        return model.encode(batch)

    counted = Step(step.batch, items=model.items, encode=encode)
    assert model.auxiliaries[0](counted) == {} and not passes


def test_joint_terms_are_what_section_5_says() -> None:
    model = recommender(contrast=0.3, triplet=0.02, hide=["user"])
    part: Any = model.auxiliaries[0]
    step = prepared(model, toy_batch((9, 1, 5, 3)))  # the second row has no input
    passes = []

    def encode(batch: Batch) -> Any:
        passes.append(len(batch))
        return model.encode(batch)

    part.editor.edit = edits(part.editor.edit, model)
    terms = part(Step(step.batch, seed=3, items=model.items, encode=encode))
    assert passes == [6, 4] or passes == [4, 6]  # the rows themselves once, both views in one pass
    inputs = step.batch.select(torch.tensor([0, 2, 3]))
    views = [model.encode(view).user for view in part.pair(step, inputs)]
    own = model.encode(inputs).user
    torch.testing.assert_close(terms["contrast"], 0.3 * nt_xent(*views))
    torch.testing.assert_close(terms["triplet"], 0.02 * triplet_loss(own, views[1], views[0]))


def edits(edit: Any, model: Recommender) -> Any:
    """``edit`` with the model's own method, so that a counting ``encode`` counts training passes only."""
    return lambda batch, encode, items, draws: edit(batch, model.encode, items, draws)


def test_check_13_nt_xent_equals_the_double_loop() -> None:
    first, second = torch.randn(2, 6, 5, generator=generator())
    z, total = torch.cat([first, second]), 0.0
    for i in range(12):
        others = torch.stack([z[i] @ z[k] for k in range(12) if k != i])
        total = total - (z[i] @ z[(i + 6) % 12] - others.logsumexp(0))
    torch.testing.assert_close(nt_xent(first, second), total / 12)
    order = torch.randperm(6, generator=generator())
    torch.testing.assert_close(nt_xent(first[order], second[order]), nt_xent(first, second))


class Constant(rs.Popularity):
    """The same score for every item."""

    def score(self, batch: Batch) -> Tensor:
        return torch.ones(len(batch), self.num_items)


def test_check_14_sampled_metric_of_constant_scores() -> None:
    """The released code gives a target rank 100 among 99 ties; ours the expected value over their orders."""
    split = toy_split(num_items=200)
    model = Constant()
    model.bind(toy_context(200))
    found = evaluate_sampled(model, split.test, negatives=99, seeds=(1,), k=10)
    assert found.mean("hr@10") == pytest.approx(0.1)


@pytest.mark.parametrize("targets", [NextItem(), LastItem()])
def test_check_15_held_out_items_never_enter(targets: Any) -> None:
    split = toy_split()
    changed = split.prepared.items.copy()
    held = np.ones(len(changed), bool)
    for user in range(split.num_users):
        held[split.prepared.offsets[user] : split.train_stop[user]] = False
    changed[held] = changed[held] % N + 1
    other = Split.of(replace(split.prepared, items=changed), LeaveLast(), split.items, split.users)
    model = recommender(targets=targets)
    part: Any = model.auxiliaries[0]
    seen = []
    for one in (split, other):
        rows = one.train.gather(np.arange(one.num_users), LENGTH)
        step = prepared(model, rows)
        whole = training_rows(step.batch, N, LENGTH)
        assert torch.equal(whole.ids, rows.ids)
        found = corrupt(whole, N, step.generator("corruption"), keep=0.5, delete=0.5, insert=0.0)
        assert set(found.batch.ids.unique().tolist()) <= {0, *changed[~held].tolist()}
        noisy = corrupt(whole, N, step.generator("corruption"))
        seen.append([found.batch.ids, noisy.batch.ids, *(view.ids for view in part.pair(step, step.batch))])
        own = {user: {0, MASK, *one.train.history(user).tolist()} for user in range(one.num_users)}
        assert all(set(row.tolist()) <= own[user] for user, row in enumerate(seen[-1][2]))
    assert all(torch.equal(*pair) for pair in zip(*seen, strict=True))


@pytest.mark.parametrize("targets", [NextItem(), LastItem(), MaskedItems(0.4)])
def test_training_rows_are_what_a_prepared_batch_was_made_of(targets: Any) -> None:
    if hasattr(targets, "bind"):
        targets.bind(toy_context())
    batch = toy_batch((8, 2, 5, 3))
    made = targets.train(batch, generator())
    found = training_rows(made, N, 20)
    for row in range(4):
        length = int(batch.lengths[row])
        assert found.ids[row, :length].tolist() == batch.ids[row, :length].tolist()
        assert found.times is not None and batch.times is not None
        assert found.times[row, :length].tolist() == batch.times[row, :length].tolist()
    assert torch.equal(found.lengths, batch.lengths)
    newest = training_rows(made, N, 4)
    assert newest.ids[0].tolist() == batch.ids[0, 4:8].tolist()


def test_edits_by_title_and_for_the_report(taught: Recommender) -> None:
    split = walks()
    titles = {f"i{row}": f"Item {row}" for row in range(1, N + 1)}
    text = show_edits(taught, [["i1", "i2", "unknown", "i20", "i3"], [], ["i5"]], titles)
    assert text.count("history") == 3
    lines = [line.split() for line in text.splitlines() if line.startswith("  ")]
    assert {line[0] for line in lines} <= {"keep", "delete", "insert"} and "unknown" not in text
    assert [int(line[2]) for line in lines if line[0] != "insert"] == [1, 2, 20, 3, 5]
    part: Any = taught.auxiliaries[0]
    part.on_epoch(0)
    part(prepared(taught, toy_batch((9, 2, 5, 3))))
    found = part.sections(taught, split)
    assert set(found) >= {*edit_sections(taught, split)}
    shares = found["Edits by operation"]["bars"]
    assert set(shares) == {"keep", "delete", "insert"} and sum(shares.values()) == pytest.approx(1)
    table = found["Edits of training histories"]
    assert {row["edit"] for row in table} <= {"insert", "delete", "none"} and len({row["user"] for row in table}) == 5
    written = [row for row in table if row["edit"] == "insert"]
    assert written and all(row[name].startswith("Item number") for row in written for name in ("item", "before"))
    assert part.edited_rows == 4 and int(part.operation_counts.sum()) == 15
    with pytest.raises(TypeError, match="list"):
        show_edits(taught, ["i1"])
    with pytest.raises(ValueError, match="editor"):
        show_edits(Recommender(IdItems(DIM), SASRec(DIM), FullSoftmax()), [])


@pytest.mark.parametrize("knobs", [{}, {"reduction": "mean", "hide": ["target"]}])
def test_conforms(knobs: dict[str, Any]) -> None:
    made = TripletContrast(editor=Editor(16, max_length=8, dropout=0.0), keep_learning=1.0, **knobs)
    model = Recommender(IdItems(16, extra=2), SASRec(16, num_layers=1, dropout=0.0, max_length=8), FullSoftmax())
    check_auxiliary(made, model)


def test_topped_encoder_conforms() -> None:
    check_encoder(Topped(SASRec(16, num_layers=1, max_length=8, dropout=0.0), dropout=0.0))


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: Editor(decision="best"), "decision"),
        (lambda: Editor(dedup="all"), "dedup"),
        (lambda: Editor(max_inserted=0), "max_inserted"),
        (lambda: Editor(32, encoder=SASRec(16)), "dim"),
        (lambda: Editor(16, max_length=60, encoder=SASRec(16, max_length=50)), "max_length"),
        (lambda: TripletContrast(second="edited", reduction="max"), "reduction"),
        (lambda: TripletContrast(second="random"), "triplet"),
        (lambda: TripletContrast(contrast=-1.0), "negative"),
        (lambda: TripletContrast(keep=0.9), "probabilities"),
    ],
)
def test_bad_arguments(make: Any, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        make()


def test_a_table_without_an_end_token_is_told() -> None:
    model = Recommender(IdItems(DIM), SASRec(DIM, max_length=LENGTH), FullSoftmax())
    model.bind(toy_context())
    with pytest.raises(ValueError, match="reserve"):
        corrupted = corrupt(toy_batch((9, 9)), N, generator(), max_length=LENGTH)
        editor().loss(corrupted, model.encode, model.items)
    with pytest.raises(ValueError, match="dim"):
        editor(dim=32).loss(corrupted, model.encode, model.items)


def test_two_processes_have_the_gradient_of_one(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(HERE.parent.parent), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(HERE / "two_triplets.py"), str(tmp_path)]
    running = [subprocess.Popen([*command, str(rank)], env=environment) for rank in (0, 1)]
    assert [process.wait(timeout=600) for process in running] == [0, 0]
    for reduction, found in zip(("sum", "mean"), torch.load(tmp_path / "slopes.pt"), strict=True):
        torch.testing.assert_close(found, slope(reduction, slice(None)), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("own", [False, True])
def test_an_editor_over_frozen_items_scores_its_end_token(tmp_path: Path, own: bool) -> None:
    array = np.random.default_rng(0).normal(size=(N, DIM)).astype(np.float32)
    Vectors.of([f"i{row}" for row in range(1, N + 1)], array).save(tmp_path)
    encoder = BERT4Rec(DIM, 1, 2, 0.0, LENGTH, head=False) if own else None
    part = TripletContrast(editor=Editor(DIM, max_length=LENGTH, encoder=encoder), keep_learning=1.0)
    items = rs.FrozenItems(str(tmp_path), extra=2)
    model = Recommender(items, SASRec(DIM, 1, 1, 0.0, LENGTH), FullSoftmax(), auxiliaries=[part])
    terms = fit(model, toy_split(), epochs=1, batch_size=16, progress=False).history[0]["terms"]
    assert terms["TripletContrast0.insertions"] > 0


def test_anchors_have_states_where_the_encoder_spares_itself_some(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Tensor] = []

    def spied(anchors: Tensor, *rest: Any) -> Tensor:
        seen.append(anchors)
        return triplet_loss(anchors, *rest)

    monkeypatch.setattr("recsys.auxiliaries.triplet.triplet_loss", spied)
    encoder = rs.SIGMA(DIM, 1, 4, dropout=0.0, max_length=LENGTH, keep=3)
    part = TripletContrast(editor=editor())
    model = Recommender(IdItems(DIM, extra=2), encoder, FullSoftmax(), MaskedItems(), auxiliaries=[part])
    context = toy_context()
    model.bind(context)
    assert context.training is not None
    rows = context.training.gather(np.arange(40), LENGTH)
    batch = model.prepare(rows, Step(rows, seed=1))
    assert bool((newest_target(batch) < 0).any())
    with pytest.warns(DataWarning, match="learned nothing"):
        part(Step(batch, seed=1, items=model.items, encode=model.encode))
    assert bool((seen[0] != 0).any(1).all())


def test_the_report_reads_a_sample_of_the_users(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    monkeypatch.setattr("recsys.auxiliaries.triplet.edit_sections", lambda model, split: {})
    monkeypatch.setattr(
        "recsys.auxiliaries.triplet.editor_quality", lambda model, split, users: asked.append(users) or {}
    )
    TripletContrast(editor=editor()).sections(None, toy_split())
    assert asked == [2000]


def test_the_end_token_is_scored_in_the_precision_of_the_items() -> None:
    items = IdItems(DIM, extra=2)
    items.bind(toy_context())
    torch.manual_seed(0)
    items.weight.data.normal_()
    items.weight.data[5] = items.weight.data[END] * 1.0005  # a near tie of an item with the end token
    hidden = items.weight.data[END] + torch.randn(500, DIM) * 0.1
    expected = best_rows(hidden, items)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(best_rows(hidden, items), expected)


def test_a_blank_title_costs_no_section() -> None:
    split = replace(toy_split(), item_text={"title": np.array(["", *[" "] * N], object)})
    part = TripletContrast(editor=editor())
    model = Recommender(IdItems(DIM, extra=2), SASRec(DIM, 1, 1, 0.0, LENGTH), FullSoftmax(), auxiliaries=[part])
    model.bind(toy_context())
    assert edit_sections(model, split)["Edits of training histories"]


def test_views_of_an_editor_that_learned_nothing_are_announced(tmp_path: Path) -> None:
    def run(stages: list[Stage], folder: str, **knobs: Any) -> list[str]:
        part = TripletContrast(editor=editor(), **knobs)
        model = Recommender(IdItems(DIM, extra=2), SASRec(DIM, 1, 1, 0.0, LENGTH), FullSoftmax(), auxiliaries=[part])
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            fit(model, toy_split(), batch_size=16, progress=False, stages=stages, folder=tmp_path / folder)
        return [str(one.message) for one in caught if issubclass(one.category, DataWarning)]

    first = Stage(1, losses=["TripletContrast0"], name="pretrain", validate=False)
    assert any("learned nothing" in text for text in run([Stage(1)], "without"))
    assert run([first, Stage(1, start="last")], "with") == []
    assert run([first, Stage(2, start="last")], "with") == []  # resumed behind the editor's stage
    assert run([Stage(1)], "learning", keep_learning=1.0) == []
