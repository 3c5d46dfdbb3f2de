"""Preferences in the answers of a language model: a JSON list, or whatever else can be read as one.

Small models seldom answer in JSON, so that several readers are tried in order: a JSON list or an object that holds one,
the first list in brackets inside the text, lines with a number or a bullet, and lines that begin like a request.
"""

from __future__ import annotations

import ast
import contextlib
import json
import re
from collections.abc import Callable
from typing import Any, NamedTuple

from recsys.llm.answers import clean

MOST = 5  # preferences of an answer that are kept
LONGEST = 160  # characters of a preference
_BULLET = re.compile(r"^\s*(?:[-*•]|\(?\d{1,2}[.):])\s*(.+)$")
_REQUEST = re.compile(r"^\s*(?:find|avoid|no|exclude|search|look|show|prefer)\b.+$", re.IGNORECASE)
_BRACKETS = re.compile(r"\[[^\[\]]*\]", re.DOTALL)


class Parsed(NamedTuple):
    """The preferences in an answer, and how many further entries of it were no preference."""

    found: list[str]
    rejected: int


def parse(answer: str, most: int = MOST, asked: str = "") -> Parsed:
    """Up to ``most`` distinct preferences, in the order of the answer; entries of one word, of markup, beyond
    ``LONGEST`` characters, or copied from what was ``asked`` (its example) are rejected.

    >>> parse('Sure! {"preferences": ["Find a red lipstick", "Makeup", "Avoid strong scents"]}')
    Parsed(found=['Find a red lipstick', 'Avoid strong scents'], rejected=1)
    """
    entries: list[Any] = []
    for read in _READERS:
        entries = read(answer)
        if entries:
            break
    texts = [_preference(entry) for entry in entries]
    own = [text for text in texts if text and text.lower() not in asked.lower()]
    return Parsed(list(dict.fromkeys(own))[:most], len(texts) - len(own))


def useless(answer: str, asked: str = "") -> str:
    """Why an answer holds no preference, "" if it holds one."""
    if parse(answer, asked=asked).found:
        return ""
    return f"no list of preferences of two words or more in {' '.join(answer.split())[:80]!r}"


def _preference(entry: Any) -> str:
    """The entry as one line, "" if it is none."""
    text = clean(entry).strip(" \"'*`,;") if isinstance(entry, str) else ""
    plain = len(text) <= LONGEST and not any(mark in text for mark in "<>{}[]")
    return text if plain and len(text.split()) > 1 else ""


def _json(answer: str) -> list[Any]:
    """The list that the text is, or that an object in it holds."""
    start, stop = answer.find("{"), answer.rfind("}")
    for text in (answer, answer[start : stop + 1] if 0 <= start < stop else ""):
        with contextlib.suppress(ValueError, RecursionError):
            value = json.loads(text)
            if isinstance(value, dict):
                value = next((one for one in value.values() if isinstance(one, list)), [])
            if isinstance(value, list):
                return value
    return []


def _bracketed(answer: str) -> list[Any]:
    """The first list in brackets, of JSON or of Python."""
    for found in _BRACKETS.findall(answer):
        for read in (json.loads, ast.literal_eval):
            with contextlib.suppress(ValueError, SyntaxError, RecursionError, MemoryError):
                value = read(found)
                if isinstance(value, list) and value:
                    return value
    return []


def _bullets(answer: str) -> list[Any]:
    return [match[1] for line in answer.splitlines() if (match := _BULLET.match(line))]


def _requests(answer: str) -> list[Any]:
    return [line for line in answer.splitlines() if _REQUEST.match(line)]


_READERS: tuple[Callable[[str], list[Any]], ...] = (_json, _bracketed, _bullets, _requests)
