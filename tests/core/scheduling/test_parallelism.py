"""The parallelism report, and the original's rule for when parallel execution is worth it."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aiosollol.cluster.state import ClusterState
from aiosollol.core.locality import machines_of
from aiosollol.core.node import NodeSpec
from aiosollol.core.scheduling.cost import Cost
from aiosollol.core.scheduling.parallelism import (
    DEFAULT_SIZES,
    DEFAULT_TOKENS_PER_ITEM,
    is_parallel_worthwhile,
    parallelism_report,
)
from aiosollol.core.scheduling.planner import (
    Candidate,
    Mode,
    PlanOptions,
    Reason,
)
from aiosollol.errors import InvalidInput


def node(name: str, seconds_per_token: float, machine: str = "") -> Candidate:
    return Candidate(name, Cost(0.0, seconds_per_token, observations=5), machine or name)


# An item of 100 tokens takes 0.1 s on the fast one.
FAST, MEDIUM, SLOW = node("fast", 0.001), node("medium", 0.002), node("slow", 0.1)


def test_an_entry_for_each_size_in_the_order_given() -> None:
    report = parallelism_report([FAST, MEDIUM], [200, 1, 50], tokens_per_item=100)
    assert [entry.items for entry in report] == [200, 1, 50]
    assert [entry.plan.items for entry in report] == [200, 1, 50]


def test_where_parallel_wins() -> None:
    (entry,) = parallelism_report([FAST, MEDIUM], [300], tokens_per_item=100)
    assert (entry.recommendation, entry.plan.mode) == ("parallel", Mode.FAN_OUT)
    assert entry.plan.reason is Reason.BALANCED_CLUSTER
    assert entry.sequential_seconds == pytest.approx(30.0)
    assert entry.parallel_seconds == pytest.approx(20.0)
    assert entry.saved_seconds == pytest.approx(10.0)


def test_where_one_node_is_as_good() -> None:
    (entry,) = parallelism_report([FAST, SLOW], [10], tokens_per_item=100)
    assert (entry.recommendation, entry.plan.reason) == ("sequential", Reason.DOMINANT_NODE)
    assert entry.sequential_seconds == pytest.approx(1.0)
    # Shared out by speed, the slow node gets nothing: it is no slower either.
    assert entry.parallel_seconds == pytest.approx(1.0)
    assert entry.saved_seconds == 0.0


def test_rules_that_forgo_a_gain_save_nothing() -> None:
    (entry,) = parallelism_report(
        [FAST, MEDIUM], [15], tokens_per_item=100, options=PlanOptions(policy="rules")
    )
    assert (entry.recommendation, entry.plan.reason) == ("sequential", Reason.SMALL_BATCH)
    assert entry.parallel_seconds < entry.sequential_seconds
    assert entry.saved_seconds == 0.0


def test_verdicts_decide_about_nodes_on_one_machine() -> None:
    box = [node("a", 0.001, "box"), node("b", 0.001, "box")]
    pair = frozenset("ab")
    (apart,) = parallelism_report(box, [100], verdicts={pair: False})
    (together,) = parallelism_report(box, [100], verdicts={pair: True})
    assert (apart.recommendation, together.recommendation) == ("sequential", "parallel")
    assert apart.parallel_seconds == pytest.approx(2 * together.parallel_seconds)


def test_what_it_takes_by_default() -> None:
    report = parallelism_report([FAST])
    assert tuple(entry.items for entry in report) == DEFAULT_SIZES == (10, 50, 100, 200)
    assert report[0].sequential_seconds == pytest.approx(10 * DEFAULT_TOKENS_PER_ITEM * 0.001)


def test_no_sizes_no_entries() -> None:
    assert parallelism_report([FAST], []) == []


@pytest.mark.parametrize("size", [0, -5, 2.5, "10", None])
def test_a_size_that_cannot_be_is_refused(size: Any) -> None:
    with pytest.raises(InvalidInput, match="a batch size must be a whole number of at least 1"):
        parallelism_report([FAST], [10, size])


@settings(deadline=None)
@given(
    st.lists(st.floats(1e-5, 0.1), min_size=1, max_size=6),
    st.integers(1, 10_000),
    st.sampled_from(["adaptive", "rules"]),
)
def test_what_is_recommended_is_what_is_planned(
    speeds: list[float], size: int, policy: Any
) -> None:
    view = [node(f"n{index}", speed) for index, speed in enumerate(speeds)]
    (entry,) = parallelism_report(view, [size], options=PlanOptions(policy=policy))
    is_single = entry.plan.mode is Mode.SINGLE_NODE
    assert entry.recommendation == ("sequential" if is_single else "parallel")
    assert entry.parallel_seconds <= entry.sequential_seconds * (1 + 1e-9)
    assert 0.0 <= entry.saved_seconds <= entry.sequential_seconds
    if policy == "adaptive" and not is_single:
        assert entry.saved_seconds >= 0.05 * entry.sequential_seconds * (1 - 1e-9)


# --- machines


@pytest.mark.parametrize(
    ("nodes", "machines"),
    [
        ([], 0),
        (["10.0.0.2"], 1),
        (["10.0.0.2:11434", "10.0.0.2:11435"], 1),
        (["10.0.0.2", "10.0.0.3"], 2),
        (["127.0.0.1", "localhost:11435", "http://[::1]:11436", "10.0.0.2"], 2),
        ([{"url": "10.0.0.2", "machine": "box"}, {"url": "10.0.0.3", "machine": "box"}], 1),
        (
            [
                {"url": "10.0.0.2:1", "machine": "gpu0"},
                {"url": "10.0.0.2:2", "machine": "gpu1"},
            ],
            2,
        ),
    ],
)
def test_machines_are_counted_by_address_and_label(nodes: list[Any], machines: int) -> None:
    assert len(set(ClusterState(nodes).machines.values())) == machines


@pytest.mark.parametrize(
    ("tasks", "nodes", "is_worthwhile", "why"),
    [
        (0, ["10.0.0.2", "10.0.0.3"], False, "0 tasks: nothing to run in parallel"),
        (1, ["10.0.0.2", "10.0.0.3"], False, "1 task: nothing to run in parallel"),
        (2, ["10.0.0.2"], False, "1 node on 1 machine: no other node"),
        (
            99,
            ["10.0.0.2:1", "10.0.0.2:2"],
            False,
            "2 nodes on 1 machine: one at a time, they would share it",
        ),
        (
            2,
            ["10.0.0.2", "10.0.0.3"],
            True,
            "2 nodes on 2 machines: 2 tasks can run in parallel",
        ),
    ],
)
def test_the_rule_of_the_original(
    tasks: int, nodes: list[str], is_worthwhile: bool, why: str
) -> None:
    specs = [NodeSpec(node) for node in nodes]
    assert is_parallel_worthwhile(tasks, machines_of(specs)) == (is_worthwhile, why)
