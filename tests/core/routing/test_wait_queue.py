"""Who is next of those that wait: by priority, by time, and nobody is forgotten."""

from __future__ import annotations

import math

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from aiosollol.core.routing.wait_queue import (
    AGING_SECONDS,
    Ticket,
    WaitingRoom,
    check_priority,
)
from aiosollol.errors import InvalidInput


def drain(room: WaitingRoom[str], line: str = "n") -> list[str]:
    taken = []
    while (item := room.take(line)) is not None:
        taken.append(item)
    return taken


def test_first_come_first_served_within_a_priority() -> None:
    room: WaitingRoom[str] = WaitingRoom(10)
    for name in "abc":
        room.add(name, "n", 1.0)
    assert (len(room), room.count("n")) == (3, 3)
    assert list(room) == ["a", "b", "c"]
    assert drain(room) == ["a", "b", "c"]
    assert (len(room), room.count("n"), room.take("n")) == (0, 0, None)


def test_ten_goes_first() -> None:
    room: WaitingRoom[str] = WaitingRoom(10)
    for priority in (5, 1, 10, 5):
        room.add(f"{priority} {len(room)}", "n", 1.0, priority)
    assert drain(room) == ["10 2", "5 0", "5 3", "1 1"]


def test_nobody_waits_for_ever() -> None:
    room: WaitingRoom[str] = WaitingRoom(1000)
    room.add("lowest", "n", 0.0, 1)
    served = []
    for second in range(100):  # one comes and one goes, each second
        room.add(f"highest at {second}", "n", float(second), 10)
        served.append(room.take("n"))
    # Overtaken by those of nine steps, and by no others.
    assert served.index("lowest") == pytest.approx(9 * AGING_SECONDS, abs=1)


def test_a_full_room_takes_nobody() -> None:
    room: WaitingRoom[str] = WaitingRoom(2)
    tickets = [room.add("a", "n", 0.0), room.add("b", "m", 0.0)]
    assert room.is_full
    assert room.add("c", "n", 0.0, 10) is None
    assert tickets[0] is not None
    assert room.remove(tickets[0])
    assert not room.is_full
    assert room.add("c", "n", 0.0) is not None
    assert WaitingRoom[str](0).add("a", "n", 0.0) is None


def test_of_taking_and_leaving_one_wins() -> None:
    room: WaitingRoom[str] = WaitingRoom(9)
    ticket = room.add("a", "n", 0.0)
    assert ticket is not None
    assert room.take("n") == "a"
    assert not ticket.is_waiting
    assert not room.remove(ticket)
    other = room.add("b", "n", 0.0)
    assert other is not None
    assert room.remove(other)
    assert not room.remove(other)
    assert room.take("n") is None
    assert len(room) == 0


@pytest.mark.parametrize("priority", [1, 5, 10])
def test_priorities(priority: int) -> None:
    assert check_priority(priority) == priority


@pytest.mark.parametrize("priority", [0, 11, -1, 5.0, "5", None, True])
def test_no_priorities(priority: object) -> None:
    with pytest.raises(InvalidInput, match="from 1 to 10, where 10 goes first"):
        check_priority(priority)


def test_leaving_from_the_middle_does_not_grow_the_heap() -> None:
    room: WaitingRoom[str] = WaitingRoom(100_000)
    last = room.add("last", "n", 1e9)
    for index in range(20_000):
        ticket = room.add("x", "n", float(index))
        assert ticket is not None
        assert room.remove(ticket)
    assert last is not None
    assert len(room._lines["n"]) < 50


@pytest.mark.parametrize("left", [0, 1, 40, 400, 480, 500])
def test_the_front_of_a_long_line(left: int) -> None:
    """However many have left from there."""
    room: WaitingRoom[int] = WaitingRoom(1000)
    tickets = [room.add(index, "n", float(index)) for index in range(500)]
    for ticket in tickets[:left]:
        assert ticket is not None
        room.remove(ticket)
    front = [ticket.item for ticket in room.front("n", 32)]
    assert front == list(range(left, min(left + 32, 500)))
    assert room.front("other", 32) == []


class Waiting(RuleBasedStateMachine):
    """Coming, leaving and being taken at random, against a sorted list."""

    def __init__(self) -> None:
        super().__init__()
        self.room: WaitingRoom[int] = WaitingRoom(12)
        self.model: dict[int, tuple[str, float, int]] = {}  # item -> line, key, when it came
        self.tickets: dict[int, Ticket[int]] = {}
        self.came = 0
        self.now = 0.0

    @rule(line=st.sampled_from("ab"), priority=st.integers(1, 10), seconds=st.integers(0, 7))
    def come(self, line: str, priority: int, seconds: int) -> None:
        self.now += seconds
        self.came += 1
        ticket = self.room.add(self.came, line, self.now, priority)
        assert (ticket is None) is (len(self.model) == 12)
        if ticket is not None:
            self.model[self.came] = (line, self.now - AGING_SECONDS * priority, self.came)
            self.tickets[self.came] = ticket

    @rule(line=st.sampled_from("ab"))
    def take(self, line: str) -> None:
        order = self._in(line)
        assert self.room.take(line) == (order[0] if order else None)
        if order:
            del self.model[order[0]]

    @precondition(lambda self: self.model)
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        item = data.draw(st.sampled_from(sorted(self.model)))
        assert self.room.remove(self.tickets[item])
        del self.model[item]

    @invariant()
    def agrees(self) -> None:
        assert len(self.room) == len(self.model)
        for line in "ab":
            assert self.room.count(line) == len(self._in(line))
            assert [ticket.item for ticket in self.room.standing(line)] == self._in(line)
            for most in (1, 3, 99):
                front = [ticket.item for ticket in self.room.front(line, most)]
                assert front == self._in(line)[:most]

    def _in(self, line: str) -> list[int]:
        mine = [item for item, (where, _, _) in self.model.items() if where == line]
        return sorted(mine, key=lambda item: self.model[item][1:])


TestWaiting = Waiting.TestCase


def test_each_step_takes_a_logarithm_of_comparisons(monkeypatch: pytest.MonkeyPatch) -> None:
    compared = 0
    is_before = Ticket.__lt__

    def counting(self: Ticket[int], other: Ticket[int]) -> bool:
        nonlocal compared
        compared += 1
        return is_before(self, other)

    monkeypatch.setattr(Ticket, "__lt__", counting)
    count = 10_000
    room: WaitingRoom[int] = WaitingRoom(count)
    tickets = [room.add(index, "n", float(index), 1 + index % 10) for index in range(count)]
    for ticket in tickets[::3]:
        assert ticket is not None
        room.remove(ticket)
    while room.take("n") is not None:
        pass
    assert compared < 3 * count * math.log2(count)
