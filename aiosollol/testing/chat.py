"""Chat and generate on a fake node: it echoes its prompt, word by word.

OpenAI's and Anthropic's APIs too, with faults that show as in Ollama's own compatibility layer,
which ignores an error in mid-stream.
"""

from __future__ import annotations

import re
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import anyio

from aiosollol.testing.faults import Fault
from aiosollol.testing.models import FakeModel, fake_tokens
from aiosollol.testing.requests import Pace, Reply, SimulatedRequest, nanoseconds, whole
from aiosollol.wire.compatible_apis import READERS
from aiosollol.wire.ollama import server_requests, server_responses
from aiosollol.wire.ollama.server_requests import Refusal
from aiosollol.wire.ollama.server_responses import HttpResponse
from aiosollol.wire.translation import EVENT_STREAM, Question, Stamp

if TYPE_CHECKING:
    from aiosollol.testing.node import FakeNode

_Handler = Callable[["FakeNode", SimulatedRequest, bytes, Fault | None], Awaitable[Reply]]


class Tongue:
    """The format of an answer: Ollama's own JSON; subclasses write others."""

    content_type = server_responses.NDJSON

    def whole(self, final: dict[str, Any]) -> HttpResponse:
        """A complete answer."""
        return server_responses.json_answer(final)

    def part(self, part: dict[str, Any]) -> bytes:
        """A part of a stream."""
        return server_responses.line(part)

    def error(self, message: str) -> bytes:
        """An error in the middle of a stream."""
        return server_responses.line({"error": message})


@dataclass(frozen=True, slots=True)
class _Voice:
    """How chat and generate differ: their JSON, and its format."""

    model: str
    write_part: Callable[[str, str, str], dict[str, Any]]
    write_final: Callable[..., dict[str, Any]]
    tongue: Tongue

    def part(self, now: str, content: str) -> bytes:
        return self.tongue.part(self.write_part(self.model, now, content))

    def final(self, now: str, reason: str, *details: Any) -> dict[str, Any]:
        return self.write_final(self.model, now, reason, *details)

    def whole(self, final: dict[str, Any]) -> Reply:
        return whole(self.tongue.whole(final))


_OWN = Tongue()


@dataclass(frozen=True, slots=True)
class _Said:
    tokens: list[str]
    reason: str


async def api_chat(
    node: FakeNode, work: SimulatedRequest, body: bytes, fault: Fault | None, tongue: Tongue = _OWN
) -> Reply:
    request = server_requests.read_chat(body)
    model = _speaker(node, work, request.model, "chat")
    if request.tools and not model.tools:
        raise server_responses.cannot_use_tools(request.model)
    prompt = [str(message.get("content") or "") for message in request.messages]
    voice = _Voice(request.model, server_responses.chat_part, server_responses.chat_final, tongue)
    return await _speak(node, work, model, request, prompt, voice, fault)


async def api_generate(
    node: FakeNode, work: SimulatedRequest, body: bytes, fault: Fault | None, tongue: Tongue = _OWN
) -> Reply:
    request = server_requests.read_generate(body)
    model = _speaker(node, work, request.model, "generate")
    prompt = [request.prompt] if request.prompt else []
    voice = _Voice(request.model, server_responses.generate_part, _generate_final, tongue)
    return await _speak(node, work, model, request, prompt, voice, fault)


def _speaker(node: FakeNode, work: SimulatedRequest, name: str, what: str) -> FakeModel:
    if not name:
        raise Refusal(400, "model is required")
    model = node.find_model(name)
    if model.kind != "chat":
        raise server_responses.cannot(name, what)
    work.record.model = model.name
    return model


async def _speak(
    node: FakeNode,
    work: SimulatedRequest,
    model: FakeModel,
    request: server_requests.ChatAsked | server_requests.GenerateAsked,
    prompt: list[str],
    voice: _Voice,
    fault: Fault | None,
) -> Reply:
    if not prompt and request.keep_alive == 0:
        node.memory.unload(model.name)
        return voice.whole(voice.final(_now(), "unload"))
    load_seconds = await node.load(model, request)
    if not prompt:
        return voice.whole(voice.final(_now(), "load"))
    await work.acquire()
    said = _echo(prompt[-1], request.options)
    prompt_tokens = sum(map(fake_tokens, prompt))
    began = anyio.current_time()
    pace = Pace()
    await pace.pay(node.overhead + node.seconds_per_token * prompt_tokens)
    spoken = anyio.current_time()

    def final(content: str) -> dict[str, Any]:
        now = anyio.current_time()
        node.after(model, request)
        work.release()
        metrics = server_responses.ResponseTimings(
            total_duration=nanoseconds(now - work.record.at),
            load_duration=nanoseconds(load_seconds),
            prompt_eval_count=prompt_tokens,
            prompt_eval_duration=nanoseconds(spoken - began),
            eval_count=len(said.tokens),
            eval_duration=nanoseconds(now - spoken),
        )
        return voice.final(_now(), said.reason, metrics, content)

    if not request.stream:
        for _ in said.tokens:
            await pace.pay(node.seconds_per_chat_token)
        if fault is Fault.STREAM_ERROR:
            raise Refusal(500, server_responses.RUNNER_GONE)
        return voice.whole(final("".join(said.tokens)))
    reply = Reply(200, voice.tongue.content_type)
    reply.parts = _lines(node, reply, said.tokens, pace, voice, final, fault)
    return reply


async def _lines(
    node: FakeNode,
    reply: Reply,
    tokens: list[str],
    pace: Pace,
    voice: _Voice,
    final: Callable[[str], dict[str, Any]],
    fault: Fault | None,
) -> AsyncGenerator[bytes, None]:
    """A stream, spoiled half-way or at its end by faults."""
    middle = len(tokens) // 2
    spoils = fault in (Fault.STREAM_ERROR, Fault.STREAM_CUT, Fault.RESET)
    for number, token in enumerate(tokens):
        if spoils and number == middle:
            break
        await pace.pay(node.seconds_per_chat_token)
        if fault is Fault.SLOW_BODY:
            await anyio.sleep(node.seconds_per_piece)
        yield voice.part(_now(), token)
    if fault is Fault.STREAM_ERROR:
        yield voice.tongue.error(server_responses.RUNNER_GONE)
    elif not spoils:
        last = voice.tongue.part(final(""))
        reply.is_finished = True
        yield last[: len(last) // 2] if fault is Fault.CUT_JSON else last
    reply.is_finished = True


def _generate_final(
    model: str,
    now: str,
    reason: str,
    metrics: server_responses.ResponseTimings | None = None,
    content: str = "",
) -> dict[str, Any]:
    # Token ids mean nothing here, but clients that send them back need some.
    context = range(metrics.prompt_eval_count + metrics.eval_count) if metrics else ()
    return server_responses.generate_final(model, now, reason, metrics, content, context)


def _echo(prompt: str, options: Mapping[str, Any]) -> _Said:
    """The prompt's words as tokens, at most ``num_predict`` of them."""
    tokens = re.findall(r"\s*\S+", prompt.rstrip()) or ["..."]
    limit = options.get("num_predict")
    if isinstance(limit, int) and 0 <= limit < len(tokens):
        return _Said(tokens[:limit], "length")
    return _Said(tokens, "stop")


def _now() -> str:
    return server_responses.timestamp(time.time_ns())


# ---- OpenAI's and Anthropic's APIs


class _Foreign(Tongue):
    """Answers in the format of another API."""

    content_type = EVENT_STREAM

    def __init__(self, question: Question, stamp: Stamp) -> None:
        self._question = question
        self._stamp = stamp
        self._events = question.events(stamp)

    def whole(self, final: dict[str, Any]) -> HttpResponse:
        if self._question.stream:
            return HttpResponse(200, EVENT_STREAM, self._events.feed(final))
        return self._question.answer(final, self._stamp)

    def part(self, part: dict[str, Any]) -> bytes:
        return self._events.feed(part)

    def error(self, message: str) -> bytes:
        # Ollama's compatibility layer reads the error line as an empty part.
        return self._events.feed({})


def _handler(read: Callable[[bytes], Question]) -> _Handler:
    async def handle(
        node: FakeNode, work: SimulatedRequest, body: bytes, fault: Fault | None
    ) -> Reply:
        question = read(body)
        tongue = _Foreign(question, Stamp(str(node.requests), int(time.time())))
        answer = api_chat if question.path == "/api/chat" else api_generate
        return await answer(node, work, question.body, fault, tongue)

    return handle


FOREIGN_HANDLERS = {path: _handler(read) for path, read in READERS.items()}
