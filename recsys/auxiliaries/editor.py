"""A learned editor of histories: keep, delete or insert before, decided at every token (LACLRec, TCLARec, STEAM).

It reads the token states of an encoder, decides one of three operations at each token by a linear head, and writes what
is missing before an anchor backwards, nearest item first, with one more causal Transformer layer over the tied item
vectors until the end token. It learns to undo random corruption (:mod:`recsys.augmentations.corruption`) and is then
used to edit real histories. Sources: LACLRec (arXiv 2503.20232), the released code of TCLARec (anonymityww/TCLA) and of
STEAM (TempSDU/STEAM, WWW 2023).

What we do differently: the generator adds position vectors once (the released code adds them again at every step of
generation) from a table of its own; padding and mask are no classes of its softmax; duplicates are removed in order
(the code's order is that of a Python set); decisions are the largest logit unless ``decision`` says otherwise.

Legend: B histories, L longest, T real tokens, P anchors (tokens with operation insert), M most items inserted before
one, T' label tokens of all anchors, D width, N items; row N + 2 of the item table is the end token.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recsys.augmentations.corruption import Corrupted
from recsys.augmentations.edits import DEDUPS, INSERT, OPERATIONS, assemble, end_token
from recsys.data.batch import PAD, Batch
from recsys.hooks import bind
from recsys.nn.blocks import Block
from recsys.nn.continuation import Past, Place, places_of
from recsys.nn.dropout import Dropout
from recsys.nn.initialise import check_scheme, initialise
from recsys.protocols import Context, Encoded, Encoder, ItemTable

Encode = Callable[[Batch], Encoded]

DECISIONS = ("argmax", "gumbel")
SLIPS = {"released_noise": "argmax", "released_set_order": "first"}  # of the released code -> what is meant


@dataclass(frozen=True)
class Edited:
    """An edited view of a batch, and what was decided at the tokens of the original."""

    batch: Batch  # B histories of up to ``max_length`` tokens, without targets
    operations: Tensor  # (B, L) int64, KEEP at padding
    inserted: Tensor  # (B, L, M) int64: rows put before an INSERT, nearest first, then the end token, then 0


@dataclass(frozen=True)
class LowerStates:
    """States of an encoder below the layers that the recommender reads."""

    given_by = "Topped(encoder)"

    tokens: Tensor  # (T, D)


class Editor(nn.Module):
    """Learns to undo corruption (:meth:`loss`) and edits histories (:meth:`edit`).

    Args:
        dim: width D, the same as the item table's, which gets rows for the mask and the end token.
        num_heads, dropout: of the generator's layer.
        hidden: width inside its feed-forward part (default: 4 D).
        max_inserted: most items inserted before one token.
        max_length: most tokens of an edited or corrupted view; of more, the newest. No more than the encoder reads.
        decision: "argmax" of the logits, or "gumbel" (a draw from the softmax).
        dedup: of an edited view, see :func:`recsys.augmentations.edits.assemble`.
        encoder: what gives the states, any part with the protocol of an encoder, over the recommender's item table; one
            that sees "all" makes the editor see both sides of a token (STEAM). None reads the recommender's own encoder
            (released code), from :class:`LowerStates` if it gives that.
        init: see :mod:`recsys.nn.initialise`.

    Raises:
        ValueError: an unknown choice, a number that cannot be, or an ``encoder`` of another width or too short.
    """

    def __init__(
        self,
        dim: int = 64,
        num_heads: int = 2,
        dropout: float = 0.5,
        hidden: int | None = None,
        max_inserted: int = 5,
        max_length: int = 50,
        decision: str = "argmax",
        dedup: str = "first",
        encoder: Encoder | None = None,
        init: str = "xavier_normal",
    ) -> None:
        super().__init__()
        for name, value, known in (("decision", decision, DECISIONS), ("dedup", dedup, DEDUPS)):
            if value in SLIPS:
                raise ValueError(
                    f"{name}={value!r}, a slip of the released code, is not an option any more: train with "
                    f"{name}={SLIPS[value]!r}, or load this run with recsys 0.1"
                )
            if value not in known:
                raise ValueError(f"{name} must be one of {', '.join(known)}, found {value!r}")
        if max_inserted < 1 or max_length < 1:
            raise ValueError(f"max_inserted and max_length must be at least 1, found {max_inserted} and {max_length}")
        if encoder is not None and (encoder.dim != dim or encoder.max_length < max_length):
            raise ValueError(
                f"the editor's encoder must have dim={dim} and max_length of at least {max_length}, found "
                f"dim={encoder.dim} and max_length={encoder.max_length}"
            )
        self.dim, self.num_heads, self.dropout, self.hidden = dim, num_heads, dropout, hidden
        self.max_inserted, self.max_length = max_inserted, max_length
        self.decision, self.dedup, self.encoder, self.init = decision, dedup, encoder, check_scheme(init)
        self.rows_behind = 2  # a mask, which views may write, and the end token
        self.operation_head = nn.Linear(dim, len(OPERATIONS))
        self.position_table = nn.Embedding(max_inserted, dim)
        self.drop = Dropout(dropout)
        self.generator = Block("post", dim, num_heads, hidden or 4 * dim, dropout, norm_eps=1e-5)

    def bind(self, context: Context) -> None:
        """Initialise all weights (from torch's generator, which the caller seeds)."""
        initialise(self, self.init)
        if self.encoder is not None:
            bind(self.encoder, context)

    def states(self, batch: Batch, encode: Encode, items: ItemTable) -> Tensor:
        """(T, D): what the editor knows about each token; ``encode`` is used if it has no encoder of its own."""
        whole = batch.ask_all()  # an encoder may leave out tokens that are not wanted
        encoded = encode(whole) if self.encoder is None else self.encoder(whole, items)
        lower = encoded.get(LowerStates)
        states = encoded.tokens if lower is None else lower.tokens
        if states.shape[1] != self.dim:
            raise ValueError(
                f"the editor has dim={self.dim}, the encoder's states {states.shape[1]}: give both the same"
            )
        return states

    def loss(self, corrupted: Corrupted, encode: Encode, items: ItemTable) -> dict[str, Tensor]:
        """``operations``: mean cross-entropy of the decisions over real tokens; ``insertions``: that of the items and
        end tokens to insert, over all items and the end token, 0 where nothing is to be inserted (section 5).
        """
        states = self.states(corrupted.batch, encode, items)
        logits = self.operation_head(states)
        labels = corrupted.batch.flatten(corrupted.operations)
        operations = F.cross_entropy(logits.float(), labels, reduction="sum") / max(len(labels), 1)
        hidden, targets = self.predict(states, corrupted, items)
        if len(targets) == 0:
            return {"operations": operations, "insertions": operations.new_zeros(())}
        classes = targets.clamp(max=items.num_items + 1)  # the end token is the class behind the items
        ends = end_vector(items, states.device)
        insertions = items.cross_entropy(hidden, classes, more=ends)
        return {"operations": operations, "insertions": insertions / len(targets)}

    def predict(self, states: Tensor, corrupted: Corrupted, items: ItemTable) -> tuple[Tensor, Tensor]:
        """Generator states (T', D), each knowing the labels before it, and labels (T',), anchor by anchor.

        Args:
            states: (T, D) of the corrupted tokens.
        """
        labels = corrupted.batch.flatten(corrupted.inserted)  # (T, M)
        anchors = (labels[:, 0] > PAD).nonzero().squeeze(1)
        labels = labels[anchors]
        if len(anchors) == 0:
            return states.new_zeros(0, self.dim), labels.flatten()
        rows = _sequences(labels, (labels > PAD).sum(1))
        positions = rows.positions
        later = positions > 0
        previous = rows.flatten(F.pad(labels, (1, 0))[:, :-1])[later]
        inputs = states.new_zeros(len(positions), self.dim)
        inputs = inputs.index_copy(0, (~later).nonzero().squeeze(1), states[anchors])
        inputs = inputs.index_copy(0, later.nonzero().squeeze(1), items.embed(previous).to(states.dtype))
        return self.generator(self.drop(inputs + self.position_table(positions)), rows), rows.flat_ids

    @torch.no_grad()
    def edit(self, batch: Batch, encode: Encode, items: ItemTable, generator: torch.Generator) -> Edited:
        """An edited view of the inputs of ``batch``, without gradients and dropout; its targets are not looked at.

        Args:
            encode: a bound method of the recommender, or the encoder itself, so that it can be put into eval mode and
                back. Not used by an editor with an encoder of its own.
            generator: for the random decisions.
        """
        with evaluating(self, None if self.encoder is not None else encode):
            states = self.states(batch, encode, items)
            chosen = self.decide(self.operation_head(states), generator)
            anchors = (chosen == INSERT).nonzero().squeeze(1)
            inserted = torch.zeros(len(chosen), self.max_inserted, dtype=torch.int64, device=chosen.device)
            inserted = inserted.index_copy(0, anchors, self.generate(states[anchors], items))
        operations, laid = batch.pad(chosen), batch.pad(inserted)
        view = assemble(batch, operations, laid, items.num_items, self.max_length, self.dedup)
        return Edited(view, operations, laid)

    def decide(self, logits: Tensor, generator: torch.Generator) -> Tensor:
        """(T,) operations from logits (T, 3)."""
        if self.decision == "argmax":
            return logits.argmax(1)
        draws = torch.rand(logits.shape, generator=generator, device=logits.device)
        return (logits - torch.log(-torch.log(draws.clamp(min=1e-30)))).argmax(1)

    @torch.no_grad()
    def generate(self, states: Tensor, items: ItemTable) -> Tensor:
        """(P, M): the items before anchors of ``states`` (P, D), greedily, nearest first, then the end token, then 0.

        An anchor whose list has ended costs nothing further.
        """
        made = torch.zeros(len(states), self.max_inserted, dtype=torch.int64, device=states.device)
        rows, inputs = torch.arange(len(states), device=states.device), states
        past: Past | None = None
        for number in range(self.max_inserted if len(states) else 0):
            inputs = self.drop(inputs + self.position_table.weight[number])
            if past is None:
                hidden, past = self.generator.begin(inputs, _single(len(rows), inputs.device))
            else:
                hidden, past = self.generator.extend(inputs, past, _places(len(rows), inputs.device))
            found = best_rows(hidden, items)
            made[rows, number] = found
            going = (found <= items.num_items).nonzero().squeeze(1)
            if len(going) == 0:
                break
            rows, past = rows[going], Past([past.rows[0][going]], tuple(one[going] for one in past.own))
            inputs = items.embed(found[going]).to(states.dtype)
        return made


@torch.no_grad()
def best_rows(hidden: Tensor, items: ItemTable) -> Tensor:
    """(P,) the item row, or the end token's, whose vector has the largest product with ``hidden`` (P, D)."""
    values, rows = items.topk(hidden, 1)
    with torch.autocast(hidden.device.type, enabled=False):  # the end token and the items in one precision
        ends = hidden @ end_vector(items, hidden.device).squeeze(0).to(hidden.dtype)
    return torch.where(values[:, 0] > ends, rows[:, 0], end_token(items.num_items))


def end_vector(items: ItemTable, device: torch.device) -> Tensor:
    """(1, D): the output vector of the end token.

    Raises:
        ValueError: the table has no such row.
    """
    row = end_token(items.num_items)
    if items.extra < 2:
        raise ValueError(
            f"an editor needs an end token, row {row} of the item table: a Recommender asks for it; without one, call "
            "items.reserve(2) before bind"
        )
    return items.output(torch.tensor([row], device=device))


def _sequences(ids: Tensor, lengths: Tensor) -> Batch:
    """A batch of the generator's short sequences."""
    rows = torch.arange(len(ids), device=ids.device)
    return Batch(rows, rows, ids, lengths)


def _single(count: int, device: torch.device) -> Batch:
    ones = torch.ones(count, dtype=torch.int64, device=device)
    return _sequences(ones[:, None], ones)


def _places(count: int, device: torch.device) -> list[Place]:
    return places_of(_single(count, device), causal=True)


@contextmanager
def evaluating(editor: nn.Module, encode: Any) -> Iterator[None]:
    """The editor and what ``encode`` belongs to in eval mode; every module is left as it was."""
    owner = encode if encode is None or isinstance(encode, nn.Module) else getattr(encode, "__self__", encode)
    if owner is not None and not isinstance(owner, nn.Module):
        raise TypeError(f"encode must be a method of the recommender, so that dropout can be off; found {encode!r}")
    modules = [*editor.modules(), *(() if owner is None else owner.modules())]
    modes = [(module, module.training) for module in modules]
    try:
        for module in modules:
            module.training = False
        yield
    finally:
        for module, mode in reversed(modes):
            module.training = mode
