"""How good codes are: use, entropy and perplexity per level, collisions, reconstruction error; and what is an alarm.

A level has collapsed if its perplexity is below a sixteenth of its codes (16 of 256), if it uses less than a tenth of
them, or only one. A level that was appended to tell items apart is not judged.

Legend: N items, M levels, F width of the vectors.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from recsys.semantic_ids.collisions import buckets

PERPLEXITY, USED = 1 / 16, 1 / 10  # of the codes of a level, below which it has collapsed
_LISTED = 8  # levels that are printed one by one


def level_quality(codes: np.ndarray, size: int) -> dict[str, Any]:
    """Use of the ``codes`` (N,) of one level with ``size`` codes; the entropy is in nats, exp of it the perplexity."""
    counts = np.bincount(codes, minlength=size)
    shares = counts[counts > 0] / len(codes)
    entropy = float(-(shares * np.log(shares)).sum()) + 0.0
    return {"size": size, "used": len(shares), "entropy": entropy, "perplexity": float(np.exp(entropy))}


def tuple_quality(codes: np.ndarray) -> dict[str, int]:
    """Different tuples among ``codes`` (N, M), items that share theirs with another, and the largest bucket."""
    _, counts = buckets(codes)
    return {
        "tuples": len(counts),
        "colliding": int(counts[counts > 1].sum()),
        "largest_bucket": int(counts.max()),
    }


def reconstruction_error(vectors: np.ndarray, decoded: np.ndarray) -> float:
    """Σ |x - x̂|² / Σ |x - mean|² of ``vectors`` (n, F); 0 where they do not differ at all."""
    total = float(((vectors - vectors.mean(0, dtype=np.float64)) ** 2).sum())
    left = float(((vectors - decoded).astype(np.float64) ** 2).sum())
    return left / total if total > 0 else 0.0


def alarms(levels: Sequence[dict[str, Any]], items: int) -> list[str]:
    """What is wrong with ``levels`` of :func:`level_quality`, in words; empty where nothing is."""
    found = []
    for number, level in enumerate(levels, 1):
        size = min(int(level["size"]), items)
        few = level["perplexity"] < PERPLEXITY * size or level["used"] < USED * size or level["used"] == 1
        if few and size > 1:
            found.append(
                f"level {number} has collapsed: {level['used']:,} of {level['size']:,} codes are used, perplexity "
                f"{level['perplexity']:.1f}"
            )
    return found


def agreement(codes: np.ndarray, pairs: np.ndarray) -> float:
    """The mean share of levels in which the two items of ``pairs`` (P, 2), rows of ``codes`` (.., M), have one code.

    Of items that follow each other in histories it should be far above that of items drawn at random.
    """
    return float((codes[pairs[:, 0]] == codes[pairs[:, 1]]).mean())


def quality_lines(quality: dict[str, Any]) -> list[str]:
    """The lines that :class:`~recsys.semantic_ids.table.SemanticIds` prints of its manifest's ``quality``."""
    lines = _level_lines(quality.get("levels", []))
    for when in ("before", "after"):
        if told := quality.get(when):
            lines.append(
                f"  {when:<10} {told['tuples']:,} different tuples, {told['colliding']:,} items share theirs, largest "
                f"bucket {told['largest_bucket']:,}"
            )
    if quality.get("reconstruction_error") is not None:
        lines.append(f"  error      {quality['reconstruction_error']:.3f} of the variance is lost")
    return lines + [f"  ALARM      {alarm}" for alarm in quality.get("alarms", [])]


def _level_lines(levels: Sequence[dict[str, Any]]) -> list[str]:
    """A line per level, or one for all of more than eight that the tokenizer made."""
    told = [
        f"  level {number:<4} {level['used']:,} of {level['size']:,} codes used, perplexity {level['perplexity']:.1f}, "
        f"entropy {level['entropy']:.2f} nats" + (" (appended)" if level.get("appended") else "")
        for number, level in enumerate(levels, 1)
    ]
    made = [level for level in levels if not level.get("appended")]
    if len(made) <= _LISTED:
        return told
    used, perplexity = [level["used"] for level in made], [level["perplexity"] for level in made]
    together = (
        f"  levels     {len(made)}, codes used {min(used):,} to {max(used):,}, perplexity {min(perplexity):.1f} to "
        f"{max(perplexity):.1f}, mean {sum(perplexity) / len(made):.1f} (each is in the manifest)"
    )
    return [together, *told[len(made) :]]
