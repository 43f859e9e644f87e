"""The size of chunks while there are live requests."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiosollol.core.scheduling.cost import Cost
from aiosollol.core.scheduling.dispatcher import ScheduleOptions, Send
from aiosollol.core.scheduling.live_traffic import LIVE_SECONDS, LiveTraffic, live_chunk_seconds
from aiosollol.core.scheduling.state_machine import BatchState


@pytest.mark.parametrize(
    ("last_at", "now", "is_expected"),
    [
        (-math.inf, 0.0, False),
        (5.0, 5.0, True),
        (5.0, 5.0 + LIVE_SECONDS - 0.1, True),
        (5.0, 5.0 + LIVE_SECONDS, False),
        (5.0, 500.0, False),
    ],
)
def test_a_live_request_makes_another_one_expected(
    last_at: float, now: float, is_expected: bool
) -> None:
    traffic = LiveTraffic()
    traffic.last_at = last_at
    assert traffic.is_expected(now) is is_expected


@pytest.mark.parametrize(
    ("overhead", "target", "usual", "seconds"),
    [
        (0.0, 0.05, 0.5, 0.05),
        (0.002, 0.05, 0.5, 0.05),
        (0.005, 0.05, 0.5, 0.05),
        (0.02, 0.05, 0.5, 0.2),  # ten overheads
        (0.1, 0.05, 0.5, 0.5),  # never more than without live requests
        (0.0, 2.0, 0.5, 0.5),
    ],
)
def test_chunks_are_cut_to_the_target(
    overhead: float, target: float, usual: float, seconds: float
) -> None:
    cost = Cost(overhead, 0.001)
    assert live_chunk_seconds(cost, target, usual) == pytest.approx(seconds)


costs = st.builds(
    Cost,
    overhead=st.floats(0.0, 0.2),
    seconds_per_token=st.floats(1e-6, 0.1),
    observations=st.just(5),
    reach=st.just(1e6),
)


def first_chunk(state: BatchState, cost: Cost, *, expects_live: bool) -> Send:
    state.node_up("a", cost, 0.0, expects_live=expects_live)
    first = state.start(0.0)[0]
    assert isinstance(first, Send)
    return first


@given(costs, st.lists(st.floats(2.0, 500.0), min_size=1, max_size=300), st.floats(0.005, 1.0))
def test_a_chunk_for_a_node_with_live_requests_takes_the_target_or_is_one_item(
    cost: Cost, tokens: list[float], target: float
) -> None:
    options = ScheduleOptions(live_chunk_seconds=target)
    cut = first_chunk(BatchState(tokens, options), cost, expects_live=True).chunk
    whole = first_chunk(BatchState(tokens, options), cost, expects_live=False).chunk
    most = max(live_chunk_seconds(cost, target, options.chunk_seconds), 2 * cost.overhead)
    assert len(cut.items) == 1 or cost.seconds(cut.tokens) <= most * (1 + 1e-9)
    assert 1 <= len(cut.items) <= len(whole.items)


def test_chunks_follow_the_live_requests() -> None:
    cost = Cost(0.0, 0.001, observations=5, reach=1e6)
    state = BatchState([10.0] * 2000)
    chunk = first_chunk(state, cost, expects_live=False).chunk
    now, sizes = 0.0, []
    for is_expected in [False, True, True, False, False]:
        now += cost.seconds(chunk.tokens)
        state.live("a", is_expected=is_expected)
        sent = state.done(chunk, now, cost)[0]
        assert isinstance(sent, Send)
        chunk = sent.chunk
        sizes.append(len(chunk.items))
    assert sizes == [50, 5, 5, 50, 50]
