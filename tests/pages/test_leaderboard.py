"""The leaderboard that is committed: what the command makes of the recorded results, all of them."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from recsys.cli import main
from recsys.pages.recorded import read_recorded

ROOT = Path(__file__).parents[2]
PAGE, RESULTS = ROOT / "docs" / "leaderboard.html", ROOT / "benchmarks"
committed = pytest.mark.skipif(not (PAGE.is_file() and RESULTS.is_dir()), reason="the page or the results are not here")


@committed
def test_the_committed_page_is_what_the_command_makes(tmp_path: Path) -> None:
    assert main(["report", str(RESULTS), "--html", str(tmp_path / "page.html")]) == 0
    made = (tmp_path / "page.html").read_bytes()
    assert made == PAGE.read_bytes(), "the results changed: recsys report benchmarks --html docs/leaderboard.html"
    assert len(made) < 300_000


@committed
def test_every_recorded_result_is_on_the_page() -> None:
    page = html.unescape(PAGE.read_text(encoding="utf-8"))
    found = read_recorded(RESULTS)
    files = {name for one in found.results for name in one.files} | {name for one in found.tables for name in one.of}
    wanted = [path for path in RESULTS.rglob("*.json") if "results" in path.parts and "per-user" not in path.parts]
    assert {path.relative_to(RESULTS).as_posix() for path in wanted} <= files | {name for name, _ in found.others}
    assert found.others == ()
    for path in wanted:
        content = json.loads(path.read_text(encoding="utf-8"))
        if "runs" in content and "metrics" in content:
            assert path.relative_to(RESULTS).as_posix() in page and f'data-v="{content["name"]}"' in page
    for path in RESULTS.rglob("results/*.md"):
        assert path.relative_to(RESULTS).as_posix() in page


@committed
@pytest.mark.skipif(shutil.which("chromium") is None, reason="chromium is not installed")
def test_the_script_runs_in_a_browser(tmp_path: Path) -> None:
    flags = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
    more = "--disable-component-update --disable-sync --dump-dom"
    command = ["chromium", *flags.split(), *more.split(), f"--user-data-dir={tmp_path}", PAGE.as_uri()]
    shown = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout
    results = len(read_recorded(RESULTS).results)
    assert f">{results} of {results} results</output>" in shown and 'aria-sort="none"' in shown


@committed
def test_the_only_script_is_the_one_that_the_policy_allows() -> None:
    page = PAGE.read_text(encoding="utf-8")
    (script,) = re.findall(r"<script>(.*?)</script>", page, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in page and not re.search(r'(?:src|href)="(?!#)', page)
