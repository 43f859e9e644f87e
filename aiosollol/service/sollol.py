"""`SOLLOL`: a pool with its gateway, document queue and metrics, in a program's event loop."""

from __future__ import annotations

import asyncio
import logging
from contextlib import AsyncExitStack
from dataclasses import fields, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from aiosollol.errors import InvalidInput, PoolClosed
from aiosollol.service import security
from aiosollol.service.config import NOT_IN_USE, ConfigSource, SOLLOLConfig
from aiosollol.service.config_changes import ConfigUpdate, compare

if TYPE_CHECKING:
    from aiosollol.gateway.serving.supervisor import Siblings
    from aiosollol.pool.facade import OllamaPool
    from aiosollol.service.parts import Parts

log = logging.getLogger("aiosollol")

_STOPPED = {"error": "SOLLOL is not running"}


class SOLLOL:
    """A cluster behind one address. Use it with ``async with``, or `start` and `stop` it.

    ::

        async with SOLLOL(SOLLOLConfig(hosts=["10.0.0.2", "10.0.0.3"])) as sollol:
            print(sollol.url)

    It can be started again after it was stopped.

    source: where `reload` reads the settings.
    siblings, index: for one of several processes that share the port.

    Raises ConfigError for invalid settings.
    """

    def __init__(
        self,
        config: SOLLOLConfig | None = None,
        *,
        source: ConfigSource | None = None,
        siblings: Siblings | None = None,
        index: int = 0,
    ) -> None:
        self.config = config or SOLLOLConfig()
        self._source = source
        self._siblings = siblings
        self._index = index
        self._running: Parts | None = None
        self._stack = AsyncExitStack()
        self._changing = asyncio.Lock()
        self._was_warned = False

    def __repr__(self) -> str:
        where = f"at {self.url}" if self._running is not None else "stopped"
        return f"<SOLLOL {where}>"

    async def __aenter__(self) -> SOLLOL:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    @property
    def is_running(self) -> bool:
        return self._running is not None

    @property
    def url(self) -> str:
        """The URL of the gateway. Raises PoolClosed while it does not run."""
        return self._parts().listener.url

    @property
    def metrics_url(self) -> str | None:
        """The URL of the metrics on their own port; None if they have none."""
        listener = self._parts().metrics_listener
        return None if listener is None else f"{listener.url}/metrics"

    @property
    def pool(self) -> OllamaPool:
        """The pool behind the gateway, for direct use. Raises PoolClosed while it does not run."""
        return self._parts().pool

    def _parts(self) -> Parts:
        if self._running is None:
            raise PoolClosed(
                "the service is not running: use 'async with', or await sollol.start()"
            )
        return self._running

    # Life cycle.

    async def start(self) -> None:
        """Start listening and monitoring the nodes. Idempotent.

        Metrics, spans and Dask are turned off with a warning if their extra is not installed, and
        the port for metrics if it cannot be used. Raises ConfigError and InvalidInput for any other
        setting that cannot be used, and MissingExtra for Ray; everything is closed then.
        """
        from aiosollol.service.parts import open_parts  # loads aiohttp

        async with self._changing:
            if self._running is not None:
                return
            config = self.config
            if config.processes > 1 and self._siblings is None:
                raise InvalidInput(
                    "processes: an event loop runs in one process; for more, use "
                    "'aiosollol up --workers N' or aiosollol.service.run"
                )
            self._warn_of_unused()
            keys = await asyncio.to_thread(security.read_keys, config)
            security.check_bind(config, keys)
            self._running = await open_parts(self._stack, config, keys, self._siblings, self._index)

    async def stop(self, hurry: asyncio.Event | None = None) -> int:
        """Stop accepting connections, finish the requests in flight, and close. Idempotent.

        Requests have `stop_timeout` seconds, or until `hurry` is set. Returns the number of
        connections cut off.
        """
        async with self._changing:
            if self._running is None:
                return 0
            parts, self._running = self._running, None
            try:
                return await parts.listener.stop(self.config.stop_timeout, hurry)
            finally:
                stack, self._stack = self._stack, AsyncExitStack()
                await stack.aclose()

    def _warn_of_unused(self) -> None:
        default = {each.name: each.default for each in fields(SOLLOLConfig)}
        unused = [name for name in NOT_IN_USE if getattr(self.config, name) != default[name]]
        if unused and not self._was_warned:
            self._was_warned = True
            log.warning("settings that have no effect yet: %s", ", ".join(unused))

    # Changing settings.

    async def update_config(self, **changes: Any) -> ConfigUpdate:
        """Change settings while it runs; returns which apply now, and which after a restart.

        A file of keys is read again, even if its name has not changed. Requests continue. Raises
        ConfigError for invalid settings, without changing anything.
        """
        for name in changes:
            if name not in SOLLOLConfig.__dataclass_fields__:
                raise InvalidInput(f"unknown setting {name!r}")
        return await self._change_to(replace(self.config, **changes))

    async def reload(self) -> ConfigUpdate:
        """Read the settings again from their source, and apply them like `update_config`."""
        if self._source is None:
            return await self._change_to(self.config)
        return await self._change_to(await asyncio.to_thread(self._source.read))

    async def _change_to(self, config: SOLLOLConfig) -> ConfigUpdate:
        async with self._changing:
            update = compare(self.config, config)
            parts = self._running
            if parts is None:
                self.config = config
                return ConfigUpdate(update.applied + update.needs_restart, (), update.unused)
            keys = await asyncio.to_thread(security.read_keys, config)
            # With the current address: a new one applies after a restart.
            bound = replace(config, gateway_host=self.config.gateway_host)
            security.check_bind(bound, keys)
            parts.apply(bound, keys)
            if "hosts" in update.applied:
                old, new = security.nodes_of(self.config), security.nodes_of(config)
                await parts.nodes.change(old or (), new or ())
            self.config = config
            if update.needs_restart:
                log.warning("settings that apply after a restart: %s", ", ".join(update[1]))
            return update

    # Status.

    def get_status(self) -> dict[str, Any]:
        """Whether it runs, and at which address.

        As in the original: ``running``, ``port``, ``ray_workers``, ``dask_workers``,
        ``batch_processing_enabled``, ``ollama_nodes``, ``timestamp`` and ``endpoints``. Added:
        ``processes``, and ``not_in_use``, the settings without effect.
        """
        config, parts = self.config, self._running
        if parts is None:
            port = config.gateway_port
            nodes: int | str = "auto-discover" if config.hosts is None else len(list(config.hosts))
        else:
            port = parts.listener.address[1]
            nodes = parts.pool.get_stats()["nodes_configured"]
        return {
            "running": parts is not None,
            "port": port,
            "ray_workers": config.ray_workers,
            "dask_workers": config.dask_workers,
            "batch_processing_enabled": config.autobatch_enabled,
            "ollama_nodes": nodes,
            "not_in_use": list(NOT_IN_USE),
            "processes": config.processes,
            "timestamp": datetime.now(UTC).isoformat(),
            "endpoints": {} if parts is None else _endpoints(parts),
        }

    def get_health(self) -> dict[str, Any]:
        """The health of the nodes: "healthy", "degraded" or "unhealthy", as in the original.

        ``hosts``: each with its circuit breaker and its last error.
        """
        if self._running is None:
            return dict(_STOPPED)
        from aiosollol.gateway.endpoints.sollol import health_of  # loads aiohttp

        return health_of(self._running.pool)

    def get_stats(self) -> dict[str, Any]:
        """Statistics of each host, as in the original, and all of `OllamaPool.get_stats`."""
        if self._running is None:
            return dict(_STOPPED)
        from aiosollol.gateway.endpoints.sollol import stats_of

        return stats_of(self._running.pool)


def _endpoints(parts: Parts) -> dict[str, str]:
    url = parts.listener.url
    return {
        "gateway": url,
        "api_docs": f"{url}/docs",
        "health": f"{url}/api/health",
        "stats": f"{url}/api/stats",
        **({"metrics": f"{url}/metrics"} if parts.gather else {}),
    }
