"""A gateway with API keys and one without, sharing one queue of documents."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
from aiohttp import web
from gateway_cluster import MODELS, Answer, Cluster, served

from aiosollol import OllamaPool
from aiosollol.autobatch import AutoBatch
from aiosollol.gateway.app import make_app
from aiosollol.gateway.endpoints.batch_jobs import BINARY, NDJSON
from aiosollol.gateway.middleware.guard import Guard
from aiosollol.gateway.middleware.keys import (
    KeyRing,
    keys_in_variable,
    new_key,
    parse_keys,
)
from aiosollol.gateway.options import GatewayOptions
from aiosollol.testing import FakeModel, FakeOllama

MODEL, OTHER_MODEL = "all-minilm", "other-embed"
SECRET = "a value of the owner"
KEYS = {
    "ann": "",
    "bob": "",
    "cal": f"models={MODEL}",
    "dan": f"models={OTHER_MODEL},tiny-*",
    "ops": "admin",
    "eve": f"admin models={OTHER_MODEL}",
}
"""The keys in the file, with their options; the key in the environment is "env"."""


@dataclass
class Gateways:
    """One queue behind a gateway with keys and one without."""

    keyed: Cluster
    open: Cluster
    queue: AutoBatch
    guard: Guard
    app: web.Application
    tokens: dict[str, str] = field(default_factory=dict)

    async def ask(self, name: str, method: str, path: str, body: Any = None, **rest: str) -> Answer:
        """Send a request with the key `name`; "" sends no key, "open" uses the other gateway."""
        if name == "open":
            return await self.open.ask(method, path, body, **rest)
        if name:
            rest["Authorization"] = f"Bearer {self.tokens[name]}"
        return await self.keyed.ask(method, path, body, **rest)

    async def made(self, name: str, model: str = MODEL) -> str:
        """The id of a finished job of this key, with one failed document."""
        job = await self.submitted(name, model)
        await self.queue.wait(job)
        return job

    async def submitted(self, name: str, model: str = MODEL) -> str:
        body = {"docs": ["fine", "poison"], "model": model, "metadata": {"field": SECRET}}
        answer = await self.ask(name, "POST", "/api/embed/batch", body)
        assert answer.status == 202, answer.body
        return str(answer.json["job_id"])


@asynccontextmanager
async def gateways(path: Path, **options: Any) -> AsyncIterator[Gateways]:
    async with AsyncExitStack() as stack:
        models = (*MODELS, FakeModel(OTHER_MODEL, dim=8))
        node = await stack.enter_async_context(FakeOllama(models=models, poison=["poison"]))
        pool = await stack.enter_async_context(OllamaPool([node.url]))
        await pool.refresh()
        queue = AutoBatch(pool, path / "queue.db", **{"interval": 0.05, **options})
        await stack.enter_async_context(queue)
        made = {name: new_key(name, given) for name, given in KEYS.items()}
        tokens = {name: key.token for name, key in made.items()} | {"env": new_key("env").token}
        guard = Guard(ring({name: key.line for name, key in made.items()}, tokens["env"]))
        batch_model = GatewayOptions(batch_model=OTHER_MODEL)
        app = make_app(pool, options=batch_model, autobatch=queue, middlewares=[guard.middleware()])
        session = await stack.enter_async_context(aiohttp.ClientSession())
        keyed = await stack.enter_async_context(served(app))
        plain = await stack.enter_async_context(served(make_app(pool, autobatch=queue)))
        yield Gateways(
            Cluster(keyed, pool, [node], session),
            Cluster(plain, pool, [node], session),
            queue,
            guard,
            app,
            tokens,
        )


def ring(lines: Mapping[str, str], *in_environment: str) -> KeyRing:
    found = parse_keys("\n".join(lines.values()), "keys.txt")
    return KeyRing(found + keys_in_variable(",".join(in_environment), "SOLLOL_API_KEYS"))


def visible(answer: Answer) -> dict[str, str]:
    return {k: v for k, v in answer.headers.items() if k not in ("Date", "X-Request-ID")}


VERBS: dict[str, tuple[str, str, dict[str, str]]] = {
    "status": ("GET", "/api/batch-status?job={job}", {}),
    "results": ("GET", "/api/embed/batch/{job}", {}),
    "lines": ("GET", "/api/embed/batch/{job}", {"Accept": NDJSON}),
    "binary": ("GET", "/api/embed/batch/{job}", {"Accept": BINARY}),
    "retry": ("POST", "/api/embed/batch/{job}/retry", {}),
    "cancel": ("DELETE", "/api/embed/batch/{job}", {}),
}
ALL = dict.fromkeys(VERBS, 200)
NOTHING = dict.fromkeys(VERBS, 404)
NO_MODEL = ALL | dict.fromkeys(("results", "lines", "binary", "retry"), 403)
"""The job is visible and may be cancelled; its model may not be used."""
