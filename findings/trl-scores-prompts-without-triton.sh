#!/usr/bin/env bash
# trl 1.16.0: on a CPU the SFT trainer scores the whole vocabulary at every prompt token that its loss then leaves out.
#
# With completion_only_loss the labels of a prompt count for nothing. The trainer's fused head picks the counted
# positions out before the product with the vocabulary only on devices where it uses Triton; elsewhere every position is
# multiplied, forwards and backwards, and masked afterwards. The loss is the same, the work is not: with a large
# vocabulary and long prompts (a user's history) and short answers (an item) most of a step is spent on it. No option
# changes that. A comparison of training speed on a CPU that does not say so measures this.
#
# Seen with Python 3.11 on Linux x86-64, torch 2.13.0 for the CPU, transformers 5.24.0, a model that is nearly all head:
#   a step over 4 answer tokens takes 5.4 times the multiplications behind 36 prompt tokens that it takes behind 4
# What helps: a step of your own that indexes hidden states before the head.
set -euo pipefail
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/env"
"$work/env/bin/pip" install --quiet --disable-pip-version-check \
  "torch==2.13.0" "transformers==5.24.0" "trl==1.16.0" "accelerate==1.15.0" "datasets==5.2.0" "numpy==2.4.6"
cd "$work"
HF_HUB_OFFLINE=1 CUDA_VISIBLE_DEVICES="" "$work/env/bin/python" - <<'PY'
import torch
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from torch.utils.flop_counter import FlopCounterMode
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from trl import SFTConfig, SFTTrainer

VOCABULARY, WIDTH, ANSWER = 20_000, 32, 4
words = Tokenizer(models.WordLevel({f"w{n}": n for n in range(VOCABULARY)}, unk_token="w0"))
words.pre_tokenizer = pre_tokenizers.Whitespace()
tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="w0", pad_token="w1", eos_token="w2")


def products(prompt):
    """Multiplications and additions of one step over two rows."""
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=WIDTH, intermediate_size=WIDTH, num_hidden_layers=1, num_attention_heads=2,
        pad_token_id=1, bos_token_id=None, eos_token_id=2,
    ))
    row = {"prompt": " ".join(f"w{n + 10}" for n in range(prompt)), "completion": " " + " ".join(["w7"] * (ANSWER - 1))}
    config = SFTConfig(
        output_dir="out", max_steps=1, per_device_train_batch_size=2, completion_only_loss=True, use_cpu=True,
        report_to=[], save_strategy="no", disable_tqdm=True, bf16=False, gradient_checkpointing=False,
    )
    trainer = SFTTrainer(model, config, train_dataset=Dataset.from_list([row] * 2), processing_class=tokenizer)
    with FlopCounterMode(display=False) as counter:
        trainer.train()
    return counter.get_total_flops()


short, long = products(4), products(36)
head = 3 * 2 * WIDTH * VOCABULARY * ANSWER * 2  # forwards and twice backwards, of the answers alone
print(f"4 prompt tokens {short / head:.1f}, 36 prompt tokens {long / head:.1f} times the head's work on the answers")
print(f"ratio {long / short:.1f}")
assert long / short > 4, "changed: a prompt no longer costs scores of the vocabulary"
print("as described")
PY
