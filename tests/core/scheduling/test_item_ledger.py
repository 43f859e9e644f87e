"""The account of a batch: an item is settled once and for all."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aiosollol.core.scheduling.work_queue import ItemLedger
from aiosollol.errors import SollolError

FIRST, SECOND = SollolError("first"), SollolError("second")


def test_at_first_everything_is_open() -> None:
    ledger = ItemLedger(3)
    assert (ledger.count, ledger.open, ledger.errors) == (3, 3, {})
    assert ledger.unsettled(range(3)) == [0, 1, 2]
    assert not ledger.are_settled([0])
    assert ledger.are_settled([])


def test_the_first_answer_counts() -> None:
    ledger = ItemLedger(4)
    assert ledger.answer([0, 1]) == 2
    assert ledger.answer([1, 2]) == 1
    assert ledger.answer([0, 1, 2]) == 0
    assert ledger.open == 1
    assert ledger.is_settled(2)
    assert not ledger.is_settled(3)
    assert ledger.unsettled(range(4)) == [3]


@pytest.mark.parametrize("is_answered_first", [True, False])
def test_an_answer_and_an_error_whichever_comes_first(is_answered_first: bool) -> None:
    ledger = ItemLedger(1)
    if is_answered_first:
        ledger.answer([0])
        ledger.give_up(0, FIRST)
        assert ledger.errors == {}
    else:
        ledger.give_up(0, FIRST)
        assert ledger.answer([0]) == 0
        ledger.give_up(0, SECOND)
        assert ledger.errors == {0: FIRST}
    assert ledger.open == 0


def test_giving_up_spares_what_is_answered() -> None:
    ledger = ItemLedger(3)
    ledger.answer([1])
    ledger.give_up(2, FIRST)
    ledger.give_up_all(SECOND)
    assert ledger.errors == {0: SECOND, 2: FIRST}
    assert ledger.open == 0
    assert ledger.are_settled(range(3))


def test_attempts_are_those_of_the_worst_item() -> None:
    ledger = ItemLedger(4)
    assert ledger.attempt([0, 1]) == 1
    assert ledger.attempt([1, 2]) == 2
    # An item that was sent together with a failed one counts as failed too.
    assert [ledger.attempt([item]) for item in range(4)] == [2, 3, 3, 1]


def test_copies_are_remembered() -> None:
    ledger = ItemLedger(4)
    ledger.copy([1, 2])
    assert ledger.is_copy([0, 2])
    assert not ledger.is_copy([0, 3])
    assert ledger.open == 4, "a copy settles nothing"


@settings(deadline=None)
@given(
    st.integers(1, 20).flatmap(
        lambda count: st.tuples(
            st.just(count),
            st.lists(st.tuples(st.booleans(), st.sets(st.integers(0, count - 1))), max_size=30),
        )
    )
)
def test_every_item_is_counted_once(case: tuple[int, list[tuple[bool, set[int]]]]) -> None:
    count, events = case
    ledger, answered, failed = ItemLedger(count), set[int](), set[int]()
    for is_answer, items in events:
        new = items - answered - failed
        if is_answer:
            assert ledger.answer(sorted(items)) == len(new)
            answered |= new
        else:
            for item in items:
                ledger.give_up(item, FIRST)
            failed |= new
    assert ledger.open == count - len(answered) - len(failed)
    assert set(ledger.errors) == failed
    assert ledger.unsettled(range(count)) == sorted(set(range(count)) - answered - failed)
