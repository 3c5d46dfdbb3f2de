"""Texts behind prompts as the batches of a stage: what a language model is trained on.

Legend: R texts, G prompts, S tokens of the longest of a batch.
"""

from __future__ import annotations

import hashlib
import math
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch

from recsys.data.batch import Batch
from recsys.errors import DataError, DataWarning
from recsys.llm.trainers.sequences import Role
from recsys.llm.trainers.text_policy import TextBatch, prompted
from recsys.randomness import numpy_generator


class TextRows:
    """Prompts with completions; all texts of a prompt are in one batch, as objectives compare them.

    Args:
        tokens: R lists of token ids, prompt and completion.
        begins: R positions at which the completions begin, from 1 up.
        roles: R of Role (None: all TARGET).
        prompts: R numbers, equal for texts behind one prompt (None: each has its own).
        rewards, amounts: R numbers each, or None.
        batch_size: prompts of a batch.
        seed: of the order.
        pad: the token that fills rows; it is never read.

    Raises:
        DataError: there are no texts, lists of different lengths, or a completion without a token or a prompt.
    """

    prepared = True

    def __init__(
        self,
        tokens: Sequence[Sequence[int]],
        begins: Sequence[int],
        roles: Sequence[int] | None = None,
        prompts: Sequence[int] | None = None,
        rewards: Sequence[float] | None = None,
        amounts: Sequence[float] | None = None,
        batch_size: int = 8,
        seed: int = 0,
        pad: int = 0,
    ) -> None:
        count = len(tokens)
        if not count:
            raise DataError("there are no texts: nothing to train on")
        given = {"begins": begins, "roles": roles, "prompts": prompts, "rewards": rewards, "amounts": amounts}
        for name, values in given.items():
            if values is not None and len(values) != count:
                raise DataError(f"{name} has {len(values):,} entries for {count:,} texts")
        lengths = np.array([len(row) for row in tokens])
        self.begins = np.asarray(begins, np.int64)
        if wrong := int(((self.begins < 1) | (self.begins >= lengths)).sum()):
            raise DataError(
                f"{wrong:,} of {count:,} texts have no completion token, or no prompt token before it: a completion "
                "begins at position 1 or later, and ends behind that"
            )
        self.tokens = np.concatenate([np.asarray(row, np.int64) for row in tokens])
        self.first = np.append(0, np.cumsum(lengths))
        self.roles = np.asarray([Role.TARGET] * count if roles is None else roles, np.int64)
        group = np.arange(count) if prompts is None else np.unique(np.asarray(prompts), return_inverse=True)[1]
        self.prompts = group.reshape(-1).astype(np.int64)
        self.rewards, self.amounts = (
            None if one is None else np.asarray(one, np.float32) for one in (rewards, amounts)
        )
        self.batch_size, self.seed, self.pad = batch_size, seed, pad
        self._order = np.argsort(self.prompts, kind="stable")
        self._bounds = np.append(0, np.cumsum(np.bincount(self.prompts)))

    @classmethod
    def of(
        cls, tokenizer: Any, prompts: Sequence[str], completions: Sequence[str], window: int, **more: Any
    ) -> TextRows:
        """Texts by a tokenizer, with its end token behind each; prompts too long for the window lose their beginning,
        which is counted and warned of."""
        rows, begins, cut = prompted(tokenizer, prompts, completions, window)
        if cut:
            note = f"{cut:,} of {len(rows):,} prompts are longer than the window of {window:,} tokens: they lose their "
            warnings.warn(f"{note}beginning", DataWarning, stacklevel=2)
        return cls(rows, begins, **more)

    @property
    def num_rows(self) -> int:
        """R."""
        return len(self.begins)

    @property
    def num_targets(self) -> int:
        """R."""
        return len(self.begins)

    def identity(self) -> dict[str, Any]:
        """A hash of the texts, and how they are laid out."""
        digest = hashlib.sha256()
        held = (self.tokens, self.first, self.begins, self.roles, self.prompts, self.rewards, self.amounts)
        for array in held:
            digest.update(b"" if array is None else np.ascontiguousarray(array).data)
        return {"texts": digest.hexdigest(), "batch_size": self.batch_size, "seed": self.seed}

    def num_batches(self, epoch: int) -> int:
        """Batches of an epoch."""
        return math.ceil((len(self._bounds) - 1) / self.batch_size)

    def epoch(self, epoch: int, start: int = 0, rank: int = 0, world_size: int = 1) -> Iterator[Batch]:
        """The batches of an epoch, without the first ``start``; processes share the prompts of a batch."""
        order = numpy_generator(self.seed, "texts", epoch).permutation(len(self._bounds) - 1)
        for number in range(start, self.num_batches(epoch)):
            chosen = order[number * self.batch_size : (number + 1) * self.batch_size][rank::world_size]
            rows = [self._order[self._bounds[group] : self._bounds[group + 1]] for group in chosen]
            yield self.batch(np.concatenate(rows) if rows else np.zeros(0, np.int64))

    def batch(self, rows: np.ndarray) -> TextBatch:
        """The batch of some texts."""
        lengths = self.first[rows + 1] - self.first[rows]
        shape = (len(rows), int(lengths.max(initial=1)))
        inside = np.arange(shape[1]) < lengths[:, None]
        at = np.minimum(self.first[rows][:, None] + np.arange(shape[1]), len(self.tokens) - 1)
        ids = np.where(inside, self.tokens[at], self.pad)
        empty = torch.zeros(len(rows), 1, dtype=torch.int64)

        def of(values: np.ndarray | None) -> torch.Tensor | None:
            return None if values is None else torch.from_numpy(values[rows])

        return TextBatch(
            torch.from_numpy(rows.astype(np.int64)),
            torch.full((len(rows),), -1),
            empty,
            torch.zeros(len(rows), dtype=torch.int64),
            tokens=torch.from_numpy(ids),
            completion=torch.from_numpy(inside & (np.arange(shape[1]) >= self.begins[rows][:, None])),
            prompts=of(self.prompts),
            roles=of(self.roles),
            rewards=of(self.rewards),
            amounts=of(self.amounts),
        )
