"""curl against the gateway, as the examples of Ollama's documentation use it."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
from gateway_cluster import MODELS, cluster
from programs import run

from aiosollol.embedded import EmbeddedNode
from aiosollol.testing import FakeOllama

pytestmark = pytest.mark.anyio


@pytest.fixture(autouse=True)
def _needs_curl(require: Callable[..., None]) -> None:
    require("curl")


class Said(NamedTuple):
    """What curl wrote: the head as text, and the body."""

    code: int
    head: str
    body: bytes

    @property
    def status(self) -> int:
        return int(self.head.split()[1])

    @property
    def json(self) -> Any:
        return json.loads(self.body)


async def curl(*arguments: str, stdin: bytes = b"") -> Said:
    ran = await run(
        *("curl", "-q", "--silent", "--include", "--no-buffer", "--noproxy", "*", *arguments),
        stdin=stdin,
    )
    head, _, body = ran.out.partition(b"\r\n\r\n")
    return Said(ran.code, head.decode(), body)


def two_nodes() -> list[FakeOllama]:
    return [FakeOllama(models=MODELS, seconds_per_chat_token=0.005) for _ in range(2)]


async def test_whether_it_is_an_ollama() -> None:
    async with cluster() as gateway:
        got = await curl(gateway.url)
        assert (got.code, got.status, got.body) == (0, 200, b"Ollama is running")
        head = await curl("--head", f"{gateway.url}/")
        assert (head.code, head.status, head.body) == (0, 200, b"")
        assert "Content-Length: 17" in head.head


@pytest.mark.parametrize("type_", ["application/x-www-form-urlencoded", "application/json"])
async def test_vectors(type_: str) -> None:
    """curl says that its data is a form unless it is told what else; Ollama does not mind."""
    async with cluster(*two_nodes()) as gateway:
        for given, count in (("a text", 1), ([f"text {n}" for n in range(30)], 30)):
            body = json.dumps({"model": "all-minilm", "input": given})
            said = await curl(
                f"{gateway.url}/api/embed", "-d", body, "-H", f"Content-Type: {type_}"
            )
            assert (said.code, said.status) == (0, 200)
            assert len(said.json["embeddings"]) == count


async def test_vectors_of_embedded_nodes() -> None:
    nodes: list[Any] = [EmbeddedNode(), EmbeddedNode()]
    async with cluster(*nodes) as gateway:
        body = json.dumps({"model": "wordllama", "input": ["a cat", "a dog", "a law"]})
        said = await curl(f"{gateway.url}/api/embed", "-d", body)
        assert [len(row) for row in said.json["embeddings"]] == [256] * 3
        body = json.dumps({"model": "wordllama", "messages": [{"role": "user", "content": "x"}]})
        for path in ("/api/chat", "/v1/chat/completions"):
            said = await curl(f"{gateway.url}{path}", "-d", body)
            assert said.status == 400
            assert b"does not support chat" in said.body


async def test_a_stream() -> None:
    async with cluster(*two_nodes()) as gateway:
        body = {"model": "tiny-chat", "messages": [{"role": "user", "content": "one two three"}]}
        said = await curl(f"{gateway.url}/api/chat", "-d", json.dumps(body))
        assert (said.code, said.status) == (0, 200)  # 18 or 56 if it broke off
        assert "Content-Type: application/x-ndjson" in said.head
        lines = [json.loads(line) for line in said.body.splitlines()]
        assert "".join(line["message"]["content"] for line in lines) == "one two three"
        assert lines[-1]["done"]
        events = await curl(
            f"{gateway.url}/v1/chat/completions", "-d", json.dumps({**body, "stream": True})
        )
        assert events.code == 0
        assert events.body.endswith(b"data: [DONE]\n\n")


@pytest.mark.parametrize(
    ("path", "body", "status", "words"),
    [
        ("/api/chat", '{"model": "no-such", "messages": []}', 404, "model 'no-such' not found"),
        ("/api/embed", '{"model": "no-such", "input": "x"}', 404, "try pulling it first"),
        ("/api/chat", '{"model": "tiny-chat", "messages": [', 400, "unexpected EOF"),
        ("/v1/embeddings", '{"model": "all-minilm", "input": []}', 400, "invalid input"),
        ("/api/nothing", "", 404, "404 page not found"),
    ],
)
async def test_errors(path: str, body: str, status: int, words: str) -> None:
    async with cluster() as gateway:
        said = await curl("--fail-with-body", f"{gateway.url}{path}", "-d", body)
        assert (said.code, said.status) == (22, status)
        assert words in said.body.decode()


async def test_a_large_body_with_expect_100_continue() -> None:
    """curl waits for leave before it sends more than a megabyte."""
    async with cluster(*two_nodes()) as gateway:
        body = json.dumps({"model": "all-minilm", "input": ["word " * 20] * 15_000})
        leave = ("-H", "Expect: 100-continue", "--data-binary", "@-")
        said = await curl(f"{gateway.url}/api/embed", *leave, stdin=body.encode())
        assert (said.code, said.status) == (0, 100)
        head, _, answer = said.body.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200 ")
        assert len(json.loads(answer)["embeddings"]) == 15_000
