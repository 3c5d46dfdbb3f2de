"""Any model of RecBole 1.2.1 as an outside baseline: RecBole trains it on our training events, our evaluator ranks it.

RecBole gets the training part of the split and nothing else: one ``.inter`` file whose time is the position of an event
in its user's history, and one ``.item`` file with the whole catalogue, so that items without training events have an
(untrained) row as well. Samplers, prefix rows, losses and the training loop are RecBole's own, its defaults included.

What differs from RecBole's own protocol: its early stopping cannot see our validation part, so the number of epochs is
chosen by holding out each user's last training event, and the model is then trained anew, on all training events, for
that many epochs. Sequential models read our histories (validation events included at test time); general ones score a
user as training left them.

Legend: B histories, L RecBole's MAX_ITEM_LIST_LENGTH, N items, U user rows.
"""

from __future__ import annotations

import contextlib
import copy
import logging
import os
import sys
import tempfile
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from recsys.data.batch import Batch
from recsys.data.split import TrainingEvents
from recsys.errors import DataWarning
from recsys.progress import Progress
from recsys.protocols import Context
from recsys.recommenders.base import Ranker
from recsys.statistics.cooccurrence import require_memory

NAME, USER, ITEM, TIME = "events", "user_id", "item_id", "timestamp"
HOLD_OUT_LAST, KEEP_ALL = {"LS": "valid_only"}, {"RS": [1.0, 0.0, 0.0]}
EVENT_BYTES = 12  # RecBole keeps an id and a time for every event of every prefix
KINDS = ("GENERAL", "SEQUENTIAL", "TRADITIONAL")


class RecBole(Ranker):
    """A model of RecBole by its class name, such as "GRU4Rec", "SASRec", "BPR" or "LightGCN".

    Args:
        model: the class; it must need nothing but users, items and their order.
        config: RecBole's own parameters, such as ``{"hidden_size": 64, "MAX_ITEM_LIST_LENGTH": 50}``; paths in it
            must be absolute. Negatives are left out where a loss over the whole catalogue forbids them. ``gpu_id=""``
            keeps it on the CPU.
        epochs: most epochs to train.
        patience: validations without a better NDCG@10 on each user's last training event that end the search for the
            number of epochs; 0 trains once, on everything, for exactly ``epochs`` epochs.
        log: the file all of RecBole's messages go to; by default one in the folder for temporary files, named on
            standard error.

    Raises:
        ValueError: a bad argument, or a parameter in ``config`` that is ours to set.
        ImportError: when fitted, RecBole is not installed.
    """

    trained_epochs: Tensor

    saved = False

    def __init__(
        self,
        model: str,
        config: dict[str, Any] | None = None,
        epochs: int = 100,
        patience: int = 10,
        log: str | None = None,
    ) -> None:
        super().__init__()
        if epochs < 1 or patience < 0:
            raise ValueError(f"epochs >= 1 and patience >= 0 are needed; found {epochs} and {patience}")
        self.model, self.config, self.epochs, self.patience, self.log = model, config or {}, epochs, patience, log
        taken = sorted(self._ours("", 0, KEEP_ALL, 1).keys() & self.config.keys())
        if taken:
            raise ValueError(
                f"config names {', '.join(taken)}, which follow from the split and the arguments of RecBole(...): "
                "leave them out"
            )
        self._trained: _Trained | None = None
        self.register_buffer("trained_epochs", torch.zeros((), dtype=torch.int64))

    def bind(self, context: Context) -> None:
        """Learn the catalogue.

        Raises:
            ValueError: there is no training data, as when a saved run or a bundle is loaded.
        """
        if context.training is None:
            raise ValueError(
                f"RecBole's {self.model} lives in the process that trained it: outside baselines are neither saved, "
                "loaded nor exported; fit it again on the split"
            )
        super().bind(context)

    def learn(self, context: Context) -> None:
        """Let RecBole train: once to find the number of epochs, once more on all training events.

        Raises:
            ImportError: RecBole is not installed.
            ValueError: RecBole has no such model, or it needs item features, a knowledge graph or context.
        """
        self.bind(context)
        _require()
        log = Path(self.log or Path(tempfile.gettempdir()) / f"recbole-{self.model}-{os.getpid()}.log").absolute()
        print(f"RecBole {self.model}: its messages go to {log}", file=sys.stderr, flush=True)
        assert context.training is not None
        with _workplace(log) as folder:
            _write(folder / NAME, context.training)
            epochs = self.epochs
            kind = _kind(self.model)
            if self.patience and kind != "TRADITIONAL":
                epochs = self._run(folder, context, HOLD_OUT_LAST, epochs).best_epoch
                print(
                    f"RecBole {self.model}: best on the last events after {epochs} epochs", file=sys.stderr, flush=True
                )
            self._trained = self._run(folder, context, KEEP_ALL, epochs)
        self.max_length = self._trained.length if kind == "SEQUENTIAL" else None
        self.trained_epochs = torch.tensor(self._trained.epochs)

    def score(self, batch: Batch) -> Tensor:
        """(B, N) what RecBole's ``full_sort_predict`` gives; users without training events get popularity.

        Raises:
            ValueError: it is not fitted, or a model that knows users by name is asked for a bare history.
        """
        if self._trained is None:
            raise ValueError("RecBole is not fitted: call fit(model, split)")
        users = self._trained.users(batch.users)
        scores = self._trained.scores(batch, users).to(batch.ids.device).float()
        if self.max_length is None and bool((users == 0).any()):
            if bool((batch.users < 0).any()):
                raise ValueError(
                    f"RecBole's {self.model} knows the users of its training data and no others, and these histories "
                    "name none: evaluate it on the split, or take a sequential model"
                )
            note = f"{int((users == 0).sum())} users without training events are ranked by popularity"
            warnings.warn(note, DataWarning, stacklevel=2)
            scores[users == 0] = self.popularity[1:].to(scores)
        return scores

    def _run(self, folder: Path, context: Context, split: dict[str, Any], epochs: int) -> _Trained:
        """Train on one way of using the training events."""
        from recbole.data import create_dataset, data_preparation
        from recbole.utils import get_model, get_trainer, init_seed

        config = self._settings(str(folder), context.seed, split, epochs)
        if config["MODEL_TYPE"].name == "SEQUENTIAL":
            events = float(self.popularity.sum()) * config["MAX_ITEM_LIST_LENGTH"]
            require_memory(events * EVENT_BYTES, "RecBole's table of prefixes", "lower MAX_ITEM_LIST_LENGTH")
        init_seed(config["seed"], config["reproducibility"])
        dataset = create_dataset(config)
        training, held_out, _ = data_preparation(config, dataset)
        model = get_model(self.model)(config, training.dataset).to(config["device"])
        trainer = get_trainer(config["MODEL_TYPE"], self.model)(config, model)
        found: dict[int, float] = {}  # epoch, from 0 -> NDCG@10 on the events held out
        label = f"RecBole {self.model}, {'finding the number of epochs' if held_out else 'training'}"
        with Progress(trainer.epochs * len(training), label, "batches") as progress:
            watched = _Watched(training, progress)
            trainer.fit(watched, held_out or None, saved=False, callback_fn=found.__setitem__)
        best = 1 + max(found, key=lambda epoch: found[epoch], default=trainer.epochs - 1)
        assert context.training is not None
        ids = _ids(dataset, context.training)
        return _Trained(model.eval(), *ids, config["MAX_ITEM_LIST_LENGTH"], trainer.epochs, best)

    def _settings(self, folder: str, seed: int, split: dict[str, Any], epochs: int) -> Any:
        """RecBole's configuration: its defaults, then ``config``, then what follows from the split."""
        from recbole.config import Config
        from recbole.utils import get_model

        given = {**self.config, **self._ours(folder, seed, split, epochs)}
        if "train_neg_sample_args" not in given and not hasattr(get_model(self.model), "input_type"):
            without = Config(self.model, NAME, config_dict=copy.deepcopy(given | {"train_neg_sample_args": None}))
            if without["loss_type"] == "CE":
                return without
        return Config(self.model, NAME, config_dict=copy.deepcopy(given))

    def _ours(self, folder: str, seed: int, split: dict[str, Any], epochs: int) -> dict[str, Any]:
        return {
            "data_path": folder, "checkpoint_dir": folder, "seed": seed, "epochs": epochs, "eval_step": 1,
            "stopping_step": self.patience - 1, "show_progress": False, "benchmark_filename": None,
            "eval_args": {"split": split, "order": "TO", "group_by": "user", "mode": "full"},
            "USER_ID_FIELD": USER, "ITEM_ID_FIELD": ITEM, "TIME_FIELD": TIME,
            "load_col": {"inter": [USER, ITEM, TIME], "item": [ITEM]},
            "metrics": ["NDCG"], "topk": [10], "valid_metric": "NDCG@10",
        }  # fmt: skip


@dataclass(frozen=True)
class _Trained:
    """A trained model with the way from our rows to RecBole's ids. No module, so that it is not part of ours."""

    model: Any
    item_ids: Tensor  # (N+1,) RecBole's id of each item row, 0 for padding
    user_ids: Tensor  # (U,) RecBole's id of each user row, 0 for users without training events
    length: int
    epochs: int
    best_epoch: int

    def users(self, rows: Tensor) -> Tensor:
        """(B,) RecBole's ids of user rows (B,), 0 where it has none."""
        rows = rows.cpu()
        known = (rows >= 0) & (rows < len(self.user_ids))
        return torch.where(known, self.user_ids[rows.clamp(0, len(self.user_ids) - 1)], 0)

    def scores(self, batch: Batch, users: Tensor) -> Tensor:
        """(B, N) scores, column j for item row j + 1."""
        from recbole.data.interaction import Interaction

        fields = {self.model.USER_ID: users}
        if hasattr(self.model, "ITEM_SEQ"):
            sequence = torch.zeros(len(batch), self.length, dtype=torch.int64)
            sequence[:, : batch.ids.shape[1]] = self.item_ids[batch.ids.cpu()]
            fields |= {self.model.ITEM_SEQ: sequence, self.model.ITEM_SEQ_LEN: batch.lengths.cpu()}
        with torch.no_grad():
            asked = Interaction(fields).to(self.model.device)
            try:
                scores = self.model.full_sort_predict(asked).view(len(batch), -1)
            except NotImplementedError:
                scores = torch.stack([self._one_by_one(asked[row : row + 1]) for row in range(len(batch))])
        return scores[:, self.item_ids[1:].to(scores.device)]

    def _one_by_one(self, asked: Any) -> Tensor:
        """All items for one history, of a model that only scores pairs."""
        from recbole.data.interaction import Interaction

        items = torch.arange(self.model.n_items)
        pairs = asked.repeat_interleave(len(items))
        pairs.update(Interaction({self.model.ITEM_ID: items}).to(self.model.device))
        scores: Tensor = self.model.predict(pairs)
        return scores


class _Watched:
    """RecBole's loader of training batches, with every batch counted."""

    def __init__(self, loader: Any, progress: Progress) -> None:
        self._loader, self._progress = loader, progress

    def __iter__(self) -> Iterator[Any]:
        for batch in self._loader:
            yield batch
            self._progress.advance()

    def __len__(self) -> int:
        return len(self._loader)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)


def _require() -> None:
    try:
        import recbole.config
        import recbole.data
        import recbole.trainer  # noqa: F401
    except ImportError as error:
        raise ImportError(
            f"this baseline trains models of RecBole 1.2.1, which cannot be imported here ({error}): on Python 3.11 or "
            "older, pip install recsys[parity] into an environment of its own, without constraints.txt (its pins "
            "contradict ours), or run python3 tasks.py parity, which makes one"
        ) from error


def _kind(name: str) -> str:
    """RecBole's type of the model called ``name``."""
    from recbole.utils import get_model

    try:
        kind: str = get_model(name).type.name
    except (ValueError, AttributeError, ModuleNotFoundError) as error:  # it looks among packages not installed, too
        raise ValueError(f"RecBole has no model {name!r}: use the exact name of its class, such as SASRec") from error
    if kind not in KINDS:
        raise ValueError(
            f"RecBole's {name} is of type {kind}, which needs more than users, items and their order; "
            f"types that run here: {', '.join(KINDS)}"
        )
    return kind


def _ids(dataset: Any, training: TrainingEvents) -> tuple[Tensor, Tensor]:
    """RecBole's ids of the item rows (N+1,) and of the user rows (U,), 0 for padding and for users it has not seen."""
    items, users = dataset.field2token_id[ITEM], dataset.field2token_id[USER]
    item_ids = [0, *(items[str(row)] for row in range(1, training.num_items + 1))]
    return torch.tensor(item_ids), torch.tensor([users.get(str(row), 0) for row in range(training.num_users)])


def _write(folder: Path, training: TrainingEvents) -> None:
    """The training events as atomic files of one data set; rows are the ids."""
    import polars as pl

    from recsys.readers.atomic import write_atomic

    folder.mkdir()
    owner, items, _ = training.events(slice(None))
    position = np.arange(len(owner)) - np.searchsorted(owner, owner)
    write_atomic(
        pl.DataFrame({USER: owner, ITEM: items, TIME: position}),
        folder / f"{NAME}.inter",
        {USER: "token", ITEM: "token", TIME: "float"},
    )
    write_atomic(pl.DataFrame({ITEM: np.arange(1, training.num_items + 1)}), folder / f"{NAME}.item", {ITEM: "token"})


@contextlib.contextmanager
def _workplace(log: Path) -> Iterator[Path]:
    """A temporary working folder in which RecBole leaves everything as it found it.

    It writes below the working folder, reads the command line, sets which GPUs are visible, switches cuDNN's modes and
    logs through the root logger.
    """
    root, cudnn = logging.getLogger(), torch.backends.cudnn
    before = root.handlers, root.level, sys.argv, os.environ.get("CUDA_VISIBLE_DEVICES")
    modes = cudnn.benchmark, cudnn.deterministic
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a", encoding="utf-8") as stream, tempfile.TemporaryDirectory(prefix="recbole-") as folder:
        root.handlers, root.level, sys.argv = [logging.StreamHandler(stream)], logging.INFO, sys.argv[:1]
        logging.captureWarnings(True)
        try:
            with contextlib.redirect_stdout(stream), contextlib.chdir(folder):
                yield Path(folder)
        finally:
            logging.captureWarnings(False)
            root.handlers, root.level, sys.argv, visible = before
            os.environ.pop("CUDA_VISIBLE_DEVICES", None)
            if visible is not None:
                os.environ["CUDA_VISIBLE_DEVICES"] = visible
            cudnn.benchmark, cudnn.deterministic = modes
