"""Ollama's API: chat and generate, forwarded as bytes, and the endpoints that list models."""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from typing import TYPE_CHECKING, Any, Literal

import orjson
from aiohttp import web

from aiosollol.core.model_names import full_name, is_valid_name, shortest_name
from aiosollol.errors import NodeError, NoNodeAvailable
from aiosollol.gateway.bodies import (
    STATE,
    parse,
    routed,
    stream,
    whole,
)
from aiosollol.gateway.middleware.guard import may_use
from aiosollol.wire.ollama import server_requests, server_responses
from aiosollol.wire.ollama.client import load
from aiosollol.wire.ollama.server_requests import ChatAsked, GenerateAsked, Refusal
from aiosollol.wire.ollama.server_responses import NDJSON, HttpResponse

if TYPE_CHECKING:
    from aiosollol.pool.facade import OllamaPool

_LONGEST_VERSION = 64  # characters that are compared
ASK_SECONDS = 5.0
"""For requests that compute nothing: /api/ps can hang behind a wedged runner."""
_PATIENCE_SECONDS = 1.0
"""For the other nodes, once one has answered: one that hangs must not delay the response."""


class OllamaEndpoints:
    """The endpoints of an Ollama server, except embeddings."""

    def __init__(self, pool: OllamaPool) -> None:
        self._pool = pool
        self._access = pool.gateway_access

    def routes(self) -> list[web.RouteDef]:
        probes = {"/": self.root, "/api/version": self.version, "/api/tags": self.tags}
        return [
            # A HEAD is answered like a GET, without a body.
            *(web.route(m, path, probes[path]) for m in ("GET", "HEAD") for path in probes),
            web.get("/api/ps", self.ps),
            web.post("/api/show", self.show),
            web.post("/api/chat", self.chat),
            web.post("/api/generate", self.generate),
        ]

    # ---- chat and generate

    async def chat(self, request: web.Request) -> web.StreamResponse:
        body = await request.read()
        wanted = await parse(request, server_requests.read_chat)
        return await self._talk(request, body, wanted, "chat", has_prompt=bool(wanted.messages))

    async def generate(self, request: web.Request) -> web.StreamResponse:
        body = await request.read()
        wanted = await parse(request, server_requests.read_generate)
        return await self._talk(request, body, wanted, "generate", has_prompt=bool(wanted.prompt))

    async def _talk(
        self,
        request: web.Request,
        body: bytes,
        wanted: ChatAsked | GenerateAsked,
        kind: Literal["chat", "generate"],
        *,
        has_prompt: bool,
    ) -> web.StreamResponse:
        access, model = self._access, wanted.model
        request[STATE].model = model
        if not model:
            raise Refusal(400, "model is required")
        if not has_prompt and wanted.keep_alive == 0:
            return await self._unload(request, model, body)
        options, keep_alive = wanted.options or None, plain_keep_alive(wanted.keep_alive)
        if wanted.stream and has_prompt:
            source = await access.forward_stream(
                kind, request.path, model, body, options=options, keep_alive=keep_alive
            )
            return await stream(
                request,
                source,
                NDJSON,
                routed(request, source.node, access.reason(model, source.setbacks)),
                on_error=error_line,
            )
        # Without a prompt, this only loads the model; the answer is not streamed.
        relayed = await access.forward(
            kind if has_prompt else "load",
            request.path,
            model,
            body,
            options=options,
            keep_alive=keep_alive,
        )
        answer = HttpResponse(200, server_responses.API_JSON, relayed.body)
        reason = access.reason(model, relayed.setbacks)
        return whole(answer, routed(request, relayed.node, reason))

    async def _unload(self, request: web.Request, model: str, body: bytes) -> web.StreamResponse:
        """Unload on every node that has the model: the client cannot know which one used it."""
        names = [state.name for state in self._pool.view.having(model)]
        if not names:  # raises the right error: no node has it, or no node answers
            relayed = await self._access.ask_any(model, "POST", request.path, body, timeout=60.0)
            names = [relayed.node]
        found = await self._ask_each(names, "POST", request.path, body)
        node, answer = next(iter(found.items()))
        return whole(
            HttpResponse(200, server_responses.API_JSON, answer),
            routed(request, node, f"all {len(names)}"),
        )

    # ---- the server and its models

    async def root(self, request: web.Request) -> web.StreamResponse:
        return whole(server_responses.root())

    async def version(self, request: web.Request) -> web.StreamResponse:
        """The oldest version of all nodes, because clients use it to detect features."""
        known = [node.version for node in self._pool.view.nodes.values() if node.version]
        if not known:
            node, body = next(iter((await self._ask_all("GET", "/api/version")).items()))
            return whole(
                HttpResponse(200, server_responses.API_JSON, body), routed(request, node, "first")
            )
        return whole(server_responses.version(min(known, key=_numbers)))

    async def tags(self, request: web.Request) -> web.StreamResponse:
        return whole(_listed(await self.models(request)))

    async def models(self, request: web.Request) -> list[dict[str, Any]]:
        """The models of all nodes, each once, in each node's order: the last changed first.

        Models that the key of the request may not use are left out.
        """
        models: dict[str, dict[str, Any]] = {}
        for node, body in (await self._ask_all("GET", "/api/tags")).items():
            for entry in _entries(node, body):
                if may_use(request, entry["name"]):
                    models.setdefault(full_name(entry["name"]), entry)
        return list(models.values())

    async def ps(self, request: web.Request) -> web.StreamResponse:
        found = await self._ask_all("GET", "/api/ps")
        models = [
            {**entry, "node": node}
            for node, body in found.items()
            for entry in _entries(node, body)
            if may_use(request, entry["name"])
        ]
        return whole(_listed(models))

    async def show(self, request: web.Request) -> web.StreamResponse:
        body = await request.read()
        model = await parse(request, server_requests.read_show)
        request[STATE].model = shortest_name(model)  # the name in error messages
        relayed = await self._access.ask_any(model, "POST", "/api/show", body, timeout=ASK_SECONDS)
        answer = HttpResponse(200, server_responses.API_JSON, relayed.body)
        reason = self._access.reason(model, relayed.setbacks)
        return whole(answer, routed(request, relayed.node, reason))

    # ---- many nodes

    async def _ask_all(self, method: str, path: str) -> dict[str, bytes]:
        """The answers of the nodes that are up, at least one. Raises NoNodeAvailable."""
        nodes = self._pool.view.nodes
        up = [name for name, state in nodes.items() if not state.is_down]
        return await self._ask_each(up or list(nodes), method, path)

    async def _ask_each(
        self, names: list[str], method: str, path: str, body: bytes | None = None
    ) -> dict[str, bytes]:
        """The answers of nodes by name, without those that take much longer than the first."""
        found: dict[str, bytes] = {}
        failed: list[NodeError] = []

        async def ask(name: str) -> None:
            try:
                found[name] = await self._access.ask(name, method, path, body, timeout=ASK_SECONDS)
            except NodeError as error:
                failed.append(error)

        async with asyncio.TaskGroup() as group:
            pending: Collection[asyncio.Task[None]] = [
                group.create_task(ask(name)) for name in names
            ]
            while pending and not found:
                _, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
            if pending:
                _, pending = await asyncio.wait(pending, timeout=_PATIENCE_SECONDS)
            for task in pending:
                task.cancel()
        if not found:
            nodes = {error.node: error.detail for error in failed}
            raise NoNodeAvailable("no node answers; is Ollama running there?", nodes, failed)
        return {name: found[name] for name in names if name in found}


def error_line(message: str) -> bytes:
    """The line for an error in mid-stream."""
    return orjson.dumps({"error": message}) + b"\n"


def plain_keep_alive(seconds: float | None) -> float | None:
    """Seconds as a request has them: negative for "for ever"."""
    return -1.0 if seconds == float("inf") else seconds


def _entries(node: str, body: bytes) -> list[dict[str, Any]]:
    """The models in a node's answer; empty if the answer is malformed."""
    try:
        models = load(node, body).get("models")
    except NodeError:
        return []
    entries = models if isinstance(models, list) else []
    return [
        entry
        for entry in entries
        if isinstance(entry, dict)
        and isinstance(name := entry.get("name"), str)
        and is_valid_name(name)
    ]


def _listed(models: list[dict[str, Any]]) -> HttpResponse:
    """The answer that lists models, without those that JSON can be read from but not written to.

    orjson reads 1,024 levels of nesting, and writes 254.
    """
    try:
        return server_responses.json_answer({"models": models})
    except TypeError:
        return server_responses.json_answer({"models": [m for m in models if _is_writable(m)]})


def _is_writable(entry: dict[str, Any]) -> bool:
    try:
        orjson.dumps({"models": [entry]})
    except TypeError:
        return False
    return True


def _numbers(version: str) -> list[int]:
    """The numbers of a version, for sorting, without any suffix."""
    numbers = []
    for part in version[:_LONGEST_VERSION].split("-")[0].split("+")[0].split("."):
        if not (part.isascii() and part.isdigit()):
            break
        numbers.append(int(part))
    return numbers
