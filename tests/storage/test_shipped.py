"""Cards and recipes are found in a checkout and travel inside the wheel."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from recsys.storage import shipped

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(("name", "pattern"), [("datasets", "*.toml"), ("configs", "*.py")])
def test_a_checkout_has_its_folders(name: str, pattern: str) -> None:
    assert list(shipped.folder(name).glob(pattern))


def test_an_unknown_folder_is_an_incomplete_installation() -> None:
    with pytest.raises(FileNotFoundError, match="incomplete"):
        shipped.folder("elsewhere")


def test_the_wheel_carries_cards_and_recipes(tmp_path: Path) -> None:
    pytest.importorskip("hatchling")
    pytest.importorskip("pip")
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    built = subprocess.run([*pip, "--wheel-dir", str(tmp_path), str(ROOT)], capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    (wheel,) = tmp_path.glob("recsys-*.whl")
    home, elsewhere = tmp_path / "site", tmp_path / "empty"
    elsewhere.mkdir()
    with zipfile.ZipFile(wheel) as opened:
        inside = opened.namelist()
        opened.extractall(home)
    for folder, pattern in (("datasets", "*.toml"), ("configs", "*.py")):
        for path in (ROOT / folder).glob(pattern):
            assert f"recsys/_shipped/{folder}/{path.name}" in inside
    assert "recsys/py.typed" in inside and not any("__pycache__" in name or "tests/" in name for name in inside)
    ask = (
        "from recsys.storage import shipped; from recsys.cards import card; "
        "card.card('ml-100k'); print(shipped.folder('datasets'))"
    )
    answer = subprocess.run(
        [sys.executable, "-c", ask],
        cwd=elsewhere,
        env={**os.environ, "PYTHONPATH": str(home)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert answer.returncode == 0, answer.stderr
    assert Path(answer.stdout.strip()) == home / "recsys" / "_shipped" / "datasets"
