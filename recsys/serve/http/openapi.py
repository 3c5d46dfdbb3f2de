"""Routes with what they take and give, and the OpenAPI document that says so."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

import recsys
from recsys.serve.http.messages import Problem
from recsys.serve.http.problems import PROBLEM

REFUSALS = {
    401: "a key is needed",
    403: "asked by a page of another website",
    404: "there is nothing of this name",
    421: "asked under a name that the server was not started with",
    422: "the request cannot be answered as it is",
    503: "busy or loading: ask again after Retry-After seconds",
}
OF_BODIES = {408: "the body came too slowly", 413: "the body is too large", 415: "the body is no JSON"}


@dataclass(frozen=True)
class Operation:
    """One thing that can be asked: the first line of the handler's docstring says what."""

    method: str
    path: str
    handler: Callable[[Request], Awaitable[Response]]
    gives: type[BaseModel] | str  # a message, or a media type
    takes: type[BaseModel] | None = None  # of the body
    query: type[BaseModel] | None = None

    def route(self) -> Route:
        """As the router has it."""
        return Route(self.path, self.handler, methods=[self.method])


def document(operations: Sequence[Operation]) -> dict[str, Any]:
    """The OpenAPI 3.1 document of some operations."""
    models: dict[Any, str] = {Problem: "serialization"}
    models |= {one.takes: "validation" for one in operations if one.takes}
    models |= {one.gives: "serialization" for one in operations if not isinstance(one.gives, str)}
    asked: Any = list(models.items())
    names, schemas = models_json_schema(asked, ref_template="#/components/schemas/{model}")
    paths: dict[str, Any] = {}
    for one in operations:
        paths.setdefault(one.path, {})[one.method.lower()] = _operation(one, names)
    return {
        "openapi": "3.1.0",
        "info": {"title": "recsys", "version": recsys.__version__, "description": "Recommendations from a bundle."},
        "paths": paths,
        "components": {
            "schemas": schemas["$defs"],
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer", "description": "where the server has one"}},
        },
        "security": [{}, {"key": []}],
    }


def _operation(one: Operation, names: dict[Any, Any]) -> dict[str, Any]:
    refusals = REFUSALS | (OF_BODIES if one.takes else {})
    if "{" not in one.path:
        refusals.pop(404, None)
    gives = {one.gives: {"schema": {"type": "string"}}} if isinstance(one.gives, str) else _json(names, one.gives)
    found: dict[str, Any] = {
        "operationId": one.handler.__name__,
        "summary": (inspect.getdoc(one.handler) or "").splitlines()[0],
        "responses": {"200": {"description": "the answer", "content": gives}},
    }
    problem = _json(names, Problem, "serialization", PROBLEM)
    for status, text in sorted(refusals.items()):
        found["responses"][str(status)] = {"description": text, "content": problem}
    found["responses"]["503"]["headers"] = {"Retry-After": {"schema": {"type": "integer"}, "description": "seconds"}}
    if one.takes:
        found["requestBody"] = {"required": True, "content": _json(names, one.takes, "validation")}
    parameters = [] if one.query is None else _parameters(one.query)
    parts = [part.strip("{}") for part in one.path.split("/") if part.startswith("{")]
    parameters += [{"name": name, "in": "path", "required": True, "schema": {"type": "string"}} for name in parts]
    return found | ({"parameters": parameters} if parameters else {})


def _json(names: dict[Any, Any], model: Any, mode: str = "serialization", kind: str = "application/json") -> Any:
    return {kind: {"schema": names[model, mode]}}


def _parameters(model: type[BaseModel]) -> list[dict[str, Any]]:
    schema = model.model_json_schema()
    required = schema.get("required", ())
    return [
        {"name": name, "in": "query", "required": name in required, "schema": told}
        for name, told in schema["properties"].items()
    ]
