"""The picture of a report in README.md: ``python docs/pictures.py runs/quickstart/blend`` writes it to docs/pictures.

It is taken from the run's ``report.html`` by a headless Chromium, as wide as a desk and, beside it, as a phone.
Needs ``chromium`` (or ``--browser PATH``) and the extra ``report``.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
QUIET = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
)  # fmt: skip
WIDTHS, HEIGHT, GAP = (1280, 390), 1900, 30  # pixels
COLOURS = 96  # of a picture


def main() -> None:
    """Take the picture that the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder of a run with its report.html")
    parser.add_argument("--browser", default=next(filter(None, map(shutil.which, BROWSERS)), None))
    parser.add_argument("--out", type=Path, default=HERE / "pictures")
    chosen = parser.parse_args()
    page = chosen.run / "report.html"
    if not page.is_file():
        parser.error(f"{page} is not there: recsys report {chosen.run} writes it")
    if chosen.browser is None:
        parser.error(f"none of {', '.join(BROWSERS)} is installed: name one with --browser")
    chosen.out.mkdir(parents=True, exist_ok=True)
    taken = [take(chosen.browser, page, width) for width in WIDTHS]
    keep(taken, chosen.out / "report.png")


def take(browser: str, page: Path, width: int) -> Any:
    """The top of a page on a screen of ``width`` pixels."""
    from PIL import Image

    with tempfile.TemporaryDirectory() as folder:
        taken = Path(folder) / "taken.png"
        options = [f"--user-data-dir={folder}/profile", f"--screenshot={taken}", f"--window-size={width},{HEIGHT}"]
        subprocess.run([browser, *QUIET, *options, page.resolve().as_uri()], check=True, capture_output=True)
        return Image.open(taken).convert("RGB")


def keep(taken: Sequence[Any], target: Path) -> None:
    """Write pictures side by side, as one of few colours."""
    from PIL import Image

    whole = Image.new("RGB", (sum(one.width for one in taken) + GAP * (len(taken) - 1), HEIGHT), "white")
    left = 0
    for one in taken:
        whole.paste(one, (left, 0))
        left += one.width + GAP
    whole.quantize(COLOURS, dither=Image.Dither.NONE).save(target, optimize=True)
    print(f"{target}: {target.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
