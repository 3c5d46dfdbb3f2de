"""What people did, as a log that the next model learns from: an append-only NDJSON file, each event once.

A line per event: ``id, user, item, time, type, value``, readable by ``Dataset.scan``. Beside it lies an index of the
ids (SQLite, ``FILE.ids``), so that an event that is sent again is not written again, also after a restart and with more
events than memory would hold. The file is the truth: what the index lacks after a crash is read from it, and a line
that was torn is taken off, as its sender was never told that it was written.
"""

from __future__ import annotations

import json
import os
import sqlite3
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from recsys.errors import DataError

BLOCK = 1 << 20  # bytes read at a time


class FeedbackLog:
    """An open log; one process at a time writes it.

    Raises:
        BlockingIOError: another process writes it.
        DataError: the file holds something else than events.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        if self.path.is_dir():
            raise IsADirectoryError(f"{path} is a folder, and the log of events is a file: name another")
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._lock = threading.Lock()
        self._owner = FileLock(f"{self.path}.lock")
        try:
            self._owner.acquire(timeout=0)
        except Timeout:
            raise BlockingIOError(f"another server writes {path}: give each a log of its own") from None
        try:
            self._ids = sqlite3.connect(f"{self.path}.ids", check_same_thread=False, isolation_level=None)
            self._ids.execute("PRAGMA journal_mode=WAL")
            self._ids.execute("CREATE TABLE IF NOT EXISTS seen (id TEXT PRIMARY KEY) WITHOUT ROWID")
            self._ids.execute("CREATE TABLE IF NOT EXISTS read (bytes INTEGER)")
            self._file = self.path.open("ab", buffering=0)
            self._catch_up()
        except BaseException:
            self._owner.release()
            raise

    def write(self, events: Sequence[Mapping[str, Any]]) -> int:
        """Append the events whose ``id`` was not written before; how many. They are on the disk when it answers."""
        with self._lock:
            new: dict[str, Mapping[str, Any]] = {}
            for event in events:
                new.setdefault(str(event["id"]), event)
            for id_ in [*new]:
                if self._ids.execute("SELECT 1 FROM seen WHERE id = ?", (id_,)).fetchone():
                    del new[id_]
            if not new:
                return 0
            end = self._file.tell()
            left = memoryview("".join(json.dumps(event, ensure_ascii=False) + "\n" for event in new.values()).encode())
            try:
                while left:
                    left = left[self._file.write(left) or 0 :]
                os.fsync(self._file.fileno())
                self._note(list(new), self._file.tell())
            except BaseException:  # a full disk: nothing of it counts
                self._file.truncate(end)
                self._file.seek(end)
                raise
            return len(new)

    def close(self) -> None:
        """Close the files; another process may write the log then."""
        with self._lock:
            self._file.close()
            self._ids.close()
            self._owner.release()

    def _note(self, ids: list[str], size: int) -> None:
        self._ids.execute("BEGIN")
        try:
            self._ids.executemany("INSERT OR IGNORE INTO seen VALUES (?)", [(one,) for one in ids])
            self._ids.execute("DELETE FROM read")
            self._ids.execute("INSERT INTO read VALUES (?)", (size,))
            self._ids.execute("COMMIT")
        except sqlite3.Error:
            if self._ids.in_transaction:
                self._ids.execute("ROLLBACK")
            raise

    def _catch_up(self) -> None:
        """Take in what the index lacks, and take off a torn last line."""
        row = self._ids.execute("SELECT bytes FROM read").fetchone()
        size = os.fstat(self._file.fileno()).st_size
        known = 0 if row is None or row[0] > size else int(row[0])
        if known == 0:
            self._ids.execute("DELETE FROM seen")
        with open(self.path, "rb") as file:
            file.seek(known)
            while lines := file.readlines(BLOCK):
                whole = lines if lines[-1].endswith(b"\n") else lines[:-1]
                known += sum(map(len, whole))
                self._note([self._id(line) for line in whole], known)
        self._file.truncate(known)
        self._file.seek(known)

    def _id(self, line: bytes) -> str:
        try:
            return str(json.loads(line)["id"])
        except (ValueError, KeyError, TypeError):
            raise DataError(
                f"{self.path} holds a line that is no event with an id: {line[:80]!r}; name another file"
            ) from None
