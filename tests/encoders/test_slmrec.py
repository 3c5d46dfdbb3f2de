"""SLMRec: the behavioural checks of its specification by number, on Llamas of a few thousand random weights."""

from __future__ import annotations

import copy
import json
import socket
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

import recsys as rs
from recsys.data.prepared import Prepared
from recsys.encoders.slmrec import BlockEnds
from recsys.errors import DataError
from recsys.eval.sampled import draw_negatives, evaluate_sampled
from recsys.ids.vocabulary import Vocabulary
from recsys.items.frozen import FrozenItems
from recsys.objectives.softmax import FullSoftmax
from recsys.protocols import Context, Step
from recsys.runs.recipe import find_recipe, load_recipe
from recsys.testing import (
    check_auxiliary,
    check_encoder,
    check_ranker,
    check_targets,
    toy_batch,
    toy_context,
    toy_split,
)
from recsys.train.loader import TrainBatches
from recsys.train.loop import Loop
from recsys.train.update import _Losses

pytest.importorskip("transformers")
pytest.importorskip("peft")

from recsys.auxiliaries.distillation import Distillation
from recsys.auxiliaries.teacher import TeacherStates
from recsys.encoders.slmrec import SLMRec
from recsys.llm.trainers.adapters.penalty import AdapterPenalty
from recsys.nn.backbone import SMALL, Backbone, block_ends, count_parameters
from recsys.targets.last_item import LastOfUser

DIM, HIDDEN = 16, 16
TINY = {**SMALL, "hidden_size": HIDDEN, "intermediate_size": 24, "num_attention_heads": 2, "vocab_size": 300}
LLAMA2 = {
    "model_type": "llama", "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32,
    "num_attention_heads": 32, "vocab_size": 32000,
}  # fmt: skip
TERMS = ("cosine", "norm", "supervision")
QUIET: dict[str, Any] = {"batch_size": 32, "progress": False}


@pytest.fixture(autouse=True)
def one_thread(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    monkeypatch.setenv("RECSYS_CACHE", str(tmp_path / "cache"))
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **more: Any) -> None:
        raise OSError("no network in this test")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "create_connection", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def encoder(layers: int = 2, blocks: int = 0, **more: Any) -> SLMRec:
    backbone = Backbone(
        more.pop("model", TINY), **{"layers": layers, "rank": 4, "alpha": 4, **more.pop("backbone", {})}
    )
    return SLMRec(backbone, DIM, **{"max_length": 8, "prefix": [1, 2, 3], "suffix": [4, 5], "blocks": blocks, **more})


def bound(layers: int = 2, blocks: int = 0, jitter: float = 0.1, **more: Any) -> SLMRec:
    """An encoder whose adapters are not at zero."""
    made = encoder(layers, blocks, **more)
    torch.manual_seed(0)
    made.bind(toy_context())
    with torch.no_grad():
        for value in made.parameters():
            value.add_(torch.randn_like(value) * jitter)
    return made.eval()


def table() -> rs.IdItems:
    torch.manual_seed(1)
    items = rs.IdItems(DIM, scale=False)
    items.bind(toy_context())
    torch.nn.init.normal_(items.weight)
    return items


def recommender(layers: int = 2, blocks: int = 0, items: Any = None, **more: Any) -> rs.Recommender:
    parts = {name: more.pop(name) for name in ("auxiliaries", "targets", "augmentations") if name in more}
    return rs.Recommender(
        items or rs.IdItems(DIM, scale=False),
        encoder(layers, blocks, **more),
        FullSoftmax(),
        **{"targets": rs.LastItem(), **parts},
    )


def save_run(model: rs.Recommender, folder: Path, epochs: int = 0, split: Any = None, **more: Any) -> str:
    rs.fit(model, toy_split() if split is None else split, epochs=epochs, folder=folder, **{**QUIET, **more})
    return str(folder)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_run(recommender(4), tmp_path_factory.mktemp("runs") / "teacher", epochs=1)


def distillation(teacher: str, **more: Any) -> Distillation:
    return Distillation(teacher, **{"blocks": 2, "dim": DIM, "hidden": HIDDEN, **more})


def prepared_step(model: rs.Recommender, rows: Any = None) -> Step:
    batch = toy_batch((5, 2, 3, 4)) if rows is None else rows
    return Step(model.prepare(batch, Step(batch)), items=model.items, encode=model.encode)


def largest(first: torch.Tensor, second: torch.Tensor) -> float:
    return float((first - second).detach().abs().max())


@pytest.mark.parametrize("share_prefix", [True, False])
def test_the_encoder_keeps_the_contract_of_its_seam(share_prefix: bool) -> None:
    check_encoder(encoder(blocks=2, share_prefix=share_prefix))
    check_ranker(recommender())
    check_targets(LastOfUser())


def test_check_01_parameters_of_llama_on_the_meta_device() -> None:
    for layers, total, adapters in ((32, 6.632, 0.0232), (8, 1.757, 0.0058), (4, 0.945, 0.0029)):
        found = count_parameters(LLAMA2, layers, dim=128)
        assert round(found["total"] / 1e9, 3) == total
        assert round(found["adapters"] / 1e9, 4) == adapters


def test_check_02_adapters_begin_as_a_no_op_and_merge_without_a_change() -> None:
    batch, items = toy_batch(), table()
    fresh, bare = bound(jitter=0), bound(jitter=0, backbone={"rank": 0})
    bare.project_in, bare.project_out = fresh.project_in, fresh.project_out
    assert largest(fresh(batch, items).user, bare(batch, items).user) < 1e-6
    trained = bound(blocks=2)
    before = trained(batch, items)
    assert largest(before.user, fresh(batch, items).user) > 1e-3
    trained.merge()
    after = trained(batch, items)
    assert largest(before.user, after.user) < 1e-5
    assert largest(before.read(BlockEnds).states, after.read(BlockEnds).states) < 1e-5
    assert not any("lora" in name for name, _ in trained.named_parameters())


def test_check_03_only_adapters_projections_and_heads_are_trained(teacher: str) -> None:
    model = recommender(2, 2, auxiliaries=[distillation(teacher)])
    model.bind(toy_context())
    base = {name: value.clone() for name, value in model.named_buffers()}
    with torch.no_grad():
        for name, value in model.named_parameters():
            if "lora_B" in name:
                value.normal_(std=0.1)
    sum(model.loss(prepared_step(model)).values()).backward()
    dead = [name for name, value in model.named_parameters() if value.grad is None or not value.grad.any()]
    assert dead == []
    names = {name.split(".")[-1] if "lora" not in name else "lora" for name, _ in model.encoder.named_parameters()}
    assert names == {"lora", "weight", "bias"}
    assert not any("embed_tokens" in name or "norm" in name for name, _ in model.named_parameters())
    save = {"stages": [rs.Stage(1, name="all")]}  # a stage lets every parameter be trained: the base is none
    rs.fit(model, toy_split(), **QUIET, **save)
    for name, value in model.named_buffers():
        if name in base and ("embed_tokens" in name or "base_layer" in name):
            assert torch.equal(value, base[name])


def test_check_03_frozen_items_of_a_run_get_no_gradient(tmp_path: Path) -> None:
    sasrec = rs.Recommender(rs.IdItems(DIM), rs.SASRec(DIM, 1, max_length=8), FullSoftmax())
    run = save_run(sasrec, tmp_path / "sasrec", epochs=1)
    model = recommender(2, items=FrozenItems(run))
    rs.fit(model, toy_split(), epochs=1, **QUIET)
    assert np.array_equal(model.item_vectors(), sasrec.item_vectors())
    assert not any(name.startswith("items") for name, _ in model.named_parameters())


def test_check_04_the_teacher_is_frozen_and_stays_in_evaluation_mode(teacher: str) -> None:
    model = recommender(2, 2, auxiliaries=[distillation(teacher)])
    model.bind(toy_context())
    model.train()
    source = model.auxiliaries[0]._source[0]
    assert not source.model.training and not source.encoder.backbone.body.training
    sum(model.loss(prepared_step(model)).values()).backward()
    assert all(value.grad is None and not value.requires_grad for value in source.model.parameters())
    assert not any("teacher" in name or "_source" in name for name in model.tensors())


def test_check_05_a_student_equal_to_its_teacher_has_nothing_to_learn(teacher: str) -> None:
    for more in ({}, {"norm_power": 1, "reduction": "sum"}, {"norm_reduce": "mean"}):
        model = recommender(4, 2, auxiliaries=[distillation(teacher, supervision=0, **more)])
        model.bind(toy_context())
        learned = rs.load_run(teacher).tensors()
        model.load_tensors({name: learned.get(name, value) for name, value in model.tensors().items()})
        model.eval()
        found = model.auxiliaries[0](prepared_step(model))
        assert found.keys() == {"cosine", "norm"}
        assert max(float(value.detach().abs()) for value in found.values()) < 1e-6


def test_check_06_the_direction_does_not_see_the_scale_and_the_distance_does(teacher: str) -> None:
    part = distillation(teacher, supervision=0)
    first, second = torch.randn(2, 5, 2, HIDDEN, generator=torch.Generator().manual_seed(0))
    assert part.direction(first, 3 * second) == pytest.approx(float(part.direction(first, second)), abs=1e-6)
    assert float(part.distance(first, 3 * second)) > 1.5 * float(part.distance(first, second))


def test_the_terms_are_those_of_the_paper_and_of_the_code(teacher: str) -> None:
    first, second = torch.randn(2, 3, 2, HIDDEN, generator=torch.Generator().manual_seed(0))
    cosine = norm = root = 0.0
    for one, other in zip(first, second):
        for a, b in zip(one, other):
            cosine += float(1 - (a @ b) / (a.norm() * b.norm())) / 3
            norm += float(((a - b) ** 2).sum()) / 3
            root += float(((a - b) ** 2).sum() ** 0.5) / 3
    paper, code = distillation(teacher), distillation(teacher, reduction="sum", norm_power=1)
    assert float(paper.direction(first, second)) == pytest.approx(cosine / 2, rel=1e-5)
    assert float(paper.distance(first, second)) == pytest.approx(norm / 2, rel=1e-5)
    assert float(code.direction(first, second)) == pytest.approx(cosine, rel=1e-5)
    assert float(code.distance(first, second)) == pytest.approx(root, rel=1e-5)
    mean = distillation(teacher, norm_reduce="mean")
    assert float(mean.distance(first, second)) == pytest.approx(norm / 2 / HIDDEN, rel=1e-5)


def test_check_07_blocks_end_at_equal_distances_and_must_divide_the_depth(teacher: str) -> None:
    assert list(zip(block_ends(8, 4), block_ends(4, 4))) == [(2, 1), (4, 2), (6, 3), (8, 4)]
    assert list(zip(block_ends(32, 4), block_ends(8, 4))) == [(8, 2), (16, 4), (24, 6), (32, 8)]
    with pytest.raises(ValueError, match="multiple"):
        encoder(layers=3, blocks=2)
    with pytest.raises(ValueError, match="multiple"):
        distillation(teacher, blocks=3).bind(toy_context())


def test_check_07_block_ends_are_the_hidden_states_of_the_model() -> None:
    model, batch, items = bound(4, 2, share_prefix=False), toy_batch(), table()
    found = model(batch, items).read(BlockEnds).states
    for row, length in enumerate(batch.lengths.tolist()):
        ids = batch.ids[row, :length]
        prefix, suffix = model.backbone.embed(model.prefix_ids), model.backbone.embed(model.suffix_ids)
        sequence = torch.cat([prefix, model.project_in(items.embed(ids)), suffix])
        states = model.backbone.body(inputs_embeds=sequence[None], output_hidden_states=True).hidden_states
        assert len(states) == 5
        assert largest(found[row, 0], states[2][0, -1]) < 1e-5
        assert largest(found[row, 1], states[4][0, -1]) < 1e-5


def test_check_08_distillation_with_nothing_to_distil_is_an_error(teacher: str) -> None:
    with pytest.raises(ValueError, match="nothing to distil"):
        Distillation(teacher, cosine=0, norm=0, supervision=0)
    with pytest.raises(ValueError, match="nothing to distil"):
        Distillation("", supervision=0)
    for blocks in (0, 1):  # the student's encoder
        model = recommender(2, blocks, auxiliaries=[distillation(teacher)])
        model.bind(toy_context())
        with pytest.raises(ValueError, match="nothing to distil"):
            model.loss(prepared_step(model))


def test_check_09_padding_and_company_change_nothing() -> None:
    model, items, batch = bound(), table(), toy_batch()
    inside = batch.mask
    other = batch.replace(ids=torch.where(inside, batch.ids, 7))
    assert torch.equal(model(batch, items).user, model(other, items).user)
    longer = toy_batch((5, 1, 3, 4, 8))
    same = longer.ids[:4, :5] == batch.ids
    assert bool(same.all())
    assert largest(model(longer, items).user[:4], model(batch, items).user) < 1e-5


def test_check_10_a_shared_prefix_gives_the_same_states_and_gradients() -> None:
    items, batch = table(), toy_batch()
    found = []
    for share in (True, False):
        model = bound(blocks=2, share_prefix=share)
        encoded = model(batch, items)
        (encoded.user.square().sum() + encoded.read(BlockEnds).states.square().sum()).backward()
        gradients = [value.grad for value in model.parameters()]
        found.append((encoded.user, encoded.read(BlockEnds).states, *gradients))
    assert max(largest(a, b) for a, b in zip(*found)) < 1e-4


def test_check_11_slices_of_a_history_of_five() -> None:
    prepared = Prepared(np.arange(1, 6, dtype=np.int32), np.array([0, 5]), 5)
    split = rs.Split.of(prepared, rs.LeaveLast(), Vocabulary(np.array(list("abcde"), object), 1), _users(1))
    for targets in (rs.LastItem(), LastOfUser()):
        batch = targets.train(split.train.gather(np.array([0])))
        assert batch.ids.tolist() == [[1, 2]]
        assert batch.targets.tolist() == [[0, 3]]
    for part, history, target in ((split.valid, [1, 2, 3], 4), (split.test, [1, 2, 3, 4], 5)):
        assert part.batch(np.array([0])).ids.tolist() == [history]
        assert part.targets(np.array([0]))[1].tolist() == [target]


def test_check_12_sampled_evaluation_of_a_constant_scorer() -> None:
    split = markov(users=30, items=1100, seed=0)
    part, index = split.test, np.arange(30)
    drawn = draw_negatives(part.users, [part.targets(index), part.history(index)], 1100, 999, seed=5)
    again = draw_negatives(part.users, [part.targets(index), part.history(index)], 1100, 999, seed=5)
    assert np.array_equal(drawn, again)
    for user in range(30):
        known = {*part.history(index[[user]])[1].tolist(), *part.targets(index[[user]])[1].tolist()}
        assert len(set(drawn[user].tolist())) == 999 and not known & set(drawn[user].tolist())
    constant = rs.Popularity()
    constant.learn(Context(1100, split.items, split.train))
    constant.counts.zero_()
    report = evaluate_sampled(constant, part, negatives=999, seeds=[1], k=1000)
    assert report.mean("mrr@1000") == pytest.approx((1 / np.arange(1, 1001)).mean(), rel=1e-6)
    assert report.mean("hr@1000") == pytest.approx(1)


def test_check_13_heads_are_one_less_than_blocks_and_only_there_when_wanted(teacher: str) -> None:
    model = recommender(2, 2, auxiliaries=[distillation(teacher)])
    model.bind(toy_context())
    assert model.auxiliaries[0].heads.shape == (1, DIM, HIDDEN)
    without = recommender(2, 2, auxiliaries=[Distillation(teacher, supervision=0, blocks=2)])
    without.bind(toy_context())
    assert not any("heads" in name for name in without.tensors())
    assert set(without.loss(prepared_step(without))) == {"loss", "Distillation0.cosine", "Distillation0.norm"}


def test_check_13_supervision_is_the_cross_entropy_of_each_head(teacher: str) -> None:
    part = Distillation("", cosine=0, norm=0, supervision=2.0, blocks=4, dim=DIM, hidden=HIDDEN)
    model = recommender(4, 4, auxiliaries=[part])
    model.bind(toy_context())
    model.eval()
    step = prepared_step(model)
    states, targets = step.encoded.read(BlockEnds).states, step.batch.targets.sum(1) - 1
    weights = step.batch.weights.sum(1)
    scores = torch.stack([states[:, k] @ part.heads[k].T @ model.items.weight[1:].T for k in range(3)], 1)
    losses = torch.nn.functional.cross_entropy(scores.flatten(0, 1), targets.repeat_interleave(3), reduction="none")
    expected = 2 * (losses.view(-1, 3).mean(1) * weights).sum() / weights.sum()
    assert float(part(step)["supervision"].detach()) == pytest.approx(float(expected.detach()), rel=1e-5)


def test_check_14_a_run_keeps_what_was_trained_and_loads_without_teacher(tmp_path: Path, teacher: str) -> None:
    model = recommender(2, 2, auxiliaries=[distillation(teacher)])
    save_run(model, tmp_path / "student", epochs=1)
    kept = model.tensors()
    assert not any("base_layer" in name or "embed_tokens" in name or "layernorm" in name for name in kept)
    config = json.loads((tmp_path / "student" / "config.json").read_text())
    moved = json.loads(json.dumps(config).replace(teacher, "/nowhere"))
    (tmp_path / "student" / "config.json").write_text(json.dumps(moved))
    again, histories = rs.load_run(tmp_path / "student", verify=False), [["i1", "i2", "i3"], ["i9"]]
    assert np.array_equal(again.scores(histories), model.scores(histories))


def test_a_base_of_half_precision_has_adapters_of_single_precision() -> None:
    batch, items = toy_batch(), table()
    half, full = bound(backbone={"dtype": "bfloat16"}), bound()
    assert {value.dtype for value in half.parameters()} == {torch.float32}
    assert half.backbone.body.get_input_embeddings().weight.dtype == torch.bfloat16
    user = half(batch, items).user
    user.sum().backward()
    assert user.dtype == torch.float32
    assert 0 < largest(user, full(batch, items).user) < 0.05 * float(user.detach().abs().max())
    half.merge()
    assert largest(half(batch, items).user, user) < 0.05 * float(user.detach().abs().max())


def test_adapters_of_another_base_are_refused() -> None:
    kept = recommender_bound(seed=0).tensors()
    other = recommender_bound(seed=1)
    other.load_tensors(kept)
    with pytest.raises(ValueError, match="another base"):
        other.scores([["i1"]])


def recommender_bound(seed: int) -> rs.Recommender:
    model = recommender(backbone={"seed": seed})
    model.bind(toy_context())
    return model


def test_a_merged_student_serves_from_its_bundle_with_the_same_scores(
    tmp_path: Path, teacher: str, offline: None
) -> None:
    split = toy_split()
    model = recommender(2, 2, auxiliaries=[distillation(teacher)])
    rs.fit(model, split, epochs=2, learning_rate=1e-2, **QUIET)
    histories = [["i1", "i2", "i3"], ["i9"], ["i4"] * 20]
    before = model.scores(histories)
    plain = rs.export(copy.deepcopy(model), tmp_path / "plain", split=split)
    model.encoder.merge()
    np.testing.assert_allclose(model.scores(histories), before, atol=1e-4)
    rs.export(model, tmp_path / "bundle", split=split)
    bundle = rs.Bundle.load(tmp_path / "bundle")
    np.testing.assert_allclose(bundle.model.scores(histories), before, atol=1e-4)
    best = bundle.recommend(histories, 5)
    np.testing.assert_allclose(best.scores, plain.recommend(histories, 5).scores, atol=1e-4)
    assert best.items == plain.recommend(histories, 5).items


def _users(count: int) -> Vocabulary:
    return Vocabulary(np.arange(count), 0)


def markov(users: int = 150, items: int = 24, seed: int = 0, length: int = 9) -> rs.Split:
    """A random first-order chain: each item has three successors, one of them likely, and all items are as frequent."""
    rng = np.random.default_rng(seed)
    successors = np.stack([rng.permutation(items) for _ in range(3)])
    walk = np.zeros((users, length), np.int32)
    walk[:, 0] = rng.integers(0, items, users)
    for step in range(1, length):
        walk[:, step] = successors[rng.choice(3, users, p=[0.8, 0.15, 0.05]), walk[:, step - 1]]
    prepared = Prepared(walk.ravel() + 1, np.arange(users + 1) * length, items)
    names = np.array([f"i{row}" for row in range(1, items + 1)], object)
    return rs.Split.of(prepared, rs.LeaveLast(), Vocabulary(names, 1), _users(users), name="markov")


@pytest.mark.slow
def test_check_15_on_a_markov_chain_the_student_reaches_the_one_without_teacher(tmp_path: Path) -> None:
    split, found = markov(), {"student": [], "alone": []}
    sasrec = rs.Recommender(rs.IdItems(DIM), rs.SASRec(DIM, 1, dropout=0.1, max_length=8), FullSoftmax())
    fast: dict[str, Any] = {"batch_size": 64, "validate_every": 0, "progress": False}
    run = save_run(sasrec, tmp_path / "sasrec", 20, split, learning_rate=5e-3, **fast)
    bare: dict[str, Any] = {"prefix": [], "suffix": []}  # read at the newest item, which is soon learned
    fast |= {"learning_rate": 1e-2, "epochs": 6}
    deep = save_run(recommender(8, items=FrozenItems(run), **bare), tmp_path / "teacher", split=split, **fast)
    for seed in range(3):
        for name, values in found.items():
            more = {"dim": DIM, "hidden": HIDDEN, "norm_power": 1, "cache": "prefixes"}
            extra = [Distillation(deep, **more)] if name == "student" else []
            model = recommender(4, 4, FrozenItems(run), auxiliaries=extra, **bare)
            rs.fit(model, split, seed=seed, **fast)
            values.append(rs.evaluate(model, split.valid, exclude="none").means()["ndcg@10"])
    popularity = rs.Popularity()
    popularity.learn(Context(split.num_items, split.items, split.train))
    floor = rs.evaluate(popularity, split.valid, exclude="none").means()["ndcg@10"]
    assert np.mean(found["student"]) >= np.mean(found["alone"]) - 0.01
    assert min(np.mean(values) for values in found.values()) > 2 * floor


def test_check_16_configs_and_local_folders_need_no_network(tmp_path: Path, offline: None) -> None:
    whole = Backbone(TINY, rank=0)
    whole.bind()
    body = whole.body
    for module, name in whole._frozen:
        value = module._buffers.pop(name)
        module.register_parameter(name, torch.nn.Parameter(value))
    body.save_pretrained(tmp_path / "model")
    local, config = bound(2, model=str(tmp_path / "model")), bound(2)
    batch, items = toy_batch(), table()
    assert local.backbone.depth == 2
    assert largest(local(batch, items).user, config(batch, items).user) < 1e-6
    spread = bound(2, model=str(tmp_path / "model"), backbone={"drop": "interval"})
    assert largest(spread(batch, items).user, config(batch, items).user) > 1e-4
    again = bound(2, backbone={"drop": "interval"}, share_prefix=False)
    assert largest(spread(batch, items).user, again(batch, items).user) < 1e-6


def test_check_16_a_hub_name_without_network_names_the_offline_way(offline: None) -> None:
    with pytest.raises(OSError, match="config dict"):
        Backbone("nobody/no-such-model", layers=2).bind()


def test_the_recipe_takes_the_shape_and_tokens_of_a_model_without_its_weights(tmp_path: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaModel, PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({"<unk>": 0, "user": 1, "took": 2, "next": 3}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>").save_pretrained(tmp_path / "model")
    torch.manual_seed(5)
    whole = LlamaModel(LlamaConfig(**{**TINY, "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 6}))
    whole.save_pretrained(tmp_path / "model")
    sasrec = save_run(rs.Recommender(rs.IdItems(DIM), rs.SASRec(DIM, 8), FullSoftmax()), tmp_path / "sasrec", 1)
    made = load_recipe(find_recipe("slmrec"))
    bases, prompts = [], []
    for weights in ("pretrained", "random", "random"):
        model = made(sasrec=sasrec, model=str(tmp_path / "model"), weights=weights, layers=4, rank=2).model
        model.bind(toy_context())
        assert model.encoder.backbone.hidden == 24, "the width is the model's"
        bases.append(model.encoder.backbone.body.layers[3].mlp.up_proj.base_layer.weight)
        prompts.append(model.encoder.prefix_ids.tolist())
    assert torch.equal(bases[0], whole.layers[3].mlp.up_proj.weight)
    assert torch.equal(bases[1], bases[2]) and bases[0].shape == bases[1].shape
    assert not torch.isclose(bases[0], bases[1]).any()
    assert prompts[0] == prompts[1] and 2 in prompts[0]
    assert str(tmp_path) not in json.dumps(model.encoder.backbone.model)


@pytest.mark.filterwarnings("ignore::recsys.errors.DataWarning")
@pytest.mark.parametrize("name", ["adalora", "aslora", "allora", "sparse"])
def test_another_adapter_trains_beside_the_frozen_base_and_merges(name: str, tmp_path: Path) -> None:
    load_recipe(find_recipe("slmrec"))  # puts what the recipe imports on the path
    from _adapters import adapter_of

    split, rank, depth = toy_split(), 2, 4
    rows = int((split.train.lengths > 1).sum())
    adapter = adapter_of(name, rank, TINY, depth, 3 * -(-rows // 32))
    parts = [AdapterPenalty(adapter)] if name == "adalora" else []
    model = recommender(depth, backbone={"adapter": adapter}, targets=LastOfUser(), auxiliaries=parts)
    base = Backbone(TINY, layers=depth, rank=0)
    base.bind()
    stages = [rs.Stage(3, name="all", validate=False), rs.Stage(3, name="chosen")] if name == "sparse" else None
    more: dict[str, Any] = {"stages": stages} if stages else {"epochs": 3}
    rs.fit(model, split, validate_every=0, folder=tmp_path / "run", clip_norm=1.0, **more, **QUIET)
    body, found = model.encoder.backbone.body, dict(base.body.named_buffers())
    found = {key: value for key, value in found.items() if "rotary" not in key}
    assert not [one for one in body.parameters() if one.shape == (300, HIDDEN)], "vectors of tokens are not trained"
    lora = 3 * depth * rank * (HIDDEN + 24)
    if name == "sparse":
        moved = {key: int((body.get_parameter(key) != value).sum()) for key, value in found.items() if "layers" in key}
        assert 0.9 * lora <= sum(moved.values()) <= lora
        assert adapter.delta().places.keys() == {key.removeprefix("layers.") for key, count in moved.items() if count}
    else:
        trained = sum(one.numel() for one in body.parameters())
        assert name != "allora" or trained == lora
        layer = body.layers[3].mlp.down_proj.get_base_layer()
        assert torch.equal(layer.weight, base.body.layers[3].mlp.down_proj.weight)
        assert "mlp.down_proj.base_layer.weight" not in "".join(model.encoder.backbone.state_dict())
    if name == "adalora":
        assert int(adapter.kept.sum()) == 3 * depth * rank
        terms = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[-1])["terms"]
        assert terms["AdapterPenalty0"] == pytest.approx(float(adapter.penalty()), rel=0.2)
    if name == "aslora":
        assert {len(adapter.groups_of(number)) for number in range(3)} == {1}

    loaded = rs.load_run(tmp_path / "run")
    batch = toy_batch()
    with torch.no_grad():
        before = model.encoder.eval()(batch, model.items).user
        assert torch.equal(loaded.encoder(batch, loaded.items).user, before)
        for one in (model, loaded):
            one.encoder.merge()
            assert largest(one.encoder(batch, one.items).user, before) < 1e-5
        keys = model.encoder.backbone.state_dict().keys()
        assert {f"body.{key}" for key in found} == keys and not any("lora" in key for key in keys)


def test_a_penalty_is_of_an_adapter_that_has_one() -> None:
    with pytest.raises(TypeError, match="no penalty"):
        AdapterPenalty(torch.nn.Linear(2, 2))


def test_texts_around_the_items_are_bytes_of_a_config_and_tokens_of_a_model() -> None:
    model = bound(prefix="ab", suffix="é")
    assert model.prefix_ids.tolist() == [97, 98] and model.suffix_ids.tolist() == [195, 169]
    with pytest.raises(ValueError, match="token"):
        bound(prefix=[300])
    with pytest.raises(ValueError, match="vocab_size"):
        bound(model={**TINY, "vocab_size": 30}, prefix="ab")
    with pytest.raises(ValueError, match="max_length"):
        bound(model={**TINY, "max_position_embeddings": 12})


@pytest.mark.parametrize(
    "more", [{"rank": -1}, {"layers": 0}, {"drop": "first"}, {"dtype": "int8"}, {"dropout": 1.0}, {"model": {}}]
)
def test_backbones_refuse_what_makes_no_sense(more: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="found"):
        Backbone(**{"model": TINY, **more})


def test_backbones_refuse_more_layers_than_there_are_and_names_of_no_layer() -> None:
    with pytest.raises(ValueError, match="layers"):
        Backbone(TINY, layers=9).bind()
    with pytest.raises(ValueError, match="adapt"):
        Backbone(TINY, adapt=["c_fc"]).bind()


def test_a_teacher_of_other_items_is_refused(teacher: str) -> None:
    context = toy_context()
    names = np.array([f"x{row}" for row in range(1, 31)], object)
    for other in (toy_context(num_items=25), Context(30, Vocabulary(names, 1), context.training)):
        with pytest.raises(DataError, match=r"teacher.*(knows|vocabulary)"):
            distillation(teacher).bind(other)


def test_a_teacher_of_another_kind_or_width_is_refused(tmp_path: Path, teacher: str) -> None:
    sasrec = rs.Recommender(rs.IdItems(DIM), rs.SASRec(DIM, 1, max_length=8), FullSoftmax())
    with pytest.raises(ValueError, match="SLMRec"):
        distillation(save_run(sasrec, tmp_path / "sasrec")).bind(toy_context())
    with pytest.raises(FileNotFoundError, match="nowhere"):
        distillation(str(tmp_path / "nowhere")).bind(toy_context())
    wide = {**TINY, "hidden_size": 32, "num_attention_heads": 4}
    model = recommender(2, 2, model=wide, auxiliaries=[distillation(teacher, hidden=32)])
    model.bind(toy_context())
    with pytest.raises(ValueError, match="hidden size"):
        model.loss(prepared_step(model))


def test_the_auxiliary_keeps_the_contract_of_its_seam(teacher: str) -> None:
    check_auxiliary(distillation(teacher), recommender(2, 2))


@pytest.mark.parametrize(("cache", "targets"), [("prefixes", rs.LastItem()), ("users", LastOfUser())])
def test_cached_states_are_those_of_the_teacher(
    teacher: str, cache: str, targets: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    found = []
    for kept in (None, cache, cache):
        model = recommender(2, 2, targets=targets, auxiliaries=[distillation(teacher, cache=kept)])
        fitted = rs.fit(model, toy_split(), epochs=2, **QUIET)
        found.append([record["terms"] for record in fitted.history])
    assert "reused" in capfd.readouterr().err
    for other in found[1:]:
        for before, now in zip(found[0], other):
            assert now == pytest.approx(before, rel=1e-4)


def test_rows_that_are_not_cached_are_refused(teacher: str) -> None:
    context = toy_context()
    states = TeacherStates(teacher, context, 2, "prefixes")
    assert context.training is not None
    rows = rs.LastItem().train(context.training.gather(np.arange(4), 9, needs=frozenset({"events"})))
    assert states(rows).shape == (4, 2, HIDDEN)
    with pytest.raises(ValueError, match="augmentation"):
        states(rows.replace(ids=rows.ids.flip(1) * rows.mask))
    with pytest.raises(ValueError, match="max_length"):
        states(toy_batch((12, 3)))


def test_a_student_resumes_from_its_folder(tmp_path: Path, teacher: str) -> None:
    def student() -> rs.Recommender:
        return recommender(2, 2, auxiliaries=[distillation(teacher)])

    once, twice = student(), student()
    save_run(once, tmp_path / "once", epochs=2)
    save_run(student(), tmp_path / "twice", epochs=1)
    save_run(twice, tmp_path / "twice", epochs=2)
    tensors = once.tensors()
    assert all(torch.equal(value, tensors[name]) for name, value in twice.tensors().items())


def test_the_recipe_makes_teacher_student_and_the_one_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Data:
        def split(self, splitter: Any) -> Any:
            return toy_split()

    monkeypatch.setattr(rs, "load", lambda name: Data())
    recipe = load_recipe(find_recipe("slmrec"))
    sasrec = rs.Recommender(rs.IdItems(DIM), rs.SASRec(DIM, 1, max_length=8), FullSoftmax())
    common: dict[str, Any] = {"sasrec": save_run(sasrec, tmp_path / "sasrec"), "epochs": 0, "hidden": 16}
    teacher = recipe(role="teacher", **common)
    assert teacher.model.encoder.backbone.depth == 8 and not len(teacher.model.auxiliaries)
    teacher.fit(tmp_path / "teacher", progress=False)
    student = recipe(role="student", teacher=str(tmp_path / "teacher"), **{**common, "epochs": 1}, preset="code")
    assert student.model.encoder.backbone.depth == 4
    fitted = student.fit(tmp_path / "student", progress=False)
    assert fitted.history[0]["terms"].keys() == {"loss", *(f"Distillation0.{one}" for one in TERMS)}
    assert not len(recipe(role="ce-only", rows="users", **common).model.auxiliaries)
    for wrong in ({"role": "student"}, {"role": "ce-only", "teacher": "x"}, {"sasrec": ""}):
        with pytest.raises(ValueError, match=r"teacher|sasrec"):
            recipe(**{**common, **wrong})


def test_half_precision_keeps_the_angles_of_positions_in_full() -> None:
    made = Backbone(TINY, layers=1, dtype="bfloat16")
    made.bind()
    angles = [value for name, value in made.body.named_buffers() if name.endswith("inv_freq")]
    assert angles and all(value.dtype == torch.float32 for value in angles)


@pytest.mark.parametrize(("cache", "targets"), [("prefixes", rs.LastItem()), ("users", LastOfUser())])
def test_the_row_of_a_process_without_rows_is_cached(teacher: str, cache: str, targets: Any) -> None:
    context = toy_context()
    assert context.training is not None
    needs = frozenset({"events"})
    batches = TrainBatches(context.training, scheme=targets.scheme, max_length=8, batch_size=8, needs=needs)
    settings, state = SimpleNamespace(plan=[SimpleNamespace(data=None)]), SimpleNamespace(stage=0)
    loop: Any = SimpleNamespace(batches=batches, settings=settings, state=state)
    spare = targets.train(Loop._spare(loop))
    assert TeacherStates(teacher, context, 2, cache)(spare).shape == (1, 2, HIDDEN)


def test_a_student_of_a_teacher_trained_again_is_another_run(tmp_path: Path) -> None:
    first = save_run(recommender(4), tmp_path / "teacher", epochs=1)
    save_run(recommender(2, 2, auxiliaries=[distillation(first)]), tmp_path / "student", epochs=1)
    save_run(recommender(4), tmp_path / "teacher", epochs=1, seed=5, resume=False)
    with pytest.raises(ValueError, match="another run"):
        save_run(recommender(2, 2, auxiliaries=[distillation(first)]), tmp_path / "student", epochs=1)


def test_a_run_on_vectors_that_were_trained_again_is_another_run(tmp_path: Path) -> None:
    def train(seed: int, **more: Any) -> None:
        ids = rs.Recommender(rs.IdItems(DIM), rs.GRU4Rec(DIM, max_length=8), FullSoftmax())
        save_run(ids, tmp_path / "ids", epochs=1, seed=seed, **more)

    train(0)
    frozen = str(tmp_path / "ids")
    save_run(recommender(items=FrozenItems(frozen)), tmp_path / "run", epochs=1)
    train(5, resume=False)
    with pytest.raises(ValueError, match="another run"):
        save_run(recommender(items=FrozenItems(frozen)), tmp_path / "run", epochs=1)


def test_states_computed_in_another_precision_are_not_reused(teacher: str) -> None:
    context = toy_context()
    assert context.training is not None
    rows = LastOfUser().train(context.training.gather(np.array([0, 1]), 9, needs=frozenset({"events"})))
    with torch.autocast("cpu", torch.bfloat16):
        TeacherStates(teacher, context, 2, "users")(rows)
    found, fresh = (TeacherStates(teacher, context, 2, cache)(rows) for cache in ("users", None))
    torch.testing.assert_close(found, fresh, rtol=0, atol=1e-6)


def test_a_merged_model_is_not_trained_again_from_random_weights() -> None:
    model = recommender()
    rs.fit(model, toy_split(), epochs=0, **QUIET)
    model.encoder.merge()  # type: ignore[operator]
    with pytest.raises(ValueError, match="merged"):
        rs.fit(model, toy_split(), epochs=1, **QUIET)


def test_processes_do_not_exchange_the_base() -> None:
    model = recommender()
    model.bind(toy_context())
    ignored = _Losses(model, None)._ddp_params_and_buffers_to_ignore
    assert any("embed_tokens" in name for name in ignored)
    assert not any("lora" in name or "project" in name for name in ignored)


def test_targets_at_other_places_than_the_newest_are_refused() -> None:
    with pytest.raises(ValueError, match="newest"):
        rs.Recommender(rs.IdItems(DIM, extra=1), encoder(), FullSoftmax(), targets=rs.MaskedItems())


def test_a_base_that_was_tuned_a_little_is_another_base() -> None:
    made = bound(jitter=0.0)
    generator = torch.Generator().manual_seed(0)
    for module, name in made.backbone._frozen:
        value = getattr(module, name)
        value.add_(torch.randn(value.shape, generator=generator) * value.abs().mean() * 1e-3)
    made.backbone._own, made.backbone._checked = made.backbone._measure(), None
    with pytest.raises(ValueError, match="another base"):
        made(toy_batch(), table())


def test_tokens_enter_as_the_model_itself_reads_them() -> None:
    gemma = {**TINY, "model_type": "gemma", "head_dim": 8, "num_key_value_heads": 2, "pad_token_id": 0}
    made = Backbone(gemma, layers=1)
    made.bind()
    ids = torch.tensor([3, 4])
    assert torch.equal(made.embed(ids), made.body.get_input_embeddings()(ids))
    torch.testing.assert_close(made.embed(ids), made.body.get_input_embeddings().weight[ids] * HIDDEN**0.5)


def test_weights_that_are_incomplete_damaged_or_look_ahead_are_errors(tmp_path: Path) -> None:
    import transformers

    whole = transformers.AutoModel.from_config(transformers.AutoConfig.for_model(**{**TINY, "num_hidden_layers": 2}))
    whole.save_pretrained(tmp_path / "lacking")
    config = json.loads((tmp_path / "lacking" / "config.json").read_text())
    (tmp_path / "lacking" / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 4}))
    with pytest.raises(ValueError, match="incomplete"):
        Backbone(str(tmp_path / "lacking")).bind()

    whole.save_pretrained(tmp_path / "cut")
    weights = tmp_path / "cut" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(OSError, match="cannot be loaded"):
        Backbone(str(tmp_path / "cut")).bind()

    bert = {**TINY, "model_type": "bert"}
    with pytest.raises(ValueError, match="looks ahead"):
        Backbone(bert, adapt=["query"]).bind()


def test_a_model_with_block_ends_serves_several_threads() -> None:
    model = recommender(4, 4)
    model.bind(toy_context())
    model.eval()
    histories = [[["i1", "i2"]], [["i3"]] * 7, [["i4", "i5", "i6"]] * 30]
    alone = [model.user_vectors(rows) for rows in histories]
    with ThreadPoolExecutor(3) as pool:
        for _ in range(20):
            for mine, found in zip(alone, pool.map(model.user_vectors, histories), strict=True):
                np.testing.assert_allclose(found, mine, atol=1e-6)


def test_heads_weigh_targets_as_the_objective_does(teacher: str) -> None:
    model = recommender(4, 2, auxiliaries=[distillation(teacher)])
    model.bind(toy_context())
    model.eval()
    step = prepared_step(model)
    found = []
    for factor in (1.0, 3.0):
        importance = torch.full(step.batch.ids.shape, factor)
        batch = step.batch.replace(importance=importance)
        found.append(model.auxiliaries[0](replace(step, batch=batch))["supervision"])
    torch.testing.assert_close(found[1], 3 * found[0])


@pytest.mark.parametrize("adapt", ["gate_proj", "all-linear"])
def test_index_f4_one_name_is_no_list_of_layers(adapt: str) -> None:
    with pytest.raises(TypeError, match="list"):
        Backbone(TINY, adapt=adapt)


def test_index_f4_a_table_of_tokens_is_no_linear_layer() -> None:
    with pytest.raises(ValueError, match="linear"):
        Backbone(TINY, adapt=["embed_tokens"]).bind()
