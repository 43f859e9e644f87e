"""What a request has to pass: rates, requests in flight, keys, models, origins and bodies."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from typing import Any

import aiohttp
import pytest
from limited_gateway import ring, serving

from aiosollol.gateway.middleware.keys import KeyRing
from aiosollol.gateway.middleware.limits import Limits
from aiosollol.service import parts
from aiosollol.service.config import SOLLOLConfig

pytestmark = pytest.mark.anyio


async def test_without_keys_all_may_come() -> None:
    async with serving() as (_, session), session.get("/api/tags") as answer:
        assert answer.status == 200
        assert (await answer.json())["key"] is None


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


async def test_keys_come_in_two_headers() -> None:
    keys, (token,) = ring("ann")
    async with serving(keys=keys) as (gateway, session):
        for headers in (bearer(token), {"Authorization": f"bearer  {token}"}, {"x-api-key": token}):
            async with session.get("/api/tags", headers=headers) as answer:
                assert answer.status == 200
                assert (await answer.json())["key"] == "ann"
        for headers in ({}, bearer(token + "x"), {"x-api-key": ""}, {"Authorization": token}):
            async with session.get("/api/tags", headers=headers) as answer:
                assert answer.status == 401
                assert answer.headers["WWW-Authenticate"] == "Bearer"
                assert token not in await answer.text()
        assert gateway.guard.denied == {401: 4}
        async with session.get("/") as answer:
            assert answer.status == 200  # that there is a server, and no more


FORMS: list[tuple[str, Callable[[Any], str]]] = [
    ("/api/chat", lambda body: body["error"]),
    ("/v1/chat/completions", lambda body: body["error"]["message"]),
    ("/v1/messages", lambda body: body["error"]["message"]),
]


@pytest.mark.parametrize(("path", "message_of"), FORMS)
async def test_refusals_in_the_words_of_each_api(
    path: str, message_of: Callable[[Any], str]
) -> None:
    limits = Limits(rate=0.001, burst=1)
    async with serving(limits=limits) as (_, session):
        async with session.post(path, data=b"{}") as answer:
            assert answer.status == 200
        async with session.post(path, data=b"{}") as answer:
            assert answer.status == 429
            assert 900 < int(answer.headers["Retry-After"]) <= 1000
            body = await answer.json(content_type=None)
    assert "too many requests" in message_of(body)
    if path == "/v1/messages":
        assert body["type"] == "error"
        assert body["error"]["type"] == "rate_limit_error"
    elif path.startswith("/v1"):
        assert body["error"]["code"] == "rate_limit_exceeded"


async def test_requests_in_flight_of_one_client() -> None:
    limits = Limits(max_in_flight=1, wait_timeout=0.0)
    async with serving(limits=limits) as (gateway, session):
        first = asyncio.create_task(session.get("/api/slow"))
        await gateway.waiting.wait()
        assert gateway.guard.active == 1
        async with session.get("/api/tags") as answer:
            assert (answer.status, answer.headers["Retry-After"]) == (429, "1")
        gateway.release.set()
        (await first).release()
        async with session.get("/api/tags") as answer:
            assert answer.status == 200
        assert gateway.guard.active == 0


@pytest.mark.parametrize(
    ("config", "has_keys", "at_once"),
    [
        ({}, False, 300),  # on loopback without keys all come in
        ({"gateway_host": "::1"}, False, 300),
        ({"max_in_flight": 7}, False, 7),  # unless it was said
        ({}, True, 20),  # a key
        ({"gateway_host": "0.0.0.0", "insecure": True}, False, 20),  # an open address
        ({"gateway_host": "0.0.0.0"}, True, 20),
        ({"max_in_flight": 400}, True, 300),
    ],
)
async def test_a_burst_is_answered_whatever_the_limit(
    config: dict[str, Any], has_keys: bool, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Limits say how many are under way, and the others wait: none is refused."""
    monkeypatch.setattr(parts, "MAX_IN_FLIGHT", 20)
    keys, tokens = ring("ann") if has_keys else (KeyRing(), [])
    limits = parts.limits_of(SOLLOLConfig(**config), keys)
    headers = bearer(tokens[0]) if tokens else {}
    async with serving(keys=keys, limits=limits) as (gateway, _):
        connector = aiohttp.TCPConnector(limit=0)
        async with aiohttp.ClientSession(gateway.url, connector=connector) as session:
            asking = [
                asyncio.create_task(session.get("/api/slow", headers=headers)) for _ in range(300)
            ]
            while gateway.guard.active < at_once:
                await asyncio.sleep(0)
            assert gateway.running == at_once
            leaving = asking.pop()  # one that waits, unless all came in
            leaving.cancel()
            gateway.release.set()
            answers = await asyncio.gather(*asking)
            assert [answer.status for answer in answers] == [200] * 299
            for answer in answers:
                answer.release()
        assert gateway.most == at_once
        assert gateway.guard.denied == {}


async def test_a_client_that_leaves_gives_its_place_back() -> None:
    async with serving(limits=Limits(max_in_flight=1)) as (gateway, session):
        leaving = asyncio.create_task(session.get("/api/slow"))
        await gateway.waiting.wait()
        leaving.cancel()
        await asyncio.wait([leaving])
        while gateway.guard.active:
            await asyncio.sleep(0)
        async with session.get("/api/tags") as answer:
            assert answer.status == 200


ADMIN = ("/api/pull", "/api/push", "/api/delete", "/api/copy", "/api/create", "/api/blobs/sha256:1")


async def test_changing_models_is_off_unless_set() -> None:
    keys, (plain, admin) = ring("ann", "ops admin")
    for options, headers, status in (
        ({}, {}, 403),
        ({"allow_admin": True}, {}, 200),
        ({"keys": keys}, bearer(admin), 403),
        ({"keys": keys, "allow_admin": True}, bearer(plain), 403),
        ({"keys": keys, "allow_admin": True}, bearer(admin), 200),
        ({"keys": keys, "allow_admin": True}, {}, 401),
    ):
        async with serving(**options) as (_, session):
            for path in ADMIN:
                async with session.post(path, headers=headers, data=b"{}") as answer:
                    assert answer.status == status, (options, path)


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"model": "qwen3"}, 200),
        ({"model": "all-minilm:latest", "input": "x"}, 200),
        ({"model": "llama3.2"}, 403),
        ({}, 403),
        ({"model": 7}, 403),
        ({"model": "qwen3", "Model": "llama3.2"}, 403),
        ({"MODEL": "llama3.2"}, 403),
        ({"name": "llama3.2"}, 403),
        ([], 403),
        (b"no json", 403),
    ],
)
async def test_models_of_a_key(body: Any, status: int) -> None:
    keys, (token,) = ring("ann models=qwen*,all-minilm")
    async with serving(keys=keys) as (_, session):
        data = body if isinstance(body, bytes) else json.dumps(body)
        async with session.post("/api/chat", headers=bearer(token), data=data) as answer:
            assert answer.status == status
            if status == 200:
                assert (await answer.json())["bytes"] == len(data)
        async with session.get("/api/tags", headers=bearer(token)) as answer:
            assert answer.status == 200
        async with session.delete("/api/embed/batch/7", headers=bearer(token)) as answer:
            assert answer.status == 200


async def test_bodies_come_through_whole() -> None:
    async with serving() as (_, session):
        for size in (0, 1, 70_000, 1 << 20):
            async with session.post("/api/embed", data=bytes(size)) as answer:
                assert (await answer.json())["bytes"] == size


async def chunks(size: int) -> AsyncIterator[bytes]:
    for _ in range(size // 4096):
        yield bytes(4096)


@pytest.mark.parametrize("path", ["/api/embed", "/v1/embeddings", "/v1/messages"])
async def test_bodies_that_are_too_large(path: str) -> None:
    async with serving(limits=Limits(max_body=100_000)) as (_, session):
        for data in (bytes(200_000), chunks(200_000), chunks(3 << 20)):
            async with session.post(path, data=data) as answer:
                assert answer.status == 413
                assert "larger than 100,000 bytes" in await answer.text()


async def test_large_bodies_together() -> None:
    """One may be as large as it likes, several share what there is."""
    limits = Limits(max_bodies=1000, wait_timeout=0.0)
    async with serving(limits=limits) as (gateway, session):
        host, port = gateway.url.removeprefix("http://").split(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(b"POST /api/embed HTTP/1.1\r\nHost: x\r\nContent-Length: 5000\r\n\r\n{")
        while not gateway.guard.active:
            await asyncio.sleep(0)
        other_reader, other = await asyncio.open_connection(host, int(port))
        other.write(b"POST /api/embed HTTP/1.1\r\nHost: x\r\nContent-Length: 600\r\n\r\n{")
        answer = await other_reader.read()
        assert answer.startswith(b"HTTP/1.1 503 ")
        assert b"Retry-After: 1" in answer
        async with session.post("/api/embed", data=b"{}") as small:
            assert small.status == 200
        writer.write(bytes(4999))
        assert (await reader.readline()).startswith(b"HTTP/1.1 200 ")
        while gateway.guard.active:
            await asyncio.sleep(0)
        async with session.post("/api/embed", data=bytes(1 << 20)) as again:
            assert again.status == 200
        for each in (writer, other):
            each.close()


async def test_a_body_that_is_too_large_waits_for_nothing() -> None:
    async with serving(limits=Limits(max_body=9000, max_bodies=9000)) as (gateway, session):
        host, port = gateway.url.removeprefix("http://").split(":")
        _, writer = await asyncio.open_connection(host, int(port))
        writer.write(b"POST /api/embed HTTP/1.1\r\nHost: x\r\nContent-Length: 5000\r\n\r\n{")
        while not gateway.guard.bodies.large:
            await asyncio.sleep(0)
        async with session.post("/api/embed", data=bytes(200_000)) as answer:
            assert answer.status == 413
        writer.close()


async def test_large_bodies_wait_for_room() -> None:
    async with serving(limits=Limits(max_bodies=600_000)) as (gateway, session):
        calls = [session.post("/api/embed", data=bytes(300_000)) for _ in range(20)]
        answers = await asyncio.gather(*calls)
        assert [answer.status for answer in answers] == [200] * 20
        for answer in answers:
            assert (await answer.json())["bytes"] == 300_000
        while gateway.guard.active:
            await asyncio.sleep(0)
        assert (gateway.guard.bodies.small, gateway.guard.bodies.large) == (0, 0)
        assert len(gateway.guard.bodies) == 0


async def test_a_body_that_does_not_come() -> None:
    async with serving(limits=Limits(body_timeout=0.1)) as (gateway, _):
        host, port = gateway.url.removeprefix("http://").split(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(b"POST /api/embed HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n{")
        answer = await reader.read()
        assert answer.startswith(b"HTTP/1.1 408 ")
        assert b"Connection: close" in answer
        writer.close()
