"""Ollama's HTTP API over a `Backend`, as an aiohttp application.

It serves embeddings only, and refuses chat as Ollama does for an embedding model.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from secrets import token_hex
from typing import TypeVar

from aiohttp import web

from aiosollol.core.model_names import full_name, shortest_name
from aiosollol.embedded.model import Backend
from aiosollol.wire import compatible_apis
from aiosollol.wire.ollama import server_requests, server_responses
from aiosollol.wire.ollama.server_requests import (
    ChatAsked,
    EmbedAsked,
    GenerateAsked,
    Refusal,
)
from aiosollol.wire.ollama.server_responses import HttpResponse, ModelCard

VERSION = "0.33.0-aiosollol"
# The most that the worker computes at once: a few milliseconds of work. A disconnect wastes no more
# than that, and other requests can run in between.
_SLICE_TEXTS = 32
_SLICE_CHARACTERS = 50_000
_IN_LOOP = 64 << 10  # bytes of the largest body that is parsed in the event loop

T = TypeVar("T")
_Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def make_app(backend: Backend, *, delay: float = 0.0) -> web.Application:
    """An application that serves Ollama's API with `backend`. Cleanup ends its thread.

    delay: extra seconds for each text, to simulate a slower machine. Run it with
    ``handler_cancellation=True``, so that a client that disconnects cancels its request.
    """
    node = _EmbeddedServer(backend, delay)
    app = web.Application(middlewares=[_in_ollamas_words])
    for method, path, handler in (
        ("GET", "/", node.root),
        ("HEAD", "/", node.root),
        ("GET", "/api/version", node.version),
        ("HEAD", "/api/version", node.version),
        ("GET", "/api/tags", node.tags),
        ("HEAD", "/api/tags", node.tags),
        ("GET", "/api/ps", node.ps),
        ("POST", "/api/show", node.show),
        ("POST", "/api/embed", node.embed),
        ("POST", "/api/embeddings", node.embeddings),
        ("POST", "/api/chat", node.chat),
        ("POST", "/api/generate", node.generate),
        ("POST", "/v1/embeddings", node.openai_embeddings),
        ("GET", "/v1/models", node.openai_models),
        ("GET", r"/v1/models/{name:[\s\S]+}", node.openai_model),
        *(("POST", path, node.talk) for path in compatible_apis.READERS),
    ):
        app.router.add_route(method, path, _sending(handler))
    app.on_startup.append(node.start)
    app.on_cleanup.append(node.stop)
    return app


@dataclass(slots=True)
class _Vectors:
    """Vectors as JSON, and their cost."""

    json: list[bytes]
    tokens: int = 0
    nanoseconds: int = 0


class _EmbeddedServer:
    """The endpoints. One thread does all work on the backend, slice by slice."""

    def __init__(self, backend: Backend, delay: float) -> None:
        self._backend = backend
        self._delay = delay
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="aiosollol-embedded")

    async def start(self, app: web.Application) -> None:
        await asyncio.get_running_loop().run_in_executor(self._worker, self._backend.load)

    async def stop(self, app: web.Application) -> None:
        # Wait for the current slice in another thread: it is short, but would block the loop.
        loop = asyncio.get_running_loop()
        self._worker.shutdown(wait=False, cancel_futures=True)
        await loop.run_in_executor(None, self._worker.shutdown)

    # ---- the server and its model

    async def root(self, request: web.Request) -> HttpResponse:
        return server_responses.root()

    async def version(self, request: web.Request) -> HttpResponse:
        return server_responses.version(VERSION)

    async def tags(self, request: web.Request) -> HttpResponse:
        card = await self._card()
        return server_responses.tags(replace(card, name=name) for name in self._backend.names)

    async def ps(self, request: web.Request) -> HttpResponse:
        card = await self._card()
        until = server_responses.timestamp(time.time_ns() + server_responses.FOR_EVER_NS)
        return server_responses.ps(
            (replace(card, name=name), 0, until) for name in self._backend.names
        )

    async def show(self, request: web.Request) -> HttpResponse:
        name = shortest_name(await self._read(request, server_requests.read_show))
        if not self._has(name):
            raise server_responses.unknown_model(name)
        return server_responses.show(replace(await self._card(), name=name))

    async def openai_models(self, request: web.Request) -> HttpResponse:
        created = await self._created()
        return server_responses.openai_models((name, created) for name in self._backend.names)

    async def openai_model(self, request: web.Request) -> HttpResponse:
        name = request.match_info["name"]
        server_requests.check_model_name(name)
        if not self._has(name):
            raise server_responses.unknown_model(shortest_name(name))
        return server_responses.openai_model(name, await self._created())

    # ---- embeddings

    async def embed(self, request: web.Request) -> HttpResponse:
        began = time.monotonic_ns()
        wanted = self._checked(await self._read(request, server_requests.read_embed))
        vectors = await self._vectors(wanted)
        return server_responses.embed(
            wanted.model,
            vectors.json,
            total_duration=time.monotonic_ns() - began if wanted.texts else 0,
            load_duration=1 if wanted.texts else 0,  # it is always loaded
            tokens=vectors.tokens,
        )

    async def embeddings(self, request: web.Request) -> HttpResponse:
        wanted = self._checked(await self._read(request, server_requests.read_embeddings))
        vectors = await self._vectors(wanted)
        return server_responses.embeddings(vectors.json[0] if vectors.json else None)

    async def openai_embeddings(self, request: web.Request) -> HttpResponse:
        wanted = self._checked(await self._read(request, server_requests.read_openai_embeddings))
        vectors = await self._vectors(wanted)
        return server_responses.openai_embeddings(wanted.model, vectors.json, tokens=vectors.tokens)

    async def _read(self, request: web.Request, read: Callable[[bytes], T]) -> T:
        """The request's body, parsed by `read`; large bodies are parsed by the worker."""
        body = await request.content.read()  # request.read() has a limit, and Ollama has none
        if len(body) <= _IN_LOOP:
            return read(body)
        return await asyncio.get_running_loop().run_in_executor(self._worker, read, body)

    def _checked(self, wanted: EmbedAsked) -> EmbedAsked:
        if not self._has(wanted.model):
            raise server_responses.unknown_model_try_pulling(wanted.model)
        return wanted

    async def _vectors(self, wanted: EmbedAsked) -> _Vectors:
        loop = asyncio.get_running_loop()
        vectors = _Vectors([])
        for texts in _slices(wanted.texts, 1 if self._delay else _SLICE_TEXTS):
            json, tokens = await loop.run_in_executor(self._worker, self._compute, texts, wanted)
            vectors.json += json
            vectors.tokens += tokens
        return vectors

    def _compute(self, texts: Sequence[str], wanted: EmbedAsked) -> tuple[list[bytes], int]:
        """Runs in the worker's thread. Serializing takes as long as computing."""
        computed = self._backend.embed(texts, wanted.dimensions)
        if self._delay:
            time.sleep(self._delay * len(texts))
        is_base64 = wanted.encoding == "base64"
        write = server_responses.base64_vectors if is_base64 else server_responses.json_vectors
        return write(computed.floats, computed.dim), computed.tokens

    # ---- what the model cannot do

    async def chat(self, request: web.Request) -> HttpResponse:
        wanted = await self._read(request, server_requests.read_chat)
        if self._is_let_go(wanted, bool(wanted.messages)):
            return server_responses.json_answer(
                server_responses.chat_final(wanted.model, _now(), "unload")
            )
        raise self._cannot(wanted.model, "chat")

    async def generate(self, request: web.Request) -> HttpResponse:
        wanted = await self._read(request, server_requests.read_generate)
        if self._is_let_go(wanted, bool(wanted.prompt)):
            return server_responses.json_answer(
                server_responses.generate_final(wanted.model, _now(), "unload")
            )
        raise self._cannot(wanted.model, "generate")

    async def talk(self, request: web.Request) -> HttpResponse:
        question = await self._read(request, compatible_apis.READERS[request.path])
        raise self._cannot(question.model, question.path.removeprefix("/api/"))

    def _is_let_go(self, wanted: ChatAsked | GenerateAsked, has_prompt: bool) -> bool:
        """Whether a request unloads a model. Ollama checks that before whether the model can chat;
        here the model stays in memory, which does no harm.
        """
        return not has_prompt and wanted.keep_alive == 0 and self._has(wanted.model)

    def _cannot(self, model: str, what: str) -> Refusal:
        if not model:
            return Refusal(400, "model is required")
        return (
            server_responses.cannot(model, what)
            if self._has(model)
            else server_responses.unknown_model(model)
        )

    def _has(self, model: str) -> bool:
        return bool(model) and full_name(model) in self._backend.names

    async def _card(self) -> ModelCard:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._worker, self._backend.card)

    async def _created(self) -> int:
        return server_responses.seconds_of((await self._card()).modified_at)


def _now() -> str:
    return server_responses.timestamp(time.time_ns())


def _slices(texts: Sequence[str], most: int) -> Iterator[list[str]]:
    """`texts` in order, at most `most` at a time, fewer if they are long."""
    chunk: list[str] = []
    characters = 0
    for text in texts:
        if chunk and (len(chunk) == most or characters + len(text) > _SLICE_CHARACTERS):
            yield chunk
            chunk, characters = [], 0
        chunk.append(text)
        characters += len(text)
    if chunk:
        yield chunk


def _sending(handler: Callable[[web.Request], Awaitable[HttpResponse]]) -> _Handler:
    async def send(request: web.Request) -> web.StreamResponse:
        return _response(await handler(request))

    return send


@web.middleware
async def _in_ollamas_words(request: web.Request, handler: _Handler) -> web.StreamResponse:
    try:
        return await handler(request)
    except Refusal as refusal:
        return _response(compatible_apis.refuse(request.path, refusal, token_hex(12)))
    except web.HTTPMethodNotAllowed as error:
        response = _response(server_responses.method_not_allowed())
        response.headers["Allow"] = ", ".join(sorted(error.allowed_methods))
        return response
    except web.HTTPNotFound:
        return _response(server_responses.not_found())


def _response(answer: HttpResponse) -> web.Response:
    return web.Response(
        status=answer.status, body=answer.body, headers={"Content-Type": answer.content_type}
    )
