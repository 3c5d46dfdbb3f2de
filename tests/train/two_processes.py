"""One training run, on as many processes as asked for; started twice by Lightning if there are two."""

import json
import sys
from pathlib import Path

import torch
from cycles import cycles, tiny

from recsys.train.fit import fit


def adam(parameters):
    """With an eps above rounding: attention does not see the bias of its keys, whose gradient is rounding alone."""
    return torch.optim.Adam(parameters, lr=0.01, eps=1e-5)


def train(folder, devices):
    # 41 users with training targets and batches of 8 rows: the last batch of an epoch has rows for one process only.
    split, model = cycles(users=41), tiny(dropout=0.0)
    options = {"accelerator": "cpu", "devices": devices, "strategy": "ddp" if devices > 1 else "auto"}
    options |= {"batch_size": 8, "accumulate": 2, "progress": False, "folder": folder, "optimizer": adam}
    first = fit(model, split, epochs=3, **options)
    second = fit(model, split, epochs=4, **options)
    rank = torch.distributed.get_rank() if devices > 1 else 0
    (folder / f"rank-{rank}.json").write_text(json.dumps([first.best, second.best, second.history]))


if __name__ == "__main__":
    torch.set_num_threads(1)
    train(Path(sys.argv[1]), int(sys.argv[2]))
