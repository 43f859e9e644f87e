"""The input of ``/v1/responses``, from OpenAI's items to Ollama's messages.

As Ollama's openai/responses.go (FromResponsesRequest) has it: calls join the message before them,
reasoning waits for the message after it.
"""

from __future__ import annotations

from typing import Any

from aiosollol.wire import images
from aiosollol.wire.asked import Refusal
from aiosollol.wire.fields import Fields, early
from aiosollol.wire.gojson import kind_of, quoted
from aiosollol.wire.openai_messages import read_arguments


def read_input(fields: Fields) -> list[dict[str, Any]]:
    """Messages for /api/chat, from `instructions` and `input`. Raises Refusal."""
    instructions, given = fields.text("instructions"), fields.any("input")
    messages = [{"role": "system", "content": instructions}] if instructions else []
    if isinstance(given, str):
        return [*messages, {"role": "user", "content": given}] if given else messages
    if given is not None and not isinstance(given, list):
        raise early(f"input must be a string or array: it is {kind_of(given)}")
    history = _History(messages)
    items = [_item(item, f"input[{index}]") for index, item in enumerate(given or ())]
    for item, after in zip(items, [*items[1:], None], strict=False):
        history.add(item, after)
    return history.finish()


def _item(item: Any, path: str) -> Fields:
    if not isinstance(item, dict):
        raise early(f"{path}: cannot unmarshal {kind_of(item)} into an input item")
    return Fields(item, path)


def _kind(item: Fields) -> str:
    kind = item.text("type")
    return "message" if not kind and item.text("role") else kind


class _History:
    """The messages so far, and the thinking that belongs to the next of the model's own."""

    def __init__(self, messages: list[dict[str, Any]]) -> None:
        self._messages = messages
        self._thinking = ""

    def add(self, item: Fields, after: Fields | None) -> None:
        match _kind(item):
            case "message":
                self._message(item, after)
            case "function_call":
                self._call(item)
            case "function_call_output":
                self._messages.append(
                    {"role": "tool", **_content(item, "output"), **_call_id(item)}
                )
            case "reasoning":
                self._thinking = item.text("encrypted_content")
            case "web_search_call":
                pass  # what it found is in the message that follows
            case "":
                raise early(f"{item.path}: input item missing required 'type' field")
            case kind:
                raise early(f"{item.path}: unknown input item type: {quoted(kind)}")

    def finish(self) -> list[dict[str, Any]]:
        if self._thinking:
            self._messages.append({"role": "assistant", "content": "", **self._thought()})
        return self._messages

    def _message(self, item: Fields, after: Fields | None) -> None:
        message = {"role": item.text("role"), **_content(item, "content")}
        if message["role"] == "assistant":
            message.update(self._thought())
            if after is not None and _kind(after) == "function_call_output":
                call = self._caller(after.text("call_id"))
                if call is not None:
                    # What a model says between a call and its result goes with the call.
                    _join(call, message)
                    return
        self._messages.append(message)

    def _call(self, item: Fields) -> None:
        problem = f"{item.path}: failed to parse function call arguments"
        arguments = read_arguments(item.text("arguments"), problem)
        function = {"name": item.text("name"), "arguments": arguments}
        if not self._messages or self._messages[-1]["role"] != "assistant":
            self._messages.append({"role": "assistant", "content": ""})
        caller = self._messages[-1]
        caller.update(self._thought())
        caller.setdefault("tool_calls", []).append(
            {"id": item.text("call_id"), "function": function}
        )

    def _caller(self, call_id: str) -> dict[str, Any] | None:
        """The last message, if it makes that call."""
        last = self._messages[-1] if self._messages else {}
        is_it = call_id and any(call["id"] == call_id for call in last.get("tool_calls", ()))
        return last if is_it else None

    def _thought(self) -> dict[str, str]:
        thinking, self._thinking = self._thinking, ""
        return {"thinking": thinking} if thinking else {}


def _join(call: dict[str, Any], message: dict[str, Any]) -> None:
    call["content"] = "\n".join(filter(None, (call["content"], message["content"])))
    if "images" in message:
        call["images"] = call.get("images", []) + message["images"]
    if "thinking" in message:
        call["thinking"] = message["thinking"]


def _call_id(item: Fields) -> dict[str, str]:
    call_id = item.text("call_id")
    return {"tool_call_id": call_id} if call_id else {}


def _content(item: Fields, name: str) -> dict[str, Any]:
    """A content: a string, or parts, of which the texts are joined."""
    given = item.any(name)
    if given is None or isinstance(given, str):
        return {"content": given or ""}
    if not isinstance(given, list):
        raise early(f"{item.path}: {name} must be a string or array: it is {kind_of(given)}")
    text: list[str] = []
    shown: list[str] = []
    for index, part in enumerate(given):
        path = f"{item.path}: {name}[{index}]"
        try:
            _take(_item(part, path), text, shown)
        except Refusal as refusal:
            if path in refusal.message:
                raise
            raise early(f"{path}: {refusal.message}") from refusal
    return {"content": "".join(text), **({"images": shown} if shown else {})}


def _take(part: Fields, text: list[str], shown: list[str]) -> None:
    match part.text("type"):
        case "input_text" | "output_text":
            text.append(part.text("text"))
        case "input_image":
            if url := part.text("image_url"):  # one that is a file's id cannot be had
                shown.append(images.from_url(url))
        case "input_file":
            raise early("file inputs are not currently supported")
        case kind:
            raise early(f"unknown content type: {kind}")
