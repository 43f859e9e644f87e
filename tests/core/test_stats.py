"""Counters: every request ends in one of four counts, and the sums are the totals."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aiosollol.core.node import LoadedModel, NodeSpec, NodeState
from aiosollol.core.stats import CallCounters, NodeCounters, NodeStats, pool_stats
from aiosollol.errors import NoNodeAvailable, PoolClosed

counts = st.integers(0, 1000)
counters = st.builds(
    NodeCounters,
    succeeded=counts,
    failed=counts,
    rejected=counts,
    cancelled=counts,
    vectors=counts,
    tokens=counts,
    latency=st.floats(0.0, 10.0),
)


def node(number: int, counters: NodeCounters, **fields: object) -> NodeStats:
    values: dict[str, object] = {
        "key": f"10.0.0.{number}:11434",
        "name": f"n{number}",
        "host": f"http://10.0.0.{number}:11434",
        "priority": 0,
        "is_available": True,
        "active": 0,
        "counters": counters,
    }
    return NodeStats(**{**values, **fields})  # type: ignore[arg-type]


def test_a_request_is_in_one_of_four_counts() -> None:
    counters = NodeCounters(succeeded=1, failed=2, rejected=4, cancelled=8)
    assert counters.total == 15
    assert counters.unsuccessful == 6


RATES = [
    pytest.param(NodeCounters(), 1.0, id="before the first"),
    pytest.param(NodeCounters(succeeded=3, failed=1), 0.75, id="three of four"),
    pytest.param(NodeCounters(failed=2), 0.0, id="none of two"),
    pytest.param(NodeCounters(succeeded=1, rejected=9), 1.0, id="rejected: not its fault"),
    pytest.param(NodeCounters(succeeded=1, cancelled=9), 1.0, id="cancelled: nobody's fault"),
    pytest.param(NodeCounters(rejected=5, cancelled=5), 1.0, id="nothing to blame it for"),
]


@pytest.mark.parametrize(("counters", "rate"), RATES)
def test_the_success_rate_is_of_what_the_node_is_to_blame_for(
    counters: NodeCounters, rate: float
) -> None:
    assert counters.success_rate == rate


def test_latency_begins_with_the_first_answer_and_follows_slowly() -> None:
    counters = NodeCounters()
    counters.success(1.0)
    assert counters.latency == 1.0
    counters.success(2.0)
    assert counters.latency == pytest.approx(1.2)
    assert (counters.succeeded, counters.total) == (2, 2)


@settings(deadline=None)
@given(st.lists(st.floats(0.001, 100.0), min_size=1))
def test_latency_stays_among_what_was_seen(seconds: list[float]) -> None:
    counters = NodeCounters()
    for each in seconds:
        counters.success(each)
    assert min(seconds) * 0.999 <= counters.latency <= max(seconds) * 1.001


ENDS = [
    pytest.param(None, (1, 0, 0), id="answered"),
    pytest.param(NoNodeAvailable("no", {}), (0, 1, 0), id="failed"),
    pytest.param(ValueError("a caller's own"), (0, 1, 0), id="its callback failed"),
    pytest.param(PoolClosed("closed"), (0, 0, 1), id="the pool was closed"),
    pytest.param(asyncio.CancelledError(), (0, 0, 1), id="cancelled"),
    pytest.param(GeneratorExit(), (0, 0, 1), id="left"),
]


@pytest.mark.parametrize(("error", "counted"), ENDS)
def test_a_call_is_in_one_of_three_counts(
    error: BaseException | None, counted: tuple[int, int, int]
) -> None:
    calls = CallCounters()
    with contextlib.suppress(type(error) if error else ()), calls.counting():
        if error is not None:
            raise error
    assert (calls.succeeded, calls.failed, calls.cancelled) == counted


@settings(deadline=None)
@given(st.lists(counters, max_size=5), st.builds(CallCounters, counts, counts, counts))
def test_the_sums_over_the_nodes_are_the_attempts(
    each: list[NodeCounters], calls: CallCounters
) -> None:
    stats = pool_stats([node(at, one) for at, one in enumerate(each)], strategy="s", calls=calls)
    performance = stats["node_performance"].values()
    assert stats["attempts"] == sum(one["total_requests"] for one in performance)
    assert stats["attempts"] == sum(stats["nodes_used"].values())
    assert stats["attempts"] == (
        stats["successful_attempts"] + stats["failed_attempts"] + stats["cancelled_attempts"]
    )
    assert stats["failed_attempts"] == sum(one["failed_requests"] for one in performance)
    assert stats["failed_attempts"] == sum(one.failed + one.rejected for one in each)
    assert (stats["total_requests"], stats["successful_requests"]) == (
        calls.succeeded + calls.failed + calls.cancelled,
        calls.succeeded,
    )
    assert stats["vectors"] == sum(one.vectors for one in each)
    assert stats["tokens"] == sum(one.tokens for one in each)


def test_the_dictionary_has_the_ancestors_format() -> None:
    used = NodeCounters(
        succeeded=2, failed=1, rejected=1, cancelled=1, vectors=64, tokens=90, latency=0.25
    )
    nodes = [
        node(
            2,
            used,
            priority=1,
            active=3,
            queued=4,
            limit=2,
            breaker="open",
            is_draining=True,
            cpu_load=0.5,
            gpu_free_mem=8000.0,
            distrusted=("m:latest",),
        ),
        node(3, NodeCounters(), is_available=False, error="connection refused"),
    ]
    calls = CallCounters(1, 1, 1, retries=1, second_opinions=2, hedges=3)
    assert pool_stats(nodes, strategy="soonest", plans={"fan_out": 2}, calls=calls) == {
        "total_requests": 3,
        "successful_requests": 1,
        "failed_requests": 1,
        "cancelled_requests": 1,
        "attempts": 5,
        "successful_attempts": 2,
        "failed_attempts": 2,
        "cancelled_attempts": 1,
        "retries": 1,
        "second_opinions": 2,
        "hedges": 3,
        "vectors": 64,
        "tokens": 90,
        "plans": {"fan_out": 2},
        "nodes_used": {"10.0.0.2:11434": 5},
        "node_performance": {
            "10.0.0.2:11434": {
                "host": "http://10.0.0.2:11434",
                "name": "n2",
                "latency_ms": 250.0,
                "success_rate": pytest.approx(2 / 3),
                "total_requests": 5,
                "failed_requests": 2,
                "available": True,
                "active_requests": 3,
                "queued_requests": 4,
                "concurrency_limit": 2,
                "circuit_breaker": "open",
                "draining": True,
                "cpu_load": 0.5,
                "gpu_free_mem": 8000.0,
                "priority": 1,
                "last_error": "",
                "distrusted_models": ["m:latest"],
            },
            "10.0.0.3:11434": {
                "host": "http://10.0.0.3:11434",
                "name": "n3",
                "latency_ms": 0.0,
                "success_rate": 1.0,
                "total_requests": 0,
                "failed_requests": 0,
                "available": False,
                "active_requests": 0,
                "queued_requests": 0,
                "concurrency_limit": 0,
                "circuit_breaker": "closed",
                "draining": False,
                "cpu_load": None,
                "gpu_free_mem": None,
                "priority": 0,
                "last_error": "connection refused",
                "distrusted_models": [],
            },
        },
        "nodes_configured": 2,
        "nodes": ["10.0.0.2:11434", "10.0.0.3:11434"],
        "routing_strategy": "soonest",
        "cache": {"enabled": False},
        "vram_monitoring": {"enabled": False, "nodes": {}},
        "dask": {"enabled": False},
    }


MB = 10**6
LOADED = {"all-minilm:latest": LoadedModel("all-minilm:latest", size=50 * MB, size_vram=40 * MB)}
MEMORY = [
    pytest.param({}, {}, None, id="nobody told"),
    pytest.param(
        {},
        {"loaded": {}},
        {"total": None, "free": None, "models": {}, "source": "ollama"},
        id="nothing in memory",
    ),
    pytest.param(
        {},
        {"loaded": LOADED},
        {"total": None, "free": None, "models": {"all-minilm:latest": 40.0}, "source": "ollama"},
        id="what Ollama tells",
    ),
    pytest.param(
        {"vram_gb": 1.0},
        {"loaded": LOADED},
        {
            "total": 1073.741824,
            "free": 1033.741824,
            "models": {"all-minilm:latest": 40.0},
            "source": "settings",
        },
        id="with what the user says",
    ),
    pytest.param(
        {"vram_gb": 1.0},
        {"gpu_memory_total": 2000 * MB, "gpu_memory_free": 500 * MB},
        {"total": 2000.0, "free": 500.0, "models": {}, "source": "agent"},
        id="an agent counts more",
    ),
]


@pytest.mark.parametrize(("spec", "known", "told"), MEMORY)
def test_gpu_memory_is_told_as_far_as_it_is_known(
    spec: dict[str, Any], known: dict[str, Any], told: dict[str, Any] | None
) -> None:
    state = NodeState(NodeSpec("http://10.0.0.2:11434", name="gpu1", **spec), **known)
    found = pool_stats([], strategy="s", states=[state])["vram_monitoring"]
    assert found["enabled"] == (told is not None)
    assert found["nodes"] == ({} if told is None else {"10.0.0.2:11434": told})
