"""Several processes of a gateway: the limits of a client hold over all of them."""

from __future__ import annotations

import asyncio
import math
import pathlib
import random
import sys
from collections.abc import Callable
from typing import Any

import pytest

from aiosollol.gateway.middleware.limits import Limiter, Limits
from aiosollol.gateway.middleware.shared_counts import SharedCounts

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.skipif(sys.platform == "win32", reason="processes cannot share a port there"),
]


class Processes:
    """The limiters of `count` processes, with one clock."""

    def __init__(self, folder: pathlib.Path, count: int, **limits: Any) -> None:
        self.now = 1000.0
        self._path, self._count, self._limits = str(folder / "clients"), count, limits
        self.limiters = [self.start(index) for index in range(count)]

    def start(self, index: int, **options: Any) -> Limiter:
        shared = SharedCounts(self._path, index, self._count, **options)
        return Limiter(Limits(**self._limits), lambda: self.now, shared)

    def admit(self, name: str = "a") -> int:
        """As many as are admitted at once, in turns."""
        count, refused = 0, 0
        while refused < self._count:
            for limiter in self.limiters:
                is_in = limiter.enter(name) is None
                count += is_in
                refused = 0 if is_in else refused + 1
        return count


@pytest.mark.parametrize("count", [1, 2, 4])
def test_requests_in_flight(tmp_path: pathlib.Path, count: int) -> None:
    processes = Processes(tmp_path, count, max_in_flight=10)
    assert processes.admit() == 10
    assert processes.admit("another") == 10
    processes.limiters[-1].leave("a")
    assert processes.admit() == 1


@pytest.mark.parametrize("count", [1, 2, 4])
def test_rates(tmp_path: pathlib.Path, count: int) -> None:
    processes = Processes(tmp_path, count, rate=10.0, burst=20)
    assert processes.admit() == 20
    for _ in range(50):
        processes.now += 0.1
        assert processes.admit() == 1
    processes.now += 1000.0
    assert processes.admit() == 20


@pytest.mark.parametrize("seed", range(10))
def test_requests_to_any_process_are_admitted_as_by_one(tmp_path: pathlib.Path, seed: int) -> None:
    rng = random.Random(seed)
    rate, burst = rng.choice([3.0, 50.0]), rng.choice([1, 10, 100])
    processes = Processes(tmp_path, 3, rate=rate, burst=burst)
    one = Limiter(Limits(rate=rate, burst=burst), lambda: processes.now)
    weights = [rng.random() for _ in range(3)]
    admitted = 0
    for _ in range(2000):
        processes.now += rng.expovariate(2 * rate)
        limiter = rng.choices(processes.limiters, weights)[0]
        is_in = limiter.enter("a") is None
        assert is_in == (one.enter("a") is None)
        admitted += is_in
    assert 200 < admitted < 1900


@pytest.mark.parametrize("seed", range(10))
def test_requests_in_flight_in_any_order(tmp_path: pathlib.Path, seed: int) -> None:
    rng = random.Random(seed)
    processes = Processes(tmp_path, 3, max_in_flight=7)
    running: list[Limiter] = []
    for _ in range(2000):
        if rng.random() < 0.6:
            limiter = rng.choice(processes.limiters)
            is_in = limiter.enter("a") is None
            assert is_in == (len(running) < 7)
            running += [limiter] * is_in
        elif running:
            running.pop(rng.randrange(len(running))).leave("a")


def test_a_restarted_process_has_none_in_flight(tmp_path: pathlib.Path) -> None:
    processes = Processes(tmp_path, 2, max_in_flight=4)
    assert processes.admit() == 4
    processes.limiters[0] = processes.start(0)
    assert processes.admit() == 2


def test_a_client_without_room_is_counted_in_its_process(tmp_path: pathlib.Path) -> None:
    processes = Processes(tmp_path, 2, max_in_flight=1)
    processes.limiters = [processes.start(index, clients=1) for index in range(2)]
    admitted = [processes.admit(f"client {number}") for number in range(20)]
    assert admitted == [1] * 8 + [2] * 12  # in one place there are eight


def test_idle_clients_make_room(tmp_path: pathlib.Path) -> None:
    processes = Processes(tmp_path, 2, max_in_flight=1)
    processes.limiters = [processes.start(index, clients=1) for index in range(2)]
    for limiter in processes.limiters:
        for number in range(1500):
            assert limiter.enter(f"client {number}") is None
            limiter.leave(f"client {number}")
        assert len(limiter) < 1500
    # Only those that came after the last time that idle ones were forgotten may have a cell.
    admitted = [processes.admit(f"another {number}") for number in range(1200)]
    assert admitted.count(1) == 8


async def test_a_request_waits_for_one_in_another_process(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("aiosollol.gateway.middleware.limits._LOOK_SECONDS", 0.0)
    processes = Processes(tmp_path, 2, max_in_flight=2)
    first, second = processes.limiters
    assert first.enter("a") is None
    assert first.enter("a") is None
    assert second.enter("a") is not None
    waiting = [asyncio.create_task(second.wait("a")) for _ in range(2)]
    await turns(lambda: False, most=20)
    assert not any(task.done() for task in waiting)
    first.leave("a")
    await turns(waiting[0].done)
    assert not waiting[1].done()
    waiting[1].cancel()
    await asyncio.wait(waiting)
    second.leave("a")
    assert first.enter("a") is None
    await turns(lambda: False, most=20)  # the check ends with the line
    assert first.enter("a") is not None


async def turns(condition: Callable[[], bool], most: float = math.inf) -> None:
    passed = 0
    while not condition() and passed < most:
        passed += 1
        await asyncio.sleep(0)
