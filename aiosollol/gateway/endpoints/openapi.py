"""`/openapi.json`, and `/docs`: a page to try the endpoints, without internet access.

The document is the file openapi.json, which the tests compare with the router.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import orjson
from aiohttp import web

from aiosollol._version import __version__
from aiosollol.wire.ollama.server_requests import Refusal

_ASSETS = {"swagger-ui-bundle.js": "text/javascript", "swagger-ui.css": "text/css"}
_EXPRESSION = re.compile(r"\{(\w+):[^}]*\}")
_SAFE = "default-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:"

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


def document(routes: Sequence[web.RouteDef]) -> dict[str, Any]:
    """The OpenAPI 3.1 document of `routes`. Reads a file, so it blocks."""
    found: dict[str, Any] = orjson.loads(files(__package__).joinpath("openapi.json").read_bytes())
    found["info"]["version"] = __version__
    served = {(_plain_path(route), route.method.lower()) for route in routes}
    paths = {
        path: {method: entry for method, entry in operations.items() if (path, method) in served}
        for path, operations in found["paths"].items()
    }
    found["paths"] = {path: operations for path, operations in paths.items() if operations}
    return found


def _plain_path(route: web.RouteDef) -> str:
    """A route's path without the router's regular expressions."""
    return _EXPRESSION.sub(r"{\1}", route.path)


class DocumentationEndpoints:
    """The endpoints that describe `routes` and themselves."""

    def __init__(self, routes: Sequence[web.RouteDef]) -> None:
        self._routes = [*routes, *self.routes()]
        self._json = b""

    def routes(self) -> list[web.RouteDef]:
        return [
            web.get("/openapi.json", self.openapi),
            web.get("/docs", self.docs),
            web.get("/docs/{name}", self.asset),
        ]

    async def openapi(self, request: web.Request) -> web.StreamResponse:
        if not self._json:
            self._json = orjson.dumps(await asyncio.to_thread(document, self._routes))
        return _sent(self._json, "application/json")

    async def docs(self, request: web.Request) -> web.StreamResponse:
        if await asyncio.to_thread(_assets) is None:
            page = await asyncio.to_thread(_plain_page, self._routes)
        else:
            page = _INTERACTIVE
        return _sent(page, "text/html; charset=utf-8")

    async def asset(self, request: web.Request) -> web.StreamResponse:
        name = request.match_info["name"]
        if name == "start.js":
            return _sent(_START, "text/javascript")
        folder = await asyncio.to_thread(_assets)
        if folder is None or name not in _ASSETS:
            raise Refusal(404, "this page has no such file")
        content = await asyncio.to_thread((folder / name).read_bytes)
        return _sent(content, _ASSETS[name])


def _assets() -> Path | None:
    """The folder of Swagger UI, from the package swagger-ui-py of the extra "gateway"."""
    try:
        found = find_spec("swagger_ui")
    except (ImportError, ValueError):
        return None
    for place in (found.submodule_search_locations or ()) if found else ():
        folder = Path(place) / "static"
        if (folder / "swagger-ui-bundle.js").is_file():
            return folder
    return None


def _plain_page(routes: Sequence[web.RouteDef]) -> bytes:
    """The endpoints in a table, shown if Swagger UI is not installed."""
    paths = document(routes)["paths"]
    rows = "".join(
        f"<tr><td>{route.method}</td><td><code>{path}</code></td>"
        f"<td>{paths[path][route.method.lower()]['summary']}</td></tr>"
        for route in routes
        for path in [_plain_path(route)]
    )
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8"><title>aiosollol</title>'
        '<h1>aiosollol</h1><p>See also <a href="openapi.json">openapi.json</a>. To try it '
        "out here, install the extra <code>gateway</code>.</p>"
        f"<table>{rows}</table></html>"
    ).encode()


def _sent(body: bytes, content_type: str) -> web.Response:
    headers = {"Content-Type": content_type, "Content-Security-Policy": _SAFE}
    return web.Response(body=body, headers=headers)
