"""``recsys export``: one folder that serves."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from recsys.cli.arguments import importable


def export(
    run: Path,
    out: Path,
    /,
    index: Literal["auto", "hnsw", "exact", "none"] = "auto",
    split: Path | None = None,
    trust: tuple[str, ...] = (),
) -> None:
    """Export a run as a bundle: model, item vectors, FAISS index, item ids and titles in one folder.

    Args:
        run: the run folder.
        out: the folder (bundle) to write.
        index: FAISS index of the item vectors: auto is exact for small catalogues, hnsw (approximate) for large ones.
        split: folder of a saved split with the same items (default: the split the run was trained on).
        trust: modules outside recsys whose classes the model may use; their code is run (default: none).
    """
    from recsys.runs.read import load_run
    from recsys.runs.split import split_of
    from recsys.serve.bundle import export as write

    kind = None if index == "none" else index
    model = load_run(run, importable(trust))
    bundle = write(model, out, index=kind, split=split_of(run, model, split))
    print(bundle)
