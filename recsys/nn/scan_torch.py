"""The selective scan in plain torch, forward and backward: on any device, in float32 or float64.

Rows are cut into chunks of up to S tokens, and the state in which each chunk begins is saved. Going back, the states
inside a chunk are computed again from there. One after another, the chunks of a row hand their state on ("torch").
At once ("chunked"), every chunk first runs from zero, which gives what it adds to the state that comes in; a short
loop over the chunks then gives each its true beginning, and all run again. That is twice the work in S + L / S time
steps instead of L, and all factors stay in (0, 1]. The way back is the same in reverse.

Legend: T tokens, R rows, E channels, N states per channel, S tokens of a chunk, M chunks, n chunks of a part.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

STEPS = 16  # tokens between saved states
BUFFER = 2**22  # numbers in the states of all tokens of the chunks worked on together: what a CPU's caches like
BUFFER_ELSEWHERE = 2**26  # the same on a GPU, which wants few and large operations


@dataclass(frozen=True)
class Chunks:
    """Rows cut into chunks. Longer rows come first, so the rows that have a c-th chunk are the first ones.

    The chunk of level c (tokens c S and on) of the r-th longest row is number ``offsets[c] + r`` of the M.
    """

    index: Tensor  # (S, M) int64 token, T where the chunk has no more
    offsets: list[int]  # number of the first chunk of each level, then M

    @classmethod
    def of(cls, start: Tensor) -> Chunks:
        """The chunks of rows start[r] to start[r + 1]."""
        lengths, order = start.diff().sort(descending=True, stable=True)
        longest = int(lengths[0]) if len(lengths) else 0
        steps = torch.arange(min(STEPS, longest), device=start.device).unsqueeze(1)
        levels = torch.arange(0, longest, STEPS, device=start.device)
        counts = (lengths > levels.unsqueeze(1)).sum(1)
        offsets = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
        row = torch.arange(int(offsets[-1]), device=start.device) - offsets[:-1].repeat_interleave(counts)
        position = levels.repeat_interleave(counts) + steps
        index = torch.where(position < lengths[row], start[:-1][order][row] + position, start[-1])
        return cls(index, offsets.tolist())

    def gather(self, tokens: Tensor) -> Tensor:
        """(T, ...) to (S, M, ...), zeros where there is no token: a step of size 0, which changes no state."""
        return torch.cat([tokens, tokens.new_zeros(1, *tokens.shape[1:])])[self.index]

    def scatter(self, chunks: Tensor, count: int) -> Tensor:
        """(S, M, ...) back to (T, ...)."""
        tokens = chunks.new_empty(count + 1, *chunks.shape[2:])
        tokens[self.index.flatten()] = chunks.flatten(0, 1)
        return tokens[:-1]

    def chains(self, size: int) -> list[list[slice]]:
        """Parts that hand their state on: the levels of as many rows as ``BUFFER`` allows with states of ``size``."""
        rows = [stop - first for first, stop in pairwise(self.offsets)]
        chains = []
        for part in self._cut(rows[0] if rows else 0, size):
            deep = [count for count in rows if count > part.start]
            chains.append(
                [slice(first + part.start, first + min(part.stop, n)) for first, n in zip(self.offsets, deep)]
            )
        return chains

    def parts(self, size: int) -> list[list[slice]]:
        """All chunks in parts as large as ``BUFFER`` allows, each a chain of its own."""
        return [[part] for part in self._cut(self.offsets[-1], size)]

    def _cut(self, total: int, size: int) -> list[slice]:
        room = BUFFER if self.index.device.type == "cpu" else BUFFER_ELSEWHERE
        count = max(1, room // max(size * len(self.index), 1))
        return [slice(first, min(first + count, total)) for first in range(0, total, count)]

    def neighbours(self) -> list[tuple[slice, slice]]:
        """For each level but the last: the chunks that have a successor, and these successors."""
        return [
            (slice(first, first + last - middle), slice(middle, last))
            for first, middle, last in zip(self.offsets, self.offsets[1:], self.offsets[2:])
        ]


def forward(
    x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, start: Tensor, chunked: bool
) -> tuple[Tensor, Tensor]:
    """Outputs (T, E) and the states (M, N, E) in which the chunks begin."""
    chunks = Chunks.of(start)
    xs, deltas, bs, cs = (chunks.gather(value) for value in (x, delta, B, C))
    driven, rates = deltas * xs, _rates(A)
    saved = x.new_zeros(chunks.offsets[-1], *rates.shape)
    if chunked:
        ends = torch.zeros_like(saved)
        for (part,) in chunks.parts(A.numel()):
            _advance(deltas[:, part], driven[:, part], rates, bs[:, part], ends[part])
        total = deltas.sum(0).unsqueeze(1)
        for before, after in chunks.neighbours():
            torch.addcmul(ends[before], torch.exp2(total[before] * rates), saved[before], out=saved[after])
        del ends
    y = xs * D
    for chain in chunks.parts(A.numel()) if chunked else chunks.chains(A.numel()):
        for number, part in enumerate(chain):
            state = saved[part].clone()
            _advance(deltas[:, part], driven[:, part], rates, bs[:, part], state, cs[:, part], y[:, part])
            for after in chain[number + 1 : number + 2]:
                saved[after] = state[: after.stop - after.start]
    return chunks.scatter(y, len(x)), saved


def backward(
    x: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    start: Tensor,
    dy: Tensor,
    saved: Tensor,
    chunked: bool,
) -> tuple[Tensor, ...]:
    """Gradients of x, delta, A, B, C, D; ``saved`` from :func:`forward`."""
    chunks = Chunks.of(start)
    deltas, bs, cs, dys = (chunks.gather(value) for value in (delta, B, C, dy))
    driven = chunks.gather(delta * x)
    exits = _exits(chunks, deltas, _rates(A), cs, dys) if chunked else None  # (M, N, E)
    d_driven, d_delta, db, dc = (torch.empty_like(value) for value in (deltas, deltas, bs, cs))
    slopes = A.T.contiguous()
    d_slopes = torch.zeros_like(slopes)
    for chain in chunks.parts(A.numel()) if chunked else chunks.chains(A.numel()):
        carried = saved[:0]
        for part in reversed(chain):
            if exits is not None:
                gradient = exits[part]
            else:
                gradient = torch.zeros_like(saved[part])
                gradient[: len(carried)] = carried
            inputs = [value[:, part] for value in (deltas, driven, bs, cs, dys)]
            outputs = [value[:, part] for value in (d_driven, d_delta, db, dc)]
            d_slopes += _retreat(inputs, slopes, saved[part], gradient, outputs)
            carried = gradient
    back = chunks.scatter(d_driven, len(x))
    d_delta_flat = chunks.scatter(d_delta, len(x)).addcmul_(back, x)
    dx = back.mul_(delta).addcmul_(dy, D)
    return dx, d_delta_flat, d_slopes.T, chunks.scatter(db, len(x)), chunks.scatter(dc, len(x)), (dy * x).sum(0)


def _rates(A: Tensor) -> Tensor:
    """(N, E) for which 2^(delta rate) is the decay: exp2 is several times faster than exp on a CPU."""
    return (A.T / math.log(2)).contiguous()


def _advance(
    deltas: Tensor,
    driven: Tensor,
    rates: Tensor,
    bs: Tensor,
    state: Tensor,
    cs: Tensor | None = None,
    y: Tensor | None = None,
) -> None:
    """All time steps of n chunks: changes ``state`` (n, N, E) and adds what it reads out to ``y`` (S, n, E)."""
    decay = torch.empty_like(state)
    for step in range(len(deltas)):
        torch.mul(deltas[step].unsqueeze(1), rates, out=decay).exp2_()
        state.mul_(decay).addcmul_(driven[step].unsqueeze(1), bs[step].unsqueeze(2))
        if y is not None and cs is not None:
            y[step] += torch.bmm(cs[step].unsqueeze(1), state).squeeze(1)


def _retreat(
    inputs: Sequence[Tensor], slopes: Tensor, first: Tensor, gradient: Tensor, outputs: Sequence[Tensor]
) -> Tensor:
    """All time steps of n chunks, last to first: ``gradient`` (n, N, E) goes from behind the chunk to in front of it.

    Writes the gradients of the driven term, delta, B and C into ``outputs`` and returns that of the slopes (N, E).
    """
    (deltas, driven, bs, cs, dys), (d_driven, d_delta, db, dc) = inputs, outputs
    states = first.new_empty(len(deltas) + 1, *first.shape)
    decays, product = torch.empty_like(states[1:]), torch.empty_like(first)
    rates = slopes / math.log(2)
    states[0] = first
    for step, decay in enumerate(decays):
        torch.mul(deltas[step].unsqueeze(1), rates, out=decay).exp2_()
        torch.mul(states[step], decay, out=states[step + 1])
        states[step + 1].addcmul_(driven[step].unsqueeze(1), bs[step].unsqueeze(2))
        dc[step] = torch.mul(states[step + 1], dys[step].unsqueeze(1), out=product).sum(2)
    sums = torch.zeros_like(first)
    for step in range(len(deltas) - 1, -1, -1):
        gradient.addcmul_(dys[step].unsqueeze(1), cs[step].unsqueeze(2))
        db[step] = torch.mul(gradient, driven[step].unsqueeze(1), out=product).sum(2)
        d_driven[step] = torch.bmm(bs[step].unsqueeze(1), gradient).squeeze(1)
        gradient.mul_(decays[step])
        torch.mul(states[step], gradient, out=product)
        sums.addcmul_(product, deltas[step].unsqueeze(1))
        d_delta[step] = product.mul_(slopes).sum(1)
    return sums.sum(0)


def _exits(chunks: Chunks, deltas: Tensor, rates: Tensor, cs: Tensor, dys: Tensor) -> Tensor:
    """The gradient (M, N, E) of the state behind each chunk."""
    begins = rates.new_zeros(chunks.offsets[-1], *rates.shape)  # what each chunk itself sends to the state before it
    for (part,) in chunks.parts(rates.numel()):
        gradient, decay = begins[part], torch.empty_like(begins[part])
        for step in range(len(deltas) - 1, -1, -1):
            gradient.addcmul_(dys[step, part].unsqueeze(1), cs[step, part].unsqueeze(2))
            gradient.mul_(torch.mul(deltas[step, part].unsqueeze(1), rates, out=decay).exp2_())
    total = deltas.sum(0).unsqueeze(1)
    exits = torch.zeros_like(begins)
    for before, after in reversed(chunks.neighbours()):
        torch.addcmul(begins[after], torch.exp2(total[after] * rates), exits[after], out=exits[before])
    return exits
