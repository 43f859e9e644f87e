"""A gateway over a node written in Python, whose JSON has a space after each colon."""

from __future__ import annotations

import json
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from gateway_cluster import served
from spellings import LAST, WRITERS, every_spelling, part

from aiosollol import OllamaPool
from aiosollol.gateway.app import make_app

pytestmark = pytest.mark.anyio

HELLO = [{"role": "user", "content": "hello"}]
VECTOR = [index / 7 for index in range(300)]
CALLS: list[tuple[str, dict[str, Any]]] = [
    ("/api/chat", {"messages": HELLO}),
    ("/api/chat", {"messages": HELLO, "stream": False}),
    ("/api/generate", {"prompt": "hello"}),
    ("/api/generate", {"prompt": "hello", "stream": False}),
    ("/api/embed", {"input": "hello"}),
    ("/api/embed", {"input": ["hello", "there"]}),
    ("/api/embeddings", {"prompt": "hello"}),
    ("/v1/embeddings", {"input": "hello"}),
    ("/v1/embeddings", {"input": "hello", "encoding_format": "base64"}),
    *(("/v1/chat/completions", {"messages": HELLO, "stream": stream}) for stream in (True, False)),
    *(("/v1/completions", {"prompt": "hello", "stream": stream}) for stream in (True, False)),
    *(("/v1/responses", {"input": "hello", "stream": stream}) for stream in (True, False)),
    *(
        ("/v1/messages", {"messages": HELLO, "max_tokens": 9, "stream": stream})
        for stream in (True, False)
    ),
]


def node(write: str) -> web.Application:
    """A server that writes its JSON so."""
    spell = WRITERS[write]
    model = {"name": "m:latest", "digest": "a" * 64, "details": {"embedding_length": len(VECTOR)}}

    def whole(value: dict[str, Any]) -> Any:
        async def answer(request: web.Request) -> web.Response:
            return web.Response(text=spell(value), content_type="application/json")

        return answer

    async def talk(request: web.Request) -> web.StreamResponse:
        if (await request.json()).get("stream") is False:
            return web.Response(text=spell({**part("hi there"), **LAST, "response": "hi there"}))
        response = web.StreamResponse(headers={"Content-Type": "application/x-ndjson"})
        await response.prepare(request)
        for each in (part("hi"), part(" there"), LAST):
            await response.write(spell(each).encode() + b"\n")
        return response

    async def embed(request: web.Request) -> web.StreamResponse:
        given = (await request.json()).get("input") or []
        count = 1 if isinstance(given, str) else len(given)
        if request.path == "/api/embed":
            return web.Response(text=spell({"model": "m", "embeddings": [VECTOR] * count}))
        entries = [{"object": "embedding", "embedding": VECTOR, "index": at} for at in range(count)]
        return web.Response(text=spell({"object": "list", "data": entries, "model": "m"}))

    app = web.Application()
    app.add_routes(
        [
            web.get("/api/version", whole({"version": "0.33.0"})),
            web.get("/api/tags", whole({"models": [model]})),
            web.get("/api/ps", whole({"models": []})),
            web.post("/api/chat", talk),
            web.post("/api/generate", talk),
            web.post("/api/embed", embed),
            web.post("/api/embeddings", whole({"embedding": VECTOR})),
            web.post("/v1/embeddings", embed),
        ]
    )
    return app


@every_spelling
async def test_no_answer_becomes_an_error_and_the_node_has_not_failed(write: str) -> None:
    async with (
        served(node(write)) as url,
        OllamaPool([url]) as pool,
        aiohttp.ClientSession() as session,
    ):
        await pool.refresh()
        async with served(make_app(pool)) as gateway:
            for path, body in CALLS:
                text = json.dumps({"model": "m", **body})
                async with session.post(gateway + path, data=text) as response:
                    answer = await response.text()
                assert response.status == 200, (path, body, answer)
                events = answer.replace('"error":null', "")
                assert "error" not in events, (path, body, answer)
                if path.startswith("/api/") and body.get("stream", "embed" not in path):
                    *_, last = answer.splitlines()
                    assert json.loads(last) == LAST
        stats = pool.get_stats()
        assert stats["failed_requests"] == 0
        assert stats["total_requests"] == stats["successful_requests"] >= len(CALLS)
