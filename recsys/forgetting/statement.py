"""What was forgotten, in words that need no knowledge of the method."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Numbers = Mapping[str, float]

NAMES = {
    "own events hr@10": "their own next items among the first ten",
    "own events ndcg@10": "the same, by place (NDCG@10)",
    "log-probability": "how probable their own next items are (mean log)",
    "log-probability of unseen": "how probable events are that no training saw (mean log)",
    "attack": "attack: an event of theirs told from one never trained on (AUC, .5 is guessing)",
    "re-exposed ndcg@10": "their newest items, if their history is handed to the model again (NDCG@10)",
    "others' test ndcg@10": "everybody else: quality on test (NDCG@10)",
    "valid ndcg@10": "everybody else: quality on validation, sampled (NDCG@10)",
}


def statement(facts: Mapping[str, Any], before: Numbers, after: Numbers) -> str:
    """A table of before and after, what it rests on, and what this cannot reach."""
    kind = facts["kind"]
    lines = [f"{facts['forgotten']:,} {kind} forgotten, {facts['events']:,} of their training events"]
    if facts["unknown"]:
        lines.append(f"{facts['unknown']:,} of {facts['asked']:,} were unknown or never trained on")
    width = max(map(len, NAMES.values()))
    lines += ["", f"{'':{width}}  {'before':>9}  {'after':>9}"]
    for name, title in NAMES.items():
        if name in before and name in after:
            lines.append(f"{title:{width}}  {before[name]:>9.4f}  {after[name]:>9.4f}")
    lines += ["", _verdict(facts, before, after), "", *_limits(kind)]
    return "\n".join(lines)


def _verdict(facts: Mapping[str, Any], before: Numbers, after: Numbers) -> str:
    was, found = (one["others' test ndcg@10"] for one in (before, after))
    change = found / was - 1 if was else 0.0
    quality = f"quality for everybody else on test {change:+.1%}, {facts['seconds']:,.0f} s"
    if not facts["chosen epoch"]:
        return (
            "NOT FORGOTTEN: every epoch cost everybody else more quality than the tolerance of "
            f"{facts['tolerance']:.0%}, so the model is what it was. Raise --tolerance, lower --learning-rate, or "
            f"train anew without them ({quality})."
        )
    level = f"the level of events that no training saw ({facts['level']:.3f})"
    if after["log-probability"] <= facts["level"]:
        return f"Forgotten: their events are at or below {level}; {quality}."
    total = before["log-probability"] - facts["level"]
    share = (before["log-probability"] - after["log-probability"]) / total if total > 0 else 1.0
    return (
        f"Forgotten in part: {share:.0%} of the way to {level}; {quality}. More epochs or a larger tolerance go "
        "further; training anew without them is what is complete."
    )


def _limits(kind: str) -> list[str]:
    what = "their rows" if kind == "users" else "their events"
    return [
        "What this does not reach:",
        f"- the source data: as long as {what} are in it, the next training learns them again;",
        "- the run it began with, its checkpoints, bundles and copies, which are what they were: delete them;",
        "- histories kept elsewhere (a request that carries one is answered with what it says), logs and backups.",
        "This is approximate: it is measured that the model no longer tells their events from others, not proven.",
    ]
