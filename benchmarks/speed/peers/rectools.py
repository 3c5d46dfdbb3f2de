"""RecTools: its SASRecModel trained through its own ``fit``, and its ranker with its metrics.

Variant ``flat`` replaces the loss through the documented ``lightning_module_type``: the same cross-entropy, over rows
of the logits instead of over the transposed tensor, which is the cheapest improvement open to its users.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import torch
from peers.meter import Meter, read_task, set_threads
from pytorch_lightning import Callback, LightningModule, Trainer
from rectools import Columns
from rectools.dataset import Dataset
from rectools.models import SASRecModel
from rectools.models.nn.transformers.lightning import TransformerLightningModule


class Stopwatch(Callback):
    """Counts the real targets of each training step and stops the trainer when enough was measured."""

    def __init__(self, meter: Meter) -> None:
        self.meter = meter
        self.losses: list[float] = []

    def __deepcopy__(self, memo: dict[int, Any]) -> Stopwatch:
        return self  # RecTools copies its trainer before each fit

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: dict[str, torch.Tensor], batch_idx: int
    ) -> None:
        self.losses.append(outputs["loss"].detach())
        if self.meter.step(int((batch["y"] != 0).sum())):
            trainer.should_stop = True


class FlatLoss(TransformerLightningModule):
    """The same loss over (B * L, items) rows."""

    @classmethod
    def _calc_softmax_loss(cls, logits: torch.Tensor, y: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        rows = logits.flatten(0, 1)
        loss = torch.nn.functional.cross_entropy(rows, y.flatten(), ignore_index=0, reduction="none") * w.flatten()
        return loss.sum() / (loss > 0).sum()


def train(task: dict[str, Any]) -> None:
    """Fit SASRecModel for the time of the task."""
    meter = Meter(task)
    data = np.load(task["sequences"])
    counts = np.diff(data["offsets"])
    frame = pd.DataFrame(
        {
            Columns.User: np.repeat(np.arange(len(counts)), counts),
            Columns.Item: data["items"],
            Columns.Weight: 1.0,
            Columns.Datetime: pd.Timestamp("2000-01-01") + pd.to_timedelta(np.arange(len(data["items"])), unit="s"),
        }
    )
    watch = Stopwatch(meter)

    def trainer() -> Trainer:
        return Trainer(
            max_epochs=100_000, accelerator="cpu", devices=1, callbacks=[watch], logger=False,
            enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False,
        )  # fmt: skip

    flat = task["variant"] == "flat"
    model = SASRecModel(
        n_blocks=task["blocks"], n_heads=task["heads"], n_factors=task["dim"], dropout_rate=task["dropout"],
        session_max_len=task["max_length"], batch_size=task["batch_size"], lr=task["learning_rate"], loss="softmax",
        get_trainer_func=trainer, recommend_torch_device="cpu",
        lightning_module_type=FlatLoss if flat else TransformerLightningModule,
    )  # fmt: skip
    model.fit(Dataset.construct(frame))
    catalogue = model.data_preparator.item_id_map.size - 1
    parameters = sum(parameter.numel() for parameter in model.torch_model.parameters())
    losses = [round(float(loss), 4) for loss in (watch.losses[0], watch.losses[-1])]
    meter.write(["rectools", "torch", "pytorch-lightning"], catalogue=catalogue, parameters=parameters, losses=losses)


def evaluate(task: dict[str, Any]) -> None:
    """Rank with RecTools' TorchRanker and count with ``calc_metrics``."""
    from rectools.metrics import NDCG, HitRate, calc_metrics
    from rectools.models.rank import Distance, TorchRanker
    from scipy.sparse import csr_matrix

    data = dict(np.load(task["vectors"]))
    users, items = data["users"], data["items"]
    ones = np.ones(len(data["history"]), dtype=np.float32)
    seen = csr_matrix((ones, data["history"] - 1, data["offsets"]), shape=(len(users), len(items)))
    truth = pd.DataFrame({Columns.User: np.arange(len(users)), Columns.Item: data["targets"] - 1})
    wanted = {"hr@10": HitRate(k=10), "ndcg@10": NDCG(k=10, divide_by_achievable=True)}
    meter = Meter(task)
    metrics: dict[str, float] = {}
    while not meter.done:
        ranker = TorchRanker(Distance.DOT, "cpu", subjects_factors=users, objects_factors=items)
        who, what, scores = ranker.rank(subject_ids=np.arange(len(users)), k=10, filter_pairs_csr=seen)
        lists = pd.DataFrame({Columns.User: who, Columns.Item: what, Columns.Score: scores})
        lists[Columns.Rank] = lists.groupby(Columns.User, sort=False).cumcount() + 1
        metrics = {name: float(value) for name, value in calc_metrics(wanted, lists, truth).items()}
        meter.step(len(users))
    meter.write(["rectools", "torch"], metrics=metrics)


if __name__ == "__main__":
    task = read_task()
    set_threads(task)
    {"train": train, "evaluate": evaluate}[task["kind"]](task)
