"""Seconds of prefill and decode, from what servers report."""

from __future__ import annotations

import pytest

from aiosollol.core.routing.chat_cost import ChatCost, DecodeCost
from aiosollol.core.timings import ServerTimings

TIMINGS = ServerTimings(3.0, 0.0, 50, 1.0, 20, 2.0)


@pytest.mark.parametrize("slope", [0.0, 0.002, 0.05])
def test_decode_follows_the_number_of_streams(slope: float) -> None:
    cost = DecodeCost()
    for active in [1, 4, 2, 8, 3, 1, 6] * 5:
        cost.observe(0.02 + slope * (active - 1), active)
    for active in (1, 4, 8, 16):
        assert cost.seconds(active) == pytest.approx(0.02 + slope * (active - 1), rel=0.01)
    assert cost.is_serial is (slope > 0.016)


def test_decode_at_one_number_of_streams_says_nothing_of_others() -> None:
    cost = DecodeCost()
    for _ in range(10):
        cost.observe(0.05, 4)
    assert cost.seconds(1) == cost.seconds(8) == pytest.approx(0.05)
    assert not cost.is_serial


def test_prefill_is_proportional_to_the_prompt() -> None:
    cost = ChatCost()
    assert cost.prefill(10.0) is None
    for tokens in [100, 1000, 300, 2000] * 10:
        cost.observe(tokens, 0.01 + tokens * 1e-3, TIMINGS, 1, is_home=False)
    assert cost.prefill(500.0) == pytest.approx(0.51, rel=0.05)


def test_a_conversation_at_home_saves_most_of_its_prefill() -> None:
    cost = ChatCost()
    for _ in range(10):
        cost.observe(1000.0, 1.0, TIMINGS, 1, is_home=False)
    for _ in range(30):
        cost.observe(1000.0, 0.1, TIMINGS, 1, is_home=True)
    assert cost.prefill(1000.0) == pytest.approx(1.0, rel=0.01)
    assert cost.prefill(1000.0, is_home=True) == pytest.approx(0.1, rel=0.05)


def test_a_prompt_that_is_not_cached_at_home_counts_as_any_other() -> None:
    cost = ChatCost()
    for seconds in [1.0] * 5 + [2.0] * 60:  # requests with options always have a home
        cost.observe(1000.0, seconds, TIMINGS, 1, is_home=True)
    assert cost.prefill(1000.0, is_home=True) == pytest.approx(2.0, rel=0.05)
