"""Models pulled, made, copied and deleted on one, some or all nodes. Off unless it is allowed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing, suppress
from typing import TYPE_CHECKING, Any

import orjson
from aiohttp import web

from aiosollol.errors import InvalidInput, ModelMissing, PoolClosed, SollolError
from aiosollol.gateway.endpoints import Endpoint
from aiosollol.gateway.ollama import error_line
from aiosollol.gateway.pulling import Progress
from aiosollol.gateway.refusals import message_of
from aiosollol.gateway.schema import BOOLEAN, OBJECT, STRING, ref
from aiosollol.gateway.sending import STATE, begin, routed, whole
from aiosollol.wire import answers, asked
from aiosollol.wire.answers import NDJSON, Answer
from aiosollol.wire.asked import Refusal
from aiosollol.wire.gojson import GoJSONError, loads, quoted
from aiosollol.wire.ndjson import LineSplitter
from aiosollol.wire.ollama import loads as loads_answer

if TYPE_CHECKING:
    from aiosollol.pool import OllamaPool

_PULL_SECONDS = 24 * 3600.0  # a large model on a slow line
_CHANGE_SECONDS = 60.0

_NODE = {"node": "name of a node, several with commas between, or all"}


class Admin:
    """The endpoints that change what nodes have."""

    def __init__(self, pool: OllamaPool) -> None:
        self._pool = pool

    def endpoints(self) -> list[Endpoint]:
        def endpoint(method: str, path: str, handler: Any, summary: str, **rest: Any) -> Endpoint:
            return Endpoint(
                method, path, handler, summary, query=_NODE, is_asking=True, is_admin=True, **rest
            )

        model, stream = ref("Model"), {"type": "boolean", "default": True}
        progress: dict[str, Any] = {
            "required": ("model",),
            "answers": ("application/json", NDJSON),
            "returns": ref("Progress"),
            "parts": ref("Progress"),
        }
        return [
            endpoint(
                "POST",
                "/api/pull",
                self.work,
                "Get a model",
                body={"model": model, "stream": stream, "insecure": BOOLEAN},
                example={"model": "all-minilm", "stream": False},
                **progress,
            ),
            endpoint(
                "POST",
                "/api/create",
                self.work,
                "Make a model of another",
                body={
                    "model": model,
                    "stream": stream,
                    "from": STRING,
                    "system": STRING,
                    "template": STRING,
                    "parameters": OBJECT,
                    "quantize": STRING,
                },
                example={"model": "pirate", "from": "llama3.2", "system": "Talk like a pirate."},
                **progress,
            ),
            endpoint(
                "POST",
                "/api/copy",
                self.copy,
                "Give a model a second name",
                body={"source": model, "destination": model},
                required=("source", "destination"),
                example={"source": "llama3.2", "destination": "mine"},
                answers=(),
            ),
            endpoint(
                "DELETE",
                "/api/delete",
                self.delete,
                "Delete a model",
                body={"model": model},
                required=("model",),
                example={"model": "mine"},
                answers=(),
            ),
        ]

    # ---- what takes a moment

    async def copy(self, request: web.Request) -> web.StreamResponse:
        body = await request.read()
        source, _ = asked.read_copy(body)
        return await self._change(request, source, body)

    async def delete(self, request: web.Request) -> web.StreamResponse:
        body = await request.read()
        return await self._change(request, asked.read_delete(body), body)

    async def _change(self, request: web.Request, model: str, body: bytes) -> web.StreamResponse:
        """Do it on every node that has the model, or on those named."""
        pool = self._pool
        request[STATE].model = model
        having = pool.view.having(model) or (await pool.refresh()).having(model)
        names = self._named(request) or [node.name for node in having]
        if not names:
            if request.path == "/api/copy":  # which has words of its own
                raise Refusal(404, f"model {quoted(model)} not found")
            raise answers.unknown_model(model)
        asking = (
            pool.ask(name, request.method, request.path, body, timeout=_CHANGE_SECONDS)
            for name in names
        )
        results = await asyncio.gather(*asking, return_exceptions=True)
        await pool.refresh()
        failed = [result for result in results if isinstance(result, BaseException)]
        for result in failed:
            if not isinstance(result, ModelMissing) or len(failed) == len(results):
                raise result
        return whole(Answer(200, "", b""), routed(request, ",".join(names), f"all {len(names)}"))

    # ---- what takes minutes

    async def work(self, request: web.Request) -> web.StreamResponse:
        """Pull or create, with the progress of all nodes as one."""
        body = await request.read()
        fields = _fields(body)
        model = fields.get("model") or fields.get("name")
        if not isinstance(model, str) or not model:
            raise Refusal(400, "model is required")
        request[STATE].model = model
        names = self._named(request) or _up(self._pool)
        sent = orjson.dumps({**fields, "stream": True})
        headers = routed(request, ",".join(names), f"all {len(names)}")
        async with aclosing(self._lines(request.path, sent, names)) as lines:
            if fields.get("stream") is False:
                last: dict[str, Any] = {}
                async for line in lines:
                    last = line
                status = 500 if "error" in last else 200
                return whole(answers.json_answer(last, status=status), headers)
            response = await begin(request, {"Content-Type": NDJSON, **headers})
            async for line in lines:
                await response.write(answers.line(line))
            await response.write_eof()
        return response

    async def _lines(
        self, path: str, body: bytes, names: Sequence[str]
    ) -> AsyncGenerator[dict[str, Any], None]:
        """What the nodes tell, until all are done. Leaving it early cancels what they do."""
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
                    found = {"error": "it answered what is not JSON"}
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
            async with self._pool.ask_stream(node, path, body, timeout=_PULL_SECONDS) as pieces:
                async for piece in pieces:
                    for line in splitter.feed(piece):
                        await told.put((node, line))
                if rest := splitter.rest():
                    await told.put((node, rest))
        except SollolError as error:
            await told.put((node, error_line(message_of(error))))
        await told.put(None)

    def _named(self, request: web.Request) -> list[str]:
        """The nodes that the client names; none if it names none, or all. Raises InvalidInput."""
        given = [name for each in request.query.getall("node", []) for name in each.split(",")]
        names = list(dict.fromkeys(name for name in given if name))
        known = self._pool.view.nodes
        if names == ["all"]:
            return []
        keys = {node.spec.key: name for name, node in known.items()}  # as /api/stats calls them
        for name in names:
            if name not in known and name not in keys:
                raise InvalidInput(f"there is no node {name!r}; there are {', '.join(known)}")
        return list(dict.fromkeys(name if name in known else keys[name] for name in names))


def _up(pool: OllamaPool) -> list[str]:
    nodes = pool.view.nodes
    names = [name for name, state in nodes.items() if not state.is_down]
    if not names:
        raise Refusal(503, "no node answers; is Ollama running there?")
    return names


def _fields(body: bytes) -> dict[str, Any]:
    try:
        fields = loads(body)
    except GoJSONError as error:
        message = str(error)
        raise Refusal(400, "missing request body" if message == "EOF" else message) from error
    if not isinstance(fields, dict):
        raise Refusal(400, "the request must be a JSON object")
    return fields
