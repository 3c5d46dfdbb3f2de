"""A recipe for RecBole's own models on our split: ``--model`` is the name of its class, such as SASRec or LightGCN.

Needs an environment with RecBole (``python3 tasks.py parity`` makes ``.venv-parity``):

    .venv-parity/bin/python benchmarks/quality/encoders.py --data ml-100k --only recbole-gru4rec recbole-sasrec
    .venv-parity/bin/python benchmarks/quality/encoders.py --data ml-100k --recbole BERT4Rec LightGCN
    .venv-parity/bin/recsys fit benchmarks/quality/outside.py --model NARM --config '{"n_layers": 1}'

RecBole trains it with its own loop on the training events, our evaluator ranks it. Everything that is no flag here is
RecBole's default; batches of 512 rows instead of its 2,048 make more updates out of each of its slow epochs. The number
of epochs is chosen on each user's last training event (see recsys.recommenders.recbole).
"""

from __future__ import annotations

import json
from typing import Literal

import recsys as rs
from recsys.recommenders.recbole import RecBole


def run(
    model: str = "GRU4Rec",
    data: Literal["ml-100k", "ml-1m", "amazon-beauty"] = "ml-100k",
    dim: int = 64,
    max_length: int | None = None,
    epochs: int = 100,
    patience: int = 5,
    batch_size: int = 512,
    learning_rate: float = 1e-3,
    config: str = "{}",
    log: str | None = None,
    seed: int = 0,
) -> rs.Run:
    """``config`` holds further parameters of RecBole, as JSON; lengths are those of our recipes."""
    chosen = {
        "hidden_size": dim,
        "embedding_size": dim,
        "MAX_ITEM_LIST_LENGTH": max_length or (200 if data == "ml-1m" else 50),
        "train_batch_size": batch_size,
        "learning_rate": learning_rate,
        **json.loads(config),
    }
    theirs = RecBole(model, chosen, epochs, patience, log)
    return rs.Run(theirs, rs.load(data).split(rs.LeaveLast()), {"seed": seed}, name=f"RecBole {model}")
