"""`serve`: runs and announces the agent until cancelled. It answers only ``GET /agent``."""

from __future__ import annotations

import asyncio
import ipaddress
import json
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext
from typing import Protocol

from aiohttp import web
from aiohttp.typedefs import Handler

from aiosollol._version import __version__
from aiosollol.agent.sensors import Readings, Sensors
from aiosollol.core.address import AGENT_PORT, Address
from aiosollol.errors import InvalidInput, SollolError
from aiosollol.net.http_server import listening
from aiosollol.wire.agent import AGENT_PATH, AgentReport, dump_report

_log = logging.getLogger(__name__)

BEAT_SECONDS = 10.0
"""Seconds between two readings of its own. Changes are announced no more often than that."""

MATERIAL_SHARE = 0.05
START_SECONDS = 30.0  # for the first reading: without persistence mode NVML wakes each GPU

_HEADERS = {
    "Cache-Control": "no-store",
    "Server": f"aiosollol/{__version__}",  # the default shows the versions of Python and aiohttp
}

Pause = Callable[[float], Awaitable[None]]


class Announcer(Protocol):
    """Announces this machine on the network, for example by zeroconf."""

    async def update(self, report: AgentReport) -> None:
        """Announce a change."""
        ...


Advertise = Callable[[AgentReport, int | None], AbstractAsyncContextManager[Announcer]]
"""Starts to announce a machine; leaving the context sends a goodbye. The number is the port of the
agent, or None if it listens on loopback, where no other machine can reach it."""


async def serve(
    sensors: Sensors,
    host: str = "127.0.0.1",
    port: int = AGENT_PORT,
    *,
    advertise: Advertise | None = None,
    on_ready: Callable[[str, AgentReport], None] | None = None,
    pause: Pause = asyncio.sleep,
) -> None:
    """Serve ``GET /agent`` until cancelled.

    sensors: the source of reports, closed at the end.
    port: 0 picks a free one.
    advertise: announces the machine meanwhile.
    on_ready: called with the URL of the report and the first report, once the agent answers and the
    machine is announced.
    pause: for tests.

    Raises InvalidInput if it cannot listen, SollolError if the sensors do not answer within 30
    seconds, and what `advertise` raises on entering.
    """
    async with _running(sensors, host, port) as (readings, address):
        try:
            report = await readings.latest(START_SECONDS)
        except TimeoutError as error:
            raise SollolError(f"{error}; is a GPU stuck? `nvidia-smi` hangs then too") from error
        bound = address[1]
        visible = None if is_loopback(address[0]) else bound
        announced = nullcontext() if advertise is None else advertise(report, visible)
        async with announced as announcer:
            if on_ready is not None:
                on_ready(Address("http", host, bound, AGENT_PATH).url, report)
            await _beat(readings, announcer, report, pause)


@asynccontextmanager
async def _running(
    sensors: Sensors, host: str, port: int
) -> AsyncIterator[tuple[Readings, tuple[str, int]]]:
    """Run the agent; gives its readings, and the address and port it listens on."""
    if not 0 <= port <= 65535:
        raise InvalidInput(f"port must be between 0 and 65535, not {port!r}")
    readings = Readings(sensors)
    try:
        async with listening(make_app(readings), host, port, name="agent", grace=1.0) as bound:
            yield readings, bound
    finally:
        await readings.aclose()


async def _beat(
    readings: Readings, announcer: Announcer | None, announced: AgentReport, pause: Pause
) -> None:
    """Take readings at intervals: the CPU load is a difference, and changes are announced."""
    while True:
        await pause(BEAT_SECONDS)
        try:
            report = await readings.latest()
            if announcer is not None and is_material(announced, report):
                await announcer.update(report)
                announced = report
        except Exception as error:  # may be temporary: a network that is down, a busy GPU
            _log.warning("the agent could not report the state of this machine: %r", error)


def is_material(then: AgentReport, now: AgentReport) -> bool:
    """Whether a report has changed enough to be announced again.

    Free GPU memory counts if it differs by more than 5 % of the total, any other value if it
    differs.
    """
    if _lasting(then) != _lasting(now):
        return True
    before, after = then.gpu_memory_free, now.gpu_memory_free
    if before is None or after is None:
        return (before is None) != (after is None)
    return abs(before - after) > MATERIAL_SHARE * (now.gpu_memory_total or 0)


def _lasting(report: AgentReport) -> tuple[object, ...]:
    return (
        report.machine,
        report.ollama,
        report.version,
        report.gpu_name,
        report.gpu_memory_total,
    )


def is_loopback(host: str) -> bool:
    """Whether `host`, an address or a name, is reachable from this machine only."""
    try:
        return ipaddress.ip_address(host.partition("%")[0]).is_loopback
    except ValueError:
        return host == "localhost"


# ---- over HTTP


def make_app(readings: Readings) -> web.Application:
    """An application that answers GET and HEAD of ``/agent`` with the state of the machine.

    503 if the sensors do not answer in time, 404 for any other path. Bodies are JSON. There are no
    CORS headers, so pages in a browser cannot read it.
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
async def _as_json(request: web.Request, handler: Handler) -> web.StreamResponse:
    try:
        return await handler(request)
    except web.HTTPException as error:
        response = _refusal(error.status, error.reason)
        if "Allow" in error.headers:
            response.headers["Allow"] = error.headers["Allow"]
        return response
    except Exception:
        _log.exception("the agent could not report the state of this machine")
        return _refusal(500, "the agent failed; its log says why")


def _refusal(status: int, message: str) -> web.Response:
    return _response(status, json.dumps({"error": message}).encode())


def _response(status: int, body: bytes) -> web.Response:
    return web.Response(status=status, body=body, content_type="application/json", headers=_HEADERS)
