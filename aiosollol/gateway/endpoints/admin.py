"""Endpoints that pull, create, copy and delete models on one, some or all nodes. Off by default."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing, suppress
from typing import TYPE_CHECKING, Any

import orjson
from aiohttp import web

from aiosollol.core.redaction import safe_repr
from aiosollol.errors import InvalidInput, ModelMissing, PoolClosed, SollolError
from aiosollol.gateway.bodies import (
    STATE,
    begin,
    parse,
    routed,
    whole,
)
from aiosollol.gateway.endpoints.ollama import error_line
from aiosollol.gateway.middleware.error_responses import json_object, message_of
from aiosollol.wire.ollama import server_requests, server_responses
from aiosollol.wire.ollama.client import LineSplitter, dump_whole
from aiosollol.wire.ollama.client import loads as loads_answer
from aiosollol.wire.ollama.go_json import quoted
from aiosollol.wire.ollama.server_requests import Refusal
from aiosollol.wire.ollama.server_responses import NDJSON, HttpResponse

if TYPE_CHECKING:
    from aiosollol.pool.facade import OllamaPool

_PULL_SECONDS = 24 * 3600.0  # a large model on a slow line
_CHANGE_SECONDS = 60.0
_SUCCESS = "success"
_MOST_BYTES = 2**63 - 1  # which JSON can carry


class AdminEndpoints:
    """The endpoints that change the models of nodes."""

    def __init__(self, pool: OllamaPool) -> None:
        self._pool = pool
        self._access = pool.gateway_access

    def routes(self) -> list[web.RouteDef]:
        return [
            web.post("/api/pull", self.work),
            web.post("/api/create", self.work),
            web.post("/api/copy", self.copy),
            web.delete("/api/delete", self.delete),
        ]

    # ---- short operations

    async def copy(self, request: web.Request) -> web.StreamResponse:
        body = await request.read()
        source, _ = await parse(request, server_requests.read_copy)
        return await self._change(request, source, body)

    async def delete(self, request: web.Request) -> web.StreamResponse:
        body = await request.read()
        model = await parse(request, server_requests.read_delete)
        return await self._change(request, model, body)

    async def _change(self, request: web.Request, model: str, body: bytes) -> web.StreamResponse:
        """Send the request to every node that has the model, or to the named ones."""
        pool = self._pool
        request[STATE].model = model
        having = pool.view.having(model) or (await pool.refresh()).having(model)
        names = self._named(request) or [node.name for node in having]
        if not names:
            if request.path == "/api/copy":  # which has its own message
                raise Refusal(404, f"model {quoted(model)} not found")
            raise server_responses.unknown_model(model)
        asking = (
            self._access.ask(name, request.method, request.path, body, timeout=_CHANGE_SECONDS)
            for name in names
        )
        results = await asyncio.gather(*asking, return_exceptions=True)
        await pool.refresh()
        failed = [result for result in results if isinstance(result, BaseException)]
        for result in failed:
            if not isinstance(result, ModelMissing) or len(failed) == len(results):
                raise result
        return whole(
            HttpResponse(200, "", b""), routed(request, ",".join(names), f"all {len(names)}")
        )

    # ---- long operations

    async def work(self, request: web.Request) -> web.StreamResponse:
        """Pull or create, with the combined progress of all nodes."""
        fields = await parse(request, json_object)
        model = fields.get("model") or fields.get("name")
        if not isinstance(model, str) or not model:
            raise Refusal(400, "model is required")
        request[STATE].model = model
        names = self._named(request) or _up(self._pool)
        sent = dump_whole({**fields, "stream": True})
        headers = routed(request, ",".join(names), f"all {len(names)}")
        async with aclosing(self._lines(request.path, sent, names)) as lines:
            if fields.get("stream") is False:
                last: dict[str, Any] = {}
                async for line in lines:
                    last = line
                status = 500 if "error" in last else 200
                return whole(server_responses.json_answer(last, status=status), headers)
            response = await begin(request, {"Content-Type": NDJSON, **headers})
            async for line in lines:
                await response.write(server_responses.line(line))
            await response.write_eof()
        return response

    async def _lines(
        self, path: str, body: bytes, names: Sequence[str]
    ) -> AsyncGenerator[dict[str, Any], None]:
        """The combined progress until all nodes are done. Leaving early cancels their work."""
        progress = Progress(names)
        told: asyncio.Queue[tuple[str, bytes] | None] = asyncio.Queue(256)
        tasks = [asyncio.create_task(self._listen(name, path, body, told)) for name in names]
        try:
            running = len(tasks)
            while running:
                news = await told.get()
                if news is None:
                    running -= 1
                    continue
                node, line = news
                try:
                    found = loads_answer(line)
                except orjson.JSONDecodeError:
                    found = {"error": "its answer is not JSON"}
                if isinstance(found, dict) and (out := progress.feed(node, found)) is not None:
                    yield out
            with suppress(PoolClosed):
                await self._pool.refresh()
            yield progress.end()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _listen(
        self, node: str, path: str, body: bytes, told: asyncio.Queue[tuple[str, bytes] | None]
    ) -> None:
        splitter = LineSplitter()
        try:
            async with self._access.ask_stream(node, path, body, timeout=_PULL_SECONDS) as pieces:
                async for piece in pieces:
                    for line in splitter.feed(piece):
                        await told.put((node, line))
                if rest := splitter.rest():
                    await told.put((node, rest))
        except SollolError as error:
            await told.put((node, error_line(message_of(error))))
        await told.put(None)

    def _named(self, request: web.Request) -> list[str]:
        """The nodes that the client names; empty for none or "all". Raises InvalidInput."""
        given = [name for each in request.query.getall("node", []) for name in each.split(",")]
        names = list(dict.fromkeys(name for name in given if name))
        known = self._pool.view.nodes
        if names == ["all"]:
            return []
        keys = {node.spec.key: name for name, node in known.items()}  # as /api/stats calls them
        for name in names:
            if name not in known and name not in keys:
                shown = safe_repr(name)
                raise InvalidInput(f"there is no node {shown}; the nodes are {', '.join(known)}")
        return list(dict.fromkeys(name if name in known else keys[name] for name in names))


def _up(pool: OllamaPool) -> list[str]:
    nodes = pool.view.nodes
    names = [name for name, state in nodes.items() if not state.is_down]
    if not names:
        raise Refusal(503, "no node answers; is Ollama running there?")
    return names


class Progress:
    """Combines the progress lines of several nodes into lines for one client.

    The bytes of each digest are summed over the nodes; any other status is reported once, for the
    first node that reaches it. `end` reports success when all nodes have succeeded.
    """

    def __init__(self, nodes: Sequence[str]) -> None:
        self._nodes = list(nodes)
        self._told: set[str] = set()
        self._completed: dict[str, dict[str, int]] = {}
        self._totals: dict[str, int] = {}
        self._succeeded: set[str] = set()
        self._failed: dict[str, str] = {}

    def feed(self, node: str, line: Mapping[str, Any]) -> dict[str, Any] | None:
        """The line for the client after a line of `node`; None if there is nothing new."""
        if "error" in line:
            self.fail(node, str(line["error"]))
            return None
        status, digest = str(line.get("status", "")), line.get("digest")
        if status == _SUCCESS:
            self._succeeded.add(node)
            return None
        if not isinstance(digest, str):
            if status in self._told:
                return None
            self._told.add(status)
            return {"status": status}
        total, completed = line.get("total"), line.get("completed")
        if isinstance(total, int):
            self._totals[digest] = max(total, self._totals.get(digest, 0))
        done = self._completed.setdefault(digest, {})
        if isinstance(completed, int):
            done[node] = completed
        whole = min(_MOST_BYTES, self._totals.get(digest, 0) * len(self._nodes))
        told = {"status": status, "digest": digest, "total": whole}
        return {**told, "completed": min(_MOST_BYTES, sum(done.values()))} if done else told

    def fail(self, node: str, message: str) -> None:
        """Record that `node` has failed; the others continue."""
        self._failed.setdefault(node, message)

    def end(self) -> dict[str, Any]:
        """The last line: success, or the error of each failed node."""
        for node in self._nodes:
            if node not in self._succeeded:
                self.fail(node, "its answer ended before it was done")
        if not self._failed:
            return {"status": _SUCCESS}
        if len(self._nodes) == 1:
            return {"error": next(iter(self._failed.values()))}
        words = "; ".join(f"{node}: {message}" for node, message in self._failed.items())
        done = len(self._nodes) - len(self._failed)
        return {"error": f"done on {done} of {len(self._nodes)} nodes; {words}"}
