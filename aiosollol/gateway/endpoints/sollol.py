"""The cluster's health and statistics, as in the original."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from aiohttp import web

from aiosollol._version import __version__
from aiosollol.gateway.bodies import whole
from aiosollol.gateway.middleware.guard import may_use
from aiosollol.wire.ollama import server_responses

if TYPE_CHECKING:
    from aiosollol.pool.facade import OllamaPool


class SollolEndpoints:
    """The endpoints that the original has and Ollama does not, except `BatchJobs`."""

    def __init__(self, pool: OllamaPool) -> None:
        self._pool = pool

    def routes(self) -> list[web.RouteDef]:
        return [
            web.get("/api/health", self.health),
            web.get("/api/stats", self.stats),
        ]

    async def health(self, request: web.Request) -> web.StreamResponse:
        """The health, with status 503 for load balancers if no node can be used."""
        health = health_of(self._pool)
        status = 200 if health["available_hosts"] else 503
        return whole(server_responses.json_answer(health, status=status))

    async def stats(self, request: web.Request) -> web.StreamResponse:
        stats = stats_of(self._pool)
        for node in stats["vram_monitoring"]["nodes"].values():
            node["models"] = {
                name: size for name, size in node["models"].items() if may_use(request, name)
            }
        for node in stats["node_performance"].values():
            distrusted = node["distrusted_models"]
            node["distrusted_models"] = [name for name in distrusted if may_use(request, name)]
        return whole(server_responses.json_answer(stats))


def health_of(pool: OllamaPool) -> dict[str, Any]:
    """``status``: "healthy" if all nodes can be used, "degraded" if some can, else "unhealthy"."""
    hosts = _hosts(pool.get_stats())
    available = sum(host["available"] for host in hosts)
    word = "unhealthy" if not available else "healthy" if available == len(hosts) else "degraded"
    return {
        "status": word,
        "service": "SOLLOL",
        "version": __version__,
        "task_distribution": {"enabled": bool(hosts), "ollama_nodes": len(hosts)},
        "available_hosts": available,
        "hosts": hosts,
        "timestamp": _now(),
    }


def stats_of(pool: OllamaPool) -> dict[str, Any]:
    """`OllamaPool.get_stats`, with ``hosts`` and ``timestamp`` as in the original."""
    stats = pool.get_stats()
    return {**stats, "hosts": _hosts(stats), "timestamp": _now()}


_OF_HOST = (
    "available",
    "latency_ms",
    "success_rate",
    "cpu_load",
    "gpu_free_mem",
    "priority",
    "circuit_breaker",
    "last_error",
)


def _hosts(stats: dict[str, Any]) -> list[dict[str, Any]]:
    updated = _now()
    return [
        {"host": key, **{name: node[name] for name in _OF_HOST}, "last_updated": updated}
        for key, node in stats["node_performance"].items()
    ]


def _now() -> str:
    return datetime.now(UTC).isoformat()
