"""Spans of a pool in a program, and how recording is turned on."""

from __future__ import annotations

import asyncio
import dataclasses
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import aiohttp
import pytest
from gateway_cluster import MODELS, cluster
from live_cluster import EMBED, MODEL

from aiosollol import OllamaPool
from aiosollol.errors import MissingExtra, NoNodeAvailable
from aiosollol.service import SOLLOL, SOLLOLConfig
from aiosollol.telemetry.opentelemetry import OpenTelemetry
from aiosollol.telemetry.tracing import PassOn
from aiosollol.testing import FakeOllama, FakeTransport, Fault

pytest.importorskip("opentelemetry.sdk")

from opentelemetry import trace
from span_recorder import CHAT, PARENT, SPAN, TRACE, Recorded, ids, parent_of, sent_to, until

pytestmark = pytest.mark.anyio


@pytest.fixture
def recorded() -> Recorded:
    return Recorded()


@asynccontextmanager
async def pool_of(recorded: Recorded, *nodes: FakeTransport) -> AsyncIterator[OllamaPool]:
    named = {node.name: node for node in nodes}
    pool = OllamaPool(
        [{"url": f"http://{name}.test", "name": name} for name in named],
        transport_factory=lambda spec: named[spec.name],
        tracing=recorded.tracing,
        canary=False,  # its requests would be taken for hedges
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
    with pytest.raises(MissingExtra, match=r"\[otel\]"):
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

    from aiosollol.cli import base
    from aiosollol.cli import gateway as gateway_commands
    from aiosollol.cli import gateway as up

    assert gateway_commands.up
    seen: list[up.UpOptions] = []

    def note(options: up.UpOptions) -> int:
        seen.append(options)
        return 0

    monkeypatch.setattr(up, "run_up", note)
    assert CliRunner().invoke(base.app, ["up", *options]).exit_code == 0
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
