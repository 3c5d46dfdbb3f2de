"""Errors as problem documents (RFC 9457), and bodies that are read within limits of size and time."""

from __future__ import annotations

import asyncio
import json
from http import HTTPStatus
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import to_json
from starlette.requests import Request
from starlette.responses import Response

Model = TypeVar("Model", bound=BaseModel)
SHOWN = 10  # errors of a body that are told
PROBLEM = "application/problem+json"


class Refused(Exception):
    """A request that is not answered, with the status and the words for its sender."""

    def __init__(self, status: int, detail: str, headers: dict[str, str] | None = None, errors: Any = None) -> None:
        super().__init__(detail)
        self.status, self.detail, self.headers, self.errors = status, detail, headers or {}, errors

    def response(self) -> Response:
        """The problem document."""
        found = {"type": "about:blank", "title": HTTPStatus(self.status).phrase, "status": self.status}
        found["detail"] = self.detail
        if self.errors is not None:
            found["errors"] = self.errors
        return Response(json.dumps(found).encode(), self.status, self.headers, PROBLEM)


def busy(detail: str, seconds: float) -> Refused:
    """503, to be asked again after some seconds."""
    return Refused(503, detail, {"Retry-After": str(max(1, round(seconds)))})


def answer(content: Any) -> Response:
    """200 with JSON; NaN is null."""
    return Response(to_json(content, inf_nan_mode="null"), media_type="application/json")


async def read(request: Request, model: type[Model], most: int, seconds: float) -> Model:
    """The body of a request as a message.

    Raises:
        Refused: it is no JSON (415 by its type, 422 by itself), has other fields or values (422), is larger than
            ``most`` bytes (413), or did not come within ``seconds`` (408).
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise Refused(415, "the body must be JSON, with Content-Type: application/json")
    told = request.headers.get("content-length", "0")
    too_large = Refused(413, f"the body may have {most:,} bytes: send fewer at a time", {"Connection": "close"})
    if not told.isdecimal() or int(told) > most:
        raise too_large
    try:
        async with asyncio.timeout(seconds):
            parts, size = [], 0
            async for part in request.stream():
                size += len(part)
                if size > most:
                    raise too_large
                parts.append(part)
    except TimeoutError:
        detail = f"the body did not come within {seconds:g} s"
        raise Refused(408, detail, {"Connection": "close"}) from None
    try:
        return model.model_validate_json(b"".join(parts))
    except ValidationError as error:
        raise _misfit(error, "the body") from None


def query(request: Request, model: type[Model]) -> Model:
    """The query of a request as a message.

    Raises:
        Refused: it has other names or values (422).
    """
    try:
        return model.model_validate(dict(request.query_params))
    except ValidationError as error:
        raise _misfit(error, "the query") from None


def _misfit(error: ValidationError, what: str) -> Refused:
    found = error.errors(include_url=False, include_input=False, include_context=False)
    told = [{"where": _place(one["loc"]), "what": one["msg"]} for one in found[:SHOWN]]
    more = f" (and {len(found) - 1:,} more)" if len(found) > 1 else ""
    return Refused(422, f"{told[0]['where'] or what}: {told[0]['what']}{more}", errors=told)


def _place(where: tuple[int | str, ...]) -> str:
    return ".".join(str(one)[:100] for one in where)
