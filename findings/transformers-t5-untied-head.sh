#!/usr/bin/env bash
# transformers 5.23.0: a T5 made from a config that says tie_word_embeddings=False has a tied output head all the same.
#
# T5Config(tie_word_embeddings=False) keeps "do not scale the decoder's outputs" of it (config.scale_decoder_outputs) and
# sets itself back to True, so T5ForConditionalGeneration(config).lm_head is the embedding table itself: training from
# scratch in the layout of T5 1.1 trains one table where two were asked for. A model whose head was untied by hand is
# saved and read by from_pretrained as it was (the message then advises the very setting that has no effect), but
# load_state_dict into a model made from its own saved config writes embedding and head into one tensor, one over the
# other, and reports that all keys matched.
#
# Seen with Python 3.11 on Linux x86-64, torch 2.13.0:
#   from config: one tensor True, config.tie_word_embeddings True, logits 4.0 times those of a tied model (width 16)
#   from_pretrained: head kept True, separate True
#   load_state_dict: all keys matched, head as saved True, embeddings as saved False
# What helps: give lm_head a Parameter of its own after construction, before any weights are loaded.
set -euo pipefail
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/env"
"$work/env/bin/pip" install --quiet --disable-pip-version-check "torch==2.13.0" "transformers==5.23.0" "numpy==2.4.6"
cd "$work"
HF_HUB_OFFLINE=1 "$work/env/bin/python" - <<'PY'
import torch
from transformers import T5Config, T5ForConditionalGeneration


def made(tie):
    torch.manual_seed(0)
    sizes = dict(vocab_size=32, d_model=16, d_kv=4, d_ff=16, num_layers=1, num_heads=2, decoder_start_token_id=0)
    return T5ForConditionalGeneration(T5Config(tie_word_embeddings=tie, **sizes)).eval()


def one_tensor(model):
    return model.lm_head.weight.data_ptr() == model.shared.weight.data_ptr()


untied, tied = made(False), made(True)
given = dict(input_ids=torch.tensor([[1, 2, 3]]), decoder_input_ids=torch.tensor([[0, 4]]))
with torch.no_grad():
    ratio = float((untied(**given).logits / tied(**given).logits).mean())
print("from config: one tensor", one_tensor(untied), "tie_word_embeddings", untied.config.tie_word_embeddings, "ratio", round(ratio, 3))
assert one_tensor(untied) and untied.config.tie_word_embeddings and abs(ratio - 4) < 1e-3, "changed: the head of a T5"

untied.lm_head.weight = torch.nn.Parameter(torch.randn_like(untied.lm_head.weight))
untied.save_pretrained("model")
read = T5ForConditionalGeneration.from_pretrained("model")
kept = torch.equal(read.lm_head.weight, untied.lm_head.weight)
print("from_pretrained: head kept", kept, "separate", not one_tensor(read))
assert kept and not one_tensor(read), "changed: reading an untied T5"

again = T5ForConditionalGeneration(T5Config.from_pretrained("model"))
answer = again.load_state_dict(untied.state_dict())
same = [torch.equal(getattr(again, name).weight, getattr(untied, name).weight) for name in ("lm_head", "shared")]
print("load_state_dict:", answer, "head as saved", same[0], "embeddings as saved", same[1])
assert same == [True, False], "changed: weights of an untied T5 in a model made from its config"
print("as described")
PY
