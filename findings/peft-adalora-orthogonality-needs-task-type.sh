#!/usr/bin/env bash
# peft 0.21.2: AdaLoRA loses its orthogonality term where no task type is given, though the model returns a loss.
#
# AdaLoRA adds orth_reg_weight times the distance of its factors from orthogonal ones to the loss of the wrapped model.
# get_peft_model(model, AdaLoraConfig(...)) without task_type gives a PeftModel, whose forward calls the base model
# itself and goes past the tuner that adds the term: the loss is that of the labels alone, whatever the weight. With
# task_type="CAUSAL_LM" the same model, config and seed give a PeftModelForCausalLM and the term is there. Nothing warns,
# training goes on, and ranks are allocated from factors that nothing holds orthogonal.
#
# Seen with Python 3.11 on Linux x86-64, torch 2.13.0, transformers 5.23.0; weights .5 and 50:
#   task type CAUSAL_LM: losses 4.4 and 102.8; none: 3.4 and 3.4
# What helps: pass task_type, or add the term yourself.
set -euo pipefail
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/env"
"$work/env/bin/pip" install --quiet --disable-pip-version-check \
  "torch==2.13.0" "transformers==5.23.0" "peft==0.21.2" "accelerate==1.15.0" "numpy==2.4.6"
cd "$work"
HF_HUB_OFFLINE=1 "$work/env/bin/python" - <<'PY'
import torch
from peft import AdaLoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

ids = torch.arange(6)[None] + 2
sizes = dict(vocab_size=32, hidden_size=16, intermediate_size=32, num_hidden_layers=2)


def losses(task_type):
    found = []
    for weight in (0.5, 50.0):
        torch.manual_seed(0)
        model = LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=2, num_key_value_heads=2))
        config = AdaLoraConfig(task_type=task_type, total_step=10, init_r=4, target_r=2, orth_reg_weight=weight,
                               target_modules=["q_proj"])
        with torch.no_grad():
            found.append(float(get_peft_model(model, config)(input_ids=ids, labels=ids).loss))
    return found


told, bare = losses("CAUSAL_LM"), losses(None)
print("task type CAUSAL_LM:", [round(one, 1) for one in told], "none:", [round(one, 1) for one in bare])
assert told[1] > told[0] + 10, "changed: the term with a task type"
assert abs(bare[0] - bare[1]) < 1e-6 and bare[0] < told[0], "changed: the term without a task type"
print("as described")
PY
