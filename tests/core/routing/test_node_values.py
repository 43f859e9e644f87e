"""The values that routing keeps of a node, and how near they come to an oracle."""

from __future__ import annotations

import json
import math
import pathlib
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from routing_parts import REQUEST, Node

from aiosollol.core.routing.node_health import (
    Backlog,
    NodeHealth,
    Steady,
    share,
)
from aiosollol.core.routing.strategies import (
    STRATEGIES,
    performance,
    predict,
    route,
)
from aiosollol.core.scheduling.cost import Cost
from benchmarks import routing as benchmark
from benchmarks.routing import Shape, Simulation

# The values that a node carries.


def test_share_grows_from_a_tenth_to_all_of_it_within_four_seconds() -> None:
    assert [share(5.0, now) for now in (5.0, 7.0, 9.0, 99.0)] == pytest.approx([0.1, 0.55, 1, 1])
    assert share(-math.inf, 0.0) == 1.0
    assert share(5.0, 4.0) == pytest.approx(0.1)  # clocks of two threads


def test_a_returned_node_gets_its_share_and_no_more() -> None:
    rng = random.Random(1)
    nodes = [Node("back", 0.01, returned_at=0.0), Node("other", 1.0)]
    counts = []
    for now in (0.0, 2.0, 4.0):
        chosen = [route(performance, nodes, REQUEST, now, rng).name for _ in range(1000)]
        counts.append(chosen.count("back"))
    assert counts[0] == pytest.approx(100, abs=30)
    assert counts[1] == pytest.approx(550, abs=50)
    assert counts[2] == 1000
    alone = [Node("back", returned_at=0.0)]
    assert route(performance, alone, REQUEST, 0.0, rng).name == "back"


def test_backlog_counts_down_and_then_up() -> None:
    backlog = Backlog()
    assert backlog.ahead(5.0) == 0.0
    backlog.enter(2.0, 10.0)
    backlog.enter(1.0, 10.0)
    assert [backlog.ahead(now) for now in (10.0, 11.0, 12.0)] == pytest.approx([3.0, 2.0, 1.0])
    # Late by four seconds: it is taken to need four more.
    assert backlog.ahead(16.0) == pytest.approx(5.0)
    backlog.leave(2.0, 16.0)
    assert backlog.ahead(16.5) == pytest.approx(0.5)
    backlog.leave(1.0, 17.0)
    assert (len(backlog), backlog.ahead(99.0)) == (0, 0.0)


def test_backlog_with_one_given_up_in_the_middle() -> None:
    backlog = Backlog()
    for seconds in (1.0, 2.0, 3.0):
        backlog.enter(seconds, 0.0)
    backlog.leave(2.0, 0.5)
    assert backlog.ahead(0.5) == pytest.approx(3.5)  # the first goes on as it was


@given(st.lists(st.floats(0.0, 1e3), max_size=20), st.randoms(use_true_random=False))
def test_backlog_is_empty_when_all_have_left(entries: list[float], rng: random.Random) -> None:
    backlog = Backlog()
    for seconds in entries:
        backlog.enter(seconds, 0.0)
    order = list(entries)
    rng.shuffle(order)
    for index, seconds in enumerate(order):
        assert backlog.ahead(float(index)) >= 0.0
        backlog.leave(seconds, float(index))
    assert (len(backlog), backlog.ahead(1e9)) == (0, 0.0)


def test_a_slow_answer_counts_at_once_and_fades() -> None:
    standing = NodeHealth()
    standing.asked(0.0)
    standing.answered(0.1, 0.1, 0.0)
    assert standing.factor(0.0) == 1.0
    standing.answered(0.3, 0.1, 0.0)  # chance
    assert standing.factor(0.0) == 1.0
    standing.answered(5.0, 0.1, 0.0)
    peak = standing.pace(0.0)
    assert peak > 20
    assert 1.0 < standing.pace(5.0) < peak / 2
    assert standing.pace(60.0) == pytest.approx(1.0, abs=0.01)
    standing.answered(0.1, 0.1, 0.0)  # a good one takes half of it away
    assert standing.pace(0.0) == pytest.approx(1 + (peak - 1) / 2)
    for _ in range(20):
        standing.answered(0.1, 0.1, 0.0)
    assert standing.factor(0.0) == 1.0


def test_success_rate_fades_back() -> None:
    standing = NodeHealth()
    assert standing.success_rate(0.0) == 1.0
    standing.failed(0.0)
    assert standing.success_rate(0.0) == pytest.approx(0.8)
    assert 0.9 < standing.success_rate(20.0) < 0.95
    for _ in range(50):
        standing.failed(0.0)
    assert standing.success_rate(0.0) == pytest.approx(0.0, abs=1e-3)
    assert standing.factor(0.0) == pytest.approx(10.0)  # not without bound
    for _ in range(50):
        standing.answered(0.1, 0.1, 0.0)
    assert standing.success_rate(0.0) == 1.0


def test_who_was_not_asked_for_long_is_worth_a_try() -> None:
    standing = NodeHealth()
    assert standing.factor(1e6) == 1.0  # nothing is known of it that could be outdated
    standing.asked(100.0)
    assert standing.factor(130.0) == 1.0
    assert standing.factor(190.0) == pytest.approx(0.5)
    assert standing.factor(1e6) == pytest.approx(0.1)
    nodes = [Node("used", 0.1), Node("slow", 0.8)]
    nodes[0].standing.asked(1000.0)
    nodes[1].standing.asked(0.0)
    assert predict(nodes, REQUEST, 1000.0) == pytest.approx([0.1, 0.08])
    nodes[1].standing.asked(1000.0)  # by one request only
    assert predict(nodes, REQUEST, 1000.0) == pytest.approx([0.1, 0.8])


def test_steady_is_calmer_than_what_it_follows_and_gets_there() -> None:
    rng = random.Random(1)
    cost, said, steady = Cost.unknown(), [], None
    for index in range(300):
        tokens = rng.uniform(20, 400)
        slow = 3.0 if index >= 200 else 1.0
        cost = cost.observe(tokens, slow * (0.002 + 1e-4 * tokens) * rng.uniform(0.5, 1.5))
        if steady is None:
            steady = Steady(cost)
            assert steady.seconds(100.0) == pytest.approx(cost.seconds(100.0))
        else:
            steady.follow(cost)
        said.append((cost.seconds(200.0) / 0.022, steady.seconds(200.0) / 0.022))
    jumpy, calm = zip(*said[50:200], strict=True)
    assert max(calm) - min(calm) < (max(jumpy) - min(jumpy)) / 2
    assert 0.85 < min(calm) < max(calm) < 1.15
    assert said[-1][1] == pytest.approx(3.0, rel=0.2)


# What it comes to: benchmarks/routing.py in small. The seeds are fixed, so the figures are.

SHAPES = [shape for shape in benchmark.all_shapes() if shape.is_judged]


@pytest.mark.parametrize("shape", SHAPES, ids=[shape.name for shape in SHAPES])
def test_close_to_an_oracle_and_far_from_round_robin(shape: Shape) -> None:
    row = benchmark.measure(shape, 3000, 1, ("performance", "round_robin"))
    assert row.ratios["performance"] <= 1.3
    if row.is_limited:  # it passes over nodes that are full, and so is more than round robin
        assert row.ratios["performance"] <= 0.75 * row.ratios["round_robin"]
    else:
        assert row.ratios["performance"] <= 0.5 * row.ratios["round_robin"]
    assert row.is_met


def test_every_request_is_answered_once_whatever_dies() -> None:
    shape = next(shape for shape in SHAPES if "dies" in shape.name)
    for strategy in (*STRATEGIES, "oracle"):
        simulation = Simulation(shape, strategy, 1000, 3).run()
        assert len(simulation.latencies) == 1000
        assert min(simulation.latencies) > 0
    assert Simulation(shape, "performance", 1000, 3).run().failures > 0


def test_the_benchmark_prints_its_table(
    capsys: pytest.CaptureFixture[str], tmp_path: pathlib.Path
) -> None:
    path = tmp_path / "rows.json"
    benchmark.main(["--seeds", "1", "--requests", "300", "--only", "2 nodes", "--json", str(path)])
    out = capsys.readouterr().out
    assert "2 nodes, 1 and 10" in out
    assert "a decision among 10 nodes" in out
    assert json.loads(path.read_text())[0]["ratios"]["performance"] > 0
    benchmark.main(["--only", "nothing of that name"])
    assert "no such shape" in capsys.readouterr().out
