"""How much a node gets at once."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aiosollol.core.scheduling import chunk_sizing
from aiosollol.core.scheduling.chunk_sizing import Portion, portion, probe
from aiosollol.core.scheduling.cost import Cost


def cost(overhead: float = 0.001, per_token: float = 0.001, reach: float = 1e9) -> Cost:
    return Cost(overhead, per_token, observations=5, reach=reach)


def size(
    of: Cost,
    left: float,
    longest: float = 10.0,
    shortest: float = 10.0,
    *,
    batch_seconds: float = 1000.0,
    chunk_seconds: float = 0.5,
    max_items: int = 256,
    max_tokens: float = 65_536.0,
) -> Portion | None:
    return portion(
        of,
        left,
        longest,
        shortest,
        batch_seconds=batch_seconds,
        chunk_seconds=chunk_seconds,
        max_items=max_items,
        max_tokens=max_tokens,
    )


def test_a_node_that_is_not_known_gets_one_short_text_and_then_a_few() -> None:
    first, second = probe(is_first=True), probe(is_first=False)
    assert (first.items, first.shortest) == (1, True)
    assert (second.items, second.shortest) == (16, True)
    assert second.tokens == 200


def test_with_much_left_a_chunk_takes_its_usual_time() -> None:
    due = size(cost(), left=100.0)
    assert due is not None
    assert cost().seconds(due.tokens) == pytest.approx(0.5)
    assert not due.shortest


def test_a_short_batch_is_cut_into_several_chunks_for_each_node() -> None:
    due = size(cost(), left=0.8, batch_seconds=0.8)
    assert due is not None
    assert cost().seconds(due.tokens) == pytest.approx(0.1)


def test_towards_the_end_chunks_become_a_part_of_what_is_left() -> None:
    due = size(cost(), left=0.6)
    assert due is not None
    assert cost().seconds(due.tokens) == pytest.approx(0.6 / chunk_sizing._SHARE_DIVISOR)


def test_at_the_end_the_rest_goes_at_once() -> None:
    due = size(cost(), left=0.019)  # less than two of the shortest chunks
    assert due is not None
    assert cost().seconds(due.tokens) == pytest.approx(0.019)


def test_a_high_overhead_makes_chunks_larger() -> None:
    shortest = chunk_sizing._FLOOR_OVERHEADS * 0.02
    due = size(cost(overhead=0.02), left=2 * shortest, chunk_seconds=9.0)
    assert due is not None
    assert due.tokens == pytest.approx((shortest - 0.02) / 0.001)


def test_an_overhead_above_the_usual_time_still_leaves_half_a_chunk_for_work() -> None:
    due = size(cost(overhead=2.0), left=100.0)
    assert due is not None
    assert due.tokens == pytest.approx(2000)


def test_no_further_than_what_was_seen() -> None:
    due = size(cost(reach=20.0), left=100.0)
    assert due is not None
    assert due.tokens == 160.0


def test_the_bounds_hold() -> None:
    due = size(cost(per_token=1e-6), left=100.0, max_items=64, max_tokens=5000)
    assert due == Portion(5000, 64)


@pytest.mark.parametrize(
    ("left", "taken"),
    [
        (0.5, "long end"),
        (0.103, "long end"),
        (0.09, "short end"),
        (0.012, "short end"),
        (0.009, None),
        (0.0, None),
        (-1.0, None),
    ],
)
def test_what_the_node_can_still_do_decides_where_to_take_from(
    left: float, taken: str | None
) -> None:
    """An item of 100 tokens takes 0.101 s, one of 10 takes 0.011 s."""
    due = size(cost(), left, longest=100.0, shortest=10.0)
    assert (due and ("short end" if due.shortest else "long end")) == taken


@settings(deadline=None)
@given(
    st.floats(0.0, 3.0),
    st.floats(1e-6, 0.1),
    st.floats(1.0, 1e5),
    st.floats(-1.0, 1e3),
    st.floats(1.0, 5000.0),
    st.floats(0.0, 1.0),
    st.floats(0.01, 2.0),
)
def test_a_portion_never_promises_too_much(
    overhead: float,
    per_token: float,
    reach: float,
    left: float,
    longest: float,
    fraction: float,
    chunk_seconds: float,
) -> None:
    of = cost(overhead, per_token, reach)
    shortest = max(1.0, longest * fraction)
    due = size(of, left, longest, shortest, chunk_seconds=chunk_seconds)
    if due is None:
        assert of.seconds(shortest) > left - 1e-9
        return
    assert due.items == 256
    assert due.tokens <= min(65_536.0, 8 * reach)
    usual = max(chunk_seconds, 2 * overhead)
    assert of.seconds(due.tokens) <= min(left, usual) * (1 + 1e-9) + 1e-9
    # At least one item is taken, even one above the portion: it too must be done in time.
    assert of.seconds(shortest if due.shortest else longest) <= max(left, usual) + 1e-9
