"""A gateway over fake nodes, on loopback, for tests."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import aiohttp
from aiohttp import web

from aiosollol import OllamaPool
from aiosollol.gateway.app import make_app
from aiosollol.gateway.options import GatewayOptions, Served
from aiosollol.net.http_server import listening
from aiosollol.testing import FakeModel, FakeOllama

MODELS = (
    FakeModel("tiny-chat", kind="chat", context_length=4096),
    FakeModel("all-minilm", dim=384, context_length=512),
    FakeModel("slow-chat", kind="chat", dim=768, context_length=4096),
)


@dataclass
class Answer:
    """A complete answer of the gateway."""

    status: int
    headers: Any
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def lines(self) -> list[Any]:
        return [json.loads(line) for line in self.body.splitlines()]


@dataclass
class Cluster:
    """A gateway and its nodes."""

    url: str
    pool: OllamaPool
    nodes: list[FakeOllama]
    session: aiohttp.ClientSession
    served: list[Served] = field(default_factory=list)

    async def ask(self, method: str, path: str, body: Any = None, **headers: str) -> Answer:
        data = body if isinstance(body, bytes | None) else json.dumps(body).encode()
        names = {name.replace("_", "-"): value for name, value in headers.items()}
        async with self.session.request(
            method, self.url + path, data=data, headers=names
        ) as response:
            return Answer(response.status, response.headers, await response.read())

    async def post(self, path: str, body: Any = None, **headers: str) -> Answer:
        return await self.ask("POST", path, body, **headers)

    async def get(self, path: str, **headers: str) -> Answer:
        return await self.ask("GET", path, **headers)


@asynccontextmanager
async def served(app: web.Application) -> AsyncIterator[str]:
    """Serve an application like `aiosollol up`. Yields its URL."""
    serving = listening(app, "127.0.0.1", 0, name="gateway", grace=0.1, handler_cancellation=True)
    async with serving as (host, port):
        yield f"http://{host}:{port}"


@asynccontextmanager
async def cluster(
    *nodes: FakeOllama,
    options: GatewayOptions | None = None,
    settings: Any = None,
    app: Any = None,
) -> AsyncIterator[Cluster]:
    """A gateway over `nodes`, or over one with the models of the captures. app: for `make_app`."""
    async with AsyncExitStack() as stack:
        fakes = list(nodes) or [FakeOllama(models=MODELS)]
        for node in fakes:
            await stack.enter_async_context(node)
        specs = [{"url": node.url, "machine": f"machine {n}"} for n, node in enumerate(fakes)]
        pool = OllamaPool(specs, **(settings or {}))
        await stack.enter_async_context(pool)
        await pool.refresh()
        seen: list[Served] = []
        made = make_app(pool, options=options, on_request=seen.append, **(app or {}))
        url = await stack.enter_async_context(served(made))
        session = await stack.enter_async_context(aiohttp.ClientSession())
        yield Cluster(url, pool, fakes, session, seen)
