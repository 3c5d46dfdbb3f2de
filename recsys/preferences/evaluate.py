"""How well a recommender does what it is told, on five axes, beside what it does untold or told something else.

Every axis is asked of the model as it is served, ``recommend(histories, k)``, and so are the controls: "no preference"
(the same histories, nothing said), "shuffled preferences" (each with those of another sample); "nearest item" asks no
model at all and shows the items whose titles are nearest to what is said. Means are over samples, never over batches.

Preferences are matched by looking at the target, so that no number of this report is one of ordinary recommendation; it
is a report of its own kind, which ``compare`` does not take.

Legend: n samples, K list length, N items (rows 1..N), M metrics.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from recsys.errors import DataWarning, LeakageError
from recsys.eval.significance import bootstrap_interval, sign_flip_test
from recsys.ids.ranges import spread
from recsys.preferences.axes import AXES, consolidation, recommendation, sentiment, steering
from recsys.preferences.matching import Matching
from recsys.preferences.samples import Samples
from recsys.preferences.table import MATCHED
from recsys.progress import Progress
from recsys.storage.files import write_text

MODEL, SILENT, SHUFFLED, NEAREST = "model", "no preference", "shuffled preferences", "nearest item"
CONTROLS = (SILENT, SHUFFLED, NEAREST)
STEERED = ("fine", "coarse")
_BATCH = 512  # histories of one request
Lister = Callable[[Samples], np.ndarray]  # samples -> (n, K) item rows, 0 behind the end


@dataclass(frozen=True)
class AxesReport:
    """A row for each axis and each of model and controls: ``mean``, ``low`` and ``high`` by metric, over ``samples``.

    ``tests`` compares the model with each control on the axis, sample by sample: the difference of the means of the
    last metric, and the p of a paired sign-flip test.
    """

    rows: list[dict[str, Any]]
    tests: list[dict[str, Any]]
    meta: dict[str, Any] = field(default_factory=dict)

    def mean(self, axis: str, row: str = MODEL, metric: str = "") -> float:
        """One mean; by default of the axis's last metric."""
        found = next(one for one in self.rows if one["axis"] == axis and one["row"] == row)
        return float(found["mean"][metric or list(found["mean"])[-1]])

    def steers(self, axis: str, level: float = 0.05) -> bool:
        """Whether the model is above all of its controls that were asked, each at ``level``."""
        found = [one for one in self.tests if one["axis"] == axis and one["than"] in (SILENT, SHUFFLED)]
        return bool(found) and all(one["difference"] > 0 and one["p"] <= level for one in found)

    def __str__(self) -> str:
        told = self.meta
        lines = [
            f"{told.get('model', 'model')} on five axes of {told.get('part')} ({told.get('data')}): {MATCHED},",
            "so that no number here stands beside one of ordinary recommendation.",
            f"{told.get('preferences')}; vectors by {told.get('vectors')}; histories left out of lists: "
            f"{told.get('exclude') == 'history'}",
        ]
        lines += [f"left out when they were written: {told['left_out']}"] if told.get("left_out") else []
        for axis in dict.fromkeys(row["axis"] for row in self.rows):
            own = [row for row in self.rows if row["axis"] == axis]
            lines += ["", f"{axis}, {own[0]['samples']:,} samples" + _told(own[0]["notes"])]
            lines.append(f"  {'':<22}" + "".join(f"{name:>26}" for name in own[0]["mean"]))
            for row in own:
                cells = (f"{row['mean'][m]:.4f} [{row['low'][m]:.4f}, {row['high'][m]:.4f}]" for m in row["mean"])
                lines.append(f"  {row['row']:<22}" + "".join(f"{cell:>26}" for cell in cells))
            for test in (one for one in self.tests if one["axis"] == axis):
                lines.append(f"  than {test['than']}: {test['metric']} {test['difference']:+.4f}, p = {test['p']:.4f}")
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON."""
        return {"header": MATCHED, "meta": self.meta, "rows": self.rows, "tests": self.tests}

    def save(self, path: str | Path) -> None:
        """Write it as JSON."""
        write_text(Path(path), json.dumps(self.to_dict(), indent=2))


def evaluate_axes(
    model: Any,
    matching: Matching,
    part: str = "test",
    *,
    axes: Sequence[str] = AXES,
    k: Sequence[int] = (5, 10),
    controls: Sequence[str] = CONTROLS,
    sample: int | None = None,
    exclude: str = "history",
    disliked: np.ndarray | None = None,
    name: str = "",
    seed: int = 0,
    progress: bool = True,
) -> AxesReport:
    """The five axes of Mender's benchmark asked of a model that reads preferences, and of its controls.

    Args:
        model: answers ``recommend(histories, k=, exclude=)`` and reads ``features={"preference": ...}``, such as a
            ``Generator`` with ``PreferenceVectors`` or ``PreferenceTokens``.
        part: "test" or "valid".
        k: cut-offs of recall and NDCG, and of hits on axis 2.
        sample: at most so many samples of each axis, drawn by ``seed``.
        exclude: as in ``recommend``; a target that the history holds is then a miss, counted in the notes.
        disliked: for axis 2, see :func:`recsys.preferences.axes.sentiment`.

    Raises:
        ValueError: an unknown axis, control or part, or no cut-off.
        LeakageError: the model learned from the targets of the part.
    """
    for title, given, known in (("axes", axes, AXES), ("controls", controls, CONTROLS)):
        unknown = [one for one in given if one not in known]
        if unknown or isinstance(given, str):
            raise ValueError(
                f"{title} are a list of {', '.join(known)}; found {given if isinstance(given, str) else unknown[0]!r}"
            )
    if part not in ("valid", "test") or not k or min(k) < 1:
        raise ValueError(f'part must be "valid" or "test" and k hold cut-offs from 1; found {part!r} and {list(k)}')
    cut = getattr(model, "cut", None)
    seen = None if cut is None else getattr(matching.split, part).seen_by(cut)
    if seen:
        raise LeakageError(f"the model was trained on {seen:,} targets of the part {part!r}")
    depth = max(k)
    listers: dict[str, Lister] = {MODEL: lambda samples: _lists(model, samples, depth, exclude, progress)}
    listers[SILENT] = lambda samples: _untold(listers[MODEL], samples)
    listers[SHUFFLED] = lambda samples: listers[MODEL](samples.shuffled(seed))
    listers[NEAREST] = lambda samples: _nearest(matching, samples, depth, exclude)
    wanted = [MODEL, *(one for one in CONTROLS if one in controls)]
    rows: list[dict[str, Any]] = []
    tests: list[dict[str, Any]] = []
    for axis in (one for one in AXES if one in axes):
        samples = _ask(matching, axis, part, disliked)
        samples = [one.drawn(sample, seed) for one in samples]
        values = {row: _values(samples, listers[row], k) for row in wanted}
        _add(rows, tests, axis, samples[0], values, k, exclude)
    meta = {
        "model": name or type(model).__name__, "part": part, "data": matching.split.name, "exclude": exclude,
        "preferences": matching.preferences.label, "vectors": matching.model, "seed": seed, "sample": sample,
        "left_out": matching.preferences.manifest.get("left_out"), "protocol": matching.split.protocol,
    }  # fmt: skip
    return AxesReport(rows, tests, meta)


def following(positive: np.ndarray, negative: np.ndarray) -> np.ndarray:
    """(n,) m_k of each pair: whether its item is hit under the positive preference and not under the negative one."""
    return positive.astype(bool) & ~negative.astype(bool)


def _ask(matching: Matching, axis: str, part: str, disliked: np.ndarray | None) -> list[Samples]:
    if axis == "sentiment":
        return list(sentiment(matching, part, disliked))
    if axis in STEERED:
        return [steering(matching, part, axis == "coarse")]
    return [(recommendation if axis == "recommendation" else consolidation)(matching, part)]


def _values(samples: list[Samples], lister: Lister, k: Sequence[int]) -> np.ndarray:
    """(n, M) the metrics of each sample."""
    ranks = [_ranks(lister(one), one.target) for one in samples]
    if len(ranks) == 2:
        return np.stack([following(ranks[0] < cut, ranks[1] < cut) for cut in k], 1).astype(np.float64)
    hits = np.stack([ranks[0] < cut for cut in k], 1).astype(np.float64)
    return np.concatenate([hits, hits / np.log2(ranks[0][:, None] + 2.0)], 1)


def _add(
    rows: list[dict[str, Any]],
    tests: list[dict[str, Any]],
    axis: str,
    samples: Samples,
    values: dict[str, np.ndarray],
    k: Sequence[int],
    exclude: str,
) -> None:
    names = [f"recall@{cut}" for cut in k] + [f"ndcg@{cut}" for cut in k]
    names = [f"follows@{cut}" for cut in k] if axis == "sentiment" else names
    notes = dict(samples.notes)
    if exclude == "history" and len(samples):
        notes["targets that their history holds"] = _repeated(samples)
    for row, found in values.items():
        ends = bootstrap_interval(found, stream=f"{axis} {row}")
        mean = found.mean(0) if len(found) else np.full(len(names), np.nan)
        rows.append({
            "axis": axis, "row": row, "samples": len(samples), "notes": notes,
            "mean": dict(zip(names, mean.tolist(), strict=True)),
            "low": dict(zip(names, ends[:, 0].tolist(), strict=True)),
            "high": dict(zip(names, ends[:, 1].tolist(), strict=True)),
        })  # fmt: skip
        if row != MODEL and len(samples):
            difference = values[MODEL][:, -1:] - found[:, -1:]
            p, _ = sign_flip_test(difference, stream=f"{axis} {row}")[0]
            tests.append({
                "axis": axis, "than": row, "metric": names[-1], "difference": float(difference.mean()), "p": p,
            })  # fmt: skip


def _lists(model: Any, samples: Samples, depth: int, exclude: str, progress: bool) -> np.ndarray:
    """(n, K) rows that the model recommends."""
    items = samples.split.items
    found = np.zeros((len(samples), depth), np.int64)
    with Progress(len(samples), f"axis {samples.axis}", "samples", enabled=progress) as bar:
        for part in samples.blocks(_BATCH):
            top = model.recommend(samples.histories(part), k=depth, exclude=exclude)
            lists = top.items if hasattr(top, "items") and not isinstance(top, dict) else top
            flat = [item for one in lists for item in one]
            rows = items.rows(flat) if flat else np.zeros(0, np.int64)
            lengths = np.array([len(one) for one in lists])
            inside = np.arange(depth) < lengths[:, None]
            found[part][inside] = np.maximum(rows, 0)
            bar.advance(part.stop - part.start)
    return found


def _untold(lister: Lister, samples: Samples) -> np.ndarray:
    """The lists where nothing is said, without a warning that nothing is."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DataWarning)
        return lister(samples.silent())


def _nearest(matching: Matching, samples: Samples, depth: int, exclude: str) -> np.ndarray:
    """(n, K) rows of the items whose titles are nearest to the mean of what is said."""
    found = np.zeros((len(samples), depth), np.int64)
    owner, events = _history(samples)
    items = samples.split.prepared.items[events]
    titles, width = matching.titles[1:], min(depth, len(matching.titles) - 1)
    for part in samples.blocks(_BATCH):
        said = samples.said[part]
        vectors = (matching.texts[np.maximum(said, 0)] * (said >= 0)[..., None]).sum(1)
        scores = vectors @ titles.T
        if exclude == "history":
            inside = (owner >= part.start) & (owner < part.stop)
            scores[owner[inside] - part.start, items[inside] - 1] = -np.inf
        best = np.sort(np.argpartition(-scores, width - 1, axis=1)[:, :width], axis=1)
        values = np.take_along_axis(scores, best, 1)
        order = np.argsort(-values, axis=1, kind="stable")
        rows = np.take_along_axis(best, order, 1) + 1
        found[part, :width] = np.where(np.take_along_axis(values, order, 1) == -np.inf, 0, rows)
    return found


def _history(samples: Samples) -> tuple[np.ndarray, np.ndarray]:

    return spread(samples.start, samples.stop)


def _repeated(samples: Samples) -> float:
    """The share of samples whose target their history holds."""
    owner, events = _history(samples)
    held = samples.split.prepared.items[events] == samples.target[owner]
    return len(np.unique(owner[held])) / len(samples)


def _ranks(lists: np.ndarray, target: np.ndarray) -> np.ndarray:
    """(n,) the place of each target in its list, from 0, and the length of the lists where it is not in it."""
    at = lists == target[:, None]
    ranks: np.ndarray = np.where(at.any(1), at.argmax(1), lists.shape[1])
    return ranks


def _told(notes: dict[str, Any]) -> str:
    told = [f"{name}: {value:.3f}" if isinstance(value, float) else f"{name}: {value}" for name, value in notes.items()]
    return f" ({'; '.join(told)})" if told else ""
