"""The log of events: each once, whole lines only, readable as training data."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import recsys as rs
from recsys.errors import DataError
from recsys.serve.feedback import FeedbackLog


def event(number: int, **more: object) -> dict[str, object]:
    return {
        "id": f"e{number}",
        "user": f"u{number % 3}",
        "item": f"i{number % 5}",
        "time": 1_700_000_000 + number,
    } | more


def lines(path: Path) -> list[str]:
    return [json.loads(line)["id"] for line in path.read_text().splitlines()]


def test_events_are_written_once_also_within_a_request_and_after_a_restart(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "events.ndjson"
    log = FeedbackLog(path)
    assert log.write([event(1), event(2), event(1, item="other")]) == 2
    assert log.write([event(2), event(3)]) == 1
    log.close()
    log = FeedbackLog(path)
    assert log.write([event(1), event(4)]) == 1
    log.close()
    assert lines(path) == ["e1", "e2", "e3", "e4"]


def test_the_log_trains_the_next_model(tmp_path: Path) -> None:
    log = FeedbackLog(tmp_path / "events.ndjson")
    log.write([event(number) for number in range(40)])
    log.close()
    split = rs.Dataset.scan(tmp_path / "events.ndjson", user="user", item="item", time="time").split(rs.LeaveLast())
    assert split.num_items == 5 and split.num_users == 3


def test_a_torn_line_is_taken_off_and_a_lost_index_is_made_again(tmp_path: Path) -> None:
    path = tmp_path / "events.ndjson"
    log = FeedbackLog(path)
    log.write([event(1)])
    log.close()
    with path.open("ab") as file:  # as a process that died would leave it: written, but not noted; and half a line
        file.write(json.dumps(event(2)).encode() + b"\n" + b'{"id": "e3", "us')
    log = FeedbackLog(path)
    assert log.write([event(2), event(3)]) == 1
    log.close()
    assert lines(path) == ["e1", "e2", "e3"]
    for beside in tmp_path.glob("events.ndjson.ids*"):
        beside.unlink()
    log = FeedbackLog(path)
    assert log.write([event(1), event(2), event(3), event(4)]) == 1
    log.close()


def test_a_log_that_was_cut_or_replaced_is_read_again(tmp_path: Path) -> None:
    path = tmp_path / "events.ndjson"
    log = FeedbackLog(path)
    log.write([event(number) for number in range(5)])
    log.close()
    path.write_text(json.dumps(event(0)) + "\n")
    log = FeedbackLog(path)
    assert log.write([event(0), event(1)]) == 1
    log.close()


def test_two_writers_and_other_files_are_refused(tmp_path: Path) -> None:
    log = FeedbackLog(tmp_path / "events.ndjson")
    with pytest.raises(BlockingIOError, match="another"):
        FeedbackLog(tmp_path / "events.ndjson")
    log.close()
    (tmp_path / "notes.txt").write_text("hello\n")
    with pytest.raises(DataError, match="no event"):
        FeedbackLog(tmp_path / "notes.txt")
    assert (tmp_path / "notes.txt").read_text() == "hello\n"
    with pytest.raises(IsADirectoryError):
        FeedbackLog(tmp_path)


def test_what_could_not_be_written_counts_as_never_sent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "events.ndjson"
    log = FeedbackLog(path)
    log.write([event(1)])
    for broken in ("recsys.serve.feedback.os.fsync", "recsys.serve.feedback.FeedbackLog._note"):
        with monkeypatch.context() as full:

            def fails(*given: object) -> None:
                raise OSError(28, "No space left on device")

            full.setattr(broken, fails)
            with pytest.raises(OSError, match="space"):
                log.write([event(2)])
        assert lines(path) == ["e1"]
    assert log.write([event(2)]) == 1 and lines(path) == ["e1", "e2"]
    log.close()
