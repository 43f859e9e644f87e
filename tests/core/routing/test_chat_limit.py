"""The concurrency limit of chats, by what each waited before it began."""

from __future__ import annotations

import pytest

from aiosollol.core.routing.concurrency_limit import (
    GOOD_DELAY,
    Begin,
    Concurrency,
    after_begin,
    has_waited,
    start,
)


@pytest.mark.parametrize(
    ("state", "begin", "limit"),
    [
        # Nothing waited so far: twice as many as are being answered.
        (start(), Begin(0.0, 10.0, 1, 1), 2.0),
        (start(), Begin(0.0, 10.0, 2, 2), 4.0),
        (Concurrency(limit=8.0), Begin(0.0, 10.0, 5, 8), 10.0),
        (Concurrency(limit=8.0), Begin(0.0, 10.0, 3, 8), 8.0),
        (start(3), Begin(0.0, 10.0, 2, 2), 3.0),
        (start(has_one_slot=True), Begin(0.0, 10.0, 1, 1), 1.0),
        # Streams that slow each other down are not helped by more of them.
        (start(), Begin(0.0, 10.0, 2, 2, may_grow=False), 2.0),
        # One waited: those that were being answered, and one more.
        (Concurrency(limit=16.0), Begin(9.0, 10.0, 8, 16), 9.0),
        (Concurrency(limit=2.0), Begin(9.0, 10.0, 1, 2), 2.0),
        (Concurrency(limit=4.0), Begin(9.0, 10.0, 6, 7), 4.0),
        (Concurrency(limit=4.0), Begin(9.0, 10.0, 0, 2), 1.0),
        # Later, one more when all in flight have begun.
        (Concurrency(limit=9.0, is_slow_start=False), Begin(0.0, 10.0, 9, 9), 10.0),
        (Concurrency(limit=9.0, is_slow_start=False), Begin(0.0, 10.0, 8, 9), 9.0),
        (Concurrency(limit=9.0, is_slow_start=False), Begin(0.0, 10.0, 4, 4), 9.0),
        (Concurrency(limit=9.0, is_slow_start=False), Begin(0.4, 1.0, 8, 9), 9.0),
        # A wait that may be noise changes nothing.
        (start(), Begin(0.4, 4.0, 2, 2), 2.0),
    ],
    ids=str,
)
def test_after_begin(state: Concurrency, begin: Begin, limit: float) -> None:
    assert after_begin(state, begin).limit == limit


@pytest.mark.parametrize(
    ("waited", "seconds", "expected"),
    [
        (0.0, 0.0, False),
        (GOOD_DELAY, 0.001, False),
        (0.006, 0.01, True),
        (0.2, 1.0, False),
        (0.3, 1.0, True),
        (0.4, 60.0, False),
        (0.6, 60.0, True),
    ],
)
def test_what_counts_as_a_wait(waited: float, seconds: float, expected: bool) -> None:
    assert has_waited(waited, seconds) is expected


def test_an_estimate_lowers_the_limit_in_steps_and_once_for_those_in_flight_together() -> None:
    waited = Begin(9.0, 10.0, 8, 20, is_exact=False)
    state = after_begin(Concurrency(limit=20.0), waited)
    assert state.limit == 14.0
    for _ in range(13):
        state = after_begin(state, waited)
        assert state.limit == 14.0
    assert after_begin(state, waited).limit == pytest.approx(9.8)


def test_a_wait_ends_slow_start() -> None:
    state = after_begin(Concurrency(limit=16.0), Begin(9.0, 10.0, 8, 16))
    assert after_begin(state, Begin(0.0, 10.0, 9, 9)).limit == 10.0
