"""What came before an answer, in the words of a header."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aiosollol.core.routing.explain import Setback, after
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

SECRET = "what the prompt said"

WORDS = [
    (NodeUnreachable("n1", "connection refused"), "connection refused"),
    (NodeTimeout("n1", "no answer within 5 s"), "no answer within 5 s"),
    (ConnectionLost("n1", "the connection broke"), "the connection broke"),
    (ModelMissing("n1", 404, SECRET), "it lacks the model"),
    (ServerBusy("n1", 503, SECRET), "its queue is full"),
    (RunnerFailed("n1", 500, SECRET), "its model failed"),
    (ProtocolError("n1", SECRET), "it did not answer as Ollama does"),
    (StreamCutOff("n1", SECRET), "it did not answer as Ollama does"),
    (ResponseError("n1", 403, SECRET), "status 403"),
    (BadRequest("n1", 400, SECRET), "status 400"),
    (NodeError("n1", SECRET), "it gave no answer"),
]


@pytest.mark.parametrize(("error", "words"), WORDS, ids=lambda value: type(value).__name__)
def test_a_failure_is_told_in_our_own_words(error: NodeError, words: str) -> None:
    assert Setback.of(error) == Setback("n1", words)
    assert after([Setback.of(error)]) == f"after n1 failed: {words}"


def test_several_are_told_in_their_order() -> None:
    assert after(()) == ""
    assert after([Setback("n1")]) == "after n1 was late"
    found = after([Setback("n1", "connection refused"), Setback("n2")])
    assert found == "after n1 failed: connection refused; n2 was late"


def test_of_many_the_last_are_told() -> None:
    found = after([Setback(f"n{number}") for number in range(1, 6)])
    assert found == "after 2 others; n3 was late; n4 was late; n5 was late"


@settings(deadline=None)
@given(st.lists(st.builds(Setback, st.text(), st.text()), max_size=6))
def test_a_header_can_have_it(setbacks: list[Setback]) -> None:
    found = after(setbacks)
    assert found.isascii()
    assert found.isprintable()
    assert len(found) <= 600


def test_what_is_long_is_cut() -> None:
    found = after([Setback("n" * 1000, "p" * 1000)])
    assert found == f"after {'n' * 80}... failed: {'p' * 80}..."
