"""core/scheduling/planner: nodes on one machine, and what a plan says."""

from __future__ import annotations

import math
from typing import Any

import pytest
from planner_parts import RULES, items, node, nodes, unknown

from aiosollol.core.scheduling.cost import Cost
from aiosollol.core.scheduling.planner import (
    BatchShape,
    Candidate,
    Plan,
    PlanOptions,
    Reason,
    plan,
    speed_ratio,
)
from aiosollol.errors import InvalidInput

# --- nodes on one machine


def box(first: float = 0.1, second: float = 0.2) -> list[Candidate]:
    return [node("a", first, machine="box"), node("b", second, machine="box")]


TOGETHER = {frozenset("ab"): True}
APART = {frozenset("ab"): False}


@pytest.mark.parametrize(
    ("same_machine", "verdicts", "workers", "trials"),
    [
        ("measure", {}, "a", (("a", "b"),)),
        ("measure", TOGETHER, "ab", ()),
        ("measure", APART, "a", ()),
        ("share", {}, "ab", ()),
        ("share", APART, "ab", ()),
        ("one", {}, "a", ()),
        ("one", TOGETHER, "a", ()),
    ],
)
@pytest.mark.parametrize("policy", ["adaptive", "rules"])
def test_nodes_on_one_machine(
    policy: Any, same_machine: Any, verdicts: Any, workers: str, trials: Any
) -> None:
    options = PlanOptions(policy=policy, same_machine=same_machine)
    made = plan(box(), items(100), options, verdicts)
    assert set(made.shares) == set(workers)
    assert made.trials == trials
    if workers == "a":
        assert made.reason is Reason.SAME_MACHINE
        assert made.detail == "2 nodes on 1 machine: one at a time, they would share it"
        # Who is to be tried is held back for that; else it may take over.
        assert made.standby == (() if trials else ("b",))


def test_a_pair_is_tried_beside_nodes_on_other_machines() -> None:
    cluster = [*box(), node("c", 0.1)]
    made = plan(cluster, items(1000))
    assert set(made.shares) == {"a", "c"}
    assert made.trials == (("a", "b"),)
    assert made.standby == ()


def test_a_pair_is_not_tried_where_its_first_does_not_work() -> None:
    cluster = [node("fast", 0.001), *box(1.0, 2.0)]
    made = plan(cluster, items(10))
    assert set(made.shares) == {"fast"}
    assert made.trials == ()
    assert not any(pair in made.shares for pair in "ab")


def test_other_labels_are_other_machines() -> None:
    cluster = [node("a", 0.1, machine="rack1"), node("b", 0.1, machine="rack2")]
    assert set(plan(cluster, items(100)).shares) == {"a", "b"}
    assert plan(cluster, items(100)).trials == ()


def test_parallel_by_force_is_over_machines_and_says_so() -> None:
    made = plan([*box(), node("c", 0.1)], items(100), PlanOptions(force_mode="parallel"))
    assert set(made.shares) == {"a", "c"}
    assert made.detail == "every machine was requested"


def test_nodes_that_are_not_known_are_measured_one_of_each_machine() -> None:
    cluster = [unknown("a", machine="box"), unknown("b", machine="box"), unknown("c")]
    made = plan(cluster, items(100))
    assert made.reason is Reason.MEASURING
    assert set(made.shares) == {"a", "c"}
    assert made.trials == (("a", "b"),)


# --- words and values


@pytest.mark.parametrize(
    ("made", "sentence"),
    [
        (
            plan(nodes(0.1, 1.0, 1.0), items(100)),
            "fan-out of 100 items (top_nodes): 1.2 times as fast as the best node alone; "
            "a 84, b 8, c 8; about 8.40 s",
        ),
        (
            plan(nodes(0.1), items(10)),
            "single-node stream of 10 items (single_node): there is no other node; "
            "a 10; about 1.00 s",
        ),
        (
            plan(nodes(0.1, 0.85), items(200), RULES),
            "single-node stream of 200 items (dominant_node): "
            "the fastest node is 8.5 times as fast; a 200; about 20.00 s",
        ),
        (
            # A time that is a guess is not told.
            plan([unknown("a"), unknown("b")], items(10)),
            "fan-out of 10 items (measuring): the speed of 2 nodes is not known yet; a 5, b 5",
        ),
    ],
)
def test_a_plan_is_a_sentence(made: Plan, sentence: str) -> None:
    assert str(made) == sentence


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"policy": "fast"}, "policy must be one of 'adaptive', 'rules', not 'fast'"),
        ({"policy": None}, "policy"),
        ({"force_mode": "both"}, "force_mode must be one of None, 'sequential', 'parallel'"),
        ({"same_machine": True}, "same_machine must be one of 'measure', 'share', 'one'"),
        ({"min_gain": 1.0}, "min_gain must be a fraction from 0 to 1, not 1.0"),
        ({"min_gain": -0.1}, "min_gain"),
        ({"min_gain": math.nan}, "min_gain"),
        ({"min_gain": "5%"}, "min_gain"),
        ({"min_gain": True}, "min_gain"),
        ({"chunk_seconds": 0.0}, "chunk_seconds must be a number above 0, not 0.0"),
        ({"dominant_ratio": -1}, "dominant_ratio"),
        ({"balanced_ratio": math.inf}, "balanced_ratio"),
        ({"top_nodes": 0}, "top_nodes"),
        ({"top_nodes": 2.5}, "top_nodes must be a whole number of at least 0, not 2.5"),
        ({"small_batch": -1}, "small_batch"),
        ({"top_batch": "50"}, "top_batch"),
    ],
)
def test_options_that_make_no_sense_are_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(InvalidInput, match=said):
        PlanOptions(**options)


@pytest.mark.parametrize(
    ("count", "tokens"), [(-1, 1.0), (1.5, 1.0), (1, -1.0), (1, math.nan), (1, math.inf), ("1", 1)]
)
def test_a_shape_that_cannot_be_is_refused(count: Any, tokens: Any) -> None:
    with pytest.raises(InvalidInput):
        BatchShape(count, tokens)


def test_tokens_per_item() -> None:
    assert BatchShape(10, 750.0).tokens_per_item == 75.0
    assert BatchShape(0, 0.0).tokens_per_item == 0.0


def test_a_batch_without_items_takes_no_time() -> None:
    made = plan(nodes(0.1, 0.1), BatchShape(0, 0.0))
    assert made.predicted_seconds == 0.0
    assert sum(made.shares.values()) == 0


@pytest.mark.parametrize(
    ("seconds", "ratio"), [((0.1,), 1.0), ((0.1, 0.1), 1.0), ((0.5, 0.1, 0.2), 2.0)]
)
def test_the_speed_ratio_is_the_fastest_to_the_next(
    seconds: tuple[float, ...], ratio: float
) -> None:
    assert speed_ratio(nodes(*seconds), items(10)) == pytest.approx(ratio)


def test_overhead_counts_once_for_every_chunk() -> None:
    # Chunks of half a second with 50 ms of overhead: 10 items of 45 ms in each.
    slow_to_start = Candidate("a", Cost(0.05, 0.045, observations=9), "a")
    made = plan([slow_to_start], items(100))
    assert made.predicted_seconds == pytest.approx(0.05 + 100 * 0.05)
