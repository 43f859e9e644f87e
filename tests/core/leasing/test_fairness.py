"""Leases over hours of work in virtual time: who has had how much."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from heapq import heappop, heappush
from itertools import pairwise
from random import Random

import pytest
from lease_parts import INTERVAL, TERM, TURN, ask

from aiosollol.core.leasing.book import Lease, LeaseBook


@dataclass(eq=False)
class Worker:
    """A member that obeys, with requests of random lengths on `nodes`. busy: slot-seconds."""

    name: str
    nodes: list[str]
    group: str = ""
    weight: float = 1.0
    seconds: tuple[float, float] = (0.02, 0.08)
    is_wanting: bool = True
    is_alive: bool = True
    lease: Lease = field(default_factory=lambda: Lease({}, 0.0, 0))
    using: dict[str, int] = field(default_factory=dict)
    began_at: list[float] = field(default_factory=list)
    busy: float = 0.0
    done: int = 0


class World:
    """Workers that ask a book every half second, and at once when the book has to know."""

    def __init__(self, slots: dict[str, int], workers: list[Worker], seed: int = 0) -> None:
        self.slots, self.workers, self.now = slots, workers, 0.0
        self.book = LeaseBook(term=TERM, turn=TURN)
        self.book.set_nodes(slots, 0.0)
        self._rng, self._order = Random(seed), itertools.count()
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        for worker in workers:
            self._later(self._rng.uniform(0.0, INTERVAL), partial(self._poll, worker))

    def run(self, until: float) -> None:
        while self._events[0][0] <= until:
            self.now, _, act = heappop(self._events)
            act()
        self.now = until

    def under_way(self, node: str) -> int:
        return sum(each.using.get(node, 0) for each in self.workers if each.is_alive)

    def _later(self, seconds: float, act: Callable[[], None]) -> None:
        heappush(self._events, (self.now + seconds, next(self._order), act))

    def _poll(self, worker: Worker) -> None:
        self._ask(worker)
        self._later(INTERVAL, partial(self._poll, worker))

    def _ask(self, worker: Worker) -> None:
        if not worker.is_alive:
            return
        more = 9 if worker.is_wanting else 0
        before, worker.lease = (
            worker.lease,
            ask(
                self.book,
                worker.name,
                self.now,
                group=worker.group,
                weight=worker.weight,
                wants={node: worker.using.get(node, 0) + more for node in worker.nodes},
                using=worker.using,
                serial=worker.lease.serial,
            ),
        )
        if any(worker.lease.slots[node] < count for node, count in before.slots.items()):
            self._later(0.0, partial(self._ask, worker))
        self._begin(worker)

    def _begin(self, worker: Worker) -> None:
        if not worker.is_wanting:
            return
        for node in worker.nodes:
            while worker.using.get(node, 0) < worker.lease.slots[node]:
                worker.using[node] = worker.using.get(node, 0) + 1
                worker.began_at.append(self.now)
                seconds = self._rng.uniform(*worker.seconds)
                self._later(seconds, partial(self._end, worker, node, seconds))
            assert self.under_way(node) <= self.slots[node]

    def _end(self, worker: Worker, node: str, seconds: float) -> None:
        if not worker.is_alive:
            return
        is_too_much = worker.using[node] > worker.lease.slots[node]
        worker.using[node] -= 1
        worker.busy += seconds
        worker.done += 1
        self._begin(worker)
        if is_too_much:
            self._ask(worker)


def nodes(count: int, slots: int) -> dict[str, int]:
    return {f"n{at}": slots for at in range(count)}


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("slots", [nodes(4, 2), nodes(1, 2), nodes(3, 1)], ids=str)
def test_slots_are_shared_by_weight(slots: dict[str, int], seed: int) -> None:
    """Of slot-seconds and of requests that ended, to 5 %; after a minute also to a slot's turn."""
    weights = {"a": 3.0, "b": 1.0, "c": 1.0, "d": 1.0}
    workers = [Worker(name, list(slots), weight=weight) for name, weight in weights.items()]
    world = World(slots, workers, seed)
    for minutes in (1, 3):
        world.run(60.0 * minutes)
        busy, done = sum(each.busy for each in workers), sum(each.done for each in workers)
        assert busy > 0.9 * 60.0 * minutes * sum(slots.values())
        for worker in workers:
            share = worker.weight / sum(weights.values())
            slack = 0.05 if minutes > 1 else max(0.05, TURN / (share * busy))
            assert worker.busy / busy == pytest.approx(share, rel=slack)
            assert worker.done / done == pytest.approx(share, rel=slack)


def test_long_requests_count_by_their_length() -> None:
    slots = nodes(1, 2)
    workers = [Worker("a", ["n0"], seconds=(2.0, 6.0)), Worker("b", ["n0"]), Worker("c", ["n0"])]
    world = World(slots, workers)
    world.run(600.0)
    for worker in workers:
        assert worker.busy == pytest.approx(sum(each.busy for each in workers) / 3, rel=0.05)


def test_all_nodes_together_are_shared() -> None:
    """The chain of nodes that two can use: everybody has 1.5 slots per weight, wherever."""
    slots = nodes(3, 3)
    workers = [
        Worker("a", ["n0"]),
        Worker("b", ["n0", "n1"]),
        Worker("c", ["n1", "n2"]),
        Worker("d", ["n2"]),
        Worker("e", ["n0", "n1", "n2"], weight=2.0),
    ]
    world = World(slots, workers)
    world.run(120.0)
    for worker in workers:
        assert worker.busy / worker.weight / 120.0 == pytest.approx(1.5, rel=0.06)
    fair = {group.name: group.fair for group in world.book.statistics().groups}
    assert fair == pytest.approx({"a": 1.5, "b": 1.5, "c": 1.5, "d": 1.5, "e": 3.0}, rel=1e-3)


def test_what_is_lost_on_some_nodes_is_no_debt_of_others() -> None:
    workers = [Worker("a", ["n0"]), Worker("b", ["n0"])]
    workers += [Worker(name, ["n1"]) for name in "cdef"]
    world = World({"n0": 2, "n1": 1}, workers)
    world.run(600.0)
    for group in world.book.statistics().groups:
        assert abs(group.credit) < 2 * TURN


def test_ten_members_of_one_group_have_no_more_than_one_of_another() -> None:
    slots = nodes(2, 2)
    ten = [Worker(f"w{at}", list(slots), group="ten") for at in range(10)]
    one = Worker("one", list(slots), group="one")
    World(slots, [*ten, one]).run(200.0)
    together = sum(each.busy for each in ten)
    assert together / (together + one.busy) == pytest.approx(0.5, rel=0.06)
    for worker in ten:
        assert worker.busy == pytest.approx(together / 10, rel=0.15)


@pytest.mark.parametrize("slots", [nodes(1, 1), nodes(2, 1)], ids=str)
def test_nobody_starves(slots: dict[str, int]) -> None:
    """Eight on one slot, and one of a hundred times their weight: each has its turn."""
    workers = [Worker(f"w{at}", list(slots)) for at in range(8)]
    workers.append(Worker("heavy", list(slots), weight=100.0))
    World(slots, workers).run(1200.0)
    for worker in workers:
        assert worker.done > 0
    even = [Worker(f"w{at}", list(slots)) for at in range(8)]
    World(slots, even).run(120.0)
    for worker in even:  # 8 turns of 2 s, and what moving a slot takes, until it is back
        pauses = [b - a for a, b in pairwise([0.0, *worker.began_at, 120.0])]
        assert max(pauses) < 8 * (TURN + 2 * INTERVAL) + TURN


def test_slots_of_the_dead_are_in_use_within_the_term() -> None:
    slots = nodes(2, 2)
    workers = [Worker(name, list(slots)) for name in "ab"]
    world = World(slots, workers)
    world.run(20.0)
    workers[0].is_alive = False
    world.run(20.0 + TERM + INTERVAL)
    assert [world.under_way(node) for node in slots] == [2, 2]
    assert world.book.expire(world.now) == ["a"]


@pytest.mark.parametrize("seed", range(5))
def test_who_begins_to_want_soon_has_a_slot(seed: int) -> None:
    slots = nodes(2, 2)
    late = Worker("late", list(slots), is_wanting=False)
    others = [Worker(name, list(slots), seconds=(0.2, 1.0)) for name in "abc"]
    world = World(slots, [late, *others], seed)
    world.run(20.0)
    assert {world.under_way(node) for node in slots} == {2}  # the others use its slots
    late.is_wanting = True
    world.run(30.0)
    # It tells that it wants (its own interval), another hears of it and its request ends, and it
    # hears of that (its own interval).
    assert late.began_at[0] < 20.0 + INTERVAL + (INTERVAL + 1.0) + INTERVAL
    world.run(100.0)
    assert late.busy == pytest.approx(80.0, rel=0.06)


def test_an_idle_member_uses_its_slots_in_advance_at_once() -> None:
    slots = nodes(2, 2)
    workers = [Worker(name, list(slots), is_wanting=False) for name in "ab"]
    world = World(slots, workers)
    world.run(5.0)
    assert [sum(each.lease.slots.values()) for each in workers] == [2, 2]


def test_slots_stay_where_they_are_when_that_is_fair() -> None:
    slots = nodes(4, 2)
    workers = [Worker(name, list(slots)) for name in "ab"]
    world = World(slots, workers)
    world.run(20.0)
    before = [dict(each.lease.slots) for each in workers]
    for at in range(100):
        world.run(20.0 + at)
        assert [each.lease.slots for each in workers] == before


def test_a_large_cluster_is_divided_bit_by_bit() -> None:
    """More claims than are looked at for one question: all is divided after a few."""
    slots = nodes(60, 3)
    workers = [Worker(f"w{at}", list(slots), seconds=(50.0, 60.0)) for at in range(20)]
    world = World(slots, workers)
    world.run(20.0)
    assert {world.under_way(node) for node in slots} == {3}
    for group in world.book.statistics().groups:
        assert group.fair == pytest.approx(9.0, rel=0.01)
