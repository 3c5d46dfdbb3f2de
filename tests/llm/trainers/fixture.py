"""The small language model and the encoder that tests of training over sequences use."""

import torch
from torch import nn

from recsys.encoders.sasrec import SASRec
from recsys.items.ids import IdItems
from recsys.objectives.softmax import FullSoftmax
from recsys.recommenders.composed import Recommender

VOCABULARY = 64


def llama(seed=0, tied=False):
    """A causal language model of two layers with random weights, in evaluation mode."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=4, max_position_embeddings=64, attn_implementation="eager", tie_word_embeddings=tied,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


def ids(count=3, length=6, seed=1):
    return torch.randint(2, VOCABULARY, (count, length), generator=torch.Generator().manual_seed(seed))


def logits(model, tokens=None):
    return model(input_ids=ids() if tokens is None else tokens, use_cache=False).logits


def likelihood(model, tokens=None):
    """The log-likelihood of tokens 1.. of each row."""
    tokens = ids() if tokens is None else tokens
    log_probs = logits(model, tokens)[:, :-1].log_softmax(-1)
    return log_probs.gather(2, tokens[:, 1:, None]).sum()


def stirred(adapter, seed=2, size=0.3):
    """The parameters of an attached adapter, drawn anew: as if they had been trained."""
    draw = torch.Generator().manual_seed(seed)
    for parameter in adapter.parameters_of():
        parameter.data.copy_(size * torch.randn(parameter.shape, generator=draw))


def plain(seed=3):
    """Two equal blocks of linear layers."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Sequential(nn.Linear(6, 6), nn.Tanh()), nn.Sequential(nn.Linear(6, 6), nn.Tanh()))


class Adapted(Recommender):
    """A recommender whose encoder has an adapter."""

    def __init__(self, items, encoder, objective, adapter):
        super().__init__(items, encoder, objective)
        self.adapter = adapter

    def bind(self, context):
        self.adapter.detach()
        super().bind(context)
        torch.manual_seed(0)
        self.adapter.attach(self.encoder)
        self.fresh = {name: one.clone() for name, one in self.encoder.named_buffers()}


def adapted(adapter):
    return Adapted(IdItems(8), SASRec(dim=8, num_layers=2, num_heads=1, max_length=6), FullSoftmax(), adapter)
