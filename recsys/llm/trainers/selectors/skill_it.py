"""Skill-It: how much of each domain is trained on, from losses on held-out data (Chen et al. 2023, arXiv 2307.14430).

    p_i ~ prior_i exp(eta sum_j graph_ij sum_{the last w evaluations} L_j)

A domain gets more where skills that it helps (``graph``) are still hard. With the identity every domain answers for
itself alone. Losses are divided by the first ones, so that none counts for its scale, and shares are bounded, so that a
domain whose loss cannot fall does not take all; both can be switched off. The published runs have eta 0.5 and w 3.

    mixture = SkillIt({"books": books, "games": games}, losses=held_out_losses(valid))
    rs.fit(model, split, stages=[Stage(20, data=mixture)], callbacks=[mixture])

Legend: K domains, M skills that are evaluated, w evaluations.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

from recsys.data.batch import PAD, Batch
from recsys.errors import DataError
from recsys.llm.trainers.selectors.mixing import Source, begin, identity_of, prepared_alike
from recsys.protocols import Step
from recsys.randomness import numpy_generator, torch_generator
from recsys.recommenders.modes import evaluating
from recsys.storage.files import write_text
from recsys.storage.reading import read_json

FILE = "losses.json"
Losses = Callable[[Any], Sequence[float]]  # of a model: M losses on held-out data


def shares(
    losses: Any,
    graph: Any = None,
    prior: Any = None,
    eta: float = 0.5,
    window: int = 3,
    floor: float = 1e-3,
    cap: float = 1.0,
) -> np.ndarray:
    """(K,) float64: the share of each domain, from losses (w', M), one row an evaluation, the newest last.

    Args:
        losses: as they count, divided by the first ones if they are to be. Only the last ``window`` rows are read.
        graph: (K, M), above 0 where training on domain i helps skill j; None: the identity.
        prior: (K,) shares before any evaluation; None: equal ones.
        floor, cap: bounds of each share.

    Raises:
        ValueError: shapes that do not fit, a loss that is not finite, or bounds that no shares keep.
    """
    held = np.atleast_2d(np.asarray(losses, np.float64))
    weights = np.eye(held.shape[1]) if graph is None else np.asarray(graph, np.float64)
    first = np.ones(len(weights)) if prior is None else np.asarray(prior, np.float64)
    if weights.ndim != 2 or weights.shape[1] != held.shape[1] or first.shape != (len(weights),):
        raise ValueError(
            f"graph is (domains, skills) and prior (domains,); found {weights.shape}, {first.shape} and losses of "
            f"{held.shape[1]} skills"
        )
    if not np.isfinite(held).all() or not np.isfinite(weights).all() or (first <= 0).any():
        raise ValueError("losses and graph must be finite and the prior above 0")
    if not 0 <= floor <= 1 / len(first) <= cap <= 1:
        raise ValueError(f"floor must be at most, and cap at least, 1/{len(first)}; found {floor} and {cap}")
    exponent = np.log(first) + eta * weights @ held[-window:].sum(0)
    exponent -= exponent.max()
    return _bounded(exponent - np.log(np.exp(exponent).sum()), floor, cap)


class SkillIt:
    """Batches of several domains in shares that follow held-out losses; a source of batches, and a callback of fit.

    Each batch is of one domain, drawn by its share; a domain's own batches come in the order of its source, whose next
    epoch begins when one is over. As a callback it has the losses measured behind each epoch; the next one is mixed by
    them. What was measured is in ``folder`` (a file of numbers), so that a run that is resumed goes on exactly: give
    the same folder again.

    Args:
        sources: of each domain, by name.
        losses: what gives the M held-out losses of a model, such as :func:`held_out_losses`; by default M = K.
        batches: of an epoch; None: those of the first epochs of all sources together.
        graph, prior, eta, window, floor, cap: as of :func:`shares`.
        relative: divide losses by those of the first evaluation.
        folder: where measured losses are kept; None: in memory, and a run cannot be resumed.
        seed: of the draws.

    Raises:
        TypeError: something else than sources.
        ValueError: no source, or as :func:`shares`.
    """

    varying = True  # domains have batches of different sizes, and the number of each is drawn

    def __init__(
        self,
        sources: Mapping[str, Source],
        losses: Losses,
        batches: int | None = None,
        graph: Sequence[Sequence[float]] | None = None,
        prior: Sequence[float] | None = None,
        eta: float = 0.5,
        window: int = 3,
        floor: float = 1e-3,
        cap: float = 1.0,
        relative: bool = True,
        folder: Path | str | None = None,
        seed: int = 0,
    ) -> None:
        if not sources:
            raise ValueError("a mixture needs at least one source of batches, by the name of its domain")
        if window < 1 or (batches is not None and batches < 1):
            raise ValueError(f"window and batches must be at least 1, found {window} and {batches}")
        self.prepared = prepared_alike(sources)
        self.sources, self.losses, self.batches = dict(sources), losses, batches
        self.graph, self.prior, self.eta, self.window = graph, prior, eta, window
        self.floor, self.cap, self.relative, self.seed = floor, cap, relative, seed
        self.folder = None if folder is None else Path(folder)
        self._skills = len(sources) if graph is None else len(graph[0])
        self._measured: dict[int, list[float]] = {}  # by the number of epochs that were over
        self._drawn: dict[int, np.ndarray] = {}  # of each epoch the domains of its batches
        self._mix(np.ones((1, self._skills)))  # says now what would not fit later

    def bind(self, context: Any) -> None:
        """Tell the sources, and read what was measured."""
        begin(list(self.sources.values()), context)
        self._drawn = {}
        if self.folder is not None and (self.folder / FILE).is_file():
            remedy = "delete it, and train from the beginning"
            read = read_json(self.folder / FILE, remedy)
            self._measured = {int(epoch): [float(one) for one in row] for epoch, row in read["losses"].items()}

    def __call__(self, epoch: Any) -> None:
        """Measure, behind an epoch of ``fit``; what was measured behind later ones, in an earlier run, is forgotten."""
        found = [float(loss) for loss in self.losses(epoch.model)]
        if len(found) != self._skills or not np.isfinite(found).all():
            raise ValueError(f"losses must give {self._skills} finite numbers, found {found}")
        self._measured = {when: row for when, row in self._measured.items() if when < epoch.epoch}
        self._measured[epoch.epoch] = found
        self._drawn = {when: turns for when, turns in self._drawn.items() if when < epoch.epoch}
        if self.folder is not None:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_text(self.folder / FILE, json.dumps({"losses": self._measured}, indent=1))

    def shares_of(self, epoch: int) -> dict[str, float]:
        """The share of each domain in an epoch (from 0).

        Raises:
            DataError: nothing was measured behind the epoch before.
        """
        rows = [self._measured[when] for when in sorted(self._measured) if when <= epoch]
        if epoch and epoch not in self._measured:
            raise DataError(
                f"no losses were measured behind epoch {epoch}: give the mixture to fit as a callback too, "
                "callbacks=[mixture], and with a folder to a run that is resumed"
            )
        if not rows or not epoch:
            return self._mix(np.ones((1, self._skills)))
        held = np.asarray(rows)
        return self._mix(held / np.maximum(np.abs(held[0]), 1e-12) if self.relative else held)

    @property
    def num_rows(self) -> int:
        """Rows of an epoch by the shares before any evaluation, about: the shares change, and batches are drawn."""
        return self._scaled("num_rows")

    @property
    def num_targets(self) -> int:
        """What an epoch predicts by the shares before any evaluation, about."""
        return self._scaled("num_targets")

    def identity(self) -> dict[str, Any]:
        """The sources, and all that decides their shares but the losses, which are measured in the run."""
        names = ("batches", "eta", "window", "floor", "cap", "relative", "seed")
        told: dict[str, Any] = {"sources": {name: identity_of(one) for name, one in self.sources.items()}}
        for name in ("graph", "prior"):
            value = getattr(self, name)
            told[name] = None if value is None else np.asarray(value).tolist()
        return told | {name: getattr(self, name) for name in names}

    def num_batches(self, epoch: int) -> int:
        """Batches of an epoch."""
        if self.batches is not None:
            return self.batches
        return sum(source.num_batches(0) for source in self.sources.values())

    def epoch(self, epoch: int, start: int = 0, rank: int = 0, world_size: int = 1) -> Iterator[Batch]:
        """The batches of an epoch, each of the domain that was drawn for it.

        Raises:
            DataError: as :meth:`shares_of`.
        """
        before = [self._turns(when) for when in range(epoch)]
        turns = self._turns(epoch)
        done = np.bincount(np.concatenate([*before, turns[:start]]), minlength=len(self.sources))
        streams = [
            _from(source, int(count), rank, world_size)
            for source, count in zip(self.sources.values(), done, strict=True)
        ]
        for domain in turns[start:]:
            yield from islice(streams[domain], 1)

    def _turns(self, epoch: int) -> np.ndarray:
        """(batches,) int64: which domain each batch of an epoch is of."""
        if epoch not in self._drawn:
            chances = list(self.shares_of(epoch).values())
            random = numpy_generator(self.seed, "SkillIt", epoch)
            self._drawn[epoch] = random.choice(len(chances), self.num_batches(epoch), p=chances)
        return self._drawn[epoch]

    def _mix(self, losses: np.ndarray) -> dict[str, float]:
        found = shares(losses, self.graph, self.prior, self.eta, self.window, self.floor, self.cap)
        if len(found) != len(self.sources):
            raise ValueError(f"graph has {len(found)} rows for {len(self.sources)} domains")
        return dict(zip(self.sources, found.tolist(), strict=True))

    def _scaled(self, name: str) -> int:
        per_batch = [getattr(source, name) / max(source.num_batches(0), 1) for source in self.sources.values()]
        chances = self.shares_of(0).values()
        return round(self.num_batches(0) * sum(p * size for p, size in zip(chances, per_batch, strict=True)))


def held_out_losses(sources: Mapping[str, Source], batches: int = 8, seed: int = 0) -> Losses:
    """What gives the objective's mean loss of a model on the first ``batches`` of each source, in evaluation mode.

    The sources hold rows that are not trained on: those of other users, or of a part that was set aside.
    """

    def measure(model: Any) -> list[float]:
        found = []
        with evaluating(model), torch.no_grad():
            for name, source in sources.items():
                total = weight = 0.0
                for number, batch in enumerate(islice(source.epoch(0), batches)):
                    batch = batch.to(next(model.parameters()).device)
                    if not getattr(source, "prepared", True):
                        batch = model.targets.train(batch, torch_generator(seed, name, number, device=batch.ids.device))
                    if batch.targets is None:
                        raise ValueError(f"the held-out batches of {name!r} have no targets, so they have no loss")
                    step = Step(batch, seed=seed, index=number, losses=("loss",))
                    counted = (batch.targets > PAD).float()
                    weight += float((counted if batch.weights is None else counted * batch.weights).sum())
                    total += float(model.loss(step)["loss"])
                found.append(total / weight if weight else float("nan"))
        return found

    return measure


def _from(source: Source, done: int, rank: int, world_size: int) -> Iterator[Batch]:
    """The batches of a source without the first ``done``, one epoch after another."""
    epoch = 0
    while done >= source.num_batches(epoch):
        if source.num_batches(epoch) < 1:
            raise DataError(
                f"{type(source).__name__} has no batches in its epoch {epoch}: there is nothing to train on"
            )
        done -= source.num_batches(epoch)
        epoch += 1
    while True:
        yield from source.epoch(epoch, done, rank, world_size)
        epoch, done = epoch + 1, 0


def _bounded(logs: np.ndarray, floor: float, cap: float) -> np.ndarray:
    """Shares from their logarithms (K,): what would be beyond a bound is held there, the others stay in proportion."""
    found = np.exp(logs)
    if found.min() >= floor and found.max() <= cap:
        return found
    low, high = -800.0, 1.0 - float(logs.min())  # everything at the floor, everything at the cap
    for _ in range(200):
        middle = (low + high) / 2
        found = np.exp(np.minimum(logs + middle, 0)).clip(floor, cap)
        low, high = (middle, high) if found.sum() < 1 else (low, middle)
    return np.asarray(found / found.sum())
