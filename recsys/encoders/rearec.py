"""ReaRec: thought steps behind any encoder ("Think Before Recommend", arXiv 2503.22675).

The state of a token is fed back as one more input, K times: r_0 is the encoder's own state, z_k = r_{k-1} + RPE_k and
r_k the encoder's state of z_k behind the history and the earlier z. Ensemble reasoning (ERL) scores with the mean of
r_0..r_K (``combine="mean"``), progressive reasoning (PRL) with r_K (``combine="last"``); their losses are in
:mod:`recsys.auxiliaries.reasoning`. What we do differently from the released code:

- The mean of K + 1 states divides by K + 1, as the code does and the paper's equation does not.
- Every token with a target reasons, not only the newest one of a prefix. Under ``LastItem`` that is the released
  training; under ``NextItem`` one pass trains all prefixes, which share their histories' states.
- The latents pass whatever input norm and dropout the wrapped encoder has; no norm is added. One ``dropout`` sets them
  all, where the code has .2 at the input and .5 elsewhere.
- Noise has the standard deviation ``noise``, as in the code (the paper writes it as a variance).

An encoder that is ``Stepwise`` reads each latent at the cost of one token. Any other reads every history again with
the latents behind it, one row per wanted token, in which the latents count as items at the next positions, at the
time of the token they follow; an encoder that sees all then lets the items see the latents. The two ways are one model
only for an encoder without positions that sees the past. Without a cache prefer ``LastItem``: under ``NextItem`` every
prefix of a history is a row to read again, K times.

Legend: B histories, L longest of the batch, T real tokens, Q wanted tokens, D width, K thought steps.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from recsys.data.batch import PAD, Batch
from recsys.errors import DataWarning
from recsys.hooks import bind, member
from recsys.protocols import Context, Encoded, Encoder, ItemTable, Stepwise

COMBINE = ("mean", "last")
CACHE = ("auto", "always", "never")
LATENT = 2**40  # ids from here on are latent vectors, not items


@dataclass(frozen=True)
class ReasoningStates:
    """States r_0..r_K of the wanted tokens (``batch.wanted_tokens``), in their order."""

    given_by = "ReaRec(encoder)"

    states: Tensor  # (Q, K + 1, D)


@dataclass(frozen=True)
class NoisyStates:
    """The second branch of PRL, of the wanted tokens, without rows while it is off."""

    given_by = "ReaRec(encoder, noise=0.01)"

    states: Tensor  # (Q, K, D)


class ReaRec(nn.Module):
    """An encoder with K thought steps behind each history; with K = 0 it is the wrapped encoder itself.

    It gives :class:`ReasoningStates` and, if ``noise`` is set, :class:`NoisyStates`.
    ``max_length`` is that of the wrapped encoder, or without a cache K less, as the latents take the room of K items.

    Args:
        encoder: the encoder to wrap.
        steps: K, the thought steps in training; later uses have at most as many.
        combine: what a wanted token's state becomes: the "mean" of all thought steps, or the "last".
        noise: standard deviation of the noise on the latents of a second branch, which encodes the histories once more
            under a dropout of its own; None for no such branch.
        warmup: epochs of training before that branch is switched on.
        cache: "auto" (reads on where the encoder can, and histories again where it cannot), "always" or "never".
        inference_steps: thought steps in evaluation mode (default: ``steps``); may be set anew on a trained model.

    Raises:
        ValueError: a choice or number out of range, an encoder that reads code tokens or has heads, one that cannot
            read on under ``cache="always"``, or one whose ``max_length`` leaves no room for the latents that it must
            read with the history.
    """

    def __init__(
        self,
        encoder: Encoder,
        steps: int = 2,
        combine: str = "mean",
        noise: float | None = None,
        warmup: int = 2,
        cache: str = "auto",
        inference_steps: int | None = None,
    ) -> None:
        super().__init__()
        for name, value, known in (("combine", combine, COMBINE), ("cache", cache, CACHE)):
            if value not in known:
                raise ValueError(f"{name} must be one of {', '.join(known)}, found {value!r}")
        if steps < 0 or warmup < 0 or (noise is not None and noise < 0):
            raise ValueError(f"steps, warmup and noise must be at least 0, found {steps}, {warmup} and {noise}")
        if cache == "always" and not isinstance(encoder, Stepwise):
            raise ValueError(
                f"{type(encoder).__name__} has no cache (begin and extend), so cache='always' is not possible: use "
                "cache='auto', which reads the history again at every thought step"
            )
        if steps and (not member(encoder, "reads_behind") or getattr(encoder, "width", encoder.dim) != encoder.dim):
            raise ValueError(
                f"{type(encoder).__name__} cannot read its own states as input: wrap an encoder of items, such as "
                "SASRec (ParallelHeads goes outside)"
            )
        self.encoder, self.steps, self.combine, self.noise, self.warmup = encoder, steps, combine, noise, warmup
        self.cache, self.inference_steps = cache, inference_steps
        self.sees, self.dim = encoder.sees, encoder.dim
        self.needs: frozenset[str] = member(encoder, "needs")
        inner: frozenset[type] = member(encoder, "gives") if steps == 0 else frozenset()
        self.gives = inner | {ReasoningStates} | (set() if noise is None else {NoisyStates})
        self.cached = cache != "never" and isinstance(encoder, Stepwise)
        self.max_length = encoder.max_length - (0 if self.cached else steps)
        if self.max_length < 1:
            raise ValueError(
                f"{steps} thought steps leave no room for items in max_length={encoder.max_length} of "
                f"{type(encoder).__name__}, which reads them with the history: raise max_length, or use "
                "fewer thought steps"
            )
        self.position = nn.Parameter(torch.empty(steps, encoder.dim)) if steps else None
        self.epoch = 0
        self.reencoded = 0  # histories read again so far
        self._check_steps(self._default_steps(False))

    def bind(self, context: Context) -> None:
        """Initialise the wrapped encoder, then the embeddings of the thought steps (from torch's seeded generator)."""
        bind(self.encoder, context)
        if self.position is not None:
            nn.init.normal_(self.position, std=0.02)

    def on_epoch(self, epoch: int) -> None:
        """Remember the epoch (the first is 0): the noisy branch waits for ``warmup`` of them."""
        self.epoch = epoch

    def forward(self, batch: Batch, items: ItemTable, steps: int | None = None) -> Encoded:
        """States of all real tokens; those of ``batch.wanted_tokens`` are combined from ``steps`` + 1 states.

        Args:
            steps: thought steps, at most K (default: K in training, ``inference_steps`` in evaluation).

        Raises:
            ValueError: ``steps`` is negative or above K.
        """
        steps = self._default_steps(self.training) if steps is None else steps
        self._check_steps(steps)
        encoded, states = self._reason(batch, items, steps, None)
        # What the wrapped encoder says besides has not reasoned, so that no loss may take it for the answer.
        reasoned = ReasoningStates(torch.stack(states, 1))
        given: tuple[Any, ...] = (*(() if steps else encoded.given), reasoned)
        if self.noise is not None:
            on = self.training and self.epoch >= self.warmup and steps > 0
            noisy = self._reason(batch, items, steps, states)[1][1:] if on else []
            given += (NoisyStates(torch.stack(noisy, 1) if on else states[0].new_zeros(0, steps, self.dim)),)
        if steps == 0:
            return replace(encoded, given=given)
        combined = reasoned.states.mean(1) if self.combine == "mean" else states[-1]
        tokens = encoded.tokens.index_copy(0, batch.wanted_tokens, combined.to(encoded.tokens.dtype))
        return Encoded(batch, tokens, given)

    def extra_repr(self) -> str:
        """Thought steps, and whether they are read from a cache, for printed models."""
        again = f"no cache: every thought step reads the history again, {self.reencoded} rows so far"
        way = "cached" if self.cached else again
        asked = self._default_steps(training=False)
        return f"steps={self.steps} ({asked} in evaluation), combine={self.combine}, noise={self.noise}, {way}"

    def _reason(
        self, batch: Batch, items: ItemTable, steps: int, clean: list[Tensor] | None
    ) -> tuple[Encoded, list[Tensor]]:
        """What the encoder gives, and r_0..r_K (Q, D) each; noisy ones, fed from ``clean`` states, if those are given.

        Noise does not compound through the states: each noisy latent is made from the clean state before it, and
        reaches later thought steps only through what the encoder remembers of it (as in the released code).
        """
        reader = (_Cached if self.cached and steps else _Rereading)(self, batch, items)
        states = [reader.encoded.tokens[batch.wanted_tokens]]
        for step in range(steps if len(batch.wanted_tokens) else 0):
            assert self.position is not None
            latent = (states if clean is None else clean)[step] + self.position[step]
            if clean is not None:
                latent = latent + torch.randn_like(latent) * (self.noise or 0.0)
            states.append(reader.read(latent))
        return reader.encoded, states + states[:1] * (steps + 1 - len(states))

    def _default_steps(self, training: bool) -> int:
        return self.steps if training or self.inference_steps is None else self.inference_steps

    def _check_steps(self, steps: int) -> None:
        if not 0 <= steps <= self.steps:
            raise ValueError(
                f"the number of thought steps must lie between 0 and the {self.steps} that are trained, found {steps}"
            )


class _Cached:
    """Reads latents behind the wanted tokens from the encoder's memory."""

    def __init__(self, model: ReaRec, batch: Batch, items: ItemTable) -> None:
        assert isinstance(model.encoder, Stepwise)
        self.encoder = model.encoder
        self.encoded, self.memory = self.encoder.begin(batch, items)

    def read(self, latent: Tensor) -> Tensor:
        """(Q, D) states of one more latent (Q, D)."""
        state, self.memory = self.encoder.extend(latent, self.memory)
        return state


class _Rereading:
    """Reads each wanted token's history anew with all its latents so far behind it."""

    def __init__(self, model: ReaRec, batch: Batch, items: ItemTable) -> None:
        self.model, self.batch, self.items = model, batch, items
        self.encoded = model.encoder(batch, items)
        self.latents: list[Tensor] = []

    def read(self, latent: Tensor) -> Tensor:
        """(Q, D) states of one more latent (Q, D)."""
        self.latents.append(latent)
        latents = torch.stack(self.latents, 1)
        longer = _longer(self.batch, latents.shape[1], whole=self.model.sees == "all")
        order = longer.lengths.argsort(stable=True)  # rows of similar length together: the encoder pads in groups
        longer = longer.select(order)
        _count(self.model, len(longer))
        extended: Any = _WithLatents(self.items, latents.flatten(0, 1))
        encoded = self.model.encoder(longer, extended)
        return torch.empty_like(latent).index_copy(0, order, encoded.tokens[longer.last].to(latent.dtype))


def _count(model: ReaRec, rows: int) -> None:
    if model.reencoded == 0 and model.cache == "auto":
        name = type(model.encoder).__name__
        warnings.warn(f"{name} has no cache: every thought step reads the history again", DataWarning, stacklevel=2)
    model.reencoded += rows


def _longer(batch: Batch, count: int, whole: bool) -> Batch:
    """A row per wanted token: its history up to it (or the ``whole`` one) and ``count`` latents.

    Each latent takes the values of the token that it follows (its time, its target's time); the newest its target.
    """
    rows, position = batch.flat[batch.wanted_tokens] // batch.ids.shape[1], batch.positions[batch.wanted_tokens]
    lengths = batch.lengths[rows] if whole else position + 1
    column = torch.arange(int(lengths.max()) + count, device=batch.ids.device)
    source = torch.where(column < lengths[:, None], column, position[:, None])  # (Q, L') where a value is taken from
    inside = column < (lengths + count)[:, None]
    latent = inside & (column >= lengths[:, None])

    def lay(values: Tensor) -> Tensor:
        outside = ~inside.view(*inside.shape, *[1] * (values.dim() - 2))
        return values[rows[:, None], source].masked_fill(outside, 0)

    names = ("targets", "times", "target_times")
    laid: dict[str, Any] = {name: lay(getattr(batch, name)) for name in names if getattr(batch, name) is not None}
    if "targets" in laid:
        laid["targets"] = laid["targets"] * (column == (lengths + count - 1)[:, None])
    ids = lay(batch.ids).masked_fill(latent, PAD)
    ids[latent] = LATENT + torch.arange(len(rows) * count, device=ids.device)
    laid["features"] = {name: lay(values) for name, values in batch.features.items()}
    plain = batch.replace(wanted=None, weights=None, importance=None).select(rows)
    longer = plain.replace(ids=ids, lengths=lengths + count, **laid)
    return longer.replace(wanted=longer.last)  # also of tokens without a target


class _WithLatents:
    """An item table that also knows latent vectors (n, D), under the ids ``LATENT`` + 0..n-1; no scale on those."""

    def __init__(self, items: ItemTable, latents: Tensor) -> None:
        self.items, self.latents = items, latents

    def embed(self, ids: Tensor) -> Tensor:
        """Input vectors (..., D) of item rows and latents (...)."""
        latent = ids >= LATENT
        vectors = self.items.embed(ids.masked_fill(latent, 1))
        return vectors.index_put((latent,), self.latents[ids[latent] - LATENT].to(vectors.dtype))

    def __getattr__(self, name: str) -> Any:
        return getattr(self.items, name)  # all else is the items' own
