"""The parts of a running service: opening them in order, and changing their settings."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Iterable, Mapping
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from aiohttp import web

from aiosollol.autobatch import AutoBatch
from aiosollol.errors import ConfigError, SollolError
from aiosollol.gateway.app import make_app
from aiosollol.gateway.metrics import (
    GatewayMetrics,
    Gather,
    counter,
    gauge,
    handler_of,
)
from aiosollol.gateway.middleware.guard import LOCAL_ORIGINS, Guard, Origins, sees_only
from aiosollol.gateway.middleware.keys import KeyRing
from aiosollol.gateway.middleware.limits import Limits
from aiosollol.gateway.middleware.shared_counts import SharedCounts
from aiosollol.gateway.options import GatewayOptions
from aiosollol.gateway.serving.connections import ConnectionLimits
from aiosollol.gateway.serving.listener import Listener
from aiosollol.gateway.serving.supervisor import Siblings
from aiosollol.pool.facade import OllamaPool
from aiosollol.service.config import MAX_IN_FLIGHT, SOLLOLConfig
from aiosollol.service.optional import listen_for_metrics, without_missing
from aiosollol.service.reload import NodeChanges
from aiosollol.service.security import is_loopback, nodes_of
from aiosollol.telemetry.opentelemetry import OpenTelemetry

if TYPE_CHECKING:
    from prometheus_client import Metric

log = logging.getLogger("aiosollol")

_METRICS_STOP_SECONDS = 1.0


@dataclass
class Parts:
    """The parts of a running service. The stack that they were opened on closes all but `listener`.

    gather: collects the metrics for /metrics; None without metrics.
    metrics_listener: serves metrics on their own port, if there is one.
    """

    pool: OllamaPool
    autobatch: AutoBatch | None
    guard: Guard
    nodes: NodeChanges
    listener: Listener
    gather: Gather | None = None
    metrics_listener: Listener | None = None

    def apply(self, config: SOLLOLConfig, keys: KeyRing) -> None:
        """Apply the settings that can change at once. Does not wait, and does not fail half-way."""
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


def limits_of(config: SOLLOLConfig, keys: KeyRing) -> Limits:
    """The limits of each client. On loopback without keys, requests in flight are unlimited: all
    clients are programs of this machine, and another request only waits longer.

    Each of several processes has its part of the memory for bodies.
    """
    max_in_flight = config.max_in_flight
    if max_in_flight is None and (len(keys) or not is_loopback(config.gateway_host)):
        max_in_flight = MAX_IN_FLIGHT
    return Limits(
        max_in_flight=max_in_flight,
        rate=config.rate_limit,
        burst=config.rate_burst,
        max_body=config.max_body,
        max_bodies=_part(config.max_bodies, config),
        body_timeout=config.body_timeout,
        wait_timeout=config.wait_timeout,
    )


def _part(most: int, config: SOLLOLConfig) -> int:
    """The part of a limit that each process has."""
    return -(-most // config.processes)


async def _shared_counts(siblings: Siblings | None, index: int) -> SharedCounts | None:
    """The counts of all processes; None for a single one."""
    if siblings is None:
        return None
    path = os.path.join(siblings.folder, "clients")
    return await asyncio.to_thread(SharedCounts, path, index, siblings.count)


def queue_path(config: SOLLOLConfig, environ: Mapping[str, str] = os.environ) -> str:
    """The path of the queue's file. Creates the default folder, so it blocks."""
    if config.autobatch_path is not None:
        return os.path.expanduser(config.autobatch_path)
    state = environ.get("XDG_STATE_HOME", "")
    base = Path(state) if os.path.isabs(state) else Path.home() / ".local" / "state"
    folder = base / "aiosollol"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except (OSError, RuntimeError) as error:
        message = f"cannot create {folder}: {error}; name a file for the queue in autobatch_path"
        raise ConfigError(message, source="autobatch_path") from error
    return str(folder / "autobatch.db")


async def open_parts(
    stack: AsyncExitStack,
    config: SOLLOLConfig,
    keys: KeyRing,
    siblings: Siblings | None,
    index: int,
) -> Parts:
    """Open all parts, all but the listener on `stack`. If one fails, all are closed.

    Logs a warning for missing extras, and for a port for metrics that cannot be used.
    """
    config, warnings = await asyncio.to_thread(without_missing, config)  # imports modules
    try:
        parts = await _open(stack, config, keys, siblings, index)
        if siblings is not None:  # the parent process serves metrics, and warns once
            return parts
        try:
            # After the gateway, which takes precedence if both have the same port.
            warnings += await _open_metrics(stack, parts, config)
        except BaseException:
            await parts.listener.stop(0.0)
            raise
    except BaseException:
        await stack.aclose()
        raise
    for warning in warnings:
        log.warning("%s", warning)
    return parts


async def _open(
    stack: AsyncExitStack,
    config: SOLLOLConfig,
    keys: KeyRing,
    siblings: Siblings | None,
    index: int,
) -> Parts:
    # In a thread, because it reads files. It is not bound to an event loop yet.
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
                max_documents=config.autobatch_max_documents,
                max_bytes=config.autobatch_max_bytes,
                owner_documents=config.autobatch_owner_documents,
                owner_bytes=config.autobatch_owner_bytes,
                owner_jobs=config.autobatch_owner_jobs,
                engine="dask" if config.uses_dask else "auto",
            )
        )
    only_local = not len(keys) and is_loopback(config.gateway_host)
    guard = Guard(
        keys,
        limits_of(config, keys),
        origins=Origins(
            (*config.cors_origins, *LOCAL_ORIGINS) if only_local else config.cors_origins,
            only_local=only_local,
            hosts=config.allowed_hosts,
        ),
        allow_admin=config.allow_admin,
        shared=await _shared_counts(siblings, index),
    )
    metrics = GatewayMetrics(pool) if config.metrics_enabled else None
    app = make_app(
        pool,
        options=GatewayOptions(
            allow_admin=config.allow_admin,
            max_body_bytes=config.max_body,
            max_texts=config.max_texts,
            max_answer_bytes=config.max_answer_bytes,
            processes=config.processes,
        ),
        autobatch=autobatch,
        middlewares=[guard.middleware()],
        on_request=None if metrics is None else metrics.on_request,
    )
    if guard.origins.allowed:
        app.on_response_prepare.append(guard.origins.tell)
    limits = ConnectionLimits(
        max_connections=_part(config.max_connections, config),
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

        async def gather_without_queue() -> Iterable[Metric]:
            return metrics.families() if siblings is None else await siblings.gather()

        async def gather() -> Iterable[Metric]:
            return [*await gather_without_queue(), *await _queue_families(autobatch)]

        async def send(request: web.Request) -> web.Response:
            # A key that sees only its own jobs must not see the number of others.
            sees_all = sees_only(request) is None
            return await handler_of(gather if sees_all else gather_without_queue)(request)

        app.router.add_get("/metrics", send)
        parts.gather = gather
    shared = siblings is not None
    await parts.listener.start(config.gateway_host, config.gateway_port, reuse_port=shared)
    return parts


async def _open_metrics(stack: AsyncExitStack, parts: Parts, config: SOLLOLConfig) -> list[str]:
    """Serve metrics on their own port. Returns warnings."""
    if parts.gather is None:
        return []
    listener, warnings = await listen_for_metrics(parts.gather, config)
    if listener is not None:
        parts.metrics_listener = listener
        stack.push_async_callback(listener.stop, _METRICS_STOP_SECONDS)
    return warnings


def _make_pool(config: SOLLOLConfig) -> OllamaPool:
    tracing = OpenTelemetry() if config.otel else None
    return OllamaPool(nodes_of(config), tracing=tracing, **config.pool_settings())


def _own_families(parts: Parts) -> list[Metric]:
    gate, guard = parts.listener.gate, parts.guard
    cut = {("header",): gate.late, ("reader",): gate.stalled, ("too_many",): gate.refused}
    denied = {(str(status),): count for status, count in guard.denied.items()}
    return [
        gauge("sollol_active_requests", "Requests in flight.", {(): guard.active}),
        gauge("sollol_connections", "Client connections.", {(): gate.open}),
        counter("sollol_connections_cut", "Connections cut off, by reason.", cut, "why"),
        counter("sollol_denied", "Requests refused by keys and limits.", denied, "status"),
    ]


async def _queue_families(autobatch: AutoBatch | None) -> list[Metric]:
    if autobatch is None:
        return []
    with suppress(SollolError):  # a locked database is reported elsewhere
        status = await autobatch.status(latest=1)
        return [
            gauge("sollol_autobatch_queued", "Queued documents.", {(): status.queued}),
            gauge("sollol_autobatch_queued_bytes", "Their bytes.", {(): status.queued_bytes}),
            gauge("sollol_autobatch_jobs", "Jobs kept.", {(): status.job_count}),
            gauge("sollol_autobatch_rate", "Recent documents a second.", {(): status.rate}),
        ]
    return []


async def _end(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.wait([task])
