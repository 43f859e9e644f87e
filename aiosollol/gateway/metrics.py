"""`Metrics`: what Prometheus is told of the gateway and its pool.

Of hosts, endpoints and counts alone: no prompt, no key and no name of a model is ever in a label.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from typing import Any, Protocol

from aiohttp import web

from aiosollol.core.events import PoolEvent
from aiosollol.gateway.families import Family, counter, exposition, gauge
from aiosollol.gateway.options import Served
from aiosollol.gateway.tally import EventTally, RequestTally

Gather = Callable[[], Awaitable[Iterable[Family]]]
"""All families: those of this process, or those of all its siblings too."""

_GATHER_SECONDS, _COUNT_SECONDS = 0.25, 0.01
_BREAKER_STATES = ("closed", "open", "half_open")


class Watched(Protocol):
    """What metrics need of a pool."""

    def get_stats(self) -> dict[str, Any]: ...
    def events(self) -> AsyncIterator[PoolEvent]: ...


class Metrics:
    """Counts requests (`on_request`) and events (`watch`), and reads the pool when asked."""

    def __init__(self, pool: Watched) -> None:
        self._pool = pool
        self._others: list[Callable[[], Iterable[Family]]] = []
        self._requests = RequestTally()
        self._events = EventTally()
        self._names: dict[str, str] = {}

    async def watch(self) -> None:
        """Count what happens in the pool until that is closed.

        To be woken costs more than to count, so events are left to gather for a while.
        """
        time, last = asyncio.get_running_loop().time, -math.inf
        async for event in self._pool.events():
            self._events.count(event)
            if time() - last > _COUNT_SECONDS:
                await asyncio.sleep(_GATHER_SECONDS)
                last = time()

    def families(self) -> list[Family]:
        """Everything, as it is now."""
        stats = self._pool.get_stats()
        hosts = {node["name"]: key for key, node in stats["node_performance"].items()}
        return [
            *self._requests.families(),
            *self._events.families(hosts),
            *pool_families(stats),
            *(family for families in self._others for family in families()),
        ]

    def add(self, families: Callable[[], Iterable[Family]]) -> None:
        """Let `families` be asked too."""
        self._others.append(families)

    def on_request(self, served: Served) -> None:
        """A request is over: for `make_app`.

        Its endpoint is the path as it is registered, so that clients cannot make up any number.
        """
        path = served.endpoint
        name = self._names.get(path)
        if name is None:
            name = self._names[path] = endpoint_name(path)
        self._requests.served(name, served.status, served.seconds)


def endpoint_name(path: str) -> str:
    """The label of an endpoint: ``chat`` for ``/api/chat``, as the original has it."""
    return path.removeprefix("/api/").strip("/") or ("root" if path else "other")


def handler_of(gather: Gather) -> Callable[[web.Request], Awaitable[web.Response]]:
    """A handler for ``GET /metrics``."""

    async def send(request: web.Request) -> web.Response:
        body, kind = exposition(await gather(), request.headers.get("Accept", ""))
        return web.Response(body=body, headers={"Content-Type": kind, "Cache-Control": "no-store"})

    return send


def metrics_app(gather: Gather) -> web.Application:
    """An application with ``/metrics`` and nothing else, for a port of its own."""
    app = web.Application()
    app.router.add_get("/metrics", handler_of(gather))
    return app


def pool_families(stats: Mapping[str, Any]) -> list[Family]:
    """What `OllamaPool.get_stats` tells, as metrics. Counts that it does not have are left out."""
    hosts: Mapping[str, Mapping[str, Any]] = stats["node_performance"]

    def each(key: str, factor: float = 1.0) -> dict[tuple[str, ...], float]:
        return {
            (host,): host_stats[key] * factor
            for host, host_stats in hosts.items()
            if host_stats.get(key) is not None
        }

    breakers = {
        (host, state): float(host_stats["circuit_breaker"] == state)
        for host, host_stats in hosts.items()
        for state in _BREAKER_STATES
    }
    families = [
        gauge("sollol_host_latency_ms", "Moving average of answers.", each("latency_ms"), "host"),
        gauge("sollol_host_success_rate", "From 0 to 1.", each("success_rate"), "host"),
        counter("sollol_worker_failures", "Failed requests.", each("failed_requests"), "host"),
        counter("sollol_host_requests", "Requests to a node.", each("total_requests"), "host"),
        gauge("sollol_host_available", "1 if it can be used.", each("available"), "host"),
        gauge("sollol_host_active_requests", "Under way.", each("active_requests"), "host"),
        gauge("sollol_queue_depth", "Requests that wait.", each("queued_requests"), "host"),
        gauge("sollol_host_limit", "Most at once.", each("concurrency_limit"), "host"),
        gauge("sollol_host_breaker", "1 for its state.", breakers, "host", "state"),
        gauge("sollol_host_cpu_load", "From 0 to 1.", each("cpu_load"), "host"),
        gauge("sollol_host_gpu_free_bytes", "GPU memory.", each("gpu_free_mem", 2.0**20), "host"),
        counter("sollol_vectors", "Texts embedded.", {(): stats["vectors"]}),
        counter("sollol_cancelled", "Given up by us.", {(): stats["cancelled_requests"]}),
    ]
    if (tokens := stats.get("tokens")) is not None:
        families.append(counter("sollol_tokens", "Tokens, as nodes counted.", {(): tokens}))
    if (plans := stats.get("plans")) is not None:
        modes = {(str(mode),): count for mode, count in plans.items()}
        families.append(counter("sollol_plans", "Batches, by their plan.", modes, "mode"))
    return families
