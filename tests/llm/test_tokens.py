import tracemalloc
import warnings
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from recsys.errors import DataError, DataWarning
from recsys.ids.vocabulary import Vocabulary
from recsys.llm.tokens import ItemTokens
from recsys.protocols import Context
from recsys.storage.parts import build, describe

COLUMNS = {
    "title": ["red lamp", "blue lamp of steel", "a lamp"],
    "brand": ["Acme", "Bolt", ""],
    "category": ["home", "home, light", "light"],
    "color": ["red", "blue", "grey"],
}


def context(columns=COLUMNS, order=None, **more):
    table = {name: np.array(["", *values], object) for name, values in columns.items()}
    ids = np.array([f"i{row}" for row in range(1, len(next(iter(table.values()))))], object)
    if order is not None:
        table = {name: np.concatenate([values[:1], values[1:][order]]) for name, values in table.items()}
    return Context(len(ids), Vocabulary(ids, 1), item_text=table, **more)


def made(columns=COLUMNS, **arguments):
    tokens = ItemTokens(**{"vocab_size": 300, **arguments})
    tokens.bind(context(columns))
    return tokens


def row(table, item):
    part = slice(int(table.offsets[item]), int(table.offsets[item + 1]))
    return table.ids[part].tolist(), table.types[part].tolist(), table.starts[part].tolist()


def test_a_sentence_is_keys_and_values_in_order_and_padding_has_none():
    tokens = made()
    assert row(tokens, 0) == ([], [], [])
    ids, types, starts = row(tokens, 1)
    text = tokens._tokenizer.decode(ids)
    assert text.split() == ["title", "red", "lamp", "brand", "Acme", "category", "home"]  # color is the fourth
    kinds = [kind for kind, start in zip(types, starts, strict=True) if start]
    assert kinds == [1, 2, 2, 1, 2, 1, 2]
    assert tokens.ids.dtype == tokens.types.dtype == tokens.starts.dtype == torch.int32
    assert "brand" not in tokens._tokenizer.decode(row(tokens, 3)[0])  # an empty attribute is left out


def test_check_01_key_and_value_together_are_cut_to_the_budget():
    long = {"title": ["one two three four five six seven eight nine ten"], "brand": ["Acme"]}
    whole, cut = made(long), made(long, attribute_tokens=5)
    assert row(cut, 1)[0][:5] == row(whole, 1)[0][:5]
    assert row(cut, 1)[1].count(1) >= 1
    title = row(whole, 1)[1].index(1, row(whole, 1)[1].index(2))  # where the second key begins
    assert title > 5
    assert row(cut, 1)[1][5] == 1  # the sixth token is the next key
    assert cut.truncated >= 1
    assert whole.truncated == (title > 32)


def test_the_tokenizer_trained_here_has_its_special_tokens_and_is_deterministic():
    first, second = made(), made()
    assert torch.equal(first.ids, second.ids)
    assert torch.equal(first.recipe, second.recipe)
    assert [first._tokenizer.token_to_id(one) for one in ("<s>", "<pad>", "</s>", "<unk>", "<mask>")] == [0, 1, 2, 3, 4]
    assert (first.start, first.pad, first.mask) == (0, 1, 4)
    assert int(first.ids.max()) < first.vocab_size == 300
    assert 3 not in first.encode([{"title": "Čudné \N{SNOWMAN} text"}]).ids  # bytes leave nothing unknown


def test_saved_tokens_encode_new_items_like_the_old():
    tokens = made()
    again = build(describe(tokens))
    again.bind(Context(3))
    for name, value in tokens.state_dict().items():
        setattr(again, name, value.clone())
    assert row(again, 2) == row(tokens, 2)
    new = again.encode([{"title": "a lamp", "category": "light"}, {"title": "blue lamp"}])
    assert row(new, 1) == row(tokens, 3)
    assert row(new, 0) == ([], [], [])
    with pytest.raises(DataError, match="columns"):
        again.encode([{"name": "a lamp"}])


def test_check_15_shuffled_or_changed_texts_are_detected():
    tokens, table = made(), context().item_text
    names = context().vocabulary
    tokens.check_split(SimpleNamespace(items=names, item_text=table))
    with pytest.raises(DataError, match="order"):
        tokens.check_split(SimpleNamespace(items=names, item_text=context(order=[1, 0, 2]).item_text))
    with pytest.raises(DataError, match="columns"):
        tokens.check_split(SimpleNamespace(items=names, item_text={"title": table["title"]}))
    with pytest.raises(DataError, match="columns"):
        tokens.check_split(SimpleNamespace(items=names, item_text=None))


def test_tokenising_a_catalogue_takes_little_beside_its_tokens():
    rng = np.random.default_rng(0)
    titles = [" ".join(f"w{word}" for word in rng.integers(0, 500, 8)) for _ in range(12_000)]
    tokens = ItemTokens(vocab_size=1000)
    tokens.bind(Context(3, Vocabulary(np.arange(3), 1), item_text={"title": np.array(["", *titles[:3]], object)}))
    items = [[], *([("title", title)] for title in titles)]
    tracemalloc.start()
    sentences, _ = tokens._sentences(items)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(sentences.offsets) == len(items) + 1
    assert peak < 2000 * len(titles)  # a token as a Python object takes some hundred bytes, and all at once are 5,000


@pytest.mark.parametrize("nothing", [None, float("nan"), ""])
def test_missing_values_are_no_words(nothing):
    tokens = made()
    plain = tokens.encode([{"title": "a lamp"}])
    assert row(tokens.encode([{"title": "a lamp", "category": nothing}]), 1) == row(plain, 1)


def test_columns_that_would_not_be_read_are_refused():
    with pytest.raises(ValueError, match="max_attributes"):
        ItemTokens(columns=["a", "b", "c", "d"], vocab_size=300)


def test_a_fast_tokenizer_object_is_taken_as_it_is(tmp_path):
    from transformers import PreTrainedTokenizerFast

    names = {"cls_token": "<s>", "pad_token": "<pad>", "mask_token": "<mask>", "unk_token": "<unk>"}
    fast = PreTrainedTokenizerFast(tokenizer_object=made()._tokenizer, **names)
    given = made(tokenizer=fast, vocab_size=None)
    assert given.vocab_size == len(fast)
    assert torch.equal(given.ids, made().ids)
    fast.save_pretrained(tmp_path)
    assert torch.equal(made(tokenizer=str(tmp_path), vocab_size=None).ids, given.ids)
    with pytest.raises(ValueError, match="vocab_size"):
        made(tokenizer=fast, vocab_size=10)


def test_items_without_text_are_counted_and_data_without_text_are_refused():
    with pytest.warns(DataWarning, match="1 of 2"):
        tokens = made({"title": ["red", ""]})
    assert tokens.missing == 1
    assert row(tokens, 2) == ([], [], [])
    from recsys.testing import toy_split

    with pytest.raises(DataError, match="item text"):
        ItemTokens(vocab_size=300).bind(Context(3, training=toy_split().train))
    with pytest.raises(ValueError, match="not made yet"):
        ItemTokens(vocab_size=300).encode([{"title": "x"}])
    with pytest.raises(ValueError, match="vocab_size"):
        ItemTokens(vocab_size=100)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        made()
