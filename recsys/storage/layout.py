"""What the files of a run folder are called, and what tells it from other folders."""

from __future__ import annotations

import hashlib
from pathlib import Path

KIND = "recsys.run"
FORMAT = 1
MANIFEST, CONFIG, WEIGHTS, VOCABULARY = "manifest.json", "config.json", "model.safetensors", "vocabulary"
STOPS = "stops.safetensors"


def hash_run(folder: str | Path) -> str:
    """SHA-256 of the model of a run, its config and best weights.

    Raises:
        FileNotFoundError: it has none.
    """
    digest = hashlib.sha256()
    for name in (CONFIG, WEIGHTS):
        with (Path(folder) / name).open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()
