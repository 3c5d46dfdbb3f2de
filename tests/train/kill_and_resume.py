"""Child of test_resume.py: trains, is killed with SIGKILL at a chosen moment, trains again.

Each run is a fork of this process, which imports everything once and never computes anything itself.
"""

import json
import os
import signal
import sys
from pathlib import Path

import torch
from cycles import cycles, tiny
from safetensors.torch import save

from recsys.negatives.uniform import UniformNegatives
from recsys.objectives.sampled import SampledSoftmax
from recsys.recommenders.composed import Recommender
from recsys.runs import checkpoint
from recsys.runs.write import RunFolder
from recsys.train import loop, update
from recsys.train.fit import fit
from recsys.train.settings import Stage

MOMENTS = ("update", "validation", "weights", "tensors", "rename", "pointer", "stage")


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def after(number, owner, name, act=None):
    """Die behind the ``number``-th call of ``owner.name``; ``act`` comes before that call and may die sooner."""
    original, calls = getattr(owner, name), []

    def patched(*arguments, **named):
        calls.append(1)
        if len(calls) == number and act is not None:
            act(*arguments, **named)
        answer = original(*arguments, **named)
        return die() if len(calls) == number else answer

    setattr(owner, name, patched)


def arm(moment):
    if moment == "update":  # in the middle of the second epoch, some updates after a checkpoint
        after(7, update.Updater, "__call__")
    elif moment == "validation":  # while users are being scored
        after(2, loop.Validation, "__call__", lambda *_: after(1, Recommender, "score"))
    elif moment == "weights":  # better weights are written, the checkpoint that knows of them is not
        after(2, RunFolder, "write_weights")
    elif moment == "tensors":  # half of a file of a checkpoint is written
        after(8, checkpoint, "write_tensors", half_a_file)
    elif moment == "rename":  # a checkpoint is whole, but under its temporary name
        after(7, checkpoint, "_flush")
    elif moment == "pointer":  # a checkpoint is in place, and nothing points at it
        after(6, checkpoint, "write_text", lambda *_: die())
    elif moment == "stage":  # in the middle of an epoch of the second stage
        after(11, update.Updater, "__call__")


def half_a_file(path, tensors):
    whole = save({name: value.contiguous() for name, value in tensors.items()})
    path.with_name(path.name + ".partial").write_bytes(whole[: len(whole) // 2])
    die()


def train(folder, workers):
    torch.set_num_threads(1)
    model = tiny(objective=SampledSoftmax(UniformNegatives(5)))
    stages = [Stage(2), Stage(2, freeze=["encoder"], learning_rate=0.003)]
    options = {"warmup_steps": 5, "decay": "cosine", "clip_norm": 1.0, "accumulate": 2, "checkpoint_every": 2}
    options["progress"] = False
    fit(model, cycles(), stages=stages, batch_size=13, workers=workers, folder=folder, seed=3, **options)


def forked(work, *arguments):
    child = os.fork()
    if child == 0:
        try:
            work(*arguments)
            os._exit(0)
        except BaseException:
            import traceback

            traceback.print_exc()
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def killed(folder, workers, moment):
    arm(moment)
    train(folder, workers)


def main(root):
    import lightning.fabric  # noqa: F401 - once, before the forks

    codes = {}
    for workers in (0, 2):
        codes[f"whole-{workers}"] = forked(train, root / f"whole-{workers}", workers)
        for moment in MOMENTS:
            folder = root / f"{moment}-{workers}"
            died = forked(killed, folder, workers, moment)
            left = sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))
            pointer = folder / "checkpoints" / "last.json"
            state = pointer.parent / json.loads(pointer.read_text())["folder"] / "state.json"
            codes[folder.name] = {"died": died, "left": left, "state": json.loads(state.read_text())["loop"]}
            codes[folder.name]["again"] = forked(train, folder, workers)
    (root / "codes.json").write_text(json.dumps(codes))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
