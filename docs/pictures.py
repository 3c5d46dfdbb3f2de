"""The pictures in README.md, of a report and of the page of a server, written to docs/pictures by one command::

    python docs/pictures.py runs/quickstart/blend --bundles runs/quickstart/blend/bundle runs/quickstart/bundle

They are taken from the run's ``report.html`` and from ``recsys serve`` by a headless Chromium, as wide as a desk and,
beside it, as a phone. Needs ``chromium`` (or ``--browser PATH``), the extras ``report`` and ``serve``, and playwright.
"""

from __future__ import annotations

import argparse
import io
import shutil
import subprocess
import sys
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
WIDTHS, HEIGHT, PAGE_HEIGHT, GAP = (1280, 390), 1900, 1000, 30  # pixels
COLOURS = 96  # of a picture


def main() -> None:
    """Take the picture that the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder of a run with its report.html")
    parser.add_argument("--browser", default=next(filter(None, map(shutil.which, BROWSERS)), None))
    parser.add_argument("--bundles", type=Path, nargs="+", default=[], help="to be served, for the picture of the page")
    parser.add_argument("--history", nargs="+", default=["50", "172", "127"], help="ids that the page shows")
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
    if chosen.bundles:
        keep(visited(chosen.browser, chosen.bundles, chosen.history), chosen.out / "page.png")


def take(browser: str, page: Path, width: int) -> Any:
    """The top of a page on a screen of ``width`` pixels."""
    from PIL import Image

    with tempfile.TemporaryDirectory() as folder:
        taken = Path(folder) / "taken.png"
        options = [f"--user-data-dir={folder}/profile", f"--screenshot={taken}", f"--window-size={width},{HEIGHT}"]
        subprocess.run([browser, *QUIET, *options, page.resolve().as_uri()], check=True, capture_output=True)
        return Image.open(taken).convert("RGB")


def visited(browser: str, bundles: Sequence[Path], history: Sequence[str]) -> list[Any]:
    """The page of a server with a history, and on the desk with the reason for its second recommendation."""
    from PIL import Image
    from playwright.sync_api import sync_playwright

    command = [sys.executable, "-m", "recsys", "serve", *map(str, bundles), "--port", "0", "--log", "none"]
    server = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert server.stderr is not None
    try:
        url = server.stderr.readline().split()[-1] + "/#" + "&".join(f"h={item}" for item in history)
        found = []
        with sync_playwright() as started:
            opened = started.chromium.launch(executable_path=browser, args=list(QUIET[1:]))
            for width in WIDTHS:
                page = opened.new_context(viewport={"width": width, "height": PAGE_HEIGHT}).new_page()
                page.goto(url)
                page.wait_for_selector("#lists li", timeout=60_000)
                if width == max(WIDTHS):
                    page.locator("#lists li").nth(1).get_by_role("button", name="why").click()
                    page.wait_for_selector(".more")
                    page.wait_for_timeout(500)
                found.append(Image.open(io.BytesIO(page.screenshot())).convert("RGB"))
            opened.close()
        return found
    finally:
        server.terminate()
        server.wait()


def keep(taken: Sequence[Any], target: Path) -> None:
    """Write pictures side by side, as one of few colours."""
    from PIL import Image

    height = max(one.height for one in taken)
    whole = Image.new("RGB", (sum(one.width for one in taken) + GAP * (len(taken) - 1), height), "white")
    left = 0
    for one in taken:
        whole.paste(one, (left, 0))
        left += one.width + GAP
    whole.quantize(COLOURS, dither=Image.Dither.NONE).save(target, optimize=True)
    print(f"{target}: {target.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
