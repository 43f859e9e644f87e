"""``GET /agent`` over HTTP, as an aiohttp application. It serves nothing else."""

from __future__ import annotations

import json
import logging
from collections.abc import Awaitable, Callable

from aiohttp import web

from aiosollol import __version__
from aiosollol.agent.readings import Readings
from aiosollol.wire.agent import AGENT_PATH, dump_report

_log = logging.getLogger(__name__)
_Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

_HEADERS = {
    "Cache-Control": "no-store",
    "Server": f"aiosollol/{__version__}",  # the default names the versions of Python and aiohttp
}


def make_app(readings: Readings) -> web.Application:
    """An application that answers GET and HEAD of ``/agent`` with how the machine is.

    503 where the sensors do not answer in time, 404 for every other path. Bodies are JSON. It has
    no CORS headers, so pages in a browser cannot read it.
    """

    async def agent(request: web.Request) -> web.Response:
        try:
            report = await readings.latest()
        except TimeoutError as error:
            return _refusal(503, str(error))
        return _response(200, dump_report(report))

    app = web.Application(middlewares=[_as_json])
    app.router.add_get(AGENT_PATH, agent)  # and HEAD
    return app


@web.middleware
async def _as_json(request: web.Request, handler: _Handler) -> web.StreamResponse:
    try:
        return await handler(request)
    except web.HTTPException as error:
        response = _refusal(error.status, error.reason)
        if "Allow" in error.headers:
            response.headers["Allow"] = error.headers["Allow"]
        return response
    except Exception:
        _log.exception("the agent cannot tell how this machine is")
        return _refusal(500, "the agent failed; its log says why")


def _refusal(status: int, message: str) -> web.Response:
    return _response(status, json.dumps({"error": message}).encode())


def _response(status: int, body: bytes) -> web.Response:
    return web.Response(status=status, body=body, content_type="application/json", headers=_HEADERS)
