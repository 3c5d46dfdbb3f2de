"""What is wrong, or worth knowing, about a split before anything is trained on it.

Hard leaks raise :class:`recsys.errors.LeakageError`; everything else is a line of the printed audit.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from recsys.data.findings import Audit, Finding
from recsys.data.repeats import repeated_rows
from recsys.data.split import HeldOut, Split
from recsys.errors import LeakageError
from recsys.ids.ranges import blocks, spread
from recsys.readers.times import unset, unset_text


def audit(split: Split, expected: Mapping[str, int] | None = None, counts: Mapping[str, int] | None = None) -> Audit:
    """Check a split for leaks, ties, cold users and items, and repeats.

    Args:
        split: what to check.
        expected: what the data card says: "users", "items", "interactions", any of them.
        counts: the same of the data as read, if cleaning removed some (default: those of the split).

    Raises:
        LeakageError: a target lies in a range the model may see, or training holds what comes after the test.
    """
    findings = [_ranges(split)]
    if findings[0].level == "ok":  # nothing below makes sense for ranges that overlap
        findings.insert(0, _sizes(split, expected, counts))
        moments = split.prepared.moments()  # at full precision, or None
        findings += [_future(split, moments), *_placeholders(split), _ties(split, moments), _same_rows(split, moments)]
        findings += [check(split) for check in (_cold_users, _cold_items, _repeats, _untested)]
    found = Audit(f"{split.name or 'the data'} ({_protocol(split)})", tuple(findings))
    if found.leaks:
        raise LeakageError("\n".join([*(finding.text for finding in found.leaks), str(found)]))
    return found


def _protocol(split: Split) -> str:
    return f"{split.protocol.get('name', 'unnamed split')}, order: {split.prepared.order}"


def _sizes(split: Split, expected: Mapping[str, int] | None, counts: Mapping[str, int] | None) -> Finding:
    prepared = split.prepared
    sizes = {"users": prepared.num_users, "items": prepared.num_items, "interactions": prepared.num_events}
    parts = {"training": split.train.num_events}
    for part in (split.valid, split.test):
        parts[part.name] = int((part.target_stop - part.target_start).sum())
    text = ", ".join(f"{size:,} {name}" for name, size in sizes.items())
    text += f" ({', '.join(f'{size:,} {name}' for name, size in parts.items())})"
    found = {**sizes, **(counts or {})}
    wrong = {name: size for name, size in (expected or {}).items() if name in found and found[name] != size}
    if wrong:
        text += "; the card says " + ", ".join(f"{size:,} {name}, read {found[name]:,}" for name, size in wrong.items())
    elif expected:
        text += ", as read: what the card says"
    return Finding("counts", "note" if wrong else "ok", text, {**sizes, **parts})


def _ranges(split: Split) -> Finding:
    """Training, validation and test of each user follow one another; else a target is part of its own input."""
    start, end = split.prepared.offsets[:-1], split.prepared.offsets[1:]
    wrong = (split.train_stop < start) | (split.valid_stop < split.train_stop) | (split.valid_stop > end)
    count = int(wrong.sum())
    if count:
        sample = int(np.flatnonzero(wrong)[0])
        text = (
            f"targets lie inside their own input for {count:,} users (first: user row {sample}): split the data again"
        )
        return Finding("target in input", "leak", text, {"users": count})
    return Finding("target in input", "ok", "no target lies inside its own input", {"users": 0})


def _future(split: Split, times: np.ndarray | None) -> Finding:
    name = "future in training"
    if times is None:
        return Finding(name, "note", "without times, whether training knows the future cannot be checked")
    own = _own_future(split, times)
    if own and split.prepared.order in ("time", "day"):
        text = f"{own:,} users have training or history events later than what is to be predicted for them"
        return Finding(name, "leak", text, {"users": own})
    protocol = split.protocol
    if protocol.get("name") == "leave-last" or protocol.get("global_time") is False:
        return _cross_user_future(split, times)
    found = _global_future(split, times)
    promised = protocol.get("name") == "global-time" or protocol.get("global_time") is True
    # An own splitter that promises nothing is taken for what it does: such a cut was made per user.
    return found if promised or found.level != "leak" else _cross_user_future(split, times)


def _own_future(split: Split, times: np.ndarray) -> int:
    """Users of whom a target is older than some event of its history."""
    wrong = np.zeros(split.num_users, dtype=bool)
    for part in (split.valid, split.test):
        seen = part.history_lengths > 0
        latest = _per_range(np.maximum, times, part.history_start[seen], part.target_start[seen])
        earliest = _per_range(np.minimum, times, part.target_start[seen], part.target_stop[seen])
        wrong[part.users[seen][latest > earliest]] = True
    return int(wrong.sum())


def _global_future(split: Split, times: np.ndarray) -> Finding:
    start, stop = split.train.start, split.train.stop
    trained = stop > start
    newest = int(_per_range(np.maximum, times, start[trained], stop[trained]).max(initial=np.iinfo(np.int64).min))
    begins = {part.name: _begin(part, times) for part in (split.valid, split.test) if len(part)}
    late = {name: begin for name, begin in begins.items() if newest > begin}
    if not late:
        text = "no training event is later than what is to be predicted"
        text += f" (from {_date(split, min(begins, key=begins.__getitem__))})" if begins else ""
        return Finding("future in training", "ok", text, {"events": 0})
    name, begin = max(late.items(), key=lambda entry: entry[0] == "test")
    events = sum(int((_training_times(split, times, users) > begin).sum()) for users in blocks(split.train.lengths))
    text = (
        f"{events:,} training events ({events / split.train.num_events:.1%}) are later than the first {name} target of "
        f"{_date(split, name)}"
    )
    if name == "test" and split.protocol.get("name") == "given":
        text += ": split by GlobalTime, or, if the parts were made per user, use Given(global_time=False)"
    elif name == "test":
        text += ", though the protocol promises one moment for all users (global_time): split by GlobalTime, or cut so"
    return Finding("future in training", "leak" if name == "test" else "note", text, {"events": events})


def _cross_user_future(split: Split, times: np.ndarray) -> Finding:
    """Under a split per user: how much of the training data is later than the moment a test user is asked about."""
    if not len(split.test) or not split.train.num_events:
        return Finding("future in training", "ok", "no user is tested")
    asked = np.sort(times[split.test.target_start])
    older = np.zeros(len(asked) + 1, dtype=np.int64)  # training events that are not later than the i-th first moments
    for users in blocks(split.train.lengths):
        after = np.searchsorted(asked, _training_times(split, times, users), side="left")
        older += np.bincount(after, minlength=len(asked) + 1)
    share = 1 - np.cumsum(older)[:-1] / split.train.num_events
    text = (
        f"training holds the future of other users: {share.mean():.1%} of its events are later than the test target, "
        f"on average over test users ({float((share > 0).mean()):.1%} of them affected); GlobalTime avoids it"
    )
    level = "note" if (share > 0).any() else "ok"
    return Finding("future in training", level, text, {"share": float(share.mean()), "users": int((share > 0).sum())})


def _placeholders(split: Split) -> list[Finding]:
    times = split.prepared.times
    found = {} if times is None else unset(times)
    numbers: dict[str, float] = {"events": sum(found.values())}
    return [Finding("placeholder times", "note", unset_text(found), numbers)] if found else []


def _same_rows(split: Split, times: np.ndarray | None) -> Finding:
    """Events equal to another of the same user, and those of which the other is in another part of the split."""
    prepared, lengths = split.prepared, np.diff(split.prepared.offsets)
    count, apart, tested = 0, 0, 0
    for users in blocks(lengths):
        start, stop = int(prepared.offsets[users.start]), int(prepared.offsets[users.stop])
        owner = np.repeat(np.arange(users.start, users.stop), lengths[users])
        moments = None if times is None else times[start:stop]
        again, first = repeated_rows(owner, prepared.items[start:stop], moments, ordered=prepared.order != "none")
        part, of = (
            (rows + start >= split.train_stop[owner[rows]]).astype(np.int8)
            + (rows + start >= split.valid_stop[owner[rows]])
            for rows in (again, first)
        )
        count, apart = count + len(again), apart + int((part != of).sum())
        tested += int(((part == 2) & (of < 2)).sum())
    what = "user, item and time" if times is not None else "user and item as the event before"
    text = f"{count:,} events have the same {what}" + (" as another" if times is not None else "")
    if apart:
        text += f"; {apart:,} of them are in another part of the split than that event, {tested:,} are test targets"
    if count:
        text += '; .clean(duplicates="exact") drops what was logged twice'
    level = "note" if count and times is not None else "ok"
    numbers: dict[str, float] = {"events": count, "in two parts": apart, "targets": tested}
    return Finding("rows logged twice", level, text, numbers)


def _ties(split: Split, times: np.ndarray | None) -> Finding:
    prepared = split.prepared
    if times is None:
        return Finding("ties", "note", "without times, ties cannot be counted: the order is that of the file")
    same = (np.diff(times) == 0) & ~prepared.user_boundaries()
    tied = np.zeros(prepared.num_events, dtype=bool)
    tied[1:] |= same
    tied[:-1] |= same
    share = float(tied.mean()) if len(tied) else 0.0
    test = split.test
    known = test.target_start > test.history_start
    decided = int(same[test.target_start[known] - 1].sum())
    text = (
        f"{share:.1%} of events share their time with a neighbour of the same user; for {decided:,} of {len(test):,} "
        f"test users ({_share(decided, len(test)):.1%}) the order of such a tie decides what the target is"
    )
    numbers = {"events": int(tied.sum()), "share": share, "targets": decided}
    return Finding("ties", "note" if decided else "ok", text, numbers)


def _cold_users(split: Split) -> Finding:
    test = split.test
    empty = int((test.history_lengths == 0).sum())
    untrained = int((split.train.lengths[test.users] == 0).sum())
    text = f"{untrained:,} of {len(test):,} test users ({_share(untrained, len(test)):.1%}) have no training events"
    text += f", {empty:,} no history at all" if empty else ""
    return Finding("cold users", "note" if untrained else "ok", text, {"users": untrained, "empty histories": empty})


def _cold_items(split: Split) -> Finding:
    seen = split.train.item_counts() > 0
    cold, total = 0, 0
    rows = np.zeros(split.num_items + 1, dtype=bool)
    for part in blocks(split.test.target_stop - split.test.target_start):
        _, items = split.test.targets(np.arange(part.start, part.stop))
        cold, total = cold + int((~seen[items]).sum()), total + len(items)
        rows[items[~seen[items]]] = True
    text = f"{cold:,} of {total:,} test targets ({_share(cold, total):.1%}) are items that training never saw"
    text += f" ({int(rows.sum()):,} items)" if cold else ""
    return Finding("cold items", "note" if cold else "ok", text, {"targets": cold, "items": int(rows.sum())})


def _repeats(split: Split) -> Finding:
    test, size = split.test, split.num_items + 1
    repeats, total = 0, 0
    for part in blocks(test.target_stop - test.history_start):
        index = np.arange(part.start, part.stop)
        owner, items = test.history(index)
        user, targets = test.targets(index)
        wanted, seen = user * size + targets, owner * size + items  # wanted is sorted; sorting seen would cost more
        at = np.minimum(np.searchsorted(wanted, seen), len(wanted) - 1)
        repeats += len(np.unique(at[wanted[at] == seen]))
        total += len(targets)
    text = f"{repeats:,} of {total:,} test targets ({_share(repeats, total):.1%}) repeat an item of the history"
    return Finding("repeats", "note" if repeats else "ok", text, {"targets": repeats})


def _untested(split: Split) -> Finding:
    missing = split.num_users - len(split.test)
    reason = "too short to be tested" if split.protocol.get("name") == "leave-last" else "without test events"
    text = f"{missing:,} of {split.num_users:,} users ({_share(missing, split.num_users):.1%}) are {reason}"
    return Finding("untested users", "note" if missing else "ok", text, {"users": missing})


def _per_range(reduce: np.ufunc, values: np.ndarray, start: np.ndarray, stop: np.ndarray) -> np.ndarray:
    """``reduce`` over each of the ascending, non-empty ranges [start, stop)."""
    if not len(start):
        return np.zeros(0, dtype=values.dtype)
    edges = np.stack([start, stop], axis=1).ravel()
    edges = edges[:-1] if edges[-1] == len(values) else edges
    return reduce.reduceat(values, edges)[::2]


def _training_times(split: Split, times: np.ndarray, users: slice) -> np.ndarray:
    _, index = spread(split.train.start[users], split.train.stop[users])
    return times[index]


def _begin(part: HeldOut, times: np.ndarray) -> int:
    return int(_per_range(np.minimum, times, part.target_start, part.target_stop).min())


def _share(count: int, total: int) -> float:
    return count / total if total else 0.0


def _date(split: Split, part: str) -> str:
    """When the first target of a part is."""
    assert split.prepared.times is not None
    milliseconds = _begin(split.valid if part == "valid" else split.test, split.prepared.times)
    return str(np.datetime64(milliseconds, "ms").astype("datetime64[s]"))
