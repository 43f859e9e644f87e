"""The events of ``/v1/messages``, from the parts of Ollama's answer.

In the format of Ollama's anthropic/anthropic.go (StreamConverter): one content block for each run
of text, one for thinking, one for each tool call. An error in mid-stream, which Ollama loses, is
sent in the format that Anthropic's clients raise.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from aiosollol.wire.translation import (
    Call,
    Events,
    Stamp,
    calls_of,
    count_of,
    dumps,
    message_of,
    text_of,
)

_KINDS = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    529: "overloaded_error",
}


def message_id(stamp: Stamp) -> str:
    return f"msg_{stamp.unique}"


def error_of(status: int, message: str) -> dict[str, Any]:
    """An error in Anthropic's format."""
    kind = _KINDS.get(status, "api_error")
    return {"type": "error", "error": {"type": kind, "message": message}}


def usage(reply: Mapping[str, Any]) -> dict[str, int]:
    """Token counts of an answer."""
    return {
        "input_tokens": count_of(reply, "prompt_eval_count"),
        "output_tokens": count_of(reply, "eval_count"),
    }


def stop_reason(reason: str, *, has_calls: bool) -> str:
    """Anthropic's stop reason for Ollama's `done_reason`; "" if that is missing."""
    if has_calls:
        return "tool_use"
    return {"": "", "stop": "end_turn", "length": "max_tokens"}.get(reason, "stop_sequence")


class MessageEvents(Events):
    """Events of a message. estimate: number of prompt tokens to report in the first event."""

    def __init__(self, stamp: Stamp, model: str, estimate: int) -> None:
        super().__init__()
        self._stamp = stamp
        self._model = model
        self._estimate = estimate
        self._has_begun = False
        self._open = ""  # kind of the open block, "" if none
        self._index = 0
        self._delta = b""  # beginning of the open block's deltas, up to the text
        self._sent: set[str] = set()

    def _part(self, part: Mapping[str, Any]) -> bytes:
        message = message_of(part)
        text, thinking = text_of(message, "content"), text_of(message, "thinking")
        events = []
        if not self._has_begun:
            events.append(self._begin(part))
        if thinking:
            events.append(self._say("thinking", thinking))
        if text:
            events.append(self._say("text", text))
        if "tool_calls" in message:
            calls = calls_of(message, self._stamp.unique, len(self._sent))
            events += [self._call(call) for call in calls if call.id not in self._sent]
        if part.get("done") is True:
            events.append(self._end(part))
        return events[0] if len(events) == 1 else b"".join(events)

    def _begin(self, part: Mapping[str, Any]) -> bytes:
        self._has_begun = True
        tokens = count_of(part, "prompt_eval_count") or self._estimate
        message = {
            "id": message_id(self._stamp),
            "type": "message",
            "role": "assistant",
            "model": self._model,
            "content": [],
            "usage": {"input_tokens": tokens, "output_tokens": 0},
        }
        return _event({"type": "message_start", "message": message})

    def _say(self, kind: str, text: str) -> bytes:
        events = b""
        if self._open != kind:
            events = self._close()
            self._open = kind
            events += self._start({"type": kind, kind: ""})
            head = (
                f'{{"type":"content_block_delta","index":{self._index},'
                f'"delta":{{"type":"{kind}_delta","{kind}":'
            )
            self._delta = b"event: content_block_delta\ndata: " + head.encode()
        return events + self._delta + dumps(text) + b"}}\n\n"

    def _call(self, call: Call) -> bytes:
        events = self._close()
        self._sent.add(call.id)
        block = {"type": "tool_use", "id": call.id, "name": call.name, "input": {}}
        delta = {"type": "input_json_delta", "partial_json": call.arguments}
        event = {"type": "content_block_delta", "index": self._index, "delta": delta}
        events += self._start(block) + _event(event)
        self._open = "tool_use"
        return events + self._close()

    def _start(self, block: dict[str, Any]) -> bytes:
        return _event({"type": "content_block_start", "index": self._index, "content_block": block})

    def _close(self) -> bytes:
        if not self._open:
            return b""
        self._open = ""
        self._index += 1
        return _event({"type": "content_block_stop", "index": self._index - 1})

    def _end(self, part: Mapping[str, Any]) -> bytes:
        reason = stop_reason(text_of(part, "done_reason"), has_calls=bool(self._sent))
        delta = {"stop_reason": reason} if reason else {}
        events = self._close()
        events += _event({"type": "message_delta", "delta": delta, "usage": usage(part)})
        return events + _event({"type": "message_stop"})

    def _error(self, message: str, status: int) -> bytes:
        return _event(error_of(status, message))


def _event(value: dict[str, Any]) -> bytes:
    """A server-sent event, named after its type."""
    return b"event: %b\ndata: %b\n\n" % (value["type"].encode(), dumps(value))
