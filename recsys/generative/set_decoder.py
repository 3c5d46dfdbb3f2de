"""REG4Rec's decoder: the codes of an item as a set, in an order that is chosen on the way.

After "REG4Rec: Reasoning-Enhanced Generative Model for Large-Scale Recommendation Systems" (arXiv 2508.15308), whose
text was not at hand: **a reconstruction** from its abstract and summaries of it. Known are the parallel unordered codes
and that the next reasoning step is selected by confidence (CRSS); the rest is ours. With codes c of M codebooks, a path
is an order pi of the codebooks, and

    log p(item | pi) = sum_s log p_s^{pi_s}(c^{pi_s}),    p_s^r(j) = softmax_j( cos(MLP_r(h_s), P_rj) / temperature )

with h_s the state of a query token that reads the set of the first s tokens and the history. The loss of a target is

    mean_s [ -log p_s^{pi_s}(c^{pi_s}) - others * mean over the codebooks r left behind pi_s of log p_s^r(c^r) ]

whose second term makes the confidences of all heads comparable. In training pi is, for a share of the targets that
rises to ``own``, the order that the model itself prefers on the target (the head that gives its code the most
probability goes next), and otherwise drawn uniformly: choosing always would lock the first favourites in. Sums of
log-probabilities of different orders are not calibrated against each other.

A token is the vector of its code and one for its codebook; there is no position. With ``order_free`` all tokens of a
set see each other and a fresh query token, so that what comes next depends on the set alone; without, each sees those
chosen before it. The query token also gets the state at the target's position (``newest``), without which a causal
encoder's states do not tell which of them is the newest.

Legend: B histories, T targets, M codebooks, K codes of one, C codes of all, V tokens, W beams, G paths, s chosen
tokens, D width.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recsys.data.batch import PAD, Batch
from recsys.encoders.tokens import check_codes
from recsys.generative.set_layers import Beams, Look, Reading, SetLayer, of_parents
from recsys.nn.dropout import Dropout
from recsys.nn.initialise import initialise
from recsys.nn.softmax import cross_entropy, log_sum_exp
from recsys.objectives.weighted import weighted_sum
from recsys.protocols import Context, Encoded

HEADS = ("cosine", "dot")
ORDERS = ("confidence", "random", "fixed")


class SetDecoder(nn.Module):
    """Codes of the next item as a set (a reconstruction of REG4Rec's decoder): loss, and what a search asks for.

    Args:
        dim: width D, the same as the item table's.
        levels: M, the codes of an item.
        num_layers, num_heads, dropout: of the layers.
        hidden: width of the gated feed-forward part (default 4 D).
        head: "cosine" divided by ``temperature``, or "dot" products.
        order: in training: "confidence" (see above), "random" alone, or "fixed", level by level.
        others: eta, the weight of the codebooks that are left.
        own: rho, the share of targets in the model's own order, reached after ``ramp`` epochs.
        order_free: whether the order in which a set was chosen is forgotten.
        newest: whether the state at the position itself is projected and added to the query token, beside what the
            layers read of all states: without, which of them is the newest has to be learned.
        reflection: weight of the head that judges whether a set is part of the target's codes; it learns from sets half
            of which hold codes of another target. 0: no such head.

    Raises:
        ValueError: a number or name that makes no sense.
    """

    ordered = False
    whole = True

    def __init__(
        self,
        dim: int = 64,
        levels: int = 8,
        num_layers: int = 1,
        num_heads: int = 2,
        hidden: int | None = None,
        dropout: float = 0.1,
        head: str = "cosine",
        temperature: float = 0.1,
        order: str = "confidence",
        others: float = 0.5,
        own: float = 0.5,
        ramp: int = 10,
        order_free: bool = True,
        newest: bool = True,
        reflection: float = 0.0,
    ) -> None:
        super().__init__()
        if head not in HEADS or order not in ORDERS:
            raise ValueError(
                f"head must be one of {', '.join(HEADS)} and order one of {', '.join(ORDERS)}, found {head!r} and "
                f"{order!r}"
            )
        if min(dim, levels, num_layers) < 1 or temperature <= 0 or min(others, ramp, reflection) < 0:
            raise ValueError(
                "dim, levels and num_layers must be at least 1, temperature above 0, others, ramp and reflection at "
                f"least 0; found {dim}, {levels}, {num_layers}, {temperature}, {others}, {ramp} and {reflection}"
            )
        if not 0 <= own <= 1:
            raise ValueError(f"own is a share of the targets, from 0 to 1; found {own}")
        self.dim, self.levels, self.num_layers, self.num_heads, self.hidden = dim, levels, num_layers, num_heads, hidden
        self.dropout, self.head, self.temperature, self.order = dropout, head, temperature, order
        self.others, self.own, self.ramp, self.order_free = others, own, ramp, order_free
        self.newest, self.reflection = newest, reflection
        self.share = 0.0  # of targets in the model's own order, in this epoch
        self.codebook = nn.Parameter(torch.empty(1 + levels, dim))  # what token it is: the query, or of a codebook
        self.layers = nn.ModuleList(
            SetLayer(dim, num_heads, 4 * dim if hidden is None else hidden, dropout) for _ in range(num_layers)
        )
        self.after, self.drop = nn.LayerNorm(dim), Dropout(dropout)
        self.inner, self.outer = (
            nn.Parameter(torch.empty(levels, *shape)) for shape in ((dim, 2 * dim), (2 * dim, dim))
        )
        self.inner_bias = nn.Parameter(torch.zeros(levels, 2 * dim))
        self.outer_bias = nn.Parameter(torch.zeros(levels, dim))
        self.project = nn.Linear(dim, dim, bias=False) if newest else None
        self.verdict = nn.Linear(dim, 1) if reflection else None

    def bind(self, context: Context) -> None:
        """Initialise all weights (from torch's generator, which the caller seeds)."""
        initialise(self, "normal")
        for weight in (self.inner, self.outer):
            nn.init.normal_(weight, std=weight.shape[1] ** -0.5)  # what comes behind a norm keeps its size
        if self.project is not None:
            nn.init.normal_(self.project.weight, std=self.dim**-0.5)
        with torch.no_grad():
            self.inner_bias.zero_()
            self.outer_bias.zero_()
        self.on_epoch(0)

    def on_epoch(self, epoch: int) -> None:
        """The share of targets in the model's own order: a ramp over the first epochs of the run."""
        self.share = self.own * min(1.0, epoch / self.ramp if self.ramp else 1.0) if self.order == "confidence" else 0.0

    # Training.

    def forward(self, encoded: Encoded, batch: Batch, items: Any, generator: torch.Generator) -> Tensor:
        """The sum over the targets of weight times loss.

        Raises:
            TypeError: the items have no codes.
            ValueError: the item table has another width or other levels, or the batch has no targets.
        """
        self._check(items)
        now, targets, weights = encoded.at_targets(batch)
        assert batch.targets is not None
        chosen = (batch.flatten(batch.targets) > PAD).nonzero().squeeze(1)
        rows, positions = (batch.flat // batch.ids.shape[1])[chosen], batch.positions[chosen]
        tokens = items.token_table[targets]
        order = self._order(encoded, rows, positions, now, items, tokens, generator)
        reading = Reading(encoded, rows, positions)
        states = self._states(reading, self._enter(items, tokens.gather(1, order)[:, :-1], now))
        shares = self._shares(order)
        if weights is not None:
            shares = shares * weights[:, None, None]
        total = self._entropy(states, items, targets, shares)
        if self.verdict is not None:
            total = total + self.reflection * self._reflected(reading, now, items, tokens, order, weights, generator)
        return total

    def _order(
        self,
        encoded: Encoded,
        rows: Tensor,
        positions: Tensor,
        now: Tensor,
        items: Any,
        tokens: Tensor,
        generator: torch.Generator,
    ) -> Tensor:
        """(T, M) the codebooks in the order in which the codes of each target are learned."""
        if self.order == "fixed":
            return torch.arange(self.levels, device=rows.device).expand(len(rows), -1)
        draws = torch.rand(len(rows), self.levels + 1, generator=generator, device=rows.device)
        order = draws[:, 1:].argsort(1)
        own = (draws[:, 0] < self.share).nonzero().squeeze(1)
        if len(own):
            order[own] = self.preferred(Reading(encoded, rows[own], positions[own]), now[own], items, tokens[own])
        return order

    @torch.no_grad()
    def preferred(self, reading: Reading, now: Tensor, items: Any, tokens: Tensor) -> Tensor:
        """(T, M) the order in which the model itself would choose the ``tokens`` (T, M) of each target: at each step
        the codebook whose head gives its code the most probability, of equal ones the first."""
        found, codes = tokens.new_empty(tokens.shape), tokens - self._firsts(items)
        left = torch.ones(tokens.shape, dtype=torch.bool, device=tokens.device)
        for step in range(self.levels):
            chosen = tokens.gather(1, found[:, :step])
            state = self._newest(reading, self._enter(items, chosen, now))
            likely = torch.stack([self._likely(state, items, r, codes[:, r]) for r in range(self.levels)], 1)
            found[:, step] = likely.masked_fill(~left, -torch.inf).argmax(1)
            left = left.scatter(1, found[:, step : step + 1], False)
        return found

    def _likely(self, state: Tensor, items: Any, level: int, codes: Tensor) -> Tensor:
        """(T,) log-probabilities of ``codes`` (T,) of a level."""
        states, vectors = self._pair(state, items, level)
        return (states * vectors[codes]).sum(1) - log_sum_exp(states, (vectors,))

    def _shares(self, order: Tensor) -> Tensor:
        """(T, M, M): what the code of codebook r counts in the loss at step s."""
        count = self.levels
        place = order.argsort(1)[:, None]  # (T, 1, M): the step at which a codebook is chosen
        step = torch.arange(count, device=order.device)[:, None]
        left = (count - 1 - step).clamp(min=1)
        return ((place == step) + (place > step) * (self.others / left)) / count

    def _entropy(self, states: Tensor, items: Any, targets: Tensor, shares: Tensor) -> Tensor:
        """Scalar: the sum of ``shares`` (T, M, M) times cross-entropies, of states (T, M, D) of each step."""
        codes, total = items.codes[targets], states.new_zeros(())
        for level in range(self.levels):
            target, step = shares[:, :, level].nonzero(as_tuple=True)
            state, vectors = self._pair(states[target, step], items, level)
            total = total + cross_entropy(state, codes[target, level] + 1, shares[target, step, level], (vectors,))
        return total

    def _reflected(
        self,
        reading: Reading,
        now: Tensor,
        items: Any,
        tokens: Tensor,
        order: Tensor,
        weights: Tensor | None,
        random: torch.Generator,
    ) -> Tensor:
        """Scalar: the weighted sum of the errors in judging begun sets, half of which hold codes of another target."""
        count, device = len(tokens), tokens.device
        other = tokens[torch.randperm(count, generator=random, device=device)]
        draws = torch.rand(count, self.levels + 2, generator=random, device=device)
        length = 1 + (draws[:, 0] * self.levels).long().clamp(max=self.levels - 1)
        wrong = (draws[:, 1:2] < 0.5) & (draws[:, 2:] < 0.5)
        own, foreign = tokens.gather(1, order), other.gather(1, order)
        begun = torch.where(wrong, foreign, own)
        inside = torch.arange(self.levels, device=device) < length[:, None]
        right = ((begun == own) | ~inside).all(1).float()
        state = self._newest(reading, self._enter(items, begun, now), length)
        losses = F.binary_cross_entropy_with_logits(self._judged(state), right, reduction="none")
        return weighted_sum(losses, weights)

    # Paths that are known: the policy of a reward.

    def path_log_probs(
        self, encoded: Encoded, items: Any, order: Tensor, tokens: Tensor, allowed: Tensor | None = None
    ) -> Tensor:
        """(B, G, M) log-probabilities of the tokens of whole paths behind each history, with gradient.

        Args:
            order: (B, G, M) int64, the codebook of each step.
            tokens: (B, G, M) int64, the token chosen at it.
            allowed: (B, G, M, K) bool, the codes of that codebook among which it was chosen (default: all).
        """
        self._check(items)
        batch, (paths, steps) = encoded.batch, order.shape[1:]
        reading = Reading(encoded, torch.arange(len(batch), device=order.device), (batch.lengths - 1).clamp(min=0))
        entered = self._enter(items, tokens[:, :, :-1].flatten(0, 1), encoded.user.repeat_interleave(paths, 0))
        states = self._states(reading, entered).flatten(0, 1)
        levels, codes = order.flatten(), (tokens - self._firsts(items)[order]).flatten()
        found = states.new_zeros(len(states))
        for level in range(self.levels):
            at = (levels == level).nonzero().squeeze(1)
            state, vectors = self._pair(states[at], items, level)
            logits = (state @ vectors.T).float()
            if allowed is not None:
                logits = logits.masked_fill(~allowed.flatten(0, 2)[at, : len(vectors)], -torch.inf)
            found = found.index_copy(0, at, logits.log_softmax(1).gather(1, codes[at, None]).squeeze(1))
        return found.view(len(batch), paths, steps)

    # Searching.

    def begin(self, encoded: Encoded, items: Any) -> Beams:
        """What steps need of B histories: the keys and values of their states, and nothing chosen yet."""
        self._check(items)
        batch = encoded.batch
        rows = torch.arange(len(batch), device=batch.ids.device)
        reading = Reading(encoded, rows, (batch.lengths - 1).clamp(min=0))
        return Beams(reading, self._held(reading), encoded.user, rows.new_empty(len(rows), 1, 0), [])

    def step(self, memory: Beams, items: Any, tokens: Tensor | None, parents: Tensor | None) -> tuple[Tensor, Beams]:
        """Log-probabilities (B, W, C) of the codes of all codebooks, and the memory with ``tokens`` (B, W) in it.

        Args:
            tokens: numbers of the tokens chosen last; None: nothing is chosen yet, W = 1.
            parents: (B, W) int64, the earlier beam that each continues.
        """
        chosen, past = memory.chosen, memory.past
        if tokens is not None and parents is not None:
            chosen = torch.cat([of_parents(parents, chosen), tokens[:, :, None]], 2)
            past = [of_parents(parents, pairs) for pairs in past]
        beams = chosen.shape[:2]
        entered = self._enter(items, chosen.flatten(0, 1), memory.now.repeat_interleave(beams[1], 0))
        if self.order_free:
            state = self._newest(memory.reading, entered, held=memory.held)
        else:
            state, past = self._continued(memory, entered[:, -1:], past, beams)
        found = [self._log_probs(state, items, level) for level in range(self.levels)]
        state = state.unflatten(0, beams)
        memory = replace(memory, chosen=chosen, past=past, state=state)
        return torch.cat(found, 1).unflatten(0, beams), memory

    def _continued(
        self, memory: Beams, x: Tensor, past: list[Tensor], beams: torch.Size
    ) -> tuple[Tensor, list[Tensor]]:
        """The state of one more token of each beam, x (B W, 1, D), behind those of the past."""
        longer, look = [], self._looking(memory.reading, memory.held)
        for number, layer in enumerate(self.layers):
            pairs = layer.pairs(x).unflatten(0, beams)  # type: ignore[operator]
            longer.append(torch.cat([past[number], pairs], 2) if past else pairs)
            x = layer(x, longer[-1].flatten(0, 1), None, lambda asked, n=number: look(n, asked))
        return self.after(x[:, 0]), longer

    def judged(self, memory: Beams) -> Tensor:
        """(B, W) log-probability that the set of each beam is part of the codes that are looked for.

        Raises:
            ValueError: there is no such head.
        """
        if self.verdict is None or memory.state is None:
            raise ValueError(
                "the decoder has no head that judges sets: SetDecoder(reflection=0.1) learns one, or prune by "
                '"prediction"'
            )
        return F.logsigmoid(self._judged(memory.state))

    def _judged(self, states: Tensor) -> Tensor:
        assert self.verdict is not None
        return self.verdict(states).squeeze(-1).float()

    # What both share.

    def _check(self, items: Any) -> None:
        check_codes(items, self.dim, type(self).__name__)
        if items.levels != self.levels:
            raise ValueError(
                f"the items have {items.levels} codes each, the decoder levels={self.levels}: make them equal"
            )

    def _firsts(self, items: Any) -> Tensor:
        """(M,) the first token of each codebook."""
        sizes = torch.tensor(items.sizes, device=items.tokens.device)
        return 1 + sizes.cumsum(0) - sizes

    def _enter(self, items: Any, tokens: Tensor, now: Tensor) -> Tensor:
        """(T, 1 + s, D) the query token and the tokens (T, s) of a set, as the first layer reads them.

        Args:
            now: (T, D) the encoder's states at the positions.
        """
        levels = torch.bucketize(tokens.contiguous(), self._firsts(items), right=True)
        numbers = F.pad(tokens, (1, 0), value=PAD)
        x = F.embedding(numbers, items.tokens) + self.codebook[F.pad(levels, (1, 0))]
        if self.project is not None:
            x = torch.cat([x[:, :1] + self.project(now)[:, None], x[:, 1:]], 1)
        return self.drop(x)

    def _held(self, reading: Reading) -> list[Any]:
        return [reading.held(layer.memories(reading.states)) for layer in self.layers]  # type: ignore[operator]

    def _looking(self, reading: Reading, held: list[Any]) -> Look:
        dropout = self.dropout if self.training else 0.0
        return lambda layer, asked: reading.look(asked, held[layer], dropout)

    def _states(self, reading: Reading, x: Tensor) -> Tensor:
        """(T, M, D): the state that decides on each step, from the query and the M - 1 tokens before the last."""
        count, places = x.shape[:2]
        look = self._looking(reading, self._held(reading))
        behind = torch.ones(places, places, dtype=torch.bool, device=x.device).tril()
        if not self.order_free:
            for number, layer in enumerate(self.layers):
                x = layer(x, layer.pairs(x), behind, lambda asked, n=number: look(n, asked))  # type: ignore[operator]
            return self.after(x)
        if self.num_layers == 1:
            query, pairs, mask = x[:, :1].expand_as(x), self.layers[0].pairs(x), behind  # type: ignore[operator]
            return self.after(self.layers[0](query, pairs, mask, lambda asked: look(0, asked)))
        sets = x[:, None].expand(-1, places, -1, -1).flatten(0, 1)  # one for each step, of the tokens before it
        mask = behind[None, :, None, None].expand(count, -1, -1, -1, -1).flatten(0, 1)
        return self._whole(sets, mask, look).unflatten(0, (count, places))

    def _newest(
        self, reading: Reading, x: Tensor, length: Tensor | None = None, held: list[Any] | None = None
    ) -> Tensor:
        """(T, D): the state that decides on the next step, from the query and the first ``length`` (T,) tokens."""
        look = self._looking(reading, self._held(reading) if held is None else held)
        places = torch.arange(x.shape[1], device=x.device)
        inside = None if length is None else places <= length[:, None]
        if self.order_free:
            return self._whole(x, None if inside is None else inside[:, None, None], look)
        behind = (places <= places[:, None])[None, None]
        for number, layer in enumerate(self.layers):
            x = layer(x, layer.pairs(x), behind, lambda asked, n=number: look(n, asked))  # type: ignore[operator]
        return self.after(x[:, -1] if length is None else x[torch.arange(len(x), device=x.device), length])

    def _whole(self, x: Tensor, mask: Tensor | None, look: Look) -> Tensor:
        """(n, D): the state of the query, the first of the tokens x (n, s, D), all of which see each other."""
        for number, layer in enumerate(self.layers):
            asking = x[:, :1] if number + 1 == self.num_layers else x
            x = layer(asking, layer.pairs(x), mask, lambda asked, n=number: look(n, asked))  # type: ignore[operator]
        return self.after(x[:, 0])

    def _pair(self, states: Tensor, items: Any, level: int) -> tuple[Tensor, Tensor]:
        """States (n, D) and output vectors (K, D) whose inner products are the logits of a codebook's codes."""
        u = F.gelu(states @ self.inner[level] + self.inner_bias[level]) @ self.outer[level] + self.outer_bias[level]
        vectors = items.prototypes[items.span(level)]
        if self.head == "dot":
            return u, vectors
        return F.normalize(u, dim=-1) / self.temperature, F.normalize(vectors, dim=-1)

    def _log_probs(self, states: Tensor, items: Any, level: int) -> Tensor:
        """(n, K) of states (n, D)."""
        state, vectors = self._pair(states, items, level)
        return (state @ vectors.T).float().log_softmax(1)
