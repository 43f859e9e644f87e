"""Messages and tools of a chat, from OpenAI's format to Ollama's.

As in Ollama's openai/openai.go (FromChatRequest), so that the model gets the same input: each part
of a content becomes its own message. Unlike there, the parts of a tool result stay together, to
keep the id of their call.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from aiosollol.wire import translation
from aiosollol.wire.json_fields import Fields, early
from aiosollol.wire.ollama.go_json import GoJSONError, loads_whole, quoted

_INVALID = "invalid message format"
_GO_TYPES = {bool: "bool", int: "float64", float: "float64", dict: "map[string]interface {}"}


def read_messages(entries: Sequence[Fields]) -> list[dict[str, Any]]:
    """Messages for /api/chat. Raises Refusal."""
    calls = [_calls(entry) for entry in entries]
    names = {call["id"]: call["function"]["name"] for made in calls for call in made}
    messages: list[dict[str, Any]] = []
    for entry, made in zip(entries, calls, strict=True):
        messages += _messages(entry, made, names)
    return messages


def _messages(
    entry: Fields, calls: list[dict[str, Any]], names: Mapping[str, str]
) -> list[dict[str, Any]]:
    """One message, or one for each part of its content."""
    role = entry.text("role")
    is_result = role.lower() == "tool"
    content = entry.any("content")
    if isinstance(content, str):
        messages = [{"role": role, "content": content}]
    elif isinstance(content, list):
        messages = [{"role": role, **_part(part)} for part in content]
        if is_result:
            messages = [_joined(role, messages)]
        elif calls and not messages:
            messages = [{"role": role, "content": ""}]
    elif content is None and calls:
        messages = [{"role": role, "content": ""}]
    else:
        raise early(f"invalid message content type: {_GO_TYPES.get(type(content), '<nil>')}")
    call_id = entry.text("tool_call_id")
    more: dict[str, Any] = {
        "thinking": entry.text("reasoning"),
        "tool_calls": calls,
        "tool_name": (entry.text("name") or names.get(call_id, "")) if is_result else "",
        "tool_call_id": call_id,
    }
    if messages:
        messages[-1].update((key, value) for key, value in more.items() if value)
    return messages


def _part(part: Any) -> dict[str, Any]:
    """A content part: text, an image, or audio, which Ollama accepts as an image."""
    if not isinstance(part, dict):
        raise early(_INVALID)
    kind = part.get("type")
    if kind == "text":
        if not isinstance(part.get("text"), str):
            raise early(_INVALID)
        return {"content": part["text"]}
    if kind == "image_url":
        url = part.get("image_url")
        url = url.get("url") if isinstance(url, dict) else url
        if not isinstance(url, str):
            raise early(_INVALID)
        return {"content": "", "images": [translation.from_url(url)]}
    if kind == "input_audio":
        sound = part.get("input_audio")
        if not isinstance(sound, dict):
            raise early("invalid input_audio format")
        if not isinstance(sound.get("data"), str):
            raise early("invalid input_audio format: missing data")
        data = translation.checked(sound["data"], "invalid input_audio base64 data")
        return {"content": "", "images": [data]}
    raise early(_INVALID)


def _joined(role: str, messages: list[dict[str, Any]]) -> dict[str, Any]:
    shown = [image for message in messages for image in message.get("images", ())]
    content = "".join(message["content"] for message in messages)
    return {"role": role, "content": content, **({"images": shown} if shown else {})}


def _calls(entry: Fields) -> list[dict[str, Any]]:
    """The model's tool calls earlier in the conversation."""
    calls = []
    for call in entry.each("tool_calls"):
        function = call.inside("function") or Fields({}, call.path)
        arguments = read_arguments(function.text("arguments"), "invalid tool call arguments")
        made = {"name": function.text("name"), "arguments": arguments}
        calls.append({"id": call.text("id"), "function": made})
    return calls


def read_arguments(text: str, problem: str) -> dict[str, Any]:
    """The arguments of a call, given as a JSON string. Raises Refusal with `problem`."""
    if not text.strip():
        return {}
    try:
        arguments = loads_whole(text.encode())
    except GoJSONError as error:
        raise early(problem) from error
    if not isinstance(arguments, dict):
        raise early(problem)
    return arguments


def read_tools(entries: Sequence[Fields]) -> list[dict[str, Any]]:
    """Tools for /api/chat, which uses OpenAI's format. Raises Refusal."""
    for entry in entries:
        function = entry.inside("function")
        if function is None or not function.text("name"):
            raise early(f"a tool must be a function with a name: {entry.path}")
        function.text("description")
        function.mapping("parameters")
    return [dict(entry.values) for entry in entries]


_EFFORTS: dict[str, str | bool | None] = {
    "": None,
    "none": False,
    "minimal": "low",
    "low": "low",
    "medium": "medium",
    "high": "high",
    "max": "max",
    "xhigh": "max",
    "ultra": "max",
}


def think_of(effort: str) -> str | bool | None:
    """Ollama's `think` for OpenAI's effort, None for the model's default. Raises Refusal."""
    if effort not in _EFFORTS:
        raise early(
            f'invalid reasoning value: {quoted(effort)} (must be "minimal", "low", "medium", '
            '"high", "xhigh", "ultra", "max", or "none")'
        )
    return _EFFORTS[effort]
