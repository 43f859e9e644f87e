"""Why a node is not eligible, and why a request goes where it does."""

from __future__ import annotations

import random

import pytest
from routing_parts import NOW, REQUEST, Node

from aiosollol.core.routing.circuit_breaker import (
    CLOSED,
    CallFailed,
    CallSent,
    advance,
)
from aiosollol.core.routing.explain import explain, why_less, why_not
from aiosollol.core.routing.retry import Failure
from aiosollol.core.routing.strategies import (
    performance,
    score,
    strategy_of,
)

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


def test_explain_other_strategies_and_no_eligible_node() -> None:
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
