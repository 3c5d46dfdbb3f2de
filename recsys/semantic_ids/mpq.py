"""MPQ: item codes from parallel experts, each with a codebook of its own, so that the codes of an item are a set.

After REG4Rec (arXiv 2508.15308), whose text was not at hand: **a reconstruction**. From summaries of the paper come the
experts E_r, the nearest code c^r = argmin_j ||E_r(v) - z_rj||^2 in each codebook, and the sum over the experts,
weighted by a gate, that the vector is made again from; widths, gate, losses and training are ours:

- e^r = E_r(v), an MLP of its own; h = softmax(W v + b) over all experts (each must give a code, so none is left out);
- v' = Dec(sum_r h_r (e^r + sg(z^r - e^r))), the straight-through estimate;
- loss = mean (v - v')^2 + mean_r (|sg(e^r) - z^r|^2 + commitment |e^r - sg(z^r)|^2) + orthogonality * L_orth;
- L_orth = 2 / (M (M - 1)) sum_{r<s} mean_i cos^2(e_i^r, e_i^s) ("latents"), or the mean square of the products between
  the unit codewords of two codebooks ("codebooks"), the other reading of the summaries.

Squares are means over dimensions, so that the terms keep their proportions at any width. Codes do not depend on the
gate: an expert that it leaves out learns from its codebook's terms alone, so look at the entropy of the gate.

Legend: N vectors, n of a batch, F width of a vector, M experts (levels), K codes of each, H width of a latent.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice, pairwise
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recsys.index.clusters import kmeans
from recsys.nn.initialise import initialise
from recsys.progress import Progress
from recsys.randomness import derive_seed, torch_generator
from recsys.semantic_ids.tokenizer import check_distinct, check_shape, sampled

ORTHOGONAL = ("latents", "codebooks")
CHUNK = 2048  # vectors encoded at a time
MOST = 1 << 18  # vectors fitted on, drawn where there are more
OFTEN = 200  # times that a vector is learned from, at most
RESETS = 10  # moves of unused codes in a training
QUIET = 0.7  # share of the training behind which there are none


class MPQ:
    """A tokenizer of unordered codes (:mod:`recsys.semantic_ids.tokenizer`): M experts, a code of each.

    Use for generators that choose which code comes next (``SetDecoder``), or as parallel codes (RPG). Prefer
    ``ProductQuantiser`` for the same without training.

    After :meth:`fit`, ``report`` tells what it has come to: the ``perplexity`` of each codebook on what it was fitted
    on, ``gate_entropy`` (1 is even, 0 is one expert alone), ``gate`` (the mean weight of each expert),
    ``orthogonality``, ``reconstruction`` (the mean squared error by the variance), and how many unused codes were
    moved. It decodes no codes, as the gate reads the vector.

    Args:
        levels: M.
        size: K.
        dim: H.
        hidden: widths of the inner layers of an expert; of the decoder in reverse.
        steps, batch_size, learning_rate: of AdamW; fewer steps where each vector would be seen more than 200 times.
        commitment: how much the latents are drawn to their codewords.
        orthogonality: weight of L_orth.
        orthogonal: what is to be orthogonal: "latents" of an item, or "codebooks".

    Ten times in a training, but not in its last 30%, codes that were not used since the time before are moved to
    latents drawn at random.

    Raises:
        ValueError: a number out of range.
    """

    ordered = False

    def __init__(
        self,
        levels: int = 8,
        size: int = 256,
        dim: int = 64,
        hidden: Sequence[int] = (256, 128),
        steps: int = 1500,
        batch_size: int = 256,
        learning_rate: float = 1e-3,
        commitment: float = 0.25,
        orthogonality: float = 0.1,
        orthogonal: str = "latents",
    ) -> None:
        check_shape(levels, size)
        if min(dim, *hidden, steps, batch_size) < 1:
            raise ValueError(
                "dim, hidden, steps and batch_size must be at least 1, found "
                f"{dim}, {list(hidden)}, {steps} and {batch_size}"
            )
        if min(commitment, orthogonality) < 0 or learning_rate <= 0:
            raise ValueError(
                "commitment and orthogonality must be at least 0, learning_rate above 0; found "
                f"{commitment}, {orthogonality} and {learning_rate}"
            )
        if orthogonal not in ORTHOGONAL:
            raise ValueError(f"orthogonal must be one of {', '.join(ORTHOGONAL)}, found {orthogonal!r}")
        self.levels, self.size, self.dim, self.hidden = levels, size, dim, tuple(hidden)
        self.steps, self.batch_size, self.learning_rate = steps, batch_size, learning_rate
        self.commitment, self.orthogonality, self.orthogonal = commitment, orthogonality, orthogonal
        self.report: dict[str, Any] = {}
        self._moved = 0
        self._net: Experts | None = None
        self._mean = self._scale = np.zeros(0, np.float32)

    @property
    def sizes(self) -> tuple[int, ...]:
        """Codes of each level."""
        return (self.size,) * self.levels

    @property
    def codewords(self) -> list[np.ndarray] | None:
        """The codebooks, (K, H) each; None before :meth:`fit`."""
        return None if self._net is None else list(self._net.codebooks.detach().numpy().copy())

    def fit(self, vectors: np.ndarray, seed: int = 0) -> None:
        """Train on vectors (n, F), each dimension standardised.

        Raises:
            DataError: there are fewer different vectors than codes of a codebook.
        """
        vectors = sampled(vectors, MOST, seed)
        check_distinct(vectors, self.size, "vectors")
        self._mean = vectors.mean(0, dtype=np.float64).astype(np.float32)
        deviation = vectors.std(0, dtype=np.float64).astype(np.float32)
        self._scale = np.where(deviation > 1e-8, deviation, 1).astype(np.float32)
        inputs = self._standard(vectors)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive_seed(seed, "mpq"))
            self._net = Experts(inputs.shape[1], self.levels, self.size, self.dim, self.hidden)
        self._start(inputs, seed)
        self._train(inputs, torch_generator(seed, "mpq", "batches"))
        self._judge(inputs)

    def encode(self, vectors: np.ndarray) -> np.ndarray:
        """(N, M) int32 codes of vectors (N, F)."""
        net = self._fitted()
        with torch.no_grad():
            parts = [net.nearest(net.latents(part)) for part in self._standard(vectors).split(CHUNK)]
        found = torch.cat(parts) if parts else torch.zeros(0, self.levels, dtype=torch.int64)
        return found.numpy().astype(np.int32)

    def _fitted(self) -> Experts:
        if self._net is None:
            raise ValueError("this tokenizer has learned no codes yet: call fit(vectors) first")
        return self._net

    def _standard(self, vectors: np.ndarray) -> Tensor:
        return torch.from_numpy((np.asarray(vectors, np.float32) - self._mean) / self._scale)

    def _start(self, inputs: Tensor, seed: int) -> None:
        """Every codebook begins with the clusters of its expert's latents."""
        net = self._fitted()
        some = inputs[torch.randperm(len(inputs), generator=torch_generator(seed, "mpq", "start"))[: 64 * self.size]]
        with torch.no_grad():
            latents = torch.cat([net.latents(part) for part in some.split(CHUNK)], 1)
            for level, own in enumerate(latents):
                start = kmeans(own.numpy(), self.size, 10, derive_seed(seed, "mpq", level))
                net.codebooks[level] = torch.from_numpy(start)

    def _train(self, inputs: Tensor, random: torch.Generator) -> None:
        net = self._fitted()
        optimizer = torch.optim.AdamW(net.parameters(), self.learning_rate)
        used = torch.zeros(self.levels, self.size, dtype=torch.bool)
        steps = min(self.steps, OFTEN * -(-len(inputs) // self.batch_size))
        interval, self._moved = max(steps // RESETS, 1), 0
        with Progress(steps, "mpq", "updates") as bar:
            for step, rows in enumerate(islice(_drawn(len(inputs), self.batch_size, random), steps), 1):
                loss, codes = net.loss(inputs[rows], self.commitment, self.orthogonality, self.orthogonal)
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                optimizer.step()
                used.scatter_(1, codes.T, True)
                if step % interval == 0 and step <= QUIET * steps:
                    self._reset(inputs, used, random)
                    used.zero_()
                bar.advance(1, loss=float(loss.detach()))

    @torch.no_grad()
    def _reset(self, inputs: Tensor, used: Tensor, random: torch.Generator) -> None:
        """Move the codes that are not ``used`` (M, K) to latents drawn at random."""
        net = self._fitted()
        drawn = torch.randint(len(inputs), (self.size,), generator=random)
        latents = net.latents(inputs[drawn])
        net.codebooks.copy_(torch.where(used[:, :, None], net.codebooks, latents))
        self._moved += int((~used).sum())

    @torch.no_grad()
    def _judge(self, inputs: Tensor) -> None:
        """Fill ``report``."""
        net = self._fitted()
        counts = torch.zeros(self.levels, self.size, dtype=torch.float64)
        gates, error, orthogonal, entropy = torch.zeros(self.levels), 0.0, 0.0, 0.0
        for part in inputs.split(CHUNK):
            latents = net.latents(part)
            codes = net.nearest(latents)
            counts += F.one_hot(codes, self.size).sum(0)
            gate = net.gate(part).softmax(1)
            gates += gate.sum(0)
            entropy += float(torch.special.entr(gate).sum())
            error += float((net.rebuild(part, net.codewords(codes)) - part).square().sum())
            orthogonal += float(between_latents(latents)) * len(part)
        total = len(inputs)
        share = counts / total
        self.report = {
            "perplexity": torch.special.entr(share).sum(1).exp().tolist(),
            "gate_entropy": entropy / total / max(float(np.log(self.levels)), 1e-12) if self.levels > 1 else 1.0,
            "gate": (gates / total).tolist(),
            "orthogonality": orthogonal / total,
            "reconstruction": error / max(float(inputs.square().sum()), 1e-12),
            "codes_moved": self._moved,
        }


def _drawn(count: int, size: int, random: torch.Generator) -> Iterator[Tensor]:
    """Rows of batches without end, each row once before any comes again."""
    while True:
        yield from torch.randperm(count, generator=random).split(size)


class Experts(nn.Module):
    """The network of :class:`MPQ`: all experts in one product of matrices."""

    def __init__(self, width: int, levels: int, size: int, dim: int, hidden: tuple[int, ...]) -> None:
        super().__init__()
        widths = (width, *hidden, dim)
        self.norm = nn.LayerNorm(width)
        pairs = list(pairwise(widths))
        self.weights = nn.ParameterList(nn.Parameter(torch.empty(levels, a, b)) for a, b in pairs)
        self.biases = nn.ParameterList(nn.Parameter(torch.zeros(levels, 1, b)) for _, b in pairs)
        self.codebooks = nn.Parameter(torch.empty(levels, size, dim))
        self.gate = nn.Linear(width, levels)
        back = [(b, a) for a, b in reversed(pairs)]
        layers: list[nn.Module] = []
        for a, b in back:
            layers += [nn.Linear(a, b), nn.ReLU()]
        self.decoder = nn.Sequential(*layers[:-1])
        initialise(self, "torch")
        for weight in self.weights:  # as torch's linear layers
            nn.init.uniform_(weight, -(weight.shape[1] ** -0.5), weight.shape[1] ** -0.5)
        nn.init.normal_(self.codebooks)

    def latents(self, vectors: Tensor) -> Tensor:
        """(M, n, H) latents e of standardised vectors (n, F)."""
        x = self.norm(vectors).expand(len(self.codebooks), -1, -1)
        for number, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            x = torch.baddbmm(bias, x.relu() if number else x, weight)
        return x

    @torch.no_grad()
    def nearest(self, latents: Tensor) -> Tensor:
        """(n, M) the nearest code of each latent (M, n, H) in its codebook; of equal ones the first."""
        squares = self.codebooks.square().sum(2)[:, None]  # the latent's own square is the same for all codes
        return torch.baddbmm(squares, latents, self.codebooks.mT, alpha=-2).argmin(2).T

    def codewords(self, codes: Tensor) -> Tensor:
        """(M, n, H) codewords z of codes (n, M)."""
        return self.codebooks.gather(1, codes.T[:, :, None].expand(-1, -1, self.codebooks.shape[2]))

    def rebuild(self, vectors: Tensor, words: Tensor) -> Tensor:
        """(n, F) from codewords (M, n, H), weighted by the gate of the vectors (n, F)."""
        return self.decoder(torch.einsum("nm,mnh->nh", self.gate(vectors).softmax(1), words))

    def loss(self, vectors: Tensor, commitment: float, weight: float, orthogonal: str) -> tuple[Tensor, Tensor]:
        """The scalar loss of vectors (n, F), and their codes (n, M)."""
        latents = self.latents(vectors)
        codes = self.nearest(latents)
        words = self.codewords(codes)
        rebuilt = self.rebuild(vectors, straight_through(latents, words))
        loss = F.mse_loss(rebuilt, vectors)
        loss = loss + F.mse_loss(words, latents.detach()) + commitment * F.mse_loss(latents, words.detach())
        if weight and len(self.codebooks) > 1:
            apart = between_latents(latents) if orthogonal == "latents" else between_codebooks(self.codebooks)
            loss = loss + weight * apart
        return loss, codes


def straight_through(latents: Tensor, words: Tensor) -> Tensor:
    """The codewords, whose gradient goes to the latents instead."""
    return latents + (words - latents).detach()


def between_latents(latents: Tensor) -> Tensor:
    """Scalar: the mean over items and pairs of experts of cos^2 of their latents (M, n, H); 0 for one expert.

    >>> float(between_latents(torch.eye(2)[:, None]))
    0.0
    """
    count = len(latents)
    if count < 2 or latents.shape[1] == 0:
        return latents.new_zeros(())
    unit = F.normalize(latents, dim=2)
    squares = torch.einsum("mnh,knh->nmk", unit, unit).square()
    return (squares.sum((1, 2)) - squares.diagonal(dim1=1, dim2=2).sum(1)).mean() / (count * (count - 1))


def between_codebooks(codebooks: Tensor) -> Tensor:
    """Scalar: the mean over pairs of codebooks (M, K, H) of the mean square of their unit codewords' products."""
    unit = F.normalize(codebooks, dim=2)
    gram = unit.mT @ unit  # (M, H, H): ||A B^T||^2 is the inner product of A^T A and B^T B
    products = torch.einsum("mij,kij->mk", gram, gram)
    count, size = codebooks.shape[:2]
    return (products.sum() - products.diagonal().sum()) / (count * (count - 1) * size * size)
