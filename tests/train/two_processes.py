"""One training run, on as many processes as asked for; started twice by Lightning if there are two."""

import json
import sys
from pathlib import Path

import torch
from cycles import cycles, tiny
from pairs import PairSource, Preference

from recsys.train.fit import fit
from recsys.train.settings import Stage


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
    pairs = own_batches(devices, options)
    rank = torch.distributed.get_rank() if devices > 1 else 0
    (folder / f"rank-{rank}.json").write_text(json.dumps([first.best, second.best, second.history, pairs]))


def own_batches(devices, options):
    """A stage on preference pairs, 31 of them in batches of 6: one process gets no row of the last batch.

    Stopped by a callback on one of the processes.
    """
    model, source = tiny(dropout=0.0, auxiliaries=[Preference()]), PairSource(num_pairs=31, batch_size=6)
    stages = [Stage(9, losses=["Preference0"], data=source, validate=False)]
    options = {**options, "folder": None, "accumulate": 1, "stages": stages, "callbacks": [early]}
    history = fit(model, cycles(users=41), **options).history
    return [history, {name: value.detach().flatten().tolist() for name, value in model.named_parameters()}]


def early(epoch):
    rank = torch.distributed.get_rank() if torch.distributed.is_initialized() else 0
    return epoch.epoch == 2 and rank == 0


if __name__ == "__main__":
    torch.set_num_threads(1)
    train(Path(sys.argv[1]), int(sys.argv[2]))
