"""A generator as a policy: the codes of an item are a sequence, each drawn among the codes that lead to some item.

Sampling and log-probabilities are those of the softmax over the codes that are allowed after the ones before; a search
ranks by joint probabilities over all codes instead, which differ where much of the probability is on codes that no item
has. Legend: B histories, G items of each at most, N sequences, M levels, L children of a node at most.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from recsys.data.batch import Batch
from recsys.generative.beam import begun, offsets
from recsys.generative.children import children
from recsys.generative.reach import Reach
from recsys.generative.sampling import sample
from recsys.generative.trie import trie_of
from recsys.llm.trainers.drafts import Draft
from recsys.llm.trainers.tuning import Scored
from recsys.protocols import Decoder, Encoded, Step
from recsys.ranking.filters import Shown


class CodePolicy:
    """The decoder of a ``Generator`` of ordered codes, over what exists.

    Args:
        encoder, decoder: those of the generator, the same objects.

    Raises:
        TypeError: the decoder generates sets.
    """

    def __init__(self, encoder: Any, decoder: Any) -> None:
        if not getattr(decoder, "ordered", True):
            raise TypeError(
                f"CodePolicy reads codes in order, and {type(decoder).__name__} generates sets: take a generator with "
                "a CodeDecoder (recipes tiger, liger), or PathRewards for rewards of sets"
            )
        self.encoder, self.decoder = encoder, decoder

    def parts(self) -> list[nn.Module]:
        """What is trained."""
        return [self.encoder, self.decoder]

    def __call__(self, step: Step, draft: Draft, full: bool = False) -> Scored:
        """See :class:`recsys.llm.trainers.tuning.Policy`. An item that the draft's histories could not have been given
        (``shown``) is no sequence."""
        steps, choices = told(
            self.decoder, self._read(step, draft.histories), step.items, draft.rows, draft.shown, full
        )
        real = draft.real & (steps.detach() > -torch.inf).all(2)
        assert step.items is not None
        tokens = step.items.token_table[draft.rows[real]]  # type: ignore[attr-defined]
        found = steps[real]
        return Scored(
            found,
            torch.ones_like(found, dtype=torch.bool),
            tokens,
            draft.fields(real),
            None if choices is None else choices[real],
        )

    @torch.no_grad()
    def sample(self, step: Step, histories: Batch, count: int, temperature: float, shown: Shown | None) -> Tensor:
        """(B, count) item rows, without replacement."""
        encoded, random = self._read(step, histories), step.generator("CodePolicy.sample")
        return sample(self.decoder, encoded, step.items, shown, count, random, temperature).rows

    def _read(self, step: Step, histories: Batch) -> Encoded:
        assert step.encode is not None
        return step.encode(step.asked(histories.histories()))


def told(
    decoder: Decoder, encoded: Encoded, items: Any, rows: Tensor, shown: Shown | None = None, full: bool = False
) -> tuple[Tensor, Tensor | None]:
    """Log-probabilities (B, G, M) of each code of the items ``rows`` (B, G), among the codes that lead to some item.

    -inf where an item may not be ``shown``; anything where the row is 0. With ``full`` also those of all choices
    (B, G, M, L), -inf for what is none; a choice is a code or the number of a child, the same for all of a trie.
    """
    log_probs, memory = begun(decoder, encoded, items)
    trie = trie_of(items, log_probs.device)
    reach = Reach(trie, shown, len(log_probs))
    nodes = trie.paths(rows.clamp(min=1).flatten()).unflatten(0, rows.shape)  # (B, G, M)
    beams = torch.zeros(len(rows), 1, dtype=torch.int64, device=trie.device)
    own = torch.arange(rows.shape[1], device=trie.device).expand(rows.shape)
    steps, choices = [], []
    for depth, offset in enumerate(offsets(trie.sizes)):
        scores = children(reach, depth, beams, torch.ones_like(beams, dtype=torch.bool), log_probs).scores
        none = (scores == -torch.inf).all(2, keepdim=True)
        chances = scores.masked_fill(none, 0).log_softmax(2).masked_fill(none | (scores == -torch.inf), -torch.inf)
        chances = chances.expand(-1, rows.shape[1], -1)
        node = nodes[:, :, depth]
        code = trie.code[depth + 1][node].long()
        column = code if trie.tables[depth] is not None else node - trie.first[depth][beams]
        steps.append(chances.gather(2, column[:, :, None].expand(*rows.shape, 1)).squeeze(2))
        choices.append(chances)
        if depth + 1 < trie.levels:
            parents = torch.zeros_like(own) if not depth else own
            log_probs, memory = decoder.step(memory, items, code + offset, parents)
        beams = node
    return torch.stack(steps, 2), _stacked(choices) if full else None


def _stacked(choices: list[Tensor]) -> Tensor:
    """(B, G, M, L) of M tensors (B, G, L_m), -inf behind the choices of a level."""
    most = max(one.shape[2] for one in choices)
    wide = [torch.nn.functional.pad(one, (0, most - one.shape[2]), value=-torch.inf) for one in choices]
    return torch.stack(wide, 2)
