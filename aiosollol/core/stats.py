"""Counters of calls and of a node, and statistics in the original's format."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

from aiosollol.core.node import NodeState, gpu_free, gpu_total
from aiosollol.errors import PoolClosed

_SMOOTHING = 0.2


@dataclass(slots=True)
class NodeCounters:
    """Request counters of a node. Every request ends in exactly one of the first four.

    Updated in the event loop without an await in between, so no lock is needed.

    succeeded: answered.
    failed: not answered, or wrongly: the node's fault.
    rejected: refused as invalid: the caller's fault.
    cancelled: cancelled by the client.
    vectors: vectors received.
    tokens: tokens of texts, prompts and answers, as counted by the node.
    latency: moving average over the successful requests, in seconds.
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
        """Failed requests, including rejected ones."""
        return self.failed + self.rejected

    @property
    def success_rate(self) -> float:
        """succeeded / (succeeded + failed); 1.0 before the first request.

        Rejected and cancelled requests are not the node's fault.
        """
        answered = self.succeeded + self.failed
        return self.succeeded / answered if answered else 1.0

    def success(self, seconds: float) -> None:
        """Count a request that was answered after `seconds`."""
        self.latency += (seconds - self.latency) * (_SMOOTHING if self.succeeded else 1.0)
        self.succeeded += 1

    def merge(self, other: NodeCounters) -> None:
        """Add another program's counters of the same node."""
        answered = self.succeeded + other.succeeded
        if answered:
            self.latency += (other.latency - self.latency) * other.succeeded / answered
        self.succeeded = answered
        self.failed += other.failed
        self.rejected += other.rejected
        self.cancelled += other.cancelled
        self.vectors += other.vectors
        self.tokens += other.tokens


@dataclass(slots=True)
class CallCounters:
    """Counters of a pool's calls: embed, embed_batch, embed_stream, chat, generate, and so on.

    Each call that sent a request, or waited to, ends in exactly one of the first three, regardless
    of its number of requests to nodes.

    succeeded: answered.
    failed: raised an error.
    cancelled: cancelled by its caller, or by closing the pool.
    retries: live requests sent again after a failure that may be the node's fault.
    second_opinions: live requests sent again to verify a node's claim that the request is invalid.
    hedges: live requests also sent to another node because the first was late.
    """

    succeeded: int = 0
    failed: int = 0
    cancelled: int = 0
    retries: int = 0
    second_opinions: int = 0
    hedges: int = 0

    def ended(self, error: BaseException | None, calls: int = 1) -> None:
        """Count the end of `calls` calls. error: the error they raised; None if answered."""
        if error is None:
            self.succeeded += calls
        elif isinstance(error, Exception) and not isinstance(error, PoolClosed):
            self.failed += calls
        else:
            self.cancelled += calls

    @contextmanager
    def counting(self) -> Iterator[None]:
        """Context manager that counts the call inside it, by its outcome."""
        try:
            yield
        except BaseException as error:
            self.ended(error)
            raise
        self.ended(None)


class NodeStats(NamedTuple):
    """A snapshot of one node for `pool_stats`.

    active: requests in flight.
    queued: requests waiting for a slot.
    limit: concurrency limit of live requests.
    breaker: "closed", "open" or "half_open".
    cpu_load: 0 to 1; None if unknown.
    gpu_free_mem: MB; None if unknown.
    distrusted: models whose vectors differ from those of other nodes.
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
    distrusted: tuple[str, ...] = ()


def pool_stats(
    nodes: list[NodeStats],
    *,
    strategy: str,
    plans: Mapping[str, int] | None = None,
    states: Iterable[NodeState] = (),
    calls: CallCounters | None = None,
) -> dict[str, Any]:
    """The dictionary of `OllamaPool.get_stats`.

    ``total_requests`` counts each call once and equals successful + failed + cancelled.
    ``attempts`` counts requests to nodes and equals successful + failed + cancelled attempts, and
    the sums over ``nodes_used`` and ``node_performance``: a call tried on two nodes is two
    attempts, a batch one for each chunk. ``failed_attempts`` includes requests that nodes rejected
    as invalid; ``success_rate`` does not. ``retries``, ``second_opinions`` and ``hedges`` are the
    attempts of live calls beyond the first, by cause. ``tokens`` are as reported by nodes; some
    endpoints and interrupted answers report none. ``cache`` and ``dask``, which the original has,
    are shown as off.

    calls: None if every request to a node is a call.
    plans: number of batches by mode of their plan.
    states: node states, for ``vram_monitoring`` (see `vram_stats`).
    """
    succeeded = sum(node.counters.succeeded for node in nodes)
    failed = sum(node.counters.unsuccessful for node in nodes)
    cancelled = sum(node.counters.cancelled for node in nodes)
    calls = CallCounters(succeeded, failed, cancelled) if calls is None else calls
    return {
        "total_requests": calls.succeeded + calls.failed + calls.cancelled,
        "successful_requests": calls.succeeded,
        "failed_requests": calls.failed,
        "cancelled_requests": calls.cancelled,
        "attempts": succeeded + failed + cancelled,
        "successful_attempts": succeeded,
        "failed_attempts": failed,
        "cancelled_attempts": cancelled,
        "retries": calls.retries,
        "second_opinions": calls.second_opinions,
        "hedges": calls.hedges,
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
                "distrusted_models": list(node.distrusted),
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
    """GPU memory in MB: ``nodes`` by key, for nodes that report any.

    Each has ``total`` and ``free``, None if unknown; ``models``, the GPU memory of each model in
    memory; and ``source``: "agent", "settings" if the total is from `vram_gb`, or "ollama", which
    reports only models. ``enabled``: whether any node reports GPU memory.
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
