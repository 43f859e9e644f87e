"""Anthropic's ``/v1/messages`` on top of Ollama's API.

Requests and answers are converted as in Ollama's own compatibility layer
(anthropic/anthropic.go, middleware/anthropic.go; examples in tests/captures), except that documents
are refused instead of ignored, `tool_choice: none` is respected, and web search, which that layer
sends to ollama.com, is not offered to the model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import orjson

from aiosollol.wire import translation
from aiosollol.wire.anthropic.message_stream import (
    MessageEvents,
    error_of,
    message_id,
    stop_reason,
    usage,
)
from aiosollol.wire.json_fields import Fields, early
from aiosollol.wire.ollama import server_responses
from aiosollol.wire.ollama.server_requests import Refusal
from aiosollol.wire.ollama.server_responses import HttpResponse
from aiosollol.wire.translation import (
    Events,
    Question,
    Stamp,
    calls_of,
    dumps,
    message_of,
    text_of,
)

PATH = "/v1/messages"
COUNT_PATH = f"{PATH}/count_tokens"


def refuse(refusal: Refusal, unique: str) -> HttpResponse:
    """An error in Anthropic's format. unique: part of the request's id."""
    value = {**error_of(refusal.status, refusal.message), "request_id": f"req_{unique}"}
    kind = server_responses.API_JSON if refusal.is_early else server_responses.OPENAI_JSON
    return HttpResponse(refusal.status, kind, orjson.dumps(value))


class MessageQuestion(Question):
    """A request to ``/v1/messages``, converted to ``/api/chat``.

    estimate: estimated number of prompt tokens, for the first event of a stream: the exact number
        is known only at its end.
    """

    can_drop_think = True

    def __init__(self, payload: dict[str, Any], estimate: int) -> None:
        super().__init__("/api/chat", payload)
        self.estimate = estimate

    def answer(self, reply: Mapping[str, Any], stamp: Stamp) -> HttpResponse:
        message = message_of(reply)
        content: list[dict[str, Any]] = []
        if thinking := text_of(message, "thinking"):
            content.append({"type": "thinking", "thinking": thinking})
        if text := text_of(message, "content"):
            content.append({"type": "text", "text": text})
        calls = calls_of(message, stamp.unique)
        content += [
            {
                "type": "tool_use",
                "id": call.id,
                "name": call.name,
                "input": orjson.Fragment(call.arguments),
            }
            for call in calls
        ]
        reason = stop_reason(text_of(reply, "done_reason"), has_calls=bool(calls))
        value = {
            "id": message_id(stamp),
            "type": "message",
            "role": "assistant",
            "model": text_of(reply, "model"),
            "content": content,
            **({"stop_reason": reason} if reason else {}),
            "usage": usage(reply),
        }
        return HttpResponse(200, server_responses.OPENAI_JSON, dumps(value))

    def events(self, stamp: Stamp) -> Events:
        return MessageEvents(stamp, self.model, self.estimate)


def read_messages(body: bytes) -> MessageQuestion:
    """Read a request to ``/v1/messages``. Raises Refusal."""
    fields = Fields.read(body, "MessagesRequest")
    model, limit = fields.text("model"), fields.integer("max_tokens") or 0
    if not model:
        raise early("model is required")
    if limit <= 0:
        raise early("max_tokens is required and must be positive")
    messages, tools, estimate = _prompt(fields)
    offered = [] if _forbids_tools(fields) else [tool for tool in map(_tool, tools) if tool]
    options = {
        "num_predict": limit,
        "temperature": fields.number("temperature"),
        "top_p": fields.number("top_p"),
        "top_k": fields.integer("top_k"),
        "stop": fields.texts("stop_sequences") or None,
    }
    think = _think(fields)
    payload = {
        "model": model,
        "messages": messages,
        "stream": fields.boolean("stream"),
        "options": {name: value for name, value in options.items() if value is not None},
        **({"tools": offered} if offered else {}),
        **({} if think is None else {"think": think}),
    }
    return MessageQuestion(payload, estimate)


def count_tokens(body: bytes) -> tuple[str, int]:
    """The model of a request to ``/v1/messages/count_tokens``, and the estimated number of its
    tokens. Raises Refusal.
    """
    fields = Fields.read(body, "CountTokensRequest")
    model = fields.text("model")
    if not model:
        raise early("model is required")
    _, _, estimate = _prompt(fields)
    return model, estimate


def token_count(estimate: int) -> HttpResponse:
    """The answer to ``/v1/messages/count_tokens``."""
    value = {"input_tokens": estimate, "estimated": True}
    return HttpResponse(200, server_responses.OPENAI_JSON, orjson.dumps(value))


def _prompt(fields: Fields) -> tuple[list[dict[str, Any]], Sequence[Fields], int]:
    """The messages for /api/chat, the tools, and an estimate of their tokens: four bytes each."""
    entries = fields.each("messages")
    if not entries:
        raise early("messages is required")
    system = _system(fields)
    messages = [{"role": "system", "content": system}] if system else []
    length = len(system.encode())
    for entry in entries:
        converted, size = _messages(entry)
        messages += converted
        length += size
    tools = fields.each("tools")
    length += sum(map(_tool_length, tools))
    return messages, tools, max(1, length // 4)


def _system(fields: Fields) -> str:
    """The system prompt: a string, or text blocks joined."""
    if not isinstance(fields.any("system"), list):
        return fields.text("system")
    return "".join(
        block.text("text") for block in fields.each("system") if block.text("type") == "text"
    )


def _think(fields: Fields) -> str | bool | None:
    thinking, output = fields.inside("thinking"), fields.inside("output_config")
    switch = {"enabled": True, "disabled": False}.get(thinking.text("type") if thinking else "")
    effort = output.text("effort").strip().lower() if output else ""
    effort = {"xhigh": "high"}.get(effort, effort)
    if switch is None and effort in ("low", "medium", "high", "max"):
        return effort
    return switch


# ---- messages


def _messages(entry: Fields) -> tuple[list[dict[str, Any]], int]:
    """Ollama's messages for one message, and its length in bytes.

    Each tool result becomes a message of its own. Ollama estimates tokens from the length.
    """
    role = entry.text("role").lower()
    length = len(role)
    if isinstance(entry.any("content"), str):
        text = entry.text("content")
        return ([{"role": role, "content": text}] if text else []), length + len(text.encode())
    if entry.any("content") is None:
        raise early(f"content is required: {entry.path}")
    said: dict[str, Any] = {"role": role, "content": ""}
    results: list[dict[str, Any]] = []
    for block in entry.each("content"):
        length += _take(block, said, results)
    messages = [said] if len(said) > 2 or said["content"] else []
    if role == "user":
        return results + messages, length
    return messages + results, length


def _take(block: Fields, said: dict[str, Any], results: list[dict[str, Any]]) -> int:
    """Add a block to a message or to the tool results. Returns its length."""
    match block.text("type"):
        case "text":
            said["content"] += block.text("text")
            return len(block.text("text").encode())
        case "thinking":
            if thinking := block.text("thinking"):
                said["thinking"] = thinking
            return len(thinking.encode())
        case "image":
            source = block.inside("source")
            if source is None:
                raise early("invalid image source")
            said.setdefault("images", []).append(_image(source))
            return 0
        case "tool_use" | "server_tool_use" as kind:
            for name in ("id", "name"):
                if kind == "tool_use" and not block.text(name):
                    raise early(f"tool_use block missing required '{name}' field")
            function = {"name": block.text("name"), "arguments": block.mapping("input") or {}}
            call = {"id": block.text("id"), "function": function}
            said.setdefault("tool_calls", []).append(call)
        case "tool_result":
            results.append({"role": "tool", **_result(block)})
        case "web_search_tool_result":
            found = {"content": _found(block), "tool_call_id": block.text("tool_use_id")}
            results.append({"role": "tool", **found})
            return 0
        case "document":
            raise early("document blocks are not supported: send their text instead")
        case _:
            return 0  # Ollama ignores unknown blocks, such as redacted thinking
    return _length(block.values)


def _image(source: Fields) -> str:
    if source.text("type") != "base64":
        kind = source.text("type")
        raise early(f"invalid image source type: {kind}. Only base64 images are supported.")
    return translation.checked(source.text("data"), "invalid base64 image data")


def _result(block: Fields) -> dict[str, Any]:
    """A tool result: a string, or text and image blocks."""
    content = block.any("content")
    shown: list[str] = []
    if isinstance(content, list):
        text = ""
        for item in block.each("content"):
            if item.text("type") == "text":
                text += item.text("text")
            elif item.text("type") == "image":
                source = item.inside("source")
                if source is None:
                    raise early("invalid tool_result image source")
                shown.append(_image(source))
    else:
        text = block.text("content")
    call_id = block.text("tool_use_id")
    return {
        "content": text,
        **({"images": shown} if shown else {}),
        **({"tool_call_id": call_id} if call_id else {}),
    }


def _found(block: Fields) -> str:
    """The text of an earlier web search's results."""
    if not isinstance(block.any("content"), list):
        found = block.inside("content")
        return f"web_search_tool_result_error: {found.text('error_code')}" if found else ""
    return "".join(
        f"- {item.text('title')}: {item.text('url')}\n"
        for item in block.each("content")
        if item.text("type") == "web_search_result"
    )


# ---- tools


def _forbids_tools(fields: Fields) -> bool:
    choice = fields.inside("tool_choice")
    return choice is not None and choice.text("type") == "none"


def _tool(tool: Fields) -> dict[str, Any] | None:
    """A tool for /api/chat; None for a tool that the server would have to run."""
    if tool.text("type").startswith("web_search"):
        return None
    if not tool.text("name"):
        raise early(f"a tool must have a name: {tool.path}")
    function = {
        "name": tool.text("name"),
        "description": tool.text("description"),
        "parameters": tool.mapping("input_schema") or {"type": "object", "properties": {}},
    }
    return {"type": "function", "function": function}


def _tool_length(tool: Fields) -> int:
    schema = tool.mapping("input_schema")
    words = tool.text("name") + tool.text("description")
    return len(words.encode()) + (_length(schema) if schema else 0)


def _length(values: Mapping[str, Any] | Sequence[Any]) -> int:
    try:
        return len(orjson.dumps(values))
    except TypeError as error:
        raise early(f"the request cannot be sent as JSON: {error}") from error
