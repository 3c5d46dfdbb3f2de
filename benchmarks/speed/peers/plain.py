"""A plain torch loop: SASRec as one would write it in an afternoon, without a library, and its ranking metrics.

Pre-norm blocks with fused causal attention on right-padded batches cut to their longest history; logits for the real
targets only, all at once; ``torch.optim.Adam``. It is the yardstick for what a library costs or gains. Attention
weights are dropped as the libraries do; variant ``fused-attention`` leaves them, so that torch's fused kernel is used.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from peers.meter import Meter, read_task, set_threads
from torch import Tensor, nn


class Block(nn.Module):
    """One pre-norm Transformer block, causal."""

    def __init__(self, dim: int, heads: int, dropout: float, attention_dropout: float) -> None:
        super().__init__()
        self.heads, self.rate = heads, attention_dropout
        self.norms = nn.ModuleList([nn.LayerNorm(dim), nn.LayerNorm(dim)])
        self.qkv, self.out = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.feed = nn.Sequential(nn.Linear(dim, dim), nn.ReLU(), nn.Dropout(dropout), nn.Linear(dim, dim))
        self.drop = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        size = (*x.shape[:2], self.heads, -1)
        q, k, v = (part.view(size).transpose(1, 2) for part in self.qkv(self.norms[0](x)).chunk(3, dim=-1))
        rate = self.rate if self.training else 0.0
        mixed = F.scaled_dot_product_attention(q, k, v, dropout_p=rate, is_causal=True)
        x = x + self.drop(self.out(mixed.transpose(1, 2).flatten(2)))
        return x + self.drop(self.feed(self.norms[1](x)))


class PlainSASRec(nn.Module):
    """Item and position tables, two blocks, a last norm; scores by dot product with the item table."""

    def __init__(self, num_items: int, task: dict[str, Any]) -> None:
        super().__init__()
        dim = task["dim"]
        self.items = nn.Embedding(num_items + 1, dim, padding_idx=0)
        self.positions = nn.Embedding(task["max_length"], dim)
        attention = 0.0 if task["variant"] == "fused-attention" else task["dropout"]
        blocks = (Block(dim, task["heads"], task["dropout"], attention) for _ in range(task["blocks"]))
        self.blocks = nn.Sequential(*blocks)
        self.norm, self.drop = nn.LayerNorm(dim), nn.Dropout(task["dropout"])
        for table in (self.items, self.positions):
            nn.init.normal_(table.weight, std=0.02)

    def forward(self, ids: Tensor) -> Tensor:
        """(B, L) ids to (B, L, D) states."""
        x = self.items(ids) * self.items.embedding_dim**0.5 + self.positions.weight[: ids.shape[1]]
        return self.norm(self.blocks(self.drop(x)))


def batches(items: np.ndarray, offsets: np.ndarray, task: dict[str, Any]) -> Iterator[tuple[Tensor, Tensor]]:
    """Epoch after epoch of (inputs, targets), (B, L) each: the last window of every user, in random order."""
    window = task["max_length"] + 1
    start, stop = np.maximum(offsets[:-1], offsets[1:] - window), offsets[1:]
    users = np.flatnonzero(stop - start >= 2)
    while True:
        for rows in torch.randperm(len(users)).split(task["batch_size"]):
            chosen = users[rows.numpy()]
            length = stop[chosen] - start[chosen]
            at = np.arange(length.max())
            index = np.minimum(start[chosen, None] + at, stop[chosen, None] - 1)
            ids = torch.from_numpy(np.where(at < length[:, None], items[index], 0).astype(np.int64))
            yield ids[:, :-1].contiguous(), ids[:, 1:].contiguous()


def train(task: dict[str, Any]) -> None:
    """Train the plain model for the time of the task."""
    meter = Meter(task)
    data = np.load(task["sequences"])
    model = PlainSASRec(int(data["num_items"]), task)
    optimizer = torch.optim.Adam(model.parameters(), lr=task["learning_rate"], betas=(0.9, 0.98))
    stream = batches(data["items"], data["offsets"], task)
    losses = []
    for ids, targets in meter.watch(stream, lambda batch: int((batch[1] > 0).sum())):
        real = targets > 0
        logits = model(ids)[real] @ model.items.weight[1:].T
        loss = F.cross_entropy(logits, targets[real] - 1)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    meter.write(["torch"], losses=[round(float(loss), 4) for loss in (losses[0], losses[-1])])


def evaluate(task: dict[str, Any]) -> None:
    """Rank the target of every user among all items, 512 users at a time."""
    data = {name: torch.from_numpy(array) for name, array in np.load(task["vectors"]).items()}
    sizes = data["offsets"].diff()
    meter = Meter(task)
    metrics: dict[str, float] = {}
    while not meter.done:
        totals = torch.zeros(2, dtype=torch.float64)
        for rows in torch.arange(len(sizes)).split(512):
            scores = data["users"][rows] @ data["items"].T
            found = scores.gather(1, data["targets"][rows, None] - 1)
            seen = data["history"][data["offsets"][rows[0]] : data["offsets"][rows[-1] + 1]]
            scores[torch.arange(len(rows)).repeat_interleave(sizes[rows]), seen - 1] = -torch.inf
            rank = (scores > found).sum(1) + 1
            hit = rank <= 10
            totals += torch.stack([hit.sum(), (hit / torch.log2(rank + 1.0)).sum()]).double()
        hit_rate, ndcg = (totals / len(sizes)).tolist()
        metrics = {"hr@10": hit_rate, "ndcg@10": ndcg}
        meter.step(len(sizes))
    meter.write(["torch"], metrics=metrics)


if __name__ == "__main__":
    task = read_task()
    set_threads(task)
    {"train": train, "evaluate": evaluate}[task["kind"]](task)
