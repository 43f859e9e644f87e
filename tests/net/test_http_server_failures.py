"""Every server's log and answers when a handler fails or an answer breaks: no content in there."""

from __future__ import annotations

import asyncio
import gzip
import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import http_exceptions, web
from gateway_cluster import cluster
from logged_servers import (
    KEY,
    MALFORMED,
    POST,
    SECRET,
    Served,
    answer_to,
    by_listener,
    by_listening,
    lines,
)

import aiosollol
from aiosollol import InvalidInput, OllamaPool
from aiosollol.errors import RunnerFailed
from aiosollol.gateway.app import make_app
from aiosollol.gateway.bodies import begin
from aiosollol.net.http_server import fault_of, listening
from aiosollol.testing import FakeOllama

pytestmark = pytest.mark.anyio


@pytest.fixture(autouse=True)
def every_level(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)


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
