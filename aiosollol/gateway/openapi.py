"""`/openapi.json`, made of the table of endpoints, and `/docs`, which shows it without internet."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import orjson
from aiohttp import web

from aiosollol import __version__
from aiosollol.gateway.endpoints import Endpoint

_ERROR = {"type": "object", "properties": {"error": {}}, "required": ["error"]}
_ASSETS = {"swagger-ui-bundle.js": "text/javascript", "swagger-ui.css": "text/css"}
_PARAMETER = re.compile(r"\{(\w+)(?::[^}]*)?\}")
_TAGS = ("SOLLOL", "Ollama", "OpenAI and Anthropic")
_SAFE = "default-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:"

_INTERACTIVE = b"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>aiosollol</title>
<link rel="stylesheet" href="docs/swagger-ui.css"></head>
<body><div id="ui"></div>
<script src="docs/swagger-ui-bundle.js"></script><script src="docs/start.js"></script>
</body></html>
"""
_START = b"""SwaggerUIBundle({url: "openapi.json", dom_id: "#ui", docExpansion: "list",
  tryItOutEnabled: true, validatorUrl: null});
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
            "description": "Several Ollama servers as one.",
        },
        "servers": [{"url": "/"}],
        "tags": [{"name": name} for name in _TAGS],
        "paths": paths,
        "components": {
            "schemas": {"Error": _ERROR},
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{}, {"key": []}],
    }


def _plain_path(endpoint: Endpoint) -> str:
    """Without the expressions that only the router understands."""
    return _PARAMETER.sub(r"{\1}", endpoint.path)


def _operation(endpoint: Endpoint) -> dict[str, Any]:
    named = _PARAMETER.findall(endpoint.path)
    slug = re.sub(r"\W+", "_", _PARAMETER.sub(r"\1", endpoint.path)).strip("_") or "root"
    parameters = [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
        for name in named
    ]
    parameters += [
        {"name": name, "in": "query", "description": words, "schema": {"type": "string"}}
        for name, words in endpoint.query.items()
    ]
    operation: dict[str, Any] = {
        "operationId": f"{endpoint.method.lower()}_{slug}",
        "summary": endpoint.summary,
        "tags": [endpoint.tag],
        "responses": {
            str(endpoint.status): {
                "description": "done",
                "content": {kind: {} for kind in endpoint.answers},
            },
            "default": {
                "description": "an error",
                "content": {
                    "application/json": {"schema": {"$ref": "#/components/schemas/Error"}},
                    "text/plain": {},
                },
            },
        },
    }
    if parameters:
        operation["parameters"] = parameters
    if endpoint.body is not None:
        schema = {
            "type": "object",
            "properties": dict(endpoint.body),
            "required": list(endpoint.required),
        }
        operation["requestBody"] = {
            "required": True,
            "content": {"application/json": {"schema": schema}},
        }
    return operation


class Documents:
    """The endpoints that tell what endpoints there are."""

    def __init__(self, endpoints: Sequence[Endpoint]) -> None:
        self._endpoints = endpoints

    def endpoints(self) -> list[Endpoint]:
        html, asset = ("text/html",), "/docs/{name}"
        return [
            Endpoint("GET", "/openapi.json", self.openapi, "This document", tag=_TAGS[0]),
            Endpoint("GET", "/docs", self.docs, "It, to try out", tag=_TAGS[0], answers=html),
            Endpoint("GET", asset, self.asset, "Parts of that page", tag=_TAGS[0], answers=html),
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
            raise web.HTTPNotFound
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
