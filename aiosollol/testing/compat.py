"""The endpoints of a fake node that speak OpenAI's and Anthropic's APIs: chat in other tongues.

Faults strike them as they strike Ollama's own layer, which passes over an error in mid-stream.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

from aiosollol.testing.fault import Fault
from aiosollol.testing.reply import Reply, Work
from aiosollol.testing.speaking import Tongue, api_chat, api_generate
from aiosollol.wire.answers import Answer
from aiosollol.wire.dialect import EVENT_STREAM, Question, Stamp
from aiosollol.wire.dialects import READERS

if TYPE_CHECKING:
    from aiosollol.testing.node import FakeNode

_Handler = Callable[["FakeNode", Work, bytes, Fault | None], Awaitable[Reply]]


class _Foreign(Tongue):
    """Answers as the client of another API expects them."""

    content_type = EVENT_STREAM

    def __init__(self, question: Question, stamp: Stamp) -> None:
        self._question = question
        self._stamp = stamp
        self._events = question.events(stamp)

    def whole(self, final: dict[str, Any]) -> Answer:
        if self._question.stream:
            return Answer(200, EVENT_STREAM, self._events.feed(final))
        return self._question.answer(final, self._stamp)

    def part(self, part: dict[str, Any]) -> bytes:
        return self._events.feed(part)

    def error(self, message: str) -> bytes:
        # Ollama's layer reads the line with the error as a part in which nothing stands.
        return self._events.feed({})


def _handler(read: Callable[[bytes], Question]) -> _Handler:
    async def handle(node: FakeNode, work: Work, body: bytes, fault: Fault | None) -> Reply:
        question = read(body)
        tongue = _Foreign(question, Stamp(str(node.requests), int(time.time())))
        answer = api_chat if question.path == "/api/chat" else api_generate
        return await answer(node, work, question.body, fault, tongue)

    return handle


HANDLERS = {path: _handler(read) for path, read in READERS.items()}
