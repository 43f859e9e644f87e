"""OpenAI's and Anthropic's APIs over a pool: chats in other words, translated there and back."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import orjson
from aiohttp import web

from aiosollol.core.node import full_name
from aiosollol.errors import BadRequest, ProtocolError
from aiosollol.gateway.endpoints import Endpoint
from aiosollol.gateway.ollama import ASK_SECONDS, Native
from aiosollol.gateway.permissions import may_use
from aiosollol.gateway.schema import (
    BOOLEAN,
    INTEGER,
    NAME,
    NUMBER,
    OBJECT,
    STRING,
    Schema,
    array,
    just,
    ref,
    struct,
    told,
)
from aiosollol.gateway.sending import STATE, routed, stream, whole
from aiosollol.wire import answers, anthropic, openai, openai_responses
from aiosollol.wire.dialect import EVENT_STREAM, Question, Stamp
from aiosollol.wire.dialects import READERS
from aiosollol.wire.ollama import dump_whole, load

if TYPE_CHECKING:
    from aiosollol.pool import OllamaPool

_TAG = "OpenAI and Anthropic"
_HELLO = "Why is the sky blue?"
_MESSAGES = [{"role": "user", "content": _HELLO}]
_COMMON: dict[str, Schema] = {
    "model": ref("Model"),
    "stream": {"type": "boolean", "default": False},
    "temperature": NUMBER,
    "top_p": NUMBER,
}
_SAMPLING: dict[str, Schema] = {
    "stream_options": struct(include_usage=BOOLEAN),
    "seed": INTEGER,
    "stop": {"anyOf": [STRING, array(STRING)]},
    "frequency_penalty": NUMBER,
    "presence_penalty": NUMBER,
    "max_tokens": INTEGER,
    "n": told(just(1), "more are not made"),
}


class _Talk(NamedTuple):
    """What one of the four endpoints that talk takes and answers.

    example: the fields that must be there. returns: the schema of the answer, by name. parts: that
    of the events of a stream.
    """

    summary: str
    fields: Mapping[str, Schema]
    example: Mapping[str, Any]
    returns: str
    parts: Schema


_TALKS = {
    openai.CHAT_PATH: _Talk(
        "The next message of a conversation",
        {
            "messages": {**array(ref("OpenAIMessage")), "minItems": 1},
            "max_completion_tokens": told(INTEGER, "counts more than max_tokens"),
            "tools": array(ref("Tool")),
            "tool_choice": told({}, '"none" offers no tool; all else is "auto"'),
            "response_format": struct(
                ["type"],
                type=just("text", "json_object", "json_schema"),
                json_schema=struct(name=STRING, schema=OBJECT),
            ),
            "reasoning_effort": ref("Effort"),
            "logprobs": BOOLEAN,
            "top_logprobs": INTEGER,
            **_SAMPLING,
        },
        {"messages": _MESSAGES},
        "ChatCompletion",
        {"anyOf": [ref("ChatCompletionChunk"), ref("OpenAIError")]},
    ),
    openai.COMPLETION_PATH: _Talk(
        "What comes after a prompt",
        {"prompt": STRING, "suffix": STRING, "echo": BOOLEAN, "best_of": just(1), **_SAMPLING},
        {"prompt": _HELLO},
        "Completion",
        {"anyOf": [ref("Completion"), ref("OpenAIError")]},
    ),
    openai_responses.PATH: _Talk(
        "The next message of a conversation, as OpenAI asks for it since 2025",
        {
            "input": {"anyOf": [STRING, array(ref("ResponseItem"))]},
            "instructions": STRING,
            "max_output_tokens": INTEGER,
            "tools": array(OBJECT),
            "tool_choice": told({}, '"none" offers no tool; all else is "auto"'),
            "text": struct(format=struct(type=STRING, name=STRING, schema=OBJECT)),
            "reasoning": struct(effort=ref("Effort"), summary=STRING),
        },
        {"input": _HELLO},
        "Response",
        struct(["type"], type=STRING),
    ),
    anthropic.PATH: _Talk(
        "The next message of a conversation, as Anthropic asks for it",
        {
            "messages": {**array(ref("AnthropicMessage")), "minItems": 1},
            "max_tokens": {"type": "integer", "minimum": 1},
            "system": {"anyOf": [STRING, array(ref("TextBlock"))]},
            "tools": array(struct(["name"], name=NAME, description=STRING, input_schema=OBJECT)),
            "top_k": INTEGER,
            "stop_sequences": array(STRING),
            "thinking": struct(type=just("enabled", "disabled")),
        },
        {"messages": _MESSAGES, "max_tokens": 100},
        "AnthropicAnswer",
        struct(["type"], type=STRING),
    ),
}


class Compatible:
    """The endpoints under /v1 but for embeddings. native: asks the nodes for their models."""

    def __init__(self, pool: OllamaPool, native: Native) -> None:
        self._access = pool.gateway_access
        self._native = native

    def endpoints(self) -> list[Endpoint]:
        talks = [
            Endpoint(
                "POST",
                path,
                self.talk,
                talk.summary,
                tag=_TAG,
                body={**_COMMON, **talk.fields},
                required=("model", *talk.example),
                example={"model": "llama3.2", **talk.example, "stream": False},
                answers=("application/json", EVENT_STREAM),
                returns=ref(talk.returns),
                parts=talk.parts,
                is_asking=True,
            )
            for path, talk in _TALKS.items()
        ]
        return [
            Endpoint(
                "GET",
                "/v1/models",
                self.models,
                "The models of all nodes",
                tag=_TAG,
                returns=ref("OpenAIModels"),
                fails=(503,),
            ),
            Endpoint(
                "GET",
                r"/v1/models/{name:[\s\S]+}",
                self.model,
                "One model",
                tag=_TAG,
                parameter=ref("Model"),
                returns=ref("OpenAIModel"),
                is_asking=True,
            ),
            *talks,
        ]

    async def models(self, request: web.Request) -> web.StreamResponse:
        return whole(openai.models(await self._native.models(request)))

    async def model(self, request: web.Request) -> web.StreamResponse:
        name = request.match_info["name"]
        request[STATE].model = full_name(name)  # which is how its errors call it
        if not may_use(request, name):
            raise answers.unknown_model(full_name(name))
        body = dump_whole({"model": name})
        relayed = await self._access.ask_any(name, "POST", "/api/show", body, timeout=ASK_SECONDS)
        headers = routed(request, relayed.node, self._access.reason(name, relayed.setbacks))
        return whole(openai.model(name, load(relayed.node, relayed.body)), headers)

    async def talk(self, request: web.Request) -> web.StreamResponse:
        question = READERS[request.path](await request.read())
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
            raise ProtocolError(relayed.node, "answered what is not JSON") from error
        headers = routed(request, relayed.node, access.reason(model, relayed.setbacks))
        return whole(question.answer(reply, stamp), headers)
