"""How a service is, as dictionaries by the original's names. What is new stands beside them."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from aiosollol import __version__
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
            **({"metrics": f"{url}/metrics"} if config.metrics_enabled else {}),
        },
    }


def health(parts: Parts | None) -> dict[str, Any]:
    """``status``: "healthy" if all nodes can be used, "degraded" if some can, else "unhealthy".
    ``hosts``: each with its circuit breaker and its last error."""
    if parts is None:
        return dict(_STOPPED)
    hosts = _hosts(parts)
    available = sum(host["available"] for host in hosts)
    word = "unhealthy" if not available else "healthy" if available == len(hosts) else "degraded"
    return {
        "status": word,
        "service": "SOLLOL",
        "version": __version__,
        "task_distribution": {"enabled": bool(hosts), "ollama_nodes": len(hosts)},
        "available_hosts": available,
        "hosts": hosts,
        "timestamp": now(),
    }


def stats(parts: Parts | None) -> dict[str, Any]:
    """``hosts`` and ``timestamp`` as the original has them, and all of `OllamaPool.get_stats`."""
    if parts is None:
        return dict(_STOPPED)
    return {**parts.pool.get_stats(), "hosts": _hosts(parts), "timestamp": now()}


def _hosts(parts: Parts) -> list[dict[str, Any]]:
    updated = now()
    return [
        {
            "host": key,
            "available": node["available"],
            "latency_ms": node["latency_ms"],
            "success_rate": node["success_rate"],
            "cpu_load": node["cpu_load"],
            "gpu_free_mem": node["gpu_free_mem"],
            "priority": node["priority"],
            "circuit_breaker": node["circuit_breaker"],
            "last_error": node["last_error"],
            "last_updated": updated,
        }
        for key, node in parts.pool.get_stats()["node_performance"].items()
    ]


def now() -> str:
    """This moment, in ISO 8601."""
    return datetime.now(UTC).isoformat()
