"""The events of ``/v1/responses``, from the parts of Ollama's answer.

In the format of Ollama's openai/responses.go (ResponsesStreamConverter), with the same key order.
An error in mid-stream, which Ollama loses, is sent as `response.failed`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import orjson

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

Describe = Callable[[Stamp, str, list[dict[str, Any]], dict[str, Any] | None], dict[str, Any]]


def reasoning_item(identity: str, thinking: str) -> dict[str, Any]:
    return {
        "id": identity,
        "type": "reasoning",
        "summary": [{"type": "summary_text", "text": thinking}],
        "encrypted_content": thinking,
    }


def message_item(identity: str, text: str) -> dict[str, Any]:
    return {
        "id": identity,
        "type": "message",
        "status": "completed",
        "role": "assistant",
        "content": [_text_part(text)],
    }


def call_item(identity: str, call: Call) -> dict[str, Any]:
    return {
        "id": identity,
        "type": "function_call",
        "status": "completed",
        "call_id": call.id,
        "name": call.name,
        "arguments": call.arguments,
    }


def response_usage(reply: Mapping[str, Any]) -> dict[str, Any]:
    """Token counts of an answer."""
    asked, said = count_of(reply, "prompt_eval_count"), count_of(reply, "eval_count")
    return {
        "input_tokens": asked,
        "output_tokens": said,
        "total_tokens": asked + said,
        "input_tokens_details": {"cached_tokens": 0},
        "output_tokens_details": {"reasoning_tokens": 0},
    }


def _text_part(text: str) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


class ResponseEvents(Events):
    """Events of a response. describe: builds the response object for an event."""

    def __init__(self, describe: Describe, stamp: Stamp) -> None:
        super().__init__()
        self._describe = describe
        self._stamp = stamp
        self._number = 0
        self._items: list[dict[str, Any]] = []  # completed items
        self._open = ""  # kind of the open item, "" if none
        self._said: list[str] = []
        self._delta_head = self._delta_middle = self._delta_tail = b""
        self._calls = 0

    def _part(self, part: Mapping[str, Any]) -> bytes:
        message = message_of(part)
        events = [] if self._number else [self._begin()]
        if thinking := text_of(message, "thinking"):
            events.append(self._think(thinking))
        calls = calls_of(message, self._stamp.unique, self._calls)
        events += [self._call(call) for call in calls]
        text = text_of(message, "content")
        if text and not self._calls:  # text next to tool calls is not for the client
            events.append(self._say(text))
        if part.get("done") is True:
            events.append(self._end(part))
        return b"".join(events)

    def _begin(self) -> bytes:
        response = self._describe(self._stamp, "in_progress", [], None)
        return self._event("response.created", response=response) + self._event(
            "response.in_progress", response=response
        )

    # ---- reasoning

    def _think(self, thinking: str) -> bytes:
        events = b""
        if self._open != "reasoning":
            events = self._close()
            self._open = "reasoning"
            item = {"id": self._id("rs"), "type": "reasoning", "summary": []}
            events += self._event("response.output_item.added", output_index=self._at, item=item)
            place = {"item_id": self._id("rs"), "summary_index": 0}
            self._prepare("response.reasoning_summary_text.delta", **place)
        return events + self._delta(thinking)

    def _end_reasoning(self, thinking: str) -> bytes:
        event = self._event(
            "response.reasoning_summary_text.done",
            item_id=self._id("rs"),
            output_index=self._at,
            summary_index=0,
            text=thinking,
        )
        return event + self._done(reasoning_item(self._id("rs"), thinking))

    # ---- text

    def _say(self, text: str) -> bytes:
        events = b""
        if self._open != "message":
            events = self._close()
            self._open = "message"
            item = {**message_item(self._id("msg"), ""), "status": "in_progress", "content": []}
            events += self._event("response.output_item.added", output_index=self._at, item=item)
            events += self._text_event("response.content_part.added", part=_text_part(""))
            place = {"item_id": self._id("msg"), "content_index": 0, "logprobs": []}
            self._prepare("response.output_text.delta", **place)
        return events + self._delta(text)

    def _end_message(self, text: str) -> bytes:
        events = self._text_event("response.output_text.done", text=text, logprobs=[])
        events += self._text_event("response.content_part.done", part=_text_part(text))
        return events + self._done(message_item(self._id("msg"), text))

    def _text_event(self, kind: str, **data: Any) -> bytes:
        item = {"item_id": self._id("msg"), "output_index": self._at, "content_index": 0}
        return self._event(kind, **item, **data)

    # ---- deltas: one for almost every part

    def _prepare(self, kind: str, **data: Any) -> None:
        """Prepare the deltas of the opened item, except their text and number."""
        event = {"type": kind, "delta": "", "sequence_number": 0, "output_index": self._at, **data}
        before, delta, rest = dumps(event, orjson.OPT_SORT_KEYS).partition(b'"delta":')
        between, number, after = rest.removeprefix(b'""').partition(b'"sequence_number":')
        self._delta_head = b"event: %b\ndata: %b%b" % (kind.encode(), before, delta)
        self._delta_middle = between + number
        self._delta_tail = after.removeprefix(b"0") + b"\n\n"

    def _delta(self, text: str) -> bytes:
        self._said.append(text)
        self._number += 1
        return b"%b%b%b%d%b" % (
            self._delta_head,
            dumps(text),
            self._delta_middle,
            self._number - 1,
            self._delta_tail,
        )

    # ---- calls

    def _call(self, call: Call) -> bytes:
        events = self._close()
        self._calls += 1
        item = call_item(self._id("fc"), call)
        place = {"item_id": item["id"], "output_index": self._at}
        begun = {**item, "status": "in_progress", "arguments": ""}
        arguments = "response.function_call_arguments"
        events += self._event("response.output_item.added", output_index=self._at, item=begun)
        events += self._event(f"{arguments}.delta", **place, delta=call.arguments)
        events += self._event(f"{arguments}.done", **place, arguments=call.arguments)
        return events + self._done(item)

    # ---- the end

    def _end(self, part: Mapping[str, Any]) -> bytes:
        events = self._close()
        usage = response_usage(part)
        response = self._describe(self._stamp, "completed", self._items, usage)
        seconds = count_of(part, "total_duration") // 1_000_000_000
        response["completed_at"] = self._stamp.created + seconds
        return events + self._event("response.completed", response=response)

    def _error(self, message: str, status: int) -> bytes:
        events = b"" if self._number else self._begin()
        response = self._describe(self._stamp, "failed", self._items, None)
        code = "rate_limit_exceeded" if status == 429 else "server_error"
        response["error"] = {"code": code, "message": message}
        return events + self._event("response.failed", response=response)

    # ---- items and events

    @property
    def _at(self) -> int:
        return len(self._items)

    def _id(self, kind: str) -> str:
        """The id of the open item, or the next one."""
        number = f"_{self._at}" if self._at else ""
        return f"{kind}_{self._stamp.unique}{number}"

    def _close(self) -> bytes:
        """End the open item, if there is one."""
        kind, self._open = self._open, ""
        if not kind:
            return b""
        said = "".join(self._said)
        self._said = []
        return self._end_message(said) if kind == "message" else self._end_reasoning(said)

    def _done(self, item: dict[str, Any]) -> bytes:
        event = self._event("response.output_item.done", output_index=self._at, item=item)
        self._items.append(item)
        return event

    def _event(self, kind: str, **data: Any) -> bytes:
        data |= {"type": kind, "sequence_number": self._number}
        self._number += 1
        return b"event: %b\ndata: %b\n\n" % (kind.encode(), dumps(data, orjson.OPT_SORT_KEYS))
