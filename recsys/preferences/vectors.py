"""Mender-Emb: what a user wants and what he had, as vectors of texts that a decoder looks at.

    rows = [vectors of the preferences; vector of each item of the history]        memory = W rows + b

The vectors are those of a frozen text model, made once for items and, for preferences, when a request comes; only the
map to the decoder's width is trained. There are no codes on this side: the history enters as text, and the codes of the
next item alone are generated (arXiv 2412.08604; mender.md, section 6.5). The decoder looks at the rows as a set.

Deviations: rows without anything are not looked at (``mask=False``: they are, as in the released code, where they are
equal to b); any model of sentence_transformers, or hashed words, in place of Instructor.

Legend: B histories, L longest, T items of all, R preferences of a request, H width of text vectors, D width, S rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from recsys.data.batch import PAD, Batch
from recsys.encoders.tokens import TokenMemory
from recsys.ids.vectors import Vectors
from recsys.llm.embed import HASHED, PACKAGED, TextEncoder, text_encoder
from recsys.llm.tfidf import unit
from recsys.preferences.requests import FIELD, PREFERENCE, RequestTexts
from recsys.protocols import Context, Encoded
from recsys.storage.reading import outside

USE = ("both", "items", "preference")
KNOWN = 100_000  # texts whose vectors are remembered


class PreferenceVectors(nn.Module):
    """Histories and preferences as vectors of texts; gives :class:`recsys.encoders.tokens.TokenMemory`.

    A history without items is answered by its preference. Vectors of items are saved with the model; the text model is
    loaded when the first preference comes.

    Args:
        dim: width D, the same as the item table's and the decoder's.
        vectors: folder of :class:`recsys.ids.vectors.Vectors` by raw item id, such as ``str(embed(split).path)``.
        text: the model that made them, which makes those of preferences: a name as :func:`recsys.llm.embed.embed` takes
            it ("hashed" needs no model), or a folder.
        max_length: items read, the newest.
        mask: rows without anything are not looked at.
        use: "both", or only the "items" or the "preference" (ablations).
        text_dim: width H; read from the folder if None.

    Raises:
        ValueError: an argument is out of range, or the vectors are those of another model than ``text``.
        PermissionError: a saved model is being loaded, and nobody said to trust the text model that it names.
        FileNotFoundError: there is no such folder.
    """

    gives = frozenset({TokenMemory})
    may_read = frozenset({FIELD})
    sees = "all"  # the preference was chosen for one target: only the newest position may have one
    titles: Tensor  # (N+1, H), zero for padding and items without text

    def __init__(
        self,
        dim: int = 128,
        vectors: str = "",
        text: str = PACKAGED,
        max_length: int = 20,
        mask: bool = True,
        use: Literal["both", "items", "preference"] = "both",
        text_dim: int | None = None,
    ) -> None:
        super().__init__()
        if not vectors:
            raise ValueError("vectors must name a folder of text vectors: make one with rs.embed(split)")
        if text_dim is None:
            found = Vectors.load(vectors)
            text_dim, made_by = found.width, found.manifest.get("model")
            if made_by not in (None, text, Path(text).name):
                raise ValueError(
                    f"the vectors in {vectors} are by {made_by!r} and preferences would be read by {text!r}: give both "
                    f"the same, text={made_by!r}"
                )
        if text not in (PACKAGED, HASHED):
            outside(text, "text model")
        if min(dim, max_length, text_dim) < 1 or use not in USE:
            raise ValueError(
                f"dim, max_length and text_dim must be at least 1 and use one of {', '.join(USE)}; found {dim}, "
                f"{max_length}, {text_dim} and {use!r}"
            )
        self.dim, self.vectors, self.text, self.max_length = dim, str(vectors), text, max_length
        self.mask, self.use, self.text_dim = mask, use, text_dim
        self.map = nn.Linear(text_dim, dim)
        self.register_buffer("titles", torch.zeros(1, text_dim))
        self._encoder: TextEncoder | None = None
        self._known: dict[str, np.ndarray] = {}

    def bind(self, context: Context) -> None:
        """Take the text vectors of the catalogue (a loaded model: of the saved tensors) and initialise the map.

        Raises:
            DataError: no item has a vector.
            ValueError: the vectors are not ``text_dim`` wide.
        """
        self.titles = torch.zeros(1 + context.num_items, self.text_dim)
        if context.training is not None:
            if context.vocabulary is None:
                raise ValueError("text vectors are found by raw item id, and these data come without a vocabulary")
            found = Vectors.load(self.vectors)
            if found.width != self.text_dim:
                raise ValueError(
                    f"text_dim={self.text_dim}, but {self.vectors} is {found.width} wide: give that number"
                )
            self.titles = torch.from_numpy(found.aligned(context.vocabulary)[0])
        self.map.reset_parameters()

    def sources(self) -> str:
        """Hash of the text vectors: with others this is another run."""
        return Vectors.load(self.vectors).digest()

    def request_columns(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """The preference of a request, as a column of users."""
        return {}, {PREFERENCE: RequestTexts(self.read)}

    def read(self, said: Sequence[Sequence[str]]) -> np.ndarray:
        """(n, R, H) float32 vectors of n lists of texts, zero behind the end of each; R is at least 1."""
        missing = list(dict.fromkeys(text for texts in said for text in texts if text not in self._known))
        if missing:
            self._encoder = self._encoder or text_encoder(self.text)
            found = unit(np.asarray(self._encoder.encode(missing), np.float32))
            if found.shape != (len(missing), self.text_dim):
                raise ValueError(f"text gave vectors of shape {found.shape}, the items' are {self.text_dim} wide")
            if len(self._known) + len(missing) > KNOWN:
                self._known.clear()
        fresh = dict(zip(missing, found, strict=True)) if missing else {}
        self._known.update(fresh if len(fresh) <= KNOWN else {})
        vectors = np.zeros((len(said), max([1, *map(len, said)]), self.text_dim), np.float32)
        for row, texts in enumerate(said):
            for at, text in enumerate(texts):
                vectors[row, at] = fresh[text] if text in fresh else self._known[text]
        return vectors

    def alone(self, batch: Batch) -> Batch:
        """The batch with one position, of no item, in each empty history that comes with a preference."""
        said = batch.user_features.get(PREFERENCE)
        if said is None or self.use == "items":
            return batch
        return batch.replace(lengths=torch.where((batch.lengths == 0) & said.any(-1).any(-1), 1, batch.lengths))

    def forward(self, batch: Batch, items: Any) -> Encoded:
        """States of the items (T, D), their mapped vectors, and the memory of preferences and items."""
        titles = self.titles[batch.ids]  # (B, L, H)
        said = batch.user_features.get(PREFERENCE)
        if said is None or self.use == "items":
            said = titles.new_zeros(len(batch), 1, self.text_dim)
        place = torch.arange(batch.ids.shape[1], device=batch.ids.device).expand(batch.ids.shape)
        real = batch.mask & (batch.ids > PAD) & (self.use != "preference")
        item = torch.cat([said.any(-1).long() - 1, place.masked_fill(~real, -1)], 1)  # (B, R + L)
        mapped, nothing = self.map(titles), self.map.bias  # what a row of zeros is mapped to
        rows = torch.cat([self.map(said.to(titles.dtype)), torch.where(real[..., None], mapped, nothing)], 1)
        order = (item < 0).long().argsort(dim=1, stable=True)  # what is there first
        item, rows = item.gather(1, order), rows.gather(1, order[..., None].expand(rows.shape))
        if not self.mask:
            more = self.max_length + said.shape[1] - rows.shape[1]
            rows = torch.cat([rows, nothing.expand(len(rows), more, -1)], 1)
            item = torch.zeros(rows.shape[:2], dtype=torch.int64, device=rows.device)
        return Encoded(batch, batch.flatten(mapped), (TokenMemory(rows, item),))
