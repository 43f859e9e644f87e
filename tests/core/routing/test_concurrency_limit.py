"""How many requests a node should have at once: simulated nodes that work on 1, 4 or 16."""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aiosollol.core.routing.concurrency_limit import (
    GOOD_DELAY,
    START,
    Concurrency,
    LatencySample,
    adapt,
    start,
)

Work = tuple[float, float]


@dataclass
class Server:
    """A node that works on `places` requests at once, always asked for as many as are allowed.

    work: of a request, evenly between these; a unit takes a second. noise: of what one takes.
    """

    places: int
    work: Work = (1.0, 1.0)
    noise: float = 0.25
    seed: int = 1
    demand: int = 1000
    state: Concurrency = field(default_factory=start)
    limits: list[int] = field(default_factory=list)
    done: float = 0.0
    now: float = 0.0

    def __post_init__(self) -> None:
        self.rng = random.Random(self.seed)
        self.free = [0.0] * self.places
        self.under_way: list[tuple[float, float, float, int]] = []

    def run(self, answers: int, slowness: Callable[[float], float] = lambda now: 1.0) -> None:
        for _ in range(answers):
            while len(self.under_way) < min(self.state.allowed, self.demand):
                self._send(slowness(self.now))
            self.now, sent_at, work, in_flight = heapq.heappop(self.under_way)
            self.done += work
            self.state = adapt(self.state, LatencySample(self.now - sent_at, work, in_flight))
            self.limits.append(self.state.allowed)

    def _send(self, slowness: float) -> None:
        work = self.rng.uniform(*self.work)
        seconds = work * slowness * self.rng.lognormvariate(-(self.noise**2) / 2, self.noise)
        end = max(self.now, heapq.heappop(self.free)) + seconds
        heapq.heappush(self.free, end)
        heapq.heappush(self.under_way, (end, self.now, work, len(self.under_way) + 1))

    def usual(self) -> float:
        """The limit, averaged over the last half."""
        last = self.limits[len(self.limits) // 2 :]
        return sum(last) / len(last)


@pytest.mark.parametrize("work", [(1.0, 1.0), (0.1, 2.0), (1.0, 100.0)], ids=str)
@pytest.mark.parametrize("noise", [0.0, 0.25])
@pytest.mark.parametrize(("places", "least", "most"), [(1, 1.7, 3), (4, 4.5, 8), (16, 15.5, 23)])
def test_it_converges(places: int, least: float, most: float, noise: float, work: Work) -> None:
    for seed in range(3):
        server = Server(places, work, noise, seed)
        server.run(4000)
        assert least <= server.usual() <= most
        # Nearly all that the node can do is done, the looks at its idle self included.
        server.done, began = 0.0, server.now
        server.run(2000)
        assert server.done / (server.now - began) > 0.9 * places


@pytest.mark.parametrize("noise", [0.0, 0.25])
@pytest.mark.parametrize(
    ("milliseconds", "least", "most"),
    [(0.2, 20, 60), (1.0, 4, 15), (4.0, 2, 4), (20.0, 1.7, 3)],
)
def test_what_waits_for_less_than_five_milliseconds_does_not_count(
    milliseconds: float, least: float, most: float, noise: float
) -> None:
    work = milliseconds / 1000
    server = Server(1, (work, work), noise)
    server.run(20000)
    assert least <= server.usual() <= most
    # Half of a limit is not alone any more, so a wait may be twice as long as is meant.
    assert server.usual() * work <= max(2 * GOOD_DELAY + 2 * work, 3 * work)


def test_it_starts_at_two_and_reaches_sixteen_soon() -> None:
    assert start().allowed == START == 2
    server = Server(16)
    server.run(400)
    assert max(server.limits) >= 12


@pytest.mark.parametrize(("seconds", "looks"), [(0.05, True), (5.0, False)])
def test_nothing_is_held_back_for_a_look_while_answers_take_seconds(
    seconds: float, looks: bool
) -> None:
    server = Server(4, work=(seconds, seconds))
    found = False
    for _ in range(2000):
        server.run(1)
        found = found or server.state.looking > 0
    assert found is looks


def test_what_the_user_allows_is_never_passed() -> None:
    for most in (1, 3):
        server = Server(16, state=start(most))
        server.run(1000)
        assert max(server.limits) == most


def test_a_node_that_is_not_asked_for_more_is_not_given_more() -> None:
    server = Server(16, demand=2)
    server.run(2000)
    assert max(server.limits) <= 3


def test_it_comes_down_after_an_overload_and_up_again() -> None:
    server = Server(16)
    server.run(2000)
    before = server.state.allowed
    for _ in range(before):  # they fail together, which counts once
        server.state = adapt(server.state, LatencySample(60.0, 0.0, before, is_overload=True))
    assert server.state.allowed == pytest.approx(0.7 * before, abs=1)
    for _ in range(200):
        server.state = adapt(server.state, LatencySample(60.0, 0.0, 16, is_overload=True))
    assert server.state.allowed <= 2
    server.run(3000)
    assert server.state.allowed >= 12


def test_it_comes_down_when_other_programs_take_their_part() -> None:
    server = Server(16)
    server.run(2000)
    server.free = server.free[:4]
    heapq.heapify(server.free)
    server.run(500)
    assert server.limits[-1] <= 9


def test_a_node_that_is_slow_for_a_while_is_not_given_up() -> None:
    server = Server(4, work=(0.1, 2.0))
    server.run(1000)
    server.run(2000, lambda now: 3.0)
    server.run(3000)
    assert 4 <= sum(server.limits[-1000:]) / 1000 <= 9


@settings(deadline=None)
@given(
    st.lists(
        st.builds(
            LatencySample,
            st.floats(-1.0, 1e6),
            st.floats(-1.0, 1e6),
            st.integers(0, 600),
            st.booleans(),
        ),
        max_size=100,
    ),
    st.one_of(st.none(), st.integers(1, 20)),
)
def test_whatever_comes_the_limit_is_sound(samples: list[LatencySample], most: int | None) -> None:
    state = start(most)
    for sample in samples:
        before = Concurrency(*state)
        after = adapt(state, sample)
        assert state == before
        state = after
        assert 1.0 <= state.limit <= (most or 512)
        assert 1 <= state.allowed <= (most or 512)
