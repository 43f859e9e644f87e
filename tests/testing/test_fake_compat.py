"""The fake's endpoints for OpenAI's and Anthropic's clients, and how faults strike them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import orjson
import pytest

from aiosollol.testing import FakeModel, FakeOllama, Fault
from aiosollol.wire.compatible_apis import READERS

pytestmark = pytest.mark.anyio

MESSAGES = [{"role": "user", "content": "one two three four"}]
BODIES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": MESSAGES},
    "/v1/completions": {"prompt": "one two three four"},
    "/v1/responses": {"input": "one two three four"},
    "/v1/messages": {"messages": MESSAGES, "max_tokens": 6},
}
END = {
    "/v1/chat/completions": b"data: [DONE]\n\n",
    "/v1/completions": b"data: [DONE]\n\n",
    "/v1/responses": b'"type":"response.completed"}\n\n',
    "/v1/messages": b'event: message_stop\ndata: {"type":"message_stop"}\n\n',
}
PATHS = list(BODIES)


@pytest.fixture
async def node() -> AsyncIterator[FakeOllama]:
    async with FakeOllama(models=["m", FakeModel("c", kind="chat")]) as node:
        node.seconds_per_piece = 0.0
        yield node


async def ask(node: FakeOllama, path: str, **more: Any) -> tuple[int, str, bytes]:
    body = {"model": "c", **BODIES[path], **more}
    async with (
        aiohttp.ClientSession() as session,
        session.post(node.url + path, json=body) as response,
    ):
        return response.status, response.headers["Content-Type"], await response.read()


def test_there_are_all() -> None:
    assert list(READERS) == PATHS


@pytest.mark.parametrize("path", PATHS)
async def test_it_answers(path: str, node: FakeOllama) -> None:
    status, content_type, body = await ask(node, path)
    assert (status, content_type) == (200, "application/json")
    assert b'"one two three four"' in body
    status, content_type, body = await ask(node, path, stream=True)
    assert (status, content_type) == (200, "text/event-stream")
    assert b'"one"' in body
    assert b'" four"' in body
    assert body.endswith(END[path])
    assert (node.requests, node.probes, node.in_flight, node.cancelled) == (2, 0, 0, 0)
    assert [(record.path, record.model) for record in node.log] == [(path, "c:latest")] * 2


@pytest.mark.parametrize("path", PATHS)
async def test_limits_are_kept(path: str, node: FakeOllama) -> None:
    name = "max_output_tokens" if path == "/v1/responses" else "max_tokens"
    *_, body = await ask(node, path, **{name: 2})
    assert b'"one two"' in body


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(
    ("model", "status", "message"),
    [
        ("no", 404, "model 'no' not found"),
        ("", 400, "model is required"),
        ("m", 400, '"m" does not support '),
    ],
)
async def test_refusals(path: str, model: str, status: int, message: str, node: FakeOllama) -> None:
    answered, _, body = await ask(node, path, model=model, stream=True)
    error = orjson.loads(body)["error"]
    assert answered == status
    assert error["message"].startswith(message)
    assert error["type"] == {400: "invalid_request_error", 404: "not_found_error"}[status]
    assert ("param" in error) == (path != "/v1/messages")


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(
    ("fault", "status"),
    [
        (Fault.ERROR_500, 500),
        (Fault.BUSY_503, 503),
        (Fault.BAD_400_RUNNER, 400),
        (Fault.STREAM_ERROR, 500),
    ],
)
async def test_faults_have_the_form_of_the_api(
    path: str, fault: Fault, status: int, node: FakeOllama
) -> None:
    node.fault = fault
    answered, _, body = await ask(node, path)
    assert answered == status
    assert isinstance(orjson.loads(body)["error"]["message"], str)
    assert body.startswith(b'{"type":"error"') == (path == "/v1/messages")


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("fault", [Fault.STREAM_CUT, Fault.STREAM_ERROR, Fault.CUT_JSON])
async def test_faults_in_mid_stream(path: str, fault: Fault, node: FakeOllama) -> None:
    """Ollama's own layer tells nobody of an error: the stream has no end, and that is all."""
    *_, sound = await ask(node, path, stream=True)
    node.fault = fault
    status, _, body = await ask(node, path, stream=True)
    assert status == 200
    assert not body.endswith(END[path])
    assert b"error" not in body.replace(b'"error":null', b"")
    assert b'"one"' in body
    if fault is Fault.CUT_JSON:
        assert not body.endswith(b"\n\n")
    else:
        assert body.count(b"\n\n") < sound.count(b"\n\n")
        assert b'" three"' not in body
    if fault is Fault.STREAM_ERROR and path == "/v1/chat/completions":
        assert body.endswith(b'"delta":{"content":""},"finish_reason":null}]}\n\n')


@pytest.mark.parametrize("path", PATHS)
async def test_a_connection_may_break(path: str, node: FakeOllama) -> None:
    node.fault = Fault.RESET
    for stream in (False, True):
        with pytest.raises((aiohttp.ClientPayloadError, ConnectionResetError)):
            await ask(node, path, stream=stream)


async def test_an_empty_prompt_loads(node: FakeOllama) -> None:
    """The answer is whole, and yet a stream if that was asked for."""
    for stream, content_type in ((False, "application/json"), (True, "text/event-stream")):
        status, kind, body = await ask(node, "/v1/completions", prompt="", stream=stream)
        assert (status, kind) == (200, content_type)
        assert b'"finish_reason":"load"' in body


async def test_only_post(node: FakeOllama) -> None:
    async with aiohttp.ClientSession() as session:
        for path in PATHS:
            async with session.get(node.url + path) as response:
                assert response.status == 405
