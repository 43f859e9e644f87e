"""What the embedded node cannot do, it refuses as an Ollama does whose model only embeds."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest

from aiosollol.embedded import EmbeddedNode

pytest.importorskip("wordllama")
pytestmark = pytest.mark.anyio

MESSAGES = [{"role": "user", "content": "hello"}]


@pytest.fixture
async def node() -> AsyncIterator[EmbeddedNode]:
    async with EmbeddedNode() as made:
        yield made


async def post(url: str, body: Any) -> tuple[int, Any]:
    async with aiohttp.ClientSession() as session, session.post(url, json=body) as response:
        return response.status, await response.json()


@pytest.mark.parametrize(
    ("path", "what", "body"),
    [
        ("/api/chat", "chat", {"messages": MESSAGES}),
        ("/api/chat", "chat", {"messages": []}),
        ("/api/generate", "generate", {"prompt": "hello"}),
        ("/api/generate", "generate", {}),
        ("/v1/chat/completions", "chat", {"messages": MESSAGES}),
        ("/v1/completions", "generate", {"prompt": "hello"}),
        ("/v1/responses", "chat", {"input": "hello"}),
        ("/v1/messages", "chat", {"messages": MESSAGES, "max_tokens": 5}),
    ],
)
async def test_it_does_not_talk(node: EmbeddedNode, path: str, what: str, body: Any) -> None:
    status, answer = await post(node.url + path, {"model": "wordllama", **body})
    message = f'"wordllama" does not support {what}'
    unknown, told = await post(node.url + path, {"model": "no-such", **body})
    missing = "model 'no-such' not found"
    assert (status, unknown) == (400, 404)
    if path.startswith("/api/"):
        assert (answer, told) == ({"error": message}, {"error": missing})
        return
    assert (answer["error"]["message"], told["error"]["message"]) == (message, missing)
    assert answer["error"]["type"] == "invalid_request_error"
    assert ("request_id" in answer) == (path == "/v1/messages")


@pytest.mark.parametrize("body", [b"", b"[]", b'{"model": 1}'])
async def test_what_it_cannot_read(node: EmbeddedNode, body: bytes) -> None:
    async with aiohttp.ClientSession() as session:
        for path in ("/v1/chat/completions", "/v1/messages"):
            async with session.post(node.url + path, data=body) as response:
                assert response.status == 400
                assert "error" in await response.json()


@pytest.mark.parametrize(
    ("path", "field", "empty"),
    [
        ("/api/generate", "response", ""),
        ("/api/chat", "message", {"role": "assistant", "content": ""}),
    ],
)
async def test_a_client_may_unload_it(
    node: EmbeddedNode, path: str, field: str, empty: Any
) -> None:
    """Ollama does not ask then whether the model can chat: `ollama stop` works with any."""
    status, answer = await post(node.url + path, {"model": "wordllama", "keep_alive": 0})
    assert (status, answer["done"], answer["done_reason"]) == (200, True, "unload")
    assert answer[field] == empty
    status, _ = await post(node.url + path, {"model": "no-such", "keep_alive": 0})
    assert status == 404
    status, vectors = await post(f"{node.url}/api/embed", {"model": "wordllama", "input": "x"})
    assert (status, len(vectors["embeddings"])) == (200, 1)


async def test_a_405_says_what_is_allowed(node: EmbeddedNode) -> None:
    async with aiohttp.ClientSession() as session:
        async with session.get(f"{node.url}/api/embed") as response:
            assert (response.status, response.headers["Allow"]) == (405, "POST")
        async with session.post(f"{node.url}/api/tags") as response:
            assert (response.status, response.headers["Allow"]) == (405, "GET, HEAD")
