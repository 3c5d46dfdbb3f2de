"""Speed and memory of training over sequences, a part at a time, against trl on the same model.

    python3 tasks.py parity-trl --version        makes an environment with trl and peft; then, with its python:
    python benchmarks/speed/sequences.py --part lora --threads 2      a step of LoRA, against trl's SFTTrainer
    python benchmarks/speed/sequences.py --part grpo --threads 2      groups per second, against trl's GRPOTrainer
    python benchmarks/speed/sequences.py --part memory --threads 2    a reference without a second model
    python benchmarks/speed/sequences.py --part lora --smoke

The model is a Llama with random weights, by default of the sizes of SmolLM2-135M cut to 8 layers; everything is
float32 on a CPU. Each measurement is a process of its own, contenders take turns within a round, and ratios are those
of medians over rounds of the median step of a round. A step is all that a loop does from one batch to the next: here
that of ``fit``, there that of ``Trainer.train``, with logging and checkpoints off and no gradient checkpointing.

What is compared must compute the same, or nothing is written:

- lora: the losses of all steps, so gradients and updates too, on the same texts in the same order, from the same
  weights and the same matrices A of the adapter.
- grpo: on samples of trl, log-probabilities of all codes, credit and loss; and all samples are items.
- memory: log-probabilities of the first step for all; the reference at the last step is the model of the first one.

Part "grpo": histories of items as code tokens, samples held to the items there are, rewarded by the share of codes that
are right. **This library has no causal language model that samples codes**: the row "recsys, the same Llama" is
``CodePolicy`` over one that this benchmark puts together (``peers/causal.py``); "recsys, a generator of ours" is the
same task with TokenEncoder and CodeDecoder of the same width and as many layers. trl takes no prefix function: its
model's ``generate`` is given one. Ours reads a history once for all samples, samples without replacement and takes the
softmax over what is allowed; trl reads it once for each, with replacement, and takes that over the whole vocabulary.

Without Triton, so on every CPU, trl sends prompts through its head as well. The row "completions alone" has it spare
that, as it does with Triton: the ratio against that row is the one that says something about the loops.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from contest import DROPPED, HERE, ROOT, machine, save, stamp_command
from scan import peak_mib

EXACT = 1e-5
SIZES = {
    "layers": 8, "hidden": 576, "heads": 9, "kv_heads": 3, "intermediate": 1536, "vocabulary": 49152, "rank": 8,
    "batch": 8, "prompt": 96, "completion": 32,
    "groups": 4, "samples": 16, "items": 20, "levels": 4, "codes": 256, "catalogue": 10_000,
}  # fmt: skip
SMOKE = {
    "layers": 2, "hidden": 32, "heads": 4, "kv_heads": 2, "intermediate": 64, "vocabulary": 128, "rank": 4,
    "batch": 3, "prompt": 6, "completion": 4,
    "groups": 2, "samples": 4, "items": 3, "levels": 3, "codes": 8, "catalogue": 40,
}  # fmt: skip
TOLD = {
    "kv_heads": "heads of keys and values", "vocabulary": "tokens of the vocabulary", "rank": "of the adapter",
    "batch": "texts of a step", "prompt": "tokens of a prompt", "completion": "tokens of a completion",
    "groups": "histories of a step", "samples": "samples of a history", "items": "items of a history",
    "levels": "codes of an item", "codes": "codes of a level", "catalogue": "items of the catalogue",
}  # fmt: skip
COMPACT = "trl, completions alone through the head"
Runs = dict[str, list[dict[str, Any]]]


class DiffersError(Exception):
    """What is compared does not compute the same, or one of the processes failed."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure the chosen part, print its table and write it."""
    parts: dict[str, Callable[[argparse.Namespace], tuple[list[str], dict[str, Any]]]] = {
        "lora": lora, "grpo": grpo, "memory": memory,
    }  # fmt: skip
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=list(parts), required=True)
    parser.add_argument("--rounds", type=int, default=3, help="default: %(default)s")
    parser.add_argument("--steps", type=int, default=8, help="measured per round (default: %(default)s)")
    parser.add_argument("--warmup", type=int, default=2, help="steps before them (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="default: %(default)s")
    for name in SIZES:
        told = f"{TOLD.get(name, 'of the model')} (default: {SIZES[name]:,})"
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, help=told)
    parser.add_argument("--output", type=Path, default=HERE / "results", help="default: benchmarks/speed/results")
    parser.add_argument("--smoke", action="store_true", help="one short round of a tiny model, nothing written")
    options = parser.parse_args(arguments)
    if options.smoke:
        options.rounds, options.steps, options.warmup = 1, 2, 1
    if min(options.rounds, options.steps, options.warmup) < 1:
        parser.error("rounds, steps and warmup must be at least 1: the first step of a loop is unlike the others")
    needed = ("peft", "transformers") if options.part == "memory" else ("peft", "transformers", "trl")
    if lacking := [name for name in needed if importlib.util.find_spec(name) is None]:
        parser.error(f"{', '.join(lacking)} not installed here: make an environment with `python3 tasks.py parity-trl` "
                     "and use .venv-parity-trl/bin/python")  # fmt: skip
    stamp = machine(options.threads)
    try:
        text, content = parts[options.part](options)
    except DiffersError as error:
        raise SystemExit(f"not measured: {error}") from None
    where = ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in stamp.items() if value is not None)
    rounds = f"{options.rounds} rounds of {options.steps} steps behind {options.warmup}, medians"
    made = ", ".join(f"{name.replace('_', ' ')} {size:,}" for name, size in sizes(options).items())
    lines = [
        f"# Training over sequences: {options.part}", "", f"Command: `{stamp_command()}`", "",
        f"Measured: {where}, float32; {rounds}.", "", f"Sizes: {made}.", "", *text,
    ]  # fmt: skip
    print("\n".join(lines))
    if not options.smoke:
        told = {"stamp": stamp, "command": stamp_command(), "part": options.part, "sizes": sizes(options), **content}
        save(options.output / f"sequences-{options.part}", "\n".join(lines), told)


def sizes(options: argparse.Namespace) -> dict[str, int]:
    """Those that the command line asks for."""
    default = SMOKE if options.smoke else SIZES
    given = {name: getattr(options, name) for name in SIZES}
    return {name: default[name] if value is None else value for name, value in given.items()}


def lora(options: argparse.Namespace) -> tuple[list[str], dict[str, Any]]:
    """The table of part "lora", and what it is made of."""
    runs = rounds(options, {
        "recsys": ("loop.texts_run", {"variant": "lora"}), "trl": ("trl_trainers.sft_run", {}),
        COMPACT: ("trl_trainers.sft_run", {"compact": True}),
    }, same_losses)  # fmt: skip
    size = sizes(options)
    tokens, trained = size["batch"] * (size["prompt"] + size["completion"]), runs["trl"][0]["trained"]
    gap = same_losses(runs)
    text = [
        f"One optimizer step of LoRA ({trained:,} numbers trained) on {size['batch']} texts, {tokens:,} tokens. "
        f"Losses of all steps are trl's, the largest difference is {gap:.1e}.", "",
        *table(runs, "tokens", tokens, "trl"), "",
        *(verdict(f"time against {name}", ratio(runs, "recsys", name), 1.1, most=True) for name in ("trl", COMPACT)),
        "", versions(runs),
    ]  # fmt: skip
    return text, {"runs": runs, "gap": gap}


def grpo(options: argparse.Namespace) -> tuple[list[str], dict[str, Any]]:
    """The table of part "grpo", and what it is made of."""
    found = child("grpo_check.grpo_check", {}, options)
    gap = same_samples(found)
    ours, others = "recsys, the same Llama", "recsys, a generator of ours"
    runs = rounds(options, {
        ours: ("loop.grpo_run", {"variant": "causal"}), others: ("loop.grpo_run", {"variant": "own"}),
        "trl": ("trl_trainers.grpo_run", {}), COMPACT: ("trl_trainers.grpo_run", {"compact": True}),
    })  # fmt: skip
    size = sizes(options)
    text = [
        f"One step of GRPO with LoRA: {size['groups']} histories of {size['items']} items, {size['samples']} samples "
        f"of each, among {size['catalogue']:,} items of {size['levels']} codes. On {found['samples']} samples of trl, "
        f"all of them items, log-probabilities, credit and loss of the same Llama differ by {gap:.1e} at most.", "",
        *table(runs, "groups", size["groups"], "trl"), "",
        *(
            verdict(f"groups per second of {one} against {name}", ratio(runs, name, one), 5, most=False)
            for one in (ours, others) for name in ("trl", COMPACT)
        ), "", versions(runs),
    ]  # fmt: skip
    return text, {"runs": runs, "check": found}


def memory(options: argparse.Namespace) -> tuple[list[str], dict[str, Any]]:
    """The table of part "memory", and what it is made of."""
    names = {
        "fine-tuning of all weights": "full", "LoRA": "lora", "LoRA and a reference": "lora, reference",
        "fine-tuning of all weights and a reference": "full, reference",
    }  # fmt: skip
    told = {name: ("loop.texts_run", {"variant": kind, "same": True}) for name, kind in names.items()}
    runs = rounds(options, told, same_reference)
    gap, size = same_reference(runs), sizes(options)
    plain, _, referred, _ = names
    share = middle(runs[referred], "peak_mib") / middle(runs[plain], "peak_mib")
    alone = middle(runs[referred], "peak_mib") / middle(runs["LoRA"], "peak_mib")
    text = [
        f"{size['batch']} texts of {size['prompt'] + size['completion']} tokens, Adam. Log-probabilities of the first "
        f"step, and those of the reference at the last one, differ by {gap:.1e} at most. The reference of LoRA is the "
        "model without the adapter, that of fine-tuning a copy of its weights.", "",
        *table(runs, "tokens", size["batch"] * (size["prompt"] + size["completion"]), plain), "",
        verdict("peak memory of LoRA and a reference", share, 1.2, most=True)
        + f" Against LoRA alone: {alone:.2f} ×.", "",
        versions(runs),
    ]  # fmt: skip
    return text, {"runs": runs, "gap": gap}


def rounds(options: argparse.Namespace, contest: dict[str, Any], check: Callable[[Runs], Any] | None = None) -> Runs:
    """Everybody once per round, in a process of its own; behind the first round it is checked."""
    runs: Runs = {name: [] for name in contest}
    for number in range(options.rounds):
        for name, (function, more) in contest.items():
            found = child(function, more, options)
            runs[name].append(found)
            told = f"{1e3 * statistics.median(found['seconds']):,.1f} ms a step, {found['peak_mib']:,.0f} MiB"
            print(f"round {number + 1}/{options.rounds}  {name}: {told}", file=sys.stderr, flush=True)
        if check is not None:
            check(runs)
    return runs


def child(function: str, more: dict[str, Any], options: argparse.Namespace) -> dict[str, Any]:
    """What a function of ``peers`` gives in a process of its own.

    Raises:
        DiffersError: it failed.
    """
    task = {**sizes(options), "steps": options.steps, "warmup": options.warmup, **more}
    with tempfile.TemporaryDirectory(prefix="recsys-speed-") as folder:
        result = Path(folder) / "result.json"
        code = "import sys, sequences; sequences.run(*sys.argv[1:])"
        environment = {name: value for name, value in os.environ.items() if not name.startswith(DROPPED)}
        threads = str(options.threads)
        environment |= {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads, "CUDA_VISIBLE_DEVICES": ""}
        environment |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
        environment["PYTHONPATH"] = os.pathsep.join([str(HERE), str(ROOT)])
        command = [sys.executable, "-c", code, function, json.dumps(task), str(result)]
        done = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, timeout=7200)
        if not result.exists():
            raise DiffersError(f"{function} of {task} failed:\n{done.stderr[-3000:]}")
        found: dict[str, Any] = json.loads(result.read_text())
        return found


def run(function: str, task: str, path: str) -> None:
    """In the child: call it, and write what it gives, with the peak of memory and the versions."""
    import recsys.llm.trainers.tuning  # noqa: F401

    module, _, name = function.partition(".")
    used = ["torch", "transformers", "peft", *(["trl"] if "trl" in function else [])]
    for one in used:
        importlib.import_module(one)
    if "trl" in used:  # which imports its trainers when they are asked for
        trl = sys.modules["trl"]
        _ = trl.SFTTrainer, trl.GRPOTrainer
    found_by = getattr(importlib.import_module(f"peers.{module}"), name)
    loaded = peak_mib()
    found = found_by(json.loads(task))
    known = {one: importlib.metadata.version(one) for one in used}
    told = {**found, "peak_mib": peak_mib(), "loaded_mib": loaded, "versions": known}
    Path(path).write_text(json.dumps(told))


def same_losses(runs: Runs) -> float:
    """The largest difference of a loss from trl's.

    Raises:
        DiffersError: it is above ``EXACT``, or another number of numbers is trained.
    """
    base = runs["trl"][0]
    gap = 0.0
    for name, found in runs.items():
        for one in found:
            if one["trained"] != base["trained"] or len(one["losses"]) != len(base["losses"]):
                counts = f"{one['trained']:,} numbers in {len(one['losses'])} steps"
                told = f"{base['trained']:,} in {len(base['losses'])}"
                raise DiffersError(f"{name} trains {counts}, trl {told}: they are not the same")
            gap = max(gap, *(abs(a - b) for a, b in zip(one["losses"], base["losses"], strict=True)))
    return within(gap, "losses differ from trl's")


def same_samples(found: dict[str, Any]) -> float:
    """The largest difference of a log-probability, a credit or the loss.

    Raises:
        DiffersError: it is above ``EXACT``, or a sample is no item.
    """
    if found["strangers"]:
        raise DiffersError(f"{found['strangers']} of {found['samples']} samples of trl are no items")
    return within(
        max(found[name] for name in ("log_probs", "credit", "loss")), "what is made of samples differs from trl's"
    )


def same_reference(runs: Runs) -> float:
    """The largest difference of a log-probability of the first step, or of the reference at the last one.

    Raises:
        DiffersError: it is above ``EXACT``, or nothing was learned, so that the reference is not tried.
    """
    told = [one for found in runs.values() for one in found]
    first = told[0]["log_probs"][0]
    if any(abs(one["log_probs"][-1] - first) < 10 * EXACT for one in told):
        raise DiffersError("the model did not move, so its reference cannot be told from it")
    values = [one["log_probs"][0] for one in told] + [value for one in told for value in one["references"]]
    return within(max(abs(value - first) for value in values), "models or references differ")


def within(gap: float, what: str) -> float:
    """The gap, if it is small.

    Raises:
        DiffersError: it is not, or no number.
    """
    if not gap <= EXACT:
        raise DiffersError(f"{what}: by {gap:.2e}, at most {EXACT:g} is expected")
    return gap


def middle(found: list[dict[str, Any]], name: str) -> float:
    """The median over rounds; of seconds that of the medians."""
    return statistics.median(statistics.median(one[name]) if name == "seconds" else one[name] for one in found)


def ratio(runs: Runs, name: str, against: str) -> float:
    """The time of one as a multiple of another's."""
    return middle(runs[name], "seconds") / middle(runs[against], "seconds")


def verdict(what: str, found: float, aim: float, most: bool) -> str:
    """A sentence that says whether the aim is met."""
    met = found <= aim if most else found >= aim
    limit = "at most" if most else "at least"
    return f"- Aim: {what}, {limit} {aim:g} ×; measured {found:.2f} ×: {'met' if met else 'not met'}."


def table(runs: Runs, unit: str, count: int, against: str) -> list[str]:
    """A row per contender, compared with one of them by time and peak memory."""
    lines = [
        f"| | ms a step, median (lowest to highest round) | {unit}/s | time against {against} | "
        "peak memory, MiB (libraries alone) | memory against it |",
        "|---" * 6 + "|",
    ]
    for name, found in runs.items():
        each = sorted(1e3 * statistics.median(one["seconds"]) for one in found)
        peak = middle(found, "peak_mib")
        cells = [
            name, f"{statistics.median(each):,.1f} ({each[0]:,.1f} to {each[-1]:,.1f})",
            f"{count / middle(found, 'seconds'):,.1f}", f"{ratio(runs, name, against):.2f} ×",
            f"{peak:,.0f} ({middle(found, 'loaded_mib'):,.0f})", f"{peak / middle(runs[against], 'peak_mib'):.2f} ×",
        ]  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def versions(runs: Runs) -> str:
    """The libraries that took part."""
    used: dict[str, str] = {}
    for found in runs.values():
        used |= {key: value for one in found for key, value in one["versions"].items()}
    return ", ".join(f"{key} {value}" for key, value in used.items()) + "."


if __name__ == "__main__":
    main()
