"""OpenAI's and Anthropic's APIs, translated to Ollama's and back."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Literal

import orjson
from aiohttp import web

from aiosollol.core.model_names import shortest_name
from aiosollol.errors import BadRequest, ProtocolError
from aiosollol.gateway.bodies import (
    STATE,
    parse,
    routed,
    stream,
    whole,
)
from aiosollol.gateway.endpoints.ollama import ASK_SECONDS, OllamaEndpoints
from aiosollol.gateway.middleware.guard import may_use
from aiosollol.wire.anthropic import messages
from aiosollol.wire.compatible_apis import READERS
from aiosollol.wire.ollama import server_requests, server_responses
from aiosollol.wire.ollama.client import dump_whole, load
from aiosollol.wire.openai import chat
from aiosollol.wire.translation import EVENT_STREAM, Question, Stamp

if TYPE_CHECKING:
    from aiosollol.pool.facade import OllamaPool


class CompatibleEndpoints:
    """The endpoints under /v1 except embeddings. native: used to list the nodes' models."""

    def __init__(self, pool: OllamaPool, native: OllamaEndpoints) -> None:
        self._access = pool.gateway_access
        self._native = native

    def routes(self) -> list[web.RouteDef]:
        return [
            web.get("/v1/models", self.models),
            web.get(r"/v1/models/{name:[\s\S]+}", self.model),
            *(web.post(path, self.talk) for path in READERS),
            web.post(messages.COUNT_PATH, self.count_tokens),
        ]

    async def models(self, request: web.Request) -> web.StreamResponse:
        return whole(chat.models(await self._native.models(request)))

    async def model(self, request: web.Request) -> web.StreamResponse:
        name = request.match_info["name"]
        server_requests.check_model_name(name)
        request[STATE].model = shortest_name(name)  # the name in error messages
        if not may_use(request, name):
            raise server_responses.unknown_model(shortest_name(name))
        body = dump_whole({"model": name})
        relayed = await self._access.ask_any(name, "POST", "/api/show", body, timeout=ASK_SECONDS)
        headers = routed(request, relayed.node, self._access.reason(name, relayed.setbacks))
        return whole(chat.model(name, load(relayed.node, relayed.body)), headers)

    async def count_tokens(self, request: web.Request) -> web.StreamResponse:
        """An estimate: Ollama has no endpoint that counts tokens without computing."""
        model, estimate = await parse(request, messages.count_tokens)
        request[STATE].model = model
        return whole(messages.token_count(estimate))

    async def talk(self, request: web.Request) -> web.StreamResponse:
        question = await parse(request, READERS[request.path])
        state = request[STATE]
        state.model = question.model
        stamp = Stamp(state.unique, int(time.time()))
        try:
            return await self._answer(request, question, stamp)
        except BadRequest as error:
            if not (question.can_drop_think and "think" in error.message):
                raise
        question.payload.pop("think", None)
        question.body = dump_whole(question.payload)
        return await self._answer(request, question, stamp)

    async def _answer(
        self, request: web.Request, question: Question, stamp: Stamp
    ) -> web.StreamResponse:
        access, model = self._access, question.model
        options = question.payload.get("options")
        kind: Literal["chat", "generate"] = "chat" if question.path == "/api/chat" else "generate"
        if question.stream:
            source = await access.forward_stream(
                kind, question.path, model, question.body, options=options
            )
            events = question.events(stamp)
            reason = access.reason(model, source.setbacks)
            return await stream(
                request,
                source,
                EVENT_STREAM,
                {"Cache-Control": "no-cache", **routed(request, source.node, reason)},
                on_error=events.fail,
                convert=events.feed,
                finish=events.finish,
            )
        relayed = await access.forward(kind, question.path, model, question.body, options=options)
        try:
            reply = orjson.loads(relayed.body)
        except orjson.JSONDecodeError as error:
            raise ProtocolError(relayed.node, "its answer is not JSON") from error
        headers = routed(request, relayed.node, access.reason(model, relayed.setbacks))
        return whole(question.answer(reply, stamp), headers)
