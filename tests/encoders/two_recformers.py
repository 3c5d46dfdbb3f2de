"""An epoch of two stages of Recformer on as many processes as asked for; their terms go to a file."""

import json
import sys
from pathlib import Path

import torch

from recsys.auxiliaries.pretraining import RecformerPretraining
from recsys.targets.one_target import OneTarget
from recsys.train.fit import fit
from recsys.train.settings import Stage


def train(devices, out):
    from test_recformer import DIM, model, walks  # beside this file: on the path of the process, not of pytest

    # 9 users in batches of 8: the last batch has a row for one process only.
    pretraining = [RecformerPretraining(DIM, vocab_size=300, mlm=0.0)]
    one = model(num_layers=1, max_length=6, targets=OneTarget(), pretraining=pretraining)
    stages = [
        Stage(1, losses=["RecformerPretraining0"], name="pretrain", validate=False),
        Stage(1, losses=["loss"], name="first", validate=False),
    ]
    options = {"accelerator": "cpu", "devices": devices, "strategy": "ddp" if devices > 1 else "auto"}
    fitted = fit(one, walks(users=9), stages=stages, batch_size=8, progress=False, exclude="none", **options)
    if devices == 1 or torch.distributed.get_rank() == 0:
        out.write_text(json.dumps(fitted.history[0]["terms"] | fitted.history[1]["terms"]))


if __name__ == "__main__":
    torch.set_num_threads(1)
    train(int(sys.argv[1]), Path(sys.argv[2]))
