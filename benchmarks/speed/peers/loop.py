"""What ``sequences.py`` measures of this library: updates of ``fit`` over sequences, timed where it asks for batches.

A run ends with an exception when as many updates as are wanted are over, in front of what fit does at the end of an
epoch. Legend: N sequences, S tokens, B histories, L items of each, M levels.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from recsys.data.batch import Batch

RATE = 1e-3
TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
Task = dict[str, Any]


class Enough(Exception):
    """As many updates as were wanted are over."""


class Timed:
    """Batches one after the other, from the first one again behind the last, and when each was asked for."""

    prepared = True
    num_rows = num_targets = 1 << 20

    def __init__(self, batches: list[Batch], updates: int) -> None:
        self.batches, self.updates = batches, updates
        self.times: list[float] = []

    def identity(self) -> dict[str, Any]:
        """Nothing is resumed."""
        return {}

    def num_batches(self, epoch: int) -> int:
        """More than are asked for."""
        return self.updates + 1

    def epoch(self, epoch: int, start: int = 0, rank: int = 0, world_size: int = 1) -> Iterator[Batch]:
        """The batches; the end is an exception."""
        for number in range(self.updates + 1):
            self.times.append(time.perf_counter())
            if number == self.updates:
                raise Enough
            yield self.batches[number % len(self.batches)]


def config_of(task: Task) -> dict[str, Any]:
    """The language model: a Llama, as SmolLM2 is one."""
    return {
        "model_type": "llama", "vocab_size": task["vocabulary"], "hidden_size": task["hidden"],
        "intermediate_size": task["intermediate"], "num_hidden_layers": task["layers"],
        "num_attention_heads": task["heads"], "num_key_value_heads": task["kv_heads"], "tie_word_embeddings": True,
        "max_position_embeddings": 2048, "rms_norm_eps": 1e-5, "pad_token_id": 0, "bos_token_id": None,
        "eos_token_id": task["vocabulary"] - 1,
    }  # fmt: skip


def language_model(task: Task) -> Any:
    """That of the task as a part of ours, its weights from the seed."""
    from recsys.llm.trainers.text_policy import LanguageModel

    return LanguageModel(config_of(task), seed=1)


def redraw(parameters: dict[str, Tensor]) -> int:
    """Draw the matrices A of a LoRA anew, in the order of the model's layers; how many numbers are trained."""
    draw = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for name, one in parameters.items():
            if ".lora_A." in name:
                one.copy_(torch.randn(one.shape, generator=draw) / one.shape[1] ** 0.5)
    return sum(one.numel() for one in parameters.values())


def texts(task: Task) -> tuple[np.ndarray, int]:
    """Random tokens (N, S) of all texts of a run, as many as there are of different batches, and where they begin."""
    count, length = task["batch"] * (task["warmup"] + task["steps"]), task["prompt"] + task["completion"]
    return np.random.default_rng(0).integers(2, task["vocabulary"] - 1, (count, length)), task["prompt"]


def text_batches(task: Task, role: int) -> list[Batch]:
    """The texts as batches of ours, in order."""
    from recsys.llm.trainers.texts import TextRows

    rows, begin = texts(task)
    source = TextRows(rows.tolist(), [begin] * len(rows), roles=[role] * len(rows))
    return [source.batch(np.arange(first, first + task["batch"])) for first in range(0, len(rows), task["batch"])]


def tuned(task: Task, batches: list[Batch], model: Any, tuning: Any, split: Any, train: list[str]) -> dict[str, Any]:
    """Seconds of each update behind the warm-up, and of each its loss and what its batch of sequences holds."""
    import recsys as rs
    from recsys.train.settings import Stage

    found: dict[str, Any] = {"losses": [], "log_probs": [], "references": [], "trained": 0}

    def begun(*_: Any) -> None:
        if not found["trained"] and tuning.adapter is not None:
            found["trained"] = redraw(tuning.adapter.named())

    def scored(_: Any, given: tuple[Any, ...], terms: Any) -> None:
        loss = sum(terms.values()) if isinstance(terms, dict) else terms
        found["losses"].append(float(loss.detach()))
        found["log_probs"].append(mean(given[0].log_probs, given[0].mask))
        if given[0].reference is not None:
            found["references"].append(mean(given[0].reference, given[0].mask))

    tuning.register_forward_pre_hook(begun)
    tuning.objective.register_forward_hook(scored)
    source = Timed(batches, task["warmup"] + task["steps"])
    stage = Stage(1, losses=["Tuning0"], train=train, data=source, validate=False)
    with suppress(Enough):
        rs.fit(model, split, stages=[stage], learning_rate=RATE, validate_every=0, progress=False, accelerator="cpu",
               precision="32-true")  # fmt: skip
    found["seconds"] = np.diff(source.times)[task["warmup"] :].tolist()
    return found


def mean(log_probs: Tensor, mask: Tensor) -> float:
    """The mean log-probability of the tokens that count."""
    return float(log_probs.detach()[mask].double().mean())


def texts_run(task: Task) -> dict[str, Any]:
    """Updates over texts; ``variant`` says of what: "lora", "lora, reference", "full" or "full, reference"."""
    from recsys.llm.trainers.adapters.lora import LoRA
    from recsys.llm.trainers.objectives.npo import NPO
    from recsys.llm.trainers.objectives.supervised import Supervised
    from recsys.llm.trainers.sequences import Role
    from recsys.llm.trainers.text_policy import TextPolicy, Texts
    from recsys.llm.trainers.tuning import Tuning

    referred = task["variant"].endswith("reference")
    role, objective = (Role.FORGET, NPO(retain=0)) if referred else (Role.TARGET, Supervised())
    adapter = LoRA(task["rank"], targets=TARGETS) if task["variant"].startswith("lora") else None
    tuning = Tuning(TextPolicy(language_model(task)), Texts(), objective, adapter)
    batches = text_batches(task, int(role))
    if task.get("same"):
        batches = batches[:1]
    return tuned(task, batches, bystander(tuning), tuning, walks(20, 6, 8), ["auxiliaries.0"])


def bystander(tuning: Any) -> Any:
    """A recommender of no account, which holds the auxiliary."""
    import recsys as rs
    from recsys.encoders.sasrec import SASRec
    from recsys.items.ids import IdItems
    from recsys.objectives.softmax import FullSoftmax

    encoder = SASRec(dim=4, num_layers=1, num_heads=1, max_length=6)
    return rs.Recommender(IdItems(4), encoder, FullSoftmax(), auxiliaries=[tuning])


def walks(items: int, length: int, users: int) -> Any:
    """Random histories of one length in training, as a split."""
    import recsys as rs
    from recsys.data.prepared import Prepared
    from recsys.data.split import Split
    from recsys.ids.vocabulary import Vocabulary

    events = np.random.default_rng(3).integers(1, items + 1, users * (length + 2)).astype(np.int32)
    offsets = np.arange(users + 1, dtype=np.int64) * (length + 2)
    prepared = Prepared(events, offsets, items, order="file")
    return Split.of(
        prepared, rs.LeaveLast(), Vocabulary(np.arange(items), first=1), Vocabulary(np.arange(users), first=0)
    )


def catalogue(task: Task) -> tuple[np.ndarray, list[int]]:
    """Different codes (I, M) of all items, and how many codes a level has."""
    sizes = [task["codes"]] * task["levels"]
    draw = np.random.default_rng(4)
    flat = np.unique(draw.integers(0, task["codes"] ** task["levels"], 2 * task["catalogue"]))
    if len(flat) < task["catalogue"]:
        raise ValueError(f"{task['levels']} levels of {task['codes']} codes give too few items: ask for fewer")
    flat = draw.permutation(flat)[: task["catalogue"]]
    return np.stack(np.unravel_index(flat, sizes), 1), sizes


def histories(task: Task) -> np.ndarray:
    """Item rows (B x updates, L + 1) of the histories of all updates, each with the item behind it."""
    count = task["groups"] * (task["warmup"] + task["steps"])
    return np.random.default_rng(5).integers(1, task["catalogue"] + 1, (count, task["items"] + 1))


def history_batches(task: Task) -> list[Batch]:
    """They as batches of ours; the newest position alone has a target."""
    found = []
    for rows in torch.from_numpy(histories(task)).split(task["groups"]):
        targets = torch.zeros_like(rows[:, 1:])
        targets[:, -1] = rows[:, -1]
        number = torch.arange(len(rows))
        found.append(Batch(number, number, rows[:, :-1], torch.full((len(rows),), task["items"]), targets=targets))
    return found


def generator(task: Task, folder: Path, auxiliaries: list[Any], whole_vocabulary: bool = False) -> tuple[Any, Any]:
    """The recommender of the variant, which holds auxiliaries (made of its encoder and decoder), and its split."""
    from peers.causal import CausalDecoder, CodePrompts

    from recsys.encoders.tokens import TokenEncoder
    from recsys.generative.code_decoder import CodeDecoder
    from recsys.generative.generator import Generator
    from recsys.items.codes import CodeItems
    from recsys.semantic_ids.table import SemanticIds

    split, (codes, sizes) = walks(task["catalogue"], task["items"], 8), catalogue(task)
    SemanticIds.of(split.items.ids, codes, sizes).save(folder)
    dim, items = task["hidden"], CodeItems(task["hidden"], str(folder), tied=True)
    encoder: Any
    decoder: Any
    if task["variant"] == "causal":
        encoder = CodePrompts(dim, task["items"])
        decoder = CausalDecoder(language_model(task), dim, whole_vocabulary)
    else:
        shape = {"num_heads": task["heads"], "head_dim": dim // task["heads"], "ff": task["intermediate"]}
        layers = (task["layers"] - task["layers"] // 2, task["layers"] // 2)
        encoder = TokenEncoder(dim, layers[0], dropout=0.0, max_length=task["items"], causal=True, **shape)
        decoder = CodeDecoder(dim, layers[1], dropout=0.0, **shape)
    return Generator(items, encoder, decoder, auxiliaries=[make(encoder, decoder) for make in auxiliaries]), split


def grpo_run(task: Task) -> dict[str, Any]:
    """Updates by GRPO over sampled items; ``variant`` is "causal" (the language model) or "own" (layers of T5)."""
    from recsys.generative.code_policy import CodePolicy
    from recsys.llm.trainers.adapters.lora import LoRA
    from recsys.llm.trainers.credit.groups import GroupRelative
    from recsys.llm.trainers.drafts import Rollouts
    from recsys.llm.trainers.objectives.policy import PolicyGradient
    from recsys.llm.trainers.tuning import Tuning

    def tuning(encoder: Any, decoder: Any) -> Any:
        examples = Rollouts(task["samples"], reward="prefix", exclude="none")
        objective = PolicyGradient(GroupRelative(), normalise="tokens")
        return Tuning(CodePolicy(encoder, decoder), examples, objective, LoRA(task["rank"]))

    with tempfile.TemporaryDirectory(prefix="recsys-speed-") as folder:
        model, split = generator(task, Path(folder) / "ids", [tuning])
        own = next(iter(model.auxiliaries))
        train = ["decoder"] if task["variant"] == "causal" else ["encoder", "decoder"]  # the former's prompts are texts
        return tuned(task, history_batches(task), model, own, split, train)
