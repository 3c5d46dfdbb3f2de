"""The local writer with a temperature, and with parts that steer what it writes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from recsys.llm.chat import Answer, ChatEndpoint, Prompt
from recsys.llm.local import LocalWriter, _Draws
from recsys.llm.trainers.decoders.adacad import ContextTrust
from recsys.llm.trainers.decoders.guard import Restriction

transformers = pytest.importorskip("transformers")
WORDS = ["<pad>", "<unk>", "<s>", "</s>", "red", "blue", "hat", "shoe", "Describe", "Answer", ".", ":"]


@pytest.fixture(scope="module")
def tiny() -> tuple[Any, Any]:
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = Tokenizer(models.WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    )
    config = transformers.LlamaConfig(
        vocab_size=len(WORDS), hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=40, bos_token_id=2, eos_token_id=3, pad_token_id=0,
    )  # fmt: skip
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(config).eval()
    for parameter in model.parameters():
        parameter.data.mul_(8)
    return model, tokenizer


def ask(writer: Any, *users: str) -> list[Answer]:
    found: dict[int, Answer] = {}
    writer.write([Prompt("Describe.", user) for user in users], found.__setitem__)
    return [found[index] for index in range(len(users))]


def writer(tiny: tuple[Any, Any], **options: Any) -> LocalWriter:
    return LocalWriter(*tiny, name="tiny", **{"max_tokens": 4, **options})


def test_what_is_drawn_depends_on_seed_and_prompt_alone(tiny: tuple[Any, Any]) -> None:
    users = ["red", "blue hat shoe", "hat", "shoe red"]
    together = ask(writer(tiny, temperature=1.0, batch_size=4), *users)
    assert together == [ask(writer(tiny, temperature=1.0), user)[0] for user in users]
    torch.manual_seed(5)
    assert together == ask(writer(tiny, temperature=1.0, batch_size=2), *users)
    others = [ask(writer(tiny, temperature=1.0, seed=seed), *users) for seed in range(1, 5)]
    assert any(other != together for other in others)


def test_tokens_are_drawn_by_their_probability(tiny: tuple[Any, Any]) -> None:
    model, tokenizer = tiny
    ids = tokenizer("Describe.\n\nred\n\nAnswer:")["input_ids"]
    with torch.no_grad():
        expected = (model(torch.tensor([ids])).logits[0, -1] / 2.0).softmax(0).double().numpy()
    scores = 2.0 * torch.from_numpy(expected).log()[None]
    counts = np.zeros(len(WORDS))
    draws = 1500
    for seed in range(draws):
        noisy = _Draws([Prompt("Describe.", "red")], 2.0, seed)(torch.tensor([ids]), scores)
        counts[int(noisy.argmax())] += 1
    likely = expected * draws > 5
    statistic = ((counts - expected * draws) ** 2 / (expected * draws))[likely].sum()
    assert statistic < 3 * likely.sum() + 10
    assert writer(tiny, temperature=2.0).settings["temperature"] == 2.0


def test_greedy_stays_what_it_was(tiny: tuple[Any, Any]) -> None:
    plain = writer(tiny)
    assert set(plain.settings) == {"model", "revision", "dtype", "max_tokens"}
    assert ask(plain.sampled(0.0, 3), "red hat") == ask(plain, "red hat")
    cold = ask(plain.sampled(1e-4, 3), "red hat")
    assert cold == ask(plain, "red hat"), "a temperature near 0 draws the likeliest"
    with pytest.raises(ValueError, match="temperature"):
        writer(tiny, temperature=-1.0)


def test_a_forbidden_word_is_not_written(tiny: tuple[Any, Any]) -> None:
    users = ["red", "blue hat", "hat shoe"]
    plain = [answer.text or "" for answer in ask(writer(tiny, max_tokens=6), *users)]
    word = next(one for text in plain for one in text.split() if one in ("red", "blue", "hat", "shoe", "Describe"))
    steered = writer(tiny, max_tokens=6, steering=[Restriction([word])])
    told = [answer.text or "" for answer in ask(steered, *users)]
    assert all(word not in text.split() for text in told) and told != plain
    assert steered.settings["steering"][0]["restriction"]["names"] == [word]


def test_context_trust_of_a_batch_is_one_by_one(tiny: tuple[Any, Any]) -> None:
    users = ["red", "blue hat shoe", "hat hat"]
    trust = ContextTrust(lambda prompt: Prompt(prompt.system, "shoe"), least=1.0)
    together = ask(writer(tiny, steering=[trust], batch_size=3), *users)
    assert together == [ask(writer(tiny, steering=[trust]), user)[0] for user in users]
    assert together != ask(writer(tiny), *users)
    same = ContextTrust(lambda prompt: prompt)
    assert ask(writer(tiny, steering=[same]), *users) == ask(writer(tiny), *users)


def test_words_that_an_answer_has_become_less_likely_and_those_of_its_prompt_do_not(tiny: tuple[Any, Any]) -> None:
    users, factor, length = ["red", "blue hat shoe", "shoe red"], 2.0, 8
    made = writer(tiny, repetition=factor, max_tokens=length)
    model, tokenizer = tiny
    for user, answer in zip(users, ask(made, *users), strict=True):
        ids = made._encode(tokenizer, Prompt("Describe.", user))
        begun = len(ids)
        while len(ids) < begun + length and (len(ids) == begun or ids[-1] != 3):
            with torch.inference_mode():
                logits = model(torch.tensor([ids])).logits[0, -1].tolist()
            for token in set(ids[begun:]):
                logits[token] = logits[token] * factor if logits[token] < 0 else logits[token] / factor
            ids.append(int(np.argmax(logits)))
        assert answer.text == tokenizer.decode(ids[begun:], skip_special_tokens=True)
    plain = writer(tiny, max_tokens=length)
    assert ask(made, *users) != ask(plain, *users) and "repetition" not in plain.settings
    assert made.settings == plain.settings | {"repetition": factor}
    with pytest.raises(ValueError, match="repetition"):
        writer(tiny, repetition=0.5)


def test_an_endpoint_is_asked_with_another_temperature() -> None:
    plain = ChatEndpoint("http://localhost:1/v1", "m", extra={"top_p": 0.9})
    other = plain.sampled(0.7, 5)
    assert other.settings == plain.settings | {"temperature": 0.7, "seed": 5} and "seed" not in plain.settings
