"""Who is at fault for a failure: tables of cases, and properties."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiosollol.core.blame import REPEATS, Refusal, RequestEvidence, judge, live_patience, may_pass
from aiosollol.errors import (
    BadRequest,
    ConnectionLost,
    ModelMissing,
    NodeError,
    NodeTimeout,
    NodeUnavailable,
    NodeUnreachable,
    ProtocolError,
    ResponseError,
    RunnerFailed,
    ServerBusy,
    StreamCutOff,
)

REFUSED = BadRequest("a", 400, "the input length exceeds the context length")
DIED = RunnerFailed("a", 500, "llama runner process has terminated")

PASSING = [
    (NodeUnreachable("a", "refused"), True),
    (NodeTimeout("a", "no answer"), True),
    (ConnectionLost("a", "reset"), True),
    (StreamCutOff("a", "ended"), True),
    (ServerBusy("a", 503, "server busy"), True),
    (DIED, True),
    *((ResponseError("a", status, "x"), True) for status in (408, 425, 429, 500, 502, 503, 504)),
    *((ResponseError("a", status, "x"), False) for status in (400, 401, 403, 404, 405, 501)),
    (REFUSED, False),
    (BadRequest("a", 500, "illegal base64 data"), False),
    (ModelMissing("a", 404, "model not found"), False),
    (ProtocolError("a", "answered too few vectors"), False),
]


@pytest.mark.parametrize(("error", "expected"), PASSING)
def test_which_failures_may_pass(error: NodeError, expected: bool) -> None:
    assert may_pass(error) is expected


# Nodes that could take the item; refusals as (error, turn, times); last answers of other work;
# the verdict, and the nodes to ask.
VERDICTS = [
    pytest.param("ab", {"a": (REFUSED, 1, 1)}, {"a": 2}, "open", "b", id="another was not asked"),
    pytest.param("ab", {}, {}, "open", "ab", id="none was asked"),
    pytest.param(
        "abc",
        {"a": (REFUSED, 1, 1), "b": (REFUSED, 2, 1)},
        {"a": 3, "b": 3},
        "item",
        "",
        id="two sound nodes refused it",
    ),
    pytest.param(
        "abc",
        {"a": (REFUSED, 1, 1), "b": (REFUSED, 2, 1)},
        {"a": 3},
        "open",
        "c",
        id="one of two is not known to be sound",
    ),
    pytest.param("a", {"a": (REFUSED, 1, 1)}, {"a": 2}, "item", "", id="the only node, sound"),
    pytest.param("a", {"a": (REFUSED, 1, 1)}, {}, "unproven", "", id="the only node, not proven"),
    pytest.param("a", {"a": (REFUSED, 2, 1)}, {"a": 1}, "unproven", "", id="sound only before"),
    pytest.param(
        "ab",
        {"a": (REFUSED, 1, 1), "b": (REFUSED, 2, 1)},
        {"b": 3},
        "item",
        "",
        id="all refused it, one is sound",
    ),
    pytest.param("a", {"a": (DIED, 1, 1)}, {"a": 2}, "open", "a", id="it may have passed"),
    pytest.param("a", {"a": (DIED, 1, 1)}, {}, "unproven", "", id="not passed yet"),
    pytest.param("a", {"a": (DIED, 1, REPEATS)}, {"a": 2}, "item", "", id="it comes back always"),
    pytest.param("", {}, {}, "unproven", "", id="no node is left"),
]


@pytest.mark.parametrize(("able", "refusals", "answered", "fault", "ask"), VERDICTS)
def test_verdicts(
    able: str,
    refusals: dict[str, tuple[NodeError, int, int]],
    answered: dict[str, float],
    fault: str,
    ask: str,
) -> None:
    known = {name: Refusal(*each) for name, each in refusals.items()}
    verdict = judge(known, list(able), answered)
    assert (verdict.fault, "".join(sorted(verdict.ask))) == (fault, ask)


@pytest.mark.parametrize(
    ("refusals", "absent", "fault"),
    [
        ({"a": Refusal(REFUSED, 1)}, "b", "awaiting"),
        ({"a": Refusal(DIED, 1, REPEATS)}, "b", "awaiting"),
        ({"a": Refusal(REFUSED, 1), "b": Refusal(REFUSED, 1)}, "b", "item"),
        ({"a": Refusal(REFUSED, 1), "b": Refusal(REFUSED, 1)}, "c", "item"),
        ({"a": Refusal(REFUSED, 1)}, "", "item"),
        ({}, "b", "awaiting"),
    ],
    ids=["refused", "failed", "that refused it too", "two refused it", "none", "no other"],
)
def test_a_node_that_is_down_is_waited_for(
    refusals: dict[str, Refusal], absent: str, fault: str
) -> None:
    answered = {"a": 5.0, "b": 5.0}
    able = [name for name in refusals if name not in absent]
    assert judge(refusals, able, answered, absent).fault == fault


@pytest.mark.parametrize(
    ("last_success", "times"), [(0, 1), (1, 1), (2, 2)], ids=["before", "same", "between"]
)
def test_only_failures_with_an_answer_between_them_are_counted(
    last_success: float, times: int
) -> None:
    again = Refusal(DIED, 1).again(REFUSED, 3, last_success)
    assert again == Refusal(REFUSED, 3, times)


nodes = st.sampled_from("abcd")
refusal = st.builds(
    Refusal, st.sampled_from([REFUSED, DIED]), st.integers(0, 9), st.integers(1, REPEATS)
)


@given(
    refusals=st.dictionaries(nodes, refusal),
    able=st.sets(nodes),
    answered=st.dictionaries(nodes, st.integers(0, 9)),
)
def test_an_item_is_given_up_only_on_the_word_of_a_node_that_answers_others(
    refusals: dict[str, Refusal], able: set[str], answered: dict[str, float]
) -> None:
    verdict = judge(refusals, able, answered)
    assert set(verdict.ask) <= able
    assert bool(verdict.ask) is (verdict.fault == "open")
    if verdict.fault == "item":
        sound = [
            name
            for name, each in refusals.items()
            if each.times >= REPEATS or answered.get(name, -1) > each.at
        ]
        assert len(sound) >= 2 or (sound and able <= set(refusals))
    untried = able - set(refusals)
    if untried and verdict.fault == "open":
        assert untried <= set(verdict.ask)


LONG = BadRequest("a", 400, "the input length exceeds the context length", fault="text")
WRONG = BadRequest("a", 500, 'option "num_ctx" must be of type integer', fault="request")
UNABLE = BadRequest("a", 400, '"m" does not support chat', fault="request")
UNKNOWN = BadRequest("a", 400, "something new")

# Refusals of a live request as (error, whether the node is sound); whether they agree.
AGREEMENTS = [
    pytest.param([(LONG, True)], False, id="one sound node"),
    pytest.param([(LONG, True), (LONG, True)], True, id="two sound nodes"),
    pytest.param([(UNKNOWN, True), (UNKNOWN, True)], True, id="two sound nodes, unknown words"),
    pytest.param([(WRONG, True)], True, id="words that hold everywhere"),
    pytest.param([(WRONG, False)], False, id="the same of a node that may refuse everything"),
    pytest.param([(UNABLE, True)], False, id="another version may support it"),
    pytest.param([(LONG, True), (LONG, False)], True, id="a sound node and another"),
    pytest.param([(UNKNOWN, True), (UNKNOWN, False)], False, id="the same, unknown words"),
    pytest.param([(LONG, False)] * 3, False, id="three that may refuse everything"),
    pytest.param([(LONG, False)] * 4, True, id="four"),
    pytest.param([(UNKNOWN, False)] * 9, False, id="nine, unknown words"),
    pytest.param([(DIED, True), (LONG, True)], False, id="another failure is no refusal"),
    pytest.param([], False, id="none"),
]


@pytest.mark.parametrize(("refusals", "expected"), AGREEMENTS)
def test_when_nodes_agree_that_a_request_is_invalid(
    refusals: list[tuple[ResponseError, bool]], expected: bool
) -> None:
    evidence = RequestEvidence()
    for number, (error, is_sound) in enumerate(refusals):
        copy = type(error)(f"n{number}", error.status, error.message, fault=error.fault)
        evidence.failed(copy, 0, is_sound=is_sound)
    assert evidence.is_agreed is expected
    assert evidence.failures == sum(is_sound for _, is_sound in refusals)


def test_a_node_that_turns_out_to_refuse_others_is_not_believed() -> None:
    evidence = RequestEvidence()
    for name in "ab":
        evidence.failed(BadRequest(name, 400, "no"), 0, is_sound=True)
    assert evidence.is_agreed
    evidence.doubt("a")
    assert not evidence.is_agreed


def test_a_request_that_kills_runners_is_found_out() -> None:
    evidence = RequestEvidence()
    for answers in range(REPEATS):
        assert not evidence.is_guilty(["a"], {"a": answers})
        evidence.failed(DIED, answers, is_sound=True)
    assert evidence.is_guilty(["a"], {"a": REPEATS})


PATIENCES = [
    (ResponseError("a", 502, "bad gateway"), True, 60.0),
    (NodeUnavailable("a", 503, "starting"), True, 60.0),
    (NodeUnavailable("a", 503, "starting"), False, 3.0),
    (ConnectionLost("a", "reset"), True, 60.0),
    (RunnerFailed("a", 500, "llama runner process has terminated", fault="passing"), True, 60.0),
    (RunnerFailed("a", 500, "something new"), True, 3.0),
    (NodeUnreachable("a", "refused"), True, 3.0),
    (NodeTimeout("a", "no answer"), True, 0.0),
    (ProtocolError("a", "answered HTML", is_foreign=True), True, 60.0),
    (ProtocolError("a", "answered HTML", is_foreign=True), False, 3.0),
    (ProtocolError("a", "answered 0 vectors to 1 texts"), True, 0.0),
    (BadRequest("a", 400, "no"), True, 0.0),
]


@pytest.mark.parametrize(("error", "has_answered", "expected"), PATIENCES)
def test_how_long_a_live_request_waits(
    error: NodeError, has_answered: bool, expected: float
) -> None:
    assert live_patience(error, has_answered=has_answered, outage=60.0) == expected
    assert live_patience(error, has_answered=has_answered, outage=0.0) == 0.0
