"""FakeOllama: the same behaviour over real sockets, and what only sockets can do."""

from __future__ import annotations

import asyncio
import base64
import io
import os
import re
from collections.abc import AsyncIterator, Callable
from typing import Any

import aiohttp
import orjson
import pytest
from anyio.lowlevel import checkpoint

from aiosollol.errors import InvalidInput, NodeUnreachable
from aiosollol.testing import FakeModel, FakeOllama, FakeOllamaProcess, Fault, fake_vector

pytestmark = pytest.mark.anyio


@pytest.fixture
async def node() -> AsyncIterator[FakeOllama]:
    async with FakeOllama(models=["m", FakeModel("c", kind="chat")]) as node:
        node.seconds_per_piece = node.stall_seconds = 0.0
        yield node


@pytest.fixture
async def session() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=60)) as session:
        yield session


async def embed(session: aiohttp.ClientSession, node: FakeOllama, *texts: str, **more: Any) -> Any:
    body = {"model": "m", "input": list(texts), **more}
    url = f"{node.url}/api/embed"
    async with session.post(url, json=body, allow_redirects=False) as response:
        return response.status, await response.read()


async def until(condition: Callable[[], bool]) -> None:
    while not condition():  # the server is in this loop, so letting it run is enough
        await checkpoint()


async def test_json_and_base64_are_the_same_float32(
    node: FakeOllama, session: aiohttp.ClientSession
) -> None:
    texts = [f"text {number}" for number in range(20)]
    _, body = await embed(session, node, *texts)
    import numpy

    rows = numpy.asarray(orjson.loads(body)["embeddings"], dtype=numpy.float32)
    asked = {"model": "m", "input": texts, "encoding_format": "base64"}
    async with session.post(f"{node.url}/v1/embeddings", json=asked) as response:
        data = (await response.json())["data"]
    raw = b"".join(base64.b64decode(item["embedding"], validate=True) for item in data)
    digest = node.models["m:latest"].digest
    assert rows.tobytes() == raw == b"".join(fake_vector(digest, text, 64) for text in texts)


@pytest.mark.parametrize(("version", "kind"), [("0.12.6", list), ("0.12.7", str), ("0.lab", str)])
async def test_base64_comes_from_newer_servers_only(
    version: str, kind: type, node: FakeOllama, session: aiohttp.ClientSession
) -> None:
    node.version = version
    asked = {"model": "m", "input": "x", "encoding_format": "base64"}
    async with session.post(f"{node.url}/v1/embeddings", json=asked) as response:
        assert type((await response.json())["data"][0]["embedding"]) is kind


@pytest.mark.parametrize(
    "fault", [fault for fault in Fault if fault not in (Fault.HANG, Fault.REFUSE)]
)
async def test_faults_over_the_wire(
    fault: Fault, node: FakeOllama, session: aiohttp.ClientSession
) -> None:
    _, whole = await embed(session, node, "a", "b")
    node.fault = fault
    match fault:
        case Fault.RESET | Fault.RESET_EARLY:
            with pytest.raises((aiohttp.ClientPayloadError, aiohttp.ClientOSError)):
                await embed(session, node, "a", "b")
        case Fault.CUT_JSON:
            status, body = await embed(session, node, "a", "b")
            assert status == 200
            assert body.startswith(b'{"model"')
            with pytest.raises(orjson.JSONDecodeError):
                orjson.loads(body)
        case _:
            status, body = await embed(session, node, "a", "b")
            expected = {
                Fault.ERROR_500: (500, b'{"error":"llama runner process no longer running: 2 "}'),
                Fault.ERROR_500_UNKNOWN: (500, b'{"error":"the flux'),
                Fault.ERROR_500_TERMINATED: (500, b'{"error":"llama runner process has term'),
                Fault.ERROR_500_LOADING: (500, b'{"error":"llm server loading model"}'),
                Fault.BUSY_503: (503, b'{"error":"server busy, please try again.  maximum'),
                Fault.BUSY_429: (429, b'{"error":"too many requests"}'),
                Fault.BUSY_429_SECONDS: (429, b'{"error":"too many requests"}'),
                Fault.BUSY_429_DATE: (429, b'{"error":"too many requests"}'),
                Fault.BAD_400_UNKNOWN: (400, b'{"error":"the flux'),
                Fault.BAD_400_NO_EMBEDDINGS: (400, b'{"error":"this model does not support emb'),
                Fault.JSON_401: (401, b'{"error":"unauthorized"}'),
                Fault.JSON_403: (403, b'{"error":"forbidden"}'),
                Fault.JSON_404: (404, b'{"error":"not found"}'),
                Fault.JSON_405: (405, b'{"error":"method not allowed"}'),
                Fault.HTML_401: (401, b"<html>\r\n<head><title>401 Unauthorized<"),
                Fault.HTML_403: (403, b"<html>\r\n<head><title>403 Forbidden<"),
                Fault.HTML_404: (404, b"<html>\r\n<head><title>404 Not Found<"),
                Fault.HTML_405: (405, b"<html>\r\n<head><title>405 Method Not Allowed<"),
                Fault.HTML_503: (503, b"<html>\r\n<head><title>503 Service Unavailable<"),
                Fault.HTML_504: (504, b"<html>\r\n<head><title>504 Gateway Timeout<"),
                Fault.TEXT_408: (408, b"Request Timeout"),
                Fault.TEXT_502: (502, b"Bad Gateway"),
                Fault.TEXT_503: (503, b"Service Unavailable"),
                Fault.TEXT_504: (504, b"Gateway Timeout"),
                Fault.REDIRECT: (307, b"<html>\r\n<head><title>307 Temporary Redirect<"),
                Fault.BAD_400_RUNNER: (400, b'{"error":"do embedding request: Post'),
                Fault.HTML: (200, b"<html>"),
                Fault.HTML_502: (502, b"<html>"),
                Fault.NAN: (500, b'{"error":"failed to encode response: json: unsupported value'),
            }.get(fault, (200, b'{"model":"m","embeddings":[['))
            assert status == expected[0]
            assert body.startswith(expected[1])
            if status == 200 and fault is not Fault.HTML:
                vectors = orjson.loads(body)["embeddings"]
                wrong_dim, too_few = fault is Fault.WRONG_DIM, fault is Fault.TOO_FEW
                assert len(vectors) == (1 if too_few else 2)
                assert len(vectors[0]) == (65 if wrong_dim else 64)
                is_right = vectors == orjson.loads(whole)["embeddings"]
                assert is_right is not (wrong_dim or too_few)
    node.fault = None
    assert (
        orjson.loads((await embed(session, node, "a", "b"))[1])["embeddings"]
        == (orjson.loads(whole)["embeddings"])
    )


@pytest.mark.parametrize(
    ("fault", "name", "pattern"),
    [
        (Fault.BUSY_429_SECONDS, "Retry-After", "1"),
        (Fault.BUSY_429_DATE, "Retry-After", r"\w{3}, \d\d \w{3} \d{4} \d\d:\d\d:\d\d GMT"),
        (Fault.REDIRECT, "Location", "/ollama/api/embed"),
    ],
)
async def test_faults_have_headers(
    fault: Fault, name: str, pattern: str, node: FakeOllama, session: aiohttp.ClientSession
) -> None:
    node.fault = fault
    body = {"model": "m", "input": "x"}
    url = f"{node.url}/api/embed"
    async with session.post(url, json=body, allow_redirects=False) as response:
        assert re.fullmatch(pattern, response.headers[name])


async def test_an_early_reset_is_not_a_client_that_left(
    node: FakeOllama, session: aiohttp.ClientSession
) -> None:
    node.fault = Fault.RESET_EARLY
    with pytest.raises(aiohttp.ClientOSError):
        await embed(session, node, "x")
    assert (node.requests, node.in_flight, node.cancelled) == (1, 0, 0)
    assert node.log[-1].status == 0


async def test_nan_is_nan_in_base64(node: FakeOllama, session: aiohttp.ClientSession) -> None:
    node.fault = Fault.NAN
    asked = {"model": "m", "input": "x", "encoding_format": "base64"}
    async with session.post(f"{node.url}/v1/embeddings", json=asked) as response:
        raw = base64.b64decode((await response.json())["data"][0]["embedding"])
    assert raw[:4] == b"\x00\x00\xc0\x7f"
    assert raw[4:] == node.vector("m", "x")[4:]


async def test_a_client_that_leaves_frees_the_slot(
    node: FakeOllama, session: aiohttp.ClientSession
) -> None:
    node.fault = Fault.HANG
    hanging = asyncio.create_task(embed(session, node, "x"))
    await until(lambda: node.in_flight == 1)
    node.fault = None
    node.seconds_per_item = 3600.0
    computing = [asyncio.create_task(embed(session, node, "x")) for _ in range(3)]
    await until(lambda: node.in_flight == 4)
    for task in (hanging, *computing):
        task.cancel()
    await asyncio.wait([hanging, *computing])
    await until(lambda: node.in_flight == 0)
    assert node.cancelled == 4
    node.seconds_per_item = 0.0
    assert (await embed(session, node, "x"))[0] == 200


async def test_refusing_and_healing(node: FakeOllama, session: aiohttp.ClientSession) -> None:
    url = node.url
    node.seconds_per_item = 3600.0
    computing = asyncio.create_task(embed(session, node, "x"))
    await until(lambda: node.in_flight == 1)
    node.fault = Fault.REFUSE
    with pytest.raises(aiohttp.ClientOSError):
        await computing
    await until(lambda: node.in_flight == 0)
    node.seconds_per_item = 0.0
    for _ in range(3):
        with pytest.raises(aiohttp.ClientConnectorError):
            await embed(session, node, "x")
    node.fault = None
    assert (await embed(session, node, "x"))[0] == 200
    node.fault = Fault.REFUSE
    node.fault = None
    node.fault = Fault.REFUSE  # all in one go, before the listener has opened again
    await checkpoint()
    node.fault = None
    async with aiohttp.ClientSession() as fresh:  # the other may not know yet that it was cut off
        assert (await embed(fresh, node, "x"))[0] == 200
    assert node.url == url


async def test_it_may_begin_by_refusing(session: aiohttp.ClientSession) -> None:
    node = FakeOllama(models=["m"])
    node.fault = Fault.REFUSE
    async with node:
        with pytest.raises(aiohttp.ClientConnectorError):
            await embed(session, node, "x")
        node.fault = None
        assert (await embed(session, node, "x"))[0] == 200
        node.fault = Fault.REFUSE


async def test_leaving_while_requests_hang(session: aiohttp.ClientSession) -> None:
    async with FakeOllama(models=["m"]) as node:
        node.fault = Fault.HANG
        hanging = [asyncio.create_task(embed(session, node, "x")) for _ in range(5)]
        await until(lambda: node.in_flight == 5)
    for task in hanging:
        with pytest.raises(aiohttp.ClientError):
            await task
    assert node.in_flight == 0


async def test_counts_are_exact(node: FakeOllama, session: aiohttp.ClientSession) -> None:
    limit = asyncio.Semaphore(50)

    async def ask(number: int) -> None:
        async with limit:
            status, body = await embed(session, node, f"text {number}", "same")
            assert status == 200
            assert len(orjson.loads(body)["embeddings"]) == 2

    node.count_texts = True
    await asyncio.gather(*map(ask, range(1000)))
    assert (node.requests, node.items, node.in_flight, node.cancelled) == (1000, 2000, 0, 0)
    assert 1 <= node.max_in_flight <= 50
    assert node.embedded["same"] == 1000
    assert len(node.embedded) == 1001
    assert len(node.log) == 1000


async def test_a_long_list_and_a_large_text(
    node: FakeOllama, session: aiohttp.ClientSession
) -> None:
    texts = [*("x" for _ in range(2000)), "y" * 10_000_000]
    asked = io.BytesIO(orjson.dumps({"model": "m", "input": texts}))
    async with session.post(f"{node.url}/api/embed", data=asked) as response:
        assert response.status == 200
        assert len(orjson.loads(await response.read())["embeddings"]) == 2001


async def test_a_stream_over_the_wire(node: FakeOllama, session: aiohttp.ClientSession) -> None:
    asked = {"model": "c", "messages": [{"role": "user", "content": "one two"}]}
    async with session.post(f"{node.url}/api/chat", json=asked) as response:
        assert response.headers["Transfer-Encoding"] == "chunked"
        lines = [orjson.loads(line) async for line in response.content]
    assert [line["message"]["content"] for line in lines] == ["one", " two", ""]
    assert [line["done"] for line in lines] == [False, False, True]


async def test_a_taken_port_is_an_error_of_ours(node: FakeOllama) -> None:
    with pytest.raises(InvalidInput, match=f"{node.port}: Address already in use"):
        async with FakeOllama(port=node.port):
            pass


async def test_refused_connections_cannot_be_counted(node: FakeOllama) -> None:
    with pytest.raises(InvalidInput, match="set fault instead"):
        node.fail_next(Fault.REFUSE)


async def test_ipv6() -> None:
    async with (
        FakeOllama(host="::1") as node,
        aiohttp.ClientSession() as session,
        session.get(f"{node.url}/api/version") as response,
    ):
        assert response.status == 200


# ---- as a process of its own


async def test_a_process_of_its_own(session: aiohttp.ClientSession) -> None:
    models = [FakeModel("m", dim=32, digest="d"), FakeModel("c", kind="chat")]
    async with FakeOllamaProcess(models=models, overhead=0.001, slots=2) as node:
        pid = node.pid
        assert pid is not None
        body = {"model": "m", "input": "x"}
        async with session.post(f"{node.url}/api/embed", json=body) as response:
            vector = (await response.json())["embeddings"][0]
        async with session.get(f"{node.url}/api/tags") as response:
            names = [model["name"] for model in (await response.json())["models"]]
    expected = memoryview(fake_vector("d", "x", 32)).cast("f").tolist()
    assert vector == pytest.approx(expected, abs=1e-7)
    assert names == ["m:latest", "c:latest"]
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    with pytest.raises(InvalidInput, match="has not been started"):
        _ = node.url


async def test_a_process_has_faults_that_can_be_switched(session: aiohttp.ClientSession) -> None:
    async def status() -> int:
        async with session.post(f"{node.url}/api/embed", json={"model": "m", "input": "x"}) as it:
            return it.status

    node = FakeOllamaProcess(models=["m"])
    node.fault = Fault.ERROR_500
    async with node:
        while await status() == 200:  # it obeys in a moment
            pass
        node.fault = None
        while await status() == 500:
            pass
        node.fault = Fault.BUSY_503
        while await status() == 200:
            pass
        assert await status() == 503
        node.kill()
        with pytest.raises(aiohttp.ClientConnectionError):
            while True:
                await status()


async def test_a_process_that_cannot_start_says_why(node: FakeOllama) -> None:
    with pytest.raises(NodeUnreachable, match="ended with code 1; it said: cannot listen on"):
        async with FakeOllamaProcess(port=node.port):
            pass
    with pytest.raises(NodeUnreachable, match="slots must be at least 1"):
        async with FakeOllamaProcess(slots=0):
            pass


def test_a_process_refuses_options_that_it_does_not_have() -> None:
    with pytest.raises(TypeError, match="no option 'poison'"):
        FakeOllamaProcess(poison=["x"])
