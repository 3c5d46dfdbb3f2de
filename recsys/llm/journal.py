"""Answers of language models, kept as they arrive, so that no interruption loses one that was paid for."""

from __future__ import annotations

import hashlib
import json
import os
import time
import warnings
from dataclasses import asdict
from pathlib import Path
from typing import Any

from recsys.errors import DataWarning
from recsys.llm.chat import Answer, Prompt
from recsys.storage.files import hold

FLUSH = 1.0  # seconds between two fsyncs


def key_of(settings: dict[str, Any], prompt: Prompt) -> str:
    """The key of an answer: what it depends on, hashed."""
    return hashlib.sha256(json.dumps([settings, prompt.system, prompt.user], sort_keys=True).encode()).hexdigest()


class Journal:
    """Answers by key in a file that only grows: a line each, written at once, so that a killed process loses none.

    ``spent`` sums what this process added.

    Raises:
        BlockingIOError: another process writes the same profiles.
        FileExistsError: the file is a link.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder.with_name(folder.name + ".answers.jsonl")
        self.answers: dict[str, Answer] = {}
        self.spent = {"prompt_tokens": 0, "completion_tokens": 0, "cost": 0.0}
        self._lock: Any = None
        self._synced = 0.0

    def __enter__(self) -> Journal:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if self.path.is_symlink():
            raise FileExistsError(f"{self.path} is a link, which is not followed: delete it")
        self._lock = hold(self.path.with_name(self.path.name + ".lock"), self.path)
        try:
            self._file = self.path.open("ab", buffering=0)
            self._read()
        except BaseException:
            self._lock.release()
            raise
        return self

    def _read(self) -> None:
        damaged = whole = 0
        for line in self.path.open("rb"):
            if not line.endswith(b"\n"):
                os.ftruncate(self._file.fileno(), whole)
                damaged += 1
                break
            whole += len(line)
            try:
                entry = json.loads(line)
                key = entry.pop("key")
                self.answers[key] = Answer(**entry)
            except (ValueError, LookupError, TypeError, AttributeError):
                damaged += 1
        if damaged:
            warnings.warn(
                f"{damaged:,} lines of {self.path} are cut off or damaged: what they held is asked for again",
                DataWarning, stacklevel=4,
            )  # fmt: skip

    def add(self, key: str, answer: Answer) -> None:
        """Keep an answer: it survives the process at once, and a power cut a second later."""
        self._append(json.dumps({"key": key, **asdict(answer)}).encode() + b"\n")
        self.answers[key] = answer
        self.spent["prompt_tokens"] += answer.prompt_tokens
        self.spent["completion_tokens"] += answer.completion_tokens
        self.spent["cost"] += answer.cost or 0.0
        if time.monotonic() - self._synced > FLUSH:
            os.fsync(self._file.fileno())
            self._synced = time.monotonic()

    def _append(self, line: bytes) -> None:
        """Write a line whole or not at all: a disk that is full takes a part of it without an error."""
        end = self._file.seek(0, os.SEEK_END)
        try:
            written = 0
            while written < len(line):
                written += self._file.write(line[written:])
        except OSError as error:
            os.ftruncate(self._file.fileno(), end)
            raise OSError(error.errno, error.strerror, str(self.path)) from error

    def __exit__(self, *_: object) -> None:
        try:
            os.fsync(self._file.fileno())
        finally:
            self._file.close()
            self._lock.release()
