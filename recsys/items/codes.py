"""Items by their semantic ids: vectors that are sums over the codes of an item, learned per code.

    embed(i) = sum_m E[m, c_im]        output(i) = sum_m P[m, c_im]

E and P hold a vector per code of each of the M levels. Scores are then sums of M inner products, one per code, so that
everything that serves inner products serves these. Items that share codes share what is learned of them: an item that
training never saw has the vectors of its codes. Under ``FullSoftmax`` the codes are features of the items; under
:class:`recsys.objectives.code_softmax.CodeSoftmax` each level has a softmax of its own (RPG); and a decoder of a
:class:`recsys.generative.generator.Generator` reads E and P one code at a time (TIGER). ``SumItems([IdItems(64),
CodeItems(64, folder)])`` puts codes beside ids.

Items with equal codes have equal vectors. Legend: N items (rows 1..N, 0 is padding), M levels, V tokens, D width.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recsys.errors import DataError
from recsys.items.kept import Kept
from recsys.items.local import LocalItems
from recsys.items.rows import no_row
from recsys.protocols import Change, Context
from recsys.storage.reading import outside

if TYPE_CHECKING:
    from recsys.ids.vocabulary import Vocabulary
    from recsys.semantic_ids.table import SemanticIds

REFITTED = (
    "the codes of a semantic id are what its vectors were learned for: keep the folder of the training, or train "
    'anew (init="fresh")'
)


class CodeItems(LocalItems):
    """Item vectors summed up over the codes of a semantic id.

    Code (level m, c) is the *token* 1 + sizes[0] + .. + sizes[m - 1] + c; token 0 stands for "start", the last one,
    V - 1, for "end". Codes are saved with the model, so a loaded one does not need the folder.

    Args:
        dim: width D.
        ids: folder of :class:`recsys.semantic_ids.table.SemanticIds`.
        tied: one vector per token for the input and the output, or two.
        std: deviation of fresh vectors.
        start: fresh vectors are drawn ("random"), or are the "codewords" of the tokenizer, as Mender's embeddings are
            (arXiv 2412.08604): as they are where their width is D, else turned to D numbers by a map that is drawn once
            and keeps their inner products in the mean (Mender learns such a map beside the codewords instead). Vectors
            of tokens without codewords (start, end, an appended level), and of an output of its own, are drawn.
        extra: input-only rows behind the items (a mask, an end token) at least: learned, never scored. A recommender
            asks for those that its parts need.

    Raises:
        ValueError: a number out of range, or no folder is named.
        TypeError: ``ids`` is no name of a folder.
    """

    codes: Tensor  # (N+1, M) int64, row 0 zeros
    code_sizes: Tensor  # (M,) int64
    levels: int  # M
    width: int  # of the vector of a token
    token_table: Tensor  # (N+1, M) int64 token numbers, row 0 zeros
    _learns_rows = True
    carried = ("tokens", "prototypes")

    def __init__(
        self,
        dim: int = 64,
        ids: str = "",
        tied: bool = False,
        std: float = 0.02,
        extra: int = 0,
        start: Literal["random", "codewords"] = "random",
    ) -> None:
        super().__init__()
        if not isinstance(ids, (str, Path)):
            raise TypeError(f"ids names the folder of semantic ids, such as str(ids.path); found {type(ids).__name__}")
        if not ids:
            raise ValueError("ids must name a folder of semantic ids: recsys semantic-ids DATA --out FOLDER makes one")
        if dim < 1 or extra < 0 or std <= 0:
            raise ValueError(f"dim >= 1, extra >= 0 and std > 0 are needed; found {dim}, {extra} and {std}")
        if start not in ("random", "codewords"):
            raise ValueError(f'start must be "random" or "codewords", found {start!r}')
        self.dim, self.ids, self.tied, self.std, self.extra, self.start = dim, str(ids), tied, std, extra, start
        self.num_items, self.levels, self.width = 0, 1, dim
        self._kept: Kept | None = None
        self._vocabulary: Vocabulary | None = None
        self.register_buffer("codes", torch.zeros(1, 1, dtype=torch.int64))
        self.register_buffer("code_sizes", torch.ones(1, dtype=torch.int64))
        self.register_buffer("token_table", torch.zeros(1, 1, dtype=torch.int64), persistent=False)
        self.tokens = nn.Parameter(torch.empty(3, dim))
        self.prototypes = self.tokens if tied else nn.Parameter(torch.empty(3, dim))
        self.rows = nn.Parameter(torch.empty(extra, self.width)) if extra else None

    def bind(self, context: Context) -> None:
        """Take the codes of the catalogue (a loaded model: of the saved tensors) and initialise the vectors.

        Raises:
            FileNotFoundError: there is no such folder.
            DataError: an item of the data has no codes, or there are no codewords to begin with.
        """
        words: list[np.ndarray] = []
        self.num_items, self._kept, self._vocabulary = context.num_items, None, context.vocabulary
        codes = torch.zeros(1 + self.num_items, self.levels, dtype=torch.int64)
        sizes = torch.ones(self.levels, dtype=torch.int64)
        if context.training is not None:
            if context.vocabulary is None:
                raise ValueError("codes are found by raw item id, and these data come without a vocabulary of items")
            found = self._saved()
            codes = torch.from_numpy(found.aligned(context.vocabulary))
            sizes = torch.tensor(found.sizes)
            words = self._words(found)
        self._take(codes, sizes)
        self.rows = nn.Parameter(torch.empty(self.extra, self.width)) if self.extra else None
        for table in (self.tokens, None if self.tied else self.prototypes, self.rows):
            if table is not None:
                nn.init.normal_(table, std=self.std)
        self._begin_with(words)

    def _words(self, found: SemanticIds) -> list[np.ndarray]:
        """Of the first levels the codewords (K, d) that vectors begin with."""
        if self.start == "random":
            return []
        if not found.codewords:
            raise DataError(
                f'the semantic ids in {self.ids} come without codewords: make them of vectors, or use start="random"'
            )
        return found.codewords

    def _begin_with(self, words: Sequence[np.ndarray]) -> None:
        """Copy codewords into the vectors of their codes; those of one width are turned by one map."""
        maps: dict[int, Tensor] = {}
        with torch.no_grad():
            for level, word in enumerate(words):
                rows, wide = torch.from_numpy(np.asarray(word, np.float32)), word.shape[1]
                if wide != self.width:
                    maps.setdefault(wide, torch.randn(wide, self.width) / self.width**0.5)
                    rows = rows @ maps[wide]
                self.tokens[self.span(level)] = rows.to(self.tokens.device)

    def _take(self, codes: Tensor, sizes: Tensor) -> None:
        """These codes, and tables of vectors for them."""
        device, self.codes, self.code_sizes, self.levels = self.tokens.device, codes, sizes, codes.shape[1]
        self.token_table = self._numbered(codes).to(device)
        shape = int(sizes.sum()) + 2, self.width
        if self.tokens.shape != shape:
            self.tokens = nn.Parameter(torch.empty(shape, device=device))
            self.prototypes = self.tokens if self.tied else nn.Parameter(torch.empty(shape, device=device))

    def _numbered(self, codes: Tensor) -> Tensor:
        numbers = codes + (1 + self.code_sizes.cumsum(0) - self.code_sizes).to(codes.device)
        numbers[0] = 0
        return numbers

    def make_room(self, tensors: Mapping[str, Tensor]) -> None:
        """Take codes and the number of tokens from saved tensors, before these are loaded.

        Raises:
            ValueError: the tensors do not fit together.
        """
        if "codes" not in tensors or "code_sizes" not in tensors:
            return  # load_tensors says what is missing
        codes, sizes = tensors["codes"], tensors["code_sizes"]
        fits = codes.dim() == 2 and sizes.shape == codes.shape[1:] and codes.shape[0] == 1 + self.num_items
        if not fits or bool((codes < 0).any()) or bool((codes >= sizes).any()):
            raise ValueError(
                f"saved codes {tuple(codes.shape)} of {tuple(sizes.shape)} levels do not fit {self.num_items:,} items"
            )
        self._kept = None
        self._take(codes.clone(), sizes.clone())

    def sources(self) -> str:
        """Hash of the codes: with refitted ones this is another run."""
        return self._saved().digest

    def carry(self, before: Mapping[str, Tensor], change: Change) -> None:
        """Go on with the vectors of the codes, which must be what they were.

        Raises:
            ValueError: an item has other codes than when the model was trained.
        """
        assert change.context.vocabulary is not None
        now, former, sizes = self._saved().aligned(change.context.vocabulary), before["codes"], before["code_sizes"]
        old = change.items > 0
        if former.shape[1] != now.shape[1] or not np.array_equal(former[change.items[old]].numpy(), now[old]):
            raise ValueError(f"the semantic ids in {self.ids} are not those that the model was trained on: {REFITTED}")
        if change.same:
            return
        with torch.no_grad():
            for name in self.carried:
                own, kept = getattr(self, name), before[name].to(self.tokens.device)
                own[0], own[-1] = kept[0], kept[-1]
                first = last = 1
                for size, was in zip(self.sizes, sizes.tolist(), strict=True):
                    both = min(size, was)  # a last level that tells equal codes apart may have grown
                    own[first : first + both] = kept[last : last + both]
                    first, last = first + size, last + was

    @property
    def sizes(self) -> list[int]:
        """Codes per level."""
        return [int(size) for size in self.code_sizes]

    @property
    def digest(self) -> str:
        """Hash of the codes by item row: part of what the model is."""
        found = hashlib.blake2b(np.ascontiguousarray(self.codes.cpu().numpy()).data, digest_size=8)
        found.update(self.code_sizes.cpu().numpy().tobytes())
        return found.hexdigest()

    def span(self, level: int) -> slice:
        """The tokens of a level."""
        first = 1 + sum(self.sizes[:level])
        return slice(first, first + self.sizes[level])

    def embed(self, ids: Tensor) -> Tensor:
        """Input vectors (..., D) of item rows (...), zero for padding.

        Raises:
            ValueError: there is no such row (on the CPU; a GPU ends with an error of its own).
        """
        return self._summed(ids, self.tokens)

    def output(self, ids: Tensor) -> Tensor:
        """Output vectors (..., D) of item rows (...), zero for padding; of input-only rows their learned ones."""
        return self._summed(ids, self.prototypes)

    def code_logits(self, hidden: Tensor, level: int) -> Tensor:
        """(..., K) inner products of states ``hidden`` (..., D) with the output vectors of a level's K codes."""
        found: Tensor = hidden @ self.prototypes[self.span(level)].T
        return found

    def code_tables(self, hidden: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Of each level the states (T, D') and output vectors (K, D') whose inner products are the codes' logits."""
        return [(hidden, self.prototypes[self.span(level)]) for level in range(self.levels)]

    def add_items(self, ids: Sequence[Any], vectors: Any = None, features: Any = None) -> None:
        """Rows for further items behind those there are: their codes are looked up in ``vectors``, a ``SemanticIds``
        made by the same tokenizer, or if it is something else (of another table) in the folder.

        Raises:
            DataError: an item has no codes there.
            ValueError: the codes have other levels, or an item that the model knows has other codes there.
        """
        found = vectors if hasattr(vectors, "codes") else self._saved()
        at = found.vocabulary.rows(list(ids)) - found.vocabulary.first
        if (at < 0).any():
            missing = [one for one, row in zip(ids, at, strict=True) if row < 0]
            raise DataError(
                f"{len(missing):,} of {len(ids):,} new items have no codes in {self.ids}, such as {missing[0]!r}: pass "
                "vectors=SemanticIds.load(...) that have them, made by the same tokenizer"
            )
        codes = torch.from_numpy(found.codes[at].astype(np.int64)).to(self.codes.device)
        if self._vocabulary is not None and found.vocabulary.kind == self._vocabulary.kind:
            known = found.vocabulary.rows(self._vocabulary.ids) - found.vocabulary.first
            there, own = known >= 0, self.codes[1 : 1 + len(known)].cpu().numpy()
            if codes.shape[1] == self.levels and not np.array_equal(own[there], found.codes[known[there]]):
                raise ValueError(
                    f"items that the model knows have other codes in {found.path or 'these semantic ids'}, so those of "
                    f"the new ones mean something else: {REFITTED}"
                )
        if codes.shape[1] != self.levels or bool((codes >= self.code_sizes.to(codes.device)).any()):
            raise ValueError(
                f"new items have codes of sizes {tuple(found.sizes)}, the model learned {tuple(self.sizes)}: {REFITTED}"
            )
        self.codes = torch.cat([self.codes, codes])
        self.token_table = self._numbered(self.codes).to(self.tokens.device)
        self.num_items, self._kept = self.num_items + len(codes), None
        if self._vocabulary is not None:
            self._vocabulary = self._vocabulary.extended(ids)

    def _saved(self) -> SemanticIds:
        from recsys.semantic_ids.table import SemanticIds

        outside(self.ids, "folder of semantic ids")
        return SemanticIds.load(self.ids)

    def _summed(self, ids: Tensor, table: Tensor) -> Tensor:
        """(..., D) sums over the codes of item rows (...): each distinct row once, as a batch repeats many."""
        distinct, back = ids.unique(return_inverse=True)
        if not ids.is_cuda and len(distinct) and int(distinct[-1]) > self.num_items + self.extra:
            raise no_row(ids, self.num_items, self.extra)
        behind = distinct > self.num_items
        inner = distinct.masked_fill(behind, 0)
        vectors = self._bagged(self.token_table[inner], table) * (inner > 0)[:, None]
        if self.rows is not None:
            own = F.embedding((distinct - self.num_items - 1).clamp(min=0), self.rows)
            vectors = torch.where(behind[:, None], own.to(vectors.dtype), vectors)
        return F.embedding(back, vectors)

    def _vectors(self, rows: slice) -> Tensor:
        if torch.is_grad_enabled() or self.training:
            return self._bagged(self.token_table[rows], self.prototypes)
        kept = self._kept
        if kept is None or not kept.holds([self.prototypes], [self.token_table]):
            made = self._bagged(self.token_table, self.prototypes)
            self._kept = kept = Kept(made, [self.prototypes], [self.token_table])
        return kept.table[rows]

    @staticmethod
    def _bagged(numbers: Tensor, table: Tensor) -> Tensor:
        return F.embedding_bag(numbers, table, mode="sum")
