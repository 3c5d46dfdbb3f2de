"""AdaCAD: what the context says, against what the model says without it (Wang et al. 2024, arXiv 2409.07394).

    alpha = max(JSD(p_c, p_0), least)                    natural logarithm, so at most ln 2
    z = (1 + alpha) z_c - alpha z_0                      that is p ~ p_c (p_c / p_0)^alpha

p_c is the distribution behind the context (a history), p_0 the one without it, which is what the model has learned to
be popular. The more they differ, the more is taken off for what would be said anyway. A guidance of one fixed strength
ships with transformers (scale 1 + alpha). Items: :class:`recsys.generative.contrasted.Contrasted`. That only tokens of
some probability behind the context are contrasted (``plausible``) is an addition of ours, after contrastive decoding.

Legend: B rows, V tokens, P tokens of a bare prompt, S of a whole sequence, W beams of a prompt.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import softplus

from recsys.llm.chat import Prompt


def adaptive_contrast(
    with_context: Tensor,
    without: Tensor,
    allowed: Tensor | None = None,
    least: float = 0.0,
    plausible: float | None = None,
) -> Tensor:
    """Logits (..., V), those of the context sharpened by what it changes; -inf where nothing is allowed.

    Both distributions are taken over what is allowed alone. A token that is impossible without the context counts as
    being as likely there as the least likely one that is possible.

    Args:
        with_context: (..., V) logits or log-probabilities behind the context.
        without: (..., V) without it.
        allowed: (..., V) bool, what may come next; None: everything that is not -inf behind the context.
        least: alpha is at least this: 0 for short answers, more for long texts, in which the two seldom differ much.
        plausible: only tokens with this share of the largest probability behind the context are left; None: all.

    Raises:
        ValueError: an argument out of range, shapes that differ, NaN, or a row in which nothing may come next.
    """
    if least < 0 or not 0 <= (plausible or 0) <= 1:
        raise ValueError(f"least must be at least 0 and plausible a share, 0 to 1; found {least} and {plausible}")
    context, bare = _masked(with_context, without, allowed)
    alpha = _between(context.log_softmax(-1), bare.log_softmax(-1)).clamp(min=least).unsqueeze(-1)
    closed = context == -torch.inf
    floor = bare.masked_fill(bare == -torch.inf, torch.inf).amin(-1, keepdim=True)
    combined = (1 + alpha) * context.masked_fill(closed, 0) - alpha * bare.maximum(floor)
    if plausible is not None:
        closed |= context < context.amax(-1, keepdim=True) + math.log(max(plausible, 1e-38))
    return combined.masked_fill(closed, -torch.inf)


def divergence(with_context: Tensor, without: Tensor, allowed: Tensor | None = None) -> Tensor:
    """(...,) Jensen-Shannon divergence of the distributions of two logits (..., V), in [0, ln 2].

    Raises:
        ValueError: as :func:`adaptive_contrast`.
    """
    context, bare = _masked(with_context, without, allowed)
    return _between(context.log_softmax(-1), bare.log_softmax(-1))


class ContextTrust:
    """AdaCAD for texts: a part of ``LocalWriter(steering=[...])``, and with :meth:`over` for ``generate`` alone.

    The prompt without its context is read beside the prompt, with a cache of its own: each token costs twice.

    Args:
        bare: makes the prompt without context, such as the same task without a history.
        least, plausible: as of :func:`adaptive_contrast`.
    """

    def __init__(self, bare: Callable[[Prompt], Prompt], least: float = 0.0, plausible: float | None = None) -> None:
        self.bare, self.least, self.plausible = bare, least, plausible

    @property
    def settings(self) -> dict[str, Any]:
        """What answers depend on; of ``bare`` what it makes of a prompt that nobody sends."""
        sample = self.bare(Prompt("system", "user"))
        told = {"bare": [sample.system, sample.user], "least": self.least, "plausible": self.plausible}
        return {"context trust": told}

    def begin(
        self, model: Any, tokenizer: Any, encode: Callable[[Prompt], list[int]], prompts: Sequence[Prompt]
    ) -> Contrast:
        """What changes the logits of one call of ``generate`` for these prompts."""
        return self.over(model, [encode(self.bare(prompt)) for prompt in prompts])

    def over(self, model: Any, bare: Sequence[Sequence[int]]) -> Contrast:
        """The same for bare prompts (B lists of tokens), in the order of the prompts of the call."""
        return Contrast(model, bare, self.least, self.plausible)


class Contrast:
    """Logits of one call of ``generate``, contrasted with those behind bare prompts; a logits processor.

    Beams may be put in another order from token to token: each finds its memory again by what it has written.

    Args:
        model: a causal language model of transformers.
        bare: B prompts without context, as tokens; prompts are padded on the left by who generates.
    """

    def __init__(
        self, model: Any, bare: Sequence[Sequence[int]], least: float = 0.0, plausible: float | None = None
    ) -> None:
        if not bare or not all(bare):
            raise ValueError("each prompt needs a bare one of at least one token; found none or an empty one")
        self.model, self.bare, self.least, self.plausible = model, bare, least, plausible
        self._start = 0  # tokens of the prompts, with padding
        self._written = torch.zeros(0, 0, dtype=torch.int64)
        self._mask = torch.zeros(0, 0, dtype=torch.int64)
        self._cache: Any = None

    @torch.inference_mode()
    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """(B x W, V) logits behind ``input_ids`` (B x W, S)."""
        made = self._written.shape[1]
        goes_on = self._cache is not None and len(input_ids) == len(self._written)
        if goes_on and input_ids.shape[1] == self._start + made + 1:
            without = self._further(input_ids[:, self._start :])
        else:
            without = self._begin(input_ids)
        return adaptive_contrast(scores, without.to(scores.device), least=self.least, plausible=self.plausible)

    def _begin(self, input_ids: Tensor) -> Tensor:
        rows, beams = len(input_ids), len(input_ids) // len(self.bare)
        if beams * len(self.bare) != rows:
            raise ValueError(f"{rows} sequences are no multiple of {len(self.bare)} bare prompts: give one for each")
        width, device = max(map(len, self.bare)), input_ids.device
        ids = torch.tensor([[0] * (width - len(row)) + list(row) for row in self.bare], device=device)
        mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in self.bare], device=device)
        self._start, self._written = input_ids.shape[1], input_ids[:, :0]
        self._cache, self._mask = None, mask
        logits = self._read(ids)
        if beams > 1:
            self._cache.batch_repeat_interleave(beams)
            self._mask = mask.repeat_interleave(beams, 0)
        return logits.repeat_interleave(beams, 0)

    def _further(self, written: Tensor) -> Tensor:
        parents = self._parents(written[:, :-1])
        if not torch.equal(parents, torch.arange(len(parents), device=parents.device)):
            self._cache.batch_select_indices(parents)
        self._written = written
        self._mask = torch.nn.functional.pad(self._mask, (0, 1), value=1)
        return self._read(written[:, -1:])

    def _read(self, ids: Tensor) -> Tensor:
        """(rows, V) logits behind new tokens ``ids``, which the cache then holds as well."""
        places = (self._mask.cumsum(1) - 1).clamp(min=0)[:, -ids.shape[1] :]
        told = {"attention_mask": self._mask, "position_ids": places, "past_key_values": self._cache}
        found = self.model(input_ids=ids, use_cache=True, **told)
        self._cache = found.past_key_values
        logits: Tensor = found.logits[:, -1]
        return logits

    def _parents(self, before: Tensor) -> Tensor:
        """(rows,) which earlier sequence of the same prompt each continues."""
        beams = len(before) // len(self.bare)
        now, then = before.unflatten(0, (-1, beams)), self._written.unflatten(0, (-1, beams))
        same = (now[:, :, None] == then[:, None]).all(-1)  # (B, W, W)
        if not bool(same.any(2).all()):
            raise ValueError("a sequence goes on from none of those before it: use a new Contrast for each generation")
        first = torch.arange(0, len(before), beams, device=before.device)[:, None]
        # Where nothing was put elsewhere, each goes on from itself.
        own = torch.eye(beams, device=before.device)
        return (same.float() + own * 0.5 * same).argmax(2).add(first).flatten()


def _masked(context: Tensor, bare: Tensor, allowed: Tensor | None) -> tuple[Tensor, Tensor]:
    """Both logits in float32, -inf where nothing is allowed, checked."""
    if context.shape != bare.shape:
        raise ValueError(f"logits with and without context must have one shape, found {context.shape}, {bare.shape}")
    if bool((context.isnan() | bare.isnan()).any()):
        raise ValueError("logits hold NaN: the model has diverged or is damaged")
    found = []
    for name, logits in (("behind", context.float()), ("without", bare.float())):
        logits = logits if allowed is None else logits.masked_fill(~allowed, -torch.inf)
        none = (logits == -torch.inf).all(-1)
        if bool(none.any()):
            raise ValueError(
                f"nothing may come next in {int(none.sum())} of {none.numel()} rows: all tokens are forbidden, or have "
                f"probability zero {name} the context"
            )
        found.append(logits)
    return found[0], found[1]


def _between(one: Tensor, other: Tensor) -> Tensor:
    """JSD = 1/2 sum p (ln 2 - softplus(log q - log p)) + 1/2 sum q (ln 2 - softplus(log p - log q))."""

    def half(p: Tensor, q: Tensor) -> Tensor:
        apart = (q - p).masked_fill(p == -torch.inf, 0)
        return (p.exp() * (math.log(2) - softplus(apart))).sum(-1)

    return (0.5 * (half(one, other) + half(other, one))).clamp(0, math.log(2))
