"""What ``sequences.py`` measures of trl: steps of its SFTTrainer and GRPOTrainer over a model made of a config.

Nothing is fetched: the tokenizer knows words by their number, and texts are made of these. GRPOTrainer takes no prefix
function, and its ``generation_kwargs`` none either, so ``generate`` of the model it gets is bound to one: of the tokens
behind the prompt, those that lead to some item, looked up in a dict. It samples with replacement and scores what it
sampled among the whole vocabulary.

Where there is no Triton, as on a CPU, trl 1.16 sends every position through the head, prompts as well, and leaves out
afterwards what is not asked for; with Triton it sends the completions alone. A task that is ``compact`` has it do so
here too (by the same code of trl, which then gets fewer rows), as that is no matter of the trainer.
"""

from __future__ import annotations

import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from itertools import pairwise
from typing import Any
from unittest.mock import patch

from peers.loop import RATE, TARGETS, Task, catalogue, histories, language_model, redraw, texts


def word(token: int) -> str:
    """That of one id. No word is part of another, as special tokens are cut out first."""
    return f"<{token}>"


def tokenizer(vocabulary: int) -> Any:
    """Words by their numbers."""
    import tokenizers
    import transformers

    words = {word(number): number for number in range(vocabulary)}
    table = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token=word(0)))
    table.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=table, pad_token=word(0), eos_token=word(vocabulary - 1)
    )


@contextmanager
def head_of(task: Task) -> Iterator[None]:
    """Within it the head gets completions alone if the task is ``compact``; how they are scored stays the same."""
    from trl.trainer import utils

    if not task.get("compact"):
        yield
        return
    with patch.object(utils, "_use_triton", lambda device: True):  # read there for which positions, elsewhere for how
        yield


def settings(task: Task, folder: str) -> dict[str, Any]:
    """What the trainers of both kinds are told: what ours does, and nothing that costs time besides."""
    return {
        "output_dir": folder, "use_cpu": True, "bf16": False, "fp16": False, "report_to": "none", "seed": 0,
        "gradient_checkpointing": False, "learning_rate": RATE, "lr_scheduler_type": "constant", "warmup_steps": 0,
        "max_grad_norm": 0.0, "weight_decay": 0.0, "max_steps": task["warmup"] + task["steps"],
        "save_strategy": "no", "logging_strategy": "no", "disable_tqdm": True, "dataloader_pin_memory": False,
    }  # fmt: skip


def adapter(task: Task) -> Any:
    """The LoRA of peft that ours is made of."""
    import peft

    return peft.LoraConfig(
        r=task["rank"], lora_alpha=16, lora_dropout=0.0, target_modules=list(TARGETS), bias="none",
        task_type="CAUSAL_LM",
    )  # fmt: skip


def model_of(task: Task) -> Any:
    """The model of the task, the weights as in ours."""
    part = language_model(task)
    part.bind(None)
    return part.body


def stamped(trainer: Any) -> list[float]:
    """The list into which a trainer writes when each of its steps ended."""
    import transformers

    times: list[float] = []

    class Stamps(transformers.TrainerCallback):  # type: ignore[misc]
        """Looks at the clock."""

        def on_step_end(self, *_: Any, **__: Any) -> None:
            times.append(time.perf_counter())

    trainer.add_callback(Stamps())
    return times


def trainable(trainer: Any) -> dict[str, Any]:
    """What is trained, by name."""
    return {name: one for name, one in trainer.model.named_parameters() if one.requires_grad}


def trained(task: Task, trainer: Any) -> dict[str, Any]:
    """Seconds of each step behind the warm-up, and the loss of each."""
    losses: list[float] = []
    original, count = trainer.compute_loss, redraw(trainable(trainer))

    def compute_loss(*given: Any, **more: Any) -> Any:
        loss = original(*given, **more)
        losses.append(float(loss.detach()))
        return loss

    trainer.compute_loss = compute_loss
    times = stamped(trainer)
    with head_of(task):
        trainer.train()
    seconds = [after - before for before, after in pairwise(times)]
    return {"losses": losses, "trained": count, "seconds": seconds[task["warmup"] - 1 :]}


def sft_run(task: Task) -> dict[str, Any]:
    """Steps of the SFTTrainer over the texts, in order."""
    import trl

    import datasets

    rows, begin = texts(task)
    marks = [0] * begin + [1] * (rows.shape[1] - begin)
    data = datasets.Dataset.from_list([{"input_ids": row.tolist(), "completion_mask": marks} for row in rows])
    with tempfile.TemporaryDirectory(prefix="recsys-speed-") as folder:
        config = trl.SFTConfig(
            **settings(task, folder), per_device_train_batch_size=task["batch"], max_length=None,
            completion_only_loss=True, train_sampling_strategy="sequential",
        )  # fmt: skip
        words = tokenizer(task["vocabulary"])
        made = trl.SFTTrainer(
            model=model_of(task), args=config, train_dataset=data, processing_class=words, peft_config=adapter(task)
        )
        return trained(task, made)


def grpo_trainer(task: Task, folder: str, **more: Any) -> Any:
    """The GRPOTrainer over the histories, in order, held to the items there are."""
    import trl

    import datasets

    numbers = tokens_of(task)
    rows = histories(task)
    prompts = [" ".join(map(word, [one for item in row[:-1] for one in numbers[item - 1]])) for row in rows]
    told = [{"prompt": text, "wanted": numbers[row[-1] - 1]} for text, row in zip(prompts, rows, strict=True)]
    config = trl.GRPOConfig(
        **settings(task, folder), per_device_train_batch_size=task["groups"] * task["samples"],
        num_generations=task["samples"], max_completion_length=task["levels"], shuffle_dataset=False, **more,
    )  # fmt: skip
    model = model_of(task)
    held = prefix_function(numbers, task["items"] * task["levels"])
    model.generate = partial(model.generate, prefix_allowed_tokens_fn=held)

    def rewarded(completion_ids: list[list[int]], wanted: list[list[int]], **_: Any) -> list[float]:
        return [prefix_share(own, other) for own, other in zip(completion_ids, wanted, strict=True)]

    return trl.GRPOTrainer(
        model, rewarded, args=config, train_dataset=datasets.Dataset.from_list(told),
        processing_class=tokenizer(task["vocabulary"]), peft_config=adapter(task),
    )  # fmt: skip


def grpo_run(task: Task) -> dict[str, Any]:
    """Steps of the GRPOTrainer."""
    with tempfile.TemporaryDirectory(prefix="recsys-speed-") as folder:
        return trained(task, grpo_trainer(task, folder))


def tokens_of(task: Task) -> list[list[int]]:
    """The code tokens of each item, as ``CodeItems`` numbers them."""
    codes, sizes = catalogue(task)
    first = [1 + sum(sizes[:level]) for level in range(len(sizes))]
    return [[int(code) + start for code, start in zip(row, first, strict=True)] for row in codes]


def prefix_share(own: list[int], wanted: list[int]) -> float:
    """The share of codes, from the first on, that are right."""
    same = 0
    for one, other in zip(own, wanted, strict=True):
        if one != other:
            break
        same += 1
    return same / len(wanted)


def prefix_function(items: list[list[int]], begin: int) -> Any:
    """What may come next behind the ``begin`` tokens of a prompt."""
    found: dict[tuple[int, ...], set[int]] = defaultdict(set)
    for tokens in items:
        for depth, token in enumerate(tokens):
            found[tuple(tokens[:depth])].add(token)
    children = {prefix: sorted(some) for prefix, some in found.items()}

    def allowed(row: int, so_far: Any) -> list[int]:
        return children[tuple(so_far[begin:].tolist())]

    return allowed
