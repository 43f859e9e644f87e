"""Counters of one node, and their picture in the ancestor's format."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from aiosollol.core.node import NodeState, gpu_free, gpu_total

_SMOOTHING = 0.2


@dataclass(slots=True)
class NodeCounters:
    """What was asked of a node. Every request that began ends in exactly one of the four counts.

    Counted in the event loop, between two awaits, so that no lock is needed and none is missed.

    succeeded: answered. failed: not answered, or wrongly, which is the node's fault.
    rejected: refused for what the request says, which is the caller's fault.
    cancelled: given up by us.
    tokens: of texts, prompts and answers, as the node counted them.
    latency: a moving average over the requests that succeeded, in seconds.
    """

    succeeded: int = 0
    failed: int = 0
    rejected: int = 0
    cancelled: int = 0
    vectors: int = 0
    tokens: int = 0
    latency: float = 0.0

    @property
    def total(self) -> int:
        return self.succeeded + self.unsuccessful + self.cancelled

    @property
    def unsuccessful(self) -> int:
        """Requests that failed, whoever is to blame."""
        return self.failed + self.rejected

    @property
    def success_rate(self) -> float:
        """Share of requests that succeeded, of those that the node is to blame for; 1.0 at first.

        What it rejected tells of its callers, and what was cancelled of nobody.
        """
        answered = self.succeeded + self.failed
        return self.succeeded / answered if answered else 1.0

    def success(self, seconds: float) -> None:
        """A request was answered after `seconds`."""
        self.latency += (seconds - self.latency) * (_SMOOTHING if self.succeeded else 1.0)
        self.succeeded += 1

    def merge(self, other: NodeCounters) -> None:
        """Count what somebody else counted, of the same node."""
        answered = self.succeeded + other.succeeded
        if answered:
            self.latency += (other.latency - self.latency) * other.succeeded / answered
        self.succeeded = answered
        self.failed += other.failed
        self.rejected += other.rejected
        self.cancelled += other.cancelled
        self.vectors += other.vectors
        self.tokens += other.tokens


class NodeStats(NamedTuple):
    """One node at one moment, as `pool_stats` shows it.

    active: requests under way, queued: requests that wait for a place, limit: how many live
    requests it should have at once. breaker: "closed", "open" or "half_open". cpu_load: 0 to 1,
    gpu_free_mem: MB; None where unknown.
    """

    key: str
    name: str
    host: str
    priority: int
    is_available: bool
    active: int
    counters: NodeCounters
    error: str = ""
    queued: int = 0
    limit: int = 0
    breaker: str = "closed"
    cpu_load: float | None = None
    gpu_free_mem: float | None = None
    is_draining: bool = False


def pool_stats(
    nodes: list[NodeStats],
    *,
    strategy: str,
    plans: Mapping[str, int] | None = None,
    states: Iterable[NodeState] = (),
) -> dict[str, Any]:
    """The dictionary of `OllamaPool.get_stats`.

    A request here is one sent to a node: a call that is tried on two nodes counts as two. The sums
    over ``node_performance`` equal the totals, and ``total_requests`` equals successful + failed +
    cancelled. Failed are all that failed; ``success_rate`` leaves out those that the node rejected
    because the request was at fault. ``tokens`` are those that nodes counted; some endpoints of
    theirs, and what broke off, tell none.

    plans: how many batches had a plan of each mode. states: what is known of the nodes, for
    ``vram_monitoring`` (see `vram_stats`). ``cache`` and ``dask``, which the ancestor has, say that
    they are off.
    """
    succeeded = sum(node.counters.succeeded for node in nodes)
    failed = sum(node.counters.unsuccessful for node in nodes)
    cancelled = sum(node.counters.cancelled for node in nodes)
    return {
        "total_requests": succeeded + failed + cancelled,
        "successful_requests": succeeded,
        "failed_requests": failed,
        "cancelled_requests": cancelled,
        "vectors": sum(node.counters.vectors for node in nodes),
        "tokens": sum(node.counters.tokens for node in nodes),
        "plans": dict(plans or {}),
        "nodes_used": {n.key: n.counters.total for n in nodes if n.counters.total},
        "node_performance": {
            node.key: {
                "host": node.host,
                "name": node.name,
                "latency_ms": node.counters.latency * 1000,
                "success_rate": node.counters.success_rate,
                "total_requests": node.counters.total,
                "failed_requests": node.counters.unsuccessful,
                "available": node.is_available,
                "active_requests": node.active,
                "queued_requests": node.queued,
                "concurrency_limit": node.limit,
                "circuit_breaker": node.breaker,
                "draining": node.is_draining,
                "cpu_load": node.cpu_load,
                "gpu_free_mem": node.gpu_free_mem,
                "priority": node.priority,
                "last_error": node.error,
            }
            for node in nodes
        },
        "nodes_configured": len(nodes),
        "nodes": [node.key for node in nodes],
        "routing_strategy": strategy,
        "cache": {"enabled": False},
        "vram_monitoring": vram_stats(states),
        "dask": {"enabled": False},
    }


def vram_stats(states: Iterable[NodeState]) -> dict[str, Any]:
    """What nodes tell of GPU memory, in MB: ``nodes`` by key, those that told something.

    Of each: ``total`` and ``free``, None if unknown; ``models``, what each model in memory takes of
    it; ``source``: "agent", "settings" (`vram_gb`) for the total, or "ollama", which knows of
    models alone. ``enabled``: whether any node told.
    """
    nodes = {
        state.spec.key: {
            "total": _megabytes(gpu_total(state)),
            "free": _megabytes(gpu_free(state)),
            "models": {
                name: _megabytes(model.size_vram) for name, model in (state.loaded or {}).items()
            },
            "source": _source(state),
        }
        for state in states
        if state.loaded is not None or gpu_total(state) is not None
    }
    return {"enabled": bool(nodes), "nodes": nodes}


def _source(state: NodeState) -> str:
    if state.gpu_memory_total is not None:
        return "agent"
    return "ollama" if state.spec.vram_gb is None else "settings"


def _megabytes(count: int | None) -> float | None:
    return None if count is None else count / 1e6
