"""Spans of requests to the gateway: their parents, their attributes, and when they end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import pytest
from gateway_cluster import MODELS, Cluster, cluster

from aiosollol.testing import FakeOllama, Fault

pytest.importorskip("opentelemetry.sdk")

from opentelemetry.trace import SpanKind, StatusCode
from span_recorder import CHAT, PARENT, SPAN, TRACE, Recorded, ids, parent_of, sent_to, until

pytestmark = pytest.mark.anyio


@pytest.fixture
def recorded() -> Recorded:
    return Recorded()


@asynccontextmanager
async def gateway_of(
    recorded: Recorded, *nodes: FakeOllama, **settings: Any
) -> AsyncIterator[Cluster]:
    """A gateway whose models are loaded, and of which nothing is recorded yet."""
    settings["tracing"] = recorded.tracing
    async with cluster(*nodes, settings=settings) as gateway:
        await gateway.pool.warm("tiny-chat")
        await gateway.pool.warm("all-minilm")
        recorded.clear()
        for node in gateway.nodes:
            node.log.clear()
        yield gateway


def fakes(count: int, **options: Any) -> list[FakeOllama]:
    return [FakeOllama(models=MODELS, **options) for _ in range(count)]


# Who is whose child, and what they say.


async def test_a_request_and_its_attempt(recorded: Recorded) -> None:
    async with gateway_of(recorded) as gateway:
        assert (await gateway.post("/api/chat", CHAT, **PARENT)).status == 200
        server, (client,) = recorded.server, recorded.clients
        assert ids(server)[0] == ids(client)[0] == TRACE
        assert parent_of(server) == SPAN
        assert parent_of(client) == ids(server)[1]
        assert sent_to(gateway.nodes) == [f"00-{TRACE}-{ids(client)[1]}"]
        assert gateway.nodes[0].log[0].headers["tracestate"] == "rojo=1"
        assert server.name == "POST /api/chat"
        assert dict(server.attributes or {}) == {
            "http.request.method": "POST",
            "http.route": "/api/chat",
            "url.path": "/api/chat",
            "url.scheme": "http",
            "http.response.status_code": 200,
        }
        assert client.name == "chat tiny-chat"
        assert dict(client.attributes or {}) == {
            "gen_ai.operation.name": "chat",
            "gen_ai.provider.name": "ollama",
            "gen_ai.request.model": "tiny-chat",
            "server.address": "127.0.0.1",
            "server.port": gateway.nodes[0].port,
            "aiosollol.node": f"127.0.0.1:{gateway.nodes[0].port}",
        }
        assert server.status.status_code is client.status.status_code is StatusCode.UNSET


KINDS = [
    ("/api/generate", {"model": "tiny-chat", "prompt": "one", "stream": False}, "text_completion"),
    ("/api/generate", {"model": "tiny-chat"}, "load"),
    ("/api/embed", {"model": "all-minilm", "input": "one"}, "embeddings"),
    ("/api/embed", {"model": "all-minilm", "input": ["one", "two"]}, "embeddings"),
    ("/v1/chat/completions", CHAT, "chat"),
]


@pytest.mark.parametrize(("path", "body", "operation"), KINDS)
async def test_what_an_attempt_is_called(
    recorded: Recorded, path: str, body: dict[str, Any], operation: str
) -> None:
    async with gateway_of(recorded) as gateway:
        assert (await gateway.post(path, body)).status == 200
        for client in recorded.clients:
            assert client.name == f"{operation} {body['model']}"
            assert parent_of(client) == ids(recorded.server)[1]
        assert recorded.clients
        assert parent_of(recorded.server) == ""


async def test_two_requests_on_one_connection_are_two_traces(recorded: Recorded) -> None:
    async with gateway_of(recorded) as gateway:
        for _ in range(2):
            assert (await gateway.post("/api/chat", CHAT)).status == 200
        first, second = recorded.spans(SpanKind.SERVER)
        assert parent_of(first) == parent_of(second) == ""
        assert ids(first)[0] != ids(second)[0]


async def test_what_asks_a_node_and_computes_nothing_carries_the_servers_span(
    recorded: Recorded,
) -> None:
    async with gateway_of(recorded) as gateway:
        assert (await gateway.get("/api/tags")).status == 200
        trace_id, span_id = ids(recorded.server)
        assert sent_to(gateway.nodes) == [f"00-{trace_id}-{span_id}"]
        assert not recorded.clients


async def test_a_model_that_is_loaded_is_a_span_too(recorded: Recorded) -> None:
    async with cluster(settings={"tracing": recorded.tracing}) as gateway:
        assert (await gateway.post("/api/chat", CHAT)).status == 200
        assert sorted(client.name for client in recorded.clients) == [
            "chat tiny-chat",
            "load tiny-chat",
        ]
        assert {parent_of(client) for client in recorded.clients} == {ids(recorded.server)[1]}


# What goes wrong.


async def test_a_second_attempt_is_a_second_span(recorded: Recorded) -> None:
    sick, sound = fakes(2)
    async with gateway_of(recorded, sick, sound, routing_strategy="round_robin") as gateway:
        sick.fail_next(Fault.ERROR_500)
        for _ in gateway.nodes:  # one of them has the sick node's turn
            recorded.clear()
            assert (await gateway.post("/api/chat", CHAT, **PARENT)).status == 200
            if len(recorded.clients) == 2:
                break
        first, second = recorded.clients
        assert parent_of(first) == parent_of(second) == ids(recorded.server)[1]
        assert (first.attributes or {})["server.port"] == sick.port
        assert (first.attributes or {})["error.type"] == "RunnerFailed"
        assert first.status.status_code is StatusCode.ERROR
        assert (second.attributes or {})["server.port"] == sound.port
        assert "error.type" not in (second.attributes or {})
        assert recorded.server.status.status_code is StatusCode.UNSET
        assert f"00-{TRACE}-{ids(first)[1]}" in sent_to([sick])
        assert f"00-{TRACE}-{ids(second)[1]}" in sent_to([sound])


@pytest.mark.parametrize(
    ("path", "body", "status", "problem"),
    [
        ("/api/chat", {**CHAT, "model": "nobody"}, 404, None),
        ("/nowhere/secret", {}, 404, None),
        ("/api/chat", b"{", 400, None),
        ("/api/chat", CHAT, 500, "500"),
    ],
)
async def test_what_a_server_span_says_of_an_error(
    recorded: Recorded, path: str, body: Any, status: int, problem: str | None
) -> None:
    async with gateway_of(recorded, max_retries=0) as gateway:
        gateway.nodes[0].fault = Fault.ERROR_500 if problem else None
        assert (await gateway.post(path, body)).status == status
        attributes = dict(recorded.server.attributes or {})
        assert attributes["http.response.status_code"] == status
        assert attributes.get("error.type") == problem
        expected = StatusCode.ERROR if problem else StatusCode.UNSET
        assert recorded.server.status.status_code is expected
        assert ("http.route" in attributes) == path.startswith("/api")


async def test_an_unknown_method_and_a_long_path(recorded: Recorded) -> None:
    async with gateway_of(recorded) as gateway:
        await gateway.ask("PROPFIND", "/" + "x" * 1000)
        attributes = recorded.server.attributes or {}
        assert recorded.server.name == "HTTP"
        assert attributes["http.request.method"] == "_OTHER"
        assert len(str(attributes["url.path"])) == 256


async def test_nothing_that_was_said_is_recorded(recorded: Recorded) -> None:
    async with gateway_of(recorded, max_retries=0) as gateway:
        body = {"model": "all-minilm", "input": "a secret text"}
        for fault in (None, Fault.ERROR_500, Fault.HTML):
            gateway.nodes[0].fault = fault
            await gateway.post("/api/chat?key=secret", CHAT, Authorization="Bearer secret")
            await gateway.post("/api/embed", body, x_api_key="secret")
        assert len(recorded.spans()) >= 12
        for span in recorded.spans():
            assert "secret" not in span.to_json()
            assert not span.events


# When they end.


async def test_a_stream_is_a_span_to_its_last_part(recorded: Recorded) -> None:
    async with gateway_of(recorded, *fakes(1, seconds_per_chat_token=0.01)) as gateway:
        stream = await gateway.pool.chat("tiny-chat", CHAT["messages"], stream=True)
        parts = aiter(stream)
        await anext(parts)
        assert not recorded.spans()
        async for _ in parts:
            assert not recorded.spans() or stream.parts == 5
        (span,) = recorded.spans()
        assert span.status.status_code is StatusCode.UNSET
        recorded.clear()
        assert (await gateway.post("/api/chat", {**CHAT, "stream": True})).status == 200
        server, (client,) = recorded.server, recorded.clients
        assert server.end_time is not None
        assert client.end_time is not None
        assert server.end_time >= client.end_time


@pytest.mark.parametrize("fault", [Fault.STREAM_ERROR, Fault.STREAM_CUT])
async def test_a_stream_that_breaks_off_says_so(recorded: Recorded, fault: Fault) -> None:
    async with gateway_of(recorded) as gateway:
        gateway.nodes[0].fault = fault
        answer = await gateway.post("/api/chat", {**CHAT, "stream": True})
        assert list(answer.lines[-1]) == ["error"]
        for span in (recorded.server, *recorded.clients):
            assert span.status.status_code is StatusCode.ERROR
            assert (span.attributes or {})["error.type"]
        assert (recorded.server.attributes or {})["http.response.status_code"] == 200


@pytest.mark.parametrize("stream", [True, False])
async def test_a_client_that_leaves_ends_its_spans(recorded: Recorded, stream: bool) -> None:
    async with gateway_of(recorded, *fakes(1, seconds_per_chat_token=1000.0)) as gateway:
        url, body = f"{gateway.url}/api/chat", {**CHAT, "stream": stream}
        async with aiohttp.ClientSession() as leaver:
            asking = asyncio.create_task(_post(leaver, url, body))
            await until(lambda: gateway.nodes[0].in_flight == 1)
            asking.cancel()
            await asyncio.gather(asking, return_exceptions=True)
        await until(lambda: len(recorded.spans()) == 2)
        for span in (recorded.server, *recorded.clients):
            assert (span.attributes or {})["error.type"] == "cancelled"
            assert span.status.status_code is StatusCode.UNSET
        assert "http.response.status_code" not in (recorded.server.attributes or {})


async def _post(session: aiohttp.ClientSession, url: str, body: Any) -> None:
    async with session.post(url, json=body) as response:
        await response.read()
