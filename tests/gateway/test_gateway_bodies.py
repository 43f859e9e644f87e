"""Large bodies are read beside the event loop, and don't hold up other requests."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from gateway_cluster import Cluster, cluster

from aiosollol.gateway import bodies as request_bodies
from aiosollol.gateway.middleware.guard import Guard
from aiosollol.gateway.middleware.keys import KeyRing, new_key, parse_keys
from aiosollol.gateway.options import GatewayOptions
from aiosollol.wire.ollama import go_json

pytestmark = pytest.mark.anyio

SMALL, MEDIUM, LARGE = 1_000, 100_000, 600_000
PATHS = {
    "/api/embed": {"model": "all-minilm", "input": "a"},
    "/api/embeddings": {"model": "all-minilm", "prompt": "a"},
    "/api/chat": {"model": "tiny-chat", "stream": False, "messages": [{"role": "user"}]},
    "/api/generate": {"model": "tiny-chat", "stream": False, "prompt": "a"},
    "/api/show": {"model": "tiny-chat"},
    "/api/copy": {"source": "tiny-chat", "destination": "second"},
    "/api/pull": {"model": "tiny-chat", "stream": False},
    "/v1/embeddings": {"model": "all-minilm", "input": "a"},
    "/v1/chat/completions": {"model": "tiny-chat", "messages": [{"role": "user", "content": "a"}]},
    "/v1/completions": {"model": "tiny-chat", "prompt": "a"},
    "/v1/responses": {"model": "tiny-chat", "input": "a"},
    "/v1/messages": {
        "model": "tiny-chat",
        "max_tokens": 5,
        "messages": [{"role": "user", "content": "a"}],
    },
}


def padded(fields: dict[str, Any], size: int) -> bytes:
    return json.dumps({**fields, "padding": "x" * size}).encode()


class Readers:
    """Notes which thread reads a body of which size, and can hold up those of one size."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.threads: list[tuple[int, str]] = []
        self.held = 0
        self.began, self.go_on = threading.Event(), threading.Event()
        patch.setattr(go_json, "orjson", self)
        self._loads: Callable[[bytes], Any] = json.loads

    JSONDecodeError = json.JSONDecodeError

    def loads(self, document: bytes) -> Any:
        """In place of orjson's."""
        self.threads.append((len(document), threading.current_thread().name))
        if self.held and len(document) // self.held == 1:
            self.began.set()
            assert self.go_on.wait(60)
        return self._loads(document)


@pytest.fixture
def readers(monkeypatch: pytest.MonkeyPatch) -> Readers:
    monkeypatch.setattr(go_json, "WHOLE", 10 * LARGE)
    monkeypatch.setattr(request_bodies, "LARGE", LARGE // 2)
    return Readers(monkeypatch)


@pytest.mark.parametrize("path", PATHS)
async def test_every_endpoint_reads_large_bodies_in_threads(path: str, readers: Readers) -> None:
    loop_thread = threading.current_thread().name
    status = 500 if path == "/api/pull" else 200  # fake nodes cannot pull
    async with cluster(options=GatewayOptions(allow_admin=True)) as gateway:
        for size in (SMALL, MEDIUM, LARGE):
            answer = await gateway.post(path, padded(PATHS[path], size))
            assert answer.status == status, answer.body
    for size, prefix in (
        (SMALL, loop_thread),
        (MEDIUM, "aiosollol-bodies"),
        (LARGE, "aiosollol-large-bodies"),
    ):
        # The fake node reads them too, in the loop.
        names = [name for length, name in readers.threads if size < length < size + 1000]
        assert any(name.startswith(prefix) for name in names), names


async def test_documents_and_models_of_keys_too(tmp_path: Path, readers: Readers) -> None:
    from aiosollol.autobatch import AutoBatch

    key = new_key("ann", "models=all-minilm")
    guard = Guard(KeyRing(parse_keys(key.line, "f")))
    async with cluster() as first, AutoBatch(first.pool, tmp_path / "queue.db") as queue:
        app = {"autobatch": queue, "middlewares": [guard.middleware()]}
        async with cluster(app=app) as gateway:
            body = padded({"docs": ["a"], "model": "all-minilm"}, LARGE)
            headers = {"Authorization": f"Bearer {key.token}"}
            answer = await gateway.post("/api/embed/batch", body, **headers)
            assert answer.status == 202, answer.body
    names = [name for length, name in readers.threads if length > LARGE]
    assert [name.split("_")[0] for name in names] == ["aiosollol-large-bodies"] * 2


async def test_others_are_answered_meanwhile(readers: Readers) -> None:
    readers.held = LARGE
    async with cluster() as gateway:
        post = asyncio.ensure_future(gateway.post("/api/show", padded(PATHS["/api/show"], LARGE)))
        await asyncio.to_thread(readers.began.wait, 60)
        try:
            assert (await gateway.get("/")).status == 200
            assert await status(gateway, SMALL) == await status(gateway, MEDIUM) == 200
            assert not post.done()
        finally:
            readers.go_on.set()
            readers.held = 0
        assert (await post).status == 200


async def status(gateway: Cluster, size: int) -> int:
    return (await gateway.post("/api/show", padded(PATHS["/api/show"], size))).status


async def test_a_refusal_comes_out_of_the_thread() -> None:
    async with cluster() as gateway:
        for body, message in (
            (b"[" * LARGE, "invalid character '[' exceeded max depth"),
            (b'{"a":[' + b"0," * (LARGE // 2), "unexpected EOF"),
            (padded({"keep_alive": "1" * 1400}, LARGE), f'time: invalid duration "{"1" * 1400}"'),
        ):
            answer = await gateway.post("/api/chat", body)
            assert (answer.status, answer.json) == (400, {"error": message})


def test_sizes() -> None:
    assert SMALL < request_bodies.IN_LOOP < MEDIUM < request_bodies.LARGE
