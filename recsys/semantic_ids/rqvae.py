"""RQ-VAE: an autoencoder whose latent is quantised residually; TIGER (Rajput et al., NeurIPS 2023), section 3.1.

z = Enc(x); r_0 = z; c_l = argmin_k |r_l - e_k^l|; r_{l+1} = r_l - e_{c_l}^l; ẑ = Σ_l e_{c_l}^l; x̂ = Dec(z + sg(ẑ - z)).
L = |x - x̂|² + mean_l (|sg(r_l) - e_{c_l}|² + β |r_l - sg(e_{c_l})|²), each square a mean over vectors and dimensions.

Collapse is its main failure (all items get one code). What is done against it: inputs standardised per dimension, AdamW
at 1e-3 instead of the paper's Adagrad, codebooks started by k-means level by level on the latents of the untrained
encoder, and codes that nobody uses moved to random residuals every ten epochs until two thirds of the training.
What differs from public code: the codewords are cut off from the gradient of later levels (a codebook is moved by the
term of its own level alone), and layers and epochs are small, for two CPU cores: 12,000 vectors of 384 numbers take a
minute or two.

Legend: n vectors, F width, B batch, M levels, K codes per level, d width of the latent.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recsys.index.clusters import MOST_POINTS, kmeans, nearest_centroid
from recsys.progress import Progress
from recsys.randomness import derive_seed, torch_generator
from recsys.semantic_ids.layers import layers
from recsys.semantic_ids.tokenizer import check_distinct, check_fitted, check_shape, sampled

RESET_EPOCHS = 10  # between two moves of codes that nobody uses
_RESETS_UNTIL = 2 / 3  # of the epochs
_CHUNK = 1 << 14


class Quantised(NamedTuple):
    """What a residual quantiser gives for latents (B, d)."""

    straight: Tensor  # (B, d): the sum of codewords forward, the identity backward
    codes: Tensor  # (B, M) int64
    left: Tensor  # (B, d): what all levels leave
    loss: Tensor  # scalar: codebook and commitment terms


class ResidualCodebooks(nn.Module):
    """M codebooks, each quantising what those before it leave."""

    def __init__(self, levels: int, size: int, dim: int, commitment: float) -> None:
        super().__init__()
        self.commitment = commitment
        self.words = nn.Parameter(torch.zeros(levels, size, dim))  # (M, K, d)

    def forward(self, latents: Tensor) -> Quantised:
        """Quantise ``latents`` (B, d)."""
        left, codes, losses = latents, [], []
        for book in self.words:
            found = nearest(left.detach(), book.detach())
            word = F.embedding(found, book)
            losses.append(F.mse_loss(word, left.detach()) + self.commitment * F.mse_loss(left, word.detach()))
            codes.append(found)
            left = left - word.detach()
        straight = latents + (latents - left - latents).detach()
        return Quantised(straight, torch.stack(codes, 1), left, torch.stack(losses).mean())

    @torch.no_grad()
    def start(self, latents: Tensor, seed: int) -> None:
        """Start at the k-means centroids of ``latents`` (n, d) and of the residuals."""
        left = latents.cpu().numpy()
        for level, book in enumerate(self.words):
            check_distinct(left, len(book), f"the latents at level {level + 1}")
            words = kmeans(left, len(book), 10, derive_seed(seed, "start of the codebooks", level))
            book.copy_(torch.from_numpy(words))
            left = left - words[nearest_centroid(left, words)]

    @torch.no_grad()
    def move_unused(self, latents: Tensor, generator: torch.Generator) -> int:
        """Move codes that none of ``latents`` (n, d) uses to residuals that are drawn; the answer counts them."""
        left, moved = latents, 0
        for book in self.words:
            unused = torch.bincount(nearest(left, book), minlength=len(book)) == 0
            count = int(unused.sum())
            drawn = torch.randint(len(left), (count,), generator=generator).to(left.device)
            book[unused] = left[drawn]
            left = left - book[nearest(left, book)]
            moved += count
        return moved


class RQVAE:
    """Ordered codes of a residual-quantised autoencoder.

    Use when: comparing with papers that use it. Prefer instead:
    :class:`~recsys.semantic_ids.residual.ResidualKMeans`, which is level with it and cannot collapse.

    Args:
        levels, size: M and K.
        dim: d.
        hidden: widths of the encoder's layers (the decoder has them the other way round), ReLU between them.
        commitment: β.
        epochs, batch_size, learning_rate, weight_decay: of AdamW.
        device: where it is trained, "cpu" or "cuda".
    """

    ordered = True

    def __init__(
        self,
        levels: int = 3,
        size: int = 256,
        dim: int = 32,
        hidden: Sequence[int] = (256, 128),
        commitment: float = 0.25,
        epochs: int = 300,
        batch_size: int = 1024,
        learning_rate: float = 1e-3,
        weight_decay: float = 1e-4,
        device: str = "cpu",
    ) -> None:
        check_shape(levels, size)
        if dim < 1 or min(hidden, default=1) < 1 or epochs < 1 or batch_size < 1:
            raise ValueError(
                f"dim, hidden, epochs and batch_size must be at least 1, found {dim}, {list(hidden)}, {epochs} and "
                f"{batch_size}"
            )
        self.levels, self.size, self.dim, self.hidden, self.commitment = levels, size, dim, tuple(hidden), commitment
        self.epochs, self.batch_size, self.learning_rate = epochs, batch_size, learning_rate
        self.weight_decay, self.device = weight_decay, device
        self.facts: dict[str, Any] = {}
        self._net: nn.ModuleDict | None = None

    @property
    def sizes(self) -> tuple[int, ...]:
        """(M,): codes per level."""
        return (self.size,) * self.levels

    @property
    def codewords(self) -> list[np.ndarray] | None:
        """(K, d) codewords of each level, in the space of the latents."""
        return None if self._net is None else list(_books(self._net).words.detach().cpu().numpy())

    def fit(self, vectors: np.ndarray, seed: int) -> None:
        """Train on ``vectors`` (n, F).

        Raises:
            DataError: fewer different vectors, or latents at a level, than codes.
        """
        points = sampled(vectors, max(self.size * MOST_POINTS, 1 << 18), seed)
        check_distinct(points, self.size, "vectors")
        self._mean, self._scale = points.mean(0), points.std(0)
        self._scale[self._scale <= 0] = 1
        self._net = self._made(points.shape[1], seed)
        inputs = torch.from_numpy((points - self._mean) / self._scale).to(self.device)
        self._train(self._net, inputs, seed)
        self._net.eval()

    @torch.no_grad()
    def encode(self, vectors: np.ndarray) -> np.ndarray:
        """(N, M) int32 codes of ``vectors`` (N, F)."""
        check_fitted(self._net is not None)
        assert self._net is not None
        parts = []
        for first in range(0, len(vectors), _CHUNK):
            scaled = (np.asarray(vectors[first : first + _CHUNK], np.float32) - self._mean) / self._scale
            latents = self._net["encoder"](torch.from_numpy(scaled).to(self.device))
            parts.append(_books(self._net)(latents).codes.cpu().numpy())
        return np.concatenate(parts).astype(np.int32)

    @torch.no_grad()
    def decode(self, codes: np.ndarray) -> np.ndarray:
        """(N, F) float32: the decoder of the sum of codewords."""
        assert self._net is not None
        words = _books(self._net).words
        total = sum(words[level][torch.from_numpy(codes[:, level]).long()] for level in range(self.levels))
        found: np.ndarray = self._net["decoder"](total).cpu().numpy() * self._scale + self._mean
        return found

    def _made(self, width: int, seed: int) -> nn.ModuleDict:
        """The encoder, the codebooks and the decoder, with weights drawn by ``seed``."""
        widths = [width, *self.hidden, self.dim]
        generator = torch_generator(seed, "rq-vae")
        parts = {"encoder": layers(widths, generator), "decoder": layers(widths[::-1], generator)}
        books = ResidualCodebooks(self.levels, self.size, self.dim, self.commitment)
        return nn.ModuleDict({**parts, "books": books}).to(self.device)

    def _train(self, net: nn.ModuleDict, inputs: Tensor, seed: int) -> None:
        books = _books(net)
        with torch.no_grad():
            books.start(net["encoder"](inputs), seed)
        optimizer = torch.optim.AdamW(net.parameters(), self.learning_rate, weight_decay=self.weight_decay)
        order, draw = torch_generator(seed, "order"), torch_generator(seed, "resets")
        moved, loss = 0, torch.zeros(())
        with Progress(self.epochs, "rq-vae", "epochs") as shown:
            for epoch in range(self.epochs):
                for index in torch.randperm(len(inputs), generator=order).split(self.batch_size):
                    batch = inputs[index.to(inputs.device)]
                    found = books(net["encoder"](batch))
                    loss = F.mse_loss(net["decoder"](found.straight), batch) + found.loss
                    optimizer.zero_grad(set_to_none=True)
                    loss.backward()
                    optimizer.step()
                if (epoch + 1) % RESET_EPOCHS == 0 and epoch < self.epochs * _RESETS_UNTIL:
                    with torch.no_grad():
                        moved += books.move_unused(net["encoder"](inputs), draw)
                shown.advance(1, loss=float(loss.detach()))
        self.facts = {"loss": float(loss.detach()), "codes_moved": moved}


def nearest(points: Tensor, words: Tensor) -> Tensor:
    """(n,) int64: of each of ``points`` (n, d) the nearest of ``words`` (K, d)."""
    return (0.5 * (words**2).sum(1) - points @ words.T).argmin(1)


def _books(net: nn.ModuleDict) -> ResidualCodebooks:
    books = net["books"]
    assert isinstance(books, ResidualCodebooks)
    return books
