"""Clients that leave in mid-stream: nothing is logged, and the request counts as cancelled."""

from __future__ import annotations

import asyncio
import json
import logging
import struct
from functools import partial
from socket import SO_LINGER, SOL_SOCKET

import aiohttp
import pytest
from aiohttp import web
from gateway_cluster import Cluster, cluster

from aiosollol.gateway import bodies
from aiosollol.gateway.bodies import begin

pytestmark = pytest.mark.anyio

LEFT = 499
STREAMS = {
    "/api/chat": {"model": "tiny-chat", "messages": [{"role": "user", "content": "hi"}]},
    "/api/generate": {"model": "tiny-chat", "prompt": "hi"},
    "/v1/chat/completions": {
        "model": "tiny-chat",
        "messages": [{"role": "user", "content": "hi"}],
        "stream": True,
    },
}


def active(gateway: Cluster) -> list[int]:
    nodes = gateway.pool.get_stats()["node_performance"].values()
    return [node["active_requests"] for node in nodes]


class Broken:
    """A response that cannot be written."""

    def __init__(self, error: Exception) -> None:
        self._error = error

    async def write(self, data: bytes) -> None:
        raise self._error


async def broken(
    error: Exception, is_gone: bool, request: web.Request, headers: dict[str, str]
) -> Broken:
    await begin(request, headers)
    if is_gone and request.transport is not None:
        request.transport.abort()
    return Broken(error)


async def ended(gateway: Cluster) -> int:
    while not gateway.served:
        await asyncio.sleep(0)
    return gateway.served[0].status


@pytest.fixture(params=["asyncio", "uvloop"])
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, bool]]:
    return "asyncio", {"use_uvloop": request.param == "uvloop"}


@pytest.mark.parametrize("path", STREAMS)
@pytest.mark.parametrize(
    ("error", "is_gone"),
    [
        (ConnectionResetError("reset"), False),
        (BrokenPipeError("pipe"), False),
        (aiohttp.ClientConnectionError("Connection lost"), False),
        (RuntimeError("the handler is closed"), True),
        (OSError("bad file descriptor"), True),
    ],
)
async def test_errors_of_a_connection_that_is_gone(
    path: str,
    error: Exception,
    is_gone: bool,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with cluster() as gateway:
        monkeypatch.setattr(bodies, "begin", partial(broken, error, is_gone))
        with pytest.raises(aiohttp.ClientError):
            await gateway.post(path, STREAMS[path])
        assert await ended(gateway) == LEFT
        assert gateway.pool.get_stats()["failed_requests"] == 0
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


@pytest.mark.parametrize("linger", [None, struct.pack("ii", 1, 0)], ids=["fin", "reset"])
@pytest.mark.parametrize("path", STREAMS)
async def test_a_client_that_leaves(
    path: str, linger: bytes | None, caplog: pytest.LogCaptureFixture
) -> None:
    async with cluster() as gateway:
        gateway.nodes[0].seconds_per_chat_token = 3600.0
        body = json.dumps(STREAMS[path]).encode()
        host, port = gateway.url.removeprefix("http://").split(":")
        _, writer = await asyncio.open_connection(host, int(port))
        head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
        writer.write(head.encode() + body)
        while not any(active(gateway)):
            await asyncio.sleep(0)
        if linger is not None:
            writer.get_extra_info("socket").setsockopt(SOL_SOCKET, SO_LINGER, linger)
        writer.close()
        assert await ended(gateway) == LEFT
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


async def test_a_mistake_in_mid_stream_is_still_logged(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with cluster() as gateway:
        monkeypatch.setattr(bodies, "begin", partial(broken, RuntimeError("a mistake"), False))
        with pytest.raises(aiohttp.ClientError):
            await gateway.post("/api/chat", STREAMS["/api/chat"])
    assert "failed in mid-response: RuntimeError" in caplog.text
