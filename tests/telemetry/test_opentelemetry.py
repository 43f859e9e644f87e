"""Spans, by the SDK of OpenTelemetry: whose children they are, what they say, when they end."""

from __future__ import annotations

import asyncio
import dataclasses
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import pytest
from gateway_cluster import MODELS, Cluster, cluster
from live_cluster import EMBED, MODEL

from aiosollol import OllamaPool
from aiosollol.errors import MissingExtra, NoNodeAvailable
from aiosollol.service import SOLLOL, SOLLOLConfig
from aiosollol.telemetry.opentelemetry import OpenTelemetry
from aiosollol.telemetry.tracing import PassOn
from aiosollol.testing import FakeOllama, FakeTransport, Fault

pytest.importorskip("opentelemetry.sdk")

from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

pytestmark = pytest.mark.anyio

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
PARENT = {"traceparent": f"00-{TRACE}-{SPAN}-01", "tracestate": "rojo=1"}
CHAT = {
    "model": "tiny-chat",
    "messages": [{"role": "user", "content": "a secret of three"}],
    "stream": False,
}


class Recorded:
    """A tracing, and the spans that have ended."""

    def __init__(self) -> None:
        self._exporter = InMemorySpanExporter()
        self.provider = TracerProvider()
        self.provider.add_span_processor(SimpleSpanProcessor(self._exporter))
        self.tracing = OpenTelemetry(self.provider)

    def spans(self, kind: SpanKind | None = None) -> list[ReadableSpan]:
        ended = self._exporter.get_finished_spans()
        return [span for span in ended if kind is None or span.kind is kind]

    @property
    def server(self) -> ReadableSpan:
        (span,) = self.spans(SpanKind.SERVER)
        return span

    @property
    def clients(self) -> list[ReadableSpan]:
        return self.spans(SpanKind.CLIENT)

    def clear(self) -> None:
        self._exporter.clear()


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


def ids(span: ReadableSpan) -> tuple[str, str]:
    """Of its trace and its own, as headers have them."""
    context = span.get_span_context()
    assert context is not None
    return f"{context.trace_id:032x}", f"{context.span_id:016x}"


def parent_of(span: ReadableSpan) -> str:
    return "" if span.parent is None else f"{span.parent.span_id:016x}"


def sent_to(nodes: Sequence[FakeOllama]) -> list[str]:
    """Each `traceparent` but its flags, of which there are more with every SDK."""
    records = [record for node in nodes for record in node.log]
    return [record.headers["traceparent"][:-3] for record in records]


async def until(is_so: Callable[[], bool]) -> None:
    while not is_so():
        await asyncio.sleep(0)


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


# A pool by itself.


@asynccontextmanager
async def pool_of(recorded: Recorded, *nodes: FakeTransport) -> AsyncIterator[OllamaPool]:
    named = {node.name: node for node in nodes}
    pool = OllamaPool(
        [{"url": f"http://{name}.test", "name": name} for name in named],
        transport_factory=lambda spec: named[spec.name],
        tracing=recorded.tracing,
    )
    async with pool:
        await pool.refresh()
        await pool.warm(MODEL)
        recorded.clear()
        yield pool


async def test_calls_of_a_program_are_children_of_its_spans(recorded: Recorded) -> None:
    node = FakeTransport("gpu1", models=[EMBED])
    calls: dict[str, Callable[[OllamaPool], Awaitable[object]]] = {
        "one": lambda pool: pool.embed(MODEL, "a text"),
        "many": lambda pool: pool.embed_batch(MODEL, ["a", "b"]),
    }
    async with pool_of(recorded, node) as pool:
        tracer = recorded.provider.get_tracer("program")
        for name, call in calls.items():
            recorded.clear()
            with tracer.start_as_current_span(name):
                await call(pool)
            *clients, own = recorded.spans()
            assert clients
            for client in clients:
                assert parent_of(client) == ids(own)[1]
                assert (client.attributes or {})["aiosollol.node"] == "gpu1"


async def test_a_late_request_and_its_second_have_one_parent(recorded: Recorded) -> None:
    slow = FakeTransport("slow", models=[EMBED])
    other = FakeTransport("other", models=[EMBED])
    async with pool_of(recorded, slow, other) as pool:
        for _ in range(8):
            await pool.embed(MODEL, "a text")
        recorded.clear()
        slow.fault = other.fault = Fault.HANG
        with recorded.provider.get_tracer("program").start_as_current_span("caller") as caller:
            asking = asyncio.create_task(pool.embed(MODEL, "a text", timeout=600))
            await until(lambda: slow.in_flight + other.in_flight == 2)
            asking.cancel()
            await asyncio.gather(asking, return_exceptions=True)
            await until(lambda: len(recorded.spans()) == 2)
        for client in recorded.clients:
            assert (client.attributes or {})["error.type"] == "cancelled"
            assert parent_of(client) == f"{caller.get_span_context().span_id:016x}"
        slow.fault = other.fault = None


async def test_a_call_that_fails_ends_its_spans(recorded: Recorded) -> None:
    node = FakeTransport("gpu1", models=[EMBED])
    async with pool_of(recorded, node) as pool:
        node.fault = Fault.ERROR_500
        with pytest.raises(NoNodeAvailable):
            await pool.embed(MODEL, "a text", timeout=1)
        assert recorded.spans()
        for span in recorded.spans():
            assert (span.attributes or {})["error.type"] == "RunnerFailed"
        node.fault = None


async def test_a_stream_that_is_dropped_ends_its_span(recorded: Recorded) -> None:
    node = FakeTransport("gpu1", seconds_per_chat_token=1.0)
    async with pool_of(recorded, node) as pool:
        await pool.warm("llama3.2")
        recorded.clear()
        asking = asyncio.create_task(pool.generate("llama3.2", "one two", stream=True))
        await until(lambda: node.in_flight == 1)
        node.seconds_per_chat_token = 0.0
        stream = await asking
        await stream.aclose()
        (span,) = recorded.spans()
        assert (span.attributes or {})["error.type"] == "cancelled"


async def test_without_an_sdk_what_came_is_passed_on() -> None:
    settings = {"tracing": OpenTelemetry(trace.NoOpTracerProvider())}
    async with cluster(settings=settings) as gateway:
        for node in gateway.nodes:
            node.log.clear()
        assert (await gateway.post("/api/chat", CHAT, **PARENT)).status == 200
        assert sent_to(gateway.nodes) == [f"00-{TRACE}-{SPAN}"] * 2  # the first loads the model


# Where it is turned on, and whether it is loaded.


def run(code: str) -> None:
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True, timeout=60)


def test_what_is_off_is_not_loaded() -> None:
    run(
        "import sys\n"
        "from aiosollol.service.optional import without_missing\n"
        "from aiosollol.service.parts import _make_pool\n"
        "from aiosollol.service import SOLLOLConfig\n"
        "from aiosollol.gateway.app import make_app\n"
        "import asyncio\n"
        "config = SOLLOLConfig(metrics_enabled=False)\n"
        "assert without_missing(config) == (config, [])\n"
        "async def main(): make_app(_make_pool(config))\n"
        "asyncio.run(main())\n"
        "assert not [name for name in sys.modules if name.startswith('opentelemetry')]\n"
        "config = SOLLOLConfig(metrics_enabled=False, otel=True)\n"
        "assert without_missing(config) == (config, [])\n"
        "assert 'opentelemetry.trace' in sys.modules\n"
        "assert not [name for name in sys.modules if name.startswith('opentelemetry.sdk')]\n"
    )


def test_what_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry", None)
    with pytest.raises(MissingExtra, match=r"aiosollol\[otel\]"):
        OpenTelemetry()


def test_a_program_can_tell_whether_anybody_records() -> None:
    run(
        "from aiosollol.telemetry.opentelemetry import is_recording\n"
        "assert not is_recording()\n"
        "from opentelemetry import trace\n"
        "from opentelemetry.sdk.trace import TracerProvider\n"
        "trace.set_tracer_provider(TracerProvider())\n"
        "assert is_recording()\n"
    )


@pytest.mark.parametrize(
    ("options", "told"), [([], None), (["--otel"], True), (["--no-otel"], False)]
)
def test_up_turns_it_on(
    monkeypatch: pytest.MonkeyPatch, options: list[str], told: bool | None
) -> None:
    from typer.testing import CliRunner

    from aiosollol.cli import app
    from aiosollol.cli import gateway as gateway_commands
    from aiosollol.cli import gateway as up

    assert gateway_commands.up
    seen: list[up.UpOptions] = []

    def note(options: up.UpOptions) -> int:
        seen.append(options)
        return 0

    monkeypatch.setattr(up, "run_up", note)
    assert CliRunner().invoke(app.app, ["up", *options]).exit_code == 0
    assert [each.given["otel"] for each in seen] == [told]


async def test_a_service_turns_it_on() -> None:
    async with FakeOllama(models=MODELS) as node:
        config = SOLLOLConfig(
            hosts=[node.url],
            gateway_port=0,
            metrics_enabled=False,
            autobatch_enabled=False,
            otel=True,
        )
        async with SOLLOL(config) as sollol, aiohttp.ClientSession(sollol.url) as session:
            assert isinstance(sollol.pool.gateway_access.tracing, OpenTelemetry)
            async with session.post("/api/chat", json=CHAT, headers=PARENT) as answer:
                assert answer.status == 200
            update = await sollol.update_config(otel=False)
            assert update.needs_restart == ("otel",)
        sent = [record.headers.get("traceparent") for record in node.log]
        assert PARENT["traceparent"] in sent
        async with SOLLOL(dataclasses.replace(config, otel=False)) as sollol:
            assert isinstance(sollol.pool.gateway_access.tracing, PassOn)
