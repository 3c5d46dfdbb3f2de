"""The candidates of one level of a search: children, in a trie, of the beams so far, and nothing else.

Legend: B histories, W beams, C codes of the level, L children of a beam at most, V columns that are chosen.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from recsys.generative.reach import Reach
from recsys.generative.trie import Trie


@dataclass(frozen=True)
class Children:
    """Log-probabilities of the children of beams; -inf behind the last one, and where none may be shown."""

    trie: Trie
    depth: int  # of the beams
    beams: Tensor  # (B, W) int64 nodes
    scores: Tensor  # (B, W, L) float32

    def take(self, columns: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Beam, node and code, (B, V) int64 each, of ``columns`` (B, V) among the W x L scores of a history.

        A column that is no child gives a node and a code all the same.
        """
        parents, child = columns // self.scores.shape[2], columns % self.scores.shape[2]
        beams, table = self.beams.gather(1, parents), self.trie.tables[self.depth]
        if table is not None:
            return parents, table[beams, child].long().clamp(min=0), child
        nodes = (self.trie.first[self.depth][beams] + child).clamp(max=self.trie.nodes[self.depth + 1] - 1)
        return parents, nodes, self.trie.code[self.depth + 1][nodes].long()


def children(reach: Reach, depth: int, beams: Tensor, live: Tensor, log_probs: Tensor) -> Children:
    """The children of ``beams`` (B, W), nodes of ``depth``, with their ``log_probs`` (B, W, C) where they are ``live``.

    Raises:
        ValueError: the decoder gave log-probabilities of another shape.
    """
    trie = reach.trie
    if log_probs.shape != (*beams.shape, trie.sizes[depth]):
        raise ValueError(
            f"a decoder must give log-probabilities of shape (B, W, C) = {(*beams.shape, trie.sizes[depth])} at level "
            f"{depth + 1}; found {tuple(log_probs.shape)}: see step of recsys.protocols.Decoder"
        )
    log_probs, penalties = log_probs.float(), reach.penalties(depth)
    if penalties is not None:
        scores = penalties[beams].add_(log_probs)
    else:
        first = trie.first[depth]
        start = first[beams]
        number = (first[beams + 1] - start) * live
        child = torch.arange(max(int(number.max()), 1), dtype=torch.int32, device=trie.device)
        nodes = (start[..., None] + child).clamp_(max=trie.nodes[depth + 1] - 1)
        codes = trie.code[depth + 1][nodes].long()
        absent = child >= number[..., None]
        if reach.shared:
            absent |= ~reach.alive(nodes.long(), depth + 1)
        scores = log_probs.gather(2, codes).masked_fill_(absent, -torch.inf)
    reach.hide(scores, depth, beams, live)
    return Children(trie, depth, beams, scores)
