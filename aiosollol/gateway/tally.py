"""What the gateway counts as it goes: requests, how long they take, and what the pool tells.

Dictionaries and lists, so that counting costs a microsecond; `families` makes metrics of them when
somebody asks.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence

from aiosollol.core.events import AttemptFailed, Hedged, Loading, NodeChanged, PoolEvent, Routed
from aiosollol.gateway.families import Family, Sample, counter

LATENCY_BOUNDS = (
    *(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5),
    *(1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0),
)
LOAD_BOUNDS = (0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)

_LEFT = 499  # what nginx notes for a client that did not wait


class Histogram:
    """Counts of values up to each bound, and their sum."""

    __slots__ = ("bounds", "counts", "sum")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def observe(self, value: float) -> None:
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value

    def samples(self, labels: Mapping[str, str]) -> list[Sample]:
        """As Prometheus has them: each bucket counts those below it too."""
        found, count = [], 0
        names = [*(f"{bound:g}" for bound in self.bounds), "+Inf"]
        for name, more in zip(names, self.counts, strict=True):
            count += more
            found.append(Sample("_bucket", {**labels, "le": name}, count))
        return [*found, Sample("_count", labels, count), Sample("_sum", labels, self.sum)]


def word_of(status: int) -> str:
    """The label for an HTTP status: "success", "rejected" for what the client did wrong, "error",
    or "cancelled" for a client that left."""
    if status == _LEFT:
        return "cancelled"
    return "success" if status < 400 else "rejected" if status < 500 else "error"


class RequestTally:
    """Requests to the gateway that are over."""

    def __init__(self) -> None:
        self._counts: dict[tuple[str, str], int] = {}
        self._latency: dict[str, Histogram] = {}

    def served(self, endpoint: str, status: int, seconds: float) -> None:
        """A request is over."""
        key = (endpoint, word_of(status))
        self._counts[key] = self._counts.get(key, 0) + 1
        histogram = self._latency.get(endpoint)
        if histogram is None:
            histogram = self._latency[endpoint] = Histogram(LATENCY_BOUNDS)
        histogram.observe(seconds)

    def families(self) -> list[Family]:
        samples = [
            sample
            for endpoint, histogram in self._latency.items()
            for sample in histogram.samples({"endpoint": endpoint})
        ]
        return [
            counter("sollol_requests", "Requests answered.", self._counts, "endpoint", "status"),
            Family(
                "sollol_request_latency_seconds",
                "histogram",
                "From the head of a request to the last byte of its answer.",
                samples,
            ),
        ]


class EventTally:
    """What happened in the pool, by its events."""

    def __init__(self) -> None:
        self._routed: dict[tuple[str, ...], int] = {}
        self._retries = 0
        self._hedges = 0
        self._failures: dict[tuple[str, ...], int] = {}
        self._changes: dict[tuple[str, ...], int] = {}
        self._loads: dict[str, Histogram] = {}
        self._load_failures: dict[tuple[str, ...], int] = {}

    def count(self, event: PoolEvent) -> None:
        match event:
            case Routed(node=node, attempt=attempt):
                _add(self._routed, node)
                self._retries += attempt > 1
            case Hedged():
                self._hedges += 1
            case AttemptFailed(node=node, kind=kind):
                _add(self._failures, node, kind)
            case NodeChanged(node=node, change=change):
                _add(self._changes, node, change)
            case Loading(node=node, seconds=seconds, error=error):
                if error:
                    _add(self._load_failures, node)
                elif seconds is not None:
                    self._loads.setdefault(node, Histogram(LOAD_BOUNDS)).observe(seconds)

    def families(self, hosts: Mapping[str, str]) -> list[Family]:
        """hosts: the label of each node by its name, which is what events have."""

        def named(counts: Mapping[tuple[str, ...], int]) -> dict[tuple[str, ...], int]:
            return {(hosts.get(node, node), *rest): n for (node, *rest), n in counts.items()}

        loads = [
            sample
            for node, histogram in self._loads.items()
            for sample in histogram.samples({"host": hosts.get(node, node)})
        ]
        return [
            counter("sollol_routed", "Live requests sent to a node.", named(self._routed), "host"),
            counter("sollol_retries", "Live requests sent again.", {(): self._retries}),
            counter("sollol_hedges", "Second requests for late answers.", {(): self._hedges}),
            counter(
                "sollol_attempt_failures",
                "Attempts of live requests that failed, by what that means.",
                named(self._failures),
                *("host", "kind"),
            ),
            counter(
                "sollol_host_changes",
                "Nodes going up and down, and breakers opening and closing.",
                named(self._changes),
                *("host", "change"),
            ),
            Family(
                "sollol_model_load_seconds", "histogram", "How long loading a model took.", loads
            ),
            counter(
                "sollol_model_load_failures",
                "Loads that failed.",
                named(self._load_failures),
                "host",
            ),
        ]


def _add(counts: dict[tuple[str, ...], int], *key: str) -> None:
    counts[key] = counts.get(key, 0) + 1
