"""`SOLLOL`: a pool with its gateway, its queue and its metrics, in the event loop of a program."""

from __future__ import annotations

import asyncio
import logging
from contextlib import AsyncExitStack
from dataclasses import fields, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from aiosollol.errors import InvalidInput, PoolClosed
from aiosollol.service import security
from aiosollol.service.config import NOT_IN_USE, ConfigSource, ConfigUpdate, SOLLOLConfig, compare

if TYPE_CHECKING:
    from aiosollol.gateway.serving.supervisor import Siblings
    from aiosollol.pool.facade import OllamaPool
    from aiosollol.service.parts import Parts

log = logging.getLogger("aiosollol")

_STOPPED = {"error": "SOLLOL is not running"}


class SOLLOL:
    """A cluster behind one address. Use it with ``async with``, or `start` it and `stop` it.

    ::

        async with SOLLOL(SOLLOLConfig(hosts=["10.0.0.2", "10.0.0.3"])) as sollol:
            print(sollol.url)

    It may be started again after it was stopped. source: where `reload` reads settings; siblings
    and index: for one of several processes that share the port.

    Raises ConfigError for settings that cannot be.
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
        """Where the gateway answers. Raises PoolClosed while it does not run."""
        return self._parts().listener.url

    @property
    def metrics_url(self) -> str | None:
        """Where metrics are, on a port of their own; None if they have none."""
        listener = self._parts().metrics_listener
        return None if listener is None else f"{listener.url}/metrics"

    @property
    def pool(self) -> OllamaPool:
        """The pool behind the gateway, for the program itself. Raises PoolClosed."""
        return self._parts().pool

    def _parts(self) -> Parts:
        if self._running is None:
            raise PoolClosed("the service does not run: use 'async with', or await sollol.start()")
        return self._running

    # Its life.

    async def start(self) -> None:
        """Listen, and begin to watch the nodes. Idempotent.

        Metrics, spans and Dask are left out, with a warning, where their extra is not installed;
        so is the port for metrics if it cannot be had. Raises ConfigError and InvalidInput for
        anything else that cannot be, and MissingExtra for Ray, with everything closed again.
        """
        from aiosollol.service.parts import open_parts  # loads aiohttp

        async with self._changing:
            if self._running is not None:
                return
            config = self.config
            if config.processes > 1 and self._siblings is None:
                raise InvalidInput(
                    "processes: a program's own event loop is one process; for more, use "
                    "'aiosollol up --workers N' or aiosollol.service.run"
                )
            self._warn_of_unused()
            keys = await asyncio.to_thread(security.read_keys, config)
            security.check_bind(config, keys)
            self._running = await open_parts(self._stack, config, keys, self._siblings, self._index)

    async def stop(self, hurry: asyncio.Event | None = None) -> int:
        """Accept nobody any more, finish what runs, and close. Idempotent.

        What runs has `stop_timeout`, or until `hurry` is set. Returns how much was cut off.
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
        told = [name for name in NOT_IN_USE if getattr(self.config, name) != default[name]]
        if told and not self._was_warned:
            self._was_warned = True
            log.warning("settings that are not in use yet: %s", ", ".join(told))

    # Changing it.

    async def update_config(self, **changes: Any) -> ConfigUpdate:
        """Change settings while it runs; says what holds now, and what takes `stop` and `start`.

        A file of keys is read again, even if its name has not changed. Requests go on. Raises
        ConfigError for settings that cannot be, with nothing changed.
        """
        for name in changes:
            if name not in SOLLOLConfig.__dataclass_fields__:
                raise InvalidInput(f"unknown setting {name!r}")
        return await self._change_to(replace(self.config, **changes))

    async def reload(self) -> ConfigUpdate:
        """Read the settings again where they came from. As `update_config`."""
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
            # By where it listens now: what the new settings say of that holds after a restart.
            bound = replace(config, gateway_host=self.config.gateway_host)
            security.check_bind(bound, keys)
            parts.apply(bound, keys)
            if "hosts" in update.applied:
                old, new = security.nodes_of(self.config), security.nodes_of(config)
                await parts.nodes.change(old or (), new or ())
            self.config = config
            if update.needs_restart:
                log.warning("settings that hold after a restart: %s", ", ".join(update[1]))
            return update

    # What is known.

    def get_status(self) -> dict[str, Any]:
        """Whether it runs, and where.

        ``running``, ``port``, ``ray_workers``, ``dask_workers``, ``batch_processing_enabled``,
        ``ollama_nodes``, ``timestamp`` and ``endpoints``, as the original has them; ``not_in_use``:
        fields that change nothing.
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
        """How the nodes are: "healthy", "degraded" or "unhealthy", by the original's names.

        ``hosts``: each with its circuit breaker and its last error.
        """
        if self._running is None:
            return dict(_STOPPED)
        from aiosollol.gateway.endpoints.sollol import health_of  # loads aiohttp

        return health_of(self._running.pool)

    def get_stats(self) -> dict[str, Any]:
        """Statistics of each host by the original's names, and all of `OllamaPool.get_stats`."""
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
