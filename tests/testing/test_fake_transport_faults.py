"""`FakeTransport`: its faults in virtual time, its log, and options that it refuses."""

from __future__ import annotations

import time
from array import array
from typing import Any

import anyio
import orjson
import pytest
import trio.testing
from fake_transport_calls import chat_body, embed

from aiosollol.errors import (
    BadRequest,
    ConnectionLost,
    InvalidInput,
    ModelMissing,
    NodeError,
    NodeTimeout,
    NodeUnavailable,
    NodeUnreachable,
    ProtocolError,
    ResponseError,
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
    Fault.ERROR_500_UNKNOWN: RunnerFailed,
    Fault.ERROR_500_TERMINATED: RunnerFailed,
    Fault.ERROR_500_LOADING: RunnerFailed,
    Fault.BUSY_503: ServerBusy,
    Fault.BUSY_429: ServerBusy,
    Fault.BUSY_429_SECONDS: ServerBusy,
    Fault.BUSY_429_DATE: ServerBusy,
    Fault.BAD_400_RUNNER: RunnerFailed,
    Fault.BAD_400_UNKNOWN: RunnerFailed,
    Fault.BAD_400_NO_EMBEDDINGS: BadRequest,
    Fault.JSON_401: ResponseError,
    Fault.JSON_403: ResponseError,
    Fault.JSON_404: ResponseError,
    Fault.JSON_405: ResponseError,
    Fault.HTML_401: ProtocolError,
    Fault.HTML_403: ProtocolError,
    Fault.HTML_404: ProtocolError,
    Fault.HTML_405: ProtocolError,
    Fault.HTML_503: NodeUnavailable,
    Fault.HTML_504: NodeUnavailable,
    Fault.TEXT_408: NodeUnavailable,
    Fault.TEXT_502: NodeUnavailable,
    Fault.TEXT_503: NodeUnavailable,
    Fault.TEXT_504: NodeUnavailable,
    Fault.REDIRECT: ProtocolError,
    Fault.HANG: NodeTimeout,
    Fault.STALL: None,
    Fault.RESET_EARLY: ConnectionLost,
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


@pytest.mark.parametrize(
    ("fault", "status", "seconds"),
    [
        (Fault.BUSY_429, 429, None),
        (Fault.BUSY_429_SECONDS, 429, 1.0),
        (Fault.BUSY_429_DATE, 429, 1.75),  # a whole second after the one that has begun
        (Fault.BUSY_503, 503, None),
    ],
)
async def test_busy_answers_may_say_when_to_come_back(
    fault: Fault, status: int, seconds: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = FakeTransport("a")
    node.fault = fault
    monkeypatch.setattr(time, "time", lambda: 1_795_248_354.25)
    with pytest.raises(ServerBusy) as caught:
        await embed(node, "x")
    assert (caught.value.status, caught.value.retry_after) == (status, seconds)


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (Fault.REDIRECT, "redirects to http://a/ollama: write that as the node's address"),
        (Fault.ERROR_500_TERMINATED, "llama runner process has terminated"),
        (Fault.HTML_401, "status 401 with '<html>"),
        (Fault.TEXT_504, "Gateway Timeout \\(status 504\\)"),
    ],
)
async def test_the_client_says_what_the_node_answered(fault: Fault, words: str) -> None:
    node = FakeTransport("a")
    node.fault = fault
    with pytest.raises(NodeError, match=words):
        await embed(node, "x")


@pytest.mark.parametrize("fault", [Fault.RESET_EARLY, Fault.REDIRECT, Fault.HTML_502])
async def test_a_stream_does_not_begin_if_the_answer_is_another(fault: Fault) -> None:
    node = FakeTransport("a")
    node.fault = fault
    with pytest.raises(NodeError) as caught:
        async with node.stream("/api/chat", chat_body("one two"), timeout=10):
            raise AssertionError("it began")
    assert type(caught.value) is EMBED_FAULTS[fault]
    assert (node.in_flight, node.cancelled) == (0, 0)


async def test_a_stalled_request_is_answered_late() -> None:
    node = FakeTransport("a", seconds_per_item=0.5)
    node.fault, node.stall_seconds = Fault.STALL, 2.0
    began = anyio.current_time()
    load_embeddings("a", await embed(node, "x"), 1)
    assert anyio.current_time() - began == 2.5


async def test_a_text_may_crash_the_process_of_the_model() -> None:
    node = FakeTransport("a", crash_on="arsenic", load_seconds=3.0)
    await embed(node, "x")
    for texts in (["with arsenic"], ["x", "arsenic and lace", "y"]):
        with pytest.raises(RunnerFailed, match="EOF"):
            await embed(node, *texts)
    began = anyio.current_time()
    await embed(node, "x", "y")
    assert anyio.current_time() - began == 3.0  # the model is loaded again
    node.crash_on.clear()
    await embed(node, "with arsenic")


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
