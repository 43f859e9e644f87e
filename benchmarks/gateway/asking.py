"""What is asked: requests as bytes, each with a number in it, so that no two are the same."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from benchmarks.client.bodies import CHAT_MODEL, MODEL

PLACE = "0123456789"
"""Stands for the number, and is as long as every number is written."""


@dataclass(frozen=True, slots=True)
class Question:
    """A POST of JSON. fields: in a text of them stands `PLACE`, for the number of the request."""

    path: str
    fields: Mapping[str, Any]

    def parts(self, key: str) -> tuple[bytes, bytes]:
        """What stands before and after the ten digits of the number."""
        body = json.dumps(self.fields, separators=(",", ":"))
        head = (
            f"POST {self.path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            f"Authorization: Bearer {key}\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        before, after = (head + body).split(PLACE)
        return before.encode(), after.encode()

    def whole(self, key: str, number: int) -> bytes:
        before, after = self.parts(key)
        return b"%s%010d%s" % (before, number, after)


_TEXT = f"a short text to embed, number {PLACE}"
_MESSAGES = [{"role": "user", "content": f"Tell me of words, number {PLACE}."}]

# With keep_alive, as many clients send it, single texts are passed on and not gathered into lists.
EMBED = Question("/api/embed", {"model": MODEL, "input": _TEXT, "keep_alive": "5m"})
LONE_TEXT = Question("/api/embed", {"model": MODEL, "input": _TEXT})
OPENAI_EMBED = Question("/v1/embeddings", {"model": MODEL, "input": _TEXT})
WHOLE_CHAT = Question("/api/chat", {"model": CHAT_MODEL, "messages": _MESSAGES, "stream": False})


def chat(parts: int) -> Question:
    """A streamed chat of so many parts and a last line."""
    fields = {"model": CHAT_MODEL, "messages": _MESSAGES, "options": {"num_predict": parts}}
    return Question("/api/chat", fields)


def openai_chat(parts: int) -> Question:
    fields = {"model": CHAT_MODEL, "messages": _MESSAGES, "max_tokens": parts, "stream": True}
    return Question("/v1/chat/completions", fields)
