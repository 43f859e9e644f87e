"""What Prometheus is told: names, counts, merging over processes, and nothing that is private."""

from __future__ import annotations

import asyncio
import builtins
import json
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import aiohttp
import project_paths
import pytest

from aiosollol import MissingExtra
from aiosollol.core.events import AttemptFailed, Hedged, Loading, NodeChanged, PoolEvent, Routed
from aiosollol.core.stats import NodeCounters, NodeStats, pool_stats
from aiosollol.gateway.metrics import (
    GatewayMetrics,
    counter,
    endpoint_name,
    exposed,
    exposition,
    metrics_app,
    pool_families,
    word_of,
)
from aiosollol.gateway.options import Served
from aiosollol.gateway.serving.listener import Listener
from aiosollol.gateway.serving.supervisor import (
    Siblings,
    as_data,
    from_data,
    merged,
)

if TYPE_CHECKING:
    from prometheus_client import Metric

pytestmark = pytest.mark.anyio

prometheus_client = pytest.importorskip("prometheus_client")
parser = pytest.importorskip("prometheus_client.parser")


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Count events as they come."""
    monkeypatch.setattr("aiosollol.gateway.metrics._GATHER_SECONDS", 0.0)


NODE = "10.0.0.2:11434"
DASHBOARD = project_paths.DOCS / "grafana-dashboard.json"


class Pool:
    """A pool with one node that is named, and what happened to it."""

    def __init__(self, *events: PoolEvent, **more: Any) -> None:
        self._events = events
        self._more = more

    def get_stats(self) -> dict[str, Any]:
        counters = NodeCounters(succeeded=8, failed=2, cancelled=1, vectors=30, latency=0.25)
        node = NodeStats(
            key=NODE,
            name="gpu1",
            host=f"http://{NODE}",
            priority=0,
            is_available=True,
            active=3,
            counters=counters,
            queued=4,
            limit=5,
            breaker="half_open",
            gpu_free_mem=2.0,
        )
        return {**pool_stats([node], strategy="performance"), **self._more}

    async def events(self) -> AsyncIterator[PoolEvent]:
        for event in self._events:
            yield event


EVENTS = (
    Routed(0.0, "secret-model", "gpu1", 1, ""),
    Routed(0.0, "secret-model", "gpu1", 2, "it was busy"),
    Hedged(0.0, "secret-model", "gpu1", "gpu2"),
    AttemptFailed(0.0, "secret-model", "gpu1", "node", "secret prompt"),
    NodeChanged(0.0, "gpu1", "breaker open", "secret"),
    Loading(0.0, "secret-model", "gpu1"),
    Loading(0.0, "secret-model", "gpu1", 3.0),
    Loading(0.0, "secret-model", "gpu1", error="out of memory"),
)


def read(text: bytes) -> dict[str, dict[tuple[tuple[str, str], ...], float]]:
    """Sample name -> labels -> value, as Prometheus's own parser reads them."""
    found: dict[str, dict[tuple[tuple[str, str], ...], float]] = {}
    for family in parser.text_string_to_metric_families(text.decode()):
        for sample in family.samples:
            found.setdefault(sample.name, {})[tuple(sorted(sample.labels.items()))] = sample.value
    return found


async def full() -> GatewayMetrics:
    """Metrics with a sample of everything."""
    metrics = GatewayMetrics(Pool(*EVENTS, tokens=90, plans={"fan-out": 2}))
    await metrics.watch()
    metrics.on_request(Served("/api/chat", "POST", 200, 0.2, "gpu1"))
    metrics.on_request(Served("/api/chat", "POST", 503, 0.02, ""))
    metrics.on_request(Served("/v1/models/{name}", "GET", 404, 0.001, ""))
    metrics.on_request(Served("", "GET", 499, 1000.0, ""))
    return metrics


async def test_the_names_of_the_original() -> None:
    body, kind = exposition((await full()).families())
    found = read(body)
    assert kind.startswith("text/plain")
    requests = found["sollol_requests_total"]
    assert requests[("endpoint", "chat"), ("status", "success")] == 1
    assert requests[("endpoint", "chat"), ("status", "error")] == 1
    assert requests[("endpoint", "v1/models/{name}"), ("status", "rejected")] == 1
    assert requests[("endpoint", "other"), ("status", "cancelled")] == 1
    chat = (("endpoint", "chat"),)
    assert found["sollol_request_latency_seconds_sum"][chat] == pytest.approx(0.22)
    assert found["sollol_request_latency_seconds_count"][chat] == 2
    host = (("host", NODE),)
    assert found["sollol_host_latency_ms"][host] == 250
    assert found["sollol_host_success_rate"][host] == 0.8
    assert found["sollol_worker_failures_total"][host] == 2


async def test_what_is_new() -> None:
    found = read(exposition((await full()).families())[0])
    host = ("host", NODE)
    assert found["sollol_queue_depth"][host,] == 4
    assert found["sollol_host_active_requests"][host,] == 3
    assert found["sollol_host_breaker"][host, ("state", "half_open")] == 1
    assert found["sollol_host_breaker"][host, ("state", "closed")] == 0
    assert found["sollol_host_gpu_free_bytes"][host,] == 2 * 2**20
    assert "sollol_host_cpu_load" not in found  # nobody knows it
    assert found["sollol_vectors_total"][()] == 30
    assert found["sollol_calls_total"][("status", "success"),] == 8
    assert found["sollol_calls_total"][("status", "error"),] == 2
    assert found["sollol_calls_total"][("status", "cancelled"),] == 1
    assert found["sollol_tokens_total"][()] == 90
    assert found["sollol_plans_total"][("mode", "fan-out"),] == 2
    # Events name nodes by their names, statistics by their addresses.
    assert found["sollol_routed_total"][host,] == 2
    assert found["sollol_retries_total"][()] == 1
    assert found["sollol_hedges_total"][()] == 1
    assert found["sollol_attempt_failures_total"][host, ("kind", "node")] == 1
    assert found["sollol_host_changes_total"][("change", "breaker open"), host] == 1
    assert found["sollol_model_load_seconds_sum"][host,] == 3
    assert found["sollol_model_load_failures_total"][host,] == 1


async def test_nothing_private_is_told() -> None:
    body, _ = exposition((await full()).families())
    assert b"secret" not in body
    assert b"gpu1" not in body


async def test_what_a_pool_does_not_count_is_left_out() -> None:
    stats = Pool().get_stats()
    counted = {"sollol_tokens", "sollol_plans"}
    assert counted <= {family.name for family in pool_families(stats)}
    del stats["tokens"], stats["plans"]
    assert not counted & {family.name for family in pool_families(stats)}


async def test_every_metric_of_the_dashboard_exists() -> None:
    dashboard = json.loads(DASHBOARD.read_text())
    asked = {
        name
        for panel in dashboard["panels"]
        for target in panel["targets"]
        for name in re.findall(r"sollol_\w+", target["expr"])
    }
    metrics = await full()
    told = set(read(exposition(metrics.families())[0]))
    told.add("sollol_host_cpu_load")  # where an agent tells it
    source = (project_paths.ROOT / "aiosollol/service/parts.py").read_text()
    for kind, name in re.findall(r'(gauge|counter)\("(sollol_\w+)"', source):
        told.add(f"{name}_total" if kind == "counter" else name)
    assert asked - told == set()
    assert len(asked) > 20


def test_a_histogram_counts_what_is_below() -> None:
    histogram = prometheus_client.Histogram("x", "X.", buckets=(0.1, 1.0), registry=None)
    for value in (0.05, 0.1, 0.5, 7.0):
        histogram.observe(value)
    (metric,) = (exposed(each, {}) for each in histogram.collect())
    samples = {(s.name.removeprefix("x"), s.labels.get("le")): s.value for s in metric.samples}
    assert samples == {
        ("_bucket", "0.1"): 2,
        ("_bucket", "1"): 3,
        ("_bucket", "+Inf"): 4,
        ("_count", None): 4,
        ("_sum", None): pytest.approx(7.65),
    }


@pytest.mark.parametrize(
    ("status", "word"),
    [
        *((200, "success"), (202, "success"), (304, "success"), (404, "rejected")),
        *((429, "rejected"), (499, "cancelled"), (500, "error"), (503, "error")),
    ],
)
def test_words_for_statuses(status: int, word: str) -> None:
    assert word_of(status) == word


@pytest.mark.parametrize(
    ("path", "name"),
    [
        *(("/api/chat", "chat"), ("/api/embed/batch", "embed/batch"), ("/", "root")),
        *(("/v1/messages", "v1/messages"), ("", "other"), ("/metrics", "metrics")),
    ],
)
def test_names_of_endpoints(path: str, name: str) -> None:
    assert endpoint_name(path) == name


# Several processes.


def test_families_survive_the_way_to_a_sibling() -> None:
    metrics = GatewayMetrics(Pool())
    metrics.on_request(Served("/api/chat", "POST", 200, 0.2, ""))
    families = metrics.families()
    again = from_data(json.loads(json.dumps(as_data(families))))
    assert exposition(again) == exposition(families)


def test_processes_are_told_apart() -> None:
    def one(value: int) -> list[Metric]:
        return [counter("sollol_requests", "All.", {("chat",): value}, "endpoint")]

    found = read(exposition(merged({"0": one(3), "1": one(4), "2": []}))[0])
    assert found["sollol_requests_total"] == {
        (("endpoint", "chat"), ("process", "0")): 3,
        (("endpoint", "chat"), ("process", "1")): 4,
    }


async def test_siblings_tell_each_other(tmp_path: Path) -> None:
    made = [Siblings(str(tmp_path), 3) for _ in range(3)]
    for index in (0, 2):  # the one between has died

        def families(index: int = index) -> list[Metric]:
            return [counter("sollol_x", "X.", {(): index + 1})]

        await made[index].tell(index, families)
    again = Siblings(str(tmp_path), 3)  # one that was killed, and started again
    await again.tell(2, lambda: [counter("sollol_x", "X.", {(): 30})])
    made.append(again)
    for each in made:
        found = read(exposition(await each.gather())[0])["sollol_x_total"]
        assert found == {(("process", "0"),): 1, (("process", "2"),): 30}
    for each in made:
        await each.aclose()


# How it is served.


async def test_a_port_of_its_own() -> None:
    metrics = await full()

    async def gather() -> list[Metric]:
        return metrics.families()

    listener = Listener(metrics_app(gather))
    await listener.start("127.0.0.1", 0)
    try:
        async with aiohttp.ClientSession(listener.url) as session:
            async with session.get("/metrics") as answer:
                assert answer.status == 200
                assert answer.headers["Content-Type"].startswith("text/plain")
                assert "sollol_requests_total" in read(await answer.read())
            wanted = {"Accept": "application/openmetrics-text; version=1.0.0"}
            async with session.get("/metrics", headers=wanted) as answer:
                assert answer.headers["Content-Type"].startswith("application/openmetrics-text")
                assert (await answer.text()).endswith("# EOF\n")
            async with session.get("/api/tags") as answer:
                assert answer.status == 404
    finally:
        await listener.stop(1.0)


def test_without_prometheus_client(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def missing(name: str, *args: Any) -> Any:
        if name.startswith("prometheus_client"):
            raise ModuleNotFoundError(name=name)
        return real(name, *args)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(MissingExtra, match="gateway"):
        exposition([])


async def test_watching_ends_with_the_pool() -> None:
    async with asyncio.timeout(10):
        await GatewayMetrics(Pool()).watch()
