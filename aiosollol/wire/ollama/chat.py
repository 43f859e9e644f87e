"""Client side of ``/api/chat`` and ``/api/generate``."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from aiosollol.core.reply import ChatReply, GeneratedText
from aiosollol.errors import InvalidInput, NodeError, RunnerFailed, StreamCutOff
from aiosollol.wire.ollama.client import error_for, error_message, load


def messages_to_send(messages: object) -> list[dict[str, Any]]:
    """Messages in the server's format: a list of objects, images in base64.

    A message may be a mapping or anything that converts to one (a `ChatReply`'s message, a message
    object of another client library). Raises InvalidInput.
    """
    if messages is None:
        return []
    if isinstance(messages, str | bytes | Mapping) or not isinstance(messages, Iterable):
        raise InvalidInput(
            'messages must be a list like [{"role": "user", "content": "..."}], '
            f"not {type(messages).__name__}"
        )
    return [_message(message, index) for index, message in enumerate(messages)]


def _message(message: object, index: int) -> dict[str, Any]:
    if hasattr(message, "model_dump"):
        message = message.model_dump(exclude_none=True)
    if not isinstance(message, Mapping):
        raise InvalidInput(f"message {index} must be a mapping, not {type(message).__name__}")
    fields = {key: _plain(value) for key, value in message.items()}
    if not isinstance(fields.get("role"), str):
        raise InvalidInput(f"message {index} has no 'role'; give 'user', 'assistant' or 'system'")
    if fields.get("images") is not None:
        fields["images"] = images_to_send(fields["images"])
    return fields


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value


def images_to_send(images: object) -> list[str]:
    """Images as base64 text. Each is bytes, or already base64 text."""
    if not isinstance(images, Sequence) or isinstance(images, str | bytes):
        raise InvalidInput("images must be a list of bytes or base64 strings")
    encoded = []
    for index, image in enumerate(images):
        if isinstance(image, bytes | bytearray | memoryview):
            encoded.append(b64encode(image).decode("ascii"))
        elif isinstance(image, str):
            encoded.append(image)
        else:
            raise InvalidInput(
                f"image {index} must be bytes or a base64 string, not {type(image).__name__}"
            )
    return encoded


def tools_to_send(tools: object) -> list[Any] | None:
    """Tools in the server's format: JSON objects, from mappings or pydantic models."""
    if tools is None:
        return None
    if isinstance(tools, str | bytes | Mapping) or not isinstance(tools, Iterable):
        raise InvalidInput("tools must be a list of tool definitions (mappings)")
    return [
        tool.model_dump(exclude_none=True) if hasattr(tool, "model_dump") else _plain(tool)
        for tool in tools
    ]


def load_chat(node: str, line: bytes) -> ChatReply:
    """One answer, or one line of a stream. Raises the error it contains."""
    return ChatReply(load_part(node, line))


def load_text(node: str, line: bytes) -> GeneratedText:
    """One answer, or one line of a stream. Raises the error it contains."""
    return GeneratedText.of(load_part(node, line))


def is_last(part: ChatReply | GeneratedText) -> bool:
    """Whether a part is the last of its stream."""
    answer = part if isinstance(part, ChatReply) else part.answer
    return answer.get("done") is True


def cut_off(node: str, delivered: int) -> StreamCutOff:
    """The error of a stream that ended without its last line."""
    return StreamCutOff(
        node,
        f"the stream ended after {delivered} parts, without a line that says it is done",
        delivered=delivered,
    )


def load_part(node: str, line: bytes) -> dict[str, Any]:
    """The JSON object in `line`. Raises the error it contains, or NodeError."""
    fields = load(node, line)
    if "error" in fields:
        raise _stream_error(node, line)
    return fields


def _stream_error(node: str, line: bytes) -> NodeError:
    # The status 200 was sent before the error happened, so only the text classifies it.
    if error_message(line) is None:
        return RunnerFailed(node, 200, line[:200].decode("utf-8", "replace"))
    return error_for(node, 500, line)
