"""How what happens to a node changes what is known of it: state and event -> state."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aiosollol.core.node import LoadedModel, ModelInfo, NodeSpec, NodeState
from aiosollol.core.node_transitions import (
    Answered,
    Event,
    Failed,
    Measured,
    Probed,
    ProbeFailed,
    advance,
    keeps_vectors,
)
from aiosollol.errors import (
    BadRequest,
    ConnectionLost,
    ModelMissing,
    NodeError,
    NodeTimeout,
    NodeUnreachable,
    ProtocolError,
    RunnerFailed,
    ServerBusy,
)

MODELS = {"x:latest": ModelInfo("x:latest"), "y:latest": ModelInfo("y:latest")}
LOADED = {"x:latest": LoadedModel("x:latest")}

NEW = NodeState(NodeSpec("http://n:1", "n"))
UP = replace(NEW, version="0.33", models=MODELS, loaded=LOADED)
SHAKY = replace(UP, failures=2, error="out of memory")
MISSED = replace(UP, missed=1, error="no answer in 5 s")
DOWN = replace(UP, failures=1, is_down=True, error="connection refused")

REFUSED = NodeUnreachable("n", "connection refused")
RESET = ConnectionLost("n", "reset by peer")
LATE = NodeTimeout("n", "no answer in 5 s")
HTML = ProtocolError("n", "answered HTML")
CRASHED = RunnerFailed("n", 500, "out of memory")
BUSY = ServerBusy("n", 503, "server busy")
BAD = BadRequest("n", 400, "the input length exceeds the context length")
MISSING = ModelMissing("n", 404, "model 'x' not found")

PROBED = Probed("0.33", MODELS, LOADED)


def down(state: NodeState, error: NodeError) -> NodeState:
    return replace(state, failures=state.failures + 1, is_down=True, error=error.detail)


def missed(state: NodeState, error: NodeError, *, is_down: bool) -> NodeState:
    return replace(state, missed=state.missed + 1, is_down=is_down, error=error.detail)


def blamed(state: NodeState, error: NodeError) -> NodeState:
    return replace(state, failures=state.failures + 1, error=error.detail)


TABLE = [
    pytest.param(NEW, PROBED, UP, id="a new node tells what it has"),
    pytest.param(
        UP, Probed("0.34", {}, {}), replace(NEW, version="0.34", models={}, loaded={}), id="news"
    ),
    pytest.param(UP, Probed("0.33", MODELS), UP, id="what is loaded could not be learned"),
    pytest.param(SHAKY, PROBED, UP, id="a probe forgives"),
    pytest.param(DOWN, PROBED, UP, id="a probe brings a node back"),
    pytest.param(
        NEW, ProbeFailed(LATE), missed(NEW, LATE, is_down=True), id="a new node is not there"
    ),
    pytest.param(UP, ProbeFailed(REFUSED), missed(UP, REFUSED, is_down=True), id="refused: gone"),
    pytest.param(UP, ProbeFailed(LATE), missed(UP, LATE, is_down=False), id="late once: busy"),
    pytest.param(
        MISSED, ProbeFailed(LATE), missed(MISSED, LATE, is_down=True), id="late twice: down"
    ),
    pytest.param(MISSED, PROBED, UP, id="late, then there"),
    pytest.param(MISSED, Answered(), UP, id="late, but it answers requests"),
    pytest.param(
        DOWN, ProbeFailed(LATE), missed(DOWN, LATE, is_down=True), id="down still, and why now"
    ),
    pytest.param(
        UP,
        Measured(0.5, 2**30, 2**29, "id"),
        replace(UP, cpu_load=0.5, gpu_memory_total=2**30, gpu_memory_free=2**29, machine="id"),
        id="an agent tells",
    ),
    pytest.param(
        replace(UP, cpu_load=0.5, machine="id"),
        Measured(None, None, None),
        replace(UP, machine="id"),
        id="an agent falls silent: its machine is the same",
    ),
    pytest.param(SHAKY, Answered(), UP, id="an answer forgives"),
    pytest.param(DOWN, Answered(), UP, id="an answer brings a node back"),
    pytest.param(UP, Failed(REFUSED, "x"), down(UP, REFUSED), id="not reached: down at once"),
    pytest.param(UP, Failed(RESET, "x"), blamed(UP, RESET), id="so is a broken connection"),
    pytest.param(UP, Failed(CRASHED, "x"), blamed(UP, CRASHED), id="a wrong answer is blamed"),
    pytest.param(UP, Failed(LATE, "x"), blamed(UP, LATE), id="so is none in time"),
    pytest.param(UP, Failed(HTML, "x"), blamed(UP, HTML), id="so is HTML"),
    pytest.param(SHAKY, Failed(HTML, "x"), blamed(SHAKY, HTML), id="and again, for the breaker"),
    pytest.param(DOWN, Failed(CRASHED, "x"), down(DOWN, CRASHED), id="blame does not bring back"),
    pytest.param(
        UP,
        Failed(MISSING, "x"),
        replace(UP, models={"y:latest": MODELS["y:latest"]}),
        id="a model that is gone is forgotten and nobody blamed",
    ),
]


@pytest.mark.parametrize(("state", "event", "expected"), TABLE)
def test_state_and_event_give_a_state(state: NodeState, event: Event, expected: NodeState) -> None:
    before = replace(state)
    assert advance(state, event) == expected
    assert state == before


NO_NEWS = [
    pytest.param(UP, Answered(), id="an answer of a node that is well"),
    pytest.param(NEW, Answered(), id="an answer of a node that has not told"),
    pytest.param(UP, Failed(BAD, "x"), id="a request at fault"),
    pytest.param(SHAKY, Failed(BAD, "x"), id="a request at fault does not forgive either"),
    pytest.param(UP, Failed(BUSY, "x"), id="a node that is busy"),
    pytest.param(UP, Failed(MISSING, "z"), id="a model that nobody thought was there"),
    pytest.param(NEW, Failed(MISSING, "x"), id="a model of a node that has not told"),
]


@pytest.mark.parametrize(("state", "event"), NO_NEWS)
def test_no_news_is_the_same_object(state: NodeState, event: Event) -> None:
    # Whoever waits for a change is woken only by another object.
    assert advance(state, event) is state


def test_wrong_answers_are_counted_and_left_to_the_breaker() -> None:
    state = UP
    for count in range(1, 10):
        state = advance(state, Failed(CRASHED, "x"))
        assert (state.failures, state.is_down) == (count, False)


events = st.sampled_from(
    [
        PROBED,
        Answered(),
        *(ProbeFailed(error) for error in (REFUSED, LATE)),
        *(
            Failed(error, "x")
            for error in (REFUSED, RESET, LATE, HTML, CRASHED, BUSY, BAD, MISSING)
        ),
    ]
)


@settings(deadline=None)
@given(st.sampled_from([NEW, UP, SHAKY, MISSED, DOWN]), st.lists(events))
def test_a_node_that_is_down_says_why_and_one_probe_brings_it_back(
    state: NodeState, events: list[Event]
) -> None:
    for event in events:
        state = advance(state, event)
        assert not state.is_down or ((state.failures or state.missed) and state.error)
        assert bool(state.failures or state.missed) is bool(state.error)
    assert advance(state, PROBED) == UP


def has(digest: str | None, version: str = "0.33") -> NodeState:
    """A node with a model of this digest; None for a node without it, "?" for unknown models."""
    models = {} if digest is None else {"x:latest": ModelInfo("x:latest", digest)}
    return replace(UP, version=version, models=None if digest == "?" else models)


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        (has("a"), has("a"), True),
        (has("a"), has("b"), False),
        (has("a"), has(""), False),
        (has("a"), has(None), False),
        (has(None), has("a"), True),
        (has("?"), has("a"), True),
        (has("a", ""), has("a", "0.33"), True),
        (has("a", "0.33"), has("a", "0.34"), False),
        (has("a", "0.34"), has("a", "0.33"), False),
        (has("a", ""), has("b", "0.33"), False),
    ],
)
def test_what_makes_other_vectors_possible(
    before: NodeState, after: NodeState, expected: bool
) -> None:
    assert keeps_vectors(before, after, "x:latest") is expected
