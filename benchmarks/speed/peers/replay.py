"""RePlay: its ``replay.nn`` SasRec trained by Lightning from a Parquet file, and its metrics callback's parts.

Variant ``bucketed`` wraps the encoder in RePlay's own ``LengthBucketedQueryEncoder`` (rows of like length together).
RePlay also predicts the first item of a short history from padding alone; those targets are not counted.
"""

from __future__ import annotations

import warnings
from typing import Any

import lightning
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from peers.meter import Meter, read_task, set_threads
from replay.data import FeatureHint, FeatureSource, FeatureType
from replay.data.nn import TensorFeatureInfo, TensorFeatureSource, TensorSchema
from replay.data.nn.parquet import ParquetModule
from replay.nn.lightning import LightningModule
from replay.nn.lightning.optimizer import OptimizerFactory
from replay.nn.sequential import SasRec
from replay.nn.transform.template import make_default_sasrec_transforms


class Stopwatch(lightning.Callback):
    """Counts the real targets of each training step and stops the trainer when enough was measured."""

    def __init__(self, meter: Meter) -> None:
        self.meter = meter
        self.losses: list[torch.Tensor] = []

    def on_train_batch_end(
        self,
        trainer: lightning.Trainer,
        pl_module: lightning.LightningModule,
        outputs: Any,
        batch: dict[str, torch.Tensor],
        batch_idx: int,
    ) -> None:
        self.losses.append(outputs["loss"].detach())
        real = batch["padding_mask"] & batch["target_padding_mask"].squeeze(-1)
        if self.meter.step(int(real.sum())):
            trainer.should_stop = True


def train(task: dict[str, Any]) -> None:
    """Fit SasRec for the time of the task."""
    meter = Meter(task)
    data = np.load(task["sequences"])
    padding = int(data["num_items"])
    # users with one event have nothing to learn from
    long = np.flatnonzero(np.diff(data["offsets"]) >= 2)
    rows = [data["items"][data["offsets"][user] : data["offsets"][user + 1]] - 1 for user in long]
    pq.write_table(pa.table({"item_id": pa.array(rows, type=pa.list_(pa.int64()))}), "sequences.parquet")
    schema = TensorSchema(
        [
            TensorFeatureInfo(
                "item_id",
                FeatureType.CATEGORICAL,
                is_seq=True,
                feature_hint=FeatureHint.ITEM_ID,
                feature_sources=[TensorFeatureSource(FeatureSource.INTERACTIONS, "item_id")],
                cardinality=padding,
                padding_value=padding,
                embedding_dim=task["dim"],
            )
        ]
    )
    module = ParquetModule(
        batch_size=task["batch_size"],
        metadata={"train": {"item_id": {"shape": task["max_length"] + 1, "padding": padding}}},
        transforms=make_default_sasrec_transforms(schema),
        train_path="sequences.parquet",
    )
    model = SasRec.from_params(
        schema, embedding_dim=task["dim"], num_heads=task["heads"], num_blocks=task["blocks"],
        max_sequence_length=task["max_length"], dropout=task["dropout"],
    )  # fmt: skip
    if task["variant"] == "bucketed":
        from replay.nn.sequential.length_bucket import LengthBucketedQueryEncoder

        model.body.encoder = LengthBucketedQueryEncoder(model.body.encoder, bucket_size=task["batch_size"] // 4)
    watch = Stopwatch(meter)
    trainer = lightning.Trainer(
        max_epochs=100_000, accelerator="cpu", devices=1, callbacks=[watch], logger=False, limit_val_batches=0,
        enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False,
    )  # fmt: skip
    trainer.fit(LightningModule(model, OptimizerFactory(learning_rate=task["learning_rate"])), datamodule=module)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    losses = [round(float(loss), 4) for loss in (watch.losses[0], watch.losses[-1])]
    meter.write(["replay-rec", "torch", "lightning"], catalogue=padding, parameters=parameters, losses=losses)


def evaluate(task: dict[str, Any]) -> None:
    """Rank with the steps of RePlay's metrics callback: filter of seen items, top k, TorchMetricsBuilder."""
    from replay.metrics.torch_metrics_builder import TorchMetricsBuilder
    from replay.nn.lightning.postprocessor import SeenItemsFilter

    data = {name: torch.from_numpy(array) for name, array in np.load(task["vectors"]).items()}
    sizes = data["offsets"].diff()
    at = torch.arange(int(sizes.max()))
    seen = torch.full((len(sizes), len(at)), -1)
    seen[at < sizes[:, None]] = data["history"] - 1
    items = data["items"].T.contiguous()
    truth = data["targets"][:, None] - 1
    filter_seen = SeenItemsFilter(items.shape[1])
    meter = Meter(task)
    metrics: dict[str, float] = {}
    while not meter.done:
        builder = TorchMetricsBuilder(["recall", "ndcg"], [10])
        for rows in torch.arange(len(sizes)).split(512):
            scores = filter_seen.on_validation({"seen_ids": seen[rows]}, data["users"][rows] @ items)
            builder.add_prediction(scores.topk(builder.max_k, dim=1).indices, truth[rows])
        metrics = dict(builder.get_metrics())
        meter.step(len(sizes))
    found = {"hr@10": float(metrics["recall@10"]), "ndcg@10": float(metrics["ndcg@10"])}
    meter.write(["replay-rec", "torch"], metrics=found)


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    task = read_task()
    set_threads(task)
    {"train": train, "evaluate": evaluate}[task["kind"]](task)
