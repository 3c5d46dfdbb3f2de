"""What must not be written from now on: names kept out of texts while they are generated, without any training.

A reconstruction after the abstract of "GUARD: Generation-time LLM Unlearning via Adaptive Restriction and Detection"
(arXiv 2505.13312); what it leaves open is ours. A detector tells which entries of a forget list a prompt touches; of
these, the token that would complete a name is forbidden or made less likely, and where a text comes close to an entry
in meaning, so is the beginning of its name and what would be said next. Nothing is forgotten: the weights still know.

Items are kept out of lists by ``recommend(deny=...)``, which leaves their codes out of the search, so that no path
leads to them and lists stay as long as they were; this module is for texts.

Legend: B prompts, R sequences (several of a prompt with beams), S tokens, V vocabulary, F entries, d embedding width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from recsys.llm.chat import Prompt

Embed = Callable[[Sequence[str]], np.ndarray]  # n texts to (n, d) vectors


class Restriction:
    """Names that a text must not hold: a part of ``LocalWriter(steering=[...])``.

    Names are matched token by token, as the tokenizer splits them with and without a space before them, as they are
    and in lower, upper and title case. Another way to split the same letters is not found, and what merely begins with
    a name is not written either, as its first tokens complete the name.

    Args:
        names: the forget list: titles, people, whatever is not to be written.
        penalty: taken off the logit of a completing token; None forbids it.
        embed: texts to vectors (n, d), for detection and meaning; None: every name is always active.
        detect: names whose vector has a cosine above this with that of the prompt's text are active.
        meaning: where the cosine of the last ``window`` tokens with an active name is above this, the first tokens of
            that name and the likeliest next token lose ``push``. None: never.
        every: how many tokens apart meaning is looked at.
        window: tokens of the text that are looked at.
        push: see ``meaning``.

    Raises:
        TypeError: names are one text.
        ValueError: an empty name, thresholds without ``embed``, or a number out of range.
    """

    def __init__(
        self,
        names: Sequence[str],
        penalty: float | None = None,
        embed: Embed | None = None,
        detect: float | None = None,
        meaning: float | None = None,
        every: int = 4,
        window: int = 16,
        push: float = 5.0,
    ) -> None:
        if isinstance(names, str):
            raise TypeError(f"names is a list of names, found {names!r}: put it in []")
        if not all(name.strip() for name in names):
            raise ValueError("a name to be kept out is empty: leave it away")
        if embed is None and (detect is not None or meaning is not None):
            raise ValueError("detect and meaning compare vectors: give embed as well, which makes vectors of texts")
        if min(every, window) < 1 or push < 0 or (penalty is not None and penalty < 0):
            raise ValueError(
                "every and window must be at least 1, push and penalty at least 0; found "
                f"{every}, {window}, {push} and {penalty}"
            )
        self.names, self.penalty, self.embed, self.detect = list(names), penalty, embed, detect
        self.meaning, self.every, self.window, self.push = meaning, every, window, push
        self._vectors = None if embed is None or not self.names else _unit(embed(self.names))

    @property
    def settings(self) -> dict[str, Any]:
        """What answers depend on."""
        told = {name: getattr(self, name) for name in ("names", "penalty", "detect", "meaning")}
        more = {name: getattr(self, name) for name in ("every", "window", "push")}
        return {"restriction": told | (more if self.meaning is not None else {})}

    def begin(
        self, model: Any, tokenizer: Any, encode: Callable[[Prompt], list[int]], prompts: Sequence[Prompt]
    ) -> Forbidden:
        """What changes the logits of one call of ``generate`` for these prompts."""
        entries = [tokenisations(tokenizer, name) for name in self.names]
        active = self.active([prompt.user for prompt in prompts])
        return Forbidden(entries, self.penalty, active, self._close(tokenizer), self.every, self.push)

    def active(self, texts: Sequence[str]) -> list[list[int]] | None:
        """Of each text which names it touches; None: all of them, whatever it says."""
        if self.detect is None or self._vectors is None or self.embed is None:
            return None
        cosines = _unit(self.embed(list(texts))) @ self._vectors.T
        return [np.flatnonzero(row > self.detect).tolist() for row in cosines]

    def _close(self, tokenizer: Any) -> Callable[[list[list[int]]], np.ndarray] | None:
        """Which names the ends of sequences are close to: (R, F) bool."""
        if self.meaning is None or self._vectors is None or self.embed is None:
            return None
        embed, vectors, threshold = self.embed, self._vectors, self.meaning

        def close(written: list[list[int]]) -> np.ndarray:
            texts = [tokenizer.decode(row[-self.window :], skip_special_tokens=True) for row in written]
            return np.asarray(_unit(embed(texts)) @ vectors.T > threshold)

        return close


class Forbidden:
    """Logits of one call of ``generate`` without the tokens that would complete an entry; a logits processor.

    It looks at what each sequence has written and keeps no state of its own, so beams may come in any order.

    Args:
        entries: of each entry of the forget list its token sequences.
        penalty: taken off the logits of completing tokens; None: they become -inf.
        active: of each of B prompts which entries count; None: all.
        close: of the written tokens of R sequences which entries they mean, (R, F) bool; None: nothing is compared.
        every, push: see :class:`Restriction`.
    """

    def __init__(
        self,
        entries: Sequence[Sequence[Sequence[int]]],
        penalty: float | None = None,
        active: Sequence[Sequence[int]] | None = None,
        close: Callable[[list[list[int]]], np.ndarray] | None = None,
        every: int = 4,
        push: float = 5.0,
    ) -> None:
        self.entries, self.penalty, self.active, self.close = entries, penalty, active, close
        self.every, self.push = every, push
        self._start: int | None = None
        self._ends: dict[tuple[int, ...], dict[int, set[int]]] = {}  # what is written -> completing token -> entries
        self._lengths: list[int] = []
        for number, sequences in enumerate(entries):
            for one in map(tuple, sequences):
                if not one:
                    raise ValueError(f"entry {number} of the forget list has an empty sequence of tokens")
                self._ends.setdefault(one[:-1], {}).setdefault(one[-1], set()).add(number)
        self._lengths = sorted({len(before) for before in self._ends})

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """(R, V) logits behind ``input_ids`` (R, S); what stands there at the first call are the prompts.

        Raises:
            ValueError: every token of a sequence is forbidden.
        """
        if self._start is None or input_ids.shape[1] <= self._start:
            self._start = input_ids.shape[1]
        if not self._ends:
            return scores
        written = input_ids[:, self._start :].tolist()
        found = scores.clone()
        counted = [self._counted(row, len(written)) for row in range(len(written))]
        if self.close is not None and written[0] and len(written[0]) % self.every == 0:
            self._push(found, written, counted)
        rows, tokens = self._completing(written, counted)
        if self.penalty is None:
            found[rows, tokens] = -torch.inf
            lost = (found == -torch.inf).all(1)
            if bool(lost.any()):
                raise ValueError(
                    f"every token is forbidden in {int(lost.sum())} of {len(lost)} texts: make the forget list "
                    "smaller, or give a penalty, which forbids nothing"
                )
        else:
            found[rows, tokens] -= self.penalty
        return found

    def _counted(self, row: int, rows: int) -> set[int] | None:
        """The entries that count for a sequence; None: all."""
        if self.active is None:
            return None
        return set(self.active[row // (rows // len(self.active))])

    def _completing(self, written: list[list[int]], counted: list[set[int] | None]) -> tuple[list[int], list[int]]:
        rows, tokens = [], []
        for row, (own, only) in enumerate(zip(written, counted, strict=True)):
            banned: set[int] = set()
            for length in self._lengths:
                if length > len(own):
                    break
                for token, entries in self._ends.get(tuple(own[len(own) - length :]), {}).items():
                    if only is None or entries & only:
                        banned.add(token)
            rows += [row] * len(banned)
            tokens += sorted(banned)
        return rows, tokens

    def _push(self, scores: Tensor, written: list[list[int]], counted: list[set[int] | None]) -> None:
        assert self.close is not None
        top = scores.argmax(1).tolist()
        for row, near in enumerate(self.close(written)):
            only = counted[row]
            meant = [number for number in np.flatnonzero(near).tolist() if only is None or number in only]
            if meant:
                first = {one[0] for number in meant for one in self.entries[number]} | {top[row]}
                scores[row, sorted(first)] -= self.push


def tokenisations(tokenizer: Any, name: str) -> list[list[int]]:
    """The tokens of a name in several cases, with and without a space before it, each once."""
    texts = dict.fromkeys(
        space + form for form in (name, name.lower(), name.upper(), name.title()) for space in ("", " ")
    )
    found = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    return [list(one) for one in dict.fromkeys(tuple(one) for one in found) if one]


def _unit(vectors: Any) -> np.ndarray:
    """(n, d) vectors of length 1; zero stays zero."""
    made = np.asarray(vectors, np.float32)
    return np.asarray(made / np.maximum(np.linalg.norm(made, axis=1, keepdims=True), 1e-12))
