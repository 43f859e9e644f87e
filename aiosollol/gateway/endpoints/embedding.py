"""The endpoints that embed: a list is spread over the nodes, a single text is forwarded as is."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from aiohttp import web

from aiosollol.gateway.bodies import (
    STATE,
    VectorWriter,
    Write,
    parse,
    plain,
    routed,
    whole,
)
from aiosollol.gateway.endpoints.ollama import plain_keep_alive
from aiosollol.gateway.micro_batching import Key, MicroBatcher
from aiosollol.gateway.middleware.guard import check_model, client_name
from aiosollol.gateway.options import GatewayOptions
from aiosollol.gateway.vector_answers import (
    BASE64_NUMBER,
    JSON_NUMBER,
    AnswerMemory,
    Frame,
    send_vectors,
)
from aiosollol.wire.ollama import server_requests, server_responses
from aiosollol.wire.ollama.client import dump_whole
from aiosollol.wire.ollama.embeddings import load_embeddings
from aiosollol.wire.ollama.go_json import loads
from aiosollol.wire.ollama.server_requests import EmbedAsked, Refusal
from aiosollol.wire.ollama.server_responses import HttpResponse

if TYPE_CHECKING:
    from aiosollol.pool.facade import OllamaPool


class _PooledVectors(NamedTuple):
    """Vectors serialized for a response, and the nodes that computed them."""

    json: list[bytes]
    tokens: int
    node: str
    reason: str


class EmbeddingEndpoints:
    """The three embedding endpoints."""

    def __init__(self, pool: OllamaPool, options: GatewayOptions) -> None:
        self._pool = pool
        self._access = pool.gateway_access
        self._options = options
        self._answers = AnswerMemory(options.max_answer_bytes, options.processes)
        self._gatherer = MicroBatcher(pool, options.gather_seconds, options.gather_above)

    def routes(self) -> list[web.RouteDef]:
        return [
            web.post("/api/embed", self.embed),
            web.post("/api/embeddings", self.embeddings),
            web.post("/v1/embeddings", self.openai),
        ]

    async def aclose(self) -> None:
        """Cancel the texts in flight."""
        await self._gatherer.aclose()

    async def embed(self, request: web.Request) -> web.StreamResponse:
        began = time.monotonic_ns()
        body = await request.read()
        wanted = await parse(request, server_requests.read_embed)
        if not wanted.texts and (known := await parse(request, self._as_the_original)):
            self._check(request, known)
            check_model(request, known.model)  # the guard does not know the default model
            async with self._many(request, known, server_responses.json_vectors) as vectors:
                frame = _with_first(_native(known, vectors, began), vectors)
                return await _sent(request, frame, vectors)
        self._check(request, wanted)
        if len(wanted.texts) < 2:
            return await self._one(request, body, wanted, server_responses.json_vectors, began)
        async with self._many(request, wanted, server_responses.json_vectors) as vectors:
            return await _sent(request, _native(wanted, vectors, began), vectors)

    async def embeddings(self, request: web.Request) -> web.StreamResponse:
        body = await request.read()
        wanted = await parse(request, server_requests.read_embeddings)
        self._check(request, wanted)
        # Its vectors are not normalized, so no other endpoint can replace it.
        return await self._forward(request, body, wanted)

    async def openai(self, request: web.Request) -> web.StreamResponse:
        body = await request.read()
        wanted = await parse(request, server_requests.read_openai_embeddings)
        self._check(request, wanted)
        is_base64 = wanted.encoding == "base64"
        write = server_responses.base64_vectors if is_base64 else server_responses.json_vectors
        if len(wanted.texts) < 2:
            return await self._one(request, body, wanted, write, 0)
        async with self._many(request, wanted, write) as vectors:
            return await _sent(request, _openai(wanted, vectors), vectors)

    def _check(self, request: web.Request, wanted: EmbedAsked) -> None:
        request[STATE].model = wanted.model
        if not wanted.model.strip():
            raise server_responses.unknown_model_try_pulling(wanted.model)
        count, most = len(wanted.texts), self._options.max_texts
        if count > most:
            raise Refusal(413, f"{count:,} texts are over max_texts={most:,}; send fewer at once")

    def _as_the_original(self, body: bytes) -> EmbedAsked | None:
        """A request in the form of the original, with its text in "text"; None if it has none."""
        fields = loads(body)
        if not isinstance(fields, dict) or not fields.get("text") or fields.get("input"):
            return None
        fields["input"] = fields.pop("text")
        if not fields.get("model"):
            fields["model"] = self._options.batch_model or ""
        wanted = server_requests.read_embed(dump_whole(fields))
        return wanted if wanted.texts else None

    # ---- one text

    async def _one(
        self,
        request: web.Request,
        body: bytes,
        wanted: EmbedAsked,
        write: Write,
        began: int,
    ) -> web.StreamResponse:
        if not wanted.texts or wanted.options or wanted.keep_alive is not None:
            return await self._forward(request, body, wanted)
        key = Key(wanted.model, wanted.dimensions or None, None if wanted.truncate else False)
        with self._gatherer.enter(key) as is_worth_while:
            if not is_worth_while:
                return await self._forward(request, body, wanted)
            gathered = await self._gatherer.embed(key, wanted.texts[0])
        json = write(gathered.vector.cast("B"), len(gathered.vector))
        vectors = _PooledVectors(json, gathered.tokens, gathered.nodes, "gathered with others")
        is_native = request.path == "/api/embed"
        answer = _native(wanted, vectors, began) if is_native else _openai(wanted, vectors)
        return await _sent(request, answer, vectors)

    async def _forward(
        self, request: web.Request, body: bytes, wanted: EmbedAsked
    ) -> web.StreamResponse:
        relayed = await self._access.forward(
            "embed" if wanted.texts else "load",
            request.path,
            wanted.model,
            body,
            texts=wanted.texts,
            dimensions=wanted.dimensions or None,
            options=wanted.options or None,
            keep_alive=plain_keep_alive(wanted.keep_alive),
        )
        reason = self._access.reason(wanted.model, relayed.setbacks)
        headers = routed(request, relayed.node, reason)
        if not request.path.startswith("/v1/"):
            return whole(HttpResponse(200, server_responses.API_JSON, relayed.body), headers)
        if wanted.encoding == "base64" and b'"embedding":"' not in relayed.body:
            # Servers before 0.12.7 ignore the requested encoding and answer with numbers.
            read = load_embeddings(relayed.node, relayed.body, 1)
            json = server_responses.base64_vectors(read.floats.cast("B"), read.dim)
            return whole(
                server_responses.openai_embeddings(wanted.model, json, tokens=read.tokens), headers
            )
        return whole(HttpResponse(200, server_responses.OPENAI_JSON, relayed.body), headers)

    # ---- many texts

    @asynccontextmanager
    async def _many(
        self, request: web.Request, wanted: EmbedAsked, write: Write
    ) -> AsyncIterator[_PooledVectors]:
        """The vectors of a list, which count as memory while the block runs. Raises Refusal."""
        client = client_name(request)
        count, dim = len(wanted.texts), self._access.dim_of(wanted.model, wanted.dimensions)
        is_base64 = write is server_responses.base64_vectors
        self._answers.check(count * dim * (BASE64_NUMBER if is_base64 else JSON_NUMBER))
        writer = VectorWriter(count, write, partial(self._answers.take, client))
        try:
            with writer:
                embeddings = await self._pool.embed_batch(
                    wanted.model,
                    wanted.texts,
                    dimensions=wanted.dimensions or None,
                    truncate=None if wanted.truncate else False,
                    options=wanted.options or None,
                    keep_alive=plain_keep_alive(wanted.keep_alive),
                    on_vectors=writer.add,
                )
                json = await writer.finish()
            report = embeddings.report
            del embeddings  # its floats, while the answer is written
            if report is None or report.plan is None:
                yield _PooledVectors(json, 0, "", "")
                return
            shares = {name: share for name, share in report.nodes.items() if share.items}
            reason = f"{report.plan.mode.value}: {report.plan.reason.value}"
            yield _PooledVectors(json, report.tokens, ",".join(shares), reason)
        finally:
            self._answers.release(client, writer.size)


def _native(wanted: EmbedAsked, vectors: _PooledVectors, began: int) -> Frame:
    empty = server_responses.embed(
        wanted.model,
        (),
        total_duration=time.monotonic_ns() - began,
        load_duration=1,  # unknown: several nodes, which may have had the model loaded
        tokens=vectors.tokens,
    )
    return Frame(empty, b'"embeddings":[]')


def _with_first(frame: Frame, vectors: _PooledVectors) -> Frame:
    """`frame` with the first vector in "embedding" too, where the original's clients read it."""
    empty = frame.empty
    body = b'%b,"embedding":%b}' % (empty.body[:-1], vectors.json[0])
    return frame._replace(empty=HttpResponse(empty.status, empty.content_type, body))


def _openai(wanted: EmbedAsked, vectors: _PooledVectors) -> Frame:
    empty = server_responses.openai_embeddings(wanted.model, (), tokens=vectors.tokens)
    return Frame(empty, b'"data":[]', _openai_entry)


def _openai_entry(index: int, vector: bytes) -> bytes:
    return b'{"object":"embedding","embedding":%b,"index":%d}' % (vector, index)


async def _sent(request: web.Request, frame: Frame, vectors: _PooledVectors) -> web.StreamResponse:
    headers = routed(request, vectors.node, plain(vectors.reason))
    return await send_vectors(request, frame, vectors.json, headers)
