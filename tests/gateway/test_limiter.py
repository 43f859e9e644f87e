"""How much one client may ask, by itself: rates, requests in flight, and their line."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from aiosollol import InvalidInput
from aiosollol.gateway.middleware.clients import client_of
from aiosollol.gateway.middleware.keys import ApiKey
from aiosollol.gateway.middleware.limits import Limiter, Limits

pytestmark = pytest.mark.anyio


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def limiter(**limits: Any) -> tuple[Limiter, Clock]:
    clock = Clock()
    clock.now = 1000.0
    return Limiter(Limits(**limits), clock), clock


def wait(held: Limiter, name: str, key: ApiKey | None = None) -> float | None:
    """The seconds after which a request may come again; None if it is let in."""
    exceeded = held.enter(name, key)
    return None if exceeded is None else exceeded.retry_after


def test_a_bucket_fills_again() -> None:
    held, clock = limiter(rate=2.0, burst=3)
    assert [wait(held, "a") for _ in range(3)] == [None] * 3
    assert wait(held, "a") == pytest.approx(0.5)
    assert wait(held, "b") is None  # another client
    clock.now += 0.5
    assert wait(held, "a") is None
    assert wait(held, "a") == pytest.approx(0.5)
    clock.now += 100.0
    assert [wait(held, "a") for _ in range(4)] == [None, None, None, pytest.approx(0.5)]


def test_requests_in_flight() -> None:
    held, _ = limiter(max_in_flight=2)
    assert wait(held, "a") is None
    assert wait(held, "a") is None
    assert wait(held, "a") == 1.0
    held.leave("a")
    assert wait(held, "a") is None


def test_a_key_has_terms_of_its_own() -> None:
    held, _ = limiter(max_in_flight=1, rate=1.0)
    key = ApiKey("ann", b"", rate=10.0, in_flight=2)
    assert wait(held, "key ann", key) is None
    assert wait(held, "key ann", key) is None
    assert wait(held, "key ann", key) == 1.0
    plain = ApiKey("bob", b"")
    assert wait(held, "key bob", plain) is None
    assert wait(held, "key bob", plain) == 1.0


@pytest.mark.parametrize(
    ("limits", "key", "message"),
    [
        ({"max_in_flight": 1}, {}, "max_in_flight=1 of each client (--max-in-flight)"),
        ({"max_in_flight": 9}, {"in_flight": 1}, "in_flight=1 of this key"),
        ({"rate": 0.5, "burst": 1}, {}, "rate_limit=0.5 a second of each client (--rate-limit)"),
        ({"rate": 9.0}, {"rate": 0.25, "burst": 1}, "rate=0.25 a second of this key"),
    ],
)
def test_a_refusal_names_the_limit(
    limits: dict[str, Any], key: dict[str, Any], message: str
) -> None:
    held, _ = limiter(**limits)
    ann = ApiKey("ann", b"", **key)
    assert held.enter("key ann", ann) is None
    exceeded = held.enter("key ann", ann)
    assert exceeded is not None
    assert message in exceeded.message
    assert exceeded.can_wait is ("in_flight" in message)


class Line:
    """Requests of one client that come one after another. let_in: in the order of their turns."""

    def __init__(self, limiter: Limiter) -> None:
        self.limiter = limiter
        self.let_in: list[str] = []
        self.tasks: dict[str, asyncio.Task[bool]] = {}

    async def _enter(self, name: str) -> bool:
        exceeded = self.limiter.enter("a")
        is_in = exceeded is None or (exceeded.can_wait and await self.limiter.wait("a"))
        if is_in:
            self.let_in.append(name)
        return is_in

    async def come(self, names: str) -> None:
        for name in names:
            self.tasks[name] = asyncio.create_task(self._enter(name))
        await self.settle()

    async def settle(self) -> None:
        for _ in range(5):
            await asyncio.sleep(0)

    async def leave(self, count: int = 1) -> None:
        for _ in range(count):
            self.limiter.leave("a")
        await self.settle()


async def test_requests_over_a_limit_wait_in_order() -> None:
    line = Line(limiter(max_in_flight=2)[0])
    await line.come("abcdef")
    assert line.let_in == ["a", "b"]
    await line.leave()
    await line.come("g")
    assert line.let_in == ["a", "b", "c"]
    await line.leave(2)
    assert line.let_in == list("abcde")
    await line.leave(5)
    assert line.let_in == list("abcdefg")
    assert line.limiter.enter("a") is None  # and none is counted that has ended


@pytest.mark.parametrize("when", ["in line", "at its turn"])
async def test_a_request_that_leaves_the_line_frees_its_place(when: str) -> None:
    line = Line(limiter(max_in_flight=1)[0])
    await line.come("abcd")
    if when == "in line":
        line.tasks["b"].cancel()
        await line.settle()
        await line.leave()
    else:
        line.limiter.leave("a")
        line.tasks["b"].cancel()
        await line.settle()
    assert line.let_in == ["a", "c"]
    await line.leave()
    assert line.let_in == ["a", "c", "d"]
    await line.leave()
    assert line.limiter.enter("a") is None


async def test_the_wait_for_a_place_ends() -> None:
    line = Line(limiter(max_in_flight=1, wait_timeout=0.0)[0])
    await line.come("ab")
    assert await line.tasks["b"] is False
    await line.leave()
    assert line.limiter.enter("a") is None


async def test_limits_may_change_while_requests_wait() -> None:
    line = Line(limiter(max_in_flight=1)[0])
    await line.come("abcd")
    line.limiter.limits = Limits(max_in_flight=3)
    await line.come("e")  # behind those that wait already
    assert line.let_in == ["a"]
    await line.leave()
    assert line.let_in == ["a", "b", "c", "d"]
    await line.leave()
    assert line.let_in == ["a", "b", "c", "d", "e"]


def test_who_has_gone_is_forgotten() -> None:
    held, clock = limiter()
    for number in range(10_000):
        assert held.enter(f"10.0.{number // 256}.{number % 256}") is None
        held.leave(f"10.0.{number // 256}.{number % 256}")
        clock.now += 0.001
    assert len(held) <= 1024
    held, clock = limiter(rate=1.0)
    for number in range(10_000):
        held.enter(str(number))
        held.leave(str(number))
        clock.now += 0.1
    assert len(held) < 3000


@pytest.mark.parametrize(
    ("address", "client"),
    [
        ("10.0.0.7", "10.0.0.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("::ffff:10.0.0.7", "10.0.0.7"),
        ("", ""),
        ("a:b:odd", "a:b:odd"),
    ],
)
def test_who_a_client_is(address: str, client: str) -> None:
    assert client_of(address) == client


@pytest.mark.parametrize(
    "wrong",
    [
        {"max_in_flight": 0},
        {"max_body": 0},
        {"rate": -1.0},
        {"rate": float("inf")},
        {"burst": -1},
        {"body_timeout": 0.0},
        {"wait_timeout": -1.0},
    ],
)
def test_limits_that_cannot_be(wrong: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput):
        Limits(**wrong)
