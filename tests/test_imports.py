"""What may be imported where: heavy packages stay out of the paths that do not need them."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "recsys"
HOMES = {
    "polars": ("recsys.readers", "recsys.features", "recsys.data"),
    "lightning": ("recsys.train",),
    "pytorch_lightning": ("recsys.train",),
    "faiss": ("recsys.index.search",),
    "numba": ("recsys.nn.kernels",),
}
LIGHT = (
    "nn", "targets", "negatives", "weighting", "augmentations", "items", "encoders", "objectives", "auxiliaries",
    "recommenders", "runs", "eval", "train", "ranking", "statistics", "semantic_ids", "protocols", "hooks",
    "data.batch", "data.prepared", "data.split", "data.vocabulary",
)  # fmt: skip


def modules() -> list[str]:
    paths = sorted(PACKAGE.rglob("*.py"))
    return [".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for path in paths]


def within(module: str, homes: Sequence[str]) -> bool:
    return any(module == home or module.startswith(f"{home}.") for home in homes)


def imported_at_once(module: str) -> Iterator[str]:
    """Top-level packages that importing a module imports: not those inside functions or under TYPE_CHECKING."""
    path = ROOT.joinpath(*module.split("."))
    path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    waiting: list[ast.stmt] = list(ast.parse(path.read_text(encoding="utf-8")).body)
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield node.module.split(".")[0]
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            waiting += node.orelse
        elif not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            waiting += [child for child in ast.iter_child_nodes(node) if isinstance(child, ast.stmt)]


@pytest.mark.parametrize("heavy", HOMES)
def test_heavy_packages_have_one_home(heavy: str) -> None:
    strangers = [module for module in modules() if heavy in imported_at_once(module)]
    assert [module for module in strangers if not within(module, HOMES[heavy])] == []


def test_training_and_evaluation_from_a_cache_need_neither_polars_nor_faiss() -> None:
    light = [module for module in modules() if within(module, [f"recsys.{name}" for name in LIGHT])]
    program = (
        "import importlib, sys\n"
        f"for name in {light!r}: importlib.import_module(name)\n"
        "print(sorted({'polars', 'faiss', 'pandas', 'recbole'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"


def test_importing_the_library_is_light_and_silent() -> None:
    program = (
        "import sys, time; t = time.perf_counter(); import recsys; spent = time.perf_counter() - t\n"
        "print(spent < 0.5, sorted({'torch', 'polars', 'faiss', 'lightning', 'scipy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.stdout.strip(), done.stderr) == ("True []", "")


def test_23_7_without_transformers_everything_imports_and_a_language_part_names_the_extra() -> None:
    code = """
import importlib, pkgutil, sys
for name in ("transformers", "peft", "trl", "sentence_transformers", "tokenizers", "gguf"):
    sys.modules[name] = None
import recsys, torch
for package in ("llm", "encoders", "generative", "forgetting", "nn", "auxiliaries", "preferences"):
    found = importlib.import_module(f"recsys.{package}")
    for module in pkgutil.walk_packages(found.__path__, f"recsys.{package}."):
        importlib.import_module(module.name)
from recsys.llm.trainers.adapters.lora import LoRA
from recsys.nn.backbone import SMALL, Backbone
for make in (lambda: LoRA().attach(torch.nn.Sequential(torch.nn.Linear(2, 2))), lambda: Backbone(SMALL).bind()):
    try:
        make()
    except ImportError as error:
        assert "recsys[llm]" in str(error), error
    else:
        raise AssertionError("made without its packages")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
