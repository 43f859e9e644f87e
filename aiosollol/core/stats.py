"""Counters of one node, and their picture in the ancestor's format."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

_SMOOTHING = 0.2


@dataclass(slots=True)
class NodeCounters:
    """What was asked of a node. Every request that began ends in exactly one of the four counts.

    Counted in the event loop, between two awaits, so that no lock is needed and none is missed.

    succeeded: answered. failed: not answered, or wrongly, which is the node's fault.
    rejected: refused for what the request says, which is the caller's fault.
    cancelled: given up by us.
    latency: a moving average over the requests that succeeded, in seconds.
    """

    succeeded: int = 0
    failed: int = 0
    rejected: int = 0
    cancelled: int = 0
    vectors: int = 0
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


def pool_stats(nodes: list[NodeStats], *, strategy: str) -> dict[str, Any]:
    """The dictionary of `OllamaPool.get_stats`.

    A request here is one sent to a node: a call that is tried on two nodes counts as two. The sums
    over ``node_performance`` equal the totals, and ``total_requests`` equals successful + failed +
    cancelled. Failed are all that failed; ``success_rate`` leaves out those that the node rejected
    because the request was at fault.
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
    }
