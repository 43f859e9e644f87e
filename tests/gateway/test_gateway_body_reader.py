"""What of the bodies of requests is counted, and what is refused with the limit's name."""

from __future__ import annotations

import asyncio
import gzip
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiohttp import web
from gateway_cluster import Cluster, cluster

from aiosollol.gateway.middleware.body_memory import BodyMemory
from aiosollol.gateway.middleware.guard import Guard
from aiosollol.gateway.middleware.limits import Limits

pytestmark = pytest.mark.anyio

MIB = 1 << 20
MOST = 8 * MIB
HEAD = b"POST /api/show HTTP/1.1\r\nHost: x\r\n"
CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"


@asynccontextmanager
async def guarded(**limits: Any) -> AsyncIterator[tuple[Cluster, Guard]]:
    given = {"max_bodies": MOST, "max_body": 6 * MIB, "wait_timeout": 0.0, **limits}
    guard = Guard(limits=Limits(**given))
    async with cluster(app={"middlewares": [guard.middleware()]}) as gateway:
        yield gateway, guard


def chunk(size: int) -> bytes:
    return b"%x\r\n%b\r\n" % (size, b" " * size)


async def connect(gateway: Cluster) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    host, port = gateway.url.removeprefix("http://").split(":")
    return await asyncio.open_connection(host, int(port))


async def until(memory: BodyMemory, large: int) -> None:
    while memory.large < large:
        await asyncio.sleep(0)


async def test_chunked_bodies_count_as_they_come() -> None:
    async with guarded() as (gateway, guard):
        _, first = await connect(gateway)
        first.write(CHUNKED + chunk(5 * MIB))
        await until(guard.bodies, 5 * MIB)
        reader, second = await connect(gateway)
        second.write(CHUNKED + chunk(5 * MIB))
        answer = await reader.readuntil(b"}")
        assert answer.startswith(b"HTTP/1.1 503 ")
        assert b"max_bodies=8,388,608" in answer
        first.close()
        second.close()
        while guard.bodies.large:
            await asyncio.sleep(0)
        assert guard.active == 0


async def test_a_chunked_body_that_is_too_large() -> None:
    async with guarded() as (gateway, guard):
        reader, writer = await connect(gateway)
        writer.write(CHUNKED + chunk(7 * MIB))
        answer = await reader.readuntil(b"}")
        assert answer.startswith(b"HTTP/1.1 413 ")
        assert b"max_body" in answer
        writer.close()
        assert guard.bodies.large == 0


async def test_encoded_bodies_count_decoded() -> None:
    begun, goes_on = asyncio.Event(), asyncio.Event()

    @web.middleware
    async def hold(request: web.Request, handler: Any) -> web.StreamResponse:
        begun.set()
        await goes_on.wait()
        answer: web.StreamResponse = await handler(request)
        return answer

    guard = Guard(limits=Limits(max_bodies=MOST, max_body=6 * MIB, wait_timeout=0.0))
    body = gzip.compress(b'{"model":"tiny-chat"}' + b" " * (5 * MIB))
    async with cluster(app={"middlewares": [guard.middleware(), hold]}) as gateway:
        first = asyncio.create_task(gateway.post("/api/show", body, Content_Encoding="gzip"))
        await begun.wait()
        assert guard.bodies.large > 5 * MIB
        refused = await gateway.post("/api/show", body, Content_Encoding="gzip")
        assert (refused.status, b"max_bodies" in refused.body) == (503, True)
        goes_on.set()
        assert (await first).status == 200
        assert guard.bodies.large == guard.bodies.small == 0
        assert (await gateway.post("/api/show", body, Content_Encoding="gzip")).status == 200


@pytest.mark.parametrize(
    ("held", "size", "fits"),
    [
        ((0, 0), 500, True),  # one always fits
        ((0, 90), 25, True),
        ((24, 500), 1, True),  # a quarter is kept for these
        ((25, 500), 1, False),
        ((25, 74), 1, True),
        ((25, 75), 1, False),
        ((100, 0), 1, False),
        ((100, 500), 0, True),
    ],
)
def test_small_bodies(held: tuple[int, int], size: int, fits: bool) -> None:
    memory = BodyMemory()
    memory.small, memory.large = held
    assert memory.take_small("a", size, 100) is fits
    assert memory.small == held[0] + (size if fits else 0)


@pytest.mark.parametrize(
    ("small", "large", "held", "fits"),
    [
        (0, 50, 50, True),
        (500, 50, 50, True),  # there is no other
        (0, 90, 50, True),
        (0, 91, 50, False),
        (1, 90, 50, False),
    ],
)
def test_bodies_that_grow(small: int, large: int, held: int, fits: bool) -> None:
    memory = BodyMemory()
    memory.small, memory.large = small, large
    assert memory.grow("a", 10, 0, held, 100) is fits
    assert memory.large == large + (10 if fits else 0)


@pytest.mark.parametrize(
    ("others", "size", "fits"), [(0, 90, True), (10, 30, True), (10, 31, False), (55, 1, False)]
)
def test_bodies_that_grow_beyond_half(others: int, size: int, fits: bool) -> None:
    """It holds 10 already, and the client's other bodies `others`."""
    memory = BodyMemory()
    assert memory.take_small("a", others, 100)
    assert memory.grow("a", 10, 0, 0, 100) is (others < 45)
    own = memory.large
    assert memory.grow("a", size, 0, own, 100) is fits


async def test_only_so_many_wait_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aiosollol.gateway.middleware.body_memory._MOST_WAITING", 0)
    memory = BodyMemory()
    assert await memory.wait("a", 100, 100, 0.0)
    waiting = asyncio.create_task(memory.wait_in_memory("b", 60, 100, 3600.0))
    await asyncio.sleep(0)
    assert memory.waiting == 60
    assert not await memory.wait_in_memory("c", 41, 100, 3600.0)
    memory.release("a", 100, 100)
    assert await waiting
    assert (memory.waiting, memory.large) == (0, 60)
