"""Which node gets a live request: the strategies, who is eligible, and what `explain` says."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Sequence
from typing import Any

import project_paths
import pytest
from routing_parts import NOW, REQUEST, Node

from aiosollol.core.routing.strategies import (
    STRATEGIES,
    NodeLoad,
    RouteRequest,
    performance,
    route,
    score_terms,
    strategy_of,
)
from aiosollol.errors import InvalidInput

DATA = project_paths.DATA
ROUTES = json.loads((DATA / "routing.json").read_text())
SCORES = json.loads((DATA / "score.json").read_text())


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
