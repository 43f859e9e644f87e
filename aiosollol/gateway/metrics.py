"""`GatewayMetrics`: Prometheus metrics of the gateway and its pool, by prometheus-client.

Labels hold hosts, endpoints, statuses and kinds of failures; no prompt, key or model name.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from functools import cache
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

from aiohttp import web
from aiohttp.typedefs import Middleware

from aiosollol.core.events import AttemptFailed, Hedged, Loading, NodeChanged, PoolEvent, Routed
from aiosollol.errors import MissingExtra
from aiosollol.gateway.options import Served

if TYPE_CHECKING:
    from prometheus_client import Metric
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

Gather = Callable[[], Awaitable[Iterable["Metric"]]]
"""Collects all metric families: of this process, or of its sibling processes too."""
Values: TypeAlias = Mapping[Any, float]
"""A value for each combination of label values: tuples of strings, one for each label."""

_LATENCY_BOUNDS = (
    *(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5),
    *(1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0),
)
_LOAD_BOUNDS = (0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)
_GATHER_SECONDS, _COUNT_SECONDS = 0.25, 0.01
_BREAKER_STATES = ("closed", "open", "half_open")
_LEFT = 499  # nginx's status for a client that left before the answer


class Watched(Protocol):
    """The part of a pool that metrics use."""

    def get_stats(self) -> dict[str, Any]: ...
    def events(self) -> AsyncIterator[PoolEvent]: ...


class GatewayMetrics:
    """Counts requests (`on_request`) and events (`watch`), and reads the pool on each scrape.

    Raises MissingExtra without prometheus-client.
    """

    def __init__(self, pool: Watched) -> None:
        check_extra()
        from prometheus_client import CollectorRegistry, Counter, Histogram

        self._pool = pool
        self._others: list[Callable[[], Iterable[Metric]]] = []
        self._children: dict[tuple[str, int], tuple[Counter, Histogram]] = {}
        self._registry = registry = CollectorRegistry()

        def counter(name: str, about: str, *labels: str) -> Counter:
            return Counter(name, about, labels, registry=registry)

        self._requests = counter("sollol_requests", "Requests answered.", "endpoint", "status")
        self._latency = Histogram(
            "sollol_request_latency_seconds",
            "From the head of a request to the last byte of its answer.",
            ("endpoint",),
            buckets=_LATENCY_BOUNDS,
            registry=registry,
        )
        self._routed = cache(
            counter("sollol_routed", "Live requests sent to a node.", "host").labels
        )
        self._retries = counter("sollol_retries", "Live requests sent again.")
        self._hedges = counter("sollol_hedges", "Second requests for late answers.")
        self._failures = counter(
            "sollol_attempt_failures",
            "Failed attempts of live requests, by kind.",
            *("host", "kind"),
        )
        self._changes = counter(
            "sollol_host_changes",
            "Nodes going up and down, and breakers opening and closing.",
            *("host", "change"),
        )
        self._loads = Histogram(
            "sollol_model_load_seconds",
            "How long loading a model took.",
            ("host",),
            buckets=_LOAD_BOUNDS,
            registry=registry,
        )
        self._load_failures = counter("sollol_model_load_failures", "Loads that failed.", "host")

    async def watch(self) -> None:
        """Count the events of the pool until it is closed.

        Waking up costs more than counting, so events are counted in groups.
        """
        time, last = asyncio.get_running_loop().time, -math.inf
        async for event in self._pool.events():
            self._count(event)
            if time() - last > _COUNT_SECONDS:
                await asyncio.sleep(_GATHER_SECONDS)
                last = time()

    def families(self) -> list[Metric]:
        """All metric families, with their current values."""
        stats = self._pool.get_stats()
        hosts = {node["name"]: key for key, node in stats["node_performance"].items()}
        return [
            *(exposed(metric, hosts) for metric in self._registry.collect()),
            *pool_families(stats),
            *(family for families in self._others for family in families()),
        ]

    def add(self, families: Callable[[], Iterable[Metric]]) -> None:
        """Add the metric families that `families` returns, on each scrape."""
        self._others.append(families)

    def on_request(self, served: Served) -> None:
        """Count a finished request: the `on_request` of `make_app`.

        Its endpoint is the registered path, so clients cannot create labels.
        """
        key = (served.endpoint, served.status)
        children = self._children.get(key)
        if children is None:
            endpoint = endpoint_name(served.endpoint)
            children = self._children[key] = (
                self._requests.labels(endpoint, word_of(served.status)),
                self._latency.labels(endpoint),
            )
        requests, latency = children
        requests.inc()
        latency.observe(served.seconds)

    def _count(self, event: PoolEvent) -> None:
        match event:
            case Routed(node=node, attempt=attempt):
                self._routed(node).inc()
                if attempt > 1:
                    self._retries.inc()
            case Hedged():
                self._hedges.inc()
            case AttemptFailed(node=node, kind=kind):
                self._failures.labels(node, kind).inc()
            case NodeChanged(node=node, change=change):
                self._changes.labels(node, change).inc()
            case Loading(node=node, seconds=seconds, error=error):
                if error:
                    self._load_failures.labels(node).inc()
                elif seconds is not None:
                    self._loads.labels(node).observe(seconds)


def word_of(status: int) -> str:
    """The label for an HTTP status: "success", "rejected" for the client's errors, "error", or
    "cancelled" for a client that left."""
    if status == _LEFT:
        return "cancelled"
    return "success" if status < 400 else "rejected" if status < 500 else "error"


def endpoint_name(path: str) -> str:
    """The label of an endpoint: ``chat`` for ``/api/chat``, as in the original."""
    return path.removeprefix("/api/").strip("/") or ("root" if path else "other")


def exposed(metric: Metric, hosts: Mapping[str, str]) -> Metric:
    """A counted metric with the label values that this gateway exposes.

    hosts: each node's address by its name. The label "host" becomes the address (events have
    names), "le" is ``1`` instead of ``1.0``, and ``_created`` samples are left out.
    """
    from prometheus_client import Metric

    found = Metric(metric.name, metric.documentation, metric.type)
    for sample in metric.samples:
        if sample.name.endswith("_created"):
            continue
        labels = dict(sample.labels)
        if "host" in labels:
            labels["host"] = hosts.get(labels["host"], labels["host"])
        if "le" in labels:
            labels["le"] = labels["le"].removesuffix(".0")
        found.add_sample(sample.name, labels, sample.value)
    return found


def counter(name: str, about: str, values: Values, *labels: str) -> Metric:
    """A counter family with these values."""
    from prometheus_client.core import CounterMetricFamily

    return _filled(CounterMetricFamily(name, about, labels=labels), values)


def gauge(name: str, about: str, values: Values, *labels: str) -> Metric:
    """A gauge family with these values."""
    from prometheus_client.core import GaugeMetricFamily

    return _filled(GaugeMetricFamily(name, about, labels=labels), values)


def _filled(family: CounterMetricFamily | GaugeMetricFamily, values: Values) -> Metric:
    for labels, value in values.items():
        family.add_metric(labels, value)
    return family


def pool_families(stats: Mapping[str, Any]) -> list[Metric]:
    """`OllamaPool.get_stats` as metrics. Missing counts are left out."""
    hosts: Mapping[str, Mapping[str, Any]] = stats["node_performance"]

    def each(key: str, factor: float = 1.0) -> Values:
        return {
            (host,): host_stats[key] * factor
            for host, host_stats in hosts.items()
            if host_stats.get(key) is not None
        }

    breakers = {
        (host, state): float(host_stats["circuit_breaker"] == state)
        for host, host_stats in hosts.items()
        for state in _BREAKER_STATES
    }
    calls = {
        ("success",): stats["successful_requests"],
        ("error",): stats["failed_requests"],
        ("cancelled",): stats["cancelled_requests"],
    }
    families = [
        gauge("sollol_host_latency_ms", "Average response time.", each("latency_ms"), "host"),
        gauge("sollol_host_success_rate", "From 0 to 1.", each("success_rate"), "host"),
        counter("sollol_worker_failures", "Failed requests.", each("failed_requests"), "host"),
        counter("sollol_host_requests", "Requests to a node.", each("total_requests"), "host"),
        gauge("sollol_host_available", "1 if the node can be used.", each("available"), "host"),
        gauge("sollol_host_active_requests", "In flight.", each("active_requests"), "host"),
        gauge("sollol_queue_depth", "Waiting requests.", each("queued_requests"), "host"),
        gauge("sollol_host_limit", "Concurrency limit.", each("concurrency_limit"), "host"),
        gauge("sollol_host_breaker", "1 for the current state.", breakers, "host", "state"),
        gauge("sollol_host_cpu_load", "From 0 to 1.", each("cpu_load"), "host"),
        gauge("sollol_host_gpu_free_bytes", "GPU memory.", each("gpu_free_mem", 2.0**20), "host"),
        counter("sollol_vectors", "Texts embedded.", {(): stats["vectors"]}),
        counter("sollol_cancelled", "Cancelled attempts.", {(): stats["cancelled_attempts"]}),
        counter("sollol_calls", "Calls, each once.", calls, "status"),
    ]
    if (tokens := stats.get("tokens")) is not None:
        families.append(counter("sollol_tokens", "Tokens, counted by the nodes.", {(): tokens}))
    if (plans := stats.get("plans")) is not None:
        modes = {(str(mode),): count for mode, count in plans.items()}
        families.append(counter("sollol_plans", "Batches, by mode of the plan.", modes, "mode"))
    return families


class _Collected:
    def __init__(self, families: Iterable[Metric]) -> None:
        self._families = families

    def collect(self) -> Iterable[Metric]:
        return self._families


def exposition(families: Iterable[Metric], accept: str = "") -> tuple[bytes, str]:
    """The text for Prometheus and its content type, chosen by the Accept header.

    Raises MissingExtra without prometheus-client.
    """
    check_extra()
    from prometheus_client.exposition import choose_encoder

    encode, content_type = choose_encoder(accept)
    return encode(_Collected(families)), content_type


def check_extra() -> None:
    """Raises MissingExtra without prometheus-client."""
    try:
        import prometheus_client  # noqa: F401
    except ImportError as error:
        raise MissingExtra("the metrics endpoint", "gateway") from error


def handler_of(gather: Gather) -> Callable[[web.Request], Awaitable[web.Response]]:
    """A handler for ``GET /metrics``."""

    async def send(request: web.Request) -> web.Response:
        body, kind = exposition(await gather(), request.headers.get("Accept", ""))
        return web.Response(body=body, headers={"Content-Type": kind, "Cache-Control": "no-store"})

    return send


def metrics_app(gather: Gather, *middlewares: Middleware) -> web.Application:
    """An application with ``/metrics`` and nothing else, for a port of its own."""
    app = web.Application(middlewares=middlewares)
    app.router.add_get("/metrics", handler_of(gather))
    return app
