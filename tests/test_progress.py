"""Long work speaks: soon, in between, and also while a single call runs."""

from __future__ import annotations

import io
import threading
import time

import pytest

from recsys.progress import Progress, saying


def speakers() -> int:
    return sum(thread.name == "recsys-progress" for thread in threading.enumerate())


def wait_for(capsys: pytest.CaptureFixture[str], count: int) -> list[str]:
    """The lines on standard error, once there are ``count`` of them."""
    found: list[str] = []
    for _ in range(2000):
        found += capsys.readouterr().err.splitlines()
        if len(found) >= count:
            return found
        time.sleep(0.005)
    raise AssertionError(f"{count} lines were expected, found {found}")


def test_hostile_12_a_slow_first_unit_is_announced(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress(50_000, "recommend", "users", log_seconds=0.02, first_seconds=0.01) as shown:
        silent = wait_for(capsys, 2)  # nothing was finished yet
        assert all(line.startswith("recommend: 0/50,000 users after") for line in silent)
        shown.advance(4096, loss=0.5)
        line = wait_for(capsys, 3)[-1]
    assert "4,096/50,000" in line and "left" in line and "loss 0.5" in line


def test_what_takes_less_than_a_second_longer_is_said_so(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress(1001, "count", "rows", log_seconds=0.01, first_seconds=0.01) as shown:
        shown.advance(1000)
        assert "less than 1 s left" in wait_for(capsys, 1)[0]
        shown.advance(1)
        assert ", 0 s left" in wait_for(capsys, 2)[-1]


def test_hostile_12_a_single_call_is_announced(capsys: pytest.CaptureFixture[str]) -> None:
    with saying("building the graph", first_seconds=0.01, every_seconds=0.01) as now:
        first, second = wait_for(capsys, 2)[:2]
        now("measuring its recall")
        third = next(line for line in wait_for(capsys, 2) if "recall" in line)
    assert first == "building the graph ..." and "so far" in second and third == "measuring its recall ..."


def test_quick_work_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress(3, "quick") as shown, saying("quick as well"):
        shown.advance(3)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("enabled", [True, False])
def test_the_thread_ends_with_the_work_also_after_an_error(enabled: bool, capsys: pytest.CaptureFixture[str]) -> None:
    before = speakers()
    with pytest.raises(KeyError), Progress(1, "one", enabled=enabled, log_seconds=0.01), saying("two", enabled):
        assert speakers() == before + 2 * enabled
        raise KeyError("stopped")
    assert speakers() == before
    capsys.readouterr()
    time.sleep(0.05)
    assert capsys.readouterr().err == ""


def test_a_closed_standard_error_ends_no_work(monkeypatch: pytest.MonkeyPatch) -> None:
    closed = io.StringIO()
    closed.close()
    for gone in (None, closed):
        monkeypatch.setattr("sys.stderr", gone)
        with saying("alone", first_seconds=0.001, every_seconds=0.001), Progress(1, "one", log_seconds=0.001):
            time.sleep(0.02)


def test_hostile_15_what_is_said_holds_no_control_characters(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress(None, "run \x1b[2J", log_seconds=0.01):
        assert "\x1b" not in wait_for(capsys, 1)[0]
