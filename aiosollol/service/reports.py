"""How a service is, as dictionaries by the original's names. What is new stands beside them."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from aiosollol.service.config import NOT_IN_USE, SOLLOLConfig

if TYPE_CHECKING:
    from aiosollol.service.parts import Parts

_STOPPED = {"error": "SOLLOL is not running"}


def status(config: SOLLOLConfig, parts: Parts | None) -> dict[str, Any]:
    """``running``, ``port``, ``ray_workers``, ``dask_workers``, ``batch_processing_enabled``,
    ``ollama_nodes``, ``timestamp`` and ``endpoints``, as the original has them; ``not_in_use``:
    fields that change nothing."""
    url = None if parts is None else parts.listener.url
    port = config.gateway_port if parts is None else parts.listener.address[1]
    if parts is None:
        nodes: int | str = "auto-discover" if config.hosts is None else len(list(config.hosts))
    else:
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
        "timestamp": now(),
        "endpoints": {}
        if url is None
        else {
            "gateway": url,
            "api_docs": f"{url}/docs",
            "health": f"{url}/api/health",
            "stats": f"{url}/api/stats",
            **({"metrics": f"{url}/metrics"} if parts is not None and parts.gather else {}),
        },
    }


def health(parts: Parts | None) -> dict[str, Any]:
    """``status``: "healthy" if all nodes can be used, "degraded" if some can, else "unhealthy".
    ``hosts``: each with its circuit breaker and its last error."""
    if parts is None:
        return dict(_STOPPED)
    from aiosollol.gateway.sollol import health_of  # loads aiohttp

    return health_of(parts.pool)


def stats(parts: Parts | None) -> dict[str, Any]:
    """``hosts`` and ``timestamp`` as the original has them, and all of `OllamaPool.get_stats`."""
    if parts is None:
        return dict(_STOPPED)
    from aiosollol.gateway.sollol import stats_of

    return stats_of(parts.pool)


def now() -> str:
    """This moment, in ISO 8601."""
    return datetime.now(UTC).isoformat()
