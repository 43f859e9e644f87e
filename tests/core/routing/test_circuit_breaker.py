"""The circuit breaker: a table of lives of a node, and what holds for every life."""

from __future__ import annotations

import json
from typing import Any

import project_paths
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from aiosollol.core.routing.circuit_breaker import (
    CLOSED,
    FAILURES_TO_OPEN,
    LONGEST_EJECTION,
    SUCCESSES_TO_CLOSE,
    Breaker,
    CallAbandoned,
    CallAnswered,
    CallFailed,
    CallSent,
    Event,
    NodeReturned,
    advance,
    ejection_seconds,
    last_resort,
)
from aiosollol.core.routing.retry import Failure

CASES = json.loads((project_paths.DATA / "breaker.json").read_text())


def event_of(words: str) -> Event:
    what, is_probe = words.removeprefix("probe "), words.startswith("probe ")
    match what:
        case "sent":
            return CallSent()
        case "answered":
            return CallAnswered(is_probe)
        case "given up":
            return CallAbandoned(is_probe)
        case "returned":
            return NodeReturned()
        case "lost":
            return CallFailed(Failure.ANSWER, is_probe, is_lost=True)
        case _:
            return CallFailed(Failure(what), is_probe)


@pytest.mark.parametrize("case", CASES, ids=[case["case"] for case in CASES])
def test_lives(case: dict[str, Any]) -> None:
    breaker, now = CLOSED, 0.0
    for now, words in case["events"]:
        breaker = advance(breaker, event_of(words), now)
    now = case.get("at", now)
    assert breaker.phase(now) == case["phase"]
    assert breaker.opens_at == pytest.approx(case.get("opens_at"))
    if "in_row" in case:
        assert breaker.in_row == case["in_row"]


@pytest.mark.parametrize(
    "event",
    [CallAnswered(), CallSent(), CallAbandoned(), NodeReturned(), CallFailed(Failure.INPUT)],
)
def test_no_news_is_the_same_object(event: Event) -> None:
    # The usual case of every request: it must cost nothing, and nobody must be told.
    assert advance(CLOSED, event, 5.0) is CLOSED


def test_trouble_that_is_long_past_is_forgotten() -> None:
    breaker = advance(CLOSED, CallFailed(Failure.ANSWER), 0.0)
    assert advance(breaker, CallAnswered(), 1.0) != CLOSED
    assert advance(breaker, CallAnswered(), 600.0) == CLOSED


def test_a_second_probe_is_a_mistake_of_the_caller() -> None:
    breaker = advance(advance(CLOSED, CallFailed(Failure.NODE), 0.0), CallSent(), 1.0)
    with pytest.raises(ValueError, match="probe"):
        advance(breaker, CallSent(), 2.0)


def test_in_words() -> None:
    breaker = advance(CLOSED, CallFailed(Failure.NODE), 0.0)
    assert breaker.describe(0.25) == "open after failures, for 0.8 s more"
    assert breaker.describe(1.0) == ""
    assert advance(breaker, CallSent(), 1.0).describe(1.0) == "a probe is in flight after failures"


def test_ejections_double_up_to_four_seconds() -> None:
    seconds = [ejection_seconds(count) for count in range(1, 6)]
    assert seconds == [1.0, 2.0, 4.0, 4.0, 4.0]
    assert ejection_seconds(10_000) == 4.0


def test_last_resort() -> None:
    first = advance(CLOSED, CallFailed(Failure.NODE), 0.0)
    second = advance(CLOSED, CallFailed(Failure.NODE), 0.5)
    assert last_resort([("b", second), ("a", first)], 0.6) == "a"
    assert last_resort([("b", second), ("a", advance(first, CallSent(), 0.6))], 0.6) == "b"
    assert last_resort([("a", advance(first, CallSent(), 0.6))], 0.6) is None  # wait for that one
    assert last_resort([("a", first), ("c", CLOSED)], 0.6) is None  # ask c
    assert last_resort([("b", second), ("a", first)], 1.0) is None  # a admits a probe
    assert last_resort([], 0.0) is None


LOST = CallFailed(Failure.ANSWER, is_lost=True)


class Life(RuleBasedStateMachine):
    """A node and requests to it, sent as a caller must send them: when the breaker admits."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 100.0
        self.breaker = CLOSED
        self.plain = 0  # requests under way that are no probe
        self.probes = 0
        self.failed_at = 0.0
        self.known_ejection = 0.0

    @rule(seconds=st.floats(0.0, 90.0))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    @rule(is_last_resort=st.booleans())
    def send(self, is_last_resort: bool) -> None:
        if self.breaker.opens_at is None:
            self.breaker = advance(self.breaker, CallSent(), self.now)
            self.plain += 1
            return
        asked = is_last_resort and last_resort([("n", self.breaker)], self.now) == "n"
        if self.breaker.admits(self.now) or asked:
            self.breaker = advance(self.breaker, CallSent(), self.now)
            self.probes += 1

    @rule()
    def can_be_reached_again(self) -> None:
        self.breaker = advance(self.breaker, NodeReturned(), self.now)
        if self.breaker.opens_at is not None:
            assert self.breaker.phase(self.now) == "half_open"

    @precondition(lambda self: self.plain)
    @rule(event=st.sampled_from([CallAnswered(), CallAbandoned(), LOST, *map(CallFailed, Failure)]))
    def end(self, event: Event) -> None:
        self.plain -= 1
        self._end(event)

    @precondition(lambda self: self.probes)
    @rule(
        event=st.sampled_from(
            [CallAnswered(True), CallAbandoned(True), *(CallFailed(f, True) for f in Failure)]
        )
    )
    def end_probe(self, event: Event) -> None:
        self.probes -= 1
        self._end(event)

    def _end(self, event: Event) -> None:
        before, self.breaker = self.breaker, advance(self.breaker, event, self.now)
        after = self.breaker
        if after.opens_at is not None and after.ejections != before.ejections:
            # It was opened now: for longer than last time, unless it was forgiven, and bounded.
            seconds = after.opens_at - self.now
            assert 0.0 < seconds <= LONGEST_EJECTION + 1e-6
            if after.ejections > 1:
                assert after.ejections == before.ejections + 1
                assert seconds >= self.known_ejection - 1e-6
            self.known_ejection = seconds

    @invariant()
    def never_two_probes(self) -> None:
        assert self.probes <= 1
        assert self.breaker.is_probing is bool(self.probes)
        if self.probes:
            assert not self.breaker.admits(self.now + 1e6)

    @invariant()
    def an_open_one_admits_nobody_before_its_time(self) -> None:
        opens_at = self.breaker.opens_at
        if opens_at is not None and self.now < opens_at:
            assert self.breaker.phase(self.now) == "open"
            assert not self.breaker.admits(self.now)

    @invariant()
    def says_why_or_admits(self) -> None:
        assert bool(self.breaker.describe(self.now)) is not self.breaker.admits(self.now)

    @invariant()
    def closes_after_enough_answers(self) -> None:
        breaker, now = self.breaker, self.now
        if breaker.is_probing:
            breaker = advance(breaker, CallAbandoned(True), now)
        for _ in range(SUCCESSES_TO_CLOSE):
            if breaker.opens_at is None:
                break
            now = max(now, breaker.opens_at)
            breaker = advance(advance(breaker, CallSent(), now), CallAnswered(True), now)
        assert breaker.phase(now) == "closed"

    @invariant()
    def opens_after_enough_failures(self) -> None:
        breaker = self.breaker
        for _ in range(FAILURES_TO_OPEN):
            breaker = advance(breaker, CallFailed(Failure.ANSWER), self.now)
        assert breaker.opens_at is not None

    @invariant()
    def counts_are_sound(self) -> None:
        assert 0 <= self.breaker.in_row < FAILURES_TO_OPEN
        assert self.breaker.good >= 0.0
        assert self.breaker.bad >= 0.0
        assert 0 <= self.breaker.passed < SUCCESSES_TO_CLOSE


TestLife = Life.TestCase


@given(
    st.lists(
        st.tuples(
            st.floats(0.0, 100.0), st.sampled_from([CallAnswered(), *map(CallFailed, Failure)])
        ),
        max_size=40,
    )
)
def test_a_breaker_never_changes(life: list[tuple[float, Event]]) -> None:
    breaker, now = CLOSED, 0.0
    for seconds, event in life:
        now += seconds
        before = Breaker(*breaker)
        after = advance(breaker, event, now)
        assert breaker == before
        breaker = after
