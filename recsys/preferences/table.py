"""Preferences of users at each event of their histories: a folder of texts, and which of them each event has.

The preferences of an event were written from the items up to it, so that they belong to its history; the item that
comes next is not among what they were made of (mender.md, section 3). Each user's newest event has none.

Legend: P distinct texts, E events of the split, C preferences of an event at most.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from recsys.data.split import Split
from recsys.errors import DataError
from recsys.preferences.sentiment import by_leading_word, check_sentiment, differs_from_released, inverted
from recsys.storage.arrays import read_array, write_array
from recsys.storage.folders import read_manifest, write_folder
from recsys.storage.reading import reading

KIND = "recsys.preferences"
FORMAT = 1
BY_RULE = "preferences by rule, no LLM"
MATCHED = "preferences were matched by looking at the target"


@dataclass(frozen=True, eq=False)
class Preferences:
    """Texts, and their numbers by event; ``inverse`` has for each negative text the number of its positive form.

    Positive forms of negative texts stand among the texts, so that they have vectors of their own.
    """

    texts: list[str]
    codes: np.ndarray  # (E, C) int32 numbers of texts, -1 behind the end
    negative: np.ndarray  # (P,) bool
    inverse: np.ndarray  # (P,) int32, -1 where there is none
    written: np.ndarray  # (E,) bool: by a language model, not by rule
    manifest: dict[str, Any] = field(default_factory=dict)
    path: Path | None = None

    @classmethod
    def of(
        cls,
        split: Split,
        texts: Sequence[str],
        codes: np.ndarray,
        written: np.ndarray | None = None,
        sentiment: Callable[[Sequence[str]], np.ndarray] = by_leading_word,
        **manifest: Any,
    ) -> Preferences:
        """Preferences of the events of ``split``: texts, and which of them each event has.

        Args:
            codes: (E, C) numbers of texts, -1 for none.
            written: (E,) bool, whether a language model wrote them; None: none of them.
            sentiment: says which texts are negative.

        Raises:
            DataError: ``codes`` do not fit the split or the texts.
        """
        events = split.prepared.num_events
        if codes.ndim != 2 or len(codes) != events or codes.max(initial=-1) >= len(texts) or codes.min(initial=0) < -1:
            raise DataError(
                f"codes are numbers of {len(texts):,} texts, -1 for none, for each of {events:,} events; found "
                f"{codes.shape} from {codes.min(initial=0)} to {codes.max(initial=-1)}"
            )
        known = dict(zip(texts, range(len(texts)), strict=True))
        if len(known) < len(texts):
            raise DataError(f"{len(texts) - len(known):,} of {len(texts):,} texts occur twice: give each one number")
        negative = check_sentiment(sentiment, texts)
        inverse = np.full(len(texts), -1, np.int32)
        for at in np.flatnonzero(negative).tolist():
            positive = inverted(texts[at])
            if positive != texts[at]:
                inverse[at] = known.setdefault(positive, len(known))
        more = len(known) - len(texts)
        facts = {
            "data": split.name, "data_hash": split.data_hash, "items": split.items.digest, "users": split.users.digest,
            "cut": split.cut.digest, "sentiment": getattr(sentiment, "name", getattr(sentiment, "__name__", "given")),
            "inversions_that_differ": sum(differs_from_released(texts[at]) for at in np.flatnonzero(negative).tolist()),
            **manifest,
        }  # fmt: skip
        return cls(
            list(known),
            np.ascontiguousarray(codes, np.int32),
            np.concatenate([negative, np.zeros(more, bool)]),
            np.concatenate([inverse, np.full(more, -1, np.int32)]),
            np.zeros(events, bool) if written is None else np.asarray(written, bool),
            facts,
        )

    def __len__(self) -> int:
        return len(self.texts)

    @cached_property
    def given(self) -> np.ndarray:
        """(P,) bool: the texts that some event has; the others are positive forms of negative ones."""
        found = np.zeros(len(self.texts) + 1, bool)
        found[self.codes.ravel()] = True
        return found[:-1]

    @property
    def label(self) -> str:
        """What to call these texts wherever a number depends on them."""
        have = (self.codes >= 0).any(1)
        written, total = int((self.written & have).sum()), int(have.sum())
        if not written:
            return BY_RULE
        by = f"preferences by {self.manifest.get('writer', 'a language model')}"
        return by if written == total else f"{by} at {written:,} of {total:,} events, by rule at the others"

    def __str__(self) -> str:
        told, have = self.manifest, (self.codes >= 0).sum(1)
        lines = [
            f"{len(self):,} distinct preferences of {told.get('data') or 'the data'}: {self.label}",
            f"  {int((have > 0).sum()):,} events have some, {have[have > 0].mean() if have.any() else 0:.1f} each; "
            f"{int((self.negative & self.given).sum()):,} texts are negative ({told.get('sentiment')})",
        ]
        lines += [f"  left out: {told['left_out']}"] if told.get("left_out") else []
        counts = [f"{told[name]:,} {name}" for name in ("refused", "empty", "useless", "rejected") if told.get(name)]
        lines += [f"  of {told.get('asked', 0) + told.get('kept', 0):,} answers: {', '.join(counts)}"] * bool(counts)
        return "\n".join(lines)

    def check(self, split: Split) -> None:
        """Raise DataError unless these are preferences of the events of ``split``."""
        found = {"data_hash": split.data_hash, "items": split.items.digest, "users": split.users.digest}
        differs = [name for name, value in found.items() if self.manifest.get(name) != value]
        if differs or len(self.codes) != split.prepared.num_events:
            raise DataError(
                f"these preferences are of other events than the split's ({', '.join(differs) or 'their number'} "
                f"differ; they are of {self.manifest.get('data') or 'unnamed data'}, {len(self.codes):,} events, and "
                f"the split has {split.prepared.num_events:,}): make them of this split, rs.write_preferences(split)"
            )

    def with_sentiment(self, split: Split, sentiment: Callable[[Sequence[str]], np.ndarray]) -> Preferences:
        """The same texts classed by ``sentiment``."""
        kept = int(self.given.nonzero()[0].max(initial=-1)) + 1
        facts = {k: v for k, v in self.manifest.items() if k not in ("sentiment", "inversions_that_differ")}
        return Preferences.of(split, self.texts[:kept], self.codes, self.written, sentiment, **facts)

    def save(self, folder: str | Path) -> Preferences:
        """Write them to ``folder``, complete or not at all; the same preferences with that path."""

        def fill(partial: Path) -> dict[str, Any]:
            with (partial / "texts.json").open("w", encoding="utf-8") as stream:
                json.dump(self.texts, stream, ensure_ascii=False)
            write_array(partial / "codes.npy", self.codes)
            write_array(partial / "written.npy", self.written.astype(np.uint8))
            write_array(partial / "negative.npy", self.negative.astype(np.uint8))
            write_array(partial / "inverse.npy", self.inverse)
            return {"label": self.label, "facts": self.manifest}

        write_folder(folder, KIND, FORMAT, fill)
        return replace(self, path=Path(folder))

    @classmethod
    def load(cls, folder: str | Path) -> Preferences:
        """Read what :meth:`save` wrote.

        Raises:
            FileNotFoundError: there is no such folder.
            DataError: it is something else, or damaged.
        """
        folder, remedy = Path(folder), "make the preferences again"
        manifest = read_manifest(folder, KIND, FORMAT)
        with reading(folder / "texts.json", remedy):
            texts = json.loads((folder / "texts.json").read_text(encoding="utf-8"))
            if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
                raise ValueError("it holds what is no list of texts")
        codes = np.array(read_array(folder / "codes.npy", remedy, kinds="i", ndim=2))
        inverse = np.array(read_array(folder / "inverse.npy", remedy, kinds="i", ndim=1))
        flags = [np.array(read_array(folder / f"{name}.npy", remedy, kinds="u", ndim=1), bool)
                 for name in ("negative", "written")]  # fmt: skip
        with reading(folder, remedy):
            sizes = (len(flags[0]), len(inverse), len(flags[1]))
            if sizes != (len(texts), len(texts), len(codes)) or codes.max(initial=-1) >= len(texts):
                raise ValueError("its parts differ in size")
        return cls(texts, codes, flags[0], inverse, flags[1], manifest["facts"], folder)
