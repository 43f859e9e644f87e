"""Which node gets a live request: the strategies, who is eligible, and what `explain` says."""

from __future__ import annotations

import json
import math
import pathlib
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import project_paths
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiosollol.core.routing.chat_cost import ChatSeconds
from aiosollol.core.routing.circuit_breaker import (
    CLOSED,
    Breaker,
    CallFailed,
    CallSent,
    advance,
)
from aiosollol.core.routing.explain import explain, why_less, why_not
from aiosollol.core.routing.node_health import (
    Backlog,
    NodeHealth,
    Steady,
    share,
)
from aiosollol.core.routing.retry import Failure
from aiosollol.core.routing.strategies import (
    STRATEGIES,
    NodeLoad,
    RouteRequest,
    performance,
    predict,
    route,
    score,
    score_terms,
    strategy_of,
)
from aiosollol.core.scheduling.cost import Cost
from aiosollol.errors import InvalidInput
from benchmarks import routing as benchmark
from benchmarks.routing import Shape, Simulation

DATA = project_paths.DATA
ROUTES = json.loads((DATA / "routing.json").read_text())
SCORES = json.loads((DATA / "score.json").read_text())

REQUEST = RouteRequest("m", 50.0)
NOW = 1.0


@dataclass
class Node:
    """A node that knows what it is told. failures and peak are those of a moment ago."""

    name: str
    seconds_: float | None = 0.1
    ahead_: float = 0.0
    load: float = 0.0
    fits_: bool | None = None
    priority: int = 0
    in_flight: int = 0
    queued: int = 0
    limit: int = 100
    latency: float = 0.0
    cpu_load: float | None = None
    gpu_free_mem: float | None = None
    returned_at: float = -math.inf
    is_down: bool = False
    error: str = ""
    is_draining: bool = False
    breaker: Breaker = CLOSED
    digest_: str = "sha"
    models: tuple[str, ...] = ("m",)
    failures: int = 0
    peak: float = 1.0
    standing: NodeHealth = field(default_factory=lambda: NodeHealth(NOW))

    def __post_init__(self) -> None:
        for _ in range(self.failures):
            self.standing.failed(NOW)
        if self.peak > 1.0:
            self.standing.answered(self.peak, 1.0, NOW)

    def seconds(self, request: RouteRequest) -> float | None:
        return self.seconds_

    def ahead(self, now: float) -> float:
        return self.ahead_

    def wait(self, request: RouteRequest, now: float) -> float:
        return self.ahead_ + self.queued * (self.seconds_ or 0.0)

    def chat_seconds(self, request: RouteRequest) -> ChatSeconds | None:
        return None if self.seconds_ is None else ChatSeconds(0.02, self.seconds_ - 0.02)

    def has_slot(self, request: RouteRequest) -> bool:
        return self.in_flight < self.limit

    def load_seconds(self, model: str) -> float:
        return self.load

    def fits(self, model: str) -> bool | None:
        return self.fits_

    def has_model(self, model: str) -> bool:
        return model in self.models

    def digest(self, model: str) -> str:
        return self.digest_

    def is_distrusted(self, model: str) -> bool:
        return False


def node_of(values: dict[str, Any]) -> Node:
    names = {"seconds": "seconds_", "ahead": "ahead_", "fits": "fits_"}
    return Node(**{names.get(key, key): value for key, value in values.items()})


@pytest.mark.parametrize("case", ROUTES, ids=[f"{c['strategy']}: {c['case']}" for c in ROUTES])
def test_strategies(case: dict[str, Any]) -> None:
    nodes = [node_of(values) for values in case["nodes"]]
    for seed in range(5):
        rng = random.Random(seed)
        assert route(strategy_of(case["strategy"]), nodes, REQUEST, NOW, rng).name == case["chosen"]


@pytest.mark.parametrize("case", SCORES, ids=[case["case"] for case in SCORES])
def test_score(case: dict[str, Any]) -> None:
    node = Node(
        "n",
        cpu_load=case["cpu_load"],
        gpu_free_mem=case["gpu_free_mem"],
        priority=case["priority"],
        latency=case["latency_ms"] / 1000,
        failures=case["failures"],
    )
    assert sum(score_terms(node, NOW)) == pytest.approx(case["score"], abs=1e-7)


def test_an_unknown_strategy_names_those_there_are() -> None:
    with pytest.raises(InvalidInput, match="performance, score, round_robin") as caught:
        strategy_of("fastest")
    assert "'fastest'" in str(caught.value)
    with pytest.raises(InvalidInput):
        strategy_of(["performance"])  # type: ignore[arg-type]


def test_names() -> None:
    names = ("performance", "score", "round_robin", "priority", "least_loaded", "random")
    assert names == STRATEGIES
    assert strategy_of("performance") is performance


def choose(strategy: str, nodes: Sequence[Node], times: int, seed: int = 1) -> Counter[str]:
    rng, function = random.Random(seed), strategy_of(strategy)
    return Counter(route(function, nodes, REQUEST, NOW, rng).name for _ in range(times))


def test_close_nodes_share() -> None:
    nodes = [Node("a", 0.100), Node("b", 0.105), Node("c", 0.109), Node("far", 0.12)]
    chosen = choose("performance", nodes, 300)
    # The better of two random ones: the best of three is in two of three pairs.
    assert 170 < chosen["a"] < 230
    assert 70 < chosen["b"] < 130
    assert set(chosen) == {"a", "b"}


def test_equal_nodes_share_evenly() -> None:
    assert all(
        80 < count < 120 for count in choose("performance", [Node(n) for n in "abc"], 300).values()
    )
    assert all(
        120 < count < 180 for count in choose("performance", [Node(n) for n in "ab"], 300).values()
    )


def test_programs_that_know_the_same_do_not_all_go_to_one_node() -> None:
    nodes = [Node(name, 0.1 + index / 1000) for index, name in enumerate("abcdef")]
    chosen = {
        route(performance, nodes, REQUEST, NOW, random.Random(seed)).name for seed in range(30)
    }
    assert len(chosen) > 3


def test_untried_nodes_are_tried_one_request_each() -> None:
    nodes = [Node("tried", 0.1), *(Node(name, None) for name in "abc")]
    for _ in range(3):
        chosen = route(performance, nodes, REQUEST, NOW, random.Random(1))
        assert chosen.name != "tried"
        assert not chosen.in_flight
        chosen.in_flight = 1
    assert route(performance, nodes, REQUEST, NOW, random.Random(1)).name == "tried"


def test_round_robin_takes_turns_whoever_is_there() -> None:
    function, rng = strategy_of("round_robin"), random.Random(1)
    nodes = [Node(name) for name in "abc"]
    turns = [route(function, nodes, REQUEST, NOW, rng).name for _ in range(6)]
    assert turns == list("abcabc")
    assert [route(function, nodes[:2], REQUEST, NOW, rng).name for _ in range(4)] == list("abab")
    assert route(function, nodes, REQUEST, NOW, rng).name == "c"  # its turn was the longest ago


def test_random_takes_all() -> None:
    assert all(
        70 < count < 130 for count in choose("random", [Node(n) for n in "abc"], 300).values()
    )


# Conversations.


def test_a_conversation_stays_at_home_unless_that_is_much_busier() -> None:
    home, other = Node("home", 1.0), Node("other", 1.0)
    request = RouteRequest("m", home="home")
    for name in STRATEGIES:
        function = strategy_of(name)
        home.ahead_ = 1.0  # one before us
        assert route(function, [other, home], request, NOW, random.Random(1)) is home
    home.ahead_ = 3.0
    assert route(performance, [other, home], request, NOW, random.Random(1)) is other
    assert route(performance, [other], request, NOW, random.Random(1)) is other  # home is gone


# A function of the user's own.


def test_a_function_of_the_users_own() -> None:
    seen: list[str] = []

    def last(
        nodes: Sequence[NodeLoad], request: RouteRequest, now: float, rng: random.Random
    ) -> NodeLoad:
        seen.append(f"{request.model} {len(nodes)}")
        return nodes[-1]

    nodes = [Node("a"), Node("b"), Node("full", in_flight=2, limit=2)]
    assert strategy_of(last) is last
    assert route(last, nodes, REQUEST, NOW, random.Random(1)).name == "b"
    assert seen == ["m 2"]


def test_a_function_that_answers_nonsense_is_told_so() -> None:
    def wrong(
        nodes: Sequence[NodeLoad], request: RouteRequest, now: float, rng: random.Random
    ) -> NodeLoad:
        return Node("elsewhere")

    with pytest.raises(InvalidInput, match="elsewhere"):
        route(wrong, [Node("a"), Node("b")], REQUEST, NOW, random.Random(1))


# Who is eligible.

OPEN = advance(CLOSED, CallFailed(Failure.NODE), NOW - 0.5)
PROBED = advance(advance(CLOSED, CallFailed(Failure.NODE), NOW - 1), CallSent(), NOW)


@pytest.mark.parametrize(
    ("node", "digest", "reason"),
    [
        (Node("n"), None, ""),
        (Node("n", is_draining=True, is_down=True), None, "draining"),
        (Node("n", is_down=True, error="refused"), None, "down: refused"),
        (Node("n", is_down=True), None, "down"),
        (Node("n", models=()), None, "lacks the model m"),
        (Node("n"), "sha", ""),
        (Node("n", digest_="0123456789abcdef"), "f" * 64, "vectors differ: digest 0123456789ab, "),
        (Node("n", digest_=""), "f" * 64, "vectors differ: digest unknown, not ffffffffffff"),
        (Node("n", breaker=OPEN), None, "open after failures, for 0.5 s more"),
        (Node("n", breaker=PROBED), None, "a probe is in flight after failures"),
        (Node("n", breaker=advance(CLOSED, CallFailed(Failure.NODE), NOW - 1)), None, ""),
    ],
)
def test_why_not(node: Node, digest: str | None, reason: str) -> None:
    why = why_not(node, REQUEST._replace(digest=digest), NOW)
    assert why.startswith(reason)
    assert bool(why) is bool(reason)


def test_why_less() -> None:
    assert why_less(Node("n"), REQUEST, NOW) == ""
    full = Node("n", in_flight=2, limit=2, queued=3, returned_at=NOW - 2)
    said = "at its limit (2 of 2 in flight, 3 waiting), returning, gets 55% of its share"
    assert why_less(full, REQUEST, NOW) == said


# Explanations.


def test_explain_performance() -> None:
    nodes = [
        Node("fast", 0.1, 0.2, in_flight=2, limit=2),
        Node("slow", 0.9),
        Node("gone", is_down=True, error="refused"),
    ]
    said = explain(performance, "performance", nodes, REQUEST, NOW, random.Random(1))
    assert (said.chosen, said.waits) == ("fast", True)
    assert [node.is_eligible for node in said.nodes] == [True, True, False]
    assert said.nodes[0].terms["expected"] == pytest.approx(0.3)
    assert said.nodes[2].terms == {}
    assert str(said).splitlines() == [
        "m waits for fast, by the strategy 'performance'",
        "-> fast  expected 0.3, queue 0.2, own 0.1, load 0, success rate 1, pace 1; "
        "at its limit (2 of 2 in flight)",
        "   slow  expected 0.9, queue 0, own 0.9, load 0, success rate 1, pace 1",
        "   gone  down: refused",
    ]


def test_explain_a_chat() -> None:
    nodes = [Node("known", 0.1, 0.2, load=1.0), Node("untried", None)]
    request = REQUEST._replace(kind="chat")
    said = explain(performance, "performance", nodes, request, NOW, random.Random(1))
    assert str(said).splitlines() == [
        "m goes to untried, by the strategy 'performance'",
        "   known    expected 1.3, queue 0.2, prefill 0.02, decode 0.08, load 1, success rate 1, "
        "pace 1",
        "-> untried  expected 0, queue 0, prefill 0, decode 0, load 0, success rate 1, pace 1",
    ]


def test_explain_score() -> None:
    nodes = [Node("a", cpu_load=0.5, gpu_free_mem=1000, priority=1, latency=0.5)]
    said = explain(score, "score", nodes, REQUEST, NOW, random.Random(1))
    assert str(said).splitlines() == [
        "m goes to a, by the strategy 'score'",
        "-> a  score 0.3502, cpu 0.15, gpu 0.0002, priority 0.1, latency 0.1, failures 0",
    ]


def test_explain_others_and_nobody() -> None:
    function = strategy_of("least_loaded")
    said = explain(
        function, "least_loaded", [Node("a", in_flight=3)], REQUEST, NOW, random.Random(1)
    )
    assert "in flight 3, queued 0, priority 0" in str(said)
    said = explain(function, "least_loaded", [Node("a", models=())], REQUEST, NOW, random.Random(1))
    assert said.chosen is None
    assert str(said) == "no node is eligible for m\n   a  lacks the model m"
    said = explain(function, "least_loaded", [], REQUEST, NOW, random.Random(1))
    assert str(said) == "no node is eligible for m"


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
