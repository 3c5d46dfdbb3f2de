"""Files are fetched whole or not at all, and go on where they stopped."""

from __future__ import annotations

import errno
import hashlib
import http.server
import json
import os
import threading
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from recsys.cards import download as download_module
from recsys.cards.download import SourceError
from recsys.cards.fetch import Fetcher, Wanted, unavailable
from recsys.errors import DataError, DataWarning
from recsys.storage.cache import cache_folder

BODY = bytes(range(256)) * 4096  # 1 MiB


@dataclass
class Site:
    """What the server serves, and what it was asked."""

    port: int = 0
    files: dict[str, bytes] = field(default_factory=dict)
    etag: str = '"one"'
    cut: list[int] = field(default_factory=list)  # close the connection after so many bytes, one entry per answer
    ranges: list[str | None] = field(default_factory=list)
    served: int = 0

    def url(self, name: str) -> str:
        return f"http://127.0.0.1:{self.port}/{name}"


@pytest.fixture
def site() -> Iterator[Site]:
    state = Site()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked = self.headers.get("Range")
            state.ranges.append(asked)
            body = state.files.get(self.path.lstrip("/"))
            if body is None:
                self.send_error(404)
                return
            start = 0
            if asked and self.headers.get("If-Range") == state.etag:
                start = int(asked.removeprefix("bytes=").rstrip("-"))
                if start >= len(body):
                    self.send_response(416)
                    self.send_header("Content-Range", f"bytes */{len(body)}")
                    self.send_header("Content-Length", "0")
                    self.end_headers()
                    return
                self.send_response(206)
                self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
            else:
                self.send_response(200)
            self.send_header("Content-Length", str(len(body) - start))
            self.send_header("ETag", state.etag)
            self.end_headers()
            stop = start + state.cut.pop(0) if state.cut else len(body)
            state.served += len(body[start:stop])
            self.wfile.write(body[start:stop])

        def log_message(self, *arguments: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    state.port = server.server_address[1]
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield state
    server.shutdown()
    server.server_close()


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("RECSYS_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("RECSYS_MIRROR", raising=False)
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path / "cache" / "datasets" / "toy"


def wanted(*sources: str, body: bytes | None = BODY, name: str = "events.bin") -> Wanted:
    known = (None, None) if body is None else (hashlib.sha256(body).hexdigest(), len(body))
    return Wanted(name, *known, sources=sources)


def whole(folder: Path) -> list[str]:
    """Names in the cache folder that look complete."""
    return sorted(p.name for p in folder.glob("*") if p.suffix not in (".partial", ".lock", ".mark", ".json"))


def test_download_is_verified_and_cached(site: Site, cache: Path) -> None:
    site.files["events.bin"] = BODY
    file = wanted("mirror", site.url("events.bin"))
    got = Fetcher("toy").remote(file)
    assert got is not None and got.verified and got.path == cache / "events.bin" and got.path.read_bytes() == BODY
    assert Fetcher("toy").local(file) is not None
    assert len(site.ranges) == 1 and whole(cache) == ["events.bin"] and not list(cache.glob("*.partial*"))


def test_the_mirror_is_used_in_place(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RECSYS_MIRROR", str(tmp_path / "mirror"))
    path = tmp_path / "mirror" / "toys" / "events.bin"
    path.parent.mkdir(parents=True)
    path.write_bytes(BODY)
    got = Fetcher("toy", folder="toys").local(wanted("mirror"))
    assert got is not None and got.path == path and got.source == "mirror" and not cache.exists()
    assert Fetcher("toy", folder="toys").local(wanted("http://127.0.0.1:9/x")) is None, "a card that names no mirror"


def test_a_damaged_mirror_gives_way_to_the_next_source(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site.files["events.bin"] = BODY
    monkeypatch.setenv("RECSYS_MIRROR", str(tmp_path / "mirror"))
    path = tmp_path / "mirror" / "toy" / "events.bin"
    path.parent.mkdir(parents=True)
    path.write_bytes(BODY[:100])
    fetcher = Fetcher("toy")
    file = wanted("mirror", site.url("events.bin"))
    assert fetcher.local(file) is None and "sha256" in fetcher.tried[0]
    got = fetcher.remote(file)
    assert got is not None and got.path.read_bytes() == BODY and path.read_bytes() == BODY[:100]


def test_a_broken_connection_is_taken_up_where_it_stopped(site: Site) -> None:
    site.files["events.bin"] = BODY
    site.cut = [300_000, 200_000]
    got = Fetcher("toy").remote(wanted(site.url("events.bin")))
    assert got is not None and got.path.read_bytes() == BODY
    assert site.ranges == [None, "bytes=300000-", "bytes=500000-"] and site.served == len(BODY)


def test_a_truncated_download_never_looks_complete_and_is_resumed_later(site: Site, cache: Path) -> None:
    site.files["events.bin"] = BODY
    site.cut = [400_000, 0, 0, 0]
    fetcher = Fetcher("toy")
    file = wanted(site.url("events.bin"))
    assert fetcher.remote(file) is None and "400,000" in fetcher.tried[0]
    assert whole(cache) == [] and (cache / "events.bin.partial").stat().st_size == 400_000
    assert Fetcher("toy").local(file) is None
    got = Fetcher("toy").remote(file)
    assert got is not None and got.path.read_bytes() == BODY and site.ranges[-1] == "bytes=400000-"


def test_a_finished_partial_file_is_not_downloaded_again(site: Site, cache: Path) -> None:
    site.files["events.bin"] = BODY
    partial = cache / "events.bin.partial"
    download_module.download(site.url("events.bin"), _made(partial))
    (cache / "events.bin.partial.mark").write_text(json.dumps({"url": site.url("events.bin"), "mark": site.etag}))
    assert Fetcher("toy").remote(wanted(site.url("events.bin"))) is not None
    assert site.served == len(BODY)


def test_a_file_that_changed_on_the_server_is_not_mixed(site: Site) -> None:
    site.files["events.bin"] = BODY
    site.cut = [300_000, 0, 0, 0]
    file = wanted(site.url("events.bin"), body=None)
    assert Fetcher("toy").remote(file) is None
    site.files["events.bin"], site.etag = BODY[::-1], '"two"'
    got = Fetcher("toy").remote(file)
    assert got is not None and got.path.read_bytes() == BODY[::-1] and not got.verified


@pytest.mark.parametrize("served", [BODY[:-1] + b"x", BODY[:1000], BODY + b"more"])
def test_a_corrupted_download_is_refused_and_leaves_nothing(site: Site, cache: Path, served: bytes) -> None:
    site.files["events.bin"] = served
    fetcher = Fetcher("toy")
    assert fetcher.remote(wanted(site.url("events.bin"))) is None
    assert whole(cache) == [] and "card" in fetcher.tried[0]
    site.files["events.bin"] = BODY
    assert fetcher.remote(wanted(site.url("events.bin"))) is not None


def test_a_spoiled_cache_is_set_aside_and_fetched_again(site: Site, cache: Path) -> None:
    site.files["events.bin"] = BODY
    file = wanted("mirror", site.url("events.bin"))
    Fetcher("toy").remote(file)
    (cache / "events.bin").write_bytes(BODY[:-10])
    fetcher = Fetcher("toy")
    with pytest.warns(DataWarning, match="truncated"):
        assert fetcher.local(file) is None
    got = fetcher.remote(file)
    assert got is not None and got.path.read_bytes() == BODY


def test_unverified_bytes_are_recorded_at_first_fetch_and_checked_afterwards(site: Site, cache: Path) -> None:
    site.files["events.bin"] = BODY
    file = wanted(site.url("events.bin"), body=None)
    got = Fetcher("toy").remote(file)
    record = json.loads((cache / "fetched.json").read_text())["events.bin"]
    assert got is not None and record["sha256"] == got.sha256 and record["bytes"] == len(BODY)
    assert record["source"] == site.url("events.bin")
    (cache / "events.bin").write_bytes(BODY[:50])
    with pytest.warns(DataWarning):
        assert Fetcher("toy").local(file) is None


def test_a_full_disk_keeps_what_arrived(site: Site, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    site.files["events.bin"] = BODY
    with monkeypatch.context() as patch:
        patch.setattr(download_module.os, "fsync", _full)
        with pytest.raises(OSError, match="disk is full") as raised:
            Fetcher("toy").remote(wanted(site.url("events.bin")))
    assert raised.value.errno == errno.ENOSPC and whole(cache) == []
    assert (cache / "events.bin.partial").stat().st_size == len(BODY)
    got = Fetcher("toy").remote(wanted(site.url("events.bin")))
    assert got is not None and site.served == len(BODY), "nothing is downloaded twice"


def test_a_member_of_an_archive(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with zipfile.ZipFile(tmp_path / "toy.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("toy/events.bin", BODY)
        archive.writestr("toy/items.bin", b"items")
    site.files["toy.zip"] = (tmp_path / "toy.zip").read_bytes()
    address = site.url("toy.zip")
    fetcher = Fetcher("toy")
    got = fetcher.remote(wanted(f"{address}!toy/events.bin"))
    assert got is not None and got.path.read_bytes() == BODY
    assert fetcher.remote(wanted(f"{address}!toy/items.bin", name="items.bin", body=b"items")) is not None
    assert len(site.ranges) == 1, "the archive is downloaded once"
    assert fetcher.remote(wanted(f"{address}!toy/none", name="none")) is None and "no member" in fetcher.tried[-1]
    monkeypatch.setenv("RECSYS_MIRROR", str(tmp_path))
    mirrored = Fetcher("elsewhere", folder=".").remote(wanted("http://127.0.0.1:9/toy.zip!toy/events.bin"))
    assert mirrored is not None, "an archive in the mirror is opened there"


def test_a_damaged_archive_is_thrown_away(site: Site, tmp_path: Path, cache: Path) -> None:
    with zipfile.ZipFile(tmp_path / "toy.zip", "w") as archive:
        archive.writestr("events.bin", BODY)
    good = (tmp_path / "toy.zip").read_bytes()
    site.files["toy.zip"] = good[:5000] + b"\0\0\0" + good[5003:]
    fetcher = Fetcher("toy")
    file = wanted(site.url("toy.zip") + "!events.bin")
    assert fetcher.remote(file) is None and "zip" in fetcher.tried[0] and whole(cache) == []
    site.files["toy.zip"] = good
    assert fetcher.remote(file) is not None


def test_a_file_inside_a_wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    with zipfile.ZipFile(wheels / "toy_wheel-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("toy_wheel/data/events.bin", BODY)
        wheel.writestr("toy_wheel-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: toy-wheel\nVersion: 1.0\n")
        wheel.writestr("toy_wheel-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        wheel.writestr("toy_wheel-1.0.dist-info/RECORD", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheels))
    fetcher = Fetcher("toy")
    got = fetcher.remote(wanted("pypi:toy-wheel==1.0!toy_wheel/data/events.bin"))
    assert got is not None and got.path.read_bytes() == BODY
    assert fetcher.remote(wanted("pypi:toy-wheel==2.0!x", name="other")) is None
    assert "pip" in fetcher.tried[-1] and "toy-wheel==2.0" in fetcher.tried[-1]


def test_offline_says_what_was_tried_and_what_to_do(site: Site, cache: Path) -> None:
    fetcher = Fetcher("toy")
    file = wanted("mirror", "http://127.0.0.1:9/events.bin", site.url("gone.bin"))
    assert fetcher.local(file) is None and fetcher.remote(file) is None
    message = str(unavailable(fetcher, [file.name]))
    for part in ("RECSYS_MIRROR", "toy/events.bin", str(cache), "127.0.0.1:9", "cannot be reached", "404"):
        assert part in message


def test_two_at_once_download_once(site: Site) -> None:
    site.files["events.bin"] = BODY
    file = wanted(site.url("events.bin"))
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: Fetcher("toy").remote(file), range(4)))
    assert all(got is not None and got.path.read_bytes() == BODY for got in found) and site.served == len(BODY)


def test_a_server_that_refuses_is_not_asked_again(site: Site, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="404"):
        download_module.download(site.url("gone"), tmp_path / "x.partial")
    assert len(site.ranges) == 1 and not (tmp_path / "x.partial").exists()


def test_cache_folder_follows_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert cache_folder() == tmp_path / "cache"
    monkeypatch.delenv("RECSYS_CACHE")
    assert cache_folder().name == "recsys" and cache_folder().is_absolute()


def test_hostile_7_a_cache_that_cannot_be_written_names_its_variable(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("RECSYS_CACHE", str(tmp_path / "file"))
    with pytest.raises(OSError, match="RECSYS_CACHE"):
        Fetcher("toy").remote(wanted(site.url("events.bin")))


def test_hostile_7_without_a_home_the_cache_must_be_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    for name in ("RECSYS_CACHE", "XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(Path, "home", homeless)
    with pytest.raises(DataError, match="RECSYS_CACHE"):
        cache_folder()


def _full(descriptor: int) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _made(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return path
