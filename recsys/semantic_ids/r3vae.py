"""R3-VAE: residual codes by angle, with a learned reference direction and no straight-through estimate.

After arXiv 2604.11440 as public comparison code has it, which was read for its equations only; the paper was not at
hand. With ê = e / |e|, a learned unit u and the vector at length 1:

    z = x / |x|;  v = <z, u> u;  r_0 = z - v;  ẑ_0 = v
    level l: k = argmax cos(r, ê_k);  q = cos(r, ê_k) ê_k;  ẑ_l = ẑ_{l-1} + q;  r = r - q
    L = (1 - cos(x̂, x)) + 0.1 mean_l (1 - cos(r_0, ẑ_l)) + 0.05 mean_l log mean_{i≠j} exp(-2 (1 - cos(e_i, e_j)))

with x̂ = Dec(ẑ_M). The gradient reaches codewords through the cosine and the vector; there is no commitment term. As
written, r_0 lacks the reference part that ẑ_l contains; ``from_z`` compares with z instead. The residual loses the
cosine and not the projection, so |r'|² = |r|² + cos² (1 - 2 |r|): it grows where |r| < 1/2.

Codebooks start by k-means of the residuals, level by level. Ours: vectors are centred first (else texts of one model,
which point the same way, share most codes), and epochs are few, for two CPU cores.

Legend: n vectors, F width, B batch, M levels, K codes per level.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recsys.index.clusters import kmeans
from recsys.progress import Progress
from recsys.randomness import derive_seed, torch_generator
from recsys.semantic_ids.layers import layers
from recsys.semantic_ids.tokenizer import check_distinct, check_fitted, check_shape, sampled

FIT_ON = 1 << 18  # vectors
_CHUNK = 1 << 14


class AngleCodebooks(nn.Module):
    """The reference direction and M codebooks of width F."""

    def __init__(self, levels: int, size: int, width: int) -> None:
        super().__init__()
        self.reference = nn.Parameter(torch.zeros(width))
        self.words = nn.Parameter(torch.zeros(levels, size, width))

    def split(self, vectors: Tensor) -> tuple[Tensor, Tensor]:
        """(B, F) twice: the part of unit ``vectors`` (B, F) along the reference, and the rest, r_0."""
        unit = F.normalize(self.reference, dim=0)
        along = (vectors @ unit)[:, None] * unit
        return along, vectors - along

    def forward(self, vectors: Tensor) -> tuple[Tensor, list[Tensor], Tensor]:
        """Of unit ``vectors`` (B, F): codes (B, M), the sums ẑ_l of each level, and what is left (B, F)."""
        total, left = self.split(vectors)
        codes, sums = [], []
        for book in F.normalize(self.words, dim=-1):
            found, part = angle_step(left, book)
            codes.append(found)
            total, left = total + part, left - part
            sums.append(total)
        return torch.stack(codes, 1), sums, left


def angle_step(left: Tensor, book: Tensor) -> tuple[Tensor, Tensor]:
    """Of ``left`` (B, F): codes (B,) of the nearest of ``book`` (K, F), unit vectors, by angle; and cos · ê (B, F)."""
    cosines = F.normalize(left, dim=-1) @ book.T
    best, found = cosines.max(1)
    return found, best[:, None] * book[found]


def spread(words: Tensor) -> Tensor:
    """Log mean_{i≠j} exp(-2 (1 - cos)) of ``words`` (K, F): 0 for equal ones, -2 for orthogonal ones."""
    unit = F.normalize(words, dim=-1)
    cosines = unit @ unit.T
    off = ~torch.eye(len(words), dtype=torch.bool, device=words.device)
    return (-2 * (1 - cosines[off])).exp().mean().log()


class R3VAE:
    """Ordered codes by angle.

    Use when: comparing with papers that use it. Prefer instead:
    :class:`~recsys.semantic_ids.residual.ResidualKMeans`.

    Args:
        levels, size: M and K.
        epochs, batch_size, learning_rate: of AdamW.
        from_z: the middle term compares with z, instead of r_0.
    """

    ordered = True

    def __init__(
        self,
        levels: int = 3,
        size: int = 256,
        epochs: int = 50,
        batch_size: int = 1024,
        learning_rate: float = 1e-3,
        from_z: bool = False,
    ) -> None:
        check_shape(levels, size)
        if epochs < 1 or batch_size < 1:
            raise ValueError(f"epochs and batch_size must be at least 1, found {epochs} and {batch_size}")
        self.levels, self.size, self.epochs, self.batch_size = levels, size, epochs, batch_size
        self.learning_rate, self.from_z = learning_rate, from_z
        self.facts: dict[str, Any] = {}
        self._mean = np.zeros(0, np.float32)
        self._books: AngleCodebooks | None = None

    @property
    def sizes(self) -> tuple[int, ...]:
        """(M,): codes per level."""
        return (self.size,) * self.levels

    @property
    def codewords(self) -> list[np.ndarray] | None:
        """(K, F) codewords of each level, at length 1."""
        return None if self._books is None else list(F.normalize(self._books.words.detach(), dim=-1).numpy())

    def fit(self, vectors: np.ndarray, seed: int) -> None:
        """Train on ``vectors`` (n, F).

        Raises:
            DataError: fewer different vectors, or residuals at a level, than codes.
        """
        points = sampled(vectors, FIT_ON, seed)
        self._mean = points.mean(0)
        inputs = self._unit(points)
        width = inputs.shape[1]
        books = self._books = AngleCodebooks(self.levels, self.size, width)
        generator = torch_generator(seed, "r3-vae")
        decoder = layers([width, 4 * width, width], generator)
        self._start(books, inputs, seed, generator)
        optimizer = torch.optim.AdamW([*books.parameters(), *decoder.parameters()], self.learning_rate, weight_decay=0)
        loss = torch.zeros(())
        with Progress(self.epochs, "r3-vae", "epochs") as shown:
            for _ in range(self.epochs):
                for index in torch.randperm(len(inputs), generator=generator).split(self.batch_size):
                    loss = self.loss(books, decoder, inputs[index])
                    optimizer.zero_grad(set_to_none=True)
                    loss.backward()
                    optimizer.step()
                shown.advance(1, loss=float(loss.detach()))
        self.facts = {"loss": float(loss.detach())}

    def loss(self, books: AngleCodebooks, decoder: nn.Module, batch: Tensor) -> Tensor:
        """The loss of unit vectors ``batch`` (B, F); see the top of this file."""
        _, sums, _ = books(batch)
        aim = batch if self.from_z else books.split(batch)[1]
        made = 1 - F.cosine_similarity(decoder(sums[-1]), batch).mean()
        near = torch.stack([1 - F.cosine_similarity(aim, one).mean() for one in sums]).mean()
        apart = torch.stack([spread(words) for words in books.words]).mean()
        return made + 0.1 * near + 0.05 * apart

    @torch.no_grad()
    def encode(self, vectors: np.ndarray) -> np.ndarray:
        """(N, M) int32 codes of ``vectors`` (N, F)."""
        check_fitted(self._books is not None)
        assert self._books is not None
        parts = [self._books(self._unit(vectors[at : at + _CHUNK]))[0] for at in range(0, len(vectors), _CHUNK)]
        return torch.cat(parts).numpy().astype(np.int32)

    def _unit(self, vectors: np.ndarray) -> Tensor:
        """(n, F): ``vectors``, centred, at length 1."""
        return F.normalize(torch.from_numpy(np.asarray(vectors, np.float32) - self._mean), dim=-1)

    @torch.no_grad()
    def _start(self, books: AngleCodebooks, inputs: Tensor, seed: int, generator: torch.Generator) -> None:
        books.reference.copy_(torch.randn(inputs.shape[1], generator=generator))
        _, left = books.split(inputs)
        for level in range(self.levels):
            what = "vectors" if level == 0 else f"what {level} levels leave of the vectors"
            check_distinct(left.numpy(), self.size, what)
            words = kmeans(left.numpy(), self.size, 10, derive_seed(seed, "start of the codebooks", level))
            words_ = torch.from_numpy(words)
            books.words[level] = words_
            left = left - angle_step(left, F.normalize(words_, dim=-1))[1]
