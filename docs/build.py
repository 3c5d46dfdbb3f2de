"""API pages from the docstrings: ``python docs/build.py [FOLDER]`` writes them to docs/api (needs pdoc)."""

from __future__ import annotations

import pkgutil
import shutil
import sys
import warnings
from pathlib import Path

import pdoc

import recsys

HERE = Path(__file__).resolve().parent


def main(target: Path) -> None:
    """Write one page per module to ``target``; a module or a public name that cannot be imported fails."""
    for name in recsys.__all__:  # these load on first use, which pdoc cannot see
        setattr(recsys, name, getattr(recsys, name))
    modules = [found.name for found in pkgutil.iter_modules(recsys.__path__, "recsys.")]
    shutil.rmtree(target, ignore_errors=True)
    pdoc.render.configure(docformat="google", footer_text=f"recsys {recsys.__version__}")
    warnings.filterwarnings("error", message="Error importing|Found '")  # a module or a name that pdoc would leave out
    warnings.filterwarnings("ignore", message="Error parsing type annotation")  # names imported for type checking only
    pdoc.pdoc("recsys", *modules, output_directory=target)
    print(f"{sum(1 for _ in target.rglob('*.html'))} pages in {target}")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else HERE / "api")
