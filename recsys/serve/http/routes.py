"""The routes: a handler for each thing that a service can be asked, and the page."""

from __future__ import annotations

import time
from collections.abc import Callable
from importlib.resources import files
from typing import Any

import numpy as np
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from recsys.errors import DataError, printable
from recsys.recommenders.history import History
from recsys.recommenders.times import moments
from recsys.serve.http import messages as m
from recsys.serve.http.openapi import Operation, document
from recsys.serve.http.problems import Refused, answer, busy, query, read
from recsys.serve.http.server import LOADING, Server
from recsys.serve.service import Ask, Served
from recsys.serve.why import leave_one_out

SCALES = {"softmax": "log-probability", "share": "share of the largest score"}
PLAIN, EXPOSITION = "text/plain", "text/plain; version=0.0.4; charset=utf-8"
PAGE = {"": "text/html; charset=utf-8", "page.js": "text/javascript; charset=utf-8", "page.css": "text/css"}
POLICY = "default-src 'self'; img-src 'self' data:; frame-ancestors 'none'; base-uri 'none'; form-action 'none'"


def routes(server: Server) -> list[Route]:
    """All routes of a server, those asked most first."""
    operations = [*_answers(server), *_changes(server), *_about(server)]
    described = document(operations)

    async def openapi(request: Request) -> Response:
        return answer(described)

    shown = [Route("/openapi.json", openapi), *(Route(f"/{name}", _page(name, kind)) for name, kind in PAGE.items())]
    return [*(one.route() for one in operations), *shown]


def _answers(server: Server) -> list[Operation]:
    limits = server.limits

    async def recommend(request: Request) -> Response:
        """The best items for each history."""
        asked = await read(request, m.RecommendIn, limits.body, limits.body_seconds)
        served = server.served(asked.bundle)
        ask = Ask(served, [_history(served, one) for one in asked.histories], asked.k, asked.exclude == "history")
        ask.given = [one if isinstance(one, list) else one.items for one in asked.histories]
        ask.allow = None if asked.allow is None else served.ids(asked.allow)
        ask.deny = None if asked.deny is None else served.ids(asked.deny)
        ask.exact = asked.search == "exact"
        if asked.filters:
            filters = {name: one.model_dump(by_alias=True, exclude_none=True) for name, one in asked.filters.items()}
            ask.rows = await server.within(run_in_threadpool(served.columns.rows, filters))
        found = await server.ranked(ask)
        unknown = sum(map(len, found.unknown))
        server.metrics.lists(served.name, found.sources, unknown)
        request.state.log |= {
            "bundle": served.hash, "histories": len(ask), "k": asked.k, "unknown": unknown,
            "fallbacks": sum(source != "model" for source in found.sources),
        }  # fmt: skip
        results = [
            {"items": _items(ids, scores, titles), "source": source, "unknown": missing}
            for ids, scores, titles, source, missing in zip(
                found.items, found.scores, found.titles, found.sources, found.unknown, strict=True
            )
        ]
        return answer({"bundle": _named(served), "results": results})

    async def similar(request: Request) -> Response:
        """The items whose vectors are nearest to each given one, itself left out."""
        asked = await read(request, m.SimilarIn, limits.body, limits.body_seconds)
        served = server.served(asked.bundle)
        found = await server.apart(lambda: served.similar(asked.items, asked.k, asked.metric))
        results = []
        for one, title, near in zip(asked.items, served.columns.titles(served.find(asked.items)), found, strict=True):
            titles = served.columns.titles(served.find([other for other, _ in near]))
            listed = _items([other for other, _ in near], [score for _, score in near], titles)
            results.append({"id": one, "title": title, "items": listed})
        return answer({"bundle": _named(served), "results": results})

    async def why(request: Request) -> Response:
        """What each item of a history does for some recommended ones: leave-one-out, for any model."""
        asked = await read(request, m.WhyIn, limits.body, limits.body_seconds)
        served = server.served(asked.bundle)
        history, items = _history(served, asked.history), served.ids(asked.items)
        found = await server.apart(lambda: leave_one_out(served.bundle, history, items))
        titles = served.columns.titles(served.find(items))
        left = list(zip(found.history, served.columns.titles(served.find(found.history)), strict=True))
        told = []
        for column, (one, title) in enumerate(zip(items, titles, strict=True)):
            influence = [
                {"id": other, "title": name, "change": change, "rank_without": rank}
                for (other, name), change, rank in zip(
                    left, found.change[:, column].tolist(), found.rank_without[:, column].tolist(), strict=True
                )
            ]
            told.append({"id": one, "title": title, "rank": int(found.rank[column]), "influence": influence})
        scale = SCALES[served.bundle.model.scale] if hasattr(served.bundle.model, "score") else "reciprocal rank"
        return answer({"bundle": _named(served), "scale": scale, "items": told})

    async def elicit(request: Request) -> Response:
        """What to ask somebody without a history, given the answers so far, and what they are worth by now."""
        asked = await read(request, m.ElicitIn, limits.body, limits.body_seconds)
        served = server.served(asked.bundle)
        ids = served.ids([one.id for one in asked.answers])
        answers = list(zip(ids, (one.answer for one in asked.answers), strict=True))
        asking = served.asking
        found = await server.apart(lambda: asking.next(answers, asked.k))
        listed: list[dict[str, Any]] = []
        if asked.count and asking.reader != "history":
            best, scores = await server.apart(lambda: asking.read(answers, asked.count))
            listed = _items(best, scores, served.columns.titles(served.find(best)))
        elif asked.count:
            last = dict(answers)
            ask = Ask(served, [History([one for one, word in last.items() if word == "like"])], asked.count)
            ask.deny = list(last)
            by_model = await server.ranked(ask)
            listed = _items(by_model.items[0], by_model.scores[0], by_model.titles[0])
        titles = served.columns.titles(found.rows)
        questions = [
            {"id": one, "title": title, "known": known}
            for one, title, known in zip(served.vocabulary.raw(found.rows).tolist(), titles, found.known, strict=True)
        ]
        told = {"asker": asking.name, "reader": asking.reader, "enough": found.enough}
        return answer({"bundle": _named(served), **told, "questions": questions, "items": listed})

    async def search_items(request: Request) -> Response:
        """Items by words of their title, the best match first."""
        asked = query(request, m.SearchIn)
        served = server.served(asked.bundle)
        rows = await run_in_threadpool(_searched, served, asked.q, asked.count)
        withdrawn = np.isin(rows, served.withdrawn).tolist()
        found = [
            {"id": one, "title": title, "text": served.columns.entries(row), "withdrawn": gone}
            for one, title, row, gone in zip(
                served.vocabulary.raw(rows).tolist(), served.columns.titles(rows), rows.tolist(), withdrawn, strict=True
            )
        ]
        return answer({"bundle": _named(served), "items": found})

    return [
        Operation("POST", "/recommend", recommend, m.RecommendOut, m.RecommendIn),
        Operation("POST", "/similar", similar, m.SimilarOut, m.SimilarIn),
        Operation("POST", "/why", why, m.WhyOut, m.WhyIn),
        Operation("POST", "/elicit", elicit, m.ElicitOut, m.ElicitIn),
        Operation("GET", "/items", search_items, m.SearchOut, query=m.SearchIn),
    ]


def _changes(server: Server) -> list[Operation]:
    limits = server.limits

    async def changed(served: Served, work: Callable[[], Any]) -> Response:
        served = await server.apart(work) or served
        server.metrics.items(served.name, served.hash, len(served.vocabulary))
        counts = {"items": len(served.vocabulary), "withdrawn": len(served.withdrawn)}
        return answer({"bundle": _named(served), **counts})

    async def add_items(request: Request) -> Response:
        """Take in items that came after training, until the bundle is read again."""
        asked = await read(request, m.ItemsIn, limits.body, limits.body_seconds)
        served = server.served(asked.bundle)
        vectors, features, text = _of_items(asked.items)
        return await changed(served, lambda: served.add([one.id for one in asked.items], vectors, features, text))

    async def withdraw_items(request: Request) -> Response:
        """Recommend items no more, also by bundles that come later under this name."""
        asked = await read(request, m.IdsIn, limits.body, limits.body_seconds)
        served = server.served(asked.bundle)
        return await changed(served, lambda: server.service.withdraw(asked.bundle, asked.ids))

    async def restore_items(request: Request) -> Response:
        """Recommend items again."""
        asked = await read(request, m.IdsIn, limits.body, limits.body_seconds)
        served = server.served(asked.bundle)
        return await changed(served, lambda: server.service.restore(asked.bundle, asked.ids))

    async def reload(request: Request) -> Response:
        """Read the folder of a bundle again; if it is broken, the one before goes on."""
        name = request.path_params["name"]
        before = server.named(name)
        try:
            served = await server.load(name)
        except (DataError, ValueError, TypeError, OSError) as error:
            raise Refused(422, f"{printable(str(error), 500)}; {before.hash} goes on") from error
        return answer({"bundle": _named(served), "before": _named(before)})

    async def feedback(request: Request) -> Response:
        """Write what people did to the log, each event once."""
        asked = await read(request, m.FeedbackIn, limits.body, limits.body_seconds)
        log = server.feedback
        if log is None:
            raise Refused(422, "this server keeps no log of events: start it with --feedback FILE.ndjson")
        now = int(1000 * time.time())
        events = [one.model_dump() | {"time": now if one.time is None else _milliseconds(one)} for one in asked.events]
        written = await run_in_threadpool(log.write, events)
        server.metrics.feedback(written, len(events) - written)
        return answer({"written": written, "repeated": len(events) - written})

    return [
        Operation("POST", "/feedback", feedback, m.FeedbackOut, m.FeedbackIn),
        Operation("POST", "/items", add_items, m.ChangedOut, m.ItemsIn),
        Operation("POST", "/items/withdraw", withdraw_items, m.ChangedOut, m.IdsIn),
        Operation("POST", "/items/restore", restore_items, m.ChangedOut, m.IdsIn),
        Operation("POST", "/bundles/{name}/reload", reload, m.ReloadOut),
    ]


def _about(server: Server) -> list[Operation]:
    async def bundles(request: Request) -> Response:
        """What is served."""
        return answer({"bundles": [_facts(server.served(name)) for name in server.service.folders]})

    async def health_live(request: Request) -> Response:
        """200 as long as the process answers and its ranking thread lives."""
        if server.batcher is None or not server.batcher.alive:
            raise busy("the ranking thread is not there", LOADING)
        return Response("alive\n", media_type=PLAIN)

    async def health_ready(request: Request) -> Response:
        """200 once all bundles are loaded."""
        if not server.service.ready:
            raise busy("bundles are being loaded", LOADING)
        return Response("ready\n", media_type=PLAIN)

    async def metrics(request: Request) -> Response:
        """Counters for Prometheus."""
        return Response(server.metrics.text(), media_type=EXPOSITION)

    return [
        Operation("GET", "/bundles", bundles, m.BundlesOut),
        Operation("GET", "/health/live", health_live, PLAIN),
        Operation("GET", "/health/ready", health_ready, PLAIN),
        Operation("GET", "/metrics", metrics, PLAIN),
    ]


def _page(name: str, kind: str) -> Callable[[Request], Any]:
    content = (files("recsys.serve.http") / "page" / (name or "index.html")).read_bytes()
    headers = {"Content-Security-Policy": POLICY, "X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer"}

    async def page(request: Request) -> Response:
        return Response(content, media_type=kind, headers={**headers, "Cache-Control": "no-cache"})

    return page


def _history(served: Served, given: Any) -> History:
    if isinstance(given, list):
        return History(served.ids(given))
    if given.times is not None and len(given.times) != len(given.items):
        raise Refused(422, f"a history has {len(given.items):,} items and {len(given.times):,} times: one per item")
    return History(served.ids(given.items), given.times, None, given.query_time, None, given.features)


def _items(ids: list[Any], scores: list[float], titles: list[str | None]) -> list[dict[str, Any]]:
    listed = zip(ids, scores, titles, strict=True)
    return [{"id": one, "score": score, "title": title} for one, score, title in listed]


def _named(served: Served) -> dict[str, str]:
    return {"name": served.name, "hash": served.hash}


def _facts(served: Served) -> dict[str, Any]:
    bundle = served.bundle
    return {
        **_named(served), "model": type(bundle.model).__name__, "items": len(served.vocabulary),
        "withdrawn": len(served.withdrawn), "index": bundle.manifest.get("index"), "columns": served.columns.names,
        "similar": bundle.index is not None or hasattr(bundle.model, "similar"),
        "fallbacks": list(served.fallbacks.chain), "created": bundle.manifest.get("created"),
        "reads": sorted(bundle.model.needs),
    }  # fmt: skip


def _searched(served: Served, text: str, count: int) -> np.ndarray:
    """Rows of an item by its id, and behind it those whose titles have the words; of nothing, the most popular."""
    if not text.strip():
        return served.popular(count)
    own = served.find([text.strip()])
    found = np.concatenate([own[own > 0], served.columns.search(text, count)])
    return np.array(list(dict.fromkeys(found.tolist())), np.int64)[:count]


def _milliseconds(event: m.Event) -> int:
    """The time of an event, so that all of a log have one unit."""
    try:
        return int(moments([[event.time]], [None])[0][0])
    except (ValueError, OverflowError) as error:
        raise Refused(422, f"the event {event.id[:60]}: {error}") from None


def _of_items(items: list[m.NewItem]) -> tuple[Any, Any, dict[str, list[Any]]]:
    """Vectors (n, D) or None, features by column or None, and text by column, of new items.

    Raises:
        Refused: some have a vector or features and others have not, or vectors differ in length.
    """
    lengths = {None if one.vector is None else len(one.vector) for one in items}
    if len(lengths) > 1:
        raise Refused(422, "all new items of a request have a vector of one length, or none of them has one")
    with np.errstate(over="ignore"):  # what is infinite then is refused where it is used
        vectors = None if None in lengths else np.array([one.vector for one in items], np.float32)
    names = {frozenset(one.features or ()) for one in items}
    if len(names) > 1:
        raise Refused(422, "all new items of a request have the same features, or none of them has any")
    features = {name: [(one.features or {})[name] for one in items] for name in next(iter(names))} or None
    columns = dict.fromkeys(name for one in items for name in one.text or ())
    return vectors, features, {name: [(one.text or {}).get(name) for one in items] for name in columns}
