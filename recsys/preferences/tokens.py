"""Mender-Tok: what a user wants and what he had, as one text that a language model reads and a decoder looks at.

    Instructions: <preference>. Items: Title: <oldest title> ... Title: <newest title>  ->  text model  ->  W x + b

The text model is frozen, or trained through low-rank adapters; the map to the decoder's width is trained. There are no
codes on this side, and the codes of the next item alone are generated (arXiv 2412.08604; mender.md, section 6.2). A
text that is too long loses whole items, the oldest first; the preference stays.

Deviations: texts are padded to the longest of a batch instead of to 512 tokens, which the mask makes equal.

Legend: B histories, L longest, T items of all, S tokens of the longest text, P of the longest preference, D width.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from recsys.data.batch import PAD, Batch
from recsys.encoders.tokens import TokenMemory
from recsys.errors import DataError, DataWarning
from recsys.llm.texts import clean_value
from recsys.preferences.requests import FIELD, PREFERENCE, RequestTexts
from recsys.preferences.text_backbone import TextBackbone
from recsys.preferences.vectors import USE
from recsys.protocols import Context, Encoded

LEAD, MIDDLE, TITLE = "Instructions: ", ". Items: ", "Title: {} "
_MAX_CHARS = 500


class PreferenceTokens(nn.Module):
    """Histories and preferences as texts; gives :class:`recsys.encoders.tokens.TokenMemory`.

    A history without items is answered by its preference. Several preferences are joined by ". ". The tokens of titles
    and the tokenizer are saved with the model.

    Args:
        backbone: the text model, such as ``TextBackbone("google/flan-t5-small")``.
        dim: width D, the same as the item table's and the decoder's.
        max_length: items read, the newest.
        max_tokens: longest text.
        title: column of the item table.
        use: "both", or only the "items" or the "preference" (ablations).

    Raises:
        ValueError: an argument is out of range.
    """

    gives = frozenset({TokenMemory})
    may_read = frozenset({FIELD})
    sees = "all"  # the text model looks both ways, and the preference was chosen for one target
    title_ids: Tensor  # (n,) tokens of all titles, item after item
    title_ends: Tensor  # (N+2,) where those of each row end, beginning with 0
    frame: Tensor  # tokens of LEAD and of MIDDLE, and the end token
    frame_ends: Tensor  # (2,)
    tokenizer: Tensor  # JSON, as bytes; empty: UTF-8 bytes are the tokens

    def __init__(
        self,
        backbone: TextBackbone,
        dim: int = 128,
        max_length: int = 20,
        max_tokens: int = 512,
        title: str = "title",
        use: Literal["both", "items", "preference"] = "both",
    ) -> None:
        super().__init__()
        if min(dim, max_length) < 1 or max_tokens < 16 or use not in USE:
            raise ValueError(
                f"dim and max_length must be at least 1, max_tokens at least 16 and use one of {', '.join(USE)}; found "
                f"{dim}, {max_length}, {max_tokens} and {use!r}"
            )
        self.backbone, self.dim, self.max_length = backbone, dim, max_length
        self.max_tokens, self.title, self.use = max_tokens, title, use
        self.map = nn.Linear(1, dim)
        self._told, self._parsed = False, None
        self._hold([[]], [[], []], 0, b"")

    def bind(self, context: Context) -> None:
        """Load the text model, and tokenise the titles (of a loaded model they are among the saved tensors).

        Raises:
            DataError: there is training data, and no such column.
            ValueError: the text model reads fewer than ``max_tokens``.
        """
        self._parsed = None
        self.backbone.bind(context)
        longest = self.backbone.longest
        if longest is not None and longest < self.max_tokens:
            raise ValueError(f"the text model has positions for {longest} tokens: give max_tokens={longest} or less")
        self.map = nn.Linear(self.backbone.hidden, self.dim)
        if context.training is None:
            return
        if not context.item_text or self.title not in context.item_text:
            raise DataError(
                f"the items have no column {self.title!r} of texts; they have "
                f"{', '.join(context.item_text or ()) or 'none'}: name one of these, title=..., or an item table, "
                "Dataset.scan(..., items=path)"
            )
        fast, end = self.backbone.vocabulary()
        self._parsed = None if fast is None else _plain(fast.to_str())
        saved = b"" if fast is None else json.dumps(json.loads(fast.to_str())).encode()
        cleaned = [clean_value(str(value), _MAX_CHARS) if value else "" for value in context.item_text[self.title]]
        titles = self._tokens([TITLE.format(text) if text else "" for text in cleaned])
        missing = sum(not text for text in cleaned[1:])
        if missing:
            note = f"{missing:,} of {context.num_items:,} items have no {self.title}: they are left out of the text"
            warnings.warn(note, DataWarning, stacklevel=2)
        self._hold(titles, self._tokens([LEAD, MIDDLE]), end, saved)

    def merge(self) -> None:
        """Fold the adapters into the text model, for serving; it then saves all its weights and needs no hub."""
        self.backbone.merge()

    def request_columns(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """The preference of a request, as a column of users."""
        return {}, {PREFERENCE: RequestTexts(self.read)}

    def read(self, said: Sequence[Sequence[str]]) -> np.ndarray:
        """(n, P) int64 tokens of n lists of texts, each joined by ". "; 0 behind the end, P is at least 1."""
        distinct = list(dict.fromkeys(". ".join(text.rstrip(". ") for text in texts) for texts in said))
        tokens = dict(zip(distinct, self._tokens(distinct), strict=True))
        rows = [tokens[". ".join(text.rstrip(". ") for text in texts)] for texts in said]
        most = self.max_tokens - sum(map(len, self._tokens([LEAD, MIDDLE]))) - 1
        cut = sum(len(row) > most for row in rows)
        if cut:
            note = f"{cut:,} of {len(said):,} preferences are longer than {most} tokens and are cut there"
            warnings.warn(note, DataWarning, stacklevel=2)
        found = np.zeros((len(said), max([1, *(min(len(row), most) for row in rows)])), np.int64)
        for at, row in enumerate(rows):
            found[at, : min(len(row), most)] = row[:most]
        return found

    def alone(self, batch: Batch) -> Batch:
        """The batch with one position, of no item, in each empty history that comes with a preference."""
        said = batch.user_features.get(PREFERENCE)
        if said is None or self.use == "items":
            return batch
        return batch.replace(lengths=torch.where((batch.lengths == 0) & said.any(-1), 1, batch.lengths))

    def texts(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Tokens (B, S) of the text of each history, and which of them are there (B, S)."""
        begin, length = self._pieces(batch)
        flat, counts = length.flatten(), length.sum(1)
        ends = flat.cumsum(0)
        store = torch.cat([self.frame, self.title_ids, self._said(batch).flatten()])
        index = torch.arange(int(ends[-1]), device=flat.device) - (ends - flat).repeat_interleave(flat)
        tokens = store[index + begin.flatten().repeat_interleave(flat)]
        mask = torch.arange(max(int(counts.max()), 1), device=flat.device) < counts[:, None]
        return torch.zeros(mask.shape, dtype=torch.int64, device=flat.device).masked_scatter(mask, tokens), mask

    def forward(self, batch: Batch, items: Any) -> Encoded:
        """The memory of all tokens; the state of an item (T, D) is the mean over those of its history's text."""
        ids, mask = self.texts(batch)
        states = self.map(self.backbone(ids, mask)) * mask[..., None]
        mean = states.sum(1) / mask.sum(1).clamp(min=1)[:, None]
        tokens = mean.repeat_interleave(batch.lengths, 0)
        return Encoded(batch, tokens, (TokenMemory(states, mask.long() - 1),))

    def _pieces(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Where each piece of each text begins in frame, titles and preferences (B, 4 + L), and how long it is.

        The pieces: LEAD, the preference, MIDDLE, each item that fits, the end token.
        """
        size, device = len(batch), batch.ids.device
        said = self._said(batch)
        long = (said > 0).sum(1)
        lead, middle = self.frame_ends.tolist()
        real = batch.mask & (batch.ids > PAD) & (self.use != "preference")
        titles = (self.title_ends[batch.ids + 1] - self.title_ends[batch.ids]) * real  # (B, L)
        framed = self.use != "items"
        room = self.max_tokens - 1 - long - middle * framed
        behind = titles.flip(1).cumsum(1).flip(1)
        fits = titles * (behind <= room[:, None])
        self._tell(int(((titles > 0) & (fits == 0)).sum()))
        one = torch.ones(size, 1, dtype=torch.int64, device=device)
        offset = len(self.frame) + len(self.title_ids)
        begin = torch.cat([
            0 * one, offset + torch.arange(size, device=device)[:, None] * said.shape[1], lead * one,
            len(self.frame) + self.title_ends[batch.ids], (len(self.frame) - 1) * one,
        ], 1)  # fmt: skip
        length = torch.cat([lead * framed * one, long[:, None], (middle - lead) * framed * one, fits, one], 1)
        return begin, length

    def _said(self, batch: Batch) -> Tensor:
        said = batch.user_features.get(PREFERENCE)
        if said is None or self.use == "items":
            return torch.zeros(len(batch), 1, dtype=torch.int64, device=batch.ids.device)
        return said

    def _tell(self, cut: int) -> None:
        if cut and not self._told:
            self._told = True
            warnings.warn(
                f"{cut:,} items of a batch do not fit into max_tokens={self.max_tokens} and are left out, the oldest "
                "first (told once)", DataWarning, stacklevel=2,
            )  # fmt: skip

    def _tokens(self, texts: Sequence[str]) -> list[list[int]]:
        if self._parsed is None and len(self.tokenizer):
            self._parsed = _plain(bytes(self.tokenizer.cpu().numpy()).decode())
        elif self._parsed is None and isinstance(self.backbone.model, str):  # not bound yet
            self._parsed = _plain(self.backbone.vocabulary()[0].to_str())
        if self._parsed is None:
            return [list(text.encode("utf-8", "replace")) for text in texts]
        whole = [text.encode("utf-8", "replace").decode() for text in texts]
        return [one.ids for one in self._parsed.encode_batch(whole, add_special_tokens=False)]

    def _hold(self, titles: list[list[int]], frame: list[list[int]], end: int, tokenizer: bytes) -> None:
        flat = np.array([token for title in titles for token in title], np.int64)
        ends = np.cumsum([0, *map(len, titles)], dtype=np.int64)
        values = {
            "title_ids": torch.from_numpy(flat),
            "title_ends": torch.from_numpy(ends),
            "frame": torch.tensor([*frame[0], *frame[1], end]),
            "frame_ends": torch.tensor([len(frame[0]), len(frame[0]) + len(frame[1])]),
            "tokenizer": torch.frombuffer(bytearray(tokenizer), dtype=torch.uint8) if tokenizer
            else torch.zeros(0, dtype=torch.uint8),
        }  # fmt: skip
        for name, value in values.items():
            self.register_buffer(name, value)


def _plain(text: str) -> Any:
    """A tokenizer that neither cuts nor pads."""
    from tokenizers import Tokenizer

    found = Tokenizer.from_str(text)
    found.no_truncation()
    found.no_padding()
    return found
