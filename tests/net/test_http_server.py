"""Every server's log and answers, of requests that are malformed: no part of them is in there."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import logging
import re
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import http_exceptions, web
from gateway_cluster import cluster

import aiosollol
from aiosollol import InvalidInput, OllamaPool
from aiosollol.errors import RunnerFailed
from aiosollol.gateway.app import make_app
from aiosollol.gateway.responses import begin
from aiosollol.gateway.serving.listener import Listener
from aiosollol.net.http_server import fault_of, listening
from aiosollol.testing import FakeOllama

pytestmark = pytest.mark.anyio

SECRET = "hunter7xyzzy9"
KEY = SECRET.encode()
DEADLINE = 60.0  # a hang fails; nothing is measured

POST = b"POST /x HTTP/1.1\r\nHost: a\r\nConnection: close\r\n"
CHUNKED = POST + b"Transfer-Encoding: chunked\r\n\r\n"

MALFORMED = [
    (POST + b"Authorization : Bearer " + KEY + b"\r\n\r\n", "malformed header"),
    (POST + b"x-api-key: " + KEY + b"\x01\r\n\r\n", "malformed header"),
    (POST + b"Authorization: Bearer " + KEY + b"\r\r\n\r\n", "malformed header"),
    (POST + b"x-api-key: " + KEY + b"\r x: y\r\n\r\n", "malformed header"),
    (POST + KEY + b"\r\n\r\n", "malformed header"),
    (POST + KEY + b"\xff: x\r\n\r\n", "malformed header"),
    (POST + b"Sec-WebSocket-Key1: " + KEY + b"\r\n\r\n", "malformed header"),
    (POST + b"x-api-key: " + KEY * 1000 + b"\r\n\r\n", "line too long"),
    (POST + KEY * 1000 + b": x\r\n\r\n", "line too long"),
    (b"GET /" + KEY * 1000 + b" HTTP/1.1\r\nHost: a\r\n\r\n", "line too long"),
    (POST + b"x-api-key: " + KEY + b"\r\n" + b"A: b\r\n" * 200 + b"\r\n", "too many headers"),
    (b"GET /?key=" + KEY + b" HTTP/1.1\r\nx-api-key: " + KEY + b"\r\n\r\n", "Host header"),
    (POST + b"Host: " + KEY + b"\r\n\r\n", "Host header"),
    (b"GET " + KEY + b" HTTP/1.1\r\nHost: a\r\n\r\n", "malformed target"),
    (b"GET /\xff" + KEY + b" HTTP/1.1\r\nHost: a\r\n\r\n", "malformed target"),
    (b"GET http://u:" + KEY + b"@h:x/ HTTP/1.1\r\nHost: a\r\n\r\n", "malformed target"),
    (b"GET http://[" + KEY + b"/ HTTP/1.1\r\nHost: a\r\n\r\n", "malformed target"),
    (b"CONNECT u:" + KEY + b"@h:x HTTP/1.1\r\nHost: a\r\n\r\n", "malformed target"),
    (b"GET /" + KEY + b" HTTP/9.1\r\nHost: a\r\n\r\n", "malformed request line"),
    (b"GET /" + KEY + b" " + KEY + b"\r\nHost: a\r\n\r\n", "malformed request line"),
    (KEY + b" / HTTP/1.1\r\nHost: a\r\n\r\n", "malformed method, or not HTTP"),
    (b"\x16\x03\x01\x02\x00" + KEY, "malformed method, or not HTTP"),
    (POST + b"Content-Length: " + KEY + b"\r\n\r\n", "wrong Content-Length"),
    (POST + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\n" + KEY, "wrong Content-Length"),
    (POST + b"Transfer-Encoding: " + KEY + b"\r\n\r\n", "wrong Transfer-Encoding"),
    (CHUNKED + b"6\r\nmy secret " + KEY + b"\r\n0\r\n\r\n", "malformed chunk"),
    (CHUNKED + KEY + b"\r\n\r\n", "malformed chunk"),
    (POST + b"Content-Encoding: deflate\r\nContent-Length: 13\r\n\r\n" + KEY, "Content-Encoding"),
    (POST + b"Content-Encoding: gzip\r\nContent-Length: 13\r\n\r\n" + KEY, "Content-Encoding"),
]


class Served:
    """An application that reads what it is sent, and how its server is reached."""

    def __init__(self) -> None:
        self.begun = asyncio.Event()
        self.fails_with: Any = None
        self.app = web.Application()
        self.app.router.add_route("*", "/{rest:.*}", self.read)

    async def read(self, request: web.Request) -> Any:
        self.begun.set()
        if self.fails_with is not None:
            return self.fails_with()
        return web.Response(text=str(len(await request.read())))


@asynccontextmanager
async def by_listener(app: web.Application) -> AsyncIterator[tuple[str, int]]:
    listener = Listener(app)
    await listener.start("127.0.0.1", 0)
    try:
        yield listener.address
    finally:
        await listener.stop(0.0)


def by_listening(app: web.Application) -> AbstractAsyncContextManager[tuple[str, int]]:
    return listening(app, "127.0.0.1", 0, name="node", grace=0.1)


@asynccontextmanager
async def by_fake(app: web.Application) -> AsyncIterator[tuple[str, int]]:
    async with FakeOllama() as node:
        yield "127.0.0.1", node.port


Serve = Callable[[web.Application], AbstractAsyncContextManager[tuple[str, int]]]
SERVERS: list[Serve] = [by_listener, by_listening, by_fake]


async def answer_to(address: tuple[str, int], *parts: bytes, then: Any = None) -> bytes:
    """All that a server answers until it ends the connection. then: awaited after each part."""
    async with asyncio.timeout(DEADLINE):
        reader, writer = await asyncio.open_connection(*address)
        try:
            for part in parts:
                writer.write(part)
                await writer.drain()
                if then is not None:
                    await then()
            with contextlib.suppress(ConnectionResetError):
                return await reader.read()
        finally:
            writer.close()
    return b""


@pytest.fixture(autouse=True)
def every_level(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)


def lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What was logged, but for asyncio's choice of a selector."""
    return [each.getMessage() for each in caplog.records if each.name != "asyncio"]


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


# Handlers that fail.


def _raise(error: BaseException) -> Callable[[], Any]:
    def fail() -> Any:
        raise error

    return fail


@pytest.mark.parametrize(
    ("fail", "said"),
    [
        (
            _raise(ValueError(f"cannot read {SECRET}")),
            "a request failed, which is a bug: ValueError at ",
        ),
        (_raise(ExceptionGroup(SECRET, [KeyError(SECRET)])), "which is a bug: KeyError"),
        (_raise(RunnerFailed("gpu", 500, SECRET)), "which is a bug: RunnerFailed at "),
        (lambda: f"no response but {SECRET}", "a handler returned something else than a response"),
        (lambda: None, "a handler returned something else than a response"),
    ],
)
async def test_a_handler_that_fails_leaves_one_line_without_content(
    fail: Callable[[], Any], said: str, caplog: pytest.LogCaptureFixture
) -> None:
    served = Served()
    served.fails_with = fail
    request = POST + b"Content-Length: 13\r\nAccept: text/html\r\n\r\n" + KEY
    async with by_listening(served.app) as address:
        answer = await answer_to(address, request)
    assert answer.startswith(b"HTTP/1.1 500 Internal Server Error\r\n")
    assert KEY not in answer
    (line,) = lines(caplog)
    assert said in line
    assert SECRET not in caplog.text


async def test_a_handler_that_takes_too_long_is_a_504(caplog: pytest.LogCaptureFixture) -> None:
    served = Served()
    served.fails_with = _raise(TimeoutError(SECRET))
    async with by_listening(served.app) as address:
        answer = await answer_to(address, POST + b"Content-Length: 0\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 504 ")
    assert lines(caplog) == []


@pytest.mark.parametrize("is_debugging", [False, True])
async def test_development_mode_shows_no_more(
    is_debugging: bool, caplog: pytest.LogCaptureFixture
) -> None:
    served = Served()
    served.fails_with = _raise(ValueError(SECRET))
    asyncio.get_running_loop().set_debug(is_debugging)
    try:
        async with by_listening(served.app) as address:
            answer = await answer_to(address, POST + b"Content-Length: 0\r\n\r\n")
    finally:
        asyncio.get_running_loop().set_debug(False)
    assert KEY not in answer
    assert SECRET not in "".join(lines(caplog))


async def test_a_client_that_leaves_is_not_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    served = Served()
    async with by_listener(served.app) as address:
        _, writer = await asyncio.open_connection(*address)
        writer.write(POST + b"Content-Length: 100\r\n\r\n" + KEY)
        await served.begun.wait()
        writer.transport.abort()
    assert lines(caplog) == []


async def test_where_it_cannot_listen() -> None:
    async with by_listening(Served().app) as (host, port):
        with pytest.raises(InvalidInput, match=f"cannot listen on 127.0.0.1 port {port}: "):
            async with listening(Served().app, host, port, name="node", grace=0.1):
                pass
    with pytest.raises(InvalidInput) as caught:
        async with listening(Served().app, f"u:{SECRET}@h.invalid", 0, name="node", grace=0.1):
            pass
    assert SECRET not in str(caught.value)


# The gateway.


async def test_the_gateway_refuses_a_body_that_is_not_what_it_says(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with cluster() as gateway:
        for path, key in (("/api/embed", "error"), ("/v1/embeddings", "error")):
            answer = await gateway.post(path, KEY, Content_Encoding="gzip")
            assert answer.status == 400
            assert "undecodable Content-Encoding" in str(answer.json[key])
            assert KEY not in answer.body
        body = gzip.compress(b'{"model": "all-minilm", "input": "a"}')
        answer = await gateway.post("/api/embed", body, Content_Encoding="gzip")
        assert answer.status == 200
    assert SECRET not in caplog.text
    assert "Traceback" not in caplog.text


async def test_a_mistake_in_the_gateway_is_told_by_its_place(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with cluster() as gateway:

        async def fail(*args: Any, **more: Any) -> Any:
            raise ValueError(f"cannot embed {SECRET}")

        monkeypatch.setattr(gateway.pool, "embed_batch", fail)
        monkeypatch.setattr(gateway.pool, "embed", fail)
        answer = await gateway.post("/api/embed", {"model": "all-minilm", "input": [SECRET] * 99})
        assert answer.status == 500
        assert SECRET not in answer.body.decode()
        assert answer.headers["X-Request-ID"] in answer.json["error"]
        (line,) = [each for each in lines(caplog) if "which is a bug" in each]
        assert answer.headers["X-Request-ID"] in line
        assert "to /api/embed failed, which is a bug: ValueError at net/test_http_server" in line
    assert SECRET not in caplog.text
    assert "Traceback" not in caplog.text


async def test_an_answer_that_is_broken_off_is_told_without_content(
    caplog: pytest.LogCaptureFixture,
) -> None:
    @web.middleware
    async def break_off(request: web.Request, handler: Any) -> web.StreamResponse:
        await begin(request, {})
        raise RunnerFailed("gpu", 500, f"cannot parse {SECRET}")

    async with cluster(app={"middlewares": [break_off]}) as gateway:
        with pytest.raises(aiohttp.ClientError):
            await gateway.get(f"/v1/models/{SECRET}%0A", X_Request_ID="mine")
    (line,) = [each for each in lines(caplog) if "failed in mid-response" in each]
    assert line.startswith("request mine to /v1/models/{")
    assert line.endswith(" failed in mid-response: gpu: RunnerFailed (status 500)")
    assert SECRET not in caplog.text


async def test_the_gateway_served_by_aiohttp_itself_logs_no_content(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with FakeOllama() as node, OllamaPool([node.url]) as pool:
        runner = web.AppRunner(make_app(pool), access_log=None, shutdown_timeout=0.1)
        await runner.setup()
        assert runner.server is not None
        listener = await asyncio.get_running_loop().create_server(runner.server, "127.0.0.1", 0)
        try:
            for request, fault in MALFORMED[:-2]:  # the last are refused by the gateway
                answer = await answer_to(listener.sockets[0].getsockname(), request)
                assert b" 400 Bad Request" in answer
                said = any(fault in line for line in lines(caplog))
                assert said or "not HTTP" in fault  # which aiohttp logs for debugging only
        finally:
            listener.close()
            await runner.cleanup()
    assert SECRET[:7] not in caplog.text
    assert "Traceback" not in caplog.text


# aiohttp itself.


def test_every_fault_of_aiohttp_has_words_of_ours() -> None:
    for name, kind in vars(http_exceptions).items():
        if isinstance(kind, type) and issubclass(kind, http_exceptions.BadHttpMessage):
            fault = fault_of(kind(SECRET))
            assert fault, name
            assert SECRET not in fault
    assert fault_of(http_exceptions.BadHttpMessage(f"{SECRET} header: x")) == "malformed header"
    assert fault_of(http_exceptions.BadHttpMessage(SECRET)) == "malformed"
    assert fault_of(web.RequestPayloadError(SECRET)) == "malformed body"
    assert fault_of(ValueError(SECRET)) == ""
    assert fault_of(None) == ""


def test_every_server_has_its_connections_from_here() -> None:
    root = Path(aiosollol.__file__).parent
    by_themselves = re.compile(r"TCPSite|UnixSite|SockSite|run_app|RequestHandler\b|make_handler")
    found = [
        path.relative_to(root).as_posix()
        for path in sorted(root.rglob("*.py"))
        if by_themselves.search(path.read_text("utf-8"))
    ]
    assert found == ["net/http_server.py"]
