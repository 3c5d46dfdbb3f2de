"""Pre-training of Recformer (Li et al. 2023, arXiv 2305.13731, section 3.3): masked words, and item-item contrast.

L = - log exp(cos(h_s, h_i+) / tau) / sum over the batch of exp(cos(h_s, h_i) / tau) + lambda (MLM of s + MLM of i+),

where s is a history, i+ the item that follows it and h their ``<s>`` states; the contrast goes from history to item
only. Run it in a stage of its own: ``Stage(epochs, losses=["RecformerPretraining0"], name="pretrain",
validate=False)``.

What we do differently from the authors' code:

- In-batch items that equal the positive are no negatives (an option).
- The decoder of words is the word table, as in Longformer; theirs is a matrix of its own that only starts equal to it
  (losses agree to 6e-8 as long as the two are).
- Words are taken as the tokenizer cut them, not by the leading blank, and one goes in if half of it fits, at least one;
  theirs have a budget of max(1, round(.15 (n + 1))) tokens of n + 1, and words that do not fit are skipped. Masked
  share, theirs / ours: .150 / .153 at 40 tokens, .150 / .151 at 200, .173 / .159 on the titles of MovieLens-100K (12
  tokens). Only texts of a few long words part clearly: .173 / .491 at 4 tokens, and 31% of them unmasked by theirs.

Legend: B histories, S tokens, D width, V words.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recsys.data.batch import Batch
from recsys.encoders.recformer import ReadDocuments
from recsys.nn.longformer import pretrained_longformer
from recsys.nn.processes import from_all
from recsys.protocols import Context, Encoded, Step

IGNORED = -100  # label of a token that is not to be predicted
MOST = 512  # tokens masked in a document at most


class RecformerPretraining(nn.Module):
    """Word and item prediction for a :class:`~recsys.encoders.recformer.Recformer`; four encoder passes per step.

    Args:
        dim: width D, the encoder's.
        vocab_size: V, that of ``ItemTokens``.
        mlm: lambda, factor of both masked-word losses.
        probability: share of the tokens that are masked.
        temperature: tau.
        mask_same: leave out in-batch items that are the positive itself.
        pretrained: a Longformer whose language-model head is the start (folder or hub name).
    """

    reads = frozenset({ReadDocuments})

    def __init__(
        self,
        dim: int = 64,
        vocab_size: int = 2000,
        mlm: float = 0.1,
        probability: float = 0.15,
        temperature: float = 0.05,
        mask_same: bool = True,
        weight: float = 1.0,
        pretrained: str | None = None,
    ) -> None:
        super().__init__()
        if not 0.0 < probability < 1.0 or temperature <= 0:
            raise ValueError(
                f"probability must lie between 0 and 1 and temperature be positive, found {probability}, {temperature}"
            )
        self.dim, self.vocab_size, self.mlm, self.probability = dim, vocab_size, mlm, probability
        self.temperature, self.mask_same, self.weight, self.pretrained = temperature, mask_same, weight, pretrained
        self.dense, self.norm = nn.Linear(dim, dim), nn.LayerNorm(dim)
        self.bias = nn.Parameter(torch.zeros(vocab_size))

    def bind(self, context: Context) -> None:
        """Initialise the head, from ``pretrained`` if that is given."""
        nn.init.normal_(self.dense.weight, std=0.02)
        nn.init.zeros_(self.dense.bias)
        nn.init.zeros_(self.bias)
        self.norm.reset_parameters()
        if self.pretrained is not None and context.training is not None:
            weights = pretrained_longformer(self.pretrained)[1]
            own = {"dense.weight": "dense.weight", "dense.bias": "dense.bias", "bias": "bias"}
            own |= {"norm.weight": "layer_norm.weight", "norm.bias": "layer_norm.bias"}
            self.load_state_dict({name: weights[f"lm_head.{theirs}"] for name, theirs in own.items()})

    def forward(self, step: Step) -> dict[str, Tensor]:
        """Terms ``contrast`` and ``mlm``, scalars; without a factor ``mlm`` the words cost no pass."""
        if step.encode is None or step.batch.targets is None:
            raise ValueError("pre-training needs an encoder and targets: use it within a Recommender")
        history = step.batch.histories()
        target = _alone(step.batch.targets.amax(1))
        encoded = [step.encode(view) for view in (history, target)]
        same = target.ids if self.mask_same else None
        own = slice(0 if step.share == 0 else None)  # a process without rows waits for the others, and brings nothing
        users, items = (one.user[own] for one in encoded)
        terms = {"contrast": in_batch(users, items, self.temperature, None if same is None else same[own])}
        if self.mlm:
            generator = step.generator("RecformerPretraining")
            views = zip((history, target), encoded, strict=True)
            losses = [self._words(step, view, one, generator) for view, one in views]
            terms["mlm"] = self.mlm * torch.stack(losses).sum()
        return terms

    def _words(self, step: Step, view: Batch, encoded: Encoded, generator: torch.Generator) -> Tensor:
        read = encoded.read(ReadDocuments)
        masked, labels = mask_words(
            read.words, read.starts, read.real, read.mask, self.vocab_size, self.probability, generator
        )
        assert step.encode is not None
        found = step.encode(view.replace(words=masked)).read(ReadDocuments)
        assert found.hidden is not None
        chosen = labels != IGNORED
        hidden = self.norm(F.gelu(self.dense(found.hidden[chosen])))
        scores = F.linear(hidden, found.table, self.bias)
        return F.cross_entropy(scores.float(), labels[chosen], reduction="sum") / chosen.sum().clamp(min=1)


def in_batch(users: Tensor, items: Tensor, temperature: float, same: Tensor | None = None) -> Tensor:
    """The mean over B of -log softmax of (B, D) unit vectors of users against those of the batch's items.

    Args:
        same: (B, 1) item rows; equal ones are no negatives of each other. None to keep them.
    """
    users, items = from_all(users.float()), from_all(items.float())  # every process computes the loss over all pairs
    if len(users) == 0:
        return users.sum()
    scores = users @ items.T / temperature
    own = torch.arange(len(users), device=users.device)
    if same is not None:
        same = from_all(same)
        scores = scores.masked_fill((same == same.T) & (own[:, None] != own), -torch.inf)
    return F.cross_entropy(scores, own)


def mask_words(
    words: Tensor,
    starts: Tensor,
    real: Tensor,
    mask: int,
    vocab_size: int,
    probability: float,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor]:
    """Documents (B, S) with whole words masked, and labels (B, S): the word that stood there, -100 where none is asked.

    Words are taken in random order until ``probability`` of the tokens behind ``<s>`` are chosen, at least one word and
    at most 512 tokens. Of the chosen tokens 80% become ``mask``, 10% any token of the vocabulary, 10% stay.
    """
    inside = real.clone()
    inside[:, 0] = False
    group = (starts & inside).cumsum(1) * inside  # (B, S), words numbered from 1
    sizes = torch.zeros_like(words).scatter_add_(1, group, inside.long())
    sizes[:, 0] = 0  # whatever is no word
    keys = torch.rand(words.shape, generator=generator, device=words.device).masked_fill(sizes == 0, 2.0)
    order = keys.argsort(1)
    counts = sizes.gather(1, order)
    middle = counts.cumsum(1) - counts / 2  # a word goes in if half of it fits, which is unbiased
    budget = (inside.sum(1, keepdim=True) * probability).clamp(max=MOST)
    taken = (middle <= budget) & (counts > 0)
    taken[:, 0] = counts[:, 0] > 0
    chosen = torch.zeros_like(inside).scatter_(1, order, taken).gather(1, group) & inside
    labels = words.masked_fill(~chosen, IGNORED)
    rolls = torch.rand(words.shape, generator=generator, device=words.device)
    drawn = torch.randint(vocab_size, words.shape, generator=generator, device=words.device)
    changed = torch.where(rolls < 0.8, mask, torch.where(rolls < 0.9, drawn, words))
    return torch.where(chosen, changed, words), labels


def _alone(items: Tensor) -> Batch:
    """Each item (B,) as a history of its own."""
    rows = torch.arange(len(items), device=items.device)
    return Batch(rows, torch.full_like(rows, -1), items[:, None], (items > 0).long())
