"""`FakeTransport`: its faults in virtual time, its log, and options that it refuses."""

from __future__ import annotations

from array import array
from typing import Any

import anyio
import orjson
import pytest
import trio.testing
from fake_transport_calls import chat_body, embed

from aiosollol.errors import (
    ConnectionLost,
    InvalidInput,
    ModelMissing,
    NodeError,
    NodeTimeout,
    NodeUnavailable,
    NodeUnreachable,
    ProtocolError,
    RunnerFailed,
    ServerBusy,
)
from aiosollol.testing import FakeModel, FakeTransport, Fault
from aiosollol.wire.ollama.embeddings import load_embeddings

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> Any:
    return ("trio", {"clock": trio.testing.MockClock(autojump_threshold=0)})


EMBED_FAULTS: dict[Fault, type[NodeError] | None] = {
    Fault.ERROR_500: RunnerFailed,
    Fault.BUSY_503: ServerBusy,
    Fault.BAD_400_RUNNER: RunnerFailed,
    Fault.HANG: NodeTimeout,
    Fault.RESET: ConnectionLost,
    Fault.CUT_JSON: ProtocolError,
    Fault.HTML: ProtocolError,
    Fault.HTML_502: NodeUnavailable,
    Fault.NAN: RunnerFailed,
    Fault.WRONG_DIM: None,  # only who knows the dimension can tell
    Fault.TOO_FEW: ProtocolError,
    Fault.STREAM_ERROR: None,
    Fault.STREAM_CUT: None,
    Fault.SLOW_BODY: None,
    Fault.REFUSE: NodeUnreachable,
}


@pytest.mark.parametrize("fault", Fault)
async def test_faults_strike_embeddings_and_heal(fault: Fault) -> None:
    node = FakeTransport("a")

    async def ask() -> int:
        return load_embeddings("a", await embed(node, "x", "y", timeout=30.0), 2).dim

    node.fault = fault
    expected = EMBED_FAULTS[fault]
    if expected is None:
        assert await ask() == (65 if fault is Fault.WRONG_DIM else 64)
    else:
        with pytest.raises(expected) as caught:
            await ask()
        assert type(caught.value) is expected
        assert caught.value.node == "a"
    assert fault.name in repr(node)
    node.fault = None
    assert await ask() == 64
    assert node.in_flight == 0
    assert node.cancelled == (fault is Fault.HANG)


@pytest.mark.parametrize("fault", [Fault.STREAM_ERROR, Fault.STREAM_CUT, Fault.CUT_JSON])
async def test_faults_of_a_stream_come_after_its_beginning(fault: Fault) -> None:
    node = FakeTransport("a")
    node.fault = fault
    async with node.stream("/api/chat", chat_body("one two three four"), timeout=10) as pieces:
        lines = [piece async for piece in pieces]
    assert orjson.loads(lines[0])["message"]["content"] == "one"
    if fault is Fault.STREAM_ERROR:
        assert orjson.loads(lines[-1]) == {"error": "llama runner process no longer running: 2 "}
    assert not any(b'"done":true' in line and line.endswith(b"\n") for line in lines)


async def test_a_reset_breaks_a_stream_in_the_middle() -> None:
    node = FakeTransport("a")
    node.fault = Fault.RESET
    async with node.stream("/api/chat", chat_body("one two three four"), timeout=10) as pieces:
        assert orjson.loads(await anext(pieces))["message"]["content"] == "one"
        assert orjson.loads(await anext(pieces))["message"]["content"] == " two"
        with pytest.raises(ConnectionLost):
            await anext(pieces)


async def test_entering_a_stream_raises_for_a_status() -> None:
    node = FakeTransport("a")
    with pytest.raises(ModelMissing):
        async with node.stream("/api/chat", b'{"model":"no"}', timeout=10):
            pass
    assert (node.in_flight, node.cancelled) == (0, 0)


async def test_refusing_breaks_what_is_under_way() -> None:
    node = FakeTransport("a", seconds_per_item=10.0)
    broken = []

    async def ask() -> None:
        try:
            await embed(node, "x")
        except ConnectionLost:
            broken.append(anyio.current_time() - began)

    began = anyio.current_time()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(ask)
        tasks.start_soon(ask)
        await anyio.sleep(3)
        node.fault = Fault.REFUSE
    assert broken == [3.0, 3.0]
    assert (node.in_flight, node.cancelled) == (0, 2)


async def test_fail_next_counts_only_what_computes() -> None:
    node = FakeTransport("a")
    node.fail_next(Fault.ERROR_500, times=2)
    await node.request("GET", "/api/tags", timeout=1)
    for _ in range(2):
        with pytest.raises(RunnerFailed):
            await embed(node, "x")
    await embed(node, "x")
    node.fail_next(Fault.REFUSE)
    with pytest.raises(NodeUnreachable):
        await embed(node, "x")
    await embed(node, "x")
    assert (node.requests, node.probes) == (4, 1)


async def test_probes_are_struck_where_wanted() -> None:
    node = FakeTransport("a")
    node.fault = Fault.ERROR_500
    await node.request("GET", "/api/version", timeout=1)
    node.faults_probes = True
    with pytest.raises(RunnerFailed):
        await node.request("GET", "/api/version", timeout=1)


async def test_a_slow_body_takes_its_time() -> None:
    node = FakeTransport("a")
    node.fault = Fault.SLOW_BODY
    node.seconds_per_piece = 0.5
    began = anyio.current_time()
    load_embeddings("a", await embed(node, "x"), 1)
    assert anyio.current_time() - began == 5.0


async def test_a_closed_transport_is_unreachable() -> None:
    node = FakeTransport("a")
    await node.aclose()
    await node.aclose()
    with pytest.raises(NodeUnreachable, match="closed"):
        await embed(node, "x")


async def test_the_log_tells_what_came() -> None:
    node = FakeTransport("a", seconds_per_item=0.5)
    await embed(node, "x", "y")
    with pytest.raises(NodeTimeout):
        await embed(node, "x", timeout=0.25)
    whole, left = node.log
    assert (whole.path, whole.model, whole.items) == ("/api/embed", "nomic-embed-text:latest", 2)
    assert (whole.status, whole.seconds) == (200, 1.0)
    assert (left.status, left.seconds) == (0, 0.25)


@pytest.mark.parametrize(
    "options",
    [
        {"slots": 0},
        {"overhead": -1.0},
        {"seconds_per_item": float("nan")},
        {"load_seconds": float("inf")},
        {"models": [""]},
    ],
)
def test_impossible_options_are_refused(options: Any) -> None:
    with pytest.raises(InvalidInput):
        FakeTransport("a", **options)


@pytest.mark.parametrize(
    "options", [{"kind": "image"}, {"dim": 0}, {"context_length": 0}, {"name": ""}]
)
def test_impossible_models_are_refused(options: Any) -> None:
    with pytest.raises(InvalidInput):
        FakeModel(**{"name": "m", **options})


def test_the_nan_of_base64_is_nan() -> None:
    from aiosollol.testing.endpoints import _NAN

    (number,) = array("f", _NAN)
    assert number != number
