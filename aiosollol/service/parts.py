"""The parts of a running service: how they are opened, in which order, and what changes in them."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Iterable, Mapping
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, replace
from pathlib import Path

from aiosollol.autobatch import AutoBatch
from aiosollol.errors import ConfigError, SollolError
from aiosollol.gateway.app import make_app
from aiosollol.gateway.connections import ConnectionLimits
from aiosollol.gateway.families import Family, check_extra, counter, gauge
from aiosollol.gateway.guard import Guard
from aiosollol.gateway.keys import KeyRing
from aiosollol.gateway.limits import Limits
from aiosollol.gateway.metrics import Metrics, handler_of, metrics_app
from aiosollol.gateway.options import GatewayOptions
from aiosollol.gateway.origins import Origins
from aiosollol.gateway.serving import Listener
from aiosollol.gateway.siblings import Siblings
from aiosollol.otel import OpenTelemetry
from aiosollol.pool import OllamaPool
from aiosollol.service.config import MAX_IN_FLIGHT, SOLLOLConfig
from aiosollol.service.nodes import NodeChanges
from aiosollol.service.security import is_loopback, nodes_of

log = logging.getLogger("aiosollol")

_METRICS_STOP_SECONDS = 1.0


@dataclass
class Parts:
    """What runs. They are closed by the stack that they were opened on, all but `listener`."""

    pool: OllamaPool
    autobatch: AutoBatch | None
    guard: Guard
    nodes: NodeChanges
    listener: Listener
    metrics_listener: Listener | None = None

    def apply(self, config: SOLLOLConfig, keys: KeyRing) -> None:
        """Let what can be changed at once be changed. Nothing here waits, or fails half-way."""
        if self.autobatch is not None:
            self.autobatch.update(
                interval=config.autobatch_interval,
                min_batch_size=config.autobatch_min_batch_size,
                max_batch_size=config.autobatch_max_batch_size,
            )
        self.nodes.patience = config.chat_timeout
        self.guard.keys = keys
        self.guard.allow_admin = config.allow_admin
        before = self.guard.limiter.limits
        self.guard.limiter.limits = replace(
            limits_of(config, keys), max_body=before.max_body, wait_timeout=before.wait_timeout
        )


def check_extras(config: SOLLOLConfig) -> None:
    """Raises MissingExtra for what is turned on and not installed."""
    if config.metrics_enabled:
        check_extra()
    if config.otel:
        OpenTelemetry()


def limits_of(config: SOLLOLConfig, keys: KeyRing) -> Limits:
    """What holds for each client. On loopback without keys all are this machine's own programs, and
    a request more only waits longer."""
    max_in_flight = config.max_in_flight
    if max_in_flight is None and (len(keys) or not is_loopback(config.gateway_host)):
        max_in_flight = MAX_IN_FLIGHT
    return Limits(
        max_in_flight=max_in_flight,
        rate=config.rate_limit,
        burst=config.rate_burst,
        max_body=config.max_body,
        max_bodies=config.max_bodies,
        body_timeout=config.body_timeout,
        wait_timeout=config.wait_timeout,
    )


def queue_path(config: SOLLOLConfig, environ: Mapping[str, str] = os.environ) -> str:
    """Where the queue is. Makes the folder of the default one. Blocks for that."""
    if config.autobatch_path is not None:
        return os.path.expanduser(config.autobatch_path)
    state = environ.get("XDG_STATE_HOME", "")
    base = Path(state) if os.path.isabs(state) else Path.home() / ".local" / "state"
    folder = base / "aiosollol"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except (OSError, RuntimeError) as error:
        message = f"{folder} cannot be made: {error}; name a file for the queue in autobatch_path"
        raise ConfigError(message, source="autobatch_path") from error
    return str(folder / "autobatch.db")


async def open_parts(
    stack: AsyncExitStack,
    config: SOLLOLConfig,
    keys: KeyRing,
    siblings: Siblings | None,
    index: int,
) -> Parts:
    """Open everything, each on `stack`; the listener last. If anything fails, all is closed."""
    check_extras(config)
    try:
        return await _open(stack, config, keys, siblings, index)
    except BaseException:
        await stack.aclose()
        raise


async def _open(
    stack: AsyncExitStack,
    config: SOLLOLConfig,
    keys: KeyRing,
    siblings: Siblings | None,
    index: int,
) -> Parts:
    # In a thread, because it reads files. Nothing in it belongs to a loop yet.
    pool = await asyncio.to_thread(_make_pool, config)
    await stack.enter_async_context(pool)
    autobatch = None
    if config.autobatch_enabled:
        path = await asyncio.to_thread(queue_path, config)
        autobatch = await stack.enter_async_context(
            AutoBatch(
                pool,
                path,
                interval=config.autobatch_interval,
                min_batch_size=config.autobatch_min_batch_size,
                max_batch_size=config.autobatch_max_batch_size,
                engine="dask" if config.uses_dask else "auto",
            )
        )
    guard = Guard(
        keys,
        limits_of(config, keys),
        origins=Origins(
            config.cors_origins, only_local=not len(keys) and is_loopback(config.gateway_host)
        ),
        allow_admin=config.allow_admin,
    )
    metrics = Metrics(pool) if config.metrics_enabled else None
    app = make_app(
        pool,
        options=GatewayOptions(allow_admin=config.allow_admin, max_body_bytes=config.max_body),
        autobatch=autobatch,
        middlewares=[guard.middleware()],
        on_request=None if metrics is None else metrics.on_request,
    )
    if config.cors_origins:
        app.on_response_prepare.append(guard.origins.tell)
    limits = ConnectionLimits(
        max_connections=config.max_connections,
        header_timeout=config.header_timeout,
        idle_timeout=config.idle_timeout,
        write_timeout=config.write_timeout,
        full_timeout=config.full_timeout,
    )
    nodes = NodeChanges(pool, config.chat_timeout)
    stack.push_async_callback(nodes.aclose)
    parts = Parts(pool, autobatch, guard, nodes, Listener(app, limits))
    if metrics is not None:
        metrics.add(lambda: _own_families(parts))
        watching = asyncio.create_task(metrics.watch(), name="count the pool's events")
        stack.push_async_callback(_end, watching)
        if siblings is not None:
            await siblings.tell(index, metrics.families)
            stack.push_async_callback(siblings.aclose)

        async def gather() -> Iterable[Family]:
            own = metrics.families() if siblings is None else await siblings.gather()
            return [*own, *await _queue_families(autobatch)]

        app.router.add_get("/metrics", handler_of(gather))
        if siblings is None:  # else the process that started them serves it
            parts.metrics_listener = Listener(metrics_app(gather), name="metrics (metrics_port)")
            await parts.metrics_listener.start(config.metrics_host, config.metrics_port)
            stack.push_async_callback(parts.metrics_listener.stop, _METRICS_STOP_SECONDS)
    shared = siblings is not None
    await parts.listener.start(config.gateway_host, config.gateway_port, reuse_port=shared)
    return parts


def _make_pool(config: SOLLOLConfig) -> OllamaPool:
    tracing = OpenTelemetry() if config.otel else None
    return OllamaPool(nodes_of(config), tracing=tracing, **config.pool_settings())


def _own_families(parts: Parts) -> list[Family]:
    gate, guard = parts.listener.gate, parts.guard
    cut = {("header",): gate.late, ("reader",): gate.stalled, ("too_many",): gate.refused}
    denied = {(str(status),): count for status, count in guard.denied.items()}
    return [
        gauge("sollol_active_requests", "Requests under way.", {(): guard.active}),
        gauge("sollol_connections", "Connections of clients.", {(): gate.open}),
        counter("sollol_connections_cut", "Cut off, by why.", cut, "why"),
        counter("sollol_denied", "Refused by keys and limits.", denied, "status"),
    ]


async def _queue_families(autobatch: AutoBatch | None) -> list[Family]:
    if autobatch is None:
        return []
    with suppress(SollolError):  # a locked database is told elsewhere
        status = await autobatch.status(latest=1)
        return [
            gauge("sollol_autobatch_queued", "Documents that wait.", {(): status.queued}),
            gauge("sollol_autobatch_queued_bytes", "Their size.", {(): status.queued_bytes}),
            gauge("sollol_autobatch_jobs", "Jobs that are kept.", {(): status.job_count}),
            gauge("sollol_autobatch_rate", "Documents a second, lately.", {(): status.rate}),
        ]
    return []


async def _end(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.wait([task])
