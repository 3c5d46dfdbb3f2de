"""RecBole: its SASRec trained by its own ``Trainer``, and its evaluator.

RecBole makes one training row of every prefix of every history and predicts only that row's last item, so a batch of
128 rows holds 128 targets. It keeps the post-norm layout of its SASRec; widths, activation and dropout are set to
those of the others.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peers.meter import Meter, read_task, set_threads
from recbole.config import Config
from recbole.data.dataloader import TrainDataLoader
from recbole.data.dataset import SequentialDataset
from recbole.data.interaction import Interaction
from recbole.model.sequential_recommender import SASRec
from recbole.trainer import Trainer
from recbole.utils import init_seed


class Timed:
    """A data loader that counts its batches and ends when enough was measured."""

    shuffle = True

    def __init__(self, loader: TrainDataLoader, meter: Meter) -> None:
        self.loader, self.meter = loader, meter

    def __iter__(self) -> Iterator[Interaction]:
        return self.meter.watch(self.loader, len)


def settings(task: dict[str, Any]) -> Config:
    """RecBole's configuration of the task; everything not named here is its default."""
    chosen = {
        "data_path": str(Path.cwd()), "checkpoint_dir": str(Path.cwd()), "use_gpu": False, "show_progress": False,
        "state": "ERROR", "seed": task["seed"], "worker": 0, "load_col": {"inter": ["user_id", "item_id", "timestamp"]},
        "train_neg_sample_args": None, "loss_type": "CE", "repeatable": True, "topk": [10], "metrics": ["Hit", "NDCG"],
        "metric_decimal_place": 12, "eval_args": {"split": {"LS": "valid_and_test"}, "order": "TO", "mode": "full"},
        "MAX_ITEM_LIST_LENGTH": task.get("max_length", 50), "train_batch_size": task.get("batch_size", 128),
        "learning_rate": task.get("learning_rate", 1e-3), "n_layers": task.get("blocks", 2),
        "n_heads": task.get("heads", 1), "hidden_size": task.get("dim", 64), "inner_size": task.get("dim", 64),
        "hidden_act": "relu", "hidden_dropout_prob": task.get("dropout", 0.2),
        "attn_dropout_prob": task.get("dropout", 0.2),
    }  # fmt: skip
    return Config(model="SASRec", dataset="sequences", config_dict=chosen)


def train(task: dict[str, Any]) -> None:
    """Train SASRec for the time of the task, all of whose data is training data."""
    meter = Meter(task)
    data = np.load(task["sequences"])
    counts = np.diff(data["offsets"])
    Path("sequences").mkdir()
    users = np.repeat(np.arange(len(counts)), counts)
    table = np.column_stack([users, data["items"], np.arange(len(users))])
    header = "user_id:token\titem_id:token\ttimestamp:float"
    np.savetxt("sequences/sequences.inter", table, fmt="%d", delimiter="\t", header=header, comments="")
    config = settings(task)
    init_seed(task["seed"], reproducibility=True)
    dataset = SequentialDataset(config)
    dataset._change_feat_format()  # what build() does before it splits: every prefix becomes a row
    loader = TrainDataLoader(config, dataset, None, shuffle=True)
    model = SASRec(config, dataset)
    trainer = Trainer(config, model)
    epoch = 0
    while not meter.done:
        trainer._train_epoch(Timed(loader, meter), epoch)
        epoch += 1
    parameters = sum(parameter.numel() for parameter in model.parameters())
    catalogue = dataset.item_num - 1
    meter.write(["recbole", "torch", "numpy"], catalogue=catalogue, parameters=parameters, rows=len(dataset))


def evaluate(task: dict[str, Any]) -> None:
    """Rank with RecBole's collector and evaluator, in batches of its default 4,096 users."""
    from recbole.evaluator import Collector, Evaluator

    Path("sequences").mkdir()
    Path("sequences/sequences.inter").write_text("user_id:token\titem_id:token\ttimestamp:float\n")
    config = settings(task)
    data = {name: torch.from_numpy(array) for name, array in np.load(task["vectors"]).items()}
    items = torch.cat([torch.zeros(1, data["items"].shape[1]), data["items"]]).T.contiguous()
    sizes = data["offsets"].diff()
    meter = Meter(task)
    found: dict[str, float] = {}
    while not meter.done:
        collector, evaluator = Collector(config), Evaluator(config)
        for rows in torch.arange(len(sizes)).split(config["eval_batch_size"]):
            scores = data["users"][rows] @ items
            scores[:, 0] = -np.inf
            seen = data["history"][data["offsets"][rows[0]] : data["offsets"][rows[-1] + 1]]
            scores[torch.arange(len(rows)).repeat_interleave(sizes[rows]), seen] = -np.inf
            collector.eval_batch_collect(scores, None, torch.arange(len(rows)), data["targets"][rows])
        found = evaluator.evaluate(collector.get_data_struct())
        meter.step(len(sizes))
    metrics = {"hr@10": float(found["hit@10"]), "ndcg@10": float(found["ndcg@10"])}
    meter.write(["recbole", "torch", "numpy"], metrics=metrics)


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    task = read_task()
    set_threads(task)
    {"train": train, "evaluate": evaluate}[task["kind"]](task)
