"""The folder of a run: what was asked for, on which data and machine, what came out, and where to go on.

``manifest.json`` (data, versions, device, seed, commit), ``config.json`` (model, knobs, recipe arguments),
``recipe.py`` and ``recipe_imports/`` (what the recipe imports from beside it), ``vocabulary/``, ``metrics.jsonl`` (one
line per epoch), ``model.safetensors`` (the best weights so far), ``checkpoints/``, ``split.json`` (where its split is),
and later ``per_user.parquet``, ``report.html`` and ``baselines/``.
"""

from __future__ import annotations

import json
import platform
import re
import sys
import time
import warnings
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from recsys.errors import DataWarning
from recsys.runs.checkpoint import (
    POINTER,
    REMEDY,
    Checkpoint,
    differences,
    read_checkpoint,
    remove_checkpoints,
    write_checkpoint,
)
from recsys.runs.read import read_config
from recsys.runs.recipe import keep_recipe
from recsys.runs.state import State
from recsys.storage.files import hold, is_folder, refuse_links, sweep, write_text
from recsys.storage.folders import LOCK, hash_file, hashes, refuse_foreign
from recsys.storage.layout import CONFIG, FORMAT, KIND, MANIFEST, STOPS, VOCABULARY, WEIGHTS
from recsys.storage.parts import with_new_defaults
from recsys.storage.reading import read_json, reading
from recsys.storage.tensors import write_tensors

if TYPE_CHECKING:
    from recsys.data.split import Split

BASELINES = "baselines"
_REPORT = ("per_user.parquet", "per_user.npz", "report.json")
METRICS, CHECKPOINTS, RECIPE = "metrics.jsonl", "checkpoints", "recipe.py"
# What a run leaves, and must not pass on to one that replaces it.
RESULTS = (
    METRICS, WEIGHTS, STOPS, "per_user.parquet", "per_user.npz", "report.json", "report.html", "sections.json",
    "split.json",
)  # fmt: skip


class RunFolder:
    """Reads and writes one run folder. Everything in it is replaced whole or not at all, and no link is followed."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._lock: Any = None

    def lock(self) -> None:
        """Make the folder if it is not there, and keep other processes from training into it, until :meth:`release`.

        Raises:
            BlockingIOError: another process is training there.
            FileExistsError: the folder holds something other than a run, or links instead of its folders.
        """
        refuse_foreign(self.path, KIND)
        refuse_links(self.path, (CHECKPOINTS, VOCABULARY), others=True)
        if self._lock is None:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = hold(self.path / LOCK, self.path)
            sweep(self.path)

    def release(self) -> None:
        """Let others train into the folder; nothing happens if it is not locked."""
        if self._lock is not None:
            with suppress(OSError):  # a system that does not let go of what is open
                (self.path / LOCK).unlink()
            self._lock.release()
            self._lock = None

    def resumable(self, identity: dict[str, Any], resume: str | bool) -> Checkpoint | None:
        """The checkpoint to go on from, None to start at the beginning.

        Args:
            identity: what decides the numbers of the run now asked for.
            resume: "auto" goes on if there is a checkpoint, True insists on one, False starts over.

        Raises:
            FileExistsError: the folder holds something other than a run.
            ValueError: it holds another run (the message lists the differences), or there is nothing to resume.
            DataError: the checkpoint is damaged or of another format.
        """
        refuse_foreign(self.path, KIND)
        refuse_links(self.path, (CHECKPOINTS, VOCABULARY), others=True)
        if resume is False:
            return None
        found = read_checkpoint(self.path / CHECKPOINTS)
        with reading(self.path / CHECKPOINTS, REMEDY):
            before = found.state["identity"] if found else self._identity()
            if found is not None:
                State.of(found.state["loop"])
        before = with_new_defaults(before, identity)  # of a run that an earlier version began
        if before is not None and before != identity:
            lines = list(differences(before, identity))
            shown = "\n  ".join(lines[:12] + ([f"... and {len(lines) - 12} more"] if len(lines) > 12 else []))
            raise ValueError(
                f"{self.path} holds another run; it differs in\n  {shown}\n"
                "Use another folder, or pass resume=False to replace what is there."
            )
        if resume is True and found is None:
            raise ValueError(f'{self.path} has no checkpoint to resume from: resume="auto" starts at the beginning')
        return found

    def begin(
        self,
        manifest: dict[str, Any],
        config: dict[str, Any],
        split: Split,
        recipe: Path | None,
        stops: np.ndarray | None = None,
    ) -> None:
        """Make the folder of a run that starts at the beginning, without any results of an earlier one.

        Args:
            stops: where the events end that the model learns from, by user; see :class:`recsys.data.cut.Cut`.
        """
        refuse_links(self.path, (CHECKPOINTS, VOCABULARY), others=True)
        self.path.mkdir(parents=True, exist_ok=True)
        manifest = {"kind": KIND, "format": FORMAT, **manifest}
        write_text(self.path / MANIFEST, _json(manifest))
        remove_checkpoints(self.path / CHECKPOINTS)
        clear_baselines(self.path)
        for name in RESULTS:
            if (self.path / name).is_symlink() or not (self.path / name).is_dir():
                (self.path / name).unlink(missing_ok=True)
        write_text(self.path / CONFIG, _json({"format": FORMAT, **config}))
        split.items.save(self.path / VOCABULARY, "items")
        if stops is not None:
            write_tensors(self.path / STOPS, {"stops": torch.from_numpy(np.array(stops, dtype=np.int64))})
        keep_recipe(recipe, self.path)
        write_text(self.path / MANIFEST, _json({**manifest, "files": self._hashes()}))

    def resumed(self, manifest: dict[str, Any]) -> None:
        """Note in the manifest that the run goes on, and warn if it does so with other library versions."""
        before = read_json(self.path / MANIFEST, REMEDY)
        changed = list(differences(before.get("versions"), manifest["versions"]))
        if changed:
            note = "resumed with other versions, so the numbers may differ in the last digits: " + "; ".join(changed)
            warnings.warn(note, DataWarning, stacklevel=2)
        again = {name: manifest[name] for name in ("started", "versions", "machine")}
        write_text(self.path / MANIFEST, _json({**before, "resumed": [*before.get("resumed", []), again]}))

    def checkpoint(self, name: str, checkpoint: Checkpoint) -> None:
        """Write a checkpoint and make it the one to resume from."""
        try:
            write_checkpoint(self.path / CHECKPOINTS, name, checkpoint)
        except OSError as error:
            if (self.path / CHECKPOINTS / POINTER).is_file():
                error.add_note(f"the checkpoint before this one in {self.path} is intact: make room and resume")
            raise

    def write_metrics(self, history: list[dict[str, Any]]) -> None:
        """One JSON line per finished epoch."""
        write_text(self.path / METRICS, "".join(json.dumps(record) + "\n" for record in history))

    def write_weights(self, tensors: dict[str, Tensor]) -> None:
        """The weights that :func:`recsys.load_run` gives back."""
        write_tensors(self.path / WEIGHTS, tensors)

    def _hashes(self) -> dict[str, Any]:
        """Of what does not change any more; a file of tensors has its own hash in it."""
        own = {name: hash_file(self.path / name) for name in (CONFIG, RECIPE) if (self.path / name).is_file()}
        return own | {f"{VOCABULARY}/{name}": entry for name, entry in hashes(self.path / VOCABULARY).items()}

    def _identity(self) -> dict[str, Any] | None:
        if not (self.path / CONFIG).is_file():
            return None
        identity: dict[str, Any] = read_config(self.path)["identity"]
        return identity


def machine_facts(split: Split, seed: int, device: torch.device, processes: int) -> dict[str, Any]:
    """What ``manifest.json`` keeps about data, versions, machine and time."""
    import recsys

    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else None
    return {
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "data": data_facts(split),
        "versions": {
            "recsys": recsys.__version__,
            "torch": torch.__version__,
            "numpy": np.__version__,
            "python": platform.python_version(),
        },
        "machine": {
            "platform": platform.platform(),
            "device": gpu or device.type,
            "processes": processes,
            "threads": torch.get_num_threads(),
        },
        "seed": seed,
        "commit": commit(),
        "command": sys.argv,
    }


def data_facts(split: Split) -> dict[str, Any]:
    """Name, hash, sizes and protocol of the data, and which of their events train."""
    return {
        "name": split.name,
        "hash": split.data_hash or split.prepared.fingerprint,
        "users": split.num_users,
        "items": split.num_items,
        "protocol": json.loads(json.dumps(split.protocol, default=str)),
        "cut": split.cut.to_dict(),
    }


def commit() -> str | None:
    """The git commit of the working folder, None outside a repository.

    It is read from the files of git, and no program is started: what a repository configures may run programs. So
    whether files were changed since that commit is not known.
    """
    here = Path.cwd()
    with suppress(OSError, ValueError):
        for folder in (here, *here.parents):
            if (folder / ".git").exists():
                return _head(folder / ".git")
    return None


_HASH = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
_REFERENCE = re.compile(r"refs/[\w./-]+")


def _head(git: Path) -> str | None:
    """The commit at which the repository stands that ``.git``, a folder or a file that names one, belongs to."""
    if git.is_file():  # a worktree or a submodule
        git = git.parent / _line(git).removeprefix("gitdir:").strip()
    head = _line(git / "HEAD")
    if not head.startswith("ref:"):
        return head if _HASH.fullmatch(head) else None
    name = head.removeprefix("ref:").strip()
    if not _REFERENCE.fullmatch(name) or ".." in name:
        return None
    common = git / _line(git / "commondir") if (git / "commondir").is_file() else git
    for home in (git, common):
        if (home / name).is_file():
            found = _line(home / name)
            return found if _HASH.fullmatch(found) else None
    if not (common / "packed-refs").is_file():
        return None
    with (common / "packed-refs").open(encoding="utf-8", errors="replace") as lines:
        pairs = (line.split() for line in lines)
        return next((one[0] for one in pairs if len(one) == 2 and one[1] == name and _HASH.fullmatch(one[0])), None)


def _line(path: Path) -> str:
    with path.open(encoding="utf-8", errors="replace") as stream:
        return stream.readline(4096).strip()


def _json(value: Any) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False, default=str) + "\n"


def clear_baselines(run: Path) -> None:
    """Remove what :func:`keep_baselines` wrote, and nothing else.

    Raises:
        FileExistsError: ``baselines`` or a folder in it is a link; what is written there would land elsewhere.
    """
    home = run / BASELINES
    refuse_links(run, (BASELINES,))
    if not home.is_dir():
        return
    refuse_links(home, tuple(path.name for path in home.iterdir() if path.is_symlink()))
    for folder in (*filter(is_folder, home.iterdir()), home):
        for name in _REPORT:
            (folder / name).unlink(missing_ok=True)
        if not any(folder.iterdir()):
            folder.rmdir()
