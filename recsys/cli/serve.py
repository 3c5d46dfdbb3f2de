"""``recsys serve``: bundles over HTTP, and a page to try them on."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from typing import Any, Literal

from recsys.cli.arguments import importable, listed

KEY = "RECSYS_API_KEY"
LOOPBACK = ("127.0.0.1", "localhost", "::1")


def serve(
    bundles: tuple[Path, ...],
    /,
    host: str = "127.0.0.1",
    port: int = 8000,
    fallback: tuple[str, ...] = ("popular",),
    feedback: Path | None = None,
    watch: float = 0.0,
    batch: int = 64,
    waiting: int = 2048,
    in_flight: int = 1024,
    body: int = 4 * 2**20,
    log: Literal["requests", "none"] = "requests",
    threads: int = 0,
    trust: tuple[str, ...] = (),
) -> None:
    """Answer over HTTP what a bundle recommends; the page at / is for trying it.

    Args:
        bundles: folders that export wrote; the first one answers where a request names none.
        host: address to listen on; others than loopback need a key in RECSYS_API_KEY.
        port: port to listen on; 0 takes a free one.
        fallback: who answers for histories without a known item, in this order: popular, or files of item ids (one per
            line, or a column item), each topped up by the next.
        feedback: NDJSON file to which POST /feedback appends events.
        watch: look every so many seconds whether a folder was written anew, and serve that (default: only when asked).
        batch: most histories that are ranked together (1: no batching).
        waiting: most histories that wait to be ranked; what comes then is refused with 503.
        in_flight: most requests that are answered at a time.
        body: most bytes of a request.
        log: a line of JSON per request on standard error, or none.
        threads: threads of torch and faiss (default: theirs).
        trust: modules outside recsys whose classes the models may use; their code is run (default: none).
    """
    if not bundles:
        raise ValueError("name the bundle to serve: recsys serve BUNDLE (recsys export RUN BUNDLE writes one)")
    needed = ("starlette", "uvicorn", "pydantic", "prometheus_client")
    missing = [name for name in needed if importlib.util.find_spec(name) is None]
    if missing:
        raise ImportError(f"the server needs {', '.join(missing)}: pip install 'recsys[serve]'")
    least = {"port": port, "watch": watch, "threads": threads}
    least |= {name: value - 1 for name, value in
              {"batch": batch, "waiting": waiting, "in-flight": in_flight, "body": body}.items()}  # fmt: skip
    wrong = [name for name, value in least.items() if value < 0] + ["port"] * (port > 65_535)
    if wrong:
        raise ValueError(f"--{wrong[0]} is out of range: see recsys serve --help")
    key = os.environ.get(KEY) or None
    if host not in LOOPBACK and key is None:
        raise PermissionError(
            f"{host} is reached from other machines, and anybody there could ask and change what is served: put a key "
            f"into {KEY}, or leave --host out"
        )
    if threads:
        os.environ["OMP_NUM_THREADS"] = str(threads)  # faiss reads it when it is imported
    from recsys.serve.http.run import run
    from recsys.serve.http.server import Limits

    chain, lists = _chain(fallback)
    run(
        _named(bundles), host, port, key,
        limits=Limits(body=body, in_flight=in_flight, waiting=waiting, batch=batch),
        chain=chain, lists=lists, feedback=feedback, watch=watch or None, log=log == "requests", threads=threads,
        trust=importable(trust),
    )  # fmt: skip


def _named(bundles: tuple[Path, ...]) -> dict[str, Path]:
    """Name -> folder: the last part of the path, with the one before it or a number where two are called the same."""
    found: dict[str, Path] = {}
    for folder in bundles:
        stem = folder.resolve().name
        stem = f"{folder.resolve().parent.name}-{stem}" if stem in found else stem
        name, number = stem, 2
        while name in found:
            name, number = f"{stem}-{number}", number + 1
        found[name] = folder
    return found


def _chain(fallback: tuple[str, ...]) -> tuple[list[str], dict[str, Any]]:
    """Names of the fallbacks, and the raw ids of those that are files."""
    chain, lists = [], {}
    for one in fallback:
        path = Path(one)
        if one != "popular" and not path.is_file():
            raise FileNotFoundError(f"the fallback {one!r} is neither popular nor a file of item ids")
        if one != "popular" and (path.stem in lists or path.stem == "popular"):
            raise ValueError(
                f"the fallback {one!r} would be called {path.stem}, as another one is: name the file otherwise"
            )
        chain.append(one if one == "popular" else path.stem)
        if one != "popular":
            lists[path.stem] = listed(path)
    return chain, lists
