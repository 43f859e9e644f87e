"""Every server's log and answers, of requests that are malformed: no part of them is in there."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import pytest
from aiohttp import web
from logged_servers import (
    CHUNKED,
    DEADLINE,
    KEY,
    MALFORMED,
    SECRET,
    Served,
    answer_to,
    by_listener,
    by_listening,
    lines,
)

from aiosollol.testing import FakeOllama

pytestmark = pytest.mark.anyio


@asynccontextmanager
async def by_fake(app: web.Application) -> AsyncIterator[tuple[str, int]]:
    async with FakeOllama() as node:
        yield "127.0.0.1", node.port


Serve = Callable[[web.Application], AbstractAsyncContextManager[tuple[str, int]]]
SERVERS: list[Serve] = [by_listener, by_listening, by_fake]


@pytest.fixture(autouse=True)
def every_level(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)


@pytest.mark.parametrize("serve", SERVERS)
async def test_a_malformed_request_leaves_one_line_without_content(
    serve: Serve, caplog: pytest.LogCaptureFixture
) -> None:
    for request, fault in MALFORMED:
        caplog.clear()
        async with serve(Served().app) as address:
            answer = await answer_to(address, request)
        assert re.match(rb"HTTP/1\.[01] 400 Bad Request\r\n", answer), (request, answer)
        assert re.search(rf"\r\n\r\n400 Bad Request: .*{fault}".encode(), answer), answer
        assert KEY[:7] not in answer
        (line,) = lines(caplog)
        assert re.fullmatch(r"[a-z ]+: a request was refused \(.*\), from 127\.0\.0\.1", line)
        assert fault in line
        assert SECRET[:7] not in caplog.text
        assert "Traceback" not in caplog.text


async def test_a_flood_is_one_line_and_its_number(caplog: pytest.LogCaptureFixture) -> None:
    request = MALFORMED[0][0]
    async with by_listener(Served().app) as address:
        for _ in range(20):
            await answer_to(address, request)
    assert lines(caplog) == [
        "gateway: a request was refused (malformed header), from 127.0.0.1",
        "gateway: a request was refused (malformed header): 19 more within 60 s, "
        "the last from 127.0.0.1",
    ]


@pytest.mark.parametrize("serve", [by_listener, by_listening])
@pytest.mark.parametrize("rest", [b"6\r\nmy secret " + KEY + b"\r\n", KEY + b"\r\n"])
async def test_a_body_that_becomes_malformed_ends_its_request(
    serve: Serve, rest: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    """aiohttp lets the reader of such a body wait for ever."""
    served = Served()
    async with serve(served.app) as address:
        answer = await answer_to(address, CHUNKED, rest, then=served.begun.wait)
    assert b"400 Bad Request: malformed chunk" in answer
    assert len(lines(caplog)) == 1
    assert SECRET[:7] not in caplog.text


async def test_a_body_behind_another_request_becomes_malformed() -> None:
    served = Served()
    release = asyncio.Event()

    async def first(request: web.Request) -> web.Response:
        await release.wait()
        return web.Response(text="first")

    app = web.Application()
    app.router.add_get("/", first)
    app.router.add_post("/x", served.read)
    async with by_listening(app) as address, asyncio.timeout(DEADLINE):
        reader, writer = await asyncio.open_connection(*address)
        writer.write(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n" + CHUNKED)
        assert b"404" in await answer_to(address, b"GET /none HTTP/1.0\r\nHost: a\r\n\r\n")
        writer.write(KEY + b"\r\n")
        assert b"404" in await answer_to(address, b"GET /none HTTP/1.0\r\nHost: a\r\n\r\n")
        assert not served.begun.is_set()
        release.set()
        answers = await reader.read()
        writer.close()
    assert answers.index(b"first") < answers.index(b"400 Bad Request: malformed chunk")
    assert KEY not in answers


@pytest.mark.parametrize("rest", [b"0\r\n\r\n", b"1\r\nx\r\n0\r\n\r\n"])
async def test_a_body_that_comes_in_parts_is_read(rest: bytes) -> None:
    served = Served()
    async with by_listening(served.app) as address:
        answer = await answer_to(address, CHUNKED, b"2\r\nab\r\n", rest, then=served.begun.wait)
    assert answer.endswith(b"3" if b"x" in rest else b"2")


async def test_what_follows_a_whole_body_does_not_spoil_it(
    caplog: pytest.LogCaptureFixture,
) -> None:
    served = Served()
    request = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nab"
    async with by_listening(served.app) as address:
        answer = await answer_to(address, request, KEY + b"\r\n\r\n", then=served.begun.wait)
    good, _, bad = answer.partition(b"\r\n\r\n2")
    assert good.startswith(b"HTTP/1.1 200 ")
    assert b"400 Bad Request" in bad
    assert SECRET[:7] not in caplog.text
