"""Item sentences as tokens, made once per catalogue: what text encoders that read whole histories are made of.

The sentence of an item is its attributes, each as key and value ("brand Acme"), without special tokens between them
(Recformer, arXiv 2305.13731, section 3.1; AaronHeee/RecFormer, tokenization.py): at most ``max_attributes``, each cut
to ``attribute_tokens`` tokens, key and value together. Values are cleaned as for :func:`recsys.llm.embed.embed`, which
the authors' code does not do. Tokens, tokenizer and columns are saved with the model, so a loaded model tokenises new
items without a network.

Legend: N items (rows 1..N), n tokens of all sentences.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from recsys.errors import DataError, DataWarning
from recsys.ids.vocabulary import Vocabulary
from recsys.llm.texts import clean_value, text_columns
from recsys.nn.longformer import OTHERWISE
from recsys.protocols import Change, Context
from recsys.storage.hub import from_hub

KEY, VALUE = 1, 2  # token types
SPECIAL = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")  # rows 0..4 of a tokenizer trained here
_INSTALL = "pip install 'recsys[llm]'"
_MAX_CHARS = 2000
_CHUNK = 4096  # items tokenised at a time


class Sentences(NamedTuple):
    """Tokens of items: row j has tokens ``offsets[j]:offsets[j + 1]``; row 0 is padding and has none."""

    ids: Tensor  # (n,) int32
    types: Tensor  # (n,) int32: 1 of a key, 2 of a value
    starts: Tensor  # (n,) int32: 1 where a word begins
    offsets: Tensor  # (rows + 1,) int64


class ItemTokens(nn.Module):
    """The sentences of a catalogue, and the tokenizer that makes more of them.

    Args:
        columns: attributes, in this order; None takes the title and then the others, as :func:`embed` does.
        tokenizer: folder or hub name of a fast tokenizer, or such an object of transformers; None trains a byte-level
            BPE on the item text (the same text gives the same tokenizer).
        vocab_size: rows of the token table; None counts those of ``tokenizer``, and is 2,000 for one trained here,
            which may end with fewer.

    Raises:
        ValueError: a number that makes no sense, or a tokenizer that cannot be had or is not a fast one.
    """

    ids: Tensor
    types: Tensor
    starts: Tensor
    offsets: Tensor
    checksum: Tensor
    recipe: Tensor

    def __init__(
        self,
        columns: Sequence[str] | None = None,
        tokenizer: Any = None,
        vocab_size: int | None = None,
        max_attributes: int = 3,
        attribute_tokens: int = 32,
    ) -> None:
        super().__init__()
        if isinstance(columns, str):
            raise TypeError(f"columns must be a list of names, found one name: pass [{columns!r}]")
        if max_attributes < 1 or attribute_tokens < 1:
            raise ValueError(
                f"max_attributes and attribute_tokens must be at least 1, found {max_attributes}, {attribute_tokens}"
            )
        if columns is not None and len(columns) > max_attributes:
            raise ValueError(f"{len(columns)} columns are named, max_attributes={max_attributes} are read: raise it")
        least = len(SPECIAL) + 256
        if tokenizer is None and vocab_size is not None and vocab_size < least:
            raise ValueError(f"a byte-level tokenizer needs a vocab_size of at least {least}, found {vocab_size}")
        self.columns = None if columns is None else list(columns)
        self.max_attributes, self.attribute_tokens = max_attributes, attribute_tokens
        self._given = None if tokenizer is None or isinstance(tokenizer, str) else tokenizer
        self.tokenizer = (getattr(tokenizer, "name_or_path", "") or "given") if self._given is not None else tokenizer
        if vocab_size is None:
            vocab_size = 2000 if tokenizer is None else len(self._hugging_face())
        self.vocab_size = vocab_size
        self.missing = self.truncated = 0  # items without text, attributes that were cut
        self._loaded: tuple[Any, Any] | None = None
        self._set(_ragged([]))
        self.register_buffer("checksum", torch.zeros(32, dtype=torch.uint8))
        self.register_buffer("recipe", torch.zeros(0, dtype=torch.uint8))

    def bind(self, context: Context) -> None:
        """Tokenise the items of ``context``; without text (a loaded model) the saved tokens are awaited.

        Raises:
            DataError: there is training data, but no item text.
        """
        self._loaded = None
        if context.item_text is None:
            if context.training is not None:
                raise DataError("these data have no item text: name an item table, Dataset.scan(..., items=...)")
            self._set(_ragged([[] for _ in range(context.num_items + 1)]))
            return
        columns = text_columns(context.item_text, self.columns)[: self.max_attributes]
        rows = list(zip(*(context.item_text[name] for name in columns), strict=True))
        attributes = [self._attributes(dict(zip(columns, row, strict=True))) for row in rows]
        made, special = self._make(text for item in attributes for pair in item for text in pair)
        facts = {"tokenizer": made.to_str(), "columns": columns, **special}
        self.recipe = _bytes(json.dumps(facts).encode())
        self.checksum = _bytes(_digest(context.vocabulary, attributes))
        sentences, self.truncated = self._sentences(attributes)
        self._set(sentences)
        self.missing = sum(not item for item in attributes[1:])
        if self.missing:
            note = f"{self.missing:,} of {len(attributes) - 1:,} items have no text: all of them get the same vector"
            warnings.warn(note, DataWarning, stacklevel=2)

    @property
    def start(self) -> int:
        """Id of the token that stands before every document."""
        return int(self._facts["start"])

    @property
    def pad(self) -> int:
        """Id of padding."""
        return int(self._facts["pad"])

    @property
    def mask(self) -> int:
        """Id of the mask."""
        return int(self._facts["mask"])

    def encode(self, texts: Sequence[Mapping[str, str]]) -> Sentences:
        """Sentences of items that need not be in the catalogue, each column -> value; rows 1..len(texts)."""
        names = self._facts["columns"]
        known = [{name: item[name] for name in names if name in item} for item in texts]
        if nothing := [item for item, own in zip(texts, known, strict=True) if item and not own][:1]:
            raise DataError(f"an item has the columns {', '.join(nothing[0])}; the model reads {', '.join(names)}")
        return self._sentences([[], *(self._attributes(item) for item in known)])[0]

    def carry(self, before: dict[str, Tensor], change: Change) -> None:
        """Read the new texts with the tokenizer of before, whose tokens the model knows.

        Raises:
            DataError: the texts lack a column.
        """
        text = change.context.item_text
        if text is None or torch.equal(before["recipe"].cpu(), self.recipe.cpu()):
            return
        self.recipe, self._loaded = before["recipe"], None
        attributes = self._rows_of(text)
        self.checksum = _bytes(_digest(change.context.vocabulary, attributes))
        sentences, self.truncated = self._sentences(attributes)
        self._set(sentences)

    def check_split(self, split: Any) -> None:
        """Raise DataError unless a split has the items, the texts and the order that the tokens were made of."""
        if _digest(split.items, self._rows_of(split.item_text or {})) != bytes(self.checksum.cpu().numpy()):
            raise DataError(
                "this item table is not the one that the model was made with (other texts, or another order of items): "
                "train the model on it with rs.fit, or load the split it was trained on"
            )

    def _rows_of(self, item_text: Mapping[str, Any]) -> list[list[tuple[str, str]]]:
        """The attributes of every row, of the columns that the model reads."""
        names = self._facts["columns"]
        if not set(names) <= set(item_text):
            raise DataError(f"the item table lacks the columns {sorted(set(names) - set(item_text))}")
        rows = zip(*(item_text[name] for name in names), strict=True)
        return [self._attributes(dict(zip(names, row, strict=True))) for row in rows]

    def _attributes(self, item: Mapping[str, Any]) -> list[tuple[str, str]]:
        present = ((name, value) for name, value in item.items() if value is not None and value == value)  # NaN
        cleaned = ((name, clean_value(str(value), _MAX_CHARS)) for name, value in present)
        return [(name.replace("_", " "), value) for name, value in cleaned if value][: self.max_attributes]

    def _sentences(self, items: Sequence[Sequence[tuple[str, str]]]) -> tuple[Sentences, int]:
        """Ragged tokens of the attributes of each row, and how many were cut."""
        made = [self._chunk(items[first : first + _CHUNK]) for first in range(0, max(len(items), 1), _CHUNK)]
        ids, types, starts = (torch.cat([getattr(part, name) for part, _ in made]) for name in Sentences._fields[:3])
        counts = torch.cat([part.offsets.diff() for part, _ in made])
        offsets = torch.nn.functional.pad(counts.cumsum(0), (1, 0))
        return Sentences(ids, types, starts, offsets), sum(cut for _, cut in made)

    def _chunk(self, items: Sequence[Sequence[tuple[str, str]]]) -> tuple[Sentences, int]:
        """The same of a few rows: a Python token takes some hundred bytes; each distinct text is tokenised once."""
        texts = list(dict.fromkeys(text for item in items for pair in item for text in pair))
        tokenizer = self._tokenizer
        found = tokenizer.encode_batch(texts, add_special_tokens=False)
        tokens = {text: (one.ids, _word_starts(one.word_ids)) for text, one in zip(texts, found, strict=True)}
        rows, cut = [], 0
        for item in items:
            row: list[tuple[int, int, int]] = []
            for pair in item:
                both = [
                    (token, kind, start)
                    for kind, text in zip((KEY, VALUE), pair, strict=True)
                    for token, start in zip(*tokens[text], strict=True)
                ]
                cut += len(both) > self.attribute_tokens
                row += both[: self.attribute_tokens]
            rows.append(row)
        return _ragged(rows), cut

    def _make(self, texts: Iterable[str]) -> tuple[Any, dict[str, int]]:
        """A tokenizer of ``tokenizers``, and its special ids."""
        if self.tokenizer is None:
            return _train(texts, self.vocab_size), {"start": 0, "pad": 1, "mask": 4}
        fast = self._hugging_face()
        special = {"start": fast.cls_token_id, "pad": fast.pad_token_id, "mask": fast.mask_token_id}
        if missing := [name for name, value in special.items() if value is None]:
            raise ValueError(f"the tokenizer {self.tokenizer!r} has no token for {', '.join(missing)}")
        if len(fast) > self.vocab_size:
            raise ValueError(f"the tokenizer has {len(fast)} tokens, more than vocab_size={self.vocab_size}")
        backend = _parsed(fast.backend_tokenizer.to_str())
        return backend, special

    def _hugging_face(self) -> Any:
        if self._given is None:
            try:
                from transformers import AutoTokenizer
            except ImportError as error:
                raise ImportError(f"the tokenizer {self.tokenizer!r} needs transformers: {_INSTALL}") from error
            load, name = AutoTokenizer.from_pretrained, str(self.tokenizer)
            self._given = from_hub(lambda offline: load(name, local_files_only=offline), name, "tokenizer", OTHERWISE)
        if not hasattr(self._given, "backend_tokenizer"):
            raise ValueError(f"{type(self._given).__name__} is not a fast tokenizer: words could not be told apart")
        return self._given

    @property
    def _facts(self) -> dict[str, Any]:
        return self._read()[1]

    @property
    def _tokenizer(self) -> Any:
        return self._read()[0]

    def _read(self) -> tuple[Any, dict[str, Any]]:
        """The saved tokenizer and facts, parsed once per saved recipe."""
        if self._loaded is None or self._loaded[0] is not self.recipe:
            if not len(self.recipe):
                raise ValueError("the tokens are not made yet: fit the model, or load a saved one")
            facts = json.loads(bytes(self.recipe.cpu().numpy()))
            self._loaded = self.recipe, (_parsed(facts.pop("tokenizer")), facts)
        found: tuple[Any, dict[str, Any]] = self._loaded[1]
        return found

    def _set(self, sentences: Sentences) -> None:
        for name, value in sentences._asdict().items():
            self.register_buffer(name, value)


def _train(texts: Iterable[str], vocab_size: int) -> Any:
    try:
        from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    except ImportError as error:
        raise ImportError(f"item sentences need tokenizers: {_INSTALL}") from error
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def _parsed(text: str) -> Any:
    try:
        from tokenizers import Tokenizer
    except ImportError as error:
        raise ImportError(f"item sentences need tokenizers: {_INSTALL}") from error
    tokenizer = Tokenizer.from_str(text)
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _word_starts(words: Sequence[int | None]) -> list[int]:
    return [int(at == 0 or word is None or word != words[at - 1]) for at, word in enumerate(words)]


def _ragged(rows: Sequence[Sequence[tuple[int, int, int]]]) -> Sentences:
    flat = np.array([token for row in rows for token in row], np.int32).reshape(-1, 3)
    offsets = np.cumsum([0, *map(len, rows)], dtype=np.int64)
    ids, types, starts = (torch.from_numpy(flat[:, column].copy()) for column in range(3))
    return Sentences(ids, types, starts, torch.from_numpy(offsets))


def _digest(vocabulary: Vocabulary | None, attributes: Sequence[Sequence[tuple[str, str]]]) -> bytes:
    """SHA-256 over raw ids and attributes, in the order of the rows."""
    digest = hashlib.sha256()
    raw = [None] * len(attributes) if vocabulary is None else [None, *vocabulary.raw(np.arange(1, len(attributes)))]
    for key, item in zip(raw, attributes, strict=True):
        digest.update(json.dumps([str(key), item]).encode())
    return digest.digest()


def _bytes(data: bytes) -> Tensor:
    return torch.frombuffer(bytearray(data), dtype=torch.uint8)
