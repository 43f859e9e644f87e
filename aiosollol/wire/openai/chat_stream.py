"""The events of ``/v1/chat/completions`` and ``/v1/completions``, from the parts of an answer.

In the format of Ollama's middleware/openai.go: one `created` for the whole stream, the role in the
first chunk, the finish reason in a separate chunk. But an error in mid-stream, which that layer
turns into an empty chunk, is sent in the format that OpenAI's clients raise.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import orjson

from aiosollol.wire.ollama.server_responses import openai_error
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

_DONE = b"data: [DONE]\n\n"


def chat_id(stamp: Stamp) -> str:
    return f"chatcmpl-{stamp.unique}"


def completion_id(stamp: Stamp) -> str:
    return f"cmpl-{stamp.unique}"


def usage(reply: Mapping[str, Any]) -> dict[str, int]:
    """Token counts of an answer."""
    prompt, completion = count_of(reply, "prompt_eval_count"), count_of(reply, "eval_count")
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
    }


def tool_calls(calls: Sequence[Call], first: int = 0) -> list[dict[str, Any]]:
    """Tool calls in OpenAI's format, numbered from `first`."""
    return [
        {
            "id": call.id,
            "index": index,
            "type": "function",
            "function": {"name": call.name, "arguments": call.arguments},
        }
        for index, call in enumerate(calls, first)
    ]


class _OpenAIEvents(Events):
    def _error(self, message: str, status: int) -> bytes:
        return b"data: " + orjson.dumps(openai_error(status, message)) + b"\n\n"


class ChatEvents(_OpenAIEvents):
    """Chunks of a chat completion."""

    def __init__(self, stamp: Stamp, *, include_usage: bool = False) -> None:
        super().__init__()
        self._stamp = stamp
        self._include_usage = include_usage
        self._head = b""  # a chunk up to its choices; empty before the first
        self._calls = 0

    def _part(self, part: Mapping[str, Any]) -> bytes:
        message = message_of(part)
        text = text_of(message, "content")
        is_done = part.get("done") is True
        if self._head and text and not is_done and len(message) == 2 and "logprobs" not in part:
            # Almost every part is a role and a text.
            return b'%b{"index":0,"delta":{"content":%b},"finish_reason":null}]}\n\n' % (
                self._head,
                dumps(text),
            )
        chunks = self._content(part, message, text, is_done)
        return chunks + self._end(part) if is_done else chunks

    def _content(
        self, part: Mapping[str, Any], message: Mapping[str, Any], text: str, is_done: bool
    ) -> bytes:
        thinking, logprobs = text_of(message, "thinking"), part.get("logprobs")
        calls = calls_of(message, self._stamp.unique, self._calls)
        role = {} if self._head else {"role": "assistant"}
        if not self._head:
            self._head = self._begin(part)
        elif is_done and not (text or thinking or calls or logprobs):
            return b""
        said: dict[str, Any] = {"content": text}
        if thinking and not (text or calls):
            said["reasoning"] = thinking
        if calls:
            said["tool_calls"] = tool_calls(calls, self._calls)
            self._calls += len(calls)
        if thinking and (text or calls):
            # Thinking and text in one part: a chunk for each, the logprobs in the first.
            first = self._choice({**role, "reasoning": thinking}, None, logprobs)
            return first + self._choice(said)
        return self._choice({**role, **said}, None, logprobs)

    def _begin(self, part: Mapping[str, Any]) -> bytes:
        head = {
            "id": chat_id(self._stamp),
            "object": "chat.completion.chunk",
            "created": self._stamp.created,
            "model": text_of(part, "model"),
            "system_fingerprint": "fp_ollama",
        }
        return b"data: " + dumps(head)[:-1] + b',"choices":['

    def _choice(
        self, delta: dict[str, Any], reason: str | None = None, logprobs: Any = None
    ) -> bytes:
        choice: dict[str, Any] = {"index": 0, "delta": delta, "finish_reason": reason}
        if logprobs:
            choice["logprobs"] = {"content": logprobs}
        return self._head + dumps(choice) + b"]}\n\n"

    def _end(self, part: Mapping[str, Any]) -> bytes:
        reason = text_of(part, "done_reason") or "stop"
        end = self._choice({}, "tool_calls" if self._calls and reason == "stop" else reason)
        if self._include_usage:
            end += self._head + b'],"usage":' + orjson.dumps(usage(part)) + b"}\n\n"
        return end + _DONE


class CompletionEvents(_OpenAIEvents):
    """Chunks of a text completion."""

    def __init__(self, stamp: Stamp, *, include_usage: bool = False, echo: str = "") -> None:
        super().__init__()
        self._stamp = stamp
        self._include_usage = include_usage
        self._echo = echo
        head = {"id": completion_id(stamp), "object": "text_completion", "created": stamp.created}
        self._head = b"data: " + dumps(head)[:-1] + b',"choices":['
        self._tail = b""  # a chunk after its choices; empty before the first

    def _part(self, part: Mapping[str, Any]) -> bytes:
        if not self._tail:
            model = {"model": text_of(part, "model"), "system_fingerprint": "fp_ollama"}
            self._tail = b"]," + dumps(model)[1:-1]
        text, self._echo = self._echo + text_of(part, "response"), ""
        reason = text_of(part, "done_reason") or None
        nothing = usage({}) if self._include_usage else None
        chunk = self._chunk(dumps({"text": text, "index": 0, "finish_reason": reason}), nothing)
        if part.get("done") is not True:
            return chunk
        if self._include_usage:
            chunk += self._chunk(b"", usage(part))
        return chunk + _DONE

    def _chunk(self, choice: bytes, spent: dict[str, int] | None) -> bytes:
        more = b"" if spent is None else b',"usage":' + orjson.dumps(spent)
        return b"%b%b%b%b}\n\n" % (self._head, choice, self._tail, more)
