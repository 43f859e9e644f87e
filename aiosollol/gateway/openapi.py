"""`/openapi.json`, made of the table of endpoints, and `/docs`, which shows it without internet."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import orjson
from aiohttp import web

from aiosollol import __version__
from aiosollol.gateway.endpoints import Endpoint
from aiosollol.gateway.schema import INTEGER, OBJECT, STRING, just, ref, struct, told
from aiosollol.gateway.schemas import COMPONENTS
from aiosollol.wire import anthropic, openai
from aiosollol.wire.answers import NDJSON
from aiosollol.wire.asked import Refusal
from aiosollol.wire.dialect import EVENT_STREAM

_ASSETS = {"swagger-ui-bundle.js": "text/javascript", "swagger-ui.css": "text/css"}
_PARAMETER = re.compile(r"\{(\w+)(?::[^}]*)?\}")
_ABOUT = "About this"
_TAGS = ("Ollama", "OpenAI and Anthropic", "SOLLOL", _ABOUT)
_DESCRIPTION = (
    "Several Ollama servers as one. Below `/api` it speaks as Ollama does, below `/v1` as OpenAI "
    "and Anthropic do."
)
_SAFE = "default-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:"

_JSON = "application/json"
_STATUSES = {
    400: "the request is at fault",
    401: "a key is needed, or this one is not known",
    403: "this key, host or origin may not",
    404: "no node has the model, or there is no such thing",
    408: "the body came too slowly",
    409: "the job is not done yet",
    413: "the request is too large",
    429: "too many requests, or too many documents are queued",
    500: "the node failed, or this gateway did",
    501: "the model, or this gateway, cannot do that",
    502: "the node broke off, or is no Ollama",
    503: "there is no place, or nobody answers",
    504: "the node took too long",
    507: "the disk of the queue is full",
}
# The guard and what is around the endpoints: any of them, those with a body, those asking nodes.
_ALWAYS = (401, 403, 429, 500)
_WITH_BODY = (400, 408, 413, 503)
_ASKING = (400, 404, 502, 503, 504)
_WITH_RETRY = (429, 503)
_DONE = (openai.CHAT_PATH, openai.COMPLETION_PATH)
"""Whose streams end with a word that is no JSON."""

_HEADERS = {
    "X-Request-ID": "the client's own, or a new one",
    "X-Sollol-Node": "who answered, by name; several with commas between",
    "X-Sollol-Reason": "why it was asked",
}
_RETRY = {"Retry-After": {"description": "seconds after which to come again", "schema": INTEGER}}

_INTERACTIVE = b"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>aiosollol</title><link rel="icon" href="data:,">
<link rel="stylesheet" href="docs/swagger-ui.css"></head>
<body><div id="ui"></div>
<script src="docs/swagger-ui-bundle.js"></script><script src="docs/start.js"></script>
</body></html>
"""
_START = b"""SwaggerUIBundle({url: "openapi.json", dom_id: "#ui", docExpansion: "list",
  tryItOutEnabled: true, deepLinking: true, validatorUrl: null});
"""


def document(endpoints: Sequence[Endpoint]) -> dict[str, Any]:
    """The OpenAPI 3.1 document of `endpoints`."""
    paths: dict[str, dict[str, Any]] = {}
    for endpoint in endpoints:
        paths.setdefault(_plain_path(endpoint), {})[endpoint.method.lower()] = _operation(endpoint)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "aiosollol",
            "version": __version__,
            "description": _DESCRIPTION,
        },
        "tags": [{"name": name} for name in _TAGS],
        "paths": paths,
        "components": {
            "schemas": COMPONENTS,
            "securitySchemes": {
                "key": {"type": "http", "scheme": "bearer"},
                "anthropic": {"type": "apiKey", "in": "header", "name": "x-api-key"},
            },
        },
        "security": [{}, {"key": []}, {"anthropic": []}],
    }


def _plain_path(endpoint: Endpoint) -> str:
    """Without the expressions that only the router understands."""
    return _PARAMETER.sub(r"{\1}", endpoint.path)


def _operation(endpoint: Endpoint) -> dict[str, Any]:
    named = _PARAMETER.findall(endpoint.path)
    slug = re.sub(r"\W+", "_", _PARAMETER.sub(r"\1", endpoint.path)).strip("_") or "root"
    parameters = [
        {"name": name, "in": "path", "required": True, "schema": endpoint.parameter}
        for name in named
    ]
    parameters += [
        {"name": name, "in": "query", "description": words, "schema": STRING}
        for name, words in endpoint.query.items()
    ]
    operation: dict[str, Any] = {
        "operationId": f"{endpoint.method.lower()}_{slug}",
        "summary": endpoint.summary,
        "tags": [endpoint.tag],
        "responses": {str(endpoint.status): _success(endpoint), **_failures(endpoint)},
    }
    if parameters:
        operation["parameters"] = parameters
    if endpoint.body is not None:
        content: dict[str, Any] = {"schema": _body(endpoint)}
        if endpoint.example is not None:
            content["example"] = endpoint.example
        operation["requestBody"] = {"required": True, "content": {_JSON: content}}
    return operation


def _body(endpoint: Endpoint) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "object", "properties": dict(endpoint.body or {})}
    return {**schema, "required": list(endpoint.required)} if endpoint.required else schema


# ---- answers


def _success(endpoint: Endpoint) -> dict[str, Any]:
    names = ["X-Request-ID"]
    if endpoint.is_asking:
        names += ["X-Sollol-Node", "X-Sollol-Reason"]
    answer: dict[str, Any] = {
        "description": "done",
        "headers": {name: {"description": _HEADERS[name], "schema": STRING} for name in names},
    }
    if endpoint.answers and endpoint.method != "HEAD":
        answer["content"] = {kind: _content(endpoint, kind) for kind in endpoint.answers}
    return answer


def _content(endpoint: Endpoint, kind: str) -> dict[str, Any]:
    """What is told of one form of the answer. OpenAPI 3.1 has no word for the parts of a stream;
    readers of it, and 3.2, take the schema for that of a part.
    """
    if kind == _JSON:
        return {"schema": endpoint.returns} if endpoint.returns else {}
    if kind in (NDJSON, EVENT_STREAM) and endpoint.parts:
        if kind == NDJSON:
            return {"schema": {"description": "each line", "allOf": [endpoint.parts]}}
        data = {**STRING, "contentMediaType": _JSON, "contentSchema": endpoint.parts}
        event = struct(["data"], event=STRING, data=data)
        last = struct(["data"], data=just("[DONE]"))
        schema = {"anyOf": [last, event]} if endpoint.path in _DONE else event
        return {"schema": told(schema, "each event")}
    return {"schema": STRING} if kind.startswith("text/") else {}


def _failures(endpoint: Endpoint) -> dict[str, Any]:
    """The errors of an endpoint by their statuses, in the form of its API."""
    statuses = {*_ALWAYS, *endpoint.fails}
    if endpoint.body is not None:
        statuses.update(_WITH_BODY)
    if endpoint.is_asking:
        statuses.update(_ASKING)
    error = _error(endpoint.path)
    statuses.update(endpoint.otherwise)
    told_of = {str(status): (status, _STATUSES[status]) for status in sorted(statuses)}
    if endpoint.is_asking:
        told_of |= {"4XX": (0, "what a node refuses"), "5XX": (0, "how a node failed")}
    return {
        key: {
            "description": words,
            "content": {_JSON: {"schema": endpoint.otherwise.get(status, error)}},
            **({"headers": _RETRY} if status in _WITH_RETRY else {}),
        }
        for key, (status, words) in told_of.items()
    }


def _error(path: str) -> Mapping[str, Any]:
    if path == anthropic.PATH:
        return ref("AnthropicError")
    return ref("OpenAIError" if path.startswith("/v1/") else "Error")


class Documents:
    """The endpoints that tell what endpoints there are."""

    def __init__(self, endpoints: Sequence[Endpoint]) -> None:
        self._endpoints = endpoints

    def endpoints(self) -> list[Endpoint]:
        tag = _ABOUT
        return [
            Endpoint(
                "GET", "/openapi.json", self.openapi, "This document", tag=tag, returns=OBJECT
            ),
            Endpoint("GET", "/docs", self.docs, "It, to try out", tag=tag, answers=("text/html",)),
            Endpoint(
                "GET",
                "/docs/{name}",
                self.asset,
                "Parts of that page",
                tag=tag,
                parameter=just("start.js", *_ASSETS),
                answers=("text/javascript", "text/css"),
                fails=(404,),
            ),
        ]

    @cached_property
    def _document(self) -> bytes:
        return orjson.dumps(document(self._endpoints))

    async def openapi(self, request: web.Request) -> web.StreamResponse:
        return _sent(self._document, "application/json")

    async def docs(self, request: web.Request) -> web.StreamResponse:
        folder = await asyncio.to_thread(_assets)
        page = _plain_page(self._endpoints) if folder is None else _INTERACTIVE
        return _sent(page, "text/html; charset=utf-8")

    async def asset(self, request: web.Request) -> web.StreamResponse:
        name = request.match_info["name"]
        if name == "start.js":
            return _sent(_START, "text/javascript")
        folder = await asyncio.to_thread(_assets)
        if folder is None or name not in _ASSETS:
            raise Refusal(404, "the page has no such part")
        content = await asyncio.to_thread((folder / name).read_bytes)
        return _sent(content, _ASSETS[name])


def _assets() -> Path | None:
    """Where Swagger UI is, from the package swagger-ui-py of the extra "gateway"."""
    try:
        found = find_spec("swagger_ui")
    except (ImportError, ValueError):
        return None
    for place in (found.submodule_search_locations or ()) if found else ():
        folder = Path(place) / "static"
        if (folder / "swagger-ui-bundle.js").is_file():
            return folder
    return None


def _plain_page(endpoints: Sequence[Endpoint]) -> bytes:
    """The endpoints in a table: what is shown where Swagger UI is not installed."""
    rows = "".join(
        f"<tr><td>{each.method}</td><td><code>{_plain_path(each)}</code></td>"
        f"<td>{each.summary}</td></tr>"
        for each in endpoints
    )
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8"><title>aiosollol</title>'
        '<h1>aiosollol</h1><p>The whole is in <a href="openapi.json">openapi.json</a>. To try it '
        "out here: <code>pip install 'aiosollol[gateway]'</code></p>"
        f"<table>{rows}</table></html>"
    ).encode()


def _sent(body: bytes, content_type: str) -> web.Response:
    headers = {"Content-Type": content_type, "Content-Security-Policy": _SAFE}
    return web.Response(body=body, headers=headers)
