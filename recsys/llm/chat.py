"""Language models that answer prompts: what a writer is, and the one behind an OpenAI-compatible HTTP endpoint.

The endpoint works with vLLM, Ollama, OpenAI and whatever else answers ``POST {url}/chat/completions``. Only the
standard library is used. The one in this process is in ``recsys.llm.local``.
"""

from __future__ import annotations

import copy
import email.utils
import http.client
import json
import os
import queue
import random
import re
import ssl
import sys
import threading
import time
import urllib.error
import urllib.request
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol
from urllib.parse import urlsplit

from recsys.llm.limits import RateLimit

RETRIED = frozenset({408, 409, 425, 429})  # and everything from 500 on
REFUSED = frozenset({400, 413, 422})  # something is wrong with this one prompt, or so it may be
LARGEST = 16 * 2**20  # bytes of an answer that are read
CHARS_PER_TOKEN = 4  # where the server does not count
TELL = 10.0  # seconds between two lines on standard error about requests that are sent again


@dataclass(frozen=True)
class Prompt:
    """What to do (``system``, ours alone) and what to do it with (``user``, which holds other people's text)."""

    system: str
    user: str


@dataclass(frozen=True)
class Answer:
    """What came back for one prompt, and what it took."""

    text: str | None  # None: the model gave no text
    prompt_tokens: int = 0
    completion_tokens: int = 0
    estimated: bool = False  # the two counts are guessed from the characters, because the server gave none
    requests: int = 1  # all but one are retries
    cost: float | None = None  # in the currency of the prices; None without prices
    cut: bool = False  # stopped at the longest answer that was allowed
    refused: str = ""  # why the prompt was not answered at all


class Writer(Protocol):
    """Answers prompts; ``settings`` (JSON values) is all that an answer depends on besides its prompt."""

    @property
    def name(self) -> str:
        """What wrote, for reports."""
        ...

    @property
    def settings(self) -> dict[str, Any]:
        """The model and everything else that changes an answer: part of the key under which answers are kept."""
        ...

    def write(self, prompts: Sequence[Prompt], done: Callable[[int, Answer], None]) -> None:
        """Call ``done(index of the prompt, answer)`` in this thread, as soon as each is there, in any order.

        Raises:
            ConnectionError: the model cannot be reached; what was answered until then has been handed to ``done``.
        """
        ...


class ChatEndpoint:
    """An OpenAI-compatible endpoint as a writer.

    A request that fails for a reason that may pass (no connection, time-out, 408, 409, 425, 429, 5xx, an answer cut
    off or not in the protocol) is sent again after ``backoff`` x 2^n seconds, times a random factor in [.5, 1.5), or
    after what the server asks for; a 429 holds back all threads. Standard error says so, every ten seconds at most. No
    other failure is tried again. Redirections are not followed, since they would take the key elsewhere, and a server
    on this machine is reached without a proxy.

    Args:
        url: the base, such as "http://localhost:8000/v1".
        model: as the server calls it.
        key_env: name of the environment variable with the key, read at each request and kept nowhere. No header is
            sent where it is not set.
        temperature: 0 for the likeliest answer.
        max_tokens: longest answer.
        extra: more fields of the request, such as ``{"top_p": .9}``; None leaves a field out. Reports show them.
        timeout: seconds until a request counts as failed; nothing is streamed, so it covers the whole answer.
        retries: of one prompt; then :meth:`write` gives up.
        backoff: seconds before the first retry.
        longest_wait: seconds; a server that asks for more makes :meth:`write` give up, so that nobody waits unaware.
        concurrency: requests under way at any time, at most.
        requests_per_minute: limit, spread evenly; None: none.
        tokens_per_minute: limit of tokens of prompts and answers; ``max_tokens`` counts until the answer says how many.
        price_per_million: of prompt and answer tokens, in any currency.
        seed: of the random factor.

    Raises:
        ValueError: an argument out of range, a URL with credentials in it, or a ``key_env`` that is not a name.
    """

    def __init__(
        self,
        url: str,
        model: str,
        *,
        key_env: str = "OPENAI_API_KEY",
        temperature: float = 0.0,
        max_tokens: int = 300,
        extra: Mapping[str, Any] | None = None,
        timeout: float = 120.0,
        retries: int = 5,
        backoff: float = 1.0,
        longest_wait: float = 300.0,
        concurrency: int = 8,
        requests_per_minute: float | None = None,
        tokens_per_minute: float | None = None,
        price_per_million: tuple[float, float] | None = None,
        seed: int = 0,
    ) -> None:
        _check_url(url)
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", key_env):
            raise ValueError("key_env must be the name of an environment variable, such as OPENAI_API_KEY, not a key")
        if min(timeout, concurrency, max_tokens) <= 0 or min(retries, backoff, longest_wait) < 0:
            raise ValueError(
                "timeout, concurrency and max_tokens must be positive, retries, backoff and longest_wait at least 0; "
                f"found {timeout}, {concurrency}, {max_tokens}, {retries}, {backoff} and {longest_wait}"
            )
        self.url, self.model, self.key_env = url, model, key_env
        self.temperature, self.max_tokens, self.extra = temperature, max_tokens, dict(extra or {})
        self.timeout, self.retries, self.backoff, self.longest_wait = timeout, retries, backoff, longest_wait
        self.concurrency, self.price_per_million, self.seed = concurrency, price_per_million, seed
        self.requests_per_minute, self.tokens_per_minute = requests_per_minute, tokens_per_minute
        self._limit, self._told = RateLimit(requests_per_minute, tokens_per_minute), -TELL
        local = urlsplit(url).hostname in ("localhost", "127.0.0.1", "::1")
        handlers = [_NoRedirect(), *([urllib.request.ProxyHandler({})] if local else [])]
        self._opener = urllib.request.build_opener(*handlers)

    def __repr__(self) -> str:
        return f"ChatEndpoint({self.url!r}, {self.model!r})"

    @property
    def name(self) -> str:
        """The model, and the host that serves it."""
        return f"{self.model} at {urlsplit(self.url).netloc}"

    @property
    def settings(self) -> dict[str, Any]:
        """Model, temperature, longest answer, extra fields; not the URL, so that a server may move."""
        return {"model": self.model, "temperature": self.temperature, "max_tokens": self.max_tokens, **self.extra}

    def sampled(self, temperature: float, seed: int) -> ChatEndpoint:
        """The same endpoint asked with another temperature and seed (field ``seed``, which not every server heeds)."""
        other = copy.copy(self)
        other.temperature, other.extra = temperature, {**self.extra, "seed": seed}
        return other

    def write(self, prompts: Sequence[Prompt], done: Callable[[int, Answer], None]) -> None:
        """See :class:`Writer`. Requests under way when one fails for good are still waited for and handed over.

        Raises:
            ConnectionError: a prompt had no answer after all retries, or the server asks for too long a wait.
            PermissionError: 401 or 403; names the environment variable.
            ValueError: another answer that trying again will not change, such as 404 for an unknown model.
        """
        todo, lock, stop = iter(enumerate(prompts)), threading.Lock(), threading.Event()
        results: queue.SimpleQueue[tuple[int, Answer | Exception | None]] = queue.SimpleQueue()

        def work() -> None:
            while not stop.is_set():
                with lock:
                    index, prompt = next(todo, (-1, None))
                if prompt is None:
                    break
                try:
                    results.put((index, self._answer(prompt, stop)))
                except Exception as error:
                    results.put((index, error))  # before stop is set: the first failure is the one to tell
                    stop.set()
            results.put((-1, None))

        threads = min(self.concurrency, len(prompts))
        for _ in range(threads):
            threading.Thread(target=work, daemon=True).start()
        failure, running = None, threads
        try:
            while running:
                index, result = results.get()
                if isinstance(result, Answer):
                    done(index, result)
                elif result is None:
                    running -= 1
                else:
                    failure = failure or result
        except BaseException as error:
            stop.set()
            while not isinstance(error, Exception) and not results.empty():  # interrupted: keep what is here already
                index, result = results.get()
                if isinstance(result, Answer):
                    done(index, result)
            raise
        if failure is not None:
            raise failure

    def _answer(self, prompt: Prompt, stop: threading.Event) -> Answer:
        messages = [{"role": "system", "content": prompt.system}, {"role": "user", "content": prompt.user}]
        body = {"messages": messages, "stream": False, **self.settings}
        data = json.dumps({name: value for name, value in body.items() if value is not None}).encode()
        guess = len(prompt.system + prompt.user) // CHARS_PER_TOKEN + 1
        for attempt in range(self.retries + 1):
            if not self._limit.wait(guess + self.max_tokens, stop):
                raise InterruptedError("stopped, because another request failed")
            try:
                answer = self._read(self._post(data), guess, attempt + 1)
            except _RefusedError as error:
                answer = Answer(None, requests=attempt + 1, refused=str(error))
            except _PassingError as error:
                self._limit.give_back(guess + self.max_tokens)
                if attempt == self.retries or not self._patient(error, data, attempt, stop):
                    told = f"no answer from {self.url} after {attempt + 1} tries: {error}. {error.hint}"
                    raise ConnectionError(told) from error
                continue
            self._limit.give_back(guess + self.max_tokens - answer.prompt_tokens - answer.completion_tokens)
            return answer
        raise AssertionError("the last attempt returns or raises")

    def _patient(self, error: _PassingError, data: bytes, attempt: int, stop: threading.Event) -> bool:
        """Wait before the next try; False if there is to be none."""
        jitter = 0.5 + random.Random(f"{self.seed} {attempt} {zlib.crc32(data)}").random()
        seconds = self.backoff * 2**attempt * jitter if error.wait is None else error.wait
        if seconds > self.longest_wait:
            error.args = (f"{error}; it asks to wait {seconds:.0f} s, longest_wait is {self.longest_wait:.0f} s",)
            return False
        if error.wait is not None or error.crowded:
            self._limit.pause(seconds)
        if not stop.is_set() and time.monotonic() - self._told > TELL:
            self._told = time.monotonic()
            print(f"{self.url}: {error}; trying again in {seconds:.0f} s", file=sys.stderr, flush=True)
        return not stop.wait(seconds)

    def _post(self, data: bytes) -> bytes:
        key = self._key()
        headers = {"Content-Type": "application/json", "User-Agent": "recsys"}
        if key is not None:
            headers["Authorization"] = f"Bearer {key}"
        request = urllib.request.Request(f"{self.url.rstrip('/')}/chat/completions", data, headers)
        try:
            with self._opener.open(request, timeout=self.timeout) as response:
                return b"".join(_chunks(response, time.monotonic() + self.timeout))
        except urllib.error.HTTPError as error:
            raise self._failure(error, key) from error
        except urllib.error.URLError as error:
            if isinstance(error.reason, ssl.SSLCertVerificationError):
                raise ValueError(f"the certificate of {self.url} is not trusted ({error.reason})") from error
            raise _PassingError(f"no connection ({error.reason})") from error
        except (OSError, http.client.HTTPException) as error:
            raise _PassingError(_quoted(str(error).encode(), key) or type(error).__name__) from error

    def _failure(self, error: urllib.error.HTTPError, key: str | None) -> Exception:
        """What an HTTP status means."""
        try:
            told = f"HTTP {error.code} {_quoted(error.read(2000), key)}".strip()
        except (OSError, http.client.HTTPException):
            told = f"HTTP {error.code}"
        if error.code in RETRIED or error.code >= 500:
            return _PassingError(told, _retry_after(error.headers.get("Retry-After")), crowded=error.code == 429)
        if error.code in (401, 403):
            state = f"the key in the environment variable {self.key_env} was not accepted"
            if key is None:
                state = (
                    f"the environment variable {self.key_env} is not set: put the key there, or name another key_env"
                )
            return PermissionError(f"{self.url} refuses access: {state} ({told})")
        if error.code in REFUSED:
            return _RefusedError(told)
        if 300 <= error.code < 400:
            return ValueError(f"{self.url} leads elsewhere ({told}), which is not followed: model {self.model!r} needs "
                              "the address where it is in the end")  # fmt: skip
        return ValueError(f"{self.url} does not serve model {self.model!r}: {told}. Check both names, and the account")

    def _read(self, body: bytes, guess: int, requests: int) -> Answer:
        try:
            answer = json.loads(body)
            choice = answer["choices"][0]
            text = choice["message"].get("content")
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
            raise _PassingError(f"an answer cut off or not in the protocol: {_quoted(body, self._key())}") from error
        text = without_thoughts(text) if isinstance(text, str) else None
        counted = _usage(answer.get("usage"))
        into, out = counted or (guess, len(text or "") // CHARS_PER_TOKEN + 1)
        prices = self.price_per_million
        cost = None if prices is None else (into * prices[0] + out * prices[1]) / 1e6
        return Answer(text, into, out, counted is None, requests, cost, choice.get("finish_reason") == "length")

    def _key(self) -> str | None:
        key = os.environ.get(self.key_env, "").strip()
        if not (key.isascii() and key.isprintable()):
            raise ValueError(f"the environment variable {self.key_env} holds characters that no key has")
        return key or None


class _PassingError(Exception):
    """A failure that may pass.

    ``wait`` seconds are what the server asks for; a ``crowded`` one (429) wants fewer requests; ``hint`` is what to do
    if it stays.
    """

    def __init__(self, message: str, wait: float | None = None, crowded: bool = False) -> None:
        super().__init__(message)
        self.wait, self.crowded = wait, crowded
        self.hint = "Is the server up, and is its address right?"
        if crowded:
            self.hint = "Lower concurrency= or set requests_per_minute="


class _RefusedError(Exception):
    """The server does not want this one prompt."""


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: Any) -> None:
        return None


def without_thoughts(text: str) -> str:
    """An answer without what a reasoning model wrote to itself before it, ended or not, begun here or in the prompt.

    >>> without_thoughts("<think>They like horror.</think> Horror films.")
    'Horror films.'
    >>> without_thoughts("They like horror.</think> Horror films.")
    'Horror films.'
    """
    text = re.sub(r"<think>.*?</think>", "", text, flags=re.DOTALL).rpartition("</think>")[2]
    return text.partition("<think>")[0].strip()


def _chunks(response: http.client.HTTPResponse, deadline: float) -> Iterator[bytes]:
    size = 0
    while chunk := response.read1(2**16):
        yield chunk
        size += len(chunk)
        if time.monotonic() > deadline:
            raise TimeoutError("timed out while it answered")
        if size > LARGEST:
            raise ValueError(f"the server sends more than {LARGEST:,} bytes for one prompt: is it a chat endpoint?")


def _quoted(said: bytes, key: str | None) -> str:
    """The beginning of what a server says, on one line, without the key and without what a terminal obeys."""
    text = "".join(char if char.isprintable() else " " for char in said.decode(errors="replace"))
    text = " ".join(text.split())
    return (text.replace(key, "(the key)") if key else text)[:300]


def _usage(usage: Any) -> tuple[int, int] | None:
    """The tokens of prompt and answer, if the server counted both."""
    names = ("prompt_tokens", "completion_tokens")
    counts = [usage.get(name) for name in names] if isinstance(usage, dict) else []
    good = [count for count in counts if type(count) is int and count >= 0]
    return (good[0], good[1]) if len(good) == 2 else None


def _retry_after(header: str | None) -> float | None:
    """Seconds, from a number or a date; None for neither."""
    if header is None:
        return None
    try:
        return max(0.0, float(header))
    except ValueError:
        pass
    try:
        return max(0.0, email.utils.parsedate_to_datetime(header).timestamp() - time.time())
    except ValueError:
        return None


def _check_url(url: str) -> None:
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"url must be such as http://localhost:8000/v1, found {url!r}")
    if parts.username or parts.password or parts.query or parts.fragment:
        raise ValueError("url must hold neither a user, a password, nor a query: the key belongs into the environment")
    if parts.path.rstrip("/").endswith("/chat/completions"):
        raise ValueError(f"url is what comes before /chat/completions, found {url!r}")
