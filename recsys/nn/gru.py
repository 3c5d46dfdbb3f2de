"""A GRU over flat tokens, one history per row, that spends nothing on padding.

    r = s(W_ir x + W_hr h), q = s(W_iq x + W_hq h), n = tanh(W_in x + r * (W_hn h)), h' = (1 - q) * n + q * h

The gates, their order and the weights are those of ``torch.nn.GRU(bias=False)``, which stays the owner of the weights
and does the work on a GPU. On a CPU torch records a dozen operations for every time step; here the backward pass is
written out, so each costs one product and a few operations in place. Legend: T tokens, R rows, X input width, D width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.utils.rnn import PackedSequence


@dataclass(frozen=True)
class Steps:
    """Tokens in the order in which all rows are worked on at once: by time step, longest row first.

    ``index`` (T,) says which flat token comes when; ``counts`` how many rows are still running at each time step.
    """

    index: Tensor
    counts: list[int]

    @staticmethod
    def of(lengths: Tensor) -> Steps:
        """The time steps of consecutive rows of ``lengths`` (R,) tokens each."""
        sizes, order = lengths.sort(descending=True, stable=True)
        starts = (lengths.cumsum(0) - lengths)[order]
        longest = int(sizes[0]) if len(sizes) else 0
        step = torch.arange(longest, device=lengths.device)[:, None]
        running = step < sizes
        return Steps((starts + step)[running], running.sum(1).tolist())


def run_gru(gru: nn.GRU, tokens: Tensor, steps: Steps) -> Tensor:
    """States (T, D) of ``tokens`` (T, X), each row from zero, by a one-layer ``gru`` without biases.

    Raises:
        ValueError: ``gru`` has biases, several layers or two directions.
    """
    if gru.bias or gru.num_layers != 1 or gru.bidirectional:
        raise ValueError("run_gru works for one layer in one direction without biases: nn.GRU(..., bias=False)")
    if len(tokens) == 0:
        return tokens.new_zeros(0, gru.hidden_size)
    ordered = tokens[steps.index]
    states = _by_hand(gru, ordered, steps) if tokens.device.type == "cpu" else _by_torch(gru, ordered, steps)
    return torch.empty_like(states).index_copy(0, steps.index, states)


def _by_torch(gru: nn.GRU, ordered: Tensor, steps: Steps) -> Tensor:
    states: Tensor = gru(PackedSequence(ordered, torch.tensor(steps.counts)))[0].data
    return states


def _by_hand(gru: nn.GRU, ordered: Tensor, steps: Steps) -> Tensor:
    weights = dict(gru.named_parameters())
    w_in, w_h = weights["weight_ih_l0"], weights["weight_hh_l0"]
    with torch.autocast("cpu", enabled=False):  # float32, as the weights are
        states: Tensor = _Gru.apply(ordered.type_as(w_h), w_in, w_h, steps.counts)
    return states


class _Gru(torch.autograd.Function):
    """The recurrence on tokens ordered by time step."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, w_in: Tensor, w_h: Tensor, counts: list[int]) -> Tensor:
        width = w_h.shape[1]
        gates, candidate = x @ w_in.T, x.new_empty(len(x), width)  # (T, 3 D): r, q, n; (T, D): W_hn h
        states = x.new_empty(len(x), width)
        h, products = x.new_zeros(counts[0], width), x.new_empty(counts[0], 3 * width)
        begin = 0
        for count in counts:
            part, product = slice(begin, begin + count), products[:count]
            torch.mm(h[:count], w_h.T, out=product)
            gate, new = gates[part, : 2 * width], gates[part, 2 * width :]
            gate.add_(product[:, : 2 * width]).sigmoid_()
            candidate[part] = product[:, 2 * width :]
            new.addcmul_(gate[:, :width], candidate[part]).tanh_()
            h = torch.lerp(new, h[:count], gate[:, width:], out=states[part])
            begin += count
        ctx.counts = counts
        ctx.save_for_backward(x, w_in, w_h, gates, candidate, states)
        return states

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, w_in, w_h, gates, candidate, states = ctx.saved_tensors
        with torch.autocast("cpu", enabled=False):  # float32 also where backward() is called under autocast
            return (*_gradients(x, w_in, w_h, gates, candidate, states, ctx.counts, gradient), None)


def _gradients(
    x: Tensor,
    w_in: Tensor,
    w_h: Tensor,
    gates: Tensor,
    candidate: Tensor,
    states: Tensor,
    counts: list[int],
    gradient: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x, W_i and W_h; arguments as the forward pass saved them."""
    r, q, new = gates.chunk(3, dim=1)
    before = _shifted(states, counts)
    by_new = (1 - q) * (1 - new * new)
    slopes = torch.stack([by_new * candidate * r * (1 - r), (before - new) * q * (1 - q), by_new * r], 1)  # (T,3,D)
    at_states = gradient.clone()  # (T, D): becomes the gradient that reaches each state, from all later ones too
    end, later = len(x), None
    for count in reversed(counts):
        part = slice(end - count, end)
        g, slope = at_states[part], slopes[part]
        if later is not None:
            g[: len(later)] += later
        slope.mul_(g.unsqueeze(1))
        later = torch.addmm(g * q[part], slope.flatten(1), w_h)
        end -= count
    to_h = slopes.flatten(1)  # (T, 3 D): the gradient of W_h h
    to_w_h = to_h.T @ before
    to_h[:, 2 * w_h.shape[1] :] = at_states * by_new  # now that of W_in x
    return to_h @ w_in, to_h.T @ x, to_w_h


def _shifted(states: Tensor, counts: list[int]) -> Tensor:
    """(T, D): the state before each of ``states``, zero before the first."""
    sizes = torch.tensor(counts, device=states.device)
    step_before = torch.arange(counts[0], len(states), device=states.device)
    step_before -= sizes[:-1].repeat_interleave(sizes[1:])
    return torch.cat([states.new_zeros(counts[0], states.shape[1]), states[step_before]])
