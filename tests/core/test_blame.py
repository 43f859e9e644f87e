"""Who is at fault for a failure: tables of cases, and properties."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiosollol.core.blame import REPEATS, Refusal, judge, may_pass
from aiosollol.errors import (
    BadRequest,
    ConnectionLost,
    ModelMissing,
    NodeError,
    NodeTimeout,
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
