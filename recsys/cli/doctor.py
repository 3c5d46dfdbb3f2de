"""``recsys doctor``: what a bug report needs to say about the machine."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
from importlib.util import find_spec
from pathlib import Path

from recsys.errors import DataError

PACKAGES = ("torch", "lightning", "polars", "numpy", "scipy", "faiss-cpu", "safetensors", "tyro")
EXTRAS = {
    "fast": "numba",
    "text": "sentence_transformers",
    "llm": "transformers",
    "serve": "starlette",
    "report": "matplotlib",
    "parity": "recbole",
    "parity-trl": "trl",
}


def doctor() -> None:
    """Print what a bug report needs: versions, processor, threads, GPU, folders."""
    print(examine())


def examine() -> str:
    """Versions, processor, threads, GPU, folders and extras, one per line."""
    import torch

    from recsys import __version__
    from recsys.storage.cache import mirror_folder

    lines = {
        "recsys": __version__,
        "python": f"{platform.python_version()} on {platform.platform()}",
        **{name: _version(name) for name in PACKAGES},
        "processor": f"{processor()}, {os.cpu_count()} cores, torch uses "
        f"{torch.get_num_threads()} threads ({torch.backends.cpu.get_cpu_capability()})",
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
        "cache": _cache(),
        "mirror": str(mirror_folder() or "none (RECSYS_MIRROR is not set)"),
        "extras": ", ".join(name for name, module in EXTRAS.items() if find_spec(module)) or "none installed",
    }
    width = max(map(len, lines))
    return "\n".join(f"{name:<{width}}  {value}" for name, value in lines.items())


def _cache() -> str:
    """The cache folder, and whether anything can be kept there."""
    from recsys.storage.cache import cache_folder

    try:
        folder = cache_folder()
    except DataError as error:
        return f"none: {error}"
    there = next((place for place in (folder, *folder.parents) if place.exists()), folder)
    if not there.is_dir() or not os.access(there, os.W_OK):
        return f"{folder} (cannot be written: set RECSYS_CACHE to a folder that can be)"
    return f"{folder} ({shutil.disk_usage(there).free / 1e9:,.1f} GB free)"


def processor() -> str:
    """The processor's name, where the system tells it, else its kind."""
    known = Path("/proc/cpuinfo")
    names = [line for line in known.read_text().splitlines() if "model name" in line] if known.is_file() else []
    return names[0].partition(":")[2].strip() if names else platform.processor() or platform.machine()


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "MISSING"
