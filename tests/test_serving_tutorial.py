"""docs/serving.md is run as it is printed: the log of a stranger, the commands, a server, every request."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from recsys.cli import main

PAGE = Path(__file__).parents[1] / "docs" / "serving.md"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not PAGE.is_file(), reason="the documents are not here"),
    pytest.mark.skipif(shutil.which("curl") is None, reason="the page asks with curl, which is not installed"),
]


def write_files(folder: Path) -> None:
    """A log in which the next item mostly follows from the last one, and titles."""
    generator = np.random.default_rng(0)
    lines, words = ["uid,sku,ts"], ("red", "blue", "small", "large", "cup", "plate", "lamp")
    for user in range(120):
        time, item = 1_700_000_000 + int(generator.integers(5_000_000)), int(generator.integers(40))
        for _ in range(int(generator.integers(5, 20))):
            lines.append(f"u{user},sku-{item},{time}")
            time, item = time + int(generator.integers(60, 200_000)), (item + int(generator.choice([1, 2, 7]))) % 40
    (folder / "events.csv").write_text("\n".join(lines) + "\n")
    titles = [f"sku-{item},{' '.join(generator.choice(words, 3))} number {item}" for item in range(40)]
    (folder / "items.csv").write_text("\n".join(["sku,title", *titles]) + "\n")


def test_the_page_leads_from_a_log_to_a_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("uvicorn", reason="the extra serve is not installed")
    write_files(tmp_path)
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"^```sh\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    lines = [line for block in blocks for line in block.splitlines() if line]
    server, port, asked = None, "", 0
    try:
        for line in lines:
            words = shlex.split(line, comments=True)
            if words[:2] == ["recsys", "serve"]:
                command = [sys.executable, "-m", "recsys", *words[1:]]
                command[command.index("8000")] = "0"
                server = subprocess.Popen(
                    command, stderr=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
                )
                assert server.stderr is not None
                port = server.stderr.readline().strip().rsplit(":", 1)[1]
                ready = ["curl", "-sf", "--retry", "60", "--retry-delay", "1", "--retry-all-errors"]
                subprocess.run([*ready, f"http://127.0.0.1:{port}/health/ready"], check=True, capture_output=True)
            elif words[0] == "curl":
                sent = [word.replace(":8000", f":{port}") for word in words]
                answer = subprocess.run([*sent, "-f"], capture_output=True, text=True)
                assert answer.returncode == 0 and answer.stdout, line
                asked += 1
                if "/recommend" in line:
                    found = json.loads(answer.stdout)["results"]
                    assert found[0]["items"][0]["title"] and found[0]["source"] == "model"
                    assert "lamp" not in line or all("lamp" in one["title"] for one in found[0]["items"])
            else:
                assert main(words[1:]) == 0, f"{line}\n{capfd.readouterr().err}"
    finally:
        if server is not None:
            server.terminate()
            server.wait()
    assert asked >= 8 and len((tmp_path / "events.ndjson").read_text().splitlines()) == 1
